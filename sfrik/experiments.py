"""What each table of the paper consists of: its rows with their recipes, its columns with their score files.

A row is a recipe; the paper's own figures stand beside it by column. The desk and smoke profiles have smaller dimensions q,
which stand where the paper has the last of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError, nearest
from sfrik.settings import load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["EXPERIMENTS", "Column", "Experiment", "Row", "experiment", "grids", "paper_figures", "rows_of"]

# The dimensions of table 1. Smoke has one, since starting the notebooks is nearly all of its time.
DIMS = {
    "smoke": (64,),
    "desk": (128, 256, 512),
    "cifar10": (512, 1024, 2048),
    "paper": (1024, 2048, 4096, 8192),
}
PREFIX = {"paper": "in20_"}
IMAGES = {
    "smoke": "300 digits of MNIST5k (a test of the machinery)",
    "desk": "MNIST5k (3,500 training, 1,000 test digits)",
    "cifar10": "CIFAR-10",
    "paper": "ImageNet",
}
TARGETS = {"paper": ("places205", "voc07"), "desk": ("digits8x8",), "smoke": ("digits8x8",), "cifar10": ()}


@dataclass(frozen=True)
class Column:
    """A measured quantity: `key` leads to it in the file <score>.json of a run (metrics: the last epoch of metrics.jsonl).

    `only` are the seeds that count, all when None.
    """

    name: str
    title: str
    score: str
    key: tuple[str, ...] = ("top1",)
    unit: str = "%"
    digits: int = 1
    only: tuple[int, ...] | None = None

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Row:
    """What was run, and what the paper says of it: `paper` by the name of a column, `paper_q` at which dimension.

    Attributes:
        labels: further columns that tell the rows apart, such as the kernel.
        entry: key in a score file that holds many measurements.
    """

    method: str
    q: int | None
    recipe: str
    paper: Mapping[str, float | str] = field(default_factory=dict)
    paper_q: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    entry: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A table: title, the paper's setting, measured columns by profile, rows by profile, the stages of each run."""

    title: str
    setting: str
    figures: str | None  # the group of paper.toml; None where no source gives a figure
    columns: Callable[[str], list[Column]]
    rows: Callable[[str], list[Row]]
    paper_columns: Mapping[str, str]  # key of Row.paper -> heading
    profiles: tuple[str, ...] = ("smoke", "desk", "cifar10", "paper")
    stages: tuple[str, ...] = ("pretrain", "linear", "knn")
    remark: str = ""
    images: bool = True  # whether the cells depend on the profile's images


def paper_figures() -> dict[str, Any]:
    """The paper's own figures, with their sources."""
    return tomllib.loads((Path(__file__).parent / "paper.toml").read_text())


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


def _recipe(profile: str, stem: str) -> str:
    return f"{profile}/{PREFIX.get(profile, '')}{stem}"


LINEAR = Column("linear_top1", "linear probing", "linear")
LOGISTIC = Column("logistic_top1", "logistic regression", "logistic")
KNN = Column("knn_top1", "20-NN", "knn", ("top1_at", "20"))


def _table1(profile: str) -> list[Row]:
    """Every method and dimension, with the two baselines that need no training."""
    figures = paper_figures()["linear_in20"]
    dims, paper_dims = DIMS[profile], figures["q"][-len(DIMS[profile]) :]
    rows = []
    for label, stem in [("SimCLR", "simclr"), ("AUH", "auh"), ("VICReg", "vicreg"), ("SFRIK L=2", "sfrik_l2")]:
        by_q = dict(zip(figures["q"], figures[label.replace(" L=", "_L")], strict=True))
        rows += [
            Row(label, q, _recipe(profile, f"{stem}_q{q}"), {"linear_top1": by_q[paper_q]}, paper_q)
            for q, paper_q in zip(dims, paper_dims, strict=True)
        ]
    q, paper_q = dims[-1], paper_dims[-1]
    for degree in (1, 3):
        paper = {"linear_top1": figures[f"SFRIK_L{degree}_q{paper_q}"]}
        rows.append(Row(f"SFRIK L={degree}", q, _recipe(profile, f"sfrik_l{degree}_q{q}"), paper, paper_q))
    if profile in ("desk", "smoke"):
        rows.append(Row("random weights", None, f"{profile}/random_weights"))
        rows.append(Row("raw pixels", None, f"{profile}/raw_pixels"))
    return rows


