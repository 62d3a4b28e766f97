"""f-GAN: D estimates an f-divergence between the data and G's images, and G follows D's estimate.

Nowozin, Cseke and Tomioka 2016, arXiv:1606.00709. Let p be the density of the data and q that of
G's images, f convex, and f*(t) = sup_u (ut - f(u)) its conjugate. For every function T with values
in the domain of f* (eq. 4; E_x is over the data, E_q over G's images, E_z over their z)
    D_f(p || q) = E_q[f(p / q)] >= F = E_x[T(x)] - E_z[f*(T(G(z)))],
with equality for T = f'(p / q) (eq. 5). Here T = g_f(s): s is the raw score of D, the V of the
paper, and g_f maps any number into the domain of f* (eq. 7). D ascends F. G descends F (minimax)
or, in practice, ascends E_z[g_f(s(G(z)))] (section 3.2), the non-saturating loss.

Which divergence does G make small? Let D be the best, T = f'(u) with u = p / q. G's step leaves T
as it is and changes q, by dq. As f*(f'(u)) = u f'(u) - f(u), this changes
    F             by  -Integral f*(T) dq = Integral (f(u) - u f'(u)) dq,
    D_f(p || q)   by  Integral (f(u) - u f'(u)) dq,
    E_q[T]        by  Integral f'(u) dq.
So minimax descends the divergence that --divergence names. The non-saturating loss, the default,
descends another, D_h with h(u) - u h'(u) = -f'(u), which means h''(u) = f''(u) / u:
    kl                     reverse KL
    reverse_kl             half of Neyman's chi-squared
    pearson                2 KL
    jeffrey                reverse KL plus half of Neyman's chi-squared
    gan, jensen_shannon    2 KL((p + q) / 2 || p), as Shannon et al. 2020 found (arXiv:2010.08029)
    total_variation        itself
    alpha                  the alpha-divergence of order alpha - 1
Up to a factor pearson, kl, squared_hellinger, reverse_kl and neyman are alpha-divergences too, of
order 2, 1, 1/2, 0 and -1.

T > f'(1) means that D takes an image for real (p > q). A run prints the share of real images above
this threshold (TPR) and of generated ones that are not (TNR).

    python fgan.py                         # MNIST, or drawn digits when offline, with kl
    python fgan.py --divergence pearson    # another row of the table
    python fgan.py --loss minimax          # G descends the divergence itself

Parent: vanilla_gan.py. `diff vanilla_gan.py fgan.py` shows what the paper adds: a table of losses.

What to expect:
    total_variation collapses: its tanh is flat once D has won, and G gets no gradient.
    neyman divides by p, so that the least realistic images dominate; its default rates are lower.
    kl, reverse_kl, pearson, neyman, jeffrey, and alpha outside (0, 1), are infinite where p and q
        do not overlap: D can raise F without bound.
    With minimax, reverse_kl has the same gradient at all scores, that of pearson changes its sign
        at s = -2, and that of alpha > 1 vanishes below s = 1 / (1 - alpha).

Departures from the paper:
 1. g_f increases in s in every row, so that a high score always means a real image. In Table 6 of
    arXiv version 1 reverse_kl, neyman and squared_hellinger have the opposite sign.
 2. s is asinh(r), r being the output of D's last layer, so that exp(s) is at most 2|r| + 1. With
    s = r, single images, by exp(s), rule D's loss: on MNIST, G learns nothing from kl in two
    epochs. The paper's remedy, clipped gradients, does less. D can still reach every T, but takes
    longer to reach large ones: `python tests/fgan_fit.py --asinh` fits jeffrey and pearson worse.
 3. D and G are updated in turn, not at once. Batches of 64, not 4096, give more steps in a run.
    The learning rates are above 2e-4, and D's is above G's: behind a slow D, G collapses.
 4. PyTorch's initialisation. z is Gaussian, images are in [-1, 1] and G ends in tanh, not sigmoid.
 5. The learning rates fall linearly to 0 over the second half of the run, and a running average of
    G draws the samples.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import logsigmoid, softplus

from common import IS_PARALLEL, RANK, UserError, batches, get_device, load_data, save_grid

SCRIPT = "fgan"
EPOCHS = 20  # of a run for which --n_epochs is not given, unless MIN_STEPS are more
MIN_STEPS = 10_000


class Divergence(NamedTuple):
    """A row of the paper's tables; the functions take and return a tensor, elementwise."""

    activation: Callable  # g_f(v)
    conjugate: Callable  # f*(g_f(v)), in a form that overflows only where its value does
    threshold: float  # f'(1)


def jeffrey_conjugate(t):
    """f*(t) = sup_u (ut - (u - 1) log u), which has no elementary closed form.

    The best u is exp(-x), where x + exp(x) = 1 - t. Newton's method finds x; only its last step
    carries the gradient, which is exact there.
    """
    with torch.no_grad():
        x = torch.where(t < 0, (1 - t).clamp(min=1).log(), 1 - t)
        for _ in range(4):
            x -= (x + x.exp() - 1 + t) / (1 + x.exp())
    x = x - (x + x.exp() - 1 + t) / (1 + x.exp())
    return x.exp() + (-x).exp() + t - 2


