"""What the eight scripts share: data loading, device selection and image grids. The models are in the scripts.

    data = load_data("mnist")                                  # Data(name, images, labels, classes)
    for x, y in batches(data, 64): ...                         # one epoch: x (64, C, H, W) in [-1, 1], y (64,)
    save_grid("grid.png", x, n_columns=8)

Every error that a user can cause is an OSError or a ValueError whose message is one sentence.
"""
import functools
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import get_data_path
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from torchvision.utils import make_grid

TORCHVISION = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}
DOWNLOAD_TIMEOUT = 5  # seconds that a server may stay silent before it is given up
FOLDER_SIZE = 64  # the image side of a folder when none is asked for
# matplotlib's faces with Western lining digits; its other faces are symbols, or lack digits
FACES = [f"DejaVuSans{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
FACES += [f"DejaVuSansMono{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
FACES += [f"DejaVuSerif{s}" for s in ("", "-Bold", "-Italic", "-BoldItalic")]
FACES += [f"STIXGeneral{s}" for s in ("", "Bol", "Italic", "BolIta")]
FACES += ["cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"]


class Data(NamedTuple):
    """A whole dataset, resident on one device."""

    name: str  # what --dataset resolved to: "auto" becomes "mnist" or "glyphs"
    images: torch.Tensor  # (n, C, H, W) uint8
    labels: torch.Tensor  # (n,) int64, indices into classes
    classes: list[str]  # one name a class; a single class where the data has no labels


def load_data(dataset="auto", data_dir="data", img_size=None, device="cpu", seed=0, train=True):
    """Load a whole dataset onto the device.

    Args:
        dataset: "mnist", "fashion" or "cifar10" (downloaded through torchvision where they do not lie under data_dir),
            "glyphs" (drawn on the spot, see draw_glyphs), a folder of images (one subfolder per class, or none), or
            "auto": MNIST, and where that can't be had, glyphs, which one line on stderr then says.
        data_dir: where torchvision's datasets lie or are put.
        img_size: side that images are resized to, after a centre crop to a square; None keeps the dataset's own, which
            is 64 for a folder.
        device: where the tensors go.
        seed: decides the glyphs; the other datasets ignore it.
        train: the training set, else the test set. A folder has no test set: it raises ValueError.

    Returns:
        Data; images (n, C, H, W) uint8, where a folder of grey images has C = 1.

    Raises:
        OSError: the data can't be had, or a file of it is damaged (the message names the file).
        ValueError: the dataset is unknown, or img_size is not positive.
    """
    if img_size is not None and img_size < 1:
        raise ValueError(f"the image size must be positive, not {img_size}.")
    name = dataset
    if name in ("auto", *TORCHVISION):
        name = "mnist" if name == "auto" else name
        try:
            images, labels, classes = _load_torchvision(name, data_dir, train)
        except ConnectionError as error:
            if dataset != "auto":
                raise ConnectionError(f"{error}; put its files there, or take --dataset glyphs.") from error
            name = "glyphs"
            print(f"{error}: training on drawn digits (--dataset glyphs).", file=sys.stderr)
    if name == "glyphs":
        images, labels = draw_glyphs(60000 if train else 10000, seed=2 * seed + (not train))
        classes = [str(digit) for digit in range(10)]
    elif name not in TORCHVISION:
        images, labels, classes = _load_folder(Path(name), img_size or FOLDER_SIZE, train)
    if img_size and img_size != images.shape[-1]:
        images = torch.cat([resize(chunk, [img_size, img_size], antialias=True) for chunk in images.split(1000)])
    return Data(name, images.to(device), labels.to(device), classes)


def batches(data, batch_size):
    """One epoch over the data, shuffled by torch's global generator; an incomplete last batch is left out.

    Yields:
        x (batch_size, C, H, W) float32 in [-1, 1] and y (batch_size,) int64, on the data's device.
    """
    order = torch.randperm(len(data.images)).to(data.images.device)
    for index in order.split(batch_size)[: len(order) // batch_size]:
        yield data.images[index] * (2 / 255) - 1, data.labels[index]


def get_device(cuda):
    """The CUDA device where it is wanted and there is one, else the CPU; stderr says when the two differ."""
    if cuda and not torch.cuda.is_available():
        print("No CUDA device was found: training on the CPU.", file=sys.stderr)
    if not cuda and torch.cuda.is_available():
        print("This machine has a CUDA device: --cuda trains on it.", file=sys.stderr)
    return torch.device("cuda" if cuda and torch.cuda.is_available() else "cpu")


def save_grid(path, images, n_columns, title="", rows=(), columns=(), captions=()):
    """Save images as one PNG, row by row.

    Args:
        path: the file.
        images: (n, C, H, W) in [-1, 1], C = 1 or 3.
        n_columns: images per row.
        title: a line above the grid.
        rows, columns, captions: a label for each row, for each column, for each image, or none.
    """
    pad, scale = 8 if captions else 2, 2  # pixels between two images; dots per pixel
    grid = make_grid(images.detach().cpu(), n_columns, pad, normalize=True, value_range=(-1, 1), pad_value=0.5)
    height, width = scale * grid.shape[1], scale * grid.shape[2]
    left = 8 + 7 * max((len(str(label)) for label in rows), default=0)
    top = 8 + 16 * bool(title) + 14 * max((str(label).count("\n") + 1 for label in columns), default=0)
    figure = Figure(((left + width + 8) / 100, (top + height + 8) / 100), dpi=100)
    axes = figure.add_axes([left / (left + width + 8), 8 / (top + height + 8),
                            width / (left + width + 8), height / (top + height + 8)])
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    for axis, labels, step in ((axes.xaxis, columns, images.shape[-1]), (axes.yaxis, rows, images.shape[-2])):
        axis.set_ticks([pad + step / 2 - 0.5 + i * (step + pad) for i in range(len(labels))], labels)
    for i, caption in enumerate(captions):
        x, y = pad + i % n_columns * (images.shape[-1] + pad), pad + i // n_columns * (images.shape[-2] + pad)
        axes.text(x, y - 1, caption, fontsize=7)
    axes.tick_params(length=0, pad=2, labelsize=8, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.text(left / (left + width + 8), 1 - 6 / (top + height + 8), title, fontsize=8, va="top")
    figure.savefig(path)


def draw_glyphs(n, seed=0):
    """Draw n labelled digits in the text faces that matplotlib ships, white on black, laid out like MNIST.

    Each has its own face, slant, rotation, size, proportions, stroke width, shift and softness of the edge. A glyph is
    kept as its signed distance to the outline: bending it is then one look-up, and its stroke width one addition.

    Returns:
        images (n, 1, 28, 28) uint8 and labels (n,) int64, the same for the same n and seed.
    """
    fields = torch.stack([_distance_field(face, digit) for face in FACES for digit in range(10)])
    half_stroke = fields.amax((1, 2))  # how far the deepest point of the glyph lies from its outline
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=generator)
    glyph = torch.randint(len(FACES), (n,), generator=generator) * 10 + labels

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=generator)

    # from a point of the image to a point of the glyph, whose height is 1: undo shift, size, rotation and slant in turn
    angle, slant, wide = uniform(-0.2, 0.2), uniform(-0.3, 0.3), uniform(0.8, 1.25)
    per_pixel = 14 / uniform(16, 21)  # the image is 2 wide for 28 pixels, the digit 16 to 21 pixels high
    cos, sin = angle.cos() * per_pixel, angle.sin() * per_pixel
    linear = torch.stack([(cos - slant * sin) * wide, (-sin - slant * cos) * wide, sin, cos], 1).view(n, 2, 2)
    shift = torch.stack([uniform(-0.15, 0.15), uniform(-0.15, 0.15)], 1).view(n, 1, 2)
    line = torch.linspace(-1, 1, 28)
    pixels = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, 784, 2)
    stroke, soft = uniform(0.06, 0.13), uniform(0.006, 0.02)

    images = torch.empty(n, 1, 28, 28, dtype=torch.uint8)
    for i in torch.arange(n).split(2000):
        points = (pixels - shift[i]) @ linear[i].mT / 0.8  # the fields cover [-0.8, 0.8]
        # nn.functional.grid_sample, bilinear (0), clamped to the border (1), corners aligned
        depth = torch.grid_sampler(fields[glyph[i], None], points.view(-1, 28, 28, 2), 0, 1, True)
        widen = (stroke[i] - half_stroke[glyph[i]]).view(-1, 1, 1, 1)
        images[i] = (255 * torch.sigmoid((depth + widen) / soft[i].view(-1, 1, 1, 1))).round().byte()
    return images, labels


def load_patches(n, side, photos=None, seed=0):
    """Cut n colour patches from the photographs in a folder or, without one, from drawn clouds.

    Returns:
        patches (n, 3, side, side) uint8, the same for the same arguments. The photographs' shorter side is first
        brought to 256 pixels, or to side if that is more.

    Raises:
        OSError: an image can't be read (the message names it).
        ValueError: photos is no folder, or holds no images.
    """
    generator, size = torch.Generator().manual_seed(seed), max(256, side)
    if photos is None:
        noise = [torch.randn(100, 3, 2**k, 2**k, generator=generator) for k in range(1, 7)]  # coarse to fine
        clouds = sum(resize(octave, [size, size]) / 2 ** (k / 2) for k, octave in enumerate(noise))
        canvases = (128 + 64 * clouds).clamp(0, 255).byte()
    elif not Path(photos).is_dir():
        raise ValueError(f"{photos} is no folder of photographs.")
    else:
        canvases = _load_folder(Path(photos), size, True)[0].expand(-1, 3, -1, -1)
    which = torch.randint(len(canvases), (n,), generator=generator).tolist()
    places = torch.randint(size - side + 1, (n, 2), generator=generator).tolist()
    return torch.stack([canvases[i, :, y:y + side, x:x + side] for i, (y, x) in zip(which, places)])


@functools.cache
def _distance_field(face, digit, side=40):
    """Distance to the outline of a digit of height 1, positive inside, (side, side) over [-0.8, 0.8], y downwards."""
    font = FontProperties(fname=str(Path(get_data_path(), "fonts", "ttf", f"{face}.ttf")))
    outlines = [torch.from_numpy(p).float() for p in TextPath((0, 0), str(digit), size=10, prop=font).to_polygons()]
    low, high = torch.cat(outlines).amin(0), torch.cat(outlines).amax(0)
    outlines = [(p - (low + high) / 2) / (high - low)[1] * torch.tensor([1.0, -1.0]) for p in outlines]
    a, b = torch.cat([p[:-1] for p in outlines]), torch.cat([p[1:] for p in outlines])  # the segments' ends
    line = torch.linspace(-0.8, 0.8, side)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 1, 2)
    along = (((points - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(-1).clamp(min=1e-12)).clamp(0, 1)
    distance = (points - a - along[..., None] * (b - a)).norm(dim=-1).amin(1)
    # even-odd rule: a point is inside when a ray to the right of it crosses the outline an odd number of times
    x, y = points.unbind(-1)
    spans = (a[:, 1] > y) != (b[:, 1] > y)
    right = x < a[:, 0] + (y - a[:, 1]) / (b - a)[:, 1] * (b - a)[:, 0]
    inside = (spans & right).sum(1) % 2 == 1
    return torch.where(inside, distance, -distance).view(side, side)


def _load_torchvision(name, data_dir, train):
    """Images (n, C, H, W) uint8, labels (n,) int64, class names; ConnectionError where they can't be had."""
    kind = TORCHVISION[name]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none: a silent server would hold the run for ever
    try:
        data = kind(data_dir, train=train, download=True)
        images, labels = torch.as_tensor(data.data), torch.as_tensor(data.targets)
        if len(images) != len(labels):
            raise ValueError("labels and images do not belong together")
    except (OSError, RuntimeError, HTTPException, ValueError, AssertionError, LookupError, EOFError) as error:
        damaged = _damaged_file(kind, data_dir)
        if damaged:
            raise OSError(f"{damaged} is damaged; delete it, and the next run downloads it again.") from error
        reason = " ".join(str(error).split("got:")[-1].split())  # torchvision lists its mirrors: the last one's reason
        raise ConnectionError(f"{name} is not under {data_dir} and could not be downloaded ({reason})") from error
    finally:
        socket.setdefaulttimeout(timeout)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, labels.long(), [label.split(" - ")[0] for label in data.classes]


def _damaged_file(kind, data_dir):
    """The first file of a torchvision dataset under data_dir that is not what it should be, or None."""
    if kind is datasets.CIFAR10:
        folder = Path(data_dir, kind.base_folder)
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    else:
        folder = Path(data_dir, kind.__name__, "raw")
        files = kind.resources
    for name, md5 in files:
        if (folder / name).exists() and not check_integrity(str(folder / name), md5):
            return folder / name
    lengths = {}
    for path in sorted(folder.glob("*-ubyte")):
        try:
            content = (read_image_file if "images" in path.name else read_label_file)(str(path))
        except (OSError, ValueError, AssertionError, LookupError, RuntimeError):
            return path
        if lengths.setdefault(path.name.split("-")[0], len(content)) != len(content):
            return path  # fewer labels than images, or more
    return None


def _load_folder(folder, img_size, train):
    """Centre crops (n, C, img_size, img_size) uint8 of the images below a folder; its subfolders are the classes."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is neither auto, {', '.join(TORCHVISION)}, glyphs nor a folder of images.")
    if not train:
        raise ValueError(f"the folder {folder} has no test set.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS and p.is_file()
                   and not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not paths:
        raise ValueError(f"the folder {folder} holds no images ({' '.join(IMG_EXTENSIONS)}).")
    names = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in paths]
    classes = sorted(set(names))

    def load(path):
        try:
            return pil_to_tensor(center_crop(resize(default_loader(path), img_size), img_size))
        except Exception as error:  # Pillow answers a damaged, huge or foreign file in a dozen ways
            raise OSError(f"{path} can't be read as an image; take it out of the folder ({error}).") from error

    with ThreadPoolExecutor() as pool:
        images = torch.stack(list(pool.map(load, paths)))
    if (images == images[:, :1]).all():
        images = images[:, :1].contiguous()  # default_loader makes every image RGB; grey ones need one channel
    return images, torch.tensor([classes.index(name) for name in names]), classes
