"""Scalars with a precomputed gradient, and the normalisation of rows.

The gradients of the losses are known in closed form and computed together with the value. Autograd gets the finished gradient, so
nothing else is kept for the backward pass.

Legend: n_local rows of this process, q their dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["attach_gradients", "normalise", "normalise_backward", "requires_grad", "rowwise_dot"]

MIN_NORM = 1e-12  # the same lower bound as in torch.nn.functional.normalize


def requires_grad(inputs: Sequence[Tensor]) -> bool:
    """Whether gradients are enabled and any of the inputs requires one."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def attach_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor] | None) -> Tensor:
    """The scalar `value` as a function of `inputs` with these gradients, one for each input. Differentiable once.

    `gradients=None` returns the value unchanged.
    """
    return value if gradients is None else _PrecomputedGradient.apply(value, list(gradients), *inputs)


class _PrecomputedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyrefly: ignore[bad-override] the decorator has no types
        return None, None, *(grad * gradient for gradient in ctx.gradients)


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of `x` divided by their norms, [n_local, q], and the norms, [n_local, 1]."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(MIN_NORM)
    return x / norms, norms


def normalise_backward(z: Tensor, norms: Tensor, gradient: Tensor) -> Tensor:
    r"""Gradient with respect to x, given the gradient g with respect to :math:`z = x / |x|`, which is overwritten.

    .. math:: \frac{g - \langle z, g \rangle z}{|x|}
    """
    gradient.addcmul_(z, rowwise_dot(z, gradient), value=-1)
    return gradient.div_(norms)


def rowwise_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row of `a` with the same row of `b`, [n_local, 1], without a temporary of their size."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, :, 0]
