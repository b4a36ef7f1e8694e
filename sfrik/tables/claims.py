"""The paper's claims compared with the measurements of a profile, as contrasts of table cells with standard errors.

A contrast is a weighted sum of means over seeds, with signs such that the claim predicts a positive value. The claim holds if the
contrast exceeds two standard errors (from the spread over seeds), does not hold if it is below minus two, and is not decided
otherwise, which includes a single seed. With three seeds this is a reading aid, not a significance test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfrik.settings import grid_recipes, runs_root
from sfrik.settings.recipes import TUNE
from sfrik.system.files import write_text
from sfrik.tables.claim_pages import PAGES, edges_line, tables_line
from sfrik.tables.collect import Measured, Table, build_table, tables_with_scores
from sfrik.tables.definitions import grids, read_choice, rows_of, tables_of
from sfrik.tables.render import MISSING, markdown_table
from sfrik.tables.rows import DIMS, paper_figures

__all__ = ["Claim", "Contrast", "claims", "claims_as_markdown", "verdict", "write_claims"]

MARGIN = 2.0  # in standard errors


@dataclass(frozen=True)
class Contrast:
    """`constant` plus the sum of weight * mean over rows of one column; `rows` maps (method, q, `*labels`) to the weight."""

    title: str
    table: str
    column: str
    rows: Mapping[tuple, float]
    constant: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with its figures, and the contrasts that it predicts to be positive."""

    text: str
    paper: str
    contrasts: Sequence[Contrast]


def claims(profile: str = "digits") -> list[Claim]:
    """The claims that can be compared with measurements of a profile, with the contrasts whose tables it has."""
    found = [(claim, [c for c in claim.contrasts if c.table in tables_of(profile)]) for claim in _claims(profile)]
    return [replace(claim, contrasts=contrasts) for claim, contrasts in found if contrasts]


