"""What a run is refused for before anything is written; `--dry-run` asks the same questions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.cached import header_error
from sfrik.runs.data import data_differences
from sfrik.runs.records import RunSettings
from sfrik.settings import Settings, published_root, recipe_of, recipe_settings, runs_root
from sfrik.system.files import UnreadableError
from sfrik.system.records import read_record
from sfrik.system.tensor_files import read_header

__all__ = [
    "publishing",
    "refuse_folder",
    "refuse_other_images",
    "refuse_other_recipe",
    "refuse_other_settings",
    "refuse_published",
]

PUBLISHING = "SFRIK_PUBLISHING"  # in the environment: the id of the process that publishes


def refuse_folder(folder: Path, settings: Settings, data: dict[str, Any] | None = None) -> None:
    """Refuse the folder of another run, as `sfrik.runs.folder.Run.start` does, but change nothing in it.

    Args:
        data: The training images; None: they are not compared.

    Raises:
        SfrikError: The message lists the differences.
    """
    refuse_published(folder)
    refuse_other_recipe(folder, settings)
    record, weights = folder / "settings.json", folder / "backbone.safetensors"
    differences = of_images = ""
    try:
        if record.exists():
            recorded = read_record(record, RunSettings)
            differences, of_images = settings.differences(recorded["settings"]), data_differences(recorded.get("data"), data)
        elif weights.is_file() and not header_error(weights) and (theirs := read_header(weights).get("settings")):
            differences = "" if theirs == settings.hash() else f"hash {theirs} -> {settings.hash()}"
    except UnreadableError:
        raise
    except SfrikError:  # the run writes a broken record again
        return
    if weights.is_file() or any((folder / name).is_file() for name in ("checkpoint.pt", "checkpoint.previous.pt")):
        refuse_other_settings(folder, differences, weights.is_file())
        refuse_other_images(folder, of_images, settings.data_dir, weights.is_file())


def refuse_published(folder: str | Path) -> None:
    """Refuse to write into the published results, which only `sfrik publish` changes, and the notebook that it executes.

    Raises:
        SfrikError: The folder is results/ of a checkout (this one or another, such as a git worktree), or below it.
    """
    if os.environ.get(PUBLISHING) in (str(os.getpid()), str(os.getppid())):
        return
    place, ours = Path(folder).resolve(), Path(os.path.abspath(published_root()))
    above = [path for path in (place, *place.parents) if path.name == "results"]
    above += [ours] if place.is_relative_to(ours.resolve()) else []  # results/ may be a link
    if any((path.parent / "sfrik" / "recipes").is_dir() for path in above):  # without a checkout, results/ is the user's
        raise SfrikError(
            f"{folder} is part of the published results, which only sfrik publish changes: choose another folder, such as "
            f"{runs_root()}"
        )


@contextmanager
def publishing() -> Iterator[None]:
    """Let this process and its kernels write into the published results."""
    os.environ[PUBLISHING] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[PUBLISHING]


def refuse_other_recipe(folder: Path, settings: Settings) -> None:
    """Refuse the folder of a recipe, which tables read, for other settings than the recipe's.

    Raises:
        SfrikError: The message lists the differences.
    """
    if (of := recipe_of(folder)) and (differences := settings.differences(recipe_settings(*of).what())):
        raise SfrikError(
            f"{folder} is the folder of recipe {of[0]}, which tables read, but these are other settings "
            f"({differences}): leave --exp-dir out, or choose another one"
        )


def refuse_other_images(folder: Path, differences: str, data_dir: str, finished: bool) -> None:
    """Refuse a folder that holds a run that was trained on other images.

    Args:
        folder: The folder of the run.
        differences: `sfrik.runs.data.data_differences`; nothing is refused if it is empty.
        data_dir: The folder of the present images.
        finished: Whether the folder holds weights, and not only checkpoints.

    Raises:
        SfrikError: The message lists the differences.
    """
    if differences:
        raise SfrikError(
            f"{folder} holds {'a run' if finished else 'an unfinished run'} on other training images ({differences}): check "
            f"--data-dir, restore them in {data_dir}, or train on the present ones in another --exp-dir"
        )


def refuse_other_settings(folder: Path, differences: str, finished: bool) -> None:
    """Refuse a folder that holds a run with other settings.

    Args:
        folder: The folder of the run.
        differences: The settings that differ; nothing is refused if it is empty.
        finished: Whether the folder holds weights, and not only checkpoints.

    Raises:
        SfrikError: The message lists the differences.
    """
    if differences:
        raise SfrikError(
            f"{folder} holds {'a run' if finished else 'an unfinished run'} with other settings ({differences}): "
            "choose another --exp-dir, or move that folder away"
        )
