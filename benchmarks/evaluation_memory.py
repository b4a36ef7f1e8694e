"""Peak memory of kNN and of logistic regression by SGD on features in a file that is mapped into memory.

    python benchmarks/evaluation_memory.py --images 200000 --dim 512

Each method runs in a separate process on random features. Two peaks are reported, above the memory after the imports: what it
allocates itself (RssAnon of /proc/self/status, sampled every 5 ms), and all that is resident, with the pages of the file,
which the system takes back when others need them (VmHWM). Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

METHODS = ("knn", "logistic")
CLASSES = 1000
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--test-images", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--method", choices=METHODS, help="run this one here, on the features in --folder")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.method:
        print(json.dumps(measure(options.method, options.folder, options.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, n in (("train", options.images), ("val", options.test_images)):
            write(Path(folder), name, n, options.dim)
        print(f"{options.images} x {options.dim} training features in float32: {options.images * options.dim * 4 / MIB:.0f} MiB")
        for method in METHODS:
            command = [sys.executable, __file__, "--method", method, "--folder", folder, "--epochs", str(options.epochs)]
            outcome = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
            peak = json.loads(outcome.stdout.splitlines()[-1])
            print(f"{method:<8}  allocated {peak['allocated']:6.0f} MiB  resident {peak['resident']:6.0f} MiB  {peak['s']:.0f} s")


def write(folder: Path, name: str, n: int, dim: int) -> None:
    """Random features, a block at a time."""
    generator = np.random.default_rng(n)
    rows = np.lib.format.open_memmap(folder / f"{name}_features.npy", mode="w+", dtype=np.float32, shape=(n, dim))
    for start in range(0, n, 10_000):
        rows[start : start + 10_000] = generator.standard_normal(rows[start : start + 10_000].shape, dtype=np.float32)
    rows.flush()
    np.save(folder / f"{name}_labels.npy", generator.integers(0, CLASSES, n))


def measure(method: str, folder: Path, epochs: int) -> dict[str, float]:
    """Peaks in MiB above the process's own memory, and seconds."""
    from sfrik.evaluate import load_features
    from sfrik.evaluate.knn import scores_by_k
    from sfrik.evaluate.linear_head import top_accuracies
    from sfrik.evaluate.logistic import logistic_sgd

    train, test = load_features(folder, "train"), load_features(folder, "val")
    with Peak() as peak:
        if method == "knn":
            for _, scores in scores_by_k(*train, test[0], (10, 20, 100, 200), num_classes=CLASSES):
                top_accuracies(scores, test[1])
        else:
            logistic_sgd(train, test, CLASSES, epochs=epochs)
    return peak.found


class Peak:
    """Within it the process's memory is watched; `found` then holds the peaks in MiB above what it had before, the seconds, and
    those of all processors together, which say more where other work goes on.
    """

    def __enter__(self) -> Peak:
        self.before, self.largest, self.done = status(), 0, threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        self.started = time.perf_counter(), time.process_time()
        return self

    def sample(self) -> None:
        while not self.done.wait(0.005):
            self.largest = max(self.largest, status()["RssAnon"])

    def __exit__(self, *error) -> None:
        seconds, of_processors = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        self.done.set()
        self.thread.join()
        self.found = {
            "allocated": (self.largest - self.before["RssAnon"]) / 1024,
            "resident": (status()["VmHWM"] - self.before["VmRSS"]) / 1024,
            "s": seconds,
            "cpu_s": of_processors,
        }


def status() -> dict[str, int]:
    """KiB by name, of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


if __name__ == "__main__":
    main()
