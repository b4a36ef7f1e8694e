"""Logistic regression on frozen features: the paper's SGD, and scikit-learn's L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.evaluate.arguments import as_split, check_widths
from sfrik.evaluate.head_norm import build_head_norm, fold
from sfrik.evaluate.linear_head import (
    as_score,
    choose_rate,
    feature_ranks,
    last_and_best,
    linear_heads,
    rate_groups,
    score_features,
    set_cosine_rates,
)
from sfrik.ops.finite import not_finite
from sfrik.ops.random import derived_seed
from sfrik.runs.correctness import pack
from sfrik.system.progress import track
from sfrik.system.terminal import print_line

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["fit_lbfgs", "logistic_lbfgs", "logistic_sgd", "logistic_sweep"]

MEMORY_FRACTION = 0.5  # of a GPU's free memory that features may take; larger ones stay on the host


def logistic_lbfgs(
    train: tuple[Tensor, Tensor],
    tune: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    inverse_penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0),
) -> dict[str, Any]:
    """Multinomial logistic regression on standardised features by L-BFGS; the L2 penalty is chosen on the tuning split.

    Memory: several copies of the features, so it suits the few thousand images of the digits profile; ImageNet needs SGD.

    Args:
        train: (features [n, d], labels [n]).
        tune: the same, to choose the penalty.
        test: the same, to score the chosen model once.
        inverse_penalties: candidates for scikit-learn's C, compared by accuracy on `tune`; the smallest wins a tie.

    Returns:
        `top1` on test and `tune_top1`, both in %; `correct`, the test images that are classified correctly
        (`sfrik.runs.correctness`); the chosen `C`, and `sweep`, top-1 on the tuning split by C.
    """
    train, tune, test = _splits(train=train, tune=tune, test=test)
    fitted = []
    for penalty in sorted(inverse_penalties):
        model = _fit(train, penalty)
        fitted.append((100 * model.score(tune[0].numpy(), tune[1].numpy()), -penalty, model))
    tune_top1, negative, model = max(fitted, key=lambda candidate: candidate[:2])
    # only the chosen model is scored on the test split
    correct = np.equal(model.predict(test[0].numpy()), test[1].numpy())
    sweep = {str(-negative): float(top1) for top1, negative, _ in fitted}
    score = {"top1": float(100 * correct.mean()), "correct": pack(correct), "tune_top1": float(tune_top1)}
    return {**score, "C": -negative, "sweep": sweep}


def fit_lbfgs(train: tuple[Tensor, Tensor], inverse_penalty: float) -> Pipeline:
    """The model that `logistic_lbfgs` fits for one penalty: a scikit-learn pipeline, which takes features as a NumPy array.

    The same features and penalty give the same model, so it is not saved but fitted again where its predictions are needed.

    Args:
        train: (features [n, d], labels [n]).
        inverse_penalty: scikit-learn's C, above 0 and finite.
    """
    return _fit(as_split(train, "train"), inverse_penalty)


def _fit(train: tuple[Tensor, Tensor], inverse_penalty: float) -> Pipeline:
    if not 0 < inverse_penalty < math.inf:
        raise ValueError(f"C must be above 0 and finite, got {inverse_penalty}")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000, tol=1e-3))
    return model.fit(train[0].numpy(), train[1].numpy())


def logistic_sgd(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    epochs: int = 100,
    batch_size: int = 256,
    lr_head: float = 0.4,
    weight_decay: float = 1e-6,
    seed: int = 0,
    device: torch.device | str = "cpu",
    head_norm: str = "none",
) -> dict[str, Any]:
    """Logistic regression as in the paper: a linear head on unscaled features, by SGD with momentum 0.9 and a cosine by epoch.

    Memory: on a GPU the training features, if they take at most half of the free memory (1.28 million of d = 2048: 9.8 GiB);
    otherwise, and on a CPU, they are read one batch at a time and may be mapped from a file. The process then allocates
    the order of the images (8 bytes each), a batch, and a block of test features with its class scores
    (`sfrik.evaluate.linear_head.ROWS`): 0.10 GiB for 200,000 x 512 (benchmarks/evaluation_memory.py). The operating system may
    also cache pages of the file, and reclaims them when it needs memory.

    Args:
        train: (features [n, d], labels [n]).
        test: the same, scored after each epoch.
        num_classes: classes of both.
        epochs: passes over the training features.
        batch_size: features per step.
        lr_head: peak learning rate.
        weight_decay: of weights and bias.
        seed: of the initial weights and of the order.
        device: of the training.
        head_norm: "none", or "batchnorm" to standardise the features (`sfrik.evaluate.head_norm`); a batch of one image, which it
            cannot normalise, is then skipped.

    Returns:
        Accuracies on test in %: `top1` and `top5` of the last epoch, `best_top1` and `best_top5` of the best one; and `correct`,
        the test images that are classified correctly (`sfrik.runs.correctness`).

    Raises:
        SfrikError: the head's weights have become infinite or NaN.
        ValueError: features or labels that `sfrik.evaluate.arguments` refuses, or an argument out of its range.
    """
    train, test = _splits(train=train, test=test)
    heads = linear_heads(1, train[0].shape[1], num_classes, seed, device)
    norm = build_head_norm(head_norm, train[0].shape[1], device)
    tops, score = [], {}
    for epoch, _ in enumerate(_epochs(train, heads, [lr_head], epochs, batch_size, weight_decay, seed, norm)):
        if not_finite(heads[0].state_dict()) is not None:
            raise SfrikError(f"logistic regression diverged at lr_head {lr_head:g} in epoch {epoch}: lower the rate")
        score = as_score(feature_ranks(fold(heads[0], norm), *test))
        tops.append((score["top1"], score["top5"]))
    return {**last_and_best(tops), "correct": score["correct"]}


def logistic_sweep(
    train: tuple[Tensor, Tensor],
    tune: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None,
    num_classes: int,
    rates: Sequence[float],
    epochs: int = 100,
    batch_size: int = 256,
    weight_decay: float = 1e-6,
    seed: int = 0,
    device: torch.device | str = "cpu",
    head_norm: str = "none",
) -> dict[str, Any]:
    """`logistic_sgd` for several rates at once: a batch of features is read once and trains one head per rate by one product.

    The last epoch's heads are compared on the tuning split, and only the chosen one is scored on the test images, once. A rate's
    head equals the one that `logistic_sgd` trains with that rate. Arguments that are not listed are those of `logistic_sgd`.

    Args:
        train: (features [n, d], labels [n]).
        tune: the same, to choose the rate.
        test: the same, to score the chosen head; None scores the tuning split.
        rates: peak learning rates.

    Returns:
        `top1` and `top5` in %, `correct`, the chosen `lr_head`, its `tune_top1`, and `sweep`: top-1 on the tuning split by rate.
        A rate whose head has become infinite or NaN scores 0 and is reported on stderr.

    Raises:
        SfrikError: the heads of all rates have become infinite or NaN.
        ValueError: as `logistic_sgd`.
    """
    train, tune = _splits(train=train, tune=tune)
    test = None if test is None else _splits(train=train, test=test)[1]
    heads = linear_heads(len(rates), train[0].shape[1], num_classes, seed, device)
    norm = build_head_norm(head_norm, train[0].shape[1], device)
    for _ in _epochs(train, heads, rates, epochs, batch_size, weight_decay, seed, norm):
        pass
    tops = [
        (0.0, 0.0) if not_finite(head.state_dict()) is not None else score_features(fold(head, norm), *tune) for head in heads
    ]
    diverged = [rate for rate, head in zip(rates, heads, strict=True) if not_finite(head.state_dict()) is not None]
    if len(diverged) == len(rates):
        raise SfrikError(f"logistic regression diverged at every lr_head, {', '.join(f'{r:g}' for r in rates)}: lower them")
    for rate in diverged:
        print_line(f"logistic: lr_head {rate:g} diverged and scores 0; the other rates continue", error=True)
    index, choice = choose_rate(rates, tops)
    return {**as_score(feature_ranks(fold(heads[index], norm), *(tune if test is None else test))), **choice}


def _epochs(
    train: tuple[Tensor, Tensor],
    heads: Sequence[nn.Linear],
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
    norm: nn.Module,
) -> Iterator[None]:
    """Train the heads together on the output of `norm`, each at its own rate; yields after each epoch, for scoring.

    Their weights become views of one matrix: a step is one product forward and one backward for any number of heads.
    """
    if epochs < 1 or batch_size < 1 or not 0 <= weight_decay < math.inf:
        raise ValueError(
            f"epochs and batch_size must be >= 1, and weight_decay >= 0 and finite, got {epochs}, {batch_size}, {weight_decay}"
        )
    classes, whole = heads[0].out_features, {}
    for name in ("weight", "bias"):
        whole[name] = torch.cat([getattr(head, name).detach() for head in heads])  # [rates x classes, d], [rates x classes]
        whole[f"{name} gradient"] = torch.zeros_like(whole[name])
        for head, part, gradient in zip(heads, whole[name].split(classes), whole[f"{name} gradient"].split(classes), strict=True):
            getattr(head, name).data, getattr(head, name).grad = part, gradient
    rows = _Rows(*train, whole["weight"].device)
    optimizer = torch.optim.SGD(rate_groups(heads, rates), momentum=0.9, weight_decay=weight_decay, fused=True)
    for epoch in track(range(epochs), epochs, "logistic regression, epochs"):
        set_cosine_rates(optimizer, rates, epoch, epochs)
        order = torch.from_numpy(np.random.default_rng(derived_seed("evaluation order", seed, epoch)).permutation(len(train[1])))
        for features, labels in rows.batches(order, batch_size):
            if len(labels) < 2 and isinstance(norm, nn.BatchNorm1d):
                continue
            features = norm(features.to(whole["weight"].dtype))
            scores = F.linear(features, whole["weight"], whole["bias"]).requires_grad_()
            each = scores.view(-1, classes), labels.repeat_interleave(len(heads))  # one row per image and rate
            (slope,) = torch.autograd.grad(F.cross_entropy(*each, reduction="sum") / len(labels), scores)
            torch.mm(slope.T, features, out=whole["weight gradient"])
            torch.sum(slope, dim=0, out=whole["bias gradient"])
            optimizer.step()
        yield


def _splits(**named: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The splits, each (features [n, d], labels [n]), checked and converted; raises ValueError as `as_split`."""
    splits = {name: as_split(split, name) for name, split in named.items()}
    check_widths(**{name: features for name, (features, _) in splits.items()})
    return list(splits.values())


class _Rows:
    """Features and labels that are batched onto a device; they are moved there as a whole if they fit."""

    def __init__(self, features: Tensor, labels: Tensor, device: torch.device) -> None:
        self.device = device
        storage = device if features.nbytes <= _available_bytes(device) else features.device
        self.features, self.labels = features.to(storage), labels.to(storage)

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of features and labels, in the order of the indices `order` [n], which are on the host."""
        for chosen in order.to(self.features.device).split(size):
            features, labels = self.features.index_select(0, chosen), self.labels.index_select(0, chosen)
            if features.device != self.device:  # pinned memory: the copy overlaps the previous step
                features = features.pin_memory().to(self.device, non_blocking=True)
                labels = labels.pin_memory().to(self.device, non_blocking=True)
            yield features, labels


def _available_bytes(device: torch.device) -> float:
    """Bytes that features may take on a device."""
    return MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
