"""A function on N processes: results, output, and what is refused; test_launch_faults.py has failures and interrupts."""

import errno
import fcntl
import functools
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import launch_targets
import pytest

from sfrik.errors import SfrikError
from sfrik.launch.launcher import launch
from sfrik.launch.rendezvous import open_rendezvous
from sfrik.settings import PretrainSettings

TESTS = Path(__file__).parents[1]


def make_importable(patch):
    """Let the workers find the modules of the tests."""
    patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    patch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    make_importable(monkeypatch)


SIZE = 20_000_000  # of a line without an end: a search from its start at each chunk would take minutes


@pytest.fixture(scope="module")
def answered():
    """What three processes return, and what is printed meanwhile."""
    settings, text = PretrainSettings(epochs=7, ssl_method="auh"), "x" * 3_000_000
    given = {"factor": 2.0, "size": SIZE, "count": 200_000}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        make_importable(patch)
        result = launch("launch_targets:answer", [1.0, 10.0, 100.0], settings, text, nproc_per_node=3, **given)
    return result, printed.getvalue()


def test_three_processes_compute_together_and_rank_zero_returns(answered):
    result, printed = answered
    assert (result["total"], result["world_size"], result["threads"]) == (222.0, 3, 1)
    assert all(f"rank {rank} of 3 was here" in printed for rank in range(3))


def test_output_without_newlines_is_shown_completely_and_while_it_arrives(answered):
    _, printed = answered
    assert printed.count("x") == 3 * SIZE
    assert all(printed.count(f"step {step}\r") == 3 for step in range(3))


def test_settings_and_a_text_larger_than_a_pipe_arrive_complete(answered):
    result, _ = answered
    assert result["received"] == ["PretrainSettings auh 7", 3_000_000]


def test_a_long_result_arrives_complete(answered):
    result, _ = answered
    assert result["long"] == "é\n" * 200_000


def test_what_a_worker_prints_is_never_taken_for_a_report(answered):
    result, printed = answered
    assert isinstance(result, dict), "the result, and not the text that looks like one"
    assert printed.count("forged") == 3 * 2 * 4


def test_one_process_is_the_calling_one():
    assert launch("os:getpid", nproc_per_node=1) == os.getpid()


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
