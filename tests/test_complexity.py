"""The cost of the regularisers: what is counted, and how memory grows; no time is asserted."""

from __future__ import annotations

import math
import os

import pytest
import torch

from sfrik import complexity as module
from sfrik.complexity import build, complexity, hardware, loss_call, measure, peak_memory, step_call
from sfrik.errors import SfrikError
from sfrik.experiments import rows_of
from sfrik.files import read_json, write_json
from sfrik.objectives import AUH, SFRIK, SimCLR, VICReg

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of resident memory is read on Linux")


@pytest.mark.parametrize(("name", "kind"), [("VICReg", VICReg), ("SimCLR", SimCLR), ("AUH", AUH), ("SFRIK L=2", SFRIK)])
def test_the_methods_of_the_tables_are_the_objectives(name, kind):
    assert isinstance(build(name, 16), kind)


def test_the_degree_of_sfrik_is_read_from_its_name_and_an_unknown_method_is_refused():
    assert [len(build(f"SFRIK L={degree}", 16).kernel.coefficients) for degree in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(SfrikError, match="unknown method 'VICREG'"):
        build("VICREG", 16)


def test_a_call_of_a_loss_and_of_a_step_does_its_backward_pass(monkeypatch):
    seen = []
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *rest, **more: (seen.append(1), original(self, *rest, **more))[1])
    loss_call("SFRIK L=3", 32, 16, CPU)()
    step_call("VICReg", 32, 16, CPU, "smoke")()
    assert len(seen) == 2


@linux
def test_vicreg_holds_one_covariance_at_a_time_and_sfrik_none():
    q = 2048
    matrix = 4 * q * q / 2**20  # one matrix of q x q in float32, in MiB
    # the second view's is made after the first's is gone; autograd by itself held five
    assert matrix <= peak_memory("VICReg", q, 64, CPU) < 1.9 * matrix
    # the Gram matrix of 64 rows has 16 KiB; what is of size n x q has half a MiB
    assert peak_memory("SFRIK L=3", q, 64, CPU) < matrix


@linux
def test_every_row_of_a_table_is_measured_and_ratios_are_to_vicreg_of_the_same_size(monkeypatch):
    times = {"VICReg": 2.0, "SFRIK L=3": 1.0}
    monkeypatch.setattr(module, "_timed", lambda calls, device, rounds: {name: [times[name]] * rounds for name in calls})
    monkeypatch.setattr(module, "peak_memory", lambda method, q, n, device: times[method] * n)
    found = measure("table5", "smoke", "cpu", progress=False)
    for row in rows_of("table5", "smoke"):
        own = found[row.entry]
        assert own["loss_ms"] == times[row.method]
        assert own["loss_mib"] == times[row.method] * int(row.labels["batch size"])
        assert own["loss_time_ratio"] == own["loss_memory_ratio"] == times[row.method] / 2
    assert found["hardware"] == hardware(CPU)


def test_the_median_over_the_rounds_is_of_paired_ratios():
    found = {"VICReg": {}, "AUH": {}}
    module._add(found, "ms", "ratio", {"VICReg": [1.0, 10.0, 4.0], "AUH": [2.0, 10.0, 2.0]})
    # ratios 2, 1, 0.5; the ratio of the medians would be 2 / 4
    assert found == {"VICReg": {"ms": 4.0, "ratio": 1.0}, "AUH": {"ms": 2.0, "ratio": 1.0}}
    module._add(found, "mib", "memory", {"VICReg": [0.0], "AUH": [1.0]})
    assert "memory" not in found["AUH"], "no ratio to nothing"


def test_a_table_that_was_measured_here_is_returned_and_one_of_other_hardware_is_not(tmp_path, monkeypatch):
    path = tmp_path / "table5.json"
    write_json(path, {"hardware": hardware(CPU), "mark": 1})
    assert complexity("table5", "smoke", str(tmp_path), "cpu")["mark"] == 1
    write_json(path, {"hardware": "cuda: another", "mark": 1})
    monkeypatch.setattr(module, "measure", lambda *arguments: {"hardware": hardware(CPU), "mark": 2})
    assert complexity("table5", "smoke", str(tmp_path), "cpu")["mark"] == 2
    assert read_json(path)["mark"] == 2
    assert read_json(tmp_path / "provenance.json")["hardware"]["device"].startswith("cpu")


def test_a_process_that_cannot_measure_says_why():
    with pytest.raises(SfrikError, match=r"memory of nothing at q = 8, batch 4 could not be measured: .*unknown method"):
        peak_memory("nothing", 8, 4, CPU)
    assert not math.isnan(peak_memory("AUH", 8, 4, CPU)) or not os.path.exists("/proc/self/clear_refs")
