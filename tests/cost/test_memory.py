"""The expected memory against what training steps allocate on a CPU.

Every tensor that an operation returns is counted; what an operation allocates internally is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch

from sfrik.cli import main
from sfrik.cost.loss_memory import MemoryCounter, loss_peak
from sfrik.cost.memory import expected_memory
from sfrik.cost.report import format_memory, memory_by_processes
from sfrik.networks import build_encoder
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.objectives.factory import build_objective
from sfrik.ops import pairwise
from sfrik.pretrain.accumulate import backward, micro_batches
from sfrik.pretrain.optimizer import build_optimizer, update
from sfrik.settings import PretrainSettings
from sfrik.system.devices import autocast

METHODS = ("sfrik", "auh", "simclr", "vicreg", "sigreg")
DIGITS = {"dataset": "mnist5k", "size": 28, "arch": "resnet8", "augmentations": "digits", "mlp": "64-512", "batch_size": 96}
# the peak is the loss in float32 with AUH, SimCLR and SIGReg, its gradient with the others
LOSS = {**DIGITS, "mlp": "32-8192", "batch_size": 48, "micro_batch": 8, "sigreg_slices": 256, "precision": "bf16"}
SMALL = {"dataset": "cifar10", "size": 16, "arch": "resnet18", "stem": "small", "mlp": "256-512", "batch_size": 8}
CROPS = {"nmb_crops": (2, 3), "size_crops": (32, 16), "min_scale_crops": (0.1, 0.1), "max_scale_crops": (1.0, 1.0)}
SWAV = {**SMALL, **CROPS, "augmentations": "swav", "batch_size": 4}


# --- training steps


@pytest.mark.parametrize(
    "given",
    [
        DIGITS,
        {**DIGITS, "ssl_method": "simclr", "mlp": "32-64"},
        *({**LOSS, "ssl_method": method} for method in METHODS),
        {**LOSS, "precision": "fp32"},
        {**DIGITS, "mlp": "32-1024", "batch_size": 64, "micro_batch": 8, "sfrik_slices": 1024},
        {**DIGITS, "mlp": "32-128", "batch_size": 160, "sfrik_weights": "1-40"},
        {**DIGITS, "precision": "bf16"},
        SMALL,
        {**SMALL, "size": 32, "stem": "imagenet", "batch_size": 16},
        {**SMALL, "mlp": "2048-2048", "batch_size": 2},  # the peak is the update
        *({**SMALL, "mlp": "2048-2048", "batch_size": 2, "optimizer": name, "clip_grad": 1} for name in ("adamw", "sgd")),
        {**SMALL, "mlp": "2048-2048", "batch_size": 2, "optimizer": "sgd", "momentum": 0},
        {**DIGITS, "optimizer": "adamw", "precision": "bf16"},
        {**SMALL, "mlp": "64-4096", "arch": "resnet8", "micro_batch": 2, "precision": "bf16"},
        SWAV,
        {**SWAV, "reg_small": True, "ssl_method": "vicreg", "micro_batch": 2},
    ],
    ids=lambda given: "-".join(str(value) for value in given.values() if not isinstance(value, tuple)),
)
def test_the_expected_memory_is_what_training_steps_allocate(given):
    """Within 5 %: gradients are allocated one by one while activations are freed; the estimate counts all of both."""
    settings = PretrainSettings(**{"device": "cpu", "precision": "fp32", **given})
    assert sum(expected_memory(settings).values()) * 2**30 == pytest.approx(step_peak(settings), rel=0.05)


def step_peak(settings: PretrainSettings) -> int:
    """Bytes at the peak of the second of two steps, when the optimizer's state exists."""
    with MemoryCounter() as memory:

        def forget() -> None:
            memory.peak = memory.now

        two_steps(settings, torch.device("cpu"), forget)
    return memory.peak


