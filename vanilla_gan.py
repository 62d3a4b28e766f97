"""GAN: a generator learns to make images that a discriminator cannot tell from real ones.

Goodfellow et al. 2014, arXiv:1406.2661. With s the raw score of D, D(x) = sigmoid(s(x)), they play
    min_G max_D V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]                            (eq. 1).
Let p be the density of the data and q that of G's images. For a fixed G the best D is p / (p + q)
(Proposition 1), and then V = -log 4 + 2 JSD(p || q) (Theorem 1): G minimises the Jensen-Shannon
divergence. Where D wins, log(1 - D(G(z))) is flat, so that in practice G ascends E_z[log D(G(z))],
the non-saturating loss (section 3).

    python vanilla_gan.py                   # MNIST, or drawn digits when offline
    python vanilla_gan.py --loss minimax    # the game as written

This is the root of the family: `diff vanilla_gan.py dcgan.py` and `diff vanilla_gan.py fgan.py`
show what the next papers change.

Departures from the paper:
 1. G has batch normalisation, and D LeakyReLU and a little dropout, not maxout and much of it: with
    plain ReLU in both networks G collapses to a single digit.
 2. Images are in [-1, 1] and G ends in tanh, not sigmoid.
 3. Adam instead of stochastic gradient descent with momentum.
 4. The learning rates fall linearly to 0 over the second half of the run, and a running average of
    G draws the samples: both make the samples better.
 5. z is Gaussian, not uniform. One z serves both updates of a step, which saves a pass through G.
"""
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
from torch.optim.swa_utils import AveragedModel

from common import batches, get_device, load_data, save_grid

SCRIPT = Path(__file__).stem


def parse_args(argv=None, saved=None):
    """Parse the command line; what it leaves out has its saved value or else its default."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py",
        usage="%(prog)s [options]",
        description="Train a GAN of two perceptrons.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--n_epochs", type=int, default=10, help="passes over the data")
    add("--batch_size", type=int, default=64, help="images per step")
    add("--lr_g", type=float, default=1e-3, help="Adam: learning rate of the generator")
    add("--lr_d", type=float, default=4e-4, help="Adam: learning rate of the discriminator")
    add("--b1", type=float, default=0.5, help="Adam: decay of the running mean of the gradients")
    add("--b2", type=float, default=0.999, help="Adam: decay of the running mean of their squares")
    add("--latent_dim", type=int, default=100, help="dimension of z")
    add("--img_size", type=int, help="side of the images (None: that of the dataset)")
    add("--dataset", default="auto",
        help="auto, mnist, fashion, cifar10, glyphs or a folder of images")
    add("--data_dir", default="data", help="directory of the downloaded datasets")
    add("--sample_interval", type=int, default=500,
        help="steps from one grid to the next, and at least from one checkpoint to the next")
    add("--out_dir",
        help="folder of the run; -2, -3, ... is appended if it already holds one "
        "(None: runs/SCRIPT or, with --resume, the folder of the checkpoint)")
    add("--resume", metavar="CHECKPOINT",
        help="continue this run with its options, except those given here")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes on the same CPU")
    add("--cuda", action="store_true", help="train on a CUDA device")
    add("--bf16", action="store_true",
        help="compute in bfloat16: faster on a GPU, or a CPU with bfloat16 instructions")
    add("--loss", choices=["non_saturating", "minimax"], default="non_saturating",
        help="loss of the generator")
    return parser.parse_args(argv, Namespace(**saved or {}))


class Generator(nn.Module):
    """z (N, latent_dim) -> images (N, C, H, H) in [-1, 1]."""

    def __init__(self, latent_dim, img_shape):
        super().__init__()
        self.latent_dim = latent_dim
        self.config = {"latent_dim": latent_dim, "img_shape": img_shape}
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 512), nn.BatchNorm1d(512), nn.ReLU(),
            nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(),
            nn.Linear(1024, math.prod(img_shape)), nn.Tanh(),
            nn.Unflatten(1, img_shape),
        )

    def forward(self, z):
        return self.layers(z)


class Discriminator(nn.Module):
    """Images (N, C, H, H) -> raw scores s (N, 1); sigmoid(s) is the probability of a real image."""

    def __init__(self, img_shape):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(img_shape), 1024), nn.LeakyReLU(0.2), nn.Dropout(0.1),
            nn.Linear(1024, 512), nn.LeakyReLU(0.2), nn.Dropout(0.1),
            nn.Linear(512, 256), nn.LeakyReLU(0.2), nn.Dropout(0.1),
            nn.Linear(256, 1),
        )

    def forward(self, x):
        return self.layers(x).float()  # float32, even with --bf16: the losses need it


def discriminator_loss(s_real, s_fake, args):
    """-V(D, G) (eq. 1) from raw scores (N, 1).

    With D = sigmoid(s), -log D = softplus(-s) and -log(1 - D) = softplus(s): no logarithm of 0.
    """
    return nn.functional.softplus(-s_real).mean() + nn.functional.softplus(s_fake).mean()


def generator_loss(s_fake, args):
    """-E[log D(G(z))] or, for minimax, E[log(1 - D(G(z)))], from raw scores (N, 1) of images."""
    if args.loss == "minimax":
        return -nn.functional.softplus(s_fake).mean()
    return nn.functional.softplus(-s_fake).mean()


def train_step(G, D, opt_G, opt_D, x, y, args):
    """Update D, then G, on images x (N, C, H, H). Conditional scripts use the labels y (N,).

    Returns by name, as detached scalars on the device, the losses, the mean raw scores and, in
    nats, V(D, G) and (V + log 4) / 2: JSD(p || q) with the best D, less with another (Theorem 1).
    """
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    fake = G(z)

    # (1) Update D: ascend log D(x) + log(1 - D(G(z))). detach() leaves G alone.
    s_real = D(x)
    s_fake = D(fake.detach())
    loss_D = discriminator_loss(s_real, s_fake, args)
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()

    # (2) Update G: ascend log D(G(z)) with the new D. inputs= skips the gradients of D's weights.
    loss_G = generator_loss(D(fake), args)
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    opt_G.step()

    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean()}
    values |= {"V": -loss_D, "JSD>=": (math.log(4) - loss_D) / 2}
    return {name: value.detach() for name, value in values.items()}


def running_average(average, weight, n):
    """Average a weight of G over about the last tenth of n steps, at most over the last 500."""
    share = (10 / (n + 10)).clamp(min=1 / 500)  # a tensor, as n is: int(n) would wait for the GPU
    return average + (weight - average) * share


def real_images(data, args):
    """Pick 64 images from all over the data, as save_grid's arguments."""
    index = torch.linspace(0, len(data.images) - 1, 64).long()
    return {"images": data.images[index] / 127.5 - 1, "n_columns": 8}


