"""CoGAN: pairs of images of two domains, learned from images of each without a single pair.

Liu and Tuzel 2016, arXiv:1606.07536. Generators g1 and g2 draw a pair from one z; discriminators f1
and f2 judge one domain each. With s the raw score of a discriminator and f = sigmoid(s), they play
    min_g max_f E_x1[log f1(x1)] + E_z[log(1 - f1(g1(z)))]
              + E_x2[log f2(x2)] + E_z[log(1 - f2(g2(z)))]
(section 3, with the opposite sign, so that min and max change places). The first layers of g1 and
g2, which decide what is drawn, are the same layers; so are the last layers of f1 and f2. The others
are private; those of g1 and g2 decide how the same thing looks in each domain. G ascends
E_z[log f(g(z))], as in the parent. If D can't tell real from generated, loss_D is 4 log 2 = 2.77.

    python cogan.py                       # MNIST, or drawn digits when offline: digits and edges
    python cogan.py --domain negative     # digits and their negatives
    python cogan.py --domain rotate       # digits and digits turned by 90 degrees
    python cogan.py --domain mnistm       # digits and digits in colour (--photos: on photographs)
    python cogan.py --shared_g 0          # the control: the generators share only z

The column agree is the share of pixels on which x2 agrees with x1 transformed into domain 2.
Compare it with shuffled, which takes x1 of another z. On MNIST, with seeds 0, 1 and 2, two
classifiers (tests/score.py) see the same digit in x1 and x2 in 92 to 93% of the pairs for edge, 96
to 97% for negative, 75 to 89% for mnistm with photographs, and 93, 26 and 24% for rotate (with
--shared_g 0: 9% for edge, 10% for rotate). Whether rotate succeeds depends on the seed, and the
first 2,000 steps decide it: if agree is not well above shuffled by then, take another --seed.

Parent: dcgan.py. `diff dcgan.py cogan.py` shows what the paper adds: a twin for each network, and
two domains for them.

Departures from the paper:
 1. The networks, z, the optimisation and the averaging are those of dcgan.py (rotate: see 2), but G
    ends in --width feature maps of the image's size, which two private convolutions turn into an
    image. (The authors' G has one convolution of 6x6 there, and PReLU; their D has 5x5 convolutions
    with max pooling. They train with batches of 128, as mnistm and rotate do here.)
 2. A private convolution can't turn what the shared layers have laid out, so --domain rotate has
    dense layers in G and in D, and a z of 20. Its settings were chosen with seed 0.
 3. mnistm is not in the paper: MNIST-M (Ganin et al. 2016), whose images are the absolute
    differences of digits and patches of photographs or, without --photos, of drawn clouds.
 4. The paper does not say when pixels agree; here, if both are lighter or both darker than grey.
    The column is of training batches; tests/score.py measures the averaged G.
"""
import copy
import functools
import itertools
import math
import os
import shlex
import shutil
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

import torch
from torch import nn

from common import UserError, batches, get_device, load_data, load_patches, save_grid

SCRIPT = Path(__file__).stem
# domain 2 of images x (N, C, H, H) in [-1, 1]; mnistm also needs patches: see second_domain
TRANSFORMS = {
    "edge": lambda x: nn.functional.max_pool2d(x, 3, 1, 1) - x - 1,  # 3x3 dilation minus image
    "negative": lambda x: -x,
    "rotate": lambda x: x.rot90(1, (2, 3)),
}
# the options whose defaults a domain replaces; edge and negative keep those of parse_args
DEFAULTS = {
    "rotate": {"layers": "dense", "latent_dim": 20, "batch_size": 128, "n_epochs": 40},
    "mnistm": {"batch_size": 128, "n_epochs": 50},
}


