"""CoGAN: pairs of images of two domains, learned from images of each of them without a single pair.

Liu and Tuzel 2016, arXiv:1606.07536. Generators g1, g2 draw a pair from one z, discriminators f1, f2 judge one domain
each. With s the raw score and f = sigmoid(s), they play (section 3, there with signs turned)
    min_g max_f E_x1[log f1(x1)] + E_z[log(1 - f1(g1(z)))] + E_x2[log f2(x2)] + E_z[log(1 - f2(g2(z)))],
where the first layers of g1 and g2, which decide what is drawn, are the same, and so are the last ones of f1 and f2.
The private ones render it in two ways. G ascends E_z[log f(g(z))], as in its parent (`diff dcgan.py cogan.py`).

    python cogan.py --domain negative    # MNIST, or drawn digits when offline
    python cogan.py --shared_g 0         # the control: untied generators, whose pairs have nothing in common

The private layers must be able to make the change, and little else. One convolution can invert. An edge is a maximum
over 3x3 pixels minus the middle one: for --domain edge two convolutions draw each domain, from tied maps of the image's
size. No convolution can turn: for rotate all four layers are tied, g2 ends and f2 begins with a learned mixture of the
square's eight symmetries. For mnistm the tied four draw a digit, x1, from the first half of z, g2's own four a patch
from the second, and x2 is |patch - x1|. Watch agree, the share of pixels on which x2 agrees with x1 transformed into
domain 2, beside shuffled, the same with the x2 of another z; mnistm has neither.

Measured on MNIST (README): 57 s an epoch on two cores, Frechet distance 0.40 after 15 epochs; torch 2.14.
Departures from the paper:
 1. Layers, z and, at higher rates, training are dcgan.py's; a layer is a convolution or dense one and what follows it.
    For edge G has a fifth, two convolutions of 3x3 (the authors: one of 6x6), and starts dark; its private layers start
    equal: else one seed of three paired at random. D has no dropout (the authors: 0.5).
 2. rotate: not private layers but a choice, learned without a pair, of one of eight positions makes x2 from x1.
 3. mnistm (Ganin et al. 2016; no task of the paper): the rule that makes its data is built into G, since with private
    convolutions domain 2 collapses. So pairs show one digit; what is learned is the patch. It has nothing to do
    with the digit, so that it comes from a half of z of its own; a 3x3 average ends it. Both learning rates halve.
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

from common import batches, get_device, load_data, load_patches, save_grid

SCRIPT = Path(__file__).stem
DEFAULTS = {"edge": (2e-3, 8e-4, 4, 3), "negative": (2e-3, 8e-4, 3, 3),
            "rotate": (2e-3, 8e-4, 4, 4), "mnistm": (1e-3, 4e-4, 4, 2)}  # --lr_g, --lr_d, --shared_g, --shared_d


def transform(x, domain):
    """Images x (N, C, H, H) in [-1, 1] as domain 2 shows them, in the same range."""
    if domain == "rotate":
        return x.rot90(1, (2, 3))
    if domain == "negative":
        return -x
    return nn.functional.max_pool2d(x, 3, 1, 1) - x - 1  # edge: 3x3 dilation minus image


def parse_args(argv=None, saved=None):
    """The options; one that argv does not give has its saved value or, without one, its default."""
    parser = ArgumentParser(SCRIPT, description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{SCRIPT}: {message}\n")
    add = parser.add_argument
    add("--n_epochs", type=int, default=15, help="passes over the data")
    add("--batch_size", type=int, default=64, help="images per step")
    add("--lr_g", type=float, default=None, help="Adam: learning rate of the generator (None: 2e-3, mnistm 1e-3)")
    add("--lr_d", type=float, default=None, help="Adam: learning rate of the discriminator (None: 8e-4, mnistm 4e-4)")
    add("--b1", type=float, default=0.5, help="Adam: decay of the gradients' running mean")
    add("--b2", type=float, default=0.999, help="Adam: decay of their squares' running mean")
    add("--latent_dim", type=int, default=20, help="dimension of z (mnistm: for the digit and again for the patch)")
    add("--img_size", type=int, help="side of the images (None: the dataset's own, 64 for a folder)")
    add("--dataset", default="auto", help="auto, mnist, fashion, cifar10, glyphs or a folder of images")
    add("--data_dir", default="data", help="where the datasets lie, or are downloaded to")
    add("--sample_interval", type=int, default=500, help="steps between two printed lines and grids")
    add("--out_dir", default=f"runs/{SCRIPT}", help="folder of the run; -2, -3, ... is added when one lies there")
    add("--resume", metavar="CHECKPOINT", help="go on with this run, its options and its folder")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes on the same CPU")
    add("--cuda", action="store_true", help="train on a CUDA device")
    add("--domain", choices=DEFAULTS, default="edge", help="what domain 2 shows of the images")
    add("--photos", metavar="FOLDER", help="mnistm: photographs to cut patches from (None: drawn clouds)")
    add("--shared_g", type=int, help="G's first layers that are tied, 0 to 4, negative to 3 (None: the most)")
    add("--shared_d", type=int, help="D's last layers that are tied, 0 to 3, rotate to 4 (None: the most, mnistm 2)")
    args = parser.parse_args(argv, Namespace(**saved or {}))
    for name, default in zip(("lr_g", "lr_d", "shared_g", "shared_d"), DEFAULTS[args.domain]):
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
    own = ("domain", "shared_g", "shared_d", "seed")  # the halves and the tied layers depend on them
    if saved and any(getattr(args, name) != saved[name] for name in own):
        parser.error(f"--{', --'.join(own)} are those of the checkpoint, from the first step to the last.")
    return args


class Turn(nn.Module):
    """x (N, C, H, H) -> the same: a mixture, with learned weights, of its turns and their mirror images."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        ways = [way for k in range(4) for way in (x.rot90(k, (2, 3)), x.rot90(k, (2, 3)).mT)]
        return sum(p * way for p, way in zip((5 * self.logits).softmax(0), ways))  # 5: Adam's own steps are small


