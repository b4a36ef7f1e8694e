"""The output of the workers on the caller's side: lines and a progress bar for people, reports for `launch`."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from typing import Any

from sfrik.launch.remote_call import Reports
from sfrik.system.progress import BAR_SECONDS, Bar, wants_bar
from sfrik.system.signals import OUTPUT_GRACE
from sfrik.system.terminal import print_line

__all__ = ["WorkerOutput"]

LONGEST_LINE = 1 << 16  # bytes of output that are held back until their line ends
KILLED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (Killed|Segmentation fault|Aborted|Bus error|Out Of Memory)")


class WorkerOutput:
    """Prints what the workers print, draws their progress, and reads their reports.

    Pipes are read without blocking, so that everything an ended worker wrote has been read once `drain` returns.

    Attributes:
        reports: what the workers reported.
        killed: the match of `KILLED` in the first message of srun that a task was killed, if any.
    """

    def __init__(self, reading: int, workers: list[subprocess.Popen], reports: Reports) -> None:
        self.reports = reports
        self.killed: re.Match | None = None
        self._bar = Bar() if wants_bar() else None
        self._errors: list[str] = []
        self._drawn: dict[str, Any] | None = None
        self._drawn_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._rest: dict[int, bytes] = {}  # of each pipe the line that has not ended yet
        self._reports_pipe = open(reading, "rb", buffering=0)  # noqa: SIM115  closed in `close`
        for pipe in (self._reports_pipe, *(worker.stderr for worker in workers)):
            assert pipe is not None  # as the workers were started
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)
            self._rest[pipe.fileno()] = b""

    def refresh(self, wait: float) -> bool:
        """Show the output that is there, or the first that comes within `wait` seconds; return whether there was any."""
        if not self._selector.get_map():  # all pipes have ended
            time.sleep(wait)
        ready = self._selector.select(wait)
        for key, _ in ready:
            self._read(key)
        self._draw(every=BAR_SECONDS)
        return bool(ready)

    def drain(self) -> None:
        """Read everything that the workers, which have ended, wrote; a process that they left behind may still be writing."""
        deadline = time.monotonic() + OUTPUT_GRACE
        while self.refresh(wait=0) and time.monotonic() < deadline:
            pass

    def step_errors(self) -> str:
        """The first error messages of srun, to be added to an error message."""
        return f": {'; '.join(self._errors)}" if self._errors else ""

    def close(self) -> None:
        """Show what is left and close the pipe of the reports."""
        self.drain()
        for descriptor, rest in self._rest.items():
            if rest:
                self._show(descriptor, rest)
        self._draw(every=0)
        if self._bar is not None:
            self._bar.close()
        self._selector.close()
        self._reports_pipe.close()

    def _draw(self, every: float) -> None:
        """Draw the newest progress, at most once in `every` seconds."""
        progress = self.reports.progress
        if self._bar is None or progress is None or progress is self._drawn or time.monotonic() - self._drawn_at < every:
            return
        self._drawn_at, self._drawn = time.monotonic(), progress
        self._bar.show(**progress)

    def _read(self, key: selectors.SelectorKey) -> None:
        chunk = os.read(key.fd, 1 << 16)
        if not chunk:
            self._selector.unregister(key.fileobj)
        *lines, rest = [*(self._rest[key.fd] + chunk).splitlines(keepends=True), b""]
        # an unfinished line is shown when it ends, or when it has become long
        if lines and not lines[-1].endswith((b"\n", b"\r")) and len(lines[-1]) < LONGEST_LINE:
            rest = lines.pop()
        self._rest[key.fd] = rest
        for line in lines:
            self._show(key.fd, line)

    def _show(self, descriptor: int, content: bytes) -> None:
        line = content.decode(errors="replace")
        if descriptor == self._reports_pipe.fileno() and self.reports.read(line):
            return
        if line.startswith("srun: error: "):
            self.killed = self.killed or KILLED.match(line)
            self._errors = [*self._errors, line.strip()][:5]
        if self._bar is None:
            print_line(line, end="")
        else:
            self._bar.write(line.rstrip("\r\n"))
