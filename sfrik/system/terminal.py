"""Text for people: printed so that no work ends because of it, and coloured only on a terminal.

A stream may be closed (`>&-`), without a reader (`| head`), on a full disk, or a terminal that is gone. What `print_line` prints
accompanies the work, whose results are in files: it is lost, and the work continues. The result that a command was asked for is
different (`sfrik.cli.output`). So nothing else in the package prints; ruff's rule T201 checks this.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import TextIO

__all__ = [
    "UNBROKEN",
    "align",
    "discard_output",
    "is_terminal",
    "open_standard_streams",
    "paint",
    "print_line",
    "replace_unprintable",
    "terminal_width",
    "text_width",
    "tolerate_output_errors",
    "wants_colour",
    "warn_once",
    "wrap",
]

UNBROKEN = "\N{NO-BREAK SPACE}"  # in place of a space at which a text is not wrapped
CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}
_printed: set[str] = set()


def print_line(text: str, error: bool = False, end: str = "\n") -> None:
    """Print a line on stdout, or on stderr for an `error`. A stream that cannot be written is no error."""
    stream = sys.stderr if error else sys.stdout
    with tolerate_output_errors(stream):
        try:
            print(text, end=end, file=stream, flush=True)  # nothing where the stream is None
        except UnicodeEncodeError as failure:
            text = text.encode(failure.encoding, "replace").decode(failure.encoding)
            print(text, end=end, file=stream, flush=True)


@contextmanager
def tolerate_output_errors(stream: TextIO | None) -> Iterator[None]:
    """Within it, an error while writing to a stream ends the block and is no error; what the stream still holds is discarded.

    Otherwise Python would write it when the process exits, fail again, and change the exit status.
    """
    try:
        yield
    except (OSError, ValueError):  # ValueError: the stream is closed
        discard_output(stream)


def discard_output(stream: TextIO | None) -> None:
    """Empty the buffer of a stream that could not be written."""
    if stream is None:
        return
    with suppress(OSError, ValueError, AttributeError):  # a stream without a file descriptor has no such buffer
        descriptor = stream.fileno()
        kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor)
            stream.flush()
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)
            os.close(nowhere)


def open_standard_streams() -> None:
    """Open stdin, stdout and stderr on the null device where they are closed.

    A file or pipe that is opened later would otherwise get the number of the closed stream, and whatever is printed by a library
    or a child process.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if descriptor else "r", encoding="utf-8"))  # noqa: SIM115


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; False for a closed one."""
    with suppress(OSError, ValueError):
        return stream is not None and stream.isatty()
    return False


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour text for a stream: yes on a terminal with colours, unless NO_COLOR is set; always with FORCE_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and is_terminal(stream)


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in a colour of `CODES` if the stream (stdout when None) shows colours, else unchanged."""
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if wants_colour(stream or sys.stdout) else text


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of text in columns, each as wide as its widest cell, with two spaces between them.

    Args:
        rows: The cells of each row; a cell may have several lines, and colours (`paint`) take no room.
        right: The columns that are aligned on the right, as numbers are.
    """
    lines = [cells for row in rows for cells in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    widths = [max(map(text_width, column)) for column in zip_longest(*lines, fillvalue="")]

    def pad(cell: str, column: int) -> str:
        space = " " * (widths[column] - text_width(cell))
        return space + cell if column in right else cell + space

    return ["  ".join(pad(cell, column) for column, cell in enumerate(cells)).rstrip() for cells in lines]


def text_width(text: str) -> int:
    """The columns of a terminal that a text takes: two for a wide character, none for colours and combining characters."""
    shown = [character for character in re.sub("\x1b\\[[0-9;]*m", "", text) if not unicodedata.combining(character)]
    return len(shown) + sum(unicodedata.east_asian_width(character) in "WF" for character in shown)


def wrap(text: str, indent: str = "  ") -> list[str]:
    """A text in lines of at most the terminal's width, those after the first indented. A longer word is left whole."""
    return textwrap.wrap(text, terminal_width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def terminal_width() -> int:
    """The columns of the terminal, or of COLUMNS; 80 without a terminal, and at least 40."""
    return max(40, shutil.get_terminal_size().columns)


def replace_unprintable(encoding: str | None = None) -> None:
    """Let stdout and stderr print `?` for a character that their encoding lacks, instead of raising an error.

    Args:
        encoding: The encoding of both from now on; unchanged when None.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a Jupyter kernel, whose streams are UTF-8
            with tolerate_output_errors(stream):
                stream.reconfigure(encoding=encoding, errors="replace")


def warn_once(text: str, kind: str = "") -> None:
    """Print a line to stderr, once per process; with `kind`, only the first line of this kind."""
    if (kind or text) not in _printed:
        _printed.add(kind or text)
        print_line(text, error=True)
