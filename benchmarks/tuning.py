"""Weight and rate of each method and kernel of a profile's tables, by an equal search on the tuning split.

    python benchmarks/tuning.py --folder exp/tuning     about a minute per run on one core; finished runs are kept
    python benchmarks/tuning.py --profile photos --data-dir FOLDER --folder exp/tuning_photos

A search of digits starts with three weights and three rates, with seed 0 and the recipe's epochs; one of photos with three
weights, at the recipe's rate and with 5 epochs. Runs are scored on the tuning split, by logistic regression, then by 20-NN. Where
the best run has the lowest or the highest weight or rate, the next one is added. Writes search.json in results/<profile>/tuning
and a table of docs/tuning.md.
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
PAGE = ROOT / "docs/tuning.md"
FIXED = {"digits": {"stem": "patch", "precision": "fp32"}, "photos": {"epochs": 5, "warmup_epochs": 1}}
RATES = {"digits": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0), "photos": (10.0,)}
IMAGES = {"digits": "500 digits", "photos": "4,990 images"}
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
        return {**FIXED[self.profile], **dict.fromkeys(self.weights, weight), "base_lr": rate}

    def around(self, rate: float) -> list[float]:
        """The rate and its neighbours."""
        rates = RATES[self.profile]
        place = rates.index(rate)
        return list(rates[max(place - 1, 0) : place + 2])

    @property
    def profile(self) -> str:
        return self.recipe.partition("/")[0]


SFRIK, AUH = ("sfrik_sim_coeff",), ("auh_sim_coeff",)
VICREG, SIMCLR = ("vicreg_sim_coeff", "vicreg_std_coeff"), ("simclr_temp",)
DIGITS = {
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
PHOTOS = {  # the rows that the grids of table 9 leave out
    "kernel_rbf": Search("photos/kernel_rbf", SFRIK, 16.0, 10.0, 4.0),
    "kernel_power": Search("photos/kernel_power", SFRIK, 16.0, 10.0, 4.0),
    "kernel_heat": Search("photos/kernel_heat", SFRIK, 16.0, 10.0, 4.0),
    "sfrik_l1_q512": Search("photos/sfrik_l1_q512", SFRIK, 32.0, 10.0, 4.0),
    "sfrik_l2_q512": Search("photos/sfrik_l2_q512", SFRIK, 2048.0, 10.0, 4.0),
    "sfrik_l2_q128": Search("photos/sfrik_l2_q128", SFRIK, 512.0, 10.0, 4.0),
}
SEARCHES = {"digits": DIGITS, "photos": PHOTOS}


def numbers(profile: str) -> Path:
    """The file with the runs of a profile's searches."""
    return ROOT / "results" / profile / "tuning/search.json"


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The run that is chosen; the first of equals."""
    return max(rows, key=lambda row: (row["logistic"], row["knn20"]))


def run(search: Search, folder: Path, data_dir: str = "") -> list[dict[str, Any]]:
    """The rows of a search, in this process."""
    steps, rates = [-1, 0, 1], search.around(search.rate)
    done: dict[tuple[int, float], dict[str, Any]] = {}
    while True:
        points = list(product(steps, rates))
        for step, rate in points:
            if (step, rate) not in done:
                place = folder / f"step{step:+d}_lr{rate:g}"
                done[step, rate] = scored(place, search.recipe, search.point(step, rate), data_dir)
        rows = [done[point] for point in points]
        step, rate = points[rows.index(best(rows))]
        if step in (steps[0], steps[-1]):
            steps = sorted({*steps, step - 1, step + 1})
        elif rate in (rates[0], rates[-1]):
            rates = sorted({*rates, *search.around(rate)})
        if not len(points) < len(steps) * len(rates) <= MOST:
            return rows


def scored(folder: Path, recipe: str, changes: dict[str, Any], data_dir: str = "") -> dict[str, Any]:
    """The row of a run; one that diverged, or whose features cannot be scored, is worse than any other."""
    try:
        row = trained.measured(folder, recipe, 0, changes, "train", data_dir)
    except SfrikError as error:
        print(f"{folder}: {error}", flush=True)
        return {"changes": changes, "logistic": 0.0, "knn20": 0.0, "failed": str(error).partition(";")[0]}
    return {key: row[key] for key in ("commit", "changes", "logistic", "knn20", "effective_rank", "verdict", "spread")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=SEARCHES, default="digits")
    parser.add_argument("--data-dir", default="", help="the folder of the profile's images")
    parser.add_argument("--folder", type=Path, default=Path("exp/tuning"), help="where the runs are trained, and kept")
    parser.add_argument("--only", nargs="+", help="these searches")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--render", action="store_true", help="only the tables, from the recorded numbers")
    options = parser.parse_args()
    searches, place = SEARCHES[options.profile], numbers(options.profile)
    names = options.only or list(searches)
    if unknown := set(names) - set(searches):
        parser.error(f"{options.profile} has no search {', '.join(sorted(unknown))}: it has {', '.join(searches)}")
    if not options.render:
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(run, searches[name], options.folder / name, options.data_dir): name for name in names}
            for future in as_completed(running):  # a search that is done is recorded
                known = read_json(place) if place.is_file() else {}
                write_json(place, {**known, running[future]: future.result()})
    PAGE.write_text(with_parts(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")


def tables() -> dict[str, list[str]]:
    """The tables of the page, from the recorded runs."""
    return {profile: table(profile, read_json(numbers(profile))) for profile in SEARCHES if numbers(profile).is_file()}


def table(profile: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row per search: the ranges that were tried, the choice and its scores."""
    lines = [
        "| recipe | weight: tried | chosen | rate: tried | chosen | logistic regression, % | 20-NN, % | effective rank |",
        "| --- " * 8 + "|",
    ]
    for name in (name for name in SEARCHES[profile] if name in found):
        rows, search = found[name], SEARCHES[profile][name]
        chosen = best(rows)
        cells = [f"`{search.recipe}`"]
        for key in (search.weights[0], "base_lr"):
            tried = sorted({row["changes"][key] for row in rows})
            value = chosen["changes"][key]
            edge = " †" if len(tried) > 1 and value in (tried[0], tried[-1]) else ""
            cells += [", ".join(f"{value:g}" for value in tried), f"**{value:g}**{edge}"]
        cells += [f"{chosen[key]:.1f}" for key in ("logistic", "knn20")] + [f"{chosen['effective_rank']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    runs = sum(map(len, found.values()))
    edges = " † At the edge of what was tried." if any("†" in line for line in lines) else ""
    return [*lines, "", f"{runs} runs with seed 0, scored on the {IMAGES[profile]} of the tuning split.{edges}"]


if __name__ == "__main__":
    main()
