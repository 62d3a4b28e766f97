"""f-GAN: D measures an f-divergence, any row of a table, between images and samples, and G makes it small.

Nowozin, Cseke and Tomioka 2016, arXiv:1606.00709. Let p be the density of the data and q that of G's images, f convex
and f*(t) = sup_u (ut - f(u)) its conjugate. Then, for every T with values in the domain of f* (eq. 4),
    D_f(p || q) = E_q[f(p / q)] >= F = E_x[T(x)] - E_z[f*(T(G(z)))], equal at T = f'(p / q) (eq. 5).
T = g_f(s), where s is the raw score of D, the paper's V, and g_f maps it into the domain of f* (eq. 7). D ascends F.
G descends F (minimax) or, in practice, ascends E_z[g_f(s(G(z)))] (section 3.2). T > f'(1) says that p > q: the run
prints the share of real images above that threshold (TPR) and of generated ones that are not (TNR).

    python fgan.py --divergence pearson    # MNIST, or drawn digits when offline; diff vanilla_gan.py fgan.py

What to expect: squared_hellinger and jeffrey, which fail in the paper's table, learn here. total_variation collapses:
once D has won, its tanh is flat and G gets no gradient. neyman divides by p, so that the least real images decide: it
learns at low rates only, its default. Where p and q do not overlap, kl, reverse_kl, pearson, neyman, jeffrey and alpha
outside (0, 1) are infinite, so that D raises F without end. minimax pushes all scores alike for reverse_kl, but turns
G round for pearson where s < -2 and halts it for alpha > 1 where s < 1 / (1 - alpha).

Measured on MNIST (README): 16 s an epoch on two cores, torch 2.14; Frechet distance 4.7 after 20 epochs, torch 2.15.
Departures from the paper:
 1. s is asinh of D's last layer r: one to one, so that D still reaches every T, but exp(s) is at most 2|r| + 1, and no
    term of F outgrows r (but for alpha in (0.5, 1)). With s = r, one image at r = 90 makes kl infinite and D NaN.
 2. D and G are updated in turn, not at once, so that one z serves both. Batches of 64, not 4096, give more steps in the
    time. Learning rates are above 2e-4, D's above G's: a D that falls behind lets G collapse. PyTorch's initialisation;
    a Gaussian z, tanh, falling rates and an average of G, as in vanilla_gan.py.
"""
import io
import math
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections import namedtuple
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common import batches, get_device, load_data, save_grid

SCRIPT = Path(__file__).stem


# a row of the table: functions of a tensor, elementwise, and the threshold f'(1) of T
Divergence = namedtuple("Divergence", "f conjugate activation composed threshold")
DIVERGENCES = ("total_variation", "kl", "reverse_kl", "pearson", "neyman", "squared_hellinger", "jeffrey",
               "jensen_shannon", "js_weighted", "gan", "alpha")


def jeffrey_conjugate(t):
    """sup_u ut - (u - 1) log u: its u = exp(-x) has x + exp(x) = 1 - t, solved by Newton's method."""
    with torch.no_grad():
        x = torch.where(t < 0, (1 - t).clamp(min=1).log(), 1 - t)
        for _ in range(4):
            x -= (x + x.exp() - 1 + t) / (1 + x.exp())
    x = x - (x + x.exp() - 1 + t) / (1 + x.exp())  # a last step, which carries the gradient
    return x.exp() + (-x).exp() + t - 2


