"""Coloured text, only on a terminal: not in pipes, files or executed notebooks."""

from __future__ import annotations

import os
import sys
from typing import TextIO

__all__ = ["paint", "wants_colour"]

CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}


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
