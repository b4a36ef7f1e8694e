"""Time to list a folder of class folders: torchvision's ImageFolder, sfrik's listing, and its cache.

    python benchmarks/listing.py --classes 1000 --files 1300

Empty files are made in a temporary folder (inside --folder) and removed afterwards. A local disk, whose folders are in memory,
shows the smallest gain: on a network file system each folder costs a round trip.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sfrik.datasets.listing import list_images


def seconds(action: Callable[[], object], repetitions: int) -> float:
    """Median time of an action, in seconds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_files(folder: Path, classes: int, files: int) -> None:
    """Empty files with names like ImageNet's, in folders old enough to be cached."""
    for label in range(classes):
        place = folder / f"n{label:08d}"
        place.mkdir(parents=True)
        for k in range(files):
            (place / f"{place.name}_{k}.JPEG").touch()
        os.utime(place, (0, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000, help="class folders (default 1000)")
    parser.add_argument("--files", type=int, default=50, help="files per class (default 50; ImageNet has about 1300)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each listing, of which the median is printed (default 3)")
    parser.add_argument("--folder", help="folder for the files (default: the system's temporary folder)")
    options = parser.parse_args()

    from torchvision.datasets import ImageFolder

    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        images, cache = Path(root) / "images", Path(root) / "cache"
        make_files(images, options.classes, options.files)

        def list_without_cache() -> None:
            os.environ["SFRIK_CACHE"] = tempfile.mkdtemp(dir=root)
            list_images(images)

        times = {
            "torchvision's ImageFolder": seconds(lambda: ImageFolder(str(images)), options.repetitions),
            "read from the folder and cached": seconds(list_without_cache, options.repetitions),
        }
        os.environ["SFRIK_CACHE"] = str(cache)
        list_images(images)
        times["read from the cache"] = seconds(lambda: list_images(images), options.repetitions)
        (cached,) = (cache / "listings").iterdir()
        print(f"{options.classes} classes of {options.files} files; the cache file has {cached.stat().st_size / 1e6:.2f} MB")
        for name, time_taken in times.items():
            print(f"{name:<31} {time_taken:8.3f} s   {time_taken / times['read from the cache']:7.1f} x the cache's time")


if __name__ == "__main__":
    main()
