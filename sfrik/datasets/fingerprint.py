"""The fingerprint of a set of images, by which a run and its scores name the images that they were computed from.

It covers the names of all images, the sizes of their files, their labels, and the content of all of a small folder or of a sample
of a large one: there it misses a file that is replaced by one of the same size and is not in the sample. It does not depend on
the place of the folder, on times, or on the order in which a file system lists the files.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.ops.collectives import rank
from sfrik.system.files import check_regular, file_hash
from sfrik.system.terminal import print_line

__all__ = ["describe_data", "names_sha256", "print_images", "sample_contents"]

SAMPLE = 64  # images whose content is read
SAME_FORMAT = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff"}  # suffixes
UNREADABLE = bytes(32)  # in place of the SHA-256 of a content
WHOLE, WHOLE_BYTES = 1024, 2**26  # up to so many files, of so many bytes in all, the content of each is read: within a second


def describe_data(images: Images) -> dict[str, Any]:
    """What records state of the images that they were computed from: their number, that of their classes, and a fingerprint.

    The content of all images is read if they are at most 1,024 files of 64 MiB in all, else that of 64 of them, evenly spaced by
    name: the bytes of a file, or the pixels of an image in memory. A file that cannot be read counts as empty, since training may
    skip it.

    Returns:
        "images", "classes" (0 without labels) and "sha256" in hexadecimal digits, over all images in the order of their names:
        names, file sizes, labels, the names of the classes, and the content of the sample. Also "encoding", how the images are
        stored: the suffix that most files have, such as "JPEG", or "original" for the arrays that torchvision reads; records are
        not compared by it, and images that come with a package have none.
    """
    names = [images.name(index) for index in range(len(images))]
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    whole = images.sizes is not None and len(order) <= WHOLE and images.sizes.sum() <= WHOLE_BYTES
    digest = hashlib.sha256()
    for texts in ([names[index] for index in order], images.classes or ()):
        digest.update("\0".join((str(len(texts)), *texts)).encode("utf-8", "surrogateescape"))
    for numbers in (images.targets, images.sizes):
        digest.update(b"" if numbers is None else numbers[order].astype("<i8").tobytes())
    for index in order if whole else _spaced(order):
        digest.update(_content(images, int(index)))
    labelled = len(images) > 0 and bool((images.targets != -1).any())
    found = {"images": len(images), "classes": images.num_classes if labelled else 0, "sha256": digest.hexdigest()}
    encoding = images.encoding if images.path is None else _most_common_format([names[index] for index in order])
    return found | ({"encoding": encoding} if encoding else {})


def names_sha256(images: Images) -> str:
    """The SHA-256 of the names of the images in their order."""
    names = hashlib.sha256()
    for index in range(len(images)):
        names.update(images.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return names.hexdigest()


def sample_contents(images: Images) -> list[str]:
    """The SHA-256 of the content of at most 64 images, evenly spaced; "" for one that cannot be read."""
    contents = [_content(images, int(index)) for index in _spaced(np.arange(len(images)))]
    return ["" if content == UNREADABLE else content.hex() for content in contents]


def print_images(title: str, images: Images) -> None:
    """Print on rank 0 how many images of how many classes were read, and from where.

    Args:
        title: what the images are for, such as "training" or "test".
    """
    if rank() == 0:
        labelled = f"{images.num_classes} class{'' if images.num_classes == 1 else 'es'}"
        classes = labelled if (images.targets != -1).any() else "without labels"
        print_line(f"{title} images: {len(images)}, {classes}" + (f", from {images.source}" if images.source else ""))


def _most_common_format(names: Sequence[str]) -> str:
    """The suffix that most files have, in capitals; "" without files. JPEG and TIFF have several."""
    suffixes = Counter(os.path.splitext(name)[1].lower().removeprefix(".") for name in names)
    formats: Counter[str] = Counter()
    for suffix, count in suffixes.items():
        formats[SAME_FORMAT.get(suffix, suffix).upper()] += count
    return max(formats, key=formats.__getitem__, default="")


def _spaced(order: np.ndarray) -> np.ndarray:
    return order[np.linspace(0, len(order) - 1, min(len(order), SAMPLE)).astype(np.int64)]


def _content(images: Images, index: int) -> bytes:
    """A hash of the content of an image, as long for each; of zeros only for a file that cannot be read."""
    try:
        if images.path is not None:
            check_regular(images.path(index))
            return bytes.fromhex(file_hash(images.path(index)))
        pixels = images.pixels(index) if images.tensor is None else images.tensor[index]
    except (OSError, SfrikError):
        return UNREADABLE
    return hashlib.sha256(repr(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()).digest()
