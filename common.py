"""What the eight scripts share: data loading, device selection and image grids.

    data = load_data("mnist")                                  # Data(name, images, labels, classes)
    for x, y in batches(data, 64): ...                         # one epoch: x in [-1, 1], y int64
    save_grid("grid.png", x, n_columns=8)

Every error that a user can cause is an OSError or a UserError whose message is one sentence.
"""
import atexit
import contextlib
import datetime
import functools
import itertools
import math
import os
import socket
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

# Nothing here needs a backend, but matplotlib does not import where MPLBACKEND names one that is
# not installed. A notebook sets it for every program that it starts: drop a name that is unknown.
if "matplotlib" not in sys.modules:
    backend = os.environ.pop("MPLBACKEND", "")
    import matplotlib

    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
            os.environ["MPLBACKEND"] = backend

import numpy as np
import torch
from matplotlib import get_data_path
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import distributed
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import pil_to_tensor, resize

TORCHVISION = {
    "mnist": datasets.MNIST,
    "fashion": datasets.FashionMNIST,
    "cifar10": datasets.CIFAR10,
}
# what torchvision raises where it can't download or read a dataset
TORCHVISION_ERRORS = (
    OSError,
    HTTPException,
    RuntimeError,
    ValueError,
    AssertionError,
    LookupError,
    EOFError,
)
DOWNLOAD_TIMEOUT = 5  # seconds that a server may stay silent before the download is given up
JOIN_TIMEOUT = datetime.timedelta(hours=2)  # the first process may download meanwhile
FOLDER_SIZE = 64  # the side of a folder's images when none is asked for
CLASSES_LISTED = 12  # how many classes the line about the data lists
FILES_LISTED = 10  # how many damaged files a message names
# Pillow recognises these formats but cannot decode them without another program
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# what turns an image upright, by its EXIF orientation
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The text faces whose digits are the same in every matplotlib from 3.9 on. cmti10 came with 3.11,
# and a 2 of DejaVu Serif's italics depends on the version.
FACES = [
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmr10",
    "cmss10",
    "cmtt10",
]


class UserError(ValueError):
    """A user's mistake; the message is the sentence that tells it."""


class Data(NamedTuple):
    """A whole dataset, resident on one device."""

    name: str  # what --dataset resolved to: "auto" becomes "mnist" or "glyphs"
    images: torch.Tensor  # (n, C, H, W) uint8
    labels: torch.Tensor  # (n,) int64, indices into classes
    classes: list[str]  # one name per class; a single class where the data has no labels


def load_data(
    dataset="auto", data_dir="data", img_size=None, device="cpu", seed=0, train=True, check=None, labelled=False
):
    """Load a whole dataset onto the device and print one line that describes it.

    Args:
        dataset: one of
            "mnist", "fashion", "cifar10": downloaded through torchvision unless under data_dir;
            "glyphs": drawn on the spot, see draw_glyphs;
            a folder of images: one subfolder per class, or none; where it holds the folders train
                and test (or val), these are the training and the test set;
            "auto": MNIST or, where it can't be had, glyphs, which a line on stderr then says.
        data_dir: where torchvision's datasets are, or are put.
        img_size: side of the square that images are cropped and resized to; None keeps the
            dataset's own, which is 64 for a folder.
        device: where the tensors go.
        seed: decides the glyphs; the other datasets ignore it.
        train: the training set, else the test set.
        check: called as check(n_images, classes) before the images of a folder are decoded, so
            that it can refuse them with a UserError at once.

    Returns:
        Data; images (n, C, H, W) uint8, where a folder whose images are all grey has C = 1.

    Raises:
        OSError: the data can't be had, or files of it are damaged (the message names them).
        UserError: the dataset is unknown or has no test set, or img_size is not positive.
    """
    check = check or (lambda n_images, classes: None)
    if dataset == "":
        raise UserError("the dataset is empty; name one, or a folder of images.")
    if img_size is not None and img_size < 1:
        raise UserError(f"the image size must be positive, not {img_size}.")

    name = "mnist" if dataset == "auto" else dataset
    left_out = []
    if name in TORCHVISION:
        try:
            images, labels, classes = _load_torchvision(name, data_dir, train)
        except ConnectionError as error:
            if dataset != "auto":
                folder, files = _torchvision_files(TORCHVISION[name], data_dir)
                raise ConnectionError(
                    f"{error}; put its files ({files[0][0]} and so on) into {folder}, "
                    "or take --dataset glyphs."
                ) from error
            name = "glyphs"
            print(f"{error}: training on drawn digits (--dataset glyphs).", file=sys.stderr)
    if name in TORCHVISION:
        check(len(images), classes)
    elif name == "glyphs":
        n_images = 60000 if train else 10000
        classes = [str(digit) for digit in range(10)]
        check(n_images, classes)
        images, labels = draw_glyphs(n_images, seed=2 * seed + (not train))
    else:
        folder = Path(name).expanduser()
        side = img_size or FOLDER_SIZE
        images, labels, classes, left_out = _load_folder(folder, side, train, check)

    if img_size and img_size != images.shape[-1]:
        images = _resize_all(images, img_size)
    data = Data(name, images.to(device), labels.to(device), classes)
    _print_summary(data, left_out)
    return data


