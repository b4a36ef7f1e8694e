"""The paper's tables: what each asks, in which profiles, with which runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sfrik.errors import SfrikError, nearest
from sfrik.runs.records import Choice
from sfrik.settings import load_recipe, results_root
from sfrik.system.files import is_there
from sfrik.system.records import read_record
from sfrik.tables.cost_rows import complexity_columns, table5_rows, table6_rows
from sfrik.tables.rows import (
    KNN,
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

__all__ = ["EXPERIMENTS", "Experiment", "experiment", "grids", "read_choice", "rows_of"]


@dataclass(frozen=True)
class Experiment:
    """A table: title, the paper's setting, measured columns by profile, rows by profile, the stages of each run."""

    title: str
    setting: str
    figures: str | None  # the group of paper.toml; None where no source gives a figure
    columns: Callable[[str], list[Column]]
    rows: Callable[[str], list[Row]]
    paper_columns: Mapping[str, str]  # key of Row.paper -> heading
    profiles: tuple[str, ...] = ("smoke", "digits", "cifar10", "paper")
    stages: tuple[str, ...] = ("pretrain", "linear", "knn")
    remark: str = ""
    images: bool = True  # whether the cells depend on the profile's images


def experiment(name: str, profile: str) -> Experiment:
    """A table by its name.

    Raises:
        SfrikError: there is no such table, or it has no recipes in this profile.
    """
    if name not in EXPERIMENTS:
        raise SfrikError(f"unknown table {name!r}{nearest(name, EXPERIMENTS)}: there is {', '.join(EXPERIMENTS)}")
    found = EXPERIMENTS[name]
    if profile not in found.profiles:
        near = nearest(profile, found.profiles)
        raise SfrikError(f"{name} has no recipes in profile {profile!r}{near}: choose {', '.join(found.profiles)}")
    return found


def rows_of(name: str, profile: str) -> list[Row]:
    """The rows of a table in a profile."""
    return experiment(name, profile).rows(profile)


def grids(profile: str) -> dict[str, list[str]]:
    """The recipes of each method's grid of table 9, by the name of the grid, which is what `choice` names."""
    found: dict[str, list[str]] = {}
    for row in rows_of("table9", profile):
        found.setdefault(load_recipe(row.recipe, "evaluate")["choice"], []).append(row.recipe)
    return found


def read_choice(profile: str, grid: str, root: str | Path | None = None) -> str | None:
    """The recipe of a grid of table 9 that was chosen on the tuning split; None where none is yet.

    Raises:
        SfrikError: the file of the choice is broken, or names no recipe of the grid; it is named.
    """
    path = Path(root or results_root()) / profile / "tuning" / f"{grid}.json"
    if not is_there(path):
        return None
    recipe = f"{profile}/{read_record(path, Choice)['chosen']}"
    if recipe not in grids(profile)[grid]:
        raise SfrikError(f"{path} names {recipe}, which is no recipe of the grid {grid}: move it away and run again")
    return recipe


def _always(*columns: Column) -> Callable[[str], list[Column]]:
    return lambda profile: list(columns)


REPEATED = (
    "A seed is a repetition of the whole measurement; memory is beyond the embeddings; ratios are of neighbours in time, to the "
    "paper's baseline, VICReg by its plain formula. *plain*: the formula of the paper by autograd, as in the authors' code; the "
    "others are the closed forms of this library. One product is of the embeddings of a view with their transpose; the loss is "
    "of two views."
)
IN20 = "ImageNet 20 %, ResNet-18, 100 epochs"
EXPERIMENTS = {
    "table1": Experiment(
        "Linear probing and kNN",
        IN20,
        "linear_in20",
        _always(LINEAR, LOGISTIC, KNN),
        table1_rows,
        {"linear_top1": "linear probing, %"},
        remark="On MNIST5k the alignment weights of SFRIK and AUH are scaled with q as the paper's trade-off asks, SimCLR's and "
        "VICReg's were chosen at q = 512 and kept.",
    ),
    "table2": Experiment(
        "The choice of the kernel",
        f"{IN20}; the regulariser is the plain MMD",
        "kernel_choice",
        _always(
            LINEAR,
            LOGISTIC,
            KNN,
            Column("alignment", "alignment", "metrics", ("alignment",), "", 3),
            Column("uniformity", "uniformity", "metrics", ("uniformity",), "", 2),
            Column("effective_rank", "effective rank", "metrics", ("effective_rank",), ""),
        ),
        table2_rows,
        {"linear_top1": "linear probing, %"},
        profiles=("smoke", "digits", "paper"),
        remark="On MNIST5k: s = 2.5 and p = 1 as series of eight degrees, heat of four at time 4 / (q - 1); weights of the "
        "alignment 16, 64, 2048, of the truncated kernel 2048. Alignment (mean squared distance of two views), uniformity and "
        "effective rank are of the embeddings of the last training batch.",
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
        remark="On MNIST5k the rates and epochs of fine-tuning were chosen for SFRIK L=3, q = 512, and are used for all.",
    ),
    "table5": Experiment(
        "Peak memory against the batch size",
        "q = 32768, whole steps on one GPU of several",
        "memory_q32768",
        lambda profile: complexity_columns("table5", profile),
        table5_rows,
        {"peak": "peak of a step, GB per GPU"},
        stages=(),
        remark=REPEATED,
        images=False,
    ),
    "table6": Experiment(
        "Time and memory of the regularisers",
        "whole steps, batch size 2048",
        "time_and_memory",
        lambda profile: complexity_columns("table6", profile),
        table6_rows,
        {"against_vicreg": "SFRIK against VICReg, of whole steps"},
        stages=(),
        remark=REPEATED,
        images=False,
    ),
    "table7": Experiment(
        "Multi-crop",
        IN20,
        None,
        _always(LINEAR, LOGISTIC, KNN),
        table7_rows,
        {"linear_top1": "linear probing, %"},
        profiles=("smoke", "digits", "paper"),
        remark="On MNIST5k two views are random affine maps of the digit and multi-crop is crops without flips; about a tenth "
        "of SwAV's 12-pixel crops of digits are nearly black.",
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
        remark="On MNIST5k the evaluations see the labels of 35 training digits a class.",
    ),
    "table9": Experiment(
        "Tuning on a split of its own, then one test score",
        IN20,
        None,
        _always(
            Column("tune_top1", "linear probing on the tuning split (seed 0)", "linear_tune", only=(0,)),
            Column("test_top1", "the choice on the test images", "linear_inference"),
        ),
        table9_rows,
        {"test_top1": "linear probing, %"},
        profiles=("smoke", "digits"),
        stages=("pretrain", "tune"),
        remark="Each method's grid is scored on the tuning split with seed 0; in this table the choice alone is scored on "
        "the test images, once, with the head that was trained for the tuning score (table 1 had scored some of these settings).",
    ),
}