def parse_args(argv=None, saved=None):
    """Parse the command line. An option not given has its value from saved or else its default."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py",
        usage="%(prog)s [options]",
        description="Train a CoGAN.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    other_defaults = "; ".join(
        f"{domain}: " + " ".join(f"--{name} {value}" for name, value in defaults.items())
        for domain, defaults in DEFAULTS.items()
    )
    add = parser.add_argument
    add("--n_epochs", type=int, default=20, help="passes over the data")
    add("--batch_size", type=int, default=64, help="images per step")
    add("--lr_g", type=float, default=4e-4, help="Adam: learning rate of the generator")
    add("--lr_d", type=float, default=4e-4, help="Adam: learning rate of the discriminator")
    add("--b1", type=float, default=0.5, help="Adam: decay of the running mean of the gradients")
    add("--b2", type=float, default=0.999, help="Adam: decay of the running mean of their squares")
    add("--latent_dim", type=int, default=100, help="dimension of z")
    add("--width", type=int, default=32, help="channels at half the side; further levels have more")
    add("--img_size", type=int, help="side of the images (None: the dataset's own)")
    add("--dataset", default="auto",
        help="auto, mnist, fashion, cifar10, glyphs or a folder of images")
    add("--data_dir", default="data", help="directory of the downloaded datasets")
    add("--sample_interval", type=int, default=500,
        help="steps between printed lines and grids; checkpoints follow at the end of an epoch, at "
        "least as far apart")
    add("--out_dir",
        help="folder of the run; -2, -3, ... is appended if it already holds one "
        "(None: runs/SCRIPT or, with --resume, the folder of the checkpoint)")
    add("--resume", metavar="CHECKPOINT",
        help="continue this run with its saved options, except those given here; a larger "
        "--n_epochs raises the learning rates again")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes on the same CPU")
    add("--cuda", action="store_true", help="train on a CUDA device")
    add("--bf16", action="store_true",
        help="compute in bfloat16: faster on some machines (see tests/speed.py --bf16)")
    add("--domain", choices=[*TRANSFORMS, "mnistm"], default="edge",
        help=f"how domain 2 differs from domain 1; with other defaults: {other_defaults}")
    add("--photos", metavar="FOLDER",
        help="mnistm: photographs to cut patches from (None: drawn clouds)")
    add("--layers", choices=["conv", "dense"], default="conv",
        help="kind of layers; dense ignores --width")
    add("--shared_g", type=int, help="how many first layers g1 and g2 share (None: all but one)")
    add("--shared_d", type=int, help="how many last layers f1 and f2 share (None: all but one)")
    given = Namespace(**(saved or {}))
    domain = parser.parse_args(argv, copy.copy(given)).domain
    parser.set_defaults(**DEFAULTS.get(domain, {}))
    args = parser.parse_args(argv, given)
    for name in ("domain", "seed", "layers", "shared_g", "shared_d"):  # the seed chose the halves
        if saved and getattr(args, name) != saved[name]:
            raise UserError(f"--{name} can't change when a run is resumed.")
    if saved and (args.photos is None) != (saved["photos"] is None):  # the folder may have moved
        raise UserError("--photos can't be added when a run is resumed.")
    return args


def architecture(img_shape, width):
    """Return the feature maps of both networks and the units of their dense hidden layer (0: none).

    The maps are a list of (channels, side) that starts with the image. Each level halves the side,
    rounded up, and doubles the channels, up to 8 * width: for (3, 64, 64) and a width of 32
    [(3, 64), (32, 32), (64, 16), (128, 8), (256, 4)].
    """
    channels, side = img_shape[0], img_shape[-1]
    # DCGAN's authors have two networks: to 7x7 and then dense for MNIST, to 4x4 for larger images
    smallest, hidden = (7, 512) if side < 32 else (4, 0)
    maps = [(channels, side)]
    channels = width
    while side > smallest:
        side = (side + 1) // 2
        maps.append((channels, side))
        channels = min(2 * channels, 8 * width)
    return maps, hidden


def kernel_size(side):
    """Return the kernel that, at stride 2 and padding 1, halves this side, rounded up."""
    return 3 if side % 2 else 4


def generator_layers(latent_dim, img_shape, width, kind):
    """List the layers of a generator z (N, latent_dim) -> images (N, C, H, H) in [-1, 1]."""
    if kind == "dense":
        sizes = [latent_dim, 512, 512, 512]
        layers = [
            nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU())
            for n_in, n_out in itertools.pairwise(sizes)
        ]
        image = nn.Linear(sizes[-1], math.prod(img_shape))
        return [*layers, nn.Sequential(image, nn.Tanh(), nn.Unflatten(1, img_shape))]
    maps, hidden = architecture(img_shape, width)
    layers = []
    n_features = latent_dim
    if hidden:
        layers += [nn.Sequential(nn.Linear(n_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU())]
        n_features = hidden
    channels, side = maps[-1]
    layers += [
        nn.Sequential(
            nn.Linear(n_features, channels * side * side),
            nn.Unflatten(1, (channels, side, side)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
    ]
    maps[0] = (width, img_shape[-1])  # as large as the image, into which the last layer turns them
    for (n_in, _), (n_out, side) in itertools.pairwise(reversed(maps)):  # 7 -> 14 -> 28
        layers += [
            nn.Sequential(
                nn.ConvTranspose2d(n_in, n_out, kernel_size(side), stride=2, padding=1),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            )
        ]
    layers += [
        nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, img_shape[0], 3, padding=1),
            nn.Tanh(),
        )
    ]
    return layers


def discriminator_layers(img_shape, width, kind):
    """List the layers of a discriminator, images (N, C, H, H) -> raw scores s (N, 1)."""
    if kind == "dense":
        sizes = [math.prod(img_shape), 512, 512, 256]
        layers = [
            nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_out), nn.LeakyReLU(0.2))
            for n_in, n_out in itertools.pairwise(sizes)
        ]
        return [*layers, nn.Linear(sizes[-1], 1)]
    maps, hidden = architecture(img_shape, width)
    layers = []
    for (n_in, side), (n_out, _) in itertools.pairwise(maps):  # 28 -> 14 -> 7
        layers += [
            nn.Sequential(
                nn.Conv2d(n_in, n_out, kernel_size(side), stride=2, padding=1),
                nn.BatchNorm2d(n_out),
                nn.LeakyReLU(0.2),
            )
        ]
    del layers[0][1]  # the input has no batch normalisation
    channels, side = maps[-1]
    n_features = channels * side * side
    if hidden:
        dense = nn.Linear(n_features, hidden)
        layers += [nn.Sequential(nn.Flatten(), dense, nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2))]
        n_features = hidden
    return [*layers, nn.Sequential(nn.Flatten(), nn.Linear(n_features, 1))]


class Generator(nn.Module):
    """z (N, latent_dim) -> x1 (N, C1, H, H) and x2 (N, C2, H, H), both in [-1, 1]."""

    def __init__(self, latent_dim, img_shapes, width, kind, n_shared=None):
        super().__init__()
        g1 = generator_layers(latent_dim, img_shapes[0], width, kind)
        g2 = generator_layers(latent_dim, img_shapes[1], width, kind)
        if n_shared is None:
            n_shared = len(g1) - 1
        if not 0 <= n_shared < len(g1):
            raise UserError(f"--shared_g must be from 0 to {len(g1) - 1}, not {n_shared}.")
        self.latent_dim = latent_dim
        self.config = {
            "latent_dim": latent_dim, "img_shapes": img_shapes, "width": width, "kind": kind,
            "n_shared": n_shared,
        }
        self.shared = nn.Sequential(*g1[:n_shared])
        self.private1 = nn.Sequential(*g1[n_shared:])
        self.private2 = nn.Sequential(*g2[n_shared:])

    def forward(self, z):
        h = self.shared(z)
        return self.private1(h), self.private2(h)


class Discriminator(nn.Module):
    """x1 (N, C1, H, H), x2 (N, C2, H, H) -> raw scores s1, s2 (N, 1); f1 is sigmoid(s1)."""

    def __init__(self, img_shapes, width, kind, n_shared=None):
        super().__init__()
        f1 = discriminator_layers(img_shapes[0], width, kind)
        f2 = discriminator_layers(img_shapes[1], width, kind)
        if n_shared is None:
            n_shared = len(f1) - 1
        if not 0 <= n_shared < len(f1):
            raise UserError(f"--shared_d must be from 0 to {len(f1) - 1}, not {n_shared}.")
        self.n_shared = n_shared
        n_private = len(f1) - n_shared
        self.private1 = nn.Sequential(*f1[:n_private])
        self.private2 = nn.Sequential(*f2[:n_private])
        self.shared = nn.Sequential(*f1[n_private:])

    def forward(self, x1, x2):
        s1 = self.shared(self.private1(x1))
        s2 = self.shared(self.private2(x2))
        return s1.float(), s2.float()  # float32, even with --bf16: the losses need it


def weights_init(module):
    """Draw weights from N(0, 0.02) (DCGAN paper, section 4), gains from N(1, 0.02) (its code)."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def discriminator_loss(s_real, s_fake, args):
    """-E[log D(x)] - E[log(1 - D(G(z)))] from raw scores (N, 1).

    With D = sigmoid(s), -log D = softplus(-s) and -log(1 - D) = softplus(s): no logarithm of 0.
    """
    return nn.functional.softplus(-s_real).mean() + nn.functional.softplus(s_fake).mean()


