"""Every setting with its type, unit, default and meaning.

A setting has one name everywhere: in a recipe (TOML), as a notebook parameter (snake case) and as a flag of the
command line (hyphens or underscores). One class a command; what a recipe keeps at its top level belongs to
pretraining, what stands in a `[table]` belongs to that evaluation.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from sfrik.architectures import ARCHITECTURES, LARGEST_WIDTH, parse_mlp
from sfrik.errors import SfrikError, nearest
from sfrik.system.files import read_toml

__all__ = [
    "EvaluateSettings",
    "FeatureSettings",
    "KnnSettings",
    "LogisticSettings",
    "PretrainSettings",
    "Settings",
    "TransferSettings",
    "load_recipe",
    "recipe_names",
    "results_root",
    "run_folder",
]

RECIPES = Path(__file__).parent / "recipes"

# Settings that say where and on what a run happens, not what it computes: they stay out of its hash.
PLACE = {"exp_dir", "data_dir", "extraction_dir", "workers", "device", "pretrained", "ckp_path", "label_list", "target_dir"}
PLACE |= {"checkpoint_minutes", "loggers"}

# The settings that belong to the views of one name.
CROPS = {
    "obow": ("num_img_crops", "image_crop_size", "num_img_patches", "img_patch_size"),
    "swav": ("nmb_crops", "size_crops", "min_scale_crops", "max_scale_crops", "general_indices"),
}

# The original commands write ImageNet, VICReg, SFRIK.
_lower = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
Datasets = Annotated[Literal["mnist5k", "cifar10", "stl10", "imagenet", "image_folder"], _lower]


def _number(value: Any) -> Any:
    """What may become a number. True and false may not, though Python counts with them."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Every number is finite and has two bounds: what can be computed, else what nobody means.
Int = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
LARGEST = 1e7  # float32 has 7 digits: beside a larger term of a loss one of size 1 is lost
SCALES = {"truncated": 80.0, "rbf": 40.0, "heat": 80.0, "power": 2.0}  # beyond, the coefficients are 0 in float32
MOST_DEGREES = 64  # N(65536, 64) is 1e219, which float64 holds
Count = Annotated[Int, Field(ge=1, le=10**9)]
Epochs = Annotated[Int, Field(ge=0, le=10**6)]
Batch = Annotated[Int, Field(ge=2, le=2**20)]
Pixels = Annotated[Int, Field(ge=1, le=4096)]
Slices = Annotated[Int, Field(ge=1, le=LARGEST_WIDTH)]  # as many as the largest embedding has dimensions
Fraction = Annotated[Real, Field(ge=0, le=1)]
NotNegative = Annotated[Real, Field(ge=0, le=LARGEST)]
Rate = Annotated[Real, Field(gt=0, le=3.4e38)]  # what float32 holds
Temperature = Annotated[Real, Field(ge=1e-6, le=1e6)]  # of similarities, which float32 has to 1e-7
Penalty = Annotated[Real, Field(ge=1e-12, le=1e12)]
Rates = Annotated[tuple[Rate, ...], Field(max_length=100)]
Penalties = Annotated[tuple[Penalty, ...], Field(min_length=1, max_length=100)]


