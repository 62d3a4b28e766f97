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
    python cogan.py --dataset FOLDER --dataset2 FOLDER        # two kinds of pictures of your own
    python cogan.py --shared_g 0          # the control: the generators share only z

The column agree, of edge, negative and rotate, is the share of pixels on which x2 agrees with x1
transformed into domain 2. Compare it with chance, which takes x1 of another z: if agree is not 0.05
above chance after 2,000 steps, take another --seed. Two classifiers (tests/score.py) see the same
MNIST digit in x1 and x2 in 92 to 93% of the pairs for edge, 96 to 97% for negative, 75 to 89% for
mnistm with photographs; for rotate in 93% in one run of three and in 24 and 26% in the others.

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
 5. f1 and f2 start equal where their images have as many channels. From different starts the pairs
    of edge matched in some runs and not in others; from equal ones with each of eight seeds
    (tests/RESULTS.md).
"""
import contextlib
import copy
import functools
import io
import itertools
import json
import math
import os
import signal
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from pathlib import Path

import torch
from torch import nn

from common import (
    IS_PARALLEL,
    RANK,
    UserError,
    batches,
    get_device,
    load_data,
    load_patches,
    save_grid,
)

SCRIPT = "cogan"
EPOCHS = 22  # of a run for which --n_epochs is not given, unless MIN_STEPS are more
MIN_STEPS = 10_000
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
    """Parse the command line; options not given come from saved, else from their defaults."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py", usage="%(prog)s [options]", description="Train a CoGAN."
    )
    other_defaults = "; ".join(
        f"{domain}: " + " ".join(f"--{name} {value}" for name, value in defaults.items())
        for domain, defaults in DEFAULTS.items()
    )
    add = parser.add_argument
    add("--n_epochs", type=in_range(int, 1),
        help=f"passes over the data ({EPOCHS}, or enough for {MIN_STEPS:,} steps)")
    add("--batch_size", type=in_range(int, 2), default=64, help="images per step (%(default)s)")
    add("--lr_g", type=in_range(float, 0), default=4e-4, help="learning rate of G (%(default)s)")
    add("--lr_d", type=in_range(float, 0), default=4e-4, help="learning rate of D (%(default)s)")
    add("--b1", type=in_range(float, 0, 1), default=0.5, help="Adam's beta_1 (%(default)s)")
    add("--b2", type=in_range(float, 0, 1), default=0.999, help="Adam's beta_2 (%(default)s)")
    add("--latent_dim", type=in_range(int, 1), default=100, help="dimension of z (%(default)s)")
    add("--width", type=in_range(int, 1), default=32,
        help="channels at half the side (%(default)s)")
    add("--img_size", type=in_range(int, 8), help="side of the images (the dataset's own, or 64)")
    add("--dataset", default="auto",
        help="auto, mnist, fashion, cifar10, glyphs or a folder of images (%(default)s)")
    add("--data_dir", type=os.path.abspath, default="data",
        help="directory of the downloaded datasets (%(default)s)")
    add("--sample_interval", type=in_range(int, 1), default=1000,
        help="steps between two rows of output, each with a grid and a checkpoint (%(default)s)")
    add("--out_dir",
        help=f"folder of the run, with -2, -3 ... appended if it is not empty (runs/{SCRIPT}, or "
        "that of --resume)")
    add("--resume", type=checkpoint_of, metavar="RUN",
        help="folder or checkpoint of a run to continue, with its own options except those given "
        "here; a larger --n_epochs raises the learning rates again")
    add("--seed", type=in_range(int, 0, 2**32), default=0,
        help="runs with the same seed are the same to the byte, on the same CPU with as many "
        "threads (%(default)s)")
    add("--cuda", action=BooleanOptionalAction, default=False, help="train on a CUDA device")
    add = parser.add_argument_group("options of the paper").add_argument
    add("--domain", choices=[*TRANSFORMS, "mnistm"], default="edge",
        help="how domain 2 differs from domain 1 (%(default)s); with other defaults: "
        + other_defaults)
    add("--dataset2",
        help="data of domain 2, as for --dataset, in the place of --domain (a transformed half)")
    add("--photos", type=os.path.abspath, metavar="FOLDER",
        help="mnistm: photographs to cut patches from (drawn clouds)")
    add("--layers", choices=["conv", "dense"], default="conv",
        help="kind of layers (%(default)s); dense ignores --width")
    add("--shared_g", type=in_range(int, 0),
        help="how many first layers g1 and g2 share (all but one)")
    add("--shared_d", type=in_range(int, 0),
        help="how many last layers f1 and f2 share (all but one)")
    domain = parser.parse_args(argv).domain
    parser.set_defaults(**(saved or DEFAULTS.get(domain, {})))
    args = parser.parse_args(argv)
    if args.resume and not saved:
        return args  # main parses again, with the options of that run
    if args.photos is not None and (args.dataset2 or args.domain != "mnistm"):
        parser.error("--photos is for --domain mnistm")
    if args.dataset2:
        args.domain = None  # nothing is transformed
    for name in ("domain", "seed", "layers", "shared_g", "shared_d"):  # the seed chose the halves
        if saved and getattr(args, name) != saved[name]:
            parser.error(f"--{name} can't change when a run is resumed")
    if saved and (args.photos is None) != (saved["photos"] is None):  # the folder may have moved
        parser.error("--photos can't be added when a run is resumed")
    return args


