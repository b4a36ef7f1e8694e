"""What a dry run refuses: what the run would refuse before it computes anything. Nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from sfrik.errors import SfrikError
from sfrik.runs.loggers import check_loggers
from sfrik.settings import PretrainSettings, Settings, takes_arguments
from sfrik.system.locks import refuse_locked
from sfrik.system.terminal import print_line

if TYPE_CHECKING:
    from sfrik.launch.slurm import Layout

__all__ = ["check_folder", "check_inputs", "check_plan", "check_table"]

# Settings that name a file or a folder of data. Weights, heads and features may be written by a command that is run before.
INPUTS = {"data_dir": "folder", "target_dir": "folder", "image_dir": "folder", "label_list": "file"}
DOWNLOADED = ("mnist5k", "cifar10", "cifar100")  # data sets that need no folder of the user


def check_plan(settings: Settings, processes: int = 1, waits: bool = False) -> None:
    """Refuse what a command with these settings would refuse.

    Images and labels that are named and missing are reported. Weights, heads and features may be missing, since commands before
    this one may write them. The device may be another machine's.

    Args:
        settings: the settings.
        processes: number of processes of a pretraining.
        waits: whether the command waits for another process that writes the run's folder, and does not refuse it.

    Raises:
        SfrikError: as the command.
    """
    check_inputs(settings)
    if isinstance(settings, PretrainSettings):
        _check_pretraining(settings, processes)
        if not waits:
            refuse_locked(settings.exp_dir)
    else:
        from sfrik.evaluate.inputs import Inputs

        Inputs.resolve(settings)  # pyrefly: ignore[bad-specialization] every other section is evaluated


def check_folder(folder: str | Path | None, flag: str = "--results") -> None:
    """Refuse a folder for results that is a file, or in one, or a link that leads nowhere.

    Raises:
        SfrikError: the file or the link is named.
    """
    for path in (Path(folder or "."), *Path(folder or ".").parents):
        if path.is_file():
            raise SfrikError(f"{path} is a file and not a folder: check {flag}")
        if os.path.islink(path) and not os.path.exists(path):
            raise SfrikError(f"{path} is a link that leads nowhere: check {flag}")


def check_inputs(settings: Settings) -> None:
    """Report a missing file or folder of images or labels that a setting names, with its flag.

    It is not refused: a plan can be printed before the data is there, or on another machine.
    """
    fields = type(settings).model_fields
    for name, kind in INPUTS.items():
        value = getattr(settings, name, None)
        unread = name == "data_dir" and (settings.dataset in DOWNLOADED or settings.features_dir)
        if not value or value == fields[name].default or unread:
            continue
        flag = f"--{name.replace('_', '-')}"
        if kind == "folder" and not Path(value).is_dir():
            print_line(f"there is no folder {value} yet: check {flag}")
        elif kind == "folder" and os.access(value, os.R_OK) and not os.listdir(value):
            print_line(f"the folder {value} is empty: check {flag}")
        elif kind == "file" and (not Path(value).exists() or Path(value).is_dir()):
            print_line(f"there is no file {value} yet: check {flag}")


def check_table(recipes: Collection[str], data_dir: str, layout: Layout | None) -> None:
    """Refuse what `sfrik table` would refuse before it pretrains these recipes.

    Args:
        recipes: the recipes that are missing.
        data_dir: folder of the images; that of each recipe when empty.
        layout: the processes of each pretraining on a cluster; None on this machine.

    Raises:
        SfrikError: as the command.
    """
    if layout is not None:
        from sfrik.launch.slurm import read_site
        from sfrik.launch.slurm_client import not_here
        from sfrik.reproduce.submit import check_layout

        read_site()
        if shutil.which("sbatch") is None:
            raise not_here("sbatch")
        for recipe in recipes:
            check_layout(recipe, layout)
    for recipe in recipes:
        settings = PretrainSettings.from_recipe(recipe, data_dir=data_dir or None)
        check_inputs(settings)
        check_loggers(settings.loggers)
        if takes_arguments(settings.arch):
            from sfrik.networks import check_network  # imports PyTorch

            check_network(settings)


def _check_pretraining(settings: PretrainSettings, processes: int) -> None:
    from sfrik.cost.memory import expected_images
    from sfrik.datasets.sizes import check_subset
    from sfrik.networks import check_network
    from sfrik.pretrain.order import check_batch_size
    from sfrik.runs.refusals import refuse_folder
    from sfrik.views.base import build_views

    check_loggers(settings.loggers)
    check_network(settings)
    check_subset(settings.dataset, "pretrain", settings.subset, None)
    images = expected_images(settings)
    check_batch_size(settings, settings.batch_size if images is None else images, processes)
    build_views(settings.augmentations, settings.size, settings.dataset, settings.input_pipeline, **settings.crops)
    refuse_folder(Path(settings.exp_dir), settings)
