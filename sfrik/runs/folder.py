"""A run's folder: settings, provenance, checkpoint, metrics, results.

    settings.json         all settings and their hash; a rerun with others is refused, with the difference
    provenance.json       commit, versions, hardware, start and end; at the end the SHA-256 of the weights
    metrics.jsonl         one line a logging step
    state.json            what a run that is not finished is doing, or why it stopped
    checkpoint.pt         the newest of two checkpoints (sfrik.runs.checkpoints)
    projector.safetensors the head that the objective saw the embeddings of; `sfrik diagnose` reads it
    backbone.safetensors  the result of pretraining; recorded in provenance.json before the checkpoints go
    <protocol>.json       a score: written last; it names the SHA-256 of the weights it was measured on

A score counts as finished where it is of the weights that are beside it. The repository holds scores without
weights; `make table1` therefore trains them here, and a score changes only when the weights did.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrik.errors import SfrikError
from sfrik.runs.cached import cached_hash, cached_provenance, print_once, why_not_opened
from sfrik.runs.provenance import commit, now
from sfrik.runs.records import LogLine, RunSettings, Score, State
from sfrik.settings import Settings
from sfrik.system.files import (
    UnreadableError,
    WriteError,
    file_hash,
    make_folder,
    read_json,
    set_aside,
    sync_file,
    write_error,
    write_json,
    write_text,
)
from sfrik.system.locks import folder_lock, is_locked
from sfrik.system.records import VERSION, parse_record, read_record
from sfrik.system.tensor_files import check_weights, read_header

if TYPE_CHECKING:
    from sfrik.runs.checkpoints import Checkpoints

__all__ = ["Run", "settings_differences"]

WRITTEN = (
    *("settings.json", "provenance.json", "state.json", "metrics.jsonl"),
    *("projector.safetensors", "backbone.safetensors"),
)
NOT_SCORES = ("settings.json", "provenance.json", "state.json")


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
        from sfrik.runs.checkpoints import Checkpoints  # here, since it imports PyTorch

        return Checkpoints(self.folder)

    def start(self, settings: Settings) -> None:
        """Create the folder and its settings, or check that it is a run of the same settings.

        Weights that do not open, as an old release could leave them after a power cut, are renamed, so that they are made again.

        Raises:
            SfrikError: the folder holds a run with other settings; each difference is named. Or weights that were finished and
                have changed since.
        """
        for name in (*WRITTEN, *(checkpoint.name for checkpoint in self.checkpoints.paths)):
            if (self.folder / name).is_dir():
                raise SfrikError(f"{self.folder / name} is a folder, where a file is to be written: move it away")
        path, ours = self.folder / "settings.json", settings.what()
        known = self._known_settings()
        differences = settings_differences(known, ours) if known is not None else ""
        broken = {weights: why_not_opened(weights) for weights in (self.backbone, self.projector) if weights.is_file()}
        if known is None and broken.get(self.backbone) == "" and (theirs := read_header(self.backbone).get("settings")):
            differences = "" if theirs == settings.hash() else f"hash {theirs} -> {settings.hash()}"
        if differences and (self.backbone.is_file() or self.checkpoints.exist):
            what = "a run" if self.backbone.is_file() else "an unfinished run"
            raise SfrikError(
                f"{self.folder} holds {what} with other settings ({differences}): "
                "choose another --exp-dir, or move that folder away"
            )
        if not broken.get(self.backbone) and self.finished:
            for weights, why in broken.items():
                if not why:
                    check_weights(weights)
        for weights, why in broken.items():
            if why:
                set_aside(weights, why)
        if known is not None and not self.backbone.is_file() and not self.checkpoints.exist:
            # A record without weights, as the repository holds them: this run will measure it again.
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        if known != ours or not path.is_file():
            write_json(path, {"version": VERSION, "hash": settings.hash(), "settings": ours})

    def _known_settings(self) -> dict[str, Any] | None:
        """The settings of the run that is here: of settings.json, else of its checkpoint; None where neither says."""
        path = self.folder / "settings.json"
        try:
            if path.exists():
                return read_record(path, RunSettings)["settings"]
        except UnreadableError:
            raise
        except SfrikError as error:
            set_aside(path, str(error))
        if not self.checkpoints.exist:
            return None
        state = self.checkpoints.load() or {}
        settings = state.get("settings")
        if not isinstance(settings, dict):
            raise SfrikError(
                f"{self.folder} has no settings.json, and its checkpoint names no settings either: move the folder away, or give "
                "settings.json back to it"
            )
        return settings

    @property
    def finished(self) -> bool:
        """Whether the pretraining is done: the weights open and are recorded. Older releases recorded none."""
        if not self.backbone.is_file() or why_not_opened(self.backbone):
            return False
        record = self._provenance()
        return self.backbone.name in record.get("weights", {}) or "version" not in record

    def weights_sha256(self) -> str | None:
        """The SHA-256 of the backbone's weights, None where there are none that open.

        That of the record, unless the file was changed after it: what a hash costs is left to those who load the weights.
        """
        try:
            weights = self.backbone.stat()
        except OSError:
            return None
        if why_not_opened(self.backbone):
            return None
        record = self._provenance().get("weights", {}).get(self.backbone.name)
        if record:
            written = (self.folder / "provenance.json").stat()
            # a file that was moved or copied here keeps the time of its content, and not that of its name
            if max(weights.st_mtime_ns, weights.st_ctime_ns) <= max(written.st_mtime_ns, written.st_ctime_ns):
                return record
        return cached_hash(self.backbone)

    def _provenance(self) -> dict[str, Any]:
        return cached_provenance(self.folder / "provenance.json")

    def record_start(self, **facts: Any) -> None:
        """Write where a run that starts comes from, in place of an older run's provenance.json."""
        write_json(self.folder / "provenance.json", {"version": VERSION, **facts})

    def record(self, **facts: Any) -> None:
        """Add facts to provenance.json."""
        write_json(self.folder / "provenance.json", {**self._provenance(), **facts})

    def record_resumption(self, **facts: Any) -> None:
        """Add to provenance.json that the run resumes, from which step, and by which code and machine."""
        self.record(version=VERSION, resumed=[*self._provenance().get("resumed", []), facts])

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        path, text = self.folder / "metrics.jsonl", json.dumps(line) + "\n"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise write_error(path, error, len(text)) from None

    def sync_log(self) -> None:
        """Wait until metrics.jsonl is on disk: before a checkpoint that counts its lines."""
        if (self.folder / "metrics.jsonl").is_file():
            sync_file(self.folder / "metrics.jsonl")

    def truncate_log(self, epoch: int, step: int) -> None:
        """Drop what a run that resumes at `epoch` and `step` (counted from the run's start) will write again."""
        path = self.folder / "metrics.jsonl"
        kept = [line for line in self.metrics() if line["epoch"] < epoch or line.get("step", step) < step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))  # at once: a kill must not lose what was kept

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. A broken one is left out and reported, but for a last one that was cut short."""
        path = self.folder / "metrics.jsonl"
        texts = path.read_bytes().split(b"\n") if path.is_file() else []
        lines = []
        for number, text in enumerate(texts, 1):
            try:
                if text.strip():
                    lines.append(parse_record(json.loads(text.decode()), LogLine, f"line {number}", "it is left out"))
            except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or not a line of the log
                if number < len(texts):
                    reason = error if isinstance(error, SfrikError) else f"line {number} is not JSON ({error}): it is left out"
                    print_once(f"{path}: {reason}")
        return lines

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are of a whole epoch."""
        return [line for line in self.metrics() if "effective_rank" in line]

    def update_status(self, state: str, **facts: Any) -> None:
        """Write down what the run is doing, for `sfrik status`: state is "running", "preempted" or "failed".

        On a full disk the old state is overwritten in its place, which needs no room; a status that cannot be written is no
        reason to stop.
        """
        path = self.folder / "state.json"
        place = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job": os.environ.get("SLURM_JOB_ID")}
        content = {"version": VERSION, "state": state, **facts, **place, "updated": now()}
        make_folder(self.folder)
        try:
            write_json(path, content)
        except WriteError:
            with suppress(OSError), path.open("r+b") as file:
                file.write(json.dumps(content).encode())
                file.truncate()

    def state(self) -> dict[str, Any] | None:
        """What the run wrote last; None where nothing is under way, nothing was ever started, or it cannot be read."""
        path = self.folder / "state.json"
        try:
            return read_record(path, State) if path.is_file() else None
        except SfrikError:
            return None

    def update_last_status(self, state: str, **facts: Any) -> None:
        """Why the run stopped, added to what it said before, such as the epoch."""
        self.update_status(state, **{name: value for name, value in {**(self.state() or {}), **facts}.items() if name != "state"})

    def clear_status(self) -> None:
        (self.folder / "state.json").unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str = "lock", wait: bool = False) -> Iterator[None]:
        """`folder_lock` of the folder. Training takes "lock", and the process that executes a run's notebooks "run.lock"."""
        with folder_lock(self.folder, name, wait):
            yield

    def is_locked(self) -> bool:
        """Whether a living process is writing the folder. Nothing is written to find out."""
        return any(is_locked(self.folder / name) for name in ("lock", "run.lock"))

    def forget_other_scores(self) -> None:
        """Remove the scores that are of other weights than those that are here now."""
        digest = file_hash(self.backbone)
        for path in self.folder.glob("*.json"):
            with suppress(SfrikError):  # what cannot be read is for a person to look at
                if path.name not in NOT_SCORES and read_json(path).get("backbone_sha256", digest) != digest:
                    path.unlink()

    def result(self, protocol: str, settings: Settings | None = None) -> dict[str, Any] | None:
        """The score of a protocol, if it is of the weights (and settings) that are here; else None.

        Raises:
            SfrikError: the file of the score is broken.
        """
        path = self.folder / f"{protocol}.json"
        if not path.is_file() or (digest := self.weights_sha256()) is None:
            return None
        score = read_record(path, Score)
        if score.get("backbone_sha256") != digest:
            return None
        return score if settings is None or score.get("settings_hash") == settings.hash() else None

    def save_result(
        self, protocol: str, settings: Settings, score: dict[str, Any], backbone_sha256: str | None
    ) -> dict[str, Any]:
        """Write a score with what it takes to trace it; `backbone_sha256` names the weights it was measured on."""
        whole = {
            "version": VERSION,
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


def settings_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Each setting that differs, in words; nothing where all are the same."""
    names = [name for name in sorted(ours.keys() | theirs.keys()) if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} {theirs.get(name)!r} -> {ours.get(name)!r}" for name in names)
