"""The training loop of pretraining: augmented views, backbone, projector, objective, LARS.

All randomness follows from (seed, epoch, image or step): order and views are the same whatever the number of workers. A
checkpoint holds the step within the epoch, so that a resumed run ends in the weights of one that was not interrupted, to
the last bit.
"""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfrik.datasets import Images, batches, explain_worker_death, load_images
from sfrik.errors import Preempted
from sfrik.networks import Encoder, build_encoder
from sfrik.objectives.base import LossTerms, NotFinite
from sfrik.objectives.factory import build_objective
from sfrik.ops.collectives import all_gather_objects, all_reduce_max, barrier, broadcast_from_rank_zero, rank, world_size
from sfrik.optim import LARS, learning_rate
from sfrik.pretrain.accumulate import backward, micro_batches
from sfrik.pretrain.distributed import distribute, explain_compile_failure, training_precision
from sfrik.pretrain.epoch_metrics import describe_epoch, format_epoch
from sfrik.pretrain.finish import clean_up, finish, record_failure
from sfrik.pretrain.nonfinite import not_finite
from sfrik.pretrain.order import check_batch_size, epoch_order
from sfrik.pretrain.resume import Position, print_from_rank_zero, restore
from sfrik.runs.checkpoints import random_state
from sfrik.runs.folder import Run
from sfrik.runs.loggers import Loggers, check_loggers
from sfrik.runs.provenance import provenance
from sfrik.settings import PretrainSettings
from sfrik.system.devices import autocast, channels_last, pick_device
from sfrik.system.progress import Progress
from sfrik.system.random import derived_seed
from sfrik.system.records import VERSION
from sfrik.system.signals import StopRequests, stop, stop_requests
from sfrik.views.base import Views, build_views

__all__ = ["pretrain"]

AGREE_EVERY = 10  # steps on several GPUs between two looks for requests to stop: at each the processes wait for the GPUs


def pretrain(settings: PretrainSettings, progress: bool = True) -> dict[str, Any]:
    """Pretrain, or go on with a run that was interrupted; a finished run is returned at once.

    Under `torch.distributed` (torchrun, or `sfrik.launch`) every process calls this. SIGINT, SIGTERM and SIGUSR1 to any of
    them stop all of them after the step, on several GPUs after at most `AGREE_EVERY`, with a checkpoint.

    Returns:
        The last epoch's line of metrics.jsonl, or `{}` when nothing was trained.

    Raises:
        SfrikError: wrong settings or data; the loss is not finite. Preempted, KeyboardInterrupt: asked to stop, and saved.
    """
    run = Run(settings.exp_dir)
    check_loggers(settings.loggers)
    device = pick_device(settings.device)
    precision = training_precision(settings, device)
    # Everything that can be wrong with the input is found before the folder is made.
    images = load_images(settings.dataset, "pretrain", settings.data_dir, settings.subset)
    steps_per_epoch = check_batch_size(settings, images)
    views = build_views(settings.augmentations, settings.size, settings.dataset, settings.input_pipeline, **settings.crops)
    torch.manual_seed(derived_seed(settings.seed))
    encoder = channels_last(build_encoder(settings, images.channels), device)
    with run.lock() if rank() == 0 else nullcontext():
        if rank() == 0:
            run.start(settings)
        if broadcast_from_rank_zero(run.finished):
            print_from_rank_zero(progress, f"{run.folder}: pretrained already")
            if rank() == 0:  # after a process that was killed when it had just recorded the weights
                clean_up(run)
            return (run.epochs() or [{}])[-1]
        if rank() == 0:
            run.update_status("running", stage="pretrain")
        try:
            if settings.ssl_method == "none":
                if rank() == 0:
                    run.record_start(**provenance(device.type, precision, world_size()))
                    finish(run, encoder, settings)
                barrier()
                return {}
            return _Training(settings, run, images, views, encoder, device, precision, steps_per_epoch, progress).work()
        except Exception as error:
            if not isinstance(error, Preempted):
                record_failure(run, error)
            raise


