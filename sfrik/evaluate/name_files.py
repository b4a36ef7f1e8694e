"""The names beside features, and the comparison of class names.

::

    <split>_names.txt     the name of each row's image: its path below train/ or val/, or below the folder that was given
    <split>_classes.txt   the name of class 0, 1, ..., if the classes have names

They are UTF-8 with one name per line; a line break within a name is written as ``\\n``, and a backslash as ``\\\\``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sfrik.errors import SfrikError
from sfrik.system.files import atomic_write, read_bytes

__all__ = ["RENAMED", "check_same_classes", "count_names", "load_classes", "load_names", "write_names"]

ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
RENAMED = "give the class folders of both the same names"
SHOWN = 3  # names in a message


def load_names(folder: Path, split: str) -> list[str]:
    """The name of the image of each row of `<split>_features.npy`, as `extract_features` wrote them.

    Args:
        folder: the extraction folder.
        split: "train" or "val"; "all" for the images of one folder.

    Raises:
        SfrikError: there are no names, as in features of earlier releases or of other tools.
    """
    path = folder / f"{split}_names.txt"
    if not path.exists():
        raise SfrikError(f"there are no names {path}: run extract-features again")
    return _read(path)


def count_names(folder: Path, split: str) -> int:
    """The number of names in `<split>_names.txt`."""
    return read_bytes(folder / f"{split}_names.txt").count(b"\n")


def load_classes(folder: Path, split: str) -> list[str] | None:
    """The names of the classes that the labels of a split number; None if they are not recorded."""
    path = folder / f"{split}_classes.txt"
    return _read(path) if path.exists() else None


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write names, one per line. Raises WriteError if the file cannot be written."""
    lines = (re.sub(r"[\\\n\r]", lambda found: ESCAPES[found[0]], name) + "\n" for name in names)
    content = "".join(lines).encode("utf-8", "surrogateescape")  # a file name may be any bytes
    with atomic_write(path, len(content)) as file:
        file.write(content)


def _read(path: Path) -> list[str]:
    lines = read_bytes(path).decode("utf-8", "surrogateescape").split("\n")[:-1]
    characters = {code: character for character, code in ESCAPES.items()}
    return [re.sub(r"\\[\\nr]", lambda found: characters[found[0]], line) for line in lines]


def check_same_classes(
    ours: Sequence[str] | None, theirs: Sequence[str] | None, of_ours: str, of_theirs: str, remedy: str
) -> None:
    """Refuse labels that number different classes, whose accuracy would mean nothing.

    Args:
        ours: class names in the order of the labels; None if they are not known, which fits anything.
        theirs: the same.
        of_ours: what `ours` are the classes of, for the message.
        of_theirs: the same for `theirs`.
        remedy: the end of the message.

    Raises:
        SfrikError: the names, or their order, differ.
    """
    if ours is None or theirs is None or list(ours) == list(theirs):
        return
    only = [
        f"{', '.join(extra[:SHOWN])}{', ...' if len(extra) > SHOWN else ''} only in {of_these}"
        for these, others, of_these in ((ours, theirs, of_ours), (theirs, ours, of_theirs))
        if (extra := sorted(set(these) - set(others)))
    ]
    if not only:
        first = next(label for label, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        only = [f"class {first} is {ours[first]} in {of_ours} and {theirs[first]} in {of_theirs}"]
    raise SfrikError(f"{of_ours} and {of_theirs} have different classes: {'; '.join(only)}: {remedy}")
