"""Data loading, device selection and grids, by value."""
import io
import itertools
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT, write_mnist
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from PIL import Image, ImageCms
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5
from torchvision.utils import save_image

import common
from common import (
    Data,
    UserError,
    batches,
    draw_glyphs,
    get_device,
    load_data,
    load_image,
    load_patches,
    save_grid,
)

any_file_name = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
links = pytest.mark.skipif(sys.platform == "win32", reason="links take a privilege")


@pytest.mark.parametrize("name, folder, classes", [
    ("mnist", "MNIST", "0 1 2"), ("fashion", "FashionMNIST", "T-shirt/top Trouser Pullover")])
def test_mnist_and_fashion_mnist_are_read_as_they_lie_there(name, folder, classes, tmp_path):
    images, labels = write_mnist(tmp_path, name=folder)
    data = load_data(name, tmp_path)
    assert data.name == name and data.classes[:3] == classes.split()
    assert data.images.dtype == torch.uint8 and torch.equal(data.images, images)
    assert data.labels.dtype == torch.int64 and torch.equal(data.labels, labels)
    test = load_data(name, tmp_path, train=False)
    assert torch.equal(test.images, draw_glyphs(50, 1)[0])


def test_auto_offline_draws_glyphs_and_says_so(tmp_path, no_network, monkeypatch, capsys):
    monkeypatch.setattr(common, "draw_glyphs", lambda n, seed: draw_glyphs(n // 1000, seed))
    data = load_data("auto", tmp_path)
    err = capsys.readouterr().err
    assert data.name == "glyphs" and data.images.shape == (60, 1, 28, 28)
    assert err.count("\n") == 1 and f"mnist is not under {tmp_path / 'MNIST' / 'raw'}" in err
    assert "refused" in err and "drawn digits" in err


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_a_dataset_that_is_named_is_never_replaced(name, tmp_path, no_network):
    sentence = f"{name} is not under .* could not be downloaded .*refused.* --dataset glyphs"
    with pytest.raises(OSError, match=sentence):
        load_data(name, tmp_path)


def test_a_download_that_hangs_gives_up(tmp_path, silent_server, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [silent_server, silent_server])
    monkeypatch.setattr(common, "DOWNLOAD_TIMEOUT", 0.3)
    start = time.monotonic()
    with pytest.raises(OSError, match="timed out"):
        load_data("mnist", tmp_path)
    assert time.monotonic() - start < 5
    assert common.socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", [
    lambda content: content[:-10], lambda _: b"", lambda _: b"\x1f" * 5000,
    lambda content: content[:7] + b"\x0a" + content[8:18]])  # ten labels for 200 images
def test_a_damaged_file_is_named_and_auto_does_not_hide_it(tmp_path, name, damage, no_network):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    for dataset in ("mnist", "auto"):
        with pytest.raises(OSError, match=f"{name} is damaged"):
            load_data(dataset, tmp_path)


def test_cifar10_is_turned_to_channels_first(tmp_path, monkeypatch, no_network):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    content = {"data": pixels.flatten(1).numpy(), "labels": [3, 1, 4, 1]}
    meta = {"label_names": ["a"] * 10}
    for name, value in (("data_batch_1", content), ("test_batch", content), ("batches.meta", meta)):
        (folder / name).write_bytes(pickle.dumps(value))
    md5 = {path.name: calculate_md5(str(path)) for path in folder.iterdir()}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", md5["batches.meta"])
    data = load_data("cifar10", tmp_path)
    assert torch.equal(data.images, pixels) and data.labels.tolist() == [3, 1, 4, 1]
    (folder / "test_batch").write_bytes(b"half")
    with pytest.raises(OSError, match="test_batch is damaged"):
        load_data("cifar10", tmp_path)


def test_img_size_resizes_the_whole_set(tmp_path):
    images, _ = write_mnist(tmp_path)
    small = load_data("mnist", tmp_path, img_size=14).images
    assert small.shape == (200, 1, 14, 14) and small.dtype == torch.uint8
    means = torch.nn.functional.avg_pool2d(images.float(), 2)
    assert (small.float() - means).abs().mean() < 8