def generator_loss(s_fake, args):
    """-E[log D(G(z))] from the raw scores (N, 1) of generated images."""
    return nn.functional.softplus(-s_fake).mean()


def split_domains(x, args):
    """Split x (N, C1 + C2, H, H) into x1 (N, C1, H, H) and x2 (N, C2, H, H)."""
    n_channels = 3 if args.domain == "mnistm" else x.shape[1] // 2  # of domain 2
    return x[:, :-n_channels], x[:, -n_channels:]


def halve_gradients(layers):
    """Make a sum of two domains' gradients their average, as in the paper's Algorithm 1.

    Adam hardly notices: it divides a gradient by its running size, and the factor cancels.
    """
    for parameter in layers.parameters():
        parameter.grad /= 2


@torch.no_grad()
def agreement(x1, x2, args):
    """Return the share of pixels of x2 on the same side of grey as x1 transformed into domain 2."""
    return ((TRANSFORMS[args.domain](x1) > 0) == (x2 > 0)).float().mean()


def train_step(G, D, opt_G, opt_D, x, y, args):
    """Update f1 and f2, then g1 and g2, on x (N, C1 + C2, H, H): unpaired images of both domains.

    Returns by name, as detached scalars on the device: the losses, each summed over both domains;
    the mean raw scores of domain 1 (s) and 2 (s2); and, except for mnistm, agree and shuffled, how
    far x2 agrees with x1, and with the x1 of another z.
    """
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    fake1, fake2 = G(z)
    x1, x2 = split_domains(x, args)

    # (1) Update f1, f2: ascend log f(x) + log(1 - f(g(z))) in both domains.
    # detach() keeps the gradient from G.
    s1_real, s2_real = D(x1, x2)
    s1_fake, s2_fake = D(fake1.detach(), fake2.detach())
    loss_D = discriminator_loss(s1_real, s1_fake, args) + discriminator_loss(s2_real, s2_fake, args)
    opt_D.zero_grad()
    loss_D.backward()
    halve_gradients(D.shared)
    opt_D.step()

    # (2) Update g1, g2: ascend log f(g(z)) in both domains with the new f1, f2.
    # inputs= skips the gradients of the discriminators' weights.
    s1, s2 = D(fake1, fake2)
    loss_G = generator_loss(s1, args) + generator_loss(s2, args)
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    halve_gradients(G.shared)
    opt_G.step()

    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s1_real.mean(), "s(G(z))": s1_fake.mean()}
    values |= {"s2(x)": s2_real.mean(), "s2(G(z))": s2_fake.mean()}
    if args.domain in TRANSFORMS:
        values["agree"] = agreement(fake1, fake2, args)
        values["shuffled"] = agreement(fake1.roll(1, 0), fake2, args)
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def update_average(G_avg, G, share):
    """Move the running average of G towards G by this share of the way."""
    for average, current in zip(G_avg.state_dict().values(), G.state_dict().values()):
        if average.is_floating_point():  # not batch normalisation's count of batches
            average.lerp_(current, share)


