"""What the entries of a data folder are: splits, classes, images, or neither."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from sfrik.errors import MissingImagesError, SfrikError
from sfrik.ops.collectives import rank
from sfrik.system.terminal import warn_once

__all__ = [
    "EXTENSIONS",
    "HELD_OUT",
    "Identity",
    "check_class_count",
    "check_classes",
    "class_folders",
    "identity",
    "image_kind",
    "is_ignored",
    "leads_to_folder",
    "refuse_held_out",
    "report",
    "required_split",
    "split_folder",
    "split_names",
]

# All suffixes of the formats that are read (`sfrik.datasets.decoding.FORMATS`), those of torchvision's ImageFolder first.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
EXTENSIONS += (".jfif", ".jpe", ".apng", ".pbm", ".pnm", ".pfm")
# Suffixes of images that are not read, so that a file is not left out without a word.
UNREAD = {".gif", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".jxr", ".svg", ".ico", ".tga"}
UNREAD |= {".exr", ".psd", ".xcf", ".hdr", ".dib", ".pcx", ".fits", ".dcm", ".npy", ".dng", ".nef", ".cr2", ".cr3", ".arw"}
UNREAD |= {".raf", ".orf", ".rw2", ".raw"}
# Names, in lower case, of what systems and tools leave behind; hidden entries (.DS_Store, ._x.jpg, .Trash-1000,
# .ipynb_checkpoints) start with a dot.
LEFT_BEHIND = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
LEFT_BEHIND |= {
    "recycler",
    "icon\r",
    "~snapshot",
    "network trash folder",
    "temporary items",
    "__pycache__",
    "thumbs.db",
    "desktop.ini",
}
# Names, in lower case, of folders with images that are not for training.
HELD_OUT = {"val", "valid", "validation", "eval", "evaluation", "test", "testing"}
SPLIT_WORD = re.compile("|".join(sorted({"train", "training", *HELD_OUT}, key=len, reverse=True)))
# The suffix of an image within the end of a name: x.jpg_large, x.jpeg.1, x.png~, x.jpg.part
INNER_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, sorted({*EXTENSIONS, *UNREAD}, key=len, reverse=True)))})[^a-z0-9]", re.I)

Identity = tuple[int, int]  # device and inode: the same for all paths to a folder


def is_ignored(name: str) -> bool:
    """Whether an entry of this name is neither an image nor a folder of images: hidden, or left behind by a system or a tool."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def image_kind(name: str) -> str:
    """ "read" for the name of an image that is read, its suffix for one that may be another image, else ""."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in EXTENSIONS or suffix in UNREAD:
        return "read" if suffix in EXTENSIONS else suffix
    inner = INNER_SUFFIX.search(name)
    return name[inner.start() :] if inner else ""


def identity(status: os.stat_result) -> Identity:
    """What all paths to one folder have in common."""
    return status.st_dev, status.st_ino


def leads_to_folder(link: os.DirEntry[str]) -> bool:
    """Whether a link leads to a folder.

    Raises:
        SfrikError: it leads nowhere and may have led to a folder. A dangling link to an image is an error when it is read.
    """
    try:
        if link.is_dir():
            return True
        dangling = not image_kind(link.name) and not os.path.splitext(link.name)[1] and not os.path.exists(link.path)
    except OSError:  # a loop, or a folder without permission
        dangling = not image_kind(link.name)
    if dangling:
        raise SfrikError(
            f"{link.path} is a link to {os.readlink(link.path)}, which cannot be reached: is its disk mounted? "
            "restore it, or delete the link"
        )
    return False


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted. A link to a folder that is counted already is left out and reported.

    Raises:
        SfrikError: there are none, a link leads nowhere, or `folder` cannot be listed.
    """
    try:
        with os.scandir(folder) as scanned:
            entries = sorted((entry for entry in scanned if not is_ignored(entry.name)), key=lambda entry: entry.name)
        classes = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        links = [entry for entry in entries if entry.is_symlink() and leads_to_folder(entry)]
        known = [folder, *folder.resolve().parents, *(folder / name for name in classes)] if links else []
        counted = {identity(os.stat(place)) for place in known}
    except OSError as error:
        raise SfrikError(f"cannot list the folder {folder}: {error.strerror}") from None
    for link in links:
        if identity(link.stat()) in counted:
            report(f"{link.path} is a link to a folder that is counted already: left out")
        else:
            counted.add(identity(link.stat()))
            classes.append(link.name)
    linked = {link.name for link in links}
    loose = [entry.name for entry in entries if image_kind(entry.name) and entry.name not in linked.union(classes)]
    if not classes:
        unlabelled = f"; to pretrain without labels: --dataset image_folder --data-dir {folder}" if loose else ""
        raise SfrikError(f"{folder} holds no class folders: put the images of each class into a separate folder{unlabelled}")
    if loose:
        more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
        report(f"{folder}: left out images that are in no class folder: {loose[0]}{more}")
    return sorted(classes)


