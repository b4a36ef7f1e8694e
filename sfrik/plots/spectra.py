"""The map of the losses: the weight of each degree near uniform embeddings, in one unit for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from sfrik.objectives import AUH, SFRIK, Objective, SIGReg, SimCLR, VICReg
from sfrik.plots.style import as_math, look, plain_log_axis

__all__ = ["draw_spectra", "published_losses"]

ENTROPY = "AUH, entropy"


def published_losses(q: int) -> dict[str, Objective]:
    """The losses with the coefficients of the papers' commands: for SFRIK and AUH those at q = 8192, in proportion to q."""
    sfrik = {f"SFRIK L={degree}": SFRIK(q, (1.0, 40.0, 40.0)[:degree]) for degree in (1, 2, 3)}
    weight = 3000 * q / 8192
    auh = {"AUH": AUH(weight), ENTROPY: AUH(weight, entropy=True)}
    return {**sfrik, **auh, "SimCLR": SimCLR(), "VICReg": VICReg(), "SIGReg": SIGReg()}


def draw_spectra(spectra: Mapping[str, Sequence[float]]) -> Figure:
    """The weights against the degree, with a logarithmic axis, one line per loss; open marks below are weights of 0.

    Args:
        spectra: by the name of the loss, such as "SFRIK L=3", its weights from degree 1 on (`Objective.spectrum`).
    """
    positive = [weight for weights in spectra.values() for weight in weights if weight > 0]
    zero = min(positive) / 2.5
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for place, (name, weights) in enumerate(spectra.items()):
        shape: dict[str, Any] = look(name, place) | ({"linestyle": "--"} if name == ENTROPY else {})
        hollow: dict[str, Any] = {**shape, "linestyle": "", "markerfacecolor": "white"}
        shift = 0.05 * (place - (len(spectra) - 1) / 2)  # apart, where weights are equal
        degrees = [degree + shift for degree in range(1, len(weights) + 1)]
        above = [weight if weight > 0 else float("nan") for weight in weights]
        axis.plot(degrees, above, **shape, label=as_math(name))
        none = [degree for degree, weight in zip(degrees, weights, strict=True) if not weight > 0]
        axis.plot(none, [zero] * len(none), **hollow)
    axis.set(
        yscale="log", xlabel="degree $l$", ylabel="weight of degree $l$", xticks=range(1, max(map(len, spectra.values())) + 1)
    )
    axis.set_ylim(bottom=zero / 1.6)
    plain_log_axis(axis.yaxis)
    ticks = [tick for tick in axis.get_yticks() if min(positive) / 2 < tick < axis.get_ylim()[1]]
    axis.set_yticks([zero, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    figure.legend(loc="outside right center", fontsize=9)
    return figure
