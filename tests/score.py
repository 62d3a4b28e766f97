"""How good are the samples of a checkpoint? One table, each figure beside that of real images.

    python tests/score.py runs/dcgan/checkpoint.pt
    python tests/score.py runs/dcgan/checkpoint.pt --raw                    # G, not its average
    python tests/score.py runs/dcgan/checkpoint.pt --features 1000 50000    # what D has learned

A classifier is trained once on the training set and kept in --cache. In its 128 features:
    Frechet distance   between the Gaussians of the samples and of the test set
                       (Heusel et al. 2017 have the features of Inception)
    precision, recall  share of samples near a test image, and of test images near a sample
                       (Kynkaanniemi et al. 2019)
There are as many samples as training images, at most 10,000. "real" is the score of as many
training images. The classifier was trained on those, so that it is a little surer of them than of
new images. In pixels, for images of at most 1024 values:
    1-NN test error    of the test set, if a test image gets the class of its nearest sample
                       (DCGAN's paper has it for class-conditional samples)
    log-likelihood     of the test set under Gaussians around the samples, by two papers' protocols

The test set is the dataset's own: that of MNIST, or the folder test or val beside train. A folder
without one lends every tenth image to it, which the classifier then does not see in its training
(the GAN has seen it).
"""
import argparse
import importlib
import math
import os
import sys
import time
import zlib
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, load_data  # noqa: E402

SCRIPTS = ["vanilla_gan", "dcgan", "cgan", "lsgan", "acgan", "infogan", "cogan", "fgan"]
N_SAMPLES = 10000
N_LABELLED = 50000  # samples with classes, for the 1-NN error
N_WINDOWS = 16000  # samples for f-GAN's log-likelihood; GAN's takes the first 10,000 of them
MOST_PIXELS = 1024  # values of an image up to which distances between pixels are worth their time
FEWEST_IMAGES = 8  # of a test set
FEWEST_STEPS = 600  # of the classifier's training, however small the dataset
# of the squared weights of a linear classifier: on CIFAR-10 better than a third or three times as
# much for 1,000 and for 10,000 labels, whether D is trained or not
PENALTY = 500


def unit(images):
    """Images from uint8 to floats in [-1, 1], as the networks see them."""
    return images / 127.5 - 1


def shuffled(data):
    """Return the indices of a dataset's images in an order that is always the same."""
    return torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))


def block(n_in, n_out, kernel=3, stride=1):
    """List a convolution, a batch normalisation and a ReLU."""
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(n_out), nn.ReLU()]


