"""Below the tables: what a reader of a profile's numbers needs to know beside the recipes, and figures that others publish."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from sfrik.settings import PretrainSettings, load_recipe
from sfrik.tables.rows import DIMS, Row, table1_rows, table2_rows, table9_rows

__all__ = ["PUBLISHED", "published_figures", "remark"]

PUBLISHED = "Published by others, not measured here, % top-1"

COST_REMARK = (
    "A repetition is a whole measurement, in which all methods and the product take turns. Memory excludes the embeddings. "
    "Ratios compare consecutive measurements with the paper's baseline, the plain formula of VICReg. *plain*: the formula of the "
    "paper with autograd, as in the authors' code; the other rows are the closed forms of this library. The loss is that of two "
    "views; one product is that of one view's embeddings with their transpose."
)
DIAGNOSTICS = (
    "Alignment (mean squared distance between two views), uniformity and effective rank are those of the last training batch's "
    "embeddings."
)
TABLE9 = (
    "Each method's grid is scored on the tuning split with seed 0. In this table only the chosen setting is scored on the test "
    "images, once, with the head trained for the tuning score"
)
MNIST5K = {
    "table7": "On MNIST5k the two views are random affine transforms of a digit, and multi-crop uses crops without flips; about "
    "a tenth of SwAV's 12-pixel crops are nearly black.",
    "table8": "On MNIST5k the evaluations use the labels of 35 training digits per class.",
    "table9": f"{TABLE9}.",
}
PATCHES = "The network's first layer takes patches of 4 x 4 pixels"
TUNED = f"Each row has the weight and the rate that the tuning split chose (docs/tuning.md). {PATCHES}."
DIGITS = dict.fromkeys(("table1", "table3", "table8"), TUNED) | {
    "table2": f"{TUNED} Those of degree 1 with b_1 = 41 and 1000 have L = 2's.",
    "table4": f"{TUNED} The learning rates and epochs of fine-tuning were chosen by the mean of SFRIK L=3 and "
    "VICReg at q = 512, and used for all.",
    "table7": f"Weights and rates were chosen with two views (docs/tuning.md). {PATCHES}.",
    "table9": f"{PATCHES}.",
}


def remark(name: str, profile: str) -> str:
    """The note below a table of a profile; empty if it has none."""
    weights = _trade_offs(table1_rows(profile)) if name == "table1" and profile != "paper" else ""
    return " ".join(filter(None, (_remark(name, profile), weights)))


def _remark(name: str, profile: str) -> str:
    if name in ("table5", "table6"):
        return COST_REMARK
    kernels = _of_kernels(profile) if name == "table2" and profile in ("smoke", "digits", "photos") else ""
    if profile in ("smoke", "digits"):
        return " ".join(filter(None, (kernels, MNIST5K.get(name), DIGITS.get(name) if profile == "digits" else "")))
    if kernels:
        return kernels
    if name == "table1" and profile.startswith("cifar10"):
        return (
            "The backbones are trained on all 50,000 images, and kNN compares with these. Linear probing and logistic regression "
            "train on the first 4,500 per class and choose their rate on 499 others."
        )
    if name == "table1" and profile == "photos":
        return (
            "Chosen on the tuning split with seed 0, in runs of 5 epochs: the learning rate of each method at q = 512, and the "
            "weight of each row (docs/tuning.md); the weight of SFRIK L=3 is proportional to q."
        )
    if name == "table7" and profile == "photos":
        return "Multi-crop has the paper's counts and scales; the sizes of its crops are scaled from 224 to 32 pixels."
    if name == "table9":
        short, whole = load_recipe(table9_rows(profile)[0].recipe), load_recipe(f"{profile}/sfrik_l3_q{DIMS[profile][-1]}")
        images = "" if short.get("subset") == whole.get("subset") else f" on {short['subset']:,} images per class"
        return f"The grids have runs of {short['epochs']} epochs{images}, where table 1 has {whole['epochs']}. {TABLE9}."
    return ""


def _trade_offs(rows: list[Row]) -> str:
    """The trade-off of each row of SFRIK, from its recipe, beside the paper's."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.method.startswith("SFRIK"):
            value = PretrainSettings.parse(load_recipe(row.recipe)).trade_off
            found.setdefault(f"{value:.4g}", []).append(f"{row.method}, q = {row.q}")
    each = "; ".join(f"{value} ({', '.join(of)})" for value, of in found.items()) if len(found) > 1 else next(iter(found))
    return f"Trade-off λ of SFRIK: {each}; the paper's is 2.048."


def _of_kernels(profile: str) -> str:
    """The scales of table 2's kernels, what their series leave out, and the weights beside them, from the recipes."""
    from sfrik.kernels import format_share  # here, since it imports torch
    from sfrik.objectives.factory import left_out

    recipes = [PretrainSettings.parse(load_recipe(row.recipe)) for row in table2_rows(profile)]
    kernels = []
    for s in recipes:
        if s.sfrik_kernel == "truncated":
            continue
        scale = f"{s.kernel_scale:g}" if s.sfrik_kernel_scale or s.sfrik_kernel != "heat" else "log(q)"
        kernel = {"rbf": f"s = {scale}", "power": f"p = {scale}", "heat": f"heat at time {scale} / (q - 1)"}[s.sfrik_kernel]
        share = left_out(s)
        kernels.append(
            f"{kernel}, degrees 1 to {s.sfrik_kernel_degree}, which leave out {format_share(share)} of it"
            if share
            else f"{kernel}, exact"
        )
    weights = "; ".join(f"{s.sfrik_sim_coeff:g} and {s.base_lr:g}" for s in recipes)
    return f"Kernels: {'; '.join(kernels)}. Alignment weight and learning rate of each row, in order: {weights}. {DIAGNOSTICS}"


def published_figures(name: str, profile: str) -> list[dict[str, Any]]:
    """The figures that others publish for the images of a table, with "source", "url", "setting", and "top1" in % by method."""
    found = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
    return found.get("cifar10", []) if name == "table1" and profile.startswith("cifar10") else []
