"""Input files that are not regular files, not text or not images: an immediate error of one line that names the file."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from sfrik.datasets import decoding
from sfrik.datasets.decoding import FORMATS, decode_image, read_image
from sfrik.datasets.entries import EXTENSIONS, UNREAD
from sfrik.datasets.images import Images, load_images
from sfrik.datasets.label_fraction import labelled_share
from sfrik.datasets.listing import list_images
from sfrik.datasets.loader import batches
from sfrik.datasets.transfer import VOC_CLASSES, load_target
from sfrik.errors import SfrikError
from sfrik.launch.slurm import read_site
from sfrik.objectives.base import NotFinite
from sfrik.plots.style import write_figure
from sfrik.pretrain.nonfinite import save_nonfinite_state
from sfrik.system.files import WriteError
from sfrik.views.base import resize_for_test

SECONDS = 60  # opening a FIFO blocks forever


@pytest.fixture(autouse=True)
def limits(monkeypatch, tmp_path):
    """A separate cache, and an alarm that fails a test that hangs."""
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "cache"))
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def device(path):
    path.symlink_to("/dev/zero")


# what is in a file's place: its name in the message, and how to make it
NOT_REGULAR = {"a FIFO": os.mkfifo, "a device": device, "a folder": Path.mkdir}
LATIN = b"caf\xe9\n"


def put(path, what):
    """Replace a file by bytes or by something that is not a regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if isinstance(what, bytes):
        path.write_bytes(what)
    else:
        NOT_REGULAR[what](path)


def line(read, *arguments):
    """The message of the error that `read` raises, one line."""
    with pytest.raises(SfrikError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- text


def label_list(folder):
    images = Images(np.zeros(3, np.int64), 10, lambda i: f"n01_{i}.JPEG", tensor=torch.zeros(3, 1, 1, 1))
    return folder / "list.txt", lambda: labelled_share(images, "imagenet", 10, str(folder / "list.txt"))


def slurm_settings(folder):
    return folder / "slurm.toml", lambda: read_site(folder / "slurm.toml")


def slurm_settings_of_the_environment(folder):
    os.environ["SFRIK_SLURM"] = str(folder / "mine.toml")  # the fixture `no_slurm` removes it
    return folder / "mine.toml", read_site


def voc_list(folder):
    lists = folder / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in VOC_CLASSES:
        (lists / f"{name}_trainval.txt").write_text("000001 1\n", encoding="utf-8")
    return lists / f"{VOC_CLASSES[3]}_trainval.txt", lambda: load_target("voc07", "train", folder)


def places_list(folder):
    (folder / "data/vision/torralba/deeplearning/images256").mkdir(parents=True)
    path = folder / "trainvalsplit_places205" / "train_places205.csv"
    path.parent.mkdir()
    return path, lambda: load_target("places205", "train", folder)


def names_of_stl10(folder):
    return folder / "stl10_binary" / "class_names.txt", lambda: load_images("stl10", "train", folder)


TEXTS = [label_list, slurm_settings, slurm_settings_of_the_environment, voc_list, places_list, names_of_stl10]


@pytest.fixture
def no_slurm(monkeypatch):
    monkeypatch.setenv("SFRIK_SLURM", "")


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("make", TEXTS)
@pytest.mark.parametrize("what", [*NOT_REGULAR, LATIN])
def test_a_list_or_settings_file_that_is_not_text_is_rejected_with_its_name_and_the_reason(tmp_path, make, what):
    path, read = make(tmp_path)
    if what == "a folder" and make is names_of_stl10:
        pytest.skip("torchvision does not use a folder of that name")
    put(path, what)
    words = "is not UTF-8 text (byte 3 is 0xe9): save it as UTF-8" if what == LATIN else f"is {what} and not a regular file"
    assert f"{path} {words}" in line(read)


@pytest.mark.parametrize("number", ["9" * 30, "x", "1.5", ""])
def test_a_class_of_places205_that_is_not_a_valid_number_is_rejected_with_the_name_of_the_list(tmp_path, number):
    path, read = places_list(tmp_path)
    path.write_text(f"a/b.jpg {number}\n", encoding="utf-8")
    assert f"{path}: a line must be an image's path and its class" in line(read)


# --- data sets that torchvision reads


@pytest.mark.parametrize("what", ["a FIFO", "a device"])
@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("stl10", "stl10_binary.tar.gz"),
        ("stl10", "stl10_binary/train_X.bin"),
        ("stl10", "stl10_binary/unlabeled_X.bin"),
    ],
)
def test_a_file_of_cifar10_or_stl10_that_is_not_regular_is_rejected_before_any_download(tmp_path, dataset, name, what):
    put(tmp_path / name, what)
    assert line(load_images, dataset, "train", tmp_path) == f"{tmp_path / name} is {what} and not a regular file"


# --- images


