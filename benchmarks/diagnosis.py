"""The source of the thresholds of `sfrik diagnose` and their errors, and whether its measures rank the runs of a grid.

    python benchmarks/diagnosis.py                   trains missing runs (a minute per run on one core), measures, renders
    python benchmarks/diagnosis.py --grids FOLDER    only the ranks, from the runs of grids (benchmarks/ranking.py): seconds
    python benchmarks/diagnosis.py --render          only the tables of docs/diagnosis.md and the figures

The runs go to --folder, where finished ones are kept; the numbers go to results/digits/diagnosis/diagnosis.json and ranking.json.
Both name the commits of their runs: they are records, which later runs of the tables do not change.

A run's group follows from its settings, not from what was measured: "healthy" runs are recipes of the tables; "degree 1" runs
have a kernel of degree 1 only, "alignment alone" runs no regulariser: both collapse. "Weakened" runs have a small weight, or a
part, of a regulariser; they do not determine the thresholds. The threshold of the effective rank is between the collapsed groups
and the healthy one; that of the uniformity is in the widest gap among the collapsed runs, above which they are one point.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import left_out
import ranking
import trained
from pages import with_parts

from sfrik.diagnostics import Measures
from sfrik.evaluate import Diagnosis
from sfrik.evaluate.collapse import LEAST_RANK
from sfrik.plots.runs import draw_diagnosis
from sfrik.plots.style import save_figure, style
from sfrik.runs.folder import Run
from sfrik.system.files import read_json, write_json

ROOT = Path(__file__).parents[1]
PAGE, NUMBERS, FIGURES = ROOT / "docs/diagnosis.md", ROOT / "results/digits/diagnosis", ROOT / "results/digits/figures"

# name: (group, recipe, changed settings, seeds)
RUNS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "sfrik_l2_q512": ("healthy", "sfrik_l2_q512", {}, 2),
    "sfrik_l3_q512": ("healthy", "sfrik_l3_q512", {}, 1),
    "sfrik_l2_q128": ("healthy", "sfrik_l2_q128", {}, 1),
    "auh_q512": ("healthy", "auh_q512", {}, 1),
    "vicreg_q512": ("healthy", "vicreg_q512", {}, 2),
    "simclr_q512": ("healthy", "simclr_q512", {}, 2),
    "kernel_rbf": ("healthy", "kernel_rbf", {}, 1),
    "sfrik_l1_q512": ("degree 1", "sfrik_l1_q512", {}, 3),
    "no_mmd": ("alignment alone", "sfrik_l2_q512", {"sfrik_mmd_coeff": 0}, 2),
    "auh_no_unif": ("alignment alone", "auh_q512", {"auh_unif_coeff": 0}, 1),
    "vicreg_alignment": ("alignment alone", "vicreg_q512", {"vicreg_std_coeff": 0, "vicreg_cov_coeff": 0}, 1),
    "vicreg_no_cov": ("weakened", "vicreg_q512", {"vicreg_cov_coeff": 0}, 2),
    "b2_1": ("weakened", "sfrik_l2_q512", {"sfrik_weights": "1.0-1.0"}, 1),
    "b2_0.1": ("weakened", "sfrik_l2_q512", {"sfrik_weights": "1.0-0.1"}, 1),
    "mmd_0.1": ("weakened", "sfrik_l2_q512", {"sfrik_mmd_coeff": 0.1}, 1),
    "mmd_0.01": ("weakened", "sfrik_l2_q512", {"sfrik_mmd_coeff": 0.01}, 1),
    "random_weights": ("not trained", "random_weights", {}, 1),
}
SHOWN = {"SFRIK L=2": "sfrik_l2_q512", "VICReg": "vicreg_q512", "SFRIK L=1": "sfrik_l1_q512", "alignment alone": "no_mmd"}
GROUPS = {"healthy": "o", "degree 1": "v", "alignment alone": "X", "weakened": "s"}
COLLAPSED = ("degree 1", "alignment alone")
ROUND_OFF = 1e-7  # of a uniformity in float32: what is below counts as this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("exp/diagnosis"), help="where the runs are trained, and kept")
    parser.add_argument("--grids", type=Path, help="train nothing: the folder of the runs of grids, <recipe>/<point>")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.grids:
        rows = [*ranking.read_grids(options.grids), *ranking.trade_offs(NUMBERS / "boundary.json")]
        write_json(NUMBERS / "ranking.json", ranking.ranking(rows))
    elif not options.render:
        rows = [measured(name, seed, options.folder) for name, (*_, seeds) in RUNS.items() for seed in range(seeds)]
        write_json(NUMBERS / "diagnosis.json", {"gaps": gaps(rows, committed()), "runs": rows, "committed": committed()})
    style()
    save_figure(figure(), FIGURES / "diagnosis")
    save_figure(ranking.draw(read_json(NUMBERS / "ranking.json")["runs"]), FIGURES / "diagnosis_ranking")
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def measured(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The row of a run, which is trained unless it is there: its diagnosis, log and 20-NN."""
    group, recipe, changes, _ = RUNS[name]
    row = trained.measured(folder / name / f"seed{seed}", f"digits/{recipe}", seed, changes)
    if name not in SHOWN.values() or seed:
        row["spectrum"] = []
    return {"run": name, "group": group, **row}


