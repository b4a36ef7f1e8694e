"""The names of the networks and the form of the projector, which settings name and `networks` builds: known without PyTorch."""

from __future__ import annotations

__all__ = ["ARCHITECTURES", "parse_mlp"]

ARCHITECTURES = ("resnet8", "resnet18", "resnet34", "resnet50")


def parse_mlp(mlp: str) -> list[int]:
    """Widths of "512-512".

    >>> parse_mlp("8192-8192-32768")
    [8192, 8192, 32768]
    """
    parts = mlp.split("-")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"mlp must be widths joined by hyphens, such as 8192-8192-8192, got {mlp!r}")
    return [int(part) for part in parts]
