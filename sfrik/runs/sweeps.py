"""Whether a hyperparameter that was chosen from a list might be better outside of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["edge_warning", "sweep_edge"]

SETTINGS = {"lr_head": "lr_sweep", "C": "inverse_penalties"}  # the chosen value -> the setting with those to choose from


def sweep_edge(score: Mapping[str, Any]) -> str:
    """The edge of the sweep at which a score's choice is: "lowest", "highest", or "" where it is at none.

    The choice is at an edge if it is the lowest or highest value that was tried and better than the next one by more than the
    standard error of a top-1 on that many images, sqrt(p (1 - p) / n): accuracy still rises there, so that a value outside might
    be better. Where the next value does as well, the sweep has reached its plateau, and chance decides between the values. A
    single value has no edge.

    Args:
        score: Its `sweep`, top-1 by value, the chosen value, `lr_head` or `C`, and in `data` the images of the sweep: the tuning
            split, or for a cross-validation the training images. Any difference counts where a score does not record them, as
            earlier releases did not. A score without a sweep is at no edge.

    >>> sweep_edge({"lr_head": 0.1, "sweep": {"0.1": 90.0, "1": 80.0}}), sweep_edge({"C": 1.0, "sweep": {"1": 90.0, "10": 90.0}})
    ('lowest', '')
    """
    sweep = {float(value): top1 for value, top1 in score.get("sweep", {}).items()}
    values, chosen = sorted(sweep), score.get("lr_head", score.get("C"))
    if len(values) < 2 or chosen not in (values[0], values[-1]):
        return ""
    name, following = ("lowest", values[1]) if chosen == values[0] else ("highest", values[-2])
    data = score.get("data", {})
    images = data.get("tune", data.get("train", {})).get("images", math.inf)
    share = (sweep[chosen] + sweep[following]) / 200
    error = 100 * math.sqrt(share * (1 - share) / images)
    return name if sweep[chosen] - sweep[following] > error else ""


def edge_warning(score: Mapping[str, Any]) -> str:
    """A line that reports that a score's choice is at an edge of its sweep, and the remedy; "" where it is at none."""
    if not (edge := sweep_edge(score)):
        return ""
    name = "lr_head" if "lr_head" in score else "C"
    remedy = f"a {edge.removesuffix('est')}er one may score better"
    remedy += f": add some to {SETTINGS[name]}" if SETTINGS[name] in score.get("settings", {}) else ""
    return f"{score['protocol']}: the chosen {name}, {score[name]:g}, is the {edge} of its sweep, and {remedy}"
