"""Seeds of random number generators, derived from whole numbers."""

from __future__ import annotations

import numpy as np

__all__ = ["derived_seed"]


def derived_seed(*parts: int) -> int:
    """A seed of 63 bits that depends on every part and on their order.

    Uses NumPy's `SeedSequence`, whose streams do not overlap in practice even where the parts differ in one bit.

    Args:
        parts: whole numbers of at least 0, such as (seed, epoch, index).
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
