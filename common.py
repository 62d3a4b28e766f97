"""What the eight scripts share: data loading, device selection and image grids.

    data = load_data("mnist")                                  # Data(name, images, labels, classes)
    for x, y in islice(batches(data, 64), 1000): ...           # x in [-1, 1], y int64; endless
    save_grid("grid.png", x, n_columns=8)

Every error that a user can cause is an OSError or a UserError whose message is one sentence.
"""
import atexit
import contextlib
import datetime
import functools
import io
import itertools
import math
import os
import re
import socket
import sys
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# Nothing here needs a backend, but matplotlib does not import where MPLBACKEND names one that is
# not installed. A notebook sets it for every program that it starts: drop a name that is unknown.
if "matplotlib" not in sys.modules:
    backend = os.environ.pop("MPLBACKEND", "")
    import matplotlib

    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend
        os.environ["MPLBACKEND"] = backend

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFilter, ImageFont, ImageOps
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
DOWNLOAD_TIMEOUT = 5  # seconds that a server may stay silent before the download is given up
# what torchrun says about this process: its number and how many there are
IS_PARALLEL = distributed.is_available() and distributed.is_torchelastic_launched()
RANK = int(os.environ["RANK"]) if IS_PARALLEL else 0
N_PROCESSES = int(os.environ["WORLD_SIZE"]) if IS_PARALLEL else 1
JOIN_TIMEOUT = datetime.timedelta(hours=2)  # the first process may download meanwhile
CLASSES_LISTED = 12  # in the line about the data
FILES_LISTED = 10  # of those that are damaged, in the message
BILINEAR = Image.Resampling.BILINEAR
N_THREADS = min(8, os.cpu_count() or 1)  # that decode images; each holds one in memory
# Pillow recognises these formats but cannot decode them without another program
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# folders that systems put beside pictures; another is any whose name begins with @
SYSTEM_FOLDERS = {"__macosx", "thumbs", "$recycle.bin"}
# what the folder of a test set may be called; the first that is there counts
TEST_NAMES = "test", "testing", "val", "valid", "validation", "dev"
# The text faces whose digits are the same in every matplotlib from 3.9 on. cmti10 came with 3.11,
# and a 2 of DejaVu Serif's italics depends on the version.
FACES = [
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic",
    "STIXGeneralBolIta", "cmb10", "cmr10", "cmss10", "cmtt10",
]  # fmt: skip


class UserError(ValueError):
    """A user's mistake; the message is the sentence that tells it."""


class Data(NamedTuple):
    """A whole dataset, resident on one device."""

    name: str  # what --dataset resolved to: "auto" becomes "mnist" or "glyphs"
    images: torch.Tensor  # (n, C, H, W) uint8
    labels: torch.Tensor  # (n,) int64, indices into classes
    classes: list[str]  # one name per class; a single class where the data has no labels


