"""Collect the scores of a table from the score files of its runs.

A table depends on these files only; `sfrik.tables.definitions` defines its rows and columns, `sfrik.tables.render` its formats.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.folder import Run
from sfrik.runs.records import Score
from sfrik.settings import run_folder
from sfrik.system.files import path_exists
from sfrik.system.records import read_record
from sfrik.tables.cost_rows import read_costs
from sfrik.tables.definitions import EXPERIMENTS, Experiment, experiment
from sfrik.tables.rows import IMAGES, Column, Row, paper_figures

__all__ = [
    "Measured",
    "Table",
    "build_table",
    "existing_seeds",
    "has_scores",
    "tables_with_scores",
]


@dataclass
class Measured:
    """The scores of one row: by column and seed, in the column's unit."""

    row: Row
    scores: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for by_seed in self.scores.values() for seed in by_seed})

    def n(self, column: str) -> int:
        return len(self.scores.get(column, {}))

    def mean(self, column: str) -> float | None:
        values = list(self.scores.get(column, {}).values())
        return statistics.mean(values) if values else None

    def spread(self, column: str) -> float | None:
        values = list(self.scores.get(column, {}).values())
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass
class Table:
    """A table of one profile with the scores that have been measured."""

    name: str
    profile: str
    experiment: Experiment
    columns: list[Column]
    measured: list[Measured]

    @property
    def title(self) -> str:
        return f"{self.experiment.title}; {IMAGES[self.profile] if self.experiment.images else 'random embeddings'}"

    @property
    def labels(self) -> list[str]:
        """Additional columns that distinguish the rows."""
        return list(dict.fromkeys(label for m in self.measured for label in m.row.labels))

    @property
    def spread_note(self) -> str:
        """A sentence on the mean, its spread and the number of seeds."""
        counts = sorted({len(m.seeds) for m in self.measured if m.seeds})
        if counts in ([], [1]):
            return "One seed: no spread."
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"Mean ± one standard deviation over n = {n} seeds."

    @property
    def source(self) -> str:
        """The source of the paper's figures."""
        return paper_figures()[self.experiment.figures]["source"] if self.experiment.figures else ""


def build_table(name: str, profile: str, root: str | Path | None = None, seeds: int | None = None) -> Table:
    """Read the scores of a table's runs.

    Args:
        name: table1, table2, ...
        profile: digits, paper, ...
        root: the folder of the results; `results_root()` when None.
        seeds: use the first `seeds` seeds; all existing ones when None.

    Raises:
        SfrikError: an unknown table, a table without recipes in this profile, or a broken score file.
    """
    definition = experiment(name, profile)
    columns = definition.columns(profile)
    measured = [_measure(row, columns, root, seeds) for row in definition.rows(profile)]
    return Table(name, profile, definition, columns, measured)


def existing_seeds(recipe: str, root: str | Path | None = None) -> list[int]:
    """The seeds of a recipe that have a folder."""
    parent = run_folder(recipe, 0, root).parent
    return sorted(int(path.name.removeprefix("seed")) for path in parent.glob("seed*") if path.name[4:].isdecimal())


def tables_with_scores(profile: str, root: str | Path | None = None) -> list[str]:
    """The tables with at least one measured cell."""
    names = [name for name, definition in EXPERIMENTS.items() if profile in definition.profiles]
    return [name for name in names if has_scores(name, profile, root)]


def has_scores(name: str, profile: str, root: str | Path | None = None) -> bool:
    """Whether a table has at least one measured cell."""
    return any(m.seeds for m in build_table(name, profile, root).measured)


def _measure(row: Row, columns: list[Column], root: str | Path | None, seeds: int | None) -> Measured:
    measured = Measured(row)
    for seed in existing_seeds(row.recipe, root) if seeds is None else range(seeds):
        files: dict[str, dict[str, Any]] = {}
        for column in columns:
            if column.only is not None and seed not in column.only:
                continue
            if column.score not in files:
                files[column.score] = _score(run_folder(row.recipe, seed, root), column.score)
            keys = (row.entry, *column.key) if row.entry else column.key
            name = "metrics.jsonl" if column.score == "metrics" else f"{column.score}.json"
            value = _number(files[column.score], keys, run_folder(row.recipe, seed, root) / name)
            if value is not None:
                measured.scores.setdefault(column.name, {})[seed] = value
    return measured


def _number(score: dict[str, Any], keys: Sequence[str], path: Path) -> float | None:
    """The number at a path of keys in a score; None if a key is missing.

    Raises:
        SfrikError: the value is not a number; the message names the file and the key.
    """
    value: Any = score
    for key in keys:
        if not isinstance(value, dict):
            break
        if (value := value.get(key)) is None:
            return None
    if type(value) not in (int, float):
        raise SfrikError(f"{path}: {'.'.join(keys)} is {str(value)[:60]!r}, not a number: move the file away and run again")
    return value


def _score(folder: Path, name: str) -> dict[str, Any]:
    """The content of a score file; for "metrics", the last epoch of the training curve."""
    if name == "metrics":
        epochs = Run(folder).epochs()
        return epochs[-1] if epochs else {}
    path = folder / f"{name}.json"
    if name in ("table5", "table6"):
        return read_costs(path)
    return read_record(path, Score) if path_exists(path) else {}
