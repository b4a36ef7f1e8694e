"""The linear classifier of the probes: initial weights, learning rates, accuracies, and the choice of a rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.evaluate.arguments import as_labels
from sfrik.ops.finite import check_finite_rows
from sfrik.ops.random import derived_seed
from sfrik.runs.correctness import pack

__all__ = [
    "accuracies",
    "as_score",
    "choose_rate",
    "feature_ranks",
    "label_ranks",
    "last_and_best",
    "linear_head",
    "linear_heads",
    "rate_groups",
    "score_features",
    "set_cosine_rates",
    "top_accuracies",
]

NO_HIT = torch.iinfo(torch.int64).max  # the rank of a label that is no hit at any rank
ROWS = 65536  # features scored at a time: 0.5 GiB at d = 2048


def linear_head(num_features: int, num_classes: int) -> nn.Linear:
    """A linear head with normal weights of standard deviation 0.01 and zero bias."""
    head = nn.Linear(num_features, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def linear_heads(
    count: int, num_features: int, num_classes: int, seed: int, device: torch.device | str = "cpu"
) -> list[nn.Linear]:
    """`count` heads with the same initial weights, so that a sweep compares only rates."""
    heads = []
    for _ in range(count):
        torch.manual_seed(derived_seed("head", seed))
        heads.append(linear_head(num_features, num_classes).to(device))
    return heads


def rate_groups(heads: Sequence[nn.Module], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, one per module, each with its rate.

    Raises:
        ValueError: a rate is not a finite number above 0.
    """
    if wrong := [rate for rate in rates if not 0 < rate < math.inf]:
        raise ValueError(f"learning rates must be finite and above 0, got {wrong[0]}")
    return [{"params": list(head.parameters()), "lr": rate} for head, rate in zip(heads, rates, strict=True)]


def set_cosine_rates(optimizer: torch.optim.Optimizer, peaks: Sequence[float], epoch: int, epochs: int) -> None:
    """Set the rates of the groups for an epoch, by a cosine from their peaks to 0 with one step per epoch."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def label_ranks(scores: Tensor, labels: Tensor, voted: bool = False) -> Tensor:
    """The rank of each image's label among the class scores, from 0, int64 [n]; `NO_HIT` for a class without a score.

    Classes with equal scores rank by their number, as in `argmax`.

    Args:
        scores: class scores [n, classes], finite.
        labels: [n].
        voted: whether the scores are votes (kNN), so that a class that scores 0 has none and is no hit at any rank.

    Raises:
        ValueError: a score is NaN or infinite, or there is not one label per row.
    """
    labels = as_labels(labels, "the labels of the images", SfrikError).to(scores.device)
    if scores.ndim != 2 or len(scores) != len(labels):
        raise ValueError(f"scores of shape {tuple(scores.shape)} do not fit {len(labels)} labels: they are [n, classes]")
    check_finite_rows(scores, "class scores", "the head has diverged, or the features are too large", error=SfrikError)
    within = labels < scores.shape[1]  # a class that the scores do not have is no hit
    own = scores.gather(1, labels.where(within, 0)[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    counted = within & (own[:, 0] > 0) if voted else within
    return ahead.sum(dim=1).where(counted, NO_HIT)


@torch.no_grad()
def feature_ranks(head: nn.Linear, features: Tensor, labels: Tensor) -> Tensor:
    """`label_ranks` of a head on features [n, d], which may be on the host and mapped from a file; on the host.

    They are moved to the head's device in blocks of `ROWS`, which bounds the memory: a block's features and class scores.
    """
    where = {"device": head.weight.device, "dtype": head.weight.dtype}
    blocks = zip(features.split(ROWS), labels.split(ROWS), strict=True)
    return torch.cat([label_ranks(head(block.to(**where)), truth).cpu() for block, truth in blocks])


def accuracies(ranks: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in %, from `label_ranks`; with fewer than five classes top-5 counts all of them."""
    first, five = (int((ranks < k).sum()) for k in (1, 5))
    return 100 * (first / len(ranks)), 100 * (five / len(ranks))


def as_score(ranks: Tensor) -> dict[str, Any]:
    """`top1` and `top5` in %, and `correct`, a bit per image (`sfrik.runs.correctness`), from `label_ranks`."""
    top1, top5 = accuracies(ranks)
    return {"top1": top1, "top5": top5, "correct": pack(ranks.cpu() < 1)}


def top_accuracies(scores: Tensor, labels: Tensor, voted: bool = False) -> tuple[float, float]:
    """The `accuracies` of class scores; the arguments are those of `label_ranks`.

    >>> top_accuracies(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0]), voted=True)
    (0.0, 0.0)
    """
    return accuracies(label_ranks(scores, labels, voted))


def score_features(head: nn.Linear, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """The `accuracies` of a head on features; the arguments are those of `feature_ranks`."""
    return accuracies(feature_ranks(head, features, labels))


def last_and_best(tops: list[tuple[float, float]]) -> dict[str, float]:
    """`top1` and `top5` of the last epoch, and `best_top1` and `best_top5` of the epoch with the best top-1, all in %."""
    best = max(tops, key=lambda pair: pair[0])
    return {"top1": tops[-1][0], "top5": tops[-1][1], "best_top1": best[0], "best_top5": best[1]}


def choose_rate(rates: Sequence[float], tune_tops: Sequence[tuple[float, float]]) -> tuple[int, dict[str, Any]]:
    """Choose the rate with the best top-1 on the tuning split; the smallest rate wins a tie.

    Args:
        rates: learning rates.
        tune_tops: (top-1, top-5) in % on the tuning split, of each rate.

    Returns:
        The index of the chosen rate, and the entries of a score that record the choice: `lr_head`, `tune_top1` and `sweep`
        (top-1 by rate), in %.
    """
    index = max(range(len(rates)), key=lambda i: (tune_tops[i][0], -rates[i]))
    sweep = {str(rate): top1 for rate, (top1, _) in zip(rates, tune_tops, strict=True)}
    return index, {"lr_head": rates[index], "tune_top1": tune_tops[index][0], "sweep": sweep}