class Residual(nn.Module):
    """x + block(x)."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(*block(channels, channels))

    def forward(self, x):
        return x + self.layers(x)


def digit_layers(channels, side):
    """List the layers to 128 features for grey and for small images; a large image is halved."""
    layers = []
    while side >= 64:
        layers += block(channels, 32, kernel=4, stride=2)
        channels, side = 32, side // 2
    return [
        *layers, *block(channels, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64),
        *block(64, 64), nn.MaxPool2d(2), *block(64, 128), nn.AdaptiveMaxPool2d(3), nn.Flatten(),
        nn.Linear(128 * 9, 128), nn.BatchNorm1d(128), nn.ReLU(),
    ]


def photo_layers(channels, side):
    """List the layers to 128 features for colour images; they are halved until below 32."""
    layers = []
    while side >= 32:
        layers += block(channels, 32, kernel=4, stride=2)
        channels, side = 32, side // 2
    return [
        *layers, *block(channels, 64), nn.MaxPool2d(2), *block(64, 128), Residual(128),
        nn.MaxPool2d(2), *block(128, 256), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(),
    ]


class Classifier(nn.Module):
    """Images (N, C, H, H) in [-1, 1], H at least 8 -> logits (N, n_classes)."""

    def __init__(self, img_shape, n_classes):
        super().__init__()
        channels, side = img_shape[0], img_shape[-1]
        self.is_for_photos = channels == 3 and side >= 32
        layers = photo_layers if self.is_for_photos else digit_layers
        self.layers = nn.Sequential(*layers(channels, side))
        dropout = 0.0 if self.is_for_photos else 0.3
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(128, n_classes))

    def forward(self, x):
        return self.head(self.layers(x))

    @torch.no_grad()
    def features(self, x):
        """Features (N, 128) and class probabilities (N, n_classes) of uint8 or float images."""
        self.eval()
        features = []
        for chunk in x.split(1000):
            features.append(self.layers(chunk if chunk.is_floating_point() else unit(chunk)))
        features = torch.cat(features)
        return features, self.head(features).softmax(1)


def shifted(x):
    """A batch of digits, shifted together by up to 2 pixels."""
    return x.roll(torch.randint(-2, 3, (2,)).tolist(), (2, 3))


def cropped_and_flipped(x):
    """A batch of photographs, each shifted by up to an eighth of its side, some mirrored."""
    n, side = len(x), x.shape[-1]
    reach = side // 8
    rows, columns = (torch.randint(2 * reach + 1, (n, 1)) + torch.arange(side) for _ in range(2))
    columns = torch.where(torch.rand(n, 1) < 0.5, columns, columns.flip(1))
    x = nn.functional.pad(x, [reach] * 4, "reflect")
    index = torch.arange(n)[:, None, None]
    return x[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train_classifier(images, labels, n_classes, batch_size=200):
    """Train a classifier of uint8 images (n, C, H, H)."""
    torch.manual_seed(0)
    net = Classifier(images.shape[1:], n_classes)
    batch_size = min(batch_size, len(images))
    n_batches = len(images) // batch_size
    n_epochs = max(7 if net.is_for_photos else 3, math.ceil(FEWEST_STEPS / n_batches))
    n_steps = n_epochs * n_batches
    if net.is_for_photos:
        net = net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            net.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, n_steps, pct_start=0.25)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, n_steps)
    start, n_done = time.perf_counter(), 0
    for epoch in range(n_epochs):
        for index in torch.randperm(len(images)).split(batch_size)[:n_batches]:
            x = unit(images[index])
            if net.is_for_photos:
                x = cropped_and_flipped(x)
            elif epoch < n_epochs - 1:  # the last epoch has the digits where they are
                x = shifted(x)
            loss = nn.functional.cross_entropy(net(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            n_done += 1
            if n_done == 50:
                seconds = (time.perf_counter() - start) * (n_steps / n_done - 1)
                print(f"about {seconds:.0f} s to go", flush=True)
    return net.eval()


def load_classifier(name, folder, images, labels, n_classes):
    """Load the classifier of uint8 images (n, C, H, H), or train it and keep it in the folder.

    The file's name holds the name given here and a checksum of the images and labels.
    """
    checksum = zlib.crc32(labels.numpy(), zlib.crc32(images.contiguous().numpy()))
    path = Path(folder) / f"score-{name}-{checksum:08x}.pt"
    if path.exists():
        net = Classifier(images.shape[1:], n_classes)
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"training a classifier, once: {path}", flush=True)
    net = train_classifier(images, labels, n_classes)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(net.state_dict(), temporary)
    temporary.replace(path)
    return net


def frechet_distance(a, b):
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of Gaussians fitted to a, b (n, d)."""
    a, b = a.double(), b.double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    # the eigenvalues of A B are real and at least 0; the trace of its root is the sum of theirs
    root = torch.linalg.eigvals(A @ B).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum().item() + (A.trace() + B.trace() - 2 * root).item()


def precision_recall(samples, real, k=3):
    """Share of samples within reach of a real image, and the reverse.

    An image reaches as far as its k-th nearest neighbour of its own kind.
    """

    def within(queries, points):
        reach = torch.cdist(points, points).kthvalue(k + 1, 1).values
        return (torch.cdist(queries, points) <= reach).any(1).float().mean().item()

    return within(samples, real), within(real, samples)


