"""Comparing the images that a record names with those that are present (`sfrik.datasets.describe_data`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["DataRecord", "data_differences", "split_differences"]


class DataRecord(BaseModel):
    """The images of one split: their number, that of their classes (0 without labels), and a fingerprint of all of them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    images: int
    classes: int
    sha256: str


def data_differences(recorded: Mapping[str, Any] | None, present: Mapping[str, Any] | None) -> str:
    """In which way the present images are not the recorded ones; empty if they are, or if one of both is not known.

    >>> data_differences({"images": 3500, "classes": 10, "sha256": "a"}, {"images": 3000, "classes": 10, "sha256": "b"})
    '3500 images -> 3000 images'
    """
    if not recorded or not present or recorded == present:
        return ""
    numbers = [name for name in ("images", "classes") if recorded.get(name) != present.get(name)]
    changed = [f"{recorded.get(name)} {name} -> {present.get(name)} {name}" for name in numbers]
    if not changed and recorded.get("sha256") != present.get("sha256"):
        changed = ["the same numbers of images and classes, but other names, sizes, labels or contents"]
    return ", ".join(changed)


def split_differences(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """As `data_differences`, of the splits that both have; the splits are named.

    >>> one, two = ({"images": count, "classes": 10, "sha256": str(count)} for count in (1000, 1200))
    >>> split_differences({"train": one, "test": one}, {"train": one, "test": two})
    'test: 1000 images -> 1200 images'
    """
    found = {split: data_differences(recorded[split], present.get(split)) for split in recorded}
    return "; ".join(f"{split}: {text}" for split, text in found.items() if text)
