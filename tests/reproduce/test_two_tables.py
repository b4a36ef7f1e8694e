"""Several commands in one folder of results at the same time: the second waits for the first, and both succeed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from finished import finished_run
from processes import lives, wait_for

from sfrik.reproduce.status import run_status
from sfrik.settings import published_root
from sfrik.system.terminal import terminal_width
from sfrik.tables.compare import compare_tables
from sfrik.tables.text import as_text

psutil = pytest.importorskip("psutil", reason="comes with ipykernel")
pytest.importorskip("papermill", reason="comes with the extra notebooks")
CHECKOUT = Path(__file__).parents[2]
LONG = 300  # seconds for notebooks on a busy machine
RUN = ("smoke/random_weights", 0)
HOLD = """
import sys
from sfrik.system.locks import folder_lock
with folder_lock(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(*command, log, **keywords):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=file, stderr=subprocess.STDOUT, **keywords)


def sfrik(*arguments, log):
    return start(sys.executable, "-m", "sfrik", *arguments, log=log)


def make(table, results, log):
    return start("make", table, "PROFILE=smoke", "VENV=", f"RESULTS={results}", log=log)  # the interpreter of the tests


def ended(process, log):
    """The exit status and what was printed."""
    return process.wait(LONG), log.read_text(encoding="utf-8")


@pytest.fixture
def holds():
    """`holds(folder, name)` starts a process that holds a lock until its end."""
    started = []

    def hold(folder, name):
        command = [sys.executable, "-c", HOLD, str(folder), name]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", cwd=CHECKOUT)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def waits(log, process):
    """Return when the process that writes the log waits for another."""
    wait_for(lambda: "waiting for pid" in log.read_text(encoding="utf-8") or process.poll() is not None, LONG, "it waits")
    assert "waiting for pid" in log.read_text(encoding="utf-8"), log.read_text(encoding="utf-8")