def log_likelihood(samples, queries, sigmas):
    """Mean log density of queries (n, d) under Gaussians around samples (m, d); standard error.

    Both are tensors with a value for each sigma.
    """
    norms = torch.tensor(sigmas).mul(math.sqrt(2 * math.pi)).log()
    constant = math.log(len(samples)) + samples.shape[1] * norms
    densities = []
    for chunk in queries.split(500):
        squares = torch.cdist(chunk, samples) ** 2
        densities.append(torch.stack([(-squares / (2 * s * s)).logsumexp(1) for s in sigmas]))
    densities = torch.cat(densities, 1) - constant[:, None]
    return densities.mean(1), densities.std(1) / len(queries) ** 0.5


def parzen(samples, validation, test):
    """The GAN paper's protocol: samples in [0, 1], sigma chosen on 1,000 validation images."""
    sigmas = torch.logspace(-1, 0, 10).tolist()
    best = log_likelihood(samples, validation, sigmas)[0].argmax()
    mean, error = log_likelihood(samples, test, [sigmas[best]])
    return f"{mean.item():.1f} +- {error.item():.1f}"


def parzen_fgan(samples, test):
    """f-GAN's: sigma by 3-fold cross-validation among the samples, on 1,500 of each fold."""
    sigmas = [0.05 * 1.1**k for k in range(18)]
    folds = samples.chunk(3)
    scores = torch.zeros(len(sigmas))
    for i, fold in enumerate(folds):
        others = torch.cat([*folds[:i], *folds[i + 1 :]])
        scores += log_likelihood(others, fold[:1500], sigmas)[0]
    mean, error = log_likelihood(samples, test, [sigmas[scores.argmax()]])
    return f"{mean.item():.1f} +- {error.item():.1f}"


def nearest_neighbour_error(images, labels, test_images, test_labels):
    """Share of the test images whose nearest of the images has another label."""
    chunks = test_images.flatten(1).split(500)
    nearest = torch.cat([torch.cdist(chunk, images.flatten(1)).argmin(1) for chunk in chunks])
    return (labels[nearest] != test_labels).float().mean().item()


def largest_matching(counts):
    """Match categories to classes one to one so that most images agree; return their number.

    counts (n_categories, n_classes), a list of lists, is the number of images by Q's category and
    by class. Classes are matched in turn, each with a category or with none; of the ways to have
    used the same set of categories, only the best is kept.
    """
    best = {frozenset(): 0}  # the categories that are used: the most images that then agree
    for column in zip(*counts):
        extended = dict(best)  # this class has no category
        for used, n_agreeing in best.items():
            for category, n in enumerate(column):
                if category not in used:
                    key = used | {category}
                    extended[key] = max(extended.get(key, 0), n_agreeing + n)
        best = extended
    return max(best.values())


@torch.no_grad()
def unsupervised_error(D, images, labels, n_classes):
    """The error of infogan.py's Q as a classifier of uint8 images that never saw a label.

    Returns the share of images that are not in the category matched to their class, and the number
    of categories that have a class of their own: more than half of their images are of this class,
    and more than half of this class's images are in them.
    """
    D.eval()
    category = torch.cat([D(unit(chunk))[1].argmax(1) for chunk in images.split(1000)])
    n_categories = D(unit(images[:1]))[1].shape[1]
    counts = torch.bincount(category * n_classes + labels, minlength=n_categories * n_classes)
    counts = counts.view(n_categories, n_classes)
    n_own = ((2 * counts > counts.sum(1, keepdim=True)) & (2 * counts > counts.sum(0))).sum()
    return 1 - largest_matching(counts.tolist()) / len(images), int(n_own)


@torch.no_grad()
def feature_maps(D, images):
    """D's feature maps of uint8 images, each level max-pooled to 4x4, as rows (n, d)."""
    features = None
    for index in torch.arange(len(images)).split(500):
        x, pooled = unit(images[index]), []
        for layer in D.features:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU) and x.ndim == 4:
                pooled.append(nn.functional.adaptive_max_pool2d(x, 4).flatten(1))
        pooled = torch.cat(pooled, 1)
        if features is None:  # hundreds of megabytes, not to be held twice
            features = torch.empty(len(images), pooled.shape[1])
        features[index] = pooled
    return features


