"""The cost of the regularisers: what is counted, and how memory grows; no time is asserted."""

from __future__ import annotations

import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from sfrik.cost import load
from sfrik.cost import measure as module
from sfrik.cost.measure import build, complexity, growth, hardware, loss_calls, loss_of, measure, resident_peaks, step_calls
from sfrik.errors import SfrikError
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.plots.costs import draw_cost_curves
from sfrik.plots.style import COLOURS, MARKERS
from sfrik.system.files import read_json, write_json
from sfrik.tables.definitions import rows_of

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of resident memory is read on Linux")


METHODS = [
    *(("VICReg", VICReg), ("SimCLR", SimCLR), ("AUH", AUH), ("SFRIK L=2", SFRIK), ("SIGReg", SIGReg)),
    *(("VICReg plain", VICReg), ("SFRIK L=3 plain", SFRIK)),
]


@pytest.mark.parametrize(("name", "kind"), METHODS)
def test_the_methods_of_the_tables_are_the_objectives(name, kind):
    assert isinstance(build(name, 16), kind)


@pytest.mark.parametrize("name", ["VICReg", "SimCLR", "AUH", "SFRIK L=2", "SFRIK L=3"])
def test_a_method_and_its_plain_formula_give_the_same_loss(name):
    views = [torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    torch.testing.assert_close(loss_of(name, 16)(views), loss_of(f"{name} plain", 16)(views))


def test_the_degree_of_sfrik_is_read_from_its_name_and_an_unknown_method_is_refused():
    assert [len(build(f"SFRIK L={degree}", 16).kernel.coefficients) for degree in (1, 2, 3)] == [1, 2, 3]
    assert len(build("SFRIK L=3 plain", 16).kernel.coefficients) == 3
    for name in ("VICREG", "SIGReg plain"):
        with pytest.raises(SfrikError, match=f"unknown method '{name}'"):
            build(name, 16)


def test_a_timed_loss_and_a_timed_step_include_the_backward_pass(monkeypatch):
    seen = []
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *rest, **more: (seen.append(1), original(self, *rest, **more))[1])
    methods = ["SFRIK L=3", "VICReg plain"]
    for calls, count in ((loss_calls(methods, 32, 16, CPU), 4), (step_calls(methods, 32, 16, CPU, "smoke"), 2)):
        assert len(calls) == count, "a loss has the product before it"
        for call in calls.values():
            call()
    assert len(seen) == 4


@linux
def test_the_plain_formula_of_vicreg_holds_covariances_and_the_closed_forms_hold_none():
    q, n = 2048, 64
    names = ("VICReg plain", "VICReg", "SFRIK L=3")
    plain, vicreg, sfrik = resident_peaks([(name, q, n) for name in names]).values()
    matrix = 4 * q * q / 2**20  # one matrix of q x q in float32, in MiB
    gradients = 2 * 4 * n * q / 2**20
    assert plain >= 3 * matrix
    # the Gram matrix of 64 rows has 16 KiB; what is of size n x q has half a MiB
    assert gradients <= vicreg < matrix / 2
    assert gradients <= sfrik < matrix / 2


def measured_as(monkeypatch, times):
    """What takes so many milliseconds, and so many MiB for each row of the batch; a product takes half a millisecond."""
    times = {**times, **{f"product before {name}": 0.5 for name in TIMES}}
    monkeypatch.setattr(module, "_timed", lambda calls, device, rounds: {name: [times[name]] * rounds for name in calls})
    monkeypatch.setattr(module, "_that_fit", lambda calls: {name: call for name, call in calls.items() if name in times})
    monkeypatch.setattr(module, "resident_peaks", lambda tasks: {task: times.get(task[0], 0) * task[2] for task in tasks})


TIMES = {"VICReg plain": 8.0, "SFRIK L=3 plain": 3.0, "VICReg": 2.0, "SFRIK L=3": 1.0, "SIGReg": 4.0}


