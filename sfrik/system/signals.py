"""Graceful shutdown on signals, and how long processes wait for each other.

A signal sets a flag, and the work checks the flag where it can save. SLURM sends SIGUSR1 some time before a job's limit, and
SIGTERM when it preempts or cancels a job; Jupyter's stop button and Ctrl-C send SIGINT; a terminal or an ssh session that closes
sends SIGHUP. All four mean: save, then stop.

A signal that is ignored stays ignored: `nohup` starts a command with SIGHUP ignored, a script's `command &` with SIGINT ignored,
and so do all processes that the command starts. The exceptions are the signals by which these processes ask each other to stop:
SIGTERM of a run or worker whose stdin is a pipe of its caller, and SIGINT of a kernel.

A process whose caller is gone, even by kill -9, stops in the same way: its stdin is a pipe of the caller, and the end of the pipe
is a SIGTERM (`stop_at_end_of_stdin`). This needs no polling, and works on Linux, on macOS and through `srun`.
"""

from __future__ import annotations

import math
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sfrik.errors import Preempted

__all__ = [
    "FAILURE_GRACE",
    "GRACE",
    "KERNEL_GRACE",
    "KERNEL_REPLY",
    "KERNEL_SIGTERM",
    "KILL_GRACE",
    "OUTPUT_GRACE",
    "REPORT_GRACE",
    "RUN_GRACE",
    "SIGNALS",
    "StopRequests",
    "handle_signals",
    "place_reached",
    "stop",
    "stop_at_end_of_stdin",
    "stop_at_once",
    "stop_requests",
]

SIGNALS = [
    getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "USR1", "HUP") if hasattr(signal, f"SIG{name}")
]  # Windows: two


def _seconds(text: str) -> float:
    """A number of seconds up to a day; NaN if the text is none, which `sfrik.cli.main` refuses."""
    try:
        return float(text) if 0 <= float(text) <= 24 * 60 * 60 else math.nan
    except ValueError:
        return math.nan


# Seconds that one process waits for another: each wait is longer than the waits nested in it. The table in docs/faults.md lists
# who waits, for what, and what happens then.
GRACE = _seconds(os.environ.get("SFRIK_GRACE", "30"))  # for a worker that was asked to stop and saves
KERNEL_GRACE = GRACE + 5  # for an interrupted kernel, which waits for its workers and then for their output
RUN_GRACE = GRACE + 10  # for a run that was asked to stop, which waits for its kernel and then writes its state
REPORT_GRACE = 2.0  # for the report of a worker that failed
FAILURE_GRACE = 3.0  # for the other workers, once one has failed: without it they cannot save
OUTPUT_GRACE = 2.0  # for the output of processes that the workers left behind
KERNEL_REPLY = 20.0  # for a kernel that clears its namespace between two notebooks
KERNEL_SIGTERM = 15.0  # for an interrupted cell, until SIGTERM ends a kernel that missed the interrupt and saves nothing
KILL_GRACE = 2.0  # for a process that was killed and waits for a disk or a driver that does not answer


class StopRequests:
    """A request to stop. `number` is that of the first signal, 0 while there was none."""

    def __init__(self) -> None:
        self.number = 0


def stop(number: int, where: str) -> None:
    """Leave the work once everything is saved.

    Args:
        number: of the signal, which this process or another one received.
        where: the place that was reached, for the message.

    Raises:
        KeyboardInterrupt: the signal was SIGINT, which a person sends.
        Preempted: it was another one.
    """
    name = signal.Signals(number).name
    text = f"stopped by {name} ({where}); the same command resumes from there"
    raise KeyboardInterrupt(text) if name == "SIGINT" else Preempted(text)


def place_reached(text: str) -> str:
    """The `where` in the message of an error that `stop` raised, possibly in another process.

    >>> place_reached("stopped by SIGTERM (saved at epoch 3); the same command resumes from there")
    'saved at epoch 3'
    """
    found = re.search(r"stopped by \w+ \((.*)\); the same command", text)
    return found.group(1) if found else text


_current: list[StopRequests] = []  # of the contexts of `stop_requests` that this process is in: one object


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Within it the `SIGNALS` only set a flag; a second SIGINT interrupts at once.

    Nested contexts share the flag, so that a request between the start of the outer and of the inner one is not lost. Outside the
    main thread, the only one that receives signals, the flag stays unset.
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopRequests()
        return
    requests = _current[-1] if _current else StopRequests()

    def request(number: int, frame) -> None:
        if number == requests.number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.number = requests.number or number

    _current.append(requests)
    try:
        with _handlers(request, SIGNALS):
            yield requests
    finally:
        _current.pop()


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Within it the `SIGNALS` but SIGINT raise `Preempted`, as SIGINT raises KeyboardInterrupt: for work with nothing to save."""

    def leave(number: int, frame) -> None:
        stop(number, "nothing new to save")

    with _handlers(leave, [number for number in SIGNALS if number != signal.SIGINT]):
        yield


@contextmanager
def _handlers(handler: Callable, numbers: list[int]) -> Iterator[None]:
    """Handle signals within the context; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = handle_signals(handler, numbers)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)  # None: not installed from Python


def handle_signals(handler: Callable, numbers: Sequence[int] = SIGNALS) -> dict[int, Any]:
    """Set the handler of signals, except of those that are ignored. Returns the handlers before, by signal."""
    return {number: signal.signal(number, handler) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}


def stop_at_end_of_stdin(grace: float, prepare: Callable[[], None] | None = None) -> None:
    """Send SIGTERM to this process when the caller, which holds the other end of stdin, is gone; end it `grace` seconds later.

    A daemon thread reads stdin, so nothing else may. The caller's SIGTERM is accepted, even if it was ignored. A stdin that is no
    pipe or socket, such as /dev/null, ends without meaning anything and is not watched.

    Args:
        prepare: called before the signal.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # stdin is closed
        return
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        if prepare is not None:
            prepare()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
