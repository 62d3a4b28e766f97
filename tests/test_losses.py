"""The losses against the papers' theorems, with one free score for each point of a small discrete space."""
import math
from argparse import Namespace

import pytest
import torch

import dcgan
import lsgan
import vanilla_gan

P_COUNTS, Q_COUNTS = torch.tensor([6, 1, 3, 4, 2]), torch.tensor([2, 5, 1, 4, 4])  # out of 16: samples of p and of q
p, q = P_COUNTS / 16.0, Q_COUNTS / 16.0
POINTS = torch.arange(5)


def kl(a, b):
    return (a * (a / b).log()).sum().item()


def best_scores(loss):
    """The scores that minimise loss(scores of the samples of p, scores of the samples of q), and that minimum."""
    scores = torch.zeros(5, 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def value():
        return loss(scores[POINTS.repeat_interleave(P_COUNTS)], scores[POINTS.repeat_interleave(Q_COUNTS)])

    def closure():
        optimizer.zero_grad()
        result = value()
        result.backward()
        return result

    optimizer.step(closure)
    return scores.detach()[:, 0], value().item()


@pytest.mark.parametrize("script", [vanilla_gan, dcgan])
def test_best_discriminator_is_p_over_p_plus_q_and_its_value_is_the_jensen_shannon_divergence(script):
    scores, loss = best_scores(lambda s_real, s_fake: script.discriminator_loss(s_real, s_fake, Namespace()))
    assert torch.allclose(scores.sigmoid(), (p / (p + q)).double(), atol=1e-6)
    jsd = (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    assert -loss == pytest.approx(-math.log(4) + 2 * jsd, abs=1e-6)


@pytest.mark.parametrize("script", [vanilla_gan, dcgan])
def test_generator_losses_by_value_and_gradient(script):
    s = torch.tensor([[-3.0], [0.5], [2.0]], requires_grad=True)
    D = s.detach().sigmoid()
    loss = script.generator_loss(s, Namespace(loss="non_saturating"))
    loss.backward()
    assert torch.allclose(loss, -D.log().mean())
    assert torch.allclose(s.grad, -(1 - D) / 3)  # strongest where D wins


def test_minimax_generator_loss_by_value_and_gradient():
    s = torch.tensor([[-3.0], [0.5], [2.0]], requires_grad=True)
    D = s.detach().sigmoid()
    loss = vanilla_gan.generator_loss(s, Namespace(loss="minimax"))
    loss.backward()
    assert torch.allclose(loss, (1 - D).log().mean())
    assert torch.allclose(s.grad, -D / 3)  # vanishes where D wins


@pytest.mark.parametrize("kind", ["non_saturating", "minimax"])
def test_no_score_overflows(kind):
    s = torch.tensor([[-1e4], [1e4]], requires_grad=True)
    args = Namespace(loss=kind)
    (vanilla_gan.discriminator_loss(s, s, args) + vanilla_gan.generator_loss(s, args)).backward()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("a, b, c", [(0, 1, 1), (-1, 1, 0), (0.3, -2, 5)])
def test_best_least_squares_scores_lie_between_a_and_b(a, b, c):
    args = Namespace(a=a, b=b, c=c)
    scores, _ = best_scores(lambda s_real, s_fake: lsgan.discriminator_loss(s_real, s_fake, args))
    assert torch.allclose(scores, ((b * p + a * q) / (p + q)).double(), atol=1e-6)


@pytest.mark.parametrize("a, b, c, is_pearson", [(-1, 1, 0, True), (0, 1, 1, False)])
def test_only_the_pearson_coding_descends_the_pearson_divergence(a, b, c, is_pearson):
    """2 C(G) = E_p[(D* - c)^2] + E_q[(D* - c)^2] against chi2(p + q || 2q); the term in p does not depend on G."""
    args = Namespace(a=a, b=b, c=c)
    best = ((b * p + a * q) / (p + q))[:, None]
    on_p, on_q = (best[POINTS.repeat_interleave(counts)] for counts in (P_COUNTS, Q_COUNTS))
    cost = 2 * (lsgan.generator_loss(on_p, args) + lsgan.generator_loss(on_q, args))
    pearson = ((2 * q - (p + q)) ** 2 / (p + q)).sum()
    assert (abs(cost - pearson) < 1e-6) == is_pearson


def test_least_squares_losses_by_value():
    args = Namespace(a=-1, b=2, c=0.5)
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0]])
    assert lsgan.discriminator_loss(real, fake, args).item() == (1 + 1) / 4 + (1 + 9) / 4
    assert lsgan.generator_loss(fake, args).item() == (0.25 + 2.25) / 4