def real_images(data, args):
    """Lay out 32 unpaired images of each domain as save_grid's arguments."""
    index = torch.linspace(0, len(data.images) - 1, 32).long()  # a small set repeats
    x1, x2 = split_domains(data.images[index] / 127.5 - 1, args)
    return rows_of_two(x1, x2) | {"title": "unpaired images of both domains"}


def rows_of_two(x1, x2):
    """Lay out x1 (32, C1, H, H) above x2 (32, C2, H, H), 16 to a row, as save_grid's arguments."""
    n_channels = max(x1.shape[1], x2.shape[1])
    rows = []
    for half in (slice(0, 16), slice(16, 32)):
        rows += [x.expand(-1, n_channels, -1, -1)[half] for x in (x1, x2)]
    return {"images": torch.cat(rows), "n_columns": 16, "rows": ["x1", "x2", "x1", "x2"]}


@torch.no_grad()
def sample(G, D, args):
    """Draw 32 pairs, x2 below x1, as save_grid's arguments; every call has the same z."""
    z = torch.randn(32, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    return rows_of_two(*G(z.to(next(G.parameters()).device)))


def second_domain(images, args):
    """Transform uint8 images (n, C, H, H) into domain 2, (n, C2, H, H), also uint8."""
    if args.domain == "mnistm":
        patches = load_patches(len(images), images.shape[-1], args.photos, args.seed)
        patches = patches.to(images.device)
        return torch.maximum(patches, images) - torch.minimum(patches, images)  # |patch - image|
    chunks = [TRANSFORMS[args.domain](chunk / 127.5 - 1) for chunk in images.split(1000)]
    return torch.cat([((chunk + 1) * 127.5).round().byte() for chunk in chunks])


def build(args, device):
    """Load the data, transform half of it into domain 2, and make G and D for both image shapes.

    The halves are disjoint: no image appears in both domains. Both lie side by side in the channels
    of data.images, at random and for the whole run; which images meet does not matter.
    """

    def check(n_images, classes):  # load_data calls it before it decodes the images of a folder
        if args.batch_size > n_images // 2:
            raise UserError(
                f"--batch_size {args.batch_size} is more than the {n_images // 2} images that each "
                f"domain has, half of {n_images}."
            )

    if args.photos is not None and args.domain != "mnistm":
        raise UserError(f"--photos is for --domain mnistm, not {args.domain}.")
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed, check=check)
    half = len(data.images) // 2
    order = torch.randperm(len(data.images)).to(device)
    x1 = data.images[order[:half]]
    x2 = second_domain(data.images[order[half : 2 * half]], args)
    data = data._replace(images=torch.cat([x1, x2], 1), labels=data.labels[order[:half]])
    img_shapes = (tuple(x1.shape[1:]), tuple(x2.shape[1:]))
    G = Generator(args.latent_dim, img_shapes, args.width, args.layers, args.shared_g)
    D = Discriminator(img_shapes, args.width, args.layers, args.shared_d)
    args.shared_g = G.config["n_shared"]
    args.shared_d = D.n_shared
    return data, G.apply(weights_init).to(device), D.apply(weights_init).to(device)


