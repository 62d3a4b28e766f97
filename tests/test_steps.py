"""train_step and sample, by value."""
import copy
import importlib
import math

import pytest
import torch
from conftest import batch, discriminate, equal, networks, weights
from torch import nn

import dcgan
import vanilla_gan
from common import draw_glyphs


@pytest.fixture(params=["vanilla_gan", "dcgan", "lsgan", "fgan"])
def simple(request):
    """The scripts whose train_step knows no labels and no codes."""
    return importlib.import_module(request.param)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_a_few_steps_change_both_networks_and_report_finite_detached_scalars(script, shape):
    G, D, opt_G, opt_D, args = networks(script, shape)
    before_G, before_D = weights(G), weights(D)
    for seed in range(3):
        x, y = batch(script, shape, seed=seed)
        values = script.train_step(G, D, opt_G, opt_D, x, y, args)
    assert {"loss_D", "loss_G", "s(x)", "s(G(z))"} <= set(values)
    assert all(v.ndim == 0 and not v.requires_grad and v.isfinite() for v in values.values())
    assert not equal(G, before_G) and not equal(D, before_D)


def test_the_step_of_d_leaves_g_alone(script):
    G, D, opt_G, opt_D, args = networks(script, lr_g=0)
    before_G, before_D = weights(G), weights(D)
    script.train_step(G, D, opt_G, opt_D, *batch(script), args)
    assert equal(G, before_G) and not equal(D, before_D)


def test_the_step_of_g_leaves_d_alone(script):
    G, D, opt_G, opt_D, args = networks(script, lr_d=0)
    before_G, before_D = weights(G), weights(D)
    script.train_step(G, D, opt_G, opt_D, *batch(script), args)
    assert equal(D, before_D) and not equal(G, before_G)


