"""Linear probing: a linear classifier on a frozen backbone, trained on augmented images (tables 1 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrik.datasets import Images
from sfrik.evaluate.broken import note_broken
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.forward import extract
from sfrik.evaluate.head_norm import build_head_norm, fold
from sfrik.evaluate.linear_head import as_score, choose_rate, feature_ranks, last_and_best, linear_heads
from sfrik.evaluate.name_files import RENAMED, check_same_classes
from sfrik.evaluate.sgd_loop import Model, Training
from sfrik.networks import Backbone
from sfrik.settings import EvaluateSettings, TransferSettings
from sfrik.system.devices import autocast
from sfrik.views.base import resize_for_test

__all__ = ["linear_probe", "linear_sweep"]


def linear_probe(
    backbone: Backbone,
    train: Images,
    test: Images,
    settings: EvaluateSettings | TransferSettings,
    device: torch.device,
    precision: str = "fp32",
    progress: bool = True,
    checkpoint: EvaluationCheckpoint | None = None,
) -> tuple[dict[str, Any], nn.Linear]:
    """Train a linear head on random crops of the training images; score it on the whole test images after each epoch.

    SGD with momentum 0.9; the rate follows a cosine by epoch. The backbone stays in evaluation mode, so that its BatchNorm
    statistics are fixed and the features of the test images are computed once. Memory: these features, 4 d bytes each (0.4 GiB
    for ImageNet's 50,000 at d = 2048).

    Args:
        backbone: images [b, c, h, w] to features [b, d]; its weights are not changed.
        train: labelled images.
        test: the images that are scored.
        settings: `epochs`, `batch_size`, `lr_head`, `head_norm`, `weight_decay`, `seed`, and how images are read. A batch of one
            image, which `head_norm` batchnorm cannot normalise, is skipped.
        precision: of the backbone: "fp32", "bf16" or "fp16".
        progress: whether to print a line per epoch.
        checkpoint: saves the training and resumes from it; nothing is saved when None.

    Returns:
        Accuracies in % (`top1` and `top5` of the last epoch, `best_top1` and `best_top5` of the best one), `correct` (the images
        that are classified correctly, `sfrik.runs.correctness`) and `train_loss` by epoch; and the head on features as they are,
        into which `head_norm` is folded. With `skip_broken` what `sfrik.evaluate.broken.note_broken` records.

    Raises:
        SfrikError: the loss is not finite, the two have different classes, or `head_norm` has fewer than 2 images.
        Preempted: stopped by SIGTERM, SIGUSR1 or SIGHUP (KeyboardInterrupt: by SIGINT), after saving; only with a checkpoint.
    """
    head, training = _heads(backbone, train, [settings.lr_head], settings, device, precision, checkpoint, progress)
    check_same_classes(train.classes, test.classes, "the training images", "the scored images", RENAMED)
    with training:
        scored = _features(backbone, test, settings, device, precision, training, "test")
        tops = training.fit(lambda index: feature_ranks(head(index), *scored), lambda tops: f"top-1 {tops[0][0]:.2f} %")
    found = note_broken(training.broken, train=len(train), test=len(test))
    return {**last_and_best([top for (top,) in tops]), **training.record(0), **found}, head(0)


def linear_sweep(
    backbone: Backbone,
    train: Images,
    tune: Images,
    test: Images | None,
    settings: EvaluateSettings,
    device: torch.device,
    precision: str = "fp32",
    progress: bool = True,
    checkpoint: EvaluationCheckpoint | None = None,
) -> tuple[dict[str, Any], nn.Linear]:
    """Linear probing with each rate of `settings.lr_sweep` at once, as DINOv2 does (Oquab et al. 2023).

    A batch passes through the backbone, and through `head_norm`, once and trains a head for each rate; a rate's head equals
    the one that `linear_probe` trains with that rate. The last epoch's heads are compared on the tuning split, and only the
    chosen one is scored on the test images, once; without `test` the score is that of the tuning split. A rate whose loss
    becomes infinite or NaN scores 0 and is reported on stderr; the other rates continue. Arguments that are not listed are
    those of `linear_probe`.

    Args:
        train: labelled images.
        tune: the tuning split, on which the rate is chosen.
        test: the images that are scored; None scores the tuning split.

    Returns:
        `top1` and `top5` in %, `correct`, the chosen `lr_head`, its `tune_top1` and `train_loss`, and `sweep`, top-1 on the
        tuning split by rate; and the chosen head.

    Raises:
        SfrikError: every rate's loss is infinite or NaN.
        Preempted: stopped by SIGTERM, SIGUSR1 or SIGHUP (KeyboardInterrupt: by SIGINT), after saving; only with a checkpoint.
    """
    rates = settings.lr_sweep
    head, training = _heads(backbone, train, rates, settings, device, precision, checkpoint, progress)
    for images in (tune, tune if test is None else test):
        check_same_classes(train.classes, images.classes, "the training images", "the scored images", RENAMED)

    def best(tops: list[tuple[float, float]]) -> str:
        index, _ = choose_rate(rates, tops)
        return f"top-1 on the tuning split {tops[index][0]:.2f} % at rate {rates[index]:g}"

    with training:
        tuning = _features(backbone, tune, settings, device, precision, training, "test" if test is None else "tune")
        tops = training.fit(lambda index: feature_ranks(head(index), *tuning), best)[-1]
        index, choice = choose_rate(rates, tops)
        scored = None if test is None else _features(backbone, test, settings, device, precision, training, "test")
    chosen = head(index)
    score = {"top1": tops[index][0], "top5": tops[index][1], **training.record(index)}
    score |= {} if scored is None else as_score(feature_ranks(chosen, *scored))
    found = note_broken(training.broken, train=len(train), test=len(tune if test is None else test))
    return {**score, **choice, **found}, chosen


def _heads(
    backbone: Backbone,
    train: Images,
    rates: Sequence[float],
    settings: EvaluateSettings | TransferSettings,
    device: torch.device,
    precision: str,
    checkpoint: EvaluationCheckpoint | None,
    progress: bool,
) -> tuple[Callable[[int], nn.Linear], Training]:
    """The present head of a rate, by its index; and the joint training of all on the features of the same batches."""
    backbone.eval()
    heads = linear_heads(len(rates), backbone.num_features, train.num_classes, settings.seed, device)
    norm = build_head_norm(settings.head_norm, backbone.num_features, device)

    def losses(batch: Tensor, labels: Tensor, active: list[int]) -> list[Tensor]:
        with torch.no_grad(), autocast(device, precision):
            features = backbone(batch.contiguous(memory_format=torch.channels_last)).float()
        with torch.no_grad():
            features = norm(features)
        return [F.cross_entropy(heads[index](features), labels) for index in active]

    models = [Model([head], [rate], f"lr_head {rate:g}") for head, rate in zip(heads, rates, strict=True)]
    least = 1 if settings.head_norm == "none" else 2
    training = Training(models, train, losses, settings, device, checkpoint, progress, norm, min_batch=least)
    return lambda index: fold(heads[index], norm), training


def _features(
    backbone: Backbone,
    images: Images,
    settings: EvaluateSettings | TransferSettings,
    device: torch.device,
    precision: str,
    training: Training,
    split: str,
) -> tuple[Tensor, Tensor]:
    views = resize_for_test(settings.size, settings.dataset)
    how = {"device": device, "precision": precision, "workers": settings.workers, "after_batch": training.stop_if_requested}
    broken = training.broken.setdefault(split, [])
    features, labels = extract(backbone, images, views, **how, skip_broken=settings.skip_broken, skipped=broken)
    return features.to(device), labels.to(device)
