"""The losses against the papers' theorems, with a free score for each point of a small space."""
import math
from argparse import Namespace

import pytest
import torch

import dcgan
import lsgan
import vanilla_gan

# 16 samples of p and 16 of q on five points
P_COUNTS, Q_COUNTS = torch.tensor([6, 1, 3, 4, 2]), torch.tensor([2, 5, 1, 4, 4])
p, q = P_COUNTS / 16.0, Q_COUNTS / 16.0
POINTS = torch.arange(5)
ON_P, ON_Q = POINTS.repeat_interleave(P_COUNTS), POINTS.repeat_interleave(Q_COUNTS)


def kl(a, b):
    return (a * (a / b).log()).sum().item()


def best_scores(loss):
    """The scores that minimise loss(scores of p's samples, scores of q's), and the minimum."""
    scores = torch.zeros(5, 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14
    )

    def closure():
        optimizer.zero_grad()
        value = loss(scores[ON_P], scores[ON_Q])
        value.backward()
        return value

    optimizer.step(closure)
    return scores.detach()[:, 0], loss(scores[ON_P], scores[ON_Q]).item()


@pytest.mark.parametrize("script", [vanilla_gan, dcgan])
def test_best_discriminator_is_p_over_p_plus_q_and_its_value_the_jensen_shannon_divergence(script):
    scores, loss = best_scores(lambda real, fake: script.discriminator_loss(real, fake, None))
    assert torch.allclose(scores.sigmoid(), (p / (p + q)).double(), atol=1e-6)
    jsd = (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    assert -loss == pytest.approx(-math.log(4) + 2 * jsd, abs=1e-6)


@pytest.mark.parametrize("script", [vanilla_gan, dcgan])
def test_the_non_saturating_loss_is_strongest_where_d_wins(script):
    s = torch.tensor([[-3.0], [0.5], [2.0]], requires_grad=True)
    D = s.detach().sigmoid()
    loss = script.generator_loss(s, Namespace(loss="non_saturating"))
    loss.backward()
    assert torch.allclose(loss, -D.log().mean())
    assert torch.allclose(s.grad, -(1 - D) / 3)


def test_the_minimax_loss_vanishes_where_d_wins():
    s = torch.tensor([[-3.0], [0.5], [2.0]], requires_grad=True)
    D = s.detach().sigmoid()
    loss = vanilla_gan.generator_loss(s, Namespace(loss="minimax"))
    loss.backward()
    assert torch.allclose(loss, (1 - D).log().mean())
    assert torch.allclose(s.grad, -D / 3)


@pytest.mark.parametrize("kind", ["non_saturating", "minimax"])
def test_no_score_overflows(kind):
    s = torch.tensor([[-1e4], [1e4]], requires_grad=True)
    args = Namespace(loss=kind)
    loss = vanilla_gan.discriminator_loss(s, s, args) + vanilla_gan.generator_loss(s, args)
    loss.backward()
    assert loss.isfinite() and s.grad.isfinite().all()


@pytest.mark.parametrize("a, b, c", [(0, 1, 1), (-1, 1, 0), (0.3, -2, 5)])
def test_best_least_squares_scores_lie_between_a_and_b(a, b, c):
    args = Namespace(a=a, b=b, c=c)
    scores, _ = best_scores(lambda real, fake: lsgan.discriminator_loss(real, fake, args))
    assert torch.allclose(scores, ((b * p + a * q) / (p + q)).double(), atol=1e-6)


@pytest.mark.parametrize("a, b, c", [(0, 1, 1), (-1, 1, 0), (-1, 1, 1), (0.3, -2, 5)])
def test_every_coding_has_the_pearson_divergence_for_its_value_with_the_best_scores(a, b, c):
    """2 C(G) = E_p[(D* - c)^2] + E_q[(D* - c)^2] against chi2(p + q || 2q)."""
    args = Namespace(a=a, b=b, c=c)
    best, _ = best_scores(lambda real, fake: lsgan.discriminator_loss(real, fake, args))
    # the paper adds the term in p to G's loss; it has no gradient in G's step
    cost = lsgan.generator_loss(best[ON_P], args) + lsgan.generator_loss(best[ON_Q], args)
    pearson = ((2 * q - (p + q)) ** 2 / (p + q)).sum().item()
    expected = (a + b - 2 * c) ** 2 / 2 + (b - a) ** 2 / 4 * pearson
    assert 2 * cost.item() == pytest.approx(expected, abs=1e-6)
    if (a, b, c) == (-1, 1, 0):  # the paper's theorem: the divergence and nothing else
        assert 2 * cost.item() == pytest.approx(pearson, abs=1e-6)


def test_least_squares_losses_by_value():
    args = Namespace(a=-1, b=2, c=0.5)
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0]])
    assert lsgan.discriminator_loss(real, fake, args).item() == (1 + 1) / 4 + (1 + 9) / 4
    assert lsgan.generator_loss(fake, args).item() == (0.25 + 2.25) / 4


def test_the_default_coding_is_the_one_that_the_paper_trains_with():
    args = lsgan.parse_args([])
    assert (args.a, args.b, args.c) == (0, 1, 1)
