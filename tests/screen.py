"""A terminal for tests: a pseudo-terminal, and the text that its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
import time

CODE = re.compile(r"\x1b\[(\d*)([AJK])|\r|\n|[^\x1b\r\n]+")
MARK = b"\a"


class Terminal:
    """A pseudo-terminal whose output is kept; `stream` writes to it."""

    def __init__(self, columns: int, rows: int = 24) -> None:
        self._ours, theirs = pty.openpty()
        self.stream = open(theirs, "w", encoding="utf-8")  # noqa: SIM115
        self.resize(columns, rows)
        self._output: list[bytes] = []
        self._marks = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self.stream, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        try:
            while chunk := os.read(self._ours, 4096):
                self._output.append(chunk)
        except OSError:  # EIO: the other end is closed
            pass

    def written(self) -> str:
        """Everything that was written so far: waits until a mark written now has been read."""
        self._marks += 1
        os.write(self.stream.fileno(), MARK)
        deadline = time.monotonic() + 30
        while b"".join(self._output).count(MARK) < self._marks:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self._text()

    def _text(self) -> str:
        return b"".join(self._output).replace(MARK, b"").decode()

    def hang_up(self) -> None:
        """Close the side of the terminal, as a window that is closed does: what is written fails."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), self._ours)

    def close(self) -> str:
        """Close it; returns everything that was written."""
        self.stream.close()
        self._reader.join(10)
        os.close(self._ours)
        return self._text()


def shown(output: str, columns: int) -> tuple[list[str], tuple[int, int]]:
    """The lines that a terminal of unlimited height shows, and the row and column of its cursor.

    A line that does not fit the width, or any other control code than those of `sfrik.system.live`, is an error.
    """
    lines, row, column, position = [""], 0, 0, 0
    while position < len(output):
        found = CODE.match(output, position)
        assert found is not None, f"a control code that was not expected: {output[position : position + 10]!r}"
        position, text = found.end(), found[0]
        if text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif found[2] == "A":
            row -= int(found[1])
            assert row >= 0
        elif found[2] in ("J", "K"):
            lines[row] = lines[row][:column]
            lines = lines[: row + 1] if found[2] == "J" else lines
        else:
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text) :]
            column += len(text)
            assert column <= columns, f"{text!r} is wrapped"
    return lines, (row, column)