def batches(data, batch_size, seed=0, step=0):
    """Batches without end, from that step on: the images in another order in every epoch.

    An epoch has no incomplete batch. A process of torchrun gets its share of every batch.

    Yields:
        x (batch_size, C, H, W) float32 in [-1, 1] and y (batch_size,) int64, on the data's device.

    Raises:
        UserError: the processes can't have equal shares of at least two images.
    """
    rank, n_processes = process_rank(), process_count()
    if batch_size % n_processes or batch_size < 2 * n_processes:
        raise UserError(f"{n_processes} processes can't share --batch_size {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    n_batches = len(data.images) // batch_size
    for epoch in itertools.count():
        order = torch.randperm(len(data.images), generator=generator).to(data.images.device)
        first = max(0, step - epoch * n_batches)
        for index in order.split(batch_size)[first:n_batches]:
            index = index[rank::n_processes]
            yield data.images[index] * (2 / 255) - 1, data.labels[index]


def is_parallel():
    """Whether torchrun has started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def process_rank():
    """The number of this process among those that torchrun has started; 0 without torchrun."""
    return int(os.environ["RANK"]) if is_parallel() else 0


def process_count():
    """The number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if is_parallel() else 1


def get_device(cuda):
    """The CUDA device if it is wanted and there is one, else the CPU; a mismatch goes to stderr.

    A process of torchrun joins the others and gets a device of its own. From then on, every step of
    an optimizer first averages the gradients over the processes; only the first one prints.
    """
    available = torch.cuda.is_available()
    if process_rank() > 0:
        sys.stdout = open(os.devnull, "w")
    elif cuda and not available:
        print("No CUDA device was found: training on the CPU.", file=sys.stderr, flush=True)
    elif available and not cuda:
        print("This machine has a CUDA device: --cuda trains on it.", file=sys.stderr, flush=True)
    device = torch.device("cuda" if cuda and available else "cpu")
    if is_parallel() and not distributed.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=JOIN_TIMEOUT)
        atexit.register(distributed.destroy_process_group)
        register_optimizer_step_pre_hook(_average_gradients)
    return device


def load_image(path, size):
    """Load an image file as a square: upright, in colour, its centre cropped and resized.

    Transparent pixels show the white page that they would lie on. Grey images of 16 bits or of
    floats are scaled from their type's range.

    Returns:
        (3, size, size) uint8.

    Raises:
        OSError: the file can't be read as an image; the message names it.
    """
    image, _ = _open_image(path)
    return _to_square(image, size)


