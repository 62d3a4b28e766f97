"""Every row of f-GAN's table against the definitions of Nowozin et al. 2016, mostly in float64."""
import math
from argparse import Namespace

import fgan_fit
import pytest
import torch
from conftest import batch, networks, refused
from test_losses import ON_P, ON_Q, best_scores, p, q

import fgan
import vanilla_gan

p, q = p.double(), q.double()


def f_alpha(a):
    return lambda u: (u**a - 1 - a * (u - 1)) / (a * (a - 1))


def f_js_weighted(pi):
    return lambda u: pi * u * u.log() - (1 - pi + pi * u) * (1 - pi + pi * u).log()


def bisected_jeffrey(t):
    """u t - f(u) at the u where f'(u) = log u + 1 - 1 / u is t."""
    low, high = torch.full_like(t, -50), torch.full_like(t, 50)  # of log u
    for _ in range(200):
        middle = (low + high) / 2
        is_low = middle + 1 - (-middle).exp() < t
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    u = low.exp()
    return u * t - (u - 1) * low


# name: f(u), f*(t), the ends of the domain of f*, D_f(p || q) by another formula, and the h(u) of
# the divergence that the non-saturating loss descends
PAPER = {
    "total_variation": (
        lambda u: (u - 1).abs() / 2, lambda t: t, (-0.5, 0.5),
        lambda p, q: (p - q).abs().sum() / 2,
        lambda u: (u - 1).abs() / 2,
    ),
    "kl": (
        lambda u: u * u.log(), lambda t: (t - 1).exp(), (-math.inf, math.inf),
        lambda p, q: (p * (p / q).log()).sum(),
        lambda u: -u.log(),
    ),
    "reverse_kl": (
        lambda u: -u.log(), lambda t: -1 - (-t).log(), (-math.inf, 0),
        lambda p, q: (q * (q / p).log()).sum(),
        lambda u: (1 - u) ** 2 / (2 * u),
    ),
    "pearson": (
        lambda u: (u - 1) ** 2, lambda t: t**2 / 4 + t, (-math.inf, math.inf),
        lambda p, q: ((p - q) ** 2 / q).sum(),
        lambda u: 2 * u * u.log(),
    ),
    "neyman": (
        lambda u: (1 - u) ** 2 / u, lambda t: 2 - 2 * (1 - t).sqrt(), (-math.inf, 1),
        lambda p, q: ((p - q) ** 2 / p).sum(),
        lambda u: 2 * f_alpha(-2)(u),
    ),
    "squared_hellinger": (
        lambda u: (u.sqrt() - 1) ** 2, lambda t: t / (1 - t), (-math.inf, 1),
        lambda p, q: 2 - 2 * (p * q).sqrt().sum(),
        lambda u: f_alpha(-0.5)(u) / 2,
    ),
    "jeffrey": (
        lambda u: (u - 1) * u.log(), bisected_jeffrey, (-math.inf, math.inf),
        lambda p, q: ((p - q) * (p.log() - q.log())).sum(),
        lambda u: -u.log() + (1 - u) ** 2 / (2 * u),
    ),
    "jensen_shannon": (
        lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        lambda t: -(2 - t.exp()).log(), (-math.inf, math.log(2)),
        lambda p, q: (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()).sum(),
        lambda u: (1 + u) * ((1 + u) / (2 * u)).log(),
    ),
    "gan": (
        lambda u: u * u.log() - (u + 1) * (u + 1).log(),
        lambda t: -(1 - t.exp()).log(), (-math.inf, 0),
        lambda p, q: (p * (p / (p + q)).log() + q * (q / (p + q)).log()).sum(),
        lambda u: (1 + u) * ((1 + u) / (2 * u)).log(),
    ),
}  # fmt: skip


def js_weighted(pi):
    def conjugate(t):
        return (1 - pi) * ((1 - pi) / (1 - pi * (t / pi).exp())).log()

    def between(p, q):
        m = pi * p + (1 - pi) * q
        return pi * (p * (p / m).log()).sum() + (1 - pi) * (q * (q / m).log()).sum()

    def h(u):
        return -pi * u.log() - pi / (1 - pi) * f_js_weighted(pi)(u)

    return f_js_weighted(pi), conjugate, (-math.inf, -pi * math.log(pi)), between, h


