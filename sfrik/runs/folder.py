"""The folder of a run: settings, provenance, checkpoints, metrics and scores.

Its files::

    settings.json          all settings, their hash, and the images; a rerun with others is refused
    provenance.json        commit, versions, hardware, start and end; the SHA-256 of the finished weights
    metrics.jsonl          one line per logging step and per epoch
    state.json             what an unfinished run is doing, or why it stopped
    checkpoint.pt          the newest of two checkpoints (sfrik.runs.checkpoints)
    projector.safetensors  the projector; sfrik diagnose reads it
    backbone.safetensors   the result of pretraining; recorded in provenance.json before the checkpoints are deleted
    <protocol>.json        a score with the SHA-256 of the weights it was measured on; written last

A score is valid unless the folder holds other weights than those it was measured on. The weights may be deleted: they are trained
again when another score needs them.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrik.errors import SfrikError
from sfrik.runs.cached import cached_hash, cached_provenance, header_error
from sfrik.runs.data import data_differences
from sfrik.runs.metrics import Metrics
from sfrik.runs.provenance import code, now
from sfrik.runs.records import RunSettings, Score, State
from sfrik.runs.refusals import refuse_other_images, refuse_other_recipe, refuse_other_settings
from sfrik.runs.scores import score_problem
from sfrik.runs.sweeps import edge_warning
from sfrik.settings import Settings, as_path
from sfrik.system.files import (
    UnreadableError,
    WriteError,
    file_hash,
    make_folder,
    read_json,
    rename_broken,
    write_json,
)
from sfrik.system.locks import folder_lock, is_locked
from sfrik.system.records import VERSION, check_numbers, parse_record, read_record
from sfrik.system.tensor_files import check_weights, read_header
from sfrik.system.terminal import print_line

if TYPE_CHECKING:
    from sfrik.runs.checkpoints import Checkpoints

__all__ = ["Run"]

RECORDS = ("settings.json", "provenance.json", "state.json")
FILES = (*RECORDS, "metrics.jsonl", "projector.safetensors", "backbone.safetensors")


class Run(Metrics):
    """The folder of one run. Nothing is written before `start` is called.

    Args:
        folder: The path of the folder, which need not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(as_path(folder))

    @property
    def backbone(self) -> Path:
        return self.folder / "backbone.safetensors"

    @property
    def projector(self) -> Path:
        return self.folder / "projector.safetensors"

    @property
    def checkpoints(self) -> Checkpoints:
        from sfrik.runs.checkpoints import Checkpoints  # imports PyTorch, which `sfrik status` does not need

        return Checkpoints(self.folder)

    def start(self, settings: Settings, data: dict[str, Any] | None = None) -> None:
        """Create the folder and write settings.json, or check that an existing run has the same settings and images.

        Weights that cannot be opened (older releases could leave them after a power cut) are renamed, so that the run is trained
        again.

        Args:
            settings: The settings of the run.
            data: The training images, as `sfrik.datasets.describe_data` describes them; None: they are not compared.

        Raises:
            SfrikError: The folder holds a run with other settings or on other images, or is that of a recipe with other settings
                (the message lists the differences), or its finished weights have changed since they were written.
        """
        refuse_other_recipe(self.folder, settings)
        for name in (*FILES, *(checkpoint.name for checkpoint in self.checkpoints.paths)):
            if (self.folder / name).is_dir():
                raise SfrikError(f"{self.folder / name} is a folder, but the run writes a file of that name: move it away")
        path, ours = self.folder / "settings.json", settings.what()
        recorded, trained_on = self._recorded()
        differences = settings.differences(recorded) if recorded is not None else ""
        errors = {weights: header_error(weights) for weights in (self.backbone, self.projector) if weights.is_file()}
        if recorded is None and errors.get(self.backbone) == "" and (theirs := read_header(self.backbone).get("settings")):
            differences = "" if theirs == settings.hash() else f"hash {theirs} -> {settings.hash()}"
        if self.backbone.is_file() or self.checkpoints.exist:
            refuse_other_settings(self.folder, differences, self.backbone.is_file())
            refuse_other_images(self.folder, data_differences(trained_on, data), settings.data_dir, self.backbone.is_file())
            data = data if trained_on else None  # what an earlier release has trained on is not known
        if not errors.get(self.backbone) and self.finished:
            for weights, error in errors.items():
                if not error:
                    check_weights(weights)
        for weights, error in errors.items():
            if error:
                rename_broken(weights, error)
        if recorded is not None and not self.backbone.is_file() and not self.checkpoints.exist:
            # Stopped before its first checkpoint, or its weights were deleted: it is trained again, and its log is rewritten.
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        if not path.is_file() or ((recorded, trained_on) != (ours, data) and not self.backbone.is_file()):
            record = {"version": VERSION, "hash": settings.hash(), "settings": ours}
            write_json(path, record | ({"data": data} if data else {}))

    def _recorded(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The settings and the images in settings.json, else in the checkpoint; None where they are not recorded."""
        path = self.folder / "settings.json"
        try:
            if path.exists():
                record = read_record(path, RunSettings)
                return record["settings"], record.get("data")
        except UnreadableError:
            raise
        except SfrikError as error:
            rename_broken(path, str(error))
        if not self.checkpoints.exist:
            return None, None
        state = self.checkpoints.load() or {}
        settings = state.get("settings")
        if not isinstance(settings, dict):
            raise SfrikError(
                f"neither settings.json nor a checkpoint in {self.folder} has the run's settings: restore settings.json, or move "
                "the folder away"
            )
        return settings, state.get("data")

    @property
    def finished(self) -> bool:
        """Whether the weights can be opened and provenance.json records them (files without `version` record no weights)."""
        if not self.backbone.is_file() or header_error(self.backbone):
            return False
        record = self._provenance()
        return self.backbone.name in record.get("weights", {}) or "version" not in record

    def weights_sha256(self) -> str | None:
        """The SHA-256 of the backbone's weights; None if there are no weights or they cannot be opened.

        Taken from provenance.json unless the weights are newer than it, since hashing large files is slow. Loading the weights
        verifies the hash (`sfrik.system.tensor_files.check_weights`).
        """
        try:
            weights = self.backbone.stat()
        except OSError:
            return None
        if header_error(self.backbone):
            return None
        recorded = self._provenance().get("weights", {}).get(self.backbone.name)
        if recorded:
            provenance = (self.folder / "provenance.json").stat()
            # ctime too, since a moved or copied file keeps its mtime
            if max(weights.st_mtime_ns, weights.st_ctime_ns) <= max(provenance.st_mtime_ns, provenance.st_ctime_ns):
                return recorded
        return cached_hash(self.backbone)

    def _provenance(self) -> dict[str, Any]:
        return cached_provenance(self.folder / "provenance.json")

    def record_start(self, **facts: Any) -> dict[str, Any]:
        """Write provenance.json for a run that starts, replacing that of an earlier run. Returns the content."""
        content = {"version": VERSION, **facts}
        write_json(self.folder / "provenance.json", content)
        return content

    def record(self, **facts: Any) -> None:
        """Add facts to provenance.json."""
        write_json(self.folder / "provenance.json", {**self._provenance(), **facts})

    def record_resumption(self, origin: dict[str, Any], **facts: Any) -> dict[str, Any]:
        """Add an entry, `facts`, to the list `resumed` in provenance.json. Returns the content.

        A file of another run than `origin`, the provenance in the checkpoint (`{}` in those of earlier releases), is replaced.
        """
        recorded = self._provenance()
        if origin and origin.get("started") != recorded.get("started"):
            recorded = origin
        began = {name: value for name, value in recorded.items() if name not in ("finished", "weights")}
        return self.record_start(**{**began, "resumed": [*began.get("resumed", []), facts]})

    def update_status(self, state: str, **facts: Any) -> None:
        """Write state.json for `sfrik status`.

        On a full disk the file is overwritten in place, which needs no space. A run continues without a status that fails.

        Args:
            state: "running", "preempted" or "failed".
            **facts: Further keys, such as epoch and step.
        """
        path = self.folder / "state.json"
        process = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job": os.environ.get("SLURM_JOB_ID")}
        content = {"version": VERSION, "state": state, **facts, **process, "updated": now()}
        make_folder(self.folder)
        try:
            write_json(path, content)
        except WriteError:
            with suppress(OSError), path.open("r+b") as file:
                file.write(json.dumps(content).encode())
                file.truncate()

    def state(self) -> dict[str, Any] | None:
        """The content of state.json; None if the run is finished or was never started, or the file cannot be read."""
        path = self.folder / "state.json"
        try:
            return read_record(path, State) if path.is_file() else None
        except SfrikError:
            return None

    def update_last_status(self, state: str, **facts: Any) -> None:
        """Change the state in state.json and add facts, keeping the other keys, such as the epoch."""
        self.update_status(**{**(self.state() or {}), **facts, "state": state})

    def clear_status(self) -> None:
        (self.folder / "state.json").unlink(missing_ok=True)

    @contextmanager
    def lock(self, name: str = "lock", wait: bool = False, optional: bool = False) -> Iterator[None]:
        """Lock the folder by `folder_lock`. Training holds "lock", the process executing a run's notebooks "run.lock"."""
        with folder_lock(self.folder, name, wait, optional):
            yield

    def is_locked(self) -> bool:
        """Whether a living process is writing to the folder. Writes nothing."""
        return any(is_locked(self.folder / name) for name in ("lock", "run.lock"))

    def delete_outdated_scores(self) -> None:
        """Delete the scores that were measured on other weights than those in the folder."""
        digest = file_hash(self.backbone)
        for path in self.folder.glob("*.json"):
            with suppress(SfrikError):  # unreadable files are left for the user to inspect
                if path.name not in RECORDS and read_json(path).get("backbone_sha256", digest) != digest:
                    path.unlink()

    def result(self, protocol: str, settings: Settings | None = None) -> dict[str, Any] | None:
        """The score of a protocol unless it was measured on other weights than the folder's (or other `settings`); else None.

        Raises:
            SfrikError: The score's file is broken.
        """
        path = self.folder / f"{protocol}.json"
        if not path.is_file():
            return None
        score, digest = read_record(path, Score), self.weights_sha256()
        if digest is not None and score.get("backbone_sha256") != digest:
            return None
        return None if settings is not None and score_problem(self.folder, protocol, score, settings, digest) else score

    def save_result(
        self, protocol: str, settings: Settings, score: dict[str, Any], backbone_sha256: str | None
    ) -> dict[str, Any]:
        """Write a score measured on the weights `backbone_sha256`, with settings, version and commit. Returns the file's content.

        A line on stderr reports a hyperparameter at the edge of its sweep (`sfrik.runs.sweeps`).

        Raises:
            SfrikError: A value is NaN or infinite, or not a percentage where it should be one.
        """
        content = {
            "version": VERSION,
            "protocol": protocol,
            **score,
            "seed": settings.seed,
            "backbone_sha256": backbone_sha256,
            "settings_hash": settings.hash(),
            "settings": settings.what(),
            **code(),
        }
        path = self.folder / f"{protocol}.json"
        check_numbers(content, path)
        write_json(path, parse_record(content, Score, str(path), "not written; please report it"))
        if text := edge_warning(content):
            print_line(text, error=True)
        return content
