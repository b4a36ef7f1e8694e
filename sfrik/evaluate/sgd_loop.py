"""The training loop of linear probing and of fine-tuning: SGD, a cosine by epoch, a score an epoch, and a place to go on from.

All randomness follows from (seed, epoch, image or step), and a checkpoint holds the step within the epoch: an evaluation that
was stopped ends in the weights and the score of one that was not, to the last bit.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sfrik.datasets import Images, batches, explain_worker_death
from sfrik.errors import SfrikError
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.linear_head import rate_groups, set_cosine_rates
from sfrik.optim import SGD
from sfrik.runs.checkpoints import explain_mismatch, random_state, restore_random_state
from sfrik.settings import EvaluateSettings, TransferSettings
from sfrik.system.progress import Progress
from sfrik.system.signals import StopRequests, stop, stop_requests
from sfrik.views.base import probe_views

__all__ = ["Model", "Training"]

# Seconds between two checkpoints, at least: within an epoch, and at the end of one. A probe of ten seconds writes none.
WITHIN_EPOCH, AFTER_EPOCH = 600.0, 30.0
CHECKED = 50  # steps between two looks at the losses, each of which waits for the device

Tops = tuple[float, float]  # top-1 and top-5 in %


@dataclass(frozen=True)
class Model:
    """What one loss trains: one module or several, each at its own rate.

    Attributes:
        modules: a head, or a backbone and its head. rates: the peak of each one's cosine. text: the rates, for a message.
    """

    modules: Sequence[nn.Module]
    rates: Sequence[float]
    text: str


@dataclass
class _Place:
    """How far a training has come: the next step of the epoch, and the last batch's loss once all steps are done."""

    epoch: int = 0
    step: int = 0
    loss: float = math.nan