def _weights(text: str) -> str:
    """Check of the kernel weights "1.0-40.0-40.0"."""
    parts = text.split("-")
    try:
        values = [float(part) for part in parts if part.isascii()]
    except ValueError:
        values = []
    if len(values) < len(parts):
        raise ValueError(f"must be numbers >= 0 joined by hyphens, such as 1.0-40.0-40.0, got {text[:100]!r}")
    if len(values) > MOST_DEGREES:
        raise ValueError(f"must be at most {MOST_DEGREES} numbers, one for each degree, got {len(values)}")
    if not all(value <= LARGEST for value in values):
        raise ValueError(f"must be finite numbers, each at most {LARGEST:g}, got {text[:100]!r}")
    if not any(values):
        raise ValueError(f"at least one weight must be above 0, got {text[:100]!r}")
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

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    dataset: Datasets = Field("imagenet", description="images to read")
    data_dir: str = Field("data", description="folder of the images; ImageNet: with train/ and val/")
    subset: Count | None = Field(None, description="the first so many training images of each class; all when unset")
    size: Pixels = Field(224, description="side of the views and of the test images, in pixels")
    arch: Annotated[str, AfterValidator(_arch)] = Field(
        "resnet18", description=f"backbone: {', '.join(ARCHITECTURES)}, or pixels (none)"
    )
    stem: Literal["imagenet", "small"] = Field("imagenet", description="first layers of the ResNet; small is for 32 pixels")
    batch_size: Batch = Field(256, description="images a step, over all processes")
    seed: Int = Field(0, ge=0, le=2**32 - 1, description="of initialisation, order and augmentation")
    exp_dir: str = Field("", description="the run's folder; results/<profile>/<recipe>/seed<k> when a recipe is given")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="of the network; losses are in fp32")
    workers: Int = Field(4, ge=0, le=1024, description="processes that decode images, for each training process")

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Checked settings; the error names the setting, where it stands and the nearest known one."""
        where = f" in {source}" if source else ""
        for name in values:
            if name not in cls.model_fields:
                shown = name if name.isidentifier() else repr(name)
                raise SfrikError(f"unknown setting {shown}{where}{nearest(name, cls.model_fields)}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            message = problem["msg"].removeprefix("Value error, ")
            got = f"{problem['input']!r:.100}" if problem["loc"] else ""
            own = problem["type"] == "value_error" and ", got " in message  # of ours, which names the value itself
            got = "" if not got or own else f", got {got}"
            raise SfrikError(f"{name}{where}: {message}{got}") from None

    @classmethod
    def from_recipe(cls, recipe: str, **overrides: Any) -> Self:
        """Settings of recipe PROFILE/NAME with overrides; None keeps the recipe's value.

        >>> PretrainSettings.from_recipe("desk/sfrik_l3_q512", epochs=3).epochs
        3
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        settings = cls.parse(load_recipe(recipe, cls.section(given)) | given, f"recipe {recipe} with overrides")
        if settings.exp_dir:
            return settings
        return settings.model_copy(update={"exp_dir": str(run_folder(recipe, settings.seed))})

    @classmethod
    def section(cls, given: Mapping[str, Any]) -> str:
        """The part of a recipe that holds these settings, "pretrain" for its top level; `given` are the overrides."""
        return next(name for name, kind in SECTIONS.items() if kind is cls)

    def what(self) -> dict[str, Any]:
        """The settings that determine the outcome: without those that say where it is computed, or that have no effect."""
        idle = PLACE | self.without_effect()
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in idle}

    def without_effect(self) -> set[str]:
        """Names of the settings that belong to a choice which was not made, such as the crops of SwAV under other views."""
        return set()

    def hash(self) -> str:
        """Twelve hexadecimal digits that name `what()`."""
        return hashlib.sha256(json.dumps(self.what(), sort_keys=True).encode()).hexdigest()[:12]


