"""The data sets that pretrained features are transferred to (tables 3 and 4).

::

    places205    photos of 205 scenes (Zhou et al. 2014); top-1 of a linear head
    voc07        PASCAL VOC 2007 (Everingham et al. 2010); mAP over 20 object classes
    digits8x8    scikit-learn's handwritten digits, for the digits profile; no download
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sfrik.datasets.entries import check_class_count, split_folder
from sfrik.datasets.images import Images, image_files, load_images
from sfrik.datasets.listing import file_sizes
from sfrik.datasets.sizes import class_members
from sfrik.errors import MissingImagesError, SfrikError, nearest
from sfrik.system.files import read_text

__all__ = ["VOC_CLASSES", "load_target"]

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
PLACES_CLASSES = 205
PLACES_IMAGES = Path("data/vision/torralba/deeplearning/images256")  # as its archive unpacks


def load_target(target: str, split: str, data_dir: str | Path) -> Images:
    """Load a split of a transfer data set.

    Places205 (2,448,873 training and 20,500 test images), as its two archives unpack: the lists
    trainvalsplit_places205/{train,val}_places205.csv with lines "a/abbey/gsun_0a0.jpg 0" and the images in
    data/vision/torralba/deeplearning/images256/, or the same inside a folder imagesPlaces205_resize/. Without the
    lists: 205 class folders in train/ and val/. The test split is the validation images, whose labels are public.

    VOC07 (5,011 training and 4,952 test images), as its archives unpack: VOCdevkit/VOC2007/ with JPEGImages/ and
    ImageSets/Main/<class>_{trainval,test}.txt. Targets are int64 [n, 20]: 1 where the image shows an object of the class,
    -1 where it shows none, 0 where all its objects of the class are marked difficult, which leaves the image out of that
    class's score.

    digits8x8: uint8 [n, 1, 28, 28], values 0 to 255. The digits fill their 8 x 8 pixels from top to bottom; they are
    enlarged to 20 x 20 by bilinear interpolation and framed by 4 black pixels, which gives them the height, the frame
    and about the mean of MNIST's digits (0.156, MNIST 0.131). The first two thirds of each class (rounded down) are the
    training split, the rest the test split, in scikit-learn's order.

    Args:
        target: places205, voc07 or digits8x8.
        split: "train" or "test".
        data_dir: folder of the images; digits8x8 needs none.

    Raises:
        SfrikError: the target or the split is unknown, or a file is missing or wrong. The message names it.
    """
    loaders = {"places205": _places205, "voc07": _voc07, "digits8x8": _digits8x8}
    if target not in loaders:
        raise SfrikError(f"unknown transfer data set {target!r}{nearest(target, loaders)}: choose {', '.join(loaders)}")
    if split not in ("train", "test"):
        raise SfrikError(f"unknown split {split!r} of {target}: choose train or test")
    return loaders[target](split, Path(data_dir).expanduser())


def _digits8x8(split: str, data_dir: Path) -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingImagesError("the data set digits8x8 comes with the package scikit-learn: pip install scikit-learn") from None
    content: Any = load_digits()
    small = torch.from_numpy(content.images).float()[:, None] * (255 / 16)  # [n, 1, 8, 8]
    digits = F.interpolate(small, size=20, mode="bilinear", align_corners=False)
    digits = F.pad(digits.round().to(torch.uint8), (4, 4, 4, 4))
    targets = content.target.astype(np.int64)
    first = np.zeros(len(targets), dtype=bool)
    for members in class_members(targets).values():
        first[members[: 2 * len(members) // 3]] = True
    whole = Images(targets, 10, "digits8x8 image {}".format, tensor=digits, source="digits8x8")
    return whole.select(np.flatnonzero(first if split == "train" else ~first))


def _voc07(split: str, data_dir: Path) -> Images:
    root = data_dir / "VOCdevkit" / "VOC2007"
    part = "trainval" if split == "train" else "test"
    remedy = f"unpack VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar in {data_dir}, or check --target-dir"
    ids: list[str] = []
    columns: list[list[int]] = []
    for name in VOC_CLASSES:
        path = root / "ImageSets" / "Main" / f"{name}_{part}.txt"
        if not path.exists():
            raise MissingImagesError(f"voc07: there is no {path}: {remedy}")
        rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
        for row in rows:
            if len(row) != 2 or row[1] not in ("-1", "0", "1"):
                raise SfrikError(f"voc07: {path}: a line must be an image and -1, 0 or 1, got {' '.join(row)!r}: {remedy}")
        if not columns:
            ids = [image for image, _ in rows]
        elif [image for image, _ in rows] != ids:
            raise SfrikError(f"voc07: {path} has other images than {VOC_CLASSES[0]}_{part}.txt: {remedy}")
        columns.append([int(value) for _, value in rows])
    folder = root / "JPEGImages"
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [image for image in ids if f"{image}.jpg" not in present]
    if missing or not ids:
        raise SfrikError(f"voc07: {len(missing)} of the {len(ids)} images are not in {folder} ({missing[:1]}): {remedy}")
    targets = np.array(columns, dtype=np.int64).T.copy()  # [n, 20]
    names = [f"{image}.jpg" for image in ids]
    return image_files(folder, names, targets, VOC_CLASSES, sizes=np.array(file_sizes(folder, names), dtype=np.int64))


def _places205(split: str, data_dir: Path) -> Images:
    lists = data_dir / "trainvalsplit_places205"
    if not lists.is_dir():
        if split_folder(data_dir, "train") is None:
            raise (SfrikError if data_dir.is_dir() else MissingImagesError)(
                f"places205: {data_dir} holds neither trainvalsplit_places205/ nor train/ and val/ (or test/): unpack "
                "trainvalsplit_places205.tar.gz and imagesPlaces205_resize.tar.gz there, or check --target-dir"
            )
        images = load_images("image_folder", split, data_dir)
        # ImageNet has such folders too, and its folder is the default
        check_class_count(data_dir, images.num_classes, PLACES_CLASSES, "Places205", "check --target-dir")
        return images
    path = lists / f"{'train' if split == 'train' else 'val'}_places205.csv"
    roots = [data_dir / PLACES_IMAGES, data_dir / "imagesPlaces205_resize" / PLACES_IMAGES]
    folder = next((root for root in roots if root.is_dir()), None)
    if folder is None:
        raise MissingImagesError(f"places205: there is no folder {roots[0]}: unpack imagesPlaces205_resize.tar.gz in {data_dir}")
    if not path.exists():
        raise MissingImagesError(f"places205: there is no {path}: unpack trainvalsplit_places205.tar.gz in {data_dir}")
    rows = [line.rsplit(None, 1) for line in read_text(path).splitlines() if line.strip()]
    try:
        targets = np.array([int(row[1]) for row in rows], dtype=np.int64)
    except (IndexError, ValueError, OverflowError):
        raise SfrikError(f"places205: {path}: a line must be an image's path and its class, a whole number") from None
    if not rows or targets.min() < 0 or targets.max() >= PLACES_CLASSES:
        raise SfrikError(f"places205: {path}: the classes must be 0 to {PLACES_CLASSES - 1}, and there must be some")
    names = [row[0].lstrip("/") for row in rows]
    if not (folder / names[0]).is_file():  # only the first: checking all 2.4 million takes minutes
        raise SfrikError(f"places205: {path} names {names[0]}, but {folder} does not hold it: unpack both archives again")
    return image_files(folder, names, targets, num_classes=PLACES_CLASSES)