def architecture(img_shape, width):
    """Return the feature maps of both networks and the units of their dense hidden layer (0: none).

    The maps are a list of (channels, side) that starts with the image. Each level halves the side,
    rounded down, and doubles the channels, up to 8 * width: for (3, 64, 64) and a width of 32
    [(3, 64), (32, 32), (64, 16), (128, 8), (256, 4)].
    """
    channels, side = img_shape[0], img_shape[-1]
    if side < 32:  # the network that DCGAN's authors have for MNIST
        smallest_side, n_hidden = 7, 512
    else:  # the one of the paper
        smallest_side, n_hidden = 4, 0
    maps = [(channels, side)]
    channels = width
    while side > smallest_side:
        side //= 2
        maps.append((channels, side))
        channels = min(2 * channels, 8 * width)
    return maps, n_hidden


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
    maps, n_hidden = architecture(img_shape, width)
    n_features = latent_dim
    layers = []
    if n_hidden:
        dense = nn.Linear(n_features, n_hidden)
        layers += [nn.Sequential(dense, nn.BatchNorm1d(n_hidden), nn.ReLU())]
        n_features = n_hidden
    n_in, side = maps[-1]
    dense = nn.Linear(n_features, n_in * side * side)
    to_maps = nn.Unflatten(1, (n_in, side, side))
    layers += [nn.Sequential(dense, to_maps, nn.BatchNorm2d(n_in), nn.ReLU())]
    maps[0] = (width, img_shape[-1])  # as large as the image, into which the last layer turns them
    for n_out, side in reversed(maps[:-1]):  # 7 -> 14 -> 28; an odd side needs one row more
        up = nn.ConvTranspose2d(n_in, n_out, 4, 2, padding=1, output_padding=side % 2)
        layers += [nn.Sequential(up, nn.BatchNorm2d(n_out), nn.ReLU())]
        n_in = n_out
    image = nn.Conv2d(width, img_shape[0], 3, padding=1)
    layers += [
        nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            image, nn.Tanh(),
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
    maps, n_hidden = architecture(img_shape, width)
    down = nn.Conv2d(img_shape[0], width, 4, stride=2, padding=1)
    layers = [nn.Sequential(down, nn.LeakyReLU(0.2))]
    n_in = width
    for n_out, _ in maps[2:]:  # 14 -> 7
        down = nn.Conv2d(n_in, n_out, 4, stride=2, padding=1)
        layers += [nn.Sequential(down, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2))]
        n_in = n_out
    n_features = n_in * maps[-1][1] ** 2
    if n_hidden:
        dense = nn.Linear(n_features, n_hidden)
        layers += [nn.Sequential(nn.Flatten(), dense, nn.BatchNorm1d(n_hidden), nn.LeakyReLU(0.2))]
        n_features = n_hidden
    return [*layers, nn.Sequential(nn.Flatten(), nn.Linear(n_features, 1))]