class PretrainSettings(Settings):
    """`sfrik pretrain`."""

    augmentations: Annotated[Literal["vicreg", "simclr", "auh", "obow", "swav", "digits"], _lower] = Field(
        "vicreg", description="how the views are drawn: two of them, or many with obow and swav"
    )
    input_pipeline: Literal["tensor", "pil"] = Field(
        "tensor", description="colours of photographs: tensor in batches on the device, pil one by one where they are decoded"
    )
    num_img_crops: Int = Field(2, ge=0, le=100, description="OBoW: crops beside the whole image")
    image_crop_size: Pixels = Field(160, description="OBoW: side of a crop, in pixels")
    num_img_patches: Int = Field(5, ge=0, le=9, description="OBoW: patches of a 3 x 3 grid")
    img_patch_size: Pixels = Field(96, description="OBoW: side of a patch, in pixels")
    nmb_crops: tuple[Annotated[Int, Field(ge=1, le=100)], ...] = Field(
        (2, 6), max_length=10, description="SwAV: crops of each size"
    )
    size_crops: tuple[Pixels, ...] = Field((224, 96), max_length=10, description="SwAV: the sizes, in pixels")
    min_scale_crops: tuple[Fraction, ...] = Field(
        (0.14, 0.05), max_length=10, description="SwAV: least share of the image's area, each size"
    )
    max_scale_crops: tuple[Fraction, ...] = Field(
        (1.0, 0.14), max_length=10, description="SwAV: largest share of the image's area, each size"
    )
    general_indices: tuple[Annotated[Int, Field(ge=0, le=999)], ...] = Field(
        (0, 1), max_length=1000, description="SwAV: views that the others are aligned to"
    )
    reg_small: bool = Field(False, description="multi-crop: regularise all views, not the anchors alone")
    mlp: Annotated[str, AfterValidator(_mlp)] = Field("8192-8192-8192", description="widths of the projector; the last is q")
    epochs: Epochs = Field(100, description="passes over the images")
    warmup_epochs: NotNegative = Field(10, description="epochs of linear warm-up of the rate")
    base_lr: Rate = Field(1.2, description="learning rate at 256 images; the peak is base_lr * batch_size / 256")
    wd: NotNegative = Field(1e-6, description="weight decay")
    ssl_method: Annotated[Literal["sfrik", "auh", "simclr", "vicreg", "sigreg", "none"], _lower] = Field(
        "sfrik", description="objective; none leaves the weights as initialised"
    )
    sfrik_sim_coeff: NotNegative = Field(4000.0, description="SFRIK: weight of the alignment")
    sfrik_mmd_coeff: NotNegative = Field(1.0, description="SFRIK: weight of the MMD")
    sfrik_weights: Annotated[str, AfterValidator(_weights)] = Field("1.0-40.0-40.0", description="SFRIK: b_1-b_2-...-b_L")
    sfrik_kernel: Literal["truncated", "rbf", "heat", "power"] = Field(
        "truncated", description="SFRIK: truncated, rbf exp(-s |u - v|^2), heat, or power C - |u - v|^s"
    )
    sfrik_kernel_scale: Real = Field(
        1.0, ge=1e-6, le=max(SCALES.values()), description="SFRIK: s of rbf and power (under 2); of heat, the time times q - 1"
    )
    sfrik_kernel_degree: Int = Field(4, ge=1, le=MOST_DEGREES, description="SFRIK: degrees of the series of rbf, heat and power")
    sfrik_slices: Slices | None = Field(
        None, description="SFRIK: estimate the MMD by so many random directions a step; exact when unset"
    )
    auh_sim_coeff: NotNegative = Field(3000.0, description="AUH: weight of the alignment")
    auh_unif_coeff: NotNegative = Field(1.0, description="AUH: weight of the uniformity")
    auh_scale: Real = Field(2.5, ge=1e-6, le=1e4, description="AUH: scale of the Gaussian kernel")
    simclr_temp: Temperature = Field(0.15, description="SimCLR: temperature")
    vicreg_sim_coeff: NotNegative = Field(10.0, description="VICReg: weight of the invariance")
    vicreg_std_coeff: NotNegative = Field(10.0, description="VICReg: weight of the variance")
    vicreg_cov_coeff: NotNegative = Field(1.0, description="VICReg: weight of the covariance")
    micro_batch: Batch | None = Field(
        None, description="most images that pass the network at a time, on each process; the loss is that of the whole batch"
    )
    compile: bool = Field(False, description="compile the network by torch.compile, which needs a C++ compiler")
    sigreg_weight: Fraction = Field(0.05, description="SIGReg: lambda, the share of the regulariser in the loss")
    sigreg_slices: Slices = Field(1024, description="SIGReg: random directions a step")
    checkpoint_minutes: Real = Field(
        10.0, gt=0, le=366 * 24 * 60, description="most minutes between checkpoints; each epoch ends with one"
    )
    skip_broken: bool = Field(False, description="put the next image in the place of one that cannot be read, and count it")
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), max_length=2, description="curves beside metrics.jsonl: tensorboard, wandb (Weights & Biases), or both"
    )
    log_every: Count = Field(10, description="steps between lines of metrics.jsonl")
    knn_every: Epochs = Field(5, description="epochs between kNN scores on training images; 0: never")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.arch == "pixels" and self.ssl_method != "none":
            raise ValueError("arch pixels has nothing to train: it goes with ssl_method none")
        ours, others = ("digits", "auh", "obow", "swav"), ("vicreg", "simclr", "auh", "obow", "swav")
        fitting = ours if self.dataset == "mnist5k" else others
        if self.augmentations not in fitting:
            raise ValueError(
                f"augmentations {self.augmentations} are not for the images of {self.dataset}: use {', '.join(fitting[:-1])} "
                f"or {fitting[-1]}"
            )
        if self.augmentations == "obow" and self.num_img_crops + self.num_img_patches == 0:
            raise ValueError("augmentations obow need num_img_crops or num_img_patches above 0")
        if self.augmentations == "swav":
            self._check_swav()
        scale, most = self.sfrik_kernel_scale, SCALES[self.sfrik_kernel]
        if scale >= most if self.sfrik_kernel == "power" else scale > most:
            bound = "under" if self.sfrik_kernel == "power" else "of at most"
            raise ValueError(f"sfrik_kernel {self.sfrik_kernel} is a kernel for sfrik_kernel_scale {bound} {most:g}, got {scale}")
        return self

    def _check_swav(self) -> None:
        lists = {name: len(getattr(self, name)) for name in ("nmb_crops", "size_crops", "min_scale_crops", "max_scale_crops")}
        if len(set(lists.values())) > 1:
            raise ValueError(f"the crops of SwAV need lists of one length, got {lists}")
        views = sum(self.nmb_crops)
        if views < 2:
            raise ValueError(f"nmb_crops must make at least two views, got {self.nmb_crops}")
        for low, high in zip(self.min_scale_crops, self.max_scale_crops, strict=True):
            if not 0 < low <= high:
                raise ValueError(f"min_scale_crops must be above 0 and at most max_scale_crops, got {low} and {high}")
        if not self.general_indices or len(set(self.general_indices)) < len(self.general_indices):
            raise ValueError(f"general_indices must be different views, got {self.general_indices}")
        if max(self.general_indices) >= views:
            raise ValueError(f"general_indices must be views from 0 to {views - 1}, got {self.general_indices}")

    def without_effect(self) -> set[str]:
        idle = {name for augmentations, names in CROPS.items() if augmentations != self.augmentations for name in names}
        idle |= set() if self.multi_crop else {"reg_small"}
        idle |= {name for name in ("skip_broken", "micro_batch", "compile", "sfrik_slices") if not getattr(self, name)}
        idle |= set() if self.ssl_method == "sigreg" else {"sigreg_weight", "sigreg_slices"}
        idle |= {"input_pipeline"} if self.dataset == "mnist5k" else set()
        series = {"sfrik_kernel", "sfrik_kernel_scale", "sfrik_kernel_degree"}
        return idle | (series if self.sfrik_kernel == "truncated" else {"sfrik_weights"})

    @property
    def anchors(self) -> tuple[int, ...]:
        """Indices of the views that the others are aligned to."""
        return {"obow": (0,), "swav": self.general_indices}.get(self.augmentations, (0, 1))

    @property
    def regularise(self) -> str:
        """The views that the regulariser is averaged over, "all" or "anchors"."""
        return "anchors" if self.multi_crop and not self.reg_small else "all"

    @property
    def multi_crop(self) -> bool:
        """Whether there are more views than two, of several sizes."""
        return self.augmentations in ("obow", "swav")

    @property
    def crops(self) -> dict[str, Any]:
        """What `sfrik.views.build_views` is told of the crops; nothing for two views."""
        return {name: getattr(self, name) for name in CROPS.get(self.augmentations, ()) if name != "general_indices"}

    @property
    def view_sizes(self) -> list[int]:
        """Side of each view, in pixels."""
        if self.augmentations == "obow":
            crops, patches = [self.image_crop_size] * self.num_img_crops, [self.img_patch_size] * self.num_img_patches
            return [self.size, *crops, *patches]
        if self.augmentations == "swav":
            return [size for count, size in zip(self.nmb_crops, self.size_crops, strict=True) for _ in range(count)]
        return [self.size, self.size]

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
    val_subset: Count | None = Field(None, description="images a class of the tuning split")
    choice: str = Field("", description="name of a grid of settings; its test images are barred until the choice is made")

    def without_effect(self) -> set[str]:
        return set() if self.choice and self.val_dataset == "val" else {"choice"}


