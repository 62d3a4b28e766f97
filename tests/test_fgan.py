"""Every row of f-GAN's table against the definitions of Nowozin et al. 2016, mostly in float64."""
import math
from argparse import Namespace

import pytest
import torch
from conftest import networks
from test_losses import P_COUNTS, Q_COUNTS, best_scores, p, q

import fgan
import vanilla_gan
from common import draw_glyphs

ROWS = [(name, 1.5, 0.3) for name in fgan.DIVERGENCES if name not in ("alpha", "js_weighted")]
ROWS += [("js_weighted", 1.5, pi) for pi in (0.1, 0.3, 0.9)] + [("alpha", a, 0.3) for a in (-1, -0.5, 0.5, 0.6, 1.5, 3)]
every_row = pytest.mark.parametrize("name, alpha, pi", ROWS)
p, q = p.double(), q.double()


def options(name, alpha, pi, generator_loss="trick"):
    return Namespace(divergence=name, alpha=alpha, pi=pi, generator_loss=generator_loss)


def row(*key):
    return fgan.divergence(options(*key))


def value(row, p, q):
    """D_f(p || q)."""
    return (q * row.f(p / q)).sum().item()


@every_row
def test_conjugate_is_the_supremum_of_ut_minus_f(name, alpha, pi):
    r = row(name, alpha, pi)
    t = r.activation(torch.linspace(-3, 3, 25, dtype=torch.double))
    u = torch.logspace(-7, 7, 400_001, dtype=torch.double)
    if name == "pearson":
        u = torch.cat([-u, u])  # the paper extends this f to every u
    expected = torch.stack([(u * value - r.f(u)).amax() for value in t])
    assert torch.allclose(r.conjugate(t), expected, rtol=1e-6, atol=2e-6)


def test_f_is_convex_and_0_at_1_but_for_the_gan_which_is_minus_log_4():
    for key in ROWS:
        u = torch.logspace(-2, 2, 201, dtype=torch.double)
        f, middle = row(*key).f(u), row(*key).f((u[:-1] + u[1:]) / 2)
        assert (middle <= (f[:-1] + f[1:]) / 2 + 1e-12).all(), key
        assert row(*key).f(torch.ones(1)).item() == pytest.approx(-math.log(4) if key[0] == "gan" else 0, abs=1e-6)


BY_HAND = {  # of p and q, by other formulas than E_q[f(p / q)]
    "total_variation": lambda p, q: (p - q).abs().sum() / 2,
    "kl": lambda p, q: (p * (p / q).log()).sum(),
    "reverse_kl": lambda p, q: (q * (q / p).log()).sum(),
    "pearson": lambda p, q: ((p - q)**2 / q).sum(),
    "neyman": lambda p, q: ((p - q)**2 / p).sum(),
    "squared_hellinger": lambda p, q: 2 - 2 * (p * q).sqrt().sum(),
    "jeffrey": lambda p, q: ((p - q) * (p.log() - q.log())).sum(),
    "jensen_shannon": lambda p, q: (p * (2 * p / (p + q)).log() + q * (2 * q / (p + q)).log()).sum(),
    "js_weighted": lambda p, q: 0.3 * (p * (p / (0.3 * p + 0.7 * q)).log()).sum()
                                + 0.7 * (q * (q / (0.3 * p + 0.7 * q)).log()).sum(),
    "gan": lambda p, q: (p * (p / (p + q)).log() + q * (q / (p + q)).log()).sum(),
    "alpha": lambda p, q: ((p**1.5 * q**-0.5).sum() - 1) / (1.5 * 0.5),
}


@pytest.mark.parametrize("name", fgan.DIVERGENCES)
def test_f_is_that_of_the_divergence_of_this_name(name):
    assert value(row(name, 1.5, 0.3), p, q) == pytest.approx(BY_HAND[name](p, q).item(), abs=1e-9)
    if name == "alpha":  # the named divergences that it contains
        for a, other in ((0.5, lambda p, q: 2 * BY_HAND["squared_hellinger"](p, q)),
                         (2, lambda p, q: BY_HAND["pearson"](p, q) / 2),
                         (-1, lambda p, q: BY_HAND["neyman"](p, q) / 2)):
            assert value(row(name, a, 0.3), p, q) == pytest.approx(other(p, q).item(), abs=1e-9)


