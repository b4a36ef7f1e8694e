"""Which cells decide a claim, in which family and with which margin: contrasts.toml, which was fixed before the runs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfrik.tables.definitions import experiment, rows_of, tables_of
from sfrik.tables.rows import DIMS, Row, paper_figures

__all__ = ["Cells", "Contrast", "Family", "families"]


@dataclass(frozen=True)
class Cells:
    """A row of a table that a contrast refers to.

    Attributes:
        table: table1, table2, ...
        method: of the row.
        q: of the row.
        labels: of the row, by name.
    """

    table: str
    method: str
    q: int
    labels: Mapping[str, str]

    def matches(self, row: Row) -> bool:
        """Whether a row of the table is the one referred to."""
        return (row.method, row.q, dict(row.labels)) == (self.method, self.q, dict(self.labels))


@dataclass(frozen=True)
class Contrast:
    """The sum of the rows `higher` minus that of the rows `lower`; a claim predicts that it is positive.

    Attributes:
        title: what is subtracted from what.
        claim: the claim, which the contrasts after it share if they have none.
        paper: the paper's figures; empty if it has none.
        table: the table that the page links to.
        column: of each row.
        higher: the rows with a positive sign.
        lower: those with a negative sign.
    """

    title: str
    claim: str
    paper: str
    table: str
    column: str
    higher: Sequence[Cells]
    lower: Sequence[Cells]


@dataclass(frozen=True)
class Family:
    """Contrasts whose p values are corrected together.

    Attributes:
        name: its key in contrasts.toml.
        title: its heading.
        note: what a reader of the results needs to know.
        repeated: what n counts, in the singular.
        unit: of the contrasts.
        margin: a difference below it is taken as none.
        primary: the column of the contrasts that name no other; empty if each names its own.
        secondary: columns that are shown beside the primary metric, without a verdict.
        relative: whether a contrast is 100 * (1 - lower / higher) in place of a difference.
        contrasts: the contrasts.
    """

    name: str
    title: str
    note: str
    repeated: str
    unit: str
    margin: float
    primary: str
    secondary: Sequence[str]
    relative: bool
    contrasts: Sequence[Contrast]


def families(profile: str) -> list[Family]:
    """The families with the contrasts whose rows are in the tables of a profile; without those that have none."""
    found = tomllib.loads((Path(__file__).parent / "contrasts.toml").read_text(encoding="utf-8"))
    of_profile = []
    for name, entry in found.items():
        contrasts = [contrast for contrast in _contrasts(entry, profile) if _is_measurable(contrast, profile)]
        family = Family(
            name,
            entry["title"],
            entry["note"],
            entry["repeated"],
            entry["unit"],
            entry["margin"],
            entry.get("primary", ""),
            entry.get("secondary", ()),
            entry.get("relative", False),
            contrasts,
        )
        of_profile += [family] if contrasts else []
    return of_profile


def _contrasts(family: Mapping[str, Any], profile: str) -> list[Contrast]:
    figures, sizes = paper_figures(), {"largest": DIMS[profile][-1], "smallest": DIMS[profile][0]}

    def cells(row: Mapping[str, Any], table: str) -> Cells:
        labels = {key: value for key, value in row.items() if key not in ("method", "q", "table")}
        return Cells(row.get("table", table), row["method"], sizes.get(row["q"], row["q"]), labels)

    return [
        Contrast(
            entry["title"],
            entry.get("claim", ""),
            entry.get("paper", "").format_map(figures),
            entry["table"],
            entry.get("column") or family["primary"],
            [cells(row, entry["table"]) for row in entry["higher"]],
            [cells(row, entry["table"]) for row in entry["lower"]],
        )
        for entry in family["contrast"]
    ]


def _is_measurable(contrast: Contrast, profile: str) -> bool:
    """Whether the tables of a profile have the rows and the column of a contrast, and no row is compared with itself."""
    tables, every = tables_of(profile), (*contrast.higher, *contrast.lower)
    return not any(cells in contrast.lower for cells in contrast.higher) and all(
        cells.table in tables
        and any(cells.matches(row) for row in rows_of(cells.table, profile))
        and contrast.column in [column.name for column in experiment(cells.table, profile).columns(profile)]
        for cells in every
    )
