"""Rows and columns of the tables: a row is a recipe with the paper's figures, a column a key of a score file.

The small profiles have smaller dimensions q; they are compared with the largest ones of the paper.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfrik.settings import grid_recipes
from sfrik.settings.recipes import TUNE

__all__ = [
    "DIMS",
    "IMAGES",
    "KNN",
    "KNN200",
    "LINEAR",
    "LOGISTIC",
    "TARGETS",
    "Column",
    "Row",
    "paper_figures",
    "table1_rows",
    "table2_rows",
    "table3_rows",
    "table4_columns",
    "table4_rows",
    "table7_rows",
    "table8_rows",
    "table9_rows",
    "transfer_columns",
]

# The dimensions of table 1. Smoke has only one: nearly all of its time is spent on starting the notebooks.
DIMS = {
    "smoke": (64,),
    "digits": (128, 256, 512),
    "photos": (128, 512),
    "cifar10": (512, 1024, 2048),
    "cifar10_quick": (512, 1024, 2048),
    "paper": (1024, 2048, 4096, 8192),
}
PREFIX = {"paper": "in20_"}
IMAGES = {
    "smoke": "300 digits of MNIST5k (a test of the software)",
    "digits": "MNIST5k (3,500 training, 1,000 test digits)",
    "photos": "10,000 of CIFAR-10's training images, its 10,000 test images",
    "cifar10": "CIFAR-10 (50,000 training, 10,000 test images), 200 epochs",
    "cifar10_quick": "CIFAR-10 (50,000 training, 10,000 test images), 50 epochs",
    "paper": "ImageNet",
}
TARGETS: dict[str, tuple[str, ...]] = dict.fromkeys(IMAGES, ())
TARGETS |= {"paper": ("places205", "voc07"), "digits": ("digits8x8",), "smoke": ("digits8x8",)}


@dataclass(frozen=True)
class Column:
    """A measured quantity of a run.

    Attributes:
        name: its name in the CSV file.
        title: its heading in the other formats, without the unit.
        score: the file that holds it, <score>.json; "metrics" is the last epoch of metrics.jsonl.
        key: the path to the value in that file.
        unit: of the value.
        digits: decimals to show.
        only: the seeds to use; all when None.
        better: which value is the better one: "higher", "lower", or "" if neither is.
    """

    name: str
    title: str
    score: str
    key: tuple[str, ...] = ("top1",)
    unit: str = "%"
    digits: int = 1
    only: tuple[int, ...] | None = None
    better: str = "higher"

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Row:
    """A recipe, with the paper's figures for it.

    Attributes:
        method: the name of the method.
        q: dimension of the embeddings; None for baselines without one.
        recipe: PROFILE/NAME.
        paper: the paper's figures by column.
        paper_q: the dimension that they were measured at.
        labels: additional columns that distinguish the rows, such as the kernel.
        entry: the key of this row in a score file that holds several measurements.
    """

    method: str
    q: int | None
    recipe: str
    paper: Mapping[str, float | str] = field(default_factory=dict)
    paper_q: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    entry: str | None = None

    @property
    def parts(self) -> list[str]:
        """What identifies the row, for a reader: the method, q and the labels."""
        return [self.method, *([f"q = {self.q}"] if self.q else []), *self.labels.values()]


def paper_figures() -> dict[str, Any]:
    """The paper's figures and their sources."""
    return tomllib.loads((Path(__file__).parent / "paper.toml").read_text(encoding="utf-8"))


def _recipe(profile: str, stem: str) -> str:
    return f"{profile}/{PREFIX.get(profile, '')}{stem}"


LINEAR = Column("linear_top1", "linear probing", "linear")
LOGISTIC = Column("logistic_top1", "logistic regression", "logistic")
KNN = Column("knn_top1", "20-NN", "knn", ("top1_at", "20"))
KNN200 = Column("knn200_top1", "200-NN", "knn", ("top1_at", "200"))