def test_every_row_of_a_table_is_measured_and_ratios_are_to_the_plain_vicreg_of_the_same_size(monkeypatch):
    measured_as(monkeypatch, TIMES)
    found = measure("table5", "smoke", "cpu", progress=False)
    for row in rows_of("table5", "smoke"):
        own = found[row.entry]
        assert own["loss_ms"] == TIMES[row.method]
        assert own["product_ms"] == 0.5
        assert own["loss_products"] == TIMES[row.method] / 0.5
        assert own["loss_mib"] == TIMES[row.method] * int(row.labels["batch size"])
        assert own["loss_time_ratio"] == own["loss_memory_ratio"] == TIMES[row.method] / 8
    assert found["hardware"] == hardware(CPU)


def test_what_does_not_fit_into_the_memory_of_a_gpu_is_missing_and_the_rest_is_measured(monkeypatch):
    measured_as(monkeypatch, {name: value for name, value in TIMES.items() if name != "VICReg plain"})
    found = measure("table5", "smoke", "cpu")
    assert found["VICReg plain q=512 n=64"] == {}
    assert set(found["VICReg q=512 n=64"]) == {"product_ms", "loss_ms", "loss_products", "loss_mib"}, "and no ratio to nothing"


def test_a_call_that_runs_out_of_gpu_memory_is_left_out():
    def too_large():
        raise torch.cuda.OutOfMemoryError

    done = []
    fitting = module._that_fit({"large": too_large, "small": lambda: done.append(1)})
    assert (list(fitting), done) == (["small"], [1])


def test_the_median_over_the_rounds_is_of_paired_ratios():
    found = {"VICReg plain": {}, "AUH": {}}
    module._add(found, "ms", {"VICReg plain": [1.0, 10.0, 4.0], "AUH": [2.0, 10.0, 2.0]}, "ratio")
    # ratios 2, 1, 0.5; the ratio of the medians would be 2 / 4
    assert found == {"VICReg plain": {"ms": 4.0, "ratio": 1.0}, "AUH": {"ms": 2.0, "ratio": 1.0}}
    module._add(found, "mib", {"VICReg plain": [0.0], "AUH": [1.0]}, "memory")
    assert "memory" not in found["AUH"], "no ratio to nothing"


def test_a_loss_is_expressed_in_the_product_timed_just_before_it(monkeypatch):
    def timed(calls, device, rounds):
        slow = {"SIGReg": 3.0}  # the machine, while its turn lasts
        return {name: [slow.get(name.split("before ")[-1], 1.0) * (1 if "before" in name else 5)] for name in calls}

    measured_as(monkeypatch, TIMES)
    monkeypatch.setattr(module, "_timed", timed)
    found = measure("table5", "smoke", "cpu", progress=False)
    assert {found[row.entry]["loss_products"] for row in rows_of("table5", "smoke")} == {5.0}
    assert {found[row.entry]["product_ms"] for row in rows_of("table5", "smoke")} == {1.0}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, 50), (0.2, 5), (4.0, 5), (11.0, 3)])
def test_short_calls_have_more_rounds_and_long_ones_three(monkeypatch, seconds, rounds):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += seconds

    times = module._timed({"a": call}, CPU, 5)
    assert times["a"] == pytest.approx([1000 * seconds] * rounds)


def test_growth_is_the_slope_over_the_three_largest_sizes_with_its_standard_error():
    exponent, error = growth([4, 8, 16, 32], [1e6, 3 * 8**2, 3 * 16**2, 3 * 32**2])
    assert (exponent, error) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-6))
    # log2: (0, 0), (1, 1), (2, 0) has slope 0, residuals -1/3, 2/3, -1/3 and one degree of freedom
    exponent, error = growth([1, 2, 4], [1, 2, 1])
    assert (exponent, error) == (pytest.approx(0.0), pytest.approx(np.sqrt((6 / 9) / 2)))
    assert growth([2, 4], [5, 20]) == (pytest.approx(2.0), None)
    assert growth([2, 4, 8], [5, 0.0, float("nan")]) == (None, None), "under a page, or not measured"


