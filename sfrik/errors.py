"""The one error that means: the input is wrong, and its text says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["SfrikError", "nearest"]


class SfrikError(ValueError):
    """A mistake in a setting, a file or a folder. The command line prints its text alone, without a traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" for the known name most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
