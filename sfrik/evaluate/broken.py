"""Images that cannot be read and are skipped (`skip_broken`): reported on stderr, and kept with their names in the score."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sfrik.datasets import Images
from sfrik.system.terminal import print_line

__all__ = ["note_broken", "without_broken"]

MAX_NAMES = 4  # images listed in a message


def note_broken(broken: Mapping[str, Collection[str]], **sizes: int) -> dict[str, Any]:
    """Report skipped images on stderr; what a score records of them.

    Args:
        broken: names of the skipped images by split: "train", "tune", and "test" for the images that are scored; or others.
        sizes: number of images of the splits "train" and "test", with the skipped ones.

    Returns:
        `{}` without skipped images; else `broken_images`, their names by split, and the numbers of the other images, `images`
        (test) and `train_images`, as far as their sizes are given.
    """
    named = {split: sorted(set(names)) for split, names in broken.items() if names}
    for split, names in named.items():
        shown = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
        print_line(f"broken images skipped in the {split} split: {len(names)} ({shown})", error=True)
    if not named:
        return {}
    counts = {"train": "train_images", "test": "images"}
    return {
        **{counts[split]: size - len(named.get(split, ())) for split, size in sizes.items()},
        "broken_images": named,
    }


def without_broken(images: Images, score: Mapping[str, Any], split: str = "test") -> Images:
    """The images of a split without those that a score (or the record of features) lists as broken: one per row of features.

    Args:
        images: the whole split.
        score: the content of a score's file, or of weights.json beside features.
        split: "train", "tune" or "test"; "val" for weights.json.
    """
    broken = set(score.get("broken_images", {}).get(split, ()))
    if not broken:
        return images
    return images.select([index for index in range(len(images)) if images.name(index) not in broken])