class Generator(nn.Module):
    """z (N, latent_dim; mnistm: twice) -> x1 (N, C1, H, H), x2 (N, C2, H, H) in [-1, 1]; H % 4 != 0: ValueError."""

    def __init__(self, latent_dim, img_shapes, n_tied, domain, width=32, hidden=512):
        super().__init__()
        self.latent_dim, side = latent_dim * (1 + (domain == "mnistm")), img_shapes[0][-1]
        if side % 4:
            raise ValueError(f"the side of the images must be a multiple of 4, not {side}: choose one with --img_size.")

        def layers(channels):
            first = [
                nn.Sequential(nn.Linear(latent_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
                nn.Sequential(nn.Linear(hidden, 2 * width * (side // 4) ** 2),
                              nn.Unflatten(1, (2 * width, side // 4, side // 4)), nn.BatchNorm2d(2 * width), nn.ReLU()),
                nn.Sequential(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            ]
            if domain != "edge":
                return [*first, nn.Sequential(nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh())]
            n = width // 4
            return [  # maps (N, n, H, H), then each domain's own drawing of them (N, channels, H, H)
                *first, nn.Sequential(nn.ConvTranspose2d(width, n, 4, 2, 1), nn.BatchNorm2d(n), nn.ReLU()),
                # ReLU first: inputs of mean 0, or else Adam's first steps add up to black images, on which tanh is flat
                nn.Sequential(nn.Conv2d(n, 2 * n, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(2 * n),
                              nn.Conv2d(2 * n, channels, 3, 1, 1), nn.Tanh()),
            ]
        g1, g2 = (layers(img_shapes[0 if domain == "mnistm" else i][0]) for i in range(2))
        self.tied = nn.Sequential(*g1[:n_tied])
        self.private = nn.ModuleList(nn.Sequential(*g[n_tied:]) for g in (g1, g2 + [Turn()] * (domain == "rotate")))
        # the average, at the frame of the pixels there are, smooths the grain that transposed convolutions leave
        self.patch = domain == "mnistm" and nn.Sequential(*layers(3), nn.AvgPool2d(3, 1, 1, count_include_pad=False))
        for name, p in self.named_parameters():  # as the authors of DCGAN: gains from N(1, 0.02), biases 0
            nn.init.normal_(p, float("weight" in name and p.ndim == 1), 0.02 * ("weight" in name))
        # digits and edges are dark, and start so; a bright digit would take the other slope of |patch - digit|
        for g in (g1, g2) * (domain in ("edge", "mnistm")):
            nn.init.constant_(g[-1][-2].bias, -1)
        if domain == "edge" and n_tied:  # or else g2 may read another digit than g1 from the tied maps
            self.private[1].load_state_dict(self.private[0].state_dict())

    def forward(self, z):
        # signs let G jump: fewer blends of digits
        z, *rest = (torch.cat([z[:, :8].sign(), z[:, 8:]], 1) for z in z.chunk(2 if self.patch else 1, 1))
        h = self.tied(z)
        x1, x2 = (private(h) for private in self.private)
        return x1, ((self.patch(*rest) - x2).abs() - 1 if self.patch else x2)


class Discriminator(nn.Module):
    """Images x1 (N, C1, H, H), x2 (N, C2, H, H) -> raw scores s1, s2 (N, 1); sigmoid(s) is the probability of real."""

    def __init__(self, img_shapes, n_tied, domain, width=32, hidden=512):
        super().__init__()

        def layers(channels):
            return [
                nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)),
                nn.Sequential(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)),
                nn.Sequential(nn.Flatten(), nn.Linear(2 * width * (img_shapes[0][-1] // 4) ** 2, hidden),
                              nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2)),
                nn.Linear(hidden, 1),
            ]
        f1, f2 = (layers(shape[0]) for shape in img_shapes)
        n_private, start = len(f1) - n_tied, [Turn()] * (domain == "rotate")
        self.private = nn.ModuleList(nn.Sequential(*f) for f in (f1[:n_private], start + f2[:n_private]))
        self.tied = nn.Sequential(*f1[n_private:])
        for name, p in self.named_parameters():  # as the authors of DCGAN: gains from N(1, 0.02), biases 0
            nn.init.normal_(p, float("weight" in name and p.ndim == 1), 0.02 * ("weight" in name))
        if domain == "edge" and n_tied:  # as in G
            self.private[1].load_state_dict(self.private[0].state_dict())

    def forward(self, x1, x2):
        return tuple(self.tied(private(x)) for private, x in zip(self.private, (x1, x2)))


def discriminator_loss(s_real, s_fake, args):
    """-E[log D(x)] - E[log(1 - D(G(z)))] from raw scores (N, 1): -log D = softplus(-s), -log(1 - D) = softplus(s)."""
    return nn.functional.softplus(-s_real).mean() + nn.functional.softplus(s_fake).mean()


def generator_loss(s_fake, args):
    """-E[log D(G(z))] from the raw scores (N, 1) of generated images."""
    return nn.functional.softplus(-s_fake).mean()


def train_step(G, D, opt_G, opt_D, x, y, args):
    """A step of D, one of G on x (N, C1 + C2, H, H): unpaired images of both domains. Returns losses, mean raw scores
    and, but for mnistm, the share of pixels on which transform(x1) and x2, or the x2 of another z, agree; detached."""
    z = torch.randn(len(x), G.latent_dim, device=x.device)
    fake = G(z)
    real = x.split([images.shape[1] for images in fake], 1)

    # (1) Update D: score x1, x2 up and G(z) down. A layer that is tied takes the mean of its two gradients.
    s_real, s_fake = D(*real), D(*(images.detach() for images in fake))
    loss_D = sum(discriminator_loss(*s, args) for s in zip(s_real, s_fake))
    opt_D.zero_grad()
    loss_D.backward()
    for p in D.tied.parameters():
        p.grad /= 2
    opt_D.step()

    # (2) Update G: have the new D score the same G(z) up. inputs= spares the gradients of D, which nobody needs here.
    loss_G = sum(generator_loss(s, args) for s in D(*fake))
    opt_G.zero_grad()
    loss_G.backward(inputs=list(G.parameters()))
    for p in G.tied.parameters():
        p.grad /= 2
    opt_G.step()
    values = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real[0].mean(), "s(G(z))": s_fake[0].mean(),
              "s2(x)": s_real[1].mean(), "s2(G(z))": s_fake[1].mean()}
    if args.domain != "mnistm":
        ink = transform(fake[0], args.domain) > 0
        values |= {"agree": (ink == (fake[1] > 0)).float().mean(),
                   "shuffled": (ink == (fake[1].roll(1, 0) > 0)).float().mean()}
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def sample(G, D, args):
    """The picture, as save_grid's arguments: 32 images of domain 1 and, in the same order, their pairs in domain 2."""
    z = torch.randn(32, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    training = G.training
    pair = G.eval()(z.to(next(G.parameters()).device))
    G.train(training)
    images = torch.cat([x.expand(-1, max(x.shape[1] for x in pair), -1, -1) for x in pair])
    return {"images": images, "n_columns": 16, "rows": ["x1", "x1", "x2", "x2"],
            "title": f"x1, and x2 ({args.domain}) of the same z"}


def setup(args, device):
    """Two disjoint halves of the data, the second in domain 2, stacked in the channels; both networks' arguments."""
    most_g, most_d = (max(3, n) for n in DEFAULTS[args.domain][2:])
    if not (0 <= args.shared_g <= most_g and 0 <= args.shared_d <= most_d):
        raise ValueError(f"{args.domain} takes --shared_g between 0 and {most_g}, --shared_d between 0 and {most_d}.")
    if args.photos is not None and not (args.domain == "mnistm" and Path(args.photos).is_dir()):
        raise ValueError(f"--photos takes a folder, with --domain mnistm: not {args.photos} with {args.domain}.")
    data = load_data(args.dataset, args.data_dir, args.img_size, device, args.seed)
    half, side, order = len(data.images) // 2, data.images.shape[-1], torch.randperm(len(data.images)).to(device)
    if not half:
        raise ValueError("two domains need at least two images.")
    x1, x2 = data.images[order[:half]], data.images[order[half:2 * half]]
    if args.domain == "mnistm":
        patches = load_patches(half, side, args.photos, args.seed).to(device)
        print(f"patches cut from {args.photos or 'drawn clouds; --photos takes a folder'}", file=sys.stderr)
        x2 = torch.maximum(patches, x2) - torch.minimum(patches, x2)
    else:
        chunks = [transform(chunk * (2 / 255) - 1, args.domain) for chunk in x2.split(1000)]
        x2 = torch.cat([((chunk + 1) * 127.5).round().byte() for chunk in chunks])
    shapes = tuple((x.shape[1], side, side) for x in (x1, x2))
    data = data._replace(images=torch.cat([x1, x2], 1), labels=data.labels[order[:half]])
    config = {"img_shapes": shapes, "domain": args.domain}
    return data, {"latent_dim": args.latent_dim, "n_tied": args.shared_g, **config}, {"n_tied": args.shared_d, **config}


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
