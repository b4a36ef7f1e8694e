"""Do alignment, uniformity, effective rank, excess and loss rank the runs of a grid of trade-off and rate, within a method?

    python benchmarks/diagnosis.py --only ranking --grids FOLDER     FOLDER/<recipe>/<point>/ are runs with knn_tune.json and
                                                                     logistic_tune.json, the scores of the tuning split

Runs that were tuned differ by about a point, which is the error of their scores: no measure could rank them. A grid has worse
runs. Only runs of one method and q are compared. Alignment, uniformity, effective rank and the relative excess of the MMD mean
the same at each point of a grid. The loss does not: it is compared only between runs of one weight, which differ in the rate.

Spearman's rank correlation throughout. p is two-sided, from permutations within the groups that are compared; intervals are the
middle 95 % of bootstrap draws of runs, for groups of at least eight. Over several groups: the mean of their correlations,
weighted by n - 1.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from sfrik.plots.style import COLOURS, MARKERS
from sfrik.runs.folder import Run
from sfrik.system.files import read_json

SCORES = {"knn": "20-NN", "logistic": "logistic regression"}
# measure: its name on the page, and whether the usual reading is that more is better
MEASURES = {
    "effective_rank": ("effective rank", True),
    "uniformity": ("uniformity", False),
    "alignment": ("alignment", False),
    "relative_excess": ("relative excess", False),
}
METHODS = {
    "sfrik_l1": "SFRIK L=1",
    "sfrik_l2": "SFRIK L=2",
    "sfrik_l3": "SFRIK L=3",
    "sigreg": "SIGReg",
    "auh": "AUH",
    "vicreg": "VICReg",
    "simclr": "SimCLR",
    "kernel": "other kernels",
}
WEIGHT_AND_RATE, TRADE_OFF = "weight and rate", "trade-off to collapse"  # kinds of grids
FEWEST = 8  # runs of a group that a bootstrap interval needs
DRAWS = 2000
Z_POWER = 1.9600 + 0.8416  # normal quantiles of a two-sided test at 5 % and of a power of 80 %

Groups = list[tuple[np.ndarray, np.ndarray]]  # a measure and a score, of the runs of each group


def method_of(recipe: str) -> str:
    """The method of a recipe, such as digits/sfrik_l2_q512."""
    name = recipe.removeprefix("digits/").removeprefix("crops_")
    return next((method for stem, method in METHODS.items() if name.startswith(stem)), name)


def read_grids(folder: Path) -> list[dict[str, Any]]:
    """The runs of the grids in a folder, each <recipe>/<point>; those without scores are left out."""
    rows = []
    for path in sorted(folder.glob("*/*/logistic_tune.json")):
        run = Run(path.parent)
        logistic, knn, lines = read_json(path), read_json(run.folder / "knn_tune.json"), run.epochs()
        settings = read_json(run.folder / "settings.json")["settings"]
        rows.append(
            {
                "kind": WEIGHT_AND_RATE,
                "grid": run.folder.parent.name,
                "point": run.folder.name,
                "weight": re.split("_lr", run.folder.name)[0],
                "rate": settings["base_lr"],
                "seed": settings["seed"],
                "commit": read_json(run.folder / "provenance.json")["commit"],
                "images": logistic["images"],
                "knn": knn["top1_at"]["20"],
                "logistic": logistic["top1"],
                **{name: lines[-1].get(name) for name in ("loss", *MEASURES)},
            }
        )
    return rows


def trade_offs(path: Path) -> list[dict[str, Any]]:
    """The runs of benchmarks/boundary.py as grids of the trade-off, scored on the test images and measured from weights.

    The kernels of degree 1 only, each with one trade-off, are left out.
    """
    return [
        {
            "kind": TRADE_OFF,
            "grid": f"sfrik_l2_q{row['q']}, b2 = {row['b2']:g}",
            "point": row["run"],
            "weight": row["run"],
            "rate": None,
            "seed": row["seed"],
            "commit": row["commit"],
            "images": 1000,
            **{name: row.get({"knn": "knn20"}.get(name, name)) for name in ("knn", "logistic", "loss", *MEASURES)},
        }
        for row in read_json(path)["runs"]
        if row["b2"]
    ]


def ranking(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What could be seen in each grid and over all, and the correlations."""
    grids: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grids.setdefault(row["grid"], []).append(row)
    grids = {name: own for name, own in grids.items() if len(own) >= 5}
    weights: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in (row for own in grids.values() for row in own):
        weights.setdefault((row["grid"], row["weight"]), []).append(row)
    rates = [own for own in weights.values() if len(own) >= 3]
    kinds: dict[str, list[list[dict[str, Any]]]] = {}
    for own in grids.values():
        kinds.setdefault(own[0]["kind"], []).append(own)
    return {
        "grids": {name: of_groups([own]) for name, own in grids.items()},
        "kinds": {kind: of_groups(own) for kind, own in kinds.items()},
        "loss at one weight": {score: correlated(pairs(rates, "loss", score)) for score in SCORES} if rates else {},
        "runs": rows,
    }


