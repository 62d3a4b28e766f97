"""f-GAN's univariate example: a Gaussian fitted to a mixture, and which divergence it minimises.

    OMP_NUM_THREADS=1 python tests/fgan_fit.py            # D's output is the score, as in the paper
    OMP_NUM_THREADS=1 python tests/fgan_fit.py --asinh    # asinh of it, as in fgan.py

The paper (section 2.4, table 3) fits q = N(mean, deviation^2) to a mixture p of two Gaussians by
five divergences. Here fgan.train_step does so, with each of G's two losses. The best fits and all
divergences are integrals over a fine grid. With minimax the fit should be the one with the least
D_f, with non_saturating the one with the least D_h, where h''(u) = f''(u) / u.

The paper's figures and its D (two hidden layers of 64 tanh units) are recalled, not copied from its
text. It does not name the mixture; the one below has its least D_f and best fits to within 0.001.
"""
import argparse
import math
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fgan  # noqa: E402

# a value, a mean and a deviation: the least D_f, and F at the paper's fit
PAPER_BEST = {
    "kl": (0.2831, 1.0100, 1.8308),
    "reverse_kl": (0.2480, 1.5782, 1.6319),
    "jensen_shannon": (0.1280, 1.3070, 1.7542),
    "jeffrey": (0.5705, 1.3218, 1.7034),
    "pearson": (0.6457, 0.5737, 1.9274),
}
PAPER_FIT = {
    "kl": (0.2801, 1.0335, 1.8236),
    "reverse_kl": (0.2415, 1.5624, 1.6403),
    "jensen_shannon": (0.1226, 1.2854, 1.7659),
    "jeffrey": (0.5151, 1.2295, 1.8087),
    "pearson": (0.6379, 0.6157, 1.9031),
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


def log_mean(log_p, log_q):
    """log((p + q) / 2)."""
    return torch.logaddexp(log_p, log_q) - math.log(2)


def jensen_shannon(log_p, log_q):
    log_m = log_mean(log_p, log_q)
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
    "jensen_shannon": lambda log_p, log_q: 2 * kl(log_mean(log_p, log_q), log_p),
    "jeffrey": lambda log_p, log_q: kl(log_q, log_p) + chi_squared(log_q, log_p) / 2,
    "pearson": lambda log_p, log_q: 2 * kl(log_p, log_q),
}


def integral(integrand, mean, deviation):
    """The divergence of p and N(mean, deviation^2) whose integrand this is."""
    return integrand(LOG_P, log_normal(mean, deviation)).sum() * SPACING


def best_fit(integrand):
    """Return the least such divergence, and the mean and deviation of its Gaussian."""
    theta = torch.tensor([1.0, 0.5], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = integral(integrand, theta[0], theta[1].exp())
        value.backward()
        return value

    optimizer.step(closure)
    mean, deviation = theta[0].item(), theta[1].exp().item()
    return integral(integrand, mean, deviation).item(), mean, deviation


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


def fit(divergence, loss, n_steps=2000, seed=0, asinh=False):
    """Train G and D; return F, integrated, and the mean and deviation of G's numbers."""
    args = fgan.parse_args(["--divergence", divergence, "--loss", loss])
    torch.manual_seed(seed)
    G = Gaussian()
    D = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    if asinh:
        D.append(Asinh())
    optimizers = [torch.optim.Adam(net.parameters(), fused=True) for net in (G, D)]
    for step in range(n_steps):
        for optimizer in optimizers:  # the rates fall over the second half, as in fgan.py
            optimizer.param_groups[0]["lr"] = 0.01 * min(1, 2 * (1 - step / n_steps))
        fgan.train_step(G, D, *optimizers, sample_p(1024), None, args)

    mean, deviation = G.mean.item(), G.log_deviation.exp().item()
    f = fgan.divergence(args)
    with torch.no_grad():
        s = D(GRID.float()[:, None])[:, 0].double()
    p, q = LOG_P.exp(), log_normal(mean, deviation).exp()
    F = (p * f.activation(s) - q * f.conjugate(s)).sum() * SPACING
    return F.item(), mean, deviation


def print_row(*cells):
    """Print a row of a Markdown table; a list has one number for each seed."""
    shown = []
    for cell in cells:
        if isinstance(cell, float):
            cell = [cell]
        if isinstance(cell, list):
            cell = ", ".join(f"{number:.3f}" for number in cell)
        shown.append(cell)
    print("| " + " | ".join(shown) + " |", flush=True)


def print_head(*titles):
    print_row(*titles)
    print("|---" * len(titles) + "|")


def print_values(fits):
    """How near F comes to D_f; fits[name] has an (F, mean, deviation) for each seed."""
    print_head("divergence", "least D_f", "D_f of the fit", "F", "the paper's F")
    for name, seeds in fits.items():
        of_fit = [integral(D_F[name], mean, deviation).item() for _, mean, deviation in seeds]
        bounds = [F for F, _, _ in seeds]
        print_row(name, best_fit(D_F[name])[0], of_fit, bounds, PAPER_FIT[name][0])


def print_moments(fits, of_paper):
    """Where the fits lie."""
    for i, moment in ((1, "mean"), (2, "deviation")):
        print()
        titles = [f"{moment}: fit", "with least D_f", "with least D_h"]
        print_head("divergence", *titles, *(["the paper's fit"] if of_paper else []))
        for name, seeds in fits.items():
            best = [best_fit(integrands[name])[i] for integrands in (D_F, D_H)]
            paper = [PAPER_FIT[name][i]] if of_paper else []
            print_row(name, [seed[i] for seed in seeds], *best, *paper)


def print_cross_test(fits):
    """How each fit does by each divergence: the mean over the seeds."""
    print_head("trained with", *(f"{name} of the fit" for name in D_F))
    for trained_with, seeds in fits.items():
        row = []
        for integrand in D_F.values():
            values = [integral(integrand, mean, deviation).item() for _, mean, deviation in seeds]
            row.append(sum(values) / len(values))
        print_row(trained_with, *row)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--asinh", action="store_true", help="the scores are asinh of D's output")
    options = parser.parse_args(argv)
    for loss in ("minimax", "non_saturating"):
        fits = {
            name: [fit(name, loss, seed=seed, asinh=options.asinh) for seed in options.seeds]
            for name in D_F
        }
        print(f"\n### --loss {loss}\n")
        print_values(fits)
        print_moments(fits, of_paper=loss == "minimax")
        print()
        print_cross_test(fits)


if __name__ == "__main__":
    main()
