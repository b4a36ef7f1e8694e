"""Weighted k-nearest-neighbour classification, DINO's protocol."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["knn_accuracy", "weighted_knn"]

QUERIES = 1024  # test images at a time


def weighted_knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Tensor:
    """Class scores by the votes of the k nearest training images.

    Features are L2-normalised, nearness is cosine similarity s, and a neighbour votes `exp(s / temperature)` for its class.

    Args:
        train_features: [n, d]. train_labels: [n], whole numbers from 0. test_features: [m, d].
        k: number of neighbours; more than n are as many as there are.
        num_classes: columns of the result; the largest label + 1 when None.

    Returns:
        Scores [m, classes], float32; the prediction is the largest.
    """
    if len(train_features) != len(train_labels):
        raise ValueError(f"{len(train_features)} training features but {len(train_labels)} labels")
    if not (k >= 1 and temperature > 0):
        raise ValueError(f"k must be >= 1 and temperature above 0, got k={k}, temperature={temperature}")
    num_classes = num_classes or int(train_labels.max()) + 1
    bank = F.normalize(train_features.float(), dim=1)
    scores = []
    for queries in test_features.split(QUERIES):
        similarity = F.normalize(queries.float(), dim=1) @ bank.T  # [queries, n]
        nearest, where = similarity.topk(min(k, len(bank)), dim=1)
        # relative to the nearest: the same prediction and order, and no overflow at a small temperature
        votes = torch.exp((nearest - nearest[:, :1]) / temperature)
        empty = torch.zeros(len(queries), num_classes, device=votes.device)
        scores.append(empty.scatter_add_(1, train_labels[where], votes))
    return torch.cat(scores)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int,
    num_classes: int,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy in %."""
    scores = weighted_knn(train_features, train_labels, test_features, k, temperature, num_classes)
    return 100 * (scores.argmax(dim=1) == test_labels).double().mean().item()
