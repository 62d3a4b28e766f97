"""y, classes and codes: what the children of dcgan.py that know them must do, by value."""
import math
from argparse import Namespace

import pytest
import torch
from conftest import networks, write_mnist
from torchvision.utils import save_image

import acgan
import cgan
import infogan
from common import Data, draw_glyphs


def digits(n=16):
    images, labels = draw_glyphs(n, 3)
    return images / 127.5 - 1, labels


def test_cgan_feeds_y_one_hot_beside_z_and_as_constant_planes_beside_x():
    G, D, *_ = networks(cgan)
    seen = {}
    G.layers[0].register_forward_hook(lambda m, x, _: seen.update(G=x[0]))
    D.layers[0].register_forward_hook(lambda m, x, _: seen.update(D=x[0]))
    z, y, x = torch.randn(3, 16), torch.tensor([0, 7, 9]), torch.rand(3, 1, 28, 28)
    G(z, y)
    D(x, y)
    assert torch.equal(seen["G"], torch.cat([z, torch.eye(10)[y]], 1))
    assert torch.equal(seen["D"][:, :1], x)
    for i in range(3):
        for k in range(10):
            assert (seen["D"][i, 1 + k] == float(k == y[i])).all()


@pytest.mark.parametrize("script", [cgan, acgan])
def test_grid_has_a_row_per_class_and_the_same_z_down_each_column(script):
    G, D, *_, args = networks(script)
    picture = script.sample(G, D, args)
    z = torch.randn(10, 16, generator=torch.Generator().manual_seed(args.seed))
    with torch.no_grad():
        for row in (0, 7, 9):
            expected = G.eval()(z, torch.full((10,), row))
            assert torch.allclose(picture["images"][10 * row:10 * row + 10], expected, atol=1e-6)
    assert picture["n_columns"] == 10 and picture["rows"] == list("0123456789")
    args.digit = 5
    assert torch.allclose(script.sample(G, D, args)["images"], picture["images"][50:60], atol=1e-6)


def test_acgan_captions_tell_the_class_asked_for_and_the_class_predicted():
    G, D, *_, args = networks(acgan)
    picture = acgan.sample(G, D, args)
    named = D.eval()(picture["images"])[1].argmax(1).tolist()
    assert picture["captions"] == [f"{i // 10}: {named[i]}" for i in range(100)]


