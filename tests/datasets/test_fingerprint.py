"""The fingerprint of images: the same wherever and in whatever order they are, another one if anything about them differs."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sfrik.datasets import describe_data, fingerprint, print_images
from sfrik.datasets.fingerprint import SAMPLE
from sfrik.datasets.images import Images, image_files, load_images
from sfrik.runs.data import data_differences

OTHERS = "the same numbers of images and classes, but other names, sizes, labels or contents"


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """train/ with two classes of three images, all files of one size."""
    for number, name in enumerate(f"{label}/{k}" for label in ("cat", "dog") for k in range(3)):
        path = tmp_path / "data" / "train" / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "data"


def described(folder):
    return describe_data(load_images("imagenet", "train", folder))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda train: (train / "cat" / "0.bmp").unlink(), "6 images -> 5 images"),
        (lambda train: shutil.copytree(train / "dog", train / "emu"), "6 images -> 9 images, 2 classes -> 3 classes"),
        (lambda train: (train / "dog" / "2.bmp").rename(train / "dog" / "9.bmp"), OTHERS),
        (lambda train: (train / "dog").rename(train / "emu"), OTHERS),
        (lambda train: (train / "dog" / "2.bmp").rename(train / "cat" / "2b.bmp"), OTHERS),
        (lambda train: Image.new("RGB", (9, 8)).save(train / "dog" / "2.bmp"), OTHERS),
        (lambda train: shutil.copy(train / "dog" / "1.bmp", train / "dog" / "2.bmp"), OTHERS),
        (lambda train: (train / "dog" / "2.bmp").unlink() or (train / "dog" / "2.bmp").symlink_to("gone"), OTHERS),
    ],
)
def test_a_change_of_the_images_is_a_difference(photos, change, difference):
    before = described(photos)
    assert before == described(photos) == before | {"images": 6, "classes": 2}
    change(photos / "train")
    assert data_differences(before, described(photos)) == difference


@pytest.mark.parametrize("dataset", ["imagenet", "image_folder"])
def test_the_size_of_each_file_counts_and_not_only_of_those_that_are_read(tmp_path, dataset, monkeypatch):
    """The names of an imagenet folder come from the cache, those of images without labels from the folder."""
    folder = tmp_path / "train" / "cat" if dataset == "imagenet" else tmp_path / "photos"
    folder.mkdir(parents=True)
    for k in range(3 * SAMPLE):
        (folder / f"{k:03d}.png").write_bytes(b"old")
    for place in (folder, folder.parent):
        os.utime(place, (1000, 1000))  # long ago: the listing is cached

    def described():
        return describe_data(load_images(dataset, "pretrain", folder.parents[1] if dataset == "imagenet" else folder))

    small = described()
    monkeypatch.setattr(fingerprint, "WHOLE", SAMPLE)
    before = described()
    (folder / "001.png").write_bytes(b"newer")  # the time of the folder is the same
    assert data_differences(before, described()) == OTHERS
    (folder / "001.png").write_bytes(b"new")
    assert described() == before, "not read, and as large"
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "WHOLE", 3 * SAMPLE)
        assert data_differences(small, described()) == OTHERS, "all files of a small folder are read"
    (folder / "000.png").write_bytes(b"new")
    assert data_differences(before, described()) == OTHERS


def test_a_moved_or_copied_folder_has_the_same_fingerprint(photos, tmp_path):
    before = described(photos)
    shutil.copytree(photos, tmp_path / "copy")  # with the times of now, and the order of another folder
    for path in sorted((tmp_path / "copy").rglob("*"), reverse=True):
        os.utime(path, (1000, 1000))
    assert described(tmp_path / "copy") == before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "copy" / "train" / "cat").rename(tmp_path / "elsewhere" / "cat")
    (tmp_path / "copy" / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "cat", target_is_directory=True)
    assert described(tmp_path / "copy") == before
    for path in (tmp_path / "elsewhere" / "cat").glob("*"):  # as git-annex keeps files
        path.rename(tmp_path / "elsewhere" / path.name)
        path.symlink_to(tmp_path / "elsewhere" / path.name)
    assert described(tmp_path / "copy") == before


def test_other_labels_of_the_same_images_are_a_difference(photos):
    names, labels = [f"{label}/{k}.bmp" for label in ("cat", "dog") for k in range(3)], np.array([0, 0, 0, 1, 1, 1])

    def of(labels, classes=("cat", "dog")):
        return describe_data(image_files(photos / "train", names, labels, classes))

    assert data_differences(of(labels), of(labels[::-1].copy())) == OTHERS
    assert data_differences(of(labels), of(labels, ("cat", "emu"))) == OTHERS
    assert of(np.full(6, -1)) == of(np.full(6, -1)) | {"images": 6, "classes": 0}
    several = np.stack([labels, 1 - labels], axis=1)
    assert data_differences(of(several), of(several[:, ::-1].copy())) == OTHERS


def test_the_order_of_the_images_does_not_matter_and_a_selection_has_its_own_fingerprint(photos):
    images, pixels = load_images("imagenet", "train", photos), torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    in_memory = Images(np.array([0, 0, 1, 1]), 2, "image {}".format, tensor=pixels)
    opened = Images(in_memory.targets, 2, in_memory.name, open=lambda index: Image.new("RGB", (4, 4), (index, 0, 0)))
    for whole in (images, in_memory, opened):
        assert describe_data(whole.select(np.arange(len(whole))[::-1])) == describe_data(whole)
        assert describe_data(whole.select([0, 3])) == describe_data(whole.select([1, 3, 0]).select([2, 1]))
        assert data_differences(describe_data(whole.select([0, 3])), describe_data(whole.select([0, 2]))) == OTHERS
    other = Images(in_memory.targets, 2, in_memory.name, tensor=pixels.flip(0))
    assert data_differences(describe_data(in_memory), describe_data(other)) == OTHERS


def test_without_a_record_there_is_no_difference(photos):
    present = described(photos)
    assert data_differences(None, present) == data_differences(present, None) == data_differences({}, present) == ""
    assert data_differences({"images": 6, "classes": 2, "sha256": present["sha256"]}, present) == ""


def test_the_format_of_most_files_is_recorded_and_is_no_difference(photos, tmp_path):
    before = described(photos)
    assert before["encoding"] == "BMP"
    older = {name: value for name, value in before.items() if name != "encoding"}
    assert data_differences(older, before) == data_differences(before, older) == ""
    assert data_differences(before | {"encoding": "original"}, before) == ""
    rest = ["a/0.png", "a/1.png", "a/2.JPG", "a/3.jpeg", "a/4.jpe", "a/5.webp"]
    for name in rest:
        (tmp_path / "mixed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixed" / name).write_bytes(b"")
    for names, encoding in ((rest, "JPEG"), (rest[:3], "PNG"), (["a/0.TIF", "a/0.png", "a/1.tiff"], "TIFF")):
        assert describe_data(image_files(tmp_path / "mixed", names, np.zeros(len(names), dtype=np.int64)))["encoding"] == encoding
    arrays = load_images("mnist5k", "test")
    assert "encoding" not in describe_data(arrays)
    assert describe_data(replace(arrays, encoding="original")) == describe_data(arrays) | {"encoding": "original"}


def test_a_line_states_how_many_images_of_how_many_classes_were_read(photos, capsys):
    print_images("training", load_images("imagenet", "train", photos))
    print_images("training", load_images("image_folder", "pretrain", photos / "train"))
    print_images("test", load_images("mnist5k", "test"))
    assert capsys.readouterr().out == (
        f"training images: 6, 2 classes, from {photos / 'train'}\n"
        f"training images: 6, without labels, from {photos / 'train'}\n"
        "test images: 1000, 10 classes, from MNIST5k\n"
    )
