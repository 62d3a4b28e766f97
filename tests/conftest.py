import importlib
import os
import socket
import struct
import sys
from pathlib import Path

import pytest
import torch

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about the CPU
os.environ["OMP_NUM_THREADS"] = "1"  # pytest.ini starts two processes; those that they start inherit it
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import Data, draw_glyphs  # noqa: E402

SCRIPTS = ["vanilla_gan", "dcgan", "cgan", "lsgan", "acgan", "infogan", "cogan", "fgan"]


@pytest.fixture(params=SCRIPTS)
def script(request):
    """The module of each script in turn."""
    return importlib.import_module(request.param)


def write_idx(path, array):
    """A uint8 tensor in the format of the MNIST files."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.numpy().tobytes())


def write_mnist(data_dir, n_train=200, n_test=50, name="MNIST"):
    """A small MNIST of drawn digits in torchvision's layout; returns the training images and labels."""
    raw = Path(data_dir, name, "raw")
    raw.mkdir(parents=True)
    for prefix, n, seed in (("train", n_train, 0), ("t10k", n_test, 1)):
        images, labels = draw_glyphs(n, seed)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[:, 0])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels.byte())
    return draw_glyphs(n_train, 0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with a small MNIST: 200 images for training."""
    path = tmp_path_factory.mktemp("data")
    write_mnist(path)
    return path


@pytest.fixture(scope="session")
def run_options(data_dir):
    """Options of a run of 3 epochs of 4 steps each, on images of 8x8 to be quick."""
    return ["--dataset", "mnist", "--data_dir", str(data_dir), "--n_epochs", "3", "--batch_size", "50",
            "--sample_interval", "3", "--img_size", "8"]


@pytest.fixture
def script_options(script, run_options):
    """run_options, with 4 steps an epoch for cogan.py too, whose domains have half of the images each."""
    return [*run_options, "--batch_size", "25"] if script.__name__ == "cogan" else run_options


@pytest.fixture
def no_network(monkeypatch):
    """Every download goes to a port of this machine on which nobody listens."""
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:1/"])
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/cifar-10-python.tar.gz")


@pytest.fixture
def silent_server():
    """The address of a server that accepts connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    yield f"http://127.0.0.1:{server.getsockname()[1]}/"
    server.close()


def networks(script, img_shape=(1, 28, 28), latent_dim=16, lr_g=1e-3, lr_d=1e-3, seed=0, options=()):
    """G, D, their optimizers and arguments, as main makes them for images of that shape with labels 0 to 9."""
    torch.manual_seed(seed)
    args = script.parse_args(["--lr_g", str(lr_g), "--lr_d", str(lr_d), "--latent_dim", str(latent_dim), *options])
    data = Data(".", torch.zeros(10, *img_shape, dtype=torch.uint8), torch.arange(10), list("0123456789"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "load_data", lambda *_: data)
        patch.setattr(script, "load_patches", lambda n, side, *_: torch.zeros(n, 3, side, side).byte(), raising=False)
        _, config_G, config_D = script.setup(args, "cpu")
    G, D = script.Generator(**config_G), script.Discriminator(**config_D)
    opt_G = torch.optim.Adam(G.parameters(), lr_g, (args.b1, args.b2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), lr_d, (args.b1, args.b2), fused=True)
    return G, D, opt_G, opt_D, args


def codes(script, n):
    """What the script's G takes beside z for n images: nothing, labels, or codes."""
    if script.__name__ == "infogan":
        return (script.sample_code(n, "cpu"),)
    return (torch.randint(10, (n,)),) if script.__name__ in ("cgan", "acgan") else ()


def images_for(script, shape=(1, 28, 28)):
    """The shape of a batch's image: cogan.py has one of each domain, side by side in the channels."""
    return (2 * shape[0], *shape[1:]) if script.__name__ == "cogan" else shape


def first(output):
    """The raw score, of whatever a D returns."""
    return output[0] if isinstance(output, tuple) else output