def load_data(
    dataset="auto", data_dir="data", img_size=None, device="cpu", seed=0, train=True, labelled=False
):
    """Load a whole dataset onto the device and print one line that describes it.

    Args:
        dataset: "mnist", "fashion" or "cifar10", downloaded unless under data_dir; "glyphs", see
            draw_glyphs; "auto", MNIST or, where it can't be had, glyphs; or a folder of images,
            whose folders train and test, if it has them, are the training and the test set.
        data_dir: where torchvision's datasets are, or are put.
        img_size: the side of the square images; None keeps the dataset's own, 64 for a folder.
        device: where the tensors go.
        seed: decides the glyphs.
        train: the training set, else the test set.
        labelled: take a folder's subfolders as classes and leave out the images beside them, else
            all that is below the folder as one class.

    Returns:
        Data; a folder whose images are all grey has C = 1.
    """
    if img_size is not None and img_size < 1:
        raise UserError(f"the image size must be positive, not {img_size}.")

    left_out = []
    name = "mnist" if dataset == "auto" else dataset
    if name in (*TORCHVISION, "glyphs") and Path(dataset).is_dir():
        _tell(f"--dataset {dataset} is not the folder of this name, which is ./{dataset}.")
    if name in TORCHVISION:
        try:
            images, labels, classes = _load_torchvision(name, data_dir, train)
        except ConnectionError as error:
            if dataset != "auto":
                advice = "put its files there, or take --dataset glyphs"
                raise ConnectionError(f"{error}; {advice}.") from error
            name = "glyphs"
            _tell(f"{error}: training on drawn digits (--dataset glyphs).")
    if name == "glyphs":
        images, labels = draw_glyphs(60000 if train else 10000, seed=2 * seed + (not train))
        classes = [str(digit) for digit in range(10)]
    elif name not in TORCHVISION:
        folder = Path(os.path.expanduser(name)).resolve()  # a checkpoint works from anywhere
        if name == "" or not folder.is_dir():
            names = ", ".join(TORCHVISION)
            raise UserError(f"'{name}' is neither auto, {names}, glyphs nor a folder of images.")
        name = str(folder)
        images, labels, classes, left_out = _load_folder(folder, img_size or 64, train, labelled)

    if img_size and img_size != images.shape[-1]:
        parts = images.split(1000)  # resize takes four bytes for one, or more
        images = torch.cat([resize(part, [img_size, img_size]) for part in parts])
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
    if N_PROCESSES > 1 and (batch_size % N_PROCESSES or batch_size < 2 * N_PROCESSES):
        raise UserError(f"{N_PROCESSES} processes can't share --batch_size {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    n_batches = len(data.images) // batch_size
    if n_batches == 0:
        raise UserError(f"--batch_size {batch_size} is more than the {len(data.images)} images")
    for epoch in itertools.count():
        order = torch.randperm(len(data.images), generator=generator).to(data.images.device)
        first = max(0, step - epoch * n_batches)
        for index in order.split(batch_size)[first:n_batches]:
            index = index[RANK::N_PROCESSES]
            yield data.images[index] * (2 / 255) - 1, data.labels[index]


def get_device(cuda):
    """The CUDA device if it is wanted and there is one, else the CPU; a mismatch goes to stderr.

    A process of torchrun joins the others and gets a device of its own. From then on, every step of
    an optimizer first averages the gradients over the processes; only the first one prints.
    """
    available = torch.cuda.is_available()
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")
    if cuda and not available:
        _tell("No CUDA device was found: training on the CPU.")
    if available and not cuda:
        _tell("This machine has a CUDA device: --cuda trains on it.")
    device = torch.device("cuda" if cuda and available else "cpu")
    if IS_PARALLEL and not distributed.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=JOIN_TIMEOUT)
        atexit.register(distributed.destroy_process_group)
        register_optimizer_step_pre_hook(_average_gradients)
    return device


