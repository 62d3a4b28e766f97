"""Shapes, ranges, kinds of layers and starting weights, without a word on where a layer stands."""
import importlib
import math

import pytest
import torch
from conftest import CONVOLUTIONAL, SCRIPTS, batch, calls, codes, discriminate, generate, networks
from torch import nn

import dcgan
import vanilla_gan

WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.fixture(params=CONVOLUTIONAL)
def convolutional(request):
    """The module of each convolutional script in turn."""
    return importlib.import_module(request.param)


def small(script):
    """Options of narrow networks."""
    return ["--width", "4"] if script.__name__ in CONVOLUTIONAL else []


def seen_in_g(script, shape, n=2, options=()):
    """The calls of the layers of G for n images of that shape."""
    G = networks(script, shape, options=options)[0]
    return calls(G, torch.randn(n, G.latent_dim), *codes(script, n))


def seen_in_d(script, shape, n=2, options=()):
    """The calls of the layers of D for n images of that shape."""
    D = networks(script, shape, options=options)[1]
    x, y = batch(script, shape, n)
    inputs = {"cgan": (x, y), "cogan": tuple(x.chunk(2, 1))}.get(script.__name__, (x,))
    return calls(D, *inputs)


@pytest.mark.parametrize("side", [8, 28, 31, 32, 33, 48, 64])
def test_networks_fit_any_side_in_grey_and_in_colour(convolutional, side):
    script = convolutional
    for channels in (1, 3):
        G, D, *_ = networks(script, (channels, side, side), options=small(script))
        x, y = batch(script, (channels, side, side), n=2)
        assert generate(script, G, 2).shape == x.shape
        assert all(len(output) == 2 for output in discriminate(script, D, x, y))
        assert discriminate(script, D, x, y)[0].shape == (2, 1)


def test_generator_ends_in_tanh(script):
    G, *_ = networks(script, options=["--domain", "negative"] if script.__name__ == "cogan" else [])
    generate(script, G, 64)  # for the running statistics
    with torch.no_grad():
        for p in G.parameters():
            p.mul_(30)
    images = generate(script, G, 64)
    assert images.abs().max() <= 1 and images.min() < -0.9 and images.max() > 0.9


def test_discriminator_returns_raw_scores(script):
    D = networks(script)[1]
    x, y = batch(script)
    for layer in D.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            nn.init.constant_(layer.bias, 100)
    assert discriminate(script, D, x, y)[0].min() > 5  # fgan.py's asinh makes 5.3 of 100
    for layer in D.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            nn.init.constant_(layer.bias, -100)
    assert discriminate(script, D, x, y)[0].max() < -5


@pytest.mark.parametrize("side, maps", [
    (28, [(4, 14), (8, 7)]),
    (31, [(4, 15), (8, 7)]),
    (33, [(4, 16), (8, 8), (16, 4)]),
    (64, [(4, 32), (8, 16), (16, 8), (32, 4)]),
    (128, [(4, 64), (8, 32), (16, 16), (32, 8), (32, 4)]),
])  # fmt: skip
def test_each_level_halves_the_side_and_doubles_the_channels_up_to_8_times_the_width(
    convolutional, side, maps
):
    seen = seen_in_d(convolutional, (3, side, side), options=small(convolutional))
    down = {tuple(y.shape[1:]) for m, _, y in seen if isinstance(m, nn.Conv2d)}
    assert down == {(channels, side, side) for channels, side in maps}
    seen = seen_in_g(convolutional, (3, side, side), options=small(convolutional))
    up = {tuple(x.shape[1:]) for m, x, _ in seen if isinstance(m, nn.ConvTranspose2d)}
    assert up == down


def shapes_of_weights(net):
    """The shapes of all weights but those of batch normalisation, sorted."""
    return sorted(tuple(p.shape) for p in net.parameters() if p.ndim > 1)


def test_weights_are_those_of_the_two_networks_of_the_dcgan_paper():
    """The authors' for MNIST, and the paper's; kernels of 4 and a stride of 2 throughout."""
    G, D, *_ = networks(dcgan, (1, 28, 28), options=["--width", "32"])
    kernels = [(32, 1, 4, 4), (64, 32, 4, 4)]
    assert shapes_of_weights(G) == sorted([*kernels, (512, 100), (64 * 7 * 7, 512)])
    assert shapes_of_weights(D) == sorted([*kernels, (512, 64 * 7 * 7), (1, 512)])
    G, D, *_ = networks(dcgan, (3, 64, 64), options=["--width", "32"])
    kernels = [(32, 3, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert shapes_of_weights(G) == sorted([*kernels, (256 * 4 * 4, 100)])
    assert shapes_of_weights(D) == sorted([*kernels, (1, 256 * 4 * 4)])


@pytest.mark.parametrize("side, has_one", [(8, True), (28, True), (31, True), (32, False),
                                           (64, False)])  # fmt: skip
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if name != "infogan"])
def test_below_32_there_is_a_dense_hidden_layer_in_both_networks_and_from_32_on_in_none(
    name, side, has_one
):
    script = importlib.import_module(name)  # infogan.py's heads have dense layers of their own
    options = small(script)
    dense = [m for m, *_ in seen_in_g(script, (1, side, side), 2, options)]
    dense = [m for m in dense if isinstance(m, nn.Linear)]
    reads_z = dense[0].in_features
    assert any(m.in_features != reads_z for m in dense) == has_one
    dense = [m for m, *_ in seen_in_d(script, (1, side, side), 2, options)]
    dense = [m for m in dense if isinstance(m, nn.Linear)]
    assert any(m.out_features not in (1, 10) for m in dense) == has_one  # 1 score, 10 classes