class EvaluateSettings(FrozenSettings):
    """`sfrik evaluate`: a linear probe on the frozen backbone, or fine-tuning, with augmentation."""

    weights: Literal["freeze", "finetune"] = Field(
        "freeze", description="freeze: the backbone stays as it is; finetune: it learns"
    )
    train_percent: Int = Field(100, ge=1, le=100, description="share of the training labels: 1, 10 or 100 %")
    label_list: str = Field("", description="file of the 1 or 10 % of ImageNet, one file name a line; downloaded when unset")
    epochs: Epochs = Field(100, ge=1, description="passes over the labelled images")
    lr_head: Rate = Field(0.4, description="learning rate of the linear head")
    lr_sweep: Rates = Field((), description="rates of heads trained side by side; the tuning split chooses one; freeze alone")
    lr_backbone: Rate = Field(0.01, description="learning rate of the backbone; finetune alone")
    weight_decay: NotNegative = Field(1e-6, description="of what is trained")
    only_inference: bool = Field(False, description="train nothing: score the head and backbone of ckp_path once")
    ckp_path: str = Field("", description="file of a head, as an evaluation saves it; the run's own when unset")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.train_percent not in (1, 10, 100):
            raise ValueError(f"train_percent must be 1, 10 or 100, got {self.train_percent}")
        if self.lr_sweep and self.weights == "finetune":
            raise ValueError("lr_sweep trains many heads on one frozen backbone: it goes with weights freeze")
        if self.arch == "pixels" and self.weights == "finetune":
            raise ValueError("arch pixels has nothing to fine-tune: use weights freeze")
        return self

    @classmethod
    def section(cls, given: Mapping[str, Any]) -> str:
        """[semi1] or [semi10] where so many labels are asked for, unless with a frozen backbone; else [evaluate]."""
        share = str(given.get("train_percent"))
        return f"semi{share}" if share in ("1", "10") and given.get("weights") != "freeze" else "evaluate"

    @property
    def protocol(self) -> str:
        """Name of the score: linear, semi1, semi10, finetune, or linear1 and linear10 with part of the labels."""
        part = "" if self.train_percent == 100 else str(self.train_percent)
        if self.weights == "freeze":
            return f"linear{part}"
        return f"semi{part}" if part else "finetune"

    def without_effect(self) -> set[str]:
        idle = super().without_effect() | ({"lr_sweep"} if not self.lr_sweep else {"lr_head"})
        idle |= {"train_percent"} if self.train_percent == 100 else set()
        idle |= {"lr_backbone"} if self.weights == "freeze" else set()
        return idle | ({"only_inference"} if not self.only_inference else set())