class Generator(nn.Module):
    """z (N, latent_dim) -> x1 (N, C1, H, H) and x2 (N, C2, H, H), both in [-1, 1]."""

    def __init__(self, latent_dim, img_shapes, width, kind, n_shared=None):
        super().__init__()
        g1 = generator_layers(latent_dim, img_shapes[0], width, kind)
        g2 = generator_layers(latent_dim, img_shapes[1], width, kind)
        if n_shared is None:
            n_shared = len(g1) - 1
        if n_shared >= len(g1):
            raise UserError(f"--shared_g must be at most {len(g1) - 1}, not {n_shared}")
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
        if n_shared >= len(f1):
            raise UserError(f"--shared_d must be at most {len(f1) - 1}, not {n_shared}")
        self.config = {
            "img_shapes": img_shapes, "width": width, "kind": kind, "n_shared": n_shared,
        }
        n_private = len(f1) - n_shared
        self.private1 = nn.Sequential(*f1[:n_private])
        self.private2 = nn.Sequential(*f2[:n_private])
        self.shared = nn.Sequential(*f1[n_private:])

    def forward(self, x1, x2):
        return self.shared(self.private1(x1)), self.shared(self.private2(x2))


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
    return x.split(args.channels, 1)


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
    the mean raw scores of domain 1 (s) and 2 (s2); and, where domain 2 is a transform of domain 1,
    agree and chance, how far x2 agrees with x1, and with the x1 of another z.
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
        values["chance"] = agreement(fake1.roll(1, 0), fake2, args)
    return {name: value.detach() for name, value in values.items()}


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


def spread(n, length, device):
    """Put n images in random order, all of them again and again up to that length, as indices."""
    rounds = [torch.randperm(n) for _ in range(math.ceil(length / n))]
    return torch.cat(rounds)[:length].to(device)


def build(args, device):
    """Load the images of both domains, and make G and D for both shapes.

    Domain 2 is another dataset or a transformed half of the first, so that no image is in both. Its
    images lie beside those of domain 1 in the channels of data.images, at random and for the whole
    run; which images meet does not matter.
    """
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed)
    if args.dataset2:
        side = data.images.shape[-1]
        data2 = load_data(args.dataset2, args.data_dir, side, device, args.seed)
        args.dataset2 = data2.name  # as train does with args.dataset
        n1, n2 = len(data.images), len(data2.images)
        order1, order2 = (spread(n, max(n1, n2), device) for n in (n1, n2))
        x1, x2 = data.images[order1], data2.images[order2]
    else:
        order1, order2 = torch.randperm(len(data.images)).to(device).tensor_split(2)
        order1 = order1[: len(order2)]
        x1, x2 = data.images[order1], second_domain(data.images[order2], args)
    args.channels = [x1.shape[1], x2.shape[1]]
    data = data._replace(images=torch.cat([x1, x2], 1), labels=data.labels[order1])
    img_shapes = (tuple(x1.shape[1:]), tuple(x2.shape[1:]))
    G = Generator(args.latent_dim, img_shapes, args.width, args.layers, args.shared_g)
    D = Discriminator(img_shapes, args.width, args.layers, args.shared_d)
    args.shared_g = G.config["n_shared"]
    args.shared_d = D.config["n_shared"]
    G.apply(weights_init)
    D.apply(weights_init)
    if img_shapes[0] == img_shapes[1]:  # f1 and f2 start equal: see departure 5
        D.private2.load_state_dict(D.private1.state_dict())
    return data, G.to(device), D.to(device)


# Here the paper ends. The rest is the run, which is the same in every script.


def in_range(kind, low, high=2**31):
    """Make a type for argparse: an int or a float that is at least low and below high."""

    def number(text):
        value = kind(text)
        if not low <= value < high:
            raise ArgumentTypeError(f"must be at least {low} and below {high}, not {text}")
        return value

    return number


