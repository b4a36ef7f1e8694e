"""What `make tableN` does: find the runs that a table misses, run their notebooks side by side, render.

Each run (a recipe and a seed) is one process that executes its notebooks in turn. On a CPU as many run side by side as
there are cores, one thread each: small networks gain little from a second thread.

Several of these commands may work in one folder of results at the same time. `run.lock` of a run's folder admits one process, and
`render.lock` of a profile's folder one that renders; the others wait, then look again at what is missing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sfrik.errors import Preempted, SfrikError, nearest
from sfrik.reproduce.notebooks import Kernel, execute, notebook_path
from sfrik.runs.folder import Run
from sfrik.runs.provenance import commit, now
from sfrik.runs.records import Choice, Score
from sfrik.settings import SECTIONS, Settings, load_recipe, results_root, run_folder
from sfrik.system import signals as preemption
from sfrik.system.devices import cores
from sfrik.system.files import check_regular, is_there, make_folder, read_text, write_error, write_json
from sfrik.system.locks import folder_lock
from sfrik.system.progress import duration
from sfrik.system.records import VERSION, read_record
from sfrik.system.signals import SIGNALS, stop, stop_requests
from sfrik.tables.claims import write_claims
from sfrik.tables.collect import build_table, tables_with_scores
from sfrik.tables.definitions import experiment, grids, rows_of
from sfrik.tables.render import as_csv
from sfrik.tables.rows import TARGETS

__all__ = [
    "DEFAULT_STAGES",
    "check_run",
    "last_attempt",
    "make_table",
    "missing_stages",
    "one_line",
    "render_all",
    "rendering",
    "run_recipe",
    "scores_there",
    "stop_at_once",
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
ATTEMPT = re.compile(r"^--- .* ---$", re.MULTILINE)  # the first line of each attempt in run.log
COLOUR = re.compile(r"\x1b\[[\d;]*m")
FRAME = re.compile(r"\s+File ")  # of a traceback


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
    with stop_at_once():
        if not render_only and not _compute(name, profile, seeds, Where(root, jobs or _jobs(), data_dir)):
            return 1
        with rendering(profile, root):
            theory = Path(root) / profile / "notebooks" / "01_kernel_theory.ipynb"
            if not render_only and "pretrain" in found.stages and not theory.is_file():
                execute("01_kernel_theory", {}, theory)
            _render(name, profile, root, None if render_only else seeds)
            print(read_text(Path(root) / profile / "tables" / f"{name}.md"))
    return 0


def render_all(profile: str, root: str | Path | None = None) -> int:
    """Render every table of which something has been measured; trains nothing."""
    root = Path(root or results_root())
    names = tables_with_scores(profile, root)
    if not names:
        raise SfrikError(f"nothing has been measured in {root / profile} yet: make table1 PROFILE={profile}")
    parameters = {"tables": names, "profile": profile, "root": str(root)}
    with stop_at_once(), rendering(profile, root):
        execute("07_tables", parameters, root / profile / "notebooks" / "07_tables.ipynb")
        if profile == "digits":
            write_claims(profile, root)
    print(f"{len(names)} tables in {root / profile / 'tables'}: {', '.join(names)}")
    return 0


@contextmanager
def rendering(profile: str, root: str | Path) -> Iterator[None]:
    """For one process at a time: what is made of the scores of a profile (tables, figures, pages, choices, their notebooks)."""
    with folder_lock(Path(root) / profile, "render.lock", wait=True):
        yield


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Within it SIGTERM and SIGUSR1 raise `Preempted`, as SIGINT raises KeyboardInterrupt: for work that has nothing to save."""

    def leave(number: int, frame) -> None:
        stop(number, "nothing new to save")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, leave) for number in SIGNALS if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


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
    with rendering(profile, root):
        for grid, recipes in grids(profile).items():
            scores = {recipe: _tuning_score(run_folder(recipe, 0, root) / "linear_tune.json") for recipe in recipes}
            chosen[grid] = max(scores, key=lambda recipe: scores[recipe])  # the first of equals
            path = Path(root) / profile / "tuning" / f"{grid}.json"
            name = chosen[grid].split("/")[-1]
            choice = {"grid": grid, "protocol": "linear_tune", "seed": 0, "tune_top1": scores, "chosen": name}
            known = read_record(path, Choice) if is_there(path) else {}
            if any(known.get(key) != value for key, value in choice.items()):
                write_json(path, {"version": VERSION, **choice, "commit": commit()})
    return chosen


def _tuning_score(path: Path) -> float:
    top1 = read_record(path, Score).get("top1")
    if top1 is None:
        raise SfrikError(f"{path} has no top1: move it away and run again")
    return top1


