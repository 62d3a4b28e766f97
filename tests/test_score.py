"""The measures of score.py against answers that are known, and its table of planted generators."""
import itertools
import math
from types import SimpleNamespace

import pytest
import score
import torch
from torch import nn
from torchvision.utils import save_image

import cgan
import cogan
import dcgan
import infogan
from common import Data, UserError, draw_glyphs

MODULES = [dcgan, cgan, infogan, cogan]
DIGITS = list("0123456789")


@pytest.fixture(scope="module")
def checkpoints(run_options, tmp_path_factory):
    """The checkpoint of a run of one epoch on 8x8 digits, by the script's name."""
    folder = tmp_path_factory.mktemp("runs")
    for module in MODULES:
        run = folder / module.__name__
        module.main([*run_options, "--n_epochs", "1", "--out_dir", str(run)])
    return {path.parent.name: path for path in folder.glob("*/checkpoint.pt")}


def write_pictures(folder, n, shape=(3, 8, 8), seed=0):
    """Write n random pictures."""
    folder.mkdir(parents=True)
    pictures = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    for i, picture in enumerate(pictures):
        save_image(picture, folder / f"{i:02}.png")


def rows_of(text):
    """The rows of a table: their names and the two columns."""
    return {line[:28].strip(): line[28:].split() for line in text.splitlines()}


def fails(argv, capsys):
    """The sentence with which score.py refuses a command line."""
    with pytest.raises(SystemExit) as stop:
        score.main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("score.py: ") and error.count("\n") == 1
    return error


def picture(features, labels):
    """Images (n, 1, 8, 8) uint8 that Net reads: features (n, 2) in their first pixels, a class."""
    images = torch.zeros(len(labels), 1, 8, 8)
    images[:, 0, 0, :2] = features.round()
    images[:, 0, 1:] = labels[:, None, None] * 20
    return images.byte()


class Net:
    """A classifier that is always right; of domain 2, with the classes in the reverse order."""

    def __init__(self, name="", *_):
        self.is_reversed = name.startswith("reversed")

    def features(self, x):
        x = (x + 1) * 127.5 if x.is_floating_point() else x
        label = (x[:, 0, 1, 0] / 20).round().long()
        label = 9 - label if self.is_reversed else label
        return x[:, 0, 0, :2].float(), nn.functional.one_hot(label, 10).float()


def generator(paint, **attributes):
    """Make a G that draws what paint makes of z (n, 3) and y: images, or a pair of them."""

    def G(z, *y):
        made = paint(z, *y)
        return tuple(map(score.unit, made)) if isinstance(made, tuple) else score.unit(made)

    vars(G).update(latent_dim=3, **attributes)
    return G


@pytest.fixture
def table(monkeypatch, capsys):
    """Call score.py on a planted generator and planted data; return the rows of its table."""

    def call(script, G, sets, *argv, module=None, **args):
        module = SimpleNamespace(__name__=script, **(module or {}))
        config = {"img_shape": (1, 8, 8), "img_shapes": [(1, 8, 8)] * 2, "width": 4}
        saved = {"script": script, "config_G": config, "D": {}}
        saved["args"] = {"dataset": "planted", "data_dir": "none", "domain": "edge"} | args

        def load_data(name, *_, train=True, **__):
            return sets[name][0 if train else 1]

        monkeypatch.setattr(score, "load_run", lambda path, raw: (saved, module, G))
        monkeypatch.setattr(score, "load_data", load_data)
        monkeypatch.setattr(score, "load_classifier", Net)
        monkeypatch.setattr(score, "N_WINDOWS", 1500)
        score.main(["checkpoint.pt", *argv])
        return rows_of(capsys.readouterr().out)

    return call


def planted(train, test, name="planted", classes=DIGITS):
    """The sets of that name from pairs of features (n, 2) and labels (n,)."""
    return {name: [Data(name, picture(*pair), pair[1], classes) for pair in (train, test)]}


