"""The rows and columns of the paper's tables: a row is a recipe with the paper's own figures, a column a key of a score file.

The desk and smoke profiles have smaller dimensions q, which stand where the paper has the last of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "BASELINE",
    "DIMS",
    "IMAGES",
    "KNN",
    "LINEAR",
    "LOGISTIC",
    "PLAIN",
    "STEP_BATCH",
    "TARGETS",
    "Column",
    "Row",
    "complexity_columns",
    "paper_figures",
    "table1_rows",
    "table2_rows",
    "table3_rows",
    "table4_columns",
    "table4_rows",
    "table5_rows",
    "table6_rows",
    "table7_rows",
    "table8_rows",
    "table9_rows",
    "transfer_columns",
]

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


def paper_figures() -> dict[str, Any]:
    """The paper's own figures, with their sources."""
    return tomllib.loads((Path(__file__).parent / "paper.toml").read_text())


def _recipe(profile: str, stem: str) -> str:
    return f"{profile}/{PREFIX.get(profile, '')}{stem}"


LINEAR = Column("linear_top1", "linear probing", "linear")
LOGISTIC = Column("logistic_top1", "logistic regression", "logistic")
KNN = Column("knn_top1", "20-NN", "knn", ("top1_at", "20"))


def table1_rows(profile: str) -> list[Row]:
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


def table2_rows(profile: str) -> list[Row]:
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


def table3_rows(profile: str) -> list[Row]:
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


def transfer_columns(profile: str) -> list[Column]:
    if profile == "paper":
        return [
            Column("places_top1", "Places205 top-1", "transfer_places205"),
            Column("places_top5", "Places205 top-5", "transfer_places205", ("top5",)),
            Column("voc07_map", "VOC07 mAP", "transfer_voc07", ("map",)),
        ]
    return [Column("transfer_top1", "scikit-learn's digits", "transfer_digits8x8")]


def table4_columns(profile: str) -> list[Column]:
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


# images of a step, where those of the loss would take minutes or more memory than one GPU has
STEP_BATCH = {"smoke": 16, "desk": 256, "paper": 256}
PLAIN = " plain"  # the end of a method's name: the formula of its paper by autograd, as in the authors' code
BASELINE = "VICReg plain"  # what ratios are to
BOTH = ("VICReg plain", "SFRIK L=3 plain", "VICReg", "SFRIK L=3", "SIGReg")
ALL = (
    "VICReg plain",
    "SimCLR plain",
    "AUH plain",
    "SFRIK L=3 plain",
    "VICReg",
    "SimCLR",
    "AUH",
    "SFRIK L=2",
    "SFRIK L=3",
    "SIGReg",
)
# profile -> methods, dimensions, batch sizes
TABLE5 = {
    "smoke": (BOTH, (512,), (64, 128)),
    "desk": (BOTH, (4096,), (256, 512, 1024, 2048)),
    "cifar10": (BOTH, (8192,), (256, 512, 1024, 2048)),
    "paper": (BOTH, (32768,), (256, 512, 1024, 2048)),
}
TABLE6 = {
    "smoke": (ALL, (64, 128), (64,)),
    "desk": (ALL, (256, 512, 1024, 2048, 4096, 8192), (512,)),
    "cifar10": (ALL, (512, 1024, 2048, 4096, 8192), (512,)),
    "paper": (ALL, (2048, 4096, 8192, 16384, 32768), (2048,)),
}


def table5_rows(profile: str) -> list[Row]:
    figures = paper_figures()["memory_q32768"]

    def paper(method: str, q: int, n: int) -> dict[str, float]:
        of_method = dict(zip(figures["batch_size"], figures.get(method.split()[0], ()), strict=False))
        return {"peak": of_method[n]} if method.endswith(PLAIN) and n in of_method else {}

    return _complexity(profile, TABLE5, paper)


def table6_rows(profile: str) -> list[Row]:
    figures = paper_figures()["time_and_memory"]

    def paper(method: str, q: int, n: int) -> dict[str, str]:
        said = figures.get(f"q{q}")
        return {"against_vicreg": said} if method == f"SFRIK L=3{PLAIN}" and said else {}

    return _complexity(profile, TABLE6, paper)


def complexity_columns(table: str, profile: str) -> list[Column]:
    columns = [
        Column("product_ms", "one product of n x n x q", table, ("product_ms",), "ms"),
        Column("loss_ms", "loss, forward and backward", table, ("loss_ms",), "ms"),
        Column("loss_products", "loss in products of n x n x q", table, ("loss_products",), "", 2),
        Column("loss_mib", "peak memory of the loss", table, ("loss_mib",), "MiB", 0),
        Column("loss_time_ratio", f"time of the loss / {BASELINE}'s", table, ("loss_time_ratio",), "", 3),
        Column("loss_memory_ratio", f"memory of the loss / {BASELINE}'s", table, ("loss_memory_ratio",), "", 2),
    ]
    on_gpu = profile in ("cifar10", "paper")
    if table == "table6" or on_gpu:
        batch = f" of {STEP_BATCH[profile]} images" if profile in STEP_BATCH else ""
        columns.append(Column("step_ms", f"whole step{batch}", table, ("step_ms",), "ms"))
        columns.append(Column("step_time_ratio", f"time of a step / {BASELINE}'s", table, ("step_time_ratio",), "", 2))
    if on_gpu:
        columns.append(Column("step_mib", "peak memory of a step", table, ("step_mib",), "MiB", 0))
        columns.append(Column("step_memory_ratio", f"memory of a step / {BASELINE}'s", table, ("step_memory_ratio",), "", 2))
    return columns


def table7_rows(profile: str) -> list[Row]:
    q = DIMS[profile][-1]
    return [
        Row(label, q, _recipe(profile, f"{stem}_q{q}{suffix}"), labels={"views": views})
        for label, stem in [("SFRIK L=3", "sfrik_l3"), ("VICReg", "vicreg")]
        for views, suffix in [("two views", ""), ("OBoW", "_obow"), ("SwAV", "_swav")]
    ]


def table8_rows(profile: str) -> list[Row]:
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
        ("VICReg", "vicreg", "vicreg_sim_coeff = vicreg_std_coeff", ("5", "10", "15")),
        ("SFRIK L=3", "sfrik", "sfrik_sim_coeff", ("1024", "2048", "4096")),
    ],
    "smoke": [
        ("VICReg", "vicreg", "vicreg_sim_coeff", ("5", "10")),
        ("SFRIK L=3", "sfrik", "sfrik_sim_coeff", ("128", "256")),
    ],
}


def table9_rows(profile: str) -> list[Row]:
    q = DIMS[profile][-1]
    return [
        Row(method, q, f"{profile}/tune_{stem}_{value}", labels={"setting": f"{setting} = {value}"})
        for method, stem, setting, values in GRIDS[profile]
        for value in values
    ]
