"""AC-GAN: the discriminator does not see the class, it names it; G is asked for a class that D then recognises.

Odena, Olah and Shlens 2017, arXiv:1610.09585. S says whether an image is real, C is its class (eq. 2 and 3):

    L_S = E[log P(S = real | x)] + E[log P(S = fake | G(z, c))]
    L_C = E[log P(C = y | x)]    + E[log P(C = c | G(z, c))],  c ~ p(c): as often as in the data, whatever y.

D ascends L_S + L_C, G ascends L_C - L_S. P(S = real) is the sigmoid of a score, P(C) the softmax of the head's logits.

    python acgan.py --resume runs/acgan/checkpoint.pt --digit 5    # a trained network's images of class 5

Measured on MNIST (README): 58 s an epoch on two cores, torch 2.14; Frechet distance 0.18 after 10 epochs, torch 2.15.
Departures from the paper:
 1. dcgan.py's networks, not deeper ones, and optimisation at higher rates (`diff dcgan.py acgan.py`); no signs in z.
 2. For -L_S, G ascends E[log P(S = real | G(z, c))], whose gradient does not vanish while D wins.
"""
import io
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common import batches, get_device, load_data, save_grid

SCRIPT = Path(__file__).stem


def parse_args(argv=None, saved=None):
    """The options; one that argv does not give has its saved value or, without one, its default."""
    parser = ArgumentParser(SCRIPT, description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{SCRIPT}: {message}\n")
    add = parser.add_argument
    add("--n_epochs", type=int, default=10, help="passes over the data")
    add("--batch_size", type=int, default=64, help="images per step")
    add("--lr_g", type=float, default=2e-3, help="Adam: learning rate of the generator")
    add("--lr_d", type=float, default=8e-4, help="Adam: learning rate of the discriminator")
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
    add("--digit", type=int, default=-1, help="index of the class to draw; -1: a row of each")
    return parser.parse_args(argv, Namespace(**saved or {}))


class Generator(nn.Module):
    """z (N, latent_dim), c (N,) -> images (N, C, H, H) in [-1, 1]; H is a multiple of 4, else ValueError."""

    def __init__(self, latent_dim, img_shape, n_classes, width=32, hidden=512):
        super().__init__()
        self.latent_dim, self.n_classes, channels, side = latent_dim, n_classes, img_shape[0], img_shape[-1]
        if side % 4:
            raise ValueError(f"the side of the images must be a multiple of 4, not {side}: choose one with --img_size.")
        self.layers = nn.Sequential(
            nn.Linear(latent_dim + n_classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, 2 * width * (side // 4) ** 2),
            nn.Unflatten(1, (2 * width, side // 4, side // 4)), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),  # (N, width, H/2, H/2)
            nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh(),  # (N, C, H, H)
        )
        for name, p in self.named_parameters():  # as the authors: gains from N(1, 0.02), biases 0
            nn.init.normal_(p, float("weight" in name and p.ndim == 1), 0.02 * ("weight" in name))

    def forward(self, z, c):
        return self.layers(torch.cat([z, nn.functional.one_hot(c, self.n_classes)], 1))


class Discriminator(nn.Module):
    """Images (N, C, H, H) -> raw scores s (N, 1), sigmoid(s) = P(S = real); logits (N, n_classes) of P(C)."""

    def __init__(self, img_shape, n_classes, width=32, hidden=512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(img_shape[0], width, 4, 2, 1), nn.LeakyReLU(0.2),  # (N, width, H/2, H/2)
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2), nn.Flatten(),
            nn.Linear(2 * width * (img_shape[-1] // 4) ** 2, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2),
        )
        self.source, self.classes = nn.Linear(hidden, 1), nn.Linear(hidden, n_classes)
        for name, p in self.named_parameters():  # as the authors: gains from N(1, 0.02), biases 0
            nn.init.normal_(p, float("weight" in name and p.ndim == 1), 0.02 * ("weight" in name))

    def forward(self, x):
        features = self.layers(x)
        return self.source(features), self.classes(features)


def discriminator_loss(s_real, s_fake, args):
    """-L_S from raw scores (N, 1): -log P(S = real) = softplus(-s), -log P(S = fake) = softplus(s)."""
    return nn.functional.softplus(-s_real).mean() + nn.functional.softplus(s_fake).mean()


def generator_loss(s_fake, args):
    """-E[log P(S = real | G(z, c))] from the raw scores (N, 1) of generated images."""
    return nn.functional.softplus(-s_fake).mean()


def train_step(G, D, opt_G, opt_D, x, y, args):
    """A step of D, one of G on images x (N, C, H, W), labels y (N,). Returns losses, scores, accuracies; detached."""
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    c = args.p_c.multinomial(len(x), replacement=True)
    fake = G(z, c)

    # (1) Update D: score x up and G(z, c) down, and name the class of both. G is detached: this step leaves it alone.
    (s_real, logits_real), (s_fake, logits_fake) = D(x), D(fake.detach())
    L_C = -nn.functional.cross_entropy(logits_real, y) - nn.functional.cross_entropy(logits_fake, c)
    loss_D = discriminator_loss(s_real, s_fake, args) - L_C
    opt_D.zero_grad()
    loss_D.backward()
    opt_D.step()

    # (2) Update G: have the new D score G(z, c) up and name c. inputs= spares the gradients of D, which nobody needs.
    s, logits = D(fake)
    loss_G = generator_loss(s, args) + nn.functional.cross_entropy(logits, c)
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    opt_G.step()
    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean(),
              "acc(x)": (logits_real.argmax(1) == y).float().mean(),
              "acc(G(z))": (logits_fake.argmax(1) == c).float().mean()}
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def sample(G, D, args):
    """The picture, as save_grid's arguments: a row for each class (or for --digit), captioned with D's prediction."""
    device, training = next(G.parameters()).device, (G.training, D.training)
    classes = torch.arange(G.n_classes) if args.digit < 0 else torch.tensor([args.digit])
    z = torch.randn(10, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    c = classes.repeat_interleave(10)
    images = G.eval()(z.repeat(len(classes), 1).to(device), c.to(device))
    predicted = D.eval()(images)[1].argmax(1).tolist()
    G.train(training[0]), D.train(training[1])
    return {"images": images, "n_columns": 10, "rows": [args.classes[k] for k in classes], "title": "asked: predicted",
            "captions": [f"{asked}: {named}" for asked, named in zip(c.tolist(), predicted)]}


def setup(args, device):
    """The data, and the arguments of the two networks that fit it."""
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed)
    args.p_c = data.labels.bincount(minlength=len(data.classes)) / len(data.labels)
    args.classes, config = data.classes, {"img_shape": tuple(data.images.shape[1:]), "n_classes": len(data.classes)}
    if len(data.classes) < 2 or not -1 <= args.digit < len(data.classes):
        raise ValueError(f"{data.name} has classes 0 to {len(data.classes) - 1}: it takes two, and --digit from them.")
    return data, {"latent_dim": args.latent_dim, **config}, config


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
