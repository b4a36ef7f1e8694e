"""The optimizer of a training run, and its update with gradient clipping."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfrik.optim import LARS, SGD, AdamW, parameter_groups
from sfrik.settings import PretrainSettings

__all__ = ["build_optimizer", "update"]


def build_optimizer(settings: PretrainSettings, model: nn.Module) -> Optimizer:
    """The optimizer that the settings describe, for all parameters of a model. Its learning rate is 0 until a step sets it."""
    groups = parameter_groups(model, settings.wd, vectors=settings.optimizer == "lars")
    kinds = {"lars": LARS, "adamw": partial(AdamW, fused=True), "sgd": partial(SGD, fused=True)}
    return kinds[settings.optimizer](groups, lr=0.0, **settings.optimizer_options)


def update(optimizer: Optimizer, scaler: torch.amp.GradScaler, max_norm: float | None) -> Tensor | None:
    """Update the parameters from their `.grad`, which the scaler has scaled.

    Args:
        optimizer: The optimizer.
        scaler: With fp16; a disabled one changes nothing.
        max_norm: Largest norm of the gradient of all parameters together; a larger one is scaled down to it. None: no clipping.

    Returns:
        The norm before clipping, infinite or NaN in a step that the scaler skips; None without clipping.
    """
    norm = None
    if max_norm is not None:
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
    scaler.step(optimizer)
    scaler.update()
    return norm
