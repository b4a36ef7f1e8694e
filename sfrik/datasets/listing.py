"""The image files of a folder of classes, listed once and cached.

A network file system takes minutes to list ImageNet's 1,281,167 files. The listing is therefore cached in a file of the user's
cache folder. At the next start it is compared with the times of the class folders, which change when a file is added or removed,
and with the sizes of at most 4,096 files: about 5,000 calls instead of a million.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfrik.datasets.entries import (
    EXTENSIONS,
    Identity,
    class_folders,
    identity,
    image_kind,
    is_ignored,
    leads_to_folder,
    report,
)
from sfrik.errors import MissingImagesError, SfrikError
from sfrik.system.files import WriteError, atomic_write, check_regular

__all__ = ["Listing", "cache_folder", "file_sizes", "images_below", "list_images", "pack_names"]

FORMAT = 4  # of the cache file; files with another number are replaced
THREADS = 16  # they wait for the file server, not for a core
# A file may be added within one tick of the file system's clock, which leaves the folder's time unchanged. A folder
# modified this shortly before it was listed is not cached; the coarsest clock ticks every 2 s (FAT).
SETTLED_NS = 2_000_000_000
SAMPLE = 4096  # files whose size is compared


@dataclass(frozen=True)
class Listing:
    """The image files of a folder: class by class, sorted by name.

    Attributes:
        classes: names of the class folders, sorted.
        names: path of each image below the folder, with "/" between its parts; packed, see `pack_names`.
        labels: class of each image, int64 [n].
        sizes: of each file in bytes, int64 [n]; -1 for a link that leads nowhere.
        cached: file in which the listing is cached.
    """

    classes: list[str]
    names: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    cached: Path | None = None


def pack_names(names: Iterable[str]) -> np.ndarray:
    """File names as bytes of one width, [n]; `os.fsdecode` gives the string of an element.

    Workers that are forked share the array. Of a list of strings each worker copies the memory, since reading a Python object
    writes its reference count: for ImageNet's 1.28 million names 98 MiB per worker, against 0 of this array's 37 MiB.
    """
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def list_images(folder: str | Path) -> Listing:
    """List the images below the class folders of `folder`, in the order of torchvision's ImageFolder.

    Folders inside a class folder belong to that class. Hidden entries and those that systems and tools leave behind are ignored.
    A folder that several links lead to is listed once. Image files of formats that are not read are reported on stderr.
    The listing comes from the cache if nothing has changed since, else from the folder. A cache that cannot be read or written
    only costs time.

    Raises:
        SfrikError: there are no class folders, one of them holds no images, or a link leads nowhere. The message names it.
    """
    folder = Path(folder)
    classes = class_folders(folder)
    cached = cache_folder() / "listings" / f"{folder.name}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.npz"
    found = _cached_listing(cached, folder, classes)
    if found is None:
        started = time.time_ns()
        parts = _walk_all(folder, classes)
        _check_filled(folder, classes, parts)
        names = pack_names(name for part in parts for name, _ in part.files())
        sizes = np.array([size for part in parts for _, size in part.files()], dtype=np.int64)
        times = {below: changed for part in parts for below, changed in part.times.items()}
        unread = _format_unread(sum((part.unread for part in parts), Counter()))
        counts = np.array([sum(map(len, part.images.values())) for part in parts], dtype=np.int64)
        found = Listing(classes, names, np.repeat(np.arange(len(classes), dtype=np.int64), counts), sizes, cached), unread
        if max(modified for modified, _ in times.values()) < started - SETTLED_NS:
            _cache(found[0], counts, times, unread)
    if found[1]:
        report(f"{folder}: left out {found[1]}: convert them to a format that is read, such as PNG, or give them its suffix")
    return found[0]


def images_below(folder: str | Path) -> dict[str, int]:
    """Paths of the image files anywhere below `folder`, sorted, with their sizes in bytes. The rules are those of `list_images`.

    Raises:
        SfrikError: there are none (a MissingImagesError if the folder is empty), or a link leads nowhere.
    """
    (part,) = _walk_all(Path(folder), ["."])
    images = dict(sorted((name.removeprefix("./"), size) for name, size in part.files()))
    unread = _format_unread(part.unread)
    if not images:
        seen = f"; it has {unread}" if unread else ""
        raise (SfrikError if os.listdir(folder) else MissingImagesError)(
            f"{folder} holds no images (looked for {' '.join(EXTENSIONS)}{seen}): is it the right folder for --data-dir?"
        )
    if unread:
        report(f"{folder}: left out {unread}: convert them to a format that is read, such as PNG, or give them its suffix")
    return images


def cache_folder() -> Path:
    """Folder for files that can be made or downloaded again: SFRIK_CACHE, else sfrik in the user's cache folder."""
    if os.environ.get("SFRIK_CACHE"):
        return Path(os.environ["SFRIK_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfrik"


@dataclass
class _Part:
    """The folders of one class.

    Attributes:
        images: image files of each folder, sorted, with their sizes; folders are named by their path below the data folder.
        times: times of modification and of the last change of each folder, in nanoseconds.
        identities: device and inode of each folder.
        links: links to folders, which have not been followed.
        unread: number of image files of each suffix that is not read.
    """

    images: dict[str, dict[str, int]] = field(default_factory=dict)
    times: dict[str, tuple[int, int]] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and size of each image, in ImageFolder's order."""
        return ((f"{below}/{file}", size) for below in sorted(self.images) for file, size in self.images[below].items())


def _walk_all(folder: Path, classes: list[str]) -> list[_Part]:
    """The parts of all classes. Links are followed last, sorted by name, and never to a folder that is listed already."""
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(lambda name: _walk(folder, name), classes))
    _drop_repeated(folder, classes, parts)
    if any(part.links for part in parts):
        seen = {identity(os.stat(place)) for place in (folder, *folder.resolve().parents)}
        seen = seen.union(*(part.identities.values() for part in parts))
        for part in parts:
            while part.links:
                part.links.sort(reverse=True)
                more = _walk(folder, part.links.pop(), seen)
                seen |= set(more.identities.values())
                part.images |= more.images
                part.times |= more.times
                part.links += more.links
                part.unread += more.unread
    return parts


def _drop_repeated(folder: Path, classes: list[str], parts: list[_Part]) -> None:
    """Drop from each class that is a link the folders that belong to another class too."""
    found = [each for part in parts for each in part.identities.values()]
    if len(found) == len(set(found)):
        return
    kept: set[Identity] = set()
    for name, part in sorted(zip(classes, parts, strict=True), key=lambda pair: (folder / pair[0]).is_symlink()):
        if (folder / name).is_symlink():
            for below in [below for below, each in part.identities.items() if each in kept]:
                for record in (part.images, part.times, part.identities):
                    del record[below]
        kept |= set(part.identities.values())


def _walk(folder: Path, name: str, seen: Collection[Identity] = ()) -> _Part:
    """What is below the folder `name`, without the folders in `seen` and without what links lead to."""
    part = _Part()
    waiting = [name]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below.removeprefix("./"))
        try:
            # before its files are listed: a file added meanwhile makes the folder newer than this
            status = os.stat(place)
            if identity(status) in seen:
                continue
            part.times[below] = status.st_mtime_ns, status.st_ctime_ns
            part.identities[below] = identity(status)
            files = {}
            with os.scandir(place) as entries:
                for entry in entries:
                    if is_ignored(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{below}/{entry.name}")
                    elif entry.is_symlink() and leads_to_folder(entry):
                        part.links.append(f"{below}/{entry.name}")
                    elif (kind := image_kind(entry.name)) == "read":
                        files[entry.name] = _size(entry.stat)
                    elif kind:
                        part.unread[kind] += 1
                    elif "." not in entry.name and not (entry.name.isalpha() and entry.name.isupper()):  # README, LICENSE
                        part.unread["without a suffix"] += 1
        except OSError as error:
            raise SfrikError(f"cannot list the folder {os.path.normpath(place)}: {error.strerror}") from None
        part.images[below] = dict(sorted(files.items()))
    return part


def _check_filled(folder: Path, classes: list[str], parts: list[_Part]) -> None:
    empty = [name for name, part in zip(classes, parts, strict=True) if not any(part.images.values())]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        unread = sum((part.unread for name, part in zip(classes, parts, strict=True) if name in empty), Counter())
        seen = f"; they have {_format_unread(unread)}" if unread else ""
        raise SfrikError(
            f"{folder}: no images in the class folders {', '.join(empty[:5])}{more} (looked for {' '.join(EXTENSIONS)}{seen}): "
            "fill or remove them"
        )


def _format_unread(unread: Counter[str]) -> str:
    """Such as "2 .gif, 1 .heic"; "" if there are none."""
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))


