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
    G draws the samples: both make the samples better.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import logsigmoid, softplus

from common import UserError, batches, get_device, load_data, save_grid

SCRIPT = Path(__file__).stem


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
    """Parse the command line. An option not given has its value from saved or else its default."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py",
        usage="%(prog)s [options]",
        description="Train an f-GAN.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--n_epochs", type=int, default=20, help="passes over the data")
    add("--batch_size", type=int, default=64, help="images per step")
    add("--lr_g", type=float,
        help="Adam: learning rate of the generator (None: 1e-3, for neyman 2e-4)")
    add("--lr_d", type=float,
        help="Adam: learning rate of the discriminator (None: 2e-3, for neyman 4e-4)")
    add("--b1", type=float, default=0.5, help="Adam: decay of the running mean of the gradients")
    add("--b2", type=float, default=0.999, help="Adam: decay of the running mean of their squares")
    add("--latent_dim", type=int, default=100, help="dimension of z")
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
    add("--divergence", choices=[*DIVERGENCES, "js_weighted", "alpha"], default="kl",
        help="what D estimates; G minimises it if --loss is minimax")
    add("--pi", type=float, default=0.3, help="js_weighted: weight of the data, between 0 and 1")
    add("--alpha", type=float, default=1.5,
        help="alpha: order, not 0 and not within 0.1 of 1, where it tends to kl")
    add("--loss", choices=["non_saturating", "minimax"], default="non_saturating",
        help="G ascends E[g_f(s)], which minimises another divergence (for kl: reverse KL), or "
        "descends F, which minimises the one named")
    args = parser.parse_args(argv, Namespace(**(saved or {})))
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


@torch.no_grad()
def update_average(G_avg, G, share):
    """Move the running average of G towards G by this share of the way."""
    for average, current in zip(G_avg.state_dict().values(), G.state_dict().values()):
        if average.is_floating_point():  # not batch normalisation's count of batches
            average.lerp_(current, share)


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

    def check(n_images, classes):  # load_data calls it before it decodes the images of a folder
        if args.batch_size > n_images:
            raise UserError(f"--batch_size {args.batch_size} is more than the {n_images} images.")

    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed, check=check)
    img_shape = tuple(data.images.shape[1:])
    G = Generator(args.latent_dim, img_shape)
    D = Discriminator(img_shape)
    return data, G.to(device), D.to(device)


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
    if not 0 < args.pi < 1:
        raise UserError(f"--pi must be between 0 and 1, not {args.pi}.")
    if args.alpha == 0 or abs(args.alpha - 1) < 0.1 - 1e-9:
        raise UserError(f"--alpha must not be 0 or within 0.1 of 1, as {args.alpha} is.")
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