def _claims(profile: str) -> list[Claim]:
    figures = paper_figures()
    linear, kernels = figures["linear_in20"], figures["kernel_choice"]
    r50, transfer = figures["imagenet_r50"], figures["transfer_in20"]
    accuracies = (("linear_top1", "linear probing"), ("logistic_top1", "logistic regression"), ("knn_top1", "20-NN"))

    at_small, at_large = DIMS[profile][0], DIMS[profile][-1]

    def table1(rows: Mapping[tuple, float], at: str = "") -> list[Contrast]:
        return [Contrast(title + at, "table1", column, rows) for column, title in accuracies]

    def degrees(more: int, fewer: int, q: int) -> dict[tuple, float]:
        return {(f"SFRIK L={more}", q): 1.0, (f"SFRIK L={fewer}", q): -1.0}

    def kernel(name: str) -> list[Contrast]:
        rows = {("MMD", at_large, "truncated L=3"): 1.0, ("MMD", at_large, name): -1.0}
        return [Contrast(title, "table2", column, rows) for column, title in accuracies]

    def at(q: int) -> str:
        return f"q = {q}, batch 512"

    def plain(q: int) -> dict[tuple, float]:
        return {("SFRIK L=3 plain", q, "512"): -1.0}

    def fast(q: int) -> dict[tuple, float]:
        return {("VICReg", q, "512"): 1.0, ("SFRIK L=3", q, "512"): -1.0}

    small = [row.q for row in rows_of("table1", profile) if row.method == "SFRIK L=3" and row.q and row.q != at_large]
    tuned = {"photos": "VICReg with the coefficients chosen at each q, SFRIK's scale with q"}.get(
        profile, "VICReg keeps the coefficients chosen at the largest q, SFRIK's scale with q"
    )
    return [
        Claim(
            "Degree 1 is not enough: L = 2 is better than L = 1.",
            f"{linear['SFRIK_L2'][-1]} against {linear['SFRIK_L1_q8192']} % (q = 8192)",
            table1(degrees(2, 1, at_large)),
        ),
        Claim(
            "Degree 3 helps: L = 3 is better than L = 2.",
            f"{linear['SFRIK_L3_q8192']} against {linear['SFRIK_L2'][-1]} % (q = 8192)",
            table1(degrees(3, 2, at_large)) + [contrast for q in small for contrast in table1(degrees(3, 2, q), f", q = {q}")],
        ),
        Claim(
            "Three degrees suffice: the kernel truncated at L = 3 is better than the Gaussian kernel (here with eight degrees).",
            f"{kernels['truncated L=3']} against {kernels['exp(-t |u - v|^2)']} % (q = 8192)",
            kernel("exp(-s |u - v|^2)"),
        ),
        Claim(
            "The kernel C - |u - v|^p (here p = 1) is worse than the truncated one.",
            f"{kernels['truncated L=3']} against {kernels['C - |u - v|^p']} % (q = 8192)",
            kernel("C - |u - v|^p"),
        ),
        Claim(
            "VICReg needs a large q more than SFRIK does: from the largest q to the smallest, VICReg loses more accuracy "
            f"({tuned}).",
            f"from q = 8192 to 2048 VICReg loses {linear['VICReg'][-1] - linear['VICReg'][1]:.1f} points, "
            f"SFRIK L = 2 {linear['SFRIK_L2'][-1] - linear['SFRIK_L2'][1]:.1f}",
            table1(
                {
                    ("VICReg", at_large): 1.0,
                    ("VICReg", at_small): -1.0,
                    ("SFRIK L=2", at_large): -1.0,
                    ("SFRIK L=2", at_small): 1.0,
                }
            ),
        ),
        Claim(
            "As q grows, SFRIK needs less time and memory than VICReg (both with plain formulas and autograd, as in the paper; "
            "measured here at the paper's ratios q / n of 16, 8 and 4, and at q = n).",
            "whole steps, n = 2048: "
            + "; ".join(f"q = {q[1:]}: {figures['time_and_memory'][q]}" for q in ("q8192", "q16384", "q32768")),
            [
                *(
                    Contrast(
                        f"1 - {cost} of the loss / VICReg, both plain, {at(q)}",
                        "table6",
                        f"loss_{cost}_ratio",
                        plain(q),
                        1.0,
                    )
                    for cost in ("time", "memory")
                    for q in (8192, 4096, 2048, 512)
                ),
                Contrast(
                    "1 - time of a step / VICReg, both plain, q = 8192, batch 256",
                    "table6",
                    "step_time_ratio",
                    plain(8192),
                    1.0,
                ),
            ],
        ),
        Claim(
            "SFRIK still needs less if both are computed efficiently, VICReg with the Gram matrix if q > n.",
            "not compared",
            [
                *(
                    Contrast(f"time, VICReg - SFRIK, in products of n x n x q, {at(q)}", "table6", "loss_products", fast(q))
                    for q in (8192, 4096, 2048, 512)
                ),
                *(
                    Contrast(f"memory, VICReg - SFRIK, MiB, {at(q)}", "table6", "loss_mib", fast(q))
                    for q in (8192, 4096, 2048, 512)
                ),
                Contrast("time of a step, VICReg - SFRIK, ms, q = 8192, batch 256", "table6", "step_ms", fast(8192)),
            ],
        ),
        Claim(
            "With 1 % of the labels VICReg is better than SFRIK (the fine-tuning rates were chosen for SFRIK, L = 3, q = 512).",
            f"{r50['VICReg q=8192'][5]} against {r50['SFRIK L=3 q=8192'][5]} % (ResNet-50, q = 8192)",
            [
                Contrast(f"1 % of labels, L = 3, q = {q}", "table4", "semi1_top1", {("VICReg", q): 1.0, ("SFRIK L=3", q): -1.0})
                for q in (at_large, at_small)
            ],
        ),
        Claim(
            "SFRIK's features transfer to other images better than VICReg's.",
            f"Places205 top-1 {transfer['SFRIK_L3'][0]} against {transfer['VICReg'][0]} % (q = 8192)",
            [
                Contrast(
                    "scikit-learn's digits", "table3", "transfer_top1", {("SFRIK L=3", at_large): 1.0, ("VICReg", at_large): -1.0}
                )
            ],
        ),
    ]


