"""The scores of a row of a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from sfrik.tables.rows import Row

__all__ = ["Measured"]


@dataclass
class Measured:
    """The scores of one row by column and seed, in the column's unit.

    `correct` is which test images are classified correctly and their number, by column and seed (`sfrik.runs.correctness`);
    `images` is the number of test images by column, `data` what the scores record of their images by file and seed, and
    `left_out` the reasons why scores are left out, by seed; `trained_on` is what the runs record of their images, by seed, and
    `load` what measurements of costs record of the load of the machine, by repetition. `edges` are the seeds, by column, whose
    hyperparameter was chosen at the edge of its sweep (`sfrik.runs.sweeps`).
    """

    row: Row
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    correct: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    left_out: dict[int, list[str]] = field(default_factory=dict)
    data: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    trained_on: dict[int, dict[str, Any]] = field(default_factory=dict)
    load: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    edges: dict[str, list[int]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for by_seed in self.scores.values() for seed in by_seed})

    def n(self, column: str) -> int:
        return len(self.scores.get(column, {}))

    def at_edge(self, column: str) -> bool:
        """Whether the score of at least one seed has a hyperparameter at the edge of its sweep."""
        return bool(self.scores.get(column, {}).keys() & set(self.edges.get(column, ())))

    def mean(self, column: str) -> float | None:
        values = list(self.scores.get(column, {}).values())
        return statistics.mean(values) if values else None

    def spread(self, column: str) -> float | None:
        values = list(self.scores.get(column, {}).values())
        return statistics.stdev(values) if len(values) > 1 else None