def two_steps(settings: PretrainSettings, device: torch.device, forget: Callable[[], None]) -> None:
    """Two training steps on noise; `forget` is called before each."""
    channels = 1 if settings.dataset == "mnist5k" else 3
    encoder = build_encoder(settings, channels).to(device, memory_format=torch.channels_last)
    objective, optimizer = build_objective(settings), build_optimizer(settings, encoder)
    loss = partial(objective, anchors=settings.anchors, regularise=settings.regularise)
    for _ in range(2):
        forget()
        batch = [torch.randn(settings.batch_size, channels, side, side, device=device) for side in settings.view_sizes]
        optimizer.zero_grad(set_to_none=True)
        parts = micro_batches(settings.batch_size, settings.micro_batch)
        held = backward(encoder, batch, loss, parts, partial(autocast, device, settings.precision))
        update(optimizer, torch.amp.GradScaler(enabled=False), settings.clip_grad)
        del held, batch


# --- the loss

TWO = {"views": 2}
FOUR = {"views": 4, "regularise": "all"}
ANCHOR = {"views": 4, "anchors": (0,), "regularise": "anchors"}


def objectives(q: int) -> dict:
    equal = {"equal_rows": True}
    return {
        "SFRIK": SFRIK(q, **equal),
        "SFRIK, L = 2": SFRIK(q, (1.0, 40.0), **equal),
        "SFRIK, L = 5": SFRIK(q, (1.0, 40.0, 40.0, 1.0, 1.0), **equal),
        **{f"SFRIK, sliced, L = {l}": SFRIK(q, (1.0,) * l, slices=128, **equal) for l in (1, 2, 3, 4)},
        "AUH": AUH(**equal),
        "SimCLR": SimCLR(**equal),
        "VICReg": VICReg(**equal),
        "SIGReg": SIGReg(slices=128, **equal),
    }


@pytest.mark.parametrize("views", [TWO, FOUR, ANCHOR], ids=["two", "four", "one anchor"])
@pytest.mark.parametrize(("n", "q"), [(64, 512), (300, 96)])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", objectives(8))
def test_on_fake_tensors_a_loss_allocates_what_it_allocates_on_real_ones(name, half, n, q, views):
    objective = objectives(q)[name]
    rows = [torch.randn(n, q, dtype=torch.bfloat16 if half else torch.float32, requires_grad=True) for _ in range(views["views"])]
    with MemoryCounter() as memory:
        objective(rows, anchors=views.get("anchors", (0, 1)), regularise=views.get("regularise", "all"))
    assert loss_peak(objective, n, q, half=half, device="cpu", **views) == pytest.approx(memory.peak, abs=64), "but for scalars"


@pytest.mark.parametrize("name", ["SFRIK", "SFRIK, L = 5", "AUH", "SimCLR", "VICReg"])
@pytest.mark.parametrize(("n", "q"), [(203, 512), (203, 32)])
def test_two_tiles_of_each_shape_are_enough_to_count_all(name, n, q, monkeypatch):
    monkeypatch.setattr(pairwise, "tile_shape", lambda device: (30, 90))
    objective = objectives(q)[name]
    rows = [torch.randn(n, q, requires_grad=True) for _ in range(2)]
    with MemoryCounter() as memory:
        objective(rows)
    assert loss_peak(objective, n, q, device="cpu") == pytest.approx(memory.peak, abs=64)


def test_the_largest_batches_are_counted_in_seconds_and_without_memory():
    for name in ("SFRIK", "SFRIK, sliced, L = 3", "SimCLR", "VICReg"):
        objective = objectives(65536)[name]
        assert loss_peak(objective, 2**20, 65536) > 2 * 4 * 2**20 * 65536


def test_vicreg_pays_for_the_square_of_q_where_that_is_less_than_the_square_of_n():
    def peak(n, q):
        return loss_peak(VICReg(), n, q, 8)

    rows = 4 * 512 * 4096  # bytes on each of 8 processes
    assert peak(4096, 4096) == pytest.approx(3 * rows + 2 * 4 * 4096**2, rel=0.001)
    assert peak(4096, 16384) < 4 * 16384**2
    assert peak(4096, 32768) == pytest.approx(2 * peak(4096, 16384), rel=0.01)


# --- the command


