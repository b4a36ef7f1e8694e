"""The image files of a folder of classes, listed once and cached.

A network file system takes minutes to list ImageNet's 1,281,167 files. The listing is therefore cached in a file of the user's
cache folder. At the next start it is compared with the modification times of the class folders, which change when a file is
added or removed: 1,000 calls instead of a million. The content of the files is not checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfrik.errors import SfrikError
from sfrik.system.files import WriteError, atomic_write, check_regular

__all__ = ["EXTENSIONS", "Listing", "cache_folder", "class_folders", "images_below", "list_images", "pack_names"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision's ImageFolder

FORMAT = 2  # of the cache file; files with another number are replaced
THREADS = 16  # they wait for the file server, not for a core
# A file may be added within one tick of the file system's clock, which leaves the folder's time unchanged. A folder
# modified this shortly before it was listed is not cached; the coarsest clock ticks every 2 s (FAT).
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Listing:
    """The image files of a folder: class by class, sorted by name.

    Attributes:
        classes: names of the class folders, sorted.
        names: path of each image below the folder, with "/" between its parts; packed, see `pack_names`.
        labels: class of each image, int64 [n].
    """

    classes: list[str]
    names: np.ndarray
    labels: np.ndarray


def pack_names(names: Iterable[str]) -> np.ndarray:
    """File names as bytes of one width, [n]; `os.fsdecode` gives the string of an element.

    Workers that are forked share the array. Of a list of strings each worker copies the memory, since reading a Python object
    writes its reference count: for ImageNet's 1.28 million names 98 MiB per worker, against 0 of this array's 37 MiB.
    """
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def list_images(folder: str | Path) -> Listing:
    """List the images below the class folders of `folder`, in the order of torchvision's ImageFolder.

    Folders inside a class folder belong to that class. The listing comes from the cache if no folder has changed since,
    else from the folder. A cache that cannot be read or written only costs time.

    Raises:
        SfrikError: there are no class folders, or one of them holds no images. The message names it.
    """
    folder = Path(folder)
    classes = class_folders(folder)
    cached = cache_folder() / "listings" / f"{folder.name}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.npz"
    listing = _cached_listing(cached, folder, classes)
    if listing is not None:
        return listing
    started = time.time_ns()
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(lambda name: _walk(folder, name), classes))
    empty = [name for name, (files, _) in zip(classes, parts, strict=True) if not files]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise SfrikError(
            f"{folder}: no images in the class folders {', '.join(empty[:5])}{more} (looked for {' '.join(EXTENSIONS)}): "
            "fill or remove them"
        )
    counts = np.array([len(files) for files, _ in parts], dtype=np.int64)
    names = pack_names(name for files, _ in parts for name in files)
    times = {name: modified for _, walked in parts for name, modified in walked.items()}
    if max(times.values()) < started - SETTLED_NS:
        _cache(cached, classes, counts, names, times)
    return _listing(classes, counts, names)


def images_below(folder: str | Path) -> list[str]:
    """Paths of the image files anywhere below `folder`, sorted: images without labels.

    Raises:
        SfrikError: there are none.
    """
    names = sorted(name.removeprefix("./") for name in _walk(Path(folder), ".")[0])
    if not names:
        raise SfrikError(f"{folder} holds no images (looked for {' '.join(EXTENSIONS)}): is it the right folder for --data-dir?")
    return names


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted.

    Raises:
        SfrikError: there are none, or `folder` cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise SfrikError(f"cannot list the folder {folder}: {error.strerror}") from None
    if not classes:
        raise SfrikError(f"{folder} holds no class folders: put the images of each class into a separate folder")
    return classes


def cache_folder() -> Path:
    """Folder for files that can be made or downloaded again: SFRIK_CACHE, else sfrik in the user's cache folder."""
    if os.environ.get("SFRIK_CACHE"):
        return Path(os.environ["SFRIK_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfrik"


def _walk(folder: Path, name: str) -> tuple[list[str], dict[str, int]]:
    """Images below the class folder `name`, in ImageFolder's order, and the modification time of each folder visited."""
    images, times = {}, {}
    waiting = [name]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below)
        try:
            # before its files are listed: a file added meanwhile makes the folder newer than this
            times[below] = os.stat(place).st_mtime_ns
            with os.scandir(place) as entries:
                files = []
                for entry in entries:
                    if entry.is_dir():
                        waiting.append(f"{below}/{entry.name}")
                    elif entry.name.lower().endswith(EXTENSIONS):
                        files.append(entry.name)
        except OSError as error:
            raise SfrikError(f"cannot list the folder {place}: {error.strerror}") from None
        images[below] = sorted(files)
    return [f"{below}/{file}" for below in sorted(images) for file in images[below]], times


def _listing(classes: list[str], counts: np.ndarray, names: np.ndarray) -> Listing:
    return Listing(classes, names, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def _cache(path: Path, classes: list[str], counts: np.ndarray, names: np.ndarray, times: dict[str, int]) -> None:
    arrays = {
        "format": np.int64(FORMAT),
        "classes": pack_names(classes),
        "counts": counts,
        "names": names,
        "folders": pack_names(times),
        "times": np.array(list(times.values()), dtype=np.int64),
    }
    # a home folder that is full or read-only: the images are listed again next time
    with contextlib.suppress(WriteError), atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def _cached_listing(path: Path, folder: Path, classes: list[str]) -> Listing | None:
    """The cached listing, or None if there is none, it is damaged, or a folder has changed since."""
    try:
        check_regular(path)
        with np.load(path, allow_pickle=False) as file:
            record = {name: file[name] for name in file.files}
        counts, names, folders = record["counts"], record["names"], [os.fsdecode(name) for name in record["folders"]]
        current = record["format"] == FORMAT and [os.fsdecode(name) for name in record["classes"]] == classes
        if not current or len(counts) != len(classes) or counts.sum() != len(names):
            return None
        return _listing(classes, counts, names) if _modified(folder, folders) == record["times"].tolist() else None
    except Exception:  # damaged bytes raise anything from BadZipFile to KeyError, and a folder may be gone
        return None


def _modified(folder: Path, names: list[str]) -> list[int]:
    """Modification time of each folder, in nanoseconds."""

    def of_some(some: list[str]) -> list[int]:
        return [os.stat(os.path.join(folder, name)).st_mtime_ns for name in some]

    share = -(-len(names) // THREADS) or 1
    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(of_some, [names[lo : lo + share] for lo in range(0, len(names), share)])
        return [modified for part in parts for modified in part]
