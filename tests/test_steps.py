"""train_step and sample, by value."""
import copy
import importlib
import math
import types

import pytest
import torch
from conftest import batch, equal, files, networks, weights
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import dcgan


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


@pytest.mark.parametrize("learner", ["G", "D"])
def test_the_step_of_one_network_leaves_the_other_alone(script, learner):
    rates = {"lr_G": 0, "lr_D": 0} | {f"lr_{learner}": 1e-3}
    G, D, opt_G, opt_D, args = networks(script, lr_g=rates["lr_G"], lr_d=rates["lr_D"])
    before_G, before_D = weights(G), weights(D)
    script.train_step(G, D, opt_G, opt_D, *batch(script), args)
    assert equal(G, before_G) == (learner == "D") and equal(D, before_D) == (learner == "G")


# The papers' games, for test_a_step_is_that_of_the_paper: given D, a batch and generated images,
# each returns what D descends, what G descends, and what train_step reports.


def cross_entropies(s_real, s_fake):
    """The losses of Goodfellow et al. and the scores, by name."""
    real, fake = torch.ones_like(s_real), torch.zeros_like(s_fake)
    loss_D = binary_cross_entropy_with_logits(s_real, real)
    loss_D = loss_D + binary_cross_entropy_with_logits(s_fake, fake)
    loss_G = binary_cross_entropy_with_logits(s_fake, real)
    return {"loss_D": loss_D, "loss_G": loss_G, "s(x)": s_real.mean(), "s(G(z))": s_fake.mean()}


def gan(D, x, y, fake, c):
    values = cross_entropies(D(x), D(fake))
    return values["loss_D"], values["loss_G"], values


def gan_with_its_bound(D, x, y, fake, c):
    loss_D, loss_G, values = gan(D, x, y, fake, c)
    return loss_D, loss_G, values | {"JSD>=": (math.log(4) - loss_D) / 2}


def minimax(D, x, y, fake, c):
    values = cross_entropies(D(x), D(fake))
    values["loss_G"] = torch.log(1 - D(fake).sigmoid()).mean()
    return values["loss_D"], values["loss_G"], values


def cgan(D, x, y, fake, c):
    values = cross_entropies(D(x, y), D(fake, c))
    return values["loss_D"], values["loss_G"], values


def lsgan(D, x, y, fake, c):  # a = -0.5, b = 1, c = 0.7
    values = cross_entropies(D(x), D(fake))
    values["loss_D"] = ((D(x) - 1) ** 2).mean() / 2 + ((D(fake) + 0.5) ** 2).mean() / 2
    values["loss_G"] = ((D(fake) - 0.7) ** 2).mean() / 2
    return values["loss_D"], values["loss_G"], values


def acgan(D, x, y, fake, c):
    (s_real, logits_real), (s_fake, logits_fake) = D(x), D(fake)
    values = cross_entropies(s_real, s_fake)
    values["loss_D"] = values["loss_D"] + cross_entropy(logits_real, y)
    values["loss_D"] = values["loss_D"] + cross_entropy(logits_fake, c)
    values["loss_G"] = values["loss_G"] + cross_entropy(logits_fake, c)
    values["acc(x)"] = (logits_real.argmax(1) == y).double().mean()
    values["acc(G(z))"] = (logits_fake.argmax(1) == c).double().mean()
    return values["loss_D"], values["loss_G"], values


def infogan(D, x, y, fake, c):  # information: see test_labels.py
    (s_real, logits_real, _), (s_fake, *Q) = D(x), D(fake)
    values = cross_entropies(s_real, s_fake)  # loss_D and loss_G are the game's alone
    L_cat, L_con = importlib.import_module("infogan").information(c, *Q)
    weighted = 0.4 * L_cat + 0.7 * L_con
    values |= {"L_I cat": L_cat, "L_I con": L_con}
    values["H(c1|x)"] = torch.distributions.Categorical(logits=logits_real).entropy().mean()
    return values["loss_D"] - weighted, values["loss_G"] - weighted, values


def cogan(D, x, y, fake, c):
    f1, f2 = nn.Sequential(D.private1, D.shared), nn.Sequential(D.private2, D.shared)
    x1, x2 = x.split([image.shape[1] for image in fake], 1)
    one, two = cross_entropies(f1(x1), f1(fake[0])), cross_entropies(f2(x2), f2(fake[1]))
    values = one | {name.replace("s(", "s2("): value for name, value in two.items()}
    values |= {name: one[name] + two[name] for name in ("loss_D", "loss_G")}
    return values["loss_D"], values["loss_G"], values


def kl(D, x, y, fake, c):
    values = cross_entropies(D(x), D(fake))
    values["F"] = D(x).mean() - (D(fake) - 1).exp().mean()
    values |= {"loss_D": -values["F"], "loss_G": -D(fake).mean()}
    return values["loss_D"], values["loss_G"], values


