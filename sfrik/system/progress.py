"""Progress reporting: a bar on a screen, plain lines in a log, a file for `sfrik status` and the command that makes a table.

A bar is drawn on a terminal and in JupyterLab. Headless (papermill, SLURM, a pipe) it would flood the log, so a line per minute
is printed instead. A worker of `sfrik.launch` has no screen: it sends its progress to the process that started it, which draws
the bar.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from sfrik.system.terminal import is_terminal, print_line, tolerate_output_errors

__all__ = ["Bar", "Progress", "duration", "time_left", "track", "wants_bar"]

Part = TypeVar("Part")

BAR_SECONDS, STATE_SECONDS, LINE_SECONDS = 0.5, 5.0, 60.0  # shortest time between two updates
LONGEST = 1e9  # seconds that are still a time: 30 years
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"  # the text after it has the time left

progress_callback: Callable[[dict[str, Any]], None] | None = None  # set in a worker of sfrik.launch


def wants_bar() -> bool:
    """Whether to draw a bar: on a terminal, in JupyterLab, or in a worker whose caller is in one of them."""
    return "JPY_SESSION_NAME" in os.environ or "SFRIK_BAR" in os.environ or is_terminal(sys.stderr)


class Bar:
    """A tqdm bar set to absolute positions; it appears with the first one."""

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, done: int, total: int, text: str) -> None:
        with tolerate_output_errors(sys.stderr):
            if self._bar is None:
                from tqdm.auto import tqdm

                self._bar = tqdm(total=total, initial=done, unit="step", leave=False, bar_format=BAR)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            print_line(text)
        else:
            with tolerate_output_errors(sys.stdout):
                self._bar.write(text)

    def close(self) -> None:
        if self._bar is not None:
            with tolerate_output_errors(sys.stderr):
                self._bar.close()


class Progress:
    """The progress of one task.

    Args:
        total: the number of steps.
        done: steps that were done before, which the estimate of the time left excludes.
        save: called every `STATE_SECONDS` with the facts as keyword arguments.
        show: whether to print and draw; True on rank 0 only.
    """

    def __init__(self, total: int, done: int = 0, save: Callable[..., None] | None = None, show: bool = True) -> None:
        self.total, self.save, self.show = total, save, show
        self._started, self._first = time.monotonic(), done
        self._bar = Bar() if show and wants_bar() and progress_callback is None else None
        self._last = {BAR_SECONDS: 0.0, STATE_SECONDS: 0.0, LINE_SECONDS: self._started}
        self._drawn = False

    def step(self, done: int, describe: Callable[[], dict[str, Any]]) -> None:
        """Report a step. `describe` returns epoch, epochs and loss, or `what`; it is called only when an update is due."""
        due = [every for every in self._last if self._due(every)] if self.show or self.save is not None else []
        if self._drawn and done == self.total:  # tqdm draws a bar that is closed before its end as failed
            due.append(BAR_SECONDS)
        if not due:
            return
        facts: dict[str, Any] = {**describe(), "step": done, "steps": self.total, "seconds_left": self._left(done)}
        text = str(facts.get("what") or f"epoch {facts['epoch'] + 1}/{facts['epochs']}, loss {facts['loss']:.4f}")
        left = time_left(facts["seconds_left"], ", ")
        if STATE_SECONDS in due and self.save is not None:
            self.save(**facts)
        if self.show and BAR_SECONDS in due and self._bar is not None:
            self._bar.show(done, self.total, text + left)
        elif self.show and BAR_SECONDS in due and progress_callback is not None:
            progress_callback({"done": done, "total": self.total, "text": text + left})
        self._drawn |= self.show and BAR_SECONDS in due
        if self.show and LINE_SECONDS in due and not wants_bar():
            print_line(f"{text}, step {done} of {self.total}{left}")

    def write(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.show and self._bar is not None:
            self._bar.write(text)
        elif self.show:
            print_line(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _due(self, every: float) -> bool:
        now = time.monotonic()
        due = now - self._last[every] >= every
        if due:
            self._last[every] = now
        return due

    def _left(self, done: int) -> float | None:
        made = done - self._first
        return round((time.monotonic() - self._started) / made * (self.total - done), 1) if made > 0 else None


def track(parts: Iterable[Part], total: int, what: str, show: bool = True) -> Iterator[Part]:
    """Iterate over `total` parts, with a bar or lines that show how many are done and the time left."""
    progress = Progress(total, show=show)
    try:
        for done, part in enumerate(parts, 1):
            yield part
            progress.step(done, lambda: {"what": what})
    finally:
        progress.close()


def time_left(seconds: float | None, prefix: str = "") -> str:
    """Format a remaining time after `prefix`; empty if it is unknown, below a second, or no time at all.

    >>> [time_left(x) for x in (719, 1, 0.9, -3, None)]
    ['12 min left', '1 s left', '', '', '']
    """
    return f"{prefix}{duration(seconds)} left" if seconds is not None and 1 <= seconds < LONGEST else ""


def duration(seconds: float) -> str:
    """Format a time: 45 s, 12 min, 3 h 20 min, 2 d 4 h.

    >>> [duration(x) for x in (45, 719, 12000, 187200)]
    ['45 s', '12 min', '3 h 20 min', '2 d 4 h']
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
