"""CoGAN: what is tied, what is never a pair, and what the other domain is, by value."""
import copy

import pytest
import torch
from conftest import networks
from torchvision.utils import save_image

import cogan
from common import Data, load_patches


def batch(n=16, channels=2):
    return torch.rand(n, channels, 28, 28, generator=torch.Generator().manual_seed(7)) * 2 - 1


@pytest.mark.parametrize("domain, shared_g, shared_d", [
    ("edge", 0, 0), ("edge", 1, 3), ("edge", 4, 2), ("negative", 3, 2), ("rotate", 0, 0), ("rotate", 0, 4),
    ("rotate", 4, 1), ("mnistm", 0, 3), ("mnistm", 4, 0)])
def test_the_first_layers_of_g_and_the_last_of_d_are_the_same_objects_and_no_others(domain, shared_g, shared_d):
    G, D, *_ = networks(cogan, options=["--domain", domain, "--shared_g", str(shared_g), "--shared_d", str(shared_d)])
    depth_g = 5 if domain == "edge" else 4
    for tied, private, n, depth in ((G.tied, G.private, shared_g, depth_g), (D.tied, D.private, shared_d, 4)):
        assert len(tied) == n and [len(net) for net in private] == [depth - n, depth - n + (domain == "rotate")]
        ids = [{id(p) for p in net.parameters()} for net in (tied, *private)]
        assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]
    if domain == "mnistm":
        assert not {id(p) for net in (G.tied, *G.private) for p in net.parameters()} & {*map(id, G.patch.parameters())}
    calls = []
    for name, net in (("G", G), ("D", D)):
        for i, module in enumerate([net.tied, *net.private]):
            module.register_forward_hook(lambda *_, key=(name, i): calls.append(key))
    x1, x2 = G(torch.randn(4, G.latent_dim))
    D(x1, x2)
    assert calls == [("G", 0), ("G", 1), ("G", 2), ("D", 1), ("D", 0), ("D", 2), ("D", 0)]  # G tied first, D tied last
    assert isinstance((G.tied if shared_g else G.private[1])[0][0], torch.nn.Linear)
    assert isinstance((D.tied if shared_d else D.private[1])[-1], torch.nn.Linear)


@pytest.mark.parametrize("domain", ["edge", "negative", "rotate"])
@pytest.mark.parametrize("tied", [1, 0])
def test_twins_start_equal_where_they_are_tied_and_draw_edges(domain, tied):
    G, D, *_ = networks(cogan, options=["--domain", domain, "--shared_g", str(tied), "--shared_d", str(tied)])
    x1, x2 = G(torch.randn(8, 16))
    s1, s2 = D(x1, x1)
    assert x1.std() > 1e-3 and s1.std() > 1e-3
    equal = domain == "edge" and tied == 1
    assert torch.equal(x1, x2) == equal and torch.equal(s1, s2) == equal
    ids = [{id(p) for p in net.parameters()} for net in G.private]
    assert not ids[0] & ids[1]  # equal, but each its own


@pytest.mark.parametrize("domain", cogan.DEFAULTS)
def test_tied_layers_take_the_mean_of_the_gradients_of_two_separate_networks(domain):
    G, D, opt_G, opt_D, args = networks(cogan, options=["--domain", domain])
    with torch.no_grad():
        [p.mul_(3) for p in D.parameters()]
    x = batch(channels=4 if domain == "mnistm" else 2)
    nets = [(copy.deepcopy(G), copy.deepcopy(D)) for _ in range(2)]  # one GAN for each domain, nothing in common
    torch.manual_seed(3)
    values = cogan.train_step(G, D, opt_G, opt_D, x, None, args)
    torch.manual_seed(3)
    z = torch.randn(16, G.latent_dim)
    losses = []
    for i, (g, d) in enumerate(nets):
        fake = g(z)[i]
        score = lambda images, d=d, i=i: d.tied(d.private[i](images))  # noqa: E731
        log = torch.nn.functional.logsigmoid
        loss_D = -(log(score(x[:, :1] if i == 0 else x[:, 1:])).mean() + log(-score(fake.detach())).mean())
        loss_D.backward()
        losses.append(loss_D.item())
    assert values["loss_D"].item() == pytest.approx(sum(losses), abs=1e-4)
    assert len(list(D.tied.parameters())) > 3 and len(list(G.tied.parameters())) > 3
    for ours, one, two in zip(D.tied.parameters(), *(d.tied.parameters() for _, d in nets)):
        mean = (one.grad + two.grad) / 2
        assert torch.allclose(ours.grad, mean, rtol=1e-3, atol=1e-3 * mean.abs().max() + 5e-6)
    for i, (_, d) in enumerate(nets):
        for ours, theirs in zip(D.private[i].parameters(), d.private[i].parameters()):
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * theirs.grad.abs().max() + 5e-6)


