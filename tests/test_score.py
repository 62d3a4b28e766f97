"""The measures of score.py against answers that are known."""
import math

import pytest
import score
import torch
from torchvision.utils import save_image

import cgan
import cogan
import dcgan
import fgan
import infogan
from common import draw_glyphs


def test_frechet_distance_of_gaussians_is_the_closed_form():
    torch.manual_seed(0)
    a, b = torch.randn(200_000, 3), torch.randn(200_000, 3) * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([1.0, 0, 0])
    assert score.frechet_distance(a, b) == pytest.approx(1 + 1 + 0.25, abs=0.03)  # |m|^2 + sum (s - t)^2
    assert score.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    assert score.frechet_distance(a @ turn, b @ turn) == pytest.approx(score.frechet_distance(a, b), abs=1e-4)


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
            torch.distributions.Independent(torch.distributions.Normal(samples, sigma), 1))
        expected = mixture.log_prob(queries)
        assert mean[i].item() == pytest.approx(expected.mean().item(), rel=1e-4)
        assert error[i].item() == pytest.approx((expected.std() / math.sqrt(600)).item(), rel=1e-3)


def test_parzen_chooses_its_bandwidth_and_reads_the_likelihood_of_a_known_density():
    torch.manual_seed(0)
    samples, test = torch.randn(3000, 1), torch.randn(2000, 1)
    true = torch.distributions.Normal(0, 1).log_prob(test).mean().item()
    assert float(score.parzen(samples, torch.randn(500, 1), test).split()[0]) == pytest.approx(true, abs=0.08)
    assert float(score.parzen_fgan(samples, test).split()[0]) == pytest.approx(true, abs=0.08)


@pytest.mark.parametrize("spread", [0.06, 0.2])
def test_bandwidth_of_f_gan_s_protocol_is_that_of_the_clusters(spread):
    torch.manual_seed(0)
    centres = 3 * torch.randn(30, 20)
    samples, test = ((centres[torch.arange(n) % 30] + spread * torch.randn(n, 20)) for n in (3000, 600))
    samples = samples[torch.randperm(len(samples))]
    found = float(score.parzen_fgan(samples, test).split()[0])
    true = -math.log(30) - 20 * (0.5 + math.log(spread * math.sqrt(2 * math.pi)))
    assert found == pytest.approx(true, abs=6)  # a bandwidth twice too wide or narrow costs more
    wrong = score.log_likelihood(samples, test, [2 * spread, spread / 3])[0]
    assert (wrong < found - 4).all()


def test_recall_is_taken_over_every_class_that_is_asked_for(run_options, data_dir, tmp_path, monkeypatch):
    """Of classes that come in turn, every other sample would be of every other class."""
    cgan.main([*run_options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")])
    asked = torch.arange(60) % 10
    images = (asked / 5 - 1)[:, None, None, None].expand(-1, 1, 8, 8)
    compared = []
    monkeypatch.setattr(score, "draw", lambda module, G, n, labels: (images, asked))
    monkeypatch.setattr(score, "precision_recall", lambda samples, real: compared.append(samples) or (0.0, 0.0))
    monkeypatch.setattr(score.Classifier, "features",
                        lambda self, x: (torch.randn(len(x), 2) * 1e-6 + x[:, 0, 0, :2], torch.full((len(x), 10), 0.1)))
    score.main([str(tmp_path / "run" / "checkpoint.pt")])
    assert len(compared[0]) == 30 and len(compared[0][:, 0].round(decimals=2).unique()) == 10
    for path in data_dir.glob("score-*.pt"):
        path.unlink()


def test_every_set_of_photographs_has_its_classifier(run_options, data_dir, tmp_path, monkeypatch):
    """One kept under the folder's name alone would judge images of other photographs."""
    draw = score.draw
    monkeypatch.setattr(score, "draw", lambda module, G, n, labels: draw(module, G, 60, labels))  # of 10,000
    for name in ("a", "b"):
        photos, run = tmp_path / name / "photos", tmp_path / name / "run"
        photos.mkdir(parents=True)
        save_image(torch.rand(3, 40, 50), photos / "photo.png")
        options = ["--domain", "mnistm", "--photos", str(photos), "--n_epochs", "1", "--out_dir", str(run)]
        cogan.main([*run_options, *options])
        score.main([str(run / "checkpoint.pt")])
    assert len(list(data_dir.glob("score-*-mnistm-*.pt"))) == 2
    for path in data_dir.glob("score-*.pt"):
        path.unlink()


def test_a_classifier_is_trained_once_and_kept_in_a_folder_that_need_not_be_there(tmp_path, monkeypatch):
    images, labels = draw_glyphs(20)
    made = score.load_classifier("x", tmp_path / "no" / "data", images / 127.5 - 1, labels, 10)
    monkeypatch.setattr(score, "train_classifier", None)
    kept = score.load_classifier("x", tmp_path / "no" / "data", images, labels, 10)
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), kept.state_dict().values()))