@every_row
def test_activation_increases_and_stays_in_the_domain_of_the_conjugate(name, alpha, pi):
    r = row(name, alpha, pi)
    t = r.activation(torch.linspace(-12, 12, 500, dtype=torch.double))
    assert (t.diff() > 0).all()
    low, high = {"total_variation": (-0.5, 0.5), "reverse_kl": (-math.inf, 0), "neyman": (-math.inf, 1),
                 "squared_hellinger": (-math.inf, 1), "jensen_shannon": (-math.inf, math.log(2)),
                 "js_weighted": (-math.inf, -pi * math.log(pi)), "gan": (-math.inf, 0),
                 "alpha": (-math.inf, 1 / (1 - alpha) if alpha < 1 else math.inf)}.get(name, (-math.inf, math.inf))
    assert t.min() > low and t.max() < high
    far = r.activation(torch.tensor([-200.0, 200.0], dtype=torch.double))  # and reaches its ends
    for end, reached in zip((low, high), far.tolist()):
        assert reached == pytest.approx(end) if math.isfinite(end) else abs(reached) > 100


@every_row
def test_threshold_is_the_derivative_of_f_at_1(name, alpha, pi):
    u = torch.ones(1, dtype=torch.double, requires_grad=True)
    row(name, alpha, pi).f(u).sum().backward()
    assert u.grad.item() == pytest.approx(row(name, alpha, pi).threshold, abs=1e-9)


@every_row
def test_stable_form_is_the_conjugate_of_the_activation(name, alpha, pi):
    r, v = row(name, alpha, pi), torch.linspace(-8, 8, 201, dtype=torch.double)
    assert torch.allclose(r.composed(v), r.conjugate(r.activation(v)), rtol=1e-7, atol=1e-9)


@every_row
def test_no_score_gives_more_than_the_divergence(name, alpha, pi):
    r, args = row(name, alpha, pi), options(name, alpha, pi)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        V = 2 * torch.randn(5, 1, generator=generator, dtype=torch.double)
        F = -fgan.discriminator_loss(V.repeat_interleave(P_COUNTS, 0), V.repeat_interleave(Q_COUNTS, 0), args)
        assert F <= value(r, p, q) + 1e-12


@every_row
def test_best_scores_reach_the_divergence_at_the_derivative_of_f(name, alpha, pi):
    r, args = row(name, alpha, pi), options(name, alpha, pi)
    scores, loss = best_scores(lambda s_real, s_fake: fgan.discriminator_loss(s_real, s_fake, args))
    u = (p / q).requires_grad_()
    r.f(u).sum().backward()
    assert -loss == pytest.approx(value(r, p, q), abs=1e-5)
    decided = p != q  # for total variation, every T in [-1/2, 1/2] is as good where p = q
    assert torch.allclose(r.activation(scores)[decided], u.grad[decided], atol=1e-3)
    assert ((r.activation(scores) > r.threshold) == (p > q))[decided].all()


@every_row
@pytest.mark.parametrize("function", ["activation", "composed"])
def test_float32_is_finite_wherever_the_true_value_can_be_represented(name, alpha, pi, function):
    v = torch.linspace(-80, 80, 641)
    results = []
    for dtype in (torch.float, torch.double):
        x = v.to(dtype).requires_grad_()
        y = getattr(row(name, alpha, pi), function)(x)
        results.append((y.detach(), torch.autograd.grad(y.sum(), x)[0]))
    for ours, true in zip(*results):
        fits = true.abs() < 3e38
        assert fits.sum() > 320
        assert torch.allclose(ours[fits].double(), true[fits], rtol=2e-4, atol=2e-4)


