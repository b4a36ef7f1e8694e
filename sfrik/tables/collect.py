"""A table is a pure function of the score files of the runs; `sfrik.tables.definitions` says what each consists of.

A cell shows the measured mean and standard deviation over seeds, with n, beside the paper's own figure. What was not measured
is a dash; a figure of the paper stands in a column of its own and is never printed as measured.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.folder import Run
from sfrik.runs.records import Score
from sfrik.settings import results_root, run_folder
from sfrik.system.files import is_there, write_text
from sfrik.system.records import read_record
from sfrik.tables.cost_rows import read_costs
from sfrik.tables.definitions import EXPERIMENTS, Experiment, experiment
from sfrik.tables.rows import IMAGES, Column, Row, paper_figures

__all__ = [
    "Measured",
    "Table",
    "as_csv",
    "as_latex",
    "as_markdown",
    "build_table",
    "has_scores",
    "seeds_there",
    "tables_with_scores",
    "write_table",
]

MISSING = "–"


@dataclass
class Measured:
    """Scores of one row by seed, for each column, in the column's unit."""

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
        """Further columns that tell the rows apart."""
        return list(dict.fromkeys(label for m in self.measured for label in m.row.labels))

    @property
    def format_spread(self) -> str:
        """What a mean and its spread are of."""
        counts = sorted({len(m.seeds) for m in self.measured if m.seeds})
        if counts in ([], [1]):
            return "One seed: no spread."
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"Mean ± one standard deviation over n = {n} seeds."

    @property
    def source(self) -> str:
        """Where the paper's figures were read."""
        return paper_figures()[self.experiment.figures]["source"] if self.experiment.figures else ""


def build_table(name: str, profile: str, root: str | Path | None = None, seeds: int | None = None) -> Table:
    """Read the scores of a table's runs.

    Args:
        seeds: the first so many seeds; all that are there when None.
    """
    found = experiment(name, profile)
    columns = found.columns(profile)
    measured = [_measure(row, columns, root, seeds) for row in found.rows(profile)]
    return Table(name, profile, found, columns, measured)


def seeds_there(recipe: str, root: str | Path | None = None) -> list[int]:
    """The seeds that a recipe has a folder for."""
    parent = run_folder(recipe, 0, root).parent
    return sorted(int(path.name.removeprefix("seed")) for path in parent.glob("seed*") if path.name[4:].isdecimal())


def tables_with_scores(profile: str, root: str | Path | None = None) -> list[str]:
    """The tables of which at least one cell has been measured."""
    there = [name for name, found in EXPERIMENTS.items() if profile in found.profiles]
    return [name for name in there if has_scores(name, profile, root)]


def has_scores(name: str, profile: str, root: str | Path | None = None) -> bool:
    """Whether at least one cell of a table has been measured."""
    return any(m.seeds for m in build_table(name, profile, root).measured)


def write_table(name: str, profile: str, root: str | Path | None = None, seeds: int | None = None) -> Table:
    """Build a table and write it as CSV, Markdown and LaTeX to <root>/<profile>/tables."""
    table = build_table(name, profile, root, seeds)
    folder = Path(root or results_root()) / profile / "tables"
    for suffix, render in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        write_text(folder / f"{name}.{suffix}", render(table))
    return table