def save_grid(path, images, n_columns, title="", rows=(), columns=(), captions=()):
    """Save images as one PNG, row by row.

    Any label can be drawn: it is taken literally, and a box stands for a character that the font
    does not have.

    Args:
        path: the file.
        images: (n, C, H, W) in [-1, 1], C = 1 or 3.
        n_columns: images per row.
        title: a line above the grid.
        rows, columns, captions: a label for each row, for each column, for each image, or none.
    """
    n, _, height, width = images.shape
    n_columns = min(n_columns, n)
    n_rows = math.ceil(n / n_columns)
    gap = 8 if captions else 2  # pixels between two images
    scale = 2  # dots per pixel
    levels = ((images.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).byte()
    grid_size = gap + n_rows * (height + gap), gap + n_columns * (width + gap)
    grid = torch.full((*grid_size, 3), 128, dtype=torch.uint8)
    corners = []  # of each image in the grid, in pixels
    for i, image in enumerate(levels.expand(-1, 3, -1, -1)):
        row, column = divmod(i, n_columns)
        y, x = gap + row * (height + gap), gap + column * (width + gap)
        grid[y : y + height, x : x + width] = image.permute(1, 2, 0)
        corners.append((x, y))
    dots = grid.repeat_interleave(scale, 0).repeat_interleave(scale, 1)

    font_file = str(_font_file("DejaVuSans"))
    font, small_font = ImageFont.truetype(font_file, 11), ImageFont.truetype(font_file, 10)
    rows, columns = [str(label) for label in rows], [str(label) for label in columns]
    row_widths = [font.getlength(line) for label in rows for line in label.split("\n")]
    column_lines = max((label.count("\n") + 1 for label in columns), default=0)
    margin = 8
    left = margin + (4 + round(max(row_widths)) if rows else 0)
    top = margin + (16 if title else 0) + 14 * column_lines

    page_size = left + dots.shape[1] + margin, top + dots.shape[0] + margin
    page = Image.new("RGB", page_size, "white")
    page.paste(Image.fromarray(dots.numpy()), (left, top))
    draw = ImageDraw.Draw(page)
    # an anchor is the point of the text that lies at the place given: l(eft), m(iddle), r(ight),
    # then a(scender), m(iddle), d(escender)
    draw.text((left, 4), title, "black", font, anchor="la")
    for label, (_, y) in zip(rows, corners[::n_columns]):
        place = left - 4, top + scale * (y + height / 2)
        draw.text(place, label, "black", font, anchor="rm", align="right")
    for label, (x, _) in zip(columns, corners[:n_columns]):
        place = left + scale * (x + width / 2), top - 1
        draw.text(place, label, "black", font, anchor="md", align="center")
    for label, (x, y) in zip(captions, corners):
        place = left + scale * x, top + scale * y - 1
        draw.text(place, str(label), "black", small_font, anchor="ld")
    page.save(path)


def draw_glyphs(n, seed=0):
    """Draw n labelled digits in matplotlib's text faces, white on black, laid out like MNIST.

    Each has its own face, slant, rotation, size, proportions, stroke width, shift and softness of
    the edge. A glyph is kept as its signed distance to the outline: bending it is then one look-up,
    and its stroke width one addition.

    Returns:
        images (n, 1, 28, 28) uint8 and labels (n,) int64, the same for the same n and seed.
    """
    fields = torch.stack([_distance_field(face, digit) for face in FACES for digit in range(10)])
    half_stroke = fields.amax((1, 2))  # from the glyph's deepest point to its outline
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=generator)
    glyph = torch.randint(len(FACES), (n,), generator=generator) * 10 + labels

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=generator)

    # from a point of the image to a point of the glyph, whose height is 1: undo shift, size,
    # rotation and slant in turn
    angle, slant, wide = uniform(-0.2, 0.2), uniform(-0.3, 0.3), uniform(0.8, 1.25)
    per_pixel = 14 / uniform(16, 21)  # the image is 2 wide for 28 pixels, a digit 16 to 21 high
    cos, sin = angle.cos() * per_pixel, angle.sin() * per_pixel
    linear = torch.stack([(cos - slant * sin) * wide, (-sin - slant * cos) * wide, sin, cos], 1)
    linear = linear.view(n, 2, 2)
    shift = torch.stack([uniform(-0.15, 0.15), uniform(-0.15, 0.15)], 1).view(n, 1, 2)
    pixels = _square_of_points(28, 1).view(1, 784, 2)
    stroke, softness = uniform(0.06, 0.13), uniform(0.006, 0.02)

    images = torch.empty(n, 1, 28, 28, dtype=torch.uint8)
    for i in torch.arange(n).split(2000):
        points = (pixels - shift[i]) @ linear[i].mT / 0.8  # the fields cover [-0.8, 0.8]
        points = points.view(-1, 28, 28, 2)
        # nn.functional.grid_sample, bilinear (0), clamped to the border (1), corners aligned
        depth = torch.grid_sampler(fields[glyph[i], None], points, 0, 1, True)
        widen = (stroke[i] - half_stroke[glyph[i]]).view(-1, 1, 1, 1)
        ink = torch.sigmoid((depth + widen) / softness[i].view(-1, 1, 1, 1))
        images[i] = (255 * ink).round().byte()
    return images, labels