def test_curves_are_dashed_for_plain_formulas_in_the_colour_of_their_method_and_the_limits_are_drawn():
    rows = [
        {"method": method, "q": 512, "n": n, "product_ms": 0.5 * n, "loss_ms": TIMES[method] * n, "loss_mib": TIMES[method]}
        for method in ("VICReg plain", "VICReg", "SIGReg")
        for n in (64, 128)
    ]
    figure = draw_cost_curves(pd.DataFrame(rows))
    assert [axis.get_title() for axis in figure.axes] == ["VICReg", "SIGReg", "", ""], "a column per method, a row per cost"
    for number, axis in enumerate(figure.axes):
        own = [line for line in axis.lines if line.get_color() == COLOURS[("VICReg", "SIGReg")[number % 2]]]
        assert {line.get_marker() for line in own} == {MARKERS[("VICReg", "SIGReg")[number % 2]]}
        hollow = [line.get_markerfacecolor() == "white" for line in own]
        assert hollow == [line.get_linestyle() == "--" for line in own] == [[True, False], [False]][number % 2]
        (limit,) = [line for line in axis.lines if line.get_label() == "limit"]
        expected = [32.0, 64.0] if number < 2 else [2 * 4 * n * 512 / 2**20 for n in (64, 128)]
        assert list(limit.get_ydata()) == expected
    plt.close(figure)


def test_a_table_that_was_measured_here_is_returned_and_one_of_other_hardware_or_other_rows_is_not(tmp_path, monkeypatch):
    path = tmp_path / "table5.json"
    entries = {row.entry: {} for row in rows_of("table5", "smoke")}
    write_json(path, {**entries, "hardware": hardware(CPU), "mark": 1})
    assert complexity("table5", "smoke", str(tmp_path), "cpu")["mark"] == 1
    monkeypatch.setattr(module, "measure", lambda *arguments: {**entries, "hardware": hardware(CPU), "mark": 2})
    for stale in ({**entries, "hardware": "cuda: another"}, {"VICReg q=8192 n=512": {}, "hardware": hardware(CPU)}):
        write_json(path, {**stale, "mark": 1})
        assert complexity("table5", "smoke", str(tmp_path), "cpu")["mark"] == 2
        assert read_json(path)["mark"] == 2
    assert read_json(tmp_path / "provenance.json")["hardware"]["device"].startswith("cpu")


@pytest.mark.parametrize(("busy", "quiet"), [(0.1, True), (1.5, False)])
def test_a_measurement_records_the_load_and_warns_if_other_processes_kept_the_machine_busy(
    busy, quiet, tmp_path, monkeypatch, capsys
):
    seconds = [100.0]  # both the clock and the time of this process, in one thread

    def work(*arguments):
        seconds[0] += 20
        (tmp_path / "stat").write_text(
            f"cpu {int(100 * (300 + 20 + 20 * busy))} 0 0 9999 9999 0 0 0 0 0\ncpu0 ...\n", encoding="ascii"
        )
        return {row.entry: {} for row in rows_of("table5", "smoke")} | {"hardware": hardware(CPU)}

    (tmp_path / "stat").write_text("cpu 30000 0 0 9 9 0 0 0 0 0\n", encoding="ascii")
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load.os, "times", lambda: (seconds[0] - 5, 1.0, 3.0, 1.0, 0.0))
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(load.os, "getloadavg", lambda: (seconds[0] / 100, 9.0, 9.0))
    monkeypatch.setattr(load.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(module, "measure", work)
    complexity("table5", "smoke", str(tmp_path / "run"), "cpu")
    found = read_json(tmp_path / "run" / "table5.json")["load"]
    assert found == {"before": 1.0, "after": 1.2, "others": pytest.approx(busy), "cores": 2}
    warning = "warning: The machine was not quiet: other processes kept up to 1.5 of 2 cores busy (load average 1.0 "
    assert (warning in capsys.readouterr().err) is not quiet


def test_where_the_system_reports_no_cpu_time_the_load_average_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "STAT", tmp_path / "missing")
    found = load.load_since(load.usage())
    assert found["others"] is None
    assert found["before"] >= 0


@linux
def test_a_process_that_cannot_measure_says_why():
    with pytest.raises(SfrikError, match=r"memory of nothing at q = 8, batch 4 could not be measured: .*unknown method"):
        resident_peaks([("AUH", 8, 4), ("nothing", 8, 4)])
