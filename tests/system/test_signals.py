"""The grace times: an inner process has less time than the one that waits for it, and docs/faults.md has the same numbers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sfrik.launch.slurm import Site
from sfrik.system import signals

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| .* \| (?:`(\w+)` )?\|$", re.MULTILINE)


def grace_times():
    """The constants of the module by name, and SLURM's signal before the limit, for the default of SFRIK_GRACE."""
    environment = {name: value for name, value in os.environ.items() if name != "SFRIK_GRACE"}
    code = "from sfrik.system import signals; print({n: v for n, v in vars(signals).items() if isinstance(v, float)})"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return {**eval(shown.stdout), "signal_seconds": Site().signal_seconds}


def test_every_grace_time_is_shorter_than_that_of_the_process_outside_it_and_the_page_has_them_all():
    times = grace_times()
    rows = ROW.findall((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert {name: float(seconds) for name, seconds, _ in rows} == times
    for name, _, outer in rows:
        assert not outer or times[name] < times[outer], f"{name} is not shorter than {outer}"
    assert [name for name, _, outer in rows if not outer] == ["signal_seconds"]


def test_a_kernel_has_time_to_wait_for_its_workers_and_their_output():
    assert signals.GRACE + signals.OUTPUT_GRACE < signals.KERNEL_GRACE
    assert signals.REPORT_GRACE + signals.FAILURE_GRACE + signals.OUTPUT_GRACE < signals.KERNEL_GRACE


WATCHED = """
import signal, sys, time
from sfrik.system.signals import stop_at_end_of_stdin
if sys.argv[1] == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
stop_at_end_of_stdin(0.5, lambda: print("prepared", flush=True))
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("behaviour", "status"), [("stops", -signal.SIGTERM), ("ignores", 128 + signal.SIGTERM)])
def test_a_process_stops_when_its_stdin_ends_and_is_ended_when_it_does_not(behaviour, status):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", WATCHED, behaviour], cwd=ROOT, **pipes)
    try:
        assert process.stdout.readline() == "started\n"
        process.stdin.write("what is written is no request to stop\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.stdin.close()
        assert process.stdout.readline() == "prepared\n"
        assert process.wait(30) == status
    finally:
        process.kill()
