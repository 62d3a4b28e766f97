"""The pictures of the README are the corners of the scripts' own grids."""
import montage
import pytest
import torch
from matplotlib import image

import acgan
import cogan
import infogan


@pytest.fixture(scope="module")
def checkpoints(run_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for module in (acgan, infogan, cogan):
        module.main([*run_options, "--n_epochs", "1", "--out_dir", str(folder / module.__name__)])
    return {path.parent.name: path for path in sorted(folder.glob("*/checkpoint.pt"))}


def test_corner_is_that_of_the_script_s_grid(checkpoints):
    images, told = montage.corner(checkpoints["cogan"], 4)
    assert images.shape == (16, 3, 8, 8) and told["script"] == "cogan" and told["domain"] == "edge"
    picture = cogan.sample(cogan.load_generator(checkpoints["cogan"]), None, cogan.parse_args([]))
    grid = picture["images"].unflatten(0, (4, 16))  # rows x1, x1, x2, x2
    assert torch.equal(images[:, :1], grid[:, :4].flatten(0, 1))


def test_montage_is_one_titled_picture(checkpoints, tmp_path):
    paths = [str(path) for path in checkpoints.values()]
    montage.main([str(tmp_path / "row.png"), *paths, "--n", "3"])
    montage.main([str(tmp_path / "column.png"), *paths, "--n", "3", "--columns", "1", "--label", "latent_dim"])
    row, column = (image.imread(tmp_path / name) for name in ("row.png", "column.png"))
    assert row.shape[1] == pytest.approx(3 * column.shape[1], abs=3)
    assert column.shape[0] == pytest.approx(3 * row.shape[0], abs=3)
    assert row[..., :3].std() > 0.1