def labels_of(n, seed=0):
    """Labels in no order, and not equally often."""
    return (10 * torch.rand(n, generator=torch.Generator().manual_seed(seed)) ** 2).long()


def around(level, n, spread=10.0):
    """Features (n, 2) around a level."""
    return level + spread * torch.randn(n, 2)


def test_samples_are_compared_with_the_test_set(table):
    """They are a narrow cluster inside the test set, far from the training set."""
    torch.manual_seed(0)
    G = generator(lambda z: picture(200 + 2 * z[:, :2], torch.zeros(len(z)).long()))
    sets = planted((around(100, 1000), labels_of(1000)), (around(200, 1000), labels_of(1000)))
    rows = table("dcgan", G, sets, "--quick")
    distances, precision, recall = (
        [float(v) for v in rows[name]] for name in ("Frechet distance", "precision", "recall")
    )
    assert distances[0] == pytest.approx(2 * (10 - 2) ** 2, rel=0.15)
    assert distances[1] == pytest.approx(2 * (200 - 100) ** 2, rel=0.05)
    assert precision[0] > 0.95 and recall[0] < 0.5
    assert precision[1] == recall[1] == 0
    assert rows["share of the commonest class"][0] == "1.000"


@pytest.mark.parametrize("n_train, n_samples", [(10050, 10000), (60, 60)])
def test_as_many_samples_as_training_images_at_most_10000(n_train, n_samples, table, monkeypatch):
    seen = []
    monkeypatch.setattr(score, "precision_recall", lambda *sets: seen.append(sets) or (0.0, 0.0))
    G = generator(lambda z, y: picture(y[:, None].expand(-1, 2), y), classes=DIGITS)
    labels = torch.arange(n_train) % 10
    sets = planted((around(100, n_train), labels), (around(100, 60), labels[:60]))
    table("cgan", G, sets, "--quick")
    (ours, _), (real, _) = seen  # the first half, with every class that is asked for
    assert len(ours) == len(real) == n_samples // 2 and len(ours[:, 0].unique()) == 10


def test_the_class_seen_is_compared_with_the_one_asked_for(table):
    torch.manual_seed(0)
    G = generator(lambda z, y: picture(y[:, None].expand(-1, 2), y), classes=DIGITS)
    test = labels_of(200, seed=1)
    sets = planted((around(100, 400), labels_of(400)), (around(100, 200), test))
    sets["planted"][1].labels[:50] = (test[:50] + 1) % 10  # of the test set a quarter is wrong
    rows = table("cgan", G, sets)
    assert rows["class asked = class seen"] == ["1.000", "0.750"]
    assert len(set(rows["share of the commonest class"])) == 1  # as often as in the training
    assert rows["1-NN test error"] == ["0.250", "0.250"]


