"""What an objective gives, and the batch of views on its way there: rows, gradients, what the processes add up.

Legend: n_local rows on this process, q embedding dimension, N processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfrik.closed_form import normalise, normalise_backward, wanted, with_gradients
from sfrik.collectives import row_counts, sum_over_processes, world_size

__all__ = ["Batch", "LossTerms"]


@dataclass(frozen=True)
class LossTerms:
    """`loss`, the scalar to minimise, and `parts`, the unweighted terms by name (detached, of the whole batch)."""

    loss: Tensor
    parts: dict[str, Tensor]


class Batch:
    """A batch of views on its way to a loss: the rows, the gradient that the terms add to, what all processes know.

    Everything here is outside of autograd. A term gives this process's part of its value, such that the parts of all processes
    add up to it (`totals`), and adds the gradient of the whole value, times its weight in the loss and N, to `gradients`.
    """

    def __init__(self, views: list[Tensor], anchors: list[int], equal_rows: bool, normalised: bool = False) -> None:
        self.views = views
        self.z = [view.detach() for view in views]
        self.norms: list[Tensor] = []
        if normalised:
            self.z, self.norms = map(list, zip(*map(normalise, self.z), strict=True))
        rows = len(views[0])
        self.counts = [rows] * world_size() if equal_rows else row_counts(rows, views[0].device)
        self.gradients = [torch.zeros_like(z) if wanted(views) else None for z in self.z]
        self.pairs: dict[tuple[int, int], float] = {}  # of views, with what their alignment weighs in the mean
        for a in anchors:
            for v in range(len(views)):
                if v != a:
                    pair = (min(a, v), max(a, v))
                    self.pairs[pair] = self.pairs.get(pair, 0.0) + 1 / (len(anchors) * (len(views) - 1))

    def alignment(self, weight: float) -> Tensor:
        """The mean over the pairs of their mean squared error."""
        count = sum(self.counts) * self.z[0].shape[1]
        total = self.z[0].new_zeros(())
        for (a, v), share in self.pairs.items():
            difference = self.z[a] - self.z[v]
            total += torch.linalg.vector_norm(difference).square() * (share / count)
            if self.gradients[0] is not None and weight:
                scale = 2 * weight * share * world_size() / count
                self.gradients[a].add_(difference, alpha=scale)
                self.gradients[v].sub_(difference, alpha=scale)
        return total

    def totals(self, *parts: Tensor) -> Tensor:
        """The values of the terms, of which this process has these parts: one exchange."""
        return sum_over_processes(torch.stack(parts))

    def terms(self, loss: Tensor, **parts: Tensor) -> LossTerms:
        """The loss with its gradient."""
        if self.gradients[0] is None:
            return LossTerms(loss, parts)
        for z, norms, gradient in zip(self.z, self.norms, self.gradients, strict=False):
            normalise_backward(z, norms, gradient)
        return LossTerms(with_gradients(loss, self.views, self.gradients), parts)
