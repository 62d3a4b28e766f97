"""A whole run: what it leaves behind, and that nothing can change a byte of it."""
import csv
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, codes, first

import dcgan


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_options):
    """The folder of a finished run of dcgan.py."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    dcgan.main([*run_options, "--out_dir", str(folder)])
    return folder


def test_run_leaves_grids_losses_and_a_checkpoint_of_plain_types(script, script_options, tmp_path, capsys):
    script.main([*script_options, "--out_dir", str(tmp_path / "run")])
    out = capsys.readouterr().out
    grids = [f"{step:06}.png" for step in (3, 4, 6, 8, 9, 12)]  # every 3 steps, and at the end of an epoch of 4
    assert set(files(tmp_path / "run")) == {*grids, "samples.png", "losses.csv", "losses.png", "checkpoint.pt"}

    lines = [line for line in out.strip().splitlines() if "unsupervised" not in line]
    assert len(lines) == 7 and lines[-1].endswith("samples.png")
    assert all("s(x)" in line and "s(G(z))" in line and "steps/s" in line and "left" in line for line in lines[:-1])
    assert len({len(line) for line in lines[:-1]}) == 1  # aligned

    with open(tmp_path / "run" / "losses.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [
        ("1", "3"), ("1", "4"), ("2", "6"), ("2", "8"), ("3", "9"), ("3", "12")]
    assert {"loss_D", "loss_G", "s(x)", "s(G(z))"} <= set(rows[0])

    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 3 and checkpoint["args"]["batch_size"] == (25 if script.__name__ == "cogan" else 50)
    assert {"G", "D", "opt_G", "opt_D", "average", "rng", "cuda"} <= set(checkpoint)
    assert checkpoint["rows"][-1][2] == float(rows[-1]["loss_D"])
    G = script.load_generator(tmp_path / "run" / "checkpoint.pt")
    assert not G.training
    assert all(torch.equal(value, checkpoint["average"][f"module.{name}"]) for name, value in G.state_dict().items())
    assert first(G(torch.randn(2, G.latent_dim), *codes(script, 2))).shape == (2, 1, 8, 8)


def test_a_printed_line_is_the_mean_over_its_steps(run_options, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(dcgan, "train_step", lambda *_: seen.append(len(seen)) or {
        "loss_D": torch.tensor(float(seen[-1])), "loss_G": torch.tensor(1.0)})
    dcgan.main([*run_options, "--out_dir", str(tmp_path / "run")])
    rows = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["rows"]
    assert [row[2] for row in rows] == [1.0, 3.0, 4.5, 6.5, 8.0, 10.0]


def test_the_generator_that_is_kept_is_the_running_average(run_options, tmp_path, monkeypatch):
    step, weights = dcgan.train_step, []
    monkeypatch.setattr(dcgan, "train_step", lambda G, *rest: (
        step(G, *rest), weights.append(G.layers[0].weight.detach().clone()))[0])
    dcgan.main([*run_options, "--out_dir", str(tmp_path / "run")])
    average = weights[0]
    for n, weight in enumerate(weights[1:], 1):
        average = average + max(0.002, 10 / (n + 10)) * (weight - average)
    kept = dcgan.load_generator(tmp_path / "run" / "checkpoint.pt").layers[0].weight
    assert torch.allclose(kept, average, atol=1e-6) and not torch.allclose(kept, weights[-1], atol=1e-6)


def test_learning_rates_fall_to_zero_over_the_second_half(run_options, tmp_path, monkeypatch):
    rates = []
    step = dcgan.train_step
    monkeypatch.setattr(dcgan, "train_step", lambda G, D, opt_G, opt_D, *rest: rates.append(
        [opt.param_groups[0]["lr"] for opt in (opt_G, opt_D)]) or step(G, D, opt_G, opt_D, *rest))
    dcgan.main([*run_options, "--lr_g", "1", "--lr_d", "0.5", "--out_dir", str(tmp_path / "run")])
    factors = [1] * 7 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert [g for g, _ in rates] == pytest.approx(factors) and [2 * d for _, d in rates] == pytest.approx(factors)


def test_same_seed_same_bytes_and_a_second_run_takes_a_new_folder(finished, run_options):
    before = files(finished)
    dcgan.main([*run_options, "--out_dir", str(finished)])
    dcgan.main([*run_options, "--out_dir", str(finished), "--seed", "1"])
    assert files(finished) == before
    assert files(Path(f"{finished}-2")) == before
    other = files(Path(f"{finished}-3"))
    assert other["samples.png"] != before["samples.png"] and other["losses.csv"] != before["losses.csv"]


def test_ctrl_c_prints_the_command_that_goes_on_to_the_same_bytes(
        script, script_options, tmp_path, monkeypatch, capsys):
    script.main([*script_options, "--out_dir", str(tmp_path / "whole")])
    step, calls = script.train_step, []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(script, "train_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        script.main([*script_options, "--out_dir", str(tmp_path / "cut")])
    command = shlex.split(str(stop.value).split("; ")[1])
    assert command[:3] == ["python", f"{script.__name__}.py", "--resume"] and command[4:] == ["goes", "on"]
    monkeypatch.setattr(script, "train_step", step)
    capsys.readouterr()
    script.main(command[2:4])
    assert "epoch  2 step" in capsys.readouterr().out.splitlines()[0]  # from the end of the first epoch
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_killed_at_random_moments_and_resumed_a_run_ends_with_the_bytes_of_one_never_stopped(run_options, tmp_path):
    folder, rng = tmp_path / "killed", random.Random(time.time_ns())
    longer = [*run_options, "--n_epochs", "12"]
    dcgan.main([*longer, "--out_dir", str(tmp_path / "whole")])
    command = [sys.executable, str(ROOT / "dcgan.py"), *longer, "--out_dir", str(folder)]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # a first line: it trains
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        assert process.wait() == -signal.SIGKILL and not (folder / "samples.png").exists()  # it was not yet done
        command = [sys.executable, str(ROOT / "dcgan.py"), "--resume", str(folder / "checkpoint.pt")]
    dcgan.main(command[2:])
    assert files(folder) == files(tmp_path / "whole")


def test_resume_of_a_finished_run_draws_the_picture_again(finished, capsys):
    before = files(finished)
    (finished / "samples.png").unlink()
    dcgan.main(["--resume", str(finished / "checkpoint.pt")])
    assert files(finished) == before
    assert capsys.readouterr().out.strip() == str(finished / "samples.png")


def test_resume_with_more_epochs_trains_on(finished, capsys):
    dcgan.main(["--resume", str(finished / "checkpoint.pt"), "--n_epochs", "4"])
    checkpoint = torch.load(finished / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 4 and checkpoint["args"]["batch_size"] == 50
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]] == ["4", "4"]


@pytest.mark.parametrize("rate", ["--lr_g", "--lr_d"])
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(script, run_options, tmp_path, rate):
    with pytest.raises(SystemExit, match="no longer finite"):
        script.main([*run_options, "--out_dir", str(tmp_path), rate, "inf"])
    G = script.load_generator(tmp_path / "checkpoint.pt")
    assert all(value.isfinite().all() for value in G.state_dict().values())