def alpha(a):
    def conjugate(t):
        return ((t * (a - 1) + 1).clamp(min=0) ** (a / (a - 1)) - 1) / a

    ends = (-math.inf, math.inf if a > 1 else 1 / (1 - a))
    return (
        f_alpha(a), conjugate, ends,
        lambda p, q: ((p**a * q ** (1 - a)).sum() - 1) / (a * (a - 1)),
        f_alpha(a - 1),
    )  # fmt: skip


ROWS = {name: ({"divergence": name}, definition) for name, definition in PAPER.items()}
for pi in (0.1, 0.3, 0.9):
    ROWS[f"js_weighted {pi}"] = ({"divergence": "js_weighted", "pi": pi}, js_weighted(pi))
for a in (-1, -0.5, 0.5, 0.6, 1.5, 3):
    ROWS[f"alpha {a}"] = ({"divergence": "alpha", "alpha": a}, alpha(a))


class Row:
    """A row of the script's table beside its definitions in the paper."""

    def __init__(self, name):
        options, (self.f, self.f_star, self.ends, self.between, self.h) = ROWS[name]
        self.name = name
        self.args = Namespace(**{"pi": 0.3, "alpha": 1.5, "loss": "non_saturating"} | options)
        self.g, self.conjugate, self.threshold = fgan.divergence(self.args)

    def slope(self, u):
        """f'(u)."""
        u = u.clone().requires_grad_()
        return torch.autograd.grad(self.f(u).sum(), u)[0]


@pytest.fixture(params=ROWS)
def row(request):
    return Row(request.param)


def test_every_divergence_that_can_be_asked_for_is_tested():
    assert {options["divergence"] for options, _ in ROWS.values()} == {
        *fgan.DIVERGENCES, "js_weighted", "alpha"
    }  # fmt: skip


def test_f_is_that_of_the_divergence_of_this_name(row):
    assert (q * row.f(p / q)).sum().item() == pytest.approx(row.between(p, q).item(), abs=1e-9)
    at_1 = -math.log(4) if row.name == "gan" else 0
    assert row.f(torch.ones(1).double()).item() == pytest.approx(at_1, abs=1e-9)


def test_conjugate_is_the_supremum_of_ut_minus_f(row):
    v = torch.linspace(-3, 3, 13, dtype=torch.double)
    u = torch.logspace(-7, 7, 200_001, dtype=torch.double)
    if row.name == "pearson":
        u = torch.cat([-u, u])  # the paper extends this f to every u
    expected = torch.stack([(u * t - row.f(u)).amax() for t in row.g(v)])
    assert torch.allclose(row.conjugate(v), expected, rtol=1e-6, atol=5e-6)


def test_conjugate_is_the_paper_s_f_star_of_the_activation(row):
    v = torch.linspace(-8, 8, 201, dtype=torch.double)
    assert torch.allclose(row.conjugate(v), row.f_star(row.g(v)), rtol=1e-7, atol=1e-9)


def test_gradient_of_the_conjugate_is_the_best_u_times_the_slope_of_the_activation(row):
    v = torch.linspace(-6, 6, 49, dtype=torch.double, requires_grad=True)
    plain = torch.autograd.grad(row.f_star(row.g(v)).sum(), v)[0]
    if row.args.divergence == "jeffrey":  # no gradient goes through a bisection
        u = (v.detach() * 0 + 1).requires_grad_()
        u = torch.autograd.grad(row.conjugate(v).sum(), v)[0]
        assert torch.allclose(row.slope(u), v.detach(), atol=1e-9)
        return
    ours = torch.autograd.grad(row.conjugate(v).sum(), v)[0]
    assert torch.allclose(ours, plain, rtol=1e-6, atol=1e-9)