@torch.no_grad()
def sample(G, D, args):
    """Draw 64 samples as save_grid's arguments; every call has the same z."""
    z = torch.randn(64, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    images = G(z.to(next(G.parameters()).device))
    return {"images": images, "n_columns": 8}


def build(args, device):
    """Load the data, and make G and D for the shape of its images."""

    def check(n_images, classes):
        if args.batch_size > n_images:
            raise ValueError(f"--batch_size {args.batch_size} is more than the {n_images} images.")

    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed, check=check)
    img_shape = tuple(data.images.shape[1:])
    G = Generator(args.latent_dim, img_shape).to(device)
    D = Discriminator(img_shape).to(device)
    return data, G, D


def check_args(args):
    """Raise ValueError for a value that no run can have."""
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name} must be a finite number, not {value}.")
    at_least = {
        "n_epochs": 1, "batch_size": 2, "lr_g": 0, "lr_d": 0, "b1": 0, "b2": 0, "latent_dim": 1,
        "width": 1, "img_size": 8, "sample_interval": 1, "seed": 0,
    }
    for name, minimum in at_least.items():
        value = getattr(args, name, None)
        if value is not None and value < minimum:
            raise ValueError(f"--{name} must be at least {minimum}, not {value}.")
    for name, limit in {"b1": 1, "b2": 1, "seed": 2**32}.items():
        if getattr(args, name) >= limit:
            raise ValueError(f"--{name} must be less than {limit}, not {getattr(args, name)}.")


def check_finite(G, D):
    """Raise ValueError if a weight is no longer a finite number."""
    if not all(weight.isfinite().all() for weight in (*G.parameters(), *D.parameters())):
        raise ValueError("the training has diverged; lower --lr_g or --lr_d")