def js_weighted(pi):
    """The Jensen-Shannon divergence with a weight of pi for the data.

    f(u) = pi u log u - (1 - pi + pi u) log(1 - pi + pi u)
    f*(t) = (1 - pi) log((1 - pi) / (1 - pi e^(t / pi)))
    """

    def conjugate(v):
        # pi e^(t / pi) = e^(logsigmoid(v) / pi), and expm1 keeps 1 - that exact where it is tiny.
        # Above 80 its logarithm is -v - log pi; clamp keeps the branch not taken finite.
        log_gap = torch.log(-torch.expm1(logsigmoid(v.clamp(max=81)) / pi))
        log_gap = torch.where(v > 80, -v - math.log(pi), log_gap)
        return (1 - pi) * (math.log(1 - pi) - log_gap)

    return Divergence(lambda v: logsigmoid(v) - pi * math.log(pi), conjugate, 0)


def alpha_divergence(a):
    """The alpha-divergence of order a: f(u) = (u^a - 1 - a (u - 1)) / (a (a - 1))."""
    power = a / (a - 1)

    def conjugate_above_1(v):
        # f* is constant below t = 1 / (1 - a), where no u > 0 reaches the supremum: hence the relu
        return (torch.relu(v * (a - 1) + 1) ** power - 1) / a

    def conjugate_below_1(v):
        # ((1 - a) softplus(-v))^power from its logarithm. Above 16 log(softplus(-v)) rounds to -v;
        # clamp keeps the branch not taken finite.
        log_softplus = torch.where(v > 16, -v, softplus(-v.clamp(max=17)).log())
        return torch.expm1(power * (math.log(1 - a) + log_softplus)) / a

    if a > 1:
        return Divergence(lambda v: v, conjugate_above_1, 0)
    return Divergence(lambda v: 1 / (1 - a) + logsigmoid(v), conjugate_below_1, 0)


# Tables 1, 2, 5 and 6 of the paper: g_f(v), f*(g_f(v)) and f'(1)
DIVERGENCES = {
    # f(u) = |u - 1| / 2, f*(t) = t
    "total_variation": Divergence(lambda v: v.tanh() / 2, lambda v: v.tanh() / 2, 0),
    # f(u) = u log u, f*(t) = e^(t - 1)
    "kl": Divergence(lambda v: v, lambda v: torch.exp(v - 1), 1),
    # f(u) = -log u, f*(t) = -1 - log(-t)
    "reverse_kl": Divergence(lambda v: -torch.exp(-v), lambda v: v - 1, -1),
    # f(u) = (u - 1)^2, f*(t) = t^2 / 4 + t
    "pearson": Divergence(lambda v: v, lambda v: v**2 / 4 + v, 0),
    # f(u) = (1 - u)^2 / u, f*(t) = 2 - 2 sqrt(1 - t)
    "neyman": Divergence(lambda v: -torch.expm1(-v), lambda v: -2 * torch.expm1(-v / 2), 0),
    # f(u) = (sqrt(u) - 1)^2, f*(t) = t / (1 - t)
    "squared_hellinger": Divergence(lambda v: -torch.expm1(-v), torch.expm1, 0),
    # f(u) = (u - 1) log u, f*(t): see jeffrey_conjugate
    "jeffrey": Divergence(lambda v: v, jeffrey_conjugate, 0),
    # f(u) = u log u - (u + 1) log((u + 1) / 2), f*(t) = -log(2 - e^t)
    "jensen_shannon": Divergence(
        lambda v: math.log(2) + logsigmoid(v), lambda v: softplus(v) - math.log(2), 0
    ),
    # f(u) = u log u - (u + 1) log(u + 1), f*(t) = -log(1 - e^t)
    "gan": Divergence(logsigmoid, softplus, -math.log(2)),
}


def divergence(args):
    """Return the row that --divergence names."""
    if args.divergence == "js_weighted":
        return js_weighted(args.pi)
    if args.divergence == "alpha":
        return alpha_divergence(args.alpha)
    return DIVERGENCES[args.divergence]


