"""Overhead of a digits run: an epoch against bare passes of the model, and a whole run against its computation.

    python benchmarks/digits.py --json digits.json

The epochs are those of `sfrik.pretrain`, one after the other; between two of them the bare passes run in the same process, so
that both see the same load of the machine. An epoch is everything from one line of metrics.jsonl to the next: views, passes,
loss, LARS, progress, diagnostics, log, checkpoint. The bare passes use the epoch's batches as prepared tensors:
"passes" is forward, loss, backward; "model" is forward and backward of the network only, from a given gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Generator

from sfrik.datasets import batches, load_images
from sfrik.networks import build_encoder
from sfrik.objectives.factory import build_objective
from sfrik.pretrain.loop import pretrain
from sfrik.runs.folder import Run
from sfrik.runs.provenance import processor
from sfrik.settings import PretrainSettings, run_folder
from sfrik.system.devices import autocast, pick_device, pick_precision
from sfrik.views.base import build_views


def bare_passes(settings: PretrainSettings) -> dict[str, Callable[[], None]]:
    """The calls "passes" and "model": each does the steps of one epoch on views that are drawn already."""
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    images = load_images(settings.dataset, "pretrain", settings.data_dir, settings.subset)
    views = build_views(settings.augmentations, settings.size, settings.dataset, **settings.crops)
    order = torch.randperm(len(images), generator=Generator().manual_seed(0)).numpy()
    order = order[: len(order) // settings.batch_size * settings.batch_size]
    ready = [batch for batch, _, _ in batches(images, order, views, settings.batch_size, device=device)]
    encoder = build_encoder(settings, images.channels).to(device, memory_format=torch.channels_last).train()
    objective = build_objective(settings)

    def forward(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        encoder.zero_grad(set_to_none=True)
        with autocast(device, precision):
            return encoder(batch)

    given = [torch.randn_like(embedding) for embedding in forward(ready[0])]

    def passes() -> None:
        for batch in ready:
            objective(forward(batch), settings.anchors, settings.regularise).loss.backward()

    def model() -> None:
        for batch in ready:
            torch.autograd.backward(forward(batch), given)

    return {"passes": passes, "model": model}


def epochs_against_passes(recipe: str, rounds: int, monitored: bool, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of an epoch and of the bare passes between the epochs; the first epoch, which warms up, is left out."""
    seconds: dict[str, list[float]] = {"epoch": [], "passes": [], "model": []}
    with tempfile.TemporaryDirectory() as folder:
        settings = PretrainSettings.from_recipe(recipe, exp_dir=folder, epochs=rounds + 1, knn_every=int(monitored))
        calls = bare_passes(settings)
        log, resumed = Run.log, 0.0

        def with_passes_after(run: Run, line: dict[str, Any]) -> None:
            nonlocal resumed
            log(run, line)
            if "effective_rank" not in line:  # not the line of an epoch
                return
            if resumed:
                seconds["epoch"].append(clock() - resumed)
            for name, call in calls.items():
                begun = clock()
                call()
                if resumed:
                    seconds[name].append(clock() - begun)
            resumed = clock()

        with mock.patch.object(Run, "log", with_passes_after):
            pretrain(settings, progress=False)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {f"epoch / {name}": median["epoch"] / median[name] for name in ("passes", "model")}
    return {**median, **ratios}


def whole_run(recipe: str, threads: int) -> dict[str, float]:
    """Seconds of `sfrik run`, of its training (steps alone), and of the cells of its notebooks that train or evaluate.

    "processor" are those of all its processes: on a busy machine they say more than the clock.
    """
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "sfrik", "run", "--recipe", recipe, "--results", root]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = {"run": time.perf_counter() - begun}
        seconds["processor"] = after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime
        run = Run(run_folder(recipe, 0, root))
        seconds["training"] = sum(line["seconds"] for line in run.epochs())
        cells = [cell for path in run.folder.glob("*.ipynb") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        working = [cell for cell in cells if cell["cell_type"] == "code" and "launch(" in "".join(cell["source"])]
        seconds["working cells"] = sum(cell["metadata"]["papermill"]["duration"] for cell in working)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="digits/sfrik_l3_q512")
    parser.add_argument("--rounds", type=int, default=8, help="epochs that are measured, each between bare passes")
    parser.add_argument("--threads", type=int, default=1, help="as make table1 gives each run")
    parser.add_argument("--processor-time", action="store_true", help="of the epochs and passes, on a machine that others use")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    found: dict[str, Any] = {"recipe": options.recipe, "threads": options.threads, "processor": processor()}
    found["processor_time"] = options.processor_time
    clock = time.process_time if options.processor_time else time.perf_counter
    for name, monitored in (("epochs", False), ("epochs with the kNN monitor", True)):
        rounds = 3 if monitored else options.rounds
        found[name] = epochs_against_passes(options.recipe, rounds, monitored, clock)
        print(f"{name}, medians: " + ", ".join(f"{what} {value:.3f}" for what, value in found[name].items()))
    found["run"] = seconds = whole_run(options.recipe, options.threads)
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    seconds["share beside the working cells"] = share = 1 - seconds["working cells"] / seconds["run"]
    print(f"  {100 * share:.1f} % of the run is neither training nor evaluating")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
