"""The labelled fraction: the first images of each class, the user's list, and SimCLR's lists."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import web_server

from sfrik.datasets import label_fraction as labels
from sfrik.datasets.images import Images, load_images
from sfrik.datasets.label_fraction import labelled_share, simclr_list
from sfrik.errors import SfrikError

LISTS = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def named_images(names, targets=None):
    """Images with these names; the value of image i is i."""
    targets = np.zeros(len(names)) if targets is None else targets
    pixels = torch.arange(len(names)).reshape(-1, 1, 1, 1)
    return Images(np.asarray(targets, dtype=np.int64), 10, lambda i: names[i], tensor=pixels)


def chosen(images):
    return images.tensor.flatten().tolist()


NAMES = [f"{wnid}/{wnid}_{k}.JPEG" for wnid in ("n01", "n02", "n03") for k in range(4)]


@pytest.fixture
def listed(tmp_path):
    def write(*lines, end="\n"):
        path = tmp_path / "list.txt"
        path.write_bytes("".join(line + end for line in lines).encode())
        return str(path)

    return write


# --- the first images of each class


@pytest.mark.parametrize(("percent", "per_class"), [(1, 4), (10, 35)])  # 3.5 is rounded to the even number, 4
def test_the_fraction_of_mnist5k_is_the_same_number_of_first_images_of_each_class(percent, per_class):
    images = load_images("mnist5k", "train")
    share = labelled_share(images, "mnist5k", percent)
    assert np.bincount(share.targets).tolist() == [per_class] * 10
    first = load_images("mnist5k", "train", subset=per_class)
    assert torch.equal(share.tensor, first.tensor)
    assert [share.name(i) for i in range(len(share))] == [first.name(i) for i in range(len(first))]


def test_at_100_percent_the_images_are_returned_unchanged():
    images = named_images(NAMES)
    assert labelled_share(images, "imagenet", 100) is images
    with pytest.raises(SfrikError, match=r"label list .* needs train_percent below 100"):  # not ignored
        labelled_share(images, "mnist5k", 100, "list.txt")


@pytest.mark.parametrize("dataset", ["mnist5k", "cifar10", "stl10", "image_folder"])
def test_each_class_contributes_its_fraction_and_at_least_one_image_in_the_data_sets_order(dataset):
    targets = [3] * 26 + [0] * 4 + [3] * 24 + [7] * 15 + [0]
    share = labelled_share(named_images([str(k) for k in range(70)], targets), dataset, 10)
    assert chosen(share) == [0, 1, 2, 3, 4, 26, 54, 55]  # of 50, 5 and 15 images: 5, 0.5 and 1.5
    assert share.targets.tolist() == [3] * 5 + [0] + [7] * 2


def test_any_percentage_is_drawn_per_class_and_contains_every_smaller_one():
    images = load_images("mnist5k", "train")  # 350 images per class
    shares = {percent: labelled_share(images, "mnist5k", percent) for percent in (0.001, 0.5, 2.5, 33.3, 99.9)}
    assert [np.bincount(share.targets).tolist() for share in shares.values()] == [[n] * 10 for n in (1, 2, 9, 117, 350)]
    names = [{share.name(i) for i in range(len(share))} for share in shares.values()]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(names))


def test_a_fraction_needs_one_label_per_image_and_a_valid_percentage():
    with pytest.raises(SfrikError, match="stl10: train_percent below 100 needs images with one label each"):
        labelled_share(named_images(NAMES, [-1] * 12), "stl10", 10)
    with pytest.raises(SfrikError, match="one label each"):
        labelled_share(Images(np.ones((4, 3), dtype=np.int64), 3, str), "image_folder", 10)
    for percent in (0, -1, 101):
        with pytest.raises(SfrikError, match=rf"above 0 and at most 100 %, got {percent}"):
            labelled_share(named_images(NAMES), "mnist5k", percent)


# --- the user's list


@pytest.mark.parametrize("dataset", ["imagenet", "image_folder"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \n", "\r"])
def test_the_images_on_a_list_are_taken_in_the_data_sets_order(listed, dataset, end):
    path = listed("n03_1.JPEG", "n01_2.JPEG", "n01/n01_0.JPEG", end=end)
    assert chosen(labelled_share(named_images(NAMES), dataset, 10, path)) == [0, 2, 9]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.replace("/", "\\").encode(),
        lambda text: ("./" + text.replace("\r\n", "\r\n./")).removesuffix("./").encode(),
        lambda text: ("train/" + text.replace("\r\n", "\r\ntrain/")).removesuffix("train/").encode(),
    ],
)
def test_a_list_is_read_in_any_encoding_and_spelling_of_paths(encode, tmp_path, capsys):
    path = tmp_path / "list.txt"
    path.write_bytes(encode("katze/ä 1.jpg\r\nhund/1.jpg\r\n"))
    names = ["hund/1.jpg", "hund/2.jpg", "katze/1.jpg", "katze/ä 1.jpg"]
    images = Images(np.array([0, 0, 1, 1]), 2, lambda i: names[i], tensor=torch.arange(4).reshape(-1, 1, 1, 1))
    assert chosen(labelled_share(images, "image_folder", 50, str(path))) == [0, 3]
    assert capsys.readouterr().err == ""


def test_a_name_that_is_listed_twice_selects_its_image_once_and_is_reported(listed, capsys):
    path = listed("n03_1.JPEG", "n03_1.JPEG", "n03/n03_1.JPEG", "n03\\n03_1.JPEG", "n01_0.JPEG")
    assert chosen(labelled_share(named_images(NAMES, [0] * 8 + [9] * 4), "imagenet", 1, path)) == [0, 9]
    assert capsys.readouterr().err.splitlines() == [
        f"label list {path}: 3 of its 5 lines repeat an image, which is used once",
        f"label list {path}: it has no image of 8 of the 10 classes, which the head cannot learn",
        f"label list {path}: it has 16.7 % of the training images, but train_percent is 1",
    ]


def test_names_that_are_not_among_the_images_are_counted_and_named(listed):
    path = listed("n01_0.JPEG", "n09_4.JPEG", "n08_1.JPEG", "n08_0.JPEG", "n08_2.JPEG")
    with pytest.raises(SfrikError) as caught:
        labelled_share(named_images(NAMES), "imagenet", 10, path)
    message = str(caught.value)
    assert f"label list {path}: 4 of its 5 names are not among the 12 training images" in message
    assert "(n08_0.JPEG, n08_1.JPEG, n08_2.JPEG, ...)" in message
    assert "check --data-dir and --label-list" in message
    assert "\n" not in message


def test_a_file_name_that_several_images_have_is_rejected(listed):
    images = named_images(["cat/001.jpg", "cat/002.jpg", "dog/001.jpg"])
    with pytest.raises(SfrikError, match=r"001\.jpg is the name of cat/001\.jpg and of dog/001\.jpg: write the names with"):
        labelled_share(images, "image_folder", 10, listed("001.jpg"))
    assert chosen(labelled_share(images, "image_folder", 10, listed("dog/001.jpg", "002.jpg"))) == [1, 2]


def test_a_list_that_is_empty_missing_or_not_text_is_rejected(listed, tmp_path):
    with pytest.raises(SfrikError, match=r"label list .*list\.txt is empty"):
        labelled_share(named_images(NAMES), "imagenet", 10, listed("", " "))
    with pytest.raises(SfrikError, match=r"cannot read the label list .*gone\.txt: there is no file .*: check --label-list$"):
        labelled_share(named_images(NAMES), "imagenet", 10, str(tmp_path / "gone.txt"))
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SfrikError, match=r"cannot read the label list .*image"):
        labelled_share(named_images(NAMES), "imagenet", 10, str(tmp_path / "image"))


def test_a_list_works_on_a_folder_of_files(tmp_path, listed):
    for name in NAMES:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    images = load_images("imagenet", "train", tmp_path)
    share = labelled_share(images, "imagenet", 10, listed("n02_3.JPEG", "n02_0.JPEG"))
    assert [share.name(i) for i in range(2)] == ["n02/n02_0.JPEG", "n02/n02_3.JPEG"]
    assert share.targets.tolist() == [1, 1]


# --- SimCLR's lists


@pytest.fixture
def server(monkeypatch):
    """A local server in place of SimCLR's, with a list of 10 % whose checksum is made the expected one."""
    content = {"/10percent.txt": b"n03_1.JPEG\nn01_2.JPEG\n"}
    with web_server(content) as running:
        running.content = content
        monkeypatch.setattr(labels, "SIMCLR", f"{running.url}/{{percent}}percent.txt")
        monkeypatch.setitem(labels.SHA256, 10, hashlib.sha256(content["/10percent.txt"]).hexdigest())
        yield running


