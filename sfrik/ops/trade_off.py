r"""The trade-off of SFRIK between the MMD and the alignment, in units that do not depend on q. Needs no PyTorch."""

from __future__ import annotations

import math

__all__ = ["alignment_weight", "trade_off_of"]


def alignment_weight(
    dim: int, sim_coeff: float | None, mmd_coeff: float, trade_off: float | None = None, prefix: str = ""
) -> float:
    r"""The weight of the alignment: `sim_coeff`, or q mmd_coeff / :math:`\lambda`.

    Without both it is 4000 at q = 8192, the authors' command for the 20 % subset of ImageNet, and in proportion to q elsewhere.

    Args:
        dim: :math:`q`.
        sim_coeff: the weight, if it is given.
        mmd_coeff: weight of the MMD.
        trade_off: lambda, if it is given.
        prefix: of these names in a message.

    Raises:
        ValueError: both are given, or lambda cannot be reached with a finite weight.
    """
    if trade_off is None:
        return 4000 * dim / 8192 if sim_coeff is None else sim_coeff
    if sim_coeff is not None:
        raise ValueError(
            f"{prefix}trade_off and {prefix}sim_coeff are two forms of one weight: give one of them, got {prefix}trade_off = "
            f"{trade_off:g} and {prefix}sim_coeff = {sim_coeff:g}"
        )
    if not (trade_off > 0 and math.isfinite(trade_off)):
        raise ValueError(f"{prefix}trade_off must be a finite number above 0, got {trade_off}")
    if not mmd_coeff > 0:
        raise ValueError(f"{prefix}trade_off needs a {prefix}mmd_coeff above 0, got {mmd_coeff}")
    weight = dim * mmd_coeff / trade_off
    if not 0 < weight < math.inf:
        raise ValueError(
            f"{prefix}trade_off = {trade_off:g} at {prefix}mmd_coeff = {mmd_coeff:g} makes the weight of the alignment "
            f"{weight:g}: take numbers that are closer together"
        )
    return weight


def trade_off_of(dim: int, sim_coeff: float, mmd_coeff: float) -> float:
    """Lambda of these weights; infinite if the alignment has none.

    >>> trade_off_of(8192, 4000.0, 1.0), trade_off_of(512, alignment_weight(512, None, 1.0), 1.0)
    (2.048, 2.048)
    """
    return dim * mmd_coeff / sim_coeff if sim_coeff else math.inf
