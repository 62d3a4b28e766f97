"""The measures of score.py against answers that are known."""
import itertools
import math

import pytest
import score
import torch
from torch import nn
from torchvision.utils import save_image

import cgan
import cogan
import dcgan
import fgan
import infogan
from common import UserError, draw_glyphs

MODULES = [dcgan, cgan, fgan, infogan, cogan]


@pytest.fixture(scope="module")
def checkpoints(run_options, tmp_path_factory):
    """The checkpoint of a run of one epoch on 8x8 digits, by the script's name."""
    folder = tmp_path_factory.mktemp("runs")
    for module in MODULES:
        run = folder / module.__name__
        module.main([*run_options, "--n_epochs", "1", "--out_dir", str(run)])
    return {path.parent.name: path for path in folder.glob("*/checkpoint.pt")}


@pytest.fixture
def small(monkeypatch):
    """Few samples, and a classifier of few steps."""
    draw = score.draw
    monkeypatch.setattr(score, "draw", lambda module, G, n, labels: draw(module, G, 60, labels))
    monkeypatch.setattr(score, "FEWEST_STEPS", 3)
    monkeypatch.setattr(score, "ROWS_PER_CODE", 2)


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


def test_frechet_distance_of_gaussians_is_the_closed_form():
    torch.manual_seed(0)
    a = torch.randn(200_000, 3)
    b = torch.randn(200_000, 3) * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([1.0, 0, 0])
    expected = 1 + 1 + 0.25  # |m|^2 + sum (s - t)^2
    assert score.frechet_distance(a, b) == pytest.approx(expected, abs=0.03)
    assert score.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    turned = score.frechet_distance(a @ turn, b @ turn)
    assert turned == pytest.approx(score.frechet_distance(a, b), abs=1e-4)


def test_a_planted_collapse_keeps_precision_and_loses_recall():
    torch.manual_seed(0)
    real, other = torch.randn(500, 8), torch.randn(500, 8)
    precision, recall = score.precision_recall(other, real)
    assert precision > 0.5 and recall > 0.5
    collapsed = real[:1] + 0.01 * torch.randn(500, 8)
    precision, recall = score.precision_recall(collapsed, real)
    assert precision > 0.95 and recall < 0.05
    assert score.precision_recall(real + 100, real) == (0, 0)


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


def test_parzen_chooses_its_bandwidth_and_reads_the_likelihood_of_a_known_density():
    torch.manual_seed(0)
    samples, validation, test = torch.randn(1500, 1), torch.randn(500, 1), torch.randn(1000, 1)
    true = torch.distributions.Normal(0, 1).log_prob(test).mean().item()
    for told in (score.parzen(samples, validation, test), score.parzen_fgan(samples, test)):
        assert float(told.split()[0]) == pytest.approx(true, abs=0.08)


@pytest.mark.parametrize("spread", [0.06, 0.2])
def test_bandwidth_of_f_gan_s_protocol_is_that_of_the_clusters(spread):
    torch.manual_seed(0)
    centres = 3 * torch.randn(30, 20)
    samples, test = (
        centres[torch.arange(n) % 30] + spread * torch.randn(n, 20) for n in (1200, 300)
    )
    samples = samples[torch.randperm(len(samples))]
    found = float(score.parzen_fgan(samples, test).split()[0])
    true = -math.log(30) - 20 * (0.5 + math.log(spread * math.sqrt(2 * math.pi)))
    assert found == pytest.approx(true, abs=6)  # a bandwidth twice too wide or narrow costs more
    wrong = score.log_likelihood(samples, test, [2 * spread, spread / 3])[0]
    assert (wrong < found - 4).all()


def test_nearest_neighbour_error_counts_wrong_labels():
    images, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 2])
    test, truth = torch.tensor([[0.1], [0.9], [1.8], [5.0]]), torch.tensor([0, 1, 0, 2])
    assert score.nearest_neighbour_error(images, labels, test, truth) == 0.25


def test_nearest_distance_is_a_root_mean_square():
    images = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 5]])
    assert score.nearest_distance(torch.full((3, 4), 0.5), images) == pytest.approx(0.5)
    assert score.nearest_distance(torch.full((1, 4), 4.0), images) == pytest.approx(1)


