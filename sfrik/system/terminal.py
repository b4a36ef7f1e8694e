"""What is printed: colours only on a terminal, and `?` for a character that the terminal's encoding lacks."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

__all__ = ["paint", "replace_unprintable", "wants_colour", "warn_once"]

CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}
_printed: set[str] = set()


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour text for a stream: yes on a terminal with colours, unless NO_COLOR is set; always with FORCE_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in a colour of `CODES` if the stream (stdout when None) shows colours, else unchanged."""
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if wants_colour(stream or sys.stdout) else text


def replace_unprintable(encoding: str | None = None) -> None:
    """Let stdout and stderr print `?` for a character that their encoding lacks, instead of raising an error.

    Args:
        encoding: The encoding of both from now on; unchanged when None.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a Jupyter kernel, whose streams are UTF-8
            stream.reconfigure(encoding=encoding, errors="replace")


def warn_once(text: str, kind: str = "") -> None:
    """Print a line to stderr, once per process; with `kind`, only the first line of this kind."""
    if (kind or text) not in _printed:
        _printed.add(kind or text)
        print(text, file=sys.stderr, flush=True)
