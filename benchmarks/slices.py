"""Does slicing hurt? SFRIK and SIGReg by M random directions per step, against the exact MMD, in paired digits runs.

    python benchmarks/slices.py --folder exp/slices     about a minute per run on one core; finished runs are kept

The runs of a seed share the initial weights, the order of the images and the views. Weight and rate of SFRIK and of SIGReg are
those that the tuning split chose (benchmarks/tuning.py; SIGReg's with 1,024 directions). Writes slices.json in
results/digits/diagnosis and the table of docs/speed.md.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import trained
from pages import with_parts

from sfrik.system.files import read_json, write_json
from sfrik.tables.inference import estimate

ROOT = Path(__file__).parents[1]
PAGE, NUMBERS = ROOT / "docs/speed.md", ROOT / "results/digits/diagnosis/slices.json"
RECIPE = "digits/sfrik_l3_q512"
SLICES = (256, 1024, 4096)
SFRIK = {**trained.STEM, "sfrik_sim_coeff": 512.0, "base_lr": 30.0}
SIGREG = {**trained.STEM, "ssl_method": "sigreg", "sigreg_weight": 0.05, "base_lr": 10.0}
RUNS: dict[str, dict[str, Any]] = {
    "SFRIK L=3, exact": SFRIK,
    **{f"SFRIK L=3, M = {m}": {**SFRIK, "sfrik_slices": m} for m in SLICES},
    **{f"SIGReg, M = {m}": {**SIGREG, "sigreg_slices": m} for m in SLICES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("exp/slices"), help="where the runs are trained, and kept")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--render", action="store_true", help="only the table, from the recorded numbers")
    options = parser.parse_args()
    if not options.render:
        wanted = [(name, seed) for seed in range(options.seeds) for name in RUNS]
        found = trained.measured_runs(
            [(options.folder / folder_name(name) / f"seed{seed}", RECIPE, seed, RUNS[name]) for name, seed in wanted],
            options.jobs,
        )
        kept = ("seed", "commit", "changes", "knn20", "logistic", "effective_rank", "verdict")
        rows = [{"run": name, **{key: row[key] for key in kept}} for (name, _), row in zip(wanted, found, strict=True)]
        write_json(NUMBERS, {"runs": rows})
    rows = read_json(NUMBERS)["runs"]
    PAGE.write_text(with_parts(PAGE.read_text(encoding="utf-8"), {"slices": table(rows)}), encoding="utf-8")


def folder_name(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Means over the seeds, and 95 % intervals of the paired differences to the exact loss by Student's t."""
    names = list(dict.fromkeys(row["run"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "| loss | 20-NN, % | difference to exact | logistic regression, % | difference to exact | effective rank |",
        "| --- " * 6 + "|",
    ]
    for name in names:
        own = {row["seed"]: row for row in rows if row["run"] == name}
        exact = {row["seed"]: row for row in rows if row["run"] == names[0]}
        cells = []
        for score in ("knn20", "logistic"):
            values = np.array([own[seed][score] for seed in seeds])
            differences = values - np.array([exact[seed][score] for seed in seeds])
            low, high = estimate(differences.tolist()).interval or (math.nan, math.nan)
            difference = f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
            cells += [f"{values.mean():.2f}", "–" if name == names[0] else difference]
        ranks = [own[seed]["effective_rank"] for seed in seeds]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.mean(ranks):.0f} |")
    return [
        *lines,
        "",
        f"Means over n = {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}); in brackets 95 % intervals of the paired differences.",
    ]


if __name__ == "__main__":
    main()