def checkpoint_of(path):
    """Return the checkpoint of a run, given its folder or the checkpoint itself."""
    return Path(path) / "checkpoint.pt" if Path(path).is_dir() else Path(path)


@torch.no_grad()
def update_average(G_avg, G, share):
    """Move the running average of G towards G by this share of the way."""
    for average, current in zip(G_avg.state_dict().values(), G.state_dict().values()):
        if average.is_floating_point():  # not batch normalisation's count of batches
            average.lerp_(current, share)


def full_step(state, args, x, y, lr_g, lr_d, share):
    """Do a train_step at these learning rates, move G_avg by share; return the step's values."""
    G, D, opt_G, opt_D, G_avg = state.values()
    opt_G.param_groups[0]["lr"] = lr_g
    opt_D.param_groups[0]["lr"] = lr_d
    values = train_step(G, D, opt_G, opt_D, x, y, args)
    update_average(G_avg, G, share)
    return values


def cuda_graph(step, optimizers):
    """Return a function that does what step does, on a GPU that does not wait for Python.

    A step is a few hundred small kernels, most of which take longer to launch than to run. The
    fourth call records them as a CUDA graph, which it and all later ones replay at once, on their
    own arguments. The first three run step as it is: Adam's moments, for one, must be made only
    once. step must launch the same kernels on the same shapes at every call, and never wait for the
    GPU, as .item() does. A call overwrites the tensors that the previous call returned.
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
                optimizer.param_groups[0]["capturable"] = True  # allows Adam to be recorded
            with torch.cuda.graph(graph):
                outputs = step(*inputs)
        graph.replay()  # recording does not run the step
        return outputs

    return call


def new_folder(wanted):
    """Claim an empty folder of that name or of that name with -2, -3 and so on appended."""
    for i in itertools.count(1):
        folder = Path(f"{Path(wanted)}-{i}") if i > 1 else Path(wanted)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # of another run that starts at this moment
            if not any(folder.iterdir()):
                (folder / "args.json").touch(exist_ok=False)
                return folder


def run_folder(args, data):
    """Return the folder of the resumed run, or claim an empty one; show in it what the data are."""
    if args.resume and not args.out_dir and args.resume.name == "checkpoint.pt":
        folder = args.resume.parent
    else:
        folder = new_folder(args.out_dir or f"runs/{SCRIPT}")
    save_grid(folder / "real.png", **real_images(data, args))
    return folder


def save_checkpoint(folder, args, data, state, progress):
    """Write what --resume and load_generator need to a temporary file, then rename it."""
    options = {k: v for k, v in vars(args).items() if k not in ("out_dir", "resume")}
    checkpoint = {
        "script": SCRIPT,
        "args": options,
        "n_images": len(data.images),
        "config_G": state["G"].config,
        "config_D": state["D"].config,
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if args.cuda else [],
        **progress,
        **{name: part.state_dict() for name, part in state.items()},
    }
    buffer = io.BytesIO()  # torch.save to a file hides a full disk
    torch.save(checkpoint, buffer)
    (folder / "checkpoint.tmp").write_bytes(buffer.getbuffer())
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
    readable = {"script": SCRIPT, **options, "classes": data.classes}
    (folder / "args.json").write_text(json.dumps(readable, indent=1) + "\n")


def load_checkpoint(path):
    """Read a checkpoint of this script, or the one in a run's folder, onto the CPU."""
    path = checkpoint_of(path)
    content = io.BytesIO(path.read_bytes())  # a missing file is an OSError
    try:
        saved = torch.load(content, map_location="cpu", weights_only=True)
        script = saved["script"]
        for key in ("args", "n_images", "config_G", "config_D", "steps_done", "epochs_done"):
            saved[key]  # an older version's may lack it
    except Exception as error:  # its type depends on what the file holds instead
        what = f"is not a checkpoint of this version of {SCRIPT}.py"
        raise UserError(f"{path} {what} ({type(error).__name__})") from error
    if script != SCRIPT:
        raise UserError(f"{path} is a checkpoint of {script}.py, not of {SCRIPT}.py")
    return saved