def test_parzen_s_validation_set_is_of_the_training_set(table, monkeypatch):
    seen = []
    monkeypatch.setattr(score, "parzen", lambda *sets: seen.append(sets) or "")
    monkeypatch.setattr(score, "parzen_fgan", lambda *sets: seen.append(sets) or "")
    index = torch.arange(1500)
    train = torch.stack([index // 100, index % 100], 1)
    G = generator(lambda z: picture(torch.full((len(z), 2), 150.0), torch.zeros(len(z)).long()))
    table("dcgan", G, planted((train, labels_of(1500)), (around(200, 60, 1.0), labels_of(60))))
    for samples, *_, test in seen:
        assert (test[:, 0] > 0.7).all() and samples.min() >= 0 and samples.max() <= 1
    (ours, validation, _), (real, _, _) = seen[:2]
    assert torch.allclose(ours[:, 0], torch.tensor(150 / 255))
    known = torch.cat([real, validation])[:, :2]
    assert len(validation) == 150
    assert len(known) == len(known.unique(dim=0)) == 1500  # none is in both


def test_infogan_s_error_and_entropy_are_those_of_the_test_set(table):
    class D(nn.Module):
        """A D whose Q is the surer the brighter the first pixel is."""

        def __init__(self, img_shape, width):
            super().__init__()

        def forward(self, x):
            return None, Net().features(x)[1].roll(3, 1) * (2 + x[:, 0, 0, :1]), None

    module = {"Discriminator": D, "N_CATEGORIES": 10, "sample_code": lambda n, device: None}
    module["entropy"] = infogan.entropy
    G = generator(lambda z, c: picture(around(100, len(z)), torch.zeros(len(z)).long()))
    labels = torch.arange(1200) % 10
    sets = planted((around(100, 1200), labels), (around(200, 1200), labels))
    train, test = sets["planted"]
    sets["planted"] = [train._replace(labels=labels[torch.randperm(1200)]), test]
    rows = table("infogan", G, sets, "--quick", module=module)
    assert rows["unsupervised test error"] == ["0.000"]
    assert rows["categories with own class"] == "10 of 10".split()
    _, logits, _ = D(None, None)(score.unit(test.images))
    expected = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert rows["entropy of Q(c1|x)"] == [f"{expected:.3f}"]


def test_pairs_of_cogan_are_compared_image_by_image(table):
    torch.manual_seed(0)

    def paint(z):
        label = (2 * z[:, 0] + 5).round().clamp(0, 9).long()
        return picture(around(100, len(z)), label), picture(around(100, len(z)), label)

    module = {"TRANSFORMS": {"edge": lambda x: x}, "second_domain": lambda images, args: images}
    sets = planted((around(100, 300), labels_of(300)), (around(100, 60), labels_of(60)))
    rows = table("cogan", generator(paint), sets, "--quick", module=module)
    assert rows["same class in both domains"] == rows["pixel agreement"] == ["1.000"]
    assert float(rows["of shuffled pairs"][0]) < 0.95

    # with a second dataset, smaller and with its classes in another order
    small = (around(150, 90), labels_of(90)), (around(150, 30), labels_of(30))
    sets |= planted(*small, "reversed", DIGITS[::-1])
    sets |= planted(*small, "others", list("abcdefghij"))
    for name in ("reversed", "others"):
        rows = table("cogan", generator(paint), sets, "--quick", module=module, dataset2=name)
        assert f"domain 2: {name}" in rows and "pixel agreement" not in rows
        assert rows.get("same class in both domains") == (["1.000"] if name == "reversed" else None)
        real = float(rows["Frechet distance"][1])
        assert real < 30  # of domain 2's images, 50 away from those of domain 1


def test_raw_is_the_last_g_and_not_its_average(checkpoints, tmp_path, monkeypatch):
    saved = torch.load(checkpoints["dcgan"], weights_only=True)
    scored, draw = [], score.draw

    def spy(module, G, *rest):
        scored.append(G)
        return draw(module, G, *rest)

    monkeypatch.setattr(score, "draw", spy)
    monkeypatch.setattr(score, "FEWEST_STEPS", 3)
    for argv in ([], ["--raw"]):
        score.main([str(checkpoints["dcgan"]), "--quick", "--cache", str(tmp_path), *argv])
    for G, name in zip(scored, ("G_avg", "G")):
        pairs = zip(G.state_dict().values(), saved[name].values())
        assert all(torch.equal(a, b) for a, b in pairs) and not G.training


def test_features_are_feature_maps_pooled_to_4x4():
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 2, 4, 2, 1), nn.LeakyReLU(0.2)]
    second = [nn.Conv2d(2, 3, 4, 2, 1), nn.BatchNorm2d(3), nn.LeakyReLU(0.2)]
    layers = [*first, *second, nn.Flatten(), nn.Linear(48, 5), nn.LeakyReLU(0.2)]
    D = SimpleNamespace(features=nn.Sequential(*layers).eval())
    images = torch.randint(256, (600, 1, 16, 16), dtype=torch.uint8)
    features = score.feature_maps(D, images)
    maps = nn.Sequential(*first)(score.unit(images))
    assert features.shape == (600, 2 * 16 + 3 * 16)
    pooled = maps.unflatten(3, (4, 2)).unflatten(2, (4, 2)).amax((3, 5))
    assert torch.allclose(features[:, :32], pooled.flatten(1))


