"""How good are the samples of a checkpoint? One table, each figure beside that of real images.

    python tests/score.py runs/dcgan/checkpoint.pt

A small classifier is trained once on the dataset's training set and kept in its data folder. In its 128 features:
    Frechet distance   between the Gaussians of 10,000 samples and of the test set (as Heusel et al. 2017 in Inception)
    precision, recall  share of samples near a test image, and of test images near a sample (Kynkaanniemi et al. 2019)
"real" is what training images get in the place of the samples: 10,000, for 1-NN 50,000, for f-GAN's likelihood 16,000.
The classifier has seen them in its training, so it is a little surer of them than of images that are new to it.
"""
import argparse
import importlib
import math
import sys
import zlib
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import load_data, load_patches  # noqa: E402


class Classifier(nn.Module):
    """Images (N, C, H, H), H at least 8 -> logits (N, n_classes); features() gives the 128 below them."""

    def __init__(self, channels, n_classes):
        super().__init__()

        def block(n_in, n_out):
            return [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.layers = nn.Sequential(
            *block(channels, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64), nn.MaxPool2d(2),
            *block(64, 128), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(128 * 9, 128), nn.BatchNorm1d(128),
            nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(128, n_classes))

    def forward(self, x):
        return self.head(self.layers(x))

    @torch.no_grad()
    def features(self, x):
        """Features (N, 128) and class probabilities (N, n_classes), in eval mode, a thousand images at a time."""
        features = torch.cat([self.eval().layers(chunk) for chunk in x.split(1000)])
        return features, self.head(features).softmax(1)


def train_classifier(images, labels, n_classes, n_epochs=3, batch_size=200):
    """A classifier of images (n, C, H, H) in [-1, 1], trained on crops shifted by up to 2 pixels."""
    torch.manual_seed(0)
    net = Classifier(images.shape[1], n_classes)
    steps = n_epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, max(2, steps))
    for epoch in range(n_epochs):
        for index in torch.randperm(len(images)).split(batch_size)[:len(images) // batch_size]:
            shift = torch.randint(-2, 3, (2,)) * (epoch < n_epochs - 1)  # none in the last epoch
            x = images[index].roll(shift.tolist(), (2, 3))
            loss = nn.functional.cross_entropy(net(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def load_classifier(name, folder, images, labels, n_classes):
    """The classifier kept under this name in the folder or, the first time, a new one of images (n, C, H, H)."""
    path, net = Path(folder) / f"score-{name}.pt", Classifier(images.shape[1], n_classes)
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    print(f"training a classifier, once: {path}", flush=True)
    net = train_classifier(images, labels, n_classes)
    path.parent.mkdir(parents=True, exist_ok=True)  # drawn digits need no data folder
    torch.save(net.state_dict(), path)
    return net


def frechet_distance(a, b):
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the Gaussians fitted to features a, b (n, d)."""
    a, b = a.double(), b.double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()  # the trace of the root: A B has real ones
    return ((a.mean(0) - b.mean(0)) ** 2).sum().item() + (A.trace() + B.trace() - 2 * root).item()


def precision_recall(samples, real, k=3):
    """Shares of samples within reach of a real image and the reverse; an image reaches to its k-th neighbour."""
    def within(queries, points):
        reach = torch.cdist(points, points).kthvalue(k + 1, 1).values
        return (torch.cdist(queries, points) <= reach).any(1).float().mean().item()
    return within(samples, real), within(real, samples)


def steady_rows(G, classify, limit):
    """Share of InfoGAN's rows of 10 images, 50 for each category and continuous code, that stay in one class while the
    code goes from -limit to limit, the other at 0; classify gives the classes (n,) of images."""
    torch.manual_seed(1)
    codes = torch.zeros(50, 10, 2, 10, 12)  # z, category, the code that moves, its value
    for k in range(10):
        codes[:, k, :, :, k] = 1
    for j in range(2):
        codes[:, :, j, :, 10 + j] = torch.linspace(-limit, limit, 10)
    z = torch.randn(1000, G.latent_dim).repeat_interleave(10, 0)
    with torch.no_grad():
        rows = classify(G(z, codes.flatten(0, 3))).view(1000, 10)
    return (rows == rows[:, :1]).all(1).float().mean().item()


def log_likelihood(samples, queries, sigmas):
    """Mean log density of queries (n, d) under Gaussians of each sigma around samples (m, d); its standard error."""
    constant = math.log(len(samples)) + samples.shape[1] * torch.tensor(sigmas).mul(math.sqrt(2 * math.pi)).log()
    densities = []
    for chunk in queries.split(500):
        squares = torch.cdist(chunk, samples) ** 2
        densities.append(torch.stack([(-squares / (2 * s * s)).logsumexp(1) for s in sigmas]))
    densities = torch.cat(densities, 1) - constant[:, None]
    return densities.mean(1), densities.std(1) / len(queries) ** 0.5


def parzen(samples, validation, test):
    """The GAN paper's protocol: 10,000 samples in [0, 1], sigma chosen on 1,000 validation images."""
    sigmas = torch.logspace(-1, 0, 10).tolist()
    best = log_likelihood(samples, validation, sigmas)[0].argmax()
    mean, error = log_likelihood(samples, test, [sigmas[best]])
    return f"{mean.item():.1f} +- {error.item():.1f}"


def parzen_fgan(samples, test):
    """f-GAN's: 16,000 samples, the bandwidth by 3-fold cross-validation among them, on 1,500 of each fold."""
    sigmas, folds = [0.05 * 1.1**k for k in range(18)], samples.chunk(3)
    scores = sum(log_likelihood(torch.cat([*folds[:i], *folds[i + 1:]]), folds[i][:1500], sigmas)[0] for i in range(3))
    mean, error = log_likelihood(samples, test, [sigmas[scores.argmax()]])
    return f"{mean.item():.1f} +- {error.item():.1f}"


def nearest_neighbour_error(images, labels, test_images, test_labels):
    """Share of the test images whose nearest of the images has another label."""
    chunks = test_images.flatten(1).split(500)
    nearest = torch.cat([torch.cdist(chunk, images.flatten(1)).argmin(1) for chunk in chunks])
    return (labels[nearest] != test_labels).float().mean().item()


@torch.no_grad()
def draw(module, G, n, labels):
    """n samples: a pair of domains from cogan.py, else one tensor; and the classes asked for, or None. They come, as in
    the training, from the data, whose labels (N,) these are."""
    torch.manual_seed(1)
    chunks, asked = [], labels[torch.arange(n) % len(labels)]
    for y in asked.split(1000):
        z = torch.randn(len(y), G.latent_dim)
        chunks.append(G(z, y) if hasattr(G, "n_classes") else
                      G(z, module.sample_code(len(z), "cpu")) if module.__name__ == "infogan" else G(z))
    if module.__name__ == "cogan":
        return tuple(torch.cat(half) for half in zip(*chunks)), None
    return torch.cat(chunks), asked if hasattr(G, "n_classes") else None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data_dir", help="where the dataset lies (default: where the run had it)")
    options = parser.parse_args(argv)
    try:
        saved = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
        module, args = importlib.import_module(saved["script"]), argparse.Namespace(**saved["args"])
        folder = Path(options.data_dir or args.data_dir)
        train, test = (load_data(args.dataset, folder, args.img_size, "cpu", args.seed, train=t) for t in (True, False))
        G, n_classes = module.load_generator(options.checkpoint), len(train.classes)
    except Exception as error:  # torch.load answers a damaged or foreign file in a dozen ways
        parser.exit(2, f"{options.checkpoint} can't be scored: {' '.join(str(error).split())[:300]}\n")

    def unit(images):
        return images / 127.5 - 1

    def other(images, seed):  # the second domain of cogan.py
        if args.domain != "mnistm":
            return torch.cat([module.transform(unit(chunk), args.domain) for chunk in images.split(1000)])
        patches = load_patches(len(images), images.shape[-1], args.photos, seed)
        return unit((patches.int() - images.int()).abs())

    def table(title, net, samples, real, truth):
        """The figures that every generator has; returns the classes of the samples."""
        (f, p), (f_real, p_real), (f_test, p_test) = (net.features(x) for x in (samples, real, truth))
        accuracy = (p_test.argmax(1) == test.labels).float().mean()
        print(f"\n{title:28} {'samples':>16} {'real':>16}   (classifier: {accuracy:.2%} of the test set)")
        half = len(f) // 2  # samples come in random order; the first half of MNIST's test set is the easier
        near, near_real = (precision_recall(g[:half], f_test[::2]) for g in (f, f_real))
        line("Frechet distance", frechet_distance(f, f_test), frechet_distance(f_real, f_test))
        line("precision", near[0], near_real[0])
        line("recall", near[1], near_real[1])
        line("classified above 0.9", *((q.amax(1) > 0.9).float().mean().item() for q in (p, p_real)))
        shares = [torch.bincount(q.argmax(1), minlength=n_classes) / len(q) for q in (p, p_real)]
        for name, ours, share in zip(train.classes, *shares):
            line(f"share of class {name}", ours.item(), share.item())
        return p.argmax(1)

    def line(name, ours, real=""):
        print(f"{name:28}", *(f"{v:16.3f}" if isinstance(v, float) else f"{v:>16}" for v in (ours, real)), flush=True)

    size = f"{train.name}-{train.images.shape[-1]}"
    torch.manual_seed(0)
    chosen = torch.randperm(len(train.images))
    real, truth, labels = unit(train.images[chosen[:10000]]), unit(test.images), train.labels[chosen]
    samples, asked = draw(module, G, 10000, labels)
    first = samples[0] if saved["script"] == "cogan" else samples
    net = load_classifier(size, folder, unit(train.images), train.labels, n_classes)
    seen = table(saved["script"], net, first, real, truth)
    if asked is not None:
        line("class asked = class seen", (seen == asked).float().mean().item())
        many, asked = draw(module, G, 50000, labels)
        line("1-NN test error", nearest_neighbour_error(many, asked, truth, test.labels), nearest_neighbour_error(
            unit(train.images[chosen[:50000]]), labels[:50000], truth, test.labels))
    if saved["script"] == "infogan":
        D = module.Discriminator(tuple(train.images.shape[1:]), 1, 1)
        D.load_state_dict(saved["D"])
        args.data_dir = folder
        with torch.no_grad():
            line("unsupervised test error", module.test_error(D.eval(), args, "cpu"))
        for limit in (1, 2):
            line(f"rows of one class, -{limit}..{limit}", steady_rows(G, lambda x: net.features(x)[1].argmax(1), limit))
    if saved["script"] == "cogan":
        photos = f"-{zlib.crc32(load_patches(10, 28, args.photos).numpy()):08x}" if args.photos else ""
        net = load_classifier(f"{size}-{args.domain}{photos}", folder, other(train.images, 11), train.labels, n_classes)
        second = table(f"domain 2: {args.domain}", net, samples[1], other(train.images[chosen[:10000]], 12),
                       other(test.images, 13))
        line("same class in both domains", (seen == second).float().mean().item())
        if args.domain != "mnistm":
            ink = module.transform(samples[0], args.domain) > 0
            line("pixel agreement", (ink == (samples[1] > 0)).float().mean().item())
            line("of shuffled pairs", (ink == (samples[1].roll(1, 0) > 0)).float().mean().item())
    many = draw(module, G, 16000, labels)[0]
    many = (many[0] if saved["script"] == "cogan" else many).flatten(1) / 2 + 0.5
    validation, true = train.images[chosen[-1000:]].flatten(1) / 255, test.images.flatten(1) / 255
    reals = train.images[chosen[:16000]].flatten(1) / 255
    line("log-likelihood (GAN)", *(parzen(x[:10000], validation, true) for x in (many, reals)))
    line("log-likelihood (f-GAN)", *(parzen_fgan(x, true) for x in (many, reals)))


if __name__ == "__main__":
    main()
