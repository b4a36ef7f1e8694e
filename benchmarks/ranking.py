"""Do the training loss, alignment, uniformity and effective rank rank the digits runs as the probes do? From committed scores.

`python benchmarks/diagnosis.py --only ranking` runs it. Spearman's rank correlation throughout. What is compared:

- seeds: runs of one recipe, which differ only in the seed. Three are too few by themselves: their correlations are averaged over
  the recipes. p (two-sided) is that of permuting the scores within each recipe; "joint p" permutes the seeds of all recipes
  alike, six ways, since a seed means the same order of images, and so the same last batch, in all of them.
- families: one method with one trade-off of alignment and regulariser, q and seed differing. Losses of different methods, or of
  different coefficients, are different quantities and are not compared.
- measures: over recipes of all methods. The interval is the middle 95 % of 2,000 draws of recipes, with all their seeds; p is of
  the recipes' means, permuted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from scipy.stats import rankdata

from sfrik.plots.tables import COLOURS, MARKERS
from sfrik.runs.folder import Run
from sfrik.system.files import read_json

ROOT = Path(__file__).parents[1] / "results/digits"
PROBES = {"linear": "linear probing", "logistic": "logistic regression", "knn": "20-NN"}
MEASURES = ("alignment", "uniformity", "effective_rank")
METHODS = {
    "sfrik_l1": "SFRIK L=1",
    "sfrik_l2": "SFRIK L=2",
    "sfrik_l3": "SFRIK L=3",
    "auh": "AUH",
    "vicreg": "VICReg",
    "simclr": "SimCLR",
    "kernel": "other kernels",
}
FAMILIES = {
    name: [f"{stem}_q{q}" for q in sizes]
    for name, stem, sizes in [
        ("SimCLR", "simclr", (128, 256, 512)),
        ("AUH", "auh", (128, 256, 512)),
        ("VICReg", "vicreg", (128, 256, 512)),
        ("SFRIK L=2", "sfrik_l2", (128, 256, 512)),
        ("SFRIK L=3", "sfrik_l3", (128, 512)),
    ]
}
DRAWS = 2000


@dataclass(frozen=True)
class Scored:
    """A committed run: what its last epoch's line says, and its scores in %; None where a probe was not run."""

    recipe: str
    seed: int
    method: str
    views: str
    loss: float
    alignment: float
    uniformity: float
    effective_rank: float
    linear: float | None
    logistic: float | None
    knn: float | None
    commits: tuple[str, ...]


def scored_runs(root: Path = ROOT) -> list[Scored]:
    """The runs of the tables; not those of the grids of table 9, most of which are not scored on the test images."""
    found = []
    for folder in sorted(root.glob("*/seed*")):
        recipe = folder.parent.name
        lines = Run(folder).epochs()
        if not lines or recipe.startswith("tune_") or "-" in folder.name:  # seed0-...: other settings
            continue
        scores = {name: read_json(folder / f"{name}.json") for name in PROBES if (folder / f"{name}.json").is_file()}
        values = {name: score["top1_at"]["20"] if name == "knn" else score["top1"] for name, score in scores.items()}
        commits = [read_json(folder / "provenance.json")["commit"], *(score["commit"] for score in scores.values())]
        found.append(
            Scored(
                recipe,
                int(folder.name.removeprefix("seed")),
                next(method for stem, method in METHODS.items() if recipe.removeprefix("crops_").startswith(stem)),
                read_json(folder / "settings.json")["settings"]["augmentations"],
                *(lines[-1][name] for name in ("loss", *MEASURES)),
                *(values.get(name) for name in PROBES),
                tuple(sorted(set(commits))),
            )
        )
    return found


def ranking(runs: list[Scored]) -> dict[str, Any]:
    """All correlations, and the runs that they are of."""
    without = [run for run in runs if run.method != "SFRIK L=1"]
    scopes = {
        "all": runs,
        "without SFRIK L=1": without,
        "without it, one kind of views": [r for r in without if r.views == "digits"],
    }
    return {
        "seeds": {probe: by_seeds(runs, probe) for probe in PROBES},
        "families": {
            family: {probe: by_runs([r for r in runs if r.recipe in recipes], probe) for probe in PROBES}
            for family, recipes in FAMILIES.items()
        },
        "measures": {
            scope: {name: {probe: by_recipes(some, name, probe) for probe in PROBES} for name in MEASURES}
            for scope, some in scopes.items()
        },
        "runs": [asdict(run) for run in runs],
    }