def check_args(args):
    """Raise UserError for an option out of range."""
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} must be a finite number, not {value}.")
    at_least = {
        "n_epochs": 1, "batch_size": 2, "lr_g": 0, "lr_d": 0, "b1": 0, "b2": 0, "latent_dim": 1,
        "width": 1, "img_size": 8, "sample_interval": 1, "seed": 0,
    }
    for name, minimum in at_least.items():
        value = getattr(args, name, None)
        if value is not None and value < minimum:
            raise UserError(f"--{name} must be at least {minimum}, not {value}.")
    for name, limit in {"b1": 1, "b2": 1, "seed": 2**32}.items():
        if getattr(args, name) >= limit:
            raise UserError(f"--{name} must be less than {limit}, not {getattr(args, name)}.")


def check_finite(G, D):
    """Raise UserError if a weight is no longer a finite number."""
    if not all(weight.isfinite().all() for weight in (*G.parameters(), *D.parameters())):
        raise UserError("the training has diverged; lower --lr_g or --lr_d")


def new_folder(args):
    """Claim and return the run's folder: the checkpoint's when it is resumed, else a new one."""
    if args.resume and not args.out_dir and Path(args.resume).name == "checkpoint.pt":
        folder = Path(args.resume).parent
        (folder / "losses.csv").open("a").close()  # if it can't be written, fail now
        return folder
    wanted = Path(args.out_dir or f"runs/{SCRIPT}")
    for i in itertools.count(1):
        folder = wanted if i == 1 else Path(f"{wanted}-{i}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / "losses.csv").open("x").close()
            return folder
        except FileExistsError:  # it belongs to another run, perhaps one that started just now
            continue


def save_checkpoint(path, state, data, args, progress):
    """Write what --resume and load_generator need to a temporary file, then rename it."""
    checkpoint = {
        "script": SCRIPT,
        "args": vars(args) | {"dataset": data.name},  # not auto, which may find other data later
        "classes": data.classes,
        "config_G": state["G"].config,
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if args.cuda else [],
        **progress,
    }
    for name in ("folder", "out_dir", "resume"):  # a run may be moved
        del checkpoint["args"][name]
    for name, part in state.items():
        checkpoint[name] = part.state_dict()
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path):
    """Read a checkpoint of this script onto the CPU; raise UserError if the file is not one."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises a dozen kinds for a damaged or foreign file
        raise UserError(f"{path} is not a checkpoint, or it is damaged.") from error
    if not isinstance(checkpoint, dict) or "config_G" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of this version of {SCRIPT}.py.")
    if checkpoint["script"] != SCRIPT:
        raise UserError(f"{path} is a checkpoint of {checkpoint['script']}.py, not of {SCRIPT}.py.")
    return checkpoint


def restore(saved, state, data, args):
    """Put networks, optimizers and random state back; raise UserError if they do not fit."""
    if saved["classes"] != data.classes:
        raise UserError(f"{args.resume} was trained on other classes than {args.dataset} has.")
    for name, value in state["G"].config.items():
        if saved["config_G"][name] != value:
            raise UserError(f"{args.resume} has {name} {saved['config_G'][name]}, not {value}.")
    for name in ("opt_G", "opt_D"):  # their options, which may be new, are those of this run
        saved[name]["param_groups"] = state[name].state_dict()["param_groups"]
    for name, part in state.items():
        part.load_state_dict(saved[name])
    torch.set_rng_state(saved["rng"])
    torch.cuda.set_rng_state_all(saved["rng_cuda"][: torch.cuda.device_count()])


def load_generator(path):
    """Load the trained generator of a checkpoint: the running average, in eval mode, on the CPU."""
    checkpoint = load_checkpoint(path)
    G = Generator(**checkpoint["config_G"])
    G.load_state_dict(checkpoint["G_avg"])
    return G.eval().requires_grad_(False)


def save_losses(folder, names, rows):
    """Write losses.csv, and draw its columns against the step as losses.png."""
    from matplotlib.figure import Figure  # after common.py, which drops a backend that is missing

    lines = [",".join(map(str, row)) for row in [["epoch", "step", *names], *rows]]
    (folder / "losses.csv").write_text("\n".join(lines) + "\n")
    axes = Figure(figsize=(8, 5), layout="constrained").subplots()
    steps = [row[1] for row in rows]
    for i, name in enumerate(names):
        axes.plot(steps, [row[2 + i] for row in rows], marker=".", label=name)
    axes.set_xlabel("step")
    axes.legend()
    axes.figure.savefig(folder / "losses.png")


def show_live(line):
    """Rewrite the last line of a terminal; print nothing to a file or a pipe."""
    if sys.stdout and sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns - 1
        print(line[:columns].ljust(columns), end="\r", flush=True)


def full_step(state, args, x, y, lr_g, lr_d, share):
    """Do a train_step at these learning rates, move G_avg by share; return the step's values."""
    G, D, opt_G, opt_D, G_avg = (state[name] for name in ("G", "D", "opt_G", "opt_D", "G_avg"))
    opt_G.param_groups[0]["lr"] = lr_g
    opt_D.param_groups[0]["lr"] = lr_d
    # no cache: it would keep the bfloat16 copy of D's weights from before its update
    with torch.autocast(x.device.type, torch.bfloat16, args.bf16, cache_enabled=False):
        values = train_step(G, D, opt_G, opt_D, x, y, args)
    update_average(G_avg, G, share)
    return values


