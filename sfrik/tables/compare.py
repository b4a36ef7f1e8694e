r"""The cells of a table in two folders of results, compared: did one reproduce the other?

Of a cell, let the published seeds have n values with mean m and standard deviation s. If another k seeds are of the same normal
distribution, their mean is with probability 0.95 in the prediction interval

.. math:: m \pm t_{0.975,\, n - 1} \; s \sqrt{1/k + 1/n}

(Hahn and Meeker, Statistical Intervals, 1991, chapter 4: the mean of future observations). Two rules complete it:

- The interval reaches at least one unit of the last decimal that the table shows to both sides, and at least one test image for
  an accuracy: what is shown as equal agrees, and so does a rounding. This decides for baselines without training, whose seeds
  have equal values (s = 0).
- A cell is not compared if it is missing in one of the folders, has one published seed (no s), is a time in milliseconds, which
  depends on the machine and its load, or is 1 by definition (the baseline relative to itself).

With 95 %, about one cell in 20 is outside its interval by chance.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfrik.runs.cached import cached_provenance
from sfrik.runs.data import recorded_data
from sfrik.runs.provenance import HARDWARE, format_code
from sfrik.settings import run_folder
from sfrik.tables.collect import Table, build_table
from sfrik.tables.cost_rows import BASELINE
from sfrik.tables.measured import Measured
from sfrik.tables.rows import Column, Row

__all__ = ["REASONS", "Cell", "Comparison", "compare_tables", "prediction_interval", "provenance_differences"]

COVERAGE = 0.95
# Why a cell is not compared, and the same of several cells, in which {a} and {b} are names of the two folders.
REASONS = {
    "missing in both": "missing in both",
    "missing in A": "missing in {a}",
    "missing in B": "missing in {b}",
    "a time": "times, which depend on the machine and its load",
    "1 by definition": "1 by definition",
    "one seed in B": "with one seed in {b}",
    "one repetition in B": "with one repetition in {b}",
}


@dataclass(frozen=True)
class Cell:
    """A row and a column of a table in two folders, A and B.

    Attributes:
        mean_a: mean over the seeds in A; None if the cell is missing there.
        sd_a: standard deviation; None with fewer than two seeds.
        n_a: number of seeds, or of repetitions.
        mean_b: the same in B, as are `sd_b` and `n_b`.
        reason: why the cell is not compared; empty if it is.
        interval: where `mean_a` is expected; None if the cell is not compared.
        agree: whether it is there; None if the cell is not compared.
    """

    row: Row
    column: Column
    mean_a: float | None
    sd_a: float | None
    n_a: int
    mean_b: float | None
    sd_b: float | None
    n_b: int
    reason: str = ""
    interval: tuple[float, float] | None = None
    agree: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """A table in two folders of results: its cells in A and B, row by row."""

    root_a: Path
    root_b: Path
    a: Table
    b: Table
    cells: list[Cell]

    @property
    def compared(self) -> list[Cell]:
        return [cell for cell in self.cells if not cell.reason]

    @property
    def outside(self) -> list[Cell]:
        """The compared cells that do not agree."""
        return [cell for cell in self.compared if not cell.agree]

    @property
    def reasons(self) -> dict[str, int]:
        """Why cells are not compared, with the number of cells."""
        return dict(Counter(cell.reason for cell in self.cells if cell.reason))

    def as_json(self) -> dict[str, Any]:
        """The number of compared cells and of those that agree, and all cells."""
        names = ("mean_a", "sd_a", "n_a", "mean_b", "sd_b", "n_b", "interval", "agree", "reason")
        cells = []
        for cell in self.cells:
            row = {"method": cell.row.method, "q": cell.row.q, **cell.row.labels, "recipe": cell.row.recipe}
            cells.append({**row, "column": cell.column.name, **{name: getattr(cell, name) for name in names}})
        counts = {"compared": len(self.compared), "agree": len(self.compared) - len(self.outside)}
        return {"table": self.a.name, "profile": self.a.profile, **counts, "cells": cells}


def compare_tables(name: str, profile: str, a: str | Path, b: str | Path, seeds: int | None = None) -> Comparison:
    """Compare a table of the results in `a` with the same table of those in `b`, the published ones.

    Args:
        name: table1, table2, ...
        profile: digits, paper, ...
        a: a folder of results.
        b: another one.
        seeds: use the first `seeds` seeds of `a`; all existing ones when None.

    Raises:
        SfrikError: an unknown table, one without recipes in this profile, or a broken score file.
    """
    ours, theirs = build_table(name, profile, a, seeds), build_table(name, profile, b)
    rows = zip(ours.measured, theirs.measured, strict=True)
    cells = [_compare(first, second, column) for first, second in rows for column in ours.columns]
    return Comparison(Path(a), Path(b), ours, theirs, cells)


def provenance_differences(comparisons: Sequence[Comparison]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What only the runs in A record about code, hardware and images, of cells that do not agree, and what B records instead.

    Returns:
        The values in A and those in B, by kind: device, precision, processes, threads, torch, code, and images by split.
    """
    found: tuple[dict[str, list[str]], dict[str, list[str]]] = {}, {}
    for comparison in comparisons:
        recipes = {cell.row.recipe for cell in comparison.outside}
        _add_facts(found[0], comparison.a, comparison.root_a, recipes)
        _add_facts(found[1], comparison.b, comparison.root_b, recipes)
    ours, theirs = found
    names = [name for name in ours if name in theirs and not set(ours[name]) <= set(theirs[name])]
    return {name: ours[name] for name in names}, {name: theirs[name] for name in names}


