"""The pictures of the README: corners of several runs' grids, or one run as an animation.

    python tests/montage.py assets/strip.png runs/*/checkpoint.pt
    python tests/montage.py runs/dcgan --gif assets/training.gif --every 2

Each corner is titled with its script. The animation shows the numbered grids of a run's folder, in
which the same z are drawn at every step.
"""
import argparse
import io
import sys
from pathlib import Path

import numpy as np
import score
from matplotlib import get_data_path
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import make_grid

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError  # noqa: E402

CORNER = 4  # rows and columns of images
GREY = 127, 128  # what save_grid puts between two images, rounded down or up
SMALLEST_IMAGE = 15  # fewer dots than an image of 8 pixels has; a caption has no more
FRAME = 4  # dots of grey around the images
MOST_KILOBYTES = 500  # of an animation
N_COLOURS = 128  # with 64, a run on CIFAR-10 loses a tenth of its chroma


def corner(path):
    """Draw the picture of a checkpoint's script; return the script and the first images.

    The images are (rows * columns, 3, H, W), both at most CORNER.
    """
    saved, module, G = score.load_run(path)
    D = None
    if saved["script"] == "acgan":  # its picture tells what D sees
        config = saved["config_G"]
        img_shape = tuple(config["img_shape"])
        D = module.Discriminator(img_shape, len(config["classes"]), config["width"])
        D.load_state_dict(saved["D"])
        D.eval()
    picture = module.sample(G, D, module.parse_args([], saved["args"]))
    grid = picture["images"].unflatten(0, (-1, picture["n_columns"]))
    images = grid[:CORNER, :CORNER].flatten(0, 1)
    return saved["script"], images.expand(-1, 3, -1, -1)


def strip(picture, checkpoints):
    """Save the corners of the checkpoints' grids as one picture."""
    if Path(picture).suffix.lower() != ".png":
        raise UserError(f"the first path is the picture to write, a .png, not {picture}.")
    corners = [corner(path) for path in checkpoints]
    side = 0.3 * CORNER  # inches
    figure = Figure((side * len(corners), side + 0.16), dpi=120, layout="constrained")
    for axes, (script, images) in zip(figure.subplots(1, len(corners), squeeze=False)[0], corners):
        grid = make_grid(images, CORNER, 1, normalize=True, value_range=(-1, 1), pad_value=0.5)
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(script.replace("_", " "), fontsize=8)
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


def frame(page, box, caption):
    """Cut the box out of a page, at a dot for each pixel, and put a caption above it."""
    image = page.crop(box).reduce(2)
    strip_height = 16
    framed = Image.new("RGB", (image.width, image.height + strip_height), "white")
    framed.paste(image, (0, strip_height))
    font = ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 11)
    ImageDraw.Draw(framed).text((2, 1), caption, "black", font)
    return framed


def animation(options, folder):
    """Save the numbered grids of a run's folder as a GIF."""
    grids = [path for path in Path(folder).glob("*.png") if path.stem.isdecimal()]
    grids.sort(key=lambda path: int(path.stem))
    if len(grids) < 2:
        raise UserError(f"{folder} has {len(grids)} numbered grids; an animation needs two.")
    # from the last one backwards, so that the result of the training is shown
    grids = grids[::-1][:: options.every][::-1]
    pages = [Image.open(path).convert("RGB") for path in grids]
    box = box_of_rows(pages[-1], options.rows)
    frames = [frame(page, box, f"step {int(path.stem)}") for path, page in zip(grids, pages)]
    # one palette for all, of every other dot each way; without k-means it would be washed out
    dots = np.concatenate([np.asarray(image)[::2, ::2] for image in frames])
    palette = Image.fromarray(dots).quantize(N_COLOURS, kmeans=100)  # until so few dots change
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    file = io.BytesIO()
    durations = [150] * (len(frames) - 1) + [2000]  # milliseconds; the last one stays
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    width, height = frames[0].size
    told = f"{len(frames)} frames of {width}x{height}, {len(file.getvalue()) / 1000:.0f} KB"
    if len(file.getvalue()) > 1000 * MOST_KILOBYTES:
        raise UserError(f"{told}: more than {MOST_KILOBYTES}; lower --rows or raise --every.")
    Path(options.gif).write_bytes(file.getvalue())
    print(f"{options.gif}: {told}")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="montage.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("paths", nargs="+", help="the PNG to write and checkpoints; with --gif, a run's folder")
    add("--gif", metavar="FILE", help="write an animation of a run")
    add("--every", type=int, default=1, help="gif: take every n-th grid, from the last backwards")
    add("--rows", type=int, default=4, help="gif: rows of images to show (default: 4)")
    options = parser.parse_args(argv)
    try:
        if min(options.every, options.rows) < 1:
            raise UserError("--every and --rows must be at least 1.")
        if options.gif and len(options.paths) > 1:
            raise UserError("--gif takes one folder.")
        if not options.gif and len(options.paths) < 2:
            raise UserError("name the PNG to write and at least one checkpoint.")
        if options.gif:
            animation(options, options.paths[0])
        else:
            strip(options.paths[0], options.paths[1:])
    except (UserError, OSError) as error:
        parser.exit(2, f"montage.py: {error}\n")


if __name__ == "__main__":
    main()
