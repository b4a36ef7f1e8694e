"""A run's folder: settings, provenance, checkpoints, scores and logs."""

from sfrik.runs.folder import Run, folder_lock

__all__ = ["Run", "folder_lock"]