def _table2(profile: str) -> list[Row]:
    figures, q = paper_figures()["kernel_choice"], DIMS[profile][-1]
    kernels = [
        ("truncated L=3", f"sfrik_l3_q{q}", figures["truncated L=3"]),
        ("exp(-s |u - v|^2)", "kernel_rbf", figures["exp(-t |u - v|^2)"]),
        ("C - |u - v|^p", "kernel_power", figures["C - |u - v|^p"]),
        ("heat", "kernel_heat", None),
    ]
    return [
        Row(
            "MMD", q, _recipe(profile, stem), {"linear_top1": paper} if paper else {}, 8192 if paper else None, {"kernel": kernel}
        )
        for kernel, stem, paper in kernels
    ]


def _table3(profile: str) -> list[Row]:
    figures, q = paper_figures()["transfer_in20"], DIMS[profile][-1]
    names = ("places_top1", "places_top5", "voc07_map")
    return [
        Row(
            label,
            q,
            _recipe(profile, f"{stem}_q{q}"),
            dict(zip(names, figures[label.replace(" L=", "_L")], strict=True)),
            8192,
        )
        for label, stem in [("VICReg", "vicreg"), ("AUH", "auh"), ("SFRIK L=3", "sfrik_l3")]
    ]


def _table4(profile: str) -> list[Row]:
    figures = paper_figures()["imagenet_r50"]
    dims = {8192: 128, 16384: 256, 32768: 512} if profile == "desk" else dict.fromkeys((8192, 16384, 32768), 64)
    rows = []
    for label, stem, paper_q in [
        ("VICReg", "vicreg", 8192),
        ("SFRIK L=2", "sfrik_l2", 8192),
        ("SFRIK L=3", "sfrik_l3", 8192),
        ("SFRIK L=2", "sfrik_l2", 16384),
        ("SFRIK L=2", "sfrik_l2", 32768),
        ("SFRIK L=3", "sfrik_l3", 32768),
    ]:
        q = paper_q if profile == "paper" else dims[paper_q]
        recipe = f"paper/in1k_r50_{stem}_q{q}" if profile == "paper" else f"{profile}/{stem}_q{q}"
        paper = dict(zip(figures["columns"], figures[f"{label} q={paper_q}"], strict=True))
        if not (profile == "smoke" and paper_q > 8192):  # smoke has one dimension
            rows.append(Row(label, q, recipe, paper, paper_q))
    if profile == "desk":  # VICReg needs a large q: without this row the few labels would tell of q alone
        rows.insert(1, Row("VICReg", 512, "desk/vicreg_q512"))
    return rows


def _transfer_columns(profile: str) -> list[Column]:
    if profile == "paper":
        return [
            Column("places_top1", "Places205 top-1", "transfer_places205"),
            Column("places_top5", "Places205 top-5", "transfer_places205", ("top5",)),
            Column("voc07_map", "VOC07 mAP", "transfer_voc07", ("map",)),
        ]
    return [Column("transfer_top1", "scikit-learn's digits", "transfer_digits8x8")]


def _table4_columns(profile: str) -> list[Column]:
    return [
        LINEAR,
        Column("linear_top5", "linear probing, top-5", "linear", ("top5",)),
        *_transfer_columns(profile),
        Column("semi1_top1", "1 % of labels", "semi1"),
        Column("semi1_top5", "1 %, top-5", "semi1", ("top5",)),
        Column("semi10_top1", "10 % of labels", "semi10"),
        Column("semi10_top5", "10 %, top-5", "semi10", ("top5",)),
        KNN,
    ]


def _complexity(profile: str, sizes: dict[str, tuple], with_paper: Callable[[str, int, int], dict]) -> list[Row]:
    """A row for each method, q and batch size; all are entries of one file."""
    methods, dims, batches = sizes[profile]
    return [
        Row(
            method,
            q,
            f"{profile}/complexity",
            with_paper(method, q, n),
            labels={"batch size": str(n)},
            entry=f"{method} q={q} n={n}",
        )
        for q in dims
        for n in batches
        for method in methods
    ]