def load_patches(n, side, photos=None, seed=0):
    """Cut n colour patches from the photographs in a folder or, without one, from drawn clouds.

    A patch may come from anywhere in a photograph. It shows a square that is side / 256 of the
    photograph's shorter side, or as large as that side if side is above 256.

    Returns:
        patches (n, 3, side, side) uint8, the same for the same arguments.

    Raises:
        OSError: photographs can't be read (the message names them).
        UserError: photos is not a folder, or holds no images.
    """
    generator = torch.Generator().manual_seed(seed)
    size = max(256, side)
    if photos is None:
        coarse_to_fine = [
            torch.randn(100, 3, 2**k, 2**k, generator=generator) for k in range(1, 7)
        ]
        octaves = [resize(noise, [size, size]) for noise in coarse_to_fine]
        clouds = sum(octave / 2 ** (k / 2) for k, octave in enumerate(octaves))
        clouds = (128 + 64 * clouds).clamp(0, 255).byte()
        which = torch.randint(len(clouds), (n,), generator=generator).tolist()
        corners = torch.randint(size - side + 1, (n, 2), generator=generator).tolist()
        places = zip(which, corners)
        return torch.stack([clouds[i, :, y : y + side, x : x + side] for i, (y, x) in places])

    if not Path(photos).is_dir():
        raise UserError(f"{photos} is not a folder of photographs.")
    paths, _ = _find_images(Path(photos))
    which = torch.randint(len(paths), (n,), generator=generator)
    corners = torch.rand(n, 2, generator=generator)
    patches = torch.empty(n, 3, side, side, dtype=torch.uint8)

    def cut(photo, i):
        edge = side / size * min(photo.size)  # of a patch, in the photograph's pixels
        for j in (which == i).nonzero().flatten().tolist():
            left = corners[j, 0].item() * (photo.width - edge)
            upper = corners[j, 1].item() * (photo.height - edge)
            box = left, upper, left + edge, upper + edge
            patch = photo.resize((side, side), Image.Resampling.BILINEAR, box)
            patches[j] = pil_to_tensor(patch)

    used = which.unique().tolist()
    _decode_all([paths[i] for i in used], lambda k, photo: cut(photo, used[k]))
    return patches


