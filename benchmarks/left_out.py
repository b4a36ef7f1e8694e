"""The error of a threshold of the effective rank on runs of a method that did not determine it.

For each method the threshold is chosen on the runs of all other methods and tested on those of the method. Which runs are bad is
known either from their settings, which make them collapse, or from the outcome: their 20-NN is more than `LOST` points below that
of the best run scored on the same images. A rank cannot see a run that fails for another reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["LOST", "Value", "chosen", "left_out", "table", "with_outcome"]

LOST = 10.0  # points


class Value(NamedTuple):
    """An effective rank of a run of a method, and whether the run is bad: collapsed by its settings, or failed by its outcome."""

    method: str
    rank: float
    bad: bool


def with_outcome(runs: Iterable[tuple[str, float, float]]) -> list[Value]:
    """Runs scored on the same images, each its method, effective rank and 20-NN in %."""
    runs = list(runs)
    best = max(knn for *_, knn in runs)
    return [Value(method, rank, knn < best - LOST) for method, rank, knn in runs]


def chosen(values: Sequence[Value]) -> float:
    """The threshold with the fewest errors if a rank below it means bad; of several the one in the widest gap of ranks."""
    ranks = sorted({value.rank for value in values})
    gaps = [(high / low, math.sqrt(low * high)) for low, high in itertools.pairwise(ranks)]
    return min(gaps, key=lambda gap: (sum(errors(values, gap[1])), -gap[0]))[1]


def errors(values: Iterable[Value], threshold: float) -> tuple[int, int]:
    """The bad runs that a threshold misses, and the others that it calls bad."""
    values = list(values)
    missed = sum(value.bad and value.rank >= threshold for value in values)
    return missed, sum(not value.bad and value.rank < threshold for value in values)


def left_out(values: Sequence[Value], in_use: float) -> dict[str, Any]:
    """For each method the errors of the threshold from the others; their sums, beside those of the threshold in use."""
    found = {}
    for method in dict.fromkeys(value.method for value in values):
        own = [value for value in values if value.method == method]
        threshold = chosen([value for value in values if value.method != method])
        missed, false = errors(own, threshold)
        found[method] = {
            "values": len(own),
            "bad": sum(value.bad for value in own),
            "threshold": threshold,
            "missed": missed,
            "false": false,
        }
    total = {name: sum(own[name] for own in found.values()) for name in ("values", "bad", "missed", "false")}
    missed, false = errors(values, in_use)
    return {"methods": found, "all": {**total, "in use": in_use, "missed in use": missed, "false in use": false}}


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The errors by method left out."""
    head = ["method left out", "values", "bad", "threshold from the others", "missed", "false alarms"]
    rows = [
        [method, str(own["values"]), str(own["bad"]), f"{own['threshold']:.1f}", str(own["missed"]), str(own["false"])]
        for method, own in found["methods"].items()
    ]
    own = found["all"]
    rows.append(["all", str(own["values"]), str(own["bad"]), "–", str(own["missed"]), str(own["false"])])
    in_use = [f"{own['in use']:g}, in use", str(own["missed in use"]), str(own["false in use"])]
    return head, [*rows, ["none", str(own["values"]), str(own["bad"]), *in_use]]
