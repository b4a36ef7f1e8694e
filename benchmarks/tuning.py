"""Weight and rate of each method and kernel of the digits tables, by an equal search on the tuning split.

    python benchmarks/tuning.py --folder exp/tuning     about a minute per run on one core; finished runs are kept

A search starts with three weights and three rates, with seed 0 and the recipe's epochs. Runs are scored on the tuning split, by
logistic regression, then by 20-NN. Where the best run has the lowest or the highest weight or rate, the next
one is added. Writes search.json in results/digits/tuning and the table of docs/tuning.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import trained
from pages import with_parts

from sfrik.errors import SfrikError
from sfrik.system.files import read_json, write_json

ROOT = Path(__file__).parents[1]
PAGE, NUMBERS = ROOT / "docs/tuning.md", ROOT / "results/digits/tuning/search.json"
NETWORK = {"stem": "patch", "precision": "fp32"}
RATES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
MOST = 25  # runs of a search


@dataclass(frozen=True)
class Search:
    """The settings of one row: its recipe, those that are its weight, the middle of the grid, and the factor between weights."""

    recipe: str
    weights: tuple[str, ...]
    weight: float
    rate: float
    factor: float

    def point(self, step: int, rate: float) -> dict[str, Any]:
        """The settings of the weight that is `step` steps from the middle, and of a rate."""
        weight = float(f"{self.weight * self.factor**step:g}")
        return {**NETWORK, **dict.fromkeys(self.weights, weight), "base_lr": rate}


SFRIK, AUH = ("sfrik_sim_coeff",), ("auh_sim_coeff",)
VICREG, SIMCLR = ("vicreg_sim_coeff", "vicreg_std_coeff"), ("simclr_temp",)
SEARCHES = {
    "sfrik_l3_q512": Search("digits/sfrik_l3_q512", SFRIK, 512.0, 30.0, 4.0),
    "vicreg_q512": Search("digits/vicreg_q512", VICREG, 5.0, 3.0, 2.0),
    "auh_q512": Search("digits/auh_q512", AUH, 768.0, 10.0, 4.0),
    "simclr_q512": Search("digits/simclr_q512", SIMCLR, 0.3, 10.0, 2.0),
    "sfrik_l2_q512": Search("digits/sfrik_l2_q512", SFRIK, 512.0, 30.0, 4.0),
    "kernel_rbf": Search("digits/kernel_rbf", SFRIK, 4.0, 30.0, 4.0),
    "kernel_power": Search("digits/kernel_power", SFRIK, 64.0, 30.0, 4.0),
    "kernel_heat": Search("digits/kernel_heat", SFRIK, 16.0, 30.0, 4.0),
    "vicreg_q128": Search("digits/vicreg_q128", VICREG, 5.0, 3.0, 2.0),
    "auh_q128": Search("digits/auh_q128", AUH, 192.0, 10.0, 4.0),
    "simclr_q128": Search("digits/simclr_q128", SIMCLR, 0.3, 10.0, 2.0),
    "sfrik_l2_q128": Search("digits/sfrik_l2_q128", SFRIK, 128.0, 30.0, 4.0),
    "sfrik_l3_q128": Search("digits/sfrik_l3_q128", SFRIK, 128.0, 30.0, 4.0),
    "sfrik_l1_q512": Search("digits/sfrik_l1_q512", SFRIK, 512.0, 30.0, 4.0),
    "vicreg_q256": Search("digits/vicreg_q256", VICREG, 5.0, 3.0, 2.0),
    "auh_q256": Search("digits/auh_q256", AUH, 384.0, 10.0, 4.0),
    "simclr_q256": Search("digits/simclr_q256", SIMCLR, 0.3, 10.0, 2.0),
    "sfrik_l2_q256": Search("digits/sfrik_l2_q256", SFRIK, 256.0, 30.0, 4.0),
}


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The run that is chosen; the first of equals."""
    return max(rows, key=lambda row: (row["logistic"], row["knn20"]))


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of a search, in this process."""
    search = SEARCHES[name]
    steps, rates = [-1, 0, 1], around(search.rate)
    done: dict[tuple[int, float], dict[str, Any]] = {}
    while True:
        points = list(product(steps, rates))
        for step, rate in points:
            if (step, rate) not in done:
                place = folder / name / f"step{step:+d}_lr{rate:g}"
                done[step, rate] = scored(place, search.recipe, search.point(step, rate))
        rows = [done[point] for point in points]
        step, rate = points[rows.index(best(rows))]
        if step in (steps[0], steps[-1]):
            steps = sorted({*steps, step - 1, step + 1})
        elif rate in (rates[0], rates[-1]):
            rates = sorted({*rates, *around(rate)})
        if not len(points) < len(steps) * len(rates) <= MOST:
            return rows


def around(rate: float) -> list[float]:
    """The rate and its neighbours."""
    place = RATES.index(rate)
    return list(RATES[max(place - 1, 0) : place + 2])


def scored(folder: Path, recipe: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The row of a run; one that diverged, or whose features cannot be scored, is worse than any other."""
    try:
        row = trained.measured(folder, recipe, 0, changes, "train")
    except SfrikError as error:
        print(f"{folder}: {error}", flush=True)
        return {"changes": changes, "logistic": 0.0, "knn20": 0.0, "failed": str(error).partition(";")[0]}
    return {key: row[key] for key in ("commit", "changes", "logistic", "knn20", "effective_rank", "verdict", "spread")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("exp/tuning"), help="where the runs are trained, and kept")
    parser.add_argument("--only", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="these searches")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--render", action="store_true", help="only the table, from the recorded numbers")
    options = parser.parse_args()
    if not options.render:
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(run, name, options.folder): name for name in options.only}
            for future in as_completed(running):  # a search that is done is recorded
                known = read_json(NUMBERS) if NUMBERS.is_file() else {}
                write_json(NUMBERS, {**known, running[future]: future.result()})
    PAGE.write_text(with_parts(PAGE.read_text(encoding="utf-8"), {"search": table(read_json(NUMBERS))}), encoding="utf-8")


def table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row per search: the ranges that were tried, the choice and its scores."""
    lines = [
        "| recipe | weight: tried | chosen | rate: tried | chosen | logistic regression, % | 20-NN, % | effective rank |",
        "| --- " * 8 + "|",
    ]
    for name in (name for name in SEARCHES if name in found):
        rows, search = found[name], SEARCHES[name]
        chosen = best(rows)
        cells = [f"`{search.recipe}`"]
        for key in (search.weights[0], "base_lr"):
            tried = sorted({row["changes"][key] for row in rows})
            value = chosen["changes"][key]
            edge = " †" if value in (tried[0], tried[-1]) else ""
            cells += [", ".join(f"{value:g}" for value in tried), f"**{value:g}**{edge}"]
        cells += [f"{chosen[key]:.1f}" for key in ("logistic", "knn20")] + [f"{chosen['effective_rank']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    runs = sum(map(len, found.values()))
    edges = " † At the edge of what was tried." if any("†" in line for line in lines) else ""
    return [*lines, "", f"{runs} runs with seed 0, scored on the 500 digits of the tuning split.{edges}"]


if __name__ == "__main__":
    main()
