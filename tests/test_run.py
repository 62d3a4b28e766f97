"""A whole run: what it leaves behind, and that nothing can change a byte of it."""
import contextlib
import csv
import importlib
import io
import itertools
import json
import math
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS, codes, fake_data, files, interrupt, pictures, refused
from matplotlib.figure import Figure

import common
import dcgan
from common import draw_glyphs, save_grid

INTERVAL = 5  # an epoch has 4 steps: a row comes within one
ROWS = [(1, 1), (2, 5), (3, 10), (3, 12)]  # (epoch, step)
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


@pytest.fixture(scope="module")
def script_options(run_options):
    """Options of a run of 3 epochs of 4 steps each, by script; cogan.py halves its data."""
    options = [*run_options, "--sample_interval", str(INTERVAL)]
    more = {"cogan": ["--batch_size", "25"]}
    return {name: [*options, *more.get(name, [])] for name in SCRIPTS}


@pytest.fixture(scope="module")
def finished(script_options, tmp_path_factory):
    """A function: the script's name -> the folder of its finished run, which no test changes.

    What the run has printed is in the file output.txt beside the folder.
    """
    folders = {}

    def run(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "run"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                options = [*script_options[name], "--out_dir", str(folders[name])]
                importlib.import_module(name).main(options)
            folders[name].with_name("output.txt").write_text(output.getvalue())
        return folders[name]

    return run


@pytest.fixture(autouse=True)
def curves(monkeypatch):
    """Keep the curves of losses.png as text, since drawing them takes longer than these runs."""

    def savefig(figure, path, **_):
        points = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
        Path(path).write_text(json.dumps(points))

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def short(run_options, tmp_path):
    """Options of a run of one epoch of small networks, whose folder is tmp_path / "run"."""
    return [*run_options, "--n_epochs", "1", "--width", "4", "--out_dir", str(tmp_path / "run")]


def checkpoint_of(folder):
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def edited(folder, path, **changes):
    """Save the checkpoint of a run with changes at that path, and return it as an option."""
    torch.save(checkpoint_of(folder) | changes, path)
    return str(path)


def drawn(script, folder, part="G_avg"):
    """The picture, as bytes, that the G or the average in a run's checkpoint draws."""
    checkpoint = checkpoint_of(folder)
    G = script.load_generator(folder / "checkpoint.pt")
    G.load_state_dict(checkpoint[part])
    D = script.Discriminator(**checkpoint["config_D"])
    D.load_state_dict(checkpoint["D"])
    picture = io.BytesIO()
    picture.name = "picture.png"
    save_grid(picture, **script.sample(G, D, script.parse_args([], checkpoint["args"])))
    return picture.getvalue()


def stopped(script, argv, monkeypatch, step):
    """Run a script that is interrupted in the given step; its name stands in sys.argv."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [f"my scripts/{script.__name__}.py", "--not_for_main"])
        interrupt(patch, script, step)
        with pytest.raises(SystemExit) as stop:
            script.main(argv)
    assert stop.value.code == 130


def resume_command(error_output):
    """The words of the command that a stopped run has printed last."""
    return shlex.split(error_output.splitlines()[-1].split("to continue: ")[1])


def change_train_step(monkeypatch, script, change):
    """Let every train_step of a run be followed by change(G, D, opt_G, opt_D)."""
    train_step = script.train_step

    def changed(*args):
        values = train_step(*args)
        change(*args[:4])
        return values

    monkeypatch.setattr(script, "train_step", changed)


def run_until(command, n_rows, number):
    """Run a command of a shell; send a signal at a random moment after the rows of its table."""
    process = subprocess.Popen(
        f"exec {command}", shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = itertools.dropwhile(lambda line: "loss_D" not in line, process.stdout)
    assert len(list(itertools.islice(lines, 1 + n_rows))) == 1 + n_rows, "the run has ended"
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(number)
    _, error = process.communicate()
    return process.returncode, error


# what a run leaves


def test_a_run_leaves_pictures_losses_its_options_and_a_checkpoint(script, finished):
    grids = {"real.png", "samples.png", *(f"{step:06}.png" for _, step in ROWS)}
    others = {"losses.csv", "losses.png", "checkpoint.pt", "args.json"}
    assert set(files(finished(script.__name__))) == grids | others


def test_losses_csv_has_the_rows_of_the_checkpoint_and_of_the_table_of_80_columns(script, finished):
    folder = finished(script.__name__)
    names, *rows = csv.reader((folder / "losses.csv").read_text().splitlines())
    rows = [[float(value) for value in row] for row in rows]
    assert [(row[0], row[1]) for row in rows] == ROWS and rows == checkpoint_of(folder)["rows"]
    assert {"loss_D", "loss_G", "s(x)", "s(G(z))"} <= set(names)

    lines = folder.with_name("output.txt").read_text().splitlines()
    assert all(len(line) <= 80 for line in lines[1:-1])  # not the data's, not a path's
    head = next(i for i, line in enumerate(lines) if "loss_D" in line)
    ends = [lines[head].index(name) + len(name) for name in names]  # of the columns
    for line, row in zip(lines[head + 1 :], rows):
        for end, value in zip(ends, row):
            assert float(line[:end].split()[-1]) == pytest.approx(value, abs=0.006)


def test_the_checkpoint_and_args_json_say_how_the_run_was_made(script, finished):
    checkpoint = checkpoint_of(finished(script.__name__))  # weights_only allows plain types only
    readable = json.loads((finished(script.__name__) / "args.json").read_text())
    assert (checkpoint["epochs_done"], checkpoint["steps_done"]) == (3, 12)
    assert checkpoint["script"] == readable["script"] == script.__name__
    expected = {"dataset": "mnist", "img_size": 8, "n_epochs": 3, "b1": 0.5, "cuda": False}
    assert expected.items() <= checkpoint["args"].items() <= readable.items()


def test_load_generator_gives_the_average_in_eval_mode_which_draws_the_pictures(script, finished):
    folder = finished(script.__name__)
    G = script.load_generator(folder)
    kept = checkpoint_of(folder)["G_avg"]
    assert all(torch.equal(value, kept[name]) for name, value in G.state_dict().items())
    assert not any(module.training for module in G.modules())
    images = G(torch.randn(2, G.latent_dim), *codes(script, 2))
    for domain in images if isinstance(images, tuple) else (images,):
        assert domain.shape == (2, 1, 8, 8)
    for name in ("samples.png", "000012.png"):
        assert (folder / name).read_bytes() == drawn(script, folder)
    assert drawn(script, folder, "G") != drawn(script, folder)  # so that this test can tell


@pytest.mark.parametrize("n", [5, 200])
def test_real_png_shows_images_from_first_to_last_and_none_twice(n):
    data = fake_data((1, 8, 8), n)
    levels = (dcgan.real_images(data, dcgan.parse_args([]))["images"] + 1) * 127.5
    index = [k * 199 // 63 for k in range(64)] if n > 64 else list(range(n))
    assert torch.equal(levels.round().byte(), data.images[index])


# what the loop does


def test_a_row_has_the_means_of_the_steps_since_the_one_before_and_so_has_its_curve(
    short, tmp_path, monkeypatch, capsys
):
    values = ({"first": n, "second": torch.tensor(50.0)} for n in torch.arange(12.0))
    monkeypatch.setattr(dcgan, "train_step", lambda *_: next(values))
    dcgan.main([*short, "--n_epochs", "3", "--sample_interval", str(INTERVAL)])
    means = [0, 2.5, 7, 10.5]
    rows = [[*row, mean, 50] for row, mean in zip(ROWS, means)]
    assert checkpoint_of(tmp_path / "run")["rows"] == rows
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-5:-1]]
    assert [float(line[-2]) for line in table] == means
    curves = json.loads((tmp_path / "run" / "losses.png").read_text())
    assert curves["first"] == [row[1:3] for row in rows]
    assert curves["second"] == [[row[1], 50] for row in rows]


def test_learning_rates_fall_linearly_to_zero_over_the_second_half(short, monkeypatch):
    rates = []

    def record(G, D, opt_G, opt_D):
        rates.append([opt.param_groups[0]["lr"] for opt in (opt_G, opt_D)])

    change_train_step(monkeypatch, dcgan, record)
    dcgan.main([*short, "--n_epochs", "3", "--lr_g", "3e-3", "--lr_d", "1e-3"])
    factors = [1] * 7 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [g / 3e-3 for g, _ in rates] == pytest.approx(factors)
    assert [d / 1e-3 for _, d in rates] == pytest.approx(factors)


def test_both_optimizers_are_adam_with_the_betas_of_the_options_also_when_resumed(short, tmp_path):
    run = str(tmp_path / "run")
    dcgan.main([*short, "--b1", "0.3", "--b2", "0.7"])
    for betas in ((0.3, 0.7), (0.1, 0.7)):
        checkpoint = checkpoint_of(run)
        for optimizer in (checkpoint["opt_G"], checkpoint["opt_D"]):
            assert optimizer["param_groups"][0]["betas"] == betas
            assert {"exp_avg", "exp_avg_sq"} <= set(optimizer["state"][0])
        dcgan.main(["--resume", run, "--n_epochs", "2", "--b1", "0.1"])


@pytest.mark.parametrize("steps_done", [0, 90, 100_000])
def test_weights_and_statistics_of_g_are_averaged_over_a_tenth_of_the_steps_at_most_500(
    steps_done, finished, tmp_path, monkeypatch
):
    states = []

    def record(G, *_):
        states.append({name: value.clone() for name, value in G.state_dict().items()})

    change_train_step(monkeypatch, dcgan, record)
    zeros = {k: torch.zeros_like(v) for k, v in checkpoint_of(finished("dcgan"))["G_avg"].items()}
    changes = {"steps_done": steps_done, "G_avg": zeros}
    path = edited(finished("dcgan"), tmp_path / "edited.pt", **changes)
    dcgan.main(["--resume", path, "--n_epochs", "4", "--out_dir", str(tmp_path / "run")])
    kept = dcgan.load_generator(tmp_path / "run").state_dict()
    assert any("running_var" in name for name in kept) and len(states) == 4
    for name in [name for name in kept if "num_batches" not in name]:
        average = torch.zeros_like(kept[name])
        for n, state in enumerate(states, steps_done):
            average += max(10 / (n + 10), 1 / 500) * (state[name] - average)
        assert torch.allclose(kept[name], average, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("batch_size, n_images, epochs", [(50, 200, 2500), (2, 1200, 20)])
def test_a_run_has_20_epochs_or_as_many_as_10000_steps_take(
    batch_size, n_images, epochs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(dcgan, "load_data", lambda *_, **__: fake_data((1, 8, 8), n_images))
    options = ["--batch_size", str(batch_size), "--out_dir", str(tmp_path / "run")]
    stopped(dcgan, options, monkeypatch, 1)
    assert f"{epochs} epochs of {n_images // batch_size} steps" in capsys.readouterr().out


@pytest.mark.parametrize("n_epochs, remark", [(2, True), (250, False)])
def test_a_run_on_a_folder_that_is_told_to_do_few_steps_gets_a_remark(
    n_epochs, remark, run_options, tmp_path, monkeypatch, capsys
):
    for dataset, few in (("mnist", False), (str(pictures(tmp_path / "mine", 8)), remark)):
        options = [*run_options, "--dataset", dataset, "--batch_size", "2"]
        stopped(dcgan, [*options, "--n_epochs", str(n_epochs)], monkeypatch, 1)
        line = next(line for line in capsys.readouterr().out.splitlines() if " epochs of " in line)
        assert (len(line.split()) > 5) == few


def test_a_closed_standard_output_is_no_obstacle(short, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after >&-
    dcgan.main(short)
    assert (tmp_path / "run" / "samples.png").exists()


def test_a_console_without_the_letters_of_a_folder_and_a_pipe_are_no_obstacles(
    short, tmp_path, monkeypatch
):
    console = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(console, encoding="ascii"))
    seen = []
    change_train_step(monkeypatch, dcgan, lambda *_: seen.append(console.getvalue()))
    dcgan.main([*short, "--out_dir", str(tmp_path / "Dürer")])
    assert b"200 images" in seen[0]  # the line about the data is not held back
    sys.stdout.flush()
    assert b"samples.png" in console.getvalue().splitlines()[-1]
    assert (tmp_path / "Dürer" / "samples.png").exists()


@pytest.mark.parametrize("place", [{}, {"__file__": "model.py"}])
def test_the_text_works_in_a_notebook_cell_under_another_name_and_without_docstrings(
    place, short, finished, tmp_path
):
    for name in SCRIPTS:
        cell = {"__name__": "cell", "__doc__": None, **place}
        source = (ROOT / f"{name}.py").read_text()
        exec(compile(source, "cell", "exec", optimize=2), cell)
        assert cell["parse_args"]([]) == importlib.import_module(name).parse_args([])
        assert cell["load_generator"](finished(name)).latent_dim > 0
        if name == "dcgan":
            cell["main"](short)
    assert dcgan.load_generator(tmp_path / "run").latent_dim == 100


def test_main_of_an_empty_list_is_the_bare_command(data_dir, tmp_path, monkeypatch, capsys):
    shutil.copytree(data_dir, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    stopped(dcgan, [], monkeypatch, 1)
    assert "mnist" in capsys.readouterr().out


# the same bytes


def test_the_same_seed_gives_the_same_bytes_another_one_others_and_each_run_has_a_folder(
    finished, script_options, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "0", "1"):
        dcgan.main([*script_options["dcgan"], "--seed", seed])
    first, second, other = (files(Path("runs", name)) for name in ("dcgan", "dcgan-2", "dcgan-3"))
    assert first == second == files(finished("dcgan"))
    assert all(first[name] != other[name] for name in ("samples.png", "losses.csv"))


def test_ctrl_c_within_an_epoch_prints_the_command_that_goes_on_to_the_same_bytes(
    script, script_options, finished, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "it's cut"
    argv = [*script_options[script.__name__], "--out_dir", str(folder)]
    stopped(script, argv, monkeypatch, 7)  # two steps after the checkpoint
    assert checkpoint_of(folder)["epochs_done"] == INTERVAL / 4
    assert (folder / "000005.png").read_bytes() == drawn(script, folder)
    python, path, *command = resume_command(capsys.readouterr().err)
    assert (python, path) == ("python", f"my scripts/{script.__name__}.py")
    script.main(command)
    assert files(folder) == files(finished(script.__name__))


@posix
def test_terminated_and_killed_at_random_moments_a_run_ends_with_the_bytes_of_one_never_stopped(
    short, tmp_path, monkeypatch
):
    monkeypatch.undo()  # with the real losses.png
    folder = tmp_path / "it's cut"
    options = [*short, "--n_epochs", "10", "--sample_interval", "6"]
    dcgan.main(options)
    command = [sys.executable, str(ROOT / "dcgan.py"), *options, "--out_dir", str(folder)]
    status, error = run_until(shlex.join(command), 2, signal.SIGTERM)  # a checkpoint lies between
    assert status == 130
    command = error.split("to continue: python ")[1].strip()  # as a shell reads it
    status, _ = run_until(f"{sys.executable} {command}", 1, signal.SIGKILL)
    assert status == -signal.SIGKILL and not (folder / "samples.png").exists()
    dcgan.main(["--resume", str(folder)])
    (folder / "checkpoint.tmp").unlink(missing_ok=True)  # of a kill during a save
    assert files(folder) == files(tmp_path / "run")


# resuming


def test_a_finished_run_draws_its_samples_without_its_data_into_another_file(
    script, finished, tmp_path, no_network, capsys
):
    folder = shutil.copytree(finished(script.__name__), tmp_path / "moved")
    before = files(folder)
    for _ in range(2):  # where no data are
        script.main(["--resume", str(folder), "--data_dir", str(tmp_path / "nowhere")])
    again = {"samples-2.png": before["samples.png"], "samples-3.png": before["samples.png"]}
    assert files(folder) == before | again
    assert str(folder / "samples-3.png") in capsys.readouterr().out


def test_a_run_goes_on_and_draws_from_another_directory_and_draws_when_its_pictures_are_gone(
    run_options, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    folder = pictures(tmp_path / "pictures", 8)
    monkeypatch.chdir(tmp_path)
    dcgan.main([*run_options, "--dataset", "pictures", "--batch_size", "4", "--out_dir", "run"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    dcgan.main(["--resume", "../run", "--n_epochs", "4"])
    assert checkpoint_of("../run")["epochs_done"] == 4
    shutil.rmtree(folder)
    dcgan.main(["--resume", "../run/checkpoint.pt"])
    assert (tmp_path / "run" / "samples-2.png").exists() and not list(Path().iterdir())


def test_a_run_on_auto_keeps_the_data_that_it_found(
    run_options, data_dir, tmp_path, no_network, monkeypatch, capsys
):
    monkeypatch.setattr(common, "draw_glyphs", lambda n, seed: draw_glyphs(100, seed))
    options = ["--dataset", "auto", "--data_dir", str(tmp_path / "empty")]
    dcgan.main([*run_options, *options, "--out_dir", str(tmp_path / "run")])
    assert checkpoint_of(tmp_path / "run")["args"]["dataset"] == "glyphs"
    capsys.readouterr()
    dcgan.main(["--resume", str(tmp_path / "run"), "--n_epochs", "4", "--data_dir", str(data_dir)])
    assert "100 images" in capsys.readouterr().out


def test_more_epochs_and_a_new_folder_leave_the_old_one_as_it_is(finished, tmp_path):
    before = files(finished("dcgan"))
    for folder in ("run", "run-2"):
        options = ["--n_epochs", "4", "--out_dir", str(tmp_path / "run")]
        dcgan.main(["--resume", str(finished("dcgan")), *options])
        checkpoint = checkpoint_of(tmp_path / folder)
        assert checkpoint["epochs_done"] == 4
        assert checkpoint["args"]["batch_size"] == 50  # what is not given stays
    assert files(tmp_path / "run") == files(tmp_path / "run-2")
    assert files(finished("dcgan")) == before
    assert [row[1] for row in checkpoint["rows"]] == [1, 5, 10, 12, 15, 16]


@pytest.mark.parametrize("epochs_done, steps", [(3, 20), (1.5, 35)])
def test_another_batch_size_leaves_the_number_of_epochs(epochs_done, steps, finished, tmp_path):
    path = edited(finished("dcgan"), tmp_path / "edited.pt", epochs_done=epochs_done)
    options = ["--n_epochs", "5", "--batch_size", "20", "--out_dir", str(tmp_path / "run")]
    dcgan.main(["--resume", path, *options])
    checkpoint = checkpoint_of(tmp_path / "run")
    assert (checkpoint["epochs_done"], checkpoint["steps_done"]) == (5, 12 + steps)


def test_a_checkpoint_of_another_name_is_resumed_in_a_new_folder(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(finished("dcgan"), tmp_path / "old")
    (folder / "checkpoint.pt").rename(folder / "epoch3.pt")
    (folder / "checkpoint.pt").write_bytes(b"a newer one")
    before = files(folder)
    dcgan.main(["--resume", str(folder / "epoch3.pt"), "--n_epochs", "4"])
    assert files(folder) == before
    assert checkpoint_of("runs/dcgan")["epochs_done"] == 4


def test_stopped_before_its_first_checkpoint_a_resumed_run_names_one_that_is_there(
    finished, tmp_path, monkeypatch, capsys
):
    options = ["--resume", str(finished("dcgan")), "--n_epochs", "4"]
    stopped(dcgan, [*options, "--out_dir", str(tmp_path / "run")], monkeypatch, 1)
    sentence = capsys.readouterr().err.splitlines()[-1]
    if "to continue" in sentence:
        assert dcgan.load_generator(resume_command(sentence)[3])


@pytest.mark.parametrize("n, classes", [(8, [""]), (10, [""]), (8, ["a", "b"])])
def test_a_script_without_labels_goes_on_with_other_pictures(n, classes, short, tmp_path, capsys):
    options = ["--dataset", str(pictures(tmp_path / "old", 8)), "--batch_size", "4"]
    dcgan.main([*short, *options])
    new = pictures(tmp_path / "new", n, classes, seed=1)
    capsys.readouterr()
    dcgan.main(["--resume", str(tmp_path / "run"), "--dataset", str(new), "--n_epochs", "2"])
    assert checkpoint_of(tmp_path / "run")["epochs_done"] == 2
    remark = next(line for line in capsys.readouterr().out.splitlines() if " epochs of " in line)
    assert ("8 images" in remark) == (n == 10)


def test_no_cuda_takes_cuda_back(finished, tmp_path, capsys):
    args = checkpoint_of(finished("dcgan"))["args"] | {"cuda": True}
    path = edited(finished("dcgan"), tmp_path / "edited.pt", args=args)
    options = ["--n_epochs", "4", "--out_dir", str(tmp_path / "run")]
    dcgan.main(["--resume", path, "--no-cuda", *options])
    assert checkpoint_of(tmp_path / "run")["args"]["cuda"] is False
    assert "CUDA" not in capsys.readouterr().err


# what goes wrong


@pytest.mark.parametrize("name", ["checkpoint.pt", "real.png", "notes.txt"])
def test_a_folder_that_holds_any_file_is_another_run_s(name, short, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"mine")
    (tmp_path / "run-2").mkdir()
    dcgan.main(short)
    assert files(tmp_path / "run") == {name: b"mine"}
    assert (tmp_path / "run-2" / "samples.png").exists()  # an empty one is taken


@pytest.mark.parametrize("error, status", [
    (KeyboardInterrupt(), 130), (torch.OutOfMemoryError("CUDA out of memory"), 2)
])  # fmt: skip
def test_a_run_that_fails_in_its_first_step_leaves_nothing(
    error, status, short, tmp_path, monkeypatch, capsys
):
    interrupt(monkeypatch, dcgan, 1, error)
    with pytest.raises(SystemExit) as stop:
        dcgan.main(short)
    assert stop.value.code == status and len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", ["G", "D"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 3])
def test_a_weight_that_is_not_finite_is_a_divergence_and_spares_the_checkpoint(
    network, value, step, short, tmp_path, monkeypatch, capsys
):
    steps = itertools.count(1)

    def spoil(G, D, *_):
        if next(steps) == step:
            list({"G": G, "D": D}[network].parameters())[-1].data[0] = value

    change_train_step(monkeypatch, dcgan, spoil)
    assert "diverged" in refused(dcgan, short, capsys)
    assert (tmp_path / "run").exists() == (step > 1)
    if step > 1:
        checkpoint = checkpoint_of(tmp_path / "run")
        for part in ("G", "D", "G_avg"):
            assert all(weight.isfinite().all() for weight in checkpoint[part].values())


@posix
def test_a_full_disk_is_one_sentence_and_leaves_the_old_checkpoint(
    short, tmp_path, monkeypatch, capsys
):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps = itertools.count(1)

    def fill(*_):
        if next(steps) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))

    change_train_step(monkeypatch, dcgan, fill)
    try:
        refused(dcgan, short, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint_of(tmp_path / "run")["steps_done"] == 1


@pytest.mark.parametrize("error", [RuntimeError, ValueError, IndexError, KeyError])
def test_a_bug_keeps_its_traceback_and_leaves_nothing(error, short, tmp_path, monkeypatch):
    def forward(self, z):
        raise error("a mistake in somebody's own network")

    monkeypatch.setattr(dcgan.Generator, "forward", forward)
    with pytest.raises(error, match="somebody's own"):
        dcgan.main(short)
    assert not list(tmp_path.iterdir())