def load_image(path, size):
    """Load an image file as (3, size, size) uint8: upright, in sRGB, its centre square resized.

    Transparent pixels show the white page that they would lie on. Grey images of 16 bits or of
    floats are scaled from their type's range.
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
    levels = ((images.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).byte()
    # all lengths from here on are in dots, two per pixel
    dots = levels.expand(-1, 3, -1, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    n, _, height, width = dots.shape
    n_columns = min(n_columns, n)
    gap = 16 if captions else 4  # between two images
    margin = 8

    font, small_font = (ImageFont.truetype(_font_file("DejaVuSans"), size) for size in (11, 10))
    rows, columns = [str(label) for label in rows], [str(label) for label in columns]
    row_widths = [font.getlength(line) for label in rows for line in label.split("\n")]
    column_lines = max((label.count("\n") + 1 for label in columns), default=0)
    left = margin + (4 + round(max(row_widths)) if rows else 0)
    top = margin + (16 if title else 0) + 14 * column_lines
    right = left + n_columns * (width + gap) + gap
    bottom = top + math.ceil(n / n_columns) * (height + gap) + gap

    page = Image.new("RGB", (right + margin, bottom + margin), "white")
    page.paste((128, 128, 128), (left, top, right, bottom))
    corners = []  # of the images
    for i, image in enumerate(dots):
        row, column = divmod(i, n_columns)
        corners.append((left + gap + column * (width + gap), top + gap + row * (height + gap)))
        page.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), corners[i])
    draw = ImageDraw.Draw(page)
    # an anchor is the point of the text that lies at the place given: l(eft), m(iddle), r(ight),
    # then a(scender), m(iddle), d(escender)
    draw.text((left, 4), title, "black", font, anchor="la")
    for label, (_, y) in zip(rows, corners[::n_columns]):
        draw.text((left - 4, y + height / 2), label, "black", font, anchor="rm", align="right")
    for label, (x, _) in zip(columns, corners[:n_columns]):
        draw.text((x + width / 2, top - 1), label, "black", font, anchor="md", align="center")
    for label, (x, y) in zip(captions, corners):
        draw.text((x, y - 1), str(label), "black", small_font, anchor="ld")
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
        # the fields cover [-0.8, 0.8]
        points = ((pixels - shift[i]) @ linear[i].mT / 0.8).view(-1, 28, 28, 2)
        # nn.functional.grid_sample, bilinear (0), clamped to the border (1), corners aligned
        depth = torch.grid_sampler(fields[glyph[i], None], points, 0, 1, True)
        widen = (stroke[i] - half_stroke[glyph[i]]).view(-1, 1, 1, 1)
        ink = torch.sigmoid((depth + widen) / softness[i].view(-1, 1, 1, 1))
        images[i] = (255 * ink).round().byte()
    return images, labels


def load_patches(n, side, photos=None, seed=0):
    """Cut n colour patches, (n, 3, side, side) uint8, from the photographs in a folder.

    A patch may come from anywhere in a photograph. It shows a square that is side / 256 of the
    photograph's shorter side, or as large as that side if side is above 256. Without photographs,
    it comes from drawn clouds. The same arguments give the same patches.
    """
    generator = torch.Generator().manual_seed(seed)
    size = max(256, side)
    if photos is None:
        noise = [torch.randn(100, 3, 2**k, 2**k, generator=generator) for k in range(1, 7)]
        octaves = [resize(coarse, [size, size]) for coarse in noise]
        clouds = sum(octave / 2 ** (k / 2) for k, octave in enumerate(octaves))
        clouds = (128 + 64 * clouds).clamp(0, 255).byte()
        which = torch.randint(len(clouds), (n,), generator=generator).tolist()
        corners = torch.randint(size - side + 1, (n, 2), generator=generator).tolist()
        places = zip(which, corners)
        return torch.stack([clouds[i, :, y : y + side, x : x + side] for i, (y, x) in places])

    if not Path(photos).is_dir():
        raise UserError(f"{photos} is not a folder of photographs.")
    paths, _, left_out = _find_images(Path(photos), labelled=False)
    if left_out:
        _tell(f"{photos}: left out: {', '.join(left_out)}.")
    which = torch.randint(len(paths), (n,), generator=generator)
    corners = torch.rand(n, 2, generator=generator)
    patches = torch.empty(n, 3, side, side, dtype=torch.uint8)
    used = which.unique().tolist()

    def cut(k, photo):
        edge = side / size * min(photo.size)  # of a patch, in the photograph's pixels
        for j in (which == used[k]).nonzero().flatten().tolist():
            left = corners[j, 0].item() * (photo.width - edge)
            upper = corners[j, 1].item() * (photo.height - edge)
            box = left, upper, left + edge, upper + edge
            patches[j] = pil_to_tensor(photo.resize((side, side), BILINEAR, box))

    _decode_all([paths[i] for i in used], cut)
    return patches


def _average_gradients(optimizer, args, kwargs):
    """Average an optimizer's gradients over the processes of torchrun, all in one message."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    means = torch.cat([gradient.flatten() for gradient in gradients]) / N_PROCESSES
    distributed.all_reduce(means)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, means.split(sizes)):
        gradient.copy_(mean.view_as(gradient))


@contextlib.contextmanager
def _first_process_first():
    """Let the first process of torchrun leave the block before the others enter it."""
    if RANK > 0:
        distributed.barrier()
    try:
        yield
    finally:
        if RANK == 0 and N_PROCESSES > 1:
            distributed.barrier()


def _font_file(face):
    """The file of a face that matplotlib ships."""
    return str(Path(get_data_path(), "fonts", "ttf", f"{face}.ttf"))


def _square_of_points(side, reach):
    """(side, side, 2) the points (x, y) of a grid over [-reach, reach], y downwards."""
    line = torch.linspace(-reach, reach, side)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


