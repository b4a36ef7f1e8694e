"""Standardised features for a linear head: a BatchNorm without affine parameters, folded into the head after training.

A learning rate suits features of one scale. Where scales differ, between features or between backbones, a probe by SGD depends
on its rate and ranks backbones differently from kNN; a BatchNorm before the head removes both (Lee et al. 2023, "Rethinking
evaluation protocols of visual representations learned via self-supervised learning", arXiv:2304.03456). MAE (He et al. 2022)
probes in this way.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["build_head_norm", "fold"]

EPS = 1e-8  # added to variances: above the rounding of a constant feature of size 1 (1e-14), below the variance of any in use
ROUNDING = 1e-6  # a standard deviation below this part of the mean is none: float32 rounds by 1e-7


def build_head_norm(
    kind: str, num_features: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The normalisation of features [n, d] that `head_norm` names: "batchnorm", or "none", the identity.

    A batch is normalised by its own mean and variance. The statistics for the test images are the average over all batches
    of the training, not over the last ones, since the features of a frozen backbone do not drift.

    Raises:
        ValueError: `kind` is neither.
    """
    if kind not in ("none", "batchnorm"):
        raise ValueError(f'head_norm must be "none" or "batchnorm", got {kind!r}')
    if kind == "none":
        return nn.Identity()
    return nn.BatchNorm1d(num_features, eps=EPS, momentum=None, affine=False, device=device, dtype=dtype)


@torch.no_grad()
def fold(head: nn.Linear, norm: nn.Module) -> nn.Linear:
    r"""The head on features as they are that equals `head` on normalised ones.

    .. math:: w \cdot \frac{x - \mu}{\sigma} + b = \frac{w}{\sigma} \cdot x + \Bigl(b - \frac{w \cdot \mu}{\sigma}\Bigr)

    A feature that was constant in training gets weight 0: the head has learned nothing of it.

    Args:
        head: trained on the output of `norm`.
        norm: of `build_head_norm`.

    Returns:
        The head itself where there is no normalisation.
    """
    if not isinstance(norm, nn.BatchNorm1d):
        return head
    # in float64, on the host: not every device has it
    tensors = (head.weight, head.bias, *(norm.get_buffer(f"running_{name}") for name in ("mean", "var")))
    weight, bias, mean, variance = (tensor.detach().cpu().double() for tensor in tensors)
    weight = torch.where(variance > (ROUNDING * mean) ** 2, weight / (variance + norm.eps).sqrt(), 0.0)
    folded = nn.Linear(head.in_features, head.out_features, device=head.weight.device, dtype=head.weight.dtype)
    folded.weight.copy_(weight)
    folded.bias.copy_(bias - weight @ mean)
    return folded