def test_features_of_d_as_initialised_and_as_trained(checkpoints, monkeypatch, capsys):
    """Planted: those of the trained D tell the class, those of any other D nothing."""
    saved = torch.load(checkpoints["dcgan"], weights_only=True)
    sets = planted((around(100, 300), labels_of(300)), (around(100, 100), labels_of(100, 1)))
    numbers = []

    def feature_maps(D, images):
        assert not D.training
        numbers.append(len(images))
        weight = next(D.parameters())
        if torch.equal(weight, next(iter(saved["D"].values()))):
            return Net().features(images)[1].repeat(1, 100)
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)
        return torch.randn(len(images), 1000)

    monkeypatch.setattr(score, "load_data", lambda *_, train=True, **__: sets["planted"][not train])
    monkeypatch.setattr(score, "feature_maps", feature_maps)
    score.main([str(checkpoints["dcgan"]), "--features", "50", "1000"])
    rows = rows_of(capsys.readouterr().out)
    assert rows["trained, 300 labels"] == ["1.000"] and numbers == [300, 100] * 2
    assert float(rows["trained, 50 labels"][0]) > 0.8
    assert float(rows["initialised, 300 labels"][0]) < 0.6
    assert "dcgan.py" in fails([checkpoints["cogan"], "--features", "50"], capsys)
    assert "at least 2" in fails([checkpoints["dcgan"], "--features", "1"], capsys)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    torch.manual_seed(0)
    a = torch.randn(200_000, 3)
    b = torch.randn(200_000, 3) * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([1.0, 0, 0])
    expected = 1 + 1 + 0.25  # |m|^2 + sum (s - t)^2
    assert score.frechet_distance(a, b) == pytest.approx(expected, abs=0.03)
    assert score.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_log_likelihood_is_that_of_a_mixture_of_gaussians():
    torch.manual_seed(0)
    samples, queries = torch.randn(7, 4), torch.randn(600, 4)
    mean, error = score.log_likelihood(samples, queries, [0.5, 2.0])
    for i, sigma in enumerate((0.5, 2.0)):
        mixture = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(7)),
            torch.distributions.Independent(torch.distributions.Normal(samples, sigma), 1),
        )
        expected = mixture.log_prob(queries)
        assert mean[i].item() == pytest.approx(expected.mean().item(), rel=1e-4)
        assert error[i].item() == pytest.approx(expected.std().item() / math.sqrt(600), rel=1e-3)


def test_parzen_s_bandwidth_is_not_chosen_by_the_test_set():
    """Of a density like the test set's it gives the likelihood; of a narrow one it can't."""
    torch.manual_seed(0)
    wide, narrow, test = torch.randn(1800, 1), 0.1 * torch.randn(1800, 1), torch.randn(500, 1)
    true = torch.distributions.Normal(0, 1).log_prob(test).mean().item()
    best = score.log_likelihood(narrow, test, [0.25])[0].item()  # with the widest that f-GAN tries
    for samples in (wide, narrow):
        for told in (
            score.parzen(samples[300:], samples[:300], test), score.parzen_fgan(samples, test)
        ):
            found = float(told.split()[0])
            assert abs(found - true) < 0.08 if samples is wide else found < best - 5


def test_the_matching_is_the_best_and_not_the_greedy_one():
    assert score.largest_matching([[10, 9], [9, 0]]) == 18  # 10 first leaves 0
    assert score.largest_matching([[10, 9], [10, 9]]) == 19  # a class counts once
    assert score.largest_matching([[5], [7], [0]]) == 7  # more categories than classes
    torch.manual_seed(0)
    for _ in range(10):
        counts = torch.randint(50, (5, 5))
        ways = itertools.permutations(range(5))
        best = max(sum(counts[i, j].item() for i, j in enumerate(way)) for way in ways)
        assert score.largest_matching(counts.tolist()) == best


