"""InfoGAN: a code that Q must recover from G's images comes to mean digit, slant or width.

Chen et al. 2016, arXiv:1606.03657. Q, which shares all of D but the last layers, reads the code c
from an image. With V the game of dcgan.py, that of InfoGAN is (eq. 6)
    min_{G,Q} max_D V(D, G) - lambda L_I(G, Q),
    L_I = E[log Q(c | G(z, c))] + H(c) <= I(c; G(z, c))                                    (eq. 5).
The code c consists of c1, one of 10 categories, and of c2 and c3, both from U(-1, 1). Q(c1|x) is a
softmax, Q(c2|x) and Q(c3|x) are Gaussians whose means Q reads from x. No label is used.

    python infogan.py                                       # MNIST, or drawn digits when offline
    python infogan.py --lambda_cat 1e-3 --lambda_con 1e-3   # the paper's control

The control is a GAN that L_I hardly influences. Q still learns: the steps of Adam in Q's own layers
do not depend on the scale of a gradient, as long as it is well above Adam's eps, as with 1e-3.

With many seeds similar digits, such as 4 and 9, share categories. To choose among runs no label is
needed: the lower the last H(c1|x) in losses.csv, the better the run mostly is (tests/RESULTS.md;
tried on MNIST only). It is the entropy of Q(c1|x) on real images, an addition of ours that nothing
is trained on.

Parent: dcgan.py. `diff dcgan.py infogan.py` shows what the paper adds: a code for G, and Q.

Departures from the paper:
 1. G, all of D but Q's own layers (LeakyReLU of 0.2, not 0.1), z (Gaussian; in the authors' code
    uniform), the averaging and the learning rates' fall to 0 are those of dcgan.py; the rates start
    at the paper's. G ascends log D, whose gradient does not vanish while D wins.
 2. As in the authors' code, Q's standard deviation is fixed at 1, where the text has it learned, so
    that a lambda of 1 serves the continuous codes, too. With a learned one their L_I has no bound,
    and they may come to tell digits apart (tests/RESULTS.md).
 3. In eq. 6 Q minimises together with G. Here, as in the authors' code, Q learns in D's step, and
    the layers that it shares with D ascend L_I, too.
 4. One z serves both updates of a step, which saves a pass through G. On MNIST 11,244 steps with
    batches of 64; in the authors' code 5,000 with batches of 128.
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

SCRIPT = "infogan"
EPOCHS = 12  # of a run for which --n_epochs is not given, unless MIN_STEPS are more
MIN_STEPS = 10_000
N_CATEGORIES = 10
N_CONTINUOUS = 2


def parse_args(argv=None, saved=None):
    """Parse the command line; options not given come from saved, else from their defaults."""
    parser = ArgumentParser(
        prog=f"{SCRIPT}.py", usage="%(prog)s [options]", description="Train an InfoGAN."
    )
    add = parser.add_argument
    add("--n_epochs", type=in_range(int, 1),
        help=f"passes over the data ({EPOCHS}, or enough for {MIN_STEPS:,} steps)")
    add("--batch_size", type=in_range(int, 2), default=64, help="images per step (%(default)s)")
    add("--lr_g", type=in_range(float, 0), default=1e-3, help="learning rate of G (%(default)s)")
    add("--lr_d", type=in_range(float, 0), default=2e-4, help="learning rate of D (%(default)s)")
    add("--b1", type=in_range(float, 0, 1), default=0.5, help="Adam's beta_1 (%(default)s)")
    add("--b2", type=in_range(float, 0, 1), default=0.999, help="Adam's beta_2 (%(default)s)")
    add("--latent_dim", type=in_range(int, 1), default=62, help="dimension of z (%(default)s)")
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
    add("--lambda_cat", type=in_range(float, 0), default=1.0,
        help="weight of L_I of the category (%(default)s)")
    add("--lambda_con", type=in_range(float, 0), default=1.0,
        help="weight of L_I of the continuous codes (%(default)s)")
    parser.set_defaults(**(saved or {}))
    return parser.parse_args(argv)


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


class Generator(nn.Module):
    """z (N, latent_dim), codes c (N, 10 + 2) -> images (N, C, H, H) in [-1, 1]."""

    def __init__(self, latent_dim, img_shape, width):
        super().__init__()
        self.latent_dim = latent_dim
        self.config = {"latent_dim": latent_dim, "img_shape": img_shape, "width": width}
        maps, n_hidden = architecture(img_shape, width)
        n_features = latent_dim + N_CATEGORIES + N_CONTINUOUS
        layers = []
        if n_hidden:
            layers += [nn.Linear(n_features, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU()]
            n_features = n_hidden
        n_in, side = maps[-1]
        layers += [nn.Linear(n_features, n_in * side * side), nn.Unflatten(1, (n_in, side, side))]
        for n_out, side in reversed(maps[:-1]):  # 7 -> 14 -> 28; an odd side needs one row more
            layers += [nn.BatchNorm2d(n_in), nn.ReLU()]
            layers += [nn.ConvTranspose2d(n_in, n_out, 4, 2, padding=1, output_padding=side % 2)]
            n_in = n_out
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z, c):
        return self.layers(torch.cat([z, c], 1))


class Discriminator(nn.Module):
    """Images (N, C, H, H) -> raw scores s (N, 1); Q's logits (N, 10) and means (N, 2)."""

    def __init__(self, img_shape, width):
        super().__init__()
        self.config = {"img_shape": img_shape, "width": width}
        maps, n_hidden = architecture(img_shape, width)
        layers = [nn.Conv2d(img_shape[0], width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        n_in = width
        for n_out, _ in maps[2:]:  # 14 -> 7
            layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1)]
            layers += [nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2)]
            n_in = n_out
        layers += [nn.Flatten()]
        n_features = n_in * maps[-1][1] ** 2
        if n_hidden:
            layers += [nn.Linear(n_features, n_hidden), nn.BatchNorm1d(n_hidden), nn.LeakyReLU(0.2)]
            n_features = n_hidden
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(n_features, 1)
        self.code = nn.Sequential(
            nn.Linear(n_features, 128), nn.BatchNorm1d(128), nn.LeakyReLU(0.1),
            nn.Linear(128, N_CATEGORIES + N_CONTINUOUS),
        )

    def forward(self, x):
        h = self.features(x)
        logits, mean = self.code(h).split([N_CATEGORIES, N_CONTINUOUS], 1)
        return self.score(h), logits, mean


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


