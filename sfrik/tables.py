"""A table is a pure function of the score files of the runs; what each table needs stands here.

A cell shows the measured mean and standard deviation over seeds, with n, beside the paper's own figure. What was not measured
is a dash; a figure of the paper stands in a column of its own and is never printed as measured.
"""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError, nearest
from sfrik.runs import read_json, write_text
from sfrik.settings import results_root, run_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Row", "Table", "build_table", "paper_figures", "rows_of", "write_table"]

# Desk and smoke use smaller q; they stand where the paper has the last of `PAPER_DIMS`, the largest at 8192. Smoke has one,
# since starting the notebooks is nearly all of its time.
DIMS = {"smoke": (64,), "desk": (128, 256, 512)}
PAPER_DIMS = (2048, 4096, 8192)
PROTOCOLS = {"linear": "linear probing", "logistic": "logistic regression", "knn": "20-NN"}
MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One row of a table: what was run, and what the paper says of it."""

    method: str
    q: int | None
    recipe: str
    paper: float | None = None
    paper_q: int | None = None


@dataclass
class Measured:
    """Scores of one row by seed, for each protocol, in %."""

    row: Row
    scores: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for by_seed in self.scores.values() for seed in by_seed})

    def mean(self, protocol: str) -> float | None:
        values = list(self.scores.get(protocol, {}).values())
        return statistics.mean(values) if values else None

    def spread(self, protocol: str) -> float | None:
        values = list(self.scores.get(protocol, {}).values())
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass
class Table:
    name: str
    title: str
    profile: str
    source: str
    measured: list[Measured]


def paper_figures() -> dict[str, Any]:
    """The paper's own figures, with their sources."""
    return tomllib.loads((Path(__file__).parent / "paper.toml").read_text())


def rows_of(name: str, profile: str) -> list[Row]:
    """The rows of a table in a profile.

    Raises:
        SfrikError: there is no such table, or it has no recipes in this profile.
    """
    if name not in ROWS:
        raise SfrikError(f"unknown table {name!r}{nearest(name, ROWS)}: there is {', '.join(ROWS)}")
    if profile not in DIMS:
        raise SfrikError(f"{name} has no recipes in profile {profile!r}{nearest(profile, DIMS)}: choose {', '.join(DIMS)}")
    return ROWS[name](profile)


def build_table(name: str, profile: str, root: str | Path | None = None, seeds: int | None = None) -> Table:
    """Read the scores of a table's runs.

    Args:
        seeds: the first so many seeds; all that are there when None.
    """
    figures = paper_figures()["linear_in20"]
    measured = [_measure(row, root, seeds) for row in rows_of(name, profile)]
    title = f"Linear probing and kNN on {IMAGES[profile]}, top-1 accuracy in %"
    return Table(name, title, profile, figures["source"], measured)


def write_table(name: str, profile: str, root: str | Path | None = None, seeds: int | None = None) -> Table:
    """Build a table and write it as CSV, Markdown and LaTeX to <root>/<profile>/tables."""
    table = build_table(name, profile, root, seeds)
    folder = Path(root or results_root()) / profile / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, render in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        write_text(folder / f"{name}.{suffix}", render(table))
    return table