class Training:
    """One training of several models side by side, on the same batches.

    It is a context: within it SIGINT, SIGTERM and SIGUSR1 wait for the end of the step, or for `look`; then the place is
    saved, and KeyboardInterrupt or Preempted raised. Without a checkpoint signals are left alone, and nothing is saved.

    A model whose loss or weights are not finite leaves the others: its weights are set to 0, and so is its score.

    Args:
        models: that are trained; their losses are independent. images: that they learn from, as random crops.
        losses: (batch [n, c, h, w], labels [n], the indices of the models that are left) -> a loss of each of these.
        least: images of a batch, below which the last one of an epoch is left out.
        scaled: whether the gradients pass the backbone in fp16, and need a scale.
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
        least: int = 1,
        scaled: bool = False,
    ) -> None:
        self.models, self.images, self.losses, self.settings, self.device = models, images, losses, settings, device
        self.checkpoint, self.progress = checkpoint, progress
        self.rates = [rate for model in models for rate in model.rates]
        self.trained = nn.ModuleList([nn.ModuleList(model.modules) for model in models])
        groups = rate_groups([module for model in models for module in model.modules], self.rates)
        self.optimizer = SGD(groups, momentum=0.9, weight_decay=settings.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        rest = len(images) % settings.batch_size
        self.shown = len(images) - (rest if rest < least else 0)
        self.steps = -(-self.shown // settings.batch_size)
        self.at, self.tops = _Place(), []
        self.diverged: dict[int, str] = {}  # where and how, by the model's index
        self.changed = False  # since it was saved
        self.saved = time.monotonic()
        self.requests, self._handlers = StopRequests(), ExitStack()
        self._forget_losses()

    def __enter__(self) -> Training:
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
            self.requests = self._handlers.enter_context(stop_requests())
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def work(self, score: Callable[[int], Tops], describe: Callable[[list[Tops]], str]) -> list[list[Tops]]:
        """Train to the end; after each epoch every model is scored.

        Args:
            score: (index of a model) -> its top-1 and top-5. describe: the scores in words, for the epoch's line.

        Returns:
            The scores by epoch and model.

        Raises:
            SfrikError: the loss of every model has become infinite or NaN. Preempted, KeyboardInterrupt: asked to stop.
        """
        self.saved = time.monotonic()
        self.bar = Progress(self.settings.epochs * self.steps, self.at.epoch * self.steps + self.at.step, show=self.progress)
        try:
            return self._epochs(score, describe)
        finally:
            self.bar.close()

    def _epochs(self, score: Callable[[int], Tops], describe: Callable[[list[Tops]], str]) -> list[list[Tops]]:
        while self.at.epoch < self.settings.epochs:
            self._train_epoch()
            tops = [(0.0, 0.0) if index in self.diverged else score(index) for index in range(len(self.models))]
            loss, self.at = self.at.loss, _Place(self.at.epoch + 1)
            self.tops.append(tops)
            self.changed = True
            self._save_if_due(AFTER_EPOCH)
            kind = "loss" if len(self.models) == 1 else "mean loss"
            self.bar.write(f"epoch {self.at.epoch}/{self.settings.epochs}  {kind} {loss:.4f}  {describe(tops)}")
            if self.at.epoch < self.settings.epochs:  # what follows the last one is soon done, or looks itself
                self.look()
        return self.tops

    def look(self) -> None:
        """Where the work pauses, such as between two batches that are scored: save and stop, if a signal asked for it."""
        if self.requests.number:
            self._save_if_due(0.0)
            place = f"saved at epoch {self.at.epoch}, step {self.at.step} of {self.steps}"
            begun = self.at.epoch or self.at.step
            stop(self.requests.number, f"{self._name}: {place if begun else 'nothing was trained yet'}")

    def _train_epoch(self) -> None:
        at, settings = self.at, self.settings
        set_cosine_rates(self.optimizer, self.rates, at.epoch, settings.epochs)
        order = np.random.default_rng([settings.seed, at.epoch]).permutation(len(self.images))[: self.shown]
        views = probe_views(settings.size, settings.dataset)
        loader = batches(
            self.images,
            order,
            views,
            settings.batch_size,
            seeds=(settings.seed, at.epoch),
            device=self.device,
            workers=settings.workers,
            first=at.step,
        )
        # its processes end here, and not when a traceback that holds it is let go of
        with explain_worker_death(settings.workers, settings.batch_size), closing(loader):
            for (batch,), labels, _ in loader:
                losses = self._step(batch, labels)
                if at.step == self.steps:
                    at.loss = losses[torch.isfinite(losses)].mean().item()
                elif at.step % CHECKED == 0:
                    self._check()
                self.bar.step(at.epoch * self.steps + at.step, partial(self._reached, losses))
                self._save_if_due(WITHIN_EPOCH)
                self.look()
        self._check()

    def _step(self, batch: Tensor, labels: Tensor) -> Tensor:
        losses = torch.stack(list(self.losses(batch, labels, self.left)))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.sum()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        losses = losses.detach()
        self._first_bad = torch.where(~torch.isfinite(losses) & (self._first_bad < 0), self.at.step, self._first_bad)
        self.at.step += 1
        self.changed = True
        return losses

    def _reached(self, losses: Tensor) -> dict[str, float]:
        return {"epoch": self.at.epoch, "epochs": self.settings.epochs, "loss": losses.mean().item()}

    @property
    def left(self) -> list[int]:
        """Indices of the models that have not diverged."""
        return [index for index in range(len(self.models)) if index not in self.diverged]

    def _forget_losses(self) -> None:
        # the step of the epoch at which each loss was first not finite, kept on the device so that no step waits for it
        self._first_bad = torch.full((len(self.left),), -1, device=self.device)

    def _check(self) -> None:
        """Take out the models that have diverged.

        Raises:
            SfrikError: none is left; it names epoch, step and rates.
        """
        found = {}
        for index, step in zip(self.left, self._first_bad.tolist(), strict=True):
            if step >= 0:
                found[index] = f"epoch {self.at.epoch}, step {step}: its loss"
            elif not _finite(self.trained[index]):
                found[index] = f"epoch {self.at.epoch}, step {self.at.step - 1}: a weight"
        self.diverged |= found
        if not self.left:
            how = "; ".join(f"{self.models[index].text}: {where} is not finite" for index, where in self.diverged.items())
            raise SfrikError(f"{self._name} diverged ({how}): lower the rate, or use precision fp32")
        for index, where in found.items():
            with torch.no_grad():
                for parameter in self.trained[index].parameters():
                    parameter.zero_()
                    self.optimizer.state.pop(parameter, None)
            text = f"{self._name}: {self.models[index].text} diverged ({where} is not finite) and scores 0; the others go on"
            print(text, file=sys.stderr, flush=True)
        self._forget_losses()

    def _save_if_due(self, seconds: float) -> None:
        due = self.requests.number or time.monotonic() - self.saved >= seconds
        if self.checkpoint is None or not self.changed or not due:
            return
        self._check()
        parts = {"models": self.trained, "optimizer": self.optimizer, "scaler": self.scaler}
        state = {name: part.state_dict() for name, part in parts.items()}
        place = {"place": asdict(self.at), "tops": self.tops, "diverged": self.diverged, "random": random_state(self.device)}
        self.checkpoint.save({**state, **place})
        self.saved, self.changed = time.monotonic(), False

    def _resume(self, checkpoint: EvaluationCheckpoint) -> None:
        state = checkpoint.load()
        if state is None:
            return
        with explain_mismatch(checkpoint.path):
            for name, part in (("models", self.trained), ("optimizer", self.optimizer), ("scaler", self.scaler)):
                part.load_state_dict(state[name])
            restore_random_state(state["random"], self.device)
        self.at, self.tops, self.diverged = _Place(**state["place"]), state["tops"], state["diverged"]
        self._forget_losses()
        if self.progress:
            print(f"{self._name}: going on after epoch {self.at.epoch}, step {self.at.step} of {self.steps}", flush=True)

    @property
    def _name(self) -> str:
        return self.checkpoint.name if self.checkpoint is not None else getattr(self.settings, "protocol", "linear")


def _finite(module: nn.Module) -> bool:
    """Whether all weights and averages are finite."""
    floating = (value for value in module.state_dict().values() if value.is_floating_point())
    return all(bool(torch.isfinite(value).all()) for value in floating)