def test_the_command_prints_the_parts_for_usual_numbers_of_processes(capsys):
    assert main(["memory", "--batch-size", "2044", "--arch", "resnet50"]) == 0
    head, *rows, largest, advice = capsys.readouterr().out.splitlines()
    assert head.split()[3:] == ["parameters", "activations", "images", "embeddings", "loss", "total"]
    assert [row.split()[0] for row in rows] == ["1", "2", "4"], "2,044 images do not divide by 8"
    for row in rows:
        *parts, total = map(float, row.split()[2:])
        assert total == pytest.approx(sum(parts), abs=0.03)
    assert re.match(r"largest, with 1 process: activations, \d\d % of [\d.]+ GiB", largest)
    assert re.match(r"to lower it: --micro-batch 511 \([\d.]+ GiB\), 2 processes \([\d.]+ GiB each\)$", advice)


def test_the_command_starts_from_a_recipe_and_gives_numbers_in_full(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = "paper/in1k_r50_sfrik_l3_q32768"
    assert main(["memory", "--recipe", recipe, "--nproc-per-node", "8", "--micro-batch", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    settings = PretrainSettings.from_recipe(recipe, micro_batch=64)
    parts = expected_memory(settings, 8)
    assert found == {"8": {**parts, "total": pytest.approx(sum(parts.values()))}}
    assert list(tmp_path.iterdir()) == [], "it touches no data and makes no folder"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nproc-per-node", "3"], "is not divisible by 3"),
        (["--nproc-per-node", "none"], "whole number"),
        (["--batch", "8"], "--batch"),
        (["--arch", "resnet51"], "resnet50"),
    ],
)
def test_a_mistake_in_the_command_is_one_line(flags, words, capsys):
    assert main(["memory", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_the_advice_states_the_memory_that_it_leads_to():
    settings = PretrainSettings(arch="resnet50", batch_size=2048)
    (parts,) = memory_by_processes(settings, 4).values()
    *_, advice = format_memory(settings, {4: parts})
    size, said, processes, each = re.search(
        r"--micro-batch (\d+) \((.*) GiB\), (\d+) processes \((.*) GiB each\)", advice
    ).groups()
    fewer = settings.model_copy(update={"micro_batch": int(size)})
    assert float(said) == pytest.approx(sum(expected_memory(fewer, 4).values()), abs=0.01)
    assert float(each) == pytest.approx(sum(expected_memory(settings, int(processes)).values()), abs=0.01)


def test_where_the_weights_dominate_the_advice_is_a_smaller_network():
    settings = PretrainSettings(batch_size=4)
    assert "--mlp" in format_memory(settings, memory_by_processes(settings, 1))[-1]


# --- the widget


def test_the_widget_shows_the_memory_of_its_inputs_and_follows_them(monkeypatch):
    ipywidgets, display = pytest.importorskip("ipywidgets"), pytest.importorskip("IPython.display")
    from sfrik.cost.report import memory_widget

    shown, boxes = [], []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle)

    def show(what, **options):
        if isinstance(what, ipywidgets.Widget):
            boxes.append(what)
            return None
        shown.append(what)
        return Handle()

    monkeypatch.setattr(display, "display", show)
    memory_widget()
    inputs = {child.description: child for child in boxes[0].children}

    def total() -> float:
        return float(re.search(r"<b>([\d.]+) GiB</b>", shown[-1]["text/html"]).group(1))

    def expected(**more) -> float:
        return sum(expected_memory(PretrainSettings(arch="resnet50", batch_size=2048, precision="bf16", **more), 8).values())

    assert total() == pytest.approx(expected(), abs=0.01)
    inputs["q"].value = 32768
    assert total() == pytest.approx(expected(mlp="8192-8192-32768"), abs=0.01)
    inputs["micro-batch"].value = 32
    assert total() == pytest.approx(expected(mlp="8192-8192-32768", micro_batch=32), abs=0.01)
    inputs["processes"].value = 7
    assert "7 processes" in shown[-1]["text/html"]
    assert "7 processes" in shown[-1]["text/plain"]
