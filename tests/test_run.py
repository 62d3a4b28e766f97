"""A whole run: what it leaves behind, and that nothing can change a byte of it."""
import csv
import importlib
import itertools
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS, codes, fake_data, files, interrupt, networks, refused

import dcgan
from common import UserError, save_grid

# an epoch has 4 steps: with 5 between two grids, a checkpoint falls between two of them
INTERVAL = "5"


@pytest.fixture(scope="module")
def script_options(run_options):
    """Options of a run of 3 epochs of 4 steps each, by script; cogan.py halves its data."""
    options = [*run_options, "--sample_interval", INTERVAL]
    more = {"cogan": ["--batch_size", "25"]}
    return {name: [*options, *more.get(name, [])] for name in SCRIPTS}


@pytest.fixture(scope="module")
def finished(script_options, tmp_path_factory):
    """A function: the script's name -> the folder of its finished run, which no test changes."""
    folders = {}

    def run(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "run"
            options = [*script_options[name], "--out_dir", str(folders[name])]
            importlib.import_module(name).main(options)
        return folders[name]

    return run


def checkpoint_of(folder):
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def resume_command(capsys, script):
    """The arguments of the command that a stopped run has printed last."""
    line = capsys.readouterr().err.splitlines()[-1]
    command = shlex.split(line.split("to continue: ")[1])
    assert command[0] == "python" and Path(command[1]).resolve() == ROOT / f"{script.__name__}.py"
    return command[2:]


# what a run leaves


def test_a_run_leaves_pictures_losses_and_a_checkpoint(script, finished):
    found = set(files(finished(script.__name__)))
    pictures = {"real.png", "000005.png", "000010.png", "000012.png", "samples.png"}
    assert found == {*pictures, "losses.csv", "losses.png", "checkpoint.pt"}


def test_losses_csv_has_a_row_per_interval_and_one_at_the_end(script, finished):
    with open(finished(script.__name__) / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    steps = [(row["epoch"], row["step"]) for row in rows]
    assert steps == [("2", "5"), ("3", "10"), ("3", "12")]
    assert {"loss_D", "loss_G", "s(x)", "s(G(z))"} <= set(rows[0])
    kept = checkpoint_of(finished(script.__name__))["rows"]
    assert [[float(value) for value in row.values()] for row in rows] == kept


def test_the_checkpoint_is_of_plain_types_and_says_how_it_was_made(script, finished):
    checkpoint = checkpoint_of(finished(script.__name__))  # weights_only allows no others
    assert checkpoint["script"] == script.__name__
    assert (checkpoint["epochs_done"], checkpoint["steps_done"]) == (3, 12)
    assert checkpoint["args"]["dataset"] == "mnist" and checkpoint["args"]["img_size"] == 8
    assert {"G", "D", "opt_G", "opt_D", "G_avg", "rng"} <= set(checkpoint)


def test_load_generator_gives_the_average_in_eval_mode(script, finished):
    path = finished(script.__name__) / "checkpoint.pt"
    G = script.load_generator(path)
    assert not any(module.training for module in G.modules())
    kept = checkpoint_of(path.parent)["G_avg"]
    for name, value in G.state_dict().items():
        assert torch.equal(value, kept[name]), name
    images = G(torch.randn(2, G.latent_dim), *codes(script, 2))
    for domain in images if isinstance(images, tuple) else (images,):
        assert domain.shape == (2, 1, 8, 8)


def test_the_pictures_are_those_of_the_generator_that_is_kept(script, finished, tmp_path):
    folder = finished(script.__name__)
    checkpoint = checkpoint_of(folder)
    args = script.parse_args([], checkpoint["args"])
    generator = script.load_generator(folder / "checkpoint.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        _, _, D = script.build(args, torch.device("cpu"))
    D.load_state_dict(checkpoint["D"])
    save_grid(tmp_path / "expected.png", **script.sample(generator, D, args))
    expected = (tmp_path / "expected.png").read_bytes()
    assert (folder / "samples.png").read_bytes() == expected
    assert (folder / "000012.png").read_bytes() == expected  # no step lies between the two

    generator.load_state_dict(checkpoint["G"])
    save_grid(tmp_path / "last.png", **script.sample(generator, D, args))
    assert (tmp_path / "last.png").read_bytes() != expected  # so that this test can tell


def test_a_grid_on_the_way_is_drawn_from_the_average_too(run_options, tmp_path, monkeypatch):
    trained, drawn = [], []
    train_step, sample = dcgan.train_step, dcgan.sample
    monkeypatch.setattr(
        dcgan, "train_step", lambda G, *rest: trained.append(G) or train_step(G, *rest)
    )
    monkeypatch.setattr(dcgan, "sample", lambda G, *rest: drawn.append(G) or sample(G, *rest))
    dcgan.main([*run_options, "--out_dir", str(tmp_path / "run")])
    assert len(drawn) == 5 and all(G is drawn[0] and G is not trained[0] for G in drawn)
    assert trained[0].training and not drawn[0].training


def test_real_images_draws_no_random_number(script, run_options):
    args = script.parse_args(run_options)
    data, *_ = script.build(args, torch.device("cpu"))
    before = torch.get_rng_state()
    picture = script.real_images(data, args)
    assert torch.equal(before, torch.get_rng_state())
    assert picture["images"].min() == -1 and picture["images"].max() > 0.5
    assert len(picture["images"]) % picture["n_columns"] == 0


def test_real_png_shows_images_of_the_data_from_first_to_last(run_options):
    args = dcgan.parse_args(run_options)
    data, *_ = dcgan.build(args, torch.device("cpu"))
    levels = (dcgan.real_images(data, args)["images"] + 1) * 127.5
    index = [k * 199 // 63 for k in range(64)]
    assert (levels - data.images[index]).abs().max() < 0.01


def test_real_png_shows_each_image_of_a_small_set_once():
    data = fake_data((1, 8, 8), 5)
    levels = (dcgan.real_images(data, dcgan.parse_args([]))["images"] + 1) * 127.5
    assert torch.equal(levels.round().byte(), data.images)


def test_real_png_is_there_before_the_first_step(script, run_options, tmp_path, monkeypatch):
    interrupt(monkeypatch, script, 1)
    with pytest.raises(SystemExit):
        script.main([*run_options, "--out_dir", str(tmp_path / "run")])
    assert set(files(tmp_path / "run")) == {"real.png", "losses.csv", "checkpoint.pt"}


# what the loop does


def test_a_line_is_the_mean_over_the_steps_since_the_one_before(
    run_options, tmp_path, monkeypatch, capsys
):
    steps = itertools.count()
    monkeypatch.setattr(
        dcgan,
        "train_step",
        lambda *_: {"first": torch.tensor(float(next(steps))), "second": torch.tensor(1.0)},
    )
    options = ["--sample_interval", INTERVAL, "--out_dir", str(tmp_path / "run")]
    dcgan.main([*run_options, *options])
    assert checkpoint_of(tmp_path / "run")["rows"] == [
        [2, 5, 2.0, 1.0], [3, 10, 7.0, 1.0], [3, 12, 10.5, 1.0]
    ]  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps/s" in line]
    assert len(lines) == 3 and all("first" in line and "left" in line for line in lines)
    assert len({len(line.split("left")[1]) for line in lines}) == 1  # aligned


def test_a_checkpoint_comes_first_and_at_the_end_of_an_epoch_after_an_interval_of_steps(
    run_options, tmp_path, monkeypatch
):
    saved = []
    save = dcgan.save_checkpoint
    monkeypatch.setattr(
        dcgan,
        "save_checkpoint",
        lambda *args: saved.append(args[-1]["epochs_done"]) or save(*args),
    )
    options = [*run_options, "--n_epochs", "6", "--sample_interval", "7"]
    dcgan.main([*options, "--out_dir", str(tmp_path / "run")])
    assert saved == [0, 2, 4, 6]


def test_the_last_epoch_ends_with_a_checkpoint_whatever_the_interval(run_options, tmp_path):
    options = [*run_options, "--sample_interval", "1000", "--out_dir", str(tmp_path / "run")]
    dcgan.main(options)
    assert checkpoint_of(tmp_path / "run")["epochs_done"] == 3


def test_learning_rates_fall_linearly_to_zero_over_the_second_half(
    run_options, tmp_path, monkeypatch
):
    rates = []
    train_step = dcgan.train_step

    def record(G, D, opt_G, opt_D, *rest):
        rates.append([opt.param_groups[0]["lr"] for opt in (opt_G, opt_D)])
        return train_step(G, D, opt_G, opt_D, *rest)

    monkeypatch.setattr(dcgan, "train_step", record)
    options = ["--lr_g", "3e-3", "--lr_d", "1e-3", "--out_dir", str(tmp_path / "run")]
    dcgan.main([*run_options, *options])
    factors = [1] * 7 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [g / 3e-3 for g, _ in rates] == pytest.approx(factors)
    assert [d / 1e-3 for _, d in rates] == pytest.approx(factors)


def test_both_optimizers_are_adam_with_the_betas_of_the_options(run_options, tmp_path, monkeypatch):
    options = [*run_options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")]
    dcgan.main([*options, "--b1", "0.3", "--b2", "0.7"])
    checkpoint = checkpoint_of(tmp_path / "run")
    for name in ("opt_G", "opt_D"):
        assert checkpoint[name]["param_groups"][0]["betas"] == (0.3, 0.7), name
        assert {"exp_avg", "exp_avg_sq"} <= set(checkpoint[name]["state"][0])


def test_a_resumed_run_takes_the_betas_that_are_given(finished, tmp_path):
    path = finished("dcgan") / "checkpoint.pt"
    options = ["--n_epochs", "4", "--b1", "0.1", "--out_dir", str(tmp_path / "run")]
    dcgan.main(["--resume", str(path), *options])
    checkpoint = checkpoint_of(tmp_path / "run")
    for name in ("opt_G", "opt_D"):
        assert checkpoint[name]["param_groups"][0]["betas"] == (0.1, 0.999), name


def test_the_average_moves_by_its_share_of_the_way():
    average, G = networks(dcgan)[0], networks(dcgan, seed=1)[0]
    before = {name: value.clone() for name, value in average.state_dict().items()}
    dcgan.update_average(average, G, 0.3)
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            expected = 0.7 * before[name] + 0.3 * G.state_dict()[name]
            assert torch.allclose(value, expected, atol=1e-6), name


@pytest.mark.parametrize("steps_done", [0, 90, 4985, 100_000])
def test_the_average_spans_a_tenth_of_the_steps_and_at_most_500(
    finished, tmp_path, monkeypatch, steps_done
):
    shares = []
    monkeypatch.setattr(dcgan, "update_average", lambda G_avg, G, share: shares.append(share))
    path = tmp_path / "edited.pt"
    torch.save(checkpoint_of(finished("dcgan")) | {"steps_done": steps_done}, path)
    options = ["--n_epochs", "5", "--out_dir", str(tmp_path / "run")]
    dcgan.main(["--resume", str(path), *options])
    steps = torch.arange(steps_done, steps_done + len(shares))
    assert len(shares) >= 4
    assert shares == pytest.approx((10 / (steps + 10)).clamp(min=1 / 500).tolist())


def test_weights_and_running_statistics_of_g_are_averaged_over_the_run(
    run_options, tmp_path, monkeypatch
):
    states = []
    train_step = dcgan.train_step

    def record(G, *rest):
        values = train_step(G, *rest)
        states.append({name: value.clone() for name, value in G.state_dict().items()})
        return values

    monkeypatch.setattr(dcgan, "train_step", record)
    dcgan.main([*run_options, "--out_dir", str(tmp_path / "run")])
    kept = dcgan.load_generator(tmp_path / "run" / "checkpoint.pt").state_dict()
    assert any("running_var" in name for name in kept)
    for name in [name for name in kept if "num_batches" not in name]:
        average = states[0][name]
        for n, state in enumerate(states[1:], 1):
            average = average + 10 / (n + 10) * (state[name] - average)
        assert torch.allclose(kept[name], average, rtol=1e-4, atol=1e-6), name
        assert not torch.allclose(kept[name], states[-1][name], rtol=1e-4, atol=1e-6), name


def test_bfloat16_is_for_the_step_alone(run_options, tmp_path, monkeypatch):
    inside = []
    train_step = dcgan.train_step

    def record(*args):
        inside.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return train_step(*args)

    monkeypatch.setattr(dcgan, "train_step", record)
    options = [*run_options, "--n_epochs", "1"]
    dcgan.main([*options, "--bf16", "--out_dir", str(tmp_path / "half")])
    # a cache would show G's step the D from before its update
    assert inside == [(True, False)] * 4
    dcgan.main([*options, "--out_dir", str(tmp_path / "full")])
    assert not any(enabled for enabled, _ in inside[4:])
    half, full = checkpoint_of(tmp_path / "half"), checkpoint_of(tmp_path / "full")
    assert all(not v.is_floating_point() or v.dtype == torch.float32 for v in half["G"].values())
    assert half["rows"] != full["rows"]


def test_a_live_line_is_cut_to_the_terminal_and_printed_nowhere_else(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    dcgan.show_live("x" * 200)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    dcgan.show_live("x" * 200)
    dcgan.show_live("y")
    shown = capsys.readouterr().out
    assert shown == "x" * 39 + "\r" + "y".ljust(39) + "\r"  # the second hides the first


def test_a_closed_standard_output_is_no_obstacle(run_options, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after >&-
    dcgan.main([*run_options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "samples.png").exists()


def test_a_program_without_docstrings_works(script):
    source = Path(script.__file__).read_text()
    program = {"__name__": "program", "__file__": script.__file__, "__doc__": None}
    exec(compile(source, script.__file__, "exec", optimize=2), program)  # as python -OO does
    assert program["parse_args"]([]) == script.parse_args([])


# the same bytes


def test_the_same_seed_gives_the_same_bytes_and_a_second_run_takes_a_new_folder(
    finished, script_options, tmp_path
):
    options = [*script_options["dcgan"], "--out_dir", str(tmp_path / "run")]
    for _ in range(2):
        dcgan.main(options)
    before = files(finished("dcgan"))
    assert files(tmp_path / "run") == before
    assert files(tmp_path / "run-2") == before


def test_another_seed_gives_other_bytes(finished, script_options, tmp_path):
    dcgan.main([*script_options["dcgan"], "--seed", "1", "--out_dir", str(tmp_path / "run")])
    one, two = files(finished("dcgan")), files(tmp_path / "run")
    assert one["samples.png"] != two["samples.png"] and one["losses.csv"] != two["losses.csv"]


def test_a_run_without_a_folder_goes_to_runs(run_options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/dcgan", "runs/dcgan-2"):
        dcgan.main([*run_options, "--n_epochs", "1"])
        assert capsys.readouterr().out.splitlines()[-1] == f"{folder}/samples.png"
        assert (tmp_path / folder / "samples.png").exists()


def test_ctrl_c_prints_the_command_that_goes_on_to_the_same_bytes(
    script, script_options, finished, tmp_path, monkeypatch, capsys
):
    whole = files(finished(script.__name__))
    folder = tmp_path / "it's cut"  # a name that a shell needs quoted
    with monkeypatch.context() as patch:
        interrupt(patch, script, 10)  # two steps after the checkpoint of step 8
        with pytest.raises(SystemExit) as stop:
            script.main([*script_options[script.__name__], "--out_dir", str(folder)])
    assert stop.value.code == 130
    assert checkpoint_of(folder)["epochs_done"] == 2
    command = resume_command(capsys, script)
    assert command == ["--resume", str(folder / "checkpoint.pt")]
    script.main(command)
    assert files(folder) == whole


def test_a_run_in_bfloat16_is_resumed_to_the_same_bytes(
    script_options, tmp_path, monkeypatch, capsys
):
    options = [*script_options["dcgan"], "--bf16"]
    dcgan.main([*options, "--out_dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        interrupt(patch, dcgan, 11)
        with pytest.raises(SystemExit):
            dcgan.main([*options, "--out_dir", str(tmp_path / "cut")])
    dcgan.main(resume_command(capsys, dcgan))
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_killed_at_random_moments_and_resumed_a_run_ends_with_the_bytes_of_one_never_stopped(
    run_options, tmp_path
):
    folder = tmp_path / "killed"
    rng = random.Random(time.time_ns())
    options = [*run_options, "--width", "4", "--n_epochs", "30", "--sample_interval", "10"]
    dcgan.main([*options, "--out_dir", str(tmp_path / "whole")])
    command = [sys.executable, str(ROOT / "dcgan.py"), *options, "--out_dir", str(folder)]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        n_lines = 0
        while n_lines < 2:  # a checkpoint lies between the first two lines
            line = process.stdout.readline()
            assert line, "the run has ended"
            n_lines += "steps/s" in line
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL and not (folder / "samples.png").exists()
        command = [*command[:2], "--resume", str(folder / "checkpoint.pt")]
    dcgan.main(command[2:])
    found = files(folder)
    found.pop("checkpoint.tmp", None)  # of a kill during a save
    assert found == files(tmp_path / "whole")


def test_the_resume_command_is_relative_to_where_the_user_stands(
    run_options, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    interrupt(monkeypatch, dcgan, 2)
    with pytest.raises(SystemExit):
        dcgan.main(run_options)
    command = shlex.split(capsys.readouterr().err.split("to continue: ")[1])
    assert command[1] == os.path.relpath(ROOT / "dcgan.py")
    assert command[3] == "runs/dcgan/checkpoint.pt" and Path(command[3]).exists()


# resuming


def test_a_finished_run_draws_its_picture_again(finished, script_options, tmp_path, capsys):
    whole = files(finished("dcgan"))
    dcgan.main([*script_options["dcgan"], "--out_dir", str(tmp_path / "run")])
    folder = (tmp_path / "run").rename(tmp_path / "moved")
    (folder / "samples.png").unlink()
    capsys.readouterr()
    dcgan.main(["--resume", str(folder / "checkpoint.pt")])
    assert files(folder) == whole and not (tmp_path / "run").exists()
    assert not any("steps/s" in line for line in capsys.readouterr().out.splitlines())


def test_more_epochs_and_a_new_folder_leave_the_old_one_as_it_is(finished, tmp_path, capsys):
    before = files(finished("dcgan"))
    path = finished("dcgan") / "checkpoint.pt"
    for folder in ("run", "run-2"):
        options = ["--n_epochs", "4", "--out_dir", str(tmp_path / "run")]
        dcgan.main(["--resume", str(path), *options])
        checkpoint = checkpoint_of(tmp_path / folder)
        assert checkpoint["epochs_done"] == 4
        assert checkpoint["args"]["batch_size"] == 50  # what is not given stays
    assert files(tmp_path / "run") == files(tmp_path / "run-2")
    assert files(finished("dcgan")) == before
    steps = [row[1] for row in checkpoint["rows"]]
    assert steps == [5, 10, 12, 15, 16]


def test_a_checkpoint_of_another_name_is_resumed_in_a_new_folder(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "old"
    folder.mkdir()
    for name, content in files(finished("dcgan")).items():
        (folder / name).write_bytes(content)
    (folder / "checkpoint.pt").rename(folder / "epoch3.pt")
    (folder / "checkpoint.pt").write_bytes(b"a newer one")
    before = files(folder)
    dcgan.main(["--resume", str(folder / "epoch3.pt")])
    assert files(folder) == before
    again = files(tmp_path / "runs" / "dcgan")
    assert again["samples.png"] == before["samples.png"]
    assert dcgan.load_generator("runs/dcgan/checkpoint.pt").latent_dim == 100


# what goes wrong


@pytest.mark.parametrize("rate", ["--lr_g", "--lr_d"])
@pytest.mark.parametrize("name", ["dcgan", "fgan"])
def test_a_run_that_diverges_stops_with_one_sentence_and_spares_the_checkpoint(
    name, rate, run_options, tmp_path, capsys
):
    script = importlib.import_module(name)
    options = [*run_options, "--out_dir", tmp_path / "run", rate, "1e38"]
    assert "diverged" in refused(script, options, capsys)
    checkpoint = checkpoint_of(tmp_path / "run")
    for part in ("G", "D", "G_avg"):
        assert all(value.isfinite().all() for value in checkpoint[part].values())


@pytest.mark.parametrize("network", ["G", "D"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_of_either_network_that_is_not_finite_is_a_divergence(network, value):
    G, D, *_ = networks(dcgan)
    dcgan.check_finite(G, D)
    weight = list({"G": G, "D": D}[network].parameters())[-1]
    weight.data[0] = value
    with pytest.raises(UserError, match="diverged"):
        dcgan.check_finite(G, D)


def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_temporary_file(
    run_options, tmp_path, monkeypatch, capsys
):
    save, saves = torch.save, []

    def full_disk(checkpoint, file):
        saves.append(None)
        if len(saves) < 3:
            return save(checkpoint, file)
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    sentence = refused(dcgan, [*run_options, "--out_dir", tmp_path / "run"], capsys)
    assert "No space left on device" in sentence and "to continue: python " in sentence
    assert checkpoint_of(tmp_path / "run")["epochs_done"] == 1
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
                 " memory: you tried to allocate 80000000000 bytes. Error code 12 (Cannot allocate"
                 " memory)"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError(),
])  # fmt: skip
def test_running_out_of_memory_is_one_sentence(error, run_options, tmp_path, monkeypatch, capsys):
    interrupt(monkeypatch, dcgan, 2, error)
    sentence = refused(dcgan, [*run_options, "--out_dir", tmp_path / "run"], capsys)
    assert "out of memory" in sentence and "--batch_size" in sentence


def test_real_allocations_that_fail_are_recognised():
    for allocate in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**60)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        assert dcgan.is_out_of_memory(error.value)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, IndexError, KeyError])
def test_a_bug_keeps_its_traceback(error, run_options, tmp_path, monkeypatch):
    interrupt(monkeypatch, dcgan, 2, error("a mistake in somebody's own train_step"))
    with pytest.raises(error):
        dcgan.main([*run_options, "--out_dir", str(tmp_path / "run")])


def test_an_index_error_in_an_edited_generator_shows_its_line(run_options, tmp_path):
    source = (ROOT / "dcgan.py").read_text()
    line = "        return self.layers(z)"
    assert source.count(line) == 1
    edited = tmp_path / "dcgan.py"
    edited.write_text(source.replace(line, "        return [self.layers(z)][len(z)]  # edited"))
    done = subprocess.run(
        [sys.executable, str(edited), *run_options, "--out_dir", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "return [self.layers(z)][len(z)]  # edited" in done.stderr
    assert done.stderr.splitlines()[-1] == "IndexError: list index out of range"
