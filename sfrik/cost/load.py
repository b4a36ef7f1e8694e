"""Whether the machine was quiet while something was timed: its load, and the cores that other processes kept busy.

The load average of the last minute includes the measurement itself, and what ran just before it, such as another repetition.
What decides is therefore the CPU time of all processes less that of this one, which Linux reports; elsewhere the load average
before the measurement. Other processes on a GPU are not seen.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from sfrik.system.terminal import print_line
from sfrik.tables.cost_rows import load_note

__all__ = ["Usage", "load_since", "usage"]

STAT = Path("/proc/stat")  # of Linux
BUSY = (0, 1, 2, 5, 6, 7)  # columns of its first line: user, nice, system, irq, softirq, steal; not idle, iowait, guest


class Usage(NamedTuple):
    """A moment: the clock, the load average of the last minute, and the seconds of CPU of others until now; None if unknown."""

    clock: float
    average: float | None
    others: float | None


def usage() -> Usage:
    """The load of the machine now."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Usage(time.monotonic(), average, _cpu_of_others())


def load_since(start: Usage) -> dict[str, Any]:
    """The load between `start` and now; a line on stderr warns if the machine was not quiet.

    Returns:
        `before` and `after`, the load averages; `others`, the mean number of cores that other processes kept busy, None where the
        system does not report it; and `cores`, those of the machine.
    """
    end = usage()
    others = None
    if start.others is not None and end.others is not None and end.clock > start.clock:
        others = max(0.0, (end.others - start.others) / (end.clock - start.clock))
    load = {"before": start.average, "after": end.average, "others": others, "cores": os.cpu_count() or 1}
    if problem := load_note([load], only_problems=True):
        print_line(f"warning: {problem}", error=True)
    return load


def _cpu_of_others() -> float | None:
    """Seconds of CPU of all processes but this one and its children that have ended."""
    try:
        fields = STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
        everything = sum(int(fields[k]) for k in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    return everything - sum(os.times()[:4])