def test_folder_with_a_subfolder_per_class_is_cropped_to_the_centre(tmp_path):
    for name, colour in (("red", (1.0, 0.0, 0.0)), ("blue", (0.0, 0.0, 1.0))):
        (tmp_path / name).mkdir()
        image = torch.zeros(3, 40, 80)  # black, but for the centre square
        image[:, :, 20:60] = torch.tensor(colour)[:, None, None]
        save_image(image, tmp_path / name / "x.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = load_data(str(tmp_path), img_size=16, labelled=True)
    assert data.classes == ["blue", "red"] and data.labels.tolist() == [0, 1]
    assert data.images.shape == (2, 3, 16, 16)
    assert data.images[:, :, 2:-2, 2:-2].float().mean((2, 3)).tolist() == [[0, 0, 255], [255, 0, 0]]


def test_flat_folder_of_grey_images_has_one_class_and_one_channel(tmp_path):
    for i in range(3):
        save_image(torch.full((1, 70, 64), i / 2), tmp_path / f"{i}.png")
    data = load_data(str(tmp_path))
    assert data.images.shape == (3, 1, 64, 64)
    assert data.images.float().mean((1, 2, 3)).round().tolist() == [0, 128, 255]
    assert data.labels.tolist() == [0, 0, 0] and len(data.classes) == 1
    with pytest.raises(ValueError, match="no test set"):
        load_data(str(tmp_path), train=False)


def epoch_of(data, epoch, seed=0):
    """The images and labels of an epoch of three batches of three."""
    chosen = list(itertools.islice(batches(data, 3, seed, 3 * epoch), 3))
    return torch.cat([x for x, _ in chosen]), torch.cat([y for _, y in chosen])


def test_batches_are_the_images_in_random_order_each_once_scaled_to_plus_minus_one():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).repeat(1, 1, 2, 2)
    images[9] = 255
    data = Data("test", images, torch.arange(10), ["a"])
    x, y = epoch_of(data, 0)
    assert x.dtype == torch.float32 and x.shape == (9, 1, 2, 2)
    assert len(set(y.tolist())) == 9 and y.tolist() != sorted(y.tolist())
    assert torch.allclose(x, images[y] / 127.5 - 1, atol=1e-6)  # each image comes with its label
    epochs = [epoch_of(data, epoch)[1] for epoch in range(20)]
    assert len({tuple(labels.tolist()) for labels in epochs}) == 20  # in another order every time
    left_out = {45 - labels.sum().item() for labels in epochs}
    assert len(left_out) > 3  # the tenth image is another one in every epoch
    endless = torch.cat([y for _, y in itertools.islice(batches(data, 3), 6)])
    assert torch.equal(endless, torch.cat(epochs[:2]))
    assert not torch.equal(epoch_of(data, 0, seed=1)[1], y)
    white = next(batches(Data("test", images[9:], torch.zeros(1), ["a"]), 1))[0]
    assert torch.allclose(white, torch.ones(1), atol=1e-6)
    with pytest.raises(UserError, match="--batch_size 11"):
        next(batches(data, 11))


@pytest.mark.parametrize("wanted, there, device, word", [
    (False, False, "cpu", None), (True, False, "cpu", "No CUDA device"),
    (False, True, "cpu", "--cuda trains on it"), (True, True, "cuda", None)])
