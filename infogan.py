"""InfoGAN: a code c that G must keep readable in its images comes to mean something: the digit, its slant, its width.

Chen et al. 2016, arXiv:1606.03657. Q shares all of D but its last layers and reads c from an image; the game is (eq. 6)

    min_{G,Q} max_D V(D, G) - lambda L_I(G, Q),  L_I = E[log Q(c | G(z, c))] + H(c) <= I(c; G(z, c))  (eq. 5).

c is a category of 10 and two values from U(-1, 1), for which Q gives a mean and a standard deviation. In the game
lambda weighs what L_I teaches the shared layers and G; with 0 it is the game of dcgan.py, watched by a Q that learns.

    python infogan.py                                   # MNIST, or drawn digits when offline; its labels are not used
    python infogan.py --lambda_cat 0 --lambda_con 0     # the paper's control

Measured on MNIST (README): 65 s an epoch on two cores, Frechet distance 0.27 after 20 epochs; torch 2.14.
Departures from the paper:
 1. Trunks and optimisation are dcgan.py's (see there, and `diff dcgan.py infogan.py`); z has no signs, its 62
    dimensions and the learning rates are the paper's. G ascends E[log D(G(z, c))], as in the authors' program.
 2. Q has a head for each kind of code, so that lambda can be chosen for each: 0.03 for the continuous codes, whose L_I
    has no ceiling; 0.3 at first for the category (the paper: 1), soon falling to a tenth, with which more categories
    become one digit. Q itself learns at full weight, in D's step; lambda scales what goes back from it.
"""
import io
import math
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from functools import cache
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common import batches, get_device, load_data, save_grid

SCRIPT = Path(__file__).stem
N_CATEGORIES, N_CONTINUOUS = 10, 2
HAVE_TEST_SETS, load_test_data = ("mnist", "fashion", "cifar10", "glyphs"), cache(load_data)