def parse_args(argv=None, saved=None):
    """Parse the command line; options not given come from saved, else from their defaults."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py", usage="%(prog)s [options]", description="Train an f-GAN."
    )
    add = parser.add_argument
    add("--n_epochs", type=in_range(int, 1),
        help=f"passes over the data ({EPOCHS}, or enough for {MIN_STEPS:,} steps)")
    add("--batch_size", type=in_range(int, 2), default=64, help="images per step (%(default)s)")
    add("--lr_g", type=in_range(float, 0), help="learning rate of G (0.001; neyman: 0.0002)")
    add("--lr_d", type=in_range(float, 0), help="learning rate of D (0.002; neyman: 0.0004)")
    add("--b1", type=in_range(float, 0, 1), default=0.5, help="Adam's beta_1 (%(default)s)")
    add("--b2", type=in_range(float, 0, 1), default=0.999, help="Adam's beta_2 (%(default)s)")
    add("--latent_dim", type=in_range(int, 1), default=100, help="dimension of z (%(default)s)")
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
    add("--divergence", choices=[*DIVERGENCES, "js_weighted", "alpha"], default="kl",
        help="what D estimates; G minimises it if --loss is minimax (%(default)s)")
    add("--pi", type=in_range(float, 1e-6, 1), default=0.3,
        help="js_weighted: weight of the data, between 0 and 1 (%(default)s)")
    add("--alpha", type=in_range(float, -100, 100), default=1.5,
        help="alpha: order, not 0 and not within 0.1 of 1, where it tends to kl (%(default)s)")
    add("--loss", choices=["non_saturating", "minimax"], default="non_saturating",
        help="G ascends E[g_f(s)], which minimises another divergence (for kl: reverse KL), or "
        "descends F, which minimises the one named (%(default)s)")
    parser.set_defaults(**(saved or {}))
    args = parser.parse_args(argv)
    if args.alpha == 0 or abs(args.alpha - 1) < 0.1 - 1e-9:
        parser.error(f"--alpha must not be 0 or within 0.1 of 1, as {args.alpha} is")
    if args.lr_g is None:
        args.lr_g = 2e-4 if args.divergence == "neyman" else 1e-3
    if args.lr_d is None:
        args.lr_d = 4e-4 if args.divergence == "neyman" else 2e-3
    return args


class Generator(nn.Module):
    """z (N, latent_dim) -> images (N, C, H, H) in [-1, 1]."""

    def __init__(self, latent_dim, img_shape):
        super().__init__()
        self.latent_dim = latent_dim
        self.config = {"latent_dim": latent_dim, "img_shape": img_shape}
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 1200), nn.BatchNorm1d(1200), nn.ReLU(),
            nn.Linear(1200, 1200), nn.BatchNorm1d(1200), nn.ReLU(),
            nn.Linear(1200, math.prod(img_shape)), nn.Tanh(),
            nn.Unflatten(1, img_shape),
        )

    def forward(self, z):
        return self.layers(z)


class Discriminator(nn.Module):
    """Images (N, C, H, H) -> raw scores s (N, 1), the V(x) of the paper."""

    def __init__(self, img_shape):
        super().__init__()
        self.config = {"img_shape": img_shape}
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(img_shape), 240), nn.ELU(),
            nn.Linear(240, 240), nn.ELU(),
            nn.Linear(240, 1),
        )

    def forward(self, x):
        return self.layers(x).asinh()  # grows like log(2r), so that exp(s) stays finite


def discriminator_loss(s_real, s_fake, args):
    """-F = -(E[g_f(s(x))] - E[f*(g_f(s(G(z))))]) (eq. 7) from raw scores (N, 1)."""
    f = divergence(args)
    return -(f.activation(s_real).mean() - f.conjugate(s_fake).mean())


def generator_loss(s_fake, args):
    """-E[g_f(s(G(z)))] (section 3.2), or -E[f*(g_f(s(G(z))))] for minimax, from scores (N, 1).

    With the best D, minimax descends D_f, the other D_h with h''(u) = f''(u) / u.
    """
    f = divergence(args)
    if args.loss == "minimax":
        return -f.conjugate(s_fake).mean()
    return -f.activation(s_fake).mean()


def train_step(G, D, opt_G, opt_D, x, y, args):
    """Update D, then G, on images x (N, C, H, H). Conditional scripts use the labels y (N,).

    Returns the losses, the mean raw scores, F, an estimate of a lower bound of D_f(p || q), and the
    shares of images on their side of f'(1) by name, as detached scalars on the device.
    """
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    fake = G(z)

    # (1) Update D: ascend F = g_f(s(x)) - f*(g_f(s(G(z)))). detach() keeps the gradient from G.
    s_real = D(x)
    s_fake = D(fake.detach())
    loss_D = discriminator_loss(s_real, s_fake, args)
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()

    # (2) Update G: ascend g_f(s(G(z))) or, for minimax, descend F, with the new D.
    # inputs= skips the gradients of D's weights.
    loss_G = generator_loss(D(fake), args)
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    opt_G.step()

    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean()}
    f = divergence(args)
    values["F"] = -loss_D
    values["TPR"] = (f.activation(s_real) > f.threshold).float().mean()
    values["TNR"] = (f.activation(s_fake) <= f.threshold).float().mean()
    return {name: value.detach() for name, value in values.items()}


def real_images(data, args):
    """Pick 64 images from all over the data, or all of fewer, as save_grid's arguments."""
    n = len(data.images)
    index = torch.linspace(0, n - 1, min(n, 64)).long()
    return {"images": data.images[index] / 127.5 - 1, "n_columns": 8}


@torch.no_grad()
def sample(G, D, args):
    """Draw 64 samples as save_grid's arguments; every call has the same z."""
    z = torch.randn(64, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    images = G(z.to(next(G.parameters()).device))
    return {"images": images, "n_columns": 8}


def build(args, device):
    """Load the data, and make G and D for the shape of its images."""
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed)
    img_shape = tuple(data.images.shape[1:])
    G = Generator(args.latent_dim, img_shape)
    D = Discriminator(img_shape)
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