def test_thumbnails_are_means_over_fields_of_uint8_and_float_images():
    fields = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    images = fields.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = (fields / 127.5 - 1).flatten(1)
    assert torch.allclose(score.thumbnails(images), expected, atol=1e-6)
    assert torch.allclose(score.thumbnails(images / 127.5 - 1), expected, atol=1e-6)


def test_the_matching_is_the_best_and_not_the_greedy_one():
    assert score.largest_matching([[10, 9], [9, 0]]) == 18  # 10 first leaves 0
    assert score.largest_matching([[10, 9], [10, 9]]) == 19  # a class counts once
    assert score.largest_matching([[5, 0, 1], [4, 0, 3]]) == 8  # more classes than categories
    assert score.largest_matching([[5], [7], [0]]) == 7  # and fewer
    torch.manual_seed(0)
    for _ in range(10):
        counts = torch.randint(50, (5, 5))
        ways = itertools.permutations(range(5))
        best = max(sum(counts[i, j].item() for i, j in enumerate(way)) for way in ways)
        assert score.largest_matching(counts.tolist()) == best


class Reader(nn.Module):
    """A D whose category is 0 where an image is dark by the running mean of its normalisation."""

    def __init__(self, n_categories=10):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.n_categories = n_categories

    def forward(self, x):
        level = self.norm(x.mean((1, 2, 3))[:, None])[:, 0]
        category = (level > 0).long()
        return None, nn.functional.one_hot(category, self.n_categories).float(), None, None


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


def test_a_row_is_steady_while_its_code_does_not_change_the_class():
    def G(z, c):
        return torch.cat([z, c], 1)

    G.latent_dim = 3
    assert score.steady_rows(G, lambda x: x[:, 3:13].argmax(1), 2) == 1
    for limit, expected in ((1, 1), (2, 0.5)):
        assert score.steady_rows(G, lambda x: (x[:, 14] > 1.5).long(), limit) == expected
    assert score.steady_rows(G, lambda x: (x[:, 0] > 0).long(), 2) == 1  # one z along a row


def test_classes_are_asked_for_as_often_as_in_the_training():
    class G:
        latent_dim, classes = 3, ["a", "b", "c", "d"]

        def __new__(cls, z, y):
            return torch.cat([z, y[:, None]], 1)

    images, asked = score.draw(cgan, G, 6, torch.tensor([3, 3, 0]))
    assert images.shape == (6, 4)
    assert images[:, 3].tolist() == asked.tolist() == [3, 3, 0, 3, 3, 0]


def test_classifier_learns_digits():
    images, labels = draw_glyphs(500, 0)
    images = images[:, :, ::3, ::3]
    net = score.train_classifier(images[:400], labels[:400], 10, n_epochs=6, batch_size=40)
    assert not net.is_for_photos
    features, p = net.features(images[400:])
    assert features.shape == (100, 128) and torch.allclose(p.sum(1), torch.ones(100), atol=1e-5)
    assert (p.argmax(1) == labels[400:]).float().mean() > 0.6
    assert torch.allclose(net.features(score.unit(images[400:]))[1], p, atol=1e-5)


def test_classifier_of_photographs_learns_and_takes_larger_images():
    torch.manual_seed(0)
    labels = torch.arange(120) % 3
    images = torch.randint(100, (120, 3, 32, 32), dtype=torch.uint8)
    images[labels == 1, :, ::2] += 100  # stripes across, and down
    images[labels == 2, :, :, ::2] += 100
    net = score.train_classifier(images[:90], labels[:90], 3, n_epochs=5, batch_size=15)
    assert net.is_for_photos
    assert (net.features(images[90:])[1].argmax(1) == labels[90:]).float().mean() > 0.8
    for side in (48, 64, 128):
        assert score.Classifier((3, side, side), 3).features(torch.zeros(2, 3, side, side))[0].shape
    for shape in ((1, 64, 64), (3, 28, 28)):
        assert not score.Classifier(shape, 3).is_for_photos


