"""A run whose file operations fail, are its last, or are followed by a power cut, at each of them in turn.

    python storage.py FOLDER

The script counts what a run does in its folder: each first and last write to a file, each flush of a file or a folder, each
rename and removal.

    error   a fork of the process runs for each operation, which raises "No space left on device"
    kill    before each operation the folder is copied as a process that was killed leaves it, and twice more as a disk could hold
            it after a power cut: once only flushed bytes are there and the others are zeros, once the names, too, are those of
            the last flush of the folder

Then the same command runs again, undisturbed, and what it leaves is compared with the folder of a run that was left alone. A line
of JSON for each case is printed; a folder like one that was seen before is not tried again.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfrik.datasets.images import Images, load_images
from sfrik.errors import SfrikError
from sfrik.evaluate import features
from sfrik.evaluate import inputs as frozen
from sfrik.evaluate.protocols import evaluate, knn_eval
from sfrik.pretrain.loop import pretrain
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, KnnSettings, PretrainSettings
from sfrik.system.files import file_hash, read_json
from sfrik.system.tensor_files import read_pickle

RECIPE = "smoke/sfrik_l2_q64"
PLACE = {"device": "cpu", "precision": "fp32"}
SCORES = ("linear.json", "knn.json")


def work(folder: Path) -> None:
    """The command: train, then two scores."""
    small = {"subset": 2, "batch_size": 10, "epochs": 2, "log_every": 1, "knn_every": 0, "checkpoint_minutes": 1e-6}
    pretrain(PretrainSettings.from_recipe(RECIPE, **small, **PLACE, exp_dir=str(folder)), progress=False)
    for kind, score in ((EvaluateSettings, evaluate), (KnnSettings, knn_eval)):
        given = {"subset": 2, "exp_dir": str(folder), **PLACE}
        score(kind.from_recipe(RECIPE, **given, **({"epochs": 1} if kind is EvaluateSettings else {"nb_knn": (5,)})))


class Contents:
    """A file: what was flushed of it."""

    def __init__(self) -> None:
        self.flushed = b""


class Disk:
    """The folder as the process sees it, and as the disk holds it."""

    def __init__(self, folder: Path, act: Callable[[int, str, str], None]) -> None:
        self.folder, self.act, self.count = str(folder), act, 0
        self.names: dict[str, Contents] = {}
        self.flushed_names: dict[str, dict[str, Contents]] = {}
        self.events: list[tuple[str, str]] = []
        self.real = (io.open, os.fsync, os.replace, os.unlink)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it the process's file operations are counted."""
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

    def here(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.folder)

    def open(self, file, mode="r", *arguments, **keywords):
        opened = self.real[0](file, mode, *arguments, **keywords)
        if self.here(file) and any(letter in mode for letter in "wax+"):
            path = os.path.abspath(file)
            if path not in self.names or "w" in mode:
                self.names[path] = Contents()
            return Watched(opened, self, path)
        return opened

    def fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if self.here(path):
            self.event("fsync", path)
            if os.path.isdir(path):
                self.flushed_names[path] = {name: kept for name, kept in self.names.items() if os.path.dirname(name) == path}
            elif path in self.names:
                with self.real[0](path, "rb") as file:
                    self.names[path].flushed = file.read()
        self.real[1](descriptor)

    def replace(self, source, target) -> None:
        if self.here(target):
            self.event("replace", os.path.abspath(target))
            self.names[os.path.abspath(target)] = self.names.pop(os.path.abspath(source), Contents())
        self.real[2](source, target)

    def unlink(self, path, **keywords) -> None:
        if self.here(path):
            self.event("unlink", os.path.abspath(path))
            self.names.pop(os.path.abspath(path), None)
        self.real[3](path, **keywords)

    def after_power_cut(self, target: Path, names_too: bool) -> None:
        """Write the folder as the disk could hold it now."""
        target.mkdir()
        shown = {name: kept for some in self.flushed_names.values() for name, kept in some.items()} if names_too else self.names
        for name, kept in shown.items():
            place = target / os.path.relpath(name, self.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            length = os.path.getsize(name) if os.path.isfile(name) and not names_too else len(kept.flushed)
            content = kept.flushed[:length] + bytes(max(0, length - len(kept.flushed)))
            with self.real[0](place, "wb") as file:
                file.write(content)


class Watched:
    """An open file whose first write, and that at its close, are events."""

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
    """Run a function in a fork; its exit status and what it printed. The status is 2 where it raised."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 0
        os.close(reading)
        with open(writing, "w") as stream, redirect_stderr(stream), redirect_stdout(stream):
            try:
                function()
            except BaseException:
                traceback.print_exc()
                status = 2
            stream.flush()
        os._exit(status)
    os.close(writing)
    with open(reading) as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


def state_of(folder: Path) -> dict[str, Any]:
    """What a finished run consists of, without times."""
    found: dict[str, Any] = {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}
    found["scores"] = {name: {**read_json(folder / name), "commit": ""} for name in SCORES}
    found["log"] = [{name: value for name, value in line.items() if name != "seconds"} for line in Run(folder).metrics()]
    found["recorded"] = read_json(folder / "provenance.json")["weights"]
    found["settings"] = read_json(folder / "settings.json")
    left = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".broken")
    found["names"] = sorted(name for name in left if not name.endswith("lock"))
    return found


def look(folder: Path) -> tuple[str, ...]:
    """What tells one folder from another, as far as a command that resumes can see: no times, no process ids."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name.startswith((".", "state")) or path.name.endswith("lock"):
            continue
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            content = f"{content.count(10)} {content.count(0) > 0} {not content}".encode()
        elif path.suffix == ".pt":
            try:
                place = read_pickle(path)["place"]
                content = f"{place['epoch']} {place['step']}".encode()
            except SfrikError:
                content = b"broken"
        found.append(f"{path.relative_to(folder)} {hashlib.sha256(content).hexdigest()}")
    return tuple(found)


def recover(folder: Path, expected: dict[str, Any]) -> list[str]:
    """What is wrong after the same command has run again."""
    status, said = child(lambda: work(folder))
    if status:
        return [f"the command fails: {said[-3000:]}"]
    found = state_of(folder)
    return [f"{name}: {found.get(name)} is not {value}" for name, value in expected.items() if found.get(name) != value]


def after_kills(root: Path) -> list[tuple[str, str]]:
    """One run, and copies of its folder before each operation, killed<n>, zeros<n> and names<n>; the operations.

    It is a fork: the next writer removes the temporary files of one that is gone.
    """
    folder = root / "run"

    def copy(number: int, kind: str, path: str) -> None:
        if folder.is_dir():
            shutil.copytree(folder, root / f"killed{number}")
        disk.after_power_cut(root / f"zeros{number}", names_too=False)
        disk.after_power_cut(root / f"names{number}", names_too=True)

    disk = Disk(folder, copy)

    def copied() -> None:
        with disk.installed():
            work(folder)
        print(json.dumps(disk.events))

    status, said = child(copied)
    assert status == 0, said
    return json.loads(said.splitlines()[-1])


def with_error(folder: Path, number: int) -> tuple[int, str]:
    """A run whose operation `number` fails as on a full disk; its exit status and what it printed."""

    def fail(done: int, kind: str, path: str) -> None:
        if done == number and kind != "unlink":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def disturbed() -> None:
        with Disk(folder, fail).installed():
            work(folder)

    return child(disturbed)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    for module in (frozen, features):  # a few images to score are enough
        module.load_images = few
    whole = root / "whole"
    work(whole)  # what it imports and remembers the forks have too
    expected = state_of(whole)
    seen: set[tuple[str, ...]] = {()}

    def problems(folder: Path) -> list[str] | None:
        """What is wrong after a recovery; None where a folder like this one was tried."""
        kept = look(folder)
        found = recover(folder, expected) if kept not in seen else None
        seen.add(kept)
        shutil.rmtree(folder, ignore_errors=True)
        return found

    for number, event in enumerate(after_kills(root), 1):
        after = {name: problems(root / f"{name}{number}") for name in ("killed", "zeros", "names")}
        folder = root / f"error{number}"
        status, said = with_error(folder, number)
        state = Run(folder).state() or {}
        facts = {"status": status, "said": said[-3000:], "state": state.get("state"), "error": state.get("error")}
        after["error"] = problems(folder)
        print(json.dumps({"number": number, "event": event, **facts, "problems": after}), flush=True)


def few(*arguments, **keywords) -> Images:
    images = load_images(*arguments, **keywords)
    return images.select(np.arange(0, len(images), max(1, len(images) // 20)))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
