"""One-vs-rest linear SVMs on frozen features, scored by mean average precision: the protocol of VOC07 classification.

The protocol is that of Goyal et al. 2019 ("Scaling and benchmarking self-supervised visual representation learning"), which
VICReg's paper follows: LIBLINEAR with squared hinge loss, L2-normalised features, positives weighted twice, the cost of each
class chosen by cross-validation. Average precision is theirs too: the area under the precision-recall curve with precision made
non-increasing in recall, as VOC defines it since 2010, and not the mean at 11 recalls of VOC's 2007 report.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sfrik.errors import SfrikError
from sfrik.evaluate.arguments import as_features

__all__ = ["average_precision", "mean_average_precision"]

FOLDS = 3


def mean_average_precision(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    costs: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train one SVM per class on `train`; the chosen ones score the test images once.

    Args:
        train: (features [n, d], labels [n, classes]); a label is 1 (present), -1 (absent) or 0 (difficult: excluded from this
            class's score, and here from its training too, whereas the reference counts it as absent).
        test: the same, to score the SVMs.
        costs: candidates for LIBLINEAR's C, compared per class by average precision over 3 folds of `train`; the smallest wins
            a tie.
        seed: of LIBLINEAR's order.
        classes: names of the classes; their numbers when None.

    Returns:
        `map`, the mean over classes, `ap` by class, both in %, and the chosen `svm_cost` by class.

    Raises:
        SfrikError: a class with fewer than 3 positive or negative training images, or without a positive test image.
        ValueError: features that are NaN, infinite or not [n, d], labels other than 1, -1 and 0, splits of different dimensions
            or classes, or a cost that is not above 0 and finite.
    """
    if wrong := [cost for cost in costs if not 0 < cost < math.inf]:
        raise ValueError(f"costs must be above 0 and finite, got {wrong[0]}")
    (x, y), (x_test, y_test) = _split(train, "train"), _split(test, "test")
    if x.shape[1] != x_test.shape[1] or y.shape[1] != y_test.shape[1]:
        shapes = f"{x.shape} and {y.shape}, test {x_test.shape} and {y_test.shape}"
        raise ValueError(f"train and test have features or labels of different widths: train {shapes}")
    names = list(classes) if classes is not None else [str(label) for label in range(y.shape[1])]
    precisions, chosen = {}, {}
    for label, name in enumerate(names):
        used, scored = y[:, label] != 0, y_test[:, label] != 0
        target, truth = y[used, label], y_test[scored, label]
        if min((target > 0).sum(), (target < 0).sum()) < FOLDS or not (truth > 0).any():
            raise SfrikError(
                f"class {name} has {(target > 0).sum()} positive and {(target < 0).sum()} negative training images and "
                f"{(truth > 0).sum()} positive test images; at least {FOLDS}, {FOLDS} and 1 are needed: check --target-dir"
            )
        chosen[name], model = _fit(x[used], target, costs, seed)
        precisions[name] = 100 * average_precision(truth > 0, model.decision_function(x_test[scored]))
    return {"map": float(np.mean(list(precisions.values()))), "ap": precisions, "svm_cost": chosen}


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    r"""Area under the precision-recall curve.

    .. math:: \sum_k (r_k - r_{k-1}) \max_{j \ge k} p_j

    over the images k in order of decreasing score, with recall :math:`r_k` and precision :math:`p_k` among the first k.

    Args:
        positive: bool [n], at least one True.
        scores: [n], finite.

    Returns:
        The average precision, from 0 to 1.

    Raises:
        ValueError: no positive, or scores that are NaN, infinite or not as many.

    >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7]))
    0.8333333333333333
    """
    if positive.shape != scores.shape or not positive.any() or not np.isfinite(scores).all():
        raise ValueError(f"average precision needs {len(positive)} finite scores and a positive among them")
    hits = positive[np.argsort(-scores, kind="stable")]
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / found[-1])  # recall grows only at positives, by 1 / their number each


def _fit(x: np.ndarray, target: np.ndarray, costs: Sequence[float], seed: int):
    """The cost with the best cross-validated average precision, and its SVM trained on all images."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import LinearSVC

    def svm(cost: float) -> LinearSVC:
        return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=seed)

    def score(cost: float) -> float:
        def rank(model, features, truth):
            return average_precision(truth > 0, model.decision_function(features))

        return cross_val_score(svm(cost), x, target, cv=FOLDS, scoring=rank).mean()

    with warnings.catch_warnings():  # as in the reference 2000 passes are the limit, which large costs may exceed
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = max((score(cost), -cost) for cost in costs)
        return -best[1], svm(-best[1]).fit(x, target)


def _split(split: tuple[Tensor, Tensor], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit features, float64 [n, d], and labels [n, classes] of -1, 0 and 1."""
    features, labels = as_features(split[0], f"{name} features").numpy(), split[1].numpy()
    if labels.ndim != 2 or len(labels) != len(features) or not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(f"{name} labels must be 1, -1 or 0, [n, classes], for {len(features)} images; got shape {labels.shape}")
    return _unit(features), labels


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, in float64, LIBLINEAR's precision."""
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-5)
