"""docs/speed.md agrees with the stored figures, and the benchmarks run at small sizes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import busy  # noqa: E402
import gpu  # noqa: E402
import input as inputs  # noqa: E402
import losses  # noqa: E402
import sliced  # noqa: E402
import slices  # noqa: E402
from pages import with_parts  # noqa: E402

CPU = torch.device("cpu")


def test_the_tables_of_the_page_are_rendered_from_the_stored_figures():
    page = bench.PAGE.read_text(encoding="utf-8")
    assert page == bench.rendered(page)
    assert len(bench.ratios()) > 10


def test_the_table_of_sliced_training_is_rendered_from_the_recorded_runs():
    rows = json.loads(slices.NUMBERS.read_text(encoding="utf-8"))["runs"]
    page = slices.PAGE.read_text(encoding="utf-8")
    assert page == with_parts(page, {"slices": slices.table(rows)})
    assert {row["run"]: sorted(other["seed"] for other in rows if other["run"] == row["run"]) for row in rows} == {
        name: list(range(10)) for name in slices.RUNS
    }


def test_the_losses_are_compared_with_their_targets():
    rows = [*losses.speed(CPU, 1, 64), losses.share(CPU, 1, 64), losses.low_precision(CPU, 1, 64)]
    rows += losses.exact_kernels(CPU, 1, 64)
    assert len(rows) == 18
    assert all(row["ratio"] > 0 for row in rows)
    assert bench.asked({"ratio": 1.0, "at least": 1.7}) == "at least 1.7"
    assert bench.asked({"ratio": 1.0, "at most products": 3.9}) == "at most 3.9 products"
    assert bench.asked({"ratio": 1.0}) == "–"


def test_the_losses_are_compared_beside_processes_that_end_with_the_measurement():
    with busy.neighbours(2) as processes:
        rows = busy.compare("SFRIK", 8, 16, 1) + busy.compare("AUH", 8, 16, 1)
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.poll() is not None for process in processes)
    assert [row["against"] for row in rows] == [losses.PLAIN, "the authors' formula", losses.PLAIN]
    assert all(row["ratio"] == pytest.approx(row["fast ms"] / row[f"{row['against']} ms"]) for row in rows)
    assert bench.asked(rows[0]) == "at most 1"


def test_many_directions_estimate_the_value_and_the_gradient():
    found = sliced.quality(12, 4, 20_000, "around a centre", (1.0, 40.0), 2)
    assert found["spread, %"] < 10
    assert found["cosine"] > 0.99


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
    options = argparse.Namespace(batch=4, rounds=1, workers=0, smoke=True, data=None)
    compared = gpu.steps("resnet8", 16, 32, options, CPU)
    assert [row["what"].split(", ")[1] for row in compared] == ["SFRIK", "VICReg"]
    row = gpu.end_to_end("resnet8", 16, 32, options, CPU, tmp_path, count=2)
    assert row["ratio"] == pytest.approx(row["loader/s"] / row["ready images/s"])
    row = gpu.in_memory("cifar", "resnet8", 4, 8, 1, CPU)
    assert row["ratio"] == pytest.approx(row["training/s"] / row["step/s"])


def test_the_input_in_memory_is_compared_with_the_step_and_with_the_pil_pipeline():
    found = inputs.compare_in_memory("simclr", inputs.small_photos(8), "resnet8", 4, 1)
    assert found["tensor / step"] == pytest.approx(found["tensor"] / found["step"])
    assert found["tensor / pil"] == pytest.approx(found["tensor"] / found["pil"])
    assert min(found[name] for name in ("tensor", "pil", "step", "training")) > 0  # which is faster depends on the load


def test_the_peak_of_memory_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["losses.py", "--peak", "fast", "2048", "64"])
    threads = torch.get_num_threads()
    losses.main()
    torch.set_num_threads(threads)
    assert 0 <= json.loads(capsys.readouterr().out) < 200