def divergence(args):
    """The row that --divergence names, of the paper's Tables 1, 2, 5 and 6: f(u), conjugate f*(t), activation g_f(v),
    composed f*(g_f(v)), in a form that overflows only where its value does, and f'(1)."""
    a, p, log, exp, expm1 = args.alpha, args.pi, torch.log, torch.exp, torch.expm1
    sp, ls = nn.functional.softplus, nn.functional.logsigmoid  # log(1 + exp(v)), -log(1 + exp(-v))
    return Divergence(*{
        "total_variation": (lambda u: (u - 1).abs() / 2, lambda t: t,
                            lambda v: v.tanh() / 2, lambda v: v.tanh() / 2, 0),
        "kl": (lambda u: u * log(u), lambda t: exp(t - 1), lambda v: v, lambda v: exp(v - 1), 1),
        "reverse_kl": (lambda u: -log(u), lambda t: -1 - log(-t), lambda v: -exp(-v), lambda v: v - 1, -1),
        "pearson": (lambda u: (u - 1)**2, lambda t: t**2 / 4 + t, lambda v: v, lambda v: v**2 / 4 + v, 0),
        "neyman": (lambda u: (1 - u)**2 / u, lambda t: 2 - 2 * (1 - t)**0.5,
                   lambda v: -expm1(-v), lambda v: -2 * expm1(-v / 2), 0),
        "squared_hellinger": (lambda u: (u**0.5 - 1)**2, lambda t: t / (1 - t),
                              lambda v: -expm1(-v), lambda v: expm1(v), 0),
        "jeffrey": (lambda u: (u - 1) * log(u), jeffrey_conjugate, lambda v: v, jeffrey_conjugate, 0),
        "jensen_shannon": (lambda u: u * log(u) - (u + 1) * log((1 + u) / 2), lambda t: -log(2 - exp(t)),
                           lambda v: math.log(2) + ls(v), lambda v: sp(v) - math.log(2), 0),
        "js_weighted": (lambda u: p * u * log(u) - (1 - p + p * u) * log(1 - p + p * u),
                        lambda t: (1 - p) * log((1 - p) / (1 - p * exp(t / p))), lambda v: -p * math.log(p) + ls(v),
                        lambda v: (1 - p) * (math.log(1 - p) + torch.where(
                            v > 80, v + math.log(p), -log(-expm1(ls(v.clamp(max=81)) / p)))), 0),
        "gan": (lambda u: u * log(u) - (u + 1) * log(u + 1), lambda t: -log(1 - exp(t)), ls, sp, -math.log(2)),
        "alpha": (lambda u: (u**a - 1 - a * (u - 1)) / (a * (a - 1)),
                  lambda t: ((t * (a - 1) + 1).relu()**(a / (a - 1)) - 1) / a,
                  lambda v: v if a > 1 else 1 / (1 - a) + ls(v),
                  lambda v: ((v * (a - 1) + 1).relu()**(a / (a - 1)) - 1) / a if a > 1 else
                  expm1(a / (a - 1) * (math.log(1 - a) + torch.where(v > 16, -v, log(sp(-v.clamp(max=17)))))) / a, 0),
    }[args.divergence])


def parse_args(argv=None, saved=None):
    """The options; one that argv does not give has its saved value or, without one, its default."""
    parser = ArgumentParser(SCRIPT, description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{SCRIPT}: {message}\n")
    add = parser.add_argument
    add("--n_epochs", type=int, default=20, help="passes over the data")
    add("--batch_size", type=int, default=64, help="images per step")
    add("--lr_g", type=float, default=None, help="Adam: learning rate of the generator (None: 1e-3, neyman 2e-4)")
    add("--lr_d", type=float, default=None, help="Adam: learning rate of the discriminator (None: 2e-3, neyman 4e-4)")
    add("--b1", type=float, default=0.5, help="Adam: decay of the gradients' running mean")
    add("--b2", type=float, default=0.999, help="Adam: decay of their squares' running mean")
    add("--latent_dim", type=int, default=100, help="dimension of z")
    add("--img_size", type=int, help="side of the images (None: the dataset's own, 64 for a folder)")
    add("--dataset", default="auto", help="auto, mnist, fashion, cifar10, glyphs or a folder of images")
    add("--data_dir", default="data", help="where the datasets lie, or are downloaded to")
    add("--sample_interval", type=int, default=500, help="steps between two printed lines and grids")
    add("--out_dir", default=f"runs/{SCRIPT}", help="folder of the run; -2, -3, ... is added when one lies there")
    add("--resume", metavar="CHECKPOINT", help="go on with this run, its options and its folder")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes on the same CPU")
    add("--cuda", action="store_true", help="train on a CUDA device")
    add("--divergence", choices=DIVERGENCES, default="kl", help="what D measures and G makes small")
    add("--pi", type=float, default=0.3, help="js_weighted: weight of the data, in (0, 1)")
    add("--alpha", type=float, default=1.5, help="alpha: its order, not 0, nor within 0.1 of 1")
    add("--generator_loss", choices=["trick", "minimax"], default="trick", help="ascend E[g_f], or descend F")
    args = parser.parse_args(argv, Namespace(**saved or {}))
    lr_g, lr_d = (2e-4, 4e-4) if args.divergence == "neyman" else (1e-3, 2e-3)
    args.lr_g = lr_g if args.lr_g is None else args.lr_g
    args.lr_d = lr_d if args.lr_d is None else args.lr_d
    return args


class Generator(nn.Module):
    """z (N, latent_dim) -> images (N, C, H, W) in [-1, 1]."""

    def __init__(self, latent_dim, img_shape):
        super().__init__()
        self.latent_dim = latent_dim
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, 1200), nn.BatchNorm1d(1200), nn.ReLU(),
            nn.Linear(1200, 1200), nn.BatchNorm1d(1200), nn.ReLU(),
            nn.Linear(1200, math.prod(img_shape)), nn.Tanh(), nn.Unflatten(1, img_shape),
        )

    def forward(self, z):
        return self.layers(z)


