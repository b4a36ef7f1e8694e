"""Size and power of `sfrik.diagnostics.uniformity_test`.

    python benchmarks/uniformity_test.py                 both: half an hour on one core, nearly all of it for the size
    python benchmarks/uniformity_test.py --only power    two minutes
    python benchmarks/uniformity_test.py --render        only the table and the figure of docs/uniformity_test.md

Size: share of draws of n uniform rows whose p-value is below 5 %, per degree and jointly, of 20,000 draws where they are
fast, and of 2,000 elsewhere. Power: the same for rows that are not uniform, with degrees (1, 2) and 300 draws. The numbers go to
docs/_static/uniformity_test.json. All draws of a cell come from one generator with seed 0.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from pages import with_parts
from torch import Generator, Tensor

from sfrik.diagnostics import uniformity_test
from sfrik.plots.style import OTHERS, style, write_figure
from sfrik.system.files import read_json, write_json

ROOT = Path(__file__).parents[1]
PAGE, NUMBERS, FIGURE = (
    ROOT / "docs" / name for name in ("uniformity_test.md", "_static/uniformity_test.json", "_static/uniformity_power.svg")
)

SIZES = list(itertools.product((20, 100, 1000), (2, 3, 16, 512, 2048)))
FEWEST = [(7, 2, 1), (5, 3, 1), (9, 16, 3), (11, 16, 4), (15, 512, 3), (27, 512, 4)]  # n, q, degree: the fewest rows accepted
LEVEL = 0.05
DIM = 128
ROWS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONCENTRATIONS = {4: "v", 8: "s", 16: "o"}
DIMENSIONS = {64: "v", 96: "s", 120: "o", 126: "D"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("size", "power"), help="one half")
    parser.add_argument("--render", action="store_true", help="draw nothing at random")
    options = parser.parse_args()
    numbers = read_json(NUMBERS) if NUMBERS.exists() else {}
    if options.only != "power" and not options.render:
        numbers["size"] = [size(n, q) for n, q in SIZES]
        numbers["fewest"] = [size_of_degree(*case) for case in FEWEST]
    if options.only != "size" and not options.render:
        numbers["power"] = power(ROWS)
    write_json(NUMBERS, numbers)
    style()
    with plt.rc_context({"svg.hashsalt": "sfrik"}):  # the same figure gives the same file
        write_figure(draw_power(numbers["power"]), FIGURE, metadata={"Date": None})
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), numbers), encoding="utf-8")


# --- size


def size(n: int, q: int, draws: int | None = None) -> dict[str, Any]:
    """Share of p-values below 5 %, in %: of degrees 1, 2, of both, of degree 3, of all three; and the number of draws of each."""
    fast = n * max(n, q) <= 100_000
    draws = draws or (20_000 if fast or q <= 16 else 2000)
    draws_of_third = draws if fast else 2000
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[bool]] = {name: [] for name in ("1", "2", "1, 2", "3", "1, 2, 3")}
    for draw in range(draws):
        z = torch.randn(n, q, generator=generator)
        both = uniformity_test(z, (1, 2))
        p = [one.p_value for one in both.degrees]
        values = [*p, both.p_value]
        if draw < draws_of_third:
            p.append(uniformity_test(z, (3,)).p_value)
            values += [p[2], 1 - (1 - min(p)) ** 3]  # the joint p-value of the three
        for name, value in zip(found, values, strict=False):
            found[name].append(value < LEVEL)
    rates = {name: round(100 * sum(below) / len(below), 2) for name, below in found.items()}
    print(f"n {n}, q {q}, {draws} draws:", rates, flush=True)
    return {"n": n, "q": q, "rates": rates, "draws": {name: len(below) for name, below in found.items()}}


def size_of_degree(n: int, q: int, degree: int, draws: int = 20_000) -> dict[str, Any]:
    """Share of p-values of one degree below 5 %, in %."""
    generator = torch.Generator().manual_seed(0)
    below = sum(uniformity_test(torch.randn(n, q, generator=generator), (degree,)).p_value < LEVEL for _ in range(draws))
    found = {"n": n, "q": q, "degree": degree, "draws": draws, "rate": round(100 * below / draws, 2)}
    print(found, flush=True)
    return found


def rendered(page: str, numbers: dict[str, Any]) -> str:
    """The page with its table of sizes rendered from the numbers."""
    lines = ["| n | degree 1 | degree 2 | degrees 1, 2 | degree 3 | degrees 1, 2, 3 |", "| --- " * 6 + "|"]
    for n, cells in itertools.groupby(numbers["size"], key=lambda cell: cell["n"]):
        columns = zip(*(cell["rates"].values() for cell in cells), strict=True)
        lines.append(f"| {n} | " + " | ".join(f"{min(rates):.1f} to {max(rates):.1f}" for rates in columns) + " |")
    cases = ", ".join(f"{x['rate']:.1f} (n = {x['n']}, q = {x['q']}, degree {x['degree']})" for x in numbers["fewest"])
    lines += ["", f"With the fewest rows that are accepted, 20,000 draws: {cases}."]
    return with_parts(page, {"size": lines})


# --- power


def power(rows: Iterable[int], draws: int = 300, dim: int = DIM) -> dict[str, dict[str, list[float]]]:
    """Share of joint p-values below 5 %, in %, for each kind of deviation, its amount and n."""
    kinds: dict[str, tuple[Callable[[int, int, float, Generator], Tensor], Iterable[int]]] = {
        "concentration": (von_mises_fisher, CONCENTRATIONS),
        "dimensions": (collapsed, DIMENSIONS),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for kind, (sample, amounts) in kinds.items():
        found[kind] = {}
        for amount in amounts:
            generator = torch.Generator().manual_seed(0)
            found[kind][str(amount)] = [
                round(
                    100 * sum(uniformity_test(sample(n, dim, amount, generator)).p_value < LEVEL for _ in range(draws)) / draws, 1
                )
                for n in rows
            ]
            print(kind, amount, found[kind][str(amount)], flush=True)
    return found


def collapsed(n: int, q: int, m: float, generator: Generator) -> Tensor:
    """Rows that are uniform on the sphere of m of the q dimensions, [n, q]."""
    z = torch.randn(n, q, generator=generator)
    z[:, int(m) :] = 0
    return z


def von_mises_fisher(n: int, q: int, concentration: float, generator: Generator) -> Tensor:
    """Rows of the von Mises-Fisher distribution around the first axis, [n, q], q at least 3."""
    t, density = _first_coordinate(q, concentration)
    distribution = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    first = np.interp(torch.rand(n, generator=generator, dtype=torch.float64).numpy(), distribution / distribution[-1], t)
    rest = torch.nn.functional.normalize(torch.randn(n, q - 1, generator=generator, dtype=torch.float64), dim=1)
    first = torch.from_numpy(first)[:, None]
    return torch.cat([first, (1 - first**2).sqrt() * rest], dim=1)


def mean_length(q: int, concentration: float) -> float:
    """Norm of the mean of the von Mises-Fisher distribution."""
    t, density = _first_coordinate(q, concentration)
    return float((t * density).sum() / density.sum())


def _first_coordinate(q: int, concentration: float) -> tuple[np.ndarray, np.ndarray]:
    """A grid of the inner product with the axis, and its density up to a factor."""
    t = np.linspace(-1, 1, 20_001)[1:-1]
    exponent = (q - 3) / 2 * np.log1p(-(t**2)) + concentration * t
    return t, np.exp(exponent - exponent.max())


def draw_power(power: dict[str, dict[str, list[float]]]) -> Figure:
    """Power against n: of von Mises-Fisher distributions, and of the uniform distribution on m of q dimensions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.6), layout="constrained", sharey=True)
    labels = {
        "concentration": lambda k: f"κ = {k}, mean of norm {mean_length(DIM, float(k)):.3f}",
        "dimensions": lambda m: f"{m} of {DIM} dimensions",
    }
    markers = {"concentration": CONCENTRATIONS, "dimensions": DIMENSIONS}
    for axis, (kind, curves) in zip((left, right), power.items(), strict=True):
        for (amount, shares), shape in zip(curves.items(), OTHERS, strict=False):
            shape = {**shape, "marker": markers[kind][int(amount)], "markersize": 4}
            axis.plot(ROWS, shares, **shape, label=labels[kind](amount))
        axis.axhline(100 * LEVEL, color="0.6", linewidth=1)
        axis.set(xscale="log", xlabel="number of rows $n$", ylim=(-3, 103))
        axis.set_xticks(ROWS, [str(n) for n in ROWS])
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    left.set(ylabel="rejected at 5 %, %", title="von Mises-Fisher")
    right.set(title="uniform on fewer dimensions")
    return figure


if __name__ == "__main__":
    main()
