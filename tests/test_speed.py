"""The clock of speed.py, and the loops that it times."""
import re
import time
from itertools import islice

import pytest
import score
import speed
import torch
from conftest import fake_data, write_mnist
from torch import nn

import dcgan
from common import load_data

CPU = torch.device("cpu")


def test_speed_is_that_of_the_clock():
    def steps():
        while True:
            time.sleep(0.02)
            yield

    assert 5 < speed.steps_per_second(steps(), 5) < 50


@pytest.mark.parametrize("loop", ["ours", "usual"])
def test_both_loops_train(loop):
    data = fake_data((1, 28, 28), 80)
    steps = speed.ours("dcgan", data, CPU) if loop == "ours" else speed.usual(data)
    G = next(steps)
    before = [p.clone() for p in G.parameters()]
    *_, after = islice(steps, 2)  # more than an epoch
    assert after is G and all(p.isfinite().all() for p in G.parameters())
    changed = [not torch.equal(p, q) for p, q in zip(before, G.parameters())]
    assert sum(changed) > len(changed) / 2
    side = 28 if loop == "ours" else 32
    assert G(torch.randn(2, G.latent_dim)).shape == (2, 1, side, side)


def test_our_loop_is_the_script_s_own(tmp_path):
    """After an epoch, its average of G has the bytes of the run's."""
    write_mnist(tmp_path, 150)  # two steps, both at the full rate
    *_, G = islice(speed.ours("dcgan", load_data("mnist", tmp_path, 8), CPU), 3)
    options = ["--dataset", "mnist", "--data_dir", str(tmp_path), "--img_size", "8"]
    dcgan.main([*options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")])
    run = dcgan.load_generator(tmp_path / "run" / "checkpoint.pt")
    pairs = zip(G.state_dict().values(), run.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_distances_end_where_the_goal_is_reached(data_dir, capsys, monkeypatch):
    class Net:
        def features(self, x):  # how sharp an image is, in both directions
            x = x if x.is_floating_point() else score.unit(x)
            return torch.stack([100 * x.diff(dim=d).abs().mean((1, 2, 3)) for d in (2, 3)], 1), None

    monkeypatch.setattr(score, "load_classifier", lambda *_: Net())
    sets = score.load_sets("mnist", data_dir, (1, 28, 28))

    def steps():
        G = nn.Sequential(nn.Linear(4, 1024), nn.Unflatten(1, (1, 32, 32)))
        G.latent_dim = 4
        while True:
            yield G

    def lines(goal, limit):
        capsys.readouterr()
        speed.compare_distances({"planted": steps()}, *sets, goal, limit, every=1, n=200)
        first, *rest = capsys.readouterr().out.splitlines()
        exact, resized = (float(word) for word in re.findall(r"\d+\.\d+", first))
        assert exact < resized  # the resizing alone costs something
        return sum("distance" in line for line in rest)

    assert lines(1e9, limit=60) == 1
    assert lines(-1, limit=1e-9) == 1
    assert lines(1e9, limit=0) == 0


def test_a_line_for_every_script_and_the_usual_way(capsys, monkeypatch):
    """Also offline, where auto is drawn digits."""
    asked = []

    def load(dataset, data_dir, device):
        asked.append(dataset)
        return fake_data((1, 8, 8), 640)

    monkeypatch.setattr(speed, "load_data", load)
    monkeypatch.setattr(speed, "steps_per_second", lambda steps, n: 2.0 if next(steps) else None)
    speed.main(["--steps", "1"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert asked == ["auto"]
    assert [line[:16].strip() for line in lines] == [*score.SCRIPTS, speed.USUAL]
    for line in lines:  # an epoch is ten steps; of cogan, which has half of the images, five
        assert line[16:].split() == ["2.0", "2.5" if line.startswith("cogan") else "5.0"]


@pytest.mark.parametrize("options, sentence", [
    (["--cuda"], "no CUDA device was found."),
    (["gan"], "gan is not one of"),
    (["--steps", "0"], "--steps must be at least 1, not 0."),
    (["--dataset", "mnist", "--data_dir", "none"], "mnist is not under none"),
])
def test_a_mistake_gets_one_sentence(options, sentence, no_network, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        speed.main(options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"speed.py: {sentence}")
    assert error.count("\n") == 1
