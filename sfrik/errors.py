"""The error that means: the input is wrong, and its text says what to do; and the one that means: stopped, not failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["STOPPED", "Preempted", "SfrikError", "WorkerError", "nearest"]

STOPPED = 75  # exit status of a command that was asked to stop and goes on when it is repeated (EX_TEMPFAIL)


class SfrikError(ValueError):
    """A mistake in a setting, a file or a folder. The command line prints its text alone, without a traceback."""


class Preempted(SfrikError):
    """The work was asked to stop, by SIGTERM or SIGUSR1, and has saved a checkpoint; the same command resumes from there."""


class WorkerError(RuntimeError):
    """A worker of `sfrik.launch` failed; the text holds its rank, its host and, where it raised, its traceback.

    Attributes:
        mistake: the text of the `SfrikError` that it raised; None of another error.
    """

    def __init__(self, text: str, mistake: str | None = None) -> None:
        super().__init__(text)
        self.mistake = mistake


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" for the known name most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