def committed() -> list[dict[str, Any]]:
    """What the logs of the committed runs of the tables say at the end; not those of the grids of table 9."""
    found = []
    for folder in sorted(NUMBERS.parent.glob("*/seed*")):
        recipe, lines = folder.parent.name, Run(folder).epochs()
        if lines and not recipe.startswith("tune_") and "-" not in folder.name:  # seed0-...: other settings
            found.append(
                {
                    "run": recipe,
                    "seed": int(folder.name.removeprefix("seed")),
                    "group": "degree 1" if recipe == "sfrik_l1_q512" else "healthy",
                    "commit": read_json(folder / "provenance.json")["commit"],
                    "log": {name: lines[-1][name] for name in trained.LOGGED},
                }
            )
    return found


def gaps(rows: list[dict[str, Any]], logs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each threshold: the values on either side, the nearest of each, and the middle of the two in logarithms.

    Both by the weights, 2,048 images, and by the logs, one batch of 256.
    """
    collapsed, healthy = values("effective_rank", COLLAPSED, rows, logs), values("effective_rank", ("healthy",), rows, logs)
    spread = sorted(max(-value, ROUND_OFF) for value in values("uniformity", COLLAPSED, rows, logs))
    widest = max(range(1, len(spread)), key=lambda k: spread[k] / spread[k - 1])
    return {"effective_rank": gap(collapsed, healthy), "uniformity": gap(spread[:widest], spread[widest:])}


def values(measure: str, groups: tuple[str, ...], rows: list[dict[str, Any]], logs: list[dict[str, Any]]) -> list[float]:
    mine = [row for row in rows if row["group"] in groups]
    told = [row["log"][measure] for row in [*mine, *logs] if row["group"] in groups]
    return [*(row[measure] for row in mine), *told]


def gap(below: list[float], above: list[float]) -> dict[str, float]:
    low, high = max(below), min(above)
    return {
        "below": len(below),
        "least": min(below),
        "low": low,
        "above": len(above),
        "high": high,
        "largest": max(above),
        "ratio": high / low,
        "middle": math.sqrt(low * high),
    }


def figure():
    """Four runs as `sfrik diagnose` draws them, and all runs on the plane of the verdicts."""
    rows = [row for row in read_json(NUMBERS / "diagnosis.json")["runs"] if row["group"] in GROUPS]
    first = {row["run"]: diagnosis(row) for row in reversed(rows)}
    drawn = draw_diagnosis({label: first[name] for label, name in SHOWN.items()})
    plane = drawn.axes[2]
    for group, marker in GROUPS.items():
        points = [(max(-row["uniformity"], 1e-4), row["effective_rank"]) for row in rows if row["group"] == group]
        plane.plot(
            *zip(*points, strict=True),
            marker,
            markerfacecolor="none",
            color="#555555",
            markersize=6,
            zorder=1,
            label=f"all: {group}",
        )
    drawn.legends[0].remove()
    drawn.legend(*plane.get_legend_handles_labels(), loc="outside right center")
    return drawn


def diagnosis(row: dict[str, Any]) -> Diagnosis:
    """A diagnosis from its numbers."""
    names = Diagnosis.__dataclass_fields__
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items() if key in names}
    return Diagnosis(**{**values, "features": Measures(**row["features"])})


def errors_by_settings(numbers: dict[str, Any]) -> dict[str, Any]:
    """The errors of the threshold of the effective rank on a method that did not determine it, by the groups of the settings."""
    values = []
    for row in [*numbers["runs"], *numbers["committed"]]:
        if row["group"] in (*COLLAPSED, "healthy"):
            method = ranking.method_of(row.get("recipe", row["run"]))
            ranks = [row["log"]["effective_rank"], *([row["effective_rank"]] if "effective_rank" in row else [])]
            values += [left_out.Value(method, rank, row["group"] in COLLAPSED) for rank in ranks]
    return left_out.left_out(values, LEAST_RANK)


def errors_by_outcome(numbers: dict[str, Any], scored: dict[str, Any]) -> dict[str, Any]:
    """The same by outcome: which runs of this page, of the trade-off and of the grids lose more than 10 points by 20-NN."""
    own = [
        (ranking.method_of(row["recipe"]), row["effective_rank"], row["knn20"])
        for row in numbers["runs"]
        if row["group"] in GROUPS
    ]
    by_images: dict[int, list[tuple[str, float, float]]] = {1000: own}
    for row in scored["runs"]:
        by_images.setdefault(row["images"], []).append((ranking.method_of(row["grid"]), row["effective_rank"], row["knn"]))
    return left_out.left_out([value for runs in by_images.values() for value in left_out.with_outcome(runs)], LEAST_RANK)


def rendered(page: str) -> str:
    """The page with its tables rendered again from the recorded numbers."""
    numbers, scored = read_json(NUMBERS / "diagnosis.json"), read_json(NUMBERS / "ranking.json")
    tables = {
        "left out by settings": left_out.table(errors_by_settings(numbers)),
        "left out by outcome": left_out.table(errors_by_outcome(numbers, scored)),
        "spreads": ranking.table_of_spreads(scored),
        "ranking": ranking.table_of_ranks(scored),
        "choices": ranking.table_of_choices(scored),
    }
    parts = {name: table(head, rows) for name, (head, rows) in tables.items()}
    return with_parts(page, {"runs": table_of_runs(), "gaps": table_of_gaps(), "loss": ranking.lines_of_loss(scored), **parts})


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]


def table_of_runs() -> list[str]:
    head = [
        "run",
        "seeds",
        "group",
        "verdict",
        "−uniformity",
        "effective rank",
        "alignment",
        "energy share, degrees 1, 2",
        "20-NN, %",
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_json(NUMBERS / "diagnosis.json")["runs"]:
        found.setdefault(row["run"], []).append(row)
    return table(head, [row_of_run(name, rows) for name, rows in found.items()])


def row_of_run(name: str, rows: list[dict[str, Any]]) -> list[str]:
    changes = ", ".join(f"{key} = {value}" for key, value in rows[0]["changes"].items())
    what = f"{rows[0]['recipe'].removeprefix('digits/')}, {changes}" if changes else name
    shares = [", ".join(f"{share:.2f}" for share in row["energy_share"][:2]) or "–" for row in rows]
    return [
        what,
        str(len(rows)),
        rows[0]["group"],
        " / ".join(dict.fromkeys(row["verdict"] for row in rows)),
        each(-row["uniformity"] for row in rows),
        each(row["effective_rank"] for row in rows),
        each(row["alignment"] for row in rows),
        "; ".join(shares),
        "; ".join(f"{row['knn20']:.1f}" for row in rows),
    ]


def each(values) -> str:
    return "; ".join(f"{value:.3g}" if value else "0" for value in values)


def table_of_gaps() -> list[str]:
    words = {
        "effective_rank": ("effective rank", "collapsed", "healthy"),
        "uniformity": ("−uniformity, of collapsed runs", "one point", "apart"),
    }
    rows = []
    for name, (label, below, above) in words.items():
        own = read_json(NUMBERS / "diagnosis.json")["gaps"][name]
        low = f"{below}, {own['below']} values: {own['least']:.2g} to {own['low']:.2g}"
        high = f"{above}, {own['above']} values: {own['high']:.3g} to {own['largest']:.3g}"
        rows.append([label, low, high, f"{own['ratio']:.2g}", f"{own['middle']:.2g}"])
    return table(["measure", "below", "above", "ratio of the nearest two", "middle"], rows)


if __name__ == "__main__":
    main()
