"""Images per second that one CPU core turns into views: the PIL pipeline against the tensor pipeline.

    python benchmarks/input.py --data /imagenet/val/n01440764
    python benchmarks/input.py --augmentations none                  only the images in memory

Everything runs in one thread of one process, whose CPU time is measured. "worker" is the part of the tensor pipeline that runs in
the workers of the data loader, up to the batch of bytes that they send: all that a CPU core does if the network is on a GPU.
"device" is the rest, here on the CPU; "whole" is both, as with a network on the CPU. The rounds of all parts alternate; printed
are the medians, and for each ratio the median over the rounds.

Images of 32 pixels in memory: "pil" and "tensor" are the whole input, "step" is a training step of the small ResNet on ready
views, "training" is the input and the step, as `sfrik pretrain` runs them.
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
from step import Step

from sfrik.datasets import Images, batches, image_files, keep_on_device
from sfrik.objectives import SFRIK
from sfrik.settings import PretrainSettings
from sfrik.views.base import Views, build_views

AUGMENTATIONS = ("vicreg", "obow", "swav")  # two views of 224 pixels; the others eight views each, of the default sizes
BATCH = 32
IN_MEMORY = ("auh", "simclr", "cifar")  # two views of 32 pixels, in batches of 256
CPU = torch.device("cpu")


def make_photos(folder: Path, count: int) -> None:
    """Save JPEGs of 500 x 375 pixels, ImageNet's usual size, with noise that gives about its usual number of bytes."""
    rng = np.random.default_rng(0)
    for k in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 8, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k:04d}.JPEG", quality=90)


def small_photos(count: int) -> Images:
    """Smooth images of 32 pixels in memory."""
    rng = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 6, 6, generator=rng), 32, mode="bicubic")
    pixels = smooth.clamp(0, 1).mul(255).byte()

    def read(index: int) -> Image.Image:
        return Image.fromarray(pixels[index].permute(1, 2, 0).contiguous().numpy())

    return Images(np.zeros(count, dtype=np.int64), 1, str, open=read, tensor=pixels)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device = CPU) -> float:
    """CPU time of an action, on which other programs have less influence than on wall-clock time; on a GPU the latter."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait(device)
    start = clock()
    action()
    wait(device)
    return clock() - start


def medians(
    parts: dict[str, Callable[[], object]],
    count: int,
    rounds: int,
    ratios: dict[str, tuple[str, str]],
    device: torch.device = CPU,
) -> dict[str, float]:
    """Images per second of each part, measured in turns, and each ratio of the first part's rate to the second's."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name, action in parts.items():
            taken = seconds(action, device)
            if turn > 0:  # the first round reads the files and initialises the libraries
                times[name].append(taken)
    result = {name: count / statistics.median(values) for name, values in times.items()}
    for name, (one, other) in ratios.items():
        result[name] = statistics.median(b / a for a, b in zip(times[one], times[other], strict=True))
    return result


def compare_in_memory(
    augmentations: str, images: Images, arch: str, batch: int, rounds: int, device: torch.device = CPU, pil: bool = True
) -> dict[str, float]:
    """Images per second of the input, of a step on ready views, and of both, for images of 32 pixels in memory."""
    images, count = keep_on_device(images, device), len(images) // batch * batch
    order, step, objective = np.arange(count), Step(arch, "512-512", device, "small"), SFRIK(512)

    def drawn(pipeline: str):
        return batches(images, order, build_views(augmentations, 32, "cifar10", pipeline), batch, device=device)

    def train(views: list[torch.Tensor]) -> None:
        step(views, lambda z: objective(z).loss)

    ready, *_ = next(drawn("tensor"))
    parts = {
        "tensor": lambda: [None for _ in drawn("tensor")],
        "step": lambda: [train(ready) for _ in range(count // batch)],
        "training": lambda: [train(views) for views, *_ in drawn("tensor")],
    }
    ratios = {f"{name} / step": (name, "step") for name in ("tensor", "training")}
    if pil:
        parts["pil"] = lambda: [None for _ in drawn("pil")]
        ratios |= {"tensor / pil": ("tensor", "pil"), "pil / step": ("pil", "step")}
    return medians(parts, count, rounds, ratios, device)


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

    def whole() -> None:
        worker()
        device()

    parts = {"pil": lambda: [None for _ in batches(images, order, plain, BATCH)], "worker": worker, "device": device}
    ratios = {f"{name} / pil": (name, "pil") for name in ("worker", "whole")}
    return medians(parts | {"whole": whole}, len(images), rounds, ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="number of images (default 64)")
    parser.add_argument("--data", type=Path, help="folder with .JPEG files (default: generated ones of 500 x 375 pixels)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each part (default 5)")
    parser.add_argument(
        "--augmentations", nargs="+", default=AUGMENTATIONS, help="of the JPEGs (default: vicreg obow swav), or none"
    )
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
        names_of_views = [] if options.augmentations == ["none"] else options.augmentations
        results = {name: compare(name, images, options.rounds) for name in names_of_views}
    small = {name: compare_in_memory(name, small_photos(512), "resnet8", 256, options.rounds) for name in IN_MEMORY}
    kind = "generated" if options.data is None else "real"
    print(f"{len(names)} {kind} JPEGs, one thread, images/s; medians of {options.rounds} rounds")
    show(results, ("pil", "worker", "device", "whole", "worker / pil", "whole / pil"))
    print("images of 32 pixels in memory, resnet8, batch 256")
    show(small, ("pil", "tensor", "step", "training", "tensor / pil", "tensor / step", "training / step"))
    if options.json:
        machine = {"cpu": platform.processor() or platform.machine(), "simd": torch.backends.cpu.get_cpu_capability()}
        facts = {"images": len(names), "kind": kind, "rounds": options.rounds, "torch": torch.__version__, **machine}
        found = {"images_per_second": results, "in_memory": {"arch": "resnet8", "batch": 256, "images_per_second": small}}
        options.json.write_text(json.dumps(facts | found, indent=1) + "\n", encoding="utf-8")


def show(results: dict[str, dict[str, float]], columns: tuple[str, ...]) -> None:
    print(f"{'':10}" + "".join(f"{column:>17}" for column in columns))
    for name, result in results.items():
        print(f"{name:10}" + "".join(f"{result[column]:17.{2 if '/' in column else 0}f}" for column in columns))


if __name__ == "__main__":
    main()
