"""A function on N processes: results, output, failures, interrupts, and no process left behind."""

import errno
import fcntl
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import launch_targets
import pytest

pytest.importorskip("psutil", reason="comes with ipykernel")
import psutil
from processes import HANG, START, seconds_to_end, wait_for

from sfrik.errors import SfrikError
from sfrik.launch.launcher import WorkerError, launch
from sfrik.launch.rendezvous import open_rendezvous
from sfrik.settings import PretrainSettings

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_three_processes_compute_together_and_rank_zero_returns(capfd):
    result = launch("launch_targets:total", [1.0, 10.0, 100.0], nproc_per_node=3, factor=2.0)
    assert result == {"total": 222.0, "world_size": 3, "threads": 1}
    printed = capfd.readouterr().out
    assert all(f"rank {rank} of 3 was here" in printed for rank in range(3))


def test_output_without_newlines_is_shown_completely_and_while_it_arrives(capfd):
    size = 20_000_000  # a search from its start at each chunk would take minutes
    assert launch("launch_targets:print_without_newlines", size, nproc_per_node=2) == "done"
    printed = capfd.readouterr().out
    assert printed.count("x") == 2 * size
    assert all(printed.count(f"step {step}\r") == 2 for step in range(3))


def test_settings_and_a_text_larger_than_a_pipe_arrive_complete():
    settings, text = PretrainSettings(epochs=7, ssl_method="auh"), "x" * 3_000_000
    assert launch("launch_targets:received", settings, text, nproc_per_node=2) == ["PretrainSettings auh 7", 3_000_000]


def test_one_process_is_the_calling_one():
    assert launch("os:getpid", nproc_per_node=1) == os.getpid()


def test_a_worker_that_raises_is_the_callers_error_with_its_rank_and_traceback():
    with pytest.raises(WorkerError, match=r"rank 1 on .* failed") as error:
        launch("launch_targets:fail_on", 1, nproc_per_node=2)
    assert "ValueError: the reason of the failure" in str(error.value)
    assert "launch_targets.py" in str(error.value)
    assert error.value.mistake is None


def test_an_error_in_the_input_that_a_worker_finds_is_marked_as_one():
    with pytest.raises(WorkerError, match=r"rank \d on .* failed") as error:
        launch("launch_targets:cannot_write", "/proc/none/file", nproc_per_node=2)
    assert error.value.mistake.startswith("/proc/none/file could not be written")


def test_a_worker_that_is_killed_is_reported_by_its_signal():
    with pytest.raises(WorkerError, match=r"rank 1 on .* was ended by SIGKILL"):
        launch("launch_targets:die_on", 1, nproc_per_node=2)


def test_what_a_worker_cannot_import_is_refused_with_the_reason():
    def local():
        pass

    with pytest.raises(SfrikError, match="must be in a module"):
        launch(local, nproc_per_node=2)
    with pytest.raises(SfrikError, match="cannot find launch_targets:nothing"):
        launch("launch_targets:nothing", nproc_per_node=2)
    with pytest.raises(SfrikError, match='"module:function"'):
        launch("nothing", nproc_per_node=2)
    with pytest.raises(SfrikError, match="settings, or made of numbers"):
        launch(launch_targets.fail_on, object(), nproc_per_node=2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (None, "module:function"),
        (5, "module:function"),
        (":f", "module:function"),
        ("launch_targets:", "module:function"),
        ("..:f", "cannot find"),
        ("launch_targets:__name__", "is no function"),
        (functools.partial(launch_targets.fail_on, 1), "imports a function of a module by its name"),
        ("text".upper, "imports a function of a module by its name"),
    ],
)
def test_anything_but_a_function_of_a_module_is_refused_before_a_worker_starts(function, message):
    with pytest.raises(SfrikError, match=message):
        launch(function, nproc_per_node=2)


@pytest.mark.parametrize("counts", [{"nproc_per_node": -1}, {"nproc_per_node": 1.5}, {"nproc_per_node": "2"}, {"nodes": 2}])
def test_impossible_numbers_of_processes_and_nodes_are_refused(counts, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(SfrikError, match="launch"):
        launch("os:getpid", **{"nproc_per_node": 1, **counts})


def test_workers_meet_through_the_loopback_interface_where_files_have_no_locks(tmp_path, monkeypatch):
    def without_locks(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert open_rendezvous(1, str(tmp_path))[0].startswith("file:")
    monkeypatch.setattr(fcntl, "flock", without_locks)
    assert open_rendezvous(1, str(tmp_path))[0].startswith("tcp:127.0.0.1:")


def test_an_argument_that_json_cannot_hold_is_refused():
    circular: list = []
    circular.append(circular)
    with pytest.raises(SfrikError, match="an argument of launch must be"):
        launch("launch_targets:fail_on", circular, nproc_per_node=2)


# The handler is set again: a shell that runs the tests in the background makes its children ignore interrupts.
CALLER = """
import signal, sys
from sfrik.launch.launcher import launch
signal.signal(signal.SIGINT, signal.default_int_handler)
launch("launch_targets:wait", sys.argv[1], nproc_per_node=2)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_caller(tmp_path, sent):
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)], stderr=subprocess.PIPE, encoding="utf-8")
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, START, "the workers")
    workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    caller.send_signal(sent)
    seconds_to_end(workers, HANG)  # they would wait twice as long
    caller.communicate()
    assert caller.returncode != 0
