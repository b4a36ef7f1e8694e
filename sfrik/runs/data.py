"""Comparing the images that a record names with those that are present (`sfrik.datasets.describe_data`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfrik.runs.records import RunSettings
from sfrik.system.files import path_exists, write_json
from sfrik.system.records import read_record

__all__ = ["FIXED", "data_differences", "forget_fingerprint", "recorded_data", "split_differences"]

# Data sets with the same images in every folder: a package has them, or torchvision checks the MD5 of their files.
FIXED = ("mnist5k", "digits8x8", "stl10")
SINGULAR = {"images": "image", "classes": "class"}


def recorded_data(folder: Path) -> dict[str, Any] | None:
    """The training images in settings.json; None without a training or a record, or in a record of an earlier release.

    Raises:
        SfrikError: settings.json is broken.
    """
    path = folder / "settings.json"
    return read_record(path, RunSettings).get("data") if path_exists(path) else None


def forget_fingerprint(folder: Path, names_sha256: str, sample: list[str]) -> None:
    """Replace the fingerprint in settings.json by names and contents: an image cannot be read, and a file will replace it.

    Args:
        folder: The folder of the run.
        names_sha256: `sfrik.datasets.fingerprint.names_sha256` of the images.
        sample: `sfrik.datasets.fingerprint.sample_contents` of the images.
    """
    if data := recorded_data(folder):
        data |= {"sha256": "", "names_sha256": names_sha256, "sample": sample}
        path = folder / "settings.json"
        write_json(path, {**read_record(path, RunSettings), "data": data})


def data_differences(recorded: Mapping[str, Any] | None, present: Mapping[str, Any] | None) -> str:
    """In which way the present images are not the recorded ones; empty if they are, or if one of both is not known.

    >>> data_differences({"images": 3500, "classes": 10, "sha256": "a"}, {"images": 3000, "classes": 10, "sha256": "b"})
    '3500 images -> 3000 images'
    """
    if not recorded or not present or recorded == present:
        return ""
    numbers = [name for name in SINGULAR if recorded.get(name) != present.get(name)]
    changed = [" -> ".join(_count(data.get(name), name) for data in (recorded, present)) for name in numbers]
    if not changed and recorded.get("sha256") and recorded["sha256"] != present.get("sha256"):
        changed = ["the same numbers of images and classes, but other names, sizes, labels or contents"]
    return ", ".join(changed)


def _count(number: int | None, name: str) -> str:
    return f"1 {SINGULAR[name]}" if number == 1 else f"{number} {name}"


def split_differences(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """As `data_differences`, of the splits that both have; the splits are named.

    >>> one, two = ({"images": count, "classes": 10, "sha256": str(count)} for count in (1000, 1200))
    >>> split_differences({"train": one, "test": one}, {"train": one, "test": two})
    'test: 1000 images -> 1200 images'
    """
    found = {split: data_differences(recorded[split], present.get(split)) for split in recorded}
    return "; ".join(f"{split}: {text}" for split, text in found.items() if text)