def fraction_of_imagenet():
    return chosen(labelled_share(named_images(NAMES), "imagenet", 10))


def test_simclrs_list_is_downloaded_once(server, cache):
    assert fraction_of_imagenet() == [2, 9]
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["imagenet-10percent.txt"]
    server.content.clear()
    assert fraction_of_imagenet() == [2, 9], "from the cache: the server no longer has it"


def test_a_damaged_copy_in_the_cache_is_downloaded_again(server, cache):
    fraction_of_imagenet()
    (cache / "label_lists" / "imagenet-10percent.txt").write_text("n01_0.JPEG\n", encoding="utf-8")
    assert fraction_of_imagenet() == [2, 9]
    server.content.clear()
    assert fraction_of_imagenet() == [2, 9]


def test_a_cache_that_cannot_be_written_is_no_error(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "file" / "cache"))
    assert fraction_of_imagenet() == [2, 9]


def refusal():
    with pytest.raises(SfrikError) as caught:
        fraction_of_imagenet()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_list_with_another_checksum_is_rejected_and_not_cached(server, cache):
    server.content["/10percent.txt"] = b"<html>please log in</html>"
    message = refusal()
    assert "is not the known one (SHA-256 " in message
    assert message.endswith("give a list as --label-list FILE")
    assert not cache.exists()


