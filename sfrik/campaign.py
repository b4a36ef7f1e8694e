"""What `make tableN` does: find the runs that a table misses, run their notebooks side by side, render.

Each run (a recipe and a seed) is one process that executes its notebooks in turn. On a CPU as many run side by side as
there are cores, one thread each: small networks gain little from a second thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfrik import preemption
from sfrik.claims import write_claims
from sfrik.devices import cores
from sfrik.errors import Preempted, SfrikError, nearest
from sfrik.experiments import experiment, grids, rows_of
from sfrik.files import read_json, write_json
from sfrik.notebooks import Kernel, execute, notebook_path
from sfrik.preemption import stop, stop_requests
from sfrik.progress import duration
from sfrik.provenance import commit
from sfrik.runs import Run
from sfrik.settings import SECTIONS, load_recipe, results_root, run_folder
from sfrik.table_rows import TARGETS
from sfrik.tables import as_csv, build_table, tables_with_scores

__all__ = [
    "DEFAULT_STAGES",
    "check_run",
    "make_table",
    "missing_stages",
    "render_all",
    "run_recipe",
    "table_runs",
    "write_choices",
]


@dataclass(frozen=True)
class Stage:
    """A notebook of a run: its parameters, the scores that it writes with the section of their settings, the copy's name."""

    notebook: str
    scores: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    suffix: str = ""

    @property
    def copy(self) -> str:
        return f"{self.notebook}{self.suffix}.ipynb"


STAGES = {
    "pretrain": Stage("02_pretraining"),
    "linear": Stage("03_linear_probing", {"linear": "evaluate"}),
    "semi": Stage("04_semi_supervised", {"semi1": "semi1", "semi10": "semi10", "transfer": "transfer"}),
    "knn": Stage("05_knn_and_logistic_regression", {"knn": "knn_eval", "logistic": "logistic_regression"}),
    "tune": Stage("03_linear_probing", {"linear_tune": "evaluate"}, {"val_dataset": "train"}, "_tune"),
    "inference": Stage("03_linear_probing", {"linear_inference": "evaluate"}, {"only_inference": True}, "_inference"),
}
DEFAULT_STAGES = ("pretrain", "linear", "knn")
GRACE = preemption.GRACE + 10  # seconds between asking a run to stop, which asks its kernel and that its workers, and ending it


@dataclass(frozen=True)
class Where:
    """Where the results go, how many runs go side by side, and where the images are (the recipe's folder when empty)."""

    root: str | Path
    jobs: int
    data_dir: str


def make_table(
    name: str,
    profile: str,
    seeds: int = 1,
    jobs: int = 0,
    render_only: bool = False,
    root: str | Path | None = None,
    data_dir: str = "",
) -> int:
    """Compute what a table misses, then render it by notebook 07; the exit status."""
    root = root or results_root()
    found = experiment(name, profile)
    notebook_path("07_tables")  # before hours of work
    if not render_only and not _compute(name, profile, seeds, Where(root, jobs or _jobs(), data_dir)):
        return 1
    if not render_only:
        theory = Path(root) / profile / "notebooks" / "01_kernel_theory.ipynb"
        if "pretrain" in found.stages and not theory.is_file():
            execute("01_kernel_theory", {}, theory)
    _render(name, profile, root, None if render_only else seeds)
    print((Path(root) / profile / "tables" / f"{name}.md").read_text())
    return 0


def render_all(profile: str, root: str | Path | None = None) -> int:
    """Render every table of which something has been measured; trains nothing."""
    root = Path(root or results_root())
    names = tables_with_scores(profile, root)
    if not names:
        raise SfrikError(f"nothing has been measured in {root / profile} yet: make table1 PROFILE={profile}")
    execute(
        "07_tables", {"tables": names, "profile": profile, "root": str(root)}, root / profile / "notebooks" / "07_tables.ipynb"
    )
    if profile == "desk":
        write_claims(profile, root)
    print(f"{len(names)} tables in {root / profile / 'tables'}: {', '.join(names)}")
    return 0


def _compute(name: str, profile: str, seeds: int, where: Where) -> bool:
    """Run what a table misses; whether all of it is there now."""
    if name in ("table5", "table6"):
        for seed in range(seeds):
            _measure_complexity(name, profile, seed, where.root)
        return True
    parts = table_runs(name, profile, seeds, where.root)
    return all(_run_missing(title, wanted, where) for title, wanted in parts)


