r"""Base class of the objectives, and the views of a batch with the gradient of their loss.

Legend: n rows over all processes, n_local of them on this process, q embedding dimension, N processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sfrik.kernels.polynomials import check_degree, check_dim, check_whole
from sfrik.objectives.calls import as_views, check_options, check_views, checked, refuse_options
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.spectra import Floor
from sfrik.ops.autograd import attach_gradients, normalise, normalise_backward, requires_grad
from sfrik.ops.collectives import all_reduce_sum, row_counts, world_size
from sfrik.ops.finite import broken_rows
from sfrik.ops.pairwise import LOW_PRECISION

__all__ = ["Batch", "NotFinite", "Objective", "mean"]

MAX_ROWS = 2**40  # far beyond any batch


class NotFinite(ValueError):
    """The loss is NaN or infinite, or a row that the objective normalises has no norm.

    Attributes:
        rows: indices of the local rows that are the cause, in any view: those with NaN or infinite values and, if the objective
            normalises, those whose norm is 0 (below 1e-12) or overflows. May be empty.
    """

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = list(rows)


class Objective(nn.Module, ABC):
    """Base class of the objectives. They have no parameters and no buffers.

    Args:
        equal_rows: whether all processes always have the same number of rows. True saves the exchange of these numbers.

    Attributes:
        allow_zero_rows: whether some rows may be exactly 0, which is refused by default. They count as the first unit vector and
            get no gradient. Pretraining sets it: an image that activates no unit of the last hidden layer has such a row.
    """

    normalised = True  # whether the objective divides each row by its norm

    def __init__(self, *, equal_rows: bool = False) -> None:
        super().__init__()
        self.equal_rows = equal_rows
        self.allow_zero_rows = False
        self._calls = 0

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)

    def forward(
        self,
        *views: Tensor | Sequence[Tensor],
        anchors: Sequence[int] = (0, 1),
        regularise: str = "all",
        step: int | None = None,
        **unknown: object,
    ) -> LossTerms:
        r"""Loss of two or more views, `objective(z1, z2)` or `objective([z1, z2, ...])`.

        Under `torch.distributed` the loss is that of the whole batch and the same on every process. Each process gets the
        gradient with respect to its local rows, multiplied by N, so that DDP's average is the gradient of this loss.

        Args:
            views: raw projector outputs, each [n_local, q]; the objective normalises them if its paper does.
            anchors: different indices of the views that all others are aligned to.
            regularise: whether the regulariser is averaged over "all" views or over the "anchors".
            step: number of the training step, which seeds the random directions, together with the objective's `seed`. By
                default the number of earlier calls. Pass it if training is resumed. Objectives without random directions ignore
                it.

        Raises:
            ValueError: views of wrong or different shapes, fewer than two views or two rows, or wrong anchors.
            TypeError: an option that does not exist; the objectives take no labels.
            NotFinite: on all processes: the loss is NaN or infinite, or the objective normalises and a row of any process is
                zero (see `allow_zero_rows`), or so small or large that its norm underflows or overflows.
        """
        name, given = type(self).__name__, as_views(views)
        refuse_options(name, unknown)
        check_views(name, given, getattr(self, "dim", None))
        anchors = check_options(len(given), anchors, regularise)
        step, self._calls = self._calls if step is None else step, self._calls + 1
        regularised = list(range(len(given))) if regularise == "all" else anchors
        with torch.autocast(given[0].device.type, enabled=False):  # else products of float32 rows would be taken in bfloat16
            terms = self.terms(Batch(given, anchors, regularised, self), step)
        if not torch.isfinite(terms.loss):
            raise self._not_finite(given, terms)
        return terms

    @abstractmethod
    def terms(self, batch: Batch, step: int) -> LossTerms:
        """The formula of the objective, evaluated on checked views outside of autocast."""

    def spectrum(self, q: int | None = None, n: int | None = None, degrees: int = 4) -> tuple[float, ...]:
        r"""Weight of each degree near uniform embeddings, 1 to `degrees`, for a squared distance of two views of weight 1.

        There the regulariser has the gradient of the squared MMD with these weights in place of :math:`b_l`
        (`sfrik.objectives.spectra`; docs/map.md compares the losses), for the distribution of the embeddings: where a loss leaves
        out the pairs i = j, its gradient on n rows is n / (n - 1) times that of the mean over all pairs.

        Args:
            q: the dimension of the embeddings; SFRIK knows it.
            n: the number of rows of a view, over all processes; SimCLR and SIGReg depend on it.
            degrees: the number of degrees.

        Raises:
            ValueError: q or n is missing or out of bounds, or the alignment has no weight.
        """
        degrees = check_degree(degrees)
        return tuple(self._spectrum(self._dim(q), self._rows(n), degrees))

    def floor(self, n: int, q: int | None = None) -> Floor | None:
        """The regulariser's value for n random, n orthogonal and n equal rows of dimension q; None where it has no such values.

        AUH has them where the value of random rows is known within about 1 % of what a collapse has above it: not at large scales
        or for few rows. At its default scale 16 rows are enough at every q, for the entropy 64 from q = 8 on.

        Args:
            n: the number of rows of a view, over all processes.
            q: the dimension of the embeddings; SFRIK knows it.

        Raises:
            ValueError: q is missing, or n or q is out of bounds.
        """
        return self._floor(check_whole("n", n, 2, MAX_ROWS), self._dim(q))

    @abstractmethod
    def _spectrum(self, q: int, n: int | None, degrees: int) -> Iterable[float]:
        """`spectrum`, given checked arguments."""

    def _floor(self, n: int, q: int) -> Floor | None:
        return None

    def _dim(self, q: int | None) -> int:
        if q is None:
            raise ValueError(f"{type(self).__name__} does not know the dimension of its embeddings: give q")
        return check_dim(q)

    def _rows(self, n: int | None) -> int | None:
        return None if n is None else check_whole("n", n, 2, MAX_ROWS)

    def extra_repr(self) -> str:
        public = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"}
        return ", ".join(f"{name}={value}" for name, value in public.items())

    def _not_finite(self, views: list[Tensor], terms: LossTerms) -> NotFinite:
        values = {name: float(value) for name, value in terms.parts.items()}
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        finite = [f"{name} {value:.4g}" for name, value in values.items() if math.isfinite(value)]
        what = f"the loss is not finite: {', '.join(bad) or 'the weighted sum overflows'}"
        what += f" ({', '.join(finite)})" if finite else ""
        broken = [broken_rows(view, self.normalised) for view in views]
        where = [
            f"view {k} {kind} in {len(rows)} of {len(views[k])} rows (first: row {rows[0]})"
            for k, kinds in enumerate(broken)
            for kind, rows in kinds.items()
            if rows
        ]
        largest = max(view.abs().max().item() for view in views)
        detail = "; ".join(where) or f"this process's views are finite, the largest value being {largest:.3g}"
        return NotFinite(f"{what}; {detail}", sorted({row for kinds in broken for rows in kinds.values() for row in rows}))


class Batch:
    """The views of a batch and the gradient of their loss, outside of autograd.

    Every term of an objective computes this process's share of its value, which `all_reduce` adds up over the processes, and its
    gradient with respect to the local rows, multiplied by its weight in the loss and by N. The terms add their gradients, in the
    order of their evaluation, to one tensor per view, so that no second tensor of that size is needed.

    Args:
        views: each [n_local, q].
        anchors: indices of the views that the others are aligned to.
        regularised: indices of the views that the regulariser is averaged over.
        objective: whose settings apply: whether rows are normalised, may be 0, and are as many on each process.

    Attributes:
        views: as given, in float32 or float64.
        dtype: of the views as given.
        z: the rows of each view, [n_local, q], detached and normalised if asked for.
        norms: of the rows of each view, [n_local, 1]; empty if they are not normalised.
        counts: number of rows on each process.
        n, q: rows over all processes, embedding dimension.
        regularised: as given.
        pairs: weight of each pair of views in the mean that is the alignment.
        requires_grad: whether a gradient is computed.
        gradients: by view the gradient so far, with respect to z.
    """

    def __init__(self, views: list[Tensor], anchors: list[int], regularised: list[int], objective: Objective) -> None:
        self.dtype = views[0].dtype
        self.views = [view.float() if view.dtype in LOW_PRECISION else view for view in views]
        self.z = [view.detach() for view in self.views]
        self.norms: list[Tensor] = []
        if objective.normalised:
            self.z, self.norms = map(list, zip(*(normalise(z, objective.allow_zero_rows) for z in self.z), strict=True))
        local, self.q = views[0].shape
        self.counts = [local] * world_size() if objective.equal_rows else row_counts(local, views[0].device)
        self.n = sum(self.counts)
        self.regularised = regularised
        self.requires_grad = requires_grad(views)
        self.gradients: dict[int, Tensor] = {}
        self.pairs: dict[tuple[int, int], float] = {}
        for a in anchors:
            for v in range(len(views)):
                if v != a:
                    pair = (min(a, v), max(a, v))
                    self.pairs[pair] = self.pairs.get(pair, 0.0) + 1 / (len(anchors) * (len(views) - 1))

    @property
    def regularised_rows(self) -> list[Tensor]:
        """The rows of each regularised view, [n_local, q]."""
        return [self.z[v] for v in self.regularised]

    def gradient_buffers(self) -> list[Tensor | None]:
        """For each regularised view the tensor to which a term adds its gradient; None if no gradient is computed."""
        return [self.gradient_buffer(v) if self.requires_grad else None for v in self.regularised]

    def gradient_buffer(self, view: int) -> Tensor:
        """The tensor to which terms add the gradient of a view; zeros before the first term."""
        if view not in self.gradients:
            self.gradients[view] = torch.zeros_like(self.z[view])
        return self.gradients[view]

    def add_gradient(self, view: int, gradient: Tensor, sign: int = 1) -> None:
        """Add a gradient of a view with a sign. The first positive one is not copied: the batch keeps it and adds to it."""
        if view in self.gradients:
            self.gradients[view].add_(gradient, alpha=sign)
        else:
            self.gradients[view] = gradient if sign == 1 else -gradient

    def alignment(self, weight: float) -> Tensor:
        """This process's share of the alignment, the mean squared error of aligned pairs. Adds `weight` times its gradient."""
        total = self.z[0].new_zeros(())
        for (a, v), pair_weight in self.pairs.items():
            difference = self.z[a] - self.z[v]
            total += torch.linalg.vector_norm(difference).square() * (pair_weight / (self.n * self.q))
            if self.requires_grad and weight:
                difference.mul_(2 * weight * pair_weight * world_size() / (self.n * self.q))
                self.add_gradient(v, difference, sign=-1)  # before the other, which may keep the tensor
                self.add_gradient(a, difference)
        return total

    def distance_to_centre(self, weight: float) -> Tensor:
        """This process's share of the mean squared distance of the views to their mean. Adds `weight` times its gradient."""
        total, centre = self.z[0].new_zeros(()), mean(self.z)
        scale = 1 / (len(self.z) * self.n * self.q)
        for v, z in enumerate(self.z):
            difference = z - centre
            total += torch.linalg.vector_norm(difference).square() * scale
            if self.requires_grad and weight:  # the centre's own gradient is 0
                self.add_gradient(v, difference.mul_(2 * weight * scale * world_size()))
        return total

    def all_reduce(self, *shares: Tensor) -> Tensor:
        """The values of the terms, given this process's share of each, in one collective."""
        return all_reduce_sum(torch.stack(shares))

    def loss_terms(self, loss: Tensor, **parts: Tensor) -> LossTerms:
        """The loss as a function of the views, with the gradient that the terms have added up."""
        if not self.requires_grad:
            return LossTerms(loss, parts)
        gradients = [self.gradient_buffer(v) for v in range(len(self.views))]
        if self.norms:
            for z, norms, gradient in zip(self.z, self.norms, gradients, strict=True):
                normalise_backward(z, norms, gradient)
        return LossTerms(attach_gradients(loss, self.views, gradients), parts)


def mean(values: Iterable[Tensor]) -> Tensor:
    """The mean of tensors of the same shape, summed in the order given."""
    first, *others = values
    return sum(others, start=first) / (1 + len(others))
