"""Images per second that one CPU core turns into views: the PIL pipeline against the tensor pipeline.

    python benchmarks/input.py --data /imagenet/val/n01440764

Everything runs in one thread of one process, whose CPU time is measured. "worker" is the part of the tensor pipeline that runs in
the workers of the data loader, up to the batch of bytes that they send: all that a CPU core does if the network is on a GPU.
"device" is the rest, here on the CPU; "whole" is both, as with a network on the CPU. The rounds of all parts alternate; printed
are the medians, and for each ratio the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfrik.datasets import Images, batches, image_files
from sfrik.settings import PretrainSettings
from sfrik.views.base import Views, build_views

AUGMENTATIONS = ("vicreg", "obow", "swav")  # two views of 224 pixels; the others eight views each, of the default sizes
BATCH = 32


def make_photos(folder: Path, count: int) -> None:
    """Save JPEGs of 500 x 375 pixels, ImageNet's usual size, with noise that gives about its usual number of bytes."""
    rng = np.random.default_rng(0)
    for k in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 8, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k:04d}.JPEG", quality=90)


def seconds(action: Callable[[], object]) -> float:
    """CPU time of an action, on which other programs have less influence than on wall-clock time."""
    start = time.process_time()
    action()
    return time.process_time() - start


def compare(augmentations: str, images: Images, rounds: int) -> dict[str, float]:
    """Images per second of each part, and the ratios to the PIL pipeline."""
    settings = PretrainSettings(augmentations=augmentations)
    arguments = (augmentations, settings.size, settings.dataset)
    plain, fast = (build_views(*arguments, pipeline, **settings.crops) for pipeline in ("pil", "tensor"))
    workers_only = Views(fast.per_image, lambda batch, generator: batch, of_tensors=True)
    order = np.arange(len(images))
    sent: list[list[torch.Tensor]] = []

    def worker() -> None:
        sent[:] = [batch for batch, *_ in batches(images, order, workers_only, BATCH)]

    def device() -> None:
        for batch in sent:
            fast.per_batch(batch, torch.Generator().manual_seed(0))

    parts = {"pil": lambda: [None for _ in batches(images, order, plain, BATCH)], "worker": worker, "device": device}
    times: dict[str, list[float]] = {name: [] for name in (*parts, "whole")}
    for turn in range(rounds + 1):
        taken = {name: seconds(action) for name, action in parts.items()}
        taken["whole"] = taken["worker"] + taken["device"]
        if turn > 0:  # the first round reads the files and initialises the libraries
            for name, time_taken in taken.items():
                times[name].append(time_taken)
    result = {name: len(images) / statistics.median(values) for name, values in times.items()}
    for name in ("worker", "whole"):
        ratios = [pil / ours for pil, ours in zip(times["pil"], times[name], strict=True)]
        result[f"{name} / pil"] = statistics.median(ratios)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="number of images (default 64)")
    parser.add_argument("--data", type=Path, help="folder with .JPEG files (default: generated ones of 500 x 375 pixels)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each part (default 5)")
    parser.add_argument("--augmentations", nargs="+", default=AUGMENTATIONS, help="augmentations (default: vicreg obow swav)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = options.data or Path(made)
        if options.data is None:
            make_photos(folder, options.images)
        names = sorted(path.name for path in folder.iterdir() if path.suffix in (".JPEG", ".jpeg", ".jpg"))[: options.images]
        if not names:
            parser.error(f"there is no .JPEG file in {folder}")
        images = image_files(folder, names, np.zeros(len(names), dtype=np.int64), num_classes=1)
        results = {name: compare(name, images, options.rounds) for name in options.augmentations}
    kind = "generated" if options.data is None else "real"
    print(f"{len(names)} {kind} JPEGs, one thread, images/s; medians of {options.rounds} rounds")
    columns = ("pil", "worker", "device", "whole", "worker / pil", "whole / pil")
    print(f"{'':10}" + "".join(f"{column:>14}" for column in columns))
    for name, result in results.items():
        print(f"{name:10}" + "".join(f"{result[column]:14.{2 if '/' in column else 0}f}" for column in columns))
    if options.json:
        machine = {"cpu": platform.processor() or platform.machine(), "simd": torch.backends.cpu.get_cpu_capability()}
        facts = {"images": len(names), "kind": kind, "rounds": options.rounds, "torch": torch.__version__, **machine}
        options.json.write_text(json.dumps({**facts, "images_per_second": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
