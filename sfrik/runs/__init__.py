"""The folder of a run: settings, provenance, checkpoints, scores and logs."""

from sfrik.runs.folder import Run

__all__ = ["Run"]