def test_activation_increases_and_reaches_the_ends_of_the_domain_of_f_star(row):
    t = row.g(torch.linspace(-12, 12, 500, dtype=torch.double))
    assert (t.diff() > 0).all() and t.min() > row.ends[0] and t.max() < row.ends[1]
    far = row.g(torch.tensor([-200.0, 200.0], dtype=torch.double)).tolist()
    for end, reached in zip(row.ends, far):
        assert reached == pytest.approx(end) if math.isfinite(end) else abs(reached) > 100


def test_threshold_is_the_derivative_of_f_at_1(row):
    if row.name == "total_variation":  # its f has a kink there: every slope between is as good
        assert row.threshold == 0
        return
    assert row.slope(torch.ones(1).double()).item() == pytest.approx(row.threshold, abs=1e-9)


def test_no_score_gives_more_than_the_divergence(row):
    generator = torch.Generator().manual_seed(0)
    divergence = row.between(p, q)
    for _ in range(100):
        s = 2 * torch.randn(5, 1, generator=generator, dtype=torch.double)
        assert -fgan.discriminator_loss(s[ON_P], s[ON_Q], row.args) <= divergence + 1e-9


def test_best_scores_reach_the_divergence_at_the_derivative_of_f(row):
    scores, loss = best_scores(lambda real, fake: fgan.discriminator_loss(real, fake, row.args))
    assert -loss == pytest.approx(row.between(p, q).item(), abs=1e-5)
    decided = p != q  # for total variation, every T in [-1/2, 1/2] is as good where p = q
    T = row.g(scores)[decided]
    assert torch.allclose(T, row.slope(p / q)[decided], atol=1e-3)
    assert ((T > row.threshold) == (p > q)[decided]).all()


@pytest.mark.parametrize("function", ["g", "conjugate"])
def test_float32_is_finite_wherever_the_true_value_can_be_represented(row, function):
    results = []
    for dtype in (torch.float, torch.double):
        v = torch.linspace(-80, 80, 641).to(dtype).requires_grad_()
        y = getattr(row, function)(v)
        results.append((y.detach(), torch.autograd.grad(y.sum(), v)[0]))
    for ours, true in zip(*results):
        fits = true.abs() < 3e38
        assert fits.sum() > 320
        assert torch.allclose(ours[fits].double(), true[fits], rtol=2e-4, atol=2e-4)


def test_a_far_score_pushes_with_the_slope_of_the_paper_s_form(row):
    """The tails of the rows that have branches, against the plain form in logarithms."""
    v = torch.linspace(0, 160, 161, dtype=torch.double, requires_grad=True)
    if row.args.divergence == "js_weighted":
        pi = row.args.pi
        gap = -(-(-v).exp().log1p() / pi).expm1()  # 1 - pi e^(t / pi)
        plain = (1 - pi) * (math.log(1 - pi) - gap.log())
    elif row.args.divergence == "alpha" and row.args.alpha < 1:
        a = row.args.alpha
        plain = (((1 - a) * (-v).exp().log1p()) ** (a / (a - 1)) - 1) / a
    else:
        plain = row.conjugate(v)
    ours = row.conjugate(v)
    slopes = [torch.autograd.grad(y.sum(), v, retain_graph=True)[0] for y in (ours, plain)]
    fits = plain < 1e30
    assert torch.allclose(ours[fits], plain[fits], rtol=1e-6)
    assert torch.allclose(slopes[0][fits], slopes[1][fits], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ROWS if name != "alpha 0.6"])
def test_nothing_overflows_however_large_the_last_layer_s_output(name):
    """asinh keeps every row within a multiple of it, but for alpha between 1/2 and 1."""
    row = Row(name)
    layer = torch.logspace(0, 30, 61, dtype=torch.double)
    for function in (row.g, row.conjugate):
        for r in (layer, -layer):
            assert (function(r.asinh()).abs() / (1 + layer)).max() < 10


def test_scores_are_asinh_of_the_last_layer():
    D = networks(fgan)[1]
    x = 1000 * torch.randn(8, 1, 8, 8)
    assert torch.allclose(D(x).sinh(), D.layers(x), rtol=1e-4)