def cuda_graph(step, optimizers):
    """Return a function that does what step does, on a GPU that does not wait for Python.

    A step is a few hundred small kernels, most of which take longer to launch than to run. So the
    fourth call records them as a CUDA graph, which it and every later call replay as one, on their
    own arguments. The first three run step as it is: what it makes only once, such as Adam's
    moments, must not be replayed. step must launch the same kernels on the same shapes at every
    call, and must not wait for the GPU, as .item() does. A call overwrites the tensors that the
    previous call returned.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    inputs, outputs, n_calls = [], {}, 0

    def call(*arguments):
        nonlocal inputs, outputs, n_calls
        n_calls += 1
        if n_calls == 1:  # as_tensor alone would return x and y themselves
            inputs = [torch.as_tensor(argument, device="cuda").clone() for argument in arguments]
        for tensor, argument in zip(inputs, arguments):
            tensor[...] = argument
        if n_calls <= 3:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                outputs = step(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            return outputs
        if n_calls == 4:
            for optimizer in optimizers:
                optimizer.param_groups[0]["capturable"] = True  # Adam's leave to be recorded
            with torch.cuda.graph(graph):
                outputs = step(*inputs)
        graph.replay()  # the recording has run nothing
        return outputs

    return call


def train(args, saved=None):
    """Train to args.n_epochs, from the start or from a checkpoint, and leave the run's files."""
    device = get_device(args.cuda)
    torch.manual_seed(args.seed)
    data, G, D = build(args, device)
    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.b1, args.b2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
    G_avg = copy.deepcopy(G).eval()  # the running average, which draws the samples
    state = {"G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "G_avg": G_avg}
    # names and rows make losses.csv; total is the sum of n_summed steps since the last row
    progress = {"epochs_done": 0, "steps_done": 0, "names": [], "rows": [], "n_summed": 0}
    progress["total"] = torch.zeros(())
    if saved:
        restore(saved, state, data, args)
        progress = {name: saved[name] for name in progress}
    args.folder = new_folder(args)  # in args, so that main can name its checkpoint
    save_grid(args.folder / "real.png", **real_images(data, args))
    resumed_here = saved and args.folder == Path(args.resume).parent
    if not resumed_here or args.n_epochs > progress["epochs_done"]:
        save_checkpoint(args.folder / "checkpoint.pt", state, data, args, progress)

    rows = progress["rows"]
    if rows:
        save_losses(args.folder, progress["names"], rows)
    total = progress["total"].to(device)
    n_summed = progress["n_summed"]
    step = first_step = saved_step = progress["steps_done"]
    epochs = range(progress["epochs_done"] + 1, args.n_epochs + 1)
    n_steps = step + len(epochs) * (len(data.images) // args.batch_size)
    one_step = functools.partial(full_step, state, args)
    if device.type == "cuda":
        one_step = cuda_graph(one_step, (opt_G, opt_D))
    start = time.perf_counter()
    for epoch in epochs:
        for x, y in batches(data, args.batch_size):
            decay = min(1, 2 * (1 - step / n_steps))  # 1 for half of the run, then linearly to 0
            share = max(10 / (step + 10), 1 / 500)  # about the last tenth, at most 500 steps
            values = one_step(x, y, decay * args.lr_g, decay * args.lr_d, share)
            total = total + torch.stack(list(values.values()))
            n_summed += 1
            step += 1
            is_due = step % args.sample_interval == 0 or step == n_steps
            if is_due:
                means = (total / n_summed).tolist()  # waits for a GPU; else only a new epoch does
            speed = (step - first_step) / (time.perf_counter() - start)
            line = f"epoch {epoch:2}  step {step:6}/{n_steps}  {speed:5.1f} steps/s"
            line += f"  {(n_steps - step) / speed:5.0f} s left"
            if not is_due:
                show_live(line)
                continue
            total = torch.zeros_like(total)
            n_summed = 0
            numbers = [f"{name} {mean:7.3f}" for name, mean in zip(values, means)]
            print(line, *numbers, sep="  ", flush=True)
            check_finite(G, D)
            rows.append([epoch, step, *means])
            save_losses(args.folder, list(values), rows)
            save_grid(args.folder / f"{step:06}.png", **sample(G_avg, D, args))
        if step - saved_step >= args.sample_interval or step == n_steps:
            check_finite(G, D)
            progress = {"epochs_done": epoch, "steps_done": step, "names": list(values)}
            progress |= {"rows": rows, "n_summed": n_summed, "total": total}
            save_checkpoint(args.folder / "checkpoint.pt", state, data, args, progress)
            saved_step = step
    save_grid(args.folder / "samples.png", **sample(G_avg, D, args))
    print(args.folder / "samples.png")


def is_out_of_memory(error):
    """Tell whether memory ran out: CUDA has an exception for it, the CPU only a message."""
    words = ("can't allocate memory", "not enough memory")
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(word in str(error) for word in words)


def stop(args, reason, status):
    """Exit with a sentence on stderr: the reason and the command to continue, if there is one."""
    message = f"{SCRIPT}.py: {reason}"
    folder = getattr(args, "folder", None)  # none before train has claimed one
    if folder and (folder / "checkpoint.pt").exists():
        command = ["python", os.path.relpath(__file__), "--resume", str(folder / "checkpoint.pt")]
        message += f"; to continue: {shlex.join(command)}"
    show_live("")
    print(message, file=sys.stderr)
    sys.exit(status)


def main(argv=None):
    """Run the command line. A user's mistake gets a sentence; a bug keeps its traceback."""
    args = parse_args(argv)
    try:
        saved = load_checkpoint(args.resume) if args.resume else None
        if saved:
            args = parse_args(argv, saved["args"])
        check_args(args)
        train(args, saved)
    except KeyboardInterrupt:
        stop(args, "stopped", 130)
    except (UserError, OSError) as error:
        stop(args, error, 2)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        stop(args, "out of memory; lower --batch_size, --img_size or the size of the networks", 2)


if __name__ == "__main__":
    main()