PAIR = ("VICReg", "SFRIK L=3")
ALL_METHODS = ("VICReg", "SimCLR", "AUH", "SFRIK L=2", "SFRIK L=3")
# profile -> methods, dimensions, batch sizes
TABLE5 = {
    "smoke": (PAIR, (512,), (64, 128)),
    "desk": (PAIR, (8192,), (256, 512, 1024)),
    "cifar10": (PAIR, (8192, 16384), (256, 512, 1024)),
    "paper": (PAIR, (32768,), (256, 512, 1024)),
}
TABLE6 = {
    "smoke": (ALL_METHODS, (64, 128), (64,)),
    "desk": (ALL_METHODS, (512, 1024, 2048, 4096, 8192), (1024,)),
    "cifar10": (ALL_METHODS, (1024, 2048, 4096, 8192), (512,)),
    "paper": (ALL_METHODS, (8192, 16384, 32768), (2048,)),
}


def _table5(profile: str) -> list[Row]:
    figures = paper_figures()["memory_q32768"]

    def paper(method: str, q: int, n: int) -> dict[str, float]:
        of_method = dict(zip(figures["batch_size"], figures[method.split()[0]], strict=True))
        return {"peak": of_method[n]} if n in of_method else {}

    return _complexity(profile, TABLE5, paper)


def _table6(profile: str) -> list[Row]:
    figures = paper_figures()["time_and_memory"]
    at = dict(zip(TABLE6[profile][1][-3:], ("q8192", "q16384", "q32768"), strict=False)) if profile != "cifar10" else {}

    def paper(method: str, q: int, n: int) -> dict[str, str]:
        return {"against_vicreg": f"{figures[at[q]]} (q = {at[q][1:]})"} if method == "SFRIK L=3" and q in at else {}

    return _complexity(profile, TABLE6, paper)


def _complexity_columns(table: str, profile: str) -> list[Column]:
    columns = [
        Column("loss_ms", "loss, forward and backward", table, ("loss_ms",), "ms"),
        Column("loss_mib", "peak memory of the loss", table, ("loss_mib",), "MiB", 0),
        Column("loss_time_ratio", "time of the loss / VICReg's", table, ("loss_time_ratio",), "", 2),
        Column("loss_memory_ratio", "memory of the loss / VICReg's", table, ("loss_memory_ratio",), "", 2),
    ]
    on_gpu = profile in ("cifar10", "paper")
    if table == "table6" or on_gpu:
        columns.append(Column("step_ms", "whole step", table, ("step_ms",), "ms"))
        columns.append(Column("step_time_ratio", "time of a step / VICReg's", table, ("step_time_ratio",), "", 2))
    if on_gpu:
        columns.append(Column("step_mib", "peak memory of a step", table, ("step_mib",), "MiB", 0))
        columns.append(Column("step_memory_ratio", "memory of a step / VICReg's", table, ("step_memory_ratio",), "", 2))
    return columns


def _table7(profile: str) -> list[Row]:
    q = DIMS[profile][-1]
    return [
        Row(label, q, _recipe(profile, f"{stem}_q{q}{suffix}"), labels={"views": views})
        for label, stem in [("SFRIK L=3", "sfrik_l3"), ("VICReg", "vicreg")]
        for views, suffix in [("two views", ""), ("OBoW", "_obow"), ("SwAV", "_swav")]
    ]


def _table8(profile: str) -> list[Row]:
    q, prefix = DIMS[profile][-1], "stl10_" if profile == "paper" else "crops_"
    return [
        Row(label, q, f"{profile}/{prefix}{stem}_q{q}")
        for label, stem in [("SimCLR", "simclr"), ("AUH", "auh"), ("VICReg", "vicreg"), ("SFRIK L=3", "sfrik_l3")]
    ]


