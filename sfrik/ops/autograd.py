"""Scalars with a precomputed gradient, and the normalisation of rows.

The gradients of the losses are known in closed form and computed together with the value. Autograd gets the finished gradient, so
nothing else is kept for the backward pass.

Legend: n_local rows of this process, q their dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["attach_gradients", "normalise", "normalise_backward", "requires_grad", "rowwise_dot"]

MIN_NORM = 1e-12  # torch.nn.functional.normalize divides shorter rows by this, so that they are not of norm 1


def requires_grad(inputs: Sequence[Tensor]) -> bool:
    """Whether gradients are enabled and any of the inputs requires one."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def attach_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor] | None) -> Tensor:
    """The scalar `value` as a function of `inputs` with these gradients, one for each input. Differentiable once.

    `gradients=None` returns the value unchanged. A backward pass with `create_graph=True` raises NotImplementedError, since the
    gradient would be taken for a constant.
    """
    return value if gradients is None else _PrecomputedGradient.apply(value, list(gradients), *inputs)


class _PrecomputedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyrefly: ignore[bad-override] one output, one gradient
        if torch.is_grad_enabled():  # only with create_graph=True
            raise NotImplementedError(
                "the losses of sfrik have no second derivative, since their gradient is computed in closed form: leave out "
                "create_graph=True, or differentiate the plain formula of sfrik.objectives.reference"
            )
        return None, None, *(grad * gradient for gradient in ctx.gradients)


def normalise(x: Tensor, allow_zero_rows: bool = False) -> tuple[Tensor, Tensor]:
    """The rows of `x` divided by their norms, [n_local, q], and the norms, [n_local, 1].

    A row whose norm overflows in the dtype of `x`, or is below `MIN_NORM`, cannot be normalised: it is NaN, and so is its norm.

    Args:
        x: [n_local, q].
        allow_zero_rows: place rows that are exactly 0, unless all are, at the first unit vector: equal to each other and without
            gradient. Their norm is infinite.
    """
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    zero = (norms == 0) & (norms > 0).any() & allow_zero_rows
    norms.masked_fill_(~((norms >= MIN_NORM) & (norms < torch.inf)), torch.nan).masked_fill_(zero, torch.inf)
    z = x / norms
    z[:, :1].masked_fill_(zero, 1)
    return z, norms


def normalise_backward(z: Tensor, norms: Tensor, gradient: Tensor) -> Tensor:
    r"""Gradient with respect to x, given the gradient g with respect to :math:`z = x / |x|`, which is overwritten.

    .. math:: \frac{g - \langle z, g \rangle z}{|x|}
    """
    gradient.addcmul_(z, rowwise_dot(z, gradient), value=-1)
    return gradient.div_(norms)


def rowwise_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row of `a` with the same row of `b`, [n_local, 1], without a temporary of their size."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, :, 0]
