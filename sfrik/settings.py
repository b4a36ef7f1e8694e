"""Every setting with its type, unit, default and meaning.

A setting has one name everywhere: in a recipe (TOML), as a notebook parameter (snake case) and as a flag of the
command line (hyphens or underscores). One class a command; what a recipe keeps at its top level belongs to
pretraining, what stands in a `[table]` belongs to that evaluation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from sfrik.errors import SfrikError, nearest
from sfrik.networks import ARCHITECTURES, parse_mlp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "EvaluateSettings",
    "FeatureSettings",
    "KnnSettings",
    "LogisticSettings",
    "PretrainSettings",
    "Settings",
    "load_recipe",
    "recipe_names",
    "results_root",
    "run_folder",
]

RECIPES = Path(__file__).parent / "recipes"

# Settings that say where and on what a run happens, not what it computes: they stay out of its hash.
PLACE = {"exp_dir", "data_dir", "extraction_dir", "workers", "device", "pretrained", "ckp_path"}

# The original commands write ImageNet, VICReg, SFRIK.
_lower = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
Datasets = Annotated[Literal["mnist5k", "cifar10", "stl10", "imagenet", "image_folder"], _lower]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


def _weights(text: str) -> str:
    """Check of the kernel weights "1.0-40.0-40.0"."""
    try:
        values = [float(part) for part in text.split("-")]
    except ValueError:
        raise ValueError(f"must be numbers >= 0 joined by hyphens, such as 1.0-40.0-40.0, got {text!r}") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"must be finite numbers, got {text!r}")
    if not any(values):
        raise ValueError(f"at least one weight must be above 0, got {text!r}")
    return text


def _mlp(text: str) -> str:
    parse_mlp(text)
    return text


def _arch(name: str) -> str:
    if name not in (*ARCHITECTURES, "pixels"):
        raise ValueError(f"unknown architecture {name!r}{nearest(name, ARCHITECTURES)}: choose one of {', '.join(ARCHITECTURES)}")
    return name


class Settings(BaseModel):
    """What all commands share."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    dataset: Datasets = Field("imagenet", description="images to read")
    data_dir: str = Field("data", description="folder of the images; ImageNet: with train/ and val/")
    subset: PositiveInt | None = Field(None, description="the first so many training images of each class; all when unset")
    size: PositiveInt = Field(224, description="side of the views and of the test images, in pixels")
    arch: Annotated[str, AfterValidator(_arch)] = Field(
        "resnet18", description=f"backbone: {', '.join(ARCHITECTURES)}, or pixels (none)"
    )
    stem: Literal["imagenet", "small"] = Field("imagenet", description="first layers of the ResNet; small is for 32 pixels")
    batch_size: Annotated[int, Field(ge=2)] = Field(256, description="images a step, over all processes")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of initialisation, order and augmentation")
    exp_dir: str = Field("", description="the run's folder; results/<profile>/<recipe>/seed<k> when a recipe is given")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="of the network; losses are in fp32")
    workers: Annotated[int, Field(ge=0)] = Field(4, description="processes that decode images, for each training process")

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Checked settings; the error names the setting, where it stands and the nearest known one."""
        where = f" in {source}" if source else ""
        for name in values:
            if name not in cls.model_fields:
                raise SfrikError(f"unknown setting {name}{where}{nearest(name, cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            message = problem["msg"].removeprefix("Value error, ")
            got = repr(problem["input"]) if problem["loc"] else ""
            got = "" if got in message else f", got {got}"
            raise SfrikError(f"{name}{where}: {message}{got}") from None

    @classmethod
    def from_recipe(cls, recipe: str, **overrides: Any) -> Self:
        """Settings of recipe PROFILE/NAME with overrides; None keeps the recipe's value.

        >>> PretrainSettings.from_recipe("desk/sfrik_l3_q512", epochs=3).epochs
        3
        """
        section = next(name for name, kind in SECTIONS.items() if kind is cls)
        given = {name: value for name, value in overrides.items() if value is not None}
        settings = cls.parse(load_recipe(recipe, section) | given, f"recipe {recipe} with overrides")
        if settings.exp_dir:
            return settings
        return settings.model_copy(update={"exp_dir": str(run_folder(recipe, settings.seed))})

    def what(self) -> dict[str, Any]:
        """The settings that determine the outcome: without those that say where it is computed, or that have no effect."""
        idle = PLACE | self.without_effect()
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in idle}

    def without_effect(self) -> set[str]:
        """Names of the settings that belong to a choice which was not made, such as the scale of another kernel."""
        return set()

    def hash(self) -> str:
        """Twelve hexadecimal digits that name `what()`."""
        return hashlib.sha256(json.dumps(self.what(), sort_keys=True).encode()).hexdigest()[:12]


class PretrainSettings(Settings):
    """`sfrik pretrain`."""

    augmentations: Annotated[Literal["vicreg", "simclr", "auh", "digits"], _lower] = Field(
        "vicreg", description="how the two views are drawn"
    )
    mlp: Annotated[str, AfterValidator(_mlp)] = Field("8192-8192-8192", description="widths of the projector; the last is q")
    epochs: Annotated[int, Field(ge=0)] = Field(100, description="passes over the images")
    warmup_epochs: NotNegative = Field(10, description="epochs of linear warm-up of the rate")
    base_lr: PositiveFloat = Field(1.2, description="learning rate at 256 images; the peak is base_lr * batch_size / 256")
    wd: NotNegative = Field(1e-6, description="weight decay")
    ssl_method: Annotated[Literal["sfrik", "auh", "simclr", "vicreg", "none"], _lower] = Field(
        "sfrik", description="objective; none leaves the weights as initialised"
    )
    sfrik_sim_coeff: NotNegative = Field(4000.0, description="SFRIK: weight of the alignment")
    sfrik_mmd_coeff: NotNegative = Field(1.0, description="SFRIK: weight of the MMD")
    sfrik_weights: Annotated[str, AfterValidator(_weights)] = Field("1.0-40.0-40.0", description="SFRIK: b_1-b_2-...-b_L")
    sfrik_kernel: Literal["truncated", "rbf", "heat", "power"] = Field(
        "truncated", description="SFRIK: truncated, by sfrik_weights; rbf exp(-s |u - v|^2); heat; power C - |u - v|^s"
    )
    sfrik_kernel_scale: PositiveFloat = Field(
        1.0, description="SFRIK: s of rbf and of power (under 2); of heat, the time multiplied by q - 1"
    )
    sfrik_kernel_degree: PositiveInt = Field(4, description="SFRIK: degrees of the series of rbf, heat and power")
    auh_sim_coeff: NotNegative = Field(3000.0, description="AUH: weight of the alignment")
    auh_unif_coeff: NotNegative = Field(1.0, description="AUH: weight of the uniformity")
    auh_scale: PositiveFloat = Field(2.5, description="AUH: scale of the Gaussian kernel")
    simclr_temp: PositiveFloat = Field(0.15, description="SimCLR: temperature")
    vicreg_sim_coeff: NotNegative = Field(10.0, description="VICReg: weight of the invariance")
    vicreg_std_coeff: NotNegative = Field(10.0, description="VICReg: weight of the variance")
    vicreg_cov_coeff: NotNegative = Field(1.0, description="VICReg: weight of the covariance")
    log_every: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    knn_every: Annotated[int, Field(ge=0)] = Field(5, description="epochs between kNN scores on training images; 0: never")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.arch == "pixels" and self.ssl_method != "none":
            raise ValueError("arch pixels has nothing to train: it goes with ssl_method none")
        if (self.dataset == "mnist5k") != (self.augmentations == "digits"):
            fitting = "digits" if self.dataset == "mnist5k" else "vicreg, simclr or auh"
            raise ValueError(f"augmentations {self.augmentations} are not for the images of {self.dataset}: use {fitting}")
        if self.sfrik_kernel == "power" and self.sfrik_kernel_scale >= 2:
            raise ValueError(f"sfrik_kernel power is a kernel for sfrik_kernel_scale under 2, got {self.sfrik_kernel_scale}")
        return self

    def without_effect(self) -> set[str]:
        if self.sfrik_kernel == "truncated":
            return {"sfrik_kernel", "sfrik_kernel_scale", "sfrik_kernel_degree"}
        return {"sfrik_weights"}

    @property
    def dim(self) -> int:
        """q, the dimension of the embeddings."""
        return parse_mlp(self.mlp)[-1]

    @property
    def kernel_weights(self) -> list[float]:
        """b_1, ..., b_L."""
        return [float(part) for part in self.sfrik_weights.split("-")]


class FrozenSettings(Settings):
    """What the evaluations share: which weights, and which images they are judged on."""

    pretrained: str = Field("", description="weights file; backbone.safetensors in the run's folder when unset")
    val_dataset: Literal["val", "train"] = Field("val", description="val: the test images; train: the tuning split")
    val_subset: PositiveInt | None = Field(None, description="images a class of the tuning split")


class EvaluateSettings(FrozenSettings):
    """`sfrik evaluate`: a linear probe on the frozen backbone, with augmentation."""

    weights: Literal["freeze"] = Field("freeze", description="freeze: the backbone stays as it is")
    epochs: PositiveInt = Field(100, description="passes over the labelled images")
    lr_head: PositiveFloat = Field(0.4, description="learning rate of the linear head")
    weight_decay: NotNegative = Field(1e-6, description="of the head")


class FeatureSettings(FrozenSettings):
    """`sfrik extract-features`."""

    extraction_dir: str = Field("", description="folder of the features; features/ in the run's folder when unset")


class KnnSettings(FeatureSettings):
    """`sfrik knn-eval`: DINO's weighted kNN."""

    nb_knn: tuple[PositiveInt, ...] = Field((10, 20, 100, 200), description="numbers of neighbours")
    temperature: PositiveFloat = Field(0.07, description="of the votes exp(similarity / temperature)")


