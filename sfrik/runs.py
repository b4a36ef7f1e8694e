"""A run's folder: settings, provenance, checkpoint, metrics, results.

    settings.json         all settings and their hash; a rerun with others is refused, with the difference
    provenance.json       commit, versions, hardware, start and end
    metrics.jsonl         one line a logging step
    checkpoint.pt         written aside, flushed, renamed; the one before is kept as checkpoint.previous.pt
    backbone.safetensors  the result of pretraining
    <protocol>.json       a score: written last; it names the SHA-256 of the weights it was measured on

A score counts as finished where it is of the weights that lie beside it. The repository holds scores without
weights; `make table1` therefore trains them here, and a score changes only when the weights did.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import sfrik
from sfrik.errors import SfrikError
from sfrik.settings import Settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Run", "file_hash", "provenance", "read_json", "write_json", "write_text"]


class Run:
    """The folder of one run. Nothing is written before `start`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def backbone(self) -> Path:
        return self.folder / "backbone.safetensors"

    @property
    def checkpoints(self) -> list[Path]:
        """The newest first."""
        return [self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt"]

    def start(self, settings: Settings) -> None:
        """Create the folder and its settings, or check that it is a run of the same settings.

        Raises:
            SfrikError: the folder holds a run with other settings; each difference is named.
        """
        path = self.folder / "settings.json"
        ours = settings.what()
        record = {"hash": settings.hash(), "settings": ours}
        known = read_json(path) if path.is_file() else None
        if known is not None:
            theirs = known["settings"]
            differences = [
                f"{name} {theirs.get(name)!r} -> {ours.get(name)!r}"
                for name in sorted(ours.keys() | theirs.keys())
                if theirs.get(name) != ours.get(name)
            ]
            if differences and self.backbone.is_file():
                raise SfrikError(
                    f"{self.folder} holds a run with other settings ({'; '.join(differences)}): "
                    "choose another --exp-dir, or move that folder away"
                )
            if differences or not self.backbone.is_file():
                self._forget_unless_resumable(differences)
        self.folder.mkdir(parents=True, exist_ok=True)
        if known != record:
            write_json(path, record)

    def _forget_unless_resumable(self, differences: list[str]) -> None:
        if any(path.is_file() for path in self.checkpoints):
            if differences:
                raise SfrikError(
                    f"{self.folder} holds an unfinished run with other settings ({'; '.join(differences)}): "
                    "choose another --exp-dir, or move that folder away"
                )
            return
        # A record without weights, as the repository holds them: this run will measure it anew.
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)

    def record(self, **facts: Any) -> None:
        """Add facts to provenance.json; the first call of a run writes where it came from."""
        path = self.folder / "provenance.json"
        known = read_json(path) if path.is_file() else {}
        write_json(path, {**known, **facts})

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_log(self, epoch: int) -> None:
        """Drop the lines of epochs from `epoch` on, which a resumed run will write again."""
        path = self.folder / "metrics.jsonl"
        lines = self.metrics()
        with path.open("w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines if line["epoch"] < epoch)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut short is left out."""
        path = self.folder / "metrics.jsonl"
        lines = []
        for text in path.read_text().splitlines() if path.is_file() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write aside, flush to disk, keep the one before, rename."""
        path, previous = self.checkpoints
        aside = path.with_suffix(".pt.tmp")
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            path.replace(previous)
        aside.replace(path)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None where there is none."""
        for path in self.checkpoints:
            if not path.is_file():
                continue
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises several kinds for a file that is cut short
                print(f"{path} cannot be read ({type(error).__name__}); trying the one before", file=sys.stderr)
        return None

    def drop_checkpoints(self) -> None:
        """After the last epoch the weights are what counts."""
        for path in self.checkpoints:
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second process out of the folder. The system drops the lock of a process that died.

        Raises:
            SfrikError: another process holds it; it is named.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise SfrikError(
                    f"{self.folder} is being written by another process ({file.read().strip() or 'unknown'}): "
                    "wait for it, or stop it"
                ) from None
            file.truncate(0)
            file.write(f"pid {os.getpid()}")
            file.flush()
            yield

    def forget_other_scores(self) -> None:
        """Remove the scores that are of other weights than those that are here now."""
        digest = file_hash(self.backbone)
        for path in self.folder.glob("*.json"):
            if read_json(path).get("backbone_sha256", digest) != digest:
                path.unlink()

    def result(self, protocol: str, settings: Settings | None = None) -> dict[str, Any] | None:
        """The score of a protocol, if it is of the weights (and settings) that are here; else None."""
        path = self.folder / f"{protocol}.json"
        if not path.is_file() or not self.backbone.is_file():
            return None
        score = read_json(path)
        if score.get("backbone_sha256") != file_hash(self.backbone):
            return None
        return score if settings is None or score.get("settings_hash") == settings.hash() else None

    def save_result(
        self, protocol: str, settings: Settings, score: dict[str, Any], backbone_sha256: str | None
    ) -> dict[str, Any]:
        """Write a score with what it takes to trace it; `backbone_sha256` names the weights it was measured on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {
            "protocol": protocol,
            **score,
            "seed": settings.seed,
            "backbone_sha256": backbone_sha256,
            "settings_hash": settings.hash(),
            "settings": settings.what(),
            "commit": commit(),
        }
        write_json(self.folder / f"{protocol}.json", whole)
        return whole


def provenance(device: str, precision: str, processes: int) -> dict[str, Any]:
    """Where a run comes from: no path and no host name, so that it can be published."""
    return {
        "commit": commit(),
        "started": now(),
        "command": _command(),
        "versions": {
            "python": platform.python_version(),
            "sfrik": sfrik.__version__,
            **{package: _version(package) for package in ("torch", "torchvision", "numpy", "scikit-learn")},
        },
        "hardware": {
            "device": torch.cuda.get_device_name() if device == "cuda" else f"{device}: {processor()}",
            "precision": precision,
            "processes": processes,
            "threads": torch.get_num_threads(),
        },
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _command() -> str:
    """The command line, with absolute paths left out; "notebook" in a kernel."""
    if "ipykernel" in sys.argv[0]:
        return "notebook"
    arguments = [re.sub(r"(^|=)(/|~|[A-Za-z]:\\).*", r"\1<path>", argument) for argument in sys.argv[1:]]
    return " ".join([Path(sys.argv[0]).name, *arguments])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the code that runs, with "-dirty" where files of it differ; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # results/ is written by the run itself and says nothing about the code
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":/sfrik", ":/notebooks")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SfrikError(f"{path} is not valid JSON ({error}): move it away and run again") from None


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Complete or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    aside.replace(path)
