"""Weighted k-nearest-neighbour classification, DINO's protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrik.system.progress import track

__all__ = ["block_rows", "knn_accuracy", "scores_by_k", "weighted_knn"]

QUERIES = 1024  # test images at a time
BANK = 65536  # training images at a time: at d = 2048 a block of them is 0.5 GiB, its similarities 0.25 GiB
BANK_ON_CPU = 4096  # there a large block gains nothing: 32 MiB, and 16 MiB
TILE = 1024  # of them on a CPU, once k neighbours are known: their similarities, 4 MiB, stay in its cache
GROUPS = 32  # a tile's similarities are looked at by the largest of so many


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

    >>> train, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> weighted_knn(train, labels, torch.tensor([[2.0, 1.0], [0.0, 3.0]]), k=2).argmax(dim=1)
    tensor([0, 1])
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

    Memory: a block of training features and its similarities (48 MiB at d = 2048; on a GPU 1.25 GiB); 12 bytes for each test
    image and neighbour; the scores of one k. Both features may lie in files that are mapped into memory; where the test
    features are on a GPU, the others follow a block at a time. Measured on a CPU: 54 MiB for 200,000 x 512 and 2,000 test
    images (benchmarks/evaluation_memory.py).

    >>> features, labels = torch.eye(2), torch.tensor([0, 1])
    >>> [(k, scores.argmax(dim=1).tolist()) for k, scores in scores_by_k(features, labels, features, ks=(1, 2))]
    [(1, [0, 1]), (2, [0, 1])]
    """
    if len(train_features) <= block_rows(test_features.device):
        for k in ks:  # among equal similarities, which are taken may depend on k: as it always was
            yield k, weighted_knn(train_features, train_labels, test_features, k, temperature, num_classes)
        return
    num_classes = num_classes or int(train_labels.max()) + 1
    nearest, where = _nearest(train_features, test_features, min(max(ks), len(train_features)))
    for k in ks:
        yield k, _votes(nearest[:, :k], where[:, :k], train_labels, temperature, num_classes)


def block_rows(device: torch.device) -> int:
    """Training images that are compared at a time."""
    return min(BANK, BANK_ON_CPU) if device.type == "cpu" else BANK


def _votes(nearest: Tensor, where: Tensor, train_labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    # relative to the nearest: the same prediction and order, and no overflow at a small temperature
    votes = torch.exp((nearest - nearest[:, :1]) / temperature)
    scores = torch.zeros(len(votes), num_classes, device=votes.device)
    return scores.scatter_add_(1, train_labels.to(votes.device)[where], votes)


@torch.no_grad()
def _nearest(train_features: Tensor, test_features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosine similarities of each test image and where they are, both [m, k], on the device of the test images.

    The training features are read once, in blocks, and may lie in a file that is mapped into memory. Which of equal
    similarities are taken is open.
    """
    m, device = len(test_features), test_features.device
    nearest, where = torch.empty(m, k, device=device), torch.empty(m, k, dtype=torch.int64, device=device)
    step, known = block_rows(device), 0  # known: neighbours found so far, of each test image
    blocks = range(0, len(train_features), step)
    for start in track(blocks, len(blocks), "nearest neighbours, blocks"):
        block = F.normalize(train_features[start : start + step].to(device).float(), dim=1)
        for rows in (slice(low, low + QUERIES) for low in range(0, m, QUERIES)):
            query = F.normalize(test_features[rows].float(), dim=1)
            if known == k and device.type == "cpu":
                _take_nearer(nearest[rows], where[rows], query, block, start)
                continue
            similarity, place = (query @ block.T).topk(min(k, len(block)), dim=1)
            place += start
            if known:
                similarity, place = torch.cat([nearest[rows, :known], similarity], 1), torch.cat([where[rows, :known], place], 1)
                similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
                place = place.gather(1, order)
            nearest[rows, : similarity.shape[1]], where[rows, : similarity.shape[1]] = similarity, place
        known = min(k, known + len(block))
    return nearest, where


def _take_nearer(nearest: Tensor, where: Tensor, query: Tensor, block: Tensor, start: int) -> None:
    """Put the rows of a block that are nearer than what is known in the place of that.

    Few are: of a random order k/j for each test image in the j-th block. Sorting all similarities costs half as much as the
    product again; here only those above the k-th known one are sorted, and they are found by the largest of each group.

    Args:
        nearest, where: [b, k], in decreasing order; changed in place. query: [b, d]. block: [c, d], the rows from `start` on.
    """
    (b, k), floor = nearest.shape, nearest[:, -1:]
    filled, found = torch.zeros(b, dtype=torch.int64), []  # how many of each row were found; (row, its slot, similarity, place)
    memory = query.new_empty(b * TILE)  # of one tile after the other: new pages for each cost a tenth of the product
    for low in range(0, len(block), TILE):
        columns = block[low : low + TILE]
        groups = math.gcd(len(columns), GROUPS)
        similarity = torch.mm(query, columns.T, out=memory[: b * len(columns)].view(b, -1))
        similarity = similarity.view(b, groups, -1)  # [b, groups, c / groups]: a group is a column here
        row, group = (similarity.amax(dim=1) > floor).nonzero(as_tuple=True)
        members = similarity[row, :, group]  # [s, groups]
        hit, member = (members > floor[row]).nonzero(as_tuple=True)
        row, place = row[hit], start + low + member * similarity.shape[2] + group[hit]
        count = torch.bincount(row, minlength=b)
        slot = torch.arange(len(row)) - (count.cumsum(0) - count)[row] + filled[row]  # `row` is in order
        filled += count
        found.append((row, slot, members[hit, member], place))
    width = int(filled.max())
    values, places = nearest.new_full((b, k + width), -math.inf), where.new_zeros((b, k + width))
    values[:, :k], places[:, :k] = nearest, where
    for row, slot, value, place in found:
        values[row, k + slot], places[row, k + slot] = value, place
    value, order = values.topk(k, dim=1)
    nearest.copy_(value)
    where.copy_(places.gather(1, order))


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int,
    num_classes: int,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy in %.

    >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> knn_accuracy(features, labels, features, labels, k=1, num_classes=2)
    100.0
    """
    scores = weighted_knn(train_features, train_labels, test_features, k, temperature, num_classes)
    return 100 * (scores.argmax(dim=1) == test_labels).double().mean().item()
