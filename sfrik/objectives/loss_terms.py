"""What a call of an objective returns: the loss and its terms by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

__all__ = ["LossTerms"]


@dataclass(frozen=True)
class LossTerms:
    """A loss and its terms.

    Attributes:
        loss: the scalar to minimise, of the whole batch.
        parts: the unweighted terms by name, scalars of the whole batch, detached.
    """

    loss: Tensor
    parts: dict[str, Tensor]

    def backward(self) -> None:
        """The same as `loss.backward()`."""
        self.loss.backward()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"LossTerms has no attribute {name}: {_use_of_terms(name, vars(self).get('parts', ()))}")

    def _not_a_tensor(self, *_: object) -> NoReturn:
        raise TypeError(f"an objective returns LossTerms, not a tensor: {_use_of_terms()}")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _not_a_tensor
    __iter__ = __getitem__ = __float__ = _not_a_tensor


def _use_of_terms(name: str = "", parts: Collection[str] = ()) -> str:
    if name in parts:
        return f'write terms.parts["{name}"], which is unweighted and detached'
    if name and hasattr(Tensor, name):
        return f"write terms.loss.{name}; terms.loss is the scalar"
    return "terms = criterion(z1, z2); terms.loss is the scalar, terms.parts its terms by name"
