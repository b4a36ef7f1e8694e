"""The stages of a run: which notebook computes which scores, and which of them are missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sfrik.errors import SfrikError, nearest
from sfrik.runs.folder import Run
from sfrik.runs.records import Score
from sfrik.settings import SECTIONS, Settings, load_recipe, run_folder
from sfrik.system.files import path_exists
from sfrik.system.records import read_record
from sfrik.tables.rows import TARGETS

__all__ = [
    "DEFAULT_STAGES",
    "STAGES",
    "PlannedRun",
    "Stage",
    "check_run",
    "existing_scores",
    "missing_stages",
    "stage_scores",
]


@dataclass(frozen=True)
class Stage:
    """A notebook of a run.

    Attributes:
        notebook: its name.
        scores: the scores that it writes, each with the section of a recipe that holds its settings.
        parameters: of the notebook, beside the recipe and the folder.
        suffix: added to the name of the executed copy.
    """

    notebook: str
    scores: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    suffix: str = ""

    @property
    def copy(self) -> str:
        return f"{self.notebook}{self.suffix}.ipynb"


class PlannedRun(NamedTuple):
    """A run of a table: its recipe, its seed, and the stages that the table needs."""

    recipe: str
    seed: int
    stages: tuple[str, ...]


STAGES = {
    "pretrain": Stage("02_pretraining"),
    "linear": Stage("03_linear_probing", {"linear": "evaluate"}),
    "semi": Stage("04_semi_supervised", {"semi1": "semi1", "semi10": "semi10", "transfer": "transfer"}),
    "knn": Stage("05_knn_and_logistic_regression", {"knn": "knn_eval", "logistic": "logistic_regression"}),
    "tune": Stage("03_linear_probing", {"linear_tune": "evaluate"}, {"val_dataset": "train"}, "_tune"),
    "inference": Stage("03_linear_probing", {"linear_inference": "evaluate"}, {"only_inference": True}, "_inference"),
}
DEFAULT_STAGES = ("pretrain", "linear", "knn")


def check_run(recipe: str, stages: Sequence[str]) -> None:
    """Refuse an unknown recipe or stage.

    Raises:
        SfrikError: it is named, with the nearest known one.
    """
    for stage in stages:
        if stage not in STAGES:
            raise SfrikError(f"unknown stage {stage!r}{nearest(stage, STAGES)}: there is {', '.join(STAGES)}")
    load_recipe(recipe)


def missing_stages(recipe: str, seed: int, root: str | Path | None = None, stages: Sequence[str] = DEFAULT_STAGES) -> list[str]:
    """The stages of a run that are still to be executed, because a score or the executed copy is missing."""
    run = _CachedRun(run_folder(recipe, seed, root))
    if not run.finished:
        return list(stages)
    return [
        name
        for name in stages
        if not (run.folder / STAGES[name].copy).is_file()
        or not all(run.result(score, settings) is not None for score, settings in stage_scores(recipe, seed, name))
    ]


class _CachedRun(Run):
    """A run that computes the hash of its weights once, and not for each score."""

    @cached_property
    def _digest(self) -> str | None:
        return super().weights_sha256()

    def weights_sha256(self) -> str | None:
        return self._digest


def stage_scores(recipe: str, seed: int, stage: str) -> Iterator[tuple[str, Settings]]:
    """The scores that a stage of a run writes, each with the settings that it must have been computed with."""
    for score, section in STAGES[stage].scores.items():
        values = {**load_recipe(recipe, section), **STAGES[stage].parameters}
        named = {score: values}
        if score == "transfer":
            named = {f"transfer_{target}": {**values, "target": target} for target in TARGETS[recipe.split("/")[0]]}
        for name, given in named.items():
            yield name, _parsed(section, json.dumps(given)).model_copy(update={"seed": seed})


@lru_cache(maxsize=1024)
def _parsed(section: str, values: str) -> Settings:
    """Parsed once for all seeds."""
    return SECTIONS[section].parse(json.loads(values))


def existing_scores(recipe: str, seed: int, root: str | Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores in a run's folder, by name.

    Raises:
        SfrikError: one of them is broken; its file is named.
    """
    paths = {name: run_folder(recipe, seed, root) / f"{name}.json" for stage in stages for name in STAGES[stage].scores}
    return {name: read_record(path, Score) for name, path in paths.items() if path_exists(path)}