def of_groups(groups: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Of grids: for each score its spread and error, and for each measure the correlation and the cost of choosing by it."""
    found: dict[str, Any] = {"runs": sum(map(len, groups)), "grids": len(groups)}
    for score in SCORES:
        values = [np.array([row[score] for row in own]) for own in groups]
        images = np.array([row["images"] for own in groups for row in own])
        share = np.concatenate(values) / 100
        freedom = sum(len(own) - 1 for own in values)
        found[score] = {
            "least": float(min(map(np.min, values))),
            "largest": float(max(map(np.max, values))),
            "sd": math.sqrt(sum(((own - own.mean()) ** 2).sum() for own in values) / freedom),
            "error": 100 * math.sqrt(float(np.mean(share * (1 - share) / images))),
            "random choice": float(np.mean([own.max() - own.mean() for own in values])),
            "measures": {},
        }
        for name, (_, more) in MEASURES.items():
            some = [own for own in groups if all(row[name] is not None for row in own)]
            if not some:
                continue
            chosen = [(max if more else min)(own, key=lambda row, name=name: row[name]) for own in some]
            lost = [max(row[score] for row in own) - row[score] for own, row in zip(some, chosen, strict=True) for row in [row]]
            found[score]["measures"][name] = {**correlated(pairs(some, name, score)), "choice": float(np.mean(lost))}
    return found


def pairs(groups: list[list[dict[str, Any]]], measure: str, score: str) -> Groups:
    return [(np.array([row[measure] for row in own]), np.array([row[score] for row in own])) for own in groups]


def correlated(groups: Groups) -> dict[str, Any]:
    """The mean correlation within groups, its interval and p, and the smallest true one that so many runs could have shown."""
    generator, found = np.random.default_rng(0), mean_rho(groups)
    permuted = mean_rho([(x, generator.permuted(np.tile(y, (DRAWS, 1)), axis=1)) for x, y in groups])
    least = min(len(x) for x, _ in groups)
    draws = [generator.integers(0, len(x), (DRAWS, len(x))) for x, _ in groups]
    drawn = mean_rho([(x[draw], y[draw]) for (x, y), draw in zip(groups, draws, strict=True)])
    return {
        "rho": float(found),
        "interval": [float(end) for end in np.quantile(drawn, [0.025, 0.975])] if least >= FEWEST else None,
        "p": float((1 + (np.abs(permuted) >= abs(found) - 1e-9).sum()) / (1 + DRAWS)),
        "runs": sum(len(x) for x, _ in groups),
        "groups": len(groups),
        "detectable": detectable([len(x) for x, _ in groups]),
    }


def mean_rho(groups: Groups) -> np.ndarray:
    """The mean over groups of `rho`, weighted by n - 1."""
    weights = [x.shape[-1] - 1 for x, _ in groups]
    return sum(weight * rho(x, y) for weight, (x, y) in zip(weights, groups, strict=True)) / sum(weights)


def rho(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; 0 where one of them is constant."""
    first, second = (rankdata(values, axis=-1) - (np.shape(values)[-1] + 1) / 2 for values in (first, second))
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    return (first * second).sum(axis=-1) / np.where(scale > 0, scale, 1)


def detectable(counts: Sequence[int]) -> float:
    r"""The smallest true correlation within groups of so many runs that a two-sided test at 5 % sees with a power of 80 %.

    By Fisher's transform, whose variance for Spearman's is about 1.06 / (n - 3) (Fieller, Hartley and Pearson, 1957); for groups
    of three, for which there is none, by the variance of the correlation without dependence, 1 / (n - 1).
    """
    if min(counts) > 3:
        return math.tanh(Z_POWER * math.sqrt(1.06 / sum(n - 3 for n in counts)))
    return min(1.0, Z_POWER / math.sqrt(sum(n - 1 for n in counts)))


def table_of_spreads(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What each grid could show: the spread of its scores, their error, and the smallest detectable correlation."""
    head = ["grid", "runs", "20-NN, %", "sd / error", "logistic regression, %", "sd / error", "smallest detectable correlation"]
    rows = []
    for name, own in _lines(numbers):
        cells = [name, str(own["runs"])]
        for score in SCORES:
            cells += [f"{own[score]['least']:.1f} to {own[score]['largest']:.1f}"]
            cells += [f"{own[score]['sd']:.1f} / {own[score]['error']:.1f}"]
        rows.append([*cells, f"{own['knn']['measures']['effective_rank']['detectable']:.2f}"])
    return head, rows


def table_of_ranks(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The correlation of each measure with the scores, by grid and by kind of grid."""
    head = ["grid", "score", *(label for label, _ in MEASURES.values())]
    return head, [
        [name, label, *_cells(own[score]["measures"])] for name, own in _lines(numbers) for score, label in SCORES.items()
    ]


def _lines(numbers: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [*numbers["grids"].items(), *((f"all of {kind}", own) for kind, own in numbers["kinds"].items())]


def _cells(measures: dict[str, Any]) -> list[str]:
    return [_cell(measures[name]) if name in measures else "–" for name in MEASURES]


def _cell(own: dict[str, Any]) -> str:
    interval = f" [{own['interval'][0]:+.2f}, {own['interval'][1]:+.2f}]" if own["interval"] else ""
    return f"{own['rho']:+.2f}{interval}, p {own['p']:.2g}"


def lines_of_loss(numbers: dict[str, Any]) -> list[str]:
    """The correlation of the loss between runs of one weight, as a sentence."""
    found = numbers["loss at one weight"]
    texts = " and ".join(f"{_cell(found[score])} with {label}" for score, label in SCORES.items())
    own = found["knn"]
    text = f"The loss, between the runs of one weight ({own['runs']} runs in {own['groups']} groups): {texts}. The smallest "
    return textwrap.wrap(f"{text}correlation that so many runs show with a power of 80 % is {own['detectable']:.2f}.", 130)


def table_of_choices(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Points lost against the best run of a grid, mean over grids, if the run is chosen by a measure."""
    kinds = numbers["kinds"].items()
    head = ["the run with the", *(f"{label}, {kind}" for kind, _ in kinds for label in SCORES.values())]
    rows = []
    for name, (label, more) in MEASURES.items():
        lost = [own[score]["measures"].get(name) for _, own in kinds for score in SCORES]
        cells = [f"{own['choice']:.1f}" if own else "–" for own in lost]
        rows.append([f"{'largest' if more else 'least'} {label}", *cells])
    return head, [*rows, ["a run at random", *(f"{own[score]['random choice']:.1f}" for _, own in kinds for score in SCORES)]]


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A row for each score, its error against each measure; a point is a run."""
    figure, axes = plt.subplots(len(SCORES), len(MEASURES), figsize=(12, 6), layout="constrained", sharey="row")
    for line, (score, title) in zip(axes, SCORES.items(), strict=True):
        for axis, (name, (label, _)) in zip(line, MEASURES.items(), strict=True):
            for method in dict.fromkeys([*METHODS.values(), *(method_of(row["grid"]) for row in rows)]):
                own = [row for row in rows if method_of(row["grid"]) == method and row[name] is not None]
                look = {"color": COLOURS.get(method, "#7F7F7F"), "marker": MARKERS.get(method, "h"), "alpha": 0.8}
                points = [row[name] for row in own], [100 - row[score] for row in own]
                axis.plot(*points, linestyle="none", label=method, **look)
            axis.set(yscale="log", xlabel=label)
            if name in ("effective_rank", "relative_excess"):
                axis.set_xscale("log")
            axis.yaxis.set_major_formatter(_plain)
            axis.yaxis.set_minor_formatter(_plain)
        line[0].set_ylabel(f"error of {title}, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    shown = [(handle, label) for handle, label in zip(handles, labels, strict=True) if len(handle.get_xdata())]
    figure.legend(*zip(*shown, strict=True), loc="outside right center")
    return figure


_plain: Callable[[float, int], str] = lambda value, _: f"{value:g}"  # noqa: E731  a formatter of ticks
