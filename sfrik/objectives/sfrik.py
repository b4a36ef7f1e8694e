r"""SFRIK: alignment of the views, and the MMD to the uniform distribution with a rotation-invariant kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sfrik.kernels import RotationInvariantKernel
from sfrik.kernels.polynomials import check_whole
from sfrik.mmd import MMD, Cost
from sfrik.objectives.base import Batch, Objective, mean
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.sliced import SlicedMMD
from sfrik.objectives.spectra import Floor, per_squared_distance
from sfrik.ops.random import MAX_SEED
from sfrik.ops.trade_off import alignment_weight, trade_off_of

__all__ = ["SFRIK"]

WEIGHTS = (1.0, 40.0, 40.0)  # the paper's


class SFRIK(Objective):
    r"""Alignment of the L2-normalised views and their MMD to the uniform distribution on the sphere (equation 5 of the paper).

    .. math:: \text{sim\_coeff} \cdot \text{alignment} + \text{mmd\_coeff} \cdot \operatorname{mean}_v \mathrm{MMD}^2(z_v)

    The alignment is a mean over the q coordinates of unit vectors, so at the same distance it falls as 1/q. The trade-off in the
    paper's notation is :math:`\lambda = q \cdot \text{mmd\_coeff} / \text{sim\_coeff}`: at every q the weight of the MMD for a
    squared distance of the views of weight 1 (`Objective.spectrum`).

    Args:
        dim: q, the dimension of the embeddings.
        weights: :math:`b_1, \dots, b_L` of the truncated kernel, any number of degrees; None for the paper's (1.0, 40.0, 40.0).
        sim_coeff: weight of the alignment; None for `4000 * dim / 8192`, the paper's trade-off on the 20 % subset of ImageNet, or
            the weight that follows from `trade_off`.
        mmd_coeff: weight of the MMD.
        trade_off: :math:`\lambda`, above 0, in place of `sim_coeff`; the paper has 2.048, on the whole of ImageNet 0.8192.
        kernel: another rotation-invariant kernel of dimension q, in place of `weights`.
        cost: the algorithm for the MMD: "auto", "gram" or "moments" (`sfrik.mmd`).
        slices: number of random directions for estimating the MMD, drawn again in each call (`sfrik.objectives.sliced`); None
            for the exact MMD.
        low_precision: whether views in bfloat16 or float16 are multiplied in that precision; None: on a GPU only. `sfrik.mmd.MMD`
            states the error.
        seed: of the random directions, the same on all processes.
        equal_rows: whether all processes always have the same number of rows, which saves an exchange.

    Raises:
        ValueError: `sim_coeff` and `trade_off`, or `weights` and `kernel`, are both given, or a number is out of bounds.

    >>> import torch
    >>> views = [torch.eye(4).requires_grad_(), torch.eye(4)]
    >>> terms = SFRIK(dim=4)(views)
    >>> {name: round(value.item(), 3) for name, value in terms.parts.items()}
    {'alignment': 0.0, 'mmd': 10.25}
    >>> terms.backward()
    >>> SFRIK(dim=512).sim_coeff, SFRIK(dim=512, trade_off=1.0).sim_coeff, SFRIK(dim=512).trade_off
    (250.0, 512.0, 2.048)
    """

    def __init__(
        self,
        dim: int,
        weights: Sequence[float] | None = None,
        sim_coeff: float | None = None,
        mmd_coeff: float = 1.0,
        *,
        trade_off: float | None = None,
        kernel: RotationInvariantKernel | None = None,
        cost: Cost = "auto",
        slices: int | None = None,
        low_precision: bool | None = None,
        seed: int = 0,
        equal_rows: bool = False,
    ) -> None:
        super().__init__(equal_rows=equal_rows)
        if kernel is None:
            kernel = RotationInvariantKernel.truncated(WEIGHTS if weights is None else weights, dim)
        elif weights is not None:
            raise ValueError("weights make a truncated kernel, and kernel is another one: give one of them")
        self.mmd = MMD(kernel, cost=cost, low_precision=low_precision)
        if kernel.dim != dim:
            raise ValueError(f"the kernel is of dimension {kernel.dim}, the embeddings of dimension {dim}")
        self.sliced = None if slices is None else SlicedMMD(kernel, slices)
        self.dim, self.mmd_coeff, self.seed = kernel.dim, mmd_coeff, check_whole("seed", seed, 0, MAX_SEED)
        self.sim_coeff = alignment_weight(kernel.dim, sim_coeff, mmd_coeff, trade_off)

    @property
    def trade_off(self) -> float:
        r""":math:`\lambda`; infinite if the alignment has no weight."""
        return trade_off_of(self.dim, self.sim_coeff, self.mmd_coeff)

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

    def _spectrum(self, q: int, n: int | None, degrees: int) -> list[float]:
        kernel = self.kernel
        if degrees > kernel.degree and kernel.closed_form and kernel.beyond > 1e-12:
            raise ValueError(f"the kernel has its first {kernel.degree} coefficients only, got degrees = {degrees}")
        coefficients = [*kernel.coefficients, *[0.0] * degrees][:degrees]
        return [b * self.mmd_coeff * per_squared_distance(self.sim_coeff / q) for b in coefficients]

    def _floor(self, n: int, q: int) -> Floor:
        at_0, at_1 = self.kernel(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return Floor("mmd", at_1 / n, (at_1 + (n - 1) * at_0) / n if n <= q else None, at_1)

    def _dim(self, q: int | None) -> int:
        if q not in (None, self.dim):
            raise ValueError(f"the objective was made for dim={self.dim}, got q = {q}")
        return self.dim
