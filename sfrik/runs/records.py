"""Models of the JSON files and checkpoints of runs and tables (read and validated by `sfrik.system.records`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from sfrik.system.records import Record

__all__ = [
    "Checkpoint",
    "Choice",
    "Costs",
    "DataRecord",
    "EvaluationCheckpoint",
    "FeatureOrigin",
    "LogLine",
    "RunSettings",
    "Score",
    "State",
    "TrainingCheckpoint",
    "WandbRun",
]


Percent = Annotated[float, Field(ge=0, le=100)]


class DataRecord(BaseModel):
    """The images of one split: their number, that of their classes (0 without labels), and a fingerprint of all of them.

    The fingerprint is empty after one of them could not be read, and has to be replaced; `names_sha256` and `sample` then are
    the SHA-256 of the names of all and of the contents of some (`sfrik.runs.data.forget_fingerprint`).
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    images: int
    classes: int
    sha256: str


class RunSettings(Record):
    """settings.json: all settings that affect the result, their hash, and the images of the training.

    Attributes:
        data: None without a training, and in files of earlier releases.
    """

    hash: str
    settings: dict[str, Any]
    data: DataRecord | None = None


class State(Record):
    """state.json: what an unfinished run is doing, or why it stopped; the loss of a run that diverged is not finite."""

    finite: ClassVar[bool] = False
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
    """A line of metrics.jsonl, for a step or for an epoch."""

    epoch: int
    step: int = 0


class Checkpoint(Record):
    """Base of the checkpoints. The key `version` is required, since every release that wrote checkpoints wrote it."""

    version: Literal[1]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


class TrainingPosition(BaseModel):
    """The position of a pretraining: the next step of an epoch (`sfrik.pretrain.resume.Position`)."""

    model_config = ConfigDict(extra="forbid")

    epoch: int
    step: int
    seconds: float
    broken: list[str]


class TrainingCheckpoint(Checkpoint):
    """checkpoint.pt of a pretraining.

    Attributes:
        random: For each process the states of its random number generators.
        provenance: provenance.json of the run; checkpoints of earlier releases do not record it.
        data: The training images. Checkpoints of earlier releases have their number, that of their classes, and the SHA-256 of
            their names instead, or none of them.
    """

    settings: dict[str, Any]
    data: DataRecord | None = None
    images: int | None = None
    classes: int | None = None
    names_sha256: str | None = None
    model: dict[str, Any]
    place: TrainingPosition
    processes: int
    random: list[dict[str, Any]]
    provenance: dict[str, Any] = Field(default_factory=dict)


class EvaluationPosition(BaseModel):
    """The position of the training of a head: the next step of an epoch."""

    model_config = ConfigDict(extra="forbid")

    epoch: int
    step: int
    loss: float


class EvaluationCheckpoint(Checkpoint):
    """``checkpoint_<protocol>.pt`` of an evaluation.

    Attributes:
        of: Hashes of the settings, the weights and the images of each split, and the precision. Another evaluation does not
            resume from it.
        tops: For each epoch, the top-1 and top-5 accuracy of each head.
        correct: For each head, the bits of the scored images after the last epoch (`Score.correct`).
        losses: For each epoch, the mean training loss of each head, and at the end the totals of the present epoch.
            Checkpoints of earlier releases have neither.
        diverged: For each diverged head, by its index, the epoch, the step, and whether the loss or a weight was not finite.
        broken: Names of the training images that were skipped; checkpoints of earlier releases have none.
    """

    of: dict[str, str]
    models: dict[str, Any]
    place: EvaluationPosition
    tops: list[list[tuple[float, float]]]
    correct: list[str] = Field(default_factory=list)
    losses: list[list[float]] = Field(default_factory=list)
    diverged: dict[int, str]
    broken: list[str] = Field(default_factory=list)
    random: dict[str, Any]


class Score(Record):
    """``<protocol>.json``: a score with its settings and weights, and the version and commit of the code that measured it.

    Attributes:
        correct: One bit per scored image, whether its top-1 prediction is correct (`sfrik.runs.correctness`), in the order of the
            data set; the share of ones is top1 / 100. An image that `skip_broken` leaves out has no bit: there are `images` bits,
            and those of two scores are of the same images only if `data` and the names in `broken_images` are equal. None in
            scores of earlier releases, and where there is no top-1.
        train_loss: The mean training loss of the head by epoch, over the images of the epoch; None where it is not known.
        sweep: Top-1 on the tuning split in % by learning rate, or by C, and which of them was chosen: `lr_head` or `C`.
        correct_at: The same by the number of neighbours, for kNN.
        data: The images that were read, by split ("train", "tune", "test"); empty in scores of earlier releases.
    """

    protocol: str
    seed: int = 0
    backbone_sha256: str | None = None
    head_sha256: str | None = None
    data: dict[str, DataRecord] = Field(default_factory=dict)
    settings_hash: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    sfrik: str = ""
    commit: str | None = None
    images: int | None = None
    train_images: int | None = None
    top1: Percent | None = None
    top5: Percent | None = None
    top1_at: dict[str, Percent] = Field(default_factory=dict)
    top5_at: dict[str, Percent] = Field(default_factory=dict)
    correct: str | None = None
    correct_at: dict[str, str] = Field(default_factory=dict)
    map: Percent | None = None
    train_loss: list[float | None] = Field(default_factory=list)
    sweep: dict[str, Percent] = Field(default_factory=dict)
    lr_head: float | None = None
    C: float | None = None


class Choice(Record):
    """``tuning/<grid>.json``: the recipe of a grid with the best score on the tuning split."""

    chosen: str


class FeatureOrigin(Record):
    """weights.json in the folder of extracted features: the weights and images they were computed from.

    Attributes:
        data: The images, by split ("train", "tune", "test", "all"); empty in files of earlier releases.
        sha256: Of each .npy file, by its name; empty in files of earlier releases.
    """

    backbone_sha256: str
    data: dict[str, DataRecord] = Field(default_factory=dict)
    sha256: dict[str, str] = Field(default_factory=dict)


class LoadRecord(BaseModel):
    """The load of the machine during a measurement (`sfrik.cost.load`); None where the system does not report it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    before: float | None
    after: float | None
    others: float | None
    cores: Annotated[int, Field(ge=1)]


class Costs(Record):
    """table5.json and table6.json: time and memory of the losses, an object for each entry.

    Attributes:
        load: None in files of earlier releases.
    """

    load: LoadRecord | None = None


class WandbRun(Record):
    """wandb/sfrik.json: the id of a run at Weights & Biases, and the last steps sent for "step" and "epoch"."""

    id: str
    step: int
    epoch: int
