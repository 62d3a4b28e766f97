import importlib
import os
import socket
import struct
import sys
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

if "TEST_CUDA" not in os.environ:  # then the tests are about the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    collect_ignore = ["test_cuda.py"]
os.environ["OMP_NUM_THREADS"] = "1"  # pytest.ini starts two processes; what they start inherits it
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import Data, draw_glyphs  # noqa: E402

SCRIPTS = ["vanilla_gan", "dcgan", "cgan", "lsgan", "acgan", "infogan", "cogan", "fgan"]
CONVOLUTIONAL = ["dcgan", "cgan", "lsgan", "acgan", "infogan", "cogan"]


@pytest.fixture(params=SCRIPTS)
def script(request):
    """The module of each script in turn."""
    return importlib.import_module(request.param)


def write_idx(path, array):
    """Write a uint8 tensor in the format of the MNIST files."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(struct.pack(">BBBB", 0, 0, 8, array.ndim) + sizes + array.numpy().tobytes())


def write_mnist(data_dir, n_train=200, n_test=50, name="MNIST"):
    """Write a small MNIST of drawn digits in torchvision's layout; return the training set."""
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
    return [
        "--dataset", "mnist", "--data_dir", str(data_dir), "--img_size", "8",
        "--n_epochs", "3", "--batch_size", "50", "--sample_interval", "3",
    ]  # fmt: skip


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


def files(folder):
    """Read the files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pictures(path, n, classes=("",), seed=0):
    """Write n random pictures of 8x8, in turn into a subfolder for each class; return the path."""
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    for i, image in enumerate(images):
        folder = path / classes[i % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        save_image(image, folder / f"{i}.png")
    return path


def fake_data(img_shape, n=10):
    """Make random images of that shape with labels 0 to 9."""
    generator = torch.Generator().manual_seed(9)
    images = torch.randint(256, (n, *img_shape), dtype=torch.uint8, generator=generator)
    return Data("fake", images, torch.arange(n) % 10, list("0123456789"))


def fake_patches(n, side, photos=None, seed=0):
    """Random patches in the place of load_patches, which takes seconds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def networks(script, img_shape=(1, 8, 8), lr_g=1e-3, lr_d=1e-3, seed=0, options=()):
    """G, D, their optimizers and args, as a run makes them for images of that shape."""
    args = script.parse_args(["--lr_g", str(lr_g), "--lr_d", str(lr_d), *options])
    data = fake_data(img_shape)
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "load_data", lambda *_, **__: data)
        patch.setattr(script, "load_patches", fake_patches, raising=False)
        _, G, D = script.build(args, torch.device("cpu"))
    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.b1, args.b2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
    return G, D, opt_G, opt_D, args


def batch(script, img_shape=(1, 8, 8), n=16, seed=7):
    """Random x and y as train_step takes them; cogan.py has both domains in the channels."""
    generator = torch.Generator().manual_seed(seed)
    channels = img_shape[0] * (2 if script.__name__ == "cogan" else 1)
    x = torch.rand(n, channels, *img_shape[1:], generator=generator) * 2 - 1
    return x, torch.randint(10, (n,), generator=generator)


def codes(script, n):
    """What the script's G takes beside z for n images: nothing, labels, or codes."""
    if script.__name__ == "infogan":
        return (script.sample_code(n, torch.device("cpu")),)
    return (torch.randint(10, (n,)),) if script.__name__ in ("cgan", "acgan") else ()


def generate(script, G, n):
    """n images of G; of cogan.py's, the pairs side by side in the channels."""
    images = G(torch.randn(n, G.latent_dim), *codes(script, n))
    return torch.cat(images, 1) if isinstance(images, tuple) else images


def discriminate(script, D, x, y=None):
    """Everything that D returns for images x as train_step takes them, as a tuple."""
    y = torch.arange(len(x)) % 10 if y is None else y
    inputs = {"cgan": (x, y), "cogan": tuple(x.chunk(2, 1))}.get(script.__name__, (x,))
    outputs = D(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def calls(net, *inputs):
    """Call a network; return the inputs and outputs of its leaf modules in the order of the calls.

    Returns:
        a list of (module, input, output).
    """
    seen = []
    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [
        leaf.register_forward_hook(lambda module, x, y: seen.append((module, x[0], y)))
        for leaf in leaves
    ]
    net(*inputs)
    for hook in hooks:
        hook.remove()
    return seen


def weights(net):
    """A copy of the parameters, by name."""
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def equal(net, before):
    """Whether the parameters are still what they were, byte for byte."""
    return all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def interrupt(monkeypatch, script, step, error=KeyboardInterrupt):
    """Let the given train_step of a run raise an error instead."""
    train_step = script.train_step
    done = []

    def train_step_or_stop(*args):
        done.append(None)
        if len(done) == step:
            raise error
        return train_step(*args)

    monkeypatch.setattr(script, "train_step", train_step_or_stop)


def refused(script, argv, capsys):
    """Run a script that must refuse its arguments with exit status 2; return its sentence.

    argparse's own errors have a line about the usage above.
    """
    with pytest.raises(SystemExit) as stop:
        script.main([str(word) for word in argv])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    if lines[0].startswith("usage: "):
        lines = lines[1:]
    assert len(lines) == 1 and lines[0].startswith(f"{script.__name__}.py: "), lines
    return lines[0]