@pytest.fixture
def folder(tmp_path):
    """Eight images in two classes, in the layout of ImageNet's training folder."""
    for k in range(8):
        path = tmp_path / "train" / "ab"[k // 4] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (30 * k, 0, 0)).save(path)
    return tmp_path


@pytest.mark.parametrize("read", [read_image, decode_image])
@pytest.mark.parametrize("what", NOT_REGULAR)
def test_an_image_that_is_not_a_regular_file_is_rejected(tmp_path, read, what):
    put(tmp_path / "a.JPEG", what)
    path = tmp_path / "a.JPEG"
    assert line(read, path) == f"cannot read image {path}: it is {what} and not a regular file"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", ["a FIFO", "a device"])
def test_a_path_that_is_not_a_regular_file_is_rejected_among_images_or_skipped_with_skip_broken(folder, what, workers):
    path = folder / "train" / "b" / "5.png"
    put(path, what)
    images, views = load_images("image_folder", "train", folder), resize_for_test(16, "imagenet")

    def read(skip_broken=False):
        return list(batches(images, np.arange(8), views, 4, workers=workers, skip_broken=skip_broken))

    assert line(read) == f"cannot read image {path}: it is {what} and not a regular file"
    assert [i for _, _, shown in read(skip_broken=True) for i in shown] == [0, 1, 2, 3, 4, 6, 6, 7]


def test_a_cached_listing_that_is_not_a_regular_file_is_replaced(folder, tmp_path):
    for place in ("a", "b"):
        os.utime(folder / "train" / place, (1000, 1000))
    expected = list(list_images(folder / "train").names)
    (cached,) = (tmp_path / "cache" / "listings").iterdir()
    put(cached, "a FIFO")
    assert list(list_images(folder / "train").names) == expected
    assert cached.is_file()


def test_the_extensions_are_all_those_of_the_formats_that_are_read():
    Image.init()
    assert {extension for extension, kind in Image.registered_extensions().items() if kind in FORMATS} == set(EXTENSIONS)
    assert set(IMG_EXTENSIONS) <= set(EXTENSIONS)
    assert not UNREAD & set(EXTENSIONS)


OTHERS = ["GIF", "TGA", "PCX", "ICO", "SGI", "EPS", "DDS", "ICNS", "PDF", "TXT", "PSD", "FITS"]
HEADS = {"PSD": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\1\0\0\0\1\0\x08\0\3" + bytes(40), "FITS": b"SIMPLE  =" + b" " * 2880}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_misnamed_file_of_another_format_reaches_none_of_pils_other_parsers(tmp_path, monkeypatch, kind):
    buffer = io.BytesIO()
    if kind in HEADS or kind == "TXT":
        buffer.write(HEADS.get(kind, b"text"))
    else:
        Image.new("RGB", (32, 32)).save(buffer, format=kind)
    (tmp_path / "a.JPEG").write_bytes(buffer.getvalue())
    Image.init()
    fail = {name: (lambda *_, name=name: pytest.fail(f"the parser of {name} was reached"), None) for name in Image.OPEN}
    monkeypatch.setattr(Image, "OPEN", {**fail, **{name: Image.OPEN[name] for name in FORMATS}})
    for read in (read_image, decode_image):
        assert "a.JPEG: not an image file (JPEG, PNG, BMP, PPM, TIFF and WEBP are read); copy" in line(read, tmp_path / "a.JPEG")


def test_a_jpeg_with_several_pictures_is_read_as_a_jpeg(tmp_path):
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.JPEG", format="MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "a.JPEG") as image:
        assert image.format == "MPO"
    for read in (read_image(tmp_path / "a.JPEG"), decode_image(tmp_path / "a.JPEG").permute(1, 2, 0)):
        assert np.abs(np.asarray(read).astype(int) - np.asarray(first)).max() < 6, "the first picture, within a JPEG's loss"


def test_a_file_that_was_removed_after_its_listing_is_reported_as_such(tmp_path):
    assert "the file was removed after its folder was listed" in line(decode_image, tmp_path / "gone.JPEG")
    assert decoding.FORMATS[0] == "JPEG"  # the only one that torchvision decodes


# --- files that cannot be written


def test_a_figure_that_cannot_be_written_gives_an_error_of_one_line_and_the_old_file_stays(tmp_path, monkeypatch):
    figure = plt.figure()
    write_figure(figure, tmp_path / "new" / "a.png")
    before = (tmp_path / "new" / "a.png").read_bytes()
    write_figure(figure, tmp_path / "new" / "b.svg", metadata={"Date": None})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "b.svg"]
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WriteError, match=r"a\.png could not be written \(the disk is full; it needs "):
        write_figure(figure, tmp_path / "new" / "a.png", dpi=300)
    assert (tmp_path / "new" / "a.png").read_bytes() == before
    (tmp_path / "file").touch()
    assert "file/a.png could not be written" in line(write_figure, figure, tmp_path / "file" / "a.png")
    plt.close(figure)


def test_a_fault_is_reported_even_if_its_state_cannot_be_saved(tmp_path):
    (tmp_path / "file").touch()
    fault = save_nonfinite_state(
        NotFinite("the loss is nan", []), tmp_path / "file", {"epoch": 1, "step": 2}, ["a"], [torch.ones(1, 2)], {}
    )
    assert "epoch 1, step 2: the loss is nan; the state could not be saved (" in str(fault)
    assert "\n" not in str(fault)
