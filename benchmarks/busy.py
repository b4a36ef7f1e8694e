"""The losses on cores that other processes keep busy, against the plain formulas: time of forward and backward pass of two views.

    python benchmarks/busy.py                   two threads; beside them a process per core that spins at normal priority
    python benchmarks/busy.py --neighbours 0    without these, for a machine that is busy anyway

What is compared takes turns in one process; a ratio is the median over the rounds, as in benchmarks/losses.py.
"The authors' formula" is SFRIK as their code computes it (`as_the_original` in benchmarks/scale.py).

Legend: n rows, q their dimension.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from losses import OBJECTIVES, PLAIN, in_turns, line, of, step, views_of
from scale import as_the_original

from sfrik.cost.measure import hardware
from sfrik.objectives.reference import plain_loss

CASES = [
    ("SFRIK", 512, 8192),
    ("SFRIK", 512, 512),
    ("SFRIK", 2048, 512),
    ("AUH", 1024, 1024),
    ("SimCLR", 1024, 512),
    ("VICReg", 512, 1024),
]
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--neighbours", type=int, default=os.cpu_count(), help="processes that spin; one per core by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with neighbours(options.neighbours):
        for name, n, q in CASES:
            found = compare(name, n, q, options.rounds)
            print(*map(line, found), sep="\n", flush=True)
            rows += found
    if options.json:
        figures = {"hardware": hardware(torch.device("cpu")), "neighbours": options.neighbours, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


@contextmanager
def neighbours(count: int) -> Iterator[list[subprocess.Popen]]:
    """Processes at this one's priority that compute without a pause, until the context or this process ends."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compare(name: str, n: int, q: int, rounds: int) -> list[dict[str, Any]]:
    """The time of an objective as a part of that of its plain formula, and of the authors' if there is one."""
    objective, (views, _) = OBJECTIVES[name](q), views_of(n, q, torch.device("cpu"))
    calls = {"fast": step(objective, views), PLAIN: step(lambda v: plain_loss(objective, v), views)}
    if name == "SFRIK":
        calls["the authors' formula"] = step(as_the_original, views)
    times = in_turns(calls, torch.device("cpu"), rounds)
    row = {"what": f"{name} n={n} q={q}, busy cores", "unit": "of the time", "at most": 1}
    return [row | {"against": other, **of({k: times[k] for k in ("fast", other)}, "fast", other)} for other in list(calls)[1:]]


if __name__ == "__main__":
    main()
