"""The share of the labels that semi-supervised evaluation trains on.

1 % and 10 % of ImageNet are SimCLR's lists of file names (Chen et al. 2020, section 4.2 and appendix B.5), which later
papers use too; they are roughly class-balanced and cannot be reproduced by sampling. Other percentages, and those of the other
data sets, are the first images of each class.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from sfrik.datasets.images import Images
from sfrik.datasets.listing import cache_folder
from sfrik.datasets.sizes import class_members
from sfrik.errors import MissingImagesError, SfrikError
from sfrik.system.download import ChecksumError, Download, DownloadError
from sfrik.system.files import WriteError, read_bytes
from sfrik.system.terminal import print_line

__all__ = ["labelled_share", "simclr_list"]

SIMCLR = "https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets/{percent}percent.txt"
SHA256 = {
    1: "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    10: "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}


def labelled_share(images: Images, dataset: str, percent: float, label_list: str = "") -> Images:
    """Select the images whose labels are used, in the data set's order.

    Without a list, the first max(1, round(percent / 100 * m)) of a class's m images are taken, in the data set's order
    (Python's round: halves are rounded to the even number). A larger percentage therefore adds images to those of a smaller one.

    Args:
        images: all training images, with their labels.
        dataset: a name of `sfrik.datasets.load_images`.
        percent: percentage of the labels, above 0; at 100 `images` is returned unchanged.
        label_list: file of image names, one per line: file names (n01440764_10074.JPEG), or paths below the training
            folder (n01440764/n01440764_10074.JPEG) where several classes have a file of this name. UTF-8 or UTF-16, with any
            line ends, with "/" or "\\" between the parts of a path. With a list the percentage does not matter, but must be
            below 100. 1 and 10 % of ImageNet without it: SimCLR's lists.

    Raises:
        SfrikError: a name on the list is the name of no image or of several; the list is empty, cannot be read or downloaded, or
            given with 100 %; the images have no labels, or several each.
    """
    if not 0 < percent <= 100:
        raise SfrikError(f"train_percent must be above 0 and at most 100 %, got {percent}")
    if percent == 100 and label_list:
        raise SfrikError(f"the label list {label_list} needs train_percent below 100: at 100 all labels are used")
    if percent == 100:
        return images
    if label_list:
        chosen = _listed(images, _read_names(label_list), label_list)
        share = 100 * len(chosen) / len(images)
        if not percent / 2 < share < 2 * percent:  # the list of another share, perhaps
            text = f"label list {label_list}: it has {share:.3g} % of the training images, but train_percent is {percent}"
            print_line(text, error=True)
        return images.select(chosen)
    if dataset == "imagenet" and percent in SHA256:
        return images.select(_listed(images, simclr_list(percent).split(), f"of SimCLR's {percent} %"))
    if len(images) == 0 or images.targets.ndim != 1 or images.targets.min() < 0:
        raise SfrikError(f"{dataset}: train_percent below 100 needs images with one label each")
    members = class_members(images.targets).values()
    return images.select(np.sort(np.concatenate([some[: max(1, round(percent / 100 * len(some)))] for some in members])))


def simclr_list(percent: float) -> str:
    """SimCLR's list of 1 or 10 % of ImageNet's training images, one file name per line.

    Downloaded on first use to label_lists/ in `sfrik.datasets.listing.cache_folder()`; its SHA-256 is checked at each use.

    Raises:
        SfrikError: there is no list for this percentage, it cannot be downloaded, or its SHA-256 is another one.
    """
    remedy = "give a list as --label-list FILE"
    if percent not in SHA256:
        raise SfrikError(f"there is no list of {percent} % of ImageNet's labels, only of 1 and 10 %: {remedy}")
    percent = int(percent)
    url, cached = SIMCLR.format(percent=percent), cache_folder() / "label_lists" / f"imagenet-{percent}percent.txt"
    source = Download(url, SHA256[percent])
    try:
        try:
            source.to_file(cached, lambda path: _is_known(path, percent))
            return read_bytes(cached).decode()
        except WriteError:  # downloaded again next time
            content = io.BytesIO()
            source.write(content)
            return content.getvalue().decode()
    except ChecksumError as error:
        raise SfrikError(f"the label list {url} is not the known one ({error}): {remedy}") from None
    except DownloadError as error:
        raise MissingImagesError(
            f"the label list {url} could not be downloaded ({error}): get it elsewhere, then {remedy}"
        ) from None


def _is_known(path: Path, percent: int) -> bool:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest() == SHA256[percent]
    except SfrikError:
        return False


def _read_names(path: str) -> list[str]:
    """The lines of a label list that are not empty."""
    try:
        content = read_bytes(path)
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        elif b"\0" in content:  # UTF-16 without a byte order mark: every second byte of these names is 0
            text = content.decode("utf-16-le" if content.index(b"\0") % 2 else "utf-16-be")
        else:
            text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise SfrikError(
            f"cannot read the label list {path}: {path} is not UTF-8 text ({byte}): save it as UTF-8, one name per line"
        ) from None
    except SfrikError as error:
        raise SfrikError(f"cannot read the label list {path}: {error}: check --label-list") from None
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _listed(images: Images, names: Sequence[str], source: str) -> np.ndarray:
    """Indices of the images on the list, sorted."""
    if not names:
        raise SfrikError(f"label list {source} is empty: write the name of one training image per line")
    wanted = {spelling: _spellings(name)[-1] for name in names for spelling in _spellings(name)}
    listed, found = set(wanted.values()), cast("dict[str, int]", {})
    for i in range(len(images)):
        image = images.name(i)
        for key in (image, image.rsplit("/", 1)[-1]):
            name = wanted.get(key)
            if name is None or found.get(name) == i:
                continue
            if name in found:
                raise SfrikError(
                    f"label list {source}: {key} is the name of {images.name(found[name])} and of {image}: "
                    "write the names with their class folder"
                )
            found[name] = i
    missing = sorted(listed - found.keys())
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SfrikError(
            f"label list {source}: {len(missing)} of its {len(listed)} names are not among the {len(images)} training images "
            f"({first}): the list needs the whole training set, and images of train/ only; check --data-dir and --label-list"
        )
    chosen = np.unique(np.fromiter(found.values(), np.int64))
    if repeated := len(names) - len(chosen):
        text = f"label list {source}: {repeated} of its {len(names)} lines repeat an image, which is used once"
        print_line(text, error=True)
    if left := images.num_classes - len(np.unique(images.targets[chosen])):
        text = f"label list {source}: it has no image of {left} of the {images.num_classes} classes, which the head cannot learn"
        print_line(text, error=True)
    return chosen


def _spellings(name: str) -> tuple[str, ...]:
    """The texts that an image on a list may be known by; the last one is the same for all ways to write a path."""
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return name, plain, plain.removeprefix("train/")
