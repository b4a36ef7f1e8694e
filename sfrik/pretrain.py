"""The training loop of pretraining: augmented views, backbone, projector, objective, LARS.

All randomness follows from (seed, epoch, image or step): order and views are the same whatever the number of workers, and
a resumed run sees what the whole run would have seen. On a GPU BatchNorm is synchronised over the processes; on a CPU
PyTorch has no synchronised BatchNorm, so each process normalises by the statistics of its own share of the batch, and the
running averages of rank 0 are the ones that are kept.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfrik import diagnostics
from sfrik.collectives import all_rows, rank, rank_zero_says, world_size
from sfrik.datasets import Images, batches, derived_seed, load_images
from sfrik.devices import autocast, pick_device, pick_precision
from sfrik.errors import SfrikError
from sfrik.evaluate.features import extract
from sfrik.evaluate.knn import knn_accuracy
from sfrik.kernels import RotationInvariantKernel
from sfrik.networks import build_backbone, build_pixels, build_projector, save_backbone
from sfrik.objectives import AUH, SFRIK, Objective, SimCLR, VICReg
from sfrik.optim import LARS, learning_rate
from sfrik.runs import Run, now, provenance
from sfrik.settings import PretrainSettings
from sfrik.views import Views, build_views, resize_for_test

__all__ = ["Encoder", "build_objective", "pretrain"]

MONITOR_IMAGES = 2000  # training images behind the kNN score that is shown during training


class Encoder(nn.Module):
    """Backbone and projector: a list of views in, the embeddings of each out.

    Two views pass one after the other, so that BatchNorm's statistics are those of one view; with `by_size`, as multi-crop
    has it, the views of one size pass together. One call takes all views: DDP expects one forward pass for each backward pass.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, by_size: bool = False) -> None:
        super().__init__()
        self.backbone, self.projector, self.by_size = backbone, projector, by_size

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        if not self.by_size:
            return [self._embed(view) for view in views]
        together: dict[int, list[int]] = {}
        for index, view in enumerate(views):
            together.setdefault(view.shape[-1], []).append(index)
        embeddings: dict[int, Tensor] = {}
        for indices in together.values():
            whole = self._embed(torch.cat([views[index] for index in indices]))
            embeddings.update(zip(indices, whole.chunk(len(indices)), strict=True))
        return [embeddings[index] for index in range(len(views))]

    def _embed(self, images: Tensor) -> Tensor:
        return self.projector(self.backbone(images.contiguous(memory_format=torch.channels_last)))


def build_objective(settings: PretrainSettings) -> Objective:
    """The objective that the settings describe."""
    s = settings
    if s.ssl_method == "sfrik":
        return SFRIK(s.dim, s.kernel_weights, s.sfrik_sim_coeff, s.sfrik_mmd_coeff, _other_kernel(s))
    if s.ssl_method == "auh":
        return AUH(s.auh_sim_coeff, s.auh_unif_coeff, s.auh_scale)
    if s.ssl_method == "simclr":
        return SimCLR(s.simclr_temp)
    return VICReg(s.vicreg_sim_coeff, s.vicreg_std_coeff, s.vicreg_cov_coeff)


def _other_kernel(s: PretrainSettings) -> RotationInvariantKernel | None:
    """The kernel of the settings where it is not the truncated one."""
    scale, degree = s.sfrik_kernel_scale, s.sfrik_kernel_degree
    if s.sfrik_kernel == "rbf":
        return RotationInvariantKernel.rbf(scale, s.dim, degree)
    if s.sfrik_kernel == "heat":
        return RotationInvariantKernel.heat(scale / (s.dim - 1), s.dim, degree)
    if s.sfrik_kernel == "power":  # |u - v|^2 = 2 (1 - t); the constant C is the degree 0, which is left out
        return RotationInvariantKernel.from_function(lambda t: -((2 * (1 - t)) ** (scale / 2)), s.dim, degree)
    return None