def split_folder(data_dir: Path, part: str) -> Path | None:
    """The folder "train" or "val" of a data folder, also in capitals; None if there is none. Without val/, test/ is used as val/.

    Raises:
        SfrikError: several differ in capitals only, it is a link that leads nowhere, or `data_dir` cannot be listed.
    """
    found = (_folder_named(data_dir, name) for name in (("val", "test") if part == "val" else (part,)))
    return next((folder for folder in found if folder is not None), None)


def _folder_named(data_dir: Path, name: str) -> Path | None:
    """The folder of that name, given in lower case, also in capitals; None if there is none. Errors as in `split_folder`."""
    if (data_dir / name).is_dir():
        return data_dir / name
    named = [other for other in _names(data_dir) if other.lower() == name]
    folders = [other for other in named if (data_dir / other).is_dir()]
    if len(folders) > 1:
        raise SfrikError(f"{data_dir} holds {'/, '.join(folders)}/: keep one of them, as {name}/")
    for other in named:
        if (path := data_dir / other).is_symlink() and not path.exists():
            raise SfrikError(f"{path} is a link to {os.readlink(path)}, which does not exist: restore it, or delete the link")
    return data_dir / folders[0] if folders else None


def required_split(data_dir: Path, part: str) -> Path:
    """As `split_folder`.

    Raises:
        SfrikError: also if there is no such folder; a MissingImagesError if `data_dir` is missing or empty.
    """
    folder = split_folder(data_dir, part)
    if folder is None:
        others = [name for name in _names(data_dir) if part == "val" and name.lower() in HELD_OUT and (data_dir / name).is_dir()]
        hint = f" (there is {others[0]}/: rename it to val, or link to it)" if others else ""
        raise (SfrikError if _names(data_dir) else MissingImagesError)(
            f"there is no image folder {data_dir / part}: --data-dir must hold train/ and val/ (or test/), with one folder per "
            f"class{hint}"
        )
    return folder


def refuse_held_out(data_dir: Path, names: Iterable[str]) -> None:
    """Refuse to pretrain on images without labels if some of them are for validation or testing.

    Args:
        data_dir: folder without train/.
        names: paths of the images below it.

    Raises:
        SfrikError: it holds val/ or the like, or it or a folder below it holds both train/ and that, or train2017/ and val2017/.
    """
    inside: dict[str, set[str]] = {}  # of each folder the names of its folders
    for folder in {os.path.dirname(name) for name in names}:
        while folder:
            parent, child = os.path.split(folder)
            inside.setdefault(parent, set()).add(child)
            folder = parent
    for parent, children in sorted(inside.items()):
        held_out = min((name for name in children if name.lower() in HELD_OUT), default=None)
        if held_out and not parent:
            raise SfrikError(
                f"{data_dir} holds {held_out}/ and no train/: put the training images into train/, or set --data-dir to the "
                "folder of the images to pretrain on"
            )
        if splits := split_names(children):
            train, held_out = splits
            place = "it" if train.lower() == "train" else str(data_dir / parent / train)
            raise SfrikError(
                f"{data_dir / parent} holds {train}/ and {held_out}/: set --data-dir to {place}, to use {train}/ only"
            )


def split_names(folders: Iterable[str]) -> tuple[str, str] | None:
    """The names of a folder of training images and of one held out, among the names of the folders in one folder, or None.

    They differ in that word only: train2017 and val2017, seg_train and seg_test, Training and Testing.
    """
    training: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for name in sorted(folders):
        if word := SPLIT_WORD.search(name.lower()):
            kind = training if word[0].startswith("train") else held_out
            kind.setdefault(f"{name[: word.start()]}*{name[word.end() :]}".lower(), name)
    return next(((training[rest], held_out[rest]) for rest in sorted(training.keys() & held_out.keys())), None)


def check_classes(folder: Path, classes: list[str], train: Path | None) -> None:
    """Report a split with a single class; refuse one whose images are those of `train`, which is None for the latter itself.

    Raises:
        SfrikError: the folder, or one of its class folders, is a link to the one of train/.
    """
    pairs = [(folder / place, train / place) for place in ("", *classes)] if train else []
    if shared := next((ours for ours, theirs in pairs if ours.samefile(theirs)), None):
        raise SfrikError(f"{shared} is the same folder as in {train}: the score would be one of images that were trained on")
    if len(classes) == 1:
        report(
            f"{folder} holds a single class folder, {classes[0]}: the accuracy of any classifier is 100 %. If its own folders "
            "are the classes, move them one level up"
        )


def check_class_count(data_dir: Path, found: int, expected: int, dataset: str, remedy: str) -> None:
    """Refuse a folder with another number of class folders than the data set has classes."""
    if found != expected:
        raise SfrikError(f"{dataset.lower()}: {data_dir} has {found} class folders and not the {expected} of {dataset}: {remedy}")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SfrikError(f"cannot list the folder {folder}: {error.strerror}") from None


def report(text: str) -> None:
    """Print a line about the data on stderr, once per process and on rank 0 only."""
    if rank() == 0:
        warn_once(text)