def linear_accuracy(features, labels, test_features, test_labels, n_classes):
    """Test accuracy of a softmax regression with squared weights as its penalty, by L-BFGS."""
    linear = nn.Linear(features.shape[1], n_classes)
    nn.init.zeros_(linear.weight)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(linear(features), labels)
        loss = loss + PENALTY / len(labels) * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return (linear(test_features).argmax(1) == test_labels).float().mean().item()


def feature_table(saved, module, numbers, train, test):
    """Print the accuracy of linear classifiers on the features of D, as initialised and as trained.

    So DCGAN's paper judges D (section 5.1); numbers are those of the labelled training images.
    """
    if saved["script"] != "dcgan":
        raise UserError(f"--features is for checkpoints of dcgan.py, not of {saved['script']}.py.")
    if min(numbers) < 2:
        raise UserError(f"--features must be at least 2, not {min(numbers)}.")
    config = saved["config_G"]
    torch.manual_seed(saved["args"]["seed"])
    D = module.Discriminator(tuple(config["img_shape"]), config["width"]).apply(module.weights_init)
    chosen = shuffled(train)[: max(numbers)]
    labels = train.labels[chosen]
    print(f"\n{'linear classifier on D':28} {'test accuracy':>16}", flush=True)
    for kind, weights in (("initialised", D.state_dict()), ("trained", saved["D"])):
        D.load_state_dict(weights)
        features = feature_maps(D.eval(), train.images[chosen])
        test_features = feature_maps(D, test.images)
        std, mean = torch.std_mean(features, 0)
        for x in (features, test_features):
            x.sub_(mean).div_(std.clamp(min=1e-6))
        for n in sorted({min(n, len(labels)) for n in numbers}):
            known = features[:n], labels[:n]
            accuracy = linear_accuracy(*known, test_features, test.labels, len(train.classes))
            row(f"{kind}, {n} labels", accuracy)


@torch.no_grad()
def draw(module, G, n, labels):
    """Draw n samples; return them and the classes that were asked for, or None.

    cogan.py's samples are a pair of tensors, one for each domain. Classes come, as in the training,
    from the data, whose labels (N,) these are.
    """
    torch.manual_seed(1)
    is_conditional = hasattr(G, "classes")
    asked = labels[torch.arange(n) % len(labels)]
    chunks = []
    for y in asked.split(1000):
        z = torch.randn(len(y), G.latent_dim)
        if is_conditional:
            chunks.append(G(z, y))
        elif module.__name__ == "infogan":
            chunks.append(G(z, module.sample_code(len(z), "cpu")))
        else:
            chunks.append(G(z))
    if module.__name__ == "cogan":
        return tuple(torch.cat(domain) for domain in zip(*chunks)), None
    return torch.cat(chunks), asked if is_conditional else None


