"""Logistic regression on frozen features: the paper's SGD, and scikit-learn's L-BFGS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfrik.datasets import derived_seed

__all__ = ["logistic_lbfgs", "logistic_sgd"]


def logistic_lbfgs(
    train: tuple[Tensor, Tensor],
    tune: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    inverse_penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0),
) -> dict[str, Any]:
    """Multinomial logistic regression on standardised features, the L2 penalty chosen on the tuning split.

    Args:
        train, tune, test: (features [n, d], labels [n]) each.
        inverse_penalties: scikit-learn's C, to choose from by accuracy on `tune`; the smallest wins a tie.

    Returns:
        `top1` on test and `tune_top1`, both in %, and the chosen `C`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = []
    for penalty in sorted(inverse_penalties):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000, tol=1e-3))
        model.fit(train[0].numpy(), train[1].numpy())
        fitted.append((100 * model.score(tune[0].numpy(), tune[1].numpy()), -penalty, model))
    tune_top1, negative, model = max(fitted, key=lambda candidate: candidate[:2])
    # the test split is read once, by the chosen model
    top1 = 100 * model.score(test[0].numpy(), test[1].numpy())
    return {"top1": float(top1), "tune_top1": float(tune_top1), "C": -negative}


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
) -> dict[str, Any]:
    """The paper's: a linear head by SGD with momentum 0.9 and a cosine over the epochs, on features as they are.

    Returns:
        `top1` and `top5` on test in %, of the last epoch (`top1`, `top5`) and of the best (`best_top1`, `best_top5`).
    """
    features, labels = train[0].to(device), train[1].to(device)
    torch.manual_seed(derived_seed(seed))
    head = linear_head(features.shape[1], num_classes).to(device)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr_head, momentum=0.9, weight_decay=weight_decay)
    tops = []
    for epoch in range(epochs):
        set_cosine_rates(optimizer, [lr_head], epoch, epochs)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(labels))).to(device)
        for chosen in order.split(batch_size):
            loss = F.cross_entropy(head(features[chosen]), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            tops.append(top_accuracies(head(test[0].to(device)), test[1].to(device)))
    return last_and_best(tops)


def linear_head(num_features: int, num_classes: int) -> nn.Linear:
    """Weights from N(0, 0.01), that is of standard deviation 0.01, and zero bias."""
    head = nn.Linear(num_features, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def set_cosine_rates(optimizer: torch.optim.Optimizer, peaks: list[float], epoch: int, epochs: int) -> None:
    """Rates of the groups at `epoch`, by a cosine from their peaks to 0, a step an epoch."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def top_accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 in %; where there are fewer than five classes, the second is the top of all."""
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices
    hits = (ranked == labels[:, None]).double()
    return 100 * hits[:, 0].mean().item(), 100 * hits.sum(dim=1).mean().item()


def last_and_best(tops: list[tuple[float, float]]) -> dict[str, float]:
    """The last epoch's scores and, named apart, those of the epoch with the best top-1."""
    best = max(tops, key=lambda pair: pair[0])
    return {"top1": tops[-1][0], "top5": tops[-1][1], "best_top1": best[0], "best_top5": best[1]}
