"""CoGAN: what is tied, what is never a pair, and what the other domain is, by value."""
from argparse import Namespace

import pytest
import torch
from conftest import fake_data, fake_patches, files, interrupt, networks, refused
from torch import nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import save_image

import cogan

DOMAINS = [*cogan.TRANSFORMS, "mnistm"]


def channels_of(domain, channels=1):
    """The channels of a batch, which has both domains side by side."""
    return channels + (3 if domain == "mnistm" else channels)


def images(domain="edge", n=16, side=8):
    generator = torch.Generator().manual_seed(7)
    return torch.rand(n, channels_of(domain), side, side, generator=generator) * 2 - 1


def ids(*networks):
    return {id(p) for net in networks for p in net.parameters()}


# what is tied


@pytest.mark.parametrize("layers", ["conv", "dense"])
@pytest.mark.parametrize("shared_g, shared_d", [(0, 0), (1, 2), (2, 1), (None, None)])
def test_the_twins_share_their_tied_layers_and_no_others(layers, shared_g, shared_d):
    options = ["--layers", layers]
    if shared_g is not None:
        options += ["--shared_g", str(shared_g), "--shared_d", str(shared_d)]
    G, D, *_ = networks(cogan, options=options)
    for net, n in ((G, shared_g), (D, shared_d)):
        tied, one, two = ids(net.shared), ids(net.private1), ids(net.private2)
        assert not tied & one and not tied & two and not one & two
        assert one and two and len(one) == len(two)
        assert bool(tied) == (n != 0)
        assert n is None or len(net.shared) == n
        assert tied | one | two == ids(net)


@pytest.mark.parametrize("shared", ["0", "1", "2"])
def test_what_is_not_shared_is_private(shared):
    def depth(net):
        return len(net.shared) + len(net.private1)

    G, D, *_ = networks(cogan, options=["--shared_g", shared, "--shared_d", shared])
    all_G, all_D, *_ = networks(cogan)
    assert depth(G) == depth(all_G) and depth(D) == depth(all_D)


def test_both_images_of_a_pair_come_through_the_tied_layers_of_g_once():
    G, *_ = networks(cogan)
    seen = []
    G.shared.register_forward_hook(lambda module, x, h: seen.append(h))
    for twin in (G.private1, G.private2):
        twin.register_forward_hook(lambda module, x, _: seen.append(x[0]))
    G(torch.randn(4, G.latent_dim))
    assert len(seen) == 3 and seen[0] is seen[1] is seen[2]


def test_both_scores_come_through_the_tied_layers_of_d():
    G, D, *_ = networks(cogan)
    x1, x2 = images().chunk(2, 1)
    s1, s2 = D(x1, x2)
    with torch.no_grad():
        for p in D.shared.parameters():
            p.mul_(2)
    assert (D(x1, x2)[0] != s1).any() and (D(x1, x2)[1] != s2).any()
    with torch.no_grad():
        for p in D.private2.parameters():
            p.mul_(2)
    again, s2 = D(x1, x2)[0], D(x1, x2)[1]
    with torch.no_grad():
        for p in D.private2.parameters():
            p.mul_(2)
    assert torch.equal(D(x1, x2)[0], again) and (D(x1, x2)[1] != s2).any()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("shared_d", ["0", "1"])
def test_the_discriminators_of_images_of_one_shape_start_equal(domain, shared_d):
    G, D, *_ = networks(cogan, options=["--domain", domain, "--shared_d", shared_d])
    x = images("edge")
    s1, s2 = D(x[:, :1], x[:, 1:].expand(-1, channels_of(domain) - 1, -1, -1))
    swapped = D(x[:, 1:], x[:, :1].expand(-1, channels_of(domain) - 1, -1, -1))
    is_equal = torch.equal(s1, swapped[1]) and torch.equal(s2, swapped[0])
    assert is_equal == (domain != "mnistm")
    x1, x2 = G(torch.randn(4, G.latent_dim))
    assert (x1 != x2).any()  # g1 and g2 do not: nothing but what they share makes pairs


# the data