def as_csv(table: Table) -> str:
    """One line a row, numbers alone; `runs` are the folders that hold the scores, settings and provenance."""
    columns = ["method", "q"]
    for protocol in PROTOCOLS:
        columns += [f"{protocol}_top1_mean", f"{protocol}_top1_sd", f"{protocol}_n"]
    columns += ["seeds", "runs", "paper_linear_top1", "paper_q"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for measured in table.measured:
        row = measured.row
        line: list[Any] = [row.method, row.q]
        for protocol in PROTOCOLS:
            mean, sd = measured.mean(protocol), measured.spread(protocol)
            line += [_digits(mean), _digits(sd), len(measured.scores.get(protocol, {}))]
        line += [" ".join(map(str, measured.seeds)), " ".join(f"{row.recipe}/seed{seed}" for seed in measured.seeds)]
        line += [row.paper, row.paper_q]
        writer.writerow(["" if value is None else value for value in line])
    return out.getvalue()


def as_markdown(table: Table) -> str:
    header = ["method", "q", *(f"{title}, %" for title in PROTOCOLS.values()), "seeds", "paper: linear probing, % (its q)"]
    lines = [f"**{table.title}**", "", _markdown_row(header), _markdown_row(["---"] * len(header))]
    for measured in table.measured:
        row = measured.row
        folder = row.recipe.split("/")[-1]
        links = " ".join(f"[{seed}](../{folder}/seed{seed})" for seed in measured.seeds)
        cells = [row.method, str(row.q or MISSING)]
        cells += [_plus_minus(measured, protocol, " ± ") for protocol in PROTOCOLS]
        cells += [links or MISSING, f"{row.paper} ({row.paper_q})" if row.paper else MISSING]
        lines.append(_markdown_row(cells))
    return "\n".join([*lines, "", _note(table), ""])


def as_latex(table: Table) -> str:
    titles = [title.replace("%", r"\%") for title in PROTOCOLS.values()]
    lines = [
        f"% {_note(table)}",
        r"\begin{tabular}{lr" + "r" * len(titles) + "rr}",
        r"\hline",
        " & ".join(["method", "$q$", *titles, "$n$", "paper ($q$)"]) + r" \\",
        r"\hline",
    ]
    for measured in table.measured:
        row = measured.row
        cells = [row.method, str(row.q or "--"), *(_plus_minus(measured, p, r" $\pm$ ") for p in PROTOCOLS)]
        cells += [str(len(measured.seeds)), f"{row.paper} ({row.paper_q})" if row.paper else "--"]
        lines.append(" & ".join(cells).replace(MISSING, "--") + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _table1_rows(profile: str) -> list[Row]:
    """Linear probing of every method and dimension, with the two baselines that need no training."""
    figures = paper_figures()["linear_in20"]
    rows = []
    for label, recipe in [("SimCLR", "simclr"), ("AUH", "auh"), ("VICReg", "vicreg"), ("SFRIK L=2", "sfrik_l2")]:
        by_q = dict(zip(figures["q"], figures[label.replace(" L=", "_L")], strict=True))
        rows += [
            Row(label, q, f"{profile}/{recipe}_q{q}", by_q[paper_q], paper_q)
            for q, paper_q in zip(DIMS[profile], PAPER_DIMS[-len(DIMS[profile]) :], strict=True)
        ]
    q, paper_q = DIMS[profile][-1], PAPER_DIMS[-1]
    for degree in (1, 3):
        paper = figures[f"SFRIK_L{degree}_q{paper_q}"]
        rows.append(Row(f"SFRIK L={degree}", q, f"{profile}/sfrik_l{degree}_q{q}", paper, paper_q))
    rows.append(Row("random weights", None, f"{profile}/random_weights"))
    rows.append(Row("raw pixels", None, f"{profile}/raw_pixels"))
    return rows


ROWS = {"table1": _table1_rows}
IMAGES = {"smoke": "300 digits of MNIST5k (a test of the machinery)", "desk": "MNIST5k (3,500 training, 1,000 test digits)"}


def _measure(row: Row, root: str | Path, seeds: int | None) -> Measured:
    parent = run_folder(row.recipe, 0, root).parent
    there = sorted(int(p.name.removeprefix("seed")) for p in parent.glob("seed*") if p.name[4:].isdigit())
    measured = Measured(row)
    for seed in there if seeds is None else range(seeds):
        for protocol in PROTOCOLS:
            path = run_folder(row.recipe, seed, root) / f"{protocol}.json"
            if path.is_file():
                score = read_json(path)
                value = score["top1_at"].get("20") if protocol == "knn" else score["top1"]
                if value is not None:
                    measured.scores.setdefault(protocol, {})[seed] = value
    return measured


def _note(table: Table) -> str:
    counts = {len(m.seeds) for m in table.measured if m.seeds}
    n = "-" if not counts else str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return (
        f"Profile {table.profile}: mean ± standard deviation over n = {n} seeds, measured here; the numbers in the column of "
        f"seeds lead to the runs. The last column is the paper's own (ImageNet 20 %, ResNet-18, 100 epochs; source: "
        f"{table.source}), at the q in brackets; the two are different experiments."
    )


def _plus_minus(measured: Measured, protocol: str, sign: str) -> str:
    mean, spread = measured.mean(protocol), measured.spread(protocol)
    if mean is None:
        return MISSING
    return f"{mean:.1f}" + (f"{sign}{spread:.1f}" if spread is not None else "")


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
