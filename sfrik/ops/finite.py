"""Weights and features must be finite: what is not is refused by name.

`not_finite` finds such a tensor in weights (`sfrik.system.tensor_files.check_finite` raises the error), `check_finite_rows`
refuses such rows of features, and `broken_rows` finds the rows of a view for which a loss is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sfrik.ops.autograd import MIN_NORM
from sfrik.ops.pairwise import LOW_PRECISION

__all__ = ["broken_rows", "check_finite_rows", "format_numbers", "format_rows", "named_tensors", "not_finite"]

VALUES = 1 << 22  # checked at a time: 16 MiB of float32, which may be mapped from a file
SHOWN = 5  # rows or other numbers listed in a message


def not_finite(state: Any) -> str | None:
    """The dotted name of the first tensor with NaN or infinite values, in nested dicts, lists and tuples; None if all are finite.

    >>> not_finite({"fc": {"weight": torch.zeros(2), "bias": torch.tensor([float("nan")])}})
    'fc.bias'
    """
    return next((name for name, tensor in named_tensors(state) if not _is_finite(tensor)), None)


def check_finite_rows(
    values: Tensor,
    source: object,
    remedy: str = "",
    name_of: Callable[[int], str] | None = None,
    error: type[Exception] = ValueError,
) -> None:
    """Refuse a matrix of which a row has NaN or infinite values.

    Args:
        values: [n, ...]; it may be mapped from a file, and is read in blocks.
        source: The name of the argument or the file, for the message.
        remedy: The end of the message.
        name_of: The name of a row, such as that of its image.
        error: The type of the exception.

    Raises:
        ValueError: Or `error`; the message has the number of such rows, and the first of them.

    >>> check_finite_rows(torch.tensor([[0.0], [float("inf")]]), "train_features")
    Traceback (most recent call last):
    ...
    ValueError: train_features: NaN or infinite values in row 1
    """
    step = max(1, VALUES // max(1, values[:1].numel()))
    bad: list[int] = []
    for start in range(0, len(values), step):
        block = values[start : start + step].flatten(1)
        if not _is_finite(block):
            bad += (start + (~torch.isfinite(block).all(dim=1)).nonzero().flatten()).tolist()
    if bad:
        names = f" ({', '.join(map(name_of, bad[:SHOWN]))}{', ...' if len(bad) > SHOWN else ''})" if name_of else ""
        text = f"{source}: NaN or infinite values in {format_rows(bad)}{names}"
        raise error(f"{text}: {remedy}" if remedy else text)


def broken_rows(view: Tensor, normalised: bool) -> dict[str, list[int]]:
    """The rows that make a loss NaN, by what is wrong with them.

    Args:
        view: [n_local, q].
        normalised: Whether the loss divides each row by its norm (`sfrik.ops.autograd.normalise`).
    """
    view = view.detach().float() if view.dtype in LOW_PRECISION else view.detach()
    finite, norms = torch.isfinite(view).all(dim=1), torch.linalg.vector_norm(view, dim=1)
    found = {"holds NaN or infinite values": ~finite}
    if normalised:
        zero = (view == 0).all(dim=1)
        found[f"has a norm that overflows {str(view.dtype).removeprefix('torch.')}"] = finite & torch.isinf(norms)
        found["has a norm of 0"] = zero
        found[f"has a norm below {MIN_NORM:g}"] = (norms < MIN_NORM) & ~zero
    return {kind: rows.nonzero().flatten().tolist() for kind, rows in found.items()}


def format_rows(rows: Sequence[int]) -> str:
    """Row numbers for a message.

    >>> format_rows([3]), format_rows([3, 4]), format_rows(range(10))
    ('row 3', 'rows 3, 4', 'rows 0, 1, 2, 3, 4, ... (10 in all)')
    """
    return f"{'row' if len(rows) == 1 else 'rows'} {format_numbers(rows)}"


def format_numbers(numbers: Sequence[int]) -> str:
    """The first numbers, and how many there are if these are not all."""
    shown = ", ".join(map(str, numbers[:SHOWN]))
    return shown + (f", ... ({len(numbers)} in all)" if len(numbers) > SHOWN else "")


def named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a nested state, with their dotted names."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # float8, for which isfinite may be missing
    return bool(torch.isfinite(wide).all())