def build_on(data, *argv, seed=5):
    """What build makes of the data."""
    args = cogan.parse_args(list(argv))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cogan, "load_data", lambda *_, **__: data)
        patch.setattr(cogan, "load_patches", fake_patches)
        torch.manual_seed(seed)
        return cogan.build(args, torch.device("cpu"))[0]


def indices(found, among):
    """Which of the images these are."""
    return [(image == among).flatten(1).all(1).nonzero().item() for image in found]


@pytest.mark.parametrize("n", [40, 41])
def test_no_pair_is_ever_seen(n):
    data = fake_data((1, 8, 8), n)
    halves = build_on(data, "--domain", "negative").images
    assert halves.shape == (20, 2, 8, 8)
    one = indices(halves[:, :1], data.images)
    two = indices(255 - halves[:, 1:], data.images)
    assert len({*one, *two}) == 40  # none is in both domains
    assert one != sorted(one) and two != sorted(two)
    assert len({b - a for a, b in zip(one, two)}) > 10  # nor are they in a common order


def test_the_halves_follow_the_seed_of_the_training():
    data = fake_data((1, 8, 8), 40)
    halves = build_on(data).images
    assert torch.equal(build_on(data).images, halves)
    assert not torch.equal(build_on(data, seed=6).images, halves)


def test_labels_are_those_of_domain_1():
    data = fake_data((1, 8, 8), 40)._replace(labels=torch.arange(40))
    halves = build_on(data)
    assert halves.labels.tolist() == indices(halves.images[:, :1], data.images)


def test_transforms_by_value():
    x = -torch.ones(1, 1, 4, 4)
    x[0, 0, 0, 1] = 1
    assert torch.equal(cogan.TRANSFORMS["negative"](x), -x)
    turned = -torch.ones(1, 1, 4, 4)
    turned[0, 0, 2, 0] = 1  # a quarter turn against the clock
    assert torch.equal(cogan.TRANSFORMS["rotate"](x), turned)
    edge = -torch.ones(1, 1, 4, 4)
    edge[0, 0, :2, :3] = 1  # the neighbours of the dot,
    edge[0, 0, 0, 1] = -1  # without the dot
    assert torch.equal(cogan.TRANSFORMS["edge"](x), edge)


@pytest.mark.parametrize("domain", cogan.TRANSFORMS)
def test_domain_2_is_the_transform_of_the_second_half_to_the_last_grey_level(domain):
    data = fake_data((1, 8, 8), 40)
    halves = build_on(data, "--domain", domain).images
    every = ((cogan.TRANSFORMS[domain](data.images / 127.5 - 1) + 1) * 127.5).round().byte()
    used = set(indices(halves[:, :1], data.images))
    assert not used & set(indices(halves[:, 1:], every))


@pytest.mark.parametrize("channels", [1, 3])
def test_mnistm_is_the_difference_from_a_patch_in_colour(channels):
    data = fake_data((channels, 8, 8), 40)
    x1, x2 = build_on(data, "--domain", "mnistm").images.split([channels, 3], 1)
    used = set(indices(x1, data.images))
    rest = [image.int() for i, image in enumerate(data.images) if i not in used]
    for x, patch in zip(x2.int(), fake_patches(20, 8).int()):
        assert [torch.equal(x, (patch - image).abs()) for image in rest].count(True) == 1


# what a run reports and draws


class Fakes(nn.Module):
    """A G of given pairs."""

    latent_dim = 1

    def __init__(self, x1, x2):
        super().__init__()
        self.shared = nn.Sequential()
        self.pair = x1, x2
        self.zero = nn.Parameter(torch.zeros(1))

    def forward(self, z):
        return tuple(x + 0 * self.zero for x in self.pair)


def report(domain, x1, x2):
    """The values of a train_step with a G that draws x1 and x2."""
    D, _, opt_D, args = networks(cogan, options=["--domain", domain])[1:]
    G = Fakes(x1, x2)
    return cogan.train_step(G, D, torch.optim.SGD(G.parameters(), 0), opt_D, images(), None, args)


