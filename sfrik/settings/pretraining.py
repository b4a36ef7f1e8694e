"""The settings of `sfrik pretrain`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfrik.settings.base import Settings
from sfrik.settings.fields import (
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
    Rate,
    Real,
    Slices,
    Temperature,
    parse_mlp,
)

__all__ = ["PretrainSettings"]

# The settings that belong to the views of one name.
CROPS = {
    "obow": ("num_img_crops", "image_crop_size", "num_img_patches", "img_patch_size"),
    "swav": ("nmb_crops", "size_crops", "min_scale_crops", "max_scale_crops", "general_indices"),
}


class PretrainSettings(Settings, sections=("pretrain",)):
    """`sfrik pretrain`."""

    augmentations: Annotated[Literal["vicreg", "simclr", "auh", "obow", "swav", "digits"], LowerCase] = Field(
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
    mlp: Mlp = Field("8192-8192-8192", description="widths of the projector; the last is q")
    epochs: Epochs = Field(100, description="passes over the images")
    warmup_epochs: NotNegative = Field(10, description="epochs of linear warm-up of the rate")
    base_lr: Rate = Field(1.2, description="learning rate at 256 images; the peak is base_lr * batch_size / 256")
    wd: NotNegative = Field(1e-6, description="weight decay")
    ssl_method: Annotated[Literal["sfrik", "auh", "simclr", "vicreg", "sigreg", "none"], LowerCase] = Field(
        "sfrik", description="objective; none leaves the weights as initialised"
    )
    sfrik_sim_coeff: NotNegative = Field(4000.0, description="SFRIK: weight of the alignment")
    sfrik_mmd_coeff: NotNegative = Field(1.0, description="SFRIK: weight of the MMD")
    sfrik_weights: KernelWeights = Field("1.0-40.0-40.0", description="SFRIK: b_1-b_2-...-b_L")
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