def table_runs(
    name: str, profile: str, seeds: int, root: str | Path
) -> Iterator[tuple[str, list[tuple[str, int, tuple[str, ...]]]]]:
    """What a table consists of: a title with its runs (recipe, seed, stages), in parts.

    Table 9 has two: the runs of the second one are known when those of the first are finished, so ask for it then.
    """
    rows, stages = rows_of(name, profile), experiment(name, profile).stages
    if name != "table9":
        yield name, [(row.recipe, seed, stages) for seed in range(seeds) for row in rows]
        return
    # The grid is scored on the tuning split with one seed; the test images are scored once the choice is written down.
    yield f"{name}, the grids", [(row.recipe, 0, stages) for row in rows]
    chosen = write_choices(profile, root)
    yield f"{name}, the choices", [(recipe, seed, (*stages, "inference")) for seed in range(seeds) for recipe in chosen.values()]


def write_choices(profile: str, root: str | Path) -> dict[str, str]:
    """Write down which recipe of each grid is best on the tuning split: <root>/<profile>/tuning/<grid>.json.

    Returns:
        The chosen recipes, by the name of the grid.
    """
    chosen = {}
    for grid, recipes in grids(profile).items():
        scores = {recipe: read_json(run_folder(recipe, 0, root) / "linear_tune.json")["top1"] for recipe in recipes}
        chosen[grid] = max(scores, key=lambda recipe: scores[recipe])  # the first of equals
        path = Path(root) / profile / "tuning" / f"{grid}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        name = chosen[grid].split("/")[-1]
        choice = {"grid": grid, "protocol": "linear_tune", "seed": 0, "tune_top1": scores, "chosen": name}
        known = read_json(path) if path.is_file() else {}
        if any(known.get(key) != value for key, value in choice.items()):
            write_json(path, {**choice, "commit": commit()})
    return chosen


def _measure_complexity(name: str, profile: str, seed: int, root: str | Path) -> None:
    from sfrik.complexity import measured_here

    folder = run_folder(f"{profile}/complexity", seed, root)
    path, executed = folder / f"{name}.json", folder / f"06_complexity_{name}.ipynb"
    if not (measured_here(path, name, profile) and executed.is_file()):
        print(f"{name}, profile {profile}: measuring, repetition {seed}", flush=True)
        parameters = {"table": name, "profile": profile, "seed": seed, "exp_dir": str(folder)}
        execute("06_complexity", parameters, executed)


def _run_missing(title: str, wanted: list[tuple[str, int, tuple[str, ...]]], where: Where) -> bool:
    missing = [(recipe, seed, stages) for recipe, seed, stages in wanted if missing_stages(recipe, seed, where.root, stages)]
    print(f"{title}: {len(wanted)} runs, {len(wanted) - len(missing)} finished here", flush=True)
    failed = _side_by_side(missing, where)
    for recipe, seed, reason in failed:
        print(f"failed: {recipe} seed {seed}: {reason}", file=sys.stderr)
    return not failed


def run_recipe(
    recipe: str,
    seed: int,
    root: str | Path | None = None,
    stages: Sequence[str] = DEFAULT_STAGES,
    data_dir: str = "",
    nproc_per_node: int | None = None,
) -> None:
    """Execute the notebooks of a run that are not finished; their copies lie in the run's folder.

    What the run is doing, or why it stopped, is in its state.json, for `sfrik status`.
    """
    root = root or results_root()
    check_run(recipe, stages)  # before any folder is made
    run = Run(run_folder(recipe, seed, root))
    _end_with_parent()
    with run.lock("run.lock"), stop_requests() as requests, Kernel() as kernel:
        for name in missing_stages(recipe, seed, root, stages):
            stage = STAGES[name]
            print(f"{recipe} seed {seed}: {stage.notebook}", flush=True)
            parameters = {"recipe": recipe, "seed": seed, "exp_dir": str(run.folder), "chapter": False, **stage.parameters}
            parameters |= {"data_dir": data_dir} if data_dir else {}
            parameters |= {"nproc_per_node": nproc_per_node} if nproc_per_node and name == "pretrain" else {}
            run.say("running", stage=name)
            try:
                if requests.number:  # between two notebooks, which have handlers of their own
                    stop(requests.number, f"before {stage.notebook}")
                execute(stage.notebook, parameters, run.folder / stage.copy, kernel)
            except (Preempted, KeyboardInterrupt):
                if missing_stages(recipe, seed, root, stages):
                    run.say_at_last("preempted", stage=name)
                else:  # it came when all was done
                    run.say_done()
                raise
            except SfrikError as error:
                run.say_at_last("failed", stage=name, error=str(error))
                raise
        run.say_done()


