"""Losses whose gradient is known in closed form: computed with the value, handed to autograd, nothing else kept.

Legend: n_local rows of this process, q their dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["normalise", "normalise_backward", "requires_grad", "row_products", "with_gradients"]

SMALLEST = 1e-12  # norm under which a row is divided by this, as torch.nn.functional.normalize does


def requires_grad(inputs: Sequence[Tensor]) -> bool:
    """Whether autograd will ask for the gradient with respect to any of the inputs."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor] | None) -> Tensor:
    """`value`, a scalar, whose gradient with respect to each input is the given one. Differentiable once."""
    return value if gradients is None else _Given.apply(value, list(gradients), *inputs)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyrefly: ignore[bad-override] the decorator has no types
        return None, None, *(grad * gradient for gradient in ctx.gradients)


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of norm 1 [n_local, q], and the norms that they had [n_local, 1]."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(SMALLEST)
    return x / norms, norms


def normalise_backward(z: Tensor, norms: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with respect to x from that with respect to z = x / |x|, in the place of the latter."""
    gradient.addcmul_(z, row_products(z, gradient), value=-1)
    return gradient.div_(norms)


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row of a with the same row of b, [n_local, 1], without a copy of either."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, :, 0]
