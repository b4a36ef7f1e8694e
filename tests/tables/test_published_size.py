"""The published results are small, and have the executed notebooks of one seed of each run."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_BYTES = 15_000_000


def published():
    names = subprocess.run(
        ["git", "ls-files", "-z", "results"], cwd=ROOT, check=True, capture_output=True, encoding="utf-8"
    ).stdout
    return [ROOT / name for name in names.split("\0") if name]


def test_the_published_results_are_small():
    sizes = {path: path.stat().st_size for path in published() if path.exists()}
    largest = sorted(sizes, key=lambda path: -sizes[path])[:5]
    assert sum(sizes.values()) <= MOST_BYTES, largest


def test_executed_notebooks_are_those_of_one_seed_per_run():
    seeds = {}
    for path in published():
        if path.suffix == ".ipynb" and path.parent.name.startswith("seed") and path.exists():
            seeds.setdefault(path.parents[1].name, set()).add(path.parent.name)
    assert seeds
    assert {recipe for recipe, found in seeds.items() if len(found) > 1} == set()