@pytest.mark.parametrize("domain", cogan.TRANSFORMS)
def test_agree_is_the_share_of_pixels_on_the_side_of_grey_of_x1_seen_in_domain_2(domain):
    torch.manual_seed(0)
    x1 = torch.randn(16, 1, 8, 8).clamp(-1, 1)
    x2 = cogan.TRANSFORMS[domain](x1)
    x2[:, :, :2] *= -1  # a quarter of the pixels is wrong
    if domain == "edge":  # so that no pixel is grey
        x2 += 1e-3
    values = report(domain, x1, x2)
    expected = ((cogan.TRANSFORMS[domain](x1) > 0) == (x2 > 0)).float().mean().item()
    assert values["agree"].item() == pytest.approx(expected)
    assert values["agree"].item() == pytest.approx(0.75, abs=0.02)
    others = cogan.TRANSFORMS[domain](x1.roll(1, 0))
    expected = ((others > 0) == (x2 > 0)).float().mean().item()
    assert values["chance"].item() == pytest.approx(expected)
    assert values["chance"] < values["agree"] - 0.05


def test_mnistm_has_no_agreement_to_report():
    D, _, opt_D, args = networks(cogan, options=["--domain", "mnistm"])[1:]
    G = Fakes(torch.randn(16, 1, 8, 8), torch.randn(16, 3, 8, 8))
    optimizer = torch.optim.SGD(G.parameters(), 0)
    values = cogan.train_step(G, D, optimizer, opt_D, images("mnistm"), None, args)
    assert "agree" not in values


@pytest.mark.parametrize("domain", ["edge", "mnistm"])
def test_the_picture_shows_each_pair_with_x2_below_x1(domain):
    G, D, *_, args = networks(cogan, options=["--domain", domain])
    picture = cogan.sample(G.eval(), D, args)
    z = torch.randn(32, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    with torch.no_grad():
        x1, x2 = G(z)
    rows = picture["images"].split(16)
    assert picture["n_columns"] == 16 and picture["rows"] == ["x1", "x2", "x1", "x2"]
    for k, row in enumerate([x1[:16], x2[:16], x1[16:], x2[16:]]):
        assert torch.allclose(rows[k], row.expand_as(rows[k]), atol=1e-6)


@pytest.mark.parametrize("domain", ["negative", "mnistm"])
def test_real_images_of_both_domains_are_shown(domain):
    data = build_on(fake_data((1, 8, 8), 64), "--domain", domain)
    args = Namespace(channels=[1, data.images.shape[1] - 1])
    picture = cogan.real_images(data, args)
    rows = picture["images"].split(16)
    levels = data.images[:16] / 127.5 - 1
    assert torch.allclose(rows[0], levels[:, :1].expand_as(rows[0]))
    assert torch.allclose(rows[1], levels[:, 1:].expand_as(rows[1]))


# whole runs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_runs_in_grey_and_in_colour(
    domain, channels, tmp_path, run_options, monkeypatch
):
    monkeypatch.setattr(cogan, "load_patches", fake_patches)
    (tmp_path / "data").mkdir()
    for i, image in enumerate(torch.rand(12, channels, 8, 8)):
        to_pil_image(image).save(tmp_path / "data" / f"{i}.png")
    options = ["--dataset", str(tmp_path / "data"), "--batch_size", "6", "--n_epochs", "1"]
    options += ["--domain", domain, "--out_dir", str(tmp_path / "run")]
    cogan.main([*run_options, *options])
    G = cogan.load_generator(tmp_path / "run" / "checkpoint.pt")
    channels_2 = 3 if domain == "mnistm" else channels
    shapes = [x.shape[1:] for x in G(torch.randn(2, G.latent_dim))]
    assert shapes == [(channels, 8, 8), (channels_2, 8, 8)]


def test_the_defaults_of_a_domain_yield_to_options_that_are_given_and_to_those_of_the_run():
    defaults = cogan.DEFAULTS["rotate"]
    assert (defaults["latent_dim"], defaults["layers"]) == (20, "dense")  # departure 2
    args = cogan.parse_args(["--domain", "rotate", "--n_epochs", "3"])
    assert vars(args) | {"n_epochs": defaults["n_epochs"]} == vars(args) | defaults
    assert args.n_epochs == 3
    resumed = cogan.parse_args(["--batch_size", "9"], vars(args))
    assert vars(resumed) == vars(args) | {"batch_size": 9}


