"""How fast are the scripts, and what does the usual loop cost? Steps per second on MNIST.

    python tests/speed.py                  # every script, and a DCGAN trained the usual way
    python tests/speed.py --cuda           # every script on a GPU, with and without a CUDA graph
    python tests/speed.py --distance 5     # dcgan.py and the usual way, to a Frechet distance of 5

The usual way is that of PyTorch-GAN and of most tutorials, reimplemented here: a DataLoader decodes
and resizes every image to 32x32 in every epoch, convolutions work on upsampled maps, and G's images
are scored with D's gradients kept. Where MNIST can't be had, the images are drawn digits.
"""
import argparse
import copy
import functools
import importlib
import sys
import time
from itertools import islice
from pathlib import Path
from unittest import mock

import score
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, batches, load_data  # noqa: E402

USUAL = "the usual way"


def ours(name, data, device, graph=True):
    """Run the loop of a script's train, without its files and falling learning rates.

    Without graph, a GPU's kernels are launched one by one. Yields the average of G before the first
    step and after every step.
    """
    module = importlib.import_module(name)
    args = module.parse_args([])
    torch.manual_seed(args.seed)
    with mock.patch.object(module, "load_data", lambda *_, **__: data):  # it is loaded once for all
        data, G, D = module.build(args, device)
    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.b1, args.b2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
    G_avg = copy.deepcopy(G).eval()
    state = {"G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "G_avg": G_avg}
    one_step = functools.partial(module.full_step, state, args)
    if device.type == "cuda" and graph:
        one_step = module.cuda_graph(one_step, (opt_G, opt_D))
    yield G_avg
    for step, (x, y) in enumerate(batches(data, args.batch_size, args.seed)):
        one_step(x, y, args.lr_g, args.lr_d, max(10 / (step + 10), 1 / 500))
        yield G_avg


def usual(data):
    """Run the usual way: PyTorch-GAN's DCGAN in its layers, sizes and order of steps.

    The epsilon of its batch normalisation is the usual one. Yields G as ours does.
    """

    def up(n_in, n_out):
        convolution = nn.Conv2d(n_in, n_out, 3, 1, 1)
        return nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2)

    def down(n_in, n_out):
        convolution = nn.Conv2d(n_in, n_out, 3, 2, 1)
        return convolution, nn.LeakyReLU(0.2), nn.Dropout2d(0.25), nn.BatchNorm2d(n_out)

    torch.manual_seed(0)
    G = nn.Sequential(
        nn.Linear(100, 128 * 64), nn.Unflatten(1, (128, 8, 8)), nn.BatchNorm2d(128),
        *up(128, 128), *up(128, 64), nn.Conv2d(64, 1, 3, 1, 1), nn.Tanh(),
    )
    D = nn.Sequential(
        *down(1, 16)[:3], *down(16, 32), *down(32, 64), *down(64, 128), nn.Flatten(),
        nn.Linear(128 * 4, 1), nn.Sigmoid(),
    )
    for p in (*G.parameters(), *D.parameters()):
        if p.ndim == 4:
            nn.init.normal_(p, 0, 0.02)
    G.latent_dim = 100
    opt_G = torch.optim.Adam(G.parameters(), 2e-4, (0.5, 0.999))
    opt_D = torch.optim.Adam(D.parameters(), 2e-4, (0.5, 0.999))
    transform = transforms.Compose(
        [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    )

    def collate(index):  # each image as torchvision's MNIST decodes it
        pictures = [Image.fromarray(data.images[i, 0].numpy()) for i in index]
        return torch.stack([transform(picture) for picture in pictures])

    loader = torch.utils.data.DataLoader(
        range(len(data.images)), 64, shuffle=True, drop_last=True, collate_fn=collate
    )
    loss = nn.BCELoss()
    real = torch.ones(64, 1)
    fake = torch.zeros(64, 1)
    yield G
    while True:
        for x in loader:
            opt_G.zero_grad()
            images = G(torch.randn(64, 100))
            loss(D(images), real).backward()
            opt_G.step()
            opt_D.zero_grad()
            ((loss(D(x), real) + loss(D(images.detach()), fake)) / 2).backward()
            opt_D.step()
            yield G


def steps_per_second(steps, n):
    """Time n steps on the CPU or a CUDA device, which is waited for before and after."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in islice(steps, 1 + min(n, 10)):  # the networks are made, the device warms up
        pass
    wait()
    start = time.perf_counter()
    for _ in islice(steps, n):
        pass
    wait()
    return n / (time.perf_counter() - start)


def kernel_seconds(steps, n=10):
    """Measure for how long a step's kernels run on a CUDA device."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in islice(steps, n):
            pass
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    kernels = [event for event in profile.events() if event.device_type == cuda]
    return sum(kernel.device_time for kernel in kernels) / n * 1e-6


def compare_scripts(names, data, n_steps, device):
    """Print the speed of each script and, on a GPU, what it is without a CUDA graph."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        print("steps/s and s/epoch with a CUDA graph, and the share of the time that kernels run;")
        print("then steps/s and that share where Python launches every kernel")
        print(f"{'':16} {'steps/s':>8} {'s/epoch':>8} {'kernels':>8} {'steps/s':>8} {'kernels':>8}")
    else:
        print(f"{'':16} {'steps/s':>8} {'s/epoch':>8}")
    for name in names:
        if name == USUAL:
            batch_size, loop = 64, usual(data)
        else:
            batch_size = importlib.import_module(name).parse_args([]).batch_size
            loop = ours(name, data, device)
        n_images = len(data.images) // 2 if name == "cogan" else len(data.images)
        speed = steps_per_second(loop, n_steps)
        line = f"{name:16} {speed:8.1f} {n_images // batch_size / speed:8.1f}"
        if is_cuda:
            eager = ours(name, data, device, graph=False)
            eager_speed = steps_per_second(eager, n_steps)
            line += f" {kernel_seconds(loop) * speed:8.0%} {eager_speed:8.1f}"
            line += f" {kernel_seconds(eager) * eager_speed:8.0%}"
        print(line, flush=True)


def compare_distances(loops, train, test, goal, limit, every=250, n=10000):
    """Print the distance of n samples of each loop every so many steps, until it is at the goal.

    Give up when the limit of seconds is spent; drawing and measuring samples does not count.
    """
    images, labels = train.images, train.labels
    net = score.load_classifier(f"{train.name}-28", "runs", images, labels, len(train.classes))
    truth = net.features(test.images)[0]

    def resized(x, side):
        return nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)

    def distance(x):
        return score.frechet_distance(net.features(resized(x, 28))[0], truth)

    x = score.unit(images[score.shuffled(train)[:n]])
    as_is, there_and_back = distance(x), distance(resized(x, 32))
    print(f"real images: distance {as_is:.3f}, resized to 32x32 and back {there_and_back:.3f}")
    for title, steps in loops.items():
        print(title, flush=True)
        next(steps)  # the networks as they start
        spent, now = 0.0, float("inf")
        while now > goal and spent < limit:
            start = time.perf_counter()
            G = [next(steps) for _ in range(every)][-1]
            spent += time.perf_counter() - start
            with torch.random.fork_rng(), torch.no_grad():
                training = G.training
                x = torch.cat([G.eval()(torch.randn(200, G.latent_dim)) for _ in range(n // 200)])
                G.train(training)
            now = distance(x)
            print(f"{spent:8.0f} s   distance {now:8.2f}", flush=True)


def run(options):
    """Do what the command line asks for."""
    for name in options.scripts:
        if name not in score.SCRIPTS:
            raise UserError(f"{name} is not one of {', '.join(score.SCRIPTS)}.")
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1, not {options.steps}.")
    if options.cuda and not torch.cuda.is_available():
        raise UserError("no CUDA device was found.")
    device = torch.device("cuda" if options.cuda else "cpu")
    if options.distance is not None:
        train, test = score.load_sets(options.dataset, options.data_dir, (1, 28, 28))
        loops = {"dcgan.py": ours("dcgan", train, torch.device("cpu")), USUAL: usual(train)}
        compare_distances(loops, train, test, options.distance, options.limit)
        return
    data = load_data(options.dataset, options.data_dir, device=device)
    everything = score.SCRIPTS if options.cuda else [*score.SCRIPTS, USUAL]
    compare_scripts(options.scripts or everything, data, options.steps, device)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="speed.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("scripts", nargs="*", help="names without .py (none: all)")
    add("--dataset", choices=["auto", "mnist", "glyphs"], default="auto",
        help="auto is MNIST or, offline, glyphs, which are drawn digits (default: auto)")
    add("--data_dir", default="data", help="directory of MNIST (default: data)")
    add("--cuda", action="store_true", help="time the scripts on a CUDA device")
    add("--steps", type=int, default=100, help="steps that are timed (default: 100)")
    add("--distance", type=float, help="instead: seconds to this Frechet distance, on the CPU")
    add("--limit", type=float, default=900,
        help="with --distance: seconds before giving up (default: 900)")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (UserError, OSError) as error:
        parser.exit(2, f"speed.py: {error}\n")


if __name__ == "__main__":
    main()
