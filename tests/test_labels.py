"""y, classes and codes: what the children of dcgan.py that know them must do, by value."""
import itertools
import math
import re

import pytest
import torch
from conftest import batch, calls, fake_data, files, networks, weights
from PIL import Image
from torchvision.utils import save_image

import acgan
import cgan
import infogan
from common import UserError


def with_seed(seed, function, *args):
    torch.manual_seed(seed)
    return function(*args)


def given_to(G):
    """A list that the inputs of every call of G, z and y or c, are added to."""
    seen = []
    G.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    return seen


def features(inputs):
    """The features or planes of (N, K, ...), sorted: what is read, whatever the order."""
    return sorted(inputs.transpose(0, 1).flatten(1).tolist())


# conditional GAN and AC-GAN


@pytest.mark.parametrize("script", [cgan, acgan])
def test_g_reads_the_class_as_a_one_hot_vector_beside_z(script):
    G, *_ = networks(script)
    z, y = torch.randn(3, G.latent_dim), torch.tensor([0, 7, 9])
    _, read, _ = calls(G, z, y)[0]
    assert features(read) == features(torch.cat([z, torch.eye(10)[y]], 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_d_of_cgan_reads_the_class_as_planes_beside_x(channels):
    D = networks(cgan, (channels, 8, 8))[1]
    x, y = torch.rand(3, channels, 8, 8), torch.tensor([0, 7, 9])
    _, read, _ = calls(D, x, y)[0]
    planes = torch.eye(10)[y][:, :, None, None].expand(-1, -1, 8, 8)
    assert features(read) == features(torch.cat([x, planes], 1))


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
    args.digit = "5"
    picture = script.sample(G, D, args)
    assert torch.allclose(picture["images"], every[50:60], atol=1e-6) and picture["rows"] == ["5"]


def test_digit_is_the_name_of_a_class_or_its_index():
    classes = ["ant", "cat", "0"]
    for digit, index in (("cat", 1), ("1", 1), ("0", 2)):  # a name before an index
        assert cgan.classes_to_draw(classes, digit)[0].tolist() == [index]
    for digit in ("dog", "3", "-1", "1.0", ""):
        with pytest.raises(UserError, match="ant, cat, 0"):
            cgan.classes_to_draw(classes, digit)


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
    run = tmp_path / "run"
    script.main([*run_options, "--n_epochs", "1", "--out_dir", str(run)])
    before = files(run)
    script.main(["--resume", str(run), "--digit", "5"])
    script.main(["--resume", str(run / "checkpoint.pt")])
    with Image.open(run / "samples-2.png") as five, Image.open(run / "samples-3.png") as every:
        assert five.width == every.width and five.height < every.height / 3
    assert files(run) == files(run) | before  # nothing is overwritten


# AC-GAN


def test_acgan_captions_tell_the_class_that_d_sees():
    G, D, *_, args = networks(acgan)
    picture = acgan.sample(G.eval(), D, args)
    seen = D.eval()(picture["images"])[1].argmax(1).tolist()
    assert picture["captions"] == [G.classes[k] for k in seen]


def test_acgan_classes_of_generated_images_are_those_of_the_batch_in_another_order():
    G, D, opt_G, opt_D, args = networks(acgan)
    given = given_to(G)
    x, y = batch(acgan)
    for _ in range(3):
        acgan.train_step(G, D, opt_G, opt_D, x, y, args)
    asked = [c for _, c in given]
    assert all(torch.equal(c.sort()[0], y.sort()[0]) and not torch.equal(c, y) for c in asked)
    assert not torch.equal(asked[0], asked[1]) and not torch.equal(asked[1], asked[2])


def test_acgan_s_second_head_gives_logits():
    G, D, opt_G, opt_D, args = networks(acgan, lr_d=3e-3)
    x, y = batch(acgan, n=32)
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
    assert features(read) == features(torch.cat([z, c], 1))


def test_infogan_s_steps_draw_the_code_from_its_prior():
    G, D, opt_G, opt_D, args = networks(infogan)
    given = given_to(G)
    for _ in range(4):
        infogan.train_step(G, D, opt_G, opt_D, *batch(infogan, n=64), args)
    c = torch.cat([c for _, c in given])
    assert (c[:, :10].sum(1) == 1).all() and (c[:, :10].mean(0) - 0.1).abs().max() < 0.07
    assert len(c[:, 10:].unique()) == 2 * len(c) and c[:, 10:].abs().max() <= 1
    assert (c[:, 10:].std(0) - 3**-0.5).abs().max() < 0.07


def test_infogan_information_is_the_likelihood_of_torch_distributions_plus_the_entropy():
    """The values, and the gradients: Q learns the categories and the means."""
    c = infogan.sample_code(64, "cpu")
    q = torch.randn(64, 10), torch.randn(64, 2)
    logits, mean = [part.requires_grad_() for part in q]
    L_cat, L_con = infogan.information(c, logits, mean)
    categorical = torch.distributions.Categorical(logits=logits)
    expected_cat = categorical.log_prob(c[:, :10].argmax(1)).mean() + math.log(10)
    assert torch.allclose(L_cat, expected_cat, atol=1e-5)
    normal = torch.distributions.Normal(mean, 1)
    expected_con = normal.log_prob(c[:, 10:]).sum(1).mean() + 2 * math.log(2)
    assert torch.allclose(L_con, expected_con, atol=1e-4)
    found = torch.autograd.grad(L_cat + L_con, q)
    expected = torch.autograd.grad(expected_cat + expected_con, q)
    for gradient, gradient2 in zip(found, expected, strict=True):
        assert torch.allclose(gradient, gradient2, rtol=1e-4, atol=1e-6)


def test_infogan_information_is_0_for_a_q_that_knows_nothing_and_has_its_documented_bounds():
    c = infogan.sample_code(64, "cpu")
    ignorant = infogan.information(c, torch.zeros(64, 10), torch.zeros(64, 2))
    assert ignorant[0].item() == pytest.approx(0, abs=1e-5)
    knowing = infogan.information(c, 100 * c[:, :10], c[:, 10:])
    bounds = math.log(10), math.log(2 / math.pi)
    assert [value.item() for value in knowing] == pytest.approx(bounds, abs=1e-4)


def test_infogan_s_entropy_is_0_where_q_is_sure_and_log_10_where_it_guesses():
    sure, guess = torch.tensor([1e4, *[0.0] * 9]), torch.zeros(10)
    entropies = [infogan.entropy(logits[None]).item() for logits in (sure, guess)]
    assert entropies == pytest.approx([0, math.log(10)], abs=1e-6)
    logits = torch.randn(64, 10)
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert torch.allclose(infogan.entropy(logits), expected)


def test_infogan_s_q_takes_as_large_steps_in_the_control():
    """Adam divides by the gradient's size: lambda 1e-3 slows G and D's trunk, but not Q."""
    moved = {}
    for weight in ("1", "1e-3"):
        options = ["--lambda_cat", weight, "--lambda_con", weight]
        G, D, opt_G, opt_D, args = networks(infogan, lr_g=0, options=options)
        x, y = batch(infogan)
        of_score = torch.autograd.grad(D(x)[0].sum(), list(D.parameters()), allow_unused=True)
        before = weights(D)
        torch.manual_seed(1)
        for _ in range(5):
            infogan.train_step(G, D, opt_G, opt_D, x, y, args)
        of_q = [name for name, gradient in zip(before, of_score) if gradient is None]
        after = dict(D.named_parameters())
        moved[weight] = {name: (after[name] - before[name]).norm() for name in of_q}
    assert moved["1"]  # Q has layers of its own
    for name in [name for name in moved["1"] if "weight" in name]:
        assert moved["1e-3"][name] > 0.5 * moved["1"][name] > 0, name


def test_infogan_s_picture_moves_one_code_in_each_row_and_its_label_says_which():
    G, D, *_, args = networks(infogan)
    given = given_to(G.eval())
    picture = infogan.sample(G, D, args)
    ((z, c),) = given
    with torch.no_grad():
        assert torch.allclose(picture["images"], G(z, c), atol=1e-6)
    assert picture["n_columns"] == len(picture["columns"]) == 10
    categories, values = zip(*(label.split() for label in picture["columns"]))
    sweep = torch.linspace(-2, 2, 10)
    assert [float(value) for value in values] == pytest.approx(sweep.tolist(), abs=0.051)
    moved = []
    for label, noise, codes in zip(picture["rows"], z.split(10), c.split(10), strict=True):
        assert (noise == noise[0]).all()
        digits = codes[:, :10].argmax(1)
        assert torch.equal(codes[:, :10], torch.eye(10)[digits])
        moved.append(label[:2])
        if label.startswith("c1"):
            assert digits.tolist() == [int(category) for category in categories] == list(range(10))
            assert (codes[:, 10:] == 0).all()
        else:
            (category,) = re.findall("c1 = ([0-9])", label)
            assert digits.tolist() == [int(category)] * 10
            k = {"c2": 10, "c3": 11}[label[:2]]
            assert torch.allclose(codes[:, k], sweep) and (codes[:, 21 - k] == 0).all()
    assert [moved.count(code) for code in ("c1", "c2", "c3")] == [5, 3, 3]
    first = torch.stack([noise[0] for noise in z.split(10)])
    assert len(first[:5].unique(dim=0)) == 5 and len(first[5:].unique(dim=0)) == 1
