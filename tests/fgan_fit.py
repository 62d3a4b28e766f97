"""f-GAN's univariate example: a Gaussian fitted to a mixture, and which divergence it minimises.

    OMP_NUM_THREADS=1 python tests/fgan_fit.py

The paper (section 2.4, table 3) fits q = N(mean, deviation^2) to a mixture p of two Gaussians by
five divergences. Here fgan.train_step does so, once for each loss of the generator; the best fit
and the divergences are integrals over a fine grid. With minimax, the fit should be the one that
minimises D_f. With non_saturating, it should be the one that minimises D_h, h''(u) = f''(u) / u.

D is the paper's: two hidden layers of 64 tanh units, its output being the score. With --asinh the
score is asinh of it, as in fgan.py (its departure 2).

The paper's figures are recalled, not copied from its text, and so is its D. It does not name the
mixture; this one has the paper's D_f and best fits to within 0.001.
"""
import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fgan  # noqa: E402

LOSSES = ["minimax", "non_saturating"]

# D_f at the best fit, F at the paper's; the best mean, the paper's; the best deviation, the paper's
PAPER = {
    "kl": (0.2831, 0.2801, 1.0100, 1.0335, 1.8308, 1.8236),
    "reverse_kl": (0.2480, 0.2415, 1.5782, 1.5624, 1.6319, 1.6403),
    "jensen_shannon": (0.1280, 0.1226, 1.3070, 1.2854, 1.7542, 1.7659),
    "jeffrey": (0.5705, 0.5151, 1.3218, 1.2295, 1.7034, 1.8087),
    "pearson": (0.6457, 0.6379, 0.5737, 0.6157, 1.9274, 1.9031),
}

GRID = torch.linspace(-14, 16, 6001, dtype=torch.double)
SPACING = (GRID[1] - GRID[0]).item()


def log_normal(mean, deviation):
    """Logarithm of the density of N(mean, deviation^2) on the grid."""
    mean, deviation = torch.as_tensor(mean), torch.as_tensor(deviation)
    return -(((GRID - mean) / deviation) ** 2) / 2 - deviation.log() - math.log(2 * math.pi) / 2


SHARE, MEANS, DEVIATIONS = 0.33, (-1.0, 2.0), (0.2547, math.sqrt(2))  # of the mixture p
LOG_P = torch.logaddexp(
    math.log(SHARE) + log_normal(MEANS[0], DEVIATIONS[0]),
    math.log(1 - SHARE) + log_normal(MEANS[1], DEVIATIONS[1]),
)


def sample_p(n):
    """Draw n numbers (n, 1) from the mixture."""
    first = MEANS[0] + DEVIATIONS[0] * torch.randn(n, 1)
    second = MEANS[1] + DEVIATIONS[1] * torch.randn(n, 1)
    return torch.where(torch.rand(n, 1) < SHARE, first, second)


def kl(log_p, log_q):
    return log_p.exp() * (log_p - log_q)


def chi_squared(log_p, log_q):
    """(p - q)^2 / q, but for terms whose integral is 0: p^2 / q - p."""
    return (2 * log_p - log_q).exp() - log_p.exp()


def jensen_shannon(log_p, log_q):
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return kl(log_p, log_m) + kl(log_q, log_m)


# what is integrated: f(p / q) q, and then h(p / q) q
D_F = {
    "kl": kl,
    "reverse_kl": lambda log_p, log_q: kl(log_q, log_p),
    "jensen_shannon": jensen_shannon,
    "jeffrey": lambda log_p, log_q: kl(log_p, log_q) + kl(log_q, log_p),
    "pearson": chi_squared,
}
D_H = {
    "kl": D_F["reverse_kl"],
    "reverse_kl": lambda log_p, log_q: chi_squared(log_q, log_p) / 2,  # half of Neyman's
    "jensen_shannon": lambda log_p, log_q: kl(log_q, log_p) - jensen_shannon(log_p, log_q),
    "jeffrey": lambda log_p, log_q: kl(log_q, log_p) + chi_squared(log_q, log_p) / 2,
    "pearson": lambda log_p, log_q: 2 * kl(log_p, log_q),
}


