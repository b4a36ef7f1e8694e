"""Runs that count as finished without having been executed, for tests that only need them to exist."""

import hashlib

from sfrik.reproduce.stages import STAGES, stage_scores
from sfrik.runs.folder import Run
from sfrik.settings import recipe_settings, run_folder
from sfrik.system.files import write_json

WEIGHTS = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without tensors
SHA = hashlib.sha256(WEIGHTS).hexdigest()


def finished_run(root, recipe, seed=0, stages=("pretrain", "linear", "knn"), top1=50.0):
    """Write the records, scores, empty notebooks and, where there are none, weights of a run whose stages are done."""
    run = Run(run_folder(recipe, seed, root))
    if not run.backbone.is_file():
        run.folder.mkdir(parents=True)
        run.backbone.write_bytes(WEIGHTS)
        settings = recipe_settings(recipe, seed)
        write_json(run.folder / "settings.json", {"version": 1, "hash": settings.hash(), "settings": settings.what()})
        write_json(run.folder / "provenance.json", {"version": 1, "commit": "abc", "weights": {run.backbone.name: SHA}})
    values = {"top1": top1, "top5": top1, "top1_at": {"20": top1}, "backbone_sha256": run.weights_sha256()}
    for stage in stages:
        (run.folder / STAGES[stage].copy).write_text('{"cells": []}', encoding="utf-8")
        for name, settings in stage_scores(recipe, seed, stage):
            recorded = {"settings_hash": settings.hash(), "settings": settings.what()}
            write_json(run.folder / f"{name}.json", {"protocol": name, **values, **recorded})
    return run