class FeatureSettings(FrozenSettings):
    """`sfrik extract-features`."""

    extraction_dir: str = Field("", description="folder of the features; features/ in the run's folder when unset")


class KnnSettings(FeatureSettings):
    """`sfrik knn-eval`: DINO's weighted kNN."""

    nb_knn: tuple[Count, ...] = Field((10, 20, 100, 200), min_length=1, max_length=100, description="numbers of neighbours")
    temperature: Temperature = Field(0.07, description="of the votes exp(similarity / temperature)")


class LogisticSettings(FeatureSettings):
    """`sfrik logistic-regression` on frozen features."""

    solver: Literal["lbfgs", "sgd"] = Field(
        "sgd", description="sgd: the paper's; lbfgs: scikit-learn's, C chosen on the tuning split"
    )
    epochs: Epochs = Field(100, ge=1, description="sgd: passes over the features")
    lr_head: Rate = Field(0.4, description="sgd: learning rate")
    lr_sweep: Rates = Field((), description="sgd: rates of heads trained side by side; the tuning split chooses one")
    weight_decay: NotNegative = Field(1e-6, description="sgd: weight decay")
    inverse_penalties: Penalties = Field((0.01, 0.1, 1.0, 10.0), description="lbfgs: values of C to choose from")

    def without_effect(self) -> set[str]:
        return super().without_effect() | ({"lr_sweep"} if not self.lr_sweep else {"lr_head"})


