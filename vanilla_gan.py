"""GAN: a generator learns to make images that a discriminator cannot tell from real ones.

Goodfellow et al. 2014, arXiv:1406.2661. With s the raw score of D, D(x) = sigmoid(s(x)), they play
    min_G max_D V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]                            (eq. 1).
Let p be the density of the data and q that of G's images. For a fixed G the best D is p / (p + q)
(Proposition 1), and then V = -log 4 + 2 JSD(p || q) (Theorem 1): in the game as written G minimises
the Jensen-Shannon divergence. But while D wins, log(1 - D(G(z))) is flat, so in practice G ascends
E_z[log D(G(z))], the non-saturating loss (section 3). With the best D that descends another
divergence, 2 KL((p + q) / 2 || p) (see fgan.py), which is also 0 for p = q alone.

    python vanilla_gan.py                   # MNIST, or drawn digits when offline
    python vanilla_gan.py --loss minimax    # the game as written

This is the root of the family: `diff vanilla_gan.py dcgan.py` and `diff vanilla_gan.py fgan.py`
show what the next papers change.

Departures from the paper:
 1. G has three hidden layers with batch normalisation, where the authors' code has two without. D
    has three with LeakyReLU and light dropout, where their code has two of maxout with heavy
    dropout. With plain ReLU in both, G collapses to a single digit. PyTorch's initialisation.
 2. Images are in [-1, 1] and G ends in tanh, not sigmoid.
 3. Adam instead of stochastic gradient descent with momentum.
 4. The learning rates fall linearly to 0 over the second half of the run, and a running average of
    G draws the samples.
 5. z is Gaussian, not uniform. One z serves both updates of a step, which saves a pass through G.
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

from common import IS_PARALLEL, RANK, UserError, batches, get_device, load_data, save_grid

SCRIPT = "vanilla_gan"
EPOCHS = 11  # of a run for which --n_epochs is not given, unless MIN_STEPS are more
MIN_STEPS = 10_000


def parse_args(argv=None, saved=None):
    """Parse the command line; options not given come from saved, else from their defaults."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py", usage="%(prog)s [options]", description="Train a GAN of perceptrons."
    )
    add = parser.add_argument
    add("--n_epochs", type=in_range(int, 1),
        help=f"passes over the data ({EPOCHS}, or enough for {MIN_STEPS:,} steps)")
    add("--batch_size", type=in_range(int, 2), default=64, help="images per step (%(default)s)")
    add("--lr_g", type=in_range(float, 0), default=1e-3, help="learning rate of G (%(default)s)")
    add("--lr_d", type=in_range(float, 0), default=4e-4, help="learning rate of D (%(default)s)")
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
    add("--loss", choices=["non_saturating", "minimax"], default="non_saturating",
        help="loss of the generator (%(default)s)")
    parser.set_defaults(**(saved or {}))
    return parser.parse_args(argv)


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
        self.config = {"img_shape": img_shape}
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(img_shape), 1024), nn.LeakyReLU(0.2), nn.Dropout(0.1),
            nn.Linear(1024, 512), nn.LeakyReLU(0.2), nn.Dropout(0.1),
            nn.Linear(512, 256), nn.LeakyReLU(0.2), nn.Dropout(0.1),
            nn.Linear(256, 1),
        )

    def forward(self, x):
        return self.layers(x)


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

    Returns the losses, the mean raw scores and JSD>= = (V + log 4) / 2, in nats, by name, as
    detached scalars on the device. With the best D the last equals JSD(p || q); with any other it
    is smaller (Theorem 1). It is estimated from training images, which D may know by heart.
    """
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    fake = G(z)

    # (1) Update D: ascend log D(x) + log(1 - D(G(z))). detach() keeps the gradient from G.
    s_real = D(x)
    s_fake = D(fake.detach())
    loss_D = discriminator_loss(s_real, s_fake, args)
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()

    # (2) Update G: ascend log D(G(z)) or, for minimax, descend log(1 - D(G(z))), with the new D.
    # inputs= skips the gradients of D's weights.
    loss_G = generator_loss(D(fake), args)
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    opt_G.step()

    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean()}
    values["JSD>="] = (math.log(4) - loss_D) / 2  # V = -loss_D
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
