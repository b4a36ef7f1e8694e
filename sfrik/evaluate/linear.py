"""Linear probing: a linear classifier on a frozen backbone, trained with augmented images (the paper's tables 1 and 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrik.datasets import Images, batches
from sfrik.devices import autocast
from sfrik.evaluate.classifier import choose_rate, last_and_best, linear_heads, rate_groups, score_features, set_cosine_rates
from sfrik.evaluate.features import extract
from sfrik.settings import EvaluateSettings
from sfrik.views import probe_views, resize_for_test

__all__ = ["linear_probe", "linear_sweep"]


def linear_probe(
    backbone: nn.Module,
    train: Images,
    test: Images,
    settings: EvaluateSettings,
    device: torch.device,
    precision: str = "fp32",
    progress: bool = True,
) -> tuple[dict[str, Any], nn.Linear]:
    """Train a linear head on random crops of the training images; score it on the whole test images.

    The backbone stays in evaluation mode, so that its BatchNorm averages do not move: its features of the test images
    are therefore computed once. Memory: these features, 4 d bytes each (0.4 GiB for ImageNet's 50,000 at d = 2048).

    Returns:
        Accuracies in % (`top1` and `top5` of the last epoch, `best_top1` and `best_top5` of the best one), and the head.
    """
    backbone.eval()
    scored = _features(backbone, test, settings, device, precision)
    heads = linear_heads(1, scored[0].shape[1], train.num_classes, settings.seed, device)
    tops = []
    for epoch, loss in _epochs(backbone, train, heads, [settings.lr_head], settings, device, precision):
        tops.append(score_features(heads[0], *scored))
        if progress:
            print(f"epoch {epoch + 1}/{settings.epochs}  loss {loss:.4f}  top-1 {tops[-1][0]:.2f} %", flush=True)
    return last_and_best(tops), heads[0]


def linear_sweep(
    backbone: nn.Module,
    train: Images,
    tune: Images,
    test: Images | None,
    settings: EvaluateSettings,
    device: torch.device,
    precision: str = "fp32",
    progress: bool = True,
) -> tuple[dict[str, Any], nn.Linear]:
    """Linear probing with each rate of `settings.lr_sweep` at once, as DINOv2 does (Oquab et al. 2023).

    A batch passes through the backbone once and trains a head for each rate; a rate's head is the one that `linear_probe`
    trains with that rate. The last epoch's heads are compared on the tuning split, and the chosen one alone is scored on
    the test images, once; without `test` the score is that of the tuning split.

    Returns:
        `top1` and `top5` in %, the chosen `lr_head`, its `tune_top1`, and `sweep`, top-1 on the tuning split by rate; and
        the chosen head.
    """
    backbone.eval()
    rates = settings.lr_sweep
    tuning = _features(backbone, tune, settings, device, precision)
    heads = linear_heads(len(rates), tuning[0].shape[1], train.num_classes, settings.seed, device)
    for epoch, loss in _epochs(backbone, train, heads, rates, settings, device, precision):
        tops = [score_features(head, *tuning) for head in heads]
        if progress:
            index, _ = choose_rate(rates, tops)
            best = f"top-1 on the tuning split {tops[index][0]:.2f} % at rate {rates[index]:g}"
            print(f"epoch {epoch + 1}/{settings.epochs}  mean loss {loss / len(rates):.4f}  {best}", flush=True)
    index, choice = choose_rate(rates, tops)
    scored = None if test is None else _features(backbone, test, settings, device, precision)
    top1, top5 = tops[index] if scored is None else score_features(heads[index], *scored)
    return {"top1": top1, "top5": top5, **choice}, heads[index]


def _epochs(
    backbone: nn.Module,
    train: Images,
    heads: Sequence[nn.Linear],
    rates: Sequence[float],
    settings: EvaluateSettings,
    device: torch.device,
    precision: str,
) -> Iterator[tuple[int, float]]:
    """Train the heads side by side, each with its own rate; at the end of each epoch, its number and the last batch's loss."""
    optimizer = torch.optim.SGD(rate_groups(heads, rates), momentum=0.9, weight_decay=settings.weight_decay)
    views = probe_views(settings.size, settings.dataset)
    for epoch in range(settings.epochs):
        set_cosine_rates(optimizer, rates, epoch, settings.epochs)
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(train))
        seeds = (settings.seed, epoch)
        for (batch,), labels, _ in batches(train, order, views, settings.batch_size, seeds, device, settings.workers):
            with torch.no_grad(), autocast(device, precision):
                features = backbone(batch.contiguous(memory_format=torch.channels_last)).float()
            loss = sum(F.cross_entropy(head(features), labels) for head in heads)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        yield epoch, loss.item()


def _features(
    backbone: nn.Module, images: Images, settings: EvaluateSettings, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    views = resize_for_test(settings.size, settings.dataset)
    features, labels = extract(backbone, images, views, device=device, precision=precision, workers=settings.workers)
    return features.to(device), labels.to(device)