class TransferSettings(FrozenSettings):
    """`sfrik transfer`: the frozen backbone on another data set's images."""

    target: Annotated[Literal["places205", "voc07", "digits8x8"], _lower] = Field(
        "places205", description="the images: Places205 and VOC07, or scikit-learn's digits of 8 x 8 pixels"
    )
    target_dir: str = Field("", description="folder of the target's images; data_dir when unset")
    svm_costs: Penalties = Field(
        (0.001, 0.01, 0.1, 1.0, 10.0),
        description="costs of the linear SVMs, chosen class by class by cross-validation on training images",
    )
    epochs: Epochs = Field(28, ge=1, description="Places205: passes over the training images")
    lr_head: Rate = Field(0.4, description="Places205: learning rate of the linear head")
    weight_decay: NotNegative = Field(1e-6, description="Places205: of the head")


SECTIONS: dict[str, type[Settings]] = {
    "pretrain": PretrainSettings,
    "evaluate": EvaluateSettings,
    "extract_features": FeatureSettings,
    "knn_eval": KnnSettings,
    "logistic_regression": LogisticSettings,
    "transfer": TransferSettings,
    "semi1": EvaluateSettings,
    "semi10": EvaluateSettings,
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
    """Settings of recipe PROFILE/NAME for one command; those of all commands are checked, whichever it is.

    `profile.toml` in the profile's folder holds what its recipes share. An evaluation inherits the images and the
    network from the top level, where the settings of pretraining stand. Files are read again when they have changed.

    Raises:
        SfrikError: there is no such recipe; a file cannot be read; a section or a setting is unknown, or a value is wrong.
    """
    profile, _, own = name.partition("/")
    signatures = [_signature(RECIPES / f"{part}.toml") for part in (f"{profile}/profile", name)]
    if not re.fullmatch(r"[^/\\]+/[^/\\]+", name) or profile in (".", "..") or own == "profile" or signatures[1] is None:
        raise SfrikError(f"unknown recipe {name!r}{nearest(name, recipe_names())}: the recipes are in sfrik/recipes")
    return dict(_checked_recipe(RECIPES, name, *signatures)[command])


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes with a file; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


@lru_cache(maxsize=1024)
def _checked_recipe(root: Path, name: str, *signatures: tuple[int, ...] | None) -> dict[str, dict[str, Any]]:
    """The settings of each section; `signatures` are of the profile's file and of the recipe's."""
    merged: dict[str, Any] = {}
    for part, signature in zip((f"{name.split('/')[0]}/profile", name), signatures, strict=True):
        if signature is None:
            continue
        for key, value in read_toml(root / f"{part}.toml").items():
            if not isinstance(value, dict):
                merged[key] = value
            elif key == "pretrain":
                raise SfrikError(f"section [pretrain] in recipe {part}.toml: move its settings to the top, above all sections")
            elif key not in SECTIONS:
                raise SfrikError(f"unknown section [{key}] in recipe {part}.toml{nearest(key, SECTIONS)}")
            else:
                merged[key] = {**merged.get(key, {}), **value}
    top = {key: value for key, value in merged.items() if not isinstance(value, dict)}
    PretrainSettings.parse(top, f"recipe {name}")
    shared = {key: value for key, value in top.items() if key in Settings.model_fields and key != "batch_size"}
    found = {"pretrain": top}
    for section, kind in SECTIONS.items():
        if section != "pretrain":
            found[section] = {**shared, **merged.get(section, {})}
            kind.parse(found[section], f"recipe {name}, section [{section}]")
    return found
