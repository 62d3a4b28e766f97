"""The clock of speed.py, and the loops that it times."""
import time
from itertools import islice

import pytest
import score
import speed
import torch
from torch import nn


def test_timed_counts_an_outer_call_once():
    spent = [0.0, False]
    inner = speed.timed(lambda: time.sleep(0.05), spent)
    outer = speed.timed(lambda: [inner(), inner()], spent)
    start = time.perf_counter()
    outer()
    assert 0.1 <= spent[0] <= time.perf_counter() - start  # counted twice, it would be more than the clock's
    before = spent[0]
    inner()
    assert spent[0] >= before + 0.05 and spent[1] is False


def test_share_outside_networks_and_optimizers_is_what_the_loop_itself_takes():
    net = nn.Linear(2, 2)
    slow = nn.Module()
    slow.forward = lambda: time.sleep(0.02)

    def steps():
        while True:
            slow(), net(torch.ones(1, 2)).sum().backward(), time.sleep(0.02)
            yield net
    call = nn.Module.__call__
    per_second, outside = speed.steps_per_second(steps(), 5)
    assert per_second < 25 and 0.2 < outside < 0.8
    assert nn.Module.__call__ is call and torch.Tensor.backward.__name__ == "backward"


@pytest.mark.parametrize("loop", ["ours", "usual"])
def test_both_loops_train(loop, data_dir):
    torch.manual_seed(0)
    steps = speed.ours("dcgan", data_dir) if loop == "ours" else speed.usual(data_dir)
    G = next(steps)
    before = [p.clone() for p in G.parameters()]
    *_, after = islice(steps, 3)
    assert after is G and all(p.isfinite().all() for p in G.parameters())
    assert sum(not torch.equal(p, q) for p, q in zip(before, G.parameters())) > len(before) / 2
    assert G(torch.randn(2, G.latent_dim)).shape == (2, 1, *([28, 28] if loop == "ours" else [32, 32]))


def test_seconds_to_a_distance_end_where_it_is_reached(data_dir, capsys, monkeypatch):
    net = score.Classifier(1, 10).eval()
    monkeypatch.setattr(score, "load_classifier", lambda *_: net)
    speed.seconds_to(1e9, speed.usual(data_dir), data_dir, every=2, limit=60, n=200)
    assert capsys.readouterr().out.count("distance") == 1
    speed.seconds_to(-1, speed.usual(data_dir), data_dir, every=1, limit=1e-9, n=200)
    assert capsys.readouterr().out.count("distance") == 1
    speed.seconds_to(1e9, speed.usual(data_dir), data_dir, every=1, limit=0)
    assert capsys.readouterr().out == ""


def test_a_line_for_every_script_and_the_usual_way(data_dir, capsys):
    speed.main(["--data_dir", str(data_dir), "--steps", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [*speed.SCRIPTS, "the usual way"]
    assert all(float(line[16:].split()[0]) > 0 and line.endswith("%") for line in lines[1:])


def test_cuda_where_there_is_none(data_dir, capsys):
    with pytest.raises(SystemExit) as stop:
        speed.main(["--cuda", "--data_dir", str(data_dir)])
    assert stop.value.code == 2 and capsys.readouterr() == ("", "speed: no CUDA device was found.\n")
