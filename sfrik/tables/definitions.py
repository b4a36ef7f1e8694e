"""Definitions of the tables of the paper's experiments: titles, rows, columns, profiles, and the stages of their runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sfrik.errors import SfrikError, nearest
from sfrik.runs.records import Choice
from sfrik.settings import load_recipe, runs_root
from sfrik.system.files import path_exists
from sfrik.system.records import read_record
from sfrik.tables.cost_rows import complexity_columns, table5_rows, table6_rows
from sfrik.tables.rows import (
    IMAGES,
    KNN,
    KNN200,
    LINEAR,
    LOGISTIC,
    Column,
    Row,
    table1_rows,
    table2_rows,
    table3_rows,
    table4_columns,
    table4_rows,
    table7_rows,
    table8_rows,
    table9_rows,
    transfer_columns,
)

__all__ = ["EXPERIMENTS", "Experiment", "experiment", "grids", "read_choice", "rows_of", "tables_of"]


@dataclass(frozen=True)
class Experiment:
    """A table: one of the paper's experiments.

    Attributes:
        title: of the table.
        setting: of the paper's experiment.
        figures: the group of paper.toml with the paper's figures; None if no source has them.
        columns: the measured columns of a profile.
        rows: the rows of a profile.
        paper_columns: headings of the paper's figures, by key of `Row.paper`.
        profiles: those that have recipes for the table.
        stages: of each run.
        images: whether the cells depend on the profile's images.
    """

    title: str
    setting: str
    figures: str | None
    columns: Callable[[str], list[Column]]
    rows: Callable[[str], list[Row]]
    paper_columns: Mapping[str, str]
    profiles: tuple[str, ...] = ("smoke", "digits", "cifar10", "paper")
    stages: tuple[str, ...] = ("pretrain", "linear", "knn")
    images: bool = True

    @property
    def unit(self) -> str:
        """What the values of a cell are of: seeds, or repetitions of a measurement, which nothing random distinguishes."""
        return "seed" if self.stages else "repetition"

    def count(self, numbers: Collection[int]) -> str:
        """The numbers of values in cells in words: "n = 3 seeds", "1 to 3 repetitions"."""
        low, high = min(numbers), max(numbers)
        n = str(low) if low == high else f"{low} to {high}"
        return f"n = {n} seeds" if self.stages else f"{n} {'repetition' if n == '1' else 'repetitions'}"


def experiment(name: str, profile: str) -> Experiment:
    """The definition of a table.

    Raises:
        SfrikError: an unknown table, or one without recipes in this profile.
    """
    if name not in EXPERIMENTS:
        near = f" (a profile is given by --profile {name})" if name in IMAGES else nearest(name, EXPERIMENTS)
        raise SfrikError(f"unknown table {name!r}{near}: the tables are {', '.join(EXPERIMENTS)}")
    found = EXPERIMENTS[name]
    if profile not in found.profiles:
        near = nearest(profile, found.profiles)
        raise SfrikError(f"{name} has no recipes in profile {profile!r}{near}: choose {', '.join(found.profiles)}")
    return found


def tables_of(profile: str) -> list[str]:
    """The tables that have recipes in a profile.

    Raises:
        SfrikError: an unknown profile.
    """
    if profile not in IMAGES:
        raise SfrikError(f"unknown profile {profile!r}{nearest(profile, IMAGES)}: choose {', '.join(IMAGES)}")
    return [name for name, found in EXPERIMENTS.items() if profile in found.profiles]


def rows_of(name: str, profile: str) -> list[Row]:
    """The rows of a table in a profile."""
    return experiment(name, profile).rows(profile)


def grids(profile: str) -> dict[str, list[str]]:
    """The recipes of each grid of table 9, by the name of the grid (the setting `choice`)."""
    found: dict[str, list[str]] = {}
    for row in rows_of("table9", profile):
        found.setdefault(load_recipe(row.recipe, "evaluate")["choice"], []).append(row.recipe)
    return found


def read_choice(profile: str, grid: str, root: str | Path | None = None) -> str | None:
    """The recipe of a grid of table 9 that was chosen on the tuning split; None before the choice.

    Raises:
        SfrikError: the file of the choice is broken or does not name a recipe of the grid; the message names the file.
    """
    path = Path(root or runs_root()) / profile / "tuning" / f"{grid}.json"
    if not path_exists(path):
        return None
    recipe = f"{profile}/{read_record(path, Choice)['chosen']}"
    if recipe not in grids(profile)[grid]:
        raise SfrikError(f"{path} names {recipe}, which is not a recipe of the grid {grid}: move it away and run again")
    return recipe


def _always(*columns: Column) -> Callable[[str], list[Column]]:
    return lambda profile: list(columns)


IN20 = "ImageNet 20 %, ResNet-18, 100 epochs"
EXPERIMENTS = {
    "table1": Experiment(
        "Linear probing and kNN",
        IN20,
        "linear_in20",
        lambda profile: [LINEAR, LOGISTIC, KNN, *([KNN200] if profile.startswith("cifar10") else [])],  # as others report it
        table1_rows,
        {"linear_top1": "linear probing, %"},
        profiles=("smoke", "digits", "photos", "cifar10", "cifar10_quick", "paper"),
    ),
    "table2": Experiment(
        "Choice of the kernel",
        f"{IN20}; the regulariser is the plain MMD",
        "kernel_choice",
        _always(
            LINEAR,
            LOGISTIC,
            KNN,
            Column("alignment", "alignment", "metrics", ("alignment",), "", 3, better="lower"),
            Column("uniformity", "uniformity", "metrics", ("uniformity",), "", 2, better="lower"),
            Column("effective_rank", "effective rank", "metrics", ("effective_rank",), "", better=""),
        ),
        table2_rows,
        {"linear_top1": "linear probing, %"},
        profiles=("smoke", "digits", "photos", "paper"),
    ),
    "table3": Experiment(
        "Transfer to other images",
        IN20,
        "transfer_in20",
        transfer_columns,
        table3_rows,
        {"places_top1": "Places205 top-1, %", "places_top5": "Places205 top-5, %", "voc07_map": "VOC07 mAP, %"},
        profiles=("smoke", "digits", "paper"),
        stages=("pretrain", "semi"),
    ),
    "table4": Experiment(
        "All protocols",
        "ImageNet, ResNet-50, 200 epochs",
        "imagenet_r50",
        table4_columns,
        table4_rows,
        {
            "linear_top1": "linear, %",
            "linear_top5": "linear top-5, %",
            "places_top1": "Places205, %",
            "places_top5": "Places205 top-5, %",
            "voc07_map": "VOC07 mAP, %",
            "semi1_top1": "1 %, %",
            "semi1_top5": "1 % top-5, %",
            "semi10_top1": "10 %, %",
            "semi10_top5": "10 % top-5, %",
        },
        profiles=("smoke", "digits", "paper"),
        stages=("pretrain", "linear", "semi", "knn"),
    ),
    "table5": Experiment(
        "Peak memory against the batch size",
        "q = 32768, whole steps on one GPU of several",
        "memory_q32768",
        lambda profile: complexity_columns("table5", profile),
        table5_rows,
        {"peak": "peak of a step, GB per GPU"},
        stages=(),
        images=False,
    ),
    "table6": Experiment(
        "Time and memory of the regularisers",
        "whole steps, batch size 2048",
        "time_and_memory",
        lambda profile: complexity_columns("table6", profile),
        table6_rows,
        {"against_vicreg": "SFRIK relative to VICReg, whole steps"},
        stages=(),
        images=False,
    ),
    "table7": Experiment(
        "Multi-crop",
        IN20,
        None,
        _always(LINEAR, LOGISTIC, KNN),
        table7_rows,
        {"linear_top1": "linear probing, %"},
        profiles=("smoke", "digits", "photos", "paper"),
    ),
    "table8": Experiment(
        "Random crops, few labels",
        "STL10: pretraining on 100,000 images without labels, AUH augmentations, 5,000 labels",
        None,
        _always(LOGISTIC, KNN),
        table8_rows,
        {"logistic_top1": "logistic regression, %"},
        profiles=("smoke", "digits", "paper"),
        stages=("pretrain", "knn"),
    ),
    "table9": Experiment(
        "Tuning on a separate split, then one test score",
        IN20,
        None,
        _always(
            Column("tune_top1", "linear probing on the tuning split (seed 0)", "linear_tune", only=(0,)),
            Column("test_top1", "chosen setting on the test images", "linear_inference"),
        ),
        table9_rows,
        {"test_top1": "linear probing, %"},
        profiles=("smoke", "digits", "photos", "cifar10"),
        stages=("pretrain", "tune"),
    ),
}