def rho(first: Iterable[float], second: Iterable[float]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    first, second = rankdata(list(first)), rankdata(list(second))
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def by_seeds(runs: list[Scored], probe: str) -> dict[str, Any]:
    """The mean over recipes of the correlation of loss and probe over three seeds."""
    groups = [group for group in by_recipe(runs, probe).values() if len(group) == 3]
    losses = [[run.loss for run in group] for group in groups]
    scores = [[getattr(run, probe) for run in group] for group in groups]
    ways = list(itertools.permutations(range(3)))
    # the correlation of each recipe under each of the six ways to permute its scores; the first leaves them
    table = np.array([[rho(x, [y[k] for k in way]) for way in ways] for x, y in zip(losses, scores, strict=True)])
    found = float(table[:, 0].mean())
    drawn = np.random.default_rng(0).integers(0, len(ways), (10_000, len(groups)))
    apart = table[np.arange(len(groups)), drawn].mean(axis=1)
    return {
        "rho": found,
        "recipes": len(groups),
        "runs": 3 * len(groups),
        "p": _share(np.abs(apart) >= abs(found) - 1e-9),
        "joint p": float((np.abs(table.mean(axis=0)) >= abs(found) - 1e-9).mean()),
    }


def by_runs(runs: list[Scored], probe: str) -> dict[str, Any]:
    """The correlation of loss and probe over the runs of a family; runs of one q are not independent, so p is too small."""
    kept = [run for run in runs if getattr(run, probe) is not None]
    x, y = [run.loss for run in kept], [getattr(run, probe) for run in kept]
    return {"rho": rho(x, y), "runs": len(kept), "p": _p(x, y)}


def by_recipes(runs: list[Scored], measure: str, probe: str) -> dict[str, Any]:
    """The correlation over all runs, its interval, and that of the recipes' means with its p."""
    groups = list(by_recipe(runs, probe).values())
    points = [np.array([[getattr(run, measure), getattr(run, probe)] for run in group]) for group in groups]
    generator = np.random.default_rng(0)
    draws = [np.concatenate([points[k] for k in generator.integers(0, len(points), len(points))]) for _ in range(DRAWS)]
    low, high = np.quantile([rho(*draw.T) for draw in draws], [0.025, 0.975])
    means = np.array([group.mean(axis=0) for group in points])
    return {
        "rho": rho(*np.concatenate(points).T),
        "interval": [float(low), float(high)],
        "runs": sum(map(len, points)),
        "recipes": len(points),
        "rho of means": rho(*means.T),
        "p of means": _p(*means.T),
    }


def by_recipe(runs: list[Scored], probe: str) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        if getattr(run, probe) is not None:
            groups.setdefault(run.recipe, []).append(run)
    return groups


def _p(x: Iterable[float], y: Iterable[float], draws: int = DRAWS) -> float:
    """Two-sided, by permutations that are drawn."""
    x, y = np.asarray(list(x)), np.asarray(list(y))
    generator = np.random.default_rng(0)
    found = abs(rho(x, y)) - 1e-9
    return _share(np.array([abs(rho(x, generator.permutation(y))) >= found for _ in range(draws)]))


def _share(hits: np.ndarray) -> float:
    """Of drawn permutations, the one that was found counted among them: never 0."""
    return float((hits.sum() + 1) / (len(hits) + 1))


def draw(runs: list[Scored], probes: Iterable[str] = ("linear", "knn")) -> Figure:
    """A row for each probe, against loss within recipes, alignment, uniformity and effective rank; a point is a run."""
    probes = list(probes)
    figure, axes = plt.subplots(len(probes), 4, figsize=(12, 3 * len(probes)), layout="constrained")
    for probe, row in zip(probes, axes, strict=True):
        groups = by_recipe(runs, probe)
        means = {r: np.mean([[x.loss, getattr(x, probe)] for x in group], axis=0) for r, group in groups.items()}
        scored = [run for group in groups.values() for run in group]
        for axis, name in zip(row, ("loss", *MEASURES), strict=True):
            for method in METHODS.values():
                points = [_point(run, name, probe, means) for run in scored if run.method == method]
                look = {"color": COLOURS.get(method, "#000000"), "marker": MARKERS.get(method, "P")}
                axis.plot(*zip(*points, strict=True), linestyle="none", alpha=0.8, label=method, **look)
            if name != "loss":
                axis.set(yscale="log", ylabel=f"error of {PROBES[probe]}, %" if name == "alignment" else "")
                axis.yaxis.set_major_locator(FixedLocator([5, 10, 20, 40]))
                axis.yaxis.set_major_formatter(ScalarFormatter())
                axis.yaxis.set_minor_locator(NullLocator())
        row[0].set(ylabel=f"{PROBES[probe]}, points\nfrom the recipe's mean")
        row[1].set(xscale="log")
        row[3].set(xscale="log")
    titles = ("loss, seeds of one recipe", "alignment", "uniformity", "effective rank")
    words = ("loss, % from the recipe's mean", "alignment", "uniformity", "effective rank of 256 embeddings")
    for k, title in enumerate(titles):
        axes[0][k].set_title(title)
        axes[-1][k].set_xlabel(words[k])
    figure.legend(*axes[0][3].get_legend_handles_labels(), loc="outside right center")
    return figure


def _point(run: Scored, name: str, probe: str, means: dict[str, np.ndarray]) -> tuple[float, float]:
    """A measure and the probe's error in %; of the loss both relative to the mean of the recipe."""
    if name != "loss":
        return getattr(run, name), 100 - getattr(run, probe)
    loss, score = means[run.recipe]
    return 100 * (run.loss - loss) / abs(loss), getattr(run, probe) - score
