"""Checks of how an objective is made and called. The error of a wrong call names the right one, for all objectives alike."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sfrik.errors import nearest
from sfrik.ops.collectives import world_size

__all__ = ["as_views", "check_options", "check_views", "checked", "refuse_options"]

# What other libraries, the paper and this package's settings call an argument. Those an objective lacks are not proposed.
OTHER_NAMES = {
    "dim": (
        "q",
        "d",
        "dims",
        "dimension",
        "embedding_dim",
        "embed_dim",
        "out_dim",
        "output_dim",
        "proj_output_dim",
        "num_features",
    ),
    "weights": ("b", "coefficients", "kernel_weights", "degree", "degrees", "max_degree", "l", "num_degrees"),
    "trade_off": ("lambda", "lam", "lambd", "lmbda", "lamda", "lambda_mmd", "alpha", "tradeoff"),
    "weight": ("lambda", "lam", "lambd", "lmbda", "lamda", "alpha"),
    "sim_coeff": (
        "lambda_param",
        "sim_loss_weight",
        "sim_weight",
        "invariance_weight",
        "inv_coeff",
        "align_weight",
        "alignment_weight",
    ),
    "mmd_coeff": ("mmd_loss_weight", "mmd_weight", "reg_coeff", "reg_weight"),
    "unif_coeff": ("unif_weight", "uniformity_weight"),
    "std_coeff": ("mu_param", "var_loss_weight", "var_coeff", "variance_weight", "std_weight"),
    "cov_coeff": ("nu_param", "cov_loss_weight", "covariance_weight", "cov_weight"),
    "temperature": ("tau", "temp", "t"),
    "scale": ("t", "unif_t", "sigma", "gamma"),
    "slices": ("num_slices", "n_slices", "num_projections", "directions"),
}
ABOVE_ZERO = ("trade_off", "temperature", "scale")
GATHERED = ("gather_distributed", "distributed", "gather", "world_size", "rank")
LABELS = ("label", "labels", "target", "targets", "y")


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that refuses arguments which it does not take, with what to write, and numbers that are none."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        _check_arguments(type(self).__name__, signature, args, kwargs)
        init(self, *args, **kwargs)

    return checked_init


def _check_arguments(name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    known = list(signature.parameters)[1:]
    example = f"criterion = {name}({'dim=512' * ('dim' in known)}); criterion(z1, z2).backward()"
    if any(_holds_rows(value) for value in (*args, *kwargs.values())):
        raise TypeError(f"{name}(...) makes the objective, which is then called on the views: {example}")
    for unknown in [one for one in kwargs if one not in known]:
        raise TypeError(f"{name} has no argument {unknown}{_proposal(unknown, known)}; it has {', '.join(known)}")
    why = ", the width of the projector" if "dim" in known and not args and "dim" not in kwargs else ""
    try:
        bound = signature.bind(None, *args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{name}: {error}{why}; {example}") from None
    for argument, value in bound.items():
        kind = signature.parameters[argument].annotation
        if kind in ("float", "float | None") and not (value is None and kind != "float"):
            number = isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf
            if not number or (argument in ABOVE_ZERO and not value):
                bound = "above 0" if argument in ABOVE_ZERO else "of at least 0"
                raise ValueError(f"{name}: {argument} must be a finite number {bound}, got {value!r}")


def _holds_rows(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(one, Tensor) and one.ndim > 1 for one in values)


def _proposal(unknown: str, known: list[str]) -> str:
    """What to write in place of an argument that does not exist."""
    plain = unknown.lower().strip("_")
    if plain in GATHERED:
        return " and needs none: under torch.distributed the loss is that of the whole batch"
    for candidate in (plain, plain.partition("_")[2]):  # a setting has the name of its method before it, such as sfrik_sim_coeff
        for name in known:
            if candidate == name or candidate in OTHER_NAMES.get(name, ()):
                return f" (write {name}{', one number per degree' * (name == 'weights')})"
    return nearest(plain, known)


def as_views(given: Sequence[Any]) -> list[Any]:
    """The views of `objective(z1, z2)` or `objective([z1, z2])`."""
    return list(given[0] if len(given) == 1 and isinstance(given[0], Iterable) and not isinstance(given[0], Tensor) else given)


def check_views(name: str, views: list[Any], dim: int | None = None) -> None:
    """Raise a ValueError unless there are two or more floating-point tensors of the same shape [n, q] on one device.

    Views in bfloat16 and float16 are cast to float32, so these three may be mixed; float64 may not be mixed with another dtype.
    """
    right = f"{name} compares two or more views of the same images, and takes no labels: criterion(z1, z2) or criterion([z1, z2])"
    if len(views) < 2:
        raise ValueError(f"{right}; got {_few(views)}")
    for k, view in enumerate(views):
        if not isinstance(view, Tensor) or view.ndim != 2 or not view.is_floating_point():
            remedy = "; flatten it, or average over positions" if isinstance(view, Tensor) and view.ndim > 2 else ""
            raise ValueError(
                f"{right}; a view is a tensor [n, q] of floating-point numbers, view {k} is {_describe(view)}{remedy}"
            )
    first = views[0]
    for k, view in enumerate(views):
        if view.shape != first.shape:
            raise ValueError(
                f"all views must have the same shape, row i of each from image i: view {k} has {list(view.shape)}, "
                f"view 0 has {list(first.shape)}"
            )
        if view.device != first.device:
            raise ValueError(f"all views must be on one device: view {k} is on {view.device}, view 0 on {first.device}")
        if (view.dtype == torch.float64) != (first.dtype == torch.float64):
            raise ValueError(f"all views must have the same dtype: view {k} has {view.dtype}, view 0 has {first.dtype}")
    n, q = first.shape
    if n * world_size() < 2 or not q:
        raise ValueError(f"{name} needs two or more rows (images) in a batch and one or more columns, got {list(first.shape)}")
    if dim not in (None, q):
        raise ValueError(
            f"{name}(dim={dim}) was called on views with {q} columns: use {name}(dim={q}), or a projector of width {dim}"
        )


def _few(views: list[Any]) -> str:
    if not views or not isinstance(views[0], Tensor):
        return f"only {_describe(views[0])}" if views else "no view"
    where = ("stacks the views", "*z") if views[0].ndim == 3 else ("concatenates the views along the batch", "*z.chunk(2)")
    return f"one tensor {list(views[0].shape)}; if it {where[0]}: criterion({where[1]})"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    return f"{value!r}" if value is None or isinstance(value, (Real, str)) else f"of type {type(value).__name__}"


def check_options(count: int, anchors: Any, regularise: Any) -> list[int]:
    """The indices of the anchors. Raises a ValueError if one is no index of a view or is repeated, or `regularise` is unknown."""
    indices = list(anchors) if isinstance(anchors, Iterable) and not isinstance(anchors, str) else [anchors]
    whole = isinstance(anchors, Iterable) and all(isinstance(a, int) and 0 <= a < count for a in indices)
    if not whole or not indices or len(set(indices)) != len(indices):
        raise ValueError(f"anchors must be different indices from 0 to {count - 1}, as in anchors=(0, 1), got {anchors!r}")
    if regularise not in ("all", "anchors"):
        raise ValueError(f'regularise must be "all" or "anchors", got {regularise!r}')
    return indices


def refuse_options(name: str, unknown: Iterable[str]) -> None:
    """Raise a TypeError that names the options of a call."""
    for option in unknown:
        reason = ": it takes no labels" if option.lower() in LABELS else nearest(option, ("anchors", "regularise", "step"))
        raise TypeError(
            f"{name} has no option {option} in a call{reason}; pass the views by position: criterion(z1, z2) or "
            'criterion([z1, z2, z3], anchors=(0, 1), regularise="all", step=None)'
        )
