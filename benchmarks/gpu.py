"""Benchmarks on a GPU: the losses, training steps, and the input pipeline against the same step on prepared images.

    python benchmarks/gpu.py --data /imagenet/val          an hour on one GPU
    python benchmarks/gpu.py --device cpu --smoke          the same code on small sizes, to test it

- losses: `benchmarks/losses.py` on the device, times by CUDA events, memory by PyTorch's count.
- steps: two views of 224 pixels through the network with projector 8192-8192-q, loss, backward pass, LARS, in bf16: the loss of
  this package against the plain formula by autograd.
- end to end: images per second of the loader and step of `sfrik pretrain` against the same step on one batch already on the GPU.
- in memory: the same for images of 32 pixels in the GPU's memory and ResNet-18 with the small stem; and the input by itself.

None of it has been measured yet: docs/speed.md says so until it is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from input import IN_MEMORY, compare_in_memory, make_photos, small_photos, wait
from losses import PLAIN, in_turns, low_precision, memory, of, share, speed
from step import Step

from sfrik.cost.measure import hardware
from sfrik.datasets import batches, image_files, list_images
from sfrik.objectives import SFRIK, VICReg
from sfrik.objectives.reference import plain_loss
from sfrik.system.devices import pick_device
from sfrik.views.base import build_views

MIB = 2**20
DIMS = (8192, 16384, 32768)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", type=Path, help="a folder with a folder of images for each class; made-up JPEGs when unset")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="small sizes, to test the script")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    device = pick_device(options.device)
    if options.smoke:
        options.batch, options.rounds, options.workers = 8, 1, 0
    divide, networks, dims, size = (32, ("resnet18",), (64,), 32) if options.smoke else (1, ("resnet18", "resnet50"), DIMS, 224)
    rows = [*speed(device, options.rounds, divide), *memory(device, divide), share(device, options.rounds, divide)]
    rows.append(low_precision(device, options.rounds, divide))
    for arch in networks:
        for q in dims:
            rows += steps(arch, q, size, options, device)
    with tempfile.TemporaryDirectory() as folder:
        rows.append(end_to_end(networks[0], dims[0], size, options, device, Path(folder)))
    small = ("resnet8", 16, 64) if options.smoke else ("resnet18", options.batch, 50_000)
    rows += [in_memory(augmentations, *small, options.rounds, device) for augmentations in IN_MEMORY]
    for row in rows:
        print("; ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps({"hardware": hardware(device), "rows": rows}, indent=1), encoding="utf-8")


def projector(q: int, size: int) -> str:
    return f"64-{q}" if size < 224 else f"8192-8192-{q}"


def steps(arch: str, q: int, size: int, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    step = Step(arch, projector(q, size), device)
    views = [torch.randn(options.batch, 3, size, size, device=device) for _ in range(2)]
    losses = {}
    for objective in (SFRIK(q), VICReg()):
        name = type(objective).__name__
        losses[name] = lambda z, o=objective: o(z).loss
        losses[f"{name} plain"] = lambda z, o=objective: plain_loss(o, z)
    calls, skipped = {}, []
    for name, loss in losses.items():
        call = lambda loss=loss: step(views, loss)  # noqa: E731
        try:
            call()
            calls[name] = call
        except torch.cuda.OutOfMemoryError:
            skipped.append(name)
            step.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    times, rows = in_turns(calls, device, options.rounds), []
    peaks = {name: cuda_peak(call, device) for name, call in calls.items()}
    for name in ("SFRIK", "VICReg"):
        plain = f"{name} plain"
        what = {"what": f"step of {arch}, {name}, n={options.batch} q={q}", "against": PLAIN, "unit": "times as fast"}
        if name in calls and plain in calls:
            rows.append(
                what
                | of({key: times[key] for key in (name, plain)}, plain, name)
                | {"MiB": peaks[name], "plain MiB": peaks[plain]}
            )
        else:
            rows.append(what | {"out of memory": ", ".join(skipped)})
    return rows


def cuda_peak(call, device: torch.device) -> float:
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) / MIB


def end_to_end(
    arch: str, q: int, size: int, options: argparse.Namespace, device: torch.device, folder: Path, count: int = 40
) -> dict[str, Any]:
    """Images a second with the loader, and of the same steps on the loader's first batch."""
    if options.data is None:
        (folder / "class").mkdir()
        make_photos(folder / "class", 4 if options.smoke else 256)
    listing = list_images(options.data or folder)
    images = image_files(options.data or folder, listing.names, listing.labels, listing.classes)
    count = 2 if options.smoke else count
    order = np.resize(np.arange(len(images)), (count + 1) * options.batch)
    step, objective, views = Step(arch, projector(q, size), device), SFRIK(q), build_views("vicreg", size, "imagenet")
    loader = batches(images, order, views, options.batch, device=device, workers=options.workers)
    first, *_ = next(loader)  # the workers' start is not counted
    step(first, lambda z: objective(z).loss)
    rates = {}
    for name, source in (("loader", (batch for batch, *_ in loader)), ("ready images", (first for _ in range(count)))):
        wait(device)
        started = time.perf_counter()
        for batch in source:
            step(batch, lambda z: objective(z).loss)
        wait(device)
        rates[name] = count * options.batch / (time.perf_counter() - started)
    row = {
        "what": f"images/s of {arch}, n={options.batch} q={q}, {options.workers} workers",
        "against": "the same step on ready images",
    }
    return row | {
        "unit": "of the images",
        "ratio": rates["loader"] / rates["ready images"],
        **{f"{k}/s": v for k, v in rates.items()},
    }


def in_memory(augmentations: str, arch: str, batch: int, count: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Images a second of whole training steps on images of 32 pixels in memory, and of the same steps on ready views."""
    found = compare_in_memory(augmentations, small_photos(count), arch, batch, rounds, device, pil=False)
    return {
        "what": f"images/s of {arch} at 32 pixels, n={batch}, {augmentations} views of images in memory",
        "against": "the same step on ready views",
        "unit": "of the images",
        "ratio": found["training / step"],
        **{f"{part}/s": found[part] for part in ("training", "step", "tensor")},
    }


if __name__ == "__main__":
    main()