@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
def test_the_gan_row_is_the_loss_of_vanilla_gan_in_value_and_gradient(loss):
    results = []
    for script, argv in ((fgan, ["--divergence", "gan"]), (vanilla_gan, [])):
        args = script.parse_args([*argv, "--loss", loss])
        s = torch.linspace(-30, 30, 61)[:, None].requires_grad_()
        t = torch.linspace(-20, 25, 61)[:, None].requires_grad_()
        losses = [script.discriminator_loss(s, t, args), script.generator_loss(t, args)]
        gradients = torch.autograd.grad(losses[0], (s, t)) + torch.autograd.grad(losses[1], t)
        results.append([*losses, *gradients])
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_the_generator_ascends_the_activation(row):
    s = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.double)
    assert torch.allclose(fgan.generator_loss(s, row.args), -row.g(s).mean())


def test_or_descends_the_value(row):
    s = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.double)
    row.args.loss = "minimax"
    assert torch.allclose(fgan.generator_loss(s, row.args), -row.f_star(row.g(s)).mean())


def second_derivative(function, u):
    u = u.clone().requires_grad_()
    first = torch.autograd.grad(function(u).sum(), u, create_graph=True)[0]
    return torch.autograd.grad(first.sum(), u)[0]


def test_the_second_derivative_of_h_is_that_of_f_over_u(row):
    u = torch.logspace(-2, 2, 41, dtype=torch.double)
    if row.name == "total_variation":  # f is linear but for its kink at u = 1
        assert torch.equal(row.h(u), row.f(u))
        return
    assert torch.allclose(second_derivative(row.h, u), second_derivative(row.f, u) / u)


