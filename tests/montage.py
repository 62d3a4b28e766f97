"""The pictures of the README: corners of several runs' grids, or one run as an animation.

    python tests/montage.py assets/strip.png runs/*/checkpoint.pt
    python tests/montage.py runs/dcgan --gif assets/training.gif

Each corner is titled with its script or with the value of the option that --label names. The
animation shows the numbered grids of a run's folder, in which the same z are drawn at every step.
"""
import argparse
import importlib
import io
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError  # noqa: E402

GREY = 127, 128  # what save_grid puts between two images, rounded down or up
SMALLEST_IMAGE = 15  # fewer dots than an image of 8 pixels has; a caption has no more
FRAME = 4  # dots of grey around the images


def corner(path, n):
    """Draw the picture of a checkpoint's script; return its n x n first images and its options.

    The images are (n * n, 3, H, W).
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        script = saved["script"]
    except Exception as error:  # torch.load answers a damaged or foreign file in a dozen ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a checkpoint: {reason}") from error
    module = importlib.import_module(script)
    args = module.parse_args([], saved["args"])
    D = None
    if script == "acgan":  # its picture tells what D sees
        config = saved["config_G"]
        img_shape = tuple(config["img_shape"])
        D = module.Discriminator(img_shape, len(config["classes"]), config["width"])
        D.load_state_dict(saved["D"])
        D.eval()
    picture = module.sample(module.load_generator(path), D, args)
    images = picture["images"]
    n_columns = picture["n_columns"]
    n_rows = len(images) // n_columns
    if n > min(n_rows, n_columns):
        raise UserError(
            f"the grid of {path} has {n_rows} rows and {n_columns} columns; "
            f"--n must be at most {min(n_rows, n_columns)}, not {n}."
        )
    chosen = [row * n_columns + column for row in range(n) for column in range(n)]
    return images[chosen].expand(-1, 3, -1, -1), {"script": script, **saved["args"]}


def strip(options, picture, checkpoints):
    """Save the corners of the checkpoints' grids as one picture."""
    if Path(picture).suffix.lower() != ".png":
        raise UserError(f"the first path is the picture to write, a .png, not {picture}.")
    corners = [corner(path, options.n) for path in checkpoints]
    n_columns = min(options.columns, len(corners))
    n_rows = -(-len(corners) // n_columns)
    side = 0.3 * options.n  # inches
    size = side * n_columns, (side + 0.16) * n_rows
    figure = Figure(size, dpi=120, layout="constrained")
    places = figure.subplots(n_rows, n_columns, squeeze=False).flat
    for axes, (images, told) in zip(places, corners):
        if options.label not in told:
            raise UserError(f"{told['script']}.py has no option --{options.label}.")
        grid = make_grid(images, options.n, 1, normalize=True, value_range=(-1, 1), pad_value=0.5)
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(str(told[options.label]).replace("_", " "), fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.savefig(picture)


def box_of_rows(page, n_rows):
    """Find the first rows of images on a page of save_grid: left, top, right, bottom in dots."""
    is_gap = np.isin(np.asarray(page), GREY).all(2)
    n_in_line = is_gap.sum(1)
    across = np.flatnonzero(n_in_line == n_in_line.max())  # lines that cross the whole grid
    dots = np.flatnonzero(is_gap[across[0]])
    # an image row lies between two such lines that are far apart
    ends = across[1:][np.diff(across) > SMALLEST_IMAGE]
    if not len(ends):
        raise UserError("the pictures of the run are not grids of images.")
    bottom = ends[min(n_rows, len(ends)) - 1] + FRAME
    return int(dots[0]), int(across[0]), int(dots[-1]) + 1, int(bottom)


def frame(page, box, scale, caption):
    """Cut the box out of a page, scale it, and put a caption above it."""
    image = page.crop(box)
    size = [max(1, round(side * scale)) for side in image.size]
    image = image.resize(size, Image.Resampling.BOX)
    strip_height = 16
    framed = Image.new("RGB", (image.width, image.height + strip_height), "white")
    framed.paste(image, (0, strip_height))
    font = ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 11)
    ImageDraw.Draw(framed).text((2, 1), caption, "black", font)
    return framed


def animation(options, folder):
    """Save the numbered grids of a run's folder as a GIF of at most --limit kilobytes."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not the folder of a run.")
    grids = [path for path in Path(folder).glob("*.png") if path.stem.isdecimal()]
    grids.sort(key=lambda path: int(path.stem))
    if len(grids) < 2:
        raise UserError(f"{folder} has {len(grids)} numbered grids; an animation needs two.")
    # from the last one backwards, so that the result of the training is shown
    grids = grids[::-1][:: options.every][::-1]
    pages = [Image.open(path).convert("RGB") for path in grids]
    box = box_of_rows(pages[-1], options.rows)
    frames = [
        frame(page, box, options.scale, f"step {int(path.stem)}")
        for path, page in zip(grids, pages)
    ]
    # one palette for all: that of the first, the middle and the last frame
    width, height = frames[0].size
    together = Image.new("RGB", (width, 3 * height))
    for i, chosen in enumerate((frames[0], frames[len(frames) // 2], frames[-1])):
        together.paste(chosen, (0, i * height))
    palette = together.quantize(options.colours)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    file = io.BytesIO()
    durations = [options.milliseconds] * (len(frames) - 1) + [2000]  # the last one stays
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    size = len(file.getvalue()) / 1000
    if size > options.limit:
        raise UserError(
            f"{len(frames)} frames of {width}x{height} make {size:.0f} KB, more than --limit "
            f"{options.limit}; lower --rows, --scale or --colours, or raise --every."
        )
    Path(options.gif).write_bytes(file.getvalue())
    print(f"{options.gif}: {len(frames)} frames of {width}x{height}, {size:.0f} KB")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="montage.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("paths", nargs="+", help="the PNG to write and checkpoints; with --gif, a run's folder")
    add("--label", default="script", help="the option whose value is a corner's title")
    add("--n", type=int, default=4, help="rows and columns of images of each corner")
    add("--columns", type=int, default=8, help="corners in a row")
    add("--gif", metavar="FILE", help="write an animation of a run")
    add("--every", type=int, default=1, help="gif: take every n-th grid, from the last backwards")
    add("--rows", type=int, default=4, help="gif: rows of images to show")
    add("--scale", type=float, default=0.5, help="gif: the size; 0.5 is a dot for each pixel")
    add("--colours", type=int, default=32, help="gif: size of the palette")
    add("--milliseconds", type=int, default=150, help="gif: time of a frame; the last one has 2000")
    add("--limit", type=int, default=500, help="gif: most kilobytes")
    options = parser.parse_args(argv)
    try:
        for name in ("n", "columns", "every", "rows", "milliseconds"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}.")
        if not 0 < options.scale <= 4:
            raise UserError(f"--scale must be above 0 and at most 4, not {options.scale}.")
        if not 2 <= options.colours <= 256:
            raise UserError(f"--colours must be from 2 to 256, not {options.colours}.")
        if options.gif and len(options.paths) > 1:
            raise UserError("--gif takes one folder.")
        if options.gif:
            animation(options, options.paths[0])
        elif len(options.paths) < 2:
            raise UserError("name the PNG to write and at least one checkpoint.")
        else:
            strip(options, options.paths[0], options.paths[1:])
    except (UserError, OSError) as error:
        parser.exit(2, f"montage.py: {error}\n")


if __name__ == "__main__":
    main()
