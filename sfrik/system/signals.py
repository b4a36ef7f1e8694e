"""Stopping in good order: a signal sets a flag, and the work looks at it where it can save.

SLURM sends SIGUSR1 some time before a job's limit and SIGTERM when it preempts or cancels one; Jupyter's stop button and
Ctrl-C send SIGINT. All three mean: save, then stop.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sfrik.errors import Preempted

__all__ = ["GRACE", "SIGNALS", "StopRequests", "place_reached", "stop", "stop_requests"]

GRACE = float(os.environ.get("SFRIK_GRACE", 30))  # seconds between asking a process to stop and ending it
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows has no USR1


class StopRequests:
    """`number`: of the signal that asked to stop, 0 while there was none."""

    def __init__(self) -> None:
        self.number = 0


def stop(number: int, where: str) -> None:
    """Leave the work, once all is saved.

    Args:
        number: of the signal, which this process or another one received. where: the place that was reached.

    Raises:
        KeyboardInterrupt: the signal was SIGINT, which a person sends. Preempted: another one.
    """
    name = signal.Signals(number).name
    text = f"stopped by {name} ({where}); the same command goes on from there"
    raise KeyboardInterrupt(text) if name == "SIGINT" else Preempted(text)


def place_reached(text: str) -> str:
    """What `where` was in the text of an error that `stop` raised, which may have come as text from another process.

    >>> place_reached("stopped by SIGTERM (saved at epoch 3); the same command goes on from there")
    'saved at epoch 3'
    """
    found = re.search(r"stopped by \w+ \((.*)\); the same command", text)
    return found.group(1) if found else text


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Within it SIGINT, SIGTERM and SIGUSR1 set a flag and nothing else; a second SIGINT interrupts at once.

    Outside of the main thread, which alone receives signals, the flag stays unset.
    """
    requests = StopRequests()

    def ask(number: int, frame) -> None:
        if number == requests.number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.number = requests.number or number

    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    previous = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed from Python