@pytest.mark.parametrize("loss", ["minimax", "non_saturating"])
def test_with_the_best_scores_g_descends_the_divergence_itself_or_that_of_h(row, loss):
    """Both gradients with respect to logits of q, which G's step changes; it leaves D as it is."""
    row.args.loss = loss
    logits = torch.tensor([0.3, -0.5, 1.0, 0.0, -1.2], dtype=torch.double, requires_grad=True)
    q = logits.softmax(0)
    T = row.slope((p / q).detach())
    low, high = torch.full_like(T, -50), torch.full_like(T, 50)
    for _ in range(100):  # bisection: the scores at which g_f is T
        middle = (low + high) / 2
        is_low = row.g(middle) < T
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    losses = torch.stack([fgan.generator_loss(s[None], row.args) for s in low])
    divergence = (q * (row.f if loss == "minimax" else row.h)(p / q)).sum()
    ours = torch.autograd.grad((q * losses).sum(), logits, retain_graph=True)[0]
    assert torch.allclose(ours, torch.autograd.grad(divergence, logits)[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", fgan_fit.D_F)
def test_the_mixture_has_the_best_fits_of_the_paper_s_univariate_example(name):
    assert fgan_fit.best_fit(fgan_fit.D_F[name]) == pytest.approx(
        fgan_fit.PAPER_BEST[name], abs=1.2e-3
    )


@pytest.mark.parametrize("loss, descended", [
    ("minimax", "kl"), ("non_saturating", "reverse_kl"),
])  # fmt: skip
def test_a_gaussian_fitted_by_kl_minimises_it_or_with_the_other_loss_reverse_kl(loss, descended):
    F, mean, deviation = fgan_fit.fit("kl", loss, n_steps=400)
    assert F == pytest.approx(fgan_fit.integral(fgan_fit.kl, mean, deviation).item(), abs=0.01)
    _, *best = fgan_fit.best_fit(fgan_fit.D_F[descended])  # means of 1.01 and 1.58
    assert (mean, deviation) == pytest.approx(best, abs=0.12)


def test_the_command_prints_every_divergence_of_each_fit(monkeypatch, capsys):
    monkeypatch.setattr(fgan_fit, "fit", lambda *_, **__: (0.25, 1.0099, 1.8307))
    fgan_fit.main(["--seeds", "3", "4"])
    rows = capsys.readouterr().out.splitlines()
    assert sum("0.250, 0.250" in row.split(" | ") for row in rows) == 10  # F, of five for each loss
    cross_test = [row.split(" | ")[1] for row in rows if row.count(" | ") == 5]
    assert cross_test.count("0.283") == 10  # kl at its best fit


@pytest.mark.parametrize("name", [*fgan.DIVERGENCES, "js_weighted", "alpha"])
def test_a_few_steps_raise_the_bound(name):
    options = ["--divergence", name]
    G, D, opt_G, opt_D, args = networks(fgan, lr_g=0, lr_d=1e-3, options=options)
    x = batch(fgan)[0] * 0.1 + 0.7  # easy to tell from what G draws at the start
    first = fgan.train_step(G, D, opt_G, opt_D, x, None, args)
    for _ in range(15):
        values = fgan.train_step(G, D, opt_G, opt_D, x, None, args)
    assert all(value.isfinite() for value in values.values())
    assert values["F"] > first["F"] + 0.1 and values["s(x)"] > values["s(G(z))"]
    assert values["F"] == -values["loss_D"]


class Scores(torch.nn.Linear):
    """A D whose scores are its images."""

    def forward(self, x):
        return x[:, :1] + 0 * super().forward(x[:, :1])


class Fakes(torch.nn.Linear):
    """A G of four given images."""

    latent_dim = 1

    def forward(self, z):
        return torch.tensor([[0.5], [1.5], [-0.3], [0.9]]) + 0 * super().forward(z)


@pytest.mark.parametrize("name, rates", [
    ("kl", (0.5, 0.75)),  # T = s, and the threshold is 1
    ("gan", (0.75, 0.25)),  # T = log sigmoid(s), and the threshold is log 1/2: s above 0
    ("reverse_kl", (0.75, 0.25)),  # T = -exp(-s), and the threshold is -1: s above 0
])  # fmt: skip
def test_rates_count_images_whose_t_is_on_their_side_of_the_threshold(name, rates):
    G, D = Fakes(1, 1), Scores(1, 1)
    optimizers = [torch.optim.SGD(net.parameters(), 0) for net in (G, D)]
    x = torch.tensor([[1.1], [3.0], [0.2], [-0.3]])
    values = fgan.train_step(G, D, *optimizers, x, None, Row(name).args)
    assert (values["TPR"], values["TNR"]) == rates


@pytest.mark.parametrize("argv, rates", [
    ([], (1e-3, 2e-3)), (["--divergence", "neyman"], (2e-4, 4e-4)),
    (["--divergence", "neyman", "--lr_d", "0"], (2e-4, 0)),
])  # fmt: skip
def test_neyman_has_learning_rates_of_its_own_unless_they_are_given(argv, rates):
    args = fgan.parse_args(argv)
    assert (args.lr_g, args.lr_d) == rates


def test_a_saved_learning_rate_is_kept():
    assert fgan.parse_args([], {"lr_g": 3e-3, "divergence": "neyman"}).lr_g == 3e-3


@pytest.mark.parametrize("alpha", ["0.9", "1.1", "-3"])
def test_an_alpha_at_a_distance_of_a_tenth_is_taken(alpha):
    args = fgan.parse_args(["--divergence", "alpha", "--alpha", alpha])
    assert args.alpha == float(alpha)


@pytest.mark.parametrize("argv, words", [
    (["--divergence", "wasserstein"], "'wasserstein'"), (["--pi", "0"], "--pi"),
    (["--pi", "1"], "--pi"), (["--pi", "nan"], "--pi"), (["--alpha", "0"], "--alpha"),
    (["--alpha", "1"], "--alpha"), (["--alpha", "0.91"], "--alpha"),
    (["--alpha", "inf"], "--alpha"),
])  # fmt: skip
def test_a_divergence_that_is_none_is_refused_before_any_work(argv, words, capsys, monkeypatch):
    monkeypatch.setattr(fgan, "load_data", None)
    assert words in refused(fgan, argv, capsys)