@pytest.mark.parametrize("domain", cogan.DEFAULTS)
def test_g_takes_the_mean_too(domain):
    G, D, opt_G, opt_D, args = networks(cogan, lr_d=0, options=["--domain", domain])
    if domain == "rotate":  # a D that does not take every position for the same
        torch.nn.init.normal_(D.private[1][0].logits)
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    torch.manual_seed(3)
    cogan.train_step(G, D, opt_G, opt_D, batch(channels=4 if domain == "mnistm" else 2), None, args)
    torch.manual_seed(3)
    (-sum(s.sigmoid().log().mean() for s in D2(*G2(torch.randn(16, G.latent_dim))))).backward()
    for (name, ours), theirs in zip(G.named_parameters(), G2.parameters()):  # 1e-6: a bias before BN has gradient 0
        expected = theirs.grad / (2 if name.startswith("tied") else 1)
        assert torch.allclose(ours.grad, expected, rtol=1e-3, atol=1e-3 * expected.abs().max() + 1e-6), name
    nets = [net for net in (G.tied, G.private, G.patch) if net]
    largest = [max((p.grad.abs().max().item() for p in net.parameters()), default=1) for net in nets]
    assert min(largest) > 3e-5  # or there was nothing to compare


def data_of(n, monkeypatch, *argv, channels=1):
    """What setup makes of n images that differ in every pixel."""
    images = torch.randint(256, (n, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(cogan, "load_data", lambda *_: Data("x", images, torch.arange(n), ["a"]))
    torch.manual_seed(5)
    return images, cogan.setup(cogan.parse_args(list(argv)), "cpu")


def indices(images, of):
    """Which of the images these are."""
    return [(image == of).flatten(1).all(1).nonzero().item() for image in images]


@pytest.mark.parametrize("n", [40, 41])
def test_no_pair_is_ever_seen(n, monkeypatch):
    images, (data, *_) = data_of(n, monkeypatch, "--domain", "negative")
    assert data.images.shape == (20, 2, 8, 8)
    first, second = indices(data.images[:, :1], images), indices(255 - data.images[:, 1:], images)
    assert len({*first, *second}) == 40  # forty different images: none is in both domains
    assert data.labels.tolist() == first
    assert first != sorted(first) and second != sorted(second)
    apart = [b - a for a, b in zip(first, second)]
    assert len(set(apart)) > 10  # nor are the halves in a common order


def test_rotated_edges_and_negatives_by_value():
    x = -torch.ones(1, 1, 4, 4)
    x[0, 0, 0, 1] = 1
    assert torch.equal(cogan.transform(x, "negative"), -x)
    turned = -torch.ones(1, 1, 4, 4)
    turned[0, 0, 2, 0] = 1  # a quarter turn against the clock
    assert torch.equal(cogan.transform(x, "rotate"), turned)
    edge = -torch.ones(1, 1, 4, 4)
    edge[0, 0, :2, :3] = 1  # the neighbours of the dot,
    edge[0, 0, 0, 1] = -1  # without the dot
    assert torch.equal(cogan.transform(x, "edge"), edge)


@pytest.mark.parametrize("domain", ["edge", "negative", "rotate"])
def test_domain_2_is_the_transform_of_the_second_half_to_the_last_grey_level(domain, monkeypatch):
    images, (data, *_) = data_of(40, monkeypatch, "--domain", domain)
    every = ((cogan.transform(images / 127.5 - 1, domain) + 1) * 127.5).round().byte()
    used = set(indices(data.images[:, :1], images))
    assert not used & set(indices(data.images[:, 1:], every))


@pytest.mark.parametrize("channels", [1, 3])
def test_mnistm_is_the_difference_from_a_patch_in_colour(channels, monkeypatch):
    images, (data, config_G, config_D) = data_of(40, monkeypatch, "--domain", "mnistm", channels=channels)
    x1, x2 = data.images.split([channels, 3], 1)
    first = set(indices(x1, images))
    patches = load_patches(20, 8).int()
    every = {i: image.int() for i, image in enumerate(images) if i not in first}
    for x, patch in zip(x2.int(), patches):
        assert [torch.equal(x, (patch - image).abs()) for image in every.values()].count(True) == 1
    assert config_G["img_shapes"] == config_D["img_shapes"] == ((channels, 8, 8), (3, 8, 8))


def test_patches_come_from_the_photographs(tmp_path):
    for i, shade in enumerate((0.25, 0.75)):
        save_image(torch.full((3, 40, 50), shade), tmp_path / f"{i}.png")
    patches = load_patches(50, 28, tmp_path)
    assert patches.shape == (50, 3, 28, 28) and set(patches.unique().tolist()) == {64, 191}
    assert torch.equal(patches, load_patches(50, 28, tmp_path))
    assert not torch.equal(patches, load_patches(50, 28, tmp_path, seed=1))
    clouds = load_patches(50, 28).float()
    assert clouds.std() > 40 and clouds.std((2, 3)).mean() > 10  # of many colours, and not flat
    assert (clouds[:, 0] - clouds[:, 1]).abs().mean() > 20


def test_agreement_is_the_share_of_pixels_on_the_same_side_of_grey():
    G, D, opt_G, opt_D, args = networks(cogan, options=["--domain", "negative"])
    x1 = batch(8, 1)
    x2 = -x1
    x2[:, :, :7] *= -1  # a quarter of the pixels is wrong

    class Fakes(torch.nn.Module):
        latent_dim = 1

        def __init__(self):
            super().__init__()
            self.tied, self.zero = torch.nn.Sequential(), torch.nn.Parameter(torch.zeros(1))

        def forward(self, z):
            return x1 + 0 * self.zero, x2 + 0 * self.zero

    G = Fakes()
    values = cogan.train_step(G, D, torch.optim.SGD(G.parameters(), 0), opt_D, batch(8), None, args)
    assert values["agree"].item() == pytest.approx(0.75)
    assert values["shuffled"].item() == pytest.approx(0.5, abs=0.03)
    args.domain = "mnistm"
    values = cogan.train_step(G, D, torch.optim.SGD(G.parameters(), 0), opt_D, batch(8), None, args)
    assert "agree" not in values


@pytest.mark.parametrize("domain, channels", [("edge", 1), ("mnistm", 3)])
def test_grid_shows_domain_1_above_its_pairs_in_domain_2(domain, channels):
    G, D, *_, args = networks(cogan, options=["--domain", domain])
    picture = cogan.sample(G, D, args)
    z = torch.randn(32, G.latent_dim, generator=torch.Generator().manual_seed(args.seed))
    with torch.no_grad():
        x1, x2 = G.eval()(z)
    assert torch.equal(picture["images"][:32], x1.expand(-1, channels, -1, -1))
    assert torch.equal(picture["images"][32:], x2)
    assert picture["n_columns"] == 16 and picture["rows"] == ["x1", "x1", "x2", "x2"]


@pytest.mark.parametrize("domain", cogan.DEFAULTS)
def test_each_domain_leaves_private_what_lets_it_be_drawn(domain):
    G, D, *_ = networks(cogan, options=["--domain", domain])
    if domain == "rotate":  # a turn in each network of domain 2, and nothing else
        assert [[type(layer) for layer in net] for net in (*G.private, *D.private)] == [[], [cogan.Turn]] * 2
        assert len(G.tied) == len(D.tied) == 4
    elif domain == "mnistm":  # in G nothing, since x2 is |patch - x1|; in D what sees colours
        assert [len(g) for g in (*G.private, G.patch)] == [0, 0, 5] and [len(f) for f in D.private] == [2, 2]
    else:  # convolutions, small enough to leave the digit in its place
        for g, f in zip(G.private, D.private):
            assert len(g) == len(f) == 1 and isinstance(f[0][0], torch.nn.Conv2d)
            kinds = [type(layer) for layer in g[0] if hasattr(layer, "kernel_size")]
            assert kinds == ([torch.nn.Conv2d] * 2 if domain == "edge" else [torch.nn.ConvTranspose2d])
        assert len(D.tied) == 3 and len(G.tied) == (4 if domain == "edge" else 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_are_drawn_dark_at_the_start_and_each_from_the_5_by_5_pixels_around_it(channels):
    G, *_ = networks(cogan, (channels, 28, 28), options=["--domain", "edge"])
    maps = torch.randn(8, 8, 28, 28)
    assert all(x.shape == (8, channels, 28, 28) and x.mean() < -0.7 for x in G(torch.randn(8, 16)))
    for g in G.eval().private:
        kinds = [type(layer) for layer in g[0]]  # mean 0 before the last convolution, or Adam blackens the images
        assert kinds.index(torch.nn.BatchNorm2d) == kinds.index(torch.nn.ReLU) + 1 == len(kinds) - 3
        with torch.no_grad():
            change = maps.clone()
            change[:, :, 14, 14] += 10
            moved = (g(maps) != g(change)).any(0).any(0).nonzero()
        assert moved.amin(0).tolist() == [12, 12] and moved.amax(0).tolist() == [16, 16]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tied", [4, 0])
def test_mnistm_is_drawn_as_the_difference_of_a_patch_and_of_x1_or_when_untied_of_another_digit(channels, tied):
    G, *_ = networks(cogan, (channels, 28, 28), options=["--domain", "mnistm", "--shared_g", str(tied)])
    digit, patch = torch.rand(4, channels, 28, 28), torch.rand(4, 3, 28, 28)
    G.private[1].register_forward_hook(lambda *_: digit * 2 - 1)
    G.patch.register_forward_hook(lambda *_: patch * 2 - 1)
    x1, x2 = G(torch.randn(4, 32))
    assert x1.shape == digit.shape and torch.allclose(x2, (patch - digit).abs() * 2 - 1, atol=1e-6)
    G, *_ = networks(cogan, (channels, 28, 28), options=["--domain", "mnistm", "--shared_g", str(tied)])
    assert all(g.mean() < -0.6 for g in (G.private[i](G.tied(torch.randn(4, 16))) for i in (0, 1)))  # black
    maps = []
    G.private[1].register_forward_hook(lambda module, inputs, output: maps.append(output))
    assert torch.equal(G(torch.randn(4, 32))[0], maps[0]) == (tied == 4)


def test_a_patch_of_mnistm_hangs_on_the_second_half_of_z_alone_and_has_no_grain():
    G = networks(cogan, options=["--domain", "mnistm"])[0].eval()
    assert G.latent_dim == 32
    z, patches = torch.randn(8, 32), []
    G.patch.register_forward_hook(lambda module, inputs, output: patches.append(output))
    x1, _ = G(z)
    assert patches[0].mean().abs() < 0.1  # neither dark nor bright at the start
    for k in range(32):  # in both halves the first eight are signs
        larger = z.clone()
        larger[:, k] *= 3
        assert (torch.equal(G(larger)[0], x1) and torch.equal(patches[0], patches[-1])) == (k % 16 < 8)
    for half in (slice(16), slice(16, 32)):
        other = z.clone()
        other[:, half] *= -1
        same = torch.equal(G(other)[0], x1), torch.equal(patches[0], patches[-1])
        assert same == ((False, True) if half.start is None else (True, False))
    board = (torch.arange(28)[:, None] + torch.arange(28)) % 2 * 2.0 - 1  # the finest grain there is
    assert (G.patch[-1](board.expand(1, 3, 28, 28)).abs() < 0.12).all()
    assert torch.allclose(G.patch[-1](torch.ones(1, 3, 28, 28)), torch.ones(1))  # its frame is no darker


def test_turn_mixes_the_eight_symmetries_of_the_square():
    turn, x = cogan.Turn(), torch.rand(2, 3, 4, 4)
    found = []
    for k in range(8):
        with torch.no_grad():
            turn.logits.copy_(20 * torch.nn.functional.one_hot(torch.tensor(k), 8))
        found.append(turn(x))
    assert any(torch.equal(way, cogan.transform(x, "rotate")) for way in found)
    assert len({way.numpy(force=True).tobytes() for way in found}) == 8
    for way in found:  # a group: a turn of one of them, or its mirror image, is one of them
        assert all(any(torch.equal(again, other) for other in found) for again in (way.rot90(1, (2, 3)), way.flip(3)))
    with torch.no_grad():
        turn.logits.copy_(torch.log(torch.arange(1.0, 9)) / 5)
    assert torch.allclose(turn(x), sum((k + 1) / 36 * way for k, way in enumerate(found)), atol=1e-6)


def test_a_step_teaches_both_turns():
    G, D, opt_G, opt_D, args = networks(cogan, options=["--domain", "rotate"])
    cogan.train_step(G, D, opt_G, opt_D, batch(), None, args)
    for turn in (G.private[1][0], D.private[1][0]):
        assert (turn.logits != 0).all() and turn.logits.abs().max() < 0.01


@pytest.mark.parametrize("argv, saved, values", [
    ([], None, (2e-3, 8e-4, 4, 3)), (["--domain", "negative"], None, (2e-3, 8e-4, 3, 3)),
    (["--domain", "rotate"], None, (2e-3, 8e-4, 4, 4)),
    (["--domain", "mnistm"], None, (1e-3, 4e-4, 4, 2)),
    (["--domain", "mnistm", "--lr_d", "0", "--shared_g", "0"], None, (1e-3, 0, 0, 2)),
    ([], {"domain": "mnistm", "lr_g": 3e-3, "shared_d": 1, **dict.fromkeys(("photos", "seed", "shared_g"), 0)},
     (3e-3, 4e-4, 0, 1))])
def test_rates_and_tied_layers_suit_the_domain_unless_they_are_given(argv, saved, values):
    args = cogan.parse_args(argv, saved)
    assert (args.lr_g, args.lr_d, args.shared_g, args.shared_d) == values


@pytest.mark.parametrize("argv", [["--domain", "negative"], ["--shared_g", "0"], ["--shared_d", "1"], ["--seed", "3"]])
def test_a_run_is_not_resumed_with_other_halves_or_layers(argv, run_options, tmp_path, capsys):
    cogan.main([*run_options, "--n_epochs", "1", "--out_dir", str(tmp_path / "run")])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cogan.main(["--resume", str(tmp_path / "run" / "checkpoint.pt"), *argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "are those of the checkpoint" in error and error.count("\n") == 1


def test_a_run_with_photographs_goes_on_to_the_same_bytes(run_options, tmp_path):
    save_image(torch.rand(3, 40, 50), tmp_path / "photo.png")
    options = [*run_options, "--domain", "mnistm", "--photos", str(tmp_path), "--n_epochs", "2"]
    cogan.main([*options, "--out_dir", str(tmp_path.parent / f"{tmp_path.name}-whole")])
    cut = tmp_path.parent / f"{tmp_path.name}-cut"
    step, calls = cogan.train_step, []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(cogan, "train_step", lambda *args: calls.append(0) or step(*args) if len(calls) < 3 else 1 / 0)
        cogan.main([*options, "--out_dir", str(cut)])
    cogan.main(["--resume", str(cut / "checkpoint.pt")])
    whole = tmp_path.parent / f"{tmp_path.name}-whole"
    for path in whole.iterdir():
        assert path.read_bytes() == (cut / path.name).read_bytes(), path.name


def test_a_run_goes_on_when_its_photographs_have_moved(run_options, tmp_path, capsys):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        save_image(torch.rand(3, 40, 50), tmp_path / name / "photo.png")
    options = ["--domain", "mnistm", "--photos", str(tmp_path / "here"), "--out_dir", str(tmp_path / "run")]
    cogan.main([*run_options, *options, "--n_epochs", "1"])
    (tmp_path / "here").rename(tmp_path / "gone")
    options = ["--resume", str(tmp_path / "run" / "checkpoint.pt"), "--n_epochs", "2"]
    with pytest.raises(SystemExit) as stop:
        cogan.main(options)
    assert stop.value.code == 2 and "takes a folder" in capsys.readouterr().err
    cogan.main([*options, "--photos", str(tmp_path / "there")])
    assert f"patches cut from {tmp_path / 'there'}" in capsys.readouterr().err


def test_shared_layers_pull_the_pairs_together():
    """One step of domain 1 alone moves domain 2 when layers are tied, and does not when none is."""
    for tied, moves in ((4, True), (0, False)):
        G, D, opt_G, opt_D, args = networks(cogan, options=["--shared_g", str(tied)])
        z = torch.randn(8, 16)
        G.eval()
        before = G(z)[1]
        G(z)[0].mean().backward()
        opt_G.step()
        assert torch.equal(before, G(z)[1]) != moves


@pytest.mark.parametrize("dataset", ["folder", "mnist"])
@pytest.mark.parametrize("domain", ["rotate", "edge", "negative", "mnistm"])
def test_every_domain_runs_on_every_kind_of_data(domain, dataset, tmp_path, run_options):
    (tmp_path / "data").mkdir()
    for i, image in enumerate(torch.rand(12, 3, 16, 16)):
        save_image(image, tmp_path / "data" / f"{i}.png")
    options = [*run_options, "--n_epochs", "1", "--domain", domain, "--out_dir", str(tmp_path / "run")]
    options += ["--dataset", str(tmp_path / "data"), "--batch_size", "6"] if dataset == "folder" else []
    cogan.main(options)
    G = cogan.load_generator(tmp_path / "run" / "checkpoint.pt")
    x1, x2 = G(torch.randn(2, G.latent_dim))
    colour = 3 if dataset == "folder" else 1
    assert x1.shape == (2, colour, 8, 8) and x2.shape == (2, 3 if domain == "mnistm" else colour, 8, 8)


def test_a_run_says_where_its_patches_come_from(tmp_path, run_options, capsys):
    options = [*run_options, "--n_epochs", "1", "--domain", "mnistm", "--out_dir", str(tmp_path / "run")]
    cogan.main(options)
    assert "drawn clouds" in capsys.readouterr().err
    save_image(torch.rand(3, 40, 50), tmp_path / "photo.png")
    cogan.main([*options, "--photos", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("argv, sentence", [
    (["--domain", "upside_down"], "invalid choice"), (["--shared_g", "5"], "between 0 and 4"),
    (["--shared_g", "4", "--domain", "negative"], "between 0 and 3"),
    (["--shared_g", "5", "--domain", "rotate"], "between 0 and 4"),
    (["--shared_g", "5", "--domain", "mnistm"], "between 0 and 4"),
    (["--shared_d", "4", "--domain", "mnistm"], "--shared_d between 0 and 3"),
    (["--shared_d", "5", "--domain", "rotate"], "--shared_d between 0 and 4"),
    (["--shared_d", "-1"], "between 0 and 3"), (["--domain", "mnistm", "--photos", "nowhere"], "takes a folder"),
    (["--domain", "mnistm", "--photos", "EMPTY"], "holds no images"), (["--img_size", "2"], "multiple of 4"),
    (["--photos", "EMPTY"], "with --domain mnistm"), (["--batch_size", "101"], "more than the 100 images")])
def test_wrong_options_end_with_one_sentence(argv, sentence, run_options, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    argv = [str(tmp_path / "empty") if word == "EMPTY" else word for word in argv]
    with pytest.raises(SystemExit) as stop:
        cogan.main([*run_options, "--out_dir", str(tmp_path / "run"), *argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
