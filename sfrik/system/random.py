"""Seeds of random number generators, derived from integers."""

from __future__ import annotations

import numpy as np

__all__ = ["derived_seed"]


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part and on their order.

    Uses NumPy's `SeedSequence`: parts that differ in one bit give streams that do not overlap in practice.

    Args:
        *parts: Non-negative integers, such as seed, epoch, index.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
