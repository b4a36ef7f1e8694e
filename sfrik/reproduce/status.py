"""`sfrik status`: the state of the runs that the tables need.

It reads the runs' folders and, with SLURM, the queue; it changes nothing.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from sfrik.errors import SfrikError
from sfrik.launch.slurm_queue import QueuedJob, queued_jobs
from sfrik.reproduce.run_log import error_summary, last_attempt
from sfrik.reproduce.run_progress import format_progress
from sfrik.reproduce.stages import STAGES, missing_stages, refusal, score_names, score_problems
from sfrik.runs.folder import Run
from sfrik.runs.records import RunSettings, Score, State
from sfrik.settings import published_root, run_folder, runs_root
from sfrik.system.records import Provenance, read_record
from sfrik.system.terminal import align, paint, print_line
from sfrik.tables.collect import existing_seeds, read_score
from sfrik.tables.cost_rows import cost_problem, read_costs, unit_of
from sfrik.tables.definitions import experiment, grids, read_choice, rows_of, tables_of

__all__ = ["STATES", "RunStatus", "format_status", "needed_runs", "run_status", "state_counts", "tables_status"]

COLOURS = {  # in the order in which the states are listed
    **{"done": "green", "running": "blue", "failed": "red", "broken": "red", "refused": "red", "queued": "yellow"},
    **{"preempted": "yellow", "stopped": "red", "missing": "dim"},
}
STATES = tuple(state for state in COLOURS if state != "refused")  # of a run: one that is refused is missing
# the files of a run that are read back, with the type of their content
RECORDS = {
    **{f"{score}.json": Score for stage in STAGES.values() for score in stage.scores},
    **{"settings.json": RunSettings, "provenance.json": Provenance, "state.json": State},
}
SETUP = re.compile(r"(setup line|prefix) .*of slurm\.toml failed")  # the batch script's error before the command
ENDED = re.compile(r"sfrik job \d+ ended with status \d+")  # the batch script's last line
REASON = re.compile(r"(sfrik: |slurmstepd|srun: |.*\bKilled\b|\w*Error\b)")  # lines of a log that give the reason of an end


@dataclass(frozen=True)
class RunStatus:
    """The status of one run.

    A run is broken if one of its files cannot be read. It is then unknown which stages are missing, and all are listed.

    Attributes:
        state: one of `STATES`.
        detail: one line about the state; for a broken run the file, and what is wrong with it.
        missing: the stages that are still to be executed.
        refused: why they cannot be: the folder holds another run; empty if they can.
        jobs: the ids of its jobs in SLURM's queue.
        facts: the content of its state.json: stage, epoch, loss, seconds left.
        published: its published scores by name: `top1`, and of all published seeds `mean` and `n`.
    """

    recipe: str
    seed: int
    state: str
    detail: str
    missing: tuple[str, ...]
    jobs: tuple[str, ...]
    facts: dict[str, Any]
    refused: str = ""
    published: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The state, or "refused"."""
        return "refused" if self.state == "missing" and self.refused else self.state


def needed_runs(tables: Sequence[str], profile: str, seeds: int, root: str | Path) -> dict[tuple[str, int], tuple[str, ...]]:
    """The stages that the tables need, by (recipe, seed); of all tables of the profile when none is named.

    A table of costs has one run without stages for each seed, and so has a grid whose choice cannot be read.
    """
    names = tables or tables_of(profile)
    needed: dict[tuple[str, int], dict[str, None]] = {}
    for name in names:
        stages = experiment(name, profile).stages
        if not stages:
            for seed in range(seeds):
                needed.setdefault((f"{profile}/complexity/{name}", seed), {})
            continue
        for row in rows_of(name, profile):
            for seed in range(1 if name == "table9" else seeds):
                needed.setdefault((row.recipe, seed), {}).update(dict.fromkeys(stages))
        for grid in grids(profile) if name == "table9" else ():  # the choice of each grid, once it has been made
            try:
                recipe = read_choice(profile, grid, root)
            except SfrikError:  # `run_status` reports it
                needed.setdefault((f"{profile}/tuning/{grid}", 0), {})
                continue
            for seed in range(seeds if recipe else 0):
                needed.setdefault((str(recipe), seed), {}).update(dict.fromkeys((*stages, "inference")))
    return {run: tuple(stages) for run, stages in needed.items()}


def run_status(recipe: str, seed: int, stages: Sequence[str], root: str | Path, jobs: Iterable[QueuedJob] = ()) -> RunStatus:
    """The status of a run; `jobs` is the queue. A file that cannot be read makes the run broken, and is no error."""
    try:
        return _run_status(recipe, seed, stages, root, list(jobs))
    except (SfrikError, OSError) as error:
        ids = tuple(job.id for job in jobs if job.run and job.run[:2] == (recipe, seed))
        return RunStatus(recipe, seed, "broken", error_summary(str(error)), tuple(stages), ids, {})


