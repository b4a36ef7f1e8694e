"""Faults and signals while a notebook trains on several processes: the error, and that no process is left.

Nothing ends by a time limit: the limits of the package are longer than those of the tests. Measured times are printed with -s.
"""

from __future__ import annotations

import itertools
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
import psutil
from papermill.exceptions import PapermillExecutionError
from processes import HANG, START, descendants, last_step, named, seconds_to_end, wait_for

from sfrik.cli import main
from sfrik.errors import SfrikError
from sfrik.reproduce import notebooks
from sfrik.reproduce.notebooks import execute
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run

TESTS = Path(__file__).parents[1]
LIMIT = str(2 * HANG)  # seconds until the package ends by force what was asked to stop
RECIPE = "digits/sfrik_l3_q512"  # 16 epochs of 13 steps, too many to end here


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SFRIK_GRACE", LIMIT)
    for name in ("KERNEL_SIGTERM", "KERNEL_GRACE"):
        monkeypatch.setattr(notebooks, name, 2 * HANG)


def cell(call: str, name: str) -> str:
    """A cell that makes a call and records when it ended; a training in it writes to a folder of this name."""
    return f"""
import time
from pathlib import Path
from sfrik.launch.launcher import launch
from sfrik.settings import PretrainSettings
own = Path(folder, "{name}")
own.mkdir()
settings = PretrainSettings.from_recipe(
    "smoke/sfrik_l2_q64", exp_dir=str(own), epochs=200, subset=300, device="cpu", precision="fp32", log_every=1, knn_every=0
)
try:
    {call}
finally:
    (own / "ended").write_text(str(time.time()))
"""


TRAIN = 'launch("sfrik.pretrain:pretrain", settings, nproc_per_node=2)'
STEPS = 46  # an epoch, of 3000 images in batches of 64


def write_notebook(path: Path, parameters: str, *cells: str) -> Path:
    """Write a notebook in which the error of a cell, except of the last, does not stop the next."""
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    others = [nbformat.v4.new_code_cell(source, metadata={"tags": ["raises-exception"]}) for source in cells]
    others[-1].metadata.tags = []
    spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *others], metadata=spec), path)
    return path


class During(threading.Thread):
    """Acts on the processes while the main thread executes a notebook.

    `acts` are done one after the other. Each is a title and three functions: the condition to wait for, the action, and the
    processes that are to end.
    """

    def __init__(self, *acts) -> None:
        super().__init__(daemon=True)
        self.acts, self.error = acts, None
        self.seconds: dict[str, float] = {}  # until none of the processes was left
        self.at: dict[str, float] = {}
        self.start()

    def run(self) -> None:
        try:
            for title, ready, act, which in self.acts:
                wait_for(ready, START, title)
                there = which()
                self.at[title] = time.time()
                act()
                seconds_to_end(there, HANG)
                self.seconds[title] = time.time() - self.at[title]
        except BaseException as error:
            self.error = error
            if found := kernel():
                found.kill()  # else the main thread would wait for it

    def outcome(self) -> None:
        self.join(HANG)
        assert self.error is None, self.error
        assert len(self.seconds) == len(self.acts)


def kernel() -> psutil.Process | None:
    """The kernel that this process started, among its children."""
    own = {child.pid for child in psutil.Process().children()}
    return next((process for process in named("ipykernel") if process.pid in own), None)


def workers() -> list[psutil.Process]:
    """The workers by rank, once both have started."""
    found = named("sfrik.launch.worker", kernel().pid) if kernel() else []
    return found if len(found) == 2 else []


def everything() -> list[psutil.Process]:
    return [kernel(), *descendants(kernel().pid)]


def training(folder: Path):
    return lambda: last_step(folder) >= 1 and workers()  # in this order: a look at all processes takes long


