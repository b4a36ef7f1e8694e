"""docs/uniformity_test.md: its example runs, its numbers are those of the benchmark, and the benchmark's samples are right."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch

from sfrik.diagnostics import uniformity_test
from sfrik.diagnostics.hypothesis import _least_rows, refusal
from sfrik.system.files import read_json

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import uniformity_test as benchmark


def page():
    return benchmark.PAGE.read_text(encoding="utf-8")


def test_the_example_runs_and_has_six_lines(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
    assert len(example.splitlines()) == 6
    exec(example, {})
    assert 0 <= float(capsys.readouterr().out.split()[0]) <= 1


def test_the_table_is_that_of_the_numbers_and_every_size_is_near_5_per_cent():
    numbers = read_json(benchmark.NUMBERS)
    assert page() == benchmark.rendered(page(), numbers)
    assert [(cell["n"], cell["q"]) for cell in numbers["size"]] == benchmark.SIZES
    for cell in numbers["size"]:
        for name, rate in cell["rates"].items():
            draws = cell["draws"][name]
            assert draws >= 2000
            assert abs(rate - 5) <= 1, (cell, name)
    for case in numbers["fewest"]:
        n, q, degree = (case[name] for name in ("n", "q", "degree"))
        assert refusal(torch.ones(n - 1, q), (degree,)) is not None
        assert refusal(torch.ones(n, q), (degree,)) is None
        assert abs(case["rate"] - 5) <= 1, case


def test_the_page_has_the_numbers_of_rows_that_are_needed():
    for rows, degree in ((15, 3), (27, 4), (1665, 8)):
        assert _least_rows(3, 512, degree) == rows
        assert f"{rows:,} for degree {degree}" in page()


def test_the_size_and_the_power_are_measured(capsys):
    found = benchmark.size(30, 4, draws=200)
    assert found["draws"] == dict.fromkeys(("1", "2", "1, 2", "3", "1, 2, 3"), 200)
    assert all(abs(rate - 5) <= 100 * 4 * np.sqrt(0.05 * 0.95 / 200) for rate in found["rates"].values())  # 4 sigma
    found = benchmark.size_of_degree(9, 16, 3, draws=400)
    assert abs(found["rate"] - 5) <= 1 + 100 * 4 * np.sqrt(0.05 * 0.95 / 400)  # 4 sigma, and the stated error
    power = benchmark.power((8, 200), draws=20, dim=128)
    for curves in power.values():
        assert all(few <= many for few, many in curves.values())
    assert power["concentration"]["16"][1] == power["dimensions"]["64"][1] == 100
    stored = read_json(benchmark.NUMBERS)["power"]
    assert len(benchmark.draw_power(stored).axes) == 2


@pytest.mark.parametrize(("q", "concentration"), [(3, 2.0), (128, 16)])
def test_the_von_mises_fisher_samples_have_its_mean(q, concentration):
    expected = scipy.special.ive(q / 2, concentration) / scipy.special.ive(q / 2 - 1, concentration)
    assert benchmark.mean_length(q, concentration) == pytest.approx(expected, rel=1e-4)
    z = benchmark.von_mises_fisher(4000, q, concentration, torch.Generator().manual_seed(0))
    first = z[:, 0]
    assert abs(first.mean().item() - expected) <= 5 * first.std().item() / 4000**0.5  # 5 sigma
    assert torch.allclose(z.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert uniformity_test(torch.nn.functional.normalize(z[:, 1:], dim=1)).p_value > 1e-4