@functools.cache
def _distance_field(face, digit):
    """(40, 40) the distance to the outline of a digit of height 1, positive inside it.

    The digit is in the middle of [-0.8, 0.8], y downwards.
    """
    page = Image.new("L", (400, 400))
    font = ImageFont.truetype(_font_file(face), 160)
    ImageDraw.Draw(page).text((200, 200), str(digit), "white", font, anchor="mm")
    left, top, right, bottom = page.getbbox()
    x, y, reach = (left + right) / 2, (top + bottom) / 2, 0.8 * (bottom - top)
    page = page.resize((157, 157), box=(x - reach, y - reach, x + reach, y + reach))
    page = page.point(lambda level: 255 * (level > 127))
    outline = pil_to_tensor(page.filter(ImageFilter.FIND_EDGES))[0] > 0
    inside = pil_to_tensor(page)[0, ::4, ::4] > 0
    points = _square_of_points(157, 0.8)  # every fourth is one of the 40
    distance = torch.cdist(points[::4, ::4].flatten(0, 1), points[outline]).amin(1)
    return torch.where(inside, distance.view(40, 40), -distance.view(40, 40))


def _count(n, noun):
    """A number with its noun: 1 image, 2 images."""
    return f"{n} {noun if n == 1 else noun + 's'}"


def _some(paths, noun, which):
    """How many files there are of a kind, and the first: 2 images with frames (a.gif and so on)."""
    more = " and so on" if len(paths) > 1 else ""
    return f"{_count(len(paths), noun)} {which} ({paths[0]}{more})"


def _tell(sentence):
    """Print a sentence to stderr, once where there are several processes."""
    if RANK == 0:
        print(sentence, file=sys.stderr, flush=True)


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
    # a folder's name may hold control characters
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(line, flush=True)


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
    except Exception as error:  # it answers a missing network or a damaged file in a dozen ways
        damaged = _damaged_file(kind, data_dir)
        if damaged:
            raise OSError(f"{damaged} is damaged; delete it to download it again.") from error
        # torchvision lists its mirrors: the reason of the last one
        reason = " ".join(str(error).split("got:")[-1].split())
        folder, files = _torchvision_files(kind, data_dir)
        missing = f"{name} is not under {folder} ({files[0][0]} and so on)"
        raise ConnectionError(f"{missing} and could not be downloaded ({reason})") from error
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
        except Exception:
            return path
        if n_of_set.setdefault(path.name.split("-")[0], n) != n:
            return path
    return None


def _load_folder(folder, img_size, train, labelled):
    """The images of a folder, their labels, the classes, and a list of what is left out."""
    train_folder, test_folder = _split_folders(folder)
    if not train and test_folder is None:
        raise UserError(f"the folder {folder} has no test set.")
    paths, names, left_out = _find_images(train_folder, labelled)
    classes = sorted(set(names))
    if not train:  # the indices of the classes are the training set's
        paths, names, left_out = _find_images(test_folder, labelled)
        unknown = set(names) - set(classes)
        if unknown:
            what = min(unknown) or "images without a class"
            raise UserError(f"{test_folder} has {what}, unlike {train_folder}.")
    beside = [path for path in _visible(folder) if path not in (train_folder, test_folder)]
    if train_folder != folder and beside:
        left_out.append(_some(beside, "item", "beside the training and the test set"))

    images = torch.empty(len(paths), 3, img_size, img_size, dtype=torch.uint8)

    def keep(i, image):
        images[i] = _to_square(image, img_size)

    _decode_all(paths, keep)
    if all((part == part[:, :1]).all() for part in images.split(1000)):  # all are grey
        images = images[:, :1].contiguous()
    dark = [path for path, top in zip(paths, images.flatten(1).amax(1).tolist()) if top <= 16]
    if dark:  # values of 12 bits may lie in a file of 16
        _tell(f"{_some(dark, 'image', 'with no pixel above 1/16 of white')}.")
    index = {name: i for i, name in enumerate(classes)}
    return images, torch.tensor([index[name] for name in names]), classes, left_out


