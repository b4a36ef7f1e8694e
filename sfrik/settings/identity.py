"""What a folder of results must hold: the recipe it belongs to, and the settings of its run and of each of its scores.

A table prints a run only if its settings are the recipe's, and a score only if the score's are (`sfrik.runs.scores`); an
evaluation refuses to write another score in its place.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.settings.base import SECTIONS, Settings, load_recipe
from sfrik.settings.recipes import recipe_files

__all__ = ["recipe_of", "recipe_settings", "score_settings"]

# The section of a recipe with the settings of a score, by the start of the score's name.
SECTION_OF = {"linear": "evaluate", "semi1": "semi1", "semi10": "semi10", "knn": "knn_eval", "logistic": "logistic_regression"}
SECTION_OF |= {"transfer": "transfer", "features": "extract_features"}
# Scores that a recipe has no section for: all labels, or a share of them such as linear10, semi2.5.
OTHERS = {"finetune": "finetune", "linear": "freeze", "semi": "finetune"}


def recipe_of(folder: str | Path) -> tuple[str, int] | None:
    """The recipe and the seed of a folder <profile>/<recipe>/seed<k>, which the tables read; None for any other folder."""
    for path in (Path(folder).absolute(), Path(folder).resolve()):  # a link leads to a run, or a run is a link
        seed = re.fullmatch(r"seed(0|[1-9][0-9]*)", path.name)
        profile, recipe = path.parent.parent.name, path.parent.name
        if seed and profile and recipe_files(f"{profile}/{recipe}"):
            return f"{profile}/{recipe}", int(seed[1])
    return None


def recipe_settings(recipe: str, seed: int, section: str = "pretrain", **given: Any) -> Settings:
    """The settings of a section of a recipe, of pretraining by default, with a seed and further settings."""
    values = load_recipe(recipe, section) | given
    return _parsed(section, json.dumps(values)).model_copy(update={"seed": seed})


def score_settings(recipe: str, seed: int, score: str) -> Settings:
    """The settings that a recipe's score must have been measured with.

    Args:
        score: The name of its file without .json, such as linear, linear_tune, knn or transfer_voc07.

    Raises:
        SfrikError: There is no such score.
    """
    given: dict[str, Any] = {}
    name = score
    if name.endswith("_inference"):
        name, given = name.removesuffix("_inference"), {"only_inference": True}
    if name.endswith("_tune"):
        name, given = name.removesuffix("_tune"), {**given, "val_dataset": "train"}
    if name.startswith("transfer_"):
        name, given = "transfer", {**given, "target": name.removeprefix("transfer_")}
    if name in SECTION_OF:
        return recipe_settings(recipe, seed, SECTION_OF[name], **given)
    share = re.fullmatch(r"(finetune|(?:linear|semi)(?=[0-9]))([0-9.e-]*)", name)
    if share is None:
        raise SfrikError(
            f"there is no score {score!r}: the scores are {', '.join((*SECTION_OF, 'linear<p>, semi<p>, finetune'))}"
        )
    given |= {"weights": OTHERS[share[1]], **({"train_percent": share[2]} if share[2] else {})}
    return recipe_settings(recipe, seed, SECTIONS["evaluate"].section(given), **given)


@lru_cache(maxsize=1024)
def _parsed(section: str, values: str) -> Settings:
    """Parsed once for all seeds."""
    return SECTIONS[section].parse(json.loads(values))