def test_an_interrupted_download_is_rejected_and_not_cached(server, cache):
    server.missing = 100
    assert "could not be downloaded (the connection ended after 22 of 122 bytes)" in refusal()
    assert not cache.exists()


def test_without_a_network_the_error_names_the_flag_for_a_list(server, monkeypatch):
    server.content.clear()
    assert "could not be downloaded (Not Found): get it elsewhere, then give a list as --label-list FILE" in refusal()
    monkeypatch.setattr(labels, "SIMCLR", "http://127.0.0.1:1/{percent}percent.txt")
    assert "could not be downloaded ([Errno 111] Connection refused)" in refusal().replace("Errno 61", "Errno 111")


def test_other_percentages_of_imagenet_than_1_and_10_are_the_first_images_of_each_class():
    assert chosen(labelled_share(named_images(NAMES, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]), "imagenet", 50)) == [0, 1, 4, 5, 8, 9]
    with pytest.raises(SfrikError, match=r"there is no list of 5 % of ImageNet's labels, only of 1 and 10 %: give a list"):
        simclr_list(5)


@pytest.mark.parametrize(("percent", "lines"), [(1, 12811), (10, 128116)])
def test_simclrs_lists_have_the_expected_checksums_and_select_every_image_on_them(percent, lines, monkeypatch):
    path = LISTS / f"imagenet-{percent}percent.txt"
    if not path.is_file():
        pytest.skip(f"SimCLR's list is not at {path}")
    monkeypatch.setattr(labels, "SIMCLR", f"{LISTS.resolve().as_uri()}/imagenet-{{percent}}percent.txt")
    assert simclr_list(percent) == path.read_text(encoding="utf-8")
    files = sorted(path.read_text(encoding="utf-8").split())
    names = [f"{file.split('_')[0]}/{prefix}{file}" for file in files for prefix in ("", "not_")]
    share = labelled_share(named_images(names), "imagenet", percent)
    assert chosen(share) == list(range(0, 2 * lines, 2))
    assert labelled_share(named_images(names), "imagenet", percent, str(path)).tensor.equal(share.tensor)