def _measure_complexity(name: str, profile: str, seed: int, root: str | Path) -> None:
    from sfrik.cost.measure import measured_here

    folder = run_folder(f"{profile}/complexity", seed, root)
    path, executed = folder / f"{name}.json", folder / f"06_complexity_{name}.ipynb"
    with folder_lock(folder, "run.lock", wait=True):
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
    """Execute the notebooks of a run that are not finished; their copies are in the run's folder.

    It waits for another process that works on the run. What the run is doing, or why it stopped, is in its state.json, for
    `sfrik status`.
    """
    root = root or results_root()
    check_run(recipe, stages)  # before any folder is made
    run = Run(run_folder(recipe, seed, root))
    _end_with_parent()
    with stop_at_once(), run.lock("run.lock", wait=True):
        _wait_for_workers(run)
        with stop_requests() as requests, Kernel() as kernel:
            name = ""
            try:
                for name in missing_stages(recipe, seed, root, stages):
                    stage = STAGES[name]
                    print(f"{recipe} seed {seed}: {stage.notebook}", flush=True)
                    parameters = {"recipe": recipe, "seed": seed, "exp_dir": str(run.folder), "chapter": False}
                    parameters |= stage.parameters | ({"data_dir": data_dir} if data_dir else {})
                    parameters |= {"nproc_per_node": nproc_per_node} if nproc_per_node and name == "pretrain" else {}
                    run.update_status("running", stage=name)
                    if requests.number:  # between two notebooks, which have handlers of their own
                        stop(requests.number, f"before {stage.notebook}")
                    execute(stage.notebook, parameters, run.folder / stage.copy, kernel)
            except (Preempted, KeyboardInterrupt):
                if missing_stages(recipe, seed, root, stages):
                    run.update_last_status("preempted", stage=name)
                else:  # it came when all was done
                    run.clear_status()
                raise
            except Exception as error:
                known = isinstance(error, SfrikError | OSError)
                run.update_last_status("failed", stage=name, error=str(error) if known else f"{type(error).__name__}: {error}")
                raise
            run.clear_status()


def _wait_for_workers(run: Run) -> None:
    """Wait for those who write the folder without `run.lock`: a command of its own, or workers that outlive a killed run."""
    for name in ("lock", *(path.name for path in run.folder.glob("*.lock") if path.name != "run.lock")):
        with run.lock(name, wait=True):
            pass


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
    run = _Looked(run_folder(recipe, seed, root))
    if not run.finished:
        return list(stages)
    return [
        name
        for name in stages
        if not (run.folder / STAGES[name].copy).is_file()
        or not all(run.result(score, settings) is not None for score, settings in _scores_of(recipe, seed, name))
    ]


class _Looked(Run):
    """A run that is looked at for a moment: the hash of its weights is found once, and not for each score."""

    @cached_property
    def _digest(self) -> str | None:
        return super().weights_sha256()

    def weights_sha256(self) -> str | None:
        return self._digest


def _scores_of(recipe: str, seed: int, stage: str) -> Iterator[tuple[str, Settings]]:
    """The scores that a stage of a run writes, with the settings that they must be of."""
    for score, section in STAGES[stage].scores.items():
        values = {**load_recipe(recipe, section), **STAGES[stage].parameters}
        named = {score: values}
        if score == "transfer":
            named = {f"transfer_{target}": {**values, "target": target} for target in TARGETS[recipe.split("/")[0]]}
        for name, given in named.items():
            yield name, _parsed(section, json.dumps(given)).model_copy(update={"seed": seed})


@lru_cache(maxsize=1024)
def _parsed(section: str, values: str) -> Settings:
    """Checked once for all seeds."""
    return SECTIONS[section].parse(json.loads(values))


