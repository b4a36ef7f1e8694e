"""The end of a pretraining: write the weights, complete the provenance, delete the checkpoints; or record the failure.

A finished run is not trained again. Its images are compared with the present ones, which others would be refused for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sfrik.datasets import Images, describe_data, load_images, print_images
from sfrik.datasets.fingerprint import names_sha256, sample_contents
from sfrik.errors import MissingImagesError, SfrikError
from sfrik.networks import Encoder, network_metadata, save_weights
from sfrik.ops.collectives import rank
from sfrik.pretrain.resume import print_from_rank_zero
from sfrik.runs.data import FIXED, forget_fingerprint, recorded_data
from sfrik.runs.folder import Run
from sfrik.runs.provenance import now
from sfrik.settings import PretrainSettings
from sfrik.system.download import no_downloads

__all__ = ["already_pretrained", "finish", "last_epoch", "read_images", "record_failure"]


def read_images(settings: PretrainSettings, progress: bool) -> Images:
    """The training images. Their numbers are printed, if `progress` is set and they are trained on."""
    images = load_images(settings.dataset, "pretrain", settings.data_dir, settings.subset)
    if progress and settings.ssl_method != "none":
        print_images("training", images)
    return images


def already_pretrained(run: Run, settings: PretrainSettings, progress: bool) -> dict[str, Any]:
    """The last epoch of a finished run.

    Raises:
        SfrikError: The run has other settings, or was trained on other images than the present ones.
    """
    if rank() == 0:
        with run.lock(optional=True):
            run.start(settings, _present_images(run, settings, progress))
    return last_epoch(run, progress)


def _present_images(run: Run, settings: PretrainSettings, progress: bool) -> dict[str, Any] | None:
    """The present images, to compare with those of a finished run; None if it has no record of them, or they are missing now."""
    if settings.dataset in FIXED or not recorded_data(run.folder):
        return None
    try:
        with no_downloads():
            return describe_data(read_images(settings, progress))
    except MissingImagesError as error:
        print_from_rank_zero(progress, f"{run.folder}: the training images are not compared: {error}")
        return None


def last_epoch(run: Run, progress: bool) -> dict[str, Any]:
    """The last epoch of a finished run, after deleting what a process left that was killed once the weights were recorded."""
    print_from_rank_zero(progress, f"{run.folder}: already pretrained")
    if rank() == 0:
        clean_up(run)
    return (run.epochs() or [{}])[-1]


def finish(run: Run, encoder: Encoder, settings: PretrainSettings) -> None:
    """Write the weights, record their hashes in provenance.json, and delete the checkpoints once all of that is on disk."""
    stem = {} if "stem" in settings.without_effect() else {"stem": settings.stem}
    about, weights = {**network_metadata(settings, encoder.backbone), **stem, "settings": settings.hash()}, {}
    if settings.ssl_method != "none" and list(encoder.projector.parameters()):
        weights[run.projector.name] = save_weights(encoder.projector, run.projector, mlp=settings.mlp, **about)
    weights[run.backbone.name] = save_weights(encoder.backbone, run.backbone, **about)
    run.record(finished=now(), weights=weights)  # last: it marks the run as finished
    run.delete_outdated_scores()
    clean_up(run)


def clean_up(run: Run) -> None:
    """Delete the checkpoints and state.json, which a finished run does not need."""
    run.checkpoints.delete()
    run.clear_status()


def record_failure(run: Run, error: Exception, images: Images) -> None:
    """Write the error to state.json, unless another process has: the first failure causes those of the other processes.

    After an image that cannot be read, the same command resumes with a sound file in its place.
    """
    with suppress(OSError, SfrikError):  # this must not hide the error itself
        if "cannot read image" in str(error):
            forget_fingerprint(run.folder, names_sha256(images), sample_contents(images))
        if (run.state() or {}).get("state") != "failed":
            run.update_last_status("failed", stage="pretrain", error=str(error))