def pretrain(settings: PretrainSettings, progress: bool = True) -> dict[str, Any]:
    """Pretrain, or go on with a run that was interrupted; a finished run is returned at once.

    Under `torch.distributed` (torchrun, or `sfrik.launch`) every process calls this.

    Returns:
        The last epoch's line of metrics.jsonl, or `{}` when nothing was trained.

    Raises:
        SfrikError: wrong settings or data. ValueError: the loss is not finite.
    """
    run = Run(settings.exp_dir)
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    # Everything that can be wrong with the input is found before the folder is made.
    images = load_images(settings.dataset, "pretrain", settings.data_dir, settings.subset)
    steps_per_epoch = _check_sizes(settings, images)
    views = build_views(settings.augmentations, settings.size, settings.dataset, **settings.crops)
    torch.manual_seed(derived_seed(settings.seed))
    encoder = _build_encoder(settings, images.channels).to(device, memory_format=torch.channels_last)
    with run.lock() if rank() == 0 else nullcontext():
        if rank() == 0:
            run.start(settings)
        if rank_zero_says(run.backbone.is_file()):
            _say(progress, f"{run.folder}: pretrained already")
            return (_epoch_lines(run) or [{}])[-1]
        if settings.ssl_method == "none":
            if rank() == 0:
                run.record(**provenance(device.type, precision, world_size()), finished=now())
                _finish(run, encoder, settings)
            _barrier()
            return {}
        return _train(settings, run, images, views, encoder, device, precision, steps_per_epoch, progress)


