"""How fast are the scripts, and what does the usual loop cost? Steps per second on MNIST.

    python tests/speed.py                  # every script, and a DCGAN trained the usual way
    python tests/speed.py --cuda           # every script on a GPU, with and without a CUDA graph
    python tests/speed.py --bf16           # dcgan.py in float32 and bfloat16, at three image sizes
    python tests/speed.py --distance 5     # dcgan.py and the usual way, to a Frechet distance of 5

The usual way is that of PyTorch-GAN and of most tutorials, written anew here: a DataLoader decodes
and resizes every image to 32x32 in every epoch, convolutions work on upsampled maps, and G's images
are scored with D's gradients kept.
"""
import argparse
import copy
import functools
import importlib
import sys
import time
from itertools import islice
from pathlib import Path

import score
import torch
from torch import nn
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Data, UserError, batches  # noqa: E402

USUAL = "the usual way"
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]  # of the images for --bf16
ROUNDS = 4  # of which --bf16 takes the fastest


def ours(name, options, device="cpu", data=None, graph=True):
    """Run the loop of a script's train, without its files and falling learning rates.

    data takes the place of the dataset that the options name. Without graph, a GPU's kernels are
    launched one by one. Yields the average of G before the first step and after every step.
    """
    module = importlib.import_module(name)
    args = module.parse_args(options)
    load = module.load_data
    module.load_data = (lambda *_, **__: data) if data else load
    try:
        data, G, D = module.build(args, device)
    finally:
        module.load_data = load
    opt_G = torch.optim.Adam(G.parameters(), args.lr_g, (args.b1, args.b2), fused=True)
    opt_D = torch.optim.Adam(D.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
    G_avg = copy.deepcopy(G).eval()
    state = {"G": G, "D": D, "opt_G": opt_G, "opt_D": opt_D, "G_avg": G_avg}
    one_step = functools.partial(module.full_step, state, args)
    if device == "cuda" and graph:
        one_step = module.cuda_graph(one_step, (opt_G, opt_D))
    yield G_avg
    step = 0
    while True:
        for x, y in batches(data, args.batch_size):
            one_step(x, y, args.lr_g, args.lr_d, max(10 / (step + 10), 1 / 500))
            step += 1
            yield G_avg


def usual(data_dir):
    """Run the usual way: PyTorch-GAN's DCGAN in its layers, sizes and order of steps.

    The epsilon of its batch normalisation is the usual one. Yields G as ours does.
    """

    def up(n_in, n_out):
        convolution = nn.Conv2d(n_in, n_out, 3, 1, 1)
        return nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2)

    def down(n_in, n_out):
        convolution = nn.Conv2d(n_in, n_out, 3, 2, 1)
        return convolution, nn.LeakyReLU(0.2), nn.Dropout2d(0.25), nn.BatchNorm2d(n_out)

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
    data = datasets.MNIST(data_dir, transform=transform)
    loader = torch.utils.data.DataLoader(data, 64, shuffle=True)
    loss = nn.BCELoss()
    real = torch.ones(64, 1)
    fake = torch.zeros(64, 1)
    yield G
    while True:
        for x, _ in islice(loader, len(loader) - 1):
            opt_G.zero_grad()
            images = G(torch.randn(64, 100))
            loss(D(images), real).backward()
            opt_G.step()
            opt_D.zero_grad()
            ((loss(D(x), real) + loss(D(images.detach()), fake)) / 2).backward()
            opt_D.step()
            yield G


def timed(function, spent):
    """Wrap a function to add the seconds of its outermost call to spent[0]."""

    def call(*args, **kwargs):
        start, inside = time.perf_counter(), spent[1]
        spent[1] = True
        try:
            return function(*args, **kwargs)
        finally:
            spent[1] = inside
            if not inside:
                spent[0] += time.perf_counter() - start

    return call


def steps_per_second(steps, n):
    """Time n steps: steps per second, and the share of the time outside networks and optimizers."""
    for _ in islice(steps, 1 + min(n, 10)):  # data loading and warm-up
        pass
    spent = [0.0, False]
    patched = [(nn.Module, "__call__"), (torch.Tensor, "backward"), (torch.optim.Adam, "step")]
    originals = [getattr(*place) for place in patched]
    for place, original in zip(patched, originals):
        setattr(*place, timed(original, spent))
    try:
        start = time.perf_counter()
        for _ in islice(steps, n):
            pass
        whole = time.perf_counter() - start
    finally:
        for place, original in zip(patched, originals):
            setattr(*place, original)
    return n / whole, 1 - spent[0] / whole


