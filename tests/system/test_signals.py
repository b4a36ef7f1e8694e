"""Requests to stop, signals that stay ignored, and the grace times: shorter for inner processes, and as in docs/faults.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sfrik.errors import Preempted
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
    assert signals.GRACE + signals.KILL_GRACE + signals.OUTPUT_GRACE < signals.KERNEL_GRACE
    assert signals.REPORT_GRACE + signals.FAILURE_GRACE + signals.OUTPUT_GRACE < signals.KERNEL_GRACE


WATCHED = """
import signal, sys, time
from sfrik.system.signals import stop_at_end_of_stdin
stop_at_end_of_stdin(0.5, lambda: print("prepared", flush=True))
if sys.argv[1] == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_that_is_ignored_stays_ignored_and_the_others_are_requests_to_stop(number):
    others = [other for other in signals.SIGNALS if other != number]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals.stop_at_once(), signals.stop_requests() as requests:
            assert signal.getsignal(number) == signal.SIG_IGN
            os.kill(os.getpid(), number)
            assert not requests.number
            assert all(callable(signal.getsignal(other)) for other in others)
            os.kill(os.getpid(), others[0])
            assert requests.number == others[0]
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_closed_terminal_stops_work_that_has_nothing_to_save():
    with pytest.raises(Preempted, match="stopped by SIGHUP"), signals.stop_at_once():
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_request_between_two_nested_parts_of_the_work_is_not_lost():
    with signals.stop_requests() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with signals.stop_requests() as inner:
            assert inner.number == signal.SIGTERM
            inner.number = signal.SIGHUP
        assert outer.number == signal.SIGHUP
    with signals.stop_requests() as later:
        assert later.number == 0


def test_a_process_accepts_the_request_of_its_caller_even_if_its_caller_ignores_the_signal():
    process = subprocess.Popen(
        ["sh", "-c", f"trap '' TERM; exec '{sys.executable}' -c '{WATCHED}' stops"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"started\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    finally:
        process.kill()


def test_the_end_of_a_stdin_that_is_no_pipe_is_no_request_to_stop():
    code = WATCHED.replace("time.sleep(60)", "time.sleep(0.5)")
    for stdin in ("< /dev/null", "<&-", f"< '{__file__}'"):
        command = f"""exec '{sys.executable}' -c '{code}' stops {stdin}"""
        done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
        assert (done.returncode, done.stdout) == (0, "started\n"), done
