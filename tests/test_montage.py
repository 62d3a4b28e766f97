"""The pictures of the README are corners of the scripts' own grids, or all grids of a run."""
import montage
import pytest
import torch
from matplotlib import image
from PIL import Image

import acgan
import cogan
import infogan
from common import save_grid


@pytest.fixture(scope="module")
def checkpoints(run_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for module in (acgan, infogan, cogan):
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


def test_corner_is_that_of_the_script_s_grid(checkpoints):
    images, told = montage.corner(checkpoints["cogan"], 4)
    assert images.shape == (16, 3, 8, 8) and told["script"] == "cogan" and told["domain"] == "edge"
    G = cogan.load_generator(checkpoints["cogan"])
    picture = cogan.sample(G, None, cogan.parse_args([]))
    grid = picture["images"].unflatten(0, (4, 16))  # rows x1, x1, x2, x2
    assert torch.equal(images[:, :1], grid[:, :4].flatten(0, 1))


def test_montage_is_one_titled_picture(checkpoints, tmp_path):
    paths = [str(path) for path in checkpoints.values()]
    montage.main([str(tmp_path / "row.png"), *paths, "--n", "3"])
    options = ["--n", "3", "--columns", "1", "--label", "latent_dim"]
    montage.main([str(tmp_path / "column.png"), *paths, *options])
    row, column = (image.imread(tmp_path / name) for name in ("row.png", "column.png"))
    assert row.shape[1] == pytest.approx(3 * column.shape[1], abs=3)
    assert column.shape[0] == pytest.approx(3 * row.shape[0], abs=3)
    assert row[..., :3].std() > 0.1


def test_mistakes_with_a_strip_get_one_sentence(checkpoints, tmp_path, capsys):
    picture = tmp_path / "strip.png"
    checkpoint = checkpoints["cogan"]
    assert "not a checkpoint" in fails([picture, tmp_path / "none.pt"], capsys)
    (tmp_path / "empty.pt").touch()
    assert "not a checkpoint" in fails([picture, tmp_path / "empty.pt"], capsys)
    error = fails([picture, checkpoint, "--n", 5], capsys)  # as with a grid of few classes
    assert "4 rows and 16 columns" in error and "at most 4" in error
    assert "--n must be at least 1" in fails([picture, checkpoint, "--n", 0], capsys)
    assert "no option --nosuch" in fails([picture, checkpoint, "--label", "nosuch"], capsys)
    assert "at least one checkpoint" in fails([picture], capsys)
    assert ".png" in fails([checkpoint, checkpoint], capsys)
    fails([tmp_path / "no" / "strip.png", checkpoint], capsys)
    assert not picture.exists()


def frames(path):
    """The frames of a GIF in RGB, and the time of each."""
    with Image.open(path) as gif:
        made = []
        for i in range(gif.n_frames):
            gif.seek(i)
            made.append((gif.convert("RGB"), gif.info["duration"]))
    return made


def test_animation_shows_the_first_rows_of_every_numbered_grid_in_order(run_folder, tmp_path):
    path = tmp_path / "training.gif"
    options = ["--rows", "2", "--colours", "256", "--milliseconds", "120"]
    montage.main([str(run_folder), "--gif", str(path), *options])
    made = frames(path)
    assert [duration for _, duration in made] == [120, 120, 2000]
    for (picture, _), step in zip(made, (2, 10, 100)):
        # a dot for each pixel: 4 columns and 2 rows of 8, 2 of grey around each; above, the caption
        assert picture.size == (4 * 10 + 2, 16 + 2 * 10 + 2)
        levels = ((torch.linspace(-1, 0.9, 24) * step / 100 + 1) * 127.5).round()
        for i in range(8):
            row, column = divmod(i, 4)
            place = 2 + 10 * column + 4, 16 + 2 + 10 * row + 4
            assert picture.getpixel(place)[0] == pytest.approx(levels[i].item(), abs=3)


def test_animation_of_every_other_grid_keeps_the_last(run_folder, tmp_path):
    path = tmp_path / "training.gif"
    montage.main([str(run_folder), "--gif", str(path), "--every", "2", "--rows", "9"])
    made = frames(path)
    assert len(made) == 2 and made[0][0].size == (42, 16 + 6 * 10 + 2)
    montage.main([str(run_folder), "--gif", str(path), "--every", "2", "--scale", "1"])
    last = frames(path)[-1][0]
    assert last.size == (84, 16 + 4 * 20 + 4)
    assert last.getpixel((10, 16 + 10))[0] == pytest.approx(0, abs=3)  # step 100: -1 is black


def test_captions_between_rows_are_not_rows(tmp_path):
    images = torch.linspace(-1, 0.9, 12)[:, None, None, None].expand(-1, 1, 8, 8)
    path = tmp_path / "grid.png"
    save_grid(path, images, 4, captions=["3: 5"] * 12)
    page = Image.open(path).convert("RGB")
    left, top, right, bottom = montage.box_of_rows(page, 2)
    assert bottom - top == 2 * 16 * 2 + 4  # a gap of 8 pixels above each row of 8, 2 dots a pixel
    assert right - left == 2 * (4 * 16 + 8)


def test_mistakes_with_an_animation_get_one_sentence(run_folder, tmp_path, capsys):
    path = tmp_path / "training.gif"
    gif = ["--gif", path]
    assert "not the folder" in fails([tmp_path / "none", *gif], capsys)
    assert "has 0 numbered grids" in fails([tmp_path, *gif], capsys)
    assert "one folder" in fails([run_folder, run_folder, *gif], capsys)
    assert "--colours" in fails([run_folder, *gif, "--colours", 1], capsys)
    assert "--scale" in fails([run_folder, *gif, "--scale", 0], capsys)
    assert "--every" in fails([run_folder, *gif, "--every", 0], capsys)
    assert "KB" in fails([run_folder, *gif, "--limit", 0], capsys)
    assert not path.exists()
    (run_folder / "100.png").write_bytes(b"no picture")
    fails([run_folder, *gif], capsys)
