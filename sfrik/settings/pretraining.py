"""The settings of `sfrik pretrain`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfrik.errors import SfrikError
from sfrik.ops.trade_off import alignment_weight, trade_off_of
from sfrik.settings.fields import (
    LARGEST,
    MOST_DEGREES,
    SCALES,
    Batch,
    Count,
    Epochs,
    Fraction,
    Int,
    KernelWeights,
    LowerCase,
    Mlp,
    NotNegative,
    Pixels,
    Real,
    Several,
    Slices,
    Switch,
    Temperature,
    TradeOff,
    Unset,
    parse_mlp,
)
from sfrik.settings.optimizer import UNSET, OptimizerSettings

__all__ = ["PretrainSettings"]

# The settings that apply to some augmentations only.
CROPS = {
    **dict.fromkeys(("vicreg", "simclr", "auh", "cifar"), ("min_crop_scale",)),  # of photos
    "obow": ("num_img_crops", "image_crop_size", "num_img_patches", "img_patch_size"),
    "swav": ("nmb_crops", "size_crops", "min_scale_crops", "max_scale_crops", "general_indices"),
}
UNUSED_SIM_COEFF = 4000.0  # of runs with another method than SFRIK: their hashes depend on it
METHODS = ("sfrik_", "auh_", "simclr_", "vicreg_", "sigreg_")  # how the names of the objectives' settings start
# The settings that play no part if the backbone keeps its initial weights.
TRAINING = {"subset", "batch_size", "precision", "workers", "augmentations", "input_pipeline", "reg_small"}
TRAINING |= {"epochs", "warmup_epochs", "base_lr", "wd", "micro_batch", "compile", "checkpoint_minutes", "loggers"}
TRAINING |= {"log_every", "knn_every", "optimizer", "clip_grad", *UNSET, *(name for names in CROPS.values() for name in names)}


class PretrainSettings(OptimizerSettings, sections=("pretrain",)):
    """`sfrik pretrain`."""

    augmentations: Annotated[Literal["vicreg", "simclr", "auh", "cifar", "obow", "swav", "digits"], LowerCase] = Field(
        "vicreg",
        description="vicreg, simclr, auh, cifar or digits (two views), obow or swav (multi-crop)",
    )
    input_pipeline: Literal["tensor", "pil"] = Field(
        "tensor",
        description="augmentations of photos: tensor (in batches, on the device, as far as possible) or pil (one by one)",
    )
    min_crop_scale: Fraction = Field(
        0.08, gt=0, description="two views of photos: smallest fraction of the image's area in a crop"
    )
    num_img_crops: Int = Field(2, ge=0, le=100, description="OBoW: crops in addition to the whole image")
    image_crop_size: Pixels = Field(160, description="OBoW: side of a crop, in pixels")
    num_img_patches: Int = Field(5, ge=0, le=9, description="OBoW: patches from a 3 x 3 grid")
    img_patch_size: Pixels = Field(96, description="OBoW: side of a patch, in pixels")
    nmb_crops: Annotated[tuple[Annotated[Int, Field(ge=1, le=100)], ...], Several] = Field(
        (2, 6), max_length=10, description="SwAV: crops of each size"
    )
    size_crops: Annotated[tuple[Pixels, ...], Several] = Field(
        (224, 96), max_length=10, description="SwAV: sides of the crops, in pixels"
    )
    min_scale_crops: Annotated[tuple[Fraction, ...], Several] = Field(
        (0.14, 0.05), max_length=10, description="SwAV: smallest fraction of the image's area, per size"
    )
    max_scale_crops: Annotated[tuple[Fraction, ...], Several] = Field(
        (1.0, 0.14), max_length=10, description="SwAV: largest fraction of the image's area, per size"
    )
    general_indices: Annotated[tuple[Annotated[Int, Field(ge=0, le=999)], ...], Several] = Field(
        (0, 1), max_length=1000, description="SwAV: indices of the views that the others are aligned to"
    )
    reg_small: bool = Field(False, description="multi-crop: regularise all views, not only those that the others are aligned to")
    mlp: Mlp = Field(
        "8192-8192-8192", description="widths of the projector's layers, the last one q, the dimension of the embeddings"
    )
    ssl_method: Annotated[Literal["sfrik", "auh", "simclr", "vicreg", "sigreg", "none"], LowerCase] = Field(
        "sfrik", description="objective: sfrik, auh, simclr, vicreg, sigreg, or none (keeps the initial weights)"
    )
    sfrik_sim_coeff: Annotated[NotNegative | None, Unset] = Field(
        None, description="SFRIK: weight of the alignment; 4000 at q = 8192 and in proportion to q when unset"
    )
    sfrik_trade_off: TradeOff = Field(
        None, description="SFRIK: lambda = q sfrik_mmd_coeff / sfrik_sim_coeff, in place of sfrik_sim_coeff; the paper has 2.048"
    )
    sfrik_mmd_coeff: NotNegative = Field(1.0, description="SFRIK: weight of the MMD")
    sfrik_weights: KernelWeights = Field("1.0-40.0-40.0", description="SFRIK: weights b_1-b_2-...-b_L of the truncated kernel")
    sfrik_kernel: Literal["truncated", "rbf", "heat", "power"] = Field(
        "truncated", description="SFRIK: kernel: truncated, rbf exp(-s |u - v|^2), heat, or power C - |u - v|^s"
    )
    sfrik_kernel_scale: Annotated[Annotated[Real, Field(ge=1e-6, le=max(SCALES.values()))] | None, Unset] = Field(
        None,
        description="SFRIK: s of rbf (2.5) or power (1, below 2); heat: (q - 1) time (log q)",
    )
    sfrik_kernel_degree: Annotated[Annotated[Int, Field(ge=1, le=MOST_DEGREES)] | None, Unset] = Field(
        None, description="SFRIK: last degree of rbf, heat and power; exact when unset"
    )
    sfrik_stein: Int = Field(
        0,
        ge=0,
        le=2,
        description="SFRIK: order of a kernel Stein discrepancy, 1 or 2; 0: the MMD",
    )
    sfrik_slices: Annotated[Slices | None, Unset] = Field(
        None, description="SFRIK: random directions per step to estimate the MMD with; exact when unset"
    )
    auh_sim_coeff: NotNegative = Field(3000.0, description="AUH: weight of the alignment")
    auh_unif_coeff: NotNegative = Field(1.0, description="AUH: weight of the uniformity")
    auh_entropy: Switch = Field(
        False, description="AUH: the entropy by a kernel density estimate, the mean of logarithms, for the logarithm of the mean"
    )
    auh_scale: Real = Field(2.5, ge=1e-6, le=1e4, description="AUH: scale of the Gaussian kernel")
    simclr_temp: Temperature = Field(0.15, description="SimCLR: temperature")
    vicreg_sim_coeff: NotNegative = Field(10.0, description="VICReg: weight of the invariance")
    vicreg_std_coeff: NotNegative = Field(10.0, description="VICReg: weight of the variance")
    vicreg_cov_coeff: NotNegative = Field(1.0, description="VICReg: weight of the covariance")
    micro_batch: Annotated[Batch | None, Unset] = Field(
        None, description="largest number of images per forward pass and process; the loss is still that of the whole batch"
    )
    compile: bool = Field(False, description="compile the network with torch.compile, which needs a C++ compiler")
    sigreg_weight: Fraction = Field(0.05, description="SIGReg: fraction of the regulariser in the loss, lambda")
    sigreg_slices: Slices = Field(1024, description="SIGReg: random directions per step")
    checkpoint_minutes: Real = Field(
        10.0, gt=0, le=366 * 24 * 60, description="longest time between checkpoints, in minutes; every epoch ends with one"
    )
    loggers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Several] = Field(
        (), max_length=2, description="loggers in addition to metrics.jsonl: tensorboard, wandb (Weights & Biases), or both"
    )
    log_every: Count = Field(10, description="steps between lines in metrics.jsonl")
    knn_every: Epochs = Field(5, description="epochs between kNN scores on training images; 0: never")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.arch == "pixels" and self.ssl_method != "none":
            raise ValueError("arch pixels has nothing to train: use it with ssl_method none")
        digits, photos = ("digits", "auh", "obow", "swav"), ("vicreg", "simclr", "auh", "cifar", "obow", "swav")
        fitting = digits if self.dataset == "mnist5k" else photos
        if self.augmentations not in fitting:
            raise ValueError(
                f"augmentations {self.augmentations} are not for the images of {self.dataset}: use {', '.join(fitting[:-1])} "
                f"or {fitting[-1]}"
            )
        if self.augmentations == "obow" and self.num_img_crops + self.num_img_patches == 0:
            raise ValueError("augmentations obow need num_img_crops or num_img_patches above 0")
        if self.augmentations == "swav":
            self._check_swav()
        if self.sfrik_kernel == "power" and self.sfrik_stein and self.sfrik_kernel_degree is None:
            raise ValueError(
                f"sfrik_stein {self.sfrik_stein} needs a sfrik_kernel_degree with sfrik_kernel power, whose exact Stein kernel "
                "is infinite for equal embeddings"
            )
        scale, most = self.kernel_scale, SCALES[self.sfrik_kernel]
        if scale >= most if self.sfrik_kernel == "power" else scale > most:
            bound = "below" if self.sfrik_kernel == "power" else "of at most"
            raise ValueError(f"sfrik_kernel {self.sfrik_kernel} needs a sfrik_kernel_scale {bound} {most:g}, got {scale}")
        object.__setattr__(self, "sfrik_sim_coeff", self._alignment_weight())  # the model is frozen for others
        return self

    def _alignment_weight(self) -> float:
        """The weight of SFRIK's alignment, if unset in proportion to q; under other methods the one that is always recorded."""
        if self.ssl_method != "sfrik" and self.sfrik_sim_coeff is None and self.sfrik_trade_off is None:
            return UNUSED_SIM_COEFF
        weight = alignment_weight(self.dim, self.sfrik_sim_coeff, self.sfrik_mmd_coeff, self.sfrik_trade_off, "sfrik_")
        if weight > LARGEST:
            raise ValueError(
                f"sfrik_trade_off {self.sfrik_trade_off:g} needs a sfrik_sim_coeff of {weight:.3g}, above {LARGEST:g}: raise it"
            )
        return weight

    def _check_swav(self) -> None:
        lists = {name: len(getattr(self, name)) for name in ("nmb_crops", "size_crops", "min_scale_crops", "max_scale_crops")}
        if len(set(lists.values())) > 1:
            raise ValueError(f"the crops of SwAV need lists of the same length, got {lists}")
        views = sum(self.nmb_crops)
        if views < 2:
            raise ValueError(f"nmb_crops must give at least two views, got {self.nmb_crops}")
        for low, high in zip(self.min_scale_crops, self.max_scale_crops, strict=True):
            if not 0 < low <= high:
                raise ValueError(f"min_scale_crops must be above 0 and at most max_scale_crops, got {low} and {high}")
        if not self.general_indices or len(set(self.general_indices)) < len(self.general_indices):
            raise ValueError(f"general_indices must be different views, got {self.general_indices}")
        if max(self.general_indices) >= views:
            raise ValueError(f"general_indices must be views from 0 to {views - 1}, got {self.general_indices}")

    def without_effect(self) -> set[str]:
        idle = super().without_effect()
        idle |= {name for names in CROPS.values() for name in names} - {*CROPS.get(self.augmentations, ())}
        idle |= {"min_crop_scale"} if self.dataset == "mnist5k" or self.min_crop_scale == 0.08 else set()
        idle |= set() if self.multi_crop else {"reg_small"}
        unset = ("micro_batch", "compile", "sfrik_slices", "sfrik_stein", "auh_entropy")
        idle |= {name for name in unset if not getattr(self, name)}
        idle.add("sfrik_trade_off")  # another form of sfrik_sim_coeff
        idle |= set() if self.ssl_method == "sigreg" else {"sigreg_weight", "sigreg_slices"}
        idle |= {"input_pipeline"} if self.dataset == "mnist5k" else set()
        series = {"sfrik_kernel", "sfrik_kernel_scale", "sfrik_kernel_degree"}
        return idle | (series if self.sfrik_kernel == "truncated" else {"sfrik_weights"})

    def unused(self) -> set[str]:
        unused = super().unused()
        unused |= {name for name in type(self).model_fields if name.startswith(METHODS) and not name.startswith(self.ssl_method)}
        if self.ssl_method == "none":
            unused |= TRAINING
        return unused | ({"mlp"} if self.arch == "pixels" else set())

    @property
    def notes(self) -> list[str]:
        return [] if self.ssl_method == "none" else super().notes

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
        """Whether there are more than two views, of several sizes."""
        return self.augmentations in ("obow", "swav")

    @property
    def crops(self) -> dict[str, Any]:
        """The crop arguments of `sfrik.views.build_views`; empty for two views of digits."""
        others = ("general_indices", "min_crop_scale") if self.dataset == "mnist5k" else ("general_indices",)
        return {name: getattr(self, name) for name in CROPS.get(self.augmentations, ()) if name not in others}

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
    def trained_sizes(self) -> list[int]:
        return self.view_sizes

    def check_processes(self, processes: int, synchronised: bool = True) -> None:
        """Check that each process can train on its part of a batch.

        Args:
            processes: the number of processes that the batch is divided over.
            synchronised: whether BatchNorm's statistics are those of all processes, as on GPUs.

        Raises:
            SfrikError: the batch size is not divisible by the number of processes, or BatchNorm would normalise a single image.
        """
        shard, size = self.batch_size // processes, self.micro_batch
        if self.batch_size % processes:
            raise SfrikError(f"batch_size {self.batch_size} is over all processes and is not divisible by {processes}")
        if size and shard // math.ceil(shard / size) < 2:
            raise SfrikError(
                f"BatchNorm needs at least two images, but micro_batch {size} splits the {shard} images per process into batches "
                "of one: raise it"
            )
        together = min(Counter(self.view_sizes).values()) if self.multi_crop else 1  # views that pass through it at once
        if shard * together < 2 and not synchronised and self.ssl_method != "none":
            raise SfrikError(
                f"BatchNorm needs at least two images, but batch_size {self.batch_size} leaves each of {processes} processes "
                "one: use fewer processes or a larger batch_size"
            )

    @property
    def dim(self) -> int:
        """q, the dimension of the embeddings."""
        return parse_mlp(self.mlp)[-1]

    @property
    def trade_off(self) -> float:
        """SFRIK's lambda, the weight of the MMD for a squared distance of the views of weight 1."""
        return trade_off_of(self.dim, self.sfrik_sim_coeff or 0.0, self.sfrik_mmd_coeff)

    @property
    def trade_off_line(self) -> str:
        """The trade-off for a reader; "" for other methods than SFRIK."""
        coefficients = f"sfrik_sim_coeff {self.sfrik_sim_coeff:g}, sfrik_mmd_coeff {self.sfrik_mmd_coeff:g}, q = {self.dim}"
        return f"trade-off: lambda {self.trade_off:.4g} ({coefficients})" if self.ssl_method == "sfrik" else ""

    @property
    def kernel_weights(self) -> list[float]:
        """b_1, ..., b_L."""
        return [float(part) for part in self.sfrik_weights.split("-")]

    @property
    def kernel_scale(self) -> float:
        """s of the RBF and the power kernel, the time of the heat kernel times q - 1; by default log q."""
        defaults = {"truncated": 1.0, "rbf": 2.5, "power": 1.0, "heat": math.log(self.dim)}
        return defaults[self.sfrik_kernel] if self.sfrik_kernel_scale is None else self.sfrik_kernel_scale