def _run_status(recipe: str, seed: int, stages: Sequence[str], root: str | Path, jobs: list[QueuedJob]) -> RunStatus:
    profile, kind, *name = recipe.split("/")
    if kind == "complexity":
        return _cost_status(recipe, seed, root, jobs)
    if kind == "tuning":
        chosen = read_choice(profile, name[0], root)
        return RunStatus(recipe, seed, "done", f"{chosen}", (), (), {})
    run = Run(run_folder(recipe, seed, root))
    missing = tuple(missing_stages(recipe, seed, root, stages))
    read: set[str] = set()
    if not missing:  # these have just been read; a provenance.json that is no regular file counts as missing and was not
        read = {f"{score}.json" for stage in stages for score in STAGES[stage].scores}
        read |= {"provenance.json"} if (run.folder / "provenance.json").is_file() else set()
    _check_records(run.folder, read)
    facts = (run.state() or {}) if missing else {}
    ours = [job for job in jobs if job.run and job.run[:2] == (recipe, seed)]
    stuck = [job for job in ours if not job.can_start]
    ours = sorted((job for job in ours if job.can_start), key=lambda job: job.reason == "Dependency")

    refused = refusal(recipe, seed, root) if missing else ""

    def status(state: str, detail: str = "") -> RunStatus:
        return RunStatus(recipe, seed, state, detail, missing, tuple(job.id for job in ours), facts, refused)

    recorded, active = facts.get("state"), [job for job in ours if not job.waits]
    reached = format_progress(facts, running=False)
    if not missing:
        return status("done")
    if active or (not ours and run.is_locked()):
        place = f", {active[0]}" if active else f", on {facts['host']}" if "host" in facts else ""
        return status("running", f"{format_progress(facts) if recorded == 'running' else 'starting'}{place}")
    if ours:
        first = ours[0]
        if recorded in ("running", "preempted") and facts.get("slurm_job") == first.id:
            return status("preempted", f"{reached}; requeued, {first}")
        stages = first.run[2] if first.run else ()
        return status("queued", f"{', '.join(stages)}: {first}")
    if refused:
        return status("missing", refused)
    reason = _reason(run.folder / "slurm.log", run.folder / "run.log")
    if SETUP.match(reason):  # the job ended before it could write the state of the run
        return status("failed", reason)
    if recorded == "failed":
        return status("failed", f"{facts.get('stage', '')}: {error_summary(facts.get('error') or reason)}")
    if recorded == "preempted":
        return status("preempted", f"{reached}; the same command resumes")
    if recorded == "running":
        return status("stopped", f"{reached}; its process is gone{f' ({reason})' if reason else ''}")
    if reason:
        return status("failed", reason)
    if stuck:
        return status("failed", f"{stuck[0]}")
    return status("missing", "; ".join([", ".join(missing), *score_problems(recipe, seed, root, missing)]))


def tables_status(
    tables: Sequence[str], profile: str, seeds: int = 1, root: str | Path | None = None
) -> tuple[list[RunStatus], list[QueuedJob]]:
    """The status of every run of the tables, and the queue."""
    root = Path(root or runs_root())
    needed = needed_runs(tables, profile, seeds, root)
    try:
        jobs = queued_jobs(root)
    except SfrikError as error:  # the cluster does not answer; the folders can still be read
        if any(root.glob("*/*/seed*/slurm.log")) or any(root.glob("*/tables/*.slurm.log")):  # of a job that was submitted
            print_line(f"sfrik: the queue is left out: {error}", error=True)
        jobs = []
    found = [run_status(recipe, seed, stages, root, jobs) for (recipe, seed), stages in needed.items()]
    if root.resolve() == published_root().resolve():
        return found, jobs
    scores = {recipe: _published(recipe, stages) for (recipe, _), stages in needed.items()}
    return [replace(status, published=scores[status.recipe].get(status.seed, {})) for status in found], jobs


def _published(recipe: str, stages: Sequence[str]) -> dict[int, dict[str, dict[str, Any]]]:
    """The published scores of a recipe, by seed and name; one that cannot be read is not among them."""
    profile, kind, *table = recipe.split("/")
    folder, names = (f"{profile}/complexity", table) if kind == "complexity" else (recipe, score_names(recipe, stages))
    by_name: dict[str, dict[int, Any]] = {}
    for seed, name in product(existing_seeds(folder, published_root()), names):
        with suppress(SfrikError):
            if score := read_score(folder, seed, name, published_root())[0]:
                by_name.setdefault(name, {})[seed] = score.get("top1")
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for name, by_seed in by_name.items():
        values = [value for value in by_seed.values() if value is not None]
        for seed, value in by_seed.items():
            of_all = {"mean": mean(values) if values else None, "n": len(by_seed)}
            found.setdefault(seed, {})[name] = {"top1": value, **of_all}
    return found