class LogisticSettings(FeatureSettings):
    """`sfrik logistic-regression` on frozen features."""

    solver: Literal["lbfgs", "sgd"] = Field(
        "sgd", description="sgd: the paper's; lbfgs: scikit-learn's, C chosen on the tuning split"
    )
    epochs: PositiveInt = Field(100, description="sgd: passes over the features")
    lr_head: PositiveFloat = Field(0.4, description="sgd: learning rate")
    weight_decay: NotNegative = Field(1e-6, description="sgd: weight decay")
    inverse_penalties: tuple[PositiveFloat, ...] = Field((0.01, 0.1, 1.0, 10.0), description="lbfgs: values of C to choose from")


SECTIONS: dict[str, type[Settings]] = {
    "pretrain": PretrainSettings,
    "evaluate": EvaluateSettings,
    "extract_features": FeatureSettings,
    "knn_eval": KnnSettings,
    "logistic_regression": LogisticSettings,
}


def results_root() -> Path:
    """results/ of the checkout that the library runs from, seen from the working directory; else of the working directory."""
    checkout = RECIPES.parents[1]
    return Path(os.path.relpath(checkout / "results")) if (checkout / "Makefile").is_file() else Path("results")


def run_folder(recipe: str, seed: int, root: str | Path | None = None) -> Path:
    """<root>/<profile>/<recipe>/seed<k>, the root being `results_root()` when None."""
    return Path(root or results_root()) / recipe / f"seed{seed}"


