"""The CUDA graph of a training step, against the same steps launched one by one.

These tests need a GPU and are no part of `pytest tests`:

    TEST_CUDA=1 pytest -n 0 tests/test_cuda.py
"""
import copy
import csv
import functools
import importlib

import pytest
import torch
from conftest import SCRIPTS, batch, networks

N_STEPS = 200
# the options of a script's further ways through train_step
VARIANTS = [
    *[(name, ()) for name in SCRIPTS],
    ("vanilla_gan", ("--loss", "minimax")),
    ("cogan", ("--domain", "rotate")),
    ("cogan", ("--domain", "mnistm")),
    ("fgan", ("--divergence", "jeffrey")),
]


@pytest.fixture(autouse=True)
def deterministic():
    """Let a kernel give the same bytes for the same input, as far as cuDNN has such kernels."""
    assert torch.cuda.is_available(), "these tests need a GPU, and TEST_CUDA=1"
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def one_step(script, options=(), shape=(1, 28, 28), graph=True, lr=2e-4):
    """A script's step of train on the GPU, its state, and 10 batches to call it with."""
    *_, args = networks(script, shape, options=options)
    G, D, *_ = networks(script, shape, options=options)
    G, D = G.cuda(), D.cuda()
    opt_G = torch.optim.Adam(G.parameters(), lr, (0.5, 0.999), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), lr, (0.5, 0.999), fused=True)
    state = {"G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "G_avg": copy.deepcopy(G).eval()}
    step = functools.partial(script.full_step, state, args)
    if graph:
        step = script.cuda_graph(step, (opt_G, opt_D))
    batches = [[t.cuda() for t in batch(script, shape, 64, seed)] for seed in range(10)]
    if "mnistm" in options:  # domain 2 is in colour
        batches = [(x[:, [0, 1, 1, 1]], y) for x, y in batches]
    return step, state, batches


@pytest.mark.parametrize("name, options", VARIANTS, ids=lambda value: "".join(value))
def test_a_graph_trains_as_the_same_steps_launched_one_by_one_do(name, options):
    script = importlib.import_module(name)
    losses, weights = [], []
    for graph in (False, True):
        step, state, batches = one_step(script, options, graph=graph)
        torch.manual_seed(5)
        values = []
        for i in range(N_STEPS):
            lr = 2e-4 * min(1, 2 * (1 - i / N_STEPS))
            kept = step(*batches[i % 10], lr, lr / 2, max(10 / (i + 10), 1 / 500))
            values.append(torch.stack(list(kept.values())))
        losses.append(torch.stack(values))
        weights.append({name: state[name].state_dict() for name in ("G", "D", "G_avg")})
    print(f"{name} {options}: losses differ by up to {(losses[0] - losses[1]).abs().max():.2e}")
    assert losses[0].std(0).max() > 0
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_replay_draws_noise_of_its_own(name):
    step, _, batches = one_step(importlib.import_module(name))
    fakes = []
    for _ in range(8):  # rates of 0: only the noise differs from step to step
        fakes.append(step(*batches[0], 0.0, 0.0, 0.1)["s(G(z))"].item())
    assert len(set(fakes)) == 8


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_graph_trains_at_the_rates_and_with_the_share_of_each_call(name):
    step, state, batches = one_step(importlib.import_module(name))
    for i in range(6):
        step(*batches[i], 1e-3, 1e-3, 0.1)
    for part, rates in (("G", (0.0, 1e-3)), ("D", (1e-3, 0.0))):
        before = [p.detach().clone() for p in state[part].parameters()]
        step(*batches[0], *rates, 0.1)
        assert all(torch.equal(p, old) for p, old in zip(state[part].parameters(), before))
    step(*batches[0], 1e-3, 1e-3, 1.0)
    pairs = zip(state["G"].state_dict().values(), state["G_avg"].state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs if a.is_floating_point())


def losses_of(folder):
    """The rows of losses.csv, as floats."""
    with open(folder / "losses.csv") as file:
        return torch.tensor([[float(v) for v in row] for row in list(csv.reader(file))[1:]])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_prints_the_means_of_the_interval_and_resumes(name, run_options, tmp_path):
    script = importlib.import_module(name)
    options = [*run_options, "--batch_size", "16", "--sample_interval", "5", "--cuda"]
    script.main([*options, "--out_dir", str(tmp_path / "graph")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "cuda_graph", lambda step, optimizers: step)
        script.main([*options, "--out_dir", str(tmp_path / "one_by_one")])
    expected = losses_of(tmp_path / "one_by_one")
    assert len(expected) >= 4
    torch.testing.assert_close(losses_of(tmp_path / "graph"), expected, rtol=1e-3, atol=1e-3)

    save_checkpoint = script.save_checkpoint

    def save_and_stop(args, data, state, progress):
        save_checkpoint(args, data, state, progress)
        if progress["steps_done"] == 20:
            raise KeyboardInterrupt

    stopped = [*options, "--out_dir", str(tmp_path / "stopped")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(script, "save_checkpoint", save_and_stop)
        script.main(stopped)
    script.main(["--resume", str(tmp_path / "stopped" / "checkpoint.pt")])
    torch.testing.assert_close(losses_of(tmp_path / "stopped"), expected, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_of_the_gpu_resumes_on_the_cpu_and_back(run_options, tmp_path):
    dcgan = importlib.import_module("dcgan")
    dcgan.main([*run_options, "--cuda", "--out_dir", str(tmp_path / "gpu")])
    to_cpu = ["--resume", str(tmp_path / "gpu"), "--no-cuda", "--n_epochs", "5"]
    dcgan.main([*to_cpu, "--out_dir", str(tmp_path / "cpu")])
    back = ["--resume", str(tmp_path / "cpu"), "--cuda", "--n_epochs", "7"]
    dcgan.main([*back, "--out_dir", str(tmp_path / "back")])
    steps = [1, 3, 6, 9, 12, 15, 18, 20, 21, 24, 27, 28]
    assert losses_of(tmp_path / "back")[:, 1].tolist() == steps
