"""Lines at the lower end of a terminal that are drawn again and again, as long as something runs.

The cursor waits at the start of the first line. A terminal keeps it at that text when it is resized, so the lines can be replaced
even if they were wrapped meanwhile. What is printed at the same time removes them, and is above those that are drawn next.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from sfrik.system.terminal import is_terminal, tolerate_output_errors

__all__ = ["LiveLines"]

ERASE = "\r\x1b[J"  # from the cursor to the end of the screen


class LiveLines:
    """A context in which `show` draws lines on stdout; at its end they are removed.

    Attributes:
        possible: whether stdout is a terminal that moves its cursor; otherwise `show` does nothing.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout
        self.possible = is_terminal(self._stream) and os.environ.get("TERM", "") not in ("", "dumb")
        self._replaced: dict[str, TextIO] = {}
        self._drawn: Any = None  # the lines that are on the screen, and its size
        self.line_ended = True  # whether what was printed last ended its line

    def __enter__(self) -> LiveLines:
        if self.possible:
            self._replaced = {name: getattr(sys, name) for name in ("stdout", "stderr") if is_terminal(getattr(sys, name))}
            for name, stream in self._replaced.items():
                setattr(sys, name, _Above(stream, self))
        return self

    def __exit__(self, *error: object) -> None:
        for name, stream in self._replaced.items():
            setattr(sys, name, stream)
        self.erase()

    @property
    def size(self) -> tuple[int, int]:
        """The longest line and the number of lines that the terminal shows now."""
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = 0, 0
        return (columns or 80) - 1, (rows or 24) - 1

    def show(self, lines: Sequence[str]) -> None:
        """Replace the lines, each cut to the width; of too many for the screen the first ones and the last one are shown."""
        if not self.possible or not self.line_ended:
            return
        width, height = size = self.size
        if self._drawn == (lines, size):
            return
        self._drawn = lines, size
        if len(lines) > height:
            lines = [*lines[: max(0, height - 2)], f"({len(lines) - height + 1} more)", lines[-1]][-height:]
        back = f"\x1b[{len(lines) - 1}A\r" if len(lines) > 1 else "\r"
        self._write("\r" + "\x1b[K\n".join(line[:width] for line in lines) + "\x1b[J" + back)

    def erase(self) -> None:
        if self._drawn is not None:
            self._drawn = None
            self._write(ERASE)

    def _write(self, text: str) -> None:
        with tolerate_output_errors(self._stream):
            self._stream.write(text)
            self._stream.flush()


class _Above:
    """A stream of the terminal; the live lines are removed before something is printed to it."""

    def __init__(self, stream: TextIO, live: LiveLines) -> None:
        self._stream, self._live = stream, live

    def write(self, text: str) -> int:
        if text:
            self._live.erase()
            self._live.line_ended = text.endswith("\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
