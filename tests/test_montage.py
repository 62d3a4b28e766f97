"""The pictures of the README are corners of the scripts' own grids, or all grids of a run."""
import montage
import numpy as np
import pytest
import torch
from matplotlib import image
from PIL import Image

import acgan
import cogan
from common import save_grid


@pytest.fixture(scope="module")
def checkpoints(run_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for module in (acgan, cogan):
        run = folder / module.__name__
        module.main([*run_options, "--n_epochs", "1", "--out_dir", str(run)])
    return {path.parent.name: path for path in sorted(folder.glob("*/checkpoint.pt"))}


@pytest.fixture
def run_folder(tmp_path):
    """The grids of a run: 24 images of 8x8 in 6 rows, each image of one grey."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (2, 10, 100):  # by the names' order 10 and 100 would come before 2
        levels = torch.linspace(-1, 0.9, 24) * step / 100
        images = levels[:, None, None, None].expand(-1, 1, 8, 8)
        options = {"rows": ["a row's label"] * 6, "title": "a title"}
        save_grid(folder / f"{step:02}.png", images, 4, **options)
    save_grid(folder / "samples.png", images, 4)
    return folder


def fails(argv, capsys):
    """The sentence with which montage.py refuses a command line."""
    with pytest.raises(SystemExit) as stop:
        montage.main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("montage.py: ") and error.count("\n") == 1
    return error


def frames(path):
    """The frames of a GIF in RGB, and the time of each."""
    with Image.open(path) as gif:
        made = []
        for i in range(gif.n_frames):
            gif.seek(i)
            made.append((gif.convert("RGB"), gif.info["duration"]))
    return made


def test_corner_is_that_of_the_script_s_grid(checkpoints):
    script, images = montage.corner(checkpoints["cogan"])
    assert script == "cogan" and images.shape == (16, 3, 8, 8)
    G = cogan.load_generator(checkpoints["cogan"])
    grid = cogan.sample(G, None, cogan.parse_args([]))["images"].unflatten(0, (4, 16))
    assert torch.equal(images[:, :1], grid[:, :4].flatten(0, 1))  # rows x1, x2, x1, x2


def test_strip_is_one_picture_of_all_corners(checkpoints, tmp_path):
    paths = [str(path) for path in checkpoints.values()]
    montage.main([str(tmp_path / "two.png"), *paths])
    montage.main([str(tmp_path / "one.png"), paths[0]])
    two, one = (image.imread(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.shape[1] == pytest.approx(2 * one.shape[1], abs=2)
    assert one[..., :3].std() > 0.1


def test_animation_shows_the_first_rows_of_every_numbered_grid_in_order(run_folder, tmp_path):
    path = tmp_path / "training.gif"
    montage.main([str(run_folder), "--gif", str(path), "--rows", "2"])
    made = frames(path)
    assert [duration for _, duration in made] == [150, 150, 2000]
    for (picture, _), step in zip(made, (2, 10, 100)):
        # a dot for each pixel: 4 columns and 2 rows of 8, 2 of grey around each; above, the caption
        assert picture.size == (4 * 10 + 2, 16 + 2 * 10 + 2)
        levels = ((torch.linspace(-1, 0.9, 24) * step / 100 + 1) * 127.5).round()
        for i in range(8):
            row, column = divmod(i, 4)
            place = 2 + 10 * column + 4, 16 + 2 + 10 * row + 4
            assert picture.getpixel(place)[0] == pytest.approx(levels[i].item(), abs=3)
    montage.main([str(run_folder), "--gif", str(path), "--every", "2", "--rows", "9"])
    made = frames(path)
    assert len(made) == 2 and made[-1][0].size == (42, 16 + 6 * 10 + 2)
    assert made[-1][0].getpixel((5, 16 + 5))[0] == pytest.approx(0, abs=3)  # step 100: -1 is black


def test_animation_keeps_the_colours(tmp_path):
    """Of these, 64 colours, a median cut or a palette of one frame lose more than a tenth."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    for step in range(3):
        coarse = torch.randn(32, 3, 4, 4) * torch.randn(32, 1, 4, 4) * 0.4
        coarse = coarse + torch.randn(32, 1, 4, 4) / 2
        images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(-1, 1)
        save_grid(folder / f"{step}.png", images, 8)
    path = tmp_path / "training.gif"
    montage.main([str(folder), "--gif", str(path)])

    def chroma(picture):
        dots = np.asarray(picture)[-138:].astype(float)
        return (dots.max(2) - dots.min(2)).mean()

    for step, (picture, _) in enumerate(frames(path)):
        page = Image.open(folder / f"{step}.png").convert("RGB")
        source = chroma(page.crop(montage.box_of_rows(page, 4)).reduce(2))
        assert source > 20 and chroma(picture) == pytest.approx(source, rel=0.1)


def test_captions_between_rows_are_not_rows(tmp_path):
    images = torch.linspace(-1, 0.9, 12)[:, None, None, None].expand(-1, 1, 8, 8)
    path = tmp_path / "grid.png"
    save_grid(path, images, 4, captions=["3: 5"] * 12)
    page = Image.open(path).convert("RGB")
    left, top, right, bottom = montage.box_of_rows(page, 2)
    assert bottom - top == 2 * 16 * 2 + 4  # a gap of 8 pixels above each row of 8, 2 dots a pixel
    assert right - left == 2 * (4 * 16 + 8)


def test_a_mistake_gets_one_sentence(checkpoints, run_folder, tmp_path, capsys, monkeypatch):
    picture = tmp_path / "strip.png"
    (tmp_path / "empty.pt").touch()
    assert "not a checkpoint" in fails([picture, tmp_path / "empty.pt"], capsys)
    assert "at least one checkpoint" in fails([picture], capsys)
    assert ".png" in fails([checkpoints["cogan"], checkpoints["cogan"]], capsys)
    fails([tmp_path / "no" / "strip.png", checkpoints["cogan"]], capsys)
    path = tmp_path / "training.gif"
    gif = ["--gif", path]
    assert "has 0 numbered grids" in fails([tmp_path / "none", *gif], capsys)
    assert "one folder" in fails([run_folder, run_folder, *gif], capsys)
    assert "--every" in fails([run_folder, *gif, "--every", 0], capsys)
    monkeypatch.setattr(montage, "MOST_KILOBYTES", 0)
    assert "KB" in fails([run_folder, *gif], capsys)
    assert not picture.exists() and not path.exists()
