"""How fast are the scripts, and what does the usual loop cost? Steps per second, on MNIST, by the clock.

    python tests/speed.py                  # every script, and a DCGAN trained the usual way, in a minute or two
    python tests/speed.py --cuda           # every script on a GPU, and how much of the time its kernels run
    python tests/speed.py --distance 5     # dcgan.py and the usual way, until the samples are that near the test set

The usual way is that of PyTorch-GAN and of most tutorials, written anew here: a DataLoader decodes and resizes every
image to 32x32 in every epoch, convolutions work on upsampled maps, and G's images are scored with D's gradients kept.
"""
import argparse
import importlib
import sys
import time
from itertools import islice
from pathlib import Path

import score
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import batches, load_data  # noqa: E402

SCRIPTS = ["vanilla_gan", "dcgan", "cgan", "lsgan", "acgan", "infogan", "cogan", "fgan"]


def ours(name, data_dir, device="cpu"):
    """Yields G after every step of the script's own loop (main, but files and falling rates), and before it."""
    module = importlib.import_module(name)
    args = module.parse_args(["--data_dir", str(data_dir), "--dataset", "mnist"])
    data, config_G, config_D = module.setup(args, device)
    G, D = module.Generator(**config_G).to(device), module.Discriminator(**config_D).to(device)
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), lr, (args.b1, args.b2), fused=True)
                    for net, lr in ((G, args.lr_g), (D, args.lr_d)))
    average = AveragedModel(G, use_buffers=True,
                            avg_fn=lambda old, new, n: old.float().lerp_(new.float(), (10 / (n + 10)).clamp(0.002)))
    yield average.module
    while True:
        for x, y in batches(data, args.batch_size):
            module.train_step(G, D, opt_G, opt_D, x, y, args)
            average.update_parameters(G)
            yield average.module


def usual(data_dir):
    """The same for the usual way: PyTorch-GAN's DCGAN in its layers, sizes and order of steps, with the usual eps."""
    def up(n_in, n_out):
        return nn.Upsample(scale_factor=2), nn.Conv2d(n_in, n_out, 3, 1, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2)

    def down(n_in, n_out):
        return nn.Conv2d(n_in, n_out, 3, 2, 1), nn.LeakyReLU(0.2), nn.Dropout2d(0.25), nn.BatchNorm2d(n_out)
    G = nn.Sequential(nn.Linear(100, 128 * 64), nn.Unflatten(1, (128, 8, 8)), nn.BatchNorm2d(128), *up(128, 128),
                      *up(128, 64), nn.Conv2d(64, 1, 3, 1, 1), nn.Tanh())
    D = nn.Sequential(*down(1, 16)[:3], *down(16, 32), *down(32, 64), *down(64, 128), nn.Flatten(),
                      nn.Linear(128 * 4, 1), nn.Sigmoid())
    for p in (*G.parameters(), *D.parameters()):
        if p.ndim == 4:
            nn.init.normal_(p, 0, 0.02)
    G.latent_dim = 100
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (G, D))
    transform = transforms.Compose([transforms.Resize(32), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    loader = torch.utils.data.DataLoader(datasets.MNIST(data_dir, transform=transform), 64, shuffle=True)
    loss, real, fake = nn.BCELoss(), torch.ones(64, 1), torch.zeros(64, 1)
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
    """The function, which adds the seconds that its outermost call takes to spent[0]."""
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
    """Steps per second over n steps of the loop, and the share of the time outside networks and optimizers."""
    for _ in islice(steps, 1 + min(n, 10)):  # data loading and warm-up
        pass
    spent, patched = [0.0, False], [(nn.Module, "__call__"), (torch.Tensor, "backward"), (torch.optim.Adam, "step")]
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


def steps_per_second_and_kernels(steps, n):
    """Steps per second over n steps on a CUDA device; kernels a step, and the share of the time in which they run."""
    for _ in islice(steps, 1 + n):  # data loading and warm-up
        pass
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in islice(steps, n):
        pass
    torch.cuda.synchronize()
    per_second = n / (time.perf_counter() - start)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        for _ in islice(steps, 10):
            pass
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return per_second, len(kernels) / 10, sum(kernel.device_time for kernel in kernels) / 10 * 1e-6 * per_second


def seconds_to(distance, steps, data_dir, every, limit, n=10000):
    """Prints the distance of n samples every so many steps, until it is reached or the limit of seconds is spent."""
    train, test = (load_data("mnist", data_dir, train=t) for t in (True, False))
    net = score.load_classifier("mnist-28", data_dir, train.images / 127.5 - 1, train.labels, 10)
    truth, spent, now = net.features(test.images / 127.5 - 1)[0], 0.0, float("inf")
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


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", help="names without .py (none: all)")
    parser.add_argument("--data_dir", default="data", help="where MNIST lies")
    parser.add_argument("--cuda", action="store_true", help="time the scripts on a CUDA device")
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed")
    parser.add_argument("--distance", type=float, help="instead: seconds to this Frechet distance")
    parser.add_argument("--limit", type=float, default=900, help="with --distance: seconds after which to give up")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    if options.distance:
        for title, steps in (("dcgan.py", ours("dcgan", options.data_dir)), ("the usual way", usual(options.data_dir))):
            print(title, flush=True)
            seconds_to(options.distance, steps, options.data_dir, every=250, limit=options.limit)
        return
    if options.cuda and not torch.cuda.is_available():
        parser.exit(2, "speed: no CUDA device was found.\n")
    last = "kernels a step, which run" if options.cuda else "outside networks and optimizers"
    print(f"{'':16} {'steps/s':>8} {'s/epoch':>8}   {last}")
    for name in options.scripts or [*SCRIPTS, *["the usual way"] * (not options.cuda)]:
        per_epoch = (30000 if name == "cogan" else 60000) // 64
        if options.cuda:
            speed, kernels, busy = steps_per_second_and_kernels(ours(name, options.data_dir, "cuda"), options.steps)
            what = f"{kernels:.0f}, {busy:.0%} of the time"
        else:
            steps = usual(options.data_dir) if name == "the usual way" else ours(name, options.data_dir)
            speed, outside = steps_per_second(steps, options.steps)
            what = f"{outside:.0%}"
        print(f"{name:16} {speed:8.1f} {per_epoch / speed:8.0f}   {what}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except ConnectionError as error:  # no MNIST, and no net to fetch it
        sys.exit(f"speed: {str(error).partition(';')[0]}; --data_dir names the folder.")