def load_run(path, raw=False):
    """Load a checkpoint, the module of its script and its generator: the average of G, or G."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        script = saved["script"]
    except OSError:
        raise
    except Exception as error:  # torch.load answers a damaged or foreign file in a dozen ways
        raise UserError(f"{path} is not a checkpoint, or it is damaged.") from error
    if script not in SCRIPTS:
        raise UserError(f"{path} is a checkpoint of {script}.py, which is not one of the scripts.")
    module = importlib.import_module(script)
    try:
        G = module.load_generator(path)
        if raw:
            G.load_state_dict(saved["G"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path} does not fit the present {script}.py.") from error
    return saved, module, G


def load_sets(dataset, data_dir, img_shape):
    """Load the training and the test set of a dataset with classes, for samples of that shape.

    The seed is 0 whatever the run's was: all runs on glyphs have one classifier and one test set.
    """
    options = {"img_size": img_shape[-1], "device": "cpu", "seed": 0, "labelled": True}
    train = load_data(dataset, data_dir, **options)
    try:
        test = load_data(train.name, data_dir, **options, train=False)
    except UserError as error:
        if "no test set" not in str(error):
            raise
        print("No test set: every tenth image is kept from the classifier and taken for it.")
        held_out = torch.arange(len(train.images)) % 10 == 9
        train, test = (
            train._replace(images=train.images[part], labels=train.labels[part])
            for part in (~held_out, held_out)
        )
    if len(train.classes) < 2:
        raise UserError(
            f"{train.name} has no classes, which the classifier needs: each is a subfolder of it."
        )
    for data in (train, test):
        if tuple(data.images.shape[1:]) != tuple(img_shape):
            drawn, real = ("x".join(map(str, s)) for s in (img_shape, data.images.shape[1:]))
            raise UserError(f"the samples are {drawn}, but the images of {data.name} are {real}.")
    n = len(test.images)
    if n < FEWEST_IMAGES:
        raise UserError(f"{train.name} has {n} images to test on; {FEWEST_IMAGES} are needed.")
    return train, test


def load_second_domain(saved, module, train, test, data_dir):
    """Load cogan.py's second domain, or transform the first into it: training and test set."""
    args = saved["args"]
    if args.get("dataset2"):
        return load_sets(args["dataset2"], data_dir, saved["config_G"]["img_shapes"][1])
    made = []
    for data, seed in ((train, 11), (test, 13)):  # the seed chooses mnistm's patches
        images = module.second_domain(data.images, argparse.Namespace(**args | {"seed": seed}))
        made.append(data._replace(images=images))
    return made


def row(name, ours, real=""):
    """Print a line of the table."""
    columns = (f"{v:16.3f}" if isinstance(v, float) else f"{v:>16}" for v in (ours, real))
    print(f"{name:28}", *columns, flush=True)