def restore(saved, state, args):
    """Put the state of a checkpoint back; raise UserError if it does not fit the networks."""
    for name in {"G", "D"} & state.keys():
        for key, value in state[name].config.items():
            if saved[f"config_{name}"].get(key) != value:
                raise UserError(f"{args.resume} was trained with a different {key}")
    try:
        for name, part in state.items():
            if name.startswith("opt"):  # keep the options of this run, which may be new
                saved[name]["param_groups"] = part.state_dict()["param_groups"]
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
        torch.cuda.set_rng_state_all(saved["rng_cuda"][: torch.cuda.device_count()])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{args.resume} lacks a part of the networks or of the run") from error


def load_generator(path):
    """Load the trained generator of a run: the running average, in eval mode, on the CPU."""
    saved = load_checkpoint(path)
    G = Generator(**saved["config_G"])
    G.load_state_dict(saved["G_avg"])
    return G.eval().requires_grad_(False)


def draw_finished(args, saved):
    """Draw samples of a finished run, which needs no data."""
    G, D = Generator(**saved["config_G"]), Discriminator(**saved["config_D"])
    restore(saved, {"G_avg": G.eval(), "D": D}, args)
    names = (args.resume.with_name(f"samples-{i}.png") for i in itertools.count(2))
    path = next(path for path in names if not path.exists())
    save_grid(path, **sample(G, D, args))
    print(f"{path}: {saved['epochs_done']:g} epochs done; a larger --n_epochs continues the run")


def save_losses(folder, names, rows):
    """Write losses.csv, and draw its columns against the step as losses.png."""
    from matplotlib.figure import Figure  # after common.py, which drops a backend that is missing

    lines = [",".join(map(str, row)) for row in [["epoch", "step", *names], *rows]]
    (folder / "losses.csv").write_text("\n".join(lines) + "\n")
    axes = Figure(figsize=(8, 5)).subplots()
    _, steps, *columns = zip(*rows)
    for name, column in zip(names, columns):
        axes.plot(steps, column, marker=".", label=name)
    axes.set_xlabel("step")
    axes.legend()
    axes.figure.savefig(folder / "losses.png")


def print_row(row, names, speed, n_left, is_first):
    """Print a row of losses.csv with the speed and the time left, the first below its names."""
    epoch, step, *means = row
    minutes, seconds = divmod(round(n_left / speed), 60)
    left = f"{minutes}:{seconds:02}" if n_left else "-"
    cells = {"epoch": str(epoch), "step": str(step), "it/s": f"{speed:.1f}", "left": left}
    cells |= {name: f"{mean:.2f}" for name, mean in zip(names, means)}
    if is_first:
        print(*(name.rjust(5) for name in cells))
    print(*(cell.rjust(max(5, len(name))) for name, cell in cells.items()), flush=True)


def plan(args, data, saved):
    """Return the steps of an epoch and the steps that are left, and say how long the run will be.

    Epochs are counted, not steps: --batch_size or the data may not be those of the checkpoint.
    """
    n_images = len(data.images)
    steps_per_epoch = n_images // args.batch_size
    if steps_per_epoch == 0:
        raise UserError(f"--batch_size {args.batch_size} is more than the {n_images} images")
    args.n_epochs = args.n_epochs or max(EPOCHS, math.ceil(MIN_STEPS / steps_per_epoch))
    line = f"{args.n_epochs} epochs of {steps_per_epoch} steps"
    if saved and saved["n_images"] != n_images:
        line += f"; begun with {saved['n_images']} images"
    if os.path.isabs(args.dataset) and args.n_epochs * steps_per_epoch < 1000:  # a folder
        line += f"; too few for pictures: {MIN_STEPS:,} steps are a start"
    print(line, flush=True)
    return steps_per_epoch, round((args.n_epochs - saved.get("epochs_done", 0)) * steps_per_epoch)


