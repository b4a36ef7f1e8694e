"""What a command is about to do: the first line of a run, the settings that differ from the defaults, and a dry run's plan."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sfrik.runs.folder import Run
from sfrik.settings import (
    EvaluateSettings,
    FeatureSettings,
    KnnSettings,
    LogisticSettings,
    PretrainSettings,
    Settings,
    TransferSettings,
    load_recipe,
)
from sfrik.system.terminal import UNBROKEN, wrap

__all__ = ["format_changes", "format_plan", "format_value", "headline"]

LONGEST = 20  # a longer value of a setting shifts only its own line
METHODS = {"sfrik": "SFRIK", "auh": "AUH", "simclr": "SimCLR", "vicreg": "VICReg", "sigreg": "SIGReg"}


def headline(settings: Settings, processes: int = 1) -> str:
    """The first line of a run, as in `SFRIK L=3, ResNet-8, q = 64, 300 images, 1 process -> folder`."""
    from sfrik.cost.memory import expected_images  # imports torch, as the command does

    parts = [_what(settings)]
    if settings.features_dir:
        parts.append(f"the features in {settings.features_dir}")  # of images and a network that it does not read
    else:
        images, place = expected_images(settings), getattr(settings, "image_dir", "") or settings.data_dir
        parts += [_network(settings), f"{images:,} images" if images is not None else f"the images in {place}"]
    parts.append("1 process" if processes == 1 else f"{processes} processes")
    return f"{', '.join(parts)} -> {_folder(settings)}"


def _folder(settings: Settings) -> str:
    """The folder that the command writes to."""
    if isinstance(settings, FeatureSettings):
        return settings.extraction_dir or str(Path(settings.exp_dir) / "features")
    return settings.exp_dir


def _what(settings: Settings) -> str:
    """The method."""
    if isinstance(settings, PretrainSettings):
        return _method(settings)
    if isinstance(settings, KnnSettings):
        return f"kNN (k = {', '.join(map(str, settings.nb_knn))})"
    if isinstance(settings, LogisticSettings):
        return f"logistic regression ({settings.solver})"
    if isinstance(settings, TransferSettings):
        return f"transfer to {settings.target}"
    if isinstance(settings, EvaluateSettings):
        protocol = "linear probing" if settings.weights == "freeze" else "fine-tuning"
        saved = "score of a saved head: " if settings.only_inference else ""
        labels = "" if settings.train_percent == 100 else f" with {settings.train_percent:g} % of the labels"
        return f"{saved}{protocol}{labels}"
    return "features"


def _network(settings: Settings) -> str:
    """The network, with q if it is pretrained."""
    size = re.fullmatch(r"resnet(\d+)", settings.arch)
    network = f"ResNet-{size[1]}" if size else "raw pixels" if settings.arch == "pixels" else settings.arch
    q = f", q = {settings.dim}" if isinstance(settings, PretrainSettings) and settings.arch != "pixels" else ""
    return f"{network}{q}"


def _method(settings: PretrainSettings) -> str:
    if settings.ssl_method == "none":
        return "no training"
    if settings.ssl_method != "sfrik":
        return METHODS[settings.ssl_method]
    truncated = settings.sfrik_kernel == "truncated"
    kernel = f" L={len(settings.kernel_weights)}" if truncated else f" with the {settings.sfrik_kernel} kernel"
    return f"SFRIK{kernel}" + (f", Stein order {settings.sfrik_stein}" if settings.sfrik_stein else "")


def format_changes(settings: Settings, recipe: Mapping[str, Any] | None = None, hidden: Collection[str] = ()) -> list[str]:
    """A line for each setting in use that differs from its default, or from the recipe's value: name, value and default.

    Args:
        settings: the settings; the folder is left out.
        recipe: the settings of the recipe that they start from.
        hidden: names of settings to leave out.
    """
    fields, rows = type(settings).model_fields, []
    hidden = {*hidden, *(settings.unused() - {"sfrik_trade_off"}), "exp_dir"}
    for name in (name for name in fields if name in settings.model_fields_set - hidden):
        value, default = getattr(settings, name), fields[name].default
        theirs = recipe.get(name, default) if recipe is not None else value
        if value not in (default, theirs) or default != theirs:
            origin = f"recipe: {format_value(theirs)}" if value != theirs else f"default: {format_value(default)}"
            rows.append((name, format_value(value), f"({origin})".replace(" ", UNBROKEN)))
    name_width = max((len(name) for name, _, _ in rows), default=0)
    value_width = max((len(value) for _, value, _ in rows if len(value) <= LONGEST), default=0)
    lines = [f"  {name:{name_width}}  {value:{value_width}}  {origin}" for name, value, origin in rows]
    return [part.replace(UNBROKEN, " ") for line in lines for part in wrap(line, "      ")]


def format_value(value: Any) -> str:
    """A setting as it is typed after its flag."""
    if isinstance(value, tuple | list):
        return " ".join(map(format_value, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return "none" if value in (None, "") else str(value)


def format_plan(settings: Settings, processes: int | None, multi_process: bool, recipe: str | None = None) -> list[str]:
    """The plan of a command: the settings that differ, steps, images, expected memory, and the folder.

    Args:
        settings: the settings of the command.
        processes: the number of processes. None: 1, and with `multi_process` also each larger number that divides the batch.
        multi_process: whether the command can run on several processes.
        recipe: the recipe that the settings start from.
    """
    from sfrik.cost.memory import expected_images, expected_steps
    from sfrik.cost.report import memory_by_processes, memory_table
    from sfrik.objectives.factory import kernel_notes

    changes = format_changes(settings, recipe_values(recipe, settings))
    start = f"recipe {recipe}; " if recipe else ""
    lines = wrap(f"{start}settings that differ from the defaults:" if changes else f"{start}all settings have their defaults")
    lines += changes
    counts, images = expected_steps(settings), expected_images(settings)
    if settings.features_dir:
        lines += wrap(_features(settings.features_dir))
        lines += [f"steps: {counts[0]} per epoch, {counts[0] * counts[1]} in total"] if counts is not None else []
    elif counts is not None and images is not None:
        steps, epochs = counts
        seen = steps * settings.batch_size if isinstance(settings, PretrainSettings) else images * min(1, epochs)
        lines += wrap(f"steps: {steps} per epoch, {steps * epochs} in total")
        lines += wrap(f"images: {seen} per epoch{f' (of {images})' if seen < images else ''}, {seen * epochs} in total")
    elif images is not None:
        lines += wrap(f"images: {images}")
    else:
        place = getattr(settings, "image_dir", "") or settings.data_dir
        lines += wrap(f"steps per epoch: the number of images in {place}, divided by {settings.batch_size}")
    if isinstance(settings, PretrainSettings):
        notes = (settings.trade_off_line, *settings.notes, *kernel_notes(settings))
        lines += [line for note in notes if note for line in wrap(note)]
    found = memory_by_processes(settings, processes or (None if multi_process else 1))
    lines += ["memory to expect:", *(f"  {line}" for line in memory_table(found))] if found else []
    return [*lines, *wrap(f"folder: {_folder(settings)}{_state(settings)}")]


def _features(folder: str) -> str:
    """The features that a command reads from a folder."""
    from sfrik.evaluate.feature_files import count_features

    found = count_features(folder)
    if found is None:
        return f"features: there are none in {folder} yet, on which the memory depends: check --extraction-dir"
    numbers = f"{found.train} to train on and {found.scored} to score"
    return f"features: {numbers}, of {found.dim} dimensions and {found.classes} classes"


def recipe_values(recipe: str | None, settings: Settings) -> dict[str, Any] | None:
    """The settings of a recipe for the command of these settings; None without a recipe."""
    if recipe is None:
        return None
    kind = type(settings)
    return dict(kind.parse(load_recipe(recipe, kind.section(dict(settings)))))


def _state(settings: Settings) -> str:
    """What the command would do with what is in the folder."""
    if not isinstance(settings, PretrainSettings):
        return ""
    run = Run(settings.exp_dir)
    if run.finished:
        return " (this run is finished: nothing would be trained)"
    return " (an unfinished run, which would be resumed)" if run.checkpoints.exist else ""
