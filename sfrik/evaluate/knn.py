"""Weighted k-nearest-neighbour classification, DINO's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["knn_accuracy", "scores_by_k", "weighted_knn"]

QUERIES = 1024  # test images at a time
BANK = 65536  # training images at a time: at d = 2048 a block of them is 0.5 GiB, its similarities 0.25 GiB


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
    return _votes(*_nearest(train_features, test_features, min(k, len(train_features))), train_labels, temperature, num_classes)


def scores_by_k(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    ks: Sequence[int],
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """(k, `weighted_knn`'s scores [m, classes]) for each of several k.

    Where the training features are more than one block, they are read and compared once for all k.

    Memory: the test features, normalised; a block of `BANK` training features (0.5 GiB at d = 2048; twice that on a GPU)
    and its similarities (0.25 GiB); 12 bytes for each test image and neighbour; the scores of one k. The training features
    may lie in a file that is mapped into memory; where the test features are on a GPU, they follow a block at a time.
    Measured on a CPU: 0.4 GiB for 200,000 x 512 (benchmarks/evaluation_memory.py).
    """
    if len(train_features) <= BANK:  # among equal similarities, which are taken may depend on k: as it always was
        for k in ks:
            yield k, weighted_knn(train_features, train_labels, test_features, k, temperature, num_classes)
        return
    num_classes = num_classes or int(train_labels.max()) + 1
    nearest, where = _nearest(train_features, test_features, min(max(ks), len(train_features)))
    for k in ks:
        yield k, _votes(nearest[:, :k], where[:, :k], train_labels, temperature, num_classes)


def _votes(nearest: Tensor, where: Tensor, train_labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    # relative to the nearest: the same prediction and order, and no overflow at a small temperature
    votes = torch.exp((nearest - nearest[:, :1]) / temperature)
    scores = torch.zeros(len(votes), num_classes, device=votes.device)
    return scores.scatter_add_(1, train_labels.to(votes.device)[where], votes)


def _nearest(train_features: Tensor, test_features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosine similarities of each test image and where they are, both [m, k], on the device of the test images.

    The training features are read once, in blocks, and may lie in a file that is mapped into memory.
    """
    queries = F.normalize(test_features.float(), dim=1).split(QUERIES)
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(queries)
    for start in range(0, len(train_features), BANK):
        block = F.normalize(train_features[start : start + BANK].to(test_features.device).float(), dim=1)
        for i, query in enumerate(queries):
            similarity, where = (query @ block.T).topk(min(k, len(block)), dim=1)
            where += start
            if best[i] is not None:
                similarity, where = torch.cat([best[i][0], similarity], 1), torch.cat([best[i][1], where], 1)
                similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
                where = where.gather(1, order)
            best[i] = similarity, where
    return torch.cat([pair[0] for pair in best]), torch.cat([pair[1] for pair in best])


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