def train(args, saved):
    """Train to args.n_epochs, from the start or from a checkpoint, and leave the run's files."""
    device = get_device(args.cuda)
    torch.manual_seed(args.seed)
    data, G, D = build(args, device)
    args.dataset = data.name  # not auto, which may find other data when the run is resumed
    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.b1, args.b2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
    G_avg = copy.deepcopy(G).eval()  # the running average, which draws the samples
    state = {"G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "G_avg": G_avg}
    if saved:
        restore(saved, state, args)
    steps_per_epoch, n_left = plan(args, data, saved)
    step, rows = saved.get("steps_done", 0), saved.get("rows", [])
    n_steps = step + n_left
    folder = run_folder(args, data) if saved and RANK == 0 else None  # new: see below
    if RANK > 0:  # a further process of torchrun: it draws its own z, and writes and prints nothing
        torch.manual_seed(args.seed + step + RANK)
    one_step = functools.partial(full_step, state, args)
    if device.type == "cuda" and not IS_PARALLEL:
        one_step = cuda_graph(one_step, (opt_G, opt_D))

    start, first_step = time.perf_counter(), step
    recent, is_first = [], True  # the values of the steps since the last row
    stream = batches(data, args.batch_size, args.seed, args.n_epochs * steps_per_epoch - n_left)
    for x, y in itertools.islice(stream, n_left):
        decay = min(1, 2 * (1 - step / n_steps))  # 1 for half of the run, then linearly to 0
        share = max(10 / (step + 10), 1 / 500)  # G_avg: the last tenth of the steps, at most 500
        values = one_step(x, y, decay * args.lr_g, decay * args.lr_d, share)
        recent.append(torch.stack(list(values.values())))
        step += 1
        if sys.stdout and sys.stdout.isatty():
            print(f"step {step}/{n_steps}", end="\r", flush=True)
        is_due = step == 1 or step % args.sample_interval == 0 or step == n_steps
        if not is_due:
            continue

        if not all(weight.isfinite().all() for weight in (*G.parameters(), *D.parameters())):
            raise UserError("the training has diverged; lower --lr_g or --lr_d")
        means = torch.stack(recent).mean(0).tolist()
        recent = []
        if RANK > 0:
            continue
        speed = (step - first_step) / (time.perf_counter() - start)
        folder = folder or run_folder(args, data)  # now: a run that fails at once leaves nothing
        epochs_done = args.n_epochs - (n_steps - step) / steps_per_epoch
        rows.append([math.ceil(epochs_done), step, *means])
        print_row(rows[-1], values, speed, n_steps - step, is_first=is_first)
        is_first = False
        save_losses(folder, values, rows)
        grid = sample(G_avg, D, args)
        save_grid(folder / f"{step:06}.png", **grid)
        if step == n_steps:
            save_grid(folder / "samples.png", **grid)
        progress = {"steps_done": step, "epochs_done": epochs_done, "rows": rows}
        save_checkpoint(folder, args, data, state, progress)
        args.resume = folder / "checkpoint.pt"  # for main, if the run is stopped
    if RANK == 0:
        print(folder / "samples.png")


def main(argv=None):
    """Run the command line. A user's mistake gets a sentence; a bug keeps its traceback."""
    if hasattr(sys.stdout, "reconfigure"):  # a folder's name may have letters that stdout lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    args = parse_args(argv)
    try:
        saved = load_checkpoint(args.resume) if args.resume else {}
        args = parse_args(argv, saved.get("args"))
        if not saved or args.n_epochs > saved["epochs_done"]:
            train(args, saved)
        elif RANK == 0:
            draw_finished(args, saved)
        return
    except KeyboardInterrupt:
        status, reason = 130, "stopped"
        if args.resume:
            reason += f'; to continue: python "{sys.argv[0]}" --resume "{args.resume}"'
    except (UserError, OSError, torch.OutOfMemoryError) as error:
        status, reason = 2, error
    if RANK == 0:
        print(f"{SCRIPT}.py: {reason}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as Ctrl-C does
    main()