def as_csv(table: Table) -> str:
    """One line a row, numbers alone; `runs` are the folders that hold the scores, settings and provenance."""
    header = ["method", "q", *(label.replace(" ", "_") for label in table.labels)]
    for column in table.columns:
        header += [f"{column.name}_mean", f"{column.name}_sd", f"{column.name}_n"]
    header += ["seeds", "runs", *(f"paper_{name}" for name in table.experiment.paper_columns), "paper_q"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for m in table.measured:
        line: list[Any] = [m.row.method, m.row.q, *(m.row.labels.get(label) for label in table.labels)]
        for column in table.columns:
            line += [_digits(m.mean(column.name)), _digits(m.spread(column.name)), m.n(column.name)]
        line += [" ".join(map(str, m.seeds)), " ".join(f"{m.row.recipe}/seed{seed}" for seed in m.seeds)]
        line += [*(m.row.paper.get(name) for name in table.experiment.paper_columns), m.row.paper_q]
        writer.writerow(["" if value is None else value for value in line])
    return out.getvalue()


def as_markdown(table: Table, base: str = "..") -> str:
    """The table with links: a number to the page of its recipe (`sfrik.tables.run_pages`), a seed to its run.

    Args:
        base: the way to the folder of the profile from where the text will lie.
    """
    q = " (its q)" if any(m.row.paper_q for m in table.measured) else ""
    paper = [f"paper: {heading}{q}" for heading in table.experiment.paper_columns.values()]
    header = ["method", "q", *table.labels, *(column.heading for column in table.columns), "seeds", *paper]
    lines = [f"**{table.title}**", "", _markdown_row(header), _markdown_row(["---"] * len(header))]
    for m in table.measured:
        folder = m.row.recipe.split("/")[-1]
        links = " ".join(f"[{seed}]({base}/{folder}/seed{seed})" for seed in m.seeds)
        numbers = (_plus_minus(m, column, " ± ") for column in table.columns)
        cells = [*_identity(m.row, table.labels)]
        cells += [number if number == MISSING else f"[{number}]({base}/{folder}/README.md)" for number in numbers]
        lines.append(_markdown_row([*cells, links or MISSING, *_paper(m.row, table)]))
    return "\n".join([*lines, "", _note(table), ""])


def as_latex(table: Table) -> str:
    headings = [column.heading for column in table.columns]
    paper = [f"paper: {heading} ($q$)" for heading in table.experiment.paper_columns.values()]
    header = [escape(text) for text in ["method", "$q$", *table.labels, *headings, "$n$", *paper]]
    lines = [
        f"% {_note(table)}",
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\hline",
        " & ".join(header) + r" \\",
        r"\hline",
    ]
    for m in table.measured:
        cells = [*_identity(m.row, table.labels), *(_plus_minus(m, column, r" $\pm$ ") for column in table.columns)]
        cells = [*cells, str(len(m.seeds)), *_paper(m.row, table)]
        lines.append(" & ".join(escape(cell) for cell in cells).replace(MISSING, "--") + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """The characters of these tables that LaTeX reads as its own; what stands between dollars is left as it is."""
    parts = text.split("$")
    for character, safe in (("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("^", r"\^{}"), ("|", r"\textbar{}")):
        parts[::2] = [part.replace(character, safe) for part in parts[::2]]
    return "$".join(parts)


def _measure(row: Row, columns: list[Column], root: str | Path | None, seeds: int | None) -> Measured:
    measured = Measured(row)
    for seed in seeds_there(row.recipe, root) if seeds is None else range(seeds):
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
    """What the keys lead to in a score; None where one of them is missing.

    Raises:
        SfrikError: it is no number; the file and the key are named.
    """
    value: Any = score
    for key in keys:
        if not isinstance(value, dict):
            break
        if (value := value.get(key)) is None:
            return None
    if type(value) not in (int, float):
        raise SfrikError(f"{path}: {'.'.join(keys)} is {str(value)[:60]!r} and no number: move the file away and run again")
    return value


def _score(folder: Path, name: str) -> dict[str, Any]:
    """A score file; of the training curve the last epoch."""
    if name == "metrics":
        epochs = Run(folder).epochs()
        return epochs[-1] if epochs else {}
    path = folder / f"{name}.json"
    if name in ("table5", "table6"):
        return read_costs(path)
    return read_record(path, Score) if is_there(path) else {}


def _note(table: Table) -> str:
    counts = {len(m.seeds) for m in table.measured if m.seeds}
    n = "-" if not counts else str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    remark = f"{table.experiment.remark} " if table.experiment.remark else ""
    paper = (
        f"The paper's own column ({table.experiment.setting}; source: {table.source}) is of another experiment, at the q in "
        "brackets."
        if table.experiment.figures
        else "No source gives the paper's figures."
    )
    return (
        f"Profile {table.profile}: mean ± standard deviation over n = {n} seeds, measured here; a number leads to the score of "
        f"each seed, the column of seeds to the runs' folders. {remark}{paper}"
    )


def _identity(row: Row, labels: list[str]) -> list[str]:
    return [row.method, str(row.q or MISSING), *(row.labels.get(label, MISSING).replace("|", "‖") for label in labels)]


def _paper(row: Row, table: Table) -> list[str]:
    return [_of_paper(row.paper.get(name), row.paper_q) for name in table.experiment.paper_columns]


def _of_paper(value: float | str | None, q: int | None) -> str:
    if value is None:
        return MISSING
    return f"{value} ({q})" if q else str(value)


def _plus_minus(measured: Measured, column: Column, sign: str) -> str:
    mean, spread = measured.mean(column.name), measured.spread(column.name)
    if mean is None:
        return MISSING
    return f"{mean:.{column.digits}f}" + (f"{sign}{spread:.{column.digits}f}" if spread is not None else "")


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
