"""Inject a fault at each file operation of a run: an error, a kill, or a power cut. Then run the same command again.

Usage::

    python storage.py FOLDER

File operations are the first and last write to each file, each flush of a file or folder, each rename and each deletion in the
folder of the run.

- Error: for each operation a forked process runs in which this operation raises "No space left on device". It starts from the
  result of the last stage (training, linear probe, kNN) that was complete before the operation.
- Kill: before each operation the folder is copied as it is.
- Power cut: before each operation the folder is copied as a disk could hold it, in two versions. In the first, bytes that were
  not flushed are zeros; in the second, names that were not flushed are missing as well.

After each fault the command runs again without faults, and its results are compared with those of an uninterrupted run. The
script prints a line of JSON for each operation. Folders that are equivalent to an earlier one are skipped.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sfrik.datasets.images import Images, load_images
from sfrik.errors import SfrikError
from sfrik.evaluate import evaluate, inputs, knn_eval
from sfrik.pretrain.loop import pretrain
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, KnnSettings, PretrainSettings
from sfrik.system import progress
from sfrik.system.files import file_hash, read_json
from sfrik.system.tensor_files import read_pickle

RECIPE = "smoke/sfrik_l2_q64"
DEVICE = {"device": "cpu", "precision": "fp32"}
SCORES = ("linear.json", "knn.json")


def train(folder: Path) -> None:
    small = {"subset": 2, "batch_size": 10, "epochs": 2, "log_every": 1, "knn_every": 0, "checkpoint_minutes": 1e-6}
    pretrain(PretrainSettings.from_recipe(RECIPE, **small, **DEVICE, exp_dir=str(folder)), progress=False)


def score_linear(folder: Path) -> None:
    evaluate(EvaluateSettings.from_recipe(RECIPE, subset=2, epochs=1, **DEVICE, exp_dir=str(folder)), progress=False)


def score_knn(folder: Path) -> None:
    knn_eval(KnnSettings.from_recipe(RECIPE, subset=2, nb_knn=(5,), **DEVICE, exp_dir=str(folder)))


STAGES = (train, score_linear, score_knn)


def work(folder: Path, first_stage: int = 0) -> None:
    """The command: train, then compute two scores."""
    for stage in STAGES[first_stage:]:
        stage(folder)


class Contents:
    """The flushed bytes of a file."""

    def __init__(self) -> None:
        self.flushed = b""


class Disk:
    """Counts the file operations in a folder, and emulates what of them has reached the disk."""

    def __init__(self, folder: Path, act: Callable[[int, str, str], None]) -> None:
        self.folder, self.act, self.count = str(folder), act, 0
        self.names: dict[str, Contents] = {}
        self.flushed_names: dict[str, dict[str, Contents]] = {}
        self.events: list[tuple[str, str]] = []
        self.real = (io.open, os.fsync, os.replace, os.unlink)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A context in which the file operations of this process are counted."""
        builtins.open = io.open = self.open
        os.fsync, os.replace, os.unlink = self.fsync, self.replace, self.unlink
        try:
            yield
        finally:
            builtins.open = io.open = self.real[0]
            os.fsync, os.replace, os.unlink = self.real[1:]

    def event(self, kind: str, path: str) -> None:
        self.count += 1
        self.events.append((kind, os.path.relpath(path, self.folder)))
        self.act(self.count, kind, path)

    def contains(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.folder)

    def open(self, file, mode="r", *arguments, **keywords):
        opened = self.real[0](file, mode, *arguments, **keywords)
        if self.contains(file) and any(letter in mode for letter in "wax+"):
            path = os.path.abspath(file)
            if path not in self.names or "w" in mode:
                self.names[path] = Contents()
            return CountedFile(opened, self, path)
        return opened

    def fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if self.contains(path):
            self.event("fsync", path)
            if os.path.isdir(path):
                self.flushed_names[path] = {
                    name: contents for name, contents in self.names.items() if os.path.dirname(name) == path
                }
            elif path in self.names:
                with self.real[0](path, "rb") as file:
                    self.names[path].flushed = file.read()
        self.real[1](descriptor)

    def replace(self, source, target) -> None:
        if self.contains(target):
            self.event("replace", os.path.abspath(target))
            self.names[os.path.abspath(target)] = self.names.pop(os.path.abspath(source), Contents())
        self.real[2](source, target)

    def unlink(self, path, **keywords) -> None:
        if self.contains(path):
            self.event("unlink", os.path.abspath(path))
            self.names.pop(os.path.abspath(path), None)
        self.real[3](path, **keywords)

    def after_power_cut(self, target: Path, names_too: bool) -> None:
        """Write to `target` what a disk could hold of the folder now; `names_too`: without names that were not flushed."""
        target.mkdir()
        flushed_names = {name: contents for folder in self.flushed_names.values() for name, contents in folder.items()}
        for name, contents in (flushed_names if names_too else self.names).items():
            path = target / os.path.relpath(name, self.folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            length = os.path.getsize(name) if os.path.isfile(name) and not names_too else len(contents.flushed)
            with self.real[0](path, "wb") as file:
                file.write(contents.flushed[:length] + bytes(max(0, length - len(contents.flushed))))


class CountedFile:
    """An open file whose first write and whose last write, at its close, are counted."""

    def __init__(self, file, disk: Disk, path: str) -> None:
        self._file, self._disk, self._path, self._written = file, disk, path, 0

    def write(self, data) -> int:
        if not self._written:
            self._disk.event("write", self._path)
        self._written += 1
        return self._file.write(data)

    def close(self) -> None:
        if self._written > 1 and not self._file.closed:
            self._written = 0
            self._disk.event("write", self._path)
        self._file.close()

    def flush(self) -> None:
        if self._written > 1:
            self._written = 1
            self._disk.event("write", self._path)
        self._file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def child(function: Callable[[], None]) -> tuple[int, str]:
    """Run a function in a forked process. Returns its exit status, 2 if it raised an error, and its output."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 0
        os.close(reading)
        with open(writing, "w", encoding="utf-8") as stream, redirect_stderr(stream), redirect_stdout(stream):
            try:
                function()
            except BaseException:
                traceback.print_exc()
                status = 2
            stream.flush()
        os._exit(status)
    os.close(writing)
    with open(reading, encoding="utf-8") as stream:
        output = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), output


def results(folder: Path) -> dict[str, Any]:
    """The content of a finished run, without times."""
    found: dict[str, Any] = {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}
    found["scores"] = {name: {**read_json(folder / name), "commit": ""} for name in SCORES}
    found["log"] = [{name: value for name, value in line.items() if name != "seconds"} for line in Run(folder).metrics()]
    found["recorded"] = read_json(folder / "provenance.json")["weights"]
    found["settings"] = read_json(folder / "settings.json")
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".broken")
    found["names"] = sorted(name for name in names if not name.endswith("lock"))
    return found


def fingerprint(folder: Path) -> tuple[str, ...]:
    """Equal for folders that a resuming command cannot distinguish, such as those that differ in times or process ids."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name.startswith((".", "state")) or path.name.endswith("lock"):
            continue
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            content = f"{content.count(10)} {content.count(0) > 0} {not content}".encode()
        elif path.suffix == ".pt":
            try:
                position = read_pickle(path)["place"]
                content = f"{position['epoch']} {position['step']}".encode()
            except SfrikError:
                content = b"broken"
        found.append(f"{path.relative_to(folder)} {hashlib.sha256(content).hexdigest()}")
    return tuple(found)


def recover(folder: Path, expected: dict[str, Any]) -> list[str]:
    """Run the same command again and describe what differs from the expected results."""
    status, output = child(lambda: work(folder))
    if status:
        return [f"the command fails: {output[-3000:]}"]
    found = results(folder)
    return [f"{name}: {found.get(name)} is not {value}" for name, value in expected.items() if found.get(name) != value]


def copy_at_each_operation(root: Path) -> tuple[list[tuple[str, str]], list[int]]:
    """Run once and copy the folder before operation n to killed<n>, zeros<n> and names<n>, and after stage k to stage<k>.

    The run is a forked process, since a later process removes only the temporary files of dead ones.

    Returns:
        The operations, and for each stage the number of operations before it.
    """
    folder = root / "run"

    def copy(number: int, kind: str, path: str) -> None:
        if folder.is_dir():
            shutil.copytree(folder, root / f"killed{number}")
        disk.after_power_cut(root / f"zeros{number}", names_too=False)
        disk.after_power_cut(root / f"names{number}", names_too=True)

    disk = Disk(folder, copy)

    def run() -> None:
        starts = []
        for number, stage in enumerate(STAGES):
            starts.append(disk.count)
            with disk.installed():
                stage(folder)
            shutil.copytree(folder, root / f"stage{number}")
        print(json.dumps([disk.events, starts]))

    status, output = child(run)
    assert status == 0, output
    events, starts = json.loads(output.splitlines()[-1])
    return [tuple(event) for event in events], starts


def fail_at(folder: Path, number: int, event: tuple[str, str], first_stage: int) -> tuple[int, str]:
    """Run the command from a stage on, with operation `number` failing as on a full disk. Returns exit status and output."""

    def fail(count: int, kind: str, path: str) -> None:
        if count == number:
            assert (kind, without_random(os.path.relpath(path, folder))) == (event[0], without_random(event[1]))
            if kind != "unlink":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run() -> None:
        with Disk(folder, fail).installed():
            work(folder, first_stage)

    return child(run)


def without_random(path: str) -> str:
    """The path without the process id and the random part of a temporary name."""
    return re.sub(r"-\d+-[0-9a-f]{8}\.tmp$", "", path)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # `Disk` emulates it; a real one would only take time
    progress.time = SimpleNamespace(monotonic=lambda: 1000.0)  # or a slow machine would write state.json more often
    inputs.load_images = load_few_images
    whole = root / "whole"
    work(whole)  # in this process, so that the forked ones find everything imported and cached
    expected = results(whole)
    seen: set[tuple[str, ...]] = {()}

    def problems(folder: Path) -> list[str] | None:
        """What is wrong after a recovery; None if an equivalent folder was tried before."""
        found = fingerprint(folder)
        problems = recover(folder, expected) if found not in seen else None
        seen.add(found)
        shutil.rmtree(folder, ignore_errors=True)
        return problems

    events, starts = copy_at_each_operation(root)
    for number, event in enumerate(events, 1):
        after = {name: problems(root / f"{name}{number}") for name in ("killed", "zeros", "names")}
        folder, stage = root / f"error{number}", max(k for k, start in enumerate(starts) if start < number)
        if stage:
            shutil.copytree(root / f"stage{stage - 1}", folder)
        status, output = fail_at(folder, number - starts[stage], event, stage)
        state = Run(folder).state() or {}
        facts = {"status": status, "output": output[-3000:], "state": state.get("state"), "error": state.get("error")}
        after["error"] = problems(folder)
        print(json.dumps({"number": number, "event": event, **facts, "problems": after}), flush=True)


def load_few_images(*arguments, **keywords) -> Images:
    images = load_images(*arguments, **keywords)
    return images.select(np.arange(0, len(images), max(1, len(images) // 20)))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
