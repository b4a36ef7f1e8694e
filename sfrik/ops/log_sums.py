r"""Row sums of exponentials of inner products, in logarithms, with the gradient of their sum, tile by tile in two passes.

.. math::

    L_i = \log \sum_{j \ne i} e^{\langle z_i, z_j \rangle / \tau}, \qquad
    \tau \, \frac{\partial}{\partial z_i} \sum_k L_k = \sum_{j \ne i} \big( e^{\langle z_i, z_j \rangle / \tau - L_i}
    + e^{\langle z_i, z_j \rangle / \tau - L_j} \big) \, z_j

The normalisers of SimCLR and the kernel density estimate of AUH's entropy have this form. The gradient has L of rows i and j, so
all of them are computed first.

Legend: n rows over all processes, n_local of them on this process (the local rows), q their dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfrik.ops.pairwise import row_blocks, tiles

__all__ = ["RowLogSums", "row_log_sums"]


@dataclass
class RowLogSums:
    """The logarithms of the row sums, and what the second pass needs.

    Attributes:
        local: the local rows, [n_local, q].
        remote: the rows of other processes, each [any, q].
        temperature: tau, above 0.
        values: L of each local row, [n_local].
        kept: the quotients <z_i, z_j> / tau of each tile; None to compute them again.
    """

    local: Tensor
    remote: Sequence[Tensor]
    temperature: float
    values: Tensor
    kept: list[Tensor] | None

    def add_gradient(self, gradient: Tensor, remote_values: Sequence[Tensor], scale: float) -> None:
        """Add the gradient of the sum of L over all rows of all processes, times `scale` and tau. To be called once.

        Args:
            gradient: [n_local, q], modified in place.
            remote_values: L of the rows of other processes, as `remote`.
            scale: factor of the gradient.
        """
        kept = self.kept and self.kept[::-1]
        both = zip(tiles(self.local, self.remote), tiles(self.values, remote_values), strict=True)
        for (rows, other, columns), (_, of_other, _) in both:
            logits = kept.pop() if kept else _logits(self.local[rows], other, columns == rows, self.temperature)
            with row_blocks(logits, self.local.shape[1]) as blocks:
                for block in blocks:
                    weights = (logits[block] - self.values[rows][block, None]).exp_()
                    logits[block].sub_(of_other).exp_().add_(weights)
            gradient[rows].addmm_(logits, other, alpha=scale)
            if columns is not None and columns != rows:
                gradient[columns].addmm_(logits.T, self.local[rows], alpha=scale)
        self.kept = None


def row_log_sums(local: Tensor, remote: Sequence[Tensor], temperature: float, with_gradient: bool) -> RowLogSums:
    """The logarithms of the row sums of the local rows.

    Args:
        local: [n_local, q], in float32 or float64.
        remote: the rows of other processes, each [any, q].
        temperature: tau, above 0.
        with_gradient: whether `RowLogSums.add_gradient` follows. The inner products are then kept for it if they take at most
            twice the memory of the rows.
    """
    remote_rows = sum(map(len, remote))
    keep = with_gradient and len(local) / 2 + remote_rows <= 2 * local.shape[1]  # inner products per local row
    kept: list[Tensor] = []
    values = torch.full_like(local[:, 0], -torch.inf)
    for rows, other, columns in tiles(local, remote):
        logits = _logits(local[rows], other, columns == rows, temperature)
        _logaddexp(values[rows], logits, local.shape[1])
        if columns is not None and columns != rows:
            _logaddexp(values[columns], logits.T, local.shape[1])
        if keep:
            kept.append(logits)
    return RowLogSums(local, remote, temperature, values, kept if keep else None)


def _logits(rows: Tensor, other: Tensor, on_diagonal: bool, temperature: float) -> Tensor:
    logits = rows @ other.T
    with row_blocks(logits, rows.shape[1]) as blocks:
        for block in blocks:
            logits[block].div_(temperature)
    return logits.fill_diagonal_(-torch.inf) if on_diagonal else logits


def _logaddexp(to: Tensor, logits: Tensor, q: int) -> None:
    """Set each entry of `to` to the logarithm of its `exp` plus the sum of `exp` over a row of `logits`."""
    with row_blocks(logits, q) as blocks:
        for block in blocks:
            torch.logaddexp(to[block], torch.logsumexp(logits[block], dim=1), out=to[block])
