"""`sfrik status`: what is done, under way, waiting or broken of the runs that the tables need.

It reads the runs' folders and, where there is SLURM, the queue; it changes nothing.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfrik.campaign import missing_stages
from sfrik.errors import SfrikError
from sfrik.experiments import EXPERIMENTS, experiment, grids, rows_of
from sfrik.files import read_json
from sfrik.progress import duration
from sfrik.runs import Run
from sfrik.settings import results_root, run_folder
from sfrik.slurm import QueuedJob, queued_jobs
from sfrik.terminal import paint

__all__ = ["STATES", "RunStatus", "needed_runs", "run_status", "state_counts", "status_in_words", "tables_status"]

COLOURS = {
    **{"done": "green", "running": "blue", "queued": "yellow", "preempted": "yellow"},
    **{"stopped": "red", "failed": "red", "missing": "dim"},
}
STATES = tuple(COLOURS)
ENDED = re.compile(r"sfrik job \d+ ended with status \d+")  # the batch script's last line
TOLD = re.compile(r"(sfrik: |slurmstepd|srun: |.*\bKilled\b|\w*Error\b)")  # lines of a log that say why


@dataclass(frozen=True)
class RunStatus:
    """One run: its state is one of `STATES`, `missing` are the stages that are still to be executed.

    Attributes:
        detail: what there is to say of the state, in one line.
        jobs: the ids of its jobs in SLURM's queue.
        facts: what the run wrote last: stage, epoch, loss, seconds left.
    """

    recipe: str
    seed: int
    state: str
    detail: str
    missing: tuple[str, ...]
    jobs: tuple[str, ...]
    facts: dict[str, Any]


def needed_runs(tables: Sequence[str], profile: str, seeds: int, root: str | Path) -> dict[tuple[str, int], tuple[str, ...]]:
    """The runs of the tables (of all tables of the profile when none is named): (recipe, seed) -> stages.

    A table of costs has one run without stages for each seed.
    """
    names = tables or [name for name, found in EXPERIMENTS.items() if profile in found.profiles]
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
        if name == "table9":  # what is chosen of each grid is run on, once that is written down
            for path in (Path(root) / profile / "tuning" / f"{grid}.json" for grid in grids(profile)):
                if path.is_file():
                    recipe = f"{profile}/{read_json(path)['chosen']}"
                    for seed in range(seeds):
                        needed.setdefault((recipe, seed), {}).update(dict.fromkeys((*stages, "inference")))
    return {run: tuple(stages) for run, stages in needed.items()}


def run_status(recipe: str, seed: int, stages: Sequence[str], root: str | Path, jobs: Iterable[QueuedJob] = ()) -> RunStatus:
    """How far a run is; `jobs` is the queue."""
    if recipe.split("/")[1] == "complexity":
        return _cost_status(recipe, seed, root, jobs)
    missing = tuple(missing_stages(recipe, seed, root, stages))
    run = Run(run_folder(recipe, seed, root))
    facts = (run.state() or {}) if missing else {}
    ours = [job for job in jobs if job.run and job.run[:2] == (recipe, seed)]

    def status(state: str, detail: str = "") -> RunStatus:
        return RunStatus(recipe, seed, state, detail, missing, tuple(job.id for job in ours), facts)

    said, active = facts.get("state"), [job for job in ours if not job.waits]
    if not missing:
        return status("done")
    if active or (not ours and run.is_locked()):
        place = f"job {active[0].id} on {active[0].nodes}" if active else f"on {facts.get('host', 'an unknown host')}"
        reached = _reached(facts) if said == "running" else "starting"
        return status("running", f"{reached}, {place}")
    if ours:
        first = ours[0]
        waits = f"job {first.id} waits ({first.reason})"
        if said in ("running", "preempted") and facts.get("slurm_job") == first.id:
            return status("preempted", f"{_reached(facts)}; requeued, {waits}")
        stages = first.run[2] if first.run else ()
        return status("queued", f"{', '.join(stages)}: {waits}")
    reason = _reason(run.folder)
    if said == "failed":
        return status("failed", _one_line(f"{facts.get('stage', '')}: {facts.get('error') or reason}"))
    if said == "preempted":
        return status("preempted", f"{_reached(facts)}; the same command goes on")
    if said == "running":
        return status("stopped", f"{_reached(facts)}; its process is gone{f' ({reason})' if reason else ''}")
    if reason:
        return status("failed", reason)
    return status("missing", ", ".join(missing))


def tables_status(
    tables: Sequence[str], profile: str, seeds: int = 1, root: str | Path | None = None
) -> tuple[list[RunStatus], list[QueuedJob]]:
    """Every run of the tables, and the queue."""
    root = root or results_root()
    needed = needed_runs(tables, profile, seeds, root)
    try:
        jobs = queued_jobs(root)
    except SfrikError as error:  # the cluster does not answer; the folders do
        print(f"sfrik: the queue is left out: {error}", file=sys.stderr)
        jobs = []
    return [run_status(recipe, seed, stages, root, jobs) for (recipe, seed), stages in needed.items()], jobs


def status_in_words(found: Sequence[RunStatus], jobs: Iterable[QueuedJob] = ()) -> list[str]:
    """A line for every run, then for the other jobs in the queue, then how many runs there are of each state."""
    width = max((len(status.recipe) for status in found), default=0)
    lines = []
    for status in found:
        state = paint(status.state, COLOURS[status.state]) + " " * (9 - len(status.state))
        lines.append(f"{status.recipe:<{width}}  seed {status.seed}  {state}  {status.detail}".rstrip())
    for job in jobs:
        if job.run is None:
            lines.append(f"{job.what}: job {job.id} {f'waits ({job.reason})' if job.waits else f'on {job.nodes}'}")
    counts = state_counts(found)
    return [*lines, ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no runs"]


def state_counts(found: Iterable[RunStatus]) -> dict[str, int]:
    """How many runs there are of each of `STATES`."""
    counts = Counter(status.state for status in found)
    return {state: counts[state] for state in STATES}


def _cost_status(recipe: str, seed: int, root: str | Path, jobs: Iterable[QueuedJob]) -> RunStatus:
    """Of a table of costs, recipe being PROFILE/complexity/TABLE; the figures say on which hardware they were measured."""
    profile, _, name = recipe.split("/")
    path = run_folder(f"{profile}/complexity", seed, root) / f"{name}.json"
    ours = [job for job in jobs if job.what.startswith(f"{profile}/{name}/")]
    ids = tuple(job.id for job in ours)
    if ours:
        job = ours[0]
        detail = f"job {job.id} {f'waits ({job.reason})' if job.waits else f'on {job.nodes}'}"
        return RunStatus(recipe, seed, "queued" if job.waits else "running", detail, (name,), ids, {})
    if path.is_file() and {row.entry for row in rows_of(name, profile)} <= read_json(path).keys():
        return RunStatus(recipe, seed, "done", str(read_json(path).get("hardware", "")), (), ids, {})
    return RunStatus(recipe, seed, "missing", name, (name,), ids, {})


def _reached(facts: dict[str, Any]) -> str:
    """How far a run says it is: `pretrain: epoch 3/20, loss 1.2345, 12 min left`."""
    parts = []
    if facts.get("stage") == "pretrain" and "epoch" in facts:  # what is left of it in the state of a later stage is stale
        parts.append(f"epoch {min(facts['epoch'] + 1, facts['epochs'])}/{facts['epochs']}")
        parts += [f"loss {facts['loss']:.4f}"] if facts.get("loss") is not None else []
        parts += [f"{duration(facts['seconds_left'])} left"] if facts.get("seconds_left") is not None else []
    stage = facts.get("stage", "starting")
    return f"{stage}: {', '.join(parts)}" if parts else stage


def _reason(folder: Path) -> str:
    """Why the last attempt ended, from the end of its log; nothing where it does not say that it ended badly."""
    logs = [path for path in (folder / "slurm.log", folder / "run.log") if path.is_file()]
    if not logs:
        return ""
    with max(logs, key=lambda path: path.stat().st_mtime).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    ended = bool(lines) and ENDED.fullmatch(lines[-1])
    last = [line for line in lines[-6:] if TOLD.match(line)]
    if ended:
        return last[-1] if last else (lines[-2] if len(lines) > 1 else lines[-1])
    return last[-1] if last and last[-1] == lines[-1] else ""


def _one_line(text: str) -> str:
    """The first and the last line of an error: what happened, and the exception of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
