"""The end of a pretraining: weights, provenance, and the removal of what a finished run does not need."""

from __future__ import annotations

from contextlib import suppress

from sfrik.errors import SfrikError
from sfrik.networks import Encoder, save_weights
from sfrik.runs.folder import Run
from sfrik.runs.provenance import now
from sfrik.settings import PretrainSettings

__all__ = ["clean_up", "finish", "record_failure"]


def finish(run: Run, encoder: Encoder, settings: PretrainSettings) -> None:
    """Write the weights and record their hashes; remove the checkpoints once all of that is on disk."""
    about, weights = {"arch": settings.arch, "stem": settings.stem, "settings": settings.hash()}, {}
    if settings.ssl_method != "none" and list(encoder.projector.parameters()):
        weights[run.projector.name] = save_weights(encoder.projector, run.projector, mlp=settings.mlp, **about)
    weights[run.backbone.name] = save_weights(encoder.backbone, run.backbone, **about)
    run.record(finished=now(), weights=weights)  # last: it marks the run as finished
    run.forget_other_scores()
    clean_up(run)


def clean_up(run: Run) -> None:
    """Remove what a finished run does not need."""
    run.checkpoints.drop()
    run.clear_status()


def record_failure(run: Run, error: Exception) -> None:
    """Write why the run failed, unless another process did: the processes after the first fail because of it."""
    with suppress(OSError, SfrikError):  # two processes that write at the same time; the error itself is what counts
        if (run.state() or {}).get("state") != "failed":
            run.update_last_status("failed", stage="pretrain", error=str(error))