def check_run(recipe: str, stages: Sequence[str]) -> None:
    """Refuse a recipe or a stage that is not there.

    Raises:
        SfrikError: it is named, with the nearest known one.
    """
    for stage in stages:
        if stage not in STAGES:
            raise SfrikError(f"unknown stage {stage!r}{nearest(stage, STAGES)}: there is {', '.join(STAGES)}")
    load_recipe(recipe)


def missing_stages(recipe: str, seed: int, root: str | Path | None = None, stages: Sequence[str] = DEFAULT_STAGES) -> list[str]:
    """The stages of a run that are still to be executed: a score or the executed copy is missing."""
    run = Run(run_folder(recipe, seed, root))
    if not run.backbone.is_file():
        return list(stages)

    def finished(score: str, section: str, parameters: dict[str, Any]) -> bool:
        kind = SECTIONS[section]
        if score != "transfer":
            settings = kind.parse({**load_recipe(recipe, section), **parameters, "seed": seed})
            return run.result(score, settings) is not None
        return all(
            run.result(f"transfer_{target}", kind.from_recipe(recipe, seed=seed, target=target)) is not None
            for target in TARGETS[recipe.split("/")[0]]
        )

    return [
        name
        for name in stages
        if not (run.folder / STAGES[name].copy).is_file()
        or not all(finished(score, section, STAGES[name].parameters) for score, section in STAGES[name].scores.items())
    ]


def _render(name: str, profile: str, root: str | Path, seeds: int | None) -> None:
    """Execute notebook 07, unless its output is of the same scores already."""
    folder = Path(root) / profile
    executed, written = folder / "notebooks" / f"07_{name}.ipynb", folder / "tables" / f"{name}.csv"
    if executed.is_file() and written.is_file() and written.read_text() == as_csv(build_table(name, profile, root, seeds)):
        return
    execute("07_tables", {"tables": [name], "profile": profile, "seeds": seeds or 0, "root": str(root)}, executed)


@dataclass
class _Child:
    recipe: str
    seed: int
    stages: tuple[str, ...]
    process: subprocess.Popen
    log: Path
    started: float


def _side_by_side(runs: list[tuple[str, int, tuple[str, ...]]], where: Where) -> list[tuple[str, int, str]]:
    """Run each (recipe, seed, stages) in a process of its own, `where.jobs` at a time; those that failed, with the reason."""
    waiting, running, failed = list(runs), [], []
    took: list[float] = []  # seconds of each run that is done
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            while waiting and len(running) < where.jobs:
                running.append(_start(*waiting.pop(0), where))
            time.sleep(0.2)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                done = len(runs) - len(waiting) - len(running)
                if child.process.returncode:
                    failed.append((child.recipe, child.seed, _last_line(child.log)))
                    print(f"[{done}/{len(runs)}] {child.recipe} seed {child.seed}: failed", flush=True)
                    continue
                took.append(time.monotonic() - child.started)
                # those that run are half done on average
                left = sum(took) / len(took) * (len(waiting) + len(running) / 2) / max(1, min(where.jobs, len(runs) - done))
                print(
                    f"[{done}/{len(runs)}] {child.recipe} seed {child.seed}: {_scores(child, where.root)}, "
                    f"{duration(took[-1])}; about {duration(left)} left",
                    flush=True,
                )
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, previous)
    return failed


def _start(recipe: str, seed: int, stages: tuple[str, ...], where: Where) -> _Child:
    folder = run_folder(recipe, seed, where.root)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "run.log"
    command = [sys.executable, "-m", "sfrik", "run", "--recipe", recipe, "--seed", str(seed), "--exp-dir", str(where.root)]
    command += ["--stages", *stages, *(["--data-dir", where.data_dir] if where.data_dir else [])]
    threads = str(max(1, cores() // where.jobs))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **os.environ, "SFRIK_PARENT": str(os.getpid())}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    return _Child(recipe, seed, stages, process, log, time.monotonic())


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
    """The top-1 accuracies that a run wrote, for the line that says it is done."""
    folder = run_folder(child.recipe, child.seed, root)
    names = [name for stage in child.stages for name in STAGES[stage].scores if (folder / f"{name}.json").is_file()]
    scores = {name: read_json(folder / f"{name}.json") for name in names}
    return ", ".join(f"{name} {score['top1']:.1f} %" for name, score in scores.items() if "top1" in score) or "done"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _jobs() -> int:
    import torch  # here, since a run whose notebooks compute, or a table that is finished, does without

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    return max(1, cores())
