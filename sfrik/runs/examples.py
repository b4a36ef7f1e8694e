"""Weights to look at without training: runs that the repository keeps with their weights, in examples/weights/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfrik.runs.records import RunSettings
from sfrik.settings import examples_root, recipe_settings, run_folder
from sfrik.system.records import read_record
from sfrik.system.terminal import print_line

__all__ = ["example_run", "example_weights", "is_of_recipe"]

LOGGING = ("log_every", "knn_every")  # they change the log of a run, not its weights


def example_run(recipe: str, seed: int) -> Path | None:
    """The folder of the checkout with a run of this recipe and seed and its weights; None if there is none."""
    for path in sorted(examples_root().glob("*/settings.json")):
        if is_of_recipe(read_record(path, RunSettings)["settings"], recipe, seed):
            return path.parent
    return None


def is_of_recipe(recorded: Mapping[str, Any], recipe: str, seed: int) -> bool:
    """Whether the settings of a run give the weights of a recipe and seed."""
    ours = recipe_settings(recipe, seed)
    return not ours.differences({**recorded, **{name: ours.what()[name] for name in LOGGING}})


def example_weights(recipe: str, seed: int, **given: object) -> str | None:
    """Backbone of `example_run`, for a notebook that is opened before the recipe was trained; says so.

    Args:
        recipe: PROFILE/NAME.
        seed: of the run.
        given: parameters of the notebook; None is returned if one of them is set, since other weights may then be meant.
    """
    folder = run_folder(recipe, seed)
    if any(given.values()) or (folder / "backbone.safetensors").exists() or not (example := example_run(recipe, seed)):
        return None
    print_line(f"{folder} has no weights yet: these are those in {example}; notebook 02 trains your own")
    return str(example / "backbone.safetensors")
