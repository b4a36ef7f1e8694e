"""Fine-tuning of backbone and head: the paper's semi-supervised protocol, with 1 % or 10 % of the labels (its table 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrik.datasets import Images
from sfrik.evaluate.broken import note_broken
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.forward import extract
from sfrik.evaluate.linear_head import feature_ranks, last_and_best, linear_heads
from sfrik.evaluate.name_files import RENAMED, check_same_classes
from sfrik.evaluate.sgd_loop import Model, Training
from sfrik.networks import Backbone
from sfrik.settings import EvaluateSettings
from sfrik.system.devices import autocast
from sfrik.views.base import resize_for_test

__all__ = ["finetune", "image_ranks"]


def finetune(
    backbone: Backbone,
    train: Images,
    test: Images,
    settings: EvaluateSettings,
    device: torch.device,
    precision: str = "fp32",
    progress: bool = True,
    checkpoint: EvaluationCheckpoint | None = None,
) -> tuple[dict[str, Any], nn.Linear]:
    """Train the backbone, in place and in train mode, and a linear head; score both on the test images after each epoch.

    SGD with momentum 0.9 and two rates, `lr_backbone` and `lr_head`, that follow one cosine by epoch; random crops and
    flips, as in linear probing. If the last batch of an epoch would be a single image, which BatchNorm cannot
    normalise, that image is skipped; the images are shuffled again each epoch, so it is rarely the same one.

    Memory: the features of the test images, 4 d bytes each (0.4 GiB for ImageNet's 50,000 at d = 2048).

    Args:
        backbone: images [b, c, h, w] to features [b, d]; its weights are trained.
        train: labelled images, at least 2.
        test: the images that are scored.
        settings: `epochs`, `batch_size`, the two rates, `weight_decay`, `seed`, and how images are read.
        precision: precision of the backbone: "fp32", "bf16" or "fp16".
        progress: whether to print a line per epoch.
        checkpoint: saves the training and resumes from it; nothing is saved when None.

    Returns:
        Accuracies in % (`top1` and `top5` of the last epoch, `best_top1` and `best_top5` of the best one), `correct` (the images
        that are classified correctly, `sfrik.runs.correctness`) and `train_loss` by epoch; and the head. With `skip_broken` what
        `sfrik.evaluate.broken.note_broken` records.

    Raises:
        SfrikError: the loss is not finite, there is only one labelled image, or the two have different classes.
        Preempted: stopped by SIGTERM, SIGUSR1 or SIGHUP (KeyboardInterrupt: by SIGINT), after saving; only with a checkpoint.
    """
    (head,) = linear_heads(1, backbone.num_features, train.num_classes, settings.seed, device)

    def losses(batch: Tensor, labels: Tensor, active: list[int]) -> list[Tensor]:
        with autocast(device, precision):
            features = backbone(batch.contiguous(memory_format=torch.channels_last)).float()
        return [F.cross_entropy(head(features), labels)]

    check_same_classes(train.classes, test.classes, "the training images", "the scored images", RENAMED)
    rates = [settings.lr_backbone, settings.lr_head]
    both = Model([backbone, head], rates, f"lr_backbone {settings.lr_backbone:g} and lr_head {settings.lr_head:g}")
    training = Training([both], train, losses, settings, device, checkpoint, progress, min_batch=2, scaled=precision == "fp16")
    backbone.train()
    broken = training.broken.setdefault("test", [])
    with training:
        tops = training.fit(
            lambda index: image_ranks(backbone, head, test, settings, device, precision, training.stop_if_requested, broken),
            lambda tops: f"top-1 {tops[0][0]:.2f} %",
        )
    backbone.eval()
    found = note_broken(training.broken, train=len(train), test=len(test))
    return {**last_and_best([top for (top,) in tops]), **training.record(0), **found}, head


@torch.no_grad()
def image_ranks(
    backbone: Backbone,
    head: nn.Linear,
    images: Images,
    settings: EvaluateSettings,
    device: torch.device,
    precision: str,
    after_batch: Callable[[], None] | None = None,
    skipped: list[str] | None = None,
) -> Tensor:
    """`sfrik.evaluate.linear_head.label_ranks` of backbone and head, in evaluation mode, on whole images.

    Args:
        after_batch: called after each batch; it may raise to stop the scoring.
        skipped: a list to which the names of images are added that `settings.skip_broken` leaves out.
    """
    views = resize_for_test(settings.size, settings.dataset)
    how = {"device": device, "precision": precision, "workers": settings.workers, "after_batch": after_batch}
    features, labels = extract(backbone, images, views, **how, skip_broken=settings.skip_broken, skipped=skipped)
    return feature_ranks(head, features, labels)