class Discriminator(nn.Module):
    """Images (N, C, H, W) -> raw scores s (N, 1), the paper's V(x)."""

    def __init__(self, img_shape):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(img_shape), 240), nn.ELU(),
            nn.Linear(240, 240), nn.ELU(),
            nn.Linear(240, 1),
        )

    def forward(self, x):
        return self.layers(x).asinh()


def discriminator_loss(s_real, s_fake, args):
    """-F (eq. 7) from raw scores (N, 1): -(E[g_f(s(x))] - E[f*(g_f(s(G(z))))])."""
    row = divergence(args)
    return -(row.activation(s_real).mean() - row.composed(s_fake).mean())


def generator_loss(s_fake, args):
    """-E[g_f(s(G(z)))] (section 3.2) or, for minimax, -E[f*(g_f(s(G(z))))], from scores (N, 1) of generated images."""
    row = divergence(args)
    return -(row.composed if args.generator_loss == "minimax" else row.activation)(s_fake).mean()


def train_step(G, D, opt_G, opt_D, x, y, args):
    """A step of D, one of G on images x (N, C, H, W), labels y (N,). Returns losses, mean raw scores, F, which is at
    most D_f(p || q) but for the noise of a batch, and the shares of images on their side of f'(1); detached."""
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    fake = G(z)

    # (1) Update D: score x up and G(z) down. G is detached, so this step leaves it alone.
    s_real, s_fake = D(x), D(fake.detach())
    loss_D = discriminator_loss(s_real, s_fake, args)
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()

    # (2) Update G: have the new D score the same G(z) up. inputs= spares the gradients of D, which nobody needs here.
    loss_G = generator_loss(D(fake), args)
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    opt_G.step()
    row = divergence(args)
    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean(), "F": -loss_D,
              "TPR": (row.activation(s_real) > row.threshold).float().mean(),
              "TNR": (row.activation(s_fake) <= row.threshold).float().mean()}
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def sample(G, D, args):
    """The picture, as save_grid's arguments: 64 images, of the same z at every call."""
    z = torch.randn(64, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    training = G.training
    images = G.eval()(z.to(next(G.parameters()).device))
    G.train(training)
    return {"images": images, "n_columns": 8}


def setup(args, device):
    """The data, and the arguments of the two networks that fit it."""
    if not 0 < args.pi < 1 or args.alpha == 0 or not 0.1 <= round(abs(args.alpha - 1), 6) < math.inf:
        raise ValueError("--pi must lie between 0 and 1, --alpha be finite, not 0 nor within 0.1 of 1 (kl).")
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed)
    shape = tuple(data.images.shape[1:])
    return data, {"latent_dim": args.latent_dim, "img_shape": shape}, {"img_shape": shape}