def _average_gradients(optimizer, args, kwargs):
    """Average an optimizer's gradients over the processes of torchrun, all in one message."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    means = torch.cat([gradient.flatten() for gradient in gradients]) / process_count()
    distributed.all_reduce(means)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, means.split(sizes)):
        gradient.copy_(mean.view_as(gradient))


@contextlib.contextmanager
def _first_process_first():
    """Let the first process of torchrun leave the block before the others enter it."""
    if process_rank() > 0:
        distributed.barrier()
    try:
        yield
    finally:
        if process_rank() == 0 and process_count() > 1:
            distributed.barrier()


def _font_file(face):
    """The file of a face that matplotlib ships."""
    return Path(get_data_path(), "fonts", "ttf", f"{face}.ttf")


def _square_of_points(side, reach):
    """(side, side, 2) the points (x, y) of a grid over [-reach, reach], y downwards."""
    line = torch.linspace(-reach, reach, side)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


@functools.cache
def _distance_field(face, digit, side=40):
    """The distance to the outline of a digit of height 1, positive inside it.

    Returns:
        (side, side) over [-0.8, 0.8], y downwards, the digit in the middle.
    """
    font = FontProperties(fname=str(_font_file(face)))
    polygons = TextPath((0, 0), str(digit), size=10, prop=font).to_polygons()
    outlines = [torch.from_numpy(polygon).float() for polygon in polygons]
    low, high = torch.cat(outlines).amin(0), torch.cat(outlines).amax(0)
    centre, height = (low + high) / 2, (high - low)[1]
    down = torch.tensor([1.0, -1.0])  # a font's y points upwards
    outlines = [(outline - centre) / height * down for outline in outlines]

    # the segments of the outlines, from start to end
    start = torch.cat([outline[:-1] for outline in outlines])
    end = torch.cat([outline[1:] for outline in outlines])
    along = end - start
    points = _square_of_points(side, 0.8).view(-1, 1, 2)
    # the nearest point of a segment: 0 is its start, 1 its end; some segments have no length
    position = ((points - start) * along).sum(-1) / (along**2).sum(-1).clamp(min=1e-12)
    nearest = start + position.clamp(0, 1)[..., None] * along
    distance = (points - nearest).norm(dim=-1).amin(1)

    # a point is inside if a ray to its right crosses the outlines an odd number of times
    x, y = points.unbind(-1)
    at_this_height = (start[:, 1] > y) != (end[:, 1] > y)
    crossing = start[:, 0] + (y - start[:, 1]) / along[:, 1] * along[:, 0]
    inside = (at_this_height & (x < crossing)).sum(1) % 2 == 1
    return torch.where(inside, distance, -distance).view(side, side)


def _resize_all(images, side):
    """(n, C, H, W) uint8 as (n, C, side, side), a thousand at a time to bound the memory."""
    resized = torch.empty(*images.shape[:2], side, side, dtype=torch.uint8)
    for i in range(0, len(images), 1000):
        resized[i : i + 1000] = resize(images[i : i + 1000], [side, side], antialias=True)
    return resized


def _count(n, one, many=None):
    """A number with its noun: 1 image, 2 images."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _print_summary(data, left_out):
    """Print one line: name, number of images, shape, classes, and what was left out."""
    n, *shape = data.images.shape
    line = f"{data.name}: {_count(n, 'image')} of {'x'.join(map(str, shape))}"
    if len(data.classes) > 1:
        counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
        listed = [f'{i} "{c}" {count}' for i, (c, count) in enumerate(zip(data.classes, counts))]
        if len(listed) > CLASSES_LISTED:
            listed[CLASSES_LISTED:] = ["..."]
        line += f"; {len(data.classes)} classes: {', '.join(listed)}"
    if left_out:
        line += f"; left out: {', '.join(left_out)}"
    # a folder's name may hold control characters, or what the terminal's encoding does not have
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def _load_torchvision(name, data_dir, train):
    """Images (n, C, H, W) uint8, labels (n,) int64 and class names of a dataset of torchvision.

    Raises:
        ConnectionError: it is not there and can't be downloaded.
        OSError: a file of it is damaged.
    """
    kind = TORCHVISION[name]
    timeout = socket.getdefaulttimeout()
    # torchvision sets none, and a silent server would hold the run for ever
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with _first_process_first():  # it may have to download
            data = kind(data_dir, train=train, download=True)
        images = torch.as_tensor(data.data)
        labels = torch.as_tensor(data.targets)
        if len(images) != len(labels):
            raise ValueError("the number of labels is not the number of images")
    except TORCHVISION_ERRORS as error:
        damaged = _damaged_file(kind, data_dir)
        if damaged:
            advice = "delete it, and the next run downloads it again"
            raise OSError(f"{damaged} is damaged; {advice}.") from error
        # torchvision lists its mirrors: the reason of the last one
        reason = " ".join(str(error).split("got:")[-1].split())
        misplaced = _misplaced_files(kind, data_dir)
        raise ConnectionError(
            f"{name} is not under {data_dir}{misplaced} and could not be downloaded ({reason})"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, labels.long(), [label.split(" - ")[0] for label in data.classes]


def _torchvision_files(kind, data_dir):
    """The folder where torchvision expects a dataset, and the name and MD5 of each of its files."""
    if kind is datasets.CIFAR10:
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        return Path(data_dir, kind.base_folder), files
    return Path(data_dir, kind.__name__, "raw"), kind.resources


def _misplaced_files(kind, data_dir):
    """A remark on files of a torchvision dataset that lie near the folder where they belong."""
    expected, files = _torchvision_files(kind, data_dir)
    names = [name for name, _ in files]
    names += [name.removesuffix(".gz") for name in names]
    for folder in (Path(data_dir), Path(data_dir, "raw"), expected.parent):
        if any((folder / name).exists() for name in names):
            return f" (the files in {folder} are expected in {expected})"
    return ""


def _damaged_file(kind, data_dir):
    """The first file of a torchvision dataset that is not what it should be, or None."""
    folder, files = _torchvision_files(kind, data_dir)
    for name, md5 in files:
        path = folder / name
        if path.exists() and not check_integrity(str(path), md5):
            return path
    n_of_set = {}  # "train" or "t10k": how many images, which is also how many labels
    for path in sorted(folder.glob("*-ubyte")):
        read = read_image_file if "images" in path.name else read_label_file
        try:
            n = len(read(str(path)))
        except (OSError, ValueError, AssertionError, LookupError, RuntimeError):
            return path
        if n_of_set.setdefault(path.name.split("-")[0], n) != n:
            return path
    return None


def _load_folder(folder, img_size, train, check):
    """The images of a folder as (n, C, img_size, img_size) uint8, with the subfolders as classes.

    Returns:
        images, labels, classes, and a list that tells what was left out.
    """
    if not folder.is_dir():
        names = ", ".join(TORCHVISION)
        raise UserError(f"{folder} is neither auto, {names}, glyphs nor a folder of images.")
    train_folder, test_folder = _split_folders(folder)
    if not train and test_folder is None:
        raise UserError(f"the folder {folder} has no test set.")
    paths, names, left_out = _find_labelled_images(train_folder)
    classes = sorted(set(names))
    if not train:  # the indices of the classes are the training set's
        paths, names, left_out = _find_labelled_images(test_folder)
        unknown = set(names) - set(classes)
        if unknown:
            name = min(unknown)
            what = f'a class "{name}"' if name else "images without a class"
            raise UserError(f"{test_folder} has {what}, unlike {train_folder}.")
    if test_folder:
        parts = train_folder.name, "test", "val"
        beside = [path for path in _visible(folder) if path.name not in parts]
        if beside:
            what = _count(len(beside), "file or folder", "files and folders")
            left_out.append(f"{what} beside {train_folder.name} and {test_folder.name}")
    check(len(paths), classes)

    images = torch.empty(len(paths), 3, img_size, img_size, dtype=torch.uint8)
    is_grey = torch.empty(len(paths), dtype=torch.bool)

    def keep(i, image):
        images[i] = _to_square(image, img_size)
        is_grey[i] = (images[i] == images[i, :1]).all()

    _decode_all(paths, keep)
    if is_grey.all():
        images = images[:, :1].contiguous()
    index = {name: i for i, name in enumerate(classes)}
    return images, torch.tensor([index[name] for name in names]), classes, left_out


def _split_folders(folder):
    """The folders of the training and of the test set: the folder itself and None, if not split."""
    parts = {}
    for name in ("train", "test", "val"):
        part = folder / name
        if part.is_dir() and any(_is_image(path) for path in _files_below(part)):
            parts[name] = part
    test = parts.get("test", parts.get("val"))
    return (parts["train"], test) if "train" in parts and test else (folder, None)


def _find_labelled_images(folder):
    """The images below a folder, the subfolder of each ("" for none), and what is left out."""
    paths, n_others = _find_images(folder)
    names = ["" if path.parent == folder else path.relative_to(folder).parts[0] for path in paths]
    left_out = []
    if n_others:
        left_out.append(_count(n_others, "file that is not an image", "files that are not images"))
    n_loose = names.count("")
    if 0 < n_loose < len(names):
        paths = [path for path, name in zip(paths, names) if name]
        names = [name for name in names if name]
        left_out.append(f"{_count(n_loose, 'image')} beside the class folders")
    return paths, names, left_out


def _find_images(folder):
    """The images below a folder, at least one, and the number of other files."""
    files = list(_files_below(folder))
    paths = [path for path in files if _is_image(path)]
    if not paths:
        others = f", only {_count(len(files), 'file')} of other kinds" if files else ""
        raise UserError(f"the folder {folder} holds no images{others}.")
    return paths, len(files) - len(paths)


def _files_below(folder, above=()):
    """Yield the files below a folder in order; links to folders are followed, hidden files not."""
    real = folder.resolve()
    if real in above:
        return  # a link to a folder that it lies in
    for path in _visible(folder):
        if path.is_dir():
            yield from _files_below(path, (*above, real))
        elif path.is_file() or path.is_symlink():  # not a socket; a broken link is a missing file
            yield path


def _visible(folder):
    """What lies in a folder, sorted, without hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_image(path):
    """Whether a file's name has the ending of an image."""
    return path.suffix.lower() in _image_suffixes()


@functools.cache
def _image_suffixes():
    """The endings of the formats that Pillow can decode."""
    suffixes = Image.registered_extensions()
    return {s for s, kind in suffixes.items() if kind in Image.OPEN and kind not in NOT_DECODED}


def _decode_all(paths, use):
    """Decode image files in threads and call use(i, image) for each, in any order.

    use stores what it needs, so that an image is in memory only while it is used. On a terminal, a
    live count shows the progress.

    Raises:
        OSError: files can't be read; the message names them all, the first ten by their paths.
    """
    damaged = []

    def decode(i):
        try:
            image, is_transparent = _open_image(paths[i])
        except OSError as error:
            return False, str(error)
        use(i, image)
        return is_transparent, None

    n_transparent = 0
    live = sys.stdout is not None and sys.stdout.isatty()
    try:
        with ThreadPoolExecutor() as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd files that it reads all the same
            for done in range(0, len(paths), 64):  # a short queue, for Ctrl-C and for the count
                if live:
                    print(f"\r{done} of {len(paths)} images", end="", flush=True)
                chunk = range(done, min(done + 64, len(paths)))
                for is_transparent, fault in pool.map(decode, chunk):
                    n_transparent += is_transparent
                    if fault:
                        damaged.append(fault)
    finally:
        if live:
            print(f"\r{' ' * len(f'{len(paths)} of {len(paths)} images')}\r", end="", flush=True)

    if len(damaged) == 1:
        raise OSError(f"{damaged[0]}; take it out of the folder.")
    if damaged:
        listed = damaged[:FILES_LISTED]
        if len(damaged) > FILES_LISTED:
            listed.append(f"and {len(damaged) - FILES_LISTED} more")
        raise OSError(
            f"{len(damaged)} of {len(paths)} files can't be read as images, "
            f"take them out of the folder: {'; '.join(listed)}."
        )
    if n_transparent:
        what = _count(n_transparent, "image has", "images have")
        print(f"{what} transparent pixels: they are laid on white.", file=sys.stderr)


def _open_image(path):
    """An image file as an upright RGB image, and whether parts of it are transparent."""
    try:
        with Image.open(path) as file:
            file.load()
            image = _upright(file)
        if image.mode.startswith(("I", "F")):
            image = _scaled_to_bytes(image, file.format)
        if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
            return image.convert("RGB"), False
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        is_transparent = image.getchannel("A").getextrema()[0] < 255
        return Image.alpha_composite(page, image).convert("RGB"), is_transparent
    except MemoryError:
        raise
    except Exception as error:  # Pillow answers a damaged, huge or foreign file in a dozen ways
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is not that of an image"
        raise OSError(f"{path} can't be read as an image ({reason})") from error


def _upright(image):
    """An image turned as its EXIF orientation says."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the EXIF data is damaged; the pixels are sound
        orientation = None
    if orientation in UPRIGHT:
        return image.transpose(UPRIGHT[orientation])
    return image.copy()  # outlives the file


def _scaled_to_bytes(image, file_format):
    """A grey image of 16-bit integers, or of floats in [0, 1], as one of bytes."""
    if image.mode == "F":
        white = 1
    elif image.mode != "I" or file_format in ("PNG", "PPM"):
        white = 65535
    else:
        raise ValueError("its pixels are 32-bit integers, of which none is known to be white")
    pixels = np.asarray(image, dtype=np.float64) / white
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # not a number is refused, too
        raise ValueError("its pixels are floats outside the range of 0 to 1")
    return Image.fromarray((255 * pixels).round().astype(np.uint8))


def _to_square(image, size):
    """The centre square of an RGB image, resized, as (3, size, size) uint8."""
    return pil_to_tensor(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
