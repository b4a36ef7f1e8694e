"""Linear probing: a linear classifier on a frozen backbone, trained with augmented images (the paper's tables 1 and 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sfrik.datasets import Images, batches, derived_seed
from sfrik.devices import autocast
from sfrik.evaluate.features import extract
from sfrik.evaluate.logistic import last_and_best, linear_head, set_cosine_rates, top_accuracies
from sfrik.settings import EvaluateSettings
from sfrik.views import probe_views, resize_for_test

__all__ = ["linear_probe"]


def linear_probe(
    backbone: nn.Module,
    train: Images,
    test: Images,
    settings: EvaluateSettings,
    device: torch.device,
    precision: str = "fp32",
    progress: bool = True,
) -> dict[str, Any]:
    """Train a linear head on random crops of the training images; score it on the whole test images.

    The backbone stays in evaluation mode, so that its BatchNorm averages do not move: its features of the test images
    are therefore computed once.

    Returns:
        Accuracies in %: `top1` and `top5` of the last epoch, `best_top1` and `best_top5` of the best one.
    """
    backbone.eval()
    test_features, test_labels = extract(
        backbone,
        test,
        resize_for_test(settings.size, settings.dataset),
        device=device,
        precision=precision,
        workers=settings.workers,
    )
    test_features, test_labels = test_features.to(device), test_labels.to(device)
    torch.manual_seed(derived_seed(settings.seed))
    head = linear_head(test_features.shape[1], train.num_classes).to(device)
    optimizer = torch.optim.SGD(head.parameters(), lr=settings.lr_head, momentum=0.9, weight_decay=settings.weight_decay)
    views = probe_views(settings.size, settings.dataset)
    tops = []
    for epoch in range(settings.epochs):
        set_cosine_rates(optimizer, [settings.lr_head], epoch, settings.epochs)
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(train))
        seeds = (settings.seed, epoch)
        for (batch,), labels, _ in batches(train, order, views, settings.batch_size, seeds, device, settings.workers):
            with torch.no_grad(), autocast(device, precision):
                features = backbone(batch.contiguous(memory_format=torch.channels_last)).float()
            loss = F.cross_entropy(head(features), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            tops.append(top_accuracies(head(test_features), test_labels))
        if progress:
            print(f"epoch {epoch + 1}/{settings.epochs}  loss {loss.item():.4f}  top-1 {tops[-1][0]:.2f} %", flush=True)
    return last_and_best(tops)
