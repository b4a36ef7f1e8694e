"""The lines of metrics.jsonl as curves of TensorBoard and of Weights & Biases, where the setting `loggers` names them.

What is logged at a step is called step/<term>, what is said of an epoch epoch/<name>, at the epoch's last step. A training that
goes on continues the same curves: TensorBoard's reader drops the points from its first step on (`purge_step`), and W&B is told no
point a second time. A logger that fails is left out with a warning; the training goes on.

    <run>/tensorboard/      TensorBoard's event files: tensorboard --logdir results
    <run>/wandb/            W&B's files, and sfrik.json: the id of the run, and the last steps it was told of
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.records import WandbPlace
from sfrik.system.files import write_json
from sfrik.system.records import read_record

__all__ = ["Loggers", "check_loggers"]

SECONDS = 20  # that W&B may take to begin, and to end


def check_loggers(names: Sequence[str]) -> None:
    """Before hours of training.

    Raises:
        SfrikError: the package of a logger is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise SfrikError(f"loggers {name} needs the package {name}: python -m pip install {name}")


class Loggers:
    """The loggers of one training, for its process of rank 0.

    Args:
        names: of "tensorboard", "wandb". folder: the run's. config: settings that W&B shows beside the curves.
        step: the first step that this process trains, counted from the run's start.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: dict[str, Any], step: int) -> None:
        self._open: dict[str, Any] = {}
        for name in names:
            self._try(name, partial(self._begin, name, folder, config, step))

    def log(self, kind: str, line: dict[str, Any], step: int) -> None:
        """The numbers of a line, kind being "step" or "epoch"; of a list its length, such as of `broken_images`."""
        values = {name: len(value) if isinstance(value, list) else value for name, value in line.items()}
        named = {
            f"{kind}/{name}": x for name, x in values.items() if name not in ("step", "epoch") and isinstance(x, int | float)
        }
        for name, logger in list(self._open.items()):
            self._try(name, partial(logger.log, kind, named, step))

    def close(self) -> None:
        for name, logger in list(self._open.items()):
            self._try(name, logger.close)

    def _begin(self, name: str, folder: Path, config: dict[str, Any], step: int) -> None:
        self._open[name] = KINDS[name](folder, config, step)

    def _try(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever it is: the training is worth more than its curves
            self._open.pop(name, None)
            text = f"logger {name} failed and is left out ({type(error).__name__}: {error}); the training goes on"
            print(text, file=sys.stderr, flush=True)


class _TensorBoard:
    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def log(self, kind: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a process that is killed loses no point that its checkpoint is behind

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        import wandb

        self.place = folder / "wandb" / "sfrik.json"
        self.place.parent.mkdir(parents=True, exist_ok=True)
        known = read_record(self.place, WandbPlace) if step and self.place.is_file() else {}
        self.told = known or {"id": secrets.token_hex(4), "step": -1, "epoch": -1}
        write_json(self.place, self.told)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sfrik"),
            name="/".join(folder.parts[-3:]),
            dir=str(folder),
            id=self.told["id"],
            resume="allow",
            config=config,
            settings=wandb.Settings(console="off", silent=True, init_timeout=SECONDS, finish_timeout=SECONDS),
        )

    def log(self, kind: str, values: dict[str, float], step: int) -> None:
        if step <= self.told[kind]:  # before a stop whose checkpoint was an earlier one
            return
        self.run.log(values, step=step)
        self.told[kind] = step
        write_json(self.place, self.told)

    def close(self) -> None:
        self.run.finish()


KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb}
