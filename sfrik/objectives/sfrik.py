r"""SFRIK: alignment of the views, and the MMD to the uniform distribution with a rotation-invariant kernel."""

from __future__ import annotations

from collections.abc import Sequence

from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import MMD, Cost
from sfrik.objectives.base import Batch, LossTerms, Objective, mean
from sfrik.objectives.sliced import SlicedMMD

__all__ = ["SFRIK"]


class SFRIK(Objective):
    r"""Alignment of the L2-normalised views and their MMD to the uniform distribution on the sphere (equation 5 of the paper).

    .. math:: \text{sim\_coeff} \cdot \text{alignment} + \text{mmd\_coeff} \cdot \operatorname{mean}_v \mathrm{MMD}^2(z_v)

    The alignment is a mean over the q coordinates of unit vectors, so at the same distance it falls as 1/q. The trade-off in the
    paper's notation is :math:`\lambda = q \cdot \text{mmd\_coeff} / \text{sim\_coeff}`.

    Args:
        dim: q, the dimension of the embeddings.
        weights: :math:`b_1, \dots, b_L` of the truncated kernel, any number of degrees.
        sim_coeff: weight of the alignment; None for `4000 * dim / 8192`, the paper's trade-off on the 20 % subset of ImageNet.
        mmd_coeff: weight of the MMD.
        kernel: another rotation-invariant kernel of dimension q, in place of `weights`.
        cost: the algorithm for the MMD: "auto", "gram" or "moments" (`sfrik.mmd`).
        slices: number of random directions for estimating the MMD, drawn again in each call (`sfrik.objectives.sliced`); None
            for the exact MMD.
        low_precision: whether views in bfloat16 or float16 are multiplied in that precision; None: on a GPU only. `sfrik.mmd.MMD`
            states the error.
        seed: of the random directions, the same on all processes.
        equal_rows: whether all processes always have the same number of rows, which saves an exchange.

    >>> import torch
    >>> views = [torch.eye(4).requires_grad_(), torch.eye(4)]
    >>> terms = SFRIK(dim=4)(views)
    >>> {name: round(value.item(), 3) for name, value in terms.parts.items()}
    {'alignment': 0.0, 'mmd': 10.25}
    >>> terms.backward()
    """

    def __init__(
        self,
        dim: int,
        weights: Sequence[float] = (1.0, 40.0, 40.0),
        sim_coeff: float | None = None,
        mmd_coeff: float = 1.0,
        *,
        kernel: RotationInvariantKernel | None = None,
        cost: Cost = "auto",
        slices: int | None = None,
        low_precision: bool | None = None,
        seed: int = 0,
        equal_rows: bool = False,
    ) -> None:
        super().__init__(equal_rows=equal_rows)
        if slices is not None and slices < 1:
            raise ValueError(f"slices must be at least 1, got {slices}")
        kernel = kernel or RotationInvariantKernel.truncated(weights, dim)
        if kernel.dim != dim:
            raise ValueError(f"the kernel is of dimension {kernel.dim}, the embeddings of dimension {dim}")
        self.mmd = MMD(kernel, cost=cost, low_precision=low_precision)
        self.sliced = None if slices is None else SlicedMMD(kernel, slices)
        self.dim, self.mmd_coeff, self.seed = dim, mmd_coeff, seed
        self.sim_coeff = 4000 * dim / 8192 if sim_coeff is None else sim_coeff

    @property
    def kernel(self) -> RotationInvariantKernel:
        """The kernel of the MMD."""
        return self.mmd.kernel

    def terms(self, batch: Batch, step: int) -> LossTerms:
        alignment = batch.alignment(self.sim_coeff)
        rows, gradients = batch.regularised_rows, batch.gradient_buffers()
        weight = self.mmd_coeff / len(rows)
        if self.sliced:
            shares = self.sliced.partial_values(rows, batch.n, gradients, weight, (self.seed, step))
        else:
            dtype = self.mmd.compute_dtype(batch.dtype, rows[0].device)
            shares = self.mmd.partial_values([z.to(dtype) for z in rows], batch.counts, gradients, weight)
        alignment, mmd = batch.all_reduce(alignment, mean(shares))
        return batch.loss_terms(self.sim_coeff * alignment + self.mmd_coeff * mmd, alignment=alignment, mmd=mmd)

    def _check(self, views, anchors, regularise):
        super()._check(views, anchors, regularise)
        if views[0].shape[1] != self.dim:
            raise ValueError(f"views have {views[0].shape[1]} columns, but the objective was made for dim={self.dim}")