def compare(title, samples, train, test, cache):
    """Print the table of one domain; return the classes seen and the accuracy."""
    name = f"{Path(train.name).resolve().name}-{train.images.shape[-1]}"
    net = load_classifier(name, cache, train.images, train.labels, len(train.classes))
    real = train.images[shuffled(train)[: len(samples)]]
    (f, p), (f_real, p_real), (f_test, p_test) = map(net.features, (samples, real, test.images))
    n = len(real)  # a second dataset may have fewer images than the first, and then than samples
    accuracy = (p_test.argmax(1) == test.labels).float().mean().item()
    about = f"(classifier: {accuracy:.2%} of the test set)"
    print(f"\n{title:28} {'samples':>16} {'real':>16}   {about}")
    row("Frechet distance", frechet_distance(f[:n], f_test), frechet_distance(f_real, f_test))
    # of the test set every other image: the first half of MNIST's is the easier one
    near, near_real = (precision_recall(g[: n // 2], f_test[::2]) for g in (f, f_real))
    row("precision", near[0], near_real[0])
    row("recall", near[1], near_real[1])
    shares = [torch.bincount(q.argmax(1), minlength=q.shape[1]) / len(q) for q in (p, p_real)]
    row("share of the rarest class", *(share.min().item() for share in shares))
    row("share of the commonest class", *(share.max().item() for share in shares))
    return p.argmax(1), accuracy


@torch.no_grad()
def infogan_rows(saved, module, test):
    """Print how well infogan.py's categories are classes, and, without labels, how sure Q is."""
    D = module.Discriminator(tuple(saved["config_G"]["img_shape"]), saved["config_G"]["width"])
    D.load_state_dict(saved["D"])
    error, n_own = unsupervised_error(D, test.images, test.labels, len(test.classes))
    row("unsupervised test error", error)
    row("categories with own class", f"{n_own} of {module.N_CATEGORIES}")
    D.eval()
    logits = torch.cat([D(unit(chunk))[1] for chunk in test.images.split(1000)])
    row("entropy of Q(c1|x)", module.entropy(logits).item())


def cogan_rows(saved, module, pairs, seen, classes, train, test, cache):
    """Print the table of cogan.py's second domain, and how far its pairs are pairs."""
    domain, dataset2 = saved["args"]["domain"], saved["args"].get("dataset2")
    title = f"domain 2: {Path(train.name).name if dataset2 else domain}"
    x1, x2 = pairs
    seen2, _ = compare(title, x2, train, test, cache)
    if sorted(train.classes) == sorted(classes):  # of two datasets, in whatever order
        index = torch.tensor([classes.index(name) for name in train.classes])
        row("same class in both domains", (seen == index[seen2]).float().mean().item())
    if domain in module.TRANSFORMS and not dataset2:
        is_ink = module.TRANSFORMS[domain](x1) > 0
        row("pixel agreement", (is_ink == (x2 > 0)).float().mean().item())
        row("of shuffled pairs", (is_ink == (x2.roll(1, 0) > 0)).float().mean().item())


def pixel_rows(module, G, train, test):
    """Print how near the test set is to samples and to real images, by their pixels."""
    chosen = shuffled(train)
    labels = train.labels[chosen]
    if hasattr(G, "classes"):
        many, asked = draw(module, G, min(N_LABELLED, len(labels)), labels)
        known = (many, asked), (unit(train.images[chosen[: len(many)]]), labels[: len(many)])
        truth = unit(test.images), test.labels
        row("1-NN test error", *(nearest_neighbour_error(*pair, *truth) for pair in known))
    many = draw(module, G, N_WINDOWS, labels)[0]
    if module.__name__ == "cogan":
        many = many[0]
    n_validation = min(1000, len(chosen) // 10)
    reals, validation = (
        train.images[index].flatten(1) / 255
        for index in (chosen[:-n_validation][:N_WINDOWS], chosen[-n_validation:])
    )
    both, truth = (many.flatten(1) / 2 + 0.5, reals), test.images.flatten(1) / 255
    row("log-likelihood (GAN)", *(parzen(x[:10000], validation, truth) for x in both))
    row("log-likelihood (f-GAN)", *(parzen_fgan(x, truth) for x in both))


def score(options):
    """Print the table of a checkpoint."""
    saved, module, G = load_run(options.checkpoint, options.raw)
    is_cogan = saved["script"] == "cogan"
    img_shape = saved["config_G"]["img_shapes"][0] if is_cogan else saved["config_G"]["img_shape"]
    data_dir = options.data_dir or saved["args"]["data_dir"]
    train, test = load_sets(options.dataset or saved["args"]["dataset"], data_dir, img_shape)
    if hasattr(G, "classes") and list(G.classes) != list(train.classes):
        raise UserError(f"the run had other classes than {train.name} has.")
    if options.features:
        return feature_table(saved, module, options.features, train, test)
    second = load_second_domain(saved, module, train, test, data_dir) if is_cogan else None

    labels = train.labels[shuffled(train)]
    samples, asked = draw(module, G, min(N_SAMPLES, len(labels)), labels)
    x = samples[0] if is_cogan else samples
    seen, accuracy = compare(saved["script"], x, train, test, options.cache)
    if asked is not None:
        row("class asked = class seen", (seen == asked).float().mean().item(), accuracy)
    if saved["script"] == "infogan":
        infogan_rows(saved, module, test)
    if is_cogan:
        cogan_rows(saved, module, samples, seen, train.classes, *second, options.cache)
    if options.quick:
        return
    if math.prod(img_shape) > MOST_PIXELS:
        print("1-NN error, log-likelihoods      skipped: the images are too large for them")
        return
    pixel_rows(module, G, train, test)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="score.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint")
    add("--dataset", help="what to compare with (default: the run's dataset)")
    add("--data_dir", help="directory of the datasets (default: the run's)")
    add("--cache", default="runs", help="folder that keeps the classifiers")
    add("--raw", action="store_true", help="score G as it is, not its running average")
    add("--quick", action="store_true", help="leave out the comparisons of pixels, which take long")
    add("--features", type=int, nargs="+", metavar="N",
        help="instead: test accuracy of a linear classifier on the features of dcgan.py's D, "
        "trained with N labelled images")
    options = parser.parse_args(argv)
    try:
        score(options)
    except (UserError, OSError) as error:
        parser.exit(2, f"score.py: {error}\n")


if __name__ == "__main__":
    main()
