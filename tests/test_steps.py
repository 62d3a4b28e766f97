"""train_step and sample, by value."""
import copy
import importlib
import math

import pytest
import torch
from conftest import images_for, networks

from common import draw_glyphs


@pytest.fixture(params=["vanilla_gan", "dcgan", "lsgan"])
def simple(request):
    """The scripts whose train_step knows no labels and no codes."""
    return importlib.import_module(request.param)


def bytes_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def equal(before, net, parameters_only=False):
    names = dict(net.named_parameters()) if parameters_only else before
    return all(torch.equal(before[name], net.state_dict()[name]) for name in names)


def batch(n=16, shape=(1, 28, 28)):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(n, *shape, generator=generator) * 2 - 1, torch.randint(10, (n,), generator=generator)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_a_few_steps_change_both_networks_and_report_finite_detached_scalars(script, shape):
    G, D, opt_G, opt_D, args = networks(script, shape)
    before_G, before_D = bytes_of(G), bytes_of(D)
    for _ in range(3):
        values = script.train_step(G, D, opt_G, opt_D, *batch(shape=images_for(script, shape)), args)
    assert {"loss_D", "loss_G", "s(x)", "s(G(z))"} <= set(values)
    assert all(v.ndim == 0 and not v.requires_grad and v.isfinite() for v in values.values())
    assert not equal(before_G, G, parameters_only=True) and not equal(before_D, D, parameters_only=True)


def test_the_step_of_d_leaves_g_alone_and_the_reverse(script):
    G, D, opt_G, opt_D, args = networks(script, lr_g=0)
    before_G, before_D = bytes_of(G), bytes_of(D)
    script.train_step(G, D, opt_G, opt_D, *batch(shape=images_for(script)), args)
    assert equal(before_G, G, parameters_only=True) and not equal(before_D, D, parameters_only=True)

    G, D, opt_G, opt_D, args = networks(script, lr_d=0)
    before_G, before_D = bytes_of(G), bytes_of(D)
    script.train_step(G, D, opt_G, opt_D, *batch(shape=images_for(script)), args)
    assert equal(before_D, D, parameters_only=True) and not equal(before_G, G, parameters_only=True)


def test_a_step_computes_the_paper_s_gradients(simple):
    """Against a step written out with two graphs, a fresh forward pass for each and no shortcut."""
    G, D, opt_G, opt_D, args = networks(simple)
    x, y = batch()
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
    loss_G = simple.generator_loss(D2(fake), args)
    loss_G.backward()
    for parameter, expected in zip(G.parameters(), G2.parameters()):
        assert torch.allclose(parameter.grad, expected.grad, atol=1e-6 + 1e-5 * expected.grad.abs().max())
    for name, expected in (("loss_D", loss_D), ("s(x)", s_real.mean()), ("s(G(z))", s_fake.mean())):
        assert values[name].item() == pytest.approx(expected.item(), abs=1e-5), name  # before D's step
    assert values["loss_G"].item() == pytest.approx(loss_G.item(), abs=1e-3)  # after it


def test_d_learns_to_tell_real_from_generated_and_g_to_fool_it(script):
    images, labels = draw_glyphs(32)
    real = (images / 127.5 - 1).expand(-1, *images_for(script)).contiguous()

    G, D, opt_G, opt_D, args = networks(script)
    opt_G.param_groups[0]["lr"] = 0
    for _ in range(20):
        before = script.train_step(G, D, opt_G, opt_D, real, labels, args)
    assert before["s(x)"] > before["s(G(z))"] + 0.05

    opt_G.param_groups[0]["lr"], opt_D.param_groups[0]["lr"] = 3e-3, 0
    for _ in range(20):
        after = script.train_step(G, D, opt_G, opt_D, real, labels, args)
    assert after["loss_G"] < 0.9 * before["loss_G"]


def test_vanilla_gan_reports_its_value_and_the_bound_of_the_divergence():
    import vanilla_gan

    G, D, opt_G, opt_D, args = networks(vanilla_gan)
    values = vanilla_gan.train_step(G, D, opt_G, opt_D, *batch(), args)
    assert values["V"] == -values["loss_D"]
    assert values["JSD>="].item() == pytest.approx((values["V"].item() + math.log(4)) / 2, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_sample_leaves_random_state_mode_and_running_statistics_alone(script, training):
    G, D, opt_G, opt_D, args = networks(script)
    script.train_step(G, D, opt_G, opt_D, *batch(shape=images_for(script)), args)
    G.train(training)
    D.train(training)
    before, state = bytes_of(G) | {f"D.{k}": v for k, v in bytes_of(D).items()}, torch.get_rng_state()
    first = script.sample(G, D, args)["images"]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())
    assert all(torch.equal(v, before[f"D.{k}"]) for k, v in D.state_dict().items())
    assert all(m.training == training for net in (G, D) for m in net.modules())
    assert torch.equal(first, script.sample(G, D, args)["images"])  # the same z every time
    assert not first.requires_grad


def test_sample_draws_in_eval_mode_from_the_seed(simple):
    script = simple
    G, D, opt_G, opt_D, args = networks(script)
    script.train_step(G, D, opt_G, opt_D, *batch(shape=images_for(script)), args)
    z = torch.randn(64, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    picture = script.sample(G, D, args)
    assert torch.equal(picture["images"], G.eval()(z))
    assert len(picture["images"]) % picture["n_columns"] == 0
    args.seed = 1
    assert not torch.equal(picture["images"], script.sample(G, D, args)["images"])
