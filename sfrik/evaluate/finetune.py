"""Fine-tuning backbone and head together: the paper's semi-supervised protocol, with 1 % or 10 % of the labels (its table 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sfrik.datasets import Images, batches
from sfrik.devices import autocast
from sfrik.errors import SfrikError
from sfrik.evaluate.classifier import last_and_best, linear_heads, rate_groups, score_features, set_cosine_rates
from sfrik.evaluate.features import extract
from sfrik.settings import EvaluateSettings
from sfrik.views import probe_views, resize_for_test

__all__ = ["finetune", "score_images"]


def finetune(
    backbone: nn.Module,
    train: Images,
    test: Images,
    settings: EvaluateSettings,
    device: torch.device,
    precision: str = "fp32",
    progress: bool = True,
) -> tuple[dict[str, Any], nn.Linear]:
    """Train the backbone, in place and in train mode, and a linear head; both are scored on the test images each epoch.

    SGD with momentum 0.9 and two rates, `lr_backbone` and `lr_head`, that follow one cosine by epoch; random crops and
    flips, as in linear probing. Where the last batch of an epoch would be a single image, which BatchNorm cannot
    normalise, that image is left out of the epoch; the order is drawn anew each epoch, so it is another one each time.

    Memory: the features of the test images, 4 d bytes each (0.4 GiB for ImageNet's 50,000 at d = 2048).

    Returns:
        Accuracies in % (`top1` and `top5` of the last epoch, `best_top1` and `best_top5` of the best one), and the head.
    """
    if len(train) < 2:
        raise SfrikError(f"fine-tuning needs at least 2 labelled images for BatchNorm, got {len(train)}: raise --train-percent")
    (head,) = linear_heads(1, backbone.num_features, train.num_classes, settings.seed, device)
    rates = [settings.lr_backbone, settings.lr_head]
    optimizer = torch.optim.SGD(rate_groups([backbone, head], rates), momentum=0.9, weight_decay=settings.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    views = probe_views(settings.size, settings.dataset)
    tops = []
    for epoch in range(settings.epochs):
        backbone.train()
        set_cosine_rates(optimizer, rates, epoch, settings.epochs)
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(train))
        if len(order) % settings.batch_size == 1:
            order = order[:-1]
        seeds = (settings.seed, epoch)
        for (batch,), labels, _ in batches(train, order, views, settings.batch_size, seeds, device, settings.workers):
            with autocast(device, precision):
                features = backbone(batch.contiguous(memory_format=torch.channels_last)).float()
            loss = F.cross_entropy(head(features), labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        tops.append(score_images(backbone, head, test, settings, device, precision))
        if progress:
            print(f"epoch {epoch + 1}/{settings.epochs}  loss {loss.item():.4f}  top-1 {tops[-1][0]:.2f} %", flush=True)
    backbone.eval()
    return last_and_best(tops), head


@torch.no_grad()
def score_images(
    backbone: nn.Module, head: nn.Linear, images: Images, settings: EvaluateSettings, device: torch.device, precision: str
) -> tuple[float, float]:
    """Top-1 and top-5 in % of backbone and head, in evaluation mode, on whole images."""
    views = resize_for_test(settings.size, settings.dataset)
    features, labels = extract(backbone, images, views, device=device, precision=precision, workers=settings.workers)
    return score_features(head, features, labels)
