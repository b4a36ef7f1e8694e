"""Which image files a folder of classes holds, read once and kept.

A network file system takes minutes to list ImageNet's 1,281,167 files. The listing is therefore kept in a file of the
user's cache folder. At the next start it is compared with the modification times of the class folders, which change
where a file comes or goes: 1,000 calls instead of a million. What stands inside a file is not looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfrik.errors import SfrikError
from sfrik.system.files import WriteError, atomic_write, check_regular

__all__ = ["EXTENSIONS", "Listing", "Names", "cache_folder", "class_folders", "images_below", "list_images"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's ImageFolder's

FORMAT = 1  # of the cache file; another number, and older files are read no more
THREADS = 16  # they wait for the file server, not for a core
# A file may be added within one tick of the file system's clock, which leaves the folder's time as it was. A folder
# changed this shortly before it was listed is not kept; the coarsest clock ticks every 2 s (FAT).
SETTLED_NS = 2_000_000_000


class Names(Sequence[str]):
    """Many names in one array of bytes, each ended by a zero byte.

    As a list of str a million names would be copied into each worker of a data loader bit by bit, since reading a
    Python object writes its reference count; the bytes stay shared.
    """

    def __init__(self, text: np.ndarray) -> None:
        self.text = text  # uint8
        self.ends = np.flatnonzero(text == 0)

    @classmethod
    def pack(cls, names: Iterable[str]) -> Names:
        return cls(np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in names), np.uint8))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # pyrefly: ignore[bad-override] no slices are needed
        index = range(len(self.ends))[index]  # IndexError, and counting from the end
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


@dataclass(frozen=True)
class Listing:
    """The image files of a folder: class by class, sorted by name.

    Attributes:
        classes: names of the class folders, sorted.
        names: path of each image below the folder, with "/" between its parts.
        labels: class of each image, int64 [n].
    """

    classes: list[str]
    names: Names
    labels: np.ndarray


def list_images(folder: str | Path) -> Listing:
    """The images below the class folders of `folder`, in the order of torchvision's ImageFolder.

    Folders inside a class folder belong to that class. The listing is read from the cache where no folder has
    changed since, else from the folder; a cache that cannot be written or read costs time and nothing else.

    Raises:
        SfrikError: there are no class folders, or one of them holds no images; it is named.
    """
    folder = Path(folder)
    classes = class_folders(folder)
    kept = cache_folder() / "listings" / f"{folder.name}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.npz"
    listing = _kept_listing(kept, folder, classes)
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
    names = Names.pack(name for files, _ in parts for name in files)
    times = {name: modified for _, walked in parts for name, modified in walked.items()}
    if max(times.values()) < started - SETTLED_NS:
        _keep(kept, classes, counts, names, times)
    return _listing(classes, counts, names)


def images_below(folder: str | Path) -> list[str]:
    """The image files below `folder`, sorted by name, whatever folders they lie in: images without labels.

    Raises:
        SfrikError: there are none.
    """
    names = sorted(name.removeprefix("./") for name in _walk(Path(folder), ".")[0])
    if not names:
        raise SfrikError(f"{folder} holds no images (looked for {' '.join(EXTENSIONS)}): is it the right folder for --data-dir?")
    return names


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted."""
    try:
        with os.scandir(folder) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise SfrikError(f"cannot list the folder {folder}: {error.strerror}") from None
    if not classes:
        raise SfrikError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    return classes


def cache_folder() -> Path:
    """Where the library keeps what it can make or download again: SFRIK_CACHE, else sfrik in the user's cache folder."""
    if os.environ.get("SFRIK_CACHE"):
        return Path(os.environ["SFRIK_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfrik"


def _walk(folder: Path, name: str) -> tuple[list[str], dict[str, int]]:
    """Images below the class folder `name`, in ImageFolder's order, and when each folder on the way was last modified."""
    images, times = {}, {}
    waiting = [name]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below)
        try:
            # before its files are listed: what is added meanwhile makes the folder newer than this
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


def _listing(classes: list[str], counts: np.ndarray, names: Names) -> Listing:
    return Listing(classes, names, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def _keep(path: Path, classes: list[str], counts: np.ndarray, names: Names, times: dict[str, int]) -> None:
    arrays = {
        "format": np.int64(FORMAT),
        "classes": Names.pack(classes).text,
        "counts": counts,
        "names": names.text,
        "folders": Names.pack(times).text,
        "times": np.array(list(times.values()), dtype=np.int64),
    }
    # a home that is full or read-only: the folder is listed again next time
    with contextlib.suppress(WriteError), atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def _kept_listing(path: Path, folder: Path, classes: list[str]) -> Listing | None:
    """The listing as it was kept, or None where there is none, it is damaged, or a folder has changed since."""
    try:
        check_regular(path)
        with np.load(path, allow_pickle=False) as file:
            record = {name: file[name] for name in file.files}
        counts, names, folders = record["counts"], Names(record["names"]), list(Names(record["folders"]))
        current = record["format"] == FORMAT and list(Names(record["classes"])) == classes
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
