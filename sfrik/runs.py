"""A run's folder: settings, provenance, checkpoint, metrics, results.

    settings.json         all settings and their hash; a rerun with others is refused, with the difference
    provenance.json       commit, versions, hardware, start and end
    metrics.jsonl         one line a logging step
    state.json            what a run that is not finished is doing, or why it stopped
    checkpoint.pt         the newest of two checkpoints (sfrik.checkpoints)
    projector.safetensors the head that the objective saw the embeddings of; `sfrik diagnose` reads it
    backbone.safetensors  the result of pretraining, written last
    <protocol>.json       a score: written last; it names the SHA-256 of the weights it was measured on

A score counts as finished where it is of the weights that lie beside it. The repository holds scores without
weights; `make table1` therefore trains them here, and a score changes only when the weights did.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrik.errors import SfrikError
from sfrik.files import file_hash, read_json, write_json, write_text
from sfrik.provenance import commit, now
from sfrik.settings import Settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from sfrik.checkpoints import Checkpoints

__all__ = ["Run"]


class Run:
    """The folder of one run. Nothing is written before `start`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def backbone(self) -> Path:
        return self.folder / "backbone.safetensors"

    @property
    def projector(self) -> Path:
        return self.folder / "projector.safetensors"

    @property
    def checkpoints(self) -> Checkpoints:
        from sfrik.checkpoints import Checkpoints  # here, since it imports PyTorch

        return Checkpoints(self.folder)

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
        if self.checkpoints.exist:
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

    def record_resumption(self, **facts: Any) -> None:
        """Add to provenance.json that the run goes on, from which step, and by which code and machine."""
        path = self.folder / "provenance.json"
        known = read_json(path) if path.is_file() else {}
        self.record(resumed=[*known.get("resumed", []), facts])

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_log(self, epoch: int, step: int) -> None:
        """Drop what a run that goes on from `epoch` and `step` (counted from the run's start) will write again."""
        path = self.folder / "metrics.jsonl"
        lines = self.metrics()
        kept = [line for line in lines if line["epoch"] < epoch or line.get("step", step) < step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))  # at once: a kill must not lose what was kept

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

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are of a whole epoch."""
        return [line for line in self.metrics() if "effective_rank" in line]

    def say(self, state: str, **facts: Any) -> None:
        """Write down what the run is doing, for `sfrik status`: state is "running", "preempted" or "failed"."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job": os.environ.get("SLURM_JOB_ID")}
        write_json(self.folder / "state.json", {"state": state, **facts, **place, "updated": now()})

    def state(self) -> dict[str, Any] | None:
        """What the run said last; None where nothing is under way, or nothing was ever begun."""
        path = self.folder / "state.json"
        return read_json(path) if path.is_file() else None

    def say_at_last(self, state: str, **facts: Any) -> None:
        """Why the run stopped, added to what it said before, such as the epoch."""
        self.say(state, **{name: value for name, value in {**(self.state() or {}), **facts}.items() if name != "state"})

    def say_done(self) -> None:
        (self.folder / "state.json").unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str = "lock") -> Iterator[None]:
        """Keep a second process out of the folder. The system drops the lock of a process that died.

        Training takes "lock", and the process that executes a run's notebooks "run.lock".

        Raises:
            SfrikError: another process holds it; it is named.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        with (self.folder / name).open("a+") as file:
            if not _take(file):
                file.seek(0)
                raise SfrikError(
                    f"{self.folder} is being written by another process ({file.read().strip() or 'unknown'}): "
                    "wait for it, or stop it"
                )
            job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}{job}")
            file.flush()
            _held.add(file)
            try:
                yield
            finally:
                _held.discard(file)

    def is_locked(self) -> bool:
        """Whether a living process is writing the folder."""
        if fcntl is None:
            return False
        for path in (self.folder / "lock", self.folder / "run.lock"):
            if path.is_file():
                with path.open("a+") as file:
                    if not _take(file):
                        return True
        return False

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


_held: set = set()  # the files that this process has locked
if hasattr(os, "register_at_fork"):  # a forked child, as one that decodes images, would hold the lock of a parent that is dead
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


def _take(file) -> bool:
    """Lock an open file unless another process holds it; the system frees it when the file is closed or its owner dies."""
    assert fcntl is not None  # asked before
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