def recipe_names(profile: str | None = None) -> list[str]:
    """The recipes there are, as PROFILE/NAME."""
    found = (path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.glob("*/*.toml"))
    return sorted(name for name in found if not name.endswith("/profile") and (not profile or name.startswith(profile + "/")))


def load_recipe(name: str, command: str = "pretrain") -> dict[str, Any]:
    """Settings of recipe PROFILE/NAME for one command, not yet checked.

    `profile.toml` in the profile's folder holds what its recipes share. An evaluation inherits the images and the
    network from the top level, where the settings of pretraining stand.
    """
    if name not in recipe_names():
        raise SfrikError(f"unknown recipe {name!r}{nearest(name, recipe_names())}: the recipes are in sfrik/recipes")
    merged: dict[str, Any] = {}
    for part in (f"{name.split('/')[0]}/profile", name):
        path = RECIPES / f"{part}.toml"
        try:
            content = tomllib.loads(path.read_text())
        except FileNotFoundError:
            continue
        except tomllib.TOMLDecodeError as error:
            raise SfrikError(f"recipe {part}.toml is not valid TOML: {error}") from None
        for key, value in content.items():
            if isinstance(value, dict):
                if key not in SECTIONS:
                    raise SfrikError(f"unknown section [{key}] in recipe {part}.toml{nearest(key, SECTIONS)}")
                merged[key] = {**merged.get(key, {}), **value}
            else:
                merged[key] = value
    top = {key: value for key, value in merged.items() if not isinstance(value, dict)}
    PretrainSettings.parse(top, f"recipe {name}")
    if command == "pretrain":
        return top
    shared = {key: value for key, value in top.items() if key in Settings.model_fields and key != "batch_size"}
    return {**shared, **merged.get(command, {})}