@every_row
def test_composed_is_the_naive_form_where_that_is_exact_and_keeps_its_slope(name, alpha, pi):
    r, v = row(name, alpha, pi), torch.linspace(-30, 30, 241, dtype=torch.double, requires_grad=True)
    stable, naive = r.composed(v), r.conjugate(r.activation(v))
    slope = torch.autograd.grad(stable.sum(), v, retain_graph=True)[0]
    fits = naive.isfinite() & (r.activation(v).detach().diff(prepend=torch.tensor([-math.inf]).double()) > 1e-4)
    assert fits.sum() > 30
    assert torch.allclose(stable[fits], naive[fits], rtol=1e-3, atol=1e-6)
    # D's push on a generated image far on the real side tends to a constant
    limit = {"gan": 1, "jensen_shannon": 1, "js_weighted": 1 - pi, "reverse_kl": 1}.get(name)
    if limit:
        for far in (60.0, 200.0):
            x = torch.tensor([far], requires_grad=True)
            r.composed(x).backward()
            assert x.grad.item() == pytest.approx(limit, rel=1e-4) and r.composed(x).isfinite()
    assert (slope >= -1e-6).all() or name == "pearson"  # D always gains by scoring generated images down


@pytest.mark.parametrize("alpha", [-1, -0.5, 0.5, 0.8])
def test_tail_of_alpha_is_that_of_the_plain_form(alpha):
    v = torch.linspace(0, 80, 321, dtype=torch.double, requires_grad=True)
    plain = (((1 - alpha) * (-v).exp().log1p())**(alpha / (alpha - 1)) - 1) / alpha
    ours = row("alpha", alpha, 0.3).composed(v)
    slopes = [torch.autograd.grad(y.sum(), v)[0] for y in (ours, plain)]
    assert torch.allclose(ours, plain, rtol=1e-6) and torch.allclose(*slopes, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("pi", [0.1, 0.3, 0.9])
def test_tail_of_js_weighted_is_that_of_the_plain_form(pi):
    v = torch.linspace(0, 160, 321, dtype=torch.double, requires_grad=True)
    plain = (1 - pi) * (math.log(1 - pi) - (-(-(-v).exp().log1p() / pi).expm1()).log())
    ours = row("js_weighted", 1.5, pi).composed(v)
    slopes = [torch.autograd.grad(y.sum(), v)[0] for y in (ours, plain)]
    assert torch.allclose(ours, plain, rtol=1e-6) and torch.allclose(*slopes, rtol=1e-6)


@every_row
@pytest.mark.parametrize("function", ["activation", "composed"])
def test_nothing_grows_faster_than_the_last_layer_but_alpha_between_a_half_and_1(name, alpha, pi, function):
    layer = torch.logspace(0, 30, 61, dtype=torch.double)
    grown = max((getattr(row(name, alpha, pi), function)(r.asinh()).abs() / (1 + layer)).max() for r in (layer, -layer))
    assert (grown > 1e9) if (alpha, function) == (0.6, "composed") else (grown < 10)


def test_scores_are_asinh_of_the_last_layer_and_networks_are_the_paper_s():
    G, D, *_ = networks(fgan)
    x = 1000 * torch.randn(8, 1, 28, 28)
    assert torch.allclose(D(x).sinh(), D.layers(x), rtol=1e-4)
    for net, sizes in ((G, [1200, 1200, 784]), (D, [240, 240, 1])):
        assert [layer.out_features for layer in net.layers if isinstance(layer, torch.nn.Linear)] == sizes


def test_gan_row_is_the_loss_of_vanilla_gan_in_value_and_gradient():
    real, fake = torch.linspace(-30, 30, 61)[:, None], torch.linspace(-20, 25, 61)[:, None]
    for generator_loss, loss in (("trick", "non_saturating"), ("minimax", "minimax")):
        results = []
        for script in (fgan, vanilla_gan):
            args = script.parse_args(["--divergence", "gan", "--generator_loss", generator_loss] if script is fgan else
                                     ["--loss", loss])
            s, t = real.clone().requires_grad_(), fake.clone().requires_grad_()
            losses = [script.discriminator_loss(s, t, args), script.generator_loss(t, args)]
            results.append([*losses, *torch.autograd.grad(losses[0], (s, t)), *torch.autograd.grad(losses[1], t)])
        for a, b in zip(*results):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_gan_row_makes_the_step_of_vanilla_gan():
    x, y = draw_glyphs(32, 3)[0] / 127.5 - 1, None
    for generator_loss, loss in (("trick", "non_saturating"), ("minimax", "minimax")):
        results = []
        for script, argv in ((fgan, ["--divergence", "gan", "--generator_loss", generator_loss]),
                             (vanilla_gan, ["--loss", loss])):
            G, D, opt_G, opt_D, _ = networks(fgan)
            torch.manual_seed(1)  # of z
            values = script.train_step(G, D, opt_G, opt_D, x, y, script.parse_args(argv))
            results.append((values, [parameter.grad for parameter in (*D.parameters(), *G.parameters())]))
        (ours, our_gradients), (theirs, their_gradients) = results
        assert ours["F"].item() == pytest.approx(theirs["V"].item(), abs=1e-6)
        assert ours["loss_G"].item() == pytest.approx(theirs["loss_G"].item(), abs=1e-6)
        for a, b in zip(our_gradients, their_gradients):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max() + 1e-8)


