"""Several processes of torchrun, here two on the CPU, train as one does."""
import itertools
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, files

import fgan
from common import Data, batches

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
N_IMAGES, BATCH_SIZE = 36, 16
# What each process does: an epoch, and three steps. G is in eval mode, since batch normalisation
# would see a process's share alone; the z of a step are one process's share of those of a batch.
WORKER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_parallel
from common import RANK, get_device
get_device(False)
test_parallel.work({folder!r}, RANK, 2)
"""


def data():
    """Random images, each with a label of its own."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (N_IMAGES, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Data("numbered", images, torch.arange(N_IMAGES), [""])


def work(folder, rank, n_processes):
    """Train three steps in this process; save the images seen, the gradients and the weights."""
    args = fgan.parse_args([])
    torch.manual_seed(0)
    G, D = fgan.Generator(8, (1, 8, 8)).eval(), fgan.Discriminator((1, 8, 8))
    opt_G = torch.optim.Adam(G.parameters(), 1e-3, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), 1e-3, fused=True)
    generator = torch.Generator().manual_seed(5)
    with pytest.MonkeyPatch.context() as patch:
        for x, y in itertools.islice(batches(data(), BATCH_SIZE), 3):
            z = torch.randn(BATCH_SIZE, 8, generator=generator)[rank::n_processes]
            patch.setattr(torch, "randn", lambda *_, z=z, **__: z)
            fgan.train_step(G, D, opt_G, opt_D, x, y, args)
            patch.undo()
    gradients = [p.grad for p in (*G.parameters(), *D.parameters())]
    weights = [*G.state_dict().values(), *D.state_dict().values()]
    epoch = [y for _, y in itertools.islice(batches(data(), BATCH_SIZE, step=4), 2)]
    torch.save([torch.cat(epoch), gradients, weights], f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two processes have saved, and one that is alone."""
    folder = tmp_path_factory.mktemp("parallel")
    worker = folder / "worker.py"
    tests = str(ROOT / "tests")
    worker.write_text(WORKER.format(root=str(ROOT), tests=tests, folder=str(folder)))
    subprocess.run([*TORCHRUN, str(worker)], check=True, capture_output=True, timeout=300)
    two = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    work(folder, 0, 1)
    return *two, torch.load(folder / "0.pt")


def test_the_processes_share_every_batch_and_see_every_image_of_an_epoch_once(results):
    first, second, alone = (seen.tolist() for seen, *_ in results)
    assert len(first) == len(second) == BATCH_SIZE
    assert sorted(first + second) == sorted(alone)
    assert len(set(alone)) == 2 * BATCH_SIZE
    half = BATCH_SIZE // 2
    assert set(first[:half] + second[:half]) == set(alone[:BATCH_SIZE])  # batch by batch


def test_two_processes_have_the_gradients_of_one_and_equal_weights(results):
    (_, gradients, weights), (_, gradients2, weights2), (_, alone, weights_alone) = results
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients2))
    assert all(torch.equal(a, b) for a, b in zip(weights, weights2))
    for a, b in zip(gradients, alone):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights, weights_alone))


def start(run_options, folder):
    """Start a long run of two processes; return it and its output up to the second row."""
    options = [*run_options, "--n_epochs", "100000", "--out_dir", str(folder)]
    process = subprocess.Popen(
        [*TORCHRUN, str(ROOT / "fgan.py"), *options], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    is_second_row = re.compile(r" +1 +3 ").match  # the first one has been saved by then
    lines = list(itertools.takewhile(lambda line: not is_second_row(line), process.stdout))
    return process, lines


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_one_process_writes_and_prints_and_ctrl_c_ends_all(run_options, tmp_path):
    process, lines = start(run_options, tmp_path / "run")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest, _ = process.communicate(timeout=120)
    output = "".join(lines) + rest
    assert process.returncode != 0
    assert output.count("epochs of 4 steps") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert {"checkpoint.pt", "losses.csv", "real.png", "args.json"} <= set(files(tmp_path / "run"))
    fgan.main(["--resume", str(tmp_path / "run"), "--n_epochs", "1"])  # with one process


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_process_that_is_killed_ends_the_others(run_options, tmp_path):
    process, _ = start(run_options, tmp_path / "run")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0


def test_a_batch_that_can_t_be_shared_is_refused(monkeypatch):
    import common

    monkeypatch.setattr(common, "N_PROCESSES", 3)
    for batch_size in (16, 3):
        with pytest.raises(common.UserError, match="--batch_size"):
            next(batches(data(), batch_size))
