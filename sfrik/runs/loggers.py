"""The lines of metrics.jsonl as curves in TensorBoard and Weights & Biases, as chosen by the setting `loggers`.

Values of a step are called ``step/<term>``; those of an epoch are called ``epoch/<name>`` and plotted at the epoch's last step. A
resumed training continues the same curves: TensorBoard discards earlier points from the first resumed step on (`purge_step`), and
each point is sent to W&B once. A logger that fails is disabled with a warning, and the training continues.

Files::

    <run>/tensorboard/   TensorBoard's event files: tensorboard --logdir runs
    <run>/wandb/         W&B's files, and sfrik.json with the id of the run and the last steps sent
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.records import WandbRun
from sfrik.system.files import write_json
from sfrik.system.records import read_record
from sfrik.system.terminal import print_line

__all__ = ["Loggers", "check_loggers"]

WANDB_TIMEOUT = 20  # seconds for W&B to start, and to finish


def check_loggers(names: Sequence[str]) -> None:
    """Check, before hours of training, that the packages of the loggers are installed.

    Raises:
        SfrikError: A package is missing.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        folder = spec is not None and spec.origin is None and spec.submodule_search_locations is not None  # ./wandb, W&B's files
        if spec is None or folder:
            raise SfrikError(f"loggers {name} needs the package {name}: python -m pip install {name}")


class Loggers:
    """The loggers of a training run, used by the process of rank 0.

    Args:
        names: "tensorboard", "wandb", both or neither.
        folder: The folder of the run.
        config: Settings that W&B shows next to the curves.
        step: The first step that this process trains, counted from the start of the run.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: dict[str, Any], step: int) -> None:
        self._loggers: dict[str, Any] = {}
        for name in names:
            self._try(name, partial(self._start, name, folder, config, step))

    def log(self, kind: str, line: dict[str, Any], step: int) -> None:
        """Log the numbers of a line of metrics.jsonl, and the lengths of its lists, such as `broken_images`.

        Args:
            kind: "step" or "epoch", the prefix of the names.
            line: The line.
            step: The x coordinate, counted from the start of the run.
        """
        values = {name: len(value) if isinstance(value, list) else value for name, value in line.items()}
        named = {
            f"{kind}/{name}": x for name, x in values.items() if name not in ("step", "epoch") and isinstance(x, int | float)
        }
        for name, logger in list(self._loggers.items()):
            self._try(name, partial(logger.log, kind, named, step))

    def close(self) -> None:
        """Close all loggers."""
        for name, logger in list(self._loggers.items()):
            self._try(name, logger.close)

    def _start(self, name: str, folder: Path, config: dict[str, Any], step: int) -> None:
        self._loggers[name] = LOGGERS[name](folder, config, step)

    def _try(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # of any type: a failing logger must not end the training
            self._loggers.pop(name, None)
            text = f"logger {name} failed and is disabled ({type(error).__name__}: {error}); the training continues"
            print_line(text, error=True)


class _TensorBoard:
    """Event files of TensorBoard."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def log(self, kind: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed process loses no points from before its last checkpoint

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run at Weights & Biases. Its id is stored in the run's folder, so that a resumed training continues it."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        import wandb

        self.record_path = folder / "wandb" / "sfrik.json"
        self.record_path.parent.mkdir(parents=True, exist_ok=True)
        recorded = read_record(self.record_path, WandbRun) if step and self.record_path.is_file() else {}
        self.sent = recorded or {"id": secrets.token_hex(4), "step": -1, "epoch": -1}
        write_json(self.record_path, self.sent)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sfrik"),
            name="/".join(folder.parts[-3:]),
            dir=str(folder),
            id=self.sent["id"],
            resume="allow",
            config=config,
            settings=wandb.Settings(console="off", silent=True, init_timeout=WANDB_TIMEOUT, finish_timeout=WANDB_TIMEOUT),
        )

    def log(self, kind: str, values: dict[str, float], step: int) -> None:
        if step <= self.sent[kind]:  # already sent before the run stopped; this step is repeated from an earlier checkpoint
            return
        self.run.log(values, step=step)
        self.sent[kind] = step
        write_json(self.record_path, self.sent)

    def close(self) -> None:
        self.run.finish()


LOGGERS = {"tensorboard": _TensorBoard, "wandb": _Wandb}