def _split_folders(folder):
    """The folders of the training and of the test set: the folder itself and None, if not split."""
    parts = {}
    for path in _visible(folder):
        # training_set, Train-Images or testset are usual names, too
        name = re.sub("[ _-]?(set|data|images)$", "", path.name.lower())
        is_part = name in ("train", "training", *TEST_NAMES) and path.is_dir()
        if is_part and any(_images_below(path)):
            parts[name] = path
    train = parts.get("train", parts.get("training"))
    test = next((parts[name] for name in TEST_NAMES if name in parts), None)
    # a class may be called train, but hardly one that holds folders
    if train and (test or any(path.parent != train for path in _images_below(train))):
        return train, test
    return folder, None


def _images_below(folder):
    """Yield the images below a folder."""
    return filter(_is_image, _files_below(folder, []))


def _find_images(folder, labelled):
    """The images below a folder, at least one, the class of each, and a list of what is left out.

    A class is the name of a subfolder. It is "" if there are none or they are no classes.
    """
    runs, loose, empty = [], [], []
    files = list(_files_below(folder, runs))
    paths = [path for path in files if _is_image(path)]
    others = [path for path in files if not _is_image(path)]
    names = [""] * len(paths)
    if labelled and any(path.parent != folder for path in paths):
        loose = [path for path in paths if path.parent == folder]
        paths = [path for path in paths if path.parent != folder]
        names = [path.relative_to(folder).parts[0] for path in paths]
        filled = set(names)
        empty = [p for p in _visible(folder) if p.is_dir() and p.name not in filled]
        # macOS takes letters and their accents apart in some names
        names = [unicodedata.normalize("NFC", name) for name in names]
        parents = {path.parent for path in paths}
        if len(set(names)) == 1 < len(parents):
            place = os.path.commonpath(parents)
            _tell(f"{folder} has one class; the classes seem to be in {place}.")
    kinds = [
        (others, "file", "of a kind that Pillow can't decode"),
        (runs, "folder", "with a run's losses.csv or checkpoint.pt"),
        (loose, "image", "beside the class folders"),
        (empty, "folder", "without images"),
    ]
    left_out = [_some(*kind) for kind in kinds if kind[0]]
    if not paths:
        only = f", only {', '.join(left_out)}" if left_out else ""
        raise UserError(f"the folder {folder} holds no images{only}.")
    return paths, names, left_out


def _files_below(folder, runs, above=()):
    """Yield the files below a folder in order; links to folders are followed, hidden files not.

    The files of a folder that a run has written are no data: it is added to the list of runs.
    """
    real = folder.resolve()
    if real in above:
        return  # a link to a folder that it lies in
    is_run = (folder / "losses.csv").exists() or (folder / "checkpoint.pt").exists()
    if is_run:
        runs.append(folder)
    for path in _visible(folder):
        if path.is_dir():
            yield from _files_below(path, runs, (*above, real))
        # not a socket; a broken link is a missing file
        elif not is_run and (path.is_file() or path.is_symlink()):
            yield path


def _visible(folder):
    """What lies in a folder, sorted, without hidden files and what programs add."""

    def is_visible(path):
        is_odd = path.name.startswith("@") or path.name.lower() in SYSTEM_FOLDERS
        return not path.name.startswith(".") and not (is_odd and path.is_dir())

    return sorted(filter(is_visible, folder.iterdir()))


