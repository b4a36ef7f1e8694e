"""What `make table1` does: find the runs that a table misses, run their notebooks side by side, render.

Each run (a recipe and a seed) is one process that executes the notebooks 02, 03 and 05 in turn. On a CPU as many
run side by side as there are cores, one thread each: small networks gain little from a second thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sfrik.devices import cores
from sfrik.notebooks import execute, notebook_path
from sfrik.runs import Run, read_json
from sfrik.settings import SECTIONS, load_recipe, results_root, run_folder
from sfrik.tables import as_csv, build_table, rows_of

__all__ = ["make_table", "missing_stages", "run_recipe"]

# A notebook of a run, and the scores (with the section of their settings) that it writes.
STAGES = {
    "02_pretraining": {},
    "03_linear_probing": {"linear": "evaluate"},
    "05_knn_and_logistic_regression": {"knn": "knn_eval", "logistic": "logistic_regression"},
}
GRACE = 10  # seconds between asking a process to stop and ending it


def make_table(
    name: str, profile: str, seeds: int = 1, jobs: int = 0, render_only: bool = False, root: str | Path | None = None
) -> int:
    """Compute what a table misses, then render it by notebook 07; the exit status."""
    root = root or results_root()
    rows = rows_of(name, profile)
    notebook_path("07_tables")  # before hours of work
    if not render_only:
        wanted = [(row.recipe, seed) for seed in range(seeds) for row in rows]
        missing = [(recipe, seed) for recipe, seed in wanted if missing_stages(recipe, seed, root)]
        print(f"{name}, profile {profile}: {len(wanted)} runs, {len(wanted) - len(missing)} finished here", flush=True)
        failed = _side_by_side(missing, jobs or _jobs(), root)
        if failed:
            for recipe, seed, reason in failed:
                print(f"failed: {recipe} seed {seed}: {reason}", file=sys.stderr)
            return 1
        theory = Path(root) / profile / "notebooks" / "01_kernel_theory.ipynb"
        if not theory.is_file():
            execute("01_kernel_theory", {}, theory)
    count = None if render_only else seeds
    _render(name, profile, root, count)
    print((Path(root) / profile / "tables" / f"{name}.md").read_text())
    return 0


def run_recipe(recipe: str, seed: int, root: str | Path | None = None) -> None:
    """Execute the notebooks of a run that are not finished; their copies lie in the run's folder."""
    root = root or results_root()
    load_recipe(recipe)  # an unknown one is an error before any folder is made
    folder = run_folder(recipe, seed, root)
    _end_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    for stage in missing_stages(recipe, seed, root):
        print(f"{recipe} seed {seed}: {stage}", flush=True)
        parameters = {"recipe": recipe, "seed": seed, "exp_dir": str(folder)}
        execute(stage, parameters, folder / f"{stage}.ipynb")


def missing_stages(recipe: str, seed: int, root: str | Path | None = None) -> list[str]:
    """The notebooks of a run that are still to be executed: a score or the executed copy is missing."""
    run = Run(run_folder(recipe, seed, root))
    if not run.backbone.is_file():
        return list(STAGES)

    def finished(protocol: str, section: str) -> bool:
        return run.result(protocol, SECTIONS[section].from_recipe(recipe, seed=seed)) is not None

    return [
        stage
        for stage, scores in STAGES.items()
        if not (run.folder / f"{stage}.ipynb").is_file()
        or not all(finished(protocol, section) for protocol, section in scores.items())
    ]


def _render(name: str, profile: str, root: str | Path, seeds: int | None) -> None:
    """Execute notebook 07, unless its output is of the same scores already."""
    folder = Path(root) / profile
    executed, written = folder / "notebooks" / "07_tables.ipynb", folder / "tables" / f"{name}.csv"
    if executed.is_file() and written.is_file() and written.read_text() == as_csv(build_table(name, profile, root, seeds)):
        return
    execute("07_tables", {"table": name, "profile": profile, "seeds": seeds or 0, "root": str(root)}, executed)


@dataclass
class _Child:
    recipe: str
    seed: int
    process: subprocess.Popen
    log: Path
    started: float


def _side_by_side(runs: list[tuple[str, int]], jobs: int, root: str | Path) -> list[tuple[str, int, str]]:
    """Run each (recipe, seed) in a process of its own, `jobs` at a time; those that failed, with the reason."""
    waiting, running, failed = list(runs), [], []
    started = time.monotonic()
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(*waiting.pop(0), jobs, root))
            time.sleep(0.2)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                done = len(runs) - len(waiting) - len(running)
                if child.process.returncode:
                    failed.append((child.recipe, child.seed, _last_line(child.log)))
                    print(f"[{done}/{len(runs)}] {child.recipe} seed {child.seed}: failed", flush=True)
                    continue
                elapsed = time.monotonic() - started
                left = elapsed / done * (len(runs) - done)
                print(
                    f"[{done}/{len(runs)}] {child.recipe} seed {child.seed}: {_scores(child, root)}, "
                    f"{time.monotonic() - child.started:.0f} s; about {left / 60:.1f} min left",
                    flush=True,
                )
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, previous)
    return failed


def _start(recipe: str, seed: int, jobs: int, root: str | Path) -> _Child:
    folder = run_folder(recipe, seed, root)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "run.log"
    command = [sys.executable, "-m", "sfrik", "run", "--recipe", recipe, "--seed", str(seed), "--exp-dir", str(root)]
    threads = str(max(1, cores() // jobs))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **os.environ, "SFRIK_PARENT": str(os.getpid())}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    return _Child(recipe, seed, process, log, time.monotonic())


def _stop(children: list[_Child]) -> None:
    """Ask the processes to stop, wait, then end them. The kernels follow the process that started them."""
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + GRACE
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()


def _end_with_parent() -> None:
    """When the process that started this one is gone (even by kill -9), stop as well."""
    parent = os.environ.get("SFRIK_PARENT")
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def _scores(child: _Child, root: str | Path) -> str:
    folder = run_folder(child.recipe, child.seed, root)
    linear, logistic = (read_json(folder / f"{name}.json")["top1"] for name in ("linear", "logistic"))
    return f"linear {linear:.1f} %, logistic {logistic:.1f} %"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _jobs() -> int:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    return max(1, cores())
