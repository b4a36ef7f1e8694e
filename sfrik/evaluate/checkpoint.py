"""The checkpoint of an evaluation that takes hours: whose it is, and when it is removed.

A checkpoint belongs to one score: the same settings, on the same weights, with the same images and precision. One of another
evaluation, which the same file name may hold, is not used.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sfrik.datasets.images import Images
from sfrik.runs import records
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import FrozenSettings
from sfrik.system.files import file_hash
from sfrik.system.records import VERSION, parse_record

__all__ = ["EvaluationCheckpoint"]


class EvaluationCheckpoint:
    """checkpoint_<name>.pt in the run's folder. It is a context, of the whole evaluation up to its written score.

    Within it a second process that computes the same score is refused. What was kept to go on from is removed where the
    context ends without an error.

    Args:
        run: the run. name: of the score, such as linear, linear_tune, semi1.
        settings: of the evaluation. digest: SHA-256 of the weights that it starts from. images: that it learns from.
        precision: of the network, "fp32", "bf16" or "fp16".
    """

    def __init__(self, run: Run, name: str, settings: FrozenSettings, digest: str, images: Images, precision: str) -> None:
        self.run, self.name = run, name
        self._file = Checkpoints(run.folder, f"checkpoint_{name}")
        self._lock = ExitStack()
        listed = getattr(settings, "label_list", "")  # a place, which the hash of the settings leaves out
        self._of = {
            "settings": settings.hash(),
            "weights": digest,
            "images": hashlib.sha256(images.targets.tobytes()).hexdigest() + (file_hash(Path(listed)) if listed else ""),
            "precision": precision,
        }

    def __enter__(self) -> EvaluationCheckpoint:
        self._lock.enter_context(self.run.lock(f"{self.name}.lock"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._file.delete()
        self._lock.close()

    @property
    def path(self) -> Path:
        """The newest one."""
        return self._file.paths[0]

    def save(self, state: dict[str, Any]) -> None:
        """Write a state; raises SfrikError as `sfrik.runs.checkpoints.Checkpoints` does."""
        self._file.save({"version": VERSION, "of": self._of, **state})

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None where there is none of this evaluation, and a line on stderr if of another."""
        state = self._file.load()
        if state is not None:
            parse_record(state, records.EvaluationCheckpoint, str(self.path))
        if state is None or state["of"] == self._of:
            return state
        other = ", ".join(name for name, value in self._of.items() if state["of"].get(name) != value)
        print(
            f"{self.name}: begun anew, since {self._file.paths[0]} is of another evaluation (other {other})",
            file=sys.stderr,
            flush=True,
        )
        return None