# method, stem of the recipes, the setting that is tuned, its values in the names of the recipes
GRIDS = {
    "desk": [
        ("SimCLR", "simclr", "simclr_temp", ("0.15", "0.3", "0.6")),
        ("AUH", "auh", "auh_sim_coeff", ("384", "768", "1536")),
        ("VICReg", "vicreg", "vicreg_sim_coeff", ("5", "10", "15")),
        ("SFRIK L=3", "sfrik", "sfrik_sim_coeff", ("1024", "2048", "4096")),
    ],
    "smoke": [
        ("VICReg", "vicreg", "vicreg_sim_coeff", ("5", "10")),
        ("SFRIK L=3", "sfrik", "sfrik_sim_coeff", ("128", "256")),
    ],
}


def _table9(profile: str) -> list[Row]:
    q = DIMS[profile][-1]
    return [
        Row(method, q, f"{profile}/tune_{stem}_{value}", labels={"setting": f"{setting} = {value}"})
        for method, stem, setting, values in GRIDS[profile]
        for value in values
    ]


def _always(*columns: Column) -> Callable[[str], list[Column]]:
    return lambda profile: list(columns)


REPEATED = "A seed is a repetition of the whole measurement; memory is beyond the embeddings; ratios are of neighbours in time."
IN20 = "ImageNet 20 %, ResNet-18, 100 epochs"
EXPERIMENTS = {
    "table1": Experiment(
        "Linear probing and kNN",
        IN20,
        "linear_in20",
        _always(LINEAR, LOGISTIC, KNN),
        _table1,
        {"linear_top1": "linear probing, %"},
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
        _table2,
        {"linear_top1": "linear probing, %"},
        profiles=("smoke", "desk", "paper"),
        remark="Alignment (mean squared distance of two views), uniformity and effective rank are of the embeddings of the last "
        "training batch.",
    ),
    "table3": Experiment(
        "Transfer to other images",
        IN20,
        "transfer_in20",
        _transfer_columns,
        _table3,
        {"places_top1": "Places205 top-1, %", "places_top5": "Places205 top-5, %", "voc07_map": "VOC07 mAP, %"},
        profiles=("smoke", "desk", "paper"),
        stages=("pretrain", "semi"),
    ),
    "table4": Experiment(
        "The longest training: all protocols",
        "ImageNet, ResNet-50, 200 epochs",
        "imagenet_r50",
        _table4_columns,
        _table4,
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
        profiles=("smoke", "desk", "paper"),
        stages=("pretrain", "linear", "semi", "knn"),
    ),
    "table5": Experiment(
        "Peak memory against the batch size",
        "q = 32768, whole steps on one GPU of several",
        "memory_q32768",
        lambda profile: _complexity_columns("table5", profile),
        _table5,
        {"peak": "peak of a step, GB per GPU"},
        stages=(),
        remark=REPEATED,
        images=False,
    ),
    "table6": Experiment(
        "Time and memory of the regularisers",
        "whole steps, batch size 2048",
        "time_and_memory",
        lambda profile: _complexity_columns("table6", profile),
        _table6,
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
        _table7,
        {"linear_top1": "linear probing, %"},
        profiles=("smoke", "desk", "paper"),
    ),
    "table8": Experiment(
        "Random crops, few labels",
        "STL10: pretraining on 100,000 images without labels, AUH augmentations, 5,000 labels",
        None,
        _always(LOGISTIC, KNN),
        _table8,
        {"logistic_top1": "logistic regression, %"},
        profiles=("smoke", "desk", "paper"),
        stages=("pretrain", "knn"),
        remark="At the desk the evaluations see the labels of 35 training digits a class.",
    ),
    "table9": Experiment(
        "Tuning on a split of its own, then one test score",
        IN20,
        None,
        _always(
            Column("tune_top1", "linear probing on the tuning split (seed 0)", "linear_tune", only=(0,)),
            Column("test_top1", "the choice on the test images", "linear_inference"),
        ),
        _table9,
        {"test_top1": "linear probing, %"},
        profiles=("smoke", "desk"),
        stages=("pretrain", "tune"),
        remark="Each method's grid is scored on the tuning split with seed 0; the test images are scored once, by the choice "
        "alone, with the head that was trained for the tuning score.",
    ),
}