def executed(results):
    """How often each notebook of each run was started, from the logs."""
    counts = {}
    for log in results.glob("smoke/*/seed*/run.log"):
        for line in log.read_text(encoding="utf-8").splitlines():
            if found := re.fullmatch(r"smoke/\S+ seed \d+: (\d\d_\w+)", line):
                counts[log.parent.parent.name, found[1]] = counts.get((log.parent.parent.name, found[1]), 0) + 1
    return counts


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same table twice at once: the folder of the results, and for each its exit status and what it printed.

    Two of its four runs are finished before.
    """
    folder = tmp_path_factory.mktemp("both")
    for recipe in ("smoke/crops_simclr_q64", "smoke/crops_auh_q64"):
        finished_run(folder / "results", recipe, stages=("pretrain", "knn"))
    logs = [folder / "first.txt", folder / "second.txt"]
    processes = [make("table8", folder / "results", log) for log in logs]
    return folder / "results", [ended(*pair) for pair in zip(processes, logs, strict=True)]


def test_two_tables_at_once_both_end_with_the_same_table(both):
    results, ends = both
    table = "\n".join(as_text(compare_tables("table8", "smoke", results, published_root(), 1), terminal_width()))
    for status, printed in ends:
        assert status == 0, printed
        assert "failed" not in printed
        assert table in printed
        assert "[2/2]" in printed, "the second reports each run too"
    assert (results / "smoke" / "notebooks" / "07_table8.ipynb").is_file()
    assert not list(results.rglob("*.partial.ipynb"))
    assert not list(results.rglob(".*.tmp"))


def test_each_run_was_executed_once_and_its_log_has_both_attempts(both):
    results, _ = both
    counts = executed(results)
    assert len(counts) == 2 * 2
    assert set(counts.values()) == {1}
    logs = list(results.glob("smoke/*/seed0/run.log"))
    assert len(logs) == 2
    for log in logs:
        assert len(re.findall(r"^--- sfrik run .* ---$", log.read_text(encoding="utf-8"), re.MULTILINE)) == 2
        run = (f"smoke/{log.parent.parent.name}", 0)
        status = run_status(*run, ("pretrain", "knn"), results)
        assert (status.state, status.detail) == ("done", "")


def test_a_third_one_finds_everything_finished_and_changes_nothing(both, tmp_path):
    results, _ = both
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file() and path.suffix != ".lock"}
    status, printed = ended(make("table8", results, tmp_path / "log"), tmp_path / "log")
    assert status == 0, printed
    assert "4 runs, 4 finished here" in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_two_tables_that_share_a_run_each_execute_their_own_notebooks_of_it(tmp_path):
    """Two tables may need different stages of one run."""
    results, command = tmp_path / "results", ["run", "--recipe", RUN[0], "--results", str(tmp_path / "results"), "--stages"]
    logs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    stages = ("linear", "knn")
    processes = [sfrik(*command, "pretrain", stage, log=log) for stage, log in zip(stages, logs, strict=True)]
    ends = [ended(*pair) for pair in zip(processes, logs, strict=True)]
    assert [status for status, _ in ends] == [0, 0], ends
    assert sum("waiting for pid" in printed for _, printed in ends) == 1
    for name in ("02_pretraining", "03_linear_probing", "05_knn_and_logistic_regression"):
        assert sum(f": {name}" in printed for _, printed in ends) == 1
    assert run_status(*RUN, ("pretrain", *stages), results).state == "done"


def test_the_lock_of_a_process_that_was_killed_does_not_hold_the_one_that_waits(tmp_path, holds):
    folder, log = tmp_path / "results" / RUN[0] / "seed0", tmp_path / "log"
    first = holds(folder, "run.lock")
    worker = holds(folder, "lock")  # what a killed run leaves for some seconds: a worker that saves
    command = ["run", "--recipe", RUN[0], "--results", str(tmp_path / "results"), "--stages", "pretrain"]
    second = sfrik(*command, log=log)
    waits(log, second)
    first.send_signal(signal.SIGKILL)
    wait_for(lambda: f"waiting for pid {worker.pid} " in log.read_text(encoding="utf-8"), LONG, "it waits for the worker too")
    assert "02_pretraining" not in log.read_text(encoding="utf-8")
    worker.send_signal(signal.SIGKILL)
    status, printed = ended(second, log)
    assert status == 0, printed
    assert printed.count("waiting for pid") == 2
    assert run_status(*RUN, ("pretrain",), tmp_path / "results").state == "done"


SIGNALS = {
    signal.SIGINT: (130, "sfrik: interrupted"),
    signal.SIGTERM: (75, "sfrik: stopped by SIGTERM"),
    signal.SIGUSR1: (75, "sfrik: stopped by SIGUSR1"),
}


@pytest.mark.parametrize(
    ("place", "lock", "arguments", "number"),
    [
        *((f"{RUN[0]}/seed0", "run.lock", ["run", "--recipe", RUN[0]], number) for number in SIGNALS),
        ("smoke/complexity/seed0", "run.lock", ["table", "table5", "--profile", "smoke"], signal.SIGTERM),
        ("smoke", "render.lock", ["table", "table1", "--profile", "smoke", "--render-only"], signal.SIGUSR1),
        ("smoke/chapters", "run.lock", ["chapters", "--profile", "smoke"], signal.SIGINT),
    ],
)
def test_a_waiting_command_ends_at_once_when_it_is_asked_to_stop(tmp_path, holds, place, lock, arguments, number):
    results, log = tmp_path / "results", tmp_path / "log"
    status, words = SIGNALS[number]
    holder = holds(results / place, lock)
    process = sfrik(*arguments, "--results", str(results), log=log)
    waits(log, process)
    process.send_signal(number)
    assert ended(process, log)[0] == status
    assert words in log.read_text(encoding="utf-8").splitlines()[-1]
    assert "Traceback" not in log.read_text(encoding="utf-8")
    assert holder.poll() is None, "the lock is held: it is the signal that ended the wait"
    left = {path.name for path in results.rglob("*") if path.is_file()}
    assert left == {lock}


def test_a_table_that_is_stopped_while_its_runs_wait_leaves_none_of_them(tmp_path, holds):
    results, log = tmp_path / "results", tmp_path / "log"
    recipes = ("crops_simclr_q64", "crops_auh_q64", "crops_vicreg_q64", "crops_sfrik_l3_q64")
    folders = [results / "smoke" / recipe / "seed0" for recipe in recipes]
    holders = [holds(folder, "run.lock") for folder in folders]
    process = sfrik("table", "table8", "--profile", "smoke", "--jobs", "4", "--results", str(results), log=log)
    wait_for(lambda: all((folder / "run.log").is_file() for folder in folders), LONG, "its runs are started")
    for folder in folders:
        waits(folder / "run.log", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 4
    process.send_signal(signal.SIGTERM)
    assert ended(process, log)[0] == 75
    wait_for(lambda: not any(lives(child) for child in family), 20, "none is left")
    assert [holder.poll() for holder in holders] == [None] * 4


def test_the_waiting_runs_of_a_command_that_is_killed_end_too(tmp_path, holds):
    results, log = tmp_path / "results", tmp_path / "log"
    folder = results / "smoke" / "crops_simclr_q64" / "seed0"
    holds(folder, "run.lock")
    process = sfrik("table", "table8", "--profile", "smoke", "--jobs", "1", "--results", str(results), log=log)
    wait_for(lambda: (folder / "run.log").is_file(), LONG, "its run is started")
    waits(folder / "run.log", process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_for(lambda: not any(lives(child) for child in family), 30, "the run has ended too")
    assert run_status("smoke/crops_simclr_q64", 0, ("pretrain",), results).state == "running", (
        "of the process that holds the lock"
    )
