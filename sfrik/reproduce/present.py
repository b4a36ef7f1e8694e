"""The images that the runs of a command would read, to compare with those that finished runs and scores were computed from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrik.errors import MissingImagesError
from sfrik.runs.data import FIXED, data_differences, recorded_data
from sfrik.settings import FrozenSettings, Settings, TransferSettings
from sfrik.system.download import no_downloads
from sfrik.system.terminal import warn_once

if TYPE_CHECKING:
    from sfrik.datasets import Images

__all__ = ["PresentImages"]


class PresentImages:
    """Describes images, each split once, and only those that a file records. PyTorch is imported when the first are read.

    Images that are the same everywhere are not read, and none are downloaded; a line on stderr reports those that are missing.
    Neither are compared.

    Args:
        data_dir: the folder of the images; the recipe's when empty.
    """

    def __init__(self, data_dir: str = "") -> None:
        self._data_dir = data_dir
        self._described: dict[tuple[object, ...], dict[str, Any] | None] = {}

    def training_problem(self, folder: Path, settings: Settings) -> str:
        """Why the run in a folder was not trained on the present images, and what to do; empty if nothing contradicts it.

        Raises:
            SfrikError: the images cannot be used, or settings.json is broken.
        """
        if not (recorded := recorded_data(folder)):
            return ""
        differences, place = data_differences(recorded, self._describe(settings, "pretrain")), self._data_dir or settings.data_dir
        remedy = f"check --data-dir (DATA=), restore them in {place}, or move that folder away"
        return f"{folder} holds a run on other training images ({differences}): {remedy}" if differences else ""

    def of_score(self, score: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
        """The present images of each split that a score records, where they are known.

        Raises:
            SfrikError: the images cannot be used.
        """
        found = {split: self._describe(settings, split) for split in score.get("data", {})}
        return {split: described for split, described in found.items() if described}

    def _describe(self, settings: Settings, split: str) -> dict[str, Any] | None:
        if self._data_dir:
            settings = settings.model_copy(update={"data_dir": self._data_dir})
        what = settings.target if isinstance(settings, TransferSettings) else settings.dataset
        names = {"data_dir": "", "target_dir": "", "subset": None, "val_subset": None, "train_percent": 100, "label_list": ""}
        key = what, split, *(getattr(settings, name, default) for name, default in names.items())
        if what in FIXED or key in self._described:
            return self._described.get(key)
        from sfrik.datasets import describe_data

        try:
            with no_downloads():
                self._described[key] = describe_data(_load(settings, split))
        except MissingImagesError as error:
            warn_once(f"what was computed from images that are missing now is used as it is: {error}")
            self._described[key] = None
        return self._described[key]


def _load(settings: Settings, split: str) -> Images:
    from sfrik.datasets import load_images, load_target
    from sfrik.evaluate.inputs import split_images

    if isinstance(settings, TransferSettings):
        return load_target(settings.target, split, settings.target_dir or settings.data_dir)
    if isinstance(settings, FrozenSettings):
        return split_images(settings, split)
    return load_images(settings.dataset, split, settings.data_dir, settings.subset)
