"""The training loop of linear probing and fine-tuning: SGD, a cosine by epoch, a score per epoch, and checkpoints.

All randomness follows from (seed, epoch, image or step), and a checkpoint stores the step within the epoch: an evaluation that
was interrupted ends with the same weights and score, to the last bit, as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfrik.datasets import Images, batches, explain_worker_death, keep_on_device
from sfrik.errors import SfrikError
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.linear_head import accuracies, rate_groups, set_cosine_rates
from sfrik.ops.finite import not_finite
from sfrik.ops.random import derived_seed
from sfrik.optim import SGD
from sfrik.runs.checkpoints import explain_mismatch, random_state, restore_random_state
from sfrik.runs.correctness import pack
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, TransferSettings
from sfrik.system.progress import Progress
from sfrik.system.signals import StopRequests, stop, stop_requests
from sfrik.system.terminal import print_line
from sfrik.views.base import probe_views

__all__ = ["Model", "Training"]

WITHIN_EPOCH, AFTER_EPOCH = 600.0, 30.0  # minimum seconds between checkpoints, in and after an epoch: a short probe writes none
CHECK_EVERY = 50  # steps between two checks of the losses, each of which waits for the device

Tops = tuple[float, float]  # top-1 and top-5 in %


@dataclass(frozen=True)
class Model:
    """The modules that one loss trains, each at its own rate.

    Attributes:
        modules: a head, or a backbone and its head.
        rates: the peak learning rate of each module.
        text: the rates, for messages.
    """

    modules: Sequence[nn.Module]
    rates: Sequence[float]
    text: str


@dataclass
class _Position:
    """The progress of training: the epoch, its next step, and the last batch's loss once all steps are done."""

    epoch: int = 0
    step: int = 0
    loss: float = math.nan


