"""y, classes and codes: what the children of dcgan.py that know them must do, by value."""
import itertools
import math

import pytest
import torch
from conftest import batch, calls, fake_data, files, networks, weights
from torch import nn
from torchvision.utils import save_image

import acgan
import cgan
import infogan


def with_seed(seed, function, *args):
    torch.manual_seed(seed)
    return function(*args)


def codes_given_to(G, position=1):
    """A list that the codes of every call of G are added to."""
    seen = []
    G.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[position]))
    return seen


# conditional GAN and AC-GAN


@pytest.mark.parametrize("script", [cgan, acgan])
def test_g_reads_the_class_as_a_one_hot_vector_beside_z(script):
    G, *_ = networks(script)
    z, y = torch.randn(3, G.latent_dim), torch.tensor([0, 7, 9])
    _, read, _ = calls(G, z, y)[0]
    assert torch.equal(read, torch.cat([z, torch.eye(10)[y]], 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_d_of_cgan_reads_the_class_as_planes_beside_x(channels):
    D = networks(cgan, (channels, 8, 8))[1]
    x, y = torch.rand(3, channels, 8, 8), torch.tensor([0, 7, 9])
    _, read, _ = calls(D, x, y)[0]
    assert torch.equal(read[:, :channels], x)
    for i, k in itertools.product(range(3), range(10)):
        assert (read[i, channels + k] == float(k == y[i])).all()


@pytest.mark.parametrize("script", [cgan, acgan])
def test_the_picture_has_a_row_per_class_and_the_same_z_down_each_column(script):
    G, D, *_, args = networks(script)
    picture = script.sample(G.eval(), D, args)
    z = torch.randn(10, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    with torch.no_grad():
        rows = [G(z, torch.full((10,), row)) for row in range(10)]
    assert torch.allclose(picture["images"], torch.cat(rows), atol=1e-6)
    assert picture["n_columns"] == 10 and picture["rows"] == list("0123456789")


@pytest.mark.parametrize("script", [cgan, acgan])
def test_digit_picks_its_row(script):
    G, D, *_, args = networks(script)
    every = script.sample(G.eval(), D, args)["images"]
    args.digit = 5
    picture = script.sample(G, D, args)
    assert torch.allclose(picture["images"], every[50:60], atol=1e-6) and picture["rows"] == ["5"]


@pytest.mark.parametrize("script", [cgan, acgan])
def test_real_images_are_laid_out_by_class_too(script):
    data = fake_data((1, 8, 8), 37)
    picture = script.real_images(data, script.parse_args([]))
    assert picture["rows"] == data.classes and picture["n_columns"] == 10
    levels = ((picture["images"] + 1) * 127.5).round().byte()
    for row, column in itertools.product(range(10), range(10)):
        members = data.images[data.labels == row]  # three or four: they repeat
        assert torch.equal(levels[10 * row + column], members[column % len(members)])


@pytest.mark.parametrize("script", [cgan, acgan])
def test_of_many_classes_a_picture_shows_20_from_the_first_to_the_last(script):
    names = [f"class {i:02}" for i in range(25)]
    data = fake_data((1, 8, 8), 50)._replace(labels=torch.arange(50) % 25, classes=names)
    args = script.parse_args([])
    G = script.Generator(args.latent_dim, (1, 8, 8), names, args.width).eval()
    D = script.Discriminator((1, 8, 8), 25, args.width)
    for picture in (script.real_images(data, args), script.sample(G, D, args)):
        shown = picture["rows"]
        assert len(set(shown)) == 20 and shown == sorted(shown) and set(shown) <= set(names)
        assert (shown[0], shown[-1]) == (names[0], names[-1])
        assert len(picture["images"]) == 200 and "20 of 25" in picture["title"]


@pytest.mark.parametrize("script", [cgan, acgan])
def test_a_run_takes_its_classes_from_the_folder_whatever_they_are_called(script, tmp_path, capsys):
    names = sorted([r"$\foo$", "a_b^{", "日本", "𓀀", *(f"class {i:02}" for i in range(21))])
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            save_image(torch.rand(3, 8, 8), tmp_path / "data" / name / f"{i}.png")
    options = ["--dataset", tmp_path / "data", "--img_size", 8, "--batch_size", 25]
    options += ["--n_epochs", 1, "--out_dir", tmp_path / "run"]
    script.main([str(word) for word in options])
    assert {"samples.png", "real.png"} <= set(files(tmp_path / "run"))
    G = script.load_generator(tmp_path / "run" / "checkpoint.pt")
    assert G.classes == names
    assert G(torch.randn(2, G.latent_dim), torch.tensor([0, 24])).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("script", [cgan, acgan])
def test_a_trained_network_draws_the_digit_that_is_asked_for(script, run_options, tmp_path):
    options = [*run_options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")]
    script.main(options)
    every = (tmp_path / "run" / "samples.png").read_bytes()
    script.main(["--resume", str(tmp_path / "run" / "checkpoint.pt"), "--digit", "5"])
    assert (tmp_path / "run" / "samples.png").read_bytes() != every


def test_cgan_losses_are_those_of_the_conditional_game():
    G, D, opt_G, opt_D, args = networks(cgan, lr_g=0, lr_d=0)
    with torch.no_grad():
        for p in D.parameters():
            p.mul_(5)  # so that y tells
    x, y = batch(cgan)
    G.eval(), D.eval()  # a second pass gives the same values
    values = with_seed(3, cgan.train_step, G, D, opt_G, opt_D, x, y, args)
    fake = G(with_seed(3, torch.randn, 16, G.latent_dim), y)

    def V(y_real, y_fake):
        real, generated = D(x, y_real).sigmoid(), D(fake, y_fake).sigmoid()
        return (real.log().mean() + (1 - generated).log().mean()).item()

    assert values["loss_D"].item() == pytest.approx(-V(y, y), abs=1e-5)
    loss_G = -D(fake, y).sigmoid().log().mean().item()
    assert values["loss_G"].item() == pytest.approx(loss_G, abs=1e-5)
    others = y.flip(0)  # with the labels of other images, each would be different
    assert abs(V(others, y) - V(y, y)) > 1e-4 and abs(V(y, others) - V(y, y)) > 1e-4
    assert abs(-D(fake, others).sigmoid().log().mean().item() - loss_G) > 1e-4


# AC-GAN


def test_acgan_captions_tell_the_class_that_d_sees():
    G, D, *_, args = networks(acgan)
    picture = acgan.sample(G.eval(), D, args)
    seen = D.eval()(picture["images"])[1].argmax(1).tolist()
    assert picture["captions"] == [G.classes[k] for k in seen]


def test_acgan_classes_of_generated_images_are_those_of_the_batch_in_another_order():
    G, D, opt_G, opt_D, args = networks(acgan)
    asked = codes_given_to(G)
    x, y = batch(acgan)
    for _ in range(3):
        acgan.train_step(G, D, opt_G, opt_D, x, y, args)
    assert all(torch.equal(c.sort()[0], y.sort()[0]) and not torch.equal(c, y) for c in asked)
    assert not torch.equal(asked[0], asked[1]) and not torch.equal(asked[1], asked[2])


def test_acgan_losses_are_minus_l_s_minus_l_c_for_d_and_l_s_minus_l_c_for_g():
    G, D, opt_G, opt_D, args = networks(acgan, lr_g=0, lr_d=0)
    with torch.no_grad():
        for p in D.parameters():
            p.mul_(5)  # logits that tell the classes apart
    x, y = batch(acgan)
    G.eval(), D.eval()
    fakes, asked = [], codes_given_to(G)
    G.register_forward_hook(lambda module, inputs, output: fakes.append(output))
    values = acgan.train_step(G, D, opt_G, opt_D, x, y, args)
    (c,), (fake,) = asked, fakes
    (s_real, logits_real), (s_fake, logits_fake) = D(x), D(fake)

    def log_p(logits, labels):
        return torch.distributions.Categorical(logits=logits).log_prob(labels).mean().item()

    L_S = (s_real.sigmoid().log().mean() + (1 - s_fake.sigmoid()).log().mean()).item()
    L_C = log_p(logits_real, y) + log_p(logits_fake, c)
    assert values["loss_D"].item() == pytest.approx(-(L_S + L_C), abs=1e-4)
    log_real = s_fake.sigmoid().log().mean().item()
    loss_G = -(log_real + log_p(logits_fake, c))
    assert values["loss_G"].item() == pytest.approx(loss_G, abs=1e-4)
    assert abs(log_p(logits_fake, y) - log_p(logits_fake, c)) > 1e-3  # y for c would show
    assert abs(log_p(logits_real, c) - log_p(logits_real, y)) > 1e-3  # and c for y
    assert values["acc(x)"] == (logits_real.argmax(1) == y).float().mean()
    assert values["acc(G(z))"] == (logits_fake.argmax(1) == c).float().mean()


def test_acgan_teaches_g_to_draw_the_class_that_it_is_asked_for():
    """With a D that only reads the class, G's step must raise log P(C = c) and not P(C = y)."""
    G, D, opt_G, opt_D, args = networks(acgan, lr_g=3e-3, lr_d=0)
    with torch.no_grad():
        D.score.weight.zero_()
        D.logits.weight.mul_(30)
    x, y = batch(acgan, n=64)
    z, c = torch.randn(64, G.latent_dim), torch.arange(64) % 10
    before = acgan.class_loss(D(G(z, c))[1], c)
    for _ in range(40):
        acgan.train_step(G, D, opt_G, opt_D, x, y, args)
    assert acgan.class_loss(D(G(z, c))[1], c) < before - 0.5


def test_acgan_s_second_head_gives_logits():
    G, D, opt_G, opt_D, args = networks(acgan, lr_d=3e-3)
    x, y = batch(acgan, n=32)
    assert not torch.allclose(D(x)[1].sum(1), torch.ones(32), atol=1e-3)  # no softmax
    for _ in range(30):
        loss = acgan.class_loss(D(x)[1], y)
        opt_D.zero_grad()
        loss.backward()
        opt_D.step()
    assert loss < 1  # a softmax before the cross-entropy stays above 1.46


# InfoGAN


def test_infogan_never_reads_the_labels():
    x, y = batch(infogan)
    results = []
    for labels in (y, None):
        G, D, opt_G, opt_D, args = networks(infogan)
        with_seed(0, infogan.train_step, G, D, opt_G, opt_D, x, labels, args)
        results.append(weights(G) | {f"D.{name}": p for name, p in weights(D).items()})
    assert all(torch.equal(p, results[1][name]) for name, p in results[0].items())


def test_infogan_codes_are_a_category_and_two_values():
    c = with_seed(0, infogan.sample_code, 5000, "cpu")
    category, values = c[:, :10], c[:, 10:]
    assert c.shape == (5000, 12)
    assert (category.sum(1) == 1).all() and set(category.unique().tolist()) == {0, 1}
    assert (category.mean(0) - 0.1).abs().max() < 0.02
    assert values.abs().max() <= 1 and (values.std(0) - 3**-0.5).abs().max() < 0.02
    assert values.mean(0).abs().max() < 0.05


def test_infogan_g_reads_the_code_beside_z():
    G, *_ = networks(infogan)
    z, c = torch.randn(3, G.latent_dim), infogan.sample_code(3, "cpu")
    _, read, _ = calls(G, z, c)[0]
    assert torch.equal(read, torch.cat([z, c], 1))


def test_infogan_information_is_the_likelihood_of_torch_distributions_plus_the_entropy():
    c = infogan.sample_code(64, "cpu")
    logits, mean, log_std = torch.randn(64, 10), torch.randn(64, 2), torch.randn(64, 2)
    L_cat, L_con = infogan.information(c, logits, mean, log_std)
    categorical = torch.distributions.Categorical(logits=logits)
    expected = categorical.log_prob(c[:, :10].argmax(1)).mean() + math.log(10)
    assert torch.allclose(L_cat, expected, atol=1e-5)
    normal = torch.distributions.Normal(mean, log_std.exp())
    expected = normal.log_prob(c[:, 10:]).sum(1).mean() + 2 * math.log(2)
    assert torch.allclose(L_con, expected, atol=1e-4)


def test_infogan_information_is_0_for_a_q_that_knows_nothing_and_at_most_the_entropy():
    c = infogan.sample_code(64, "cpu")
    nothing = infogan.information(c, torch.zeros(64, 10), torch.zeros(64, 2), torch.zeros(64, 2))
    assert nothing[0].item() == pytest.approx(0, abs=1e-5) and nothing[1] < 0
    everything = infogan.information(c, 100 * c[:, :10], c[:, 10:], torch.full((64, 2), -3.0))
    assert everything[0].item() == pytest.approx(math.log(10), abs=1e-4) and everything[1] > 3


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters)]


def test_infogan_s_step_of_d_and_q_ascends_eq_6_with_lambda_for_each_kind_of_code():
    options = ["--lambda_cat", "0.4", "--lambda_con", "0.7"]
    G, D, opt_G, opt_D, args = networks(infogan, lr_g=0, lr_d=0, options=options)
    x, y = batch(infogan)
    asked, fakes = codes_given_to(G), []
    G.register_forward_hook(lambda module, inputs, output: fakes.append(output.detach()))
    values = infogan.train_step(G, D, opt_G, opt_D, x, y, args)
    step = [p.grad.clone() for p in D.parameters()]

    s, *Q = D(fakes[0])
    L_cat, L_con = infogan.information(asked[0], *Q)
    game = infogan.discriminator_loss(D(x)[0], s, args)
    parts = [gradients(loss, list(D.parameters())) for loss in (game, L_cat, L_con)]
    for ours, g, cat, con in zip(step, *parts):
        expected = g - 0.4 * cat - 0.7 * con
        assert torch.allclose(ours, expected, atol=1e-4 * expected.abs().max() + 5e-6)
    assert max(g.abs().max() for g in parts[1]) > 1e-3 < max(g.abs().max() for g in parts[2])
    assert values["loss_D"].item() == pytest.approx(game.item(), abs=1e-5)  # the game's alone
    assert values["L_I cat"].item() == pytest.approx(L_cat.item(), abs=1e-5)
    assert values["L_I con"].item() == pytest.approx(L_con.item(), abs=1e-5)


def test_infogan_s_step_of_g_descends_eq_6_with_lambda_for_each_kind_of_code():
    options = ["--lambda_cat", "0.4", "--lambda_con", "0.7"]
    G, D, opt_G, opt_D, args = networks(infogan, lr_g=0, lr_d=0, options=options)
    asked, noise = codes_given_to(G), codes_given_to(G, 0)
    values = infogan.train_step(G, D, opt_G, opt_D, *batch(infogan), args)
    s, *Q = D(G(noise[0], asked[0]))
    L_cat, L_con = infogan.information(asked[0], *Q)
    losses = (infogan.generator_loss(s, args), L_cat, L_con)
    parts = [gradients(loss, list(G.parameters())) for loss in losses]
    for p, g, cat, con in zip(G.parameters(), *parts):
        expected = g - 0.4 * cat - 0.7 * con
        assert torch.allclose(p.grad, expected, atol=1e-4 * expected.abs().max() + 1e-6)
    scale = max(p.grad.abs().max() for p in G.parameters())
    assert max((0.4 * cat).abs().max() for cat in parts[1]) > 0.01 * scale  # so that it tells
    assert values["loss_G"].item() == pytest.approx(losses[0].item(), abs=1e-5)


def test_infogan_s_heads_take_as_large_steps_in_the_control():
    """Adam divides by the gradient's size: lambda 1e-3 slows G and D's trunk, but not Q."""
    moved = {}
    for weight in ("1", "1e-3"):
        options = ["--lambda_cat", weight, "--lambda_con", weight]
        G, D, opt_G, opt_D, args = networks(infogan, lr_g=0, options=options)
        heads = nn.ModuleList([D.category, D.continuous])
        before = weights(heads)
        torch.manual_seed(1)
        for _ in range(5):
            infogan.train_step(G, D, opt_G, opt_D, *batch(infogan), args)
        moved[weight] = {n: (p - before[n]).norm() for n, p in heads.named_parameters()}
    for name in [name for name in moved["1"] if "weight" in name]:
        assert moved["1e-3"][name] > 0.5 * moved["1"][name] > 0, name


def test_infogan_resumed_with_other_lambdas_trains_with_them(run_options, tmp_path, monkeypatch):
    seen = []
    train_step = infogan.train_step

    def record(*args):
        seen.append((args[-1].lambda_cat, args[-1].lambda_con))
        return train_step(*args)

    monkeypatch.setattr(infogan, "train_step", record)
    infogan.main([*run_options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")])
    path = str(tmp_path / "run" / "checkpoint.pt")
    infogan.main(["--resume", path, "--n_epochs", "2", "--lambda_cat", "5", "--lambda_con", "6"])
    infogan.main(["--resume", path, "--n_epochs", "3"])
    assert seen == [(0.3, 0.03)] * 4 + [(5, 6)] * 8


def test_infogan_s_picture_sweeps_the_category_and_each_continuous_code_from_minus_2_to_2():
    G, D, *_, args = networks(infogan)
    picture = infogan.sample(G.eval(), D, args)
    z = torch.randn(5, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    sweep, zeros, eye = torch.linspace(-2, 2, 10)[:, None], torch.zeros(10, 1), torch.eye(10)
    rows = [(z[i], torch.cat([eye, zeros, zeros], 1)) for i in range(5)]
    for values in ([sweep, zeros], [zeros, sweep]):
        rows += [(z[0], torch.cat([eye[k].expand(10, -1), *values], 1)) for k in range(3)]
    with torch.no_grad():
        expected = [G(noise.expand(10, -1), c) for noise, c in rows]
    assert torch.allclose(picture["images"], torch.cat(expected), atol=1e-5)
    assert picture["n_columns"] == len(picture["columns"]) == 10
    assert len(picture["rows"]) == len(rows) == len(set(picture["rows"]))
