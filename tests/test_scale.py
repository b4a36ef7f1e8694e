"""The page on scale: its formulas against what processes exchange and compute, its tables against the script."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # the processes that are started inherit it

import communication  # noqa: E402
import scale  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
SIZES = [(24, 1024), (256, 16)]  # rows shorter and longer than the batch
PROCESSES = 2


def counts() -> dict:
    """On one of the processes: counts by loss, size and number of views, and gradients of the two ways of SFRIK."""
    found = {}
    for n, q in SIZES:
        for views in (2, 3):
            for method, loss in communication.losses(q).items():
                if method != "original" or views == 2:
                    found[method, n, q, views] = communication.count(loss, communication.rows_of(n, q, views))
    for method in ("SFRIK", "original"):
        views = [view.detach().double().requires_grad_() for view in communication.rows_of(24, 16)]
        communication.losses(16)[method](views).backward()
        found[method] = torch.stack([view.grad for view in views])
    return found


@pytest.fixture(scope="module")
def counted() -> list[dict]:
    return communication.on_processes(counts, PROCESSES)


def page_part(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n+(.*?)\n+<!-- /{name} -->", PAGE.read_text(), re.DOTALL).group(1)


def test_bytes_and_flop_of_a_process_are_those_of_the_formulas(counted):
    for found in counted:
        for key, values in found.items():
            if isinstance(key, tuple):
                method, n, q, views = key
                assert values["sent"] == scale.sent(method, n, q, PROCESSES, views), key
                assert values["flops"] == scale.flops(method, n, q, PROCESSES, views), key


def test_the_peak_of_memory_is_that_of_the_formula(counted):
    for found in counted:
        for n, q in SIZES:
            for method in scale.METHODS:
                # the formula leaves out norms, means and whatever else is of the order of n or q alone
                assert found[method, n, q, 2]["memory"] == pytest.approx(scale.memory(method, n, q, PROCESSES), rel=0.03), (
                    method,
                    n,
                )


def test_the_number_of_collectives_is_what_the_page_says(counted):
    expected = {"SFRIK": 5, "VICReg": 3, "original": 4}
    for found in counted:
        assert {method: found[(method, *SIZES[0], 2)]["collectives"] for method in scale.METHODS} == expected
    for method, number in expected.items():
        assert re.search(rf"^\| {method}\b.*\| {number} \|$", PAGE.read_text(), re.MULTILINE), method


def test_the_way_of_the_original_has_the_gradient_of_sfrik(counted):
    for found in counted:
        torch.testing.assert_close(found["original"], found["SFRIK"], rtol=1e-10, atol=1e-12)  # float64, other order of sums


def test_a_collective_that_is_not_known_is_not_passed_over(monkeypatch):
    monkeypatch.setattr(communication, "world_size", lambda: 1)
    unknown = type("Unknown", (), {"namespace": "c10d", "_opname": "alltoall_"})
    with pytest.raises(KeyError, match="alltoall_"):
        communication.Exchange().__torch_dispatch__(unknown, ())


def test_the_gather_outweighs_ddp_from_the_batch_that_the_page_gives_on():
    for q in scale.DIMS:
        rows = scale.network(q)[0] / q
        assert scale.sent("SFRIK", rows, q, 64) == pytest.approx(scale.averaged(q, 64), rel=1e-4)
        assert scale.sent("original", rows / 3, q, 64) == pytest.approx(scale.averaged(q, 64), rel=1e-4)
        assert f"| {q} | {scale.number(scale.network(q)[0] / 1e6)} | {rows:.0f} | {rows / 3:.0f} |" in PAGE.read_text()


def test_the_network_is_the_papers():
    # ResNet-50 without its classifier: 23,508,032 parameters (torchvision's 25,557,032 less 2,049,000); 4.09 G multiply-adds
    parameters, flops = scale.network(8192)
    assert parameters == 23_508_032 + (2048 * 8192 + 3 * 8192) + (8192 * 8192 + 3 * 8192) + 8192 * 8192
    # backward: twice the forward pass, less the first layer's gradient of the images
    forward = 2 * (4.09e9 + 2048 * 8192 + 2 * 8192 * 8192)
    assert flops == pytest.approx(3 * forward, rel=0.02)


def test_the_tables_of_the_page_are_those_that_the_script_calculates():
    for k, table in enumerate(scale.calculated_tables(), start=1):
        assert page_part(f"calculated {k}") == table


def test_what_the_page_says_was_counted_is_what_the_formulas_say():
    text = page_part("measured")
    n, q = (int(x) for x in re.search(r"n = (\d+), q = (\d+)", text).groups())
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 9
    for processes, method, flops, sent, _, peak, *_ in rows:
        assert flops == scale.number(scale.flops(method, n, q, int(processes)) / 1e9)
        assert sent == scale.number(scale.sent(method, n, q, int(processes)) / 1e6)
        if processes != "1":
            assert float(peak) == pytest.approx(scale.memory(method, n, q, int(processes)) / 1e6, rel=0.01)


def test_the_quick_benchmark_prints_its_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["communication.py", "--quick"])
    communication.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {k}", method] for k in (1, 2) for method in scale.METHODS]