def _is_image(path):
    """Whether a file's name has the ending of a format that Pillow can decode."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN and kind not in NOT_DECODED


def _decode_all(paths, use):
    """Decode image files in threads and call use(i, image) for each, in any order.

    use stores what it needs, so that an image is in memory only while it is used. On a terminal, a
    live count shows the progress; what is odd about images goes to stderr.

    Raises:
        OSError: files can't be read; the message names them all, the first ten by their paths.
    """
    damaged, odd = [], {}

    def decode(i):
        try:
            image, remarks = _open_image(paths[i])
        except OSError as error:
            return {}, [str(error)]
        use(i, image)
        return remarks, []

    live = sys.stdout is not None and sys.stdout.isatty()
    try:
        with ThreadPoolExecutor(N_THREADS) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd files that it reads all the same
            for done in range(0, len(paths), 64):  # a short queue, for Ctrl-C and for the count
                if live:
                    print(f"\r{done} of {len(paths)} images", end="", flush=True)
                chunk = range(done, min(done + 64, len(paths)))
                for remarks, faults in pool.map(decode, chunk):
                    damaged += faults
                    for what, example in remarks.items():
                        odd.setdefault(what, []).append(example)
    finally:
        if live:
            print(f"\r{' ' * len(f'{len(paths)} of {len(paths)} images')}\r", end="", flush=True)

    if damaged:
        listed = damaged[:FILES_LISTED]
        if len(damaged) > FILES_LISTED:
            listed.append(f"and {len(damaged) - FILES_LISTED} more")
        advice = f"take {len(damaged)} of {len(paths)} files out of the folder"
        raise OSError(f"{advice}: {'; '.join(listed)}.")
    for what, examples in odd.items():
        _tell(f"{_some(examples, 'image', f'with {what}')}.")


def _open_image(path):
    """An image file as an upright RGB image, and remarks: what is odd about it, and where."""
    remarks = {}
    try:
        with Image.open(path) as file:
            file.load()
            with contextlib.suppress(Exception):  # damaged EXIF data; the pixels are sound
                ImageOps.exif_transpose(file, in_place=True)
            image = file.copy()  # outlives the file
            n_frames = 1
            with contextlib.suppress(Exception):  # another frame is damaged
                n_frames = getattr(file, "n_frames", 1)
        if n_frames > 1 and file.format not in ("MPO", "PSD"):  # previews, layers
            what = "several pages or frames, of which only the first is used"
            remarks[what] = f"{path} has {n_frames}"
        image = _with_known_values(image, file)

        if image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode not in ("RGB", "CMYK"):
            image = image.convert("RGB")
        if image.info.get("icc_profile"):
            image = _to_srgb(image)

        # an alpha of 0 everywhere is none: 32-bit BMP and TGA often have it
        least, most = image.getchannel("A").getextrema() if image.mode == "RGBA" else (255, 255)
        if least < 255 and most > 0:
            remarks["transparent pixels, which are laid on white"] = path
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB"), remarks
    except MemoryError:
        raise
    except Exception as error:  # Pillow answers a damaged, huge or foreign file in a dozen ways
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "its content is of no kind that Pillow can decode"
        raise OSError(f"{path} can't be read as an image ({reason})") from error


def _with_known_values(image, file):
    """The image with grey of more than 8 bits as bytes, and a fourth channel only if it is alpha.

    file has what Pillow read beside the pixels: it leaves it to us what the values mean.
    """
    tags = getattr(file, "tag_v2", {})  # of TIFF
    if file.format == "FITS":
        raise ValueError("no value of a FITS file is known to be white")
    if tags.get(ExifTags.Base.SampleFormat, (1,))[0] == 2:
        raise ValueError("its pixels are signed integers, of which none is known to be white")
    if image.mode == "RGBA" and file.format == "TIFF" and ExifTags.Base.ExtraSamples not in tags:
        return image.convert("RGB")  # the fourth may be near infrared
    if not image.mode.startswith(("I", "F")):
        return image

    if image.mode == "F":
        white = 1
    elif image.mode != "I" or file.format in ("PNG", "PPM"):
        white = 2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
    else:
        raise ValueError("its pixels are 32-bit integers, of which none is known to be white")
    levels = np.asarray(image) * np.float32(255 / white)  # no float64, which would take much memory
    np.rint(levels, out=levels)
    if not (levels.min() >= 0 and levels.max() <= 255):  # not a number is refused, too
        raise ValueError("its pixels are floats outside the range of 0 to 1")
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is 0
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8))


def _to_srgb(image):
    """The image with its colours converted from its profile to sRGB."""
    # what fails is a damaged profile, one for another kind of image, or a Pillow without littlecms
    with contextlib.suppress(OSError, ImportError, ImageCms.PyCMSError):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if "sRGB" not in ImageCms.getProfileDescription(profile):
            mode = "RGBA" if image.mode == "RGBA" else "RGB"
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, profile, srgb, outputMode=mode)
    return image


def _to_square(image, size):
    """The centre square of an RGB image, resized, as (3, size, size) uint8."""
    return pil_to_tensor(ImageOps.fit(image, (size, size), BILINEAR))
