"""The source of the thresholds of `sfrik diagnose`, and whether the loss ranks the digits runs as the probes do.

    python benchmarks/diagnosis.py                   trains missing runs (a minute per run on one core), measures, renders
    python benchmarks/diagnosis.py --only ranking    only the ranks, from the committed scores: seconds
    python benchmarks/diagnosis.py --render          only the tables of docs/diagnosis.md and the figures

The runs go to --folder, where finished ones are kept; the numbers go to results/digits/diagnosis/diagnosis.json and ranking.json.

A run's group follows from its settings, not from what was measured: "healthy" runs are recipes of the tables; "degree 1" runs
have a kernel of degree 1 only, "alignment alone" runs no regulariser: both collapse. "Weakened" runs have a small weight, or a
part, of a regulariser; they do not determine the thresholds. The threshold of the effective rank is between the collapsed groups
and the healthy one; that of the uniformity is in the widest gap among the collapsed runs, above which they are one point.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import ranking
import trained

from sfrik.diagnostics import Measures
from sfrik.evaluate import Diagnosis
from sfrik.plots.runs import draw_diagnosis
from sfrik.plots.tables import save_figure, style
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
    parser.add_argument("--only", choices=("runs", "ranking"), help="one half")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.only != "ranking" and not options.render:
        rows = [measured(name, seed, options.folder) for name, (*_, seeds) in RUNS.items() for seed in range(seeds)]
        write_json(NUMBERS / "diagnosis.json", {"gaps": gaps(rows, committed()), "runs": rows, "committed": committed()})
    if options.only != "runs" and not options.render:
        write_json(NUMBERS / "ranking.json", ranking.ranking(ranking.scored_runs()))
    style()
    save_figure(figure(), FIGURES / "diagnosis")
    save_figure(
        ranking.draw([ranking.Scored(**run) for run in read_json(NUMBERS / "ranking.json")["runs"]]),
        FIGURES / "diagnosis_ranking",
    )
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def measured(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The row of a run, which is trained unless it is there: its diagnosis, log and 20-NN."""
    group, recipe, changes, _ = RUNS[name]
    row = trained.measured(folder / name / f"seed{seed}", f"digits/{recipe}", seed, changes)
    if name not in SHOWN.values() or seed:
        row["spectrum"] = []
    return {"run": name, "group": group, **row}


def committed() -> list[dict[str, Any]]:
    """What the logs of the committed runs of the tables say at the end."""
    return [
        {
            "run": run.recipe,
            "seed": run.seed,
            "group": "degree 1" if run.recipe == "sfrik_l1_q512" else "healthy",
            "commit": run.commits[0],
            "log": {name: getattr(run, name) for name in ("loss", *ranking.MEASURES)},
        }
        for run in ranking.scored_runs()
    ]


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


def rendered(page: str) -> str:
    """The page with its tables rendered again from the recorded numbers."""
    for name, lines in {"runs": table_of_runs(), "gaps": table_of_gaps(), "ranking": table_of_ranks()}.items():
        part = f"<!-- {name} -->\n\n" + "\n".join(lines) + f"\n\n<!-- /{name} -->"
        page = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, part=part: part, page, flags=re.DOTALL)
    return page


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


def table_of_ranks() -> list[str]:
    numbers = read_json(NUMBERS / "ranking.json")
    head = ["of", "over", "linear probing", "logistic regression", "20-NN"]
    rows = [["loss", "seeds of one recipe, averaged", *(cell(own, "p") for own in numbers["seeds"].values())]]
    for family, own in numbers["families"].items():
        rows.append(["loss", f"{family}, q and seeds", *(cell(one, "p") for one in own.values())])
    for scope, measures in numbers["measures"].items():
        for measure, own in measures.items():
            rows.append([measure.replace("_", " "), f"recipes: {scope}", *(cell(one, "p of means") for one in own.values())])
    return table(head, rows)


def cell(own: dict[str, Any], p: str) -> str:
    between = f" [{own['interval'][0]:.2f}, {own['interval'][1]:.2f}]" if "interval" in own else ""
    recipes = f" of {own['recipes']} recipes" if "recipes" in own else ""
    return f"{own['rho']:+.2f}{between}, p {own[p]:.2g} ({own['runs']} runs{recipes})"


if __name__ == "__main__":
    main()
