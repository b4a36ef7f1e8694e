"""Runs of a table on this machine: processes of `sfrik run`, several at a time.

On a CPU, as many runs execute in parallel as there are cores, with one thread each: small networks gain little from a second
thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfrik.errors import SfrikError
from sfrik.reproduce.present import PresentImages
from sfrik.reproduce.run import STOP_AT_END_OF_STDIN
from sfrik.reproduce.run_log import attempt_header, error_summary, reported_error
from sfrik.reproduce.run_progress import TableProgress
from sfrik.reproduce.stages import PlannedRun, existing_scores
from sfrik.runs.folder import Run
from sfrik.runs.provenance import now
from sfrik.settings import run_folder
from sfrik.system.devices import cores, pick_device
from sfrik.system.files import check_regular, make_folder, write_error
from sfrik.system.signals import RUN_GRACE
from sfrik.system.terminal import print_line

__all__ = ["default_jobs", "run_side_by_side"]


@dataclass
class RunProcess:
    """A process that executes the notebooks of a run.

    Attributes:
        started: the time of `time.monotonic`.
        log_start: bytes of the log before this attempt.
    """

    run: PlannedRun
    process: subprocess.Popen
    log: Path
    started: float
    log_start: int = 0


def default_jobs() -> int:
    """The number of runs executed in parallel: the number of cores, or one with a GPU.

    Raises:
        SfrikError: GPUs are requested and not there (`sfrik.system.devices.pick_device`).
    """
    return cores() if pick_device("auto").type == "cpu" else 1  # imports PyTorch, which a table that is finished does without


def run_side_by_side(
    runs: Sequence[PlannedRun], root: str | Path, jobs: int, data_dir: str = "", present: PresentImages | None = None
) -> list[tuple[PlannedRun, str]]:
    """Execute the runs in processes, `jobs` at a time, and print the progress.

    Args:
        data_dir: the folder of the images; the recipe's when empty.
        present: these images, as `missing_stages` compares them.

    Returns:
        The runs that failed, each with the reason.
    """
    waiting, running = list(runs), []
    failed: list[tuple[PlannedRun, str]] = []
    try:
        with TableProgress(runs, root, jobs, present) as progress:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    progress.start(run)
                    try:
                        running.append(_start(run, root, jobs, data_dir))
                    except SfrikError as error:  # its folder or its log cannot be written; those of other runs may be
                        failed.append((run, str(error)))
                        progress.end(run, reason=str(error))
                time.sleep(0.2)
                for ended in [process for process in running if process.process.poll() is not None]:
                    running.remove(ended)
                    scores, reason = _outcome(ended, root)
                    failed += [(ended.run, reason)] if reason else []
                    progress.end(ended.run, scores, reason)
                progress.refresh()
    finally:
        _stop(running)
    return failed


def _start(run: PlannedRun, root: str | Path, jobs: int, data_dir: str) -> RunProcess:
    folder = run_folder(run.recipe, run.seed, root)
    make_folder(folder)
    log = folder / "run.log"
    command = ["run", "--recipe", run.recipe, "--seed", str(run.seed)]
    places = [f"--results={root}", "--stages", *run.stages, *([f"--data-dir={data_dir}"] if data_dir else [])]
    threads = str(max(1, cores() // jobs))
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **os.environ,
        STOP_AT_END_OF_STDIN: "1",
        "PYTHONIOENCODING": "utf-8",  # of the log
    }
    try:
        if Run(folder).is_locked():
            print_line(f"{run.recipe} seed {run.seed}: waiting for another process that works on it")
        if log.exists():
            check_regular(log)
        with log.open("a", encoding="utf-8") as file:  # what an earlier attempt, or another process, wrote is kept
            file.write(attempt_header(" ".join(["sfrik", *command]), now()))
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "sfrik", *command, *places],
                env=environment,
                stdin=subprocess.PIPE,  # nothing is written: it ends when this process does, and the run then stops
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches only this process, which then stops its runs
            )
            return RunProcess(run, process, log, time.monotonic(), file.tell())
    except OSError as error:
        raise write_error(log, error) from None


def _stop(running: Sequence[RunProcess]) -> None:
    """Ask the processes to stop, wait for them, then end those that are left."""
    if running:
        print_line(f"stopping {'1 run' if len(running) == 1 else f'{len(running)} runs'}, which save first", error=True)
    for child in running:
        child.process.terminate()
    deadline = time.monotonic() + RUN_GRACE
    for child in running:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()


def _outcome(ended: RunProcess, root: str | Path) -> tuple[str, str]:
    """The top-1 accuracies of a process that has ended, for kNN at k = 20, and why it failed in one line, or ""."""
    if ended.process.returncode:
        return "", _failure(ended, root)
    try:
        scores = existing_scores(ended.run.recipe, ended.run.seed, root, ended.run.stages)
    except SfrikError as error:
        return "", str(error)
    top1 = {name: score.get("top1") for name, score in scores.items()}
    top1 |= {"20-NN": scores.get("knn", {}).get("top1_at", {}).get("20")}
    return ", ".join(f"{name} {value:.1f} %" for name, value in top1.items() if value is not None) or "done", ""


def _failure(ended: RunProcess, root: str | Path) -> str:
    """Why a process failed: from state.json, else from its log, else its exit status."""
    state = Run(run_folder(ended.run.recipe, ended.run.seed, root)).state() or {}
    if state.get("state") == "failed" and state.get("pid") == ended.process.pid:
        return error_summary(state.get("error", ""))
    code = ended.process.returncode
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    try:
        with ended.log.open("rb") as file:
            file.seek(ended.log_start)
            output = file.read().decode(errors="replace")
    except OSError as error:
        return f"{how}; its log cannot be read: {error}"
    return reported_error(output) or f"{how}, and {ended.log} gives no reason"
