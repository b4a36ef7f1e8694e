"""What the objectives share: their checks, the loss and its terms, the batch of views on its way there.

Legend: n_local rows on this process, q embedding dimension, N processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfrik.ops.autograd import normalise, normalise_backward, requires_grad, with_gradients
from sfrik.ops.collectives import all_reduce_sum, row_counts, world_size
from sfrik.ops.pairwise import LOW

__all__ = ["Batch", "LossTerms", "NotFinite", "Objective"]


@dataclass(frozen=True)
class LossTerms:
    """`loss`, the scalar to minimise, and `parts`, the unweighted terms by name (detached, of the whole batch)."""

    loss: Tensor
    parts: dict[str, Tensor]


class NotFinite(ValueError):
    """The loss is not finite. `rows`: the rows of this process that hold such values, in any of the views; often none."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = list(rows)


class Objective(nn.Module, ABC):
    """What they share: the checks, the pairs of views, the averages.

    Attributes:
        equal_rows: say True where every process always has the same number of rows: the exchange of their numbers is saved.
        seed, draws: what random directions are drawn from, in the objectives that have such; `draws` counts the calls. A training
            that is to be resumed sets it to the step.
    """

    equal_rows = False
    seed = 0
    draws = 0

    def next_seed(self) -> tuple[int, int]:
        """Of the random directions of this call, where an objective has such: the same on all processes."""
        self.draws += 1
        return self.seed, self.draws - 1

    def forward(self, views: Sequence[Tensor], anchors: Sequence[int] = (0, 1), regularise: str = "all") -> LossTerms:
        """Loss terms of the views.

        Args:
            views: two or more projector outputs, each [n_local, q], not normalised.
            anchors: indices into `views`, without repetition.
            regularise: "all" or "anchors".

        Raises:
            ValueError: views of other shapes, fewer than two views or rows, bad anchors. NotFinite: NaN or infinite values.
        """
        views, anchors = list(views), list(anchors)
        self._check(views, anchors, regularise)
        regularised = range(len(views)) if regularise == "all" else anchors
        in_full = [view.float() if view.dtype in LOW else view for view in views]
        with torch.autocast(views[0].device.type, enabled=False):  # it would take the products of float32 rows in bfloat16
            terms = self.terms(in_full, anchors, regularised, views[0].dtype)
        if not torch.isfinite(terms.loss):
            raise self._not_finite(views, terms)
        return terms

    @abstractmethod
    def terms(self, views: list[Tensor], anchors: list[int], regularised: Sequence[int], given: torch.dtype) -> LossTerms:
        """The objective's own formula, on checked views in float32 or float64; `given` is the type that they came in."""

    def extra_repr(self) -> str:
        public = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"}
        return ", ".join(f"{name}={value}" for name, value in public.items())

    def _check(self, views: list[Tensor], anchors: list[int], regularise: str) -> None:
        if len(views) < 2:
            raise ValueError(f"an objective compares at least two views, got {len(views)}")
        shape = views[0].shape
        for k, view in enumerate(views):
            if view.ndim != 2:
                raise ValueError(f"view {k} must have shape [n, q], got {tuple(view.shape)}")
            if view.shape != shape:
                raise ValueError(f"all views must have one shape: view {k} has {tuple(view.shape)}, view 0 {tuple(shape)}")
        if shape[0] * world_size() < 2:
            raise ValueError("an objective needs at least two rows (images) in the batch, got one")
        if not anchors or len(set(anchors)) != len(anchors) or not all(0 <= a < len(views) for a in anchors):
            raise ValueError(f"anchors must be different indices from 0 to {len(views) - 1}, got {anchors}")
        if regularise not in ("all", "anchors"):
            raise ValueError(f'regularise must be "all" or "anchors", got {regularise!r}')

    def _not_finite(self, views: list[Tensor], terms: LossTerms) -> NotFinite:
        values = {name: float(value) for name, value in terms.parts.items()}
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        finite = [f"{name} {value:.4g}" for name, value in values.items() if math.isfinite(value)]
        what = f"the loss is not finite: {', '.join(bad) or 'the weighted sum overflows'}"
        what += f" ({', '.join(finite)})" if finite else ""
        broken = [(~torch.isfinite(view)).any(dim=1).nonzero().flatten().tolist() for view in views]
        where = [
            f"view {k} holds NaN or infinite values in {len(rows)} of {len(views[k])} rows (first: row {rows[0]})"
            for k, rows in enumerate(broken)
            if rows
        ]
        largest = max(view.abs().max().item() for view in views)
        detail = where[0] if where else f"this process's views are finite, the largest value being {largest:.3g}"
        return NotFinite(f"{what}; {detail}", sorted({row for rows in broken for row in rows}))


class Batch:
    """A batch of views on its way to a loss: the rows, the gradient that the terms add to, what all processes know.

    Everything here is outside of autograd. A term gives this process's part of its value, such that the parts of all processes
    add up to it (`totals`), and adds the gradient of the whole value, times its weight in the loss and N, to `gradient`.
    """

    def __init__(self, views: list[Tensor], anchors: list[int], equal_rows: bool, normalised: bool = False) -> None:
        self.views = views
        self.z = [view.detach() for view in views]
        self.norms: list[Tensor] = []
        if normalised:
            self.z, self.norms = map(list, zip(*map(normalise, self.z), strict=True))
        rows = len(views[0])
        self.counts = [rows] * world_size() if equal_rows else row_counts(rows, views[0].device)
        self.requires_grad = requires_grad(views)
        self.gradients: list[Tensor | None] = [None] * len(views)
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
            if self.requires_grad and weight:
                difference.mul_(2 * weight * share * world_size() / count)
                of_v, of_a = self.gradients[v], self.gradients[a]
                self.gradients[v] = -difference if of_v is None else of_v.sub_(difference)
                self.gradients[a] = difference if of_a is None else of_a.add_(difference)
        return total

    def gradient(self, view: int) -> Tensor | None:
        """What the terms add to; None where no gradient is wanted."""
        if self.requires_grad and self.gradients[view] is None:
            self.gradients[view] = torch.zeros_like(self.z[view])
        return self.gradients[view]

    def wanted_gradient(self, view: int) -> Tensor:
        """The same where one is wanted."""
        gradient = self.gradient(view)
        assert gradient is not None
        return gradient

    def totals(self, *parts: Tensor) -> Tensor:
        """The values of the terms, of which this process has these parts: one exchange."""
        return all_reduce_sum(torch.stack(parts))

    def terms(self, loss: Tensor, **parts: Tensor) -> LossTerms:
        """The loss with its gradient."""
        if not self.requires_grad:
            return LossTerms(loss, parts)
        gradients = [gradient for v in range(len(self.views)) if (gradient := self.gradient(v)) is not None]
        for z, norms, gradient in zip(self.z, self.norms, gradients, strict=False):  # no norms where nothing was normalised
            normalise_backward(z, norms, gradient)
        return LossTerms(with_gradients(loss, self.views, gradients), parts)