class _Training:
    """One training on this process: what it is made of, its place, and how the place is saved and found again."""

    def __init__(
        self,
        settings: PretrainSettings,
        run: Run,
        images: Images,
        views: Views,
        encoder: Encoder,
        device: torch.device,
        precision: str,
        steps_per_epoch: int,
        progress: bool,
    ) -> None:
        self.settings, self.run, self.images, self.views, self.steps_per_epoch = settings, run, images, views, steps_per_epoch
        self.encoder, self.device, self.precision = encoder, device, precision
        if world_size() > 1 and device.type == "cpu":
            print_from_rank_zero(progress, "BatchNorm on CPU: each process normalises its own shard; rank 0's averages are kept")
        if left := len(images) % settings.batch_size:
            print_from_rank_zero(progress, f"{left} of {len(images)} images do not fill a batch: each epoch leaves out others")
        self.model = distribute(encoder, device, precision, settings.view_sizes, images.channels)
        self.objective = build_objective(settings)
        self.optimizer = LARS(encoder.parameters(), lr=0.0, weight_decay=settings.wd)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        parts = {"model": encoder, "optimizer": self.optimizer, "scaler": self.scaler}
        self.at = restore(run, settings, parts, steps_per_epoch, device, progress)
        total = settings.epochs * steps_per_epoch
        self.progress = Progress(total, self._global_step(), self._say_running, progress and rank() == 0)
        self.saved = time.monotonic()

    def work(self) -> dict[str, Any]:
        """Train to the end; the last epoch's line."""
        if rank() == 0:
            origin = provenance(self.device.type, self.precision, world_size())
            if self._global_step() == 0:
                self.run.record_start(**origin)
            else:
                self.run.record_resumption(step=self._global_step(), **origin)
            self.run.truncate_log(self.at.epoch, self._global_step())
            self._say_running(step=self._global_step())
            self.loggers = Loggers(self.settings.loggers, self.run.folder, self.settings.what(), self._global_step())
        line = (self.run.epochs() or [{}])[-1]  # the last one's already, where the stop came after its checkpoint
        try:
            with stop_requests() as requests:
                while self.at.epoch < self.settings.epochs:
                    line = self._epoch(requests)
        finally:
            self.progress.close()
            if rank() == 0:
                self.loggers.close()
        if rank() == 0:
            finish(self.run, self.encoder, self.settings)
        barrier()
        return line

    def _epoch(self, requests: StopRequests) -> dict[str, Any]:
        settings, at = self.settings, self.at
        self.model.train()
        started = time.perf_counter() - at.seconds
        order = epoch_order(len(self.images), settings, at.epoch, self.steps_per_epoch)
        share = settings.batch_size // world_size()
        loader = batches(
            self.images,
            order,
            self.views,
            share,
            seeds=(settings.seed, at.epoch, rank()),
            device=self.device,
            workers=settings.workers,
            first=at.step,
            skip_broken=settings.skip_broken,
        )
        skipped: list[str] = []
        embeddings = terms = None
        # its processes end here, and not when a traceback that holds it is let go of
        with explain_worker_death(settings.workers, share), explain_compile_failure(), closing(loader):
            for step, (batch, _, where) in enumerate(loader, at.step):
                wanted = order[step * share : (step + 1) * share]
                skipped += [self.images.name(int(i)) for i in wanted[wanted != where]]
                embeddings = terms = None  # let go of the step before: its loss holds a gradient of the embeddings
                embeddings, terms = self._step(batch, where)
                at.step = step + 1
                if at.step < self.steps_per_epoch:  # after the last one the epoch's own checkpoint follows
                    self._save_and_stop_if_asked(requests, started, skipped)
        self._gather_broken(skipped)
        assert embeddings is not None  # an epoch has a step to do
        assert terms is not None
        line = describe_epoch(
            settings,
            at.epoch,
            embeddings,
            terms.loss.item(),
            time.perf_counter() - started,
            at.broken,
            self.encoder.backbone,
            self.images,
            self.device,
            self.precision,
        )
        self.at = Position(at.epoch + 1, broken=at.broken)
        if rank() == 0:
            self._log("epoch", line, self._global_step() - 1)
        self._save()
        self.progress.write(format_epoch(line, settings.epochs))  # after it: nobody may be there to read, and printing fail
        if self.at.epoch < settings.epochs:
            number = all_reduce_max([requests.number], self.device)[0]
            self._stop_if(number)
        return line

    def _step(self, batch: list[Tensor], where: np.ndarray) -> tuple[list[Tensor], LossTerms]:
        settings, at, done = self.settings, self.at, self._global_step()
        lr = learning_rate(
            done, self.steps_per_epoch, settings.epochs, settings.base_lr, settings.batch_size, settings.warmup_epochs
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = micro_batches(len(where), settings.micro_batch)
        precision = partial(autocast, self.device, self.precision)
        embeddings, terms = backward(self.model, batch, partial(self._loss, where), parts, precision, self.scaler.scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if rank() == 0:
            if done % settings.log_every == 0:
                values = torch.stack([terms.loss.detach(), *terms.parts.values()]).tolist()  # a GPU is waited for once
                losses = dict(zip(["loss", *terms.parts], values, strict=True))
                self._log("step", {"epoch": at.epoch, "step": done, "lr": lr, **losses}, done)
            facts = {"epoch": at.epoch, "epochs": settings.epochs}
            self.progress.step(done + 1, lambda: {**facts, "loss": terms.loss.item()})
        return embeddings, terms

    def _log(self, kind: str, line: dict[str, Any], step: int) -> None:
        self.run.log(line)
        self.loggers.log(kind, line, step)

    def _loss(self, where: np.ndarray, embeddings: list[Tensor]) -> LossTerms:
        """Of the whole batch; `where` are the images whose embeddings these are."""
        try:
            anchors, regularise = self.settings.anchors, self.settings.regularise
            # by the step a resumed run draws the random directions that the whole run would have drawn
            return self.objective(embeddings, anchors=anchors, regularise=regularise, step=self._global_step())
        except NotFinite as error:
            names = [self.images.name(int(i)) for i in where]
            place = {"epoch": self.at.epoch, "step": self.at.step}
            fault = not_finite(error, self.run.folder, place, names, embeddings, self._weights())
            barrier()  # the loss is the same everywhere, so all are here; none ends the others while they write
            raise fault from None

    def _save_and_stop_if_asked(self, requests: StopRequests, started: float, skipped: list[str]) -> None:
        """All processes agree on what the signals to one of them, and the clock of rank 0, ask for."""
        if self.device.type == "cuda" and world_size() > 1 and self.at.step % AGREE_EVERY:
            return
        due = rank() == 0 and time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes
        number, save = all_reduce_max([requests.number, int(due)], self.device)
        if number or save:
            self.at.seconds = time.perf_counter() - started
            self._gather_broken(skipped)
            self._save()
            self._stop_if(number)

    def _gather_broken(self, skipped: list[str]) -> None:
        """Add what this process and the others have skipped to what is known."""
        self.at.broken = sorted({*self.at.broken, *(name for names in all_gather_objects(skipped) for name in names)})

    def _stop_if(self, number: int) -> None:
        if number == 0:
            return
        barrier()  # none leaves while rank 0 is saving
        where = f"epoch {self.at.epoch}, step {self.at.step} of {self.steps_per_epoch}"
        if rank() == 0:
            self._say_running("preempted", step=self._global_step())
        stop(number, f"saved in {self.run.folder} at {where}")

    def _save(self) -> None:
        random_states = all_gather_objects(random_state(self.device))
        if rank() == 0:
            self.run.sync_log()  # a checkpoint counts the lines that were written before it
            about = {"version": VERSION, "settings": self.settings.what()}
            place = {"place": asdict(self.at), "processes": world_size(), "random": random_states}
            self.run.checkpoints.save({**about, **self._weights(), **place})
        self.saved = time.monotonic()

    def _weights(self) -> dict[str, Any]:
        parts = {"model": self.encoder, "optimizer": self.optimizer, "scaler": self.scaler}
        return {name: part.state_dict() for name, part in parts.items()}

    def _global_step(self) -> int:
        return self.at.epoch * self.steps_per_epoch + self.at.step

    def _say_running(self, state: str = "running", **facts: Any) -> None:
        self.run.update_status(state, stage="pretrain", **{"epoch": self.at.epoch, "epochs": self.settings.epochs, **facts})
