"""The package's exceptions, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
import re
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


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The text " (did you mean X?)" for the known names closest to `name`, or "" if none is close.

    These are the names that start with `name`, or whose part after the last slash does, or that have it as a word, or that end in
    it if it is a number, at most three of them. Without any, it is the most similar one, if its similarity is at least `cutoff`.
    Case makes no difference, nor do hyphens and underscores.

    >>> nearest("pre", ["evaluate", "pretrain"]), nearest("sfrik_l3", ["digits/sfrik_l3_q512", "digits/auh_q512"])
    (' (did you mean pretrain?)', ' (did you mean digits/sfrik_l3_q512?)')
    >>> nearest("--lr", ["--mlp", "--base-lr"]), nearest("pretian", ["pretrain", "evaluate"])
    (' (did you mean --base-lr?)', ' (did you mean pretrain?)')
    >>> nearest("1", ["table1", "table11", "table12"])
    ' (did you mean table1?)'
    """
    forms = {one: _plain(one) for one in known}
    typed = _plain(name)
    close = [one for one, form in forms.items() if form == typed]
    if not close and typed.strip("_"):
        close = [one for one, form in forms.items() if form.startswith(typed)]
        close = close or [one for one, form in forms.items() if form.rpartition("/")[2].startswith(typed)]
        close = close or [one for one, form in forms.items() if f"_{typed.strip('_')}_" in f"_{form}_"]
        if typed.isdecimal():
            close = close or [one for one, form in forms.items() if re.search(f"(?<![0-9]){typed}$", form)]
    if not close:
        similar = difflib.get_close_matches(typed, forms.values(), n=1, cutoff=cutoff)
        close = [one for one, form in forms.items() if form in similar][:1]
    shown = ", ".join([*close[:3], "..."]) if len(close) > 3 else " or ".join(filter(None, (", ".join(close[:-1]), *close[-1:])))
    return f" (did you mean {shown}?)" if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