def test_photographs_are_shifted_by_up_to_an_eighth_and_mirrored():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 8, 8)
    padded = nn.functional.pad(image, [1] * 4, "reflect")[0]
    possible = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    possible += [p.flip(2) for p in possible]
    found = set()
    for made in score.cropped_and_flipped(image.expand(300, -1, -1, -1)):
        equal = [k for k, p in enumerate(possible) if torch.equal(made, p)]
        assert equal
        found.add(equal[0])
    assert len(found) == 18


def test_a_small_dataset_gets_as_many_steps_as_a_classifier_needs(monkeypatch):
    monkeypatch.setattr(score, "FEWEST_STEPS", 25)
    steps = []
    monkeypatch.setattr(score, "shifted", lambda x: steps.append(len(x)) or x)
    images, labels = draw_glyphs(30)
    score.train_classifier(images[:, :, ::3, ::3], labels, 10, batch_size=10)
    assert len(steps) == 24 and set(steps) == {10}  # 9 epochs of 3, the last one without shifts


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


def test_classifiers_are_kept_where_one_may_write(tmp_path):
    assert score.default_cache(tmp_path / "new" / "data") == tmp_path / "new" / "data"
    tmp_path.chmod(0o555)
    assert str(score.default_cache(tmp_path)) == "runs"
    assert str(score.default_cache(tmp_path / "new" / "data")) == "runs"
    tmp_path.chmod(0o755)


def test_a_folder_without_a_test_set_lends_every_tenth_image(tmp_path, capsys):
    for i, name in enumerate(("a", "b")):
        write_pictures(tmp_path / name, 20, seed=i)
    train, test = score.load_sets(str(tmp_path), "none", 8)
    assert "every tenth image" in capsys.readouterr().out
    assert train.labels.tolist() == [0] * 18 + [1] * 18 and test.labels.tolist() == [0, 0, 1, 1]
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 40


def test_the_folders_train_and_test_are_the_two_sets(tmp_path, capsys):
    for part, n in (("train", 6), ("test", 3)):
        for i, name in enumerate(("a", "b")):
            write_pictures(tmp_path / part / name, n, seed=i)
    train, test = score.load_sets(str(tmp_path), "none", 8)
    assert "every tenth" not in capsys.readouterr().out
    assert len(train.images) == 12 and len(test.images) == 6
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    with pytest.raises(UserError, match='"c"'):  # a mistake is not taken for a missing test set
        score.load_sets(str(tmp_path), "none", 8)


OWN_ROWS = {
    "dcgan": ["log-likelihood (GAN)"],
    "cgan": ["class asked = class seen", "1-NN test error"],
    "fgan": ["log-likelihood (f-GAN)"],
    "infogan": ["unsupervised test error", "categories with own class", "rows of one class, -2..2"],
    "cogan": ["domain 2: edge", "same class in both domains", "pixel agreement"],
}


@pytest.mark.parametrize("name", OWN_ROWS)
def test_a_table_is_printed_for_any_checkpoint(name, checkpoints, small, tmp_path, capsys):
    command = [str(checkpoints[name]), "--cache", str(tmp_path)]
    score.main(command)
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert {"Frechet distance", "recall", "share of class 7", *OWN_ROWS[name]} <= set(rows)
    assert "training a classifier" in out
    n_classifiers = 2 if name == "cogan" else 1
    assert len(list(tmp_path.glob("score-mnist-8-*.pt"))) == n_classifiers
    if name == "cgan":  # beside the share for samples, the classifier's accuracy on real images
        accuracy = float(out.split("(classifier: ")[1].split("%")[0]) / 100
        assert float(rows["class asked = class seen"][1]) == pytest.approx(accuracy, abs=6e-4)
    score.main([*command, "--quick"])
    quick = capsys.readouterr().out
    assert "training a classifier" not in quick  # it was kept
    slow = {"1-NN test error", "log-likelihood (GAN)", "log-likelihood (f-GAN)"}
    assert set(rows) - set(rows_of(quick)) - slow <= {row for row in rows if "training" in row}
    assert not slow & set(rows_of(quick))


