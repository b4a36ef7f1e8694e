"""The files in a run's folder and beside the tables: a model for each (`sfrik.system.records` reads and checks them)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sfrik.system.records import Record

__all__ = [
    "Checkpoint",
    "Choice",
    "Costs",
    "EvaluationCheckpoint",
    "FeatureOrigin",
    "LogLine",
    "RunSettings",
    "Score",
    "State",
    "TrainingCheckpoint",
    "WandbPlace",
]


class RunSettings(Record):
    """settings.json: all settings that determine the outcome, and their hash."""

    hash: str
    settings: dict[str, Any]


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
    step: int = 0


class Checkpoint(Record):
    """What all checkpoints hold: the states of what is trained. They are of a release that writes a version."""

    version: Literal[1]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


class TrainingPlace(BaseModel):
    """Where a pretraining is: the next step of an epoch."""

    model_config = ConfigDict(extra="forbid")

    epoch: int
    step: int
    seconds: float
    broken: list[str]


class TrainingCheckpoint(Checkpoint):
    """checkpoint.pt of a pretraining; `random` has the states of each process's generators."""

    settings: dict[str, Any]
    model: dict[str, Any]
    place: TrainingPlace
    processes: int
    random: list[dict[str, Any]]


class EvaluationPlace(BaseModel):
    """Where the training of a head is."""

    model_config = ConfigDict(extra="forbid")

    epoch: int
    step: int
    loss: float


class EvaluationCheckpoint(Checkpoint):
    """checkpoint_<protocol>.pt; `of` names settings, weights, images and precision."""

    of: dict[str, str]
    models: dict[str, Any]
    place: EvaluationPlace
    tops: list[list[tuple[float, float]]]
    diverged: dict[int, str]
    random: dict[str, Any]


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

    chosen: str


class FeatureOrigin(Record):
    """weights.json beside extracted features: of which weights and images they are."""

    backbone_sha256: str


class Costs(Record):
    """table5.json, table6.json: what the losses cost, an object for each entry."""


class WandbPlace(Record):
    """wandb/sfrik.json: the id of a run at Weights & Biases, and the last steps that were sent."""

    id: str
    step: int
    epoch: int
