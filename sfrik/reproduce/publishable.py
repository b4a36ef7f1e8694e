"""Which runs of a table can be published, and why others cannot.

A published table is complete: every row has the same seeds. Its runs are of one commit of a clean checkout, on one kind of
machine, with one precision, the same processes and threads, one version of torch, and the same images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfrik.reproduce.stages import STAGES, stage_scores
from sfrik.runs.cached import cached_provenance
from sfrik.runs.data import recorded_data
from sfrik.runs.folder import Run
from sfrik.runs.provenance import HARDWARE
from sfrik.settings import run_folder
from sfrik.tables.collect import Table, build_table, read_score
from sfrik.tables.cost_rows import read_costs, unit_of
from sfrik.tables.definitions import experiment, grids, read_choice
from sfrik.tables.measured import Measured
from sfrik.tables.rows import Column

__all__ = ["COSTS", "PublishedRun", "has_all_cells", "name_runs", "published_runs", "score_names", "table_problems"]

COSTS = ("table5", "table6")


@dataclass(frozen=True)
class PublishedRun:
    """A run with what a table shows of it.

    Attributes:
        scores: names of score files without .json.
        notebooks: names of the executed copies that wrote them.
    """

    recipe: str
    seed: int
    scores: tuple[str, ...]
    notebooks: tuple[str, ...]


def published_runs(name: str, profile: str, root: str | Path) -> list[PublishedRun]:
    """The runs of a table that have scores in `root`."""
    seeds: dict[str, set[int]] = {}
    for m in build_table(name, profile, root).measured:
        seeds.setdefault(m.row.recipe, set()).update(m.seeds)
    runs = []
    for recipe, seed in ((recipe, seed) for recipe, found in seeds.items() for seed in sorted(found)):
        scores = [score for score in score_names(name, profile, recipe, seed) if _score(recipe, seed, score, root)]
        copies = [f"06_complexity_{name}.ipynb"] if name in COSTS else [STAGES[stage].copy for stage in _stages(name, profile)]
        runs.append(PublishedRun(recipe, seed, tuple(scores), tuple(copies)))
    return runs


def score_names(name: str, profile: str, recipe: str, seed: int) -> list[str]:
    """The scores that a table has of a run, by the names of their files without .json."""
    if name in COSTS:
        return [name]
    return [score for stage in _stages(name, profile) for score, _ in stage_scores(recipe, seed, stage)]


def has_all_cells(name: str, profile: str, root: str | Path) -> bool:
    """Whether every cell of a table has a score of some seed."""
    table = build_table(name, profile, root)
    seeds = _seeds(table)
    cells = [(m, column) for m in table.measured for column in table.columns]
    return bool(seeds) and not any(not m.n(column.name) and _missing(m, column, seeds, table, root) for m, column in cells)


def table_problems(name: str, profile: str, root: str | Path) -> list[str]:
    """Why a table in `root` cannot be published, in one line each, which names the runs; empty if it can."""
    table = build_table(name, profile, root)
    seeds = _seeds(table)
    if not seeds:
        return [f"{name}: nothing has been measured in {Path(root) / profile}"]
    runs = published_runs(name, profile, root)
    busy = [(run.recipe, run.seed) for run in runs if _unfinished(Run(run_folder(run.recipe, run.seed, root)))]
    problems = [f"is not finished: {name_runs(busy)}"] if busy else []
    problems += [f"not shown: {line}" for line in table.left_out]
    for m in table.measured:
        for column in table.columns:
            if missing := _missing(m, column, seeds, table, root):
                numbers = ", ".join(map(str, missing))
                problems.append(
                    f"{m.row.recipe}: {column.heading} of {table.experiment.unit} {numbers} is missing, which other rows have"
                )
    for run in runs:
        if len({_score(run.recipe, run.seed, score, root).get("backbone_sha256") for score in run.scores}) > 1:
            problems.append(f"the scores of {run.recipe} seed {run.seed} were measured on different weights: run it again")
    problems += _mixed(runs, root)
    return [f"{name}: {problem}" for problem in dict.fromkeys(problems)]


def name_runs(runs: Iterable[tuple[str, int]]) -> str:
    """Runs by recipe and seed, such as `digits/auh_q128 seed 0, 1`."""
    seeds: dict[str, list[int]] = {}
    for recipe, seed in dict.fromkeys(runs):
        seeds.setdefault(recipe, []).append(seed)
    return "; ".join(f"{recipe} {unit_of(recipe)} {', '.join(map(str, sorted(numbers)))}" for recipe, numbers in seeds.items())


def _seeds(table: Table) -> list[int]:
    """The seeds of a table's own scores: the runs and scores that it shares with table 1 may have more."""
    first = experiment("table1", table.profile)
    recipes = {row.recipe for row in first.rows(table.profile)} if table.name != "table1" else set()
    scores = {"metrics", *(column.score for column in first.columns(table.profile))}
    cells = [(m, column) for m in table.measured for column in table.columns]
    own = [m.scores.get(column.name, {}) for m, column in cells if m.row.recipe not in recipes or column.score not in scores]
    return sorted({seed for found in own for seed in found})


