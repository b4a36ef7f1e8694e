"""The stages of a run: which notebook computes which scores, and which of them are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sfrik.errors import SfrikError, nearest
from sfrik.reproduce.present import PresentImages
from sfrik.runs.data import FIXED, split_differences
from sfrik.runs.folder import Run
from sfrik.runs.scores import run_problem
from sfrik.settings import FrozenSettings, Settings, TransferSettings, load_recipe, recipe_settings, run_folder, score_settings
from sfrik.tables.collect import read_score
from sfrik.tables.rows import TARGETS

__all__ = [
    "DEFAULT_STAGES",
    "STAGES",
    "PlannedRun",
    "Stage",
    "check_images",
    "check_run",
    "existing_scores",
    "missing_stages",
    "refusal",
    "score_names",
    "score_problems",
    "stage_scores",
]


@dataclass(frozen=True)
class Stage:
    """A notebook of a run.

    Attributes:
        notebook: its name.
        scores: the names of the scores that it writes; transfer is one for each target of the profile.
        parameters: of the notebook, beside the recipe and the folder.
        suffix: added to the name of the executed copy.
    """

    notebook: str
    scores: tuple[str, ...] = ()
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
    "linear": Stage("03_linear_probing", ("linear",)),
    "semi": Stage("04_semi_supervised", ("semi1", "semi10", "transfer")),
    "knn": Stage("05_knn_and_logistic_regression", ("knn", "logistic")),
    "tune": Stage("03_linear_probing", ("linear_tune",), {"val_dataset": "train"}, "_tune"),
    "inference": Stage("03_linear_probing", ("linear_inference",), {"only_inference": True}, "_inference"),
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


def check_images(runs: Iterable[PlannedRun], data_dir: str = "") -> None:
    """Refuse images that stages of runs could not use, before hours of work end there; download those of CIFAR.

    Each split is read once: listed, and CIFAR's images decoded. Images that are the same everywhere are not read, nor are those
    of transfers, which other stages do without.

    Args:
        data_dir: the folder of the images; the recipe's when empty.

    Raises:
        SfrikError: images are missing or cannot be used, with the remedy.
    """
    needed: dict[tuple[Any, ...], None] = {}
    for recipe, seed, stages in runs:
        if "pretrain" in stages:
            settings = recipe_settings(recipe, seed)
            needed[settings.dataset, "pretrain", data_dir or settings.data_dir, settings.subset] = None
        for settings in (settings for stage in stages for _, settings in stage_scores(recipe, seed, stage)):
            if isinstance(settings, FrozenSettings) and not isinstance(settings, TransferSettings):
                from sfrik.evaluate.inputs import splits_read

                place = data_dir or settings.data_dir
                for split in splits_read(settings):
                    needed[settings.dataset, split, place, settings.subset, settings.val_subset] = None
    for dataset, *which in needed:
        if dataset not in FIXED:
            from sfrik.datasets import load_images

            load_images(dataset, *which)


def missing_stages(
    recipe: str,
    seed: int,
    root: str | Path | None = None,
    stages: Sequence[str] = DEFAULT_STAGES,
    present: PresentImages | None = None,
) -> list[str]:
    """The stages of a run that are still to be executed, because a score of the recipe or the executed copy is missing.

    A score counts where it is, also after the weights were deleted. Weights are missing only if a missing stage needs them.
    Scores of other images than the present ones are missing, and so is all of a run on other training images.

    Args:
        present: the images to compare with; they are not compared when None.
    """
    run = _CachedRun(run_folder(recipe, seed, root), present)
    if _run_problem(recipe, seed, run.folder, present):
        return list(stages)
    missing = [
        name
        for name in stages
        if not (run.folder / STAGES[name].copy).is_file()
        or not all(run.result(score, settings) is not None for score, settings in stage_scores(recipe, seed, name))
    ]
    scored = any(STAGES[name].scores for name in stages)
    if "pretrain" in stages and "pretrain" not in missing and not run.finished and (missing or not scored):
        missing = ["pretrain", *missing]
    return missing


def refusal(recipe: str, seed: int, root: str | Path | None = None, present: PresentImages | None = None) -> str:
    """Why the recipe cannot be run in its folder, which holds another run, and what to do; empty if it can.

    A folder with the record of a run, but without weights and checkpoints, is used again.

    Args:
        present: the images to compare with; they are not compared when None.
    """
    folder = run_folder(recipe, seed, root)
    if not any((folder / name).is_file() for name in ("backbone.safetensors", "checkpoint.pt", "checkpoint.previous.pt")):
        return ""
    return _run_problem(recipe, seed, folder, present)


def _run_problem(recipe: str, seed: int, folder: Path, present: PresentImages | None) -> str:
    settings = recipe_settings(recipe, seed)
    if problem := run_problem(folder, settings):
        return f"{folder} holds another run, {problem}: move that folder away, or restore the recipe"
    return present.training_problem(folder, settings) if present else ""


def score_problems(recipe: str, seed: int, root: str | Path | None, stages: Sequence[str]) -> list[str]:
    """Why scores that exist in a run's folder are not those of the recipe."""
    names = score_names(recipe, stages)
    return [problem for name in names if (problem := read_score(recipe, seed, name, root)[1])]


class _CachedRun(Run):
    """A run that computes the hash of its weights once, and not for each score; its scores are of the present images."""

    def __init__(self, folder: Path, present: PresentImages | None) -> None:
        super().__init__(folder)
        self._present = present

    def result(self, protocol: str, settings: Settings | None = None) -> dict[str, Any] | None:
        score = super().result(protocol, settings)
        if score is None or settings is None or self._present is None:
            return score
        return None if split_differences(score.get("data", {}), self._present.of_score(score, settings)) else score

    @cached_property
    def _digest(self) -> str | None:
        return super().weights_sha256()

    def weights_sha256(self) -> str | None:
        return self._digest


def score_names(recipe: str, stages: Sequence[str]) -> list[str]:
    """The names of the scores that stages of a run write."""
    scores = [score for stage in stages for score in STAGES[stage].scores]
    targets = [f"transfer_{target}" for target in TARGETS[recipe.split("/")[0]]]
    return [name for score in scores for name in (targets if score == "transfer" else [score])]


def stage_scores(recipe: str, seed: int, stage: str) -> Iterator[tuple[str, Settings]]:
    """The scores that a stage of a run writes, each with the settings that it must have been computed with."""
    for name in score_names(recipe, [stage]):
        yield name, score_settings(recipe, seed, name)


def existing_scores(recipe: str, seed: int, root: str | Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores of the recipe in a run's folder, by name.

    Raises:
        SfrikError: one of them is broken; its file is named.
    """
    names = score_names(recipe, stages)
    return {name: score for name in names if (score := read_score(recipe, seed, name, root)[0])}
