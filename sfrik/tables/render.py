"""Rendering a table as CSV, Markdown and LaTeX.

A cell shows the measured mean and standard deviation over seeds; a missing score is a dash. The paper's figures are in separate
columns, never among the measured ones.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sfrik.settings import runs_root
from sfrik.system.files import write_text
from sfrik.tables.collect import EDGE, Table, build_table
from sfrik.tables.measured import Measured
from sfrik.tables.remarks import PUBLISHED, published_figures, remark
from sfrik.tables.rows import Column, Row

__all__ = [
    "MISSING",
    "as_csv",
    "as_latex",
    "as_markdown",
    "left_out_lines",
    "markdown_table",
    "paper_cell",
    "plus_minus",
    "published_lines",
    "write_table",
]

MISSING = "–"


def write_table(name: str, profile: str, root: str | Path | None = None, seeds: int | None = None) -> Table:
    """Build a table and write it as CSV, Markdown and LaTeX into <root>/<profile>/tables."""
    table = build_table(name, profile, root, seeds)
    folder = Path(root or runs_root()) / profile / "tables"
    for suffix, render in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        write_text(folder / f"{name}.{suffix}", render(table))
    return table


def as_csv(table: Table) -> str:
    """One line per row, numbers with three decimals; the column `runs` has the folders with scores, settings and provenance.

    Where a hyperparameter is at the edge of its sweep, the last column, `sweep_edge`, has the names of such columns.
    """
    header = ["method", "q", *(label.replace(" ", "_") for label in table.labels)]
    for column in table.columns:
        header += [f"{column.name}_mean", f"{column.name}_sd", f"{column.name}_n"]
    header += [f"{table.experiment.unit}s", "runs", *(f"paper_{name}" for name in table.experiment.paper_columns), "paper_q"]
    header += ["sweep_edge"] if table.edge_note else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for m in table.measured:
        line: list[Any] = [m.row.method, m.row.q, *(m.row.labels.get(label) for label in table.labels)]
        for column in table.columns:
            line += [_digits(m.mean(column.name)), _digits(m.spread(column.name)), m.n(column.name)]
        line += [" ".join(map(str, m.seeds)), " ".join(f"{m.row.recipe}/seed{seed}" for seed in m.seeds)]
        line += [*(m.row.paper.get(name) for name in table.experiment.paper_columns), m.row.paper_q]
        line += [" ".join(column.name for column in table.columns if m.at_edge(column.name))] if table.edge_note else []
        writer.writerow(["" if value is None else value for value in line])
    return out.getvalue()


def as_markdown(table: Table, base: str = "..") -> str:
    """The table with links: from a number to the page of its recipe (`sfrik.tables.run_pages`), from a seed to its run.

    Args:
        table: the table to render.
        base: the relative path from the folder of the text to the profile's folder.
    """
    q = " (its q)" if any(m.row.paper_q for m in table.measured) else ""
    paper = [f"paper: {heading}{q}" for heading in table.experiment.paper_columns.values()]
    header = ["method", "q", *table.labels, *(column.heading for column in table.columns), f"{table.experiment.unit}s", *paper]
    rows = []
    for m in table.measured:
        folder = m.row.recipe.split("/")[-1]
        links = " ".join(f"[{seed}]({base}/{folder}/seed{seed})" for seed in m.seeds)
        if m.row.entry and m.seeds:
            links = f"[{len(m.seeds)}]({base}/{folder}/README.md)"
        numbers = (plus_minus(m, column, " ± ") for column in table.columns)
        cells = [*_identity(m.row, table.labels)]
        cells += [number if number == MISSING else f"[{number}]({base}/{folder}/README.md)" for number in numbers]
        rows.append([*cells, links or MISSING, *_paper(m.row, table)])
    lines = [f"**{table.title}**", "", *markdown_table(header, rows), "", _note(table), "", *_published_table(table)]
    return "\n".join([*lines, *left_out_lines(table.left_out)])


def _published_table(table: Table) -> list[str]:
    """The figures that others publish, as a table of its own; no line if there are none."""
    found = published_figures(table.name, table.profile)
    methods = list(dict.fromkeys(method for each in found for method in each["top1"]))
    rows = [
        [f"[{each['source']}]({each['url']})", each["setting"], *(str(each["top1"].get(method, MISSING)) for method in methods)]
        for each in found
    ]
    return [f"{PUBLISHED}:", "", *markdown_table(["source", "setting", *methods], rows), ""] if found else []


def published_lines(table: Table) -> list[str]:
    """The figures that others publish, in one line for each source and setting."""
    found = published_figures(table.name, table.profile)
    numbers = [", ".join(f"{method} {value}" for method, value in each["top1"].items()) for each in found]
    parts = zip(found, numbers, strict=True)
    return [f"{PUBLISHED}: {text} ({each['setting']}; {each['source']})" for each, text in parts]


def left_out_lines(left_out: Sequence[str]) -> list[str]:
    """The lines of Markdown that name the runs and scores that are not shown; none if all are."""
    lines = [f"- {line.replace('|', '‖')}" for line in left_out]
    return ["Not shown:", "", *lines, ""] if lines else []


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def as_latex(table: Table) -> str:
    """The table as a LaTeX `tabular`, with the note as a comment."""
    headings = [column.heading for column in table.columns]
    paper = [f"paper: {heading} ($q$)" for heading in table.experiment.paper_columns.values()]
    n = "$n$" if table.experiment.stages else "repetitions"
    header = [escape(text) for text in ["method", "$q$", *table.labels, *headings, n, *paper]]
    lines = [
        f"% {_note(table)}",
        *(f"% {line}" for line in published_lines(table)),
        *(f"% Not shown: {line}" for line in table.left_out),
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\hline",
        " & ".join(header) + r" \\",
        r"\hline",
    ]
    for m in table.measured:
        cells = [*_identity(m.row, table.labels), *(plus_minus(m, column, r" $\pm$ ") for column in table.columns)]
        cells = [*cells, str(len(m.seeds)), *_paper(m.row, table)]
        lines.append(" & ".join(escape(cell) for cell in cells).replace(MISSING, "--").replace(EDGE, r"$\dagger$") + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """Escape LaTeX's special characters, except in formulas between dollar signs."""
    parts = text.split("$")
    for character, safe in (("%", r"\%"), ("_", r"\_"), ("&", r"\&"), ("^", r"\^{}"), ("|", r"\textbar{}")):
        parts[::2] = [part.replace(character, safe) for part in parts[::2]]
    return "$".join(parts)