def _stages(name: str, profile: str) -> tuple[str, ...]:
    stages = experiment(name, profile).stages
    return (*stages, "inference") if name == "table9" else stages


def _score(recipe: str, seed: int, score: str, root: str | Path) -> dict[str, Any]:
    return read_score(recipe, seed, score, root)[0]


def _unfinished(run: Run) -> bool:
    return run.is_locked() or run.state() is not None


def _missing(m: Measured, column: Column, seeds: list[int], table: Table, root: str | Path) -> list[int]:
    """The seeds for which a cell has no score, but should."""
    if table.name == "table9" and column.only is None:  # the test score, only of the chosen setting
        chosen = {read_choice(table.profile, grid, root) for grid in grids(table.profile)}
        if m.row.recipe not in chosen:
            return []
    expected = [seed for seed in seeds if column.only is None or seed in column.only]
    if m.row.entry is not None and m.seeds:  # a cost that is not measured for this method, such as a step that does not fit
        expected = expected if m.scores.get(column.name) else [seed for seed in expected if seed not in m.seeds]
    return [seed for seed in expected if seed not in m.scores.get(column.name, {})]


def _mixed(runs: list[PublishedRun], root: str | Path) -> list[str]:
    """The facts that differ between the runs, and the runs whose code is not a commit."""
    facts: dict[str, dict[str, list[tuple[str, int]]]] = {}
    for run in runs:
        for kind, value in _facts(run, root):
            facts.setdefault(kind, {}).setdefault(value, []).append((run.recipe, run.seed))
    lines = []
    for value, found in facts.get("commit", {}).items():
        if value in ("none", "unknown") or value.endswith("-dirty"):
            lines.append(f"not of a clean checkout (commit {value}): {name_runs(found)}")
    for kind, values in facts.items():
        if len(values) > 1:
            largest = max(values, key=lambda value: len(set(values[value])))
            named = [f"{value}: {name_runs(found)}" for value, found in values.items() if value != largest]
            lines.append(f"mixed {kind}: {' | '.join(named)} | {largest}: the other runs")
    return lines


def _facts(run: PublishedRun, root: str | Path) -> Iterator[tuple[str, str]]:
    """What must be the same for all runs of a table, as kind and value."""
    folder = run_folder(run.recipe, run.seed, root)
    if run.scores in [(name,) for name in COSTS]:
        found = read_costs(folder / f"{run.scores[0]}.json")
        yield "commit", str(found.get("commit") or "none")
        yield "hardware", str(found.get("hardware"))
        return
    origin = cached_provenance(folder / "provenance.json")
    for part in (origin, *origin.get("resumed", [])):
        yield "commit", str(part.get("commit") or "none")
        yield "torch", str(part.get("versions", {}).get("torch"))
        for name in HARDWARE:
            yield name, str(part.get("hardware", {}).get(name))
    if data := recorded_data(folder):  # random weights and raw pixels are not trained
        yield "images of the training", _images({"data": {"train": data}})
    for score in run.scores:
        found = _score(run.recipe, run.seed, score, root)
        yield "commit", str(found.get("commit") or "none")
        yield f"images of {score}", _images(found)


def _images(record: dict[str, Any]) -> str:
    """The images that a record names: their numbers and fingerprints by split; "not recorded" in records of earlier releases."""
    splits = record.get("data") or {}
    named = [f"{split} {data['images']} ({data['sha256'][:12]})" for split, data in splits.items() if data]
    return ", ".join(named) or "not recorded"