def table1_rows(profile: str) -> list[Row]:
    """All methods and dimensions, and the two baselines that need no training."""
    figures = paper_figures()["linear_in20"]
    dims = DIMS[profile]
    paper_dims = [figures["q"][-1] * q // dims[-1] for q in dims]  # the largest ones correspond, and so do ratios
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
    if profile == "photos":  # a small q, to see whether degree 3 helps there too; the paper has none
        rows.append(Row("SFRIK L=3", dims[0], f"{profile}/sfrik_l3_q{dims[0]}"))
    if profile != "paper":
        rows.append(Row("random weights", None, f"{profile}/random_weights"))
        rows.append(Row("raw pixels", None, f"{profile}/raw_pixels"))
    return rows


def table2_rows(profile: str) -> list[Row]:
    """Kernels of the MMD at the largest q of the profile."""
    figures, q = paper_figures()["kernel_choice"], DIMS[profile][-1]
    kernels = [
        ("truncated L=3", f"sfrik_l3_q{q}", figures["truncated L=3"]),
        ("exp(-s |u - v|^2)", "kernel_rbf", figures["exp(-t |u - v|^2)"]),
        ("C - |u - v|^p", "kernel_power", figures["C - |u - v|^p"]),
        ("heat", "kernel_heat", None),
    ]
    if profile == "digits":  # degree 1 with the strength of L = 2, and far beyond; the paper has none
        kernels += [(f"degree 1, b_1 = {b}", f"sfrik_l1_b{b}_q{q}", None) for b in (41, 1000)]
    return [
        Row(
            "MMD", q, _recipe(profile, stem), {"linear_top1": paper} if paper else {}, 8192 if paper else None, {"kernel": kernel}
        )
        for kernel, stem, paper in kernels
    ]


def table3_rows(profile: str) -> list[Row]:
    """The methods whose transfer is measured, at the largest q of the profile."""
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


def table4_rows(profile: str) -> list[Row]:
    """VICReg and SFRIK at the paper's dimensions, or the profile's in their place."""
    figures = paper_figures()["imagenet_r50"]
    dims = {8192: 128, 16384: 256, 32768: 512} if profile == "digits" else dict.fromkeys((8192, 16384, 32768), 64)
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
    if profile == "digits":  # VICReg needs a large q: without this row, table 4 would show only the effect of a small q
        rows.insert(1, Row("VICReg", 512, "digits/vicreg_q512"))
    return rows


def transfer_columns(profile: str) -> list[Column]:
    """The transfer scores of a profile."""
    if profile == "paper":
        return [
            Column("places_top1", "Places205 top-1", "transfer_places205"),
            Column("places_top5", "Places205 top-5", "transfer_places205", ("top5",)),
            Column("voc07_map", "VOC07 mAP", "transfer_voc07", ("map",)),
        ]
    return [Column("transfer_top1", "scikit-learn's digits", "transfer_digits8x8")]


def table4_columns(profile: str) -> list[Column]:
    """All evaluation protocols."""
    return [
        LINEAR,
        Column("linear_top5", "linear probing, top-5", "linear", ("top5",)),
        *transfer_columns(profile),
        Column("semi1_top1", "1 % of labels", "semi1"),
        Column("semi1_top5", "1 %, top-5", "semi1", ("top5",)),
        Column("semi10_top1", "10 % of labels", "semi10"),
        Column("semi10_top5", "10 %, top-5", "semi10", ("top5",)),
        KNN,
    ]


def table7_rows(profile: str) -> list[Row]:
    """SFRIK and VICReg with two views, OBoW and SwAV multi-crop."""
    q = DIMS[profile][-1]
    return [
        Row(label, q, _recipe(profile, f"{stem}_q{q}{suffix}"), labels={"views": views})
        for label, stem in [("SFRIK L=3", "sfrik_l3"), ("VICReg", "vicreg")]
        for views, suffix in [("two views", ""), ("OBoW", "_obow"), ("SwAV", "_swav")]
    ]


def table8_rows(profile: str) -> list[Row]:
    """All methods on STL10, or on random crops of the profile's images."""
    q, prefix = DIMS[profile][-1], "stl10_" if profile == "paper" else "crops_"
    return [
        Row(label, q, f"{profile}/{prefix}{stem}_q{q}")
        for label, stem in [("SimCLR", "simclr"), ("AUH", "auh"), ("VICReg", "vicreg"), ("SFRIK L=3", "sfrik_l3")]
    ]


def table9_rows(profile: str) -> list[Row]:
    """The tuning grid of each method, at each q that has one."""
    return [
        Row(method, q, recipe, labels={"setting": ", ".join(f"{name} = {value:g}" for name, value in point.items())})
        for method, stem in [("SimCLR", "simclr"), ("AUH", "auh"), ("VICReg", "vicreg"), ("SFRIK L=3", "sfrik")]
        for q in DIMS[profile]
        for recipe, point in grid_recipes(profile, f"{TUNE}{stem}_q{q}").items()
    ]
