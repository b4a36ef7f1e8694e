"""The position of a pretraining, and resuming from a checkpoint."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from sfrik.datasets import Images
from sfrik.datasets.fingerprint import names_sha256, sample_contents
from sfrik.errors import SfrikError
from sfrik.ops.collectives import broadcast_from_rank_zero, rank, world_size
from sfrik.runs.checkpoints import explain_mismatch, restore_random_state
from sfrik.runs.data import data_differences, recorded_data
from sfrik.runs.folder import Run
from sfrik.runs.records import TrainingCheckpoint
from sfrik.runs.refusals import refuse_other_images
from sfrik.settings import PretrainSettings
from sfrik.system.records import parse_record
from sfrik.system.terminal import print_line

__all__ = ["Position", "check_earlier", "check_replaced", "print_from_rank_zero", "restore"]


@dataclass
class Position:
    """The next step, and the values accumulated so far for the epoch's line in metrics.jsonl.

    Attributes:
        epoch: The epoch, from 0.
        step: The next step within the epoch, from 0.
        seconds: Time spent on the epoch so far.
        broken: Names of the images that were skipped, over all processes.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


def restore(
    run: Run,
    settings: PretrainSettings,
    parts: dict[str, Any],
    images: Images,
    steps_per_epoch: int,
    device: torch.device,
    progress: bool,
) -> tuple[Position, dict[str, Any]]:
    """Load the newest checkpoint, if there is one. Rank 0 chooses the file.

    Args:
        run: The folder of the run.
        settings: The settings of the training.
        parts: Model, optimizer and scaler by their names in the checkpoint.
        images: The training images.
        steps_per_epoch: The number of steps per epoch.
        device: The device of this process.
        progress: Whether to print.

    Returns:
        The position from which to continue, the first one if there is no checkpoint; and the provenance of the steps before it.

    Raises:
        SfrikError: The checkpoint is broken, has other settings, is of an earlier release and of other images, or does not fit
            the model or optimizer.
    """
    checkpoint = run.checkpoints.load() if rank() == 0 else None
    if not broadcast_from_rank_zero(checkpoint is not None):
        return Position(), {}
    if checkpoint is None:
        checkpoint = run.checkpoints.load()
    path = run.checkpoints.paths[0]
    parse_record(checkpoint, TrainingCheckpoint, str(path), "finish the run with the release that wrote it, or move it away")
    assert checkpoint is not None  # parse_record refuses None
    if differences := settings.differences(checkpoint["settings"]):
        raise SfrikError(f"{path} is of a run with other settings ({differences}): move it away, or choose another --exp-dir")
    check_earlier(run, settings, images, checkpoint, steps_per_epoch)
    with explain_mismatch(path):
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    position = Position(**checkpoint["place"])
    print_from_rank_zero(
        progress, f"{run.folder}: resuming after epoch {position.epoch}, step {position.step} of {steps_per_epoch}"
    )
    if checkpoint["processes"] == world_size():
        with explain_mismatch(path):
            restore_random_state(checkpoint["random"][rank()], device)
    else:
        print_from_rank_zero(
            progress,
            f"trained by {checkpoint['processes']} processes so far, resumed by {world_size()}: the views will differ, and on a "
            "CPU so will the sizes of BatchNorm's shards",
        )
    return position, checkpoint.get("provenance") or {}


def check_earlier(run: Run, settings: PretrainSettings, images: Images, checkpoint: dict[str, Any], steps_per_epoch: int) -> None:
    """Refuse a checkpoint of an earlier release that was trained on other images, as far as it records them.

    `Run.start` refuses later ones. An epoch of other images would have other steps, in another order and at other learning rates.
    """
    present = {"images": len(images), "classes": images.num_classes}
    recorded = {name: value if checkpoint.get(name) is None else checkpoint[name] for name, value in present.items()}
    differences = data_differences(recorded, present)
    if not differences and checkpoint.get("names_sha256"):
        differences = "" if names_sha256(images) == checkpoint["names_sha256"] else f"{len(images)} images with other names"
    if not differences and checkpoint["place"]["step"] >= steps_per_epoch:
        differences = f"step {checkpoint['place']['step']} of an epoch that now has {steps_per_epoch}, of {len(images)} images"
    refuse_other_images(run.folder, differences, settings.data_dir, finished=False)


def check_replaced(run: Run, settings: PretrainSettings, images: Images) -> None:
    """Refuse other images than those of a training that a broken image stopped.

    Files of the same names may have replaced it and other broken ones, so half of the sample may differ.
    """
    recorded: dict[str, Any] = {}
    with suppress(SfrikError):  # a broken settings.json, which `Run.start` replaces
        recorded = recorded_data(run.folder) or {}
    if recorded.get("sample") and len(images) == recorded["images"] and run.checkpoints.exist:
        pairs = zip(recorded["sample"], sample_contents(images), strict=False)
        equal = [one == other for one, other in pairs if one and other]
        differences = "the same number of images, but other contents" if 2 * sum(equal) < len(equal) else ""
        if recorded.get("names_sha256", names := names_sha256(images)) != names:
            differences = "the same numbers of images and classes, but other names"
        refuse_other_images(run.folder, differences, settings.data_dir, finished=False)


def print_from_rank_zero(progress: bool, text: str) -> None:
    """Print a line on rank 0 if `progress` is set."""
    if progress and rank() == 0:
        print_line(text)