def load_checkpoint(path):
    """A checkpoint of this script, on the CPU. Raises ValueError when the file is none."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["script"] != SCRIPT:
            raise ValueError(f"it is one of {checkpoint['script']}")
    except Exception as error:  # torch.load answers a damaged or foreign file in a dozen ways
        raise ValueError(f"{path} is no checkpoint of {SCRIPT}: {str(error).partition(chr(10))[0]}.") from error
    return checkpoint


def load_generator(path):
    """The trained generator of a checkpoint, in eval mode, on the CPU."""
    checkpoint = load_checkpoint(path)
    G = AveragedModel(Generator(**checkpoint["config_G"]))
    G.load_state_dict(checkpoint["average"])
    return G.module.eval()


def write_losses(folder, names, rows):
    """losses.csv, and its columns as the curves of losses.png."""
    (folder / "losses.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in [names, *rows]))
    axes = Figure(figsize=(8, 5), layout="constrained").subplots()
    axes.plot([row[1] for row in rows], [row[2:] for row in rows], marker=".", label=names[2:])
    axes.legend(title="against the step")
    axes.figure.savefig(folder / "losses.png")


def main(argv=None):
    """One run: train for n_epochs and leave grids, losses and a checkpoint in a folder of its own."""
    args, saved, done, rows, recent = parse_args(argv), None, 0, [], []
    try:
        if args.resume:
            saved = load_checkpoint(args.resume)
            args = parse_args(argv, saved["args"])
        if min(args.n_epochs, args.latent_dim, args.sample_interval, args.batch_size - 1) < 1:
            raise ValueError("--batch_size must be at least 2; --n_epochs, --latent_dim and --sample_interval, 1.")
        device = get_device(args.cuda)
        torch.manual_seed(args.seed)
        data, config_G, config_D = setup(args, device)
        if args.batch_size > len(data.images):
            raise ValueError(f"--batch_size {args.batch_size} is more than the {len(data.images)} images.")
        G, D = Generator(**config_G).to(device), Discriminator(**config_D).to(device)
        opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.b1, args.b2), fused=True)
        opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
        average = AveragedModel(G, use_buffers=True,  # of about the last tenth of the steps, 500 at most
                                avg_fn=lambda old, new, n: old.float().lerp_(new.float(), (10 / (n + 10)).clamp(0.002)))
        parts = {"G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "average": average}
        if saved:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            done, rows = saved["epoch"], saved["rows"]
            torch.set_rng_state(saved["rng"])
            torch.cuda.set_rng_state_all(saved["cuda"][:torch.cuda.device_count()])
        folder, i = Path(args.resume).parent if saved else Path(args.out_dir), 2
        while not saved and (folder / "losses.csv").exists():
            folder, i = Path(f"{Path(args.out_dir)}-{i}"), i + 1
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "losses.csv").open("a" if saved else "x").close()  # the folder is taken from here on
    except (KeyboardInterrupt, OSError, ValueError, RuntimeError, LookupError) as error:
        print(f"{SCRIPT}: {' '.join(str(error).split())[:300] or 'stopped'}", file=sys.stderr)
        sys.exit(2)

    def save(epoch):
        state = {"script": SCRIPT, "args": vars(args) | {"dataset": data.name, "out_dir": None, "resume": None},
                 "config_G": config_G, "epoch": epoch, "rows": rows, "rng": torch.get_rng_state(),
                 "cuda": torch.cuda.get_rng_state_all() if args.cuda else []}
        torch.save(state | {name: part.state_dict() for name, part in parts.items()}, buffer := io.BytesIO())
        (folder / "checkpoint.tmp").write_bytes(buffer.getvalue())
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")  # killed at any moment, it leaves a whole file

    n_steps, start, step = len(data.images) // args.batch_size, time.perf_counter(), rows[-1][1] if rows else 0
    first, last = step, step + (args.n_epochs - done) * n_steps
    try:
        if not saved:
            save(0)
        for epoch in range(done + 1, args.n_epochs + 1):
            for i, (x, y) in enumerate(batches(data, args.batch_size), 1):
                for opt in (opt_G, opt_D):  # constant over the first half of the run, then linearly to 0
                    opt.param_groups[0].update(opt.defaults, lr=opt.defaults["lr"] * min(1, 2 * (1 - step / last)))
                values = train_step(G, D, opt_G, opt_D, x, y, args)
                average.update_parameters(G)
                recent.append(torch.stack(list(values.values())))
                step += 1
                speed = (step - first) / (time.perf_counter() - start)
                line = f"epoch {epoch:2} step {step:6}/{last} {speed:5.1f} steps/s {(last - step) / speed:5.0f} s left"
                if step % args.sample_interval == 0 or i == n_steps:
                    means = torch.stack(recent).mean(0)
                    print(line, *(f"{name} {mean:7.3f}" for name, mean in zip(values, means)), sep="  ", flush=True)
                    if not all(part.isfinite().all() for part in (means, *G.parameters(), *D.parameters())):
                        sys.exit(f"{SCRIPT}: the training is no longer finite: lower --lr_g or --lr_d.")
                    rows.append([epoch, step, *means.tolist()])
                    save_grid(folder / f"{step:06}.png", **sample(average.module, D, args))
                    recent.clear()
                elif sys.stdout.isatty():
                    print(line, end="\r", flush=True)
            write_losses(folder, ["epoch", "step", *values], rows)
            save(epoch)
        save_grid(folder / "samples.png", **sample(average.module, D, args))
        print(folder / "samples.png")
    except (KeyboardInterrupt, OSError, torch.OutOfMemoryError) as error:
        sys.exit(f"\n{SCRIPT}: {str(error) or 'stopped'}; python {SCRIPT}.py --resume '{folder}/checkpoint.pt' goes on")


if __name__ == "__main__":
    main()