def _note(table: Table) -> str:
    counts = {len(m.seeds) for m in table.measured if m.seeds}
    over = f" over {table.experiment.count(counts)}" if counts else ""
    links = (
        "A number links to the scores of each seed, a seed to the folder of its run."
        if table.experiment.stages
        else "A number links to the files of each repetition."
    )
    notes = [links, remark(table.name, table.profile), table.load_note, table.edge_note]
    paper = (
        f"The columns *paper* are the paper's figures, not measured here ({table.experiment.setting}; q in brackets; source: "
        f"{table.source})."
        if table.experiment.figures
        else "No available source gives the paper's figures."
    )
    return (
        f"Profile {table.profile}: mean ± standard deviation{over}, measured here. "
        f"{' '.join(note for note in notes if note)} {paper}"
    )


def _identity(row: Row, labels: list[str]) -> list[str]:
    return [row.method, str(row.q or MISSING), *(row.labels.get(label, MISSING).replace("|", "‖") for label in labels)]


def _paper(row: Row, table: Table) -> list[str]:
    return [paper_cell(row.paper.get(name), row.paper_q) for name in table.experiment.paper_columns]


def paper_cell(value: float | str | None, q: int | None) -> str:
    """A figure of the paper with its q in brackets; a dash without one."""
    if value is None:
        return MISSING
    return f"{value} ({q})" if q else str(value)


def plus_minus(measured: Measured, column: Column, sign: str) -> str:
    """The mean and the standard deviation of a cell, which one seed lacks, and the mark `EDGE`; a dash without a score."""
    mean, spread = measured.mean(column.name), measured.spread(column.name)
    if mean is None:
        return MISSING
    return (
        f"{mean:.{column.digits}f}"
        + (f"{sign}{spread:.{column.digits}f}" if spread is not None else "")
        + (f" {EDGE}" if measured.at_edge(column.name) else "")
    )


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
