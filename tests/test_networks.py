"""Shapes, ranges and starting weights."""
import pytest
import torch
from conftest import codes, first, networks
from torch import nn

import cogan
import dcgan
import lsgan
from common import draw_glyphs

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_generator_draws_images_of_the_shape_of_the_data_in_the_range_of_tanh(script, shape):
    options = ["--domain", "negative"] if script.__name__ == "cogan" else []  # edge starts dark
    G = networks(script, shape, options=options)[0]
    images = G(100 * torch.randn(8, 16), *codes(script, 8))
    assert G.latent_dim == 16
    if script.__name__ == "cogan":
        assert images[1].shape == (8, *shape)
        images = images[0]
    assert images.shape == (8, *shape)
    assert images.abs().max() <= 1 and images.min() < -0.1 and images.max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_discriminator_returns_raw_scores(script, shape):
    D = networks(script, shape)[1]
    images = torch.rand(8, *shape) * 2 - 1
    more = {"cgan": codes(script, 8), "cogan": (images,)}.get(script.__name__, ())
    assert first(D(images, *more)).shape == (8, 1)
    squashing = (nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Tanh)
    layers = [module for module in D.modules() if isinstance(module, (nn.Linear, nn.LeakyReLU, *squashing))]
    assert not any(isinstance(module, squashing) for module in layers) and isinstance(layers[-1], nn.Linear)
    nn.init.constant_([layer for layer in layers if getattr(layer, "out_features", 0) == 1][-1].bias, 100)
    assert (first(D(images, *more)) > 5).all()  # nor does forward; the asinh of fgan.py makes it 5.3


def test_batch_normalisation_has_an_epsilon_that_does_not_drown_the_signal(script):
    """PyTorch-GAN's 0.8 does; so would N(0, 0.02) weights before a batch normalisation that sees too few inputs."""
    torch.manual_seed(0)
    G, D = networks(script, latent_dim=100)[:2]
    ratios = []
    for net in (G, D):
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.eps <= 1e-5
                module.register_forward_hook(lambda m, x, _: ratios.append(
                    x[0].transpose(0, 1).flatten(1).var(1).median() / m.eps))
    images, labels = draw_glyphs(64)
    G(torch.randn(64, 100), *codes(script, 64))
    images = images / 127.5 - 1
    D(images, *{"cgan": [labels], "cogan": [-images]}.get(script.__name__, []))
    assert min(ratios) > 10, ratios


def test_dcgan_weights_start_from_a_normal_distribution():
    torch.manual_seed(0)
    for network in (dcgan.Generator(16, (1, 28, 28)), dcgan.Discriminator((1, 28, 28))):
        for name, p in network.named_parameters():
            if "bias" in name:
                assert (p == 0).all(), name
            else:
                mean, error = float(p.ndim == 1), 4 / p.numel() ** 0.5  # gains around 1; four standard errors
                assert (p.mean() - mean).abs() < 0.02 * error and abs(p.std() / 0.02 - 1) < error, name


def test_dcgan_has_neither_batch_normalisation_at_the_output_of_g_nor_at_the_input_of_d():
    G, D = dcgan.Generator(16, (1, 28, 28)).layers, dcgan.Discriminator((1, 28, 28)).layers
    assert isinstance(G[-2], nn.ConvTranspose2d) and isinstance(G[-1], nn.Tanh)
    assert isinstance(D[0], nn.Conv2d) and isinstance(D[1], nn.LeakyReLU) and D[1].negative_slope == 0.2
    assert not any(isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.Upsample)) for module in [*G, *D])


@pytest.mark.parametrize("script", [dcgan, lsgan, cogan])
def test_of_the_first_eight_values_of_z_only_the_signs_count(script):
    G, z = networks(script, latent_dim=20)[0].eval(), torch.randn(8, 20)

    def draw(z):
        images = G(z)
        return torch.stack(images if script is cogan else [images])
    images = draw(z)
    for i in range(20):
        larger, turned = z.clone(), z.clone()
        larger[:, i] *= 3
        turned[:, i] *= -1
        assert torch.equal(draw(larger), images) == (i < 8) and not torch.equal(draw(turned), images)


@pytest.mark.parametrize("side", [27, 30])
def test_dcgan_says_which_sides_it_can_draw(side):
    with pytest.raises(ValueError, match=f"multiple of 4, not {side}"):
        dcgan.Generator(16, (1, side, side))