def test_rotate_has_dense_networks_and_the_others_convolutions():
    for domain in DOMAINS:
        G, D, *_ = networks(cogan, options=["--domain", domain])
        kinds = {type(m) for net in (G, D) for m in net.modules()}
        assert (nn.Conv2d in kinds) == (domain != "rotate")
    G, *_ = networks(cogan, options=["--domain", "rotate", "--layers", "conv"])
    assert any(isinstance(m, nn.ConvTranspose2d) for m in G.modules())


def test_a_run_with_photographs_is_resumed_to_the_same_bytes(run_options, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    save_image(torch.rand(3, 40, 50), photos / "photo.png")
    options = [*run_options, "--domain", "mnistm", "--photos", str(photos), "--n_epochs", "2"]
    options += ["--batch_size", "25", "--sample_interval", "5"]
    cogan.main([*options, "--out_dir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt(patch, cogan, 6)
        cogan.main([*options, "--out_dir", str(tmp_path / "cut")])
    cogan.main(["--resume", str(tmp_path / "cut" / "checkpoint.pt")])
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_batch_is_of_half_the_data(run_options, tmp_path, capsys):
    options = [*run_options, "--batch_size", "101", "--out_dir", tmp_path / "run"]
    assert "100" in refused(cogan, options, capsys)


@pytest.mark.parametrize("options", [
    "--domain negative", "--seed 1", "--layers dense", "--shared_g 1", "--shared_d 1",
    "--photos photos",
])  # fmt: skip
def test_what_decides_the_halves_and_the_networks_cannot_change_when_a_run_is_resumed(
    options, capsys
):
    saved = vars(cogan.parse_args(["--domain", "mnistm" if "photos" in options else "edge"]))
    with pytest.raises(SystemExit) as stop:
        cogan.parse_args(options.split(), saved)
    assert stop.value.code == 2
    assert options.split()[0] in capsys.readouterr().err.splitlines()[-1]


# two datasets of one's own


@pytest.fixture
def two_folders(tmp_path):
    """Nine colour pictures and four grey ones, each of one level of its own."""
    for name, n in (("colour", 9), ("grey", 4)):
        (tmp_path / name).mkdir()
        for i in range(n):
            picture = torch.full((3, 8, 8), (i + 1) / 16)
            picture[0] += 0.2 * (name == "colour")
            save_image(picture, tmp_path / name / f"{i}.png")
    return ["--dataset", str(tmp_path / "colour"), "--dataset2", str(tmp_path / "grey")]


def test_two_datasets_are_two_domains_whatever_their_sizes(two_folders):
    args = cogan.parse_args([*two_folders, "--img_size", "8", "--width", "4"])
    data, G, D = cogan.build(args, torch.device("cpu"))
    assert data.images.shape == (9, 4, 8, 8)  # an epoch is one pass over the larger
    x1, x2 = cogan.split_domains(data.images, args)
    assert len(set(x1[:, 1, 0, 0].tolist())) == 9
    levels = x2[:, 0, 0, 0].tolist()
    assert len(set(levels)) == 4 and max(levels.count(v) for v in levels) == 3
    assert levels != sorted(levels) and x1[:, 1, 0, 0].tolist() != sorted(x1[:, 1, 0, 0].tolist())
    fake1, fake2 = G(torch.randn(2, G.latent_dim))
    assert fake1.shape == (2, 3, 8, 8) and fake2.shape == (2, 1, 8, 8)
    opt_G, opt_D = (torch.optim.Adam(net.parameters()) for net in (G, D))
    values = cogan.train_step(G, D, opt_G, opt_D, data.images / 127.5 - 1, None, args)
    assert all(value.isfinite() for value in values.values())
    assert not {"agree", "chance"} & set(values)  # there is no transform to compare with


def test_a_run_on_two_datasets_is_resumed_from_anywhere(two_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = ["--dataset", "colour", "--dataset2", "grey", "--out_dir", str(tmp_path / "run")]
    options = ["--img_size", "8", "--width", "4", "--batch_size", "4", "--n_epochs", "2"]
    cogan.main([*relative, *options])
    monkeypatch.chdir("/")
    cogan.main(["--resume", str(tmp_path / "run"), "--n_epochs", "3"])
    assert len(cogan.load_generator(tmp_path / "run")(torch.randn(2, 100))) == 2
