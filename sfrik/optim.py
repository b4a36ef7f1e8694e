r"""Optimizers and the learning-rate schedule of pretraining. The paper's optimizer is LARS; AdamW and SGD are PyTorch's.

LARS (You et al. 2017) follows the authors' code: weight decay is added to the gradient before the trust ratio is computed, and
the momentum acts on the scaled gradient. One-dimensional parameters (biases, normalisation layers) get neither weight decay nor
trust ratio.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["LARS", "SGD", "AdamW", "learning_rate", "parameter_groups"]


class _Eager(Optimizer):
    """Optimizer without the wrappers that exclude it from torch.compile, whose first call imports the compiler and takes 1 s."""

    add_param_group, zero_grad = inspect.unwrap(Optimizer.add_param_group), inspect.unwrap(Optimizer.zero_grad)
    state_dict, load_state_dict = inspect.unwrap(Optimizer.state_dict), inspect.unwrap(Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self):  # pyrefly: ignore[bad-override] no closure is needed
        inspect.unwrap(super().step.__func__)(self)  # of PyTorch's class, which is next in the method resolution order


class SGD(_Eager, torch.optim.SGD):
    """`torch.optim.SGD`, without the import of the compiler."""


class AdamW(_Eager, torch.optim.AdamW):
    """`torch.optim.AdamW`, without the import of the compiler."""


class LARS(_Eager):
    r"""Layer-wise adaptive rate scaling.

    For each parameter p with gradient g, in this order:

    .. math::

        \begin{aligned}
        g &\leftarrow g + \text{weight\_decay} \cdot p \\
        g &\leftarrow \text{trust\_coefficient} \cdot \frac{\|p\|}{\|g\|} \, g \quad \text{(unless a norm is 0)} \\
        m &\leftarrow \text{momentum} \cdot m + g \\
        p &\leftarrow p - \text{lr} \cdot m
        \end{aligned}

    One-dimensional parameters skip the first two steps.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0. Because of the trust ratio it is large, such as 10.
        weight_decay: at least 0.
        momentum: at least 0.
        trust_coefficient: above 0.

    Raises:
        ValueError: an argument is out of bounds.

    >>> weight = torch.nn.Parameter(torch.eye(2))
    >>> optimiser = LARS([weight], lr=10.0)
    >>> weight.sum().backward()
    >>> optimiser.step()
    >>> round((weight - torch.eye(2)).norm().item() / torch.eye(2).norm().item(), 6)  # lr * trust_coefficient
    0.01
    """

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.9, trust_coefficient=1e-3):
        for name, value in [("lr", lr), ("weight_decay", weight_decay), ("momentum", momentum)]:
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} of LARS must be >= 0 and finite, got {value}")
        if not 0 < trust_coefficient < math.inf:
            raise ValueError(f"trust_coefficient of LARS must be above 0 and finite, got {trust_coefficient}")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust_coefficient": trust_coefficient}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):  # pyrefly: ignore[bad-override] PyTorch's is overloaded
        """One update. `closure` recomputes the loss, with gradients, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            updates = self._scaled_gradients(params, group["weight_decay"], group["trust_coefficient"])
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
        return loss

    @staticmethod
    def _scaled_gradients(params, weight_decay, trust_coefficient):
        updates = [p.grad for p in params]
        matrices = [k for k, p in enumerate(params) if p.ndim > 1]
        if matrices:
            p = [params[k] for k in matrices]
            g = torch._foreach_add([updates[k] for k in matrices], p, alpha=weight_decay)
            p_norm, g_norm = torch.stack(torch._foreach_norm(p)), torch.stack(torch._foreach_norm(g))
            usable = (p_norm > 0) & (g_norm > 0)
            ratio = torch.where(usable, trust_coefficient * p_norm / g_norm, torch.ones_like(p_norm))
            torch._foreach_mul_(g, list(ratio.unbind()))
            for k, scaled in zip(matrices, g, strict=True):
                updates[k] = scaled
        return updates


def parameter_groups(model: nn.Module, weight_decay: float, vectors: bool = False) -> list[dict]:
    """Parameter groups for an optimizer: those with weight decay, then those without, as far as there are any.

    Without it are one-dimensional parameters (biases, normalisation layers) and those that the model or one of its modules names
    in a method `no_weight_decay()`, as timm's models do for position embeddings and class tokens.

    Args:
        model: The model.
        weight_decay: At least 0.
        vectors: Whether one-dimensional parameters are in the first group, for LARS, which exempts them itself.

    >>> groups = parameter_groups(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), weight_decay=0.05)
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.05), (3, 0.0)]
    """
    named = set()
    for prefix, module in model.named_modules():
        if callable(names := getattr(module, "no_weight_decay", None)):
            named |= {f"{prefix}.{name}" if prefix else name for name in names()}
    groups = {weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        groups[0.0 if name in named or (parameter.ndim <= 1 and not vectors) else weight_decay].append(parameter)
    return [{"params": params, "weight_decay": decay} for decay, params in groups.items() if params]


def learning_rate(
    step: int, steps_per_epoch: int, epochs: int, base_lr: float, batch_size: int, warmup_epochs: float = 10
) -> float:
    """Learning rate at a step: linear from 0 to the peak during the warm-up, then a cosine down to 0.001 of the peak.

    The peak is `base_lr * batch_size / 256`. A warm-up longer than the training ends below it, at `epochs / warmup_epochs` of the
    peak.

    Args:
        step: number of the step, from 0.
        steps_per_epoch: number of steps per epoch.
        epochs: number of epochs, including the warm-up.
        base_lr: peak for a batch size of 256.
        batch_size: number of images per step over all processes.
        warmup_epochs: length of the warm-up.

    Raises:
        ValueError: a number that is negative, NaN or infinite, or steps_per_epoch below 1.

    >>> [round(learning_rate(100 * epoch, 100, 50, base_lr=1.2, batch_size=512), 4) for epoch in (0, 5, 10, 30, 50)]
    [0.0, 1.2, 2.4, 1.2012, 0.0024]
    """
    given = {"step": step, "epochs": epochs, "base_lr": base_lr, "batch_size": batch_size, "warmup_epochs": warmup_epochs}
    if wrong := [f"{name}={value}" for name, value in given.items() if not 0 <= value < math.inf]:
        raise ValueError(f"the learning rate needs finite numbers >= 0, got {', '.join(wrong)}")
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch must be >= 1, got {steps_per_epoch}")
    peak = base_lr * batch_size / 256
    warmup_steps = warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, epochs * steps_per_epoch - warmup_steps)
    floor = 0.001 * peak
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