def test_device(wanted, there, device, word, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert get_device(wanted).type == device
    err = capsys.readouterr().err
    assert word in err if word else err == ""


def read_grid(path):
    """The dots of a picture, (H, W, 3)."""
    return torch.from_numpy(np.array(Image.open(path)))


LABELS = {"title": "title", "rows": ["one", "two"], "columns": "abc"}


@pytest.mark.parametrize("labels", [{}, LABELS])
@pytest.mark.parametrize("height, width", [(28, 28), (7, 13), (29, 32)])
def test_grid_is_laid_out_row_by_row_to_the_dot(tmp_path, labels, height, width):
    torch.manual_seed(0)
    levels = torch.randint(256, (6, 3, height, width))
    save_grid(tmp_path / "grid.png", levels / 127.5 - 1, 3, **labels)
    picture = read_grid(tmp_path / "grid.png")
    # two dots per pixel, two pixels between two images, a white margin of 8 dots
    grid_height, grid_width = 2 * (2 * (height + 2) + 2), 2 * (3 * (width + 2) + 2)
    grid = picture[-8 - grid_height : -8, -8 - grid_width : -8]
    for i, image in enumerate(levels):
        top, left = 4 + 2 * (height + 2) * (i // 3), 4 + 2 * (width + 2) * (i % 3)
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            dots = grid[top + y :: 2, left + x :: 2][:height, :width]
            assert torch.equal(dots, image.permute(1, 2, 0).byte()), i
    assert (grid[:4] == 128).all() and (grid[:, :4] == 128).all()
    assert (picture[-8:] == 255).all() and (picture[:, -8:] == 255).all()
    ink = (picture < 128).any(-1)
    above, beside = ink[: -8 - grid_height], ink[:, : -8 - grid_width]
    assert above.any() == beside.any() == bool(labels)


def test_grid_of_grey_images_and_of_fewer_than_a_row(tmp_path):
    save_grid(tmp_path / "grid.png", torch.zeros(2, 1, 4, 4, requires_grad=True) + 2, 5)
    assert read_grid(tmp_path / "grid.png").shape == (16 + 2 * 8, 16 + 2 * 14, 3)
    assert (read_grid(tmp_path / "grid.png")[8 + 4 : 8 + 12, 8 + 4 : 8 + 12] == 255).all()


def test_labels_stand_beside_what_they_name(tmp_path):
    images = torch.ones(6, 1, 28, 28)
    ink = {}
    for kind, n in (("rows", 2), ("columns", 3), ("captions", 6)):
        for i in range(n):
            labels = [""] * n
            labels[i] = "B"
            save_grid(tmp_path / "grid.png", images, 3, **{kind: labels})
            is_ink = (read_grid(tmp_path / "grid.png") < 100).all(-1)
            ink[kind, i] = is_ink.nonzero().float().mean(0)
    down = 2 * 30  # dots from one image to the next
    assert ink["rows", 1] - ink["rows", 0] == pytest.approx([down, 0], abs=1)
    assert ink["columns", 2] - ink["columns", 0] == pytest.approx([0, 2 * down], abs=1)
    assert abs(ink["rows", 0][0] - 40) < 3 and abs(ink["columns", 0][1] - 40) < 3  # centred
    wide = 2 * 36  # captions need more room
    assert ink["captions", 5] - ink["captions", 0] == pytest.approx([wide, 2 * wide], abs=1)
    y, x = ink["captions", 0].tolist()
    assert 8 < y < 8 + 16 and 8 + 16 <= x < 8 + 16 + 12  # above the image, at its left edge


NAMES = ["$\\foo$", "$x^2$", "a_b%&#{}", "日本", "a\udcff", "\x1b\x00\t", "עברית", ""]


def test_any_label_is_drawn(tmp_path, recwarn):
    images = torch.zeros(len(NAMES), 1, 8, 8)
    for kind in ("rows", "columns", "captions"):
        n_columns = 1 if kind == "rows" else len(NAMES)
        save_grid(tmp_path / "grid.png", images, n_columns, title=NAMES[0], **{kind: NAMES})
    assert not recwarn.list

    def picture(name):
        save_grid(tmp_path / "grid.png", images[:1], 1, rows=[name])
        return read_grid(tmp_path / "grid.png")

    assert picture("$x$").shape[1] > picture("x").shape[1]  # the signs are drawn
    assert (picture("W" * 30)[:, :6] == 255).all()  # all of a long label fits
    assert torch.equal(picture("日"), picture("本")) and (picture("日") < 100).any()  # a box


def test_a_backend_that_is_not_installed_is_no_obstacle(tmp_path):
    """A notebook hands its own one down to the programs that it starts."""
    code = (
        "import torch, common; from matplotlib.figure import Figure; "
        "common.save_grid('grid.png', torch.zeros(1, 1, 8, 8), 1, 'a title'); "
        "common.draw_glyphs(1); Figure().savefig('figure.png')"
    )
    environment = {**os.environ, "MPLBACKEND": "not installed", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "grid.png").exists() and (tmp_path / "figure.png").exists()


def test_glyphs_are_60000_white_digits_on_black():
    data = load_data("glyphs")
    assert data.images.shape == (60000, 1, 28, 28) and data.images.dtype == torch.uint8
    assert torch.bincount(data.labels, minlength=10).min() > 5500
    images = data.images[:5000].float() / 255
    assert images[:, :, 0].mean() < 0.01 and images[:, :, :, 0].mean() < 0.01  # the frame is black
    assert images.amax((1, 2, 3)).median() > 0.95 and images.amax((1, 2, 3)).min() > 0.3
    assert 0.08 < images.mean() < 0.18  # MNIST: 0.13


def test_glyphs_follow_the_seed():
    images, labels = draw_glyphs(100, seed=3)
    again, labels_again = draw_glyphs(100, seed=3)
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert not torch.equal(images, draw_glyphs(100, seed=4)[0])
    assert not torch.equal(load_data("glyphs", train=False).images[:100], images)


def test_glyphs_are_neither_trivial_nor_impossible_to_tell_apart():
    """On as many MNIST digits, the nearest class mean is right in 76%, the linear map in 79%."""
    (x, y), (x_test, y_test) = draw_glyphs(10000, 0), draw_glyphs(2000, 1)
    x, x_test = x.flatten(1) / 255, x_test.flatten(1) / 255
    means = torch.stack([x[y == digit].mean(0) for digit in range(10)])
    assert 0.5 < (torch.cdist(x_test, means).argmin(1) == y_test).float().mean() < 0.9
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(784), x.T @ torch.eye(10)[y])
    assert 0.7 < ((x_test @ weights).argmax(1) == y_test).float().mean() < 0.9


def test_every_matplotlib_has_the_faces_and_the_same_outlines():
    """The checksum is that of matplotlib 3.9.0 and 3.11.2."""
    checksum = 0
    for face in common.FACES:
        font = FontProperties(fname=str(common._font_file(face)))
        for digit in "0123456789":
            points = TextPath((0, 0), digit, size=10, prop=font).vertices
            units = (points * 640).round().astype("<i4")  # outlines are in 64ths of a hundredth
            checksum = zlib.crc32(units.tobytes(), checksum)
    assert checksum == 501149571


def test_patches_come_from_anywhere_in_a_photograph_at_its_scale(tmp_path):
    across = torch.arange(512).expand(3, 512, 512) // 2
    for name, photo in (("wide", across[:, :256]), ("high", across[:, :256].mT)):
        (tmp_path / name).mkdir()
        pixels = photo.byte().permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(tmp_path / name / "photo.png")
        patches = load_patches(200, 64, tmp_path / name).float()
        assert patches.shape == (200, 3, 64, 64)
        change = (patches[..., -1, -1] - patches[..., 0, 0]).mean()
        assert 31 < change < 33  # 64 of the 256 pixels of the shorter side
        assert patches.min() < 5 and patches.max() > 250  # the ends of the longer side
    larger = load_patches(3, 300, tmp_path / "wide").float()
    assert larger.shape == (3, 3, 300, 300)
    assert 125 < (larger[..., -1] - larger[..., 0]).mean() < 129  # the whole of the shorter side


def test_patches_need_a_folder_of_sound_photographs(tmp_path):
    with pytest.raises(ValueError, match="is not a folder of photographs"):
        load_patches(1, 8, tmp_path / "none")
    with pytest.raises(ValueError, match="holds no images"):
        load_patches(1, 8, tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(OSError, match="a.png can't be read as an image"):
        load_patches(1, 8, tmp_path)


def draw(path, colour="red", size=(8, 8), mode="RGB", **options):
    """Save a small image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


RED_BESIDE_WHITE = [[255, 255], [0, 255], [0, 255]]  # by channel, the left and the right half


def halves(image):
    """The mean of each channel in the left and in the right half of (C, H, W)."""
    return torch.stack([half.float().mean((1, 2)) for half in image.chunk(2, 2)], 1).tolist()


def half_transparent():
    """Red beside a transparent half whose hidden colour is blue."""
    image = Image.new("RGBA", (8, 8), "red")
    image.paste((0, 0, 255, 0), (4, 0, 8, 8))
    return image


def test_transparent_pixels_are_white(tmp_path):
    half_transparent().save(tmp_path / "a.png")
    rgb = half_transparent().convert("RGB")
    rgb.save(tmp_path / "b.png", transparency=(0, 0, 255))  # one colour counts as transparent
    palette = rgb.quantize(2)
    for name in ("c.png", "d.gif"):
        palette.save(tmp_path / name, transparency=palette.getpixel((7, 0)))
    for path in sorted(tmp_path.iterdir()):
        assert halves(load_image(path, 8)) == RED_BESIDE_WHITE, path.name
    line_art = Image.new("LA", (8, 8), (0, 255))
    line_art.paste((0, 0), (4, 0, 8, 8))
    line_art.save(tmp_path / "a.png")
    assert halves(load_image(tmp_path / "a.png", 8)) == [[0, 255]] * 3
    draw(tmp_path / "b.png", (0, 0, 0, 51), mode="RGBA")  # a fifth of black
    assert halves(load_image(tmp_path / "b.png", 8)) == [[204, 204]] * 3


def test_what_is_odd_about_images_is_said_in_a_line_that_names_a_file(tmp_path, capsys):
    for i in range(3):
        half_transparent().save(tmp_path / f"{i}.png")
    draw(tmp_path / "opaque.png", mode="RGBA")
    frames = [Image.new("L", (8, 8), level) for level in (200, 100, 50)]
    for name in ("film.gif", "pages.tif", "film.webp", "film.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    draw(tmp_path / "dim.png", 4095, mode="I;16")  # white in 12 bits
    load_data(tmp_path, img_size=8)
    lines = sorted(capsys.readouterr().err.splitlines())
    assert lines[0].startswith("1 image with no pixel above 1/16") and "dim.png)" in lines[0]
    assert lines[1].startswith("3 images with transparent pixels") and "0.png and" in lines[1]
    assert lines[2].startswith("4 images with several pages or frames") and len(lines) == 3
    assert f"{tmp_path / 'film.gif'} has 3 and so on" in lines[2]


def change_tag(path, tag, old, new, new_tag=None):
    """Change a tag of a TIFF file that holds one number of 16 bits."""
    content = path.read_bytes()
    entry = struct.pack("<HHIHH", tag, 3, 1, old, 0)
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, struct.pack("<HHIHH", new_tag or tag, 3, 1, new, 0)))


def test_a_fourth_channel_that_is_not_alpha_is_left_out(tmp_path):
    for name in ("a.bmp", "a.tga", "a.png"):
        draw(tmp_path / name, (255, 0, 0, 0), mode="RGBA")
        assert load_image(tmp_path / name, 8)[:, 0, 0].tolist() == [255, 0, 0]
    draw(tmp_path / "a.tif", (255, 0, 0, 51), mode="RGBA")
    assert load_image(tmp_path / "a.tif", 8)[:, 0, 0].tolist() == [255, 204, 204]
    change_tag(tmp_path / "a.tif", 338, 2, 2, new_tag=65000)  # it may be near infrared now
    assert load_image(tmp_path / "a.tif", 8)[:, 0, 0].tolist() == [255, 0, 0]


def test_what_the_tags_of_a_tiff_file_say_about_its_grey_values(tmp_path):
    path = tmp_path / "a.tif"
    packed = bytes.fromhex("000800FFFC00") * 16 + bytes(32)
    Image.fromarray(np.frombuffer(packed, np.uint16).reshape(8, 8)).save(path)
    change_tag(path, 258, 16, 12)  # each row is 0, 0x800, 0xFFF, 0xC00, twice
    assert load_image(path, 8)[0, 0].tolist() == [0, 128, 255, 191] * 2
    for white, kind in ((65535, np.uint16), (1, np.float32)):
        levels = np.tile(np.array([0, 0.25, 1]) * white, (3, 1))
        Image.fromarray(levels.astype(kind)).save(path)
        assert load_image(path, 3)[0, 0].tolist() == [0, 64, 255]
        change_tag(path, 262, 1, 0)  # white is 0
        assert load_image(path, 3)[0, 0].tolist() == [255, 191, 0]
    for kind in (np.uint8, np.uint16):
        Image.fromarray(np.array([[0, 100]], kind)).save(path, tiffinfo={339: 2})
        with pytest.raises(OSError, match="its pixels are signed integers"):
            load_image(path, 1)


def test_a_fits_file_is_refused(tmp_path):
    """Its values have an offset and a unit of their own, which Pillow ignores."""
    cards = {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 1, "NAXIS2": 1, "BZERO": 32768}
    header = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items())
    (tmp_path / "a.fits").write_bytes((header + "END").ljust(2880).encode() + bytes(2880))
    with pytest.raises(OSError, match="a.fits can't be read .*FITS"):
        load_image(tmp_path / "a.fits", 1)


def test_colours_are_converted_from_their_profile_to_srgb(tmp_path):
    """In the profile here, the primaries of red and of blue have changed their places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "BGR ".encode("utf-16-be"))
    kept = [255, 0, 0]
    for profile, colour in ((swapped, [0, 0, 255]), (srgb, kept), (swapped[:200], kept)):
        half_transparent().save(tmp_path / "a.png", icc_profile=profile)
        image = load_image(tmp_path / "a.png", 8).float()
        assert (image[:, 0, 0] - torch.tensor(colour)).abs().max() <= 1, colour
        assert (image[:, 0, 7] == 255).all()  # white stays white
    draw(tmp_path / "a.png", 100, mode="L", icc_profile=swapped)  # does not fit
    assert (load_image(tmp_path / "a.png", 8) == 100).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "float.tif"])
