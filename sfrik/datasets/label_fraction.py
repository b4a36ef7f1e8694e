"""The 1 % and 10 % of the labels that semi-supervised evaluation trains on.

On ImageNet these are SimCLR's lists of file names (Chen et al. 2020, section 4.2 and appendix B.5), which later
papers use too; they are roughly class-balanced and cannot be reproduced by sampling. On the other data sets they are the first
images of each class.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import urllib.request

import numpy as np

from sfrik.datasets.images import Images, class_members
from sfrik.datasets.listing import cache_folder
from sfrik.errors import SfrikError
from sfrik.system.files import WriteError, atomic_write, read_bytes, read_text

__all__ = ["labelled_share", "simclr_list"]

SIMCLR = "https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets/{percent}percent.txt"
SHA256 = {
    1: "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17",
    10: "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091",
}
TIMEOUT = 60  # seconds without a byte from the server


def labelled_share(images: Images, dataset: str, percent: int, label_list: str = "") -> Images:
    """Select the images whose labels are used, in the data set's order.

    Without a list, the first max(1, round(percent / 100 * m)) of a class's m images are taken, in the data set's order
    (Python's round: halves are rounded to the even number).

    Args:
        images: all training images, with their labels.
        dataset: mnist5k, cifar10, stl10, imagenet or image_folder.
        percent: percentage of the labels, above 0; at 100 `images` is returned unchanged.
        label_list: file of image names, one per line: file names (n01440764_10074.JPEG), or paths below the training
            folder (n01440764/n01440764_10074.JPEG) where several classes have a file of this name. With a list the
            percentage does not matter. ImageNet without it: SimCLR's list of 1 or 10 %.

    Raises:
        SfrikError: a name on the list is the name of no image or of several; there is no list for this percentage, or it
            cannot be downloaded; the images have no labels, or several each.
    """
    if not 0 < percent <= 100:
        raise SfrikError(f"train_percent must be above 0 and at most 100 %, got {percent}")
    if percent == 100:
        return images
    if label_list:
        try:
            text = read_text(label_list)
        except SfrikError as error:
            raise SfrikError(f"cannot read the label list {label_list}: {error}") from None
        return images.select(_listed(images, text, label_list))
    if dataset == "imagenet":
        return images.select(_listed(images, simclr_list(percent), f"of SimCLR's {percent} %"))
    if len(images) == 0 or images.targets.ndim != 1 or images.targets.min() < 0:
        raise SfrikError(f"{dataset}: train_percent below 100 needs images with one label each")
    members = class_members(images.targets).values()
    return images.select(np.sort(np.concatenate([some[: max(1, round(percent / 100 * len(some)))] for some in members])))


def simclr_list(percent: int) -> str:
    """SimCLR's list of 1 or 10 % of ImageNet's training images, one file name per line.

    Downloaded on first use to label_lists/ in `sfrik.datasets.listing.cache_folder()`; its SHA-256 is checked at each use.

    Raises:
        SfrikError: there is no list for this percentage, it cannot be downloaded, or its SHA-256 is another one.
    """
    remedy = "give a list as --label-list FILE"
    if percent not in SHA256:
        raise SfrikError(f"there is no list of {percent} % of ImageNet's labels, only of 1 and 10 %: {remedy}")
    url, cached = SIMCLR.format(percent=percent), cache_folder() / "label_lists" / f"imagenet-{percent}percent.txt"
    with contextlib.suppress(SfrikError):
        content = read_bytes(cached)
        if hashlib.sha256(content).hexdigest() == SHA256[percent]:
            return content.decode()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        raise SfrikError(f"the label list {url} could not be downloaded ({reason}): get it elsewhere, then {remedy}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[percent]:
        raise SfrikError(f"the label list {url} is not the known one (SHA-256 {found[:12]}... of {len(content)} bytes): {remedy}")
    with contextlib.suppress(WriteError), atomic_write(cached, len(content)) as file:  # else downloaded again next time
        file.write(content)
    return content.decode()


def _listed(images: Images, text: str, source: str) -> np.ndarray:
    """Indices of the images on the list, sorted."""
    listed = {line.strip() for line in text.splitlines()} - {""}
    if not listed:
        raise SfrikError(f"label list {source} is empty")
    found: dict[str, int] = {}
    for i in range(len(images)):
        name = images.name(i)
        for key in (name, name.rsplit("/", 1)[-1]):
            if key not in listed or found.get(key) == i:
                continue
            if key in found:
                raise SfrikError(
                    f"label list {source}: {key} is the name of {images.name(found[key])} and of {name}: "
                    "write the names with their class folder"
                )
            found[key] = i
    missing = sorted(listed - found.keys())
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SfrikError(
            f"label list {source}: {len(missing)} of its {len(listed)} names are not among the {len(images)} training images "
            f"({first}): the list needs the whole training set; check --data-dir and --label-list"
        )
    return np.unique(np.fromiter(found.values(), np.int64))
