"""Train runs of recipes with changed settings, and measure them; for the other scripts of this folder."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sfrik.evaluate import diagnose, knn_eval, logistic_regression
from sfrik.pretrain.loop import pretrain
from sfrik.runs.folder import Run
from sfrik.settings import KnnSettings, LogisticSettings, PretrainSettings
from sfrik.system.files import read_json, write_json

__all__ = ["LOGGED", "STEM", "measured", "measured_runs"]

STEM = {"stem": "small", "precision": "auto"}  # of the runs that were recorded before the digits recipes had the patch stem
LOGGED = ("loss", "alignment", "uniformity", "effective_rank")  # what the row of a run has of its last epoch


def measured(
    folder: Path,
    recipe: str,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
    split: str = "val",
    data_dir: str = "",
) -> dict[str, Any]:
    """Train a run; its diagnosis, what its log says at the end, and the scores of its features in %.

    Stored in the run's folder as measured.json: delete it to measure again.

    Args:
        folder: of the run.
        recipe: such as digits/sfrik_l2_q512.
        seed: of the run.
        changes: settings of the pretraining in place of the recipe's.
        split: "val" scores the test images, "train" the tuning split.
        data_dir: the folder of the images, for data sets that are one.
    """
    kept = folder / "measured.json"
    if kept.is_file():
        return read_json(kept)
    place = {"seed": seed, "exp_dir": str(folder), **({"data_dir": data_dir} if data_dir else {})}
    settings = PretrainSettings.from_recipe(recipe, **place, knn_every=0, **(changes or {}))
    pretrain(settings, progress=False)
    run = Run(folder)
    found = diagnose(folder, data_dir=data_dir or None)
    scored = {**place, **settings.network, "val_dataset": split}
    lines = run.epochs()
    row = {
        "seed": seed,
        "recipe": recipe,
        "changes": changes or {},
        "commit": read_json(folder / "provenance.json")["commit"],
        "knn20": knn_eval(KnnSettings.from_recipe(recipe, **scored))["top1_at"]["20"],
        "logistic": logistic_regression(LogisticSettings.from_recipe(recipe, **scored))["top1"],
        "log": {key: lines[-1][key] for key in LOGGED} if lines else None,
        "spread": found.spread,
        **asdict(found),
        "features": asdict(replace(found.features, spectrum=())),
    }
    write_json(kept, row)
    print(f"{folder}: {found.verdict}, 20-NN {row['knn20']:.1f} %", flush=True)
    return row


def measured_runs(runs: Iterable[tuple[Any, ...]], jobs: int) -> list[dict[str, Any]]:
    """`measured` for the arguments of several runs, in `jobs` processes of one thread."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(measured, *zip(*runs, strict=True)))