def test_classes_are_asked_for_as_often_as_in_the_training():
    class G:
        latent_dim, n_classes = 3, 4

        def __new__(cls, z, y):
            return torch.cat([z, y[:, None]], 1)
    labels = torch.tensor([3, 3, 0])
    images, asked = score.draw(cgan, G, 6, labels)
    assert images.shape == (6, 4) and images[:, 3].tolist() == asked.tolist() == [3, 3, 0, 3, 3, 0]


def test_a_row_is_steady_while_its_code_does_not_change_the_class():
    def G(z, c):
        return torch.cat([z, c], 1)
    G.latent_dim = 3
    by_category = score.steady_rows(G, lambda x: x[:, 3:13].argmax(1), 2)
    by_second_code = [score.steady_rows(G, lambda x: (x[:, 14] > 1.5).long(), limit) for limit in (1, 2)]
    assert by_category == 1 and by_second_code == [1, 0.5]
    assert score.steady_rows(G, lambda x: (x[:, 0] > 0).long(), 2) == 1  # one z along a row


def test_nearest_neighbour_error_counts_wrong_labels():
    images, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 2])
    test, truth = torch.tensor([[0.1], [0.9], [1.8], [5.0]]), torch.tensor([0, 1, 0, 2])
    assert score.nearest_neighbour_error(images, labels, test, truth) == 0.25


def test_classifier_learns_digits():
    images, labels = draw_glyphs(600, 0)
    images = images / 127.5 - 1
    net = score.train_classifier(images[:400, :, ::2, ::2], labels[:400], 10, n_epochs=8, batch_size=40)
    features, p = net.features(images[400:, :, ::2, ::2])
    assert features.shape == (200, 128) and torch.allclose(p.sum(1), torch.ones(200), atol=1e-5)
    assert (p.argmax(1) == labels[400:]).float().mean() > 0.8


@pytest.mark.parametrize("content", [None, b"no checkpoint", b""])
def test_a_file_that_can_t_be_scored_gets_one_sentence(content, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        score.main([str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "can't be scored" in error and error.count("\n") == 1


@pytest.mark.parametrize("module, own", [(dcgan, []), (cgan, ["class asked = class seen", "1-NN test error"]),
                                         (infogan, ["unsupervised test error", "rows of one class, -2..2"]),
                                         (fgan, ["log-likelihood (f-GAN)"]),
                                         (cogan, ["same class in both domains", "pixel agreement"])])
def test_a_table_is_printed_for_any_checkpoint(module, own, run_options, data_dir, tmp_path, capsys, monkeypatch):
    small = score.draw
    monkeypatch.setattr(score, "draw", lambda module, G, n, labels: small(module, G, 60, labels))
    module.main([*run_options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")])
    capsys.readouterr()
    score.main([str(tmp_path / "run" / "checkpoint.pt")])
    out = capsys.readouterr().out
    for name in ("Frechet distance", "recall", "share of class 7", "log-likelihood (GAN)", *own):
        assert f"\n{name} " in out
    assert "training a classifier" in out
    score.main([str(tmp_path / "run" / "checkpoint.pt")])
    assert "training a classifier" not in capsys.readouterr().out  # it was kept
    for path in data_dir.glob("score-*.pt"):
        path.unlink()
