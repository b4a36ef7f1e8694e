"""Faults and signals while a notebook trains on several processes: what is seen, how soon, and that no process is left.

The bounds in seconds are generous: they hold behaviour, not speed. What was measured is printed, with -s.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="comes with the extra notebooks")
import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from processes import descendants, last_step, lives, named, seconds_to_end, wait_for

from sfrik import notebooks
from sfrik.checkpoints import Checkpoints
from sfrik.errors import Preempted, SfrikError
from sfrik.notebooks import execute
from sfrik.runs import Run

TESTS = Path(__file__).parent
ERROR, GONE, STOPPED = 15, 15, 30  # seconds: to the cell's error; to the end of all; for workers that save first
START = 120  # seconds for interpreters to start and import on a busy machine


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# Waits for two workers, and notes when the cell ended.
CELL = """
import time
from pathlib import Path
from sfrik.launch import launch
from sfrik.settings import PretrainSettings
try:
    {call}
finally:
    Path(folder, "ended").write_text(str(time.time()))
"""
TRAIN = """settings = PretrainSettings.from_recipe(
        "smoke/sfrik_l2_q64", exp_dir=folder, epochs=200, subset=300, device="cpu", precision="fp32", log_every=1, knn_every=0
    )
    launch("sfrik.pretrain:pretrain", settings, nproc_per_node=2)"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Writes a notebook of two cells, the second one being `CELL` around a call, where `execute` finds it."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)

    def write(call: str) -> Path:
        parameters = nbformat.v4.new_code_cell('folder = ""', metadata={"tags": ["parameters"]})
        cells = [parameters, nbformat.v4.new_code_cell(CELL.format(call=call))]
        path = tmp_path / "calls.ipynb"
        spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)
        return path

    return write


class During(threading.Thread):
    """Does something to the processes while the main thread executes a notebook; what there was, and when it was done."""

    def __init__(self, ready, act) -> None:
        super().__init__(daemon=True)
        self.ready, self.act = ready, act
        self.there, self.at, self.error = [], 0.0, None
        self.start()

    def run(self) -> None:
        try:
            wait_for(self.ready, START, "the workers at work")
            self.there = descendants()
            self.at = time.time()
            self.act()
        except BaseException as error:
            self.error = error

    def outcome(self, folder: Path, title: str) -> tuple[float, float]:
        """Seconds from the act to the cell's end and to the end of all processes."""
        self.join(10)
        assert self.error is None, self.error
        seconds_to_end(self.there, STOPPED)
        gone = time.time() - self.at
        ended = folder / "ended"
        error = float(ended.read_text()) - self.at if ended.exists() else float("nan")
        print(f"\n{title}: {error:.1f} s to the cell's error, {gone:.1f} s until none of {len(self.there)} processes was left")
        return error, gone


def workers():
    """By rank, once both are there."""
    found = named("sfrik.worker")
    return found if len(found) == 2 else []


def kernel():
    return named("ipykernel")[0]


def errors(path: Path) -> dict:
    """The error of the notebook's last executed cell."""
    cell = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"][-1]
    return next(output for output in cell["outputs"] if output["output_type"] == "error")


def test_output_arrives_while_the_function_runs_and_the_traceback_of_the_worker_that_raises_is_the_cells(notebook, tmp_path):
    source = notebook('launch("launch_targets:fail_when_told", folder, 1, nproc_per_node=2)')
    heard = tmp_path / "heard.txt"

    def both_are_heard():
        return heard.is_file() and all(f"rank {rank} waits for the word" in heard.read_text() for rank in (0, 1))

    # it is told to fail only when its output has come through kernel and papermill
    during = During(both_are_heard, (tmp_path / "go").touch)
    with heard.open("w") as file, pytest.raises(PapermillExecutionError) as raised:
        papermill.execute_notebook(
            str(source), str(tmp_path / "out.ipynb"), {"folder": str(tmp_path)}, progress_bar=False, stdout_file=file
        )
    error, gone = during.outcome(tmp_path, "a worker raises")
    assert error < ERROR
    assert gone < GONE
    assert raised.value.ename == "WorkerError"
    last = errors(tmp_path / "out.ipynb")
    assert f"rank 1 on {socket.gethostname()} failed:" in last["evalue"]
    assert "ValueError: the reason of the failure" in last["evalue"]
    assert "launch_targets.py" in last["evalue"]


def test_a_worker_that_is_killed_is_the_cells_error(notebook, tmp_path):
    notebook(TRAIN)
    during = During(lambda: workers() and last_step(tmp_path) >= 1, lambda: workers()[1].kill())
    with pytest.raises(SfrikError, match=r"rank 1 on .* was ended by SIGKILL"):
        execute("calls", {"folder": str(tmp_path)}, tmp_path / "out.ipynb")
    error, gone = during.outcome(tmp_path, "a worker is killed")
    assert error < ERROR
    assert gone < GONE
    last = errors(tmp_path / "out.partial.ipynb")
    assert last["ename"] == "WorkerError"
    assert f"rank 1 on {socket.gethostname()} was ended by SIGKILL before it could say why" in last["evalue"]


