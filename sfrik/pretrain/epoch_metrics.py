"""What is said of an epoch of pretraining: its line in metrics.jsonl, and the same in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfrik import diagnostics
from sfrik.datasets.images import Images
from sfrik.evaluate.features import extract
from sfrik.evaluate.knn import knn_accuracy
from sfrik.ops.collectives import all_gather_rows
from sfrik.settings import PretrainSettings
from sfrik.views.base import resize_for_test

__all__ = ["describe_epoch", "format_epoch"]

MONITOR_IMAGES = 2000  # training images behind the kNN score that is shown during training


def describe_epoch(
    settings: PretrainSettings,
    epoch: int,
    embeddings: list[Tensor],
    loss: float,
    seconds: float,
    broken: list[str],
    backbone: nn.Module,
    images: Images,
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """Loss, collapse diagnostics of the last batch (its embeddings [n_local, q] of each view), now and then a kNN score.

    Every process calls this: the batch is gathered from all of them. `broken` are the images that were skipped so far.
    """
    gathered = all_gather_rows([view.detach().float() for view in embeddings[:2]])
    line: dict[str, Any] = {"epoch": epoch, "loss": loss, **diagnostics.summary(gathered), "seconds": round(seconds, 3)}
    if broken:
        line["broken_images"] = broken
    if settings.knn_every and (epoch + 1) % settings.knn_every == 0 and (images.targets >= 0).all():
        line["knn"] = _monitor(settings, images, backbone, device, precision)
    return line


def _monitor(settings: PretrainSettings, images: Images, backbone: nn.Module, device: torch.device, precision: str) -> float:
    """Accuracy in % of 20-NN on training images alone: one half of a fixed sample votes on the other."""
    chosen = np.random.default_rng(settings.seed).permutation(len(images))[:MONITOR_IMAGES]
    features, labels = extract(
        backbone,
        images.select(chosen),
        resize_for_test(settings.size, settings.dataset),
        device=device,
        precision=precision,
        workers=settings.workers,
    )
    half = len(chosen) // 2
    return knn_accuracy(features[:half], labels[:half], features[half:], labels[half:], 20, images.num_classes)


def format_epoch(line: dict[str, Any], epochs: int) -> str:
    """One line for people."""
    knn = f"  knn {line['knn']:.1f} %" if "knn" in line else ""
    broken = f"  broken images skipped: {len(line['broken_images'])}" if "broken_images" in line else ""
    return (
        f"epoch {line['epoch'] + 1}/{epochs}  loss {line['loss']:.4f}  alignment {line['alignment']:.4f}  "
        f"uniformity {line['uniformity']:.3f}  effective rank {line['effective_rank']:.1f}{knn}  {line['seconds']:.1f} s{broken}"
    )