class Training:
    """The joint training of several models on the same batches.

    A context manager: within it `SIGNALS` are deferred to the end of the step, or to `stop_if_requested`; then
    a checkpoint is written, and KeyboardInterrupt or Preempted raised. Without a checkpoint signal handlers are not changed, and
    nothing is saved.

    A model whose loss or weights become infinite or NaN is dropped: its weights are set to 0, and so are its scores.

    Args:
        models: the trained models; their losses are independent.
        images: the training images, from which random crops are drawn.
        losses: (batch [n, c, h, w], labels [n], indices of the active models) to one loss per active model.
        settings: `epochs`, `batch_size`, `weight_decay`, `seed`, and how images are read.
        progress: whether to print a line per epoch.
        norm: a module that the models share and whose statistics `losses` updates, such as a BatchNorm before their heads.
        min_batch: the last batch of an epoch is skipped if it has fewer images.
        scaled: whether gradients pass through the backbone in fp16 and need loss scaling.
    """

    def __init__(
        self,
        models: Sequence[Model],
        images: Images,
        losses: Callable[[Tensor, Tensor, list[int]], Sequence[Tensor]],
        settings: EvaluateSettings | TransferSettings,
        device: torch.device,
        checkpoint: EvaluationCheckpoint | None,
        progress: bool,
        norm: nn.Module | None = None,
        min_batch: int = 1,
        scaled: bool = False,
    ) -> None:
        self.models, self.losses, self.settings, self.device = models, losses, settings, device
        self.images = keep_on_device(images, device)
        self.checkpoint, self.progress = checkpoint, progress
        self.rates = [rate for model in models for rate in model.rates]
        self.trained = nn.ModuleList([nn.ModuleList(model.modules) for model in models])  # by index of the model
        if norm is not None:
            self.trained.append(norm)
        groups = rate_groups([module for model in models for module in model.modules], self.rates)
        self.optimizer = SGD(groups, momentum=0.9, weight_decay=settings.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        if len(images) < min_batch:
            raise SfrikError(f"BatchNorm needs at least {min_batch} labelled images, got {len(images)}: raise --train-percent")
        rest = len(images) % settings.batch_size
        self.images_per_epoch = len(images) - (rest if rest < min_batch else 0)
        self.steps = -(-self.images_per_epoch // settings.batch_size)
        self.position, self.tops = _Position(), []
        self.correct = [""] * len(models)  # of each model after the last epoch that was scored, packed
        self.curve: list[list[float]] = []  # mean training loss by epoch and model; NaN where it is not known
        self._totals = torch.zeros(len(models), device=device)  # of the losses in this epoch, over its images
        self.broken: dict[str, list[str]] = {"train": []}  # names of images that could not be read, by split
        self.diverged: dict[int, str] = {}  # by index of the model: epoch, step and what was not finite
        self.unsaved = False  # whether anything changed since the last checkpoint
        self.saved_at = time.monotonic()
        self.requests, self._handlers = StopRequests(), ExitStack()
        self._reset_losses()

    def __enter__(self) -> Training:
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
            self.requests = self._handlers.enter_context(stop_requests())
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def fit(self, score: Callable[[int], Tensor], describe: Callable[[list[Tops]], str]) -> list[list[Tops]]:
        """Train all epochs; score every model after each of them.

        Args:
            score: (index of a model) to the ranks of the images' labels (`sfrik.evaluate.linear_head.label_ranks`).
            describe: (top-1 and top-5 in % of the models) to text for the epoch's line.

        Returns:
            Top-1 and top-5 in %, by epoch and model.

        Raises:
            SfrikError: the loss of every model has become infinite or NaN.
            Preempted: stopped by SIGTERM, SIGUSR1 or SIGHUP (KeyboardInterrupt: by SIGINT), after saving.
        """
        self.saved_at = time.monotonic()
        done, save = self.position.epoch * self.steps + self.position.step, self._update_status if self.progress else None
        self.bar = Progress(self.settings.epochs * self.steps, done, save, show=self.progress)
        try:
            return self._epochs(score, describe)
        finally:
            self.bar.close()

    def record(self, index: int) -> dict[str, Any]:
        """The entries of a score that the training of a model adds: `correct`, and `train_loss` by epoch, with 4 digits."""
        losses = [float(f"{losses[index]:.4g}") if math.isfinite(losses[index]) else None for losses in self.curve]
        return {**({"correct": self.correct[index]} if self.correct[index] else {}), "train_loss": losses}

    def _epochs(self, score: Callable[[int], Tensor], describe: Callable[[list[Tops]], str]) -> list[list[Tops]]:
        while self.position.epoch < self.settings.epochs:
            self._train_epoch()
            ranks = {index: score(index) for index in self.active}
            tops = [accuracies(ranks[index]) if index in ranks else (0.0, 0.0) for index in range(len(self.models))]
            self.correct = [pack(ranks[index].cpu() < 1) if index in ranks else "" for index in range(len(self.models))]
            self.curve.append((self._totals / self.images_per_epoch).tolist())
            self._totals.zero_()
            loss, self.position = self.position.loss, _Position(self.position.epoch + 1)
            self.tops.append(tops)
            self.unsaved = True
            self._save_if_due(AFTER_EPOCH)
            kind = "loss" if len(self.models) == 1 else "mean loss"
            self.bar.write(f"epoch {self.position.epoch}/{self.settings.epochs}  {kind} {loss:.4f}  {describe(tops)}")
            if self.position.epoch < self.settings.epochs:  # what follows the last epoch is short, or checks itself
                self.stop_if_requested()
        return self.tops

    def stop_if_requested(self) -> None:
        """Save and stop if a signal asked for it; for use between two steps, or between two batches that are scored."""
        if self.requests.number:
            self._save_if_due(0.0)
            text = f"saved at epoch {self.position.epoch}, step {self.position.step} of {self.steps}"
            trained = self.position.epoch or self.position.step
            stop(self.requests.number, f"{self._name}: {text if trained else 'nothing was trained yet'}")

    def _train_epoch(self) -> None:
        position, settings = self.position, self.settings
        set_cosine_rates(self.optimizer, self.rates, position.epoch, settings.epochs)
        generator = np.random.default_rng(derived_seed("evaluation order", settings.seed, position.epoch))
        order = generator.permutation(len(self.images))[: self.images_per_epoch]
        views = probe_views(settings.size, settings.dataset)
        loader = batches(
            self.images,
            order,
            views,
            settings.batch_size,
            seeds=(settings.seed, position.epoch),
            device=self.device,
            workers=settings.workers,
            first=position.step,
            skip_broken=settings.skip_broken,
        )
        # closed here, so that its processes end at once and not when a traceback that refers to it is released
        with explain_worker_death(settings.workers, settings.batch_size), closing(loader):
            for (batch,), labels, shown in loader:
                expected = order[position.step * settings.batch_size :][: len(shown)]
                self.broken["train"] += [self.images.name(int(index)) for index in expected[expected != shown]]
                losses = self._step(batch, labels)
                if position.step == self.steps:
                    position.loss = losses[torch.isfinite(losses)].mean().item()
                elif position.step % CHECK_EVERY == 0:
                    self._check()
                self.bar.step(position.epoch * self.steps + position.step, partial(self._line, losses))
                self._save_if_due(WITHIN_EPOCH)
                self.stop_if_requested()
        self._check()

    def _step(self, batch: Tensor, labels: Tensor) -> Tensor:
        losses = torch.stack(list(self.losses(batch, labels, self.active)))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.sum()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        losses = losses.detach()
        self._totals[self._index] += losses * len(labels)
        self._first_bad = torch.where(~torch.isfinite(losses) & (self._first_bad < 0), self.position.step, self._first_bad)
        self.position.step += 1
        self.unsaved = True
        return losses

    def _line(self, losses: Tensor) -> dict[str, float]:
        return {"epoch": self.position.epoch, "epochs": self.settings.epochs, "loss": losses.mean().item()}

    @property
    def active(self) -> list[int]:
        """Indices of the models that have not diverged."""
        return [index for index in range(len(self.models)) if index not in self.diverged]

    def _reset_losses(self) -> None:
        # the step of the epoch at which each loss was first not finite; on the device, so that no step waits for it
        self._first_bad = torch.full((len(self.active),), -1, device=self.device)
        self._index = torch.tensor(self.active, device=self.device)

    def _check(self) -> None:
        """Drop the models that have diverged.

        Raises:
            SfrikError: all have diverged; the message names the epoch, the step and the rates.
        """
        found = {}
        for index, step in zip(self.active, self._first_bad.tolist(), strict=True):
            if step >= 0:
                found[index] = f"epoch {self.position.epoch}, step {step}: its loss"
            elif not_finite(self.trained[index].state_dict()) is not None:
                found[index] = f"epoch {self.position.epoch}, step {self.position.step - 1}: a weight"
        self.diverged |= found
        if not self.active:
            how = "; ".join(f"{self.models[index].text}: {where} is not finite" for index, where in self.diverged.items())
            raise SfrikError(f"{self._name} diverged ({how}): lower the rate, or use precision fp32")
        for index, where in found.items():
            with torch.no_grad():
                for parameter in self.trained[index].parameters():
                    parameter.zero_()
                    self.optimizer.state.pop(parameter, None)
            text = (
                f"{self._name}: {self.models[index].text} diverged ({where} is not finite) and scores 0; the other rates continue"
            )
            print_line(text, error=True)
        self._reset_losses()

    def _save_if_due(self, seconds: float) -> None:
        due = self.requests.number or time.monotonic() - self.saved_at >= seconds
        if self.checkpoint is None or not self.unsaved or not due:
            return
        self._check()
        parts = {"models": self.trained, "optimizer": self.optimizer, "scaler": self.scaler}
        state = {name: part.state_dict() for name, part in parts.items()}
        place = {
            "place": asdict(self.position),
            "tops": self.tops,
            "correct": self.correct,
            "losses": [*self.curve, self._totals.tolist()],
            "diverged": self.diverged,
            "broken": sorted(set(self.broken["train"])),
            "random": random_state(self.device),
        }
        self.checkpoint.save({**state, **place})
        self.saved_at, self.unsaved = time.monotonic(), False

    def _resume(self, checkpoint: EvaluationCheckpoint) -> None:
        state = checkpoint.load()
        if state is None:
            return
        with explain_mismatch(checkpoint.path):
            for name, part in (("models", self.trained), ("optimizer", self.optimizer), ("scaler", self.scaler)):
                part.load_state_dict(state[name])
            restore_random_state(state["random"], self.device)
        self.position, self.tops, self.diverged = _Position(**state["place"]), state["tops"], state["diverged"]
        self.broken["train"] = list(state.get("broken", []))
        unknown = [math.nan] * len(self.models)  # in checkpoints of earlier releases
        self.correct = state.get("correct", self.correct)
        *self.curve, totals = state.get("losses", [unknown] * (len(self.tops) + 1))
        self._totals = torch.tensor(totals, device=self.device)
        self._reset_losses()
        if self.progress:
            print_line(f"{self._name}: resumed after epoch {self.position.epoch}, step {self.position.step} of {self.steps}")

    def _update_status(self, **facts: Any) -> None:
        """Add the progress to state.json of a run that `sfrik run` is executing; an evaluation on its own has none."""
        run = Run(self.settings.exp_dir)
        if (run.state() or {}).get("state") == "running":
            run.update_last_status("running", **facts)

    @property
    def _name(self) -> str:
        return self.checkpoint.name if self.checkpoint is not None else getattr(self.settings, "protocol", "linear")