def sample_code(n, device):
    """Draw c (n, 10 + 2) from p(c): a one-hot category and values from U(-1, 1)."""
    category = torch.randint(N_CATEGORIES, (n,), device=device)
    values = 2 * torch.rand(n, N_CONTINUOUS, device=device) - 1
    return torch.cat([nn.functional.one_hot(category, N_CATEGORIES), values], 1)


def information(c, logits, mean):
    """L_I = E[log Q(c|x)] + H(c) (eq. 5), in nats, of the category and of the continuous codes.

    Q(c|x) is the softmax of the logits for the category, N(mean, 1) for each continuous code. The
    first is at most log 10 = 2.30, the second log(2 / pi) = -0.45: with a deviation fixed at 1 it
    is below 0 even for a perfect Q, and only its rise tells something.
    """
    category, values = c.split([N_CATEGORIES, N_CONTINUOUS], 1)
    log_q_cat = (category * logits.log_softmax(1)).sum(1)
    log_q_con = -((values - mean) ** 2 + math.log(2 * math.pi)).sum(1) / 2
    L_cat = log_q_cat.mean() + math.log(N_CATEGORIES)
    L_con = log_q_con.mean() + N_CONTINUOUS * math.log(2)
    return L_cat, L_con


def entropy(logits):
    """Entropy of Q(c1|x) in nats, the mean over images: 0 if Q is sure, log 10 if it guesses."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def train_step(G, D, opt_G, opt_D, x, y, args):
    """Update D and Q, then G, on images x (N, C, H, H); the labels y (N,) are not used.

    Returns by name, as detached scalars on the device: the losses without L_I, the mean raw scores,
    L_I of the category and of the continuous codes in D's step, and H(c1|x), the entropy of Q(c1|x)
    on x.
    """
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    c = sample_code(len(x), x.device)
    fake = G(z, c)

    # (1) Update D and Q: ascend V + lambda L_I. detach() keeps the gradient from G.
    s_real, logits_real, _ = D(x)
    s_fake, logits, mean = D(fake.detach())
    loss_D = discriminator_loss(s_real, s_fake, args)
    L_cat, L_con = information(c, logits, mean)
    opt_D.zero_grad()
    objective = loss_D - args.lambda_cat * L_cat - args.lambda_con * L_con
    objective.backward()
    opt_D.step()

    # (2) Update G: ascend log D(G(z, c)) + lambda L_I with the new D and Q.
    # inputs= skips the gradients of their weights.
    s, logits, mean = D(fake)
    loss_G = generator_loss(s, args)
    L_cat_G, L_con_G = information(c, logits, mean)
    opt_G.zero_grad()
    objective = loss_G - args.lambda_cat * L_cat_G - args.lambda_con * L_con_G
    objective.backward(inputs=list(G.parameters()))
    opt_G.step()

    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean()}
    values |= {"L_I cat": L_cat, "L_I con": L_con, "H(c1|x)": entropy(logits_real)}
    return {name: value.detach() for name, value in values.items()}


def real_images(data, args):
    """Pick 64 images from all over the data, or all of fewer, as save_grid's arguments."""
    n = len(data.images)
    index = torch.linspace(0, n - 1, min(n, 64)).long()
    return {"images": data.images[index] / 127.5 - 1, "n_columns": 8}