class Reader(nn.Module):
    """A D whose category is 0 where an image is dark by the running mean of its normalisation."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, x):
        category = (self.norm(x.mean((1, 2, 3))[:, None])[:, 0] > 0).long()
        return None, nn.functional.one_hot(category, 10).float()


def test_infogan_s_error_is_taken_in_eval_mode_and_leaves_the_statistics_alone():
    """By the statistics of this batch, its mean of 0.4, the two images at 0.2 would be dark."""
    level = torch.tensor([-1.0, 0.2, 0.2, 1.0, 1.0, 1.0])
    images = ((level + 1) * 127.5).round().byte()[:, None, None, None].expand(-1, 1, 8, 8)
    labels = torch.tensor([3, 1, 1, 1, 1, 1])
    D = Reader().train()
    before = {name: value.clone() for name, value in D.state_dict().items()}
    assert score.unsupervised_error(D, images, labels, 10) == (0, 2)
    assert all(torch.equal(value, before[name]) for name, value in D.state_dict().items())
    labels[1] = 3
    assert score.unsupervised_error(D, images, labels, 10)[0] == pytest.approx(1 / 6)


def test_a_category_has_its_own_class_if_more_than_half_of_each_is_the_other():
    def n_own(categories, labels):
        D = Reader()
        D.forward = lambda x: (None, nn.functional.one_hot(x[:, 0, 0, 0].round().long(), 3).float())
        images = ((torch.tensor(categories) + 1) * 127.5).round().byte()[:, None, None, None]
        return score.unsupervised_error(D, images, torch.tensor(labels), 3)[1]

    assert n_own([0, 0, 0, 1, 1], [2, 2, 2, 0, 0]) == 2
    assert n_own([0, 0, 1, 1], [2, 2, 2, 2]) == 0  # two halves of one class
    assert n_own([0, 0, 1, 1], [0, 1, 2, 2]) == 1  # one category of two classes


def test_classifier_learns_digits(monkeypatch, capsys):
    monkeypatch.setattr(score, "FEWEST_STEPS", 60)
    images, labels = draw_glyphs(500, 0)
    images = images[:, :, ::3, ::3]
    net = score.train_classifier(images[:400], labels[:400], 10, batch_size=40)
    assert "s to go" in capsys.readouterr().out
    assert not net.is_for_photos
    features, p = net.features(images[400:])
    assert features.shape == (100, 128) and torch.allclose(p.sum(1), torch.ones(100), atol=1e-5)
    assert (p.argmax(1) == labels[400:]).float().mean() > 0.6
    assert torch.allclose(net.features(score.unit(images[400:]))[1], p, atol=1e-5)


def test_classifier_of_photographs_learns(monkeypatch):
    monkeypatch.setattr(score, "FEWEST_STEPS", 1)
    torch.manual_seed(0)
    labels = torch.arange(120) % 3
    images = torch.randint(100, (120, 3, 32, 32), dtype=torch.uint8)
    images[labels == 1, :, ::2] += 100  # stripes across, and down
    images[labels == 2, :, :, ::2] += 100
    net = score.train_classifier(images[:90], labels[:90], 3, batch_size=15)
    assert net.is_for_photos
    assert (net.features(images[90:])[1].argmax(1) == labels[90:]).float().mean() > 0.8


def test_a_classifier_is_trained_once_for_its_images_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "FEWEST_STEPS", 3)
    images, labels = draw_glyphs(20)
    folder = tmp_path / "no" / "data"
    made = score.load_classifier("x", folder, images, labels, 10)
    other = score.load_classifier("x", folder, images, labels.flip(0), 10)
    monkeypatch.setattr(score, "train_classifier", None)
    for net, its_labels in ((made, labels), (other, labels.flip(0))):
        kept = score.load_classifier("x", folder, images, its_labels, 10)
        pairs = zip(net.state_dict().values(), kept.state_dict().values())
        assert all(torch.equal(a, b) for a, b in pairs)
    assert len(list(folder.iterdir())) == 2


def test_a_folder_without_a_test_set_lends_every_tenth_image(tmp_path, capsys):
    for i, name in enumerate(("a", "b")):
        write_pictures(tmp_path / name, 40, seed=i)
    train, test = score.load_sets(str(tmp_path), "none", (3, 8, 8))
    assert "every tenth image" in capsys.readouterr().out
    assert train.labels.bincount().tolist() == [36, 36] == [9 * n for n in test.labels.bincount()]
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 80


def test_the_folders_train_and_test_are_the_two_sets(tmp_path, capsys):
    for part, n in (("train", 6), ("test", 4)):
        for i, name in enumerate(("a", "b")):
            write_pictures(tmp_path / part / name, n, seed=i)
    train, test = score.load_sets(str(tmp_path), "none", (3, 8, 8))
    assert "every tenth" not in capsys.readouterr().out
    assert len(train.images) == 12 and len(test.images) == 8
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    # a mistake is not taken for a missing test set
    with pytest.raises(UserError, match="test has c, unlike"):
        score.load_sets(str(tmp_path), "none", (3, 8, 8))


OWN_ROWS = {
    "dcgan": ["log-likelihood (GAN)", "log-likelihood (f-GAN)"],
    "cgan": ["class asked = class seen", "1-NN test error"],
    "infogan": ["unsupervised test error", "categories with own class", "entropy of Q(c1|x)"],
    "cogan": ["domain 2: edge", "same class in both domains", "pixel agreement"],
}


@pytest.mark.parametrize("name", OWN_ROWS)
def test_a_table_is_printed_for_any_checkpoint(name, checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(score, "FEWEST_STEPS", 3)
    monkeypatch.setattr(score, "N_WINDOWS", 60)
    command = [str(checkpoints[name]), "--cache", str(tmp_path)]
    score.main(command)
    out = capsys.readouterr().out
    assert {"Frechet distance", "recall", *OWN_ROWS[name]} <= set(rows_of(out))
    assert len(list(tmp_path.glob("score-mnist-8-*.pt"))) == out.count("training a classifier")
    score.main([*command, "--quick"])
    quick = capsys.readouterr().out
    assert "log-likelihood" in out and "log-likelihood" not in quick
    assert "training a classifier" not in quick  # it was kept


def test_a_dataset_that_does_not_fit_gets_one_sentence(checkpoints, tmp_path, capsys):
    for i in range(3):
        write_pictures(tmp_path / "grey" / f"class {i}", 30, (1, 8, 8), seed=i)
        write_pictures(tmp_path / "colour" / f"class {i}", 30, (3, 8, 8), seed=i)
        write_pictures(tmp_path / "few" / f"class {i}", 9, (1, 8, 8), seed=i)

    def answer(name, folder):
        return fails([checkpoints[name], "--dataset", tmp_path / folder], capsys)

    error = answer("dcgan", "colour")
    assert "1x8x8" in error and "3x8x8" in error
    assert "other classes" in answer("cgan", "grey")
    assert "no classes" in answer("dcgan", "grey/class 0")
    assert "2 images to test" in answer("dcgan", "few")
    assert "no such" in answer("dcgan", "no such")


def test_a_file_that_is_not_a_fitting_checkpoint_gets_one_sentence(checkpoints, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    assert "No such file" in fails([path], capsys)
    for content in (b"no checkpoint", b""):
        path.write_bytes(content)
        assert "not a checkpoint" in fails([path], capsys)
    saved = torch.load(checkpoints["dcgan"], weights_only=True)
    torch.save(saved | {"script": "os"}, path)
    assert "os.py" in fails([path], capsys)
    saved["G_avg"].popitem()
    torch.save(saved, path)
    assert "dcgan.py" in fails([path], capsys)