def test_every_set_of_photographs_has_its_classifier(run_options, small, tmp_path):
    """One kept under the domain's name alone would judge images of other photographs."""
    for i, name in enumerate(("a", "b")):
        write_pictures(tmp_path / name, 3, (3, 40, 50), seed=i)
        run = tmp_path / f"run-{name}"
        options = ["--domain", "mnistm", "--photos", str(tmp_path / name), "--n_epochs", "1"]
        cogan.main([*run_options, *options, "--out_dir", str(run)])
        cache = ["--cache", str(tmp_path / "cache")]
        score.main([str(run / "checkpoint.pt"), "--quick", *cache])
    assert len(list((tmp_path / "cache").iterdir())) == 3  # of domain 1, and of each domain 2


def test_recall_is_taken_over_every_class_that_is_asked_for(checkpoints, monkeypatch, tmp_path):
    """Of classes that come in turn, every other sample would be of every other class."""
    monkeypatch.setattr(score, "FEWEST_STEPS", 3)
    asked = torch.arange(60) % 10
    images = (asked / 5 - 1)[:, None, None, None].expand(-1, 1, 8, 8)
    compared = []

    def features(self, x):
        level = x[:, 0, 0, :2].float()
        return torch.randn(len(x), 2) * 1e-6 + level, torch.full((len(x), 10), 0.1)

    def compare(samples, real):
        compared.append(samples)
        return 0.0, 0.0

    monkeypatch.setattr(score, "draw", lambda module, G, n, labels: (images, asked))
    monkeypatch.setattr(score, "precision_recall", compare)
    monkeypatch.setattr(score.Classifier, "features", features)
    score.main([str(checkpoints["cgan"]), "--quick", "--cache", str(tmp_path)])
    assert len(compared[0]) == 30
    assert len(compared[0][:, 0].round(decimals=2).unique()) == 10


def test_without_classes_only_pixels_are_compared(small, tmp_path, capsys):
    write_pictures(tmp_path / "pictures", 80)
    options = ["--dataset", str(tmp_path / "pictures"), "--img_size", "8", "--batch_size", "40"]
    dcgan.main([*options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")])
    capsys.readouterr()
    score.main([str(tmp_path / "run" / "checkpoint.pt"), "--cache", str(tmp_path / "cache")])
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert "has no classes" in out and not (tmp_path / "cache").exists()
    expected = {"Frechet distance of 8x8", "to nearest training image", "log-likelihood (GAN)"}
    assert expected <= set(rows)
    assert not {"Frechet distance", "precision", "recall"} & set(rows)
    # the test images are as far from the training images as chance has it, and not among them
    assert float(rows["to nearest training image"][1]) > 0.4


def test_another_dataset_than_the_run_s(checkpoints, small, tmp_path, capsys):
    for i in range(3):
        write_pictures(tmp_path / "grey" / f"class {i}", 30, (1, 8, 8), seed=i)
        write_pictures(tmp_path / "colour" / f"class {i}", 30, (3, 8, 8), seed=i)
    options = ["--cache", tmp_path / "cache", "--quick", "--dataset"]
    score.main([str(word) for word in (checkpoints["dcgan"], *options, tmp_path / "grey")])
    assert "share of class class 2" in capsys.readouterr().out
    error = fails([checkpoints["dcgan"], *options, tmp_path / "colour"], capsys)
    assert "1x8x8" in error and "3x8x8" in error
    assert "classes" in fails([checkpoints["cgan"], *options, tmp_path / "grey"], capsys)
    assert "no such" in fails([checkpoints["dcgan"], *options, tmp_path / "no such"], capsys)
    write_pictures(tmp_path / "few" / "a", 20, (1, 8, 8))
    assert "2 images to test" in fails([checkpoints["dcgan"], *options, tmp_path / "few"], capsys)


@pytest.mark.parametrize("content", [None, b"no checkpoint", b""])
def test_a_file_that_is_not_a_checkpoint_gets_one_sentence(content, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    if content is not None:
        path.write_bytes(content)
    assert "not a checkpoint" in fails([path], capsys)


def test_a_checkpoint_of_another_script_or_version_gets_a_sentence(checkpoints, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(checkpoints["dcgan"], weights_only=True)
    torch.save(saved | {"script": "os"}, path)
    assert "os.py" in fails([path], capsys)
    saved["G_avg"].popitem()
    torch.save(saved, path)
    assert "dcgan.py" in fails([path], capsys)