def value_and_error(contrast: Contrast, table: Table) -> tuple[float, float | None, int] | None:
    """The contrast, its standard error over seeds (None where a cell has one) and the smallest n; None if a cell is missing."""
    rows: dict[tuple, Measured] = {(m.row.method, m.row.q, *m.row.labels.values()): m for m in table.measured}
    value, variance, least = contrast.constant, 0.0, math.inf
    for key, weight in contrast.rows.items():
        mean, spread = rows[key].mean(contrast.column), rows[key].spread(contrast.column)
        if mean is None:
            return None
        n = rows[key].n(contrast.column)
        value, least = value + weight * mean, min(least, n)
        variance += math.nan if spread is None else weight**2 * spread**2 / n
    return value, None if math.isnan(variance) else math.sqrt(variance), int(least)


def _signed(value: float, error: float | None, contrast: Contrast) -> str:
    digits = 3 if contrast.column.endswith("ratio") else 2
    return f"{value:+.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def verdict(value: float, error: float | None) -> str:
    """Whether a contrast is positive by more than two standard errors; not decided without an error."""
    if error is None:
        return "not decided (one seed)"
    if abs(value) <= MARGIN * error:
        return "not decided"
    return "holds" if value > 0 else "does not hold"


def claims_as_markdown(profile: str = "digits", root: str | Path | None = None) -> str:
    """A Markdown table with one line per contrast: the claim, the paper's figures, the measured difference, the verdict."""
    found_claims = claims(profile)
    names = dict.fromkeys(contrast.table for claim in found_claims for contrast in claim.contrasts)
    tables = {name: build_table(name, profile, root) for name in names}
    header = ["claim", "the paper", "measured here", "difference ± standard error", "n", "verdict"]
    rows = []
    for claim in found_claims:
        text = [claim.text.replace("|", "‖"), claim.paper]
        for contrast in claim.contrasts:
            row = [*text, f"[{contrast.title}](tables/{contrast.table}.md)"]
            text = ["", ""]  # only in the first line of a claim
            found = value_and_error(contrast, tables[contrast.table])
            if found is None:
                rows.append([*row, MISSING, MISSING, "not measured"])
                continue
            value, error, n = found
            rows.append([*row, _signed(value, error, contrast), str(n), verdict(value, error)])
    return "\n".join(markdown_table(header, rows))


def write_claims(profile: str = "digits", root: str | Path | None = None) -> Path | None:
    """Write <root>/<profile>/README.md, for a profile that has such a page (`sfrik.tables.claim_pages`); None for others."""
    if profile not in PAGES:
        return None
    path = Path(root or runs_root()) / profile / "README.md"
    images = build_table("table1", profile, root).title.partition("; ")[2]
    scored = tables_with_scores(profile, root)
    chosen = any(read_choice(profile, grid, root) for grid in grids(profile))
    edges = edges_line(_choices_at_an_edge(profile, root)) if chosen else ""
    parts = {"images": images, "table": claims_as_markdown(profile, root), "edges": edges, "tables": tables_line(scored)}
    write_text(path, PAGES[profile].format(**parts))
    return path


def _choices_at_an_edge(profile: str, root: str | Path | None) -> list[str]:
    """The recipes chosen in table 9 that are the first or the last of their grid; in a grid of several settings, with these."""
    found = []
    for grid, recipes in grids(profile).items():
        chosen = read_choice(profile, grid, root)
        points = grid_recipes(profile, f"{TUNE}{grid}")
        values = {key: [point[key] for point in points.values()] for point in points.values() for key in point}
        if chosen and points:
            point = points[chosen]
            edges = [key for key, of in values.items() if len(set(of)) > 1 and point[key] in (min(of), max(of))]
            found += [f"{chosen.split('/')[-1]} ({', '.join(edges)})"] if edges else []
        elif chosen and chosen in (recipes[0], recipes[-1]):
            found += [chosen.split("/")[-1]]
    return found
