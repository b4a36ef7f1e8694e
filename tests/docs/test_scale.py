"""The page on scale: its formulas against what processes exchange and compute, its tables against the script."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # the processes that are started inherit it

import communication  # noqa: E402
import scale  # noqa: E402

from sfrik.objectives import SFRIK  # noqa: E402
from sfrik.ops import pairwise as pairs  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
SIZES = [(96, 1024), (256, 16), (640, 400)]  # rows longer than the batch, shorter than a process's share of it, between the two
PROCESSES = 2
TILED = SIZES[:2]  # the sizes that small tiles, and three views, are tried at


def small_tiles(device: torch.device) -> tuple[int, int]:
    """Many tiles a process, some of them cut off at its edges."""
    return 10, 50


def counts() -> dict:
    """On one of the processes: counts by loss, size and number of views, and gradients of the two ways of SFRIK."""
    found = {}
    for n, q in SIZES:
        for views in (2, 3) if (n, q) in TILED else (2,):
            for method, loss in (communication.losses(q) | communication.other_losses(q)).items():
                if method != "original" or views == 2:
                    found[method, n, q, views] = communication.count(loss, communication.rows_of(n, q, views))
        found["SFRIK", n, q, "half"] = count_in_half(n, q)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "tile_shape", small_tiles)
        for n, q in TILED:
            for method in ("SFRIK", "VICReg"):
                found[method, n, q, "small tiles"] = communication.count(
                    communication.losses(q)[method], communication.rows_of(n, q)
                )
            found["SFRIK", n, q, "half, small tiles"] = count_in_half(n, q)
    for method in ("SFRIK", "original"):
        views = [view.detach().double().requires_grad_() for view in communication.rows_of(24, 16)]
        communication.losses(16)[method](views).backward()
        found[method] = torch.stack([view.grad for view in views])
    return found


def count_in_half(n: int, q: int) -> dict:
    """Of SFRIK on embeddings in bfloat16, multiplied in it."""
    objective = SFRIK(q, low_precision=True, equal_rows=True)
    views = [view.detach().bfloat16().requires_grad_() for view in communication.rows_of(n, q)]
    for view in views:
        view.grad = torch.zeros_like(view)
    return communication.count(lambda z: objective(z).loss, views)


@pytest.fixture(scope="module")
def counted() -> list[dict]:
    return communication.on_processes(counts, PROCESSES)


def page_part(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n+(.*?)\n+<!-- /{name} -->", PAGE.read_text(), re.DOTALL).group(1)


def test_bytes_and_flop_of_a_process_are_those_of_the_formulas(counted):
    for found in counted:
        keys = [key for key in found if key[-1] in (2, 3)]
        assert {key[0] for key in keys} == {*scale.METHODS, *scale.OTHERS}
        for method, n, q, views in keys:
            values = found[method, n, q, views]
            assert values["sent"] == scale.sent(method, n, q, PROCESSES, views), (method, n, q, views)
            assert values["flops"] == scale.flops(method, n, q, PROCESSES, views), (method, n, q, views)


def test_the_peak_of_memory_is_that_of_the_formula(counted):
    for found in counted:
        for n, q in SIZES:
            # the formula leaves out norms, means and whatever else is of the order of n or q alone: of q = 16 those are too much
            for method in scale.METHODS if q == 16 else (*scale.METHODS, "SFRIK, L = 2", "AUH"):
                expected = pytest.approx(scale.memory(method, n, q, PROCESSES), rel=0.03)
                assert found[method, n, q, 2]["memory"] == expected, (method, n, q)


@pytest.mark.parametrize("kind", ["half", "small tiles", "half, small tiles"])
def test_half_precision_and_tiles_cut_off_at_the_edges_cost_what_the_formulas_say(counted, monkeypatch, kind):
    if "small" in kind:
        monkeypatch.setattr(pairs, "tile_shape", small_tiles)
    half = "half" in kind
    for found in counted:
        keys = [key for key in found if key[-1] == kind]
        assert len(keys) == {"half": len(SIZES), "small tiles": 2 * len(TILED), "half, small tiles": len(TILED)}[kind]
        for key in keys:
            method, n, q, _ = key
            assert found[key]["sent"] == scale.sent(method, n, q, PROCESSES, half=half), key
            assert found[key]["flops"] == scale.flops(method, n, q, PROCESSES), key
            assert found[key]["memory"] == pytest.approx(scale.memory(method, n, q, PROCESSES, half=half), rel=0.03), key


def test_the_number_of_collectives_is_what_the_page_says(counted):
    wide, short = SIZES[0], SIZES[1]
    expected = {
        ("SFRIK", wide): 2,
        ("SFRIK", short): 2,
        ("SFRIK, L = 2, q < n", short): 2,
        ("VICReg, q > n", wide): 2,
        ("VICReg, q ≤ n", short): 4,
        ("AUH", wide): 3,
        ("SimCLR", wide): 3,
        ("SFRIK, sliced", wide): 2,
        ("SIGReg", wide): 2,
        ("original", wide): 4,
    }
    for (name, size), number in expected.items():
        method = re.sub(", q . n", "", name)
        assert [found[(method, *size, 2)]["collectives"] for found in counted] == [number] * PROCESSES, name
        assert re.search(rf"^\| {name} \|.*\| {number} \|$", PAGE.read_text(), re.MULTILINE), name


def test_the_way_of_the_original_has_the_gradient_of_sfrik(counted):
    for found in counted:
        torch.testing.assert_close(found["original"], found["SFRIK"], rtol=1e-10, atol=1e-12)  # float64, other order of sums


def test_a_collective_that_is_not_known_is_not_passed_over(monkeypatch):
    monkeypatch.setattr(communication, "world_size", lambda: 1)
    unknown = type("Unknown", (), {"namespace": "c10d", "_opname": "alltoall_"})
    with pytest.raises(KeyError, match="alltoall_"):
        communication.Exchange().__torch_dispatch__(unknown, ())


def test_the_exchange_outweighs_ddp_from_the_batch_that_the_page_gives_on():
    for q in scale.DIMS:
        cells = [str(q), scale.number(scale.network(q)[0] / 1e6)]
        for method in scale.METHODS:
            rows = scale.outweighs(method, q)
            if rows == float("inf"):
                assert method == "VICReg"
                assert max(scale.sent(method, n, q, 64, half=True) for n in (q - 1, q, 10**9)) < scale.averaged(q, 64)
            else:
                assert scale.sent(method, rows, q, 64, half=True) == pytest.approx(scale.averaged(q, 64), rel=1e-4)
            cells.append("never" if rows == float("inf") else f"{rows:.0f}")
        assert f"| {' | '.join(cells)} |" in PAGE.read_text()


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