def prediction_interval(values: Sequence[float], n: int, least: float = 0.0) -> tuple[float, float]:
    """The interval in which the mean of `n` further values of the same normal distribution is with a probability of 95 %.

    Args:
        values: two or more.
        n: the number of further values.
        least: the least distance of the bounds from the mean of `values`.
    """
    from scipy.special import stdtrit  # of the extra `notebooks`, which the tables need

    mean, count = statistics.mean(values), len(values)
    quantile = float(stdtrit(count - 1, (1 + COVERAGE) / 2))
    half = max(least, quantile * statistics.stdev(values) * math.sqrt(1 / n + 1 / count))
    return mean - half, mean + half


def _compare(a: Measured, b: Measured, column: Column) -> Cell:
    name = column.name
    cell = Cell(a.row, column, a.mean(name), a.spread(name), a.n(name), b.mean(name), b.spread(name), b.n(name))
    if reason := _not_compared(cell):
        return replace(cell, reason=reason)
    assert cell.mean_a is not None
    step = 10.0**-column.digits
    if column.unit == "%" and name in b.images:
        step = max(step, 100 / b.images[name])
    low, high = prediction_interval(list(b.scores[name].values()), cell.n_a, least=step)
    rounding = 1e-9 * max(1.0, abs(low), abs(high))
    return replace(cell, interval=(low, high), agree=low - rounding <= cell.mean_a <= high + rounding)


def _not_compared(cell: Cell) -> str:
    """Why a cell is not compared, one of `REASONS`; empty if it is."""
    if cell.mean_a is None or cell.mean_b is None:
        return "missing in both" if cell.mean_a is cell.mean_b else "missing in A" if cell.mean_a is None else "missing in B"
    if cell.column.unit == "ms":
        return "a time"
    if cell.row.method == BASELINE and cell.column.title.endswith(f"/ {BASELINE}"):
        return "1 by definition"
    return f"one {'repetition' if cell.row.entry else 'seed'} in B" if cell.n_b < 2 else ""


def _add_facts(found: dict[str, list[str]], table: Table, root: Path, recipes: Collection[str]) -> None:
    """Add to `found` what the runs of some recipes record, by kind, each value once."""
    for m in table.measured:
        for seed in m.seeds if m.row.recipe in recipes else ():
            folder = run_folder(m.row.recipe, seed, root)
            record = cached_provenance(folder / "provenance.json")
            facts = {name: record.get("hardware", {}).get(name) for name in HARDWARE}
            facts |= {"torch": record.get("versions", {}).get("torch"), "code": format_code(record)}
            splits = {split: data for of_seeds in m.data.values() for split, data in of_seeds.get(seed, {}).items()}
            for split, data in {"pretraining": recorded_data(folder), **splits}.items():
                if data and data.get("sha256"):  # it is empty where an image could not be read
                    facts[f"{split} images"] = f"{data['images']} (SHA-256 {data['sha256'][:8]})"
            for name, value in facts.items():
                if value and str(value) not in found.setdefault(name, []):
                    found[name].append(str(value))
