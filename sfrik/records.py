"""What the files hold that the library writes and reads back: a model for each, checked when it is read.

A file without a version is one of version 1, as those of earlier releases are. What a model does not name may be there too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sfrik.errors import SfrikError
from sfrik.files import read_json

__all__ = [
    "VERSION",
    "Choice",
    "Costs",
    "FeatureOrigin",
    "LogLine",
    "Provenance",
    "Record",
    "RunSettings",
    "Score",
    "State",
    "parse_record",
    "read_record",
]

VERSION = 1


class Record(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(extra="allow", frozen=True)

    version: Literal[1] = 1


class RunSettings(Record):
    """settings.json: all settings that determine the outcome, and their hash."""

    hash: str
    settings: dict[str, Any]


class Provenance(Record):
    """provenance.json. `weights`: SHA-256 of each finished weights file, by its name."""

    commit: str = ""
    started: str = ""
    finished: str = ""
    resumed: list[dict[str, Any]] = Field(default_factory=list)
    hardware: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)


class State(Record):
    """state.json: what an unfinished run is doing, or why it stopped."""

    state: Literal["running", "preempted", "failed"]
    stage: str = ""
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    loss: float | None = None
    seconds_left: float | None = None
    host: str = ""
    pid: int | None = None
    slurm_job: str | None = None
    error: str = ""


class LogLine(Record):
    """A line of metrics.jsonl, of a step or of an epoch."""

    epoch: int
    step: int | None = None


class Score(Record):
    """<protocol>.json: a score and what it takes to trace it."""

    protocol: str
    seed: int = 0
    backbone_sha256: str | None = None
    head_sha256: str | None = None
    settings_hash: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    commit: str = ""
    images: int | None = None
    train_images: int | None = None
    top1: float | None = None
    top5: float | None = None
    top1_at: dict[str, float] = Field(default_factory=dict)
    map: float | None = None
    lr_head: float | None = None


class Choice(Record):
    """tuning/<grid>.json: which recipe of a grid the tuning split preferred."""

    grid: str = ""
    chosen: str


class FeatureOrigin(Record):
    """weights.json beside extracted features: of which weights and images they are."""

    backbone_sha256: str


class Costs(Record):
    """table5.json, table6.json: what the losses cost, an object for each entry."""


def parse_record(content: Any, kind: type[Record], source: str) -> dict[str, Any]:
    """The content as `kind` has it, without what it leaves unset.

    Raises:
        SfrikError: a key is missing or has the wrong type, or the version is another one; source and key are named.
    """
    try:
        return kind.model_validate(content).model_dump(exclude_unset=True)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "its content"
        if key == "version":
            raise SfrikError(
                f"{source} has version {problem['input']!r}, this release reads version {VERSION}: use the release that wrote it"
            ) from None
        if problem["type"] == "missing":
            raise SfrikError(f'{source} has no key "{key}": move it away and run again') from None
        raise SfrikError(f"{source}: {key}: {problem['msg']}, got {problem['input']!r:.80}: move it away and run again") from None


def read_record(path: str | Path, kind: type[Record]) -> dict[str, Any]:
    """A file that the library wrote, checked.

    Raises:
        SfrikError: as `sfrik.files.read_json` and `parse_record`.
    """
    return parse_record(read_json(path), kind, str(path))