def test_an_interrupted_kernel_stops_its_workers_which_save_first(notebook, tmp_path):
    notebook(TRAIN)
    during = During(lambda: workers() and last_step(tmp_path) >= 1, lambda: kernel().send_signal(signal.SIGINT))
    with pytest.raises(Preempted, match=r"saved in .* at epoch"):
        execute("calls", {"folder": str(tmp_path)}, tmp_path / "out.ipynb")
    error, gone = during.outcome(tmp_path, "the kernel is interrupted")
    assert error < STOPPED
    assert gone < STOPPED
    last = errors(tmp_path / "out.partial.ipynb")
    assert last["ename"] == "KeyboardInterrupt"
    assert f"stopped by SIGINT (saved in {tmp_path} at epoch" in last["evalue"]
    assert_saved(tmp_path)


def test_a_killed_kernel_is_an_error_and_its_workers_save_and_end(notebook, tmp_path):
    notebook(TRAIN)
    during = During(lambda: workers() and last_step(tmp_path) >= 1, lambda: kernel().kill())
    with pytest.raises(SfrikError, match="its kernel was ended before it could say why"):
        execute("calls", {"folder": str(tmp_path)}, tmp_path / "out.ipynb")
    seen = time.time()
    _, gone = during.outcome(tmp_path, "the kernel is killed")
    print(f"the kernel is killed: {seen - during.at:.1f} s to the error of papermill")
    assert seen - during.at < ERROR
    assert gone < STOPPED
    assert_saved(tmp_path)


def assert_saved(folder: Path) -> None:
    """A checkpoint of the last step that was made, which is within the first epoch."""
    place = Checkpoints(folder).load()["place"]
    assert place["epoch"] * 46 + place["step"] == last_step(folder) + 1, "3000 images in batches of 64"
    assert not Run(folder).backbone.exists()


# --- the command


RECIPE = "desk/sfrik_l3_q512"  # some hundred steps
COMMANDS = {
    signal.SIGTERM: ["--nproc-per-node", "2"],
    signal.SIGUSR1: [],
    signal.SIGINT: ["--nproc-per-node", "2"],
    signal.SIGKILL: ["--nproc-per-node", "2"],
}


@pytest.fixture(scope="module")
def signalled(tmp_path_factory):
    """`python -m sfrik run`, several at once, each of which got a signal when it had trained some steps."""
    root = tmp_path_factory.mktemp("run")
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "SFRIK_CACHE": str(root / "cache")}
    # a shell that runs the tests in the background has its children ignore interrupts
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from sfrik.cli import main; "
    start += "sys.exit(main(sys.argv[1:]))"
    children, outcomes = {}, {}
    for number, more in COMMANDS.items():
        command = [sys.executable, "-c", start, "run", "--recipe", RECIPE, "--exp-dir", str(root / number.name), *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        children[number] = subprocess.Popen(command, cwd=root, env=environment, **pipes)
    try:
        for number, child in children.items():
            folder = root / number.name / f"{RECIPE}_seed0"
            wait_for(lambda f=folder, c=child: last_step(f) >= 3 or c.poll() is not None, START, "steps")
            assert child.poll() is None, child.communicate()[0]
            there = descendants(child.pid)
            begun = time.monotonic()
            child.send_signal(number)
            said = child.communicate(timeout=60)[0]
            seconds = time.monotonic() - begun
            seconds_to_end(there, STOPPED)
            gone = time.monotonic() - begun
            print(f"\n{number.name} to sfrik run: status {child.returncode} after {seconds:.1f} s, none left after {gone:.1f} s")
            outcomes[number] = (folder, child.returncode, said)
        yield outcomes
    finally:
        for child in children.values():
            if lives_still := [process for process in [*_of(child)] if lives(process)]:
                for process in lives_still:
                    process.kill()


def _of(child):
    import psutil

    if child.poll() is None:
        yield from descendants(child.pid)
        yield psutil.Process(child.pid)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_the_command_that_is_asked_to_stop_saves_and_says_so_in_the_notebook(signalled, number, status):
    folder, returned, said = signalled[number]
    assert returned == status, said
    assert f"stopped by {number.name} (saved in {folder} at epoch 0, step" in said
    assert Checkpoints(folder).load()["place"]["step"] == last_step(folder) + 1
    last = errors(folder / "02_pretraining.partial.ipynb")
    assert last["ename"] == "KeyboardInterrupt"  # the command interrupts the kernel, whichever signal it received
    assert f"(saved in {folder} at epoch 0, step" in last["evalue"]
    assert not (folder / "02_pretraining.ipynb").exists()
    state = Run(folder).state()
    assert state["state"] == "preempted"
    assert not Run(folder).is_locked()


def test_when_the_command_is_killed_kernel_and_workers_save_and_end(signalled):
    folder, returned, _ = signalled[signal.SIGKILL]
    assert returned == -signal.SIGKILL
    assert Checkpoints(folder).load()["place"]["step"] == last_step(folder) + 1
    assert not Run(folder).is_locked()