def scores_there(recipe: str, seed: int, root: str | Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores of a run that are there, by their names.

    Raises:
        SfrikError: one is broken; its file is named.
    """
    paths = {name: run_folder(recipe, seed, root) / f"{name}.json" for stage in stages for name in STAGES[stage].scores}
    return {name: read_record(path, Score) for name, path in paths.items() if is_there(path)}


def _render(name: str, profile: str, root: str | Path, seeds: int | None) -> None:
    """Execute notebook 07, unless its output is of the same scores already."""
    folder = Path(root) / profile
    executed, written = folder / "notebooks" / f"07_{name}.ipynb", folder / "tables" / f"{name}.csv"
    if executed.is_file() and written.is_file() and read_text(written) == as_csv(build_table(name, profile, root, seeds)):
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
    begins: int = 0  # bytes of the log before this attempt


def _side_by_side(runs: list[tuple[str, int, tuple[str, ...]]], where: Where) -> list[tuple[str, int, str]]:
    """Run each (recipe, seed, stages) in a process of its own, `where.jobs` at a time; those that failed, with the reason."""
    waiting, running, failed = list(runs), [], []
    took: list[float] = []  # seconds of each run that is done
    try:
        while waiting or running:
            while waiting and len(running) < where.jobs:
                recipe, seed, stages = waiting.pop(0)
                try:
                    running.append(_start(recipe, seed, stages, where))
                except SfrikError as error:  # its folder or its log cannot be written; the others may be
                    failed.append((recipe, seed, str(error)))
            time.sleep(0.2)
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                done = len(runs) - len(waiting) - len(running)
                scores, reason = _outcome(child, where.root)
                if reason:
                    failed.append((child.recipe, child.seed, reason))
                    print(f"[{done}/{len(runs)}] {child.recipe} seed {child.seed}: failed", flush=True)
                    continue
                took.append(time.monotonic() - child.started)
                # those that run are half done on average
                left = sum(took) / len(took) * (len(waiting) + len(running) / 2) / max(1, min(where.jobs, len(runs) - done))
                print(
                    f"[{done}/{len(runs)}] {child.recipe} seed {child.seed}: {scores}, "
                    f"{duration(took[-1])}; about {duration(left)} left",
                    flush=True,
                )
    finally:
        _stop(running)
    return failed


def _start(recipe: str, seed: int, stages: tuple[str, ...], where: Where) -> _Child:
    folder = run_folder(recipe, seed, where.root)
    make_folder(folder)
    log = folder / "run.log"
    command = [sys.executable, "-m", "sfrik", "run", "--recipe", recipe, "--seed", str(seed), "--exp-dir", str(where.root)]
    command += ["--stages", *stages, *(["--data-dir", where.data_dir] if where.data_dir else [])]
    threads = str(max(1, cores() // where.jobs))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **os.environ, "SFRIK_PARENT": str(os.getpid())}
    try:
        if Run(folder).is_locked():
            print(f"{recipe} seed {seed}: waiting for another process that works on it", flush=True)
        if log.exists():
            check_regular(log)
        with log.open("a", encoding="utf-8") as file:  # what an earlier attempt, or another process, wrote there stays
            file.write(f"--- sfrik run --recipe {recipe} --seed {seed}, {now()} ---\n")
            file.flush()
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
            return _Child(recipe, seed, stages, process, log, time.monotonic(), file.tell())
    except OSError as error:
        raise write_error(log, error) from None


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


def _outcome(child: _Child, root: str | Path) -> tuple[str, str]:
    """Of a process that has ended: its top-1 accuracies, and in one line why it failed, empty where it did not."""
    if child.process.returncode:
        return "", _why_failed(child, root)
    try:
        scores = scores_there(child.recipe, child.seed, root, child.stages)
    except SfrikError as error:
        return "", str(error)
    accuracies = [f"{name} {score['top1']:.1f} %" for name, score in scores.items() if score.get("top1") is not None]
    return ", ".join(accuracies) or "done", ""


def _why_failed(child: _Child, root: str | Path) -> str:
    """What the process wrote into state.json, else what it wrote into the log, else how it ended."""
    state = Run(run_folder(child.recipe, child.seed, root)).state() or {}
    if state.get("state") == "failed" and state.get("pid") == child.process.pid:
        return one_line(state.get("error", ""))
    code = child.process.returncode
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    try:
        with child.log.open("rb") as file:
            file.seek(child.begins)
            text = COLOUR.sub("", file.read().decode(errors="replace"))
    except OSError as error:
        return f"{ended}; its log cannot be read: {error}"
    for sign in ("sfrik: error: ", "sfrik: ", "Traceback "):
        if found := list(re.finditer(f"^{sign}", text, re.MULTILINE)):
            return one_line(text[found[-1].start() :])
    return f"{ended}, and {child.log} does not say why"


def last_attempt(log: str) -> str:
    """What the last attempt wrote into a log that has all of them, one after the other; without colours."""
    return ATTEMPT.split(COLOUR.sub("", log))[-1]


def one_line(text: str) -> str:
    """What went wrong, of the text of an error: its first line, and of a traceback in it the line that names the exception."""
    lines = [line.rstrip() for line in text.removeprefix("sfrik: error: ").splitlines() if line.strip()]
    if not lines:
        return "no output"
    frames = [number for number, line in enumerate(lines) if FRAME.match(line)]
    causes = [line for line in lines[frames[-1] :] if not line[0].isspace()] if frames else []
    if lines[0].startswith("Traceback ") and causes:
        return causes[0]
    if not causes and lines[0].endswith(":"):
        causes = [line.strip() for line in lines[1:2]]
    return " ".join([lines[0].strip(), *causes[:1]])


def _jobs() -> int:
    import torch  # here, since a run whose notebooks compute, or a table that is finished, does without

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    return max(1, cores())
