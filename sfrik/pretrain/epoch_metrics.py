"""Metrics of pretraining: the lines of steps and epochs in metrics.jsonl, and the line that is printed for an epoch.

A step's line has epoch, step, lr, loss, the unweighted terms of the loss, grad_norm if the gradient is clipped, and for SFRIK and
AUH excess and relative_excess; an epoch's has epoch, loss and excess of the last step, the diagnostics of the last batch
(`sfrik.diagnostics.summary`), seconds, knn every `knn_every` epochs, and if there are any, broken_images and zero_rows (the
number of its embeddings that are 0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfrik import diagnostics
from sfrik.datasets.images import Images
from sfrik.evaluate import extract, knn_accuracy
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.spectra import Floor
from sfrik.ops.collectives import all_gather_rows
from sfrik.ops.random import derived_seed
from sfrik.settings import PretrainSettings
from sfrik.views.base import resize_for_test

__all__ = ["describe_epoch", "describe_excess", "describe_step", "format_epoch"]

MONITOR_IMAGES = 2000  # training images used for the kNN score during training


def describe_step(terms: LossTerms, norm: Tensor | None, floor: Floor | None) -> dict[str, float | None]:
    """The loss, its terms, and what is computed from them, for the step's line in metrics.jsonl.

    Args:
        terms: The loss terms.
        norm: With gradient clipping, the norm of the gradient before it: `grad_norm`, None in a step that fp16's scaler skips.
        floor: The regulariser's values for rows of known distributions; adds `excess` and `relative_excess`.
    """
    values = {"loss": terms.loss.detach(), **terms.parts} | ({} if norm is None else {"grad_norm": norm})
    numbers = torch.stack(list(values.values())).tolist()  # one synchronisation with the GPU
    line = dict(zip(values, numbers, strict=True))
    line |= describe_excess(line, floor)
    return {name: number if math.isfinite(number) else None for name, number in line.items()}


def describe_excess(parts: Mapping[str, Tensor | float], floor: Floor | None) -> dict[str, float]:
    """`excess`, the regulariser minus its expectation for random uniform rows, and `relative_excess`, which is 1 at one point.

    The second is comparable across batch sizes, dimensions and kernels. Empty for losses without such values.
    """
    if floor is None:
        return {}
    value = float(parts[floor.term])
    return {"excess": floor.excess(value), "relative_excess": floor.relative_excess(value)}


def describe_epoch(
    settings: PretrainSettings,
    epoch: int,
    embeddings: list[Tensor],
    loss: dict[str, float],
    seconds: float,
    broken: list[str],
    backbone: nn.Module,
    images: Images,
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """The epoch's line in metrics.jsonl: loss, collapse diagnostics of the last batch and, every `knn_every` epochs, a kNN score.

    Every process calls this, since the batch is gathered from all of them.

    Args:
        settings: The settings of the training.
        epoch: The number of the epoch, from 0.
        embeddings: The embeddings of the last batch, [n_local, q] for each view.
        loss: `loss` of the last step, and its excess.
        seconds: Duration of the epoch.
        broken: Names of the images that were skipped so far; those of the kNN score are added.
        backbone: The backbone, for the kNN score.
        images: The training images, for the kNN score.
        device: The device of this process.
        precision: "fp32", "bf16" or "fp16".
    """
    gathered = all_gather_rows([view.detach().float() for view in embeddings[:2]])
    line: dict[str, Any] = {"epoch": epoch, **loss, **diagnostics.summary(gathered), "seconds": round(seconds, 3)}
    if settings.knn_every and (epoch + 1) % settings.knn_every == 0 and (images.targets >= 0).all():
        line["knn"] = _knn_score(settings, images, backbone, device, precision, broken)
    if broken:
        line["broken_images"] = broken
    if zero_rows := sum(int((view == 0).all(dim=1).sum()) for view in gathered):
        line["zero_rows"] = zero_rows
    return line


def _knn_score(
    settings: PretrainSettings, images: Images, backbone: nn.Module, device: torch.device, precision: str, broken: list[str]
) -> float:
    """20-NN accuracy in % on training images: one half of a fixed sample is classified by the other half."""
    skipped: list[str] = []
    sample = np.random.default_rng(derived_seed("monitor", settings.seed)).permutation(len(images))[:MONITOR_IMAGES]
    features, labels = extract(
        backbone,
        images.select(sample),
        resize_for_test(settings.size, settings.dataset),
        device=device,
        precision=precision,
        workers=settings.workers,
        skip_broken=settings.skip_broken,
        skipped=skipped,
    )
    broken[:] = sorted({*broken, *skipped})
    half = len(labels) // 2
    return knn_accuracy(features[:half], labels[:half], features[half:], labels[half:], 20, images.num_classes)


def format_epoch(line: dict[str, Any], epochs: int) -> str:
    """Format the line of an epoch for printing."""
    knn = f"  knn {line['knn']:.1f} %" if "knn" in line else ""
    broken = f"  broken images skipped: {len(line['broken_images'])}" if "broken_images" in line else ""
    return (
        f"epoch {line['epoch'] + 1}/{epochs}  loss {line['loss']:.4f}  alignment {line['alignment']:.4f}  "
        f"uniformity {line['uniformity']:.3f}  effective rank {line['effective_rank']:.1f}{knn}  {line['seconds']:.1f} s{broken}"
    )