@every_row
def test_generator_ascends_the_activation_or_descends_the_value(name, alpha, pi):
    s = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.double)
    r = row(name, alpha, pi)
    assert torch.allclose(fgan.generator_loss(s, options(name, alpha, pi)), -r.activation(s).mean())
    minimax = fgan.generator_loss(s, options(name, alpha, pi, "minimax"))
    assert torch.allclose(minimax, -r.conjugate(r.activation(s)).mean())


@pytest.mark.parametrize("name", fgan.DIVERGENCES)
def test_a_few_steps_of_every_divergence_raise_the_bound_from_0(name):
    G, D, opt_G, opt_D, args = networks(fgan, lr_g=0, lr_d=1e-3, options=["--divergence", name])
    x = draw_glyphs(64, 3)[0] / 127.5 - 1
    for _ in range(20):
        values = fgan.train_step(G, D, opt_G, opt_D, x, None, args)
    assert all(value.isfinite() for value in values.values())
    assert values["F"] > (-0.9 if name == "gan" else 0.1) and values["s(x)"] > values["s(G(z))"], values


def test_rates_count_images_on_their_side_of_the_threshold():
    class Scores(torch.nn.Linear):
        def forward(self, x):
            return x[:, :1] + 0 * super().forward(x[:, :1])

    class Fakes(torch.nn.Linear):
        latent_dim = 1

        def forward(self, z):
            return torch.tensor([[0.5], [1.5], [-1.0], [1.0]]) + 0 * super().forward(z)

    G, D = Fakes(1, 1), Scores(1, 1)
    opts = [torch.optim.SGD(net.parameters(), 0) for net in (G, D)]
    x = torch.tensor([[1.1], [3.0], [0.2], [1.0]])  # kl: T = s, and the threshold is 1
    values = fgan.train_step(G, D, *opts, x, None, options("kl", 1.5, 0.3))
    assert (values["TPR"], values["TNR"]) == (0.5, 0.75)


def test_neyman_has_learning_rates_of_its_own_unless_they_are_given():
    for argv, rates in (([], (1e-3, 2e-3)), (["--divergence", "neyman"], (2e-4, 4e-4)),
                        (["--divergence", "neyman", "--lr_d", "0"], (2e-4, 0))):
        args = fgan.parse_args(argv)
        assert (args.lr_g, args.lr_d) == rates
    assert fgan.parse_args([], {"lr_g": 3e-3, "divergence": "neyman"}).lr_g == 3e-3


def test_an_alpha_at_a_distance_of_a_tenth_is_taken(run_options):
    for alpha in ("0.9", "1.1"):
        fgan.setup(fgan.parse_args([*run_options, "--divergence", "alpha", "--alpha", alpha]), "cpu")


@pytest.mark.parametrize("argv, sentence", [
    (["--divergence", "wasserstein"], "invalid choice: 'wasserstein'"), (["--pi", "0"], "between 0 and 1"),
    (["--pi", "1"], "between 0 and 1"), (["--pi", "nan"], "between 0 and 1"), (["--alpha", "0"], "not 0 nor within"),
    (["--alpha", "1"], "within 0.1 of 1"), (["--alpha", "0.91"], "within 0.1 of 1"),
    (["--alpha", "inf"], "--alpha be finite")])
def test_options_that_are_no_divergence_are_refused_before_any_work(argv, sentence, run_options, capsys, monkeypatch):
    monkeypatch.setattr(fgan, "load_data", None)
    with pytest.raises(SystemExit) as stop:
        fgan.main([*run_options, *argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error and error.count("\n") == 1
