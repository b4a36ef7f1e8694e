"""The end of a pretraining: write the weights, complete the provenance, delete the checkpoints; or record the failure."""

from __future__ import annotations

from contextlib import suppress

from sfrik.errors import SfrikError
from sfrik.networks import Encoder, save_weights
from sfrik.runs.folder import Run
from sfrik.runs.provenance import now
from sfrik.settings import PretrainSettings

__all__ = ["clean_up", "finish", "record_failure"]


def finish(run: Run, encoder: Encoder, settings: PretrainSettings) -> None:
    """Write the weights, record their hashes in provenance.json, and delete the checkpoints once all of that is on disk."""
    about, weights = {"arch": settings.arch, "stem": settings.stem, "settings": settings.hash()}, {}
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


def record_failure(run: Run, error: Exception) -> None:
    """Write the error to state.json, unless another process has: the first failure causes those of the other processes."""
    with suppress(OSError, SfrikError):  # this must not hide the error itself
        if (run.state() or {}).get("state") != "failed":
            run.update_last_status("failed", stage="pretrain", error=str(error))