def new_folder(args):
    """Claim the folder of the run: that of the checkpoint that it continues, or a new one."""
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
    """Write what --resume and load_generator need; the file is whole at any moment."""
    checkpoint = {
        "script": SCRIPT,
        "args": vars(args) | {"dataset": data.name},  # not auto, which may find other data later
        "classes": data.classes,
        "config_G": state["G"].config,
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if args.cuda else [],
        **progress,
    }
    for name in ("folder", "out_dir", "resume"):  # the place of a run is not part of it
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
    """Read a checkpoint of this script onto the CPU; raise ValueError if the file is not one."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        script = checkpoint["script"]
    except Exception as error:  # torch.load answers a damaged or foreign file in a dozen ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a checkpoint of {SCRIPT}.py: {reason}") from error
    if script != SCRIPT:
        raise ValueError(f"{path} is not a checkpoint of {SCRIPT}.py but of {script}.py.")
    return checkpoint


def restore(saved, state, data, args):
    """Put networks, optimizers and random state back; raise ValueError if they do not fit."""
    if saved["classes"] != data.classes:
        raise ValueError(f"{args.resume} was trained on other classes than {args.dataset} has.")
    for name, value in state["G"].config.items():
        if saved["config_G"][name] != value:
            raise ValueError(f"{args.resume} has {name} {saved['config_G'][name]}, not {value}.")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    for name in ("opt_G", "opt_D"):
        state[name].param_groups[0]["betas"] = (args.b1, args.b2)  # perhaps new ones
    torch.set_rng_state(saved["rng"])
    torch.cuda.set_rng_state_all(saved["rng_cuda"][: torch.cuda.device_count()])


def load_generator(path):
    """Load the trained generator of a checkpoint: the running average, in eval mode, on the CPU."""
    checkpoint = load_checkpoint(path)
    G = AveragedModel(Generator(**checkpoint["config_G"]))
    G.load_state_dict(checkpoint["G_avg"])
    return G.module.eval()


def save_losses(folder, names, rows):
    """Write losses.csv, and draw its columns against the step as losses.png."""
    from matplotlib.figure import Figure  # here: common.py makes the import safe in a notebook

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


def train(args, saved=None):
    """Train to args.n_epochs, from the start or from a checkpoint, and leave the run's files."""
    device = get_device(args.cuda)
    torch.manual_seed(args.seed)
    data, G, D = build(args, device)
    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.b1, args.b2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
    G_avg = AveragedModel(G, avg_fn=running_average, use_buffers=True).eval()  # draws the samples
    state = {"G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "G_avg": G_avg}
    # rows: the lines of losses.csv; total: the sum of train_step's values since the last of them
    progress = {"epoch": 0, "step": 0, "rows": [], "total": torch.zeros(())}
    if saved:
        restore(saved, state, data, args)
        progress = {name: saved[name] for name in progress}
    args.folder = new_folder(args)
    save_grid(args.folder / "real.png", **real_images(data, args))
    if not saved or args.folder != Path(args.resume).parent:  # a new folder
        save_checkpoint(args.folder / "checkpoint.pt", state, data, args, progress)

    rows = progress["rows"]
    total = progress["total"].to(device)
    step = first_step = saved_step = progress["step"]
    n_steps = step + (args.n_epochs - progress["epoch"]) * (len(data.images) // args.batch_size)
    start = time.perf_counter()
    for epoch in range(progress["epoch"] + 1, args.n_epochs + 1):
        for x, y in batches(data, args.batch_size):
            decay = min(1, 2 * (1 - step / n_steps))  # 1 for half of the run, then linearly to 0
            opt_G.param_groups[0]["lr"] = decay * args.lr_g
            opt_D.param_groups[0]["lr"] = decay * args.lr_d
            # no cache: it would keep the bfloat16 copy of D's weights from before its update
            with torch.autocast(device.type, torch.bfloat16, args.bf16, cache_enabled=False):
                values = train_step(G, D, opt_G, opt_D, x, y, args)
            G_avg.update_parameters(G)
            total = total + torch.stack(list(values.values()))
            step += 1
            speed = (step - first_step) / (time.perf_counter() - start)
            line = f"epoch {epoch:2}  step {step:6}/{n_steps}  {speed:5.1f} steps/s"
            line += f"  {(n_steps - step) / speed:5.0f} s left"
            if step % args.sample_interval and step < n_steps:
                show_live(line)
                continue
            n_summed = step - (rows[-1][1] if rows else 0)
            means = (total / n_summed).tolist()  # here, and only here, a GPU is waited for
            total = torch.zeros_like(total)
            numbers = [f"{name} {mean:7.3f}" for name, mean in zip(values, means)]
            print(line, *numbers, sep="  ", flush=True)
            check_finite(G, D)
            rows.append([epoch, step, *means])
            save_losses(args.folder, list(values), rows)
            save_grid(args.folder / f"{step:06}.png", **sample(G_avg.module, D, args))
        if step - saved_step >= args.sample_interval or step == n_steps:
            check_finite(G, D)
            progress = {"epoch": epoch, "step": step, "rows": rows, "total": total}
            save_checkpoint(args.folder / "checkpoint.pt", state, data, args, progress)
            saved_step = step
    save_grid(args.folder / "samples.png", **sample(G_avg.module, D, args))
    print(args.folder / "samples.png")


def is_out_of_memory(error):
    """Tell whether memory ran out: CUDA has an exception for it, the CPU's allocator only words."""
    words = ("can't allocate memory", "not enough memory")
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(word in str(error) for word in words)


def stop(args, reason, status):
    """Exit with a sentence on stderr: the reason and the command to continue, if there is one."""
    message = f"{SCRIPT}.py: {reason}"
    folder = getattr(args, "folder", None)  # train sets it when data and networks are there
    if folder and (folder / "checkpoint.pt").exists():
        command = ["python", os.path.relpath(__file__), "--resume", str(folder / "checkpoint.pt")]
        message += f"; to continue: {shlex.join(command)}"
    show_live("")
    print(message, file=sys.stderr)
    sys.exit(status)


def main(argv=None):
    """Run the command line: a user's mistake gets a sentence, a bug keeps its traceback."""
    args = parse_args(argv)
    try:
        saved = load_checkpoint(args.resume) if args.resume else None
        if saved:
            args = parse_args(argv, saved["args"])
        check_args(args)
        train(args, saved)
    except KeyboardInterrupt:
        stop(args, "stopped", 130)
    except (ValueError, OSError) as error:
        stop(args, error, 2)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        stop(args, "out of memory; lower --batch_size, --img_size or --width", 2)


if __name__ == "__main__":
    main()
