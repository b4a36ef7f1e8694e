"""The transfer data sets, read from small folders with their layouts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sfrik.datasets.loader import batches
from sfrik.datasets.transfer import VOC_CLASSES, load_target
from sfrik.errors import SfrikError
from sfrik.views.base import resize_for_test


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "cache"))


def save(path, value):
    """Save an image with a single grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (value, value, value)).save(path)


def names(images):
    return [images.name(i) for i in range(len(images))]


def error_message(target, split, folder):
    with pytest.raises(SfrikError) as caught:
        load_target(target, split, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_target_or_split_is_rejected_by_name(tmp_path):
    assert error_message("voc7", "train", tmp_path).startswith("unknown transfer data set 'voc7' (did you mean voc07?)")
    assert error_message("voc07", "val", tmp_path) == "unknown split 'val' of voc07: choose train or test"


# --- digits8x8


@pytest.fixture(scope="module")
def digits():
    return {split: load_target("digits8x8", split, "") for split in ("train", "test")}


def test_the_digits_have_the_shape_frame_and_range_of_mnists(digits):
    for images in digits.values():
        assert images.tensor.shape == (len(images), 1, 28, 28)
        assert images.tensor.dtype == torch.uint8
        assert images.num_classes == 10
        assert images.tensor.max() == 255
        inside = images.tensor[:, :, 4:24, 4:24].sum()
        assert inside == images.tensor.sum(), "the frame is black"
        # the 5,000 images of MNIST5k have a mean of 0.131 * 255
        assert images.tensor.float().mean() / 255 == pytest.approx(0.131, abs=0.03)


def test_the_digits_are_scikit_learns_resized_as_by_pil(digits):
    from sklearn.datasets import load_digits

    small = load_digits().images.astype(np.float32) * (255 / 16)
    for images in digits.values():
        for i in range(0, len(images), 97):
            original = small[int(images.name(i).split()[-1])]
            large = np.asarray(Image.fromarray(original).resize((20, 20), Image.Resampling.BILINEAR))
            # 0.5 for the rounding, the rest for the float arithmetic of the two libraries
            assert np.abs(images.tensor[i, 0, 4:24, 4:24].numpy() - large).max() <= 0.51


def test_the_first_two_thirds_of_each_class_of_digits_are_for_training_and_the_rest_for_test(digits):
    from sklearn.datasets import load_digits

    targets = load_digits().target
    counts = np.bincount(targets)
    assert np.bincount(digits["train"].targets).tolist() == (2 * counts // 3).tolist()
    numbers = {split: [int(name.split()[-1]) for name in names(images)] for split, images in digits.items()}
    assert sorted(numbers["train"] + numbers["test"]) == list(range(1797))
    for label in range(10):
        ours = [number for number in numbers["train"] if targets[number] == label]
        assert ours == np.flatnonzero(targets == label)[: len(ours)].tolist()
    assert digits["test"].targets.tolist() == targets[numbers["test"]].tolist()


# --- VOC07

VOC = {"trainval": ["000005", "000007", "000012"], "test": ["000001", "000002"]}


def voc_value(name, image):
    """-1, 0 or 1, depending on class and image."""
    return (VOC_CLASSES.index(name) + int(image)) % 3 - 1


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for part, images in VOC.items():
        for image in images:
            save(root / "JPEGImages" / f"{image}.jpg", 10 * int(image))
        for name in VOC_CLASSES:
            # the original's second column has two characters: "000005 -1", "000007  1"
            lines = [f"{image} {voc_value(name, image):2d}\n" for image in images]
            (root / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text("".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("split", "part"), [("train", "trainval"), ("test", "test")])
def test_voc07_has_a_row_of_20_labels_for_each_image(voc, split, part):
    images = load_target("voc07", split, voc)
    assert names(images) == [f"{image}.jpg" for image in VOC[part]]
    assert images.num_classes == len(images.classes) == 20
    assert images.targets.dtype == np.int64
    assert images.targets.tolist() == [[voc_value(name, image) for name in VOC_CLASSES] for image in VOC[part]]
    assert images.open(1).getpixel((0, 0))[0] == pytest.approx(10 * int(VOC[part][1]), abs=3)  # JPEG


def test_the_classes_of_voc07_are_torchvisions():
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    assert list(VOC_CLASSES) == FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:]


def test_selections_and_batches_of_voc07_keep_images_and_labels_together(voc):
    images = load_target("voc07", "train", voc).select([2, 0])
    parts = list(batches(images, np.array([1, 0]), resize_for_test(28, "imagenet"), 1))
    assert [part[1].tolist()[0] for part in parts] == [images.targets[1].tolist(), images.targets[0].tolist()]
    assert parts[0][0][0].shape == (1, 3, 28, 28)
    assert parts[0][0][0].mean() < parts[1][0][0].mean(), "000005 is darker than 000012"


def test_missing_or_malformed_files_of_voc07_are_named(voc, tmp_path):
    main = voc / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    assert "there is no" in (message := error_message("voc07", "train", tmp_path / "elsewhere"))
    assert "aeroplane_trainval.txt: unpack VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar in" in message
    (main / "cat_trainval.txt").write_text("000005 1\n000007 2\n000012 -1\n", encoding="utf-8")
    assert "cat_trainval.txt: a line must be an image and -1, 0 or 1, got '000007 2'" in error_message("voc07", "train", voc)
    (main / "cat_trainval.txt").write_text("000005 1\n000012 -1\n", encoding="utf-8")
    assert "cat_trainval.txt has other images than aeroplane_trainval.txt" in error_message("voc07", "train", voc)
    (main.parents[1] / "JPEGImages" / "000002.jpg").unlink()
    assert "1 of the 2 images are not in" in (message := error_message("voc07", "test", voc))
    assert "000002" in message
    (main / "dog_test.txt").unlink()
    assert "dog_test.txt" in error_message("voc07", "test", voc)


# --- Places205

PLACES = {
    "train": [("a/abbey/gsun_1.jpg", 0), ("y/yard/gsun_7.jpg", 204), ("a/apartment_building/outdoor/gsun 2.jpg", 5)],
    "val": [("y/yard/gsun_9.jpg", 204), ("a/abbey/gsun_3.jpg", 0)],
}


@pytest.fixture
def places(tmp_path):
    (tmp_path / "trainvalsplit_places205").mkdir()
    for part, lines in PLACES.items():
        text = "".join(f"{path} {label}\n" for path, label in lines)
        (tmp_path / "trainvalsplit_places205" / f"{part}_places205.csv").write_text(text, encoding="utf-8")
        for path, label in lines:
            save(tmp_path / "data/vision/torralba/deeplearning/images256" / path, label)
    return tmp_path


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "val")])
def test_places205_is_read_from_its_lists(places, split, part):
    images = load_target("places205", split, places)
    assert names(images) == [path for path, _ in PLACES[part]]
    assert images.targets.tolist() == [label for _, label in PLACES[part]]
    assert images.targets.dtype == np.int64
    assert images.num_classes == 205
    for i in range(len(images)):
        assert images.open(i).getpixel((0, 0))[0] == pytest.approx(images.targets[i], abs=3)  # JPEG