GAMES = [
    ("vanilla_gan", gan_with_its_bound, ""),
    ("vanilla_gan", minimax, "--loss minimax"),
    ("dcgan", gan, ""),
    ("cgan", cgan, ""),
    ("lsgan", lsgan, "--a -0.5 --b 1 --c 0.7"),
    ("acgan", acgan, ""),
    ("infogan", infogan, "--lambda_cat 0.4 --lambda_con 0.7"),
    ("cogan", cogan, "--domain edge"),
    ("cogan", cogan, "--domain rotate"),  # dense layers
    ("cogan", cogan, "--domain mnistm"),  # domain 2 in colour
    ("fgan", kl, "--divergence kl"),
]


@pytest.fixture
def double_precision():
    """Compute in float64, so that two ways to the same gradients differ by nothing to speak of."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(found, expected, name, atol=1e-9):
    torch.testing.assert_close(
        found, expected, rtol=1e-6, atol=atol, check_dtype=False, msg=lambda m: f"{name}: {m}"
    )


@pytest.mark.parametrize("name, game, options", GAMES, ids=[f"{g[0]} {g[2]}" for g in GAMES])
def test_a_step_is_that_of_the_paper(name, game, options, double_precision):
    """Gradients, weights and values of two steps, each loss from a forward pass of its own."""
    script = importlib.import_module(name)
    G, D, opt_G, opt_D, args = networks(script, options=options.split(), lr_g=1e-2, lr_d=1e-2)
    for module in D.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    opt_G2, opt_D2 = (torch.optim.Adam(net.parameters(), 1e-2, (0.5, 0.999)) for net in (G2, D2))
    asked, found, reached_G = [], [], []

    def keep(optimizer, *_):
        net = D if optimizer is opt_D else G
        found.append([p.grad.clone() for p in net.parameters()])
        reached_G.append(any(p.grad is not None for p in G.parameters()))

    G.register_forward_pre_hook(lambda module, inputs: asked.append(inputs))
    opt_D.register_step_pre_hook(keep)
    opt_G.register_step_pre_hook(keep)
    for seed in range(2):
        asked.clear(), found.clear()
        x, y = batch(script, seed=seed)
        x = x[:, [0, 1, 1, 0]] if "mnistm" in options else x
        values = script.train_step(G, D, opt_G, opt_D, x, y, args)

        loss, _, expected = game(D2, x, y, G2(*asked[0]), asked[0][-1])
        update(D2, opt_D2, loss, name)
        _, loss, with_new_D = game(D2, x, y, G2(*asked[-1]), asked[-1][-1])
        update(G2, opt_G2, loss, name)
        for net, net2, gradients in ((D, D2, found[0]), (G, G2, found[1])):
            parameters = zip(net.named_parameters(), net2.parameters(), gradients)
            for (part, p), p2, gradient in parameters:
                close(gradient, p2.grad, part)
                close(p, p2, part, 1e-6)  # Adam blows up the rounding of a gradient of 0
        for label in expected:
            close(values[label], (with_new_D if label == "loss_G" else expected)[label], label)
    assert not reached_G[0]  # detach: G costs nothing while D learns


def update(net, optimizer, loss, name):
    """Descend the loss; of cogan.py's tied layers, the average of both domains."""
    for parameter, gradient in zip(
        net.parameters(), torch.autograd.grad(loss, list(net.parameters()))
    ):
        parameter.grad = gradient
    if name == "cogan":
        for parameter in net.shared.parameters():
            parameter.grad /= 2
    optimizer.step()


def test_z_of_the_training_is_new_at_every_step_and_distributed_as_that_of_the_samples(script):
    G, D, opt_G, opt_D, args = networks(script)
    given = []
    G.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].flatten()))
    for _ in range(6):
        script.train_step(G, D, opt_G, opt_D, *batch(script, n=64), args)
    trained = torch.cat(given)
    assert len(trained.unique()) > 0.99 * trained.numel()
    given.clear()
    for args.seed in range(12):
        script.sample(G, D, args)
    shown = torch.cat([z[: 32 * G.latent_dim] for z in given]).unique()  # without dcgan.py's walks
    assert len(shown) > 2900
    # the mean absolute value tells a uniform distribution from a normal one as wide
    for moment in (torch.mean, torch.std, lambda z: z.abs().mean()):
        assert moment(trained).item() == pytest.approx(moment(shown).item(), rel=0.04, abs=0.04)


def test_train_uses_the_recorded_step_on_a_gpu(run_options, tmp_path, monkeypatch):
    """A pretended GPU, and a recorder that, as cuda_graph does, overwrites what it returned."""
    options = [*run_options, "--n_epochs", "1", "--out_dir"]
    dcgan.main([*options, str(tmp_path / "cpu")])
    build, n_calls, static = dcgan.build, [], {}

    def record(step, optimizers):
        def call(*arguments):
            n_calls.append(len(optimizers))
            for name, value in step(*arguments).items():
                static.setdefault(name, torch.empty(())).copy_(value)
            return static

        return call

    monkeypatch.setattr(dcgan, "get_device", lambda cuda: types.SimpleNamespace(type="cuda"))
    monkeypatch.setattr(dcgan, "build", lambda args, device: build(args, torch.device("cpu")))
    monkeypatch.setattr(dcgan, "cuda_graph", record)
    dcgan.main([*options, str(tmp_path / "gpu")])
    assert n_calls == [2] * 4
    assert files(tmp_path / "gpu") == files(tmp_path / "cpu")


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
