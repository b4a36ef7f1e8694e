"""The names of the networks and the form of the projector, which settings name and `networks` builds: known without PyTorch."""

from __future__ import annotations

import re

__all__ = ["ARCHITECTURES", "LARGEST_WIDTH", "parse_mlp"]

ARCHITECTURES = ("resnet8", "resnet18", "resnet34", "resnet50")
LARGEST_WIDTH = 65536  # of the projector; twice the paper's, whose last layer alone then has 17 GB of weights
MOST_LAYERS = 16


def parse_mlp(mlp: str) -> list[int]:
    """Widths of "512-512".

    >>> parse_mlp("8192-8192-32768")
    [8192, 8192, 32768]
    """
    parts = mlp.split("-")
    if len(parts) > MOST_LAYERS:
        raise ValueError(f"mlp must have at most {MOST_LAYERS} widths, got {len(parts)}")
    if not all(re.fullmatch("0*[1-9][0-9]{0,17}", part) for part in parts):
        raise ValueError(f"mlp must be widths joined by hyphens, such as 8192-8192-8192, got {mlp[:100]!r}")
    widths = [int(part) for part in parts]
    if max(widths) > LARGEST_WIDTH:
        raise ValueError(f"mlp must have widths of at most {LARGEST_WIDTH}, got {mlp[:100]!r}")
    return widths
