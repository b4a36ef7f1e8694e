"""Weighted k-nearest-neighbour classification, the protocol of DINO (Caron et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrik.errors import SfrikError
from sfrik.evaluate.arguments import as_features, as_split, check_widths
from sfrik.evaluate.linear_head import top_accuracies
from sfrik.ops.finite import format_rows
from sfrik.system.progress import track

__all__ = ["block_rows", "knn_accuracy", "scores_by_k", "weighted_knn"]

QUERIES = 1024  # test images at a time
BANK = 65536  # training images per block: at d = 2048 their features take 0.5 GiB, the similarities 0.25 GiB
BANK_ON_CPU = 4096  # a larger block is no faster there: 32 MiB and 16 MiB
TILE = 1024  # training images per tile of a block, on a CPU: the similarities, 4 MiB, fit the cache
LEAST_VOTE = 1.4e-45  # float32's smallest number: a vote that rounds to 0 would be none
LEAST_LENGTH = 1e-12  # of a row: F.normalize divides shorter ones by this
GROUPS = 32  # similarities per group of a tile, of which only the largest is compared first


def weighted_knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    k: int,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Tensor:
    """Class scores by the votes of the k nearest training images.

    Features are L2-normalised, nearness is the cosine similarity s, and a neighbour votes `exp(s / temperature)` for its class.

    Args:
        train_features: [n, d]. A row of zeros has no direction: it neither votes nor gets votes.
        train_labels: [n], whole numbers from 0.
        test_features: [m, d].
        k: number of neighbours; all n if it is larger.
        temperature: of the votes, above 0 and finite.
        num_classes: columns of the result; the largest label + 1 when None.

    Returns:
        Scores [m, classes], float32, up to a positive factor per row; the prediction is the largest. 0: no vote.

    Raises:
        ValueError: features that are NaN or infinite, of different dimensions or not a matrix; labels that are no class numbers
            (`sfrik.evaluate.arguments`) or not as many as training features; k below 1, or an invalid temperature.

    >>> train, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> weighted_knn(train, labels, torch.tensor([[2.0, 1.0], [0.0, 3.0]]), k=2).argmax(dim=1)
    tensor([0, 1])
    """
    bank = _bank(train_features, train_labels, test_features, [k], temperature, num_classes)
    return _votes(*_nearest(bank.features, bank.queries, min(k, len(bank.features))), bank, temperature)


def scores_by_k(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    ks: Sequence[int],
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (k, `weighted_knn`'s scores [m, classes]) for each of several k.

    Training features of more than one block are read and compared once for all k.

    Memory: a block of training features and its similarities (48 MiB at d = 2048; on a GPU 1.25 GiB); 12 bytes per test
    image and neighbour; the scores of one k. Both feature tensors may be mapped from files; if the test features are on a
    GPU, the training features follow one block at a time. Measured on a CPU: 54 MiB for 200,000 x 512 and 2,000 test images
    (benchmarks/evaluation_memory.py).

    >>> features, labels = torch.eye(2), torch.tensor([0, 1])
    >>> [(k, scores.argmax(dim=1).tolist()) for k, scores in scores_by_k(features, labels, features, ks=(1, 2))]
    [(1, [0, 1]), (2, [0, 1])]
    """
    bank = _bank(train_features, train_labels, test_features, ks, temperature, num_classes)
    n, device = len(bank.features), bank.queries.device
    if n <= block_rows(device):
        for k in ks:  # a search per k, since the choice among equal similarities may depend on k: the published scores did this
            yield k, _votes(*_nearest(bank.features, bank.queries, min(k, n)), bank, temperature)
        return
    nearest, where = _nearest(bank.features, bank.queries, min(max(ks), n))
    for k in ks:
        yield k, _votes(nearest[:, :k], where[:, :k], bank, temperature)


class _Bank(NamedTuple):
    """Training features and labels, and the test features that are compared with them, all checked.

    Attributes:
        features: [n, d]. labels: [n], on the device of the queries; `num_classes` where the features are all zero.
        queries: [m, d]. directed: whether a query is not all zero, bool [m].
    """

    features: Tensor
    labels: Tensor
    queries: Tensor
    directed: Tensor
    num_classes: int