def parse_args(argv=None, saved=None):
    """The options; one that argv does not give has its saved value or, without one, its default."""
    parser = ArgumentParser(SCRIPT, description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{SCRIPT}: {message}\n")
    add = parser.add_argument
    add("--n_epochs", type=int, default=20, help="passes over the data")
    add("--batch_size", type=int, default=64, help="images per step")
    add("--lr_g", type=float, default=1e-3, help="Adam: learning rate of the generator")
    add("--lr_d", type=float, default=2e-4, help="Adam: learning rate of the discriminator")
    add("--b1", type=float, default=0.5, help="Adam: decay of the gradients' running mean")
    add("--b2", type=float, default=0.999, help="Adam: decay of their squares' running mean")
    add("--latent_dim", type=int, default=62, help="dimension of z")
    add("--img_size", type=int, help="side of the images (None: the dataset's own, 64 for a folder)")
    add("--dataset", default="auto", help="auto, mnist, fashion, cifar10, glyphs or a folder of images")
    add("--data_dir", default="data", help="where the datasets lie, or are downloaded to")
    add("--sample_interval", type=int, default=500, help="steps between two printed lines and grids")
    add("--out_dir", default=f"runs/{SCRIPT}", help="folder of the run; -2, -3, ... is added when one lies there")
    add("--resume", metavar="CHECKPOINT", help="go on with this run, its options and its folder")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes on the same CPU")
    add("--cuda", action="store_true", help="train on a CUDA device")
    add("--lambda_cat", type=float, default=0.3, help="weight of L_I of the category at the start; it falls to a tenth")
    add("--lambda_con", type=float, default=0.03, help="weight of L_I of the continuous codes")
    return parser.parse_args(argv, Namespace(**saved or {}))


class Generator(nn.Module):
    """z (N, latent_dim), c (N, 10 + 2) -> images (N, C, H, H) in [-1, 1]; H is a multiple of 4, else ValueError."""

    def __init__(self, latent_dim, img_shape, width=32, hidden=512):
        super().__init__()
        self.latent_dim, channels, side = latent_dim, img_shape[0], img_shape[-1]
        if side % 4:
            raise ValueError(f"the side of the images must be a multiple of 4, not {side}: choose one with --img_size.")
        self.layers = nn.Sequential(
            nn.Linear(latent_dim + N_CATEGORIES + N_CONTINUOUS, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, 2 * width * (side // 4) ** 2),
            nn.Unflatten(1, (2 * width, side // 4, side // 4)), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),  # (N, width, H/2, H/2)
            nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh(),  # (N, C, H, H)
        )
        for name, p in self.named_parameters():  # as the authors: gains from N(1, 0.02), biases 0
            nn.init.normal_(p, float("weight" in name and p.ndim == 1), 0.02 * ("weight" in name))

    def forward(self, z, c):
        return self.layers(torch.cat([z, c], 1))


class Discriminator(nn.Module):
    """Images (N, C, H, H) -> raw scores s (N, 1), and Q's logits (N, 10), means and log standard deviations (N, 2)."""

    def __init__(self, img_shape, lambda_cat, lambda_con, width=32, hidden=512):
        super().__init__()
        self.lambda_con = lambda_con
        self.register_buffer("lambda_cat", torch.tensor(float(lambda_cat)))  # it falls: train_step

        def head(n_out):
            return nn.Sequential(nn.Linear(hidden, 128), nn.BatchNorm1d(128), nn.LeakyReLU(0.1), nn.Linear(128, n_out))
        self.layers = nn.Sequential(
            nn.Conv2d(img_shape[0], width, 4, 2, 1), nn.LeakyReLU(0.2),  # (N, width, H/2, H/2)
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2), nn.Flatten(),
            nn.Linear(2 * width * (img_shape[-1] // 4) ** 2, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2),
        )
        self.score, self.category, self.continuous = nn.Linear(hidden, 1), head(N_CATEGORIES), head(2 * N_CONTINUOUS)
        for name, p in self.named_parameters():  # as the authors: gains from N(1, 0.02), biases 0
            nn.init.normal_(p, float("weight" in name and p.ndim == 1), 0.02 * ("weight" in name))

    def forward(self, x):
        h = self.layers(x)
        logits = self.category(h.detach().lerp(h, self.lambda_cat))  # the value of h, and lambda times its gradient
        mean, log_std = self.continuous(h.detach().lerp(h, self.lambda_con)).chunk(2, 1)
        return self.score(h), logits, mean, log_std


def discriminator_loss(s_real, s_fake, args):
    """-E[log D(x)] - E[log(1 - D(G(z)))] from raw scores (N, 1): -log D = softplus(-s), -log(1 - D) = softplus(s)."""
    return nn.functional.softplus(-s_real).mean() + nn.functional.softplus(s_fake).mean()


def generator_loss(s_fake, args):
    """-E[log D(G(z))] from the raw scores (N, 1) of generated images."""
    return nn.functional.softplus(-s_fake).mean()


def sample_code(n, device):
    """c ~ p(c): (n, 10 + 2), a one-hot category and values from U(-1, 1)."""
    category = nn.functional.one_hot(torch.randint(N_CATEGORIES, (n,), device=device), N_CATEGORIES)
    return torch.cat([category, 2 * torch.rand(n, N_CONTINUOUS, device=device) - 1], 1)


def information(c, logits, mean, log_std):
    """L_I (eq. 5) in nats of the category and of the continuous codes: E[log Q(c|x)] + H(c)."""
    category, values = c[:, :N_CATEGORIES], c[:, N_CATEGORIES:]
    log_Q_cat = (category * logits.log_softmax(1)).sum(1)
    log_Q_con = torch.distributions.Normal(mean, log_std.exp(), validate_args=False).log_prob(values).sum(1)
    return log_Q_cat.mean() + math.log(N_CATEGORIES), log_Q_con.mean() + N_CONTINUOUS * math.log(2)


def train_step(G, D, opt_G, opt_D, x, y, args):
    """A step of D, one of G on images x (N, C, H, W), labels y (N,). Returns losses, mean raw scores, L_I; detached."""
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    c = sample_code(len(x), x.device)
    fake = G(z, c)

    # (1) Update D and Q: score x up and G(z, c) down, read c. D.forward has lambda. G is detached: it is left alone.
    s_real, (s_fake, *Q_c) = D(x)[0], D(fake.detach())
    loss_D = discriminator_loss(s_real, s_fake, args)
    L_cat, L_con = information(c, *Q_c)
    opt_D.zero_grad()
    (loss_D - L_cat - L_con).backward()
    opt_D.step()

    # (2) Update G: have the new D score G(z, c) up and Q read c. inputs= spares the gradients of D.
    s, *Q_c = D(fake)
    loss_G = generator_loss(s, args)
    opt_G.zero_grad()
    (loss_G - sum(information(c, *Q_c))).backward(inputs=list(G.parameters()))
    opt_G.step()
    D.lambda_cat += 5e-4 * (args.lambda_cat / 10 - D.lambda_cat)  # to a tenth, half of the way every 1400 steps
    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean(),
              "L_I cat": L_cat, "L_I con": L_con}
    return {name: value.detach() for name, value in values.items()}


def matched(counts):
    """The largest sum of counts, a table, that takes one of each row and none of a column twice."""
    best = {0: 0}  # the columns taken, as bits: the largest sum so far
    for row in counts:
        sums = [(taken | 1 << j, total + n) for taken, total in best.items()
                for j, n in enumerate(row) if not taken >> j & 1]
        best = dict(sorted(sums, key=lambda entry: entry[1]))  # of equal keys the last, which is the largest, stays
    return max(best.values())


def test_error(D, args, device):
    """The share of test images that Q's category puts in a wrong class, its categories matched to classes at best."""
    data = load_test_data(args.dataset, args.data_dir, args.img_size, device, args.seed, train=False)
    images = (chunk * (2 / 255) - 1 for chunk in data.images.split(1000))
    category = torch.cat([D(x)[1].argmax(1) for x in images])
    counts = torch.bincount(category * N_CATEGORIES + data.labels, minlength=N_CATEGORIES**2).view(-1, N_CATEGORIES)
    return 1 - matched(counts.tolist()) / len(category)


@torch.no_grad()
def sample(G, D, args):
    """The picture, as save_grid's arguments: the category across, a z per row; below, a row for each category, the
    continuous codes swept in turn. Prints the error of Q's category as a classifier of the test images."""
    device, training, sweep = next(G.parameters()).device, (G.training, D.training), torch.linspace(-2, 2, 10)
    z = torch.randn(25, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    category = torch.cat([torch.arange(10).repeat(5), torch.arange(10).repeat_interleave(10).repeat(2)])
    values = torch.zeros(250, N_CONTINUOUS)
    values[50:150, 0] = values[150:, 1] = sweep.repeat(10)
    c = torch.cat([nn.functional.one_hot(category, N_CATEGORIES), values], 1)
    images = G.eval()(z.repeat_interleave(10, 0).to(device), c.to(device))
    if args.dataset in HAVE_TEST_SETS:
        print(f"unsupervised test error {test_error(D.eval(), args, device):.4f}", flush=True)
    G.train(training[0]), D.train(training[1])
    rows = [f"z{i}" for i in range(5)] + [f"c{k} of {i}" for k in (2, 3) for i in range(10)]
    return {"images": images, "n_columns": 10, "rows": rows, "columns": [f"{i}\n{v:+.1f}" for i, v in enumerate(sweep)],
            "title": "z: category across; c2, c3: that code across"}


def setup(args, device):
    """The data, and the arguments of the two networks that fit it."""
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed)
    shape, args.dataset = tuple(data.images.shape[1:]), data.name  # whose test set sample needs
    if args.dataset in HAVE_TEST_SETS:
        load_test_data(args.dataset, args.data_dir, args.img_size, device, args.seed, train=False)  # fails now or never
    if not (0 <= args.lambda_cat < math.inf and 0 <= args.lambda_con < math.inf):
        raise ValueError("--lambda_cat and --lambda_con must be finite and at least 0.")
    config_D = {"img_shape": shape, "lambda_cat": args.lambda_cat, "lambda_con": args.lambda_con}
    return data, {"latent_dim": args.latent_dim, "img_shape": shape}, config_D


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
