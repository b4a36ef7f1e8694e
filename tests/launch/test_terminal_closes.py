"""A terminal that closes during a training, as at the end of an ssh session: it sends SIGHUP, and cannot be written any more."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="comes with ipykernel")
from processes import HANG, START, last_step, wait_for

from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "sfrik", "pretrain", "--recipe", "smoke/sfrik_l2_q64", "--device", "cpu", "--precision", "fp32"]


def start(folder: Path, epochs: int, ignored: bool) -> tuple[int, subprocess.Popen]:
    """Start a training in a terminal of its own; returns the terminal's other end. `ignored`: with SIGHUP, as `nohup` does it."""
    ours, theirs = pty.openpty()

    def prepare() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    command = [*COMMAND, "--exp-dir", str(folder), "--epochs", str(epochs), "--log-every", "1", "--knn-every", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = subprocess.Popen(command, env=environment, preexec_fn=prepare, **streams)
    os.close(theirs)
    return ours, process


@pytest.mark.skipif(sys.platform != "linux", reason="sets a controlling terminal as Linux does")
def test_a_training_saves_and_stops_when_its_terminal_closes_and_goes_on_under_nohup(tmp_path):
    stopped, finished = tmp_path / "stopped", tmp_path / "nohup"
    runs = {finished: start(finished, 8, True), stopped: start(stopped, 500, False)}
    try:
        for folder, (_, process) in runs.items():
            wait_for(lambda f=folder, p=process: last_step(f) >= 1 or p.poll() is not None, START, "the training")
            assert process.poll() is None
            process.send_signal(signal.SIGSTOP)  # the other one may start later than this one would end
        for terminal, process in runs.values():
            os.close(terminal)
            process.send_signal(signal.SIGCONT)
        assert [process.wait(HANG) for _, process in runs.values()] == [0, 75]
    finally:
        for _, process in runs.values():
            process.kill()
    state, place = Run(stopped).state(), Checkpoints(stopped).load()["place"]
    assert (state["state"], state["step"]) == ("preempted", last_step(stopped) + 1)
    assert place["epoch"] < 500
    assert Run(finished).backbone.is_file()
    assert len(Run(finished).epochs()) == 8