def test_batch_normalisation_is_everywhere_but_at_the_output_of_g_and_at_the_input_of_d(
    convolutional,
):
    seen = seen_in_g(convolutional, (3, 64, 64), options=small(convolutional))
    normalised = [tuple(y.shape[1:]) for m, _, y in seen if isinstance(m, nn.BatchNorm2d)]
    assert (3, 64, 64) not in normalised
    assert {4, 8, 16, 32} <= {shape[1] for shape in normalised}
    seen = seen_in_d(convolutional, (3, 64, 64), options=small(convolutional))
    normalised = [tuple(y.shape[1:]) for m, _, y in seen if isinstance(m, nn.BatchNorm2d)]
    assert {shape[1] for shape in normalised} == {16, 8, 4}  # not at 64 nor behind the first layer


@pytest.mark.parametrize("side", [28, 64])
def test_batch_normalisation_has_the_usual_momentum_and_an_epsilon_that_drowns_no_signal(
    script, side
):
    G, D, *_ = networks(script, (1, side, side), options=small(script))
    found = [m for net in (G, D) for m in net.modules() if isinstance(m, NORMALISATIONS)]
    assert len(found) >= 2 and {(m.momentum, m.eps) for m in found} == {(0.1, 1e-5)}
    assert all(m.track_running_stats for m in found)


def test_d_of_vanilla_gan_drops_a_tenth_of_every_hidden_layer_and_only_in_training():
    x, _ = batch(vanilla_gan, n=64)
    D = networks(vanilla_gan)[1]
    hidden = [x for m, x, _ in calls(D, x) if isinstance(m, nn.Linear)][1:]
    assert len(hidden) == 3
    assert all(0.08 < (h == 0).float().mean() < 0.12 for h in hidden)
    assert torch.equal(D.eval()(x), D(x))


# what a paper gives; all other defaults may change
DEFAULTS = {name: {"b1": 0.5, "b2": 0.999, "latent_dim": 100} for name in SCRIPTS}
DEFAULTS["infogan"] |= {"lr_g": 1e-3, "lr_d": 2e-4, "latent_dim": 62}
DEFAULTS["lsgan"] |= {"a": 0, "b": 1, "c": 1}
DEFAULTS["vanilla_gan"] |= {"loss": "non_saturating"}


def test_defaults_that_a_paper_gives(script):
    args = vars(script.parse_args([]))
    assert args == args | DEFAULTS[script.__name__]


def test_weights_start_from_a_normal_distribution_of_0_02_and_gains_around_1(convolutional):
    for network in networks(convolutional, (1, 28, 28))[:2]:
        for module in network.modules():
            if isinstance(module, (*WEIGHTED, *NORMALISATIONS)):
                mean = 1.0 if isinstance(module, NORMALISATIONS) else 0.0
                w = module.weight
                error = 5 / math.sqrt(w.numel())  # five standard errors
                assert (w.mean() - mean).abs() < 0.02 * error, module
                assert abs(w.std() / 0.02 - 1) < error, module
                assert (module.bias == 0).all(), module


def negative_everywhere(net):
    """Give a network weights with which negative inputs make every pre-activation negative."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, NORMALISATIONS):
                module.weight.fill_(1)
                module.bias.fill_(0)
            elif hasattr(module, "weight"):
                module.weight.fill_(1 / module.weight[0].numel())
                module.bias.fill_(0)
    return net.eval()


def test_every_layer_of_d_passes_a_gradient_where_it_is_negative(script):
    D = negative_everywhere(networks(script)[1])
    start = -2.0 if script.__name__ == "fgan" else -20.0  # ELU's slope is exp(v)
    x = torch.full_like(batch(script)[0], start, requires_grad=True)
    for output in discriminate(script, D, x):
        (gradient,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
        assert output.max() < 0 and gradient.abs().sum((1, 2, 3)).min() > 1e-7


def test_the_leaky_slope_of_d_is_that_of_the_dcgan_paper(convolutional):
    D = networks(convolutional)[1]
    slopes = {m.negative_slope for m in D.modules() if isinstance(m, nn.LeakyReLU)}
    # InfoGAN's appendix has 0.1
    assert slopes and slopes <= ({0.1, 0.2} if convolutional.__name__ == "infogan" else {0.2})


def test_every_layer_of_g_is_a_plain_relu():
    G = negative_everywhere(networks(dcgan)[0])
    z = torch.full((2, G.latent_dim), -20.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(G(z).sum(), z)
    assert (gradient == 0).all()