def test_places205_may_be_in_the_folder_that_its_archive_is_named_after(places):
    (places / "imagesPlaces205_resize").mkdir()
    (places / "data").rename(places / "imagesPlaces205_resize" / "data")
    assert load_target("places205", "test", places).open(0).size == (40, 30)


def test_places205_is_read_from_class_folders_where_there_are_no_lists(tmp_path):
    for part, count in (("train", 2), ("val", 1)):
        for label in range(205):
            for k in range(count):
                save(tmp_path / part / f"scene{label:03d}" / f"{k}.jpg", label)
    train, test = (load_target("places205", split, tmp_path) for split in ("train", "test"))
    assert names(train)[:3] == ["scene000/0.jpg", "scene000/1.jpg", "scene001/0.jpg"]
    assert names(test)[:2] == ["scene000/0.jpg", "scene001/0.jpg"]
    assert test.targets.tolist() == list(range(205))
    assert test.num_classes == 205


def test_class_folders_of_another_data_set_are_not_read_as_places205(tmp_path):
    """Without --target-dir the target is searched for in data_dir, which is ImageNet's folder."""
    save(tmp_path / "train" / "n01440764" / "0.jpg", 0)
    save(tmp_path / "val" / "n01440764" / "0.jpg", 0)
    for split in ("train", "test"):
        assert "has 1 class folders and not the 205 of Places205: check --target-dir" in error_message(
            "places205", split, tmp_path
        )


def test_missing_or_malformed_files_of_places205_are_named(places, tmp_path):
    message = error_message("places205", "train", tmp_path / "elsewhere")
    assert (
        "holds neither trainvalsplit_places205/ nor train/ and val/ (or test/): unpack trainvalsplit_places205.tar.gz" in message
    )
    lists = places / "trainvalsplit_places205"
    for text in ("a/abbey/gsun_1.jpg\n", "a/abbey/gsun_1.jpg abbey\n"):
        (lists / "train_places205.csv").write_text(text, encoding="utf-8")
        assert "train_places205.csv: a line must be an image's path and its class" in error_message("places205", "train", places)
    for text in ("", "a/abbey/gsun_1.jpg 205\n", "a/abbey/gsun_1.jpg -1\n"):
        (lists / "train_places205.csv").write_text(text, encoding="utf-8")
        assert "train_places205.csv: the classes must be 0 to 204" in error_message("places205", "train", places)
    (lists / "train_places205.csv").write_text("b/bar/gsun_1.jpg 3\n", encoding="utf-8")
    assert "train_places205.csv names b/bar/gsun_1.jpg, but" in error_message("places205", "train", places)
    (lists / "val_places205.csv").unlink()
    assert "val_places205.csv: unpack trainvalsplit_places205.tar.gz" in error_message("places205", "test", places)
    shutil.rmtree(places / "data")
    assert "there is no folder" in (message := error_message("places205", "train", places))
    assert "images256: unpack imagesPlaces205_resize.tar.gz" in message
