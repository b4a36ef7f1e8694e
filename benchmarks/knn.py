"""Nearest neighbours by cosine similarity: time and peak memory against scikit-learn's brute force.

    python benchmarks/knn.py                                             5,000 queries, 20,000 training features
    python benchmarks/knn.py --queries 50000 --bank 200000 --rounds 1    the size that the project states

The methods take turns, each in a separate process, on random features in memory:

    sfrik      weighted_knn: the k nearest and their votes
    cosine     sklearn.neighbors.NearestNeighbors(algorithm="brute", metric="cosine")
    euclidean  the same with metric="euclidean", on features that are normalised before the clock starts

Memory is the peak of what the process allocates itself (RssAnon) above what it has once the features are there. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from evaluation_memory import Peak

METHODS = ("sfrik", "cosine", "euclidean")
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--bank", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--one", choices=METHODS, help="run this one here")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in options.methods}
    for _ in range(options.rounds):
        for method in options.methods:
            runs[method].append(in_its_own_process(method, options))
    medians = {method: {key: statistics.median(run[key] for run in all_) for key in all_[0]} for method, all_ in runs.items()}
    print(f"{options.queries} queries x {options.bank} features of d = {options.dim}, k = {options.k}, {options.threads} threads")
    for method, found in medians.items():
        line = f"{method:<10} {found['s']:8.2f} s (of processors {found['cpu_s']:.2f})  {found['allocated']:7.0f} MiB"
        if method != "sfrik" and "sfrik" in medians:
            ours = medians["sfrik"]
            ratios = (found[key] / ours[key] for key in ("s", "cpu_s", "allocated"))
            line += "   {:.2f} ({:.2f}) x the time of sfrik, {:.2f} x its memory".format(*ratios)
        print(line)
    if options.json:
        size = {name: getattr(options, name) for name in ("queries", "bank", "dim", "k", "threads", "rounds")}
        options.json.write_text(json.dumps({**size, "median": medians, "runs": runs}, indent=1) + "\n", encoding="utf-8")


def in_its_own_process(method: str, options: argparse.Namespace) -> dict[str, float]:
    sizes = [word for name in ("queries", "bank", "dim", "k") for word in (f"--{name}", str(getattr(options, name)))]
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, __file__, "--one", method, *sizes]
    outcome = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", env={**os.environ, **threads})
    return json.loads(outcome.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Peak in MiB and seconds."""
    import torch
    from sklearn.neighbors import NearestNeighbors

    from sfrik.evaluate import weighted_knn

    generator = np.random.default_rng(0)
    bank, queries = (generator.standard_normal((n, options.dim), dtype=np.float32) for n in (options.bank, options.queries))
    if options.one == "euclidean":
        for rows in (bank, queries):
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = torch.from_numpy(generator.integers(0, CLASSES, options.bank))
    with Peak() as peak:
        if options.one == "sfrik":
            weighted_knn(torch.from_numpy(bank), labels, torch.from_numpy(queries), options.k, num_classes=CLASSES)
        else:
            search = NearestNeighbors(n_neighbors=options.k, algorithm="brute", metric=options.one).fit(bank)
            search.kneighbors(queries)
    return peak.found


if __name__ == "__main__":
    main()
