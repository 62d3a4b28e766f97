"""The pictures of the README: a corner of the grid of every checkpoint, side by side, titled.

    python tests/montage.py assets/strip.png runs/*/checkpoint.pt

Each is titled with its script or with the value of the option that --label names.
"""
import argparse
import importlib
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def corner(path, n):
    """The n x n first images of the picture that a checkpoint's script draws, (n * n, 3, H, W); its options."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    module = importlib.import_module(saved["script"])
    args = module.parse_args([], saved["args"])
    D = module.Discriminator(**module.setup(args, "cpu")[2])
    D.load_state_dict(saved["D"])
    picture = module.sample(module.load_generator(path), D.eval(), args)
    images, columns = picture["images"], picture["n_columns"]
    chosen = [row * columns + column for row in range(n) for column in range(n)]
    return images[chosen].expand(-1, 3, -1, -1), {"script": saved["script"], **saved["args"]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="the PNG to write")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--label", default="script", help="the option whose value is a picture's title")
    parser.add_argument("--n", type=int, default=4, help="rows and columns of images of each")
    parser.add_argument("--columns", type=int, default=8, help="pictures in a row")
    options = parser.parse_args(argv)
    columns = min(options.columns, len(options.checkpoints))
    rows = -(-len(options.checkpoints) // columns)
    figure = Figure((0.3 * options.n * columns, (0.3 * options.n + 0.16) * rows), dpi=120, layout="constrained")
    for axes, path in zip(figure.subplots(rows, columns, squeeze=False).flat, options.checkpoints):
        images, told = corner(path, options.n)
        grid = make_grid(images, options.n, 1, normalize=True, value_range=(-1, 1), pad_value=0.5)
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(str(told[options.label]).replace("_", " "), fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.savefig(options.picture)


if __name__ == "__main__":
    main()