def _train(
    settings: PretrainSettings,
    run: Run,
    images: Images,
    views: Views,
    encoder: Encoder,
    device: torch.device,
    precision: str,
    steps_per_epoch: int,
    progress: bool,
) -> dict[str, Any]:
    model = _distribute(encoder, device, progress)
    objective = build_objective(settings)
    optimizer = LARS(encoder.parameters(), lr=0.0, weight_decay=settings.wd)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    first_epoch = _resume(run, encoder, optimizer, scaler, progress)
    if rank() == 0:
        if first_epoch == 0:
            run.record(**provenance(device.type, precision, world_size()))
        run.truncate_log(first_epoch)
    line: dict[str, Any] = {}
    epochs = _epochs(first_epoch, settings.epochs, progress)
    say = getattr(epochs, "write", print)  # above the bar, where there is one
    for epoch in epochs:
        model.train()
        started = time.perf_counter()
        order = _order(len(images), settings, epoch, steps_per_epoch)
        loader = batches(
            images,
            order,
            views,
            settings.batch_size // world_size(),
            seeds=(settings.seed, epoch, rank()),
            device=device,
            workers=settings.workers,
        )
        for step, (batch, _, where) in enumerate(loader):
            global_step = epoch * steps_per_epoch + step
            lr = learning_rate(
                global_step,
                steps_per_epoch,
                settings.epochs,
                settings.base_lr,
                settings.batch_size,
                settings.warmup_epochs,
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            with autocast(device, precision):
                embeddings = model(batch)
            try:
                terms = objective(embeddings, settings.anchors, settings.regularise)
            except ValueError as error:
                names = ", ".join(images.name(int(i)) for i in where[:4])
                raise ValueError(f"epoch {epoch}, step {step}: {error}; images of this batch: {names}, ...") from None
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(terms.loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if rank() == 0 and (global_step % settings.log_every == 0):
                parts = {name: value.item() for name, value in terms.parts.items()}
                run.log({"epoch": epoch, "step": global_step, "lr": lr, "loss": terms.loss.item(), **parts})
        seconds = time.perf_counter() - started
        line = _epoch_line(settings, images, encoder, embeddings, epoch, terms, seconds, device, precision)
        if rank() == 0:
            run.log(line)
            if progress:
                say(_in_words(line, settings.epochs))
            run.save_checkpoint(
                {
                    "epoch": epoch + 1,
                    "model": encoder.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                }
            )
    if rank() == 0:
        run.record(finished=now())
        _finish(run, encoder, settings)
        run.drop_checkpoints()
    _barrier()
    return line


def _build_encoder(settings: PretrainSettings, channels: int) -> Encoder:
    if settings.arch == "pixels":
        return Encoder(build_pixels(settings.size, channels), nn.Identity())
    backbone = build_backbone(settings.arch, settings.stem, channels)
    return Encoder(backbone, build_projector(backbone.num_features, settings.mlp), settings.multi_crop)


def _check_sizes(settings: PretrainSettings, images: Images) -> int:
    """Steps an epoch; the last images that do not fill a batch wait for another epoch's order."""
    if settings.batch_size % world_size():
        raise SfrikError(f"batch_size {settings.batch_size} is over all processes and does not divide by {world_size()} of them")
    if len(images) < settings.batch_size and settings.ssl_method != "none":
        raise SfrikError(f"batch_size {settings.batch_size} is more than the {len(images)} images: lower it")
    return len(images) // settings.batch_size


def _distribute(encoder: Encoder, device: torch.device, progress: bool) -> nn.Module:
    if world_size() == 1:
        return encoder
    if device.type == "cuda":
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
        return nn.parallel.DistributedDataParallel(encoder, device_ids=[device.index])
    _say(progress, "BatchNorm on CPU: each process normalises by its own share of the batch; rank 0's averages are kept")
    return nn.parallel.DistributedDataParallel(encoder)


def _resume(run: Run, encoder: Encoder, optimizer: LARS, scaler: torch.amp.GradScaler, progress: bool) -> int:
    """Restore the newest checkpoint; the first epoch to run."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return 0
    encoder.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scaler.load_state_dict(checkpoint["scaler"])
    _say(progress, f"{run.folder}: going on after epoch {checkpoint['epoch']}")
    return checkpoint["epoch"]


def _order(n: int, settings: PretrainSettings, epoch: int, steps_per_epoch: int) -> np.ndarray:
    """This process's images of the epoch, in order: its share of each batch."""
    order = np.random.default_rng([settings.seed, epoch]).permutation(n)[: steps_per_epoch * settings.batch_size]
    shares = order.reshape(steps_per_epoch, world_size(), -1)
    return shares[:, rank()].reshape(-1)


def _epoch_line(settings, images, encoder, embeddings, epoch, terms, seconds, device, precision) -> dict[str, Any]:
    """What is said of an epoch: loss, collapse diagnostics of its last batch, now and then a kNN score."""
    gathered = [all_rows(view.detach().float()) for view in embeddings[:2]]
    line = {"epoch": epoch, "loss": terms.loss.item(), **diagnostics.summary(gathered), "seconds": round(seconds, 3)}
    if settings.knn_every and (epoch + 1) % settings.knn_every == 0 and (images.targets >= 0).all():
        line["knn"] = _monitor(settings, images, encoder, device, precision)
    return line


def _monitor(settings, images: Images, encoder: Encoder, device: torch.device, precision: str) -> float:
    """Accuracy in % of 20-NN on training images alone: one half of a fixed sample votes on the other."""
    chosen = np.random.default_rng(settings.seed).permutation(len(images))[:MONITOR_IMAGES]
    features, labels = extract(
        encoder.backbone,
        images.select(chosen),
        resize_for_test(settings.size, settings.dataset),
        device=device,
        precision=precision,
        workers=settings.workers,
    )
    half = len(chosen) // 2
    return knn_accuracy(features[:half], labels[:half], features[half:], labels[half:], 20, images.num_classes)


def _finish(run: Run, encoder: Encoder, settings: PretrainSettings) -> None:
    save_backbone(encoder.backbone, run.backbone, arch=settings.arch, stem=settings.stem, settings=settings.hash())
    run.forget_other_scores()


def _epoch_lines(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if "effective_rank" in line]


def _epochs(first: int, epochs: int, progress: bool) -> Iterable[int]:
    """A bar of the epochs on a terminal and in JupyterLab; elsewhere (papermill, a log) plain lines are enough."""
    in_jupyterlab = "JPY_SESSION_NAME" in os.environ
    if not (progress and rank() == 0 and (in_jupyterlab or sys.stderr.isatty())):
        return range(first, epochs)
    from tqdm.auto import tqdm

    return tqdm(range(first, epochs), initial=first, total=epochs, unit="epoch", leave=False)


def _in_words(line: dict[str, Any], epochs: int) -> str:
    knn = f"  knn {line['knn']:.1f} %" if "knn" in line else ""
    return (
        f"epoch {line['epoch'] + 1}/{epochs}  loss {line['loss']:.4f}  alignment {line['alignment']:.4f}  "
        f"uniformity {line['uniformity']:.3f}  effective rank {line['effective_rank']:.1f}{knn}  {line['seconds']:.1f} s"
    )


def _say(progress: bool, text: str) -> None:
    if progress and rank() == 0:
        print(text, flush=True)


def _barrier() -> None:
    if world_size() > 1:
        dist.barrier()