def format_status(found: Sequence[RunStatus], jobs: Iterable[QueuedJob] = (), root: str | Path | None = None) -> list[str]:
    """Format the number of runs in each state, then those that are not done, and the other jobs in the queue."""
    if not found:
        return ["no runs"]
    counts = Counter(status.shown for status in found)
    published = sum(1 for status in found if status.published)
    yours = f"{counts['done']} of {len(found)} runs are yours ({Path(root or runs_root())}/)"
    lines = [f"{yours}; {published} are published ({published_root()}/)"] if published else []
    lines += align([[paint(state, colour), str(counts[state])] for state, colour in COLOURS.items() if counts[state]], right=[1])
    rows = []
    for state in list(COLOURS)[1:]:
        groups: dict[Any, list[RunStatus]] = {}
        for status in found:
            if status.shown == state:  # missing runs of a recipe are one line if they lack the same
                groups.setdefault((status.recipe, _detail(status), state == "missing" or status.seed), []).append(status)
        for (recipe, detail, _), group in groups.items():
            rows.append(
                [recipe, _numbers([status.seed for status in group], unit_of(recipe)), paint(state, COLOURS[state]), detail]
            )
    others = [f"{job.what}: {job}" for job in jobs if job.run is None]
    return [*lines, *([""] if rows or others else []), *align(rows), *others]


def _numbers(numbers: Sequence[int], unit: str) -> str:
    if len(numbers) == 1:
        return f"{unit} {numbers[0]}"
    together = numbers[-1] - numbers[0] == len(numbers) - 1
    return f"{unit}s {numbers[0]} to {numbers[-1]}" if together else f"{unit}s {', '.join(map(str, numbers))}"


def _detail(status: RunStatus) -> str:
    """The detail of a run that is not done, and for a missing one what is published of it."""
    if status.shown != "missing" or not status.published:
        return status.detail
    name, score = next(iter(status.published.items()))
    value = f"{score['mean']:.1f} % {name}" if score["mean"] is not None else name
    text = f"published: {value}, n = {score['n']}"
    return text if status.detail == ", ".join(status.missing) and "pretrain" in status.missing else f"{status.detail}; {text}"


def state_counts(found: Iterable[RunStatus]) -> dict[str, int]:
    """The number of runs in each of `STATES`."""
    counts = Counter(status.state for status in found)
    return {state: counts[state] for state in STATES}


def _check_records(folder: Path, skip: Collection[str] = ()) -> None:
    """Read the records of a run, except those in `skip`.

    Raises:
        SfrikError: a record is broken; the message names the file.
        OSError: the folder cannot be listed.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        kind = RECORDS.get(name, Score if name.startswith("transfer_") and name.endswith(".json") else None)
        if kind is not None and name not in skip:
            read_record(folder / name, kind)


def _cost_status(recipe: str, seed: int, root: str | Path, jobs: Iterable[QueuedJob]) -> RunStatus:
    """The status of a table of costs; `recipe` is PROFILE/complexity/TABLE. The detail of a finished one is its hardware."""
    profile, _, name = recipe.split("/")
    path = run_folder(f"{profile}/complexity", seed, root) / f"{name}.json"
    ours = [job for job in jobs if job.what.startswith(f"{profile}/{name}/")]
    ids = tuple(job.id for job in ours)
    if ours:
        return RunStatus(recipe, seed, "queued" if ours[0].waits else "running", f"{ours[0]}", (name,), ids, {})
    _check_records(path.parent)
    found = read_costs(path)
    if problem := cost_problem(found, name, profile):
        return RunStatus(recipe, seed, "missing", problem, (name,), ids, {})
    if _entries(name, profile) <= found.keys():
        return RunStatus(recipe, seed, "done", found.get("hardware", ""), (), ids, {})
    if reason := _reason(Path(root) / profile / "tables" / f"{name}.slurm.log"):
        return RunStatus(recipe, seed, "failed", reason, (name,), ids, {})
    return RunStatus(recipe, seed, "missing", name, (name,), ids, {})


@cache
def _entries(name: str, profile: str) -> frozenset[str | None]:
    """The entries that a table of costs needs from each seed."""
    return frozenset(row.entry for row in rows_of(name, profile))


def _reason(*paths: Path) -> str:
    """Why the last attempt ended, from the end of the newest log; empty if that has no sign of a failure."""
    logs = [path for path in paths if path.is_file()]
    if not logs:
        return ""
    with max(logs, key=lambda path: path.stat().st_mtime).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 8192))
        lines = [line.strip() for line in last_attempt(file.read().decode(errors="replace")).splitlines() if line.strip()]
    ended = bool(lines) and ENDED.fullmatch(lines[-1])
    last = [line for line in lines[-6:] if REASON.match(line)]
    if ended:
        found = last[-1] if last else (lines[-2] if len(lines) > 1 else lines[-1])
    else:
        found = last[-1] if last and last[-1] == lines[-1] else ""
    return found.removeprefix("sfrik: error: ")
