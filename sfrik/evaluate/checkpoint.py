"""The checkpoint of an evaluation that takes hours: which evaluation it belongs to, and when it is removed.

A checkpoint belongs to one score: the same settings, weights, images and precision. A file of the same name that belongs to
another evaluation is ignored, with a line on stderr.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sfrik.runs import records
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import FrozenSettings
from sfrik.system.records import VERSION, parse_record
from sfrik.system.terminal import print_line

__all__ = ["EvaluationCheckpoint"]


class EvaluationCheckpoint:
    """checkpoint_<name>.pt in the run's folder, and the lock of the score: a context around an evaluation.

    Entering waits for another process that measures the same score; look for a finished score afterwards. The checkpoint is
    removed when the context ends without an error.

    Args:
        run: the run.
        name: of the score, such as linear, linear_tune, semi1.
        settings: of the evaluation.
        digest: SHA-256 of the weights that the evaluation starts from.
        data: of the images, by split (`Inputs.data`).
        precision: of the network, "fp32", "bf16" or "fp16".
    """

    def __init__(
        self, run: Run, name: str, settings: FrozenSettings, digest: str, data: Mapping[str, Any], precision: str
    ) -> None:
        self.run, self.name = run, name
        self._file = Checkpoints(run.folder, f"checkpoint_{name}")
        self._lock = ExitStack()
        self._of = {"settings": settings.hash(), "weights": digest, "precision": precision}
        self._of |= {f"{split} images": found["sha256"] for split, found in data.items()}

    def __enter__(self) -> EvaluationCheckpoint:
        self._lock.enter_context(self.run.lock(f"{self.name}.lock", wait=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._file.delete()
        self._lock.close()

    @property
    def path(self) -> Path:
        """The newest checkpoint."""
        return self._file.paths[0]

    def save(self, state: dict[str, Any]) -> None:
        """Write a state; raises SfrikError as `sfrik.runs.checkpoints.Checkpoints.save` does."""
        self._file.save({"version": VERSION, "of": self._of, **state})

    def load(self) -> dict[str, Any] | None:
        """The last saved state; None without one of this evaluation, with a line on stderr if it belongs to another."""
        state = self._file.load()
        if state is not None:
            parse_record(state, records.EvaluationCheckpoint, str(self.path))
        if state is None:
            return None
        different = ", ".join(name for name, value in self._of.items() if state["of"].get(name) != value)
        if not different:
            return state
        text = f"{self.name}: restarted, since {self.path} belongs to another evaluation (different {different})"
        print_line(text, error=True)
        return None
