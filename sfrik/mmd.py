r"""Maximum mean discrepancy between embeddings and the uniform law on the sphere (section 3 of the paper).

    MMD^2 = (1/n^2) sum_{i,j} phi(<z_i, z_j>)

The terms that involve the uniform law vanish since the kernel has no degree 0. The gradient is known in closed form,

    d MMD^2 / d z_i = (2/n^2) sum_j phi'(<z_i, z_j>) z_j,

so value and gradient come from one pass over the Gram matrix, in blocks of rows, and nothing of size n x n is kept
for the backward pass. Across processes each one takes its own rows against all rows: 1/N of the products.

Legend: n number of embeddings over all processes, q their dimension, G the Gram matrix of inner products [n, n].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sfrik.collectives import all_rows, rank, row_counts, sum_over_processes, world_size
from sfrik.kernels import RotationInvariantKernel

__all__ = ["gram_means", "mmd_to_uniform"]

BLOCK = 2048  # rows of the Gram matrix at a time


def mmd_to_uniform(z: Tensor, kernel: RotationInvariantKernel, unbiased: bool = False) -> Tensor:
    """Squared MMD between the rows of `z` and the uniform law on the sphere.

    Args:
        z: [n, q], rows of norm 1; under `torch.distributed` the rows of this process.
        kernel: a kernel of dimension q.
        unbiased: False for the V-statistic (mean over all pairs, the paper's loss, >= 0); True for the
            U-statistic (mean over i != j, mean 0 under the uniform law, may be negative).

    Returns:
        A scalar, in float32 at least. Differentiable once with respect to `z`.

    Raises:
        ValueError: wrong shape, one row, another dimension than the kernel's, rows that are not of norm 1.
    """
    if z.ndim != 2 or z.shape[1] != kernel.dim:
        raise ValueError(f"z must have shape [n, {kernel.dim}] (the kernel's dim), got {tuple(z.shape)}")
    if z.shape[0] * world_size() < 2:
        raise ValueError("the MMD needs at least two rows, got one")
    off = (z.detach().float().norm(dim=1) - 1).abs().max().item()
    if not off <= 0.01:  # bfloat16 keeps a norm to 0.4 %
        raise ValueError(f"rows of z must have norm 1 (the largest deviation is {off:.3g}): use torch.nn.functional.normalize")
    return gram_means([z], kernel, unbiased)[0]


def gram_means(views: Sequence[Tensor], kernel: RotationInvariantKernel, unbiased: bool = False) -> list[Tensor]:
    """`mmd_to_uniform` of several views without its checks: the mean of `kernel(<z_i, z_j>)` over pairs, with its gradient.

    Across processes the rows of all views are gathered in one exchange. Each process then multiplies its own rows with all
    rows; since the Gram matrix is symmetric, that is all that the gradient of its own rows needs, and nothing is exchanged
    in the backward pass.
    """
    rows = [view.float() if view.dtype in (torch.float16, torch.bfloat16) else view for view in views]
    with torch.no_grad():
        everything = all_rows([view.detach() for view in rows])
        # where the own rows begin matters for the diagonal alone
        start = sum(row_counts(len(rows[0]), rows[0].device)[: rank()]) if unbiased else 0
    return [_GramMean.apply(own, whole, start, kernel, unbiased) for own, whole in zip(rows, everything, strict=True)]


class _GramMean(torch.autograd.Function):
    @staticmethod
    @torch.no_grad()
    def forward(ctx, rows: Tensor, everything: Tensor, start: int, kernel: RotationInvariantKernel, unbiased: bool) -> Tensor:
        """Own rows [n_local, q], the first of which is row `start` of everything [n, q]."""
        n = everything.shape[0]
        pairs = n * (n - 1) if unbiased else n * n
        value = torch.zeros((), dtype=rows.dtype, device=rows.device)
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        with torch.autocast(rows.device.type, enabled=False):
            for lo in range(0, rows.shape[0], BLOCK):
                hi = min(lo + BLOCK, rows.shape[0])
                gram = rows[lo:hi] @ everything.T  # [block, n]
                phi = kernel(gram)
                if unbiased:
                    phi.diagonal(start + lo).zero_()
                value += phi.sum() / pairs
                if gradient is not None:
                    slope = kernel.derivative(gram)
                    if unbiased:
                        slope.diagonal(start + lo).zero_()
                    # times N: DDP averages over processes, and each has its own rows' gradient alone
                    gradient[lo:hi] = (slope @ everything) * (2 * world_size() / pairs)
        ctx.gradient = gradient
        return sum_over_processes(value)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad * ctx.gradient, None, None, None, None