def test_grey_of_more_than_8_bits_is_scaled_by_its_range(name, tmp_path):
    levels = np.tile(np.array([0, 16448, 32896, 65535]), (4, 1))
    if name == "float.tif":
        Image.fromarray((levels / 65535).astype(np.float32)).save(tmp_path / name)
    else:
        Image.fromarray(levels.astype(np.uint16)).save(tmp_path / name)
    image = load_image(tmp_path / name, 4)
    assert image.shape == (3, 4, 4) and (image == torch.tensor([0, 64, 128, 255])).all()
    assert load_data(tmp_path, img_size=4).images.shape == (1, 1, 4, 4)  # grey


@pytest.mark.parametrize("pixels", [
    np.array([[0, 200]], np.float32), np.array([[np.nan, 1]], np.float32),
    np.array([[0, 70000]], np.int32)])
def test_grey_of_an_unknown_range_is_refused(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match=r"a.tif can't be read as an image \(its pixels are"):
        load_image(tmp_path / "a.tif", 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation, first_row, first_column", [
    (1, "top", "left"), (2, "top", "right"), (3, "bottom", "right"), (4, "bottom", "left"),
    (5, "left", "top"), (6, "right", "top"), (7, "right", "bottom"), (8, "left", "bottom")])
def test_images_are_turned_upright(orientation, first_row, first_column, suffix, tmp_path):
    """The table is that of the EXIF standard: where the first row and column are to be seen."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = 80, 160, 240
    stored = upright if first_row in ("top", "bottom") else upright.transpose(1, 0, 2)
    stored = stored[::-1] if first_row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if first_column in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    quarters = load_image(path, 16)[0, 4::8, 4::8]
    assert (quarters.float() - torch.tensor([[80, 160], [240, 0]])).abs().max() < 8


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x05\0cut"])
def test_damaged_exif_data_does_not_spoil_an_image(exif, tmp_path, capsys, recwarn):
    draw(tmp_path / "a.png", exif=exif)
    assert halves(load_data(tmp_path, img_size=8).images[0]) == [[255, 255], [0, 0], [0, 0]]
    assert capsys.readouterr().err == "" and not recwarn.list


def test_cmyk_and_animations(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert (load_image(tmp_path / "a.jpg", 8)[:, 0, 0] - torch.tensor([250, 0, 0])).abs().max() < 9
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("b.gif", "b.webp", "b.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert load_image(tmp_path / name, 8)[:, 4, 4].tolist() == [255, 0, 0]  # the first frame


def test_a_very_long_image_shows_its_centre(tmp_path):
    image = Image.new("RGB", (40000, 4), "red")
    image.paste("blue", (19998, 0, 20002, 4))
    image.save(tmp_path / "a.png")
    centre = load_image(tmp_path / "a.png", 64)[:, :, 16:48]
    assert halves(centre) == [[0, 0], [0, 0], [255, 255]]


def test_whatever_pillow_opens_is_an_image_and_the_rest_is_counted(tmp_path, capsys):
    kinds = ["png", "gif", "jfif", "bmp", "JPG", "webp", "tiff", "ppm", "tga", "ico"]
    for kind in kinds:
        draw(tmp_path / f"{kind}.{kind}", size=(16, 16))  # Pillow 12 writes no smaller icon
    for name in ("a.heic", "film.mpg", "labels.csv", "no_ending"):
        (tmp_path / name).write_text("no image")
    for hidden in (".hidden.png", ".thumbnails/a.png", "@eaDir/a.png", "__MACOSX/a.png"):
        draw(tmp_path / hidden)
    draw(tmp_path / "Thumbs" / "a.png")
    for labelled in (False, True):
        data = load_data(str(tmp_path), img_size=8, labelled=labelled)
        assert len(data.images) == len(kinds) and data.classes == [""]
        assert capsys.readouterr().out == (
            f"{tmp_path}: 10 images of 3x8x8; left out: "
            f"4 files of a kind that Pillow can't decode ({tmp_path / 'a.heic'} and so on)\n"
        )
    (tmp_path / "set" / "IMG_1.heic").mkdir(parents=True)
    (tmp_path / "set" / "IMG_2.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match="no images, only 1 file of a kind that Pillow can't"):
        load_data(tmp_path / "set")
    (tmp_path / "set" / "IMG_2.heic").rename(tmp_path / "set" / "IMG_2.jpg")
    with pytest.raises(OSError, match=r"IMG_2.jpg .*\(its content is of no kind that Pillow can"):
        load_data(tmp_path / "set")


@links
def test_a_linked_class_folder_is_followed_and_a_circle_is_not(tmp_path):
    draw(tmp_path / "elsewhere" / "deep" / "a.png", "blue")
    draw(tmp_path / "set" / "red" / "a.png")
    (tmp_path / "set" / "blue").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "red" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "itself").symlink_to(tmp_path / "elsewhere")
    data = load_data(tmp_path / "set", img_size=8, labelled=True)
    assert data.classes == ["blue", "red"] and data.labels.tolist() == [0, 1]
    assert data.images[0, :, 0, 0].tolist() == [0, 0, 255]
    (tmp_path / "set" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(OSError, match="gone.png"):
        load_data(tmp_path / "set")


def test_a_loose_image_is_left_out_only_beside_classes(tmp_path, capsys, monkeypatch):
    draw(tmp_path / "set" / "zebra" / "a.png")
    draw(tmp_path / "set" / "ant" / "a.png", "blue")
    draw(tmp_path / "set" / "@preview.png")
    (tmp_path / "set" / "bee").mkdir()
    monkeypatch.chdir(tmp_path)
    data = load_data("set", img_size=8, labelled=True)
    assert data.classes == ["ant", "zebra"] and data.labels.tolist() == [0, 1]
    assert capsys.readouterr().out == (
        f'{tmp_path / "set"}: 2 images of 3x8x8; 2 classes: 0 "ant" 1, 1 "zebra" 1; left out: '
        f"1 image beside the class folders ({tmp_path / 'set' / '@preview.png'}), "
        f"1 folder without images ({tmp_path / 'set' / 'bee'})\n"
    )
    data = load_data("set", img_size=8)
    assert data.name == str(tmp_path / "set")  # works from another directory, too
    assert len(data.images) == 3 and data.labels.tolist() == [0] * 3 and data.classes == [""]
    assert "left out" not in capsys.readouterr().out


def test_a_run_in_the_folder_of_the_data_is_no_data(tmp_path, capsys):
    draw(tmp_path / "ant" / "a.png")
    for name in ("losses.csv", "checkpoint.pt"):
        draw(tmp_path / "runs" / f"of {name}" / "000100.png", "blue")
        (tmp_path / "runs" / f"of {name}" / name).touch()
    for labelled in (False, True):
        data = load_data(tmp_path, img_size=8, labelled=labelled)
        assert data.images.flatten(2).amax(2).tolist() == [[255, 0, 0]]
        out = capsys.readouterr().out
        assert "2 folders with a run's" in out and str(tmp_path / "runs" / "of check") in out
    (tmp_path / "losses.csv").touch()  # its own pictures would lie beside the folder of ants
    draw(tmp_path / "real.png", "blue")
    assert len(load_data(tmp_path, img_size=8).images) == 1
    with pytest.raises(ValueError, match="holds no images, only .* a run's"):
        load_data(tmp_path / "runs")


@pytest.mark.parametrize("train_name, test_name", [
    ("train", "test"), ("train", "val"), ("Training", "Testing"), ("train", "valid"),
    ("Train", "validation"), ("TRAIN", "dev"), ("training_set", "test_set"), ("train", None)])
def test_a_folder_with_a_training_and_a_test_set(train_name, test_name, tmp_path, capsys):
    for name in ("ant", "bee", "cat"):
        draw(tmp_path / train_name / name / "a.png", "red")
    draw(tmp_path / "unlabelled" / "a.png", "blue")
    for labelled in (True, False):
        data = load_data(tmp_path, img_size=8, labelled=labelled)
        assert data.classes == (["ant", "bee", "cat"] if labelled else [""])
        assert data.labels.tolist() == ([0, 1, 2] if labelled else [0, 0, 0])
        assert data.images[:, 0].min() == 255
        assert "left out: 1 item beside the training" in capsys.readouterr().out
    if not test_name:
        return
    draw(tmp_path / test_name / "bee" / "a.png", "blue")
    draw(tmp_path / test_name / "cat" / "a.png", "blue")
    train, test = (load_data(tmp_path, "", 8, train=part, labelled=True) for part in (True, False))
    assert train.classes == test.classes == ["ant", "bee", "cat"]
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [1, 2]
    assert train.images[:, 0].min() == 255 and test.images[:, 0].max() == 0
    draw(tmp_path / test_name / "dog" / "a.png")
    assert len(load_data(tmp_path, img_size=8, train=False).images) == 3
    with pytest.raises(ValueError, match="has dog, unlike"):
        load_data(tmp_path, train=False, labelled=True)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """A shell leaves it as it is in --dataset=~/pictures."""
    draw(tmp_path / "pictures" / "a.png")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert load_data("~/pictures", img_size=8).name == str(tmp_path / "pictures")


def test_a_class_may_be_called_train_and_a_test_set_must_have_its_classes(tmp_path):
    draw(tmp_path / "train" / "a.png")
    draw(tmp_path / "bus" / "a.png")
    (tmp_path / "test").mkdir()  # holds no images: not a test set
    assert load_data(tmp_path, img_size=8, labelled=True).classes == ["bus", "train"]
    draw(tmp_path / "train" / "ant" / "a.png")
    draw(tmp_path / "test" / "a.png")
    assert load_data(tmp_path, img_size=8, labelled=True).classes == ["ant"]
    with pytest.raises(ValueError, match="has images without a class, unlike"):
        load_data(tmp_path, train=False, labelled=True)


def test_odd_class_folders(tmp_path, capsys):
    """Composed and decomposed names are one class; a single folder in the way is named."""
    place = tmp_path / "archive" / "cell_images"
    for i, name in enumerate(("caf\u00e9", "cafe\u0301", "bar")):
        draw(place / name / f"{i}.png")
    data = load_data(place, img_size=8, labelled=True)
    assert data.classes == ["bar", "caf\u00e9"] and data.labels.tolist() == [0, 1, 1]
    load_data(tmp_path, img_size=8)
    assert capsys.readouterr().err == ""
    assert load_data(tmp_path, img_size=8, labelled=True).classes == ["archive"]
    assert f"the classes seem to be in {place}" in capsys.readouterr().err


def test_a_folder_with_the_name_of_a_dataset_gets_a_word(tmp_path, monkeypatch, capsys):
    write_mnist(tmp_path / "data")
    draw(tmp_path / "mnist" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert load_data("mnist").name == "mnist"
    assert "./mnist" in capsys.readouterr().err
    assert load_data("./mnist", img_size=8).name == str(tmp_path / "mnist")
    assert load_data("auto").name == "mnist" and capsys.readouterr().err == ""


def test_all_damaged_files_are_named_at_once(tmp_path, monkeypatch):
    draw(tmp_path / "sound.png")
    draw(tmp_path / "cut.png", size=(80, 80))
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    draw(tmp_path / "huge.png", size=(300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    with pytest.raises(OSError, match="take 2 of 3 files out of the folder") as error:
        load_data(tmp_path)
    message = str(error.value)
    assert all(name in message for name in ("cut.png", "huge.png"))
    assert "\n" not in message and "sound.png" not in message
    for i in range(20, 40):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(OSError, match=r"22 of 23 files .*29\.png.*and 12 more\.$") as error:
        load_data(tmp_path)
    assert "30.png" not in str(error.value)


@pytest.mark.parametrize("dataset, img_size, sentence", [
    ("", None, "is neither auto"), ("FOLDER", 0, "image size must be positive, not 0"),
    ("FOLDER", -4, "image size must be positive, not -4"), ("no_such", None, "is neither auto")])
def test_what_is_asked_for_is_checked_first(dataset, img_size, sentence, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"")
    with pytest.raises(ValueError, match=sentence):
        load_data(tmp_path if dataset == "FOLDER" else dataset, img_size=img_size)


def test_the_line_about_the_data(tmp_path, capsys):
    write_mnist(tmp_path)
    data = load_data("mnist", tmp_path)
    counts = torch.bincount(data.labels).tolist()
    classes = ", ".join(f'{i} "{i}" {n}' for i, n in enumerate(counts))
    assert capsys.readouterr().out == f"mnist: 200 images of 1x28x28; 10 classes: {classes}\n"
    for i in range(14):
        draw(tmp_path / "set" / f"c{i:02}" / "a.png")
    load_data(tmp_path / "set", img_size=8, labelled=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith('; 14 classes: ' + ", ".join(
        f'{i} "c{i:02}" 1' for i in range(12)) + ", ...\n")


@any_file_name
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_line_can_be_printed_whatever_the_classes_are_called(encoding, tmp_path, monkeypatch):
    for name in (b"\xff", "日本".encode(), b"a\nb", b"\x1b[31m"):
        draw(tmp_path / os.fsdecode(name) / "a.png")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stdout)
    data = load_data(tmp_path, img_size=8, labelled=True)
    line = stdout.buffer.getvalue().decode(encoding)
    assert len(data.classes) == 4 and line.count("\n") == 1 and "\x1b" not in line
    assert '"a\\nb" 1' in line and '"\\udcff" 1' in line
    assert ("日本" in line) == (encoding == "utf-8")


def test_a_closed_standard_output_is_no_obstacle(tmp_path, monkeypatch):
    draw(tmp_path / "a.png")
    monkeypatch.setattr(sys, "stdout", None)
    assert len(load_data(tmp_path, img_size=8).images) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_live_count_on_a_terminal(tmp_path, monkeypatch):
    for i in range(70):
        draw(tmp_path / f"{i}.png")
    monkeypatch.setattr(sys, "stdout", Terminal())
    load_data(tmp_path, img_size=8)
    *counts, last = sys.stdout.getvalue().split("\r")
    assert counts[:3] == ["", "0 of 70 images", "64 of 70 images"]
    assert not counts[3].strip() and len(counts[3]) >= len(counts[2])  # wiped out
    assert last.startswith(f"{tmp_path}: 70 images")


def test_ctrl_c_does_not_wait_for_the_rest_of_a_folder(tmp_path, monkeypatch):
    for i in range(300):
        (tmp_path / f"{i}.png").touch()

    def slow(path):
        time.sleep(0.05)
        return Image.new("RGB", (8, 8)), {}

    monkeypatch.setattr(common, "_open_image", slow)
    monkeypatch.setattr(common, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        load_data(tmp_path)
    assert time.monotonic() - start < 5  # all would take 15 s
