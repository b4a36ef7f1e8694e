"""Relative links between files of the checkout."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

__all__ = ["in_checkout", "relative_link"]

CHECKOUT = Path(__file__).parents[2]


def relative_link(target: str | Path, folder: str | Path = ".") -> str:
    """The link from a file in `folder` to `target`, escaped as a URL.

    The checkout may be reached through a symbolic link: the package is then imported by one name, and the working directory has
    another. Links below the checkout (results/ on another disk) are not resolved, since a link of a page does not leave it.
    """
    return urllib.parse.quote(os.fsencode(Path(os.path.relpath(_one_name(target), _one_name(folder))).as_posix()))


def in_checkout(path: str | Path) -> bool:
    """Whether a path is below the checkout, by any of its names."""
    return _one_name(path).is_relative_to(CHECKOUT.resolve())


def _one_name(path: str | Path) -> Path:
    """The absolute path, below the checkout with the checkout's real name, elsewhere without symbolic links."""
    for whole in (Path(os.path.abspath(path)), Path(path).resolve()):
        for checkout in (CHECKOUT, CHECKOUT.resolve()):
            if whole.is_relative_to(checkout):
                return CHECKOUT.resolve() / whole.relative_to(checkout)
    return Path(path).resolve()