@pytest.mark.parametrize("script", [cgan, acgan])
def test_classes_come_from_the_data_and_a_digit_that_is_none_is_refused(script, tmp_path, run_options, capsys):
    for name in ("cat", "dog", "eel"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            save_image(torch.rand(3, 16, 16), tmp_path / "data" / name / f"{i}.png")
    options = ["--dataset", str(tmp_path / "data"), "--img_size", "16", "--batch_size", "8", "--n_epochs", "1"]
    script.main([*options, "--out_dir", str(tmp_path / "run")])
    G = script.load_generator(tmp_path / "run" / "checkpoint.pt")
    assert G.n_classes == 3 and G(torch.randn(2, 100), torch.tensor([0, 2])).shape == (2, 3, 16, 16)
    (tmp_path / "flat").mkdir()
    save_image(torch.rand(3, 16, 16), tmp_path / "flat" / "0.png")
    for wrong, sentence in ((["--digit", "3"], "classes 0 to 2"), (["--digit", "-2"], "classes 0 to 2"),
                            (["--dataset", str(tmp_path / "flat")], "classes 0 to 0: it takes two")):
        with pytest.raises(SystemExit) as stop:
            script.main([*options, *wrong])
        assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_acgan_class_head_is_a_logit_whose_loss_can_fall_below_that_of_a_double_softmax():
    G, D, opt_G, opt_D, args = networks(acgan)
    x, y = digits(32)
    logits = D(x)[1]
    assert not torch.allclose(logits.sum(1), torch.ones(32), atol=1e-3)  # no softmax
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(D(x)[1], y)
        opt_D.zero_grad()
        loss.backward()
        opt_D.step()
        losses.append(loss.item())
    assert losses[-1] < 1  # a softmax before the cross-entropy stays above 1.46


def test_acgan_losses_are_minus_l_s_minus_l_c_for_d_and_l_s_minus_l_c_for_g():
    G, D, opt_G, opt_D, args = networks(acgan, lr_g=0, lr_d=0)
    x, y = digits()
    G.eval(), D.eval()  # so that a second pass gives the same values
    torch.manual_seed(3)
    values = acgan.train_step(G, D, opt_G, opt_D, x, y, args)
    torch.manual_seed(3)
    z, c = torch.randn(16, 16), torch.full((10,), 0.1).multinomial(16, replacement=True)
    (s_real, l_real), (s_fake, l_fake) = D(x), D(G(z, c))
    L_S = s_real.sigmoid().log().mean() + (1 - s_fake.sigmoid()).log().mean()
    L_C = sum(torch.distributions.Categorical(logits=logits).log_prob(labels).mean()
              for logits, labels in ((l_real, y), (l_fake, c)))
    assert values["loss_D"].item() == pytest.approx(-(L_S + L_C).item(), abs=1e-4)
    L_C_fake = torch.distributions.Categorical(logits=l_fake).log_prob(c).mean()
    assert values["loss_G"].item() == pytest.approx(-(s_fake.sigmoid().log().mean() + L_C_fake).item(), abs=1e-4)
    assert values["acc(x)"] == (l_real.argmax(1) == y).float().mean()
    assert values["acc(G(z))"] == (l_fake.argmax(1) == c).float().mean()
    assert not torch.equal(c, y)


def test_acgan_draws_classes_as_often_as_the_data_has_them_whatever_the_batch(monkeypatch):
    labels = torch.tensor([2, 0, 2, 2])
    data = Data(".", torch.zeros(4, 1, 28, 28, dtype=torch.uint8), labels, ["a", "b", "c"])
    monkeypatch.setattr(acgan, "load_data", lambda *_: data)
    args = acgan.parse_args([])
    acgan.setup(args, "cpu")
    assert args.p_c.tolist() == [0.25, 0, 0.75]
    G, D, opt_G, opt_D, args = networks(acgan)
    args.p_c = torch.eye(10)[7]
    asked = []
    G.register_forward_pre_hook(lambda module, inputs: asked.extend(inputs[1].tolist()))
    acgan.train_step(G, D, opt_G, opt_D, *digits(), args)
    assert asked == [7] * 16


def test_infogan_never_reads_the_labels():
    x, y = digits()
    results = []
    for labels in (y, None):
        torch.manual_seed(0)
        G, D, opt_G, opt_D, args = networks(infogan)
        infogan.train_step(G, D, opt_G, opt_D, x, labels, args)
        results.append([p.clone() for p in (*G.parameters(), *D.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_infogan_codes_are_a_category_and_two_values():
    torch.manual_seed(0)
    c = infogan.sample_code(5000, "cpu")
    assert c.shape == (5000, 12) and (c[:, :10].sum(1) == 1).all() and set(c[:, :10].unique().tolist()) == {0, 1}
    assert (c[:, :10].mean(0) - 0.1).abs().max() < 0.02
    assert c[:, 10:].abs().max() <= 1 and (c[:, 10:].std(0) - 3**-0.5).abs().max() < 0.02


def test_infogan_information_is_the_likelihood_of_torch_distributions_plus_the_entropy():
    c = infogan.sample_code(64, "cpu")
    logits, mean, log_std = torch.randn(64, 10), torch.randn(64, 2), torch.randn(64, 2)
    L_cat, L_con = infogan.information(c, logits, mean, log_std)
    expected = torch.distributions.Categorical(logits=logits).log_prob(c[:, :10].argmax(1)).mean() + math.log(10)
    assert torch.allclose(L_cat, expected, atol=1e-5)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    assert torch.allclose(L_con, normal.log_prob(c[:, 10:]).mean() + 2 * math.log(2), atol=1e-4)
    perfect = infogan.information(c, 100 * c[:, :10], c[:, 10:], torch.full((64, 2), -3.0))
    assert perfect[0].item() == pytest.approx(math.log(10), abs=1e-4) and perfect[1] > 3
    assert infogan.information(c, torch.zeros(64, 10), mean, log_std)[0].item() == pytest.approx(0, abs=1e-5)


def test_infogan_lambda_weighs_the_gradient_of_the_shared_layers_and_of_g_but_not_that_of_q():
    x = digits()[0].requires_grad_()
    gradients = {}
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        D = infogan.Discriminator((1, 28, 28), weight, weight)
        torch.manual_seed(1)
        L_cat, L_con = infogan.information(infogan.sample_code(16, "cpu"), *D(x)[1:])
        x.grad = None
        (L_cat + L_con).backward()
        gradients[weight] = x.grad.clone(), D.layers[0].weight.grad.clone(), D.category[0].weight.grad.clone()
    for half, whole in zip(gradients[0.5][:2], gradients[1.0][:2]):
        assert torch.allclose(half, whole / 2, atol=1e-5 * whole.abs().max()) and whole.abs().max() > 0
    assert gradients[0.0][0].abs().max() == 0 and gradients[0.0][1].abs().max() == 0
    assert torch.allclose(gradients[0.0][2], gradients[1.0][2], atol=1e-6) and gradients[0.0][2].abs().max() > 0


def test_infogan_with_lambda_0_is_the_plain_gan_with_a_q_that_learns(monkeypatch):
    results, information = [], infogan.information
    for silent in (False, True):
        if silent:
            monkeypatch.setattr(infogan, "information", lambda *a: tuple(0 * value for value in information(*a)))
        G, D, opt_G, opt_D, args = networks(infogan, options=["--lambda_cat", "0", "--lambda_con", "0"])
        infogan.train_step(G, D, opt_G, opt_D, *digits(), args)
        results.append((G, D))
    (G, D), (G2, D2) = results
    for net, net2 in ((G, G2), (D.layers, D2.layers), (D.score, D2.score)):
        assert all(torch.equal(p, p2) for p, p2 in zip(net.parameters(), net2.parameters()))
    for head, head2 in ((D.category, D2.category), (D.continuous, D2.continuous)):
        assert not torch.equal(head[0].weight, head2[0].weight)


@pytest.mark.parametrize("start", [0.3, 0.0])
def test_infogan_lambda_of_the_category_falls_to_a_tenth_and_is_part_of_the_state_of_d(start):
    G, D, opt_G, opt_D, args = networks(infogan, options=["--lambda_cat", str(start)], lr_g=0, lr_d=0)
    for _ in range(5):
        infogan.train_step(G, D, opt_G, opt_D, *digits(), args)
    assert D.lambda_cat.item() == pytest.approx(start * (0.1 + 0.9 * (1 - 5e-4)**5), abs=1e-7)
    again = infogan.Discriminator((1, 28, 28), 1, 1)
    again.load_state_dict(D.state_dict())
    assert torch.equal(again.lambda_cat, D.lambda_cat) and again.lambda_con == 1


def test_infogan_step_descends_eq_6():
    """The gradients of both steps, against the sum of the GAN's and lambda times those of L_I."""
    G, D, opt_G, opt_D, args = networks(infogan, options=["--lambda_cat", "0.3", "--lambda_con", "0.7"], lr_d=0)
    x, y = digits()
    torch.manual_seed(3)
    values = infogan.train_step(G, D, opt_G, opt_D, x, y, args)
    step_G, step_D = ([p.grad.clone() for p in net.parameters()] for net in (G, D))

    torch.manual_seed(3)
    G2, D2, _, _, _ = networks(infogan, options=["--lambda_cat", "1", "--lambda_con", "1"])
    torch.manual_seed(3)
    z, c = torch.randn(16, G2.latent_dim), infogan.sample_code(16, "cpu")
    fake = G2(z, c)
    trunk, heads = list(D2.layers.parameters()), [*D2.category.parameters(), *D2.continuous.parameters()]

    def gradients(loss, parameters):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters)]

    s, *Q_c = D2(fake.detach())
    L_cat, L_con = infogan.information(c, *Q_c)
    game = infogan.discriminator_loss(D2(x)[0], s, args)
    expected = [g - 0.3 * a - 0.7 * b for g, a, b in zip(*(gradients(v, trunk) for v in (game, L_cat, L_con)))]
    expected_heads = [-a - b for a, b in zip(*(gradients(v, heads) for v in (L_cat, L_con)))]
    found = dict(zip((name for name, _ in D.named_parameters()), step_D))
    names = dict(zip([*trunk, *heads], [*expected, *expected_heads]))
    for name, p in D2.named_parameters():
        if p in names:
            assert torch.allclose(found[name], names[p], atol=1e-4 * names[p].abs().max() + 5e-6), name

    s, *Q_c = D2(fake)
    L_cat, L_con = infogan.information(c, *Q_c)
    theirs = list(G2.parameters())
    parts = (gradients(v, theirs) for v in (infogan.generator_loss(s, args), L_cat, L_con))
    for ours, g, a, b in zip(step_G, *parts):
        assert torch.allclose(ours, g - 0.3 * a - 0.7 * b, atol=1e-4 * ours.abs().max() + 1e-6)
    assert values["loss_D"].item() == pytest.approx(game.item(), abs=1e-5)  # the game's value alone


def test_cgan_losses_are_those_of_the_conditional_game():
    G, D, opt_G, opt_D, args = networks(cgan, lr_g=0, lr_d=0)
    with torch.no_grad():
        [p.mul_(3) for p in D.parameters()]  # so that y tells
    x, y = digits()
    G.eval(), D.eval()
    torch.manual_seed(3)
    values = cgan.train_step(G, D, opt_G, opt_D, x, y, args)
    torch.manual_seed(3)
    fake = G(torch.randn(16, 16), y)
    V = D(x, y).sigmoid().log().mean() + (1 - D(fake, y).sigmoid()).log().mean()
    assert values["loss_D"].item() == pytest.approx(-V.item(), abs=1e-5)
    assert values["loss_G"].item() == pytest.approx(-D(fake, y).sigmoid().log().mean().item(), abs=1e-5)
    other = -(D(x, y).sigmoid().log().mean() + (1 - D(fake, y.flip(0)).sigmoid()).log().mean())
    assert abs(values["loss_D"] - other) > 1e-4  # so the test can tell


def test_infogan_grid_sweeps_the_category_and_each_continuous_code_from_minus_2_to_2(tmp_path, monkeypatch):
    monkeypatch.setattr(infogan, "test_error", lambda *_: 0.5)
    G, D, *_, args = networks(infogan)
    picture = infogan.sample(G, D, args)
    z = torch.randn(25, 16, generator=torch.Generator().manual_seed(args.seed))
    sweep = torch.linspace(-2, 2, 10)
    eye = torch.eye(10)

    def row(z_row, category, c2, c3):
        c = torch.cat([category, torch.as_tensor(c2).expand(10)[:, None], torch.as_tensor(c3).expand(10)[:, None]], 1)
        with torch.no_grad():
            return G.eval()(z[z_row].expand(10, -1), c)

    for index, expected in ((3, row(3, eye, 0.0, 0.0)), (5 + 4, row(9, eye[4].expand(10, -1), sweep, 0.0)),
                            (15 + 8, row(23, eye[8].expand(10, -1), 0.0, sweep))):
        assert torch.allclose(picture["images"][10 * index:10 * index + 10], expected, atol=1e-5), index
    assert [picture["rows"][i] for i in (3, 9, 23)] == ["z3", "c2 of 4", "c3 of 8"]
    assert len(picture["images"]) == 250 and len(picture["rows"]) == 25 and len(picture["columns"]) == 10
    assert picture["columns"][0] == "0\n-2.0" and picture["columns"][9] == "9\n+2.0"


def test_matching_is_the_best_one_to_one():
    counts = torch.randint(100, (5, 5), generator=torch.Generator().manual_seed(0)).tolist()
    from itertools import permutations
    assert infogan.matched(counts) == max(sum(counts[i][p[i]] for i in range(5)) for p in permutations(range(5)))
    assert infogan.matched([[9, 8], [8, 0]]) == 16  # the greedy choice would get 9


def test_infogan_error_is_that_of_q_on_the_test_images(data_dir):
    args = Namespace(dataset="mnist", data_dir=str(data_dir), img_size=None, seed=0)
    labels = draw_glyphs(50, 1)[1]

    class Q:
        def __call__(self, x):  # names digit 3 as category 7 and so on, but 0 as 1's category
            category = (labels + 4) % 10
            category[labels == 0] = (1 + 4) % 10
            return None, torch.eye(10)[category]

    zeros, ones = (labels == 0).sum().item(), (labels == 1).sum().item()
    assert infogan.test_error(Q(), args, "cpu") == pytest.approx(min(zeros, ones) / 50)


@pytest.mark.parametrize("argv", [["--lambda_cat", "-1"], ["--lambda_con", "nan"], ["--lambda_con", "inf"]])
def test_infogan_refuses_a_lambda_that_is_none(argv, run_options, capsys):
    with pytest.raises(SystemExit) as stop:
        infogan.main([*run_options, *argv])
    assert stop.value.code == 2 and "at least 0" in capsys.readouterr().err


def test_infogan_finds_a_damaged_test_set_before_any_work(tmp_path, capsys):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SystemExit) as stop:
        infogan.main(["--dataset", "mnist", "--data_dir", str(tmp_path), "--out_dir", str(tmp_path / "run")])
    assert stop.value.code == 2 and "t10k-images-idx3-ubyte is damaged" in capsys.readouterr().err


def test_infogan_prints_its_error_with_every_grid(run_options, tmp_path, capsys):
    infogan.main([*run_options, "--out_dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    printed = sum(line.startswith("unsupervised test error 0.") for line in lines)
    assert printed == len(list(tmp_path.glob("0*.png"))) + 1  # and once with samples.png
