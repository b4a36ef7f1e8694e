"""The training loop of pretraining: augmented views, backbone, projector, objective, optimizer.

All random numbers depend on (seed, epoch, image or step) only, so order and views are independent of the number of workers. A
checkpoint records the step within the epoch, so that a resumed run ends with the weights of an uninterrupted one, bit for bit.
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

from sfrik.datasets import Images, batches, describe_data, explain_worker_death, keep_on_device
from sfrik.errors import Preempted, SfrikError
from sfrik.networks import Encoder, build_encoder, check_network
from sfrik.networks.precision import network_precision
from sfrik.objectives import LossTerms, NotFinite
from sfrik.objectives.factory import build_objective
from sfrik.ops.collectives import all_gather_json, all_reduce_max, barrier, broadcast_from_rank_zero, rank, world_size
from sfrik.ops.random import derived_seed
from sfrik.optim import learning_rate
from sfrik.pretrain.accumulate import backward, micro_batches
from sfrik.pretrain.distributed import distribute, explain_compile_failure
from sfrik.pretrain.epoch_metrics import describe_epoch, describe_excess, describe_step, format_epoch
from sfrik.pretrain.finish import already_pretrained, finish, last_epoch, read_images, record_failure
from sfrik.pretrain.nonfinite import save_nonfinite_state
from sfrik.pretrain.optimizer import build_optimizer, update
from sfrik.pretrain.order import check_batch_size, epoch_order
from sfrik.pretrain.resume import Position, check_earlier, check_replaced, print_from_rank_zero, restore
from sfrik.runs.checkpoints import random_state
from sfrik.runs.folder import Run
from sfrik.runs.loggers import Loggers, check_loggers
from sfrik.runs.provenance import provenance
from sfrik.runs.refusals import refuse_folder, refuse_published
from sfrik.settings import PretrainSettings
from sfrik.system.devices import autocast, channels_last, pick_device
from sfrik.system.progress import Progress
from sfrik.system.records import VERSION
from sfrik.system.signals import StopRequests, stop, stop_requests
from sfrik.views.base import Views, build_views

__all__ = ["pretrain"]

STOP_CHECK_STEPS = 10  # steps between two checks for stop requests on several GPUs: each check waits for the GPUs


def pretrain(settings: PretrainSettings, progress: bool = True) -> dict[str, Any]:
    """Pretrain, or resume an interrupted run. A finished run is not trained again.

    Under `torch.distributed` (torchrun or `sfrik.launch`) every process calls this. One of `sfrik.system.signals.SIGNALS` to any
    process stops all of them after the current step (on several GPUs after at most `STOP_CHECK_STEPS` steps), with a checkpoint.

    Args:
        settings: The settings; `exp_dir` is the folder of the run.
        progress: Whether to print and to show a progress bar.

    Returns:
        The last epoch's line of metrics.jsonl; `{}` if nothing was trained.

    Raises:
        SfrikError: Invalid settings or data, or a loss that is infinite or NaN.
        Preempted: Stopped by SIGTERM, SIGUSR1 or SIGHUP, after a checkpoint was saved.
        KeyboardInterrupt: Stopped by SIGINT, after a checkpoint was saved.
    """
    run = Run(settings.exp_dir)
    refuse_published(run.folder)
    check_loggers(settings.loggers)
    device = pick_device(settings.device)
    check_network(settings)
    precision = network_precision(settings, device)
    if broadcast_from_rank_zero(run.finished):
        return already_pretrained(run, settings, progress)
    # Errors in the input are raised before the folder is created.
    images = read_images(settings, progress)
    trained = settings.ssl_method != "none"
    data = broadcast_from_rank_zero(describe_data(images) if trained and rank() == 0 else None)
    try:
        steps_per_epoch = check_batch_size(settings, images, synchronised=device.type == "cuda")
    except SfrikError:
        if len(images) < settings.batch_size and (checkpoint := run.checkpoints.load()) is not None:
            # fewer than when the training began
            refuse_folder(run.folder, settings, data)
            check_earlier(run, settings, images, checkpoint, steps_per_epoch=0)
        raise
    views = build_views(settings.augmentations, settings.size, settings.dataset, settings.input_pipeline, **settings.crops)
    torch.manual_seed(derived_seed("initialisation", settings.seed))
    encoder = channels_last(build_encoder(settings, images.channels), device)
    with run.lock() if rank() == 0 else nullcontext():
        if rank() == 0:
            check_replaced(run, settings, images)
            run.start(settings, data)
        if broadcast_from_rank_zero(run.finished):  # by another process, meanwhile
            return last_epoch(run, progress)
        if rank() == 0:
            run.update_status("running", stage="pretrain")
        try:
            if settings.ssl_method == "none":
                if rank() == 0:
                    run.record_start(**provenance(device.type, precision, world_size()))
                    finish(run, encoder, settings)
                barrier()
                return {}
            given = settings, run, images, data, views, encoder, device, precision, steps_per_epoch, progress
            return _Training(*given).run_to_end()
        except Exception as error:
            if not isinstance(error, Preempted):
                record_failure(run, error, images)
            raise


class _Training:
    """The state of a training run on this process: model, optimizer, data, position, checkpoints and logs."""

    def __init__(
        self,
        settings: PretrainSettings,
        run: Run,
        images: Images,
        data: dict[str, Any] | None,
        views: Views,
        encoder: Encoder,
        device: torch.device,
        precision: str,
        steps_per_epoch: int,
        progress: bool,
    ) -> None:
        self.settings, self.run, self.data = settings, run, data
        self.images, self.views, self.steps_per_epoch = keep_on_device(images, device), views, steps_per_epoch
        self.encoder, self.device, self.precision = encoder, device, precision
        if world_size() > 1 and device.type == "cpu":
            text = "BatchNorm on CPU: each process normalises its own shard; rank 0's running averages are saved"
            print_from_rank_zero(progress, text)
        if left := len(images) % settings.batch_size:
            text = f"{left} of {len(images)} images do not fill a batch: each epoch leaves out different ones"
            print_from_rank_zero(progress, text)
        self.model = distribute(encoder, device, precision, settings.view_sizes, images.channels)
        self.objective = build_objective(settings, partial(print_from_rank_zero, progress))
        self.floor = self.objective.floor(settings.batch_size, settings.dim) if settings.dim > 1 else None
        for note in filter(None, (*settings.notes, settings.trade_off_line, str(self.floor or ""))):
            print_from_rank_zero(progress, note)
        self.optimizer = build_optimizer(settings, encoder)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.parts: dict[str, Any] = {"model": encoder, "optimizer": self.optimizer, "scaler": self.scaler}
        torch.manual_seed(derived_seed("dropout", settings.seed, rank()))  # other images, other masks, on each process
        self.position, self.origin = restore(run, settings, self.parts, images, steps_per_epoch, device, progress)
        total = settings.epochs * steps_per_epoch
        self.progress = Progress(total, self._global_step(), self._update_status, progress and rank() == 0)
        self.saved = time.monotonic()

    def run_to_end(self) -> dict[str, Any]:
        """Train all remaining epochs and write the weights. Returns the last epoch's line of metrics.jsonl."""
        if rank() == 0:
            origin = provenance(self.device.type, self.precision, world_size())
            if self._global_step() == 0:
                self.origin = self.run.record_start(**origin)
            else:
                self.origin = self.run.record_resumption(self.origin, step=self._global_step(), **origin)
            self.run.truncate_log(self.position.epoch, self._global_step())
            self._update_status(step=self._global_step())
            self.loggers = Loggers(self.settings.loggers, self.run.folder, self.settings.what(), self._global_step())
        line = (self.run.epochs() or [{}])[-1]  # already the last epoch's, if the run was stopped after its checkpoint
        try:
            with stop_requests() as requests:
                while self.position.epoch < self.settings.epochs:
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
        settings, position = self.settings, self.position
        self.model.train()
        started = time.perf_counter() - position.seconds
        order = epoch_order(len(self.images), settings, position.epoch, self.steps_per_epoch)
        shard_size = settings.batch_size // world_size()
        loader = batches(
            self.images,
            order,
            self.views,
            shard_size,
            seeds=(settings.seed, position.epoch, rank()),
            device=self.device,
            workers=settings.workers,
            first=position.step,
            skip_broken=settings.skip_broken,
        )
        skipped: list[str] = []
        embeddings = terms = None
        # the loader's processes end here, and not only when a traceback that refers to the loader is freed
        with explain_worker_death(settings.workers, shard_size), explain_compile_failure(), closing(loader):
            for step, (batch, _, indices) in enumerate(loader, position.step):
                expected = order[step * shard_size : (step + 1) * shard_size]
                skipped += [self.images.name(int(i)) for i in expected[expected != indices]]
                embeddings = terms = None  # frees the previous step, whose loss holds a gradient of the embeddings
                embeddings, terms = self._step(batch, indices)
                position.step = step + 1
                if position.step < self.steps_per_epoch:  # after the last step the epoch's checkpoint is saved anyway
                    self._save_if_due(requests, started, skipped)
        self._gather_broken(skipped)
        assert embeddings is not None  # an epoch has at least one step left
        assert terms is not None
        line = describe_epoch(
            settings,
            position.epoch,
            embeddings,
            {"loss": terms.loss.item(), **describe_excess(terms.parts, self.floor)},
            time.perf_counter() - started,
            position.broken,
            self.encoder.backbone,
            self.images,
            self.device,
            self.precision,
        )
        self.position = Position(position.epoch + 1, broken=position.broken)
        if rank() == 0:
            self._log("epoch", line, self._global_step() - 1)
        self._save()
        self.progress.write(format_epoch(line, settings.epochs))  # last, since printing fails if the reader of stdout is gone
        if self.position.epoch < settings.epochs:
            number = all_reduce_max([requests.number], self.device)[0]
            self._stop_if(number)
        return line

    def _step(self, batch: list[Tensor], indices: np.ndarray) -> tuple[list[Tensor], LossTerms]:
        settings, position, done = self.settings, self.position, self._global_step()
        lr = learning_rate(
            done, self.steps_per_epoch, settings.epochs, settings.base_lr, settings.batch_size, settings.warmup_epochs
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = micro_batches(len(indices), settings.micro_batch)
        precision = partial(autocast, self.device, self.precision)
        embeddings, terms = backward(self.model, batch, partial(self._loss, indices), parts, precision, self.scaler.scale)
        norm = update(self.optimizer, self.scaler, settings.clip_grad)
        if rank() == 0:
            if done % settings.log_every == 0:
                line = {"epoch": position.epoch, "step": done, "lr": lr, **describe_step(terms, norm, self.floor)}
                self._log("step", line, done)
            facts = {"epoch": position.epoch, "epochs": settings.epochs}
            self.progress.step(done + 1, lambda: {**facts, "loss": terms.loss.item()})
        return embeddings, terms

    def _log(self, kind: str, line: dict[str, Any], step: int) -> None:
        self.run.log(line)
        self.loggers.log(kind, line, step)

    def _loss(self, indices: np.ndarray, embeddings: list[Tensor]) -> LossTerms:
        """The loss of the whole batch.

        Args:
            indices: Of the images of this process, [n_local].
            embeddings: Of their views, each [n_local, q].
        """
        try:
            anchors, regularise = self.settings.anchors, self.settings.regularise
            # random directions depend on the step, so a resumed run draws the same ones
            return self.objective(embeddings, anchors=anchors, regularise=regularise, step=self._global_step())
        except NotFinite as error:
            names = [self.images.name(int(i)) for i in indices]
            position = {"epoch": self.position.epoch, "step": self.position.step}
            failure = save_nonfinite_state(error, self.run.folder, position, names, embeddings, self._states())
            barrier()  # the loss is the same on all processes, so all are here; none must end the others while they write
            raise failure from None

    def _save_if_due(self, requests: StopRequests, started: float, skipped: list[str]) -> None:
        """Save if the clock of rank 0 or a signal to any process requires it, and stop if it was a signal."""
        if self.device.type == "cuda" and world_size() > 1 and self.position.step % STOP_CHECK_STEPS:
            return
        due = rank() == 0 and time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes
        number, save = all_reduce_max([requests.number, int(due)], self.device)
        if number or save:
            self.position.seconds = time.perf_counter() - started
            self._gather_broken(skipped)
            self._save()
            self._stop_if(number)

    def _gather_broken(self, skipped: list[str]) -> None:
        """Add the images that any process has skipped to those of the position."""
        self.position.broken = sorted({*self.position.broken, *(name for names in all_gather_json(skipped) for name in names)})

    def _stop_if(self, number: int) -> None:
        if number == 0:
            return
        barrier()  # rank 0 may still be saving
        reached = f"epoch {self.position.epoch}, step {self.position.step} of {self.steps_per_epoch}"
        if rank() == 0:
            self._update_status("preempted", step=self._global_step())
        stop(number, f"saved in {self.run.folder} at {reached}")

    def _save(self) -> None:
        random_states = all_gather_json(random_state(self.device))
        if rank() == 0:
            self.run.sync_log()  # a run resumed from this checkpoint does not write these lines again
            about = {"version": VERSION, "settings": self.settings.what(), "data": self.data}
            progress = {"place": asdict(self.position), "processes": world_size(), "random": random_states}
            progress["provenance"] = self.origin
            self.run.checkpoints.save({**about, **self._states(), **progress})
        self.saved = time.monotonic()

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def _global_step(self) -> int:
        """The number of steps since the start of the run."""
        return self.position.epoch * self.steps_per_epoch + self.position.step

    def _update_status(self, state: str = "running", **facts: Any) -> None:
        self.run.update_status(state, stage="pretrain", **{"epoch": self.position.epoch, "epochs": self.settings.epochs, **facts})