def errors(path: Path) -> list[dict]:
    """The errors in the cells' outputs, in the order of the cells; the last cell that was executed has one."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell.get("execution_count")]
    found = [[output for output in cell["outputs"] if output["output_type"] == "error"] for cell in cells]
    assert found[-1], "the last cell says why"
    return list(itertools.chain(*found))


def assert_saved(folder: Path) -> None:
    """Assert that there is a checkpoint of the last step, which no timer asked for."""
    place = Checkpoints(folder).load()["place"]
    assert place["epoch"] * STEPS + place["step"] == last_step(folder) + 1
    assert not Run(folder).backbone.exists()


def test_a_worker_that_raises_or_is_killed_and_an_interrupt_end_the_cell_with_the_reason(tmp_path):
    raises = cell('launch("launch_targets:fail_on_request", folder, 1, nproc_per_node=2)', "raises")
    source = write_notebook(tmp_path / "calls.ipynb", 'folder = ""', raises, cell(TRAIN, "killed"), cell(TRAIN, "interrupted"))
    heard, output = tmp_path / "heard.txt", tmp_path / "out.ipynb"

    def both_are_heard():
        return heard.is_file() and all(f"rank {rank} waits for the file" in heard.read_text(encoding="utf-8") for rank in (0, 1))

    during = During(
        # it fails only when its output has passed the kernel and papermill
        ("raises", both_are_heard, (tmp_path / "go").touch, workers),
        ("killed", training(tmp_path / "killed"), lambda: workers()[1].kill(), workers),
        ("interrupted", training(tmp_path / "interrupted"), lambda: kernel().send_signal(signal.SIGINT), everything),
    )
    with heard.open("w", encoding="utf-8") as file, pytest.raises(PapermillExecutionError) as raised:
        papermill.execute_notebook(
            str(source), str(output), {"folder": str(tmp_path)}, progress_bar=False, stdout_file=file, log_output=False
        )
    during.outcome()
    for title, gone in during.seconds.items():
        error = float((tmp_path / title / "ended").read_text(encoding="utf-8")) - during.at[title]
        print(f"\n{title}: {error:.1f} s to the cell's error, {gone:.1f} s until no process was left")
        assert error < HANG

    fails, lost, stopped = errors(output)
    host = socket.gethostname()
    assert (fails["ename"], lost["ename"], stopped["ename"]) == ("WorkerError", "WorkerError", "KeyboardInterrupt")
    assert f"rank 1 on {host} failed:" in fails["evalue"]
    assert "ValueError: the reason of the failure" in fails["evalue"]
    assert "launch_targets.py" in fails["evalue"], "with its traceback"
    assert f"rank 1 on {host} was ended by SIGKILL before it could report an error" in lost["evalue"]
    assert f"stopped by SIGINT (saved in {tmp_path / 'interrupted'} at epoch" in stopped["evalue"]
    assert raised.value.evalue == stopped["evalue"]
    assert_saved(tmp_path / "interrupted")


def test_a_killed_kernel_is_an_error_and_its_workers_save_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    write_notebook(tmp_path / "calls.ipynb", 'folder = ""', cell(TRAIN, "trained"))
    during = During(("killed", training(tmp_path / "trained"), lambda: kernel().kill(), everything))
    with pytest.raises(SfrikError, match="its kernel was killed before it could report an error"):
        execute("calls", {"folder": str(tmp_path)}, tmp_path / "out.ipynb")
    seen = time.time()
    during.outcome()
    error, gone = seen - during.at["killed"], during.seconds["killed"]
    print(f"\nthe kernel is killed: {error:.1f} s to the error of papermill, {gone:.1f} s until no process was left")
    assert error < HANG
    assert_saved(tmp_path / "trained")


# --- the command


@pytest.fixture(scope="module", autouse=True)
def terminated(tmp_path_factory):
    """`python -m sfrik run` on two processes, beside the other tests: its output and exit status after SIGTERM."""
    root = tmp_path_factory.mktemp("run")
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "SFRIK_GRACE": LIMIT}
    command = [sys.executable, "-m", "sfrik", "run", "--recipe", RECIPE, "--results", str(root), "--nproc-per-node", "2"]
    child = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    outcome = {"folder": root / RECIPE / "seed0"}

    def watch() -> None:
        wait_for(lambda: last_step(outcome["folder"]) >= 0 or child.poll() is not None, START, "a step")
        there, started = [], time.monotonic()
        if child.poll() is None:
            there = descendants(child.pid)
            child.send_signal(signal.SIGTERM)
        outcome["output"] = child.communicate(timeout=HANG)[0]
        outcome["seconds"] = time.monotonic() - started
        seconds_to_end(there, HANG)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield child, thread, outcome
    if child.poll() is None:
        for process in [*descendants(child.pid), child]:
            process.kill()


LIGHT = """
from sfrik.pretrain.loop import pretrain
from sfrik.settings import PretrainSettings
pretrain(PretrainSettings.from_recipe(recipe, seed=seed, exp_dir=exp_dir))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_command_that_is_asked_to_stop_while_its_kernel_trains_without_workers_saves_and_reports_it(
    number, status, tmp_path, monkeypatch, capsys
):
    # notebook 02 without its figures; the command runs here, where no other test will send a signal
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    write_notebook(tmp_path / "02_pretraining.ipynb", 'recipe = ""\nseed = 0\nexp_dir = ""', LIGHT)
    folder = tmp_path / RECIPE / "seed0"
    during = During(("asked", lambda: last_step(folder) >= 0, lambda: os.kill(os.getpid(), number), everything))
    assert main(["run", "--recipe", RECIPE, "--results", str(tmp_path), "--stages", "pretrain"]) == status
    during.outcome()
    with capsys.disabled():
        print(f"\n{number.name} to sfrik run: {during.seconds['asked']:.1f} s until its kernel was gone")
    assert_stopped(folder, capsys.readouterr().err, number)


def test_a_command_that_is_asked_to_stop_while_its_workers_train_saves_and_reports_it(terminated):
    child, thread, outcome = terminated
    thread.join(START)
    assert not thread.is_alive()
    print(f"\nSIGTERM to sfrik run: {outcome['seconds']:.1f} s until it had ended")
    assert child.returncode == 75, outcome["output"]
    assert_stopped(outcome["folder"], outcome["output"], signal.SIGTERM)


def assert_stopped(folder: Path, printed: str, number: signal.Signals) -> None:
    """Assert that the command, the notebook and the run's state name the same place, and that a checkpoint is of it."""
    place = Checkpoints(folder).load()["place"]
    where = f"(saved in {folder} at epoch {place['epoch']}, step {place['step']} of 13)"
    assert f"sfrik: stopped by {number.name} {where}; the same command resumes from there" in printed
    last = errors(folder / "02_pretraining.partial.ipynb")[-1]
    assert last["ename"] == "KeyboardInterrupt", "the command interrupts its kernel, whichever signal it received"
    assert where in last["evalue"]
    assert not (folder / "02_pretraining.ipynb").exists()
    state = Run(folder).state()
    assert (state["state"], state["stage"], state["step"]) == ("preempted", "pretrain", place["epoch"] * 13 + place["step"])
    assert not Run(folder).is_locked()