def integral(integrand, mean, deviation):
    """The divergence of p and N(mean, deviation^2) whose integrand this is."""
    return integrand(LOG_P, log_normal(mean, deviation)).sum() * SPACING


def best_fit(integrand):
    """Return the mean and the deviation of the Gaussian with the smallest such divergence."""
    theta = torch.tensor([1.0, 0.5], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = integral(integrand, theta[0], theta[1].exp())
        value.backward()
        return value

    optimizer.step(closure)
    return theta[0].item(), theta[1].exp().item()


class Gaussian(nn.Module):
    """z (N, 1) -> numbers (N, 1) from N(mean, deviation^2)."""

    latent_dim = 1

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))
        self.log_deviation = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return self.mean + self.log_deviation.exp() * z


class Asinh(nn.Module):
    def forward(self, x):
        return x.asinh()


def fit(divergence, loss, n_steps=1500, seed=0, asinh=False, batch_size=1024, lr=5e-3):
    """Train; return F, by integration, and the mean and the deviation of the fit."""
    args = fgan.parse_args(["--divergence", divergence, "--loss", loss])
    torch.manual_seed(seed)
    G = Gaussian()
    D = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    if asinh:
        D.append(Asinh())
    optimizers = [torch.optim.Adam(net.parameters(), lr, fused=True) for net in (G, D)]
    for step in range(n_steps):
        for optimizer in optimizers:  # the rates fall over the second half, as in fgan.py
            optimizer.param_groups[0]["lr"] = lr * min(1, 2 * (1 - step / n_steps))
        fgan.train_step(G, D, *optimizers, sample_p(batch_size), None, args)

    mean, deviation = G.mean.item(), G.log_deviation.exp().item()
    f = fgan.divergence(args)
    with torch.no_grad():
        s = D(GRID.float()[:, None]).double()[:, 0]
    p, q = LOG_P.exp(), log_normal(mean, deviation).exp()
    F = ((p * f.activation(s) - q * f.conjugate(s)).sum() * SPACING).item()
    return F, mean, deviation


def show(numbers):
    return ", ".join(f"{number:.3f}" for number in numbers)


def print_fits(loss, results):
    """Print a row for each divergence, the seeds beside each other."""
    print(f"\n`--loss {loss}`\n")
    print("| divergence | D_f of its best fit | D_f of ours | F | the paper's F | mean: best for D_f "
          "| best for D_h | ours | the paper's | deviation: best for D_f | best for D_h | ours "
          "| the paper's |")
    print("|---" * 13 + "|")
    for name, fits in results.items():
        best, other = best_fit(D_F[name]), best_fit(D_H[name])
        divergences = [integral(D_F[name], *moments).item() for _, *moments in fits]
        bounds, means, deviations = zip(*fits)
        cells = [
            name, show([integral(D_F[name], *best).item()]), show(divergences), show(bounds),
            show([PAPER[name][1]]), show([best[0]]), show([other[0]]), show(means),
            show([PAPER[name][3]]), show([best[1]]), show([other[1]]), show(deviations),
            show([PAPER[name][5]]),
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def print_cross_test(loss, results):
    """Print how each fit does by each divergence, as the mean over the seeds."""
    print(f"\nEach fit by each divergence, `--loss {loss}`\n")
    print("| trained with | " + " | ".join(D_F) + " |")
    print("|---" * (len(D_F) + 1) + "|")
    for name, fits in results.items():
        cells = [name]
        for integrand in D_F.values():
            values = [integral(integrand, *moments).item() for _, *moments in fits]
            cells.append(f"{sum(values) / len(values):.3f}")
        print("| " + " | ".join(cells) + " |")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--asinh", action="store_true", help="scores as fgan.py's D has them")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    for loss in LOSSES:
        results = {
            name: [fit(name, loss, options.steps, s, options.asinh) for s in options.seeds]
            for name in D_F
        }
        print_fits(loss, results)
        print_cross_test(loss, results)
    print(f"\n{time.perf_counter() - start:.0f} s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
