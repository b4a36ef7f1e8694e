"""The package's exceptions, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["STOPPED", "MissingImagesError", "Preempted", "SfrikError", "WorkerError", "nearest"]

STOPPED = 75  # exit status of a command that was stopped by a signal and resumes when it is run again (EX_TEMPFAIL)


class SfrikError(ValueError):
    """An error in a setting, a file or a folder, with the remedy. The command line prints it without a traceback."""


class MissingImagesError(SfrikError):
    """The images of a data set, or their labels, are not where they are looked for. What was computed from them can be used."""


class Preempted(SfrikError):
    """The work was stopped by SIGTERM, SIGUSR1 or SIGHUP and has saved a checkpoint, from which the same command resumes."""


class WorkerError(RuntimeError):
    """A worker of `sfrik.launch` failed. The text has its rank, its host and, if it raised an exception, the traceback.

    Attributes:
        mistake: the message of the `SfrikError` that the worker raised; None for any other error.
    """

    def __init__(self, text: str, mistake: str | None = None) -> None:
        super().__init__(text)
        self.mistake = mistake


def nearest(name: str, known: Iterable[str]) -> str:
    """The text " (did you mean X?)" for the known name closest to `name` in upper or lower case, or "" if none is close."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""