def test_gradients_do_not_pile_up_from_step_to_step(script):
    G, D, opt_G, opt_D, args = networks(script, lr_g=0, lr_d=0)
    seen = []
    for _ in range(2):
        torch.manual_seed(3)
        script.train_step(G, D, opt_G, opt_D, *batch(script), args)
        seen.append([p.grad.clone() for p in (*G.parameters(), *D.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(*seen))
    assert all(gradient.abs().max() > 0 for gradient in seen[0][:1])


def test_a_step_computes_the_paper_s_gradients(simple):
    """Against a step written out, with a fresh forward pass for each loss and no shortcut."""
    G, D, opt_G, opt_D, args = networks(simple)
    x, y = batch(simple)
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    torch.manual_seed(3)
    values = simple.train_step(G, D, opt_G, opt_D, x, y, args)

    torch.manual_seed(3)
    fake = G2(torch.randn(len(x), G2.latent_dim))
    opt_D2 = torch.optim.Adam(D2.parameters(), args.lr_d, (args.b1, args.b2), fused=True)
    s_real, s_fake = D2(x), D2(fake.detach())
    loss_D = simple.discriminator_loss(s_real, s_fake, args)
    loss_D.backward()
    for parameter, expected in zip(D.parameters(), D2.parameters()):
        assert torch.allclose(parameter.grad, expected.grad, atol=1e-6)
    opt_D2.step()
    loss_G = simple.generator_loss(D2(fake), args)  # with the new D
    loss_G.backward()
    for parameter, expected in zip(G.parameters(), G2.parameters()):
        scale = expected.grad.abs().max()
        assert torch.allclose(parameter.grad, expected.grad, atol=1e-6 + 1e-5 * scale)
    expected = {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean()}
    for name, value in expected.items():
        assert values[name].item() == pytest.approx(value.item(), abs=1e-5), name


def test_d_learns_to_tell_real_from_generated_and_g_to_fool_it(script):
    digits = nn.functional.interpolate(draw_glyphs(32)[0] / 127.5 - 1, (8, 8))
    x, y = batch(script, n=32)
    x = digits.expand_as(x).contiguous()
    G, D, opt_G, opt_D, args = networks(script, lr_d=2e-3)
    opt_G.param_groups[0]["lr"] = 0
    for _ in range(15):
        before = script.train_step(G, D, opt_G, opt_D, x, y, args)
    assert before["s(x)"] > before["s(G(z))"] + 0.05

    opt_G.param_groups[0]["lr"], opt_D.param_groups[0]["lr"] = 3e-3, 0
    for _ in range(15):
        after = script.train_step(G, D, opt_G, opt_D, x, y, args)
    assert after["s(G(z))"] > before["s(G(z))"] + 0.05


def test_losses_and_scores_are_float32_in_bfloat16_too(script):
    G, D, opt_G, opt_D, args = networks(script)
    x, y = batch(script)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert all(output.dtype == torch.float32 for output in discriminate(script, D, x))
        values = script.train_step(G, D, opt_G, opt_D, x, y, args)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in values.values())


def test_vanilla_gan_reports_a_lower_bound_of_the_divergence():
    G, D, opt_G, opt_D, args = networks(vanilla_gan)
    values = vanilla_gan.train_step(G, D, opt_G, opt_D, *batch(vanilla_gan), args)
    bound = (math.log(4) - values["loss_D"].item()) / 2  # V is -loss_D
    assert values["JSD>="].item() == pytest.approx(bound, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_sample_leaves_random_state_mode_and_running_statistics_alone(script, training):
    G, D, opt_G, opt_D, args = networks(script)
    script.train_step(G, D, opt_G, opt_D, *batch(script), args)
    G.eval()  # as train keeps its average
    D.train(training)
    before = copy.deepcopy([G.state_dict(), D.state_dict()])
    random_state = torch.get_rng_state()
    picture = script.sample(G, D, args)["images"]
    assert torch.equal(random_state, torch.get_rng_state())
    for net, state in zip((G, D), before):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training == training for module in D.modules())
    assert not any(module.training for module in G.modules())
    assert torch.equal(picture, script.sample(G, D, args)["images"])  # the same z every time
    assert not picture.requires_grad


def test_another_seed_draws_another_picture(script):
    G, D, *_, args = networks(script)
    G.eval()
    picture = script.sample(G, D, args)["images"]
    args.seed = 1
    assert not torch.equal(picture, script.sample(G, D, args)["images"])


def test_a_picture_has_a_label_for_each_of_its_full_rows(script):
    G, D, *_, args = networks(script)
    picture = script.sample(G.eval(), D, args)
    n_rows, rest = divmod(len(picture["images"]), picture["n_columns"])
    assert rest == 0 and len(picture.get("rows", range(n_rows))) == n_rows
    assert len(picture.get("captions", picture["images"])) == len(picture["images"])


def test_64_samples_come_from_the_z_of_the_seed(simple):
    G, D, *_, args = networks(simple)
    z = torch.randn(64, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    picture = simple.sample(G.eval(), D, args)
    assert torch.allclose(picture["images"][:64], G(z), atol=1e-6)
    assert picture["n_columns"] == 8


def test_walks_lead_in_a_straight_line_from_the_first_sample_of_a_row_to_its_last():
    G, D, *_, args = networks(dcgan)
    z = torch.randn(64, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    picture = dcgan.sample(G.eval(), D, args)
    images = picture["images"].unflatten(0, (-1, 8))
    samples, walks = images[:8], images[8:]
    assert len(walks) == 4
    for row, walk in enumerate(walks):
        start, end = z[8 * row], z[8 * row + 7]
        assert torch.allclose(walk[0], samples[row, 0], atol=1e-6)
        assert torch.allclose(walk[7], samples[row, 7], atol=1e-6)
        line = torch.stack([start + k / 7 * (end - start) for k in range(8)])
        assert torch.allclose(walk, G(line), atol=1e-6)
        assert f"z{8 * row}" in picture["rows"][8 + row]
        assert f"z{8 * row + 7}" in picture["rows"][8 + row]
