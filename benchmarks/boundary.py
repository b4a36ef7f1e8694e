"""The effective rank that `sfrik.kernels.predicted_rank` predicts, against digits runs of several trade-offs and kernels.

    python benchmarks/boundary.py --folder exp/boundary     about a minute per run on one core; finished runs are kept

The correlations of the functions that the network learns are not known beforehand. They are taken as mu_k = 1 - a k^p, with a and
p fitted to the effective ranks of all runs but the one that is predicted. Writes results/digits/diagnosis/boundary.json, the
figure boundary and the tables of docs/choosing.md.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import trained
from matplotlib.figure import Figure
from pages import with_parts
from scipy.optimize import minimize

from sfrik.evaluate.collapse import LEAST_RANK
from sfrik.kernels import predicted_rank
from sfrik.plots.style import look, save_figure, style
from sfrik.system.files import read_json, write_json

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs/choosing.md", ROOT / "results/digits/figures"
NUMBERS = ROOT / "results/digits/diagnosis/boundary.json"

# name: q, b_1, b_2, alignment weight. The trade-off lambda is q / alignment weight.
RUNS: dict[str, tuple[int, float, float, float]] = {
    **{f"b2_1_sim{sim}": (512, 1.0, 1.0, sim) for sim in (16, 51, 160, 512, 1600, 5100)},
    **{f"b2_40_sim{sim}": (512, 1.0, 40.0, sim) for sim in (640, 2048, 6400, 20480, 64000, 204800)},
    **{f"q128_b2_40_sim{sim}": (128, 1.0, 40.0, sim) for sim in (160, 512, 1600, 5120, 51200)},
    **{f"b1_{b1}": (512, b1, 0.0, 2048.0) for b1 in (1, 41, 1000)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("exp/boundary"), help="where the runs are trained, and kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--render", action="store_true", help="only the figure and the tables, from the recorded numbers")
    options = parser.parse_args()
    if not options.render:
        found = trained.measured_runs([arguments(name, options.folder) for name in RUNS], options.jobs)
        rows = [row_of(name, row) for name, row in zip(RUNS, found, strict=True)]
        a, p = fitted(rows)
        write_json(NUMBERS, {"a": a, "p": p, "runs": with_predictions(rows)})
    rows = read_json(NUMBERS)["runs"]
    style()
    save_figure(draw(rows), FIGURES / "boundary")
    PAGE.write_text(with_parts(PAGE.read_text(encoding="utf-8"), {"boundary": table(rows)}), encoding="utf-8")


def arguments(name: str, folder: Path) -> tuple[Path, str, int, dict[str, Any]]:
    """Folder, recipe, seed and changed settings of a run."""
    q, b1, b2, sim = RUNS[name]
    changes = {**trained.STEM, "base_lr": 10.0, "sfrik_weights": f"{b1}-{b2}" if b2 else f"{b1}", "sfrik_sim_coeff": float(sim)}
    return folder / name, f"digits/sfrik_l2_q{q}", 0, changes


def row_of(name: str, found: dict[str, Any]) -> dict[str, Any]:
    q, b1, b2, sim = RUNS[name]
    kept = ("seed", "commit", "knn20", "logistic", "verdict", "effective_rank", "n", "uniformity", "alignment")
    return {"run": name, "q": q, "trade_off": q / sim, "b1": b1, "b2": b2, **{key: found[key] for key in kept}}


def with_predictions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with "predicted", the effective rank by the law that all other rows give, and that law."""
    result = []
    for left_out in rows:
        a, p = fitted([row for row in rows if row is not left_out])
        result.append({**left_out, "predicted": prediction(left_out, a, p), "a": a, "p": p})
    return result


def fitted(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """a and p with the least sum of squared errors of the logarithm of the effective rank."""

    def error(x: np.ndarray) -> float:
        return sum(math.log(prediction(row, *np.exp(x)) / row["effective_rank"]) ** 2 for row in rows)

    starts = [minimize(error, np.log([a, p]), method="Nelder-Mead") for a in (0.002, 0.02, 0.2) for p in (0.3, 1.0)]
    a, p = np.exp(min(starts, key=lambda found: found.fun).x)
    return float(a), float(p)


def prediction(row: dict[str, Any], a: float, p: float) -> float:
    """The effective rank of a run if the correlations are 1 - a k^p."""
    correlations = np.maximum(-1, 1 - a * np.arange(1.0, row["q"]) ** p)
    return predicted_rank(correlations, row["trade_off"] * row["b1"], row["trade_off"] * row["b2"])


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| q | λ b₁ | λ b₂ | effective rank | predicted from the others | verdict | 20-NN, % |", "| --- " * 7 + "|"]
    for row in sorted(rows, key=lambda row: (row["q"], row["b2"], row["trade_off"] * max(row["b1"], row["b2"]))):
        strengths = [f"{row['trade_off'] * row[name]:.3g}" for name in ("b1", "b2")]
        ranks = [f"{row[name]:.3g}" for name in ("effective_rank", "predicted")]
        lines.append(f"| {row['q']} | {' | '.join(strengths + ranks)} | {row['verdict']} | {row['knn20']:.1f} |")
    errors = [abs(math.log(row["predicted"] / row["effective_rank"])) for row in rows]
    same = sum((row["predicted"] < LEAST_RANK) == (row["effective_rank"] < LEAST_RANK) for row in rows)
    lines += [
        "",
        f"{len(rows)} runs of 16 epochs, seed 0. Median factor between predicted and measured rank: "
        f"{math.exp(float(np.median(errors))):.2f}, the largest {math.exp(max(errors)):.2f}; on the same side of the threshold "
        f"of `sfrik diagnose` ({LEAST_RANK:g}): {same} of {len(rows)}.",
    ]
    return lines


def draw(rows: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    groups = {
        "$b_2$ = 1, $q$ = 512": [row for row in rows if row["b2"] == 1],
        "$b_2$ = 40, $q$ = 512": [row for row in rows if row["b2"] == 40 and row["q"] == 512],
        "$b_2$ = 40, $q$ = 128": [row for row in rows if row["q"] == 128],
    }
    for place, (label, group) in enumerate(groups.items()):
        group = sorted(group, key=lambda row: row["trade_off"] * row["b2"])
        strength = [row["trade_off"] * row["b2"] for row in group]
        shape = look(label, place)
        axes.plot(strength, [row["effective_rank"] for row in group], **{**shape, "linestyle": ""}, label=label)
        axes.plot(strength, [row["predicted"] for row in group], **{**shape, "marker": ""})
    axes.axhline(LEAST_RANK, color="0.6", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel=r"$\lambda b_2$, price of degree 2 for a squared distance of views of 1")
    axes.set_ylabel("effective rank")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