def plain_steps_per_second(steps, n):
    """Time n steps on the CPU or a CUDA device, which is waited for before and after."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    for _ in islice(steps, n):
        pass
    wait()
    return n / (time.perf_counter() - start)


def steps_per_second_and_kernels(steps, n):
    """Time n steps on a CUDA device: steps per second, and the share of the time kernels run."""
    for _ in islice(steps, 1 + n):  # data loading and warm-up
        pass
    per_second = plain_steps_per_second(steps, n)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in islice(steps, 10):
            pass
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    kernels = [event for event in profile.events() if event.device_type == cuda]
    busy = sum(kernel.device_time for kernel in kernels) / 10 * 1e-6  # seconds a step
    return per_second, busy * per_second


def compare_bf16(device, n):
    """Print the speed of dcgan.py on random images in float32 and in bfloat16, in turns."""
    print(f"{'':16} {'float32':>8} {'bfloat16':>8}   steps/s, the fastest of {ROUNDS} rounds each")
    for shape in SHAPES:
        images = torch.randint(256, (256, *shape), dtype=torch.uint8, device=device)
        data = Data("random", images, torch.zeros(256, dtype=torch.long, device=device), [""])
        loops = [ours("dcgan", options, device, data) for options in ([], ["--bf16"])]
        for steps in loops:
            for _ in islice(steps, 1 + min(n, 10)):
                pass
        speeds = [[plain_steps_per_second(steps, n) for steps in loops] for _ in range(ROUNDS)]
        plain, bf16 = map(max, zip(*speeds))
        channels, height, width = shape
        name = f"{height}x{width}x{channels}"
        print(f"{name:16} {plain:8.1f} {bf16:8.1f}   {bf16 / plain:.2f} times", flush=True)


def seconds_to(distance, steps, data_dir, every, limit, n=10000):
    """Print the distance of n samples every so many steps, until it is reached.

    Give up when the limit of seconds is spent; drawing and measuring samples does not count.
    """
    train, test = score.load_sets("mnist", data_dir, None)
    cache = score.default_cache(data_dir)
    net = score.load_classifier("mnist-28", cache, train.images, train.labels, 10)
    truth = net.features(test.images)[0]
    spent = 0.0
    now = float("inf")
    next(steps)  # the networks as they start, with the data loaded
    while now > distance and spent < limit:
        start = time.perf_counter()
        G = [next(steps) for _ in range(every)][-1]
        spent += time.perf_counter() - start
        with torch.random.fork_rng(), torch.no_grad():
            training = G.training
            x = torch.cat([G.eval()(torch.randn(200, G.latent_dim)) for _ in range(n // 200)])
            G.train(training)
        x = nn.functional.interpolate(x, test.images.shape[-2:], mode="bilinear", antialias=True)
        now = score.frechet_distance(net.features(x)[0], truth)
        print(f"{spent:8.0f} s   distance {now:8.2f}", flush=True)


def compare_scripts(names, options, steps, device):
    """Print the speed of each script on MNIST, and what takes the time."""
    if device == "cuda":
        print("steps/s and s/epoch with a CUDA graph, and the share of the time that kernels run;")
        print("then steps/s and that share where Python launches every kernel")
        print(f"{'':16} {'steps/s':>8} {'s/epoch':>8} {'kernels':>8} {'steps/s':>8} {'kernels':>8}")
    else:
        print(f"{'':16} {'steps/s':>8} {'s/epoch':>8}   outside networks and optimizers")
    for name in names:
        batch_size = 64
        if name == USUAL:
            loop = usual(options[options.index("--data_dir") + 1])
        else:
            batch_size = importlib.import_module(name).parse_args(options).batch_size
            loop = ours(name, options, device)
        per_epoch = (30000 if name == "cogan" else 60000) // batch_size
        if device == "cuda":
            speed, busy = steps_per_second_and_kernels(loop, steps)
            eager = ours(name, options, device, graph=False)
            eager_speed, eager_busy = steps_per_second_and_kernels(eager, steps)
            what = f"{busy:8.0%} {eager_speed:8.1f} {eager_busy:8.0%}"
        else:
            speed, outside = steps_per_second(loop, steps)
            what = f"  {outside:.0%}"
        print(f"{name:16} {speed:8.1f} {per_epoch / speed:8.1f} {what}", flush=True)


def run(options):
    """Do what the command line asks for."""
    for name in options.scripts:
        if name not in score.SCRIPTS:
            raise UserError(f"{name} is not one of {', '.join(score.SCRIPTS)}.")
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1, not {options.steps}.")
    if options.cuda and not torch.cuda.is_available():
        raise UserError("no CUDA device was found.")
    device = "cuda" if options.cuda else "cpu"
    torch.manual_seed(0)
    mnist = ["--dataset", "mnist", "--data_dir", options.data_dir]
    if options.bf16:
        compare_bf16(device, options.steps)
    elif options.distance is not None:
        for title, loop in (("dcgan.py", ours("dcgan", mnist)), (USUAL, usual(options.data_dir))):
            print(title, flush=True)
            seconds_to(options.distance, loop, options.data_dir, every=250, limit=options.limit)
    else:
        everything = score.SCRIPTS if options.cuda else [*score.SCRIPTS, USUAL]
        compare_scripts(options.scripts or everything, mnist, options.steps, device)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="speed.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("scripts", nargs="*", help="names without .py (none: all)")
    add("--data_dir", default="data", help="directory of MNIST")
    add("--cuda", action="store_true", help="time the scripts on a CUDA device")
    add("--bf16", action="store_true", help="instead: dcgan.py in float32 and in bfloat16")
    add("--steps", type=int, default=100, help="steps that are timed")
    add("--distance", type=float, help="instead: seconds to this Frechet distance, on the CPU")
    add("--limit", type=float, default=900, help="with --distance: seconds before giving up")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (UserError, OSError) as error:  # no MNIST, and no net to fetch it
        parser.exit(2, f"speed.py: {error}\n")


if __name__ == "__main__":
    main()
