"""Run all benchmarks whose ratios the project states, record their figures, and render the tables of docs/speed.md.

    python benchmarks/bench.py --data FOLDER      about twenty minutes on two CPU cores; FOLDER holds natural images (.JPEG)
    python benchmarks/bench.py --only losses      one of them
    python benchmarks/bench.py --render           only the tables, from the recorded figures

The figures go to results/speed/<name>.json with the machine's description. Nothing else should run at the same time: "busy"
starts the processes that it measures beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import with_parts

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs" / "speed.md", ROOT / "results" / "speed"
SCRIPTS = {
    "losses": [],
    "busy": [],
    "sliced": [],
    "input": [],
    "digits": [],
    "knn": ["--queries", "50000", "--bank", "200000", "--rounds", "1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--data", type=Path, help="folder of photographs; made ones when unset")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in [] if options.render else options.only:
        given = [*SCRIPTS[name], "--json", str(FIGURES / f"{name}.json")]
        given += ["--data", str(options.data)] if name == "input" and options.data else []
        print(f"--- {name}", flush=True)
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *given], check=True)
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} has the tables")


def rendered(page: str) -> str:
    """The page with its tables rendered again from the recorded figures."""
    return with_parts(page, {"ratios": ratios(), "sliced": sliced()})


def found(name: str) -> dict[str, Any] | None:
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def ratios() -> list[str]:
    """A line for each ratio: what, against what, what was measured, what was asked for."""
    lines = ["| what | against | measured | asked for |", "| --- | --- | --- | --- |"]
    if measured := found("losses"):
        lines = [f"On {measured['hardware']}; each script in its own run.", "", *lines]
    return lines + [f"| {' | '.join(cells)} |" for cells in [*of_losses(), *of_the_others()]]


def of_losses() -> Iterator[list[str]]:
    for row in [row for name in ("losses", "busy") if (measured := found(name)) for row in measured["rows"]]:
        value = f"{row['ratio']:.3g} {row['unit']}"
        if "least" in row:
            value += f" ({row['least']:.3g} to {row['largest']:.3g} over the rounds)"
        if "products" in row:
            value += f"; {row['products']:.2f} products of n x n x q, plain {row['plain products']:.2f}"
        if "MiB" in row:
            value += f"; {row['MiB']:.0f} MiB" + (f", plain {row['plain MiB']:.0f}" if "plain MiB" in row else "")
        yield [row["what"], row["against"], value, asked(row)]


def asked(row: dict[str, Any]) -> str:
    """The bounds of a row, "at least" or "at most" so much, in its unit or in the one that its name ends with."""
    bounds = [(*key.split(" ", 2), value) for key, value in row.items() if key.startswith("at ")]
    return ", ".join(f"at {which} {value:.4g} {' '.join(unit)}".rstrip() for _, which, *unit, value in bounds) or "–"


def of_the_others() -> Iterator[list[str]]:
    if measured := found("input"):
        facts = f"{measured['images']} {measured['kind']} JPEGs, one thread"
        for views, own in measured["images_per_second"].items():
            value = f"{own['worker / pil']:.2f} times the images; {own['whole / pil']:.2f} with the device's part on the CPU too"
            bound = "at least 4" if views == "vicreg" else "–"
            yield [f"input pipeline per core, {views} views ({facts})", "pipeline on PIL images", value, bound]
        small = measured["in_memory"]
        for views, own in small["images_per_second"].items():
            what = f"input of 32 x 32 pixels in memory, {views} views, one thread"
            yield [what, "pipeline on PIL images", f"{own['tensor / pil']:.1f} times the images", "–"]
            value = f"{own['tensor / step']:.1f} times the images; the PIL pipeline {own['pil / step']:.1f} times"
            yield [what, f"training step of {small['arch']}, n={small['batch']}, on ready views", value, "above 1"]
    if measured := found("digits"):
        own = measured["epochs"]
        value = f"{own['epoch / passes']:.3f} of the time; {own['epoch / model']:.3f} of the network's passes alone"
        what = f"digits epoch, {measured['recipe']}, {measured['threads']} thread"
        yield [what, "forward, loss and backward on ready tensors", value, "at most 1.15"]
    if measured := found("knn"):
        own = measured["median"]
        for name in (key for key in own if key != "sfrik"):
            time, memory = own[name]["s"] / own["sfrik"]["s"], own["sfrik"]["allocated"] / own[name]["allocated"]
            what = f"kNN, {measured['queries']} queries x {measured['bank']} x {measured['dim']}, {measured['threads']} threads"
            value = f"{time:.2f} times as fast; {memory:.3f} of the memory ({own['sfrik']['allocated']:.0f} MiB)"
            yield [what, f"scikit-learn's brute force, {name}", value, "at least 1; at most 0.1"]


def sliced() -> list[str]:
    measured = found("sliced")
    lines = ["| embeddings | kernel | n | q | M | products / Gram's | spread of the value, % | cosine of the gradients |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in measured["rows"] if measured else []:
        cells = [
            row["law"],
            row["kernel"],
            row["n"],
            row["q"],
            row["M"],
            f"{row['products']:.2f}",
            f"{row['spread, %']:.1f}",
            f"{row['cosine']:.2f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    main()
