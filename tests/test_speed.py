"""The clock of speed.py, and the loops that it times."""
import time
from itertools import islice

import pytest
import score
import speed
import torch
from torch import nn

import dcgan
from common import Data


def test_timed_counts_an_outer_call_once():
    spent = [0.0, False]
    inner = speed.timed(lambda: time.sleep(0.05), spent)
    outer = speed.timed(lambda: [inner(), inner()], spent)
    start = time.perf_counter()
    outer()
    # counted twice, it would be more than the clock's
    assert 0.1 <= spent[0] <= time.perf_counter() - start
    before = spent[0]
    inner()
    assert spent[0] >= before + 0.05 and spent[1] is False


def test_share_outside_networks_and_optimizers_is_what_the_loop_itself_takes():
    net = nn.Linear(2, 2)
    slow = nn.Module()
    slow.forward = lambda: time.sleep(0.02)

    def steps():
        while True:
            slow()
            net(torch.ones(1, 2)).sum().backward()
            time.sleep(0.02)
            yield net

    call = nn.Module.__call__
    per_second, outside = speed.steps_per_second(steps(), 5)
    assert per_second < 25 and 0.2 < outside < 0.8
    assert nn.Module.__call__ is call and torch.Tensor.backward.__name__ == "backward"


def test_plain_speed_is_that_of_the_clock():
    def steps():
        while True:
            time.sleep(0.02)
            yield

    loop = steps()
    assert 5 < speed.plain_steps_per_second(loop, 5) < 50


@pytest.mark.parametrize("loop", ["ours", "usual"])
def test_both_loops_train(loop, data_dir):
    torch.manual_seed(0)
    options = ["--data_dir", str(data_dir), "--dataset", "mnist"]
    steps = speed.ours("dcgan", options) if loop == "ours" else speed.usual(data_dir)
    G = next(steps)
    before = [p.clone() for p in G.parameters()]
    *_, after = islice(steps, 2)
    assert after is G and all(p.isfinite().all() for p in G.parameters())
    changed = [not torch.equal(p, q) for p, q in zip(before, G.parameters())]
    assert sum(changed) > len(changed) / 2
    side = 28 if loop == "ours" else 32
    assert G(torch.randn(2, G.latent_dim)).shape == (2, 1, side, side)


def test_our_loop_is_the_script_s_own(run_options, tmp_path):
    """After an epoch, its average of G has the bytes of the run's."""
    torch.manual_seed(0)
    options = [*run_options, "--n_epochs", "1", "--batch_size", "100"]
    *_, G = islice(speed.ours("dcgan", options), 3)
    dcgan.main([*options, "--out_dir", str(tmp_path / "run")])  # two steps, both at the full rate
    run = dcgan.load_generator(tmp_path / "run" / "checkpoint.pt")
    pairs = zip(G.state_dict().values(), run.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_bf16_is_what_the_loop_computes_in(monkeypatch):
    data = Data("random", torch.zeros(64, 1, 8, 8).byte(), torch.zeros(64).long(), [""])
    seen = []
    step = dcgan.train_step

    def train_step(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return step(*args)

    monkeypatch.setattr(dcgan, "train_step", train_step)
    load_data = dcgan.load_data
    for options in ([], ["--bf16"]):
        assert len(list(islice(speed.ours("dcgan", options, data=data), 2))) == 2
    assert seen == [False, True] and dcgan.load_data is load_data


def test_a_line_for_each_image_size_in_float32_and_bfloat16(capsys, monkeypatch):
    monkeypatch.setattr(speed, "SHAPES", [(1, 8, 8), (3, 10, 12)])
    speeds = iter([1.0, 3.0, 2.0, 3.0] * 2)  # of both in turns, the fastest counts
    asked = []

    def ours(name, options, device, data):
        asked.append((name, tuple(options), tuple(data.images.shape[1:])))
        return iter(range(100))

    monkeypatch.setattr(speed, "ours", ours)
    monkeypatch.setattr(speed, "ROUNDS", 2)
    monkeypatch.setattr(speed, "plain_steps_per_second", lambda steps, n: next(speeds))
    speed.main(["--bf16", "--steps", "1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [[name, "2.0", "3.0", "1.50", "times"] for name in ("8x8x1", "10x12x3")]
    assert asked[2:] == [("dcgan", (), (3, 10, 12)), ("dcgan", ("--bf16",), (3, 10, 12))]


def test_seconds_to_a_distance_end_where_it_is_reached(data_dir, capsys, monkeypatch):
    net = score.Classifier((1, 28, 28), 10).eval()
    monkeypatch.setattr(score, "load_classifier", lambda *_: net)

    def steps():
        G = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
        G.latent_dim = 4
        while True:
            yield G

    def lines(distance, **options):
        speed.seconds_to(distance, steps(), data_dir, every=1, **options)
        return capsys.readouterr().out.count("distance")

    assert lines(1e9, limit=60, n=200) == 1
    assert lines(-1, limit=1e-9, n=200) == 1
    assert lines(1e9, limit=0) == 0


def test_a_line_for_every_script_and_the_usual_way(data_dir, capsys, monkeypatch):
    compare = speed.compare_scripts
    small = ["--img_size", "8", "--batch_size", "8"]
    monkeypatch.setattr(
        speed,
        "compare_scripts",
        lambda names, options, *rest: compare(names, options + small, *rest),
    )
    speed.main(["--data_dir", str(data_dir), "--steps", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("%")]
    assert [line.split("  ")[0] for line in lines] == [*score.SCRIPTS, speed.USUAL]
    for line in lines:
        name, speeds = line[:16].strip(), line[16:].split()
        assert float(speeds[0]) > 0
        if name != speed.USUAL:  # an epoch of MNIST is 7500 batches of 8, for half the images 3750
            n_batches = 3750 if name == "cogan" else 7500
            assert float(speeds[0]) * float(speeds[1]) == pytest.approx(n_batches, rel=0.05)


@pytest.mark.parametrize("options, sentence", [
    (["--cuda"], "no CUDA device was found."),
    (["gan"], "gan is not one of"),
    (["--steps", "0"], "--steps must be at least 1, not 0."),
    (["--data_dir", "none", "dcgan"], "mnist is not under none"),
])
def test_a_mistake_gets_one_sentence(options, sentence, no_network, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        speed.main(options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(f"speed.py: {sentence}")
    assert error.count("\n") == 1