def _cache(listing: Listing, counts: np.ndarray, times: dict[str, tuple[int, int]], unread: str) -> None:
    assert listing.cached is not None  # as in `list_images`
    with contextlib.suppress(WriteError):  # a home folder that is full or read-only: the images are listed again next time
        arrays = {
            "format": np.int64(FORMAT),
            "classes": pack_names(listing.classes),
            "counts": counts,
            "names": listing.names,
            "folders": pack_names(times),
            "times": np.array(list(times.values()), dtype=np.int64),
            "sizes": listing.sizes,
            "unread": pack_names([unread]),
        }
        with atomic_write(listing.cached) as file:
            np.savez_compressed(file, **arrays)


def _cached_listing(path: Path, folder: Path, classes: list[str]) -> tuple[Listing, str] | None:
    """The cached listing and what it leaves out; None if there is none, it is damaged, or something has changed since."""
    try:
        check_regular(path)
        with np.load(path, allow_pickle=False) as file:
            record = {name: file[name] for name in file.files}
        counts, names, folders = record["counts"], record["names"], [os.fsdecode(name) for name in record["folders"]]
        current = record["format"] == FORMAT and [os.fsdecode(name) for name in record["classes"]] == classes
        sizes, labels = record["sizes"], np.repeat(np.arange(len(classes), dtype=np.int64), counts)
        if not current or len(counts) != len(classes) or not len(labels) == len(names) == len(sizes):
            return None
        sample = np.linspace(0, len(names) - 1, min(len(names), SAMPLE)).astype(np.int64)
        if _times(folder, folders) != record["times"].tolist():
            return None
        if file_sizes(folder, [os.fsdecode(names[index]) for index in sample]) != sizes[sample].tolist():
            return None
        return Listing(classes, names, labels, sizes, path), os.fsdecode(record["unread"][0])
    except Exception:  # damaged bytes raise anything from BadZipFile to KeyError, and a folder or a file may be gone
        return None


def _times(folder: Path, names: list[str]) -> list[list[int]]:
    """Times of modification and of the last change of each folder, in nanoseconds; unpacking an archive keeps only the first."""

    def times(path: str) -> list[int]:
        status = os.stat(path)
        return [status.st_mtime_ns, status.st_ctime_ns]

    return _of_each(times, folder, names)


def file_sizes(folder: Path, names: list[str]) -> list[int]:
    """Size of each file in bytes; -1 where there is none."""
    return _of_each(lambda path: _size(lambda: os.stat(path)), folder, names)


def _size(stat: Callable[[], os.stat_result]) -> int:
    """Size of a file in bytes; -1 where there is none, as for a link that leads nowhere."""
    try:
        return stat().st_size
    except OSError:
        return -1


def _of_each(value: Callable[[str], Any], folder: Path, names: list[str]) -> list[Any]:
    """A value of each path below the folder, in the order of the names, computed by several threads."""
    share = -(-len(names) // THREADS) or 1
    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(
            lambda lo: [value(os.path.join(folder, name)) for name in names[lo : lo + share]], range(0, len(names), share)
        )
        return [each for part in parts for each in part]