@torch.no_grad()
def sample(G, D, args):
    """Draw what the codes do, as save_grid's arguments; every call has the same z.

    The first five rows vary the category, each with its own z. In the others z is fixed and c2 or
    c3 goes from -2 to 2, for three categories.
    """
    device = next(G.parameters()).device
    z = torch.randn(5, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    one_hot = torch.eye(N_CATEGORIES)
    sweep = torch.linspace(-2, 2, N_CATEGORIES)
    noise, codes, rows = [], [], []
    for i in range(5):
        noise.append(z[i].expand(N_CATEGORIES, -1))
        codes.append(torch.cat([one_hot, torch.zeros(N_CATEGORIES, N_CONTINUOUS)], 1))
        rows.append(f"c1, z{i}")
    for k in range(N_CONTINUOUS):
        for category in range(min(3, N_CATEGORIES)):
            values = torch.zeros(N_CATEGORIES, N_CONTINUOUS)
            values[:, k] = sweep
            noise.append(z[0].expand(N_CATEGORIES, -1))
            codes.append(torch.cat([one_hot[category].expand(N_CATEGORIES, -1), values], 1))
            rows.append(f"c{k + 2}, c1 = {category}")
    return {
        "images": G(torch.cat(noise).to(device), torch.cat(codes).to(device)),
        "n_columns": N_CATEGORIES,
        "title": "rows c1: the category; rows c2 and c3: that code from -2 to 2",
        "rows": rows,
        "columns": [f"{i}\n{value:+.1f}" for i, value in enumerate(sweep.tolist())],
    }


def build(args, device):
    """Load the data, and make G and D for the shape of its images."""
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed)
    img_shape = tuple(data.images.shape[1:])
    G = Generator(args.latent_dim, img_shape, args.width)
    D = Discriminator(img_shape, args.width)
    return data, G.apply(weights_init).to(device), D.apply(weights_init).to(device)


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
