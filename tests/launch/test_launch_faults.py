"""Ends of workers that a caller could misread: constant output, silence, a hang, and signals at difficult moments."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="comes with ipykernel")
from processes import HANG, START, lives, named, seconds_to_end, wait_for

from sfrik.errors import Preempted
from sfrik.launch import launcher
from sfrik.launch.launcher import WorkerError, _start, launch

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def soon(ready, act) -> threading.Thread:
    """Act in a thread when `ready()` is true."""

    def work() -> None:
        wait_for(ready, START, "the workers")
        act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_worker_that_raises_is_the_callers_error_also_while_another_prints_all_the_time(capfd):
    with pytest.raises(WorkerError, match=r"rank 1 on .* failed") as error:
        launch("launch_targets:chatter_until_lost", 1, nproc_per_node=2)
    assert "ValueError: the reason of the failure" in str(error.value)
    assert "launch_targets.py" in str(error.value), "with its traceback"
    assert error.value.mistake is None
    assert "still here" in capfd.readouterr().out
    assert not named("sfrik.launch.worker")


def test_a_worker_that_ends_without_a_report_is_an_error_at_once():
    started = time.monotonic()
    with pytest.raises(WorkerError, match="rank 0 ended with exit status 0 before the function returned"):
        launch("launch_targets:end_silently", 0, nproc_per_node=2)
    assert time.monotonic() - started < HANG, "a store waits 300 s for what never comes"


def test_the_others_of_a_worker_that_failed_get_less_time_to_end_than_those_that_can_save(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "GRACE", 2 * HANG)
    started: list[float] = []
    soon(lambda: list(tmp_path.iterdir()), lambda: started.append(time.monotonic()))
    with pytest.raises(WorkerError, match=r"rank 1 on .* failed"):
        launch("launch_targets:fail_while_others_hang", str(tmp_path), 1, nproc_per_node=2)
    assert time.monotonic() - started[0] < HANG
    assert not named("sfrik.launch.worker")


def test_a_signal_to_a_worker_that_is_still_starting_is_a_stop_request_and_no_failure(tmp_path):
    soon(lambda: named("sfrik.launch.worker"), lambda: named("sfrik.launch.worker")[0].send_signal(signal.SIGUSR1))
    with pytest.raises(Preempted, match=r"stopped by SIGUSR1 \(nothing new to save\)"):
        launch("launch_targets:wait", str(tmp_path), nproc_per_node=2)
    assert not named("sfrik.launch.worker")
    assert not list(tmp_path.iterdir())


def test_a_signal_to_one_worker_of_a_function_without_handlers_stops_all(tmp_path):
    soon(lambda: len(list(tmp_path.iterdir())) == 2, lambda: named("sfrik.launch.worker")[1].terminate())
    with pytest.raises(Preempted, match=r"stopped by SIGTERM \(nothing new to save\)"):
        launch("launch_targets:wait", str(tmp_path), nproc_per_node=2)
    assert not named("sfrik.launch.worker")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_to_the_caller_stops_the_workers_and_leaves_its_handlers_as_they_were(tmp_path, number, error):
    def handler(number, frame):
        pytest.fail("launch left the signal to the handler outside")

    before = signal.signal(number, handler)
    try:
        there = []

        def act():
            there.extend(named("sfrik.launch.worker"))
            os.kill(os.getpid(), number)

        soon(lambda: len(list(tmp_path.iterdir())) == 2, act)
        with pytest.raises(error, match=rf"stopped by {number.name} \(nothing new to save\)"):
            launch("launch_targets:wait", str(tmp_path), nproc_per_node=2)
        assert signal.getsignal(number) is handler
        assert len(there) == 2
        assert not any(map(lives, there))
    finally:
        signal.signal(number, before)


def step_words(nproc: int, nodes: int, environment: dict[str, str]) -> list[str]:
    """The arguments of srun, which is replaced by a script that prints them."""
    reading, writing = os.pipe()
    (step,) = _start(nproc, nodes, environment, writing)
    os.close(writing)
    step.communicate()
    with open(reading, encoding="utf-8") as file:
        return file.read().splitlines()


def test_the_step_of_one_node_is_on_the_node_of_the_caller_and_in_the_sites_container(tmp_path, monkeypatch):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    (tmp_path / "slurm.toml").write_text('srun = ["--cpu-bind=none"]', encoding="utf-8")
    monkeypatch.setenv("SFRIK_SLURM", str(tmp_path / "slurm.toml"))
    environment = {**os.environ, "SLURMD_NODENAME": "node2", "SFRIK_PREFIX": "apptainer exec 'an image.sif'"}
    words = step_words(1, 1, environment)
    assert {"--export=ALL", "--cpu-bind=none"} <= set(words)
    assert words[:4] == ["--overlap", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]
    assert "--nodelist=node2" in words
    assert words[-6:] == ["apptainer", "exec", "an image.sif", sys.executable, "-m", "sfrik.launch.worker"]
    assert not any(word.startswith("--nodelist") for word in step_words(2, 2, environment))


def test_no_worker_and_no_temporary_folder_is_left_by_a_caller_that_was_killed(tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    (tmp_path / "there").mkdir()
    script = "import sys; from sfrik.launch.launcher import launch; launch('launch_targets:wait', sys.argv[1], nproc_per_node=2)"
    environment = {**os.environ, "TMPDIR": str(folder)}
    caller = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "there")], env=environment)
    wait_for(lambda: len(list((tmp_path / "there").iterdir())) == 2, START, "the workers")
    assert len(list(folder.glob("sfrik-*"))) == 1
    workers = named("sfrik.launch.worker", caller.pid)
    assert len(workers) == 2
    caller.kill()
    caller.wait()
    seconds_to_end(workers, HANG)  # they would wait twice as long
    assert not list(folder.glob("sfrik-*"))
