"""LSGAN: a least-squares loss, whose gradient grows with the distance of a score from its aim.

Mao et al. 2017, arXiv:1611.04076. D(x) is the raw score. D wants it to be a for generated images
and b for real ones, G wants it to be c for its own (eq. 2):
    D descends 1/2 E_x[(D(x) - b)^2] + 1/2 E_z[(D(G(z)) - a)^2],
    G descends 1/2 E_z[(D(G(z)) - c)^2].
The cross-entropy of the parent is almost flat for a sample far on the right side; a square is flat
at a single point. With p the density of the data and q that of G's images, the best D for a fixed
G is D* = (b p + a q) / (p + q) (eq. 5). Let 2 C = E_x[(D*(x) - c)^2] + E_z[(D*(G(z)) - c)^2], twice
G's objective with a term in the data added, which has no gradient in G's step. For every a, b and c
    2 C = (a + b - 2c)^2 / 2 + (b - a)^2 / 4 * Integral (p - q)^2 / (p + q).
The integral is the Pearson divergence chi2(p + q || 2q), which is 0 only for p = q. The paper
proves the case b - c = 1, b - a = 2, where 2 C is the divergence and nothing else.

C is the value with the best D. It is not what G's step descends, in which D is fixed: there c = b
pushes every image to a higher score, while c = (a + b) / 2 pushes those above c to a lower one. The
default (0, 1, 1) is what the paper trains with; it finds the two codings alike.

    python lsgan.py                       # MNIST, or drawn digits when offline
    python lsgan.py --a -1 --b 1 --c 0    # the Pearson coding

Parent: dcgan.py. `diff dcgan.py lsgan.py` shows what the paper changes: the losses.

Departures from the paper:
 1. The networks, z, the learning rates and the averaging are those of dcgan.py: a comparison
    shows what the losses do. (The paper: deeper networks, a z of 1024 and rates of 1e-3.)
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

from common import UserError, batches, get_device, load_data, save_grid

SCRIPT = Path(__file__).stem


def parse_args(argv=None, saved=None):
    """Parse the command line. An option not given has its value from saved or else its default."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py",
        usage="%(prog)s [options]",
        description="Train a least-squares GAN.",
        formatter_class=ArgumentDefaultsHelpFormatter,
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
    add("--a", type=float, default=0.0, help="score that D wants for generated images")
    add("--b", type=float, default=1.0, help="score that D wants for real images")
    add("--c", type=float, default=1.0, help="score that G wants for its images")
    return parser.parse_args(argv, Namespace(**(saved or {})))


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


class Generator(nn.Module):
    """z (N, latent_dim) -> images (N, C, H, H) in [-1, 1]."""

    def __init__(self, latent_dim, img_shape, width):
        super().__init__()
        self.latent_dim = latent_dim
        self.config = {"latent_dim": latent_dim, "img_shape": img_shape, "width": width}
        maps, hidden = architecture(img_shape, width)
        n_features = latent_dim
        layers = []
        if hidden:
            layers += [nn.Linear(n_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
            n_features = hidden
        channels, side = maps[-1]
        layers += [
            nn.Linear(n_features, channels * side * side),
            nn.Unflatten(1, (channels, side, side)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        for (n_in, _), (n_out, side_out) in itertools.pairwise(reversed(maps[1:])):  # 7 -> 14
            layers += [
                nn.ConvTranspose2d(n_in, n_out, kernel_size(side_out), stride=2, padding=1),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            ]
        kernel = kernel_size(img_shape[-1])
        layers += [
            nn.ConvTranspose2d(width, img_shape[0], kernel, stride=2, padding=1),  # 14 -> 28
            nn.Tanh(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z):
        return self.layers(z)


class Discriminator(nn.Module):
    """Images (N, C, H, H) -> raw scores s (N, 1), the D(x) of the paper."""

    def __init__(self, img_shape, width):
        super().__init__()
        maps, hidden = architecture(img_shape, width)
        kernel = kernel_size(img_shape[-1])
        layers = [
            nn.Conv2d(img_shape[0], width, kernel, stride=2, padding=1),  # 28 -> 14
            nn.LeakyReLU(0.2),
        ]
        for (n_in, side_in), (n_out, _) in itertools.pairwise(maps[1:]):  # 14 -> 7
            layers += [
                nn.Conv2d(n_in, n_out, kernel_size(side_in), stride=2, padding=1),
                nn.BatchNorm2d(n_out),
                nn.LeakyReLU(0.2),
            ]
        layers += [nn.Flatten()]
        channels, side = maps[-1]
        n_features = channels * side * side
        if hidden:
            layers += [nn.Linear(n_features, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2)]
            n_features = hidden
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(n_features, 1)

    def forward(self, x):
        h = self.features(x)
        # float32, even with --bf16: the losses need it
        return self.score(h).float()


def weights_init(module):
    """Draw weights from N(0, 0.02) (DCGAN paper, section 4), gains from N(1, 0.02) (its code)."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def discriminator_loss(s_real, s_fake, args):
    """1/2 E[(D(x) - b)^2] + 1/2 E[(D(G(z)) - a)^2] from raw scores (N, 1) (eq. 2)."""
    return ((s_real - args.b) ** 2).mean() / 2 + ((s_fake - args.a) ** 2).mean() / 2


def generator_loss(s_fake, args):
    """1/2 E[(D(G(z)) - c)^2] from the raw scores (N, 1) of generated images (eq. 2)."""
    return ((s_fake - args.c) ** 2).mean() / 2


def train_step(G, D, opt_G, opt_D, x, y, args):
    """Update D, then G, on images x (N, C, H, H). Conditional scripts use the labels y (N,).

    Returns the losses and the mean raw scores by name, as detached scalars on the device.
    """
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    fake = G(z)

    # (1) Update D: descend (D(x) - b)^2 + (D(G(z)) - a)^2. detach() keeps the gradient from G.
    s_real = D(x)
    s_fake = D(fake.detach())
    loss_D = discriminator_loss(s_real, s_fake, args)
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()

    # (2) Update G: descend (D(G(z)) - c)^2 with the new D.
    # inputs= skips the gradients of D's weights.
    loss_G = generator_loss(D(fake), args)
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    opt_G.step()

    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean()}
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
    """Draw 64 samples and four walks through z as save_grid's arguments; every call has the same z.

    Each walk is a straight line from a row's first z to its last. If G has not merely memorised
    images, every picture on the way looks real (DCGAN paper, section 6.1).
    """
    z = torch.randn(64, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    starts, ends = z[0:32:8], z[7:32:8]
    walks = [torch.lerp(starts, ends, weight) for weight in torch.linspace(0, 1, 8).tolist()]
    walks = torch.stack(walks, 1).flatten(0, 1)  # (4, 8, latent_dim) -> (32, latent_dim)
    images = G(torch.cat([z, walks]).to(next(G.parameters()).device))
    rows = [f"z{i} ... z{i + 7}" for i in range(0, 64, 8)]
    rows += [f"walk z{i} to z{i + 7}" for i in range(0, 32, 8)]
    return {"images": images, "n_columns": 8, "rows": rows}


def build(args, device):
    """Load the data, and make G and D for the shape of its images."""

    def check(n_images, classes):  # load_data calls it before it decodes the images of a folder
        if args.batch_size > n_images:
            raise UserError(f"--batch_size {args.batch_size} is more than the {n_images} images.")

    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed, check=check)
    img_shape = tuple(data.images.shape[1:])
    G = Generator(args.latent_dim, img_shape, args.width)
    D = Discriminator(img_shape, args.width)
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