def _bank(
    features: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int], temperature: float, num_classes: int | None
) -> _Bank:
    """The arguments of `weighted_knn`, checked; raises ValueError as it does."""
    features, labels = as_split((features, labels), "training")
    queries = as_features(queries, "test features")
    check_widths(training=features, test=queries)
    if not (min(ks) >= 1 and 0 < temperature < math.inf):
        raise ValueError(f"k must be >= 1 and temperature above 0, got k={min(ks)}, temperature={temperature}")
    largest = int(labels.max())
    num_classes = largest + 1 if num_classes is None else num_classes
    if largest >= num_classes:
        raise ValueError(f"a training label is {largest}, but num_classes is {num_classes}")
    labels = labels.to(queries.device).where(_directed(features, "training features").to(queries.device), num_classes)
    return _Bank(features, labels, queries, _directed(queries, "test features"), num_classes)


def _directed(features: Tensor, name: str) -> Tensor:
    """Whether the rows have a direction, that is are not all zero, bool [n].

    Raises:
        SfrikError: the length of a row is above the range of float32, or below `F.normalize`'s bound.
    """
    blocks = features.split(block_rows(features.device))
    lengths = torch.cat([torch.linalg.vector_norm(block.float(), dim=1) for block in blocks])
    zero = torch.cat([~block.any(dim=1) for block in blocks])
    for wrong, text in (
        (~torch.isfinite(lengths), "large for float32 in {}: divide"),
        ((lengths < LEAST_LENGTH) & ~zero, "small in {}, of lengths below 1e-12: multiply"),
    ):
        if bool(wrong.any()):
            rows = wrong.nonzero().flatten().tolist()
            raise SfrikError(f"{name} are too {text.format(format_rows(rows))} them by a constant")
    return ~zero


def block_rows(device: torch.device) -> int:
    """Training images per block on a device."""
    return min(BANK, BANK_ON_CPU) if device.type == "cpu" else BANK


def _votes(nearest: Tensor, where: Tensor, bank: _Bank, temperature: float) -> Tensor:
    # relative to the nearest neighbour: the same order of classes, without overflow at a small temperature
    votes = torch.exp((nearest - nearest[:, :1]) / temperature).clamp_min(LEAST_VOTE)
    scores = torch.zeros(len(votes), bank.num_classes + 1, device=votes.device)
    scores = scores.scatter_add_(1, bank.labels[where], votes)[:, :-1]
    return scores * bank.directed[:, None]


@torch.no_grad()
def _nearest(train_features: Tensor, test_features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosine similarities of each test image and their indices, both [m, k], on the device of the test images.

    The training features are read once, in blocks. The choice among equal similarities is unspecified.
    """
    m, device = len(test_features), test_features.device
    nearest, where = torch.empty(m, k, device=device), torch.empty(m, k, dtype=torch.int64, device=device)
    step, known = block_rows(device), 0  # known: neighbours found so far, per test image
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
    """Merge a block into the k nearest neighbours found so far, in place.

    Few of its rows are nearer: in random order k / j per test image in the j-th block. Sorting all similarities would cost half
    as much again as the product; here only those above the k-th known one are sorted, and they are found by the largest of each
    group. Against `topk` of the whole block this saves 11 to 19 % of the processor time and 12 to 18 MiB (2,000 queries,
    20,000 to 100,000 features of d = 512, one thread, benchmarks/knn.py); the scores are the same to the last bit.

    Args:
        nearest: similarities [b, k], in decreasing order; changed in place.
        where: their indices [b, k]; changed in place.
        query: [b, d].
        block: [c, d], the training features from index `start`.
    """
    (b, k), floor = nearest.shape, nearest[:, -1:]
    filled, found = torch.zeros(b, dtype=torch.int64), []  # candidates per row; (row, slot in it, similarity, index) of each
    memory = query.new_empty(b * TILE)  # shared by all tiles: new pages for each would cost a tenth of the product
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
    """Top-1 accuracy of `weighted_knn` in %. An image without a vote counts as an error.

    Args:
        train_features: [n, d].
        train_labels: [n], whole numbers from 0.
        test_features: [m, d].
        test_labels: [m].
        k: number of neighbours; all n if it is larger.
        num_classes: number of classes.
        temperature: of the votes, above 0.

    >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> knn_accuracy(features, labels, features, labels, k=1, num_classes=2)
    100.0
    """
    scores = weighted_knn(train_features, train_labels, test_features, k, temperature, num_classes)
    return top_accuracies(scores, test_labels, voted=True)[0]
