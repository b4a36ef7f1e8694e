"""The settings of the evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfrik.settings.base import Settings
from sfrik.settings.fields import (
    Count,
    Epochs,
    LowerCase,
    Name,
    NotNegative,
    OptionalPath,
    Penalties,
    Percent,
    Rate,
    Rates,
    Several,
    Temperature,
    Unset,
)

__all__ = ["EvaluateSettings", "FeatureSettings", "FrozenSettings", "KnnSettings", "LogisticSettings", "TransferSettings"]

# What plays no part where features are read.
IMAGES_AND_NETWORK = {"dataset", "data_dir", "subset", "val_subset", "size", "workers", "skip_broken"}
IMAGES_AND_NETWORK |= {"arch", "arch_args", "stem", "precision", "pretrained"}
HeadNorm = Annotated[Literal["none", "batchnorm"], LowerCase]
LIST_WITHOUT_SHARE = "label_list names a part of the training images: give train_percent (below 100) too, which names the score"


class FrozenSettings(Settings):
    """The settings that all evaluations share: the weights, and the images they are evaluated on."""

    pretrained: OptionalPath = Field(
        "", description="file of the backbone's weights; backbone.safetensors in the run's folder when unset"
    )
    val_dataset: Literal["val", "train"] = Field(
        "val", description="images to score: val for the test images, train for the tuning split"
    )
    val_subset: Annotated[Count | None, Unset] = Field(None, description="images per class in the tuning split")
    choice: Name = Field(
        "", description="name of a grid of settings; the test images cannot be scored before the choice is recorded"
    )

    def without_effect(self) -> set[str]:
        idle = super().without_effect() | (set() if self.choice and self.val_dataset == "val" else {"choice"})
        return idle | ({"head_norm"} if getattr(self, "head_norm", "none") == "none" else set())

    def unused(self) -> set[str]:
        return super().unused() | (set() if self.val_dataset == "train" or self.chooses else {"val_subset"})

    @property
    def chooses(self) -> bool:
        """Whether a hyperparameter is chosen on the tuning split."""
        return False

    def elsewhere(self, folder: Path) -> dict[str, Any]:
        given = {name: value for name in ("pretrained", "ckp_path", "extraction_dir") if (value := getattr(self, name, ""))}
        own = folder.resolve() / "backbone.safetensors"
        return {name: path for name, path in given.items() if name != "pretrained" or Path(path).resolve() != own}


class EvaluateSettings(FrozenSettings, sections=("evaluate", "semi1", "semi10")):
    """`sfrik evaluate`: a linear probe on the frozen backbone, or fine-tuning, with augmentation."""

    weights: Literal["freeze", "finetune"] = Field(
        "freeze", description="freeze: train only the linear head; finetune: train the backbone too"
    )
    train_percent: Percent = Field(100, description="percentage of the training labels, above 0; 100 uses all")
    label_list: OptionalPath = Field("", description="list of the labelled images, one file name per line; needs train_percent")
    epochs: Epochs = Field(100, ge=1, description="passes over the labelled images")
    lr_head: Rate = Field(0.4, description="learning rate of the linear head")
    lr_sweep: Rates = Field(
        (), description="learning rates of heads trained together; the best on the tuning split is kept; only with freeze"
    )
    head_norm: HeadNorm = Field(
        "none", description="batchnorm: standardise the features before the linear head; none: as in the paper; only with freeze"
    )
    lr_backbone: Rate = Field(0.01, description="learning rate of the backbone; only with finetune")
    weight_decay: NotNegative = Field(1e-6, description="weight decay")
    only_inference: bool = Field(False, description="only score the saved head (ckp_path), without training")
    ckp_path: OptionalPath = Field(
        "", description="file of a head saved by an evaluation; the one in the run's folder when unset"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.label_list and self.train_percent == 100:
            raise ValueError(LIST_WITHOUT_SHARE)
        if self.lr_sweep and self.weights == "finetune":
            raise ValueError("lr_sweep trains several heads on a frozen backbone: use it with weights freeze")
        if self.head_norm != "none" and self.weights == "finetune":
            raise ValueError(f"head_norm {self.head_norm} is for the features of a frozen backbone: use it with weights freeze")
        if self.arch == "pixels" and self.weights == "finetune":
            raise ValueError("arch pixels has nothing to fine-tune: use weights freeze")
        return self

    @classmethod
    def section(cls, given: Mapping[str, Any]) -> str:
        """[semi1] for up to 3 % of the labels, [semi10] for more, unless the backbone is frozen; [evaluate] for all of them."""
        try:
            share = float(given.get("train_percent", 100))
        except (TypeError, ValueError):  # refused later
            share = 100
        if given.get("weights") == "freeze" or not 0 < share < 100:
            return "evaluate"
        return "semi1" if share <= 3 else "semi10"

    @property
    def protocol(self) -> str:
        """Name of the score: linear (frozen) or finetune; with a share of the labels such as linear10 or semi2.5."""
        part = "" if self.train_percent == 100 else str(self.train_percent)
        if self.weights == "freeze":
            return f"linear{part}"
        return f"semi{part}" if part else "finetune"

    @property
    def trained_sizes(self) -> list[int]:
        return [self.size] if self.weights == "finetune" else []

    def without_effect(self) -> set[str]:
        idle = super().without_effect() | ({"lr_sweep"} if not self.lr_sweep else {"lr_head"})
        idle |= {"train_percent"} if self.train_percent == 100 else set()
        idle |= {"lr_backbone"} if self.weights == "freeze" else set()
        return idle | ({"only_inference"} if not self.only_inference else set())

    def unused(self) -> set[str]:
        head = {"epochs", "lr_head", "lr_sweep", "head_norm", "lr_backbone", "weight_decay", "label_list"}
        return super().unused() | (head if self.only_inference else {"ckp_path"})

    @property
    def chooses(self) -> bool:
        return bool(self.lr_sweep) and not self.only_inference


class _OnFeatures(FrozenSettings):
    extraction_dir: OptionalPath = Field("", description="folder of the features; features/ in the run's folder when unset")

    @property
    def features_dir(self) -> str:
        return self.extraction_dir

    def unused(self) -> set[str]:
        return super().unused() | (IMAGES_AND_NETWORK if self.features_dir else set())


class FeatureSettings(_OnFeatures, sections=("extract_features",)):
    """`sfrik extract-features`."""

    image_dir: OptionalPath = Field(
        "", description="folder of any images to extract, with or without labels, in place of the splits"
    )

    @model_validator(mode="after")
    def _photos(self) -> Self:
        if self.image_dir and self.dataset == "mnist5k":
            raise ValueError("image_dir is for image files, but mnist5k's backbones take grey digits: use another dataset's")
        return self

    @property
    def features_dir(self) -> str:
        return ""  # it writes extraction_dir

    def unused(self) -> set[str]:
        return super().unused() | ({"subset", "val_dataset"} if self.image_dir else set())

    def elsewhere(self, folder: Path) -> dict[str, Any]:
        # `sfrik extract-features` writes extraction_dir
        return {name: path for name, path in super().elsewhere(folder).items() if name != "extraction_dir"}


class KnnSettings(_OnFeatures, sections=("knn_eval",)):
    """`sfrik knn-eval`: the weighted kNN of DINO."""

    nb_knn: Annotated[tuple[Count, ...], Several] = Field(
        (10, 20, 100, 200), min_length=1, max_length=100, description="numbers of neighbours"
    )
    temperature: Temperature = Field(0.07, description="temperature of the votes, exp(similarity / temperature)")


class LogisticSettings(_OnFeatures, sections=("logistic_regression",)):
    """`sfrik logistic-regression` on frozen features."""

    solver: Literal["lbfgs", "sgd"] = Field(
        "sgd", description="sgd: as in the paper; lbfgs: scikit-learn's, with C chosen on the tuning split"
    )
    epochs: Epochs = Field(100, ge=1, description="sgd: passes over the features")
    lr_head: Rate = Field(0.4, description="sgd: learning rate")
    lr_sweep: Rates = Field((), description="sgd: learning rates of heads trained together; the best on the tuning split is kept")
    head_norm: HeadNorm = Field("none", description="sgd: batchnorm standardises the features; none: as in the paper")
    weight_decay: NotNegative = Field(1e-6, description="sgd: weight decay")
    inverse_penalties: Penalties = Field((0.01, 0.1, 1.0, 10.0), description="lbfgs: values of C to choose from")

    def without_effect(self) -> set[str]:
        idle = super().without_effect() | ({"lr_sweep"} if not self.lr_sweep else {"lr_head"})
        return idle | ({"head_norm"} if self.solver == "lbfgs" else set())  # which always standardises them

    def unused(self) -> set[str]:
        of_sgd = {"epochs", "lr_head", "lr_sweep", "weight_decay"}
        return super().unused() | ({"inverse_penalties"} if self.solver == "sgd" else of_sgd)

    @property
    def chooses(self) -> bool:
        return self.solver == "lbfgs" or bool(self.lr_sweep)


class TransferSettings(FrozenSettings, sections=("transfer",)):
    """`sfrik transfer`: a frozen backbone on another data set."""

    target: Annotated[Literal["places205", "voc07", "digits8x8"], LowerCase] = Field(
        "places205", description="data set: places205, voc07, or digits8x8 (scikit-learn's digits of 8 x 8 pixels)"
    )
    target_dir: OptionalPath = Field("", description="folder of the target's images; data_dir when unset")
    svm_costs: Penalties = Field(
        (0.001, 0.01, 0.1, 1.0, 10.0),
        description="costs C of the linear SVMs, chosen per class by cross-validation on training images",
    )
    epochs: Epochs = Field(28, ge=1, description="Places205: passes over the training images")
    lr_head: Rate = Field(0.4, description="Places205: learning rate of the linear head")
    head_norm: HeadNorm = Field("none", description="Places205: batchnorm standardises the features; none: as in the paper")
    weight_decay: NotNegative = Field(1e-6, description="Places205: weight decay of the linear head")

    def without_effect(self) -> set[str]:
        return super().without_effect() | ({"head_norm"} if self.target != "places205" else set())

    def unused(self) -> set[str]:
        of_target = {"voc07": {"svm_costs"}, "places205": {"epochs", "lr_head", "weight_decay"}}
        others = set().union(*(names for target, names in of_target.items() if target != self.target))
        place = {"data_dir"} if self.target == "digits8x8" or self.target_dir else set()
        return super().unused() - {"data_dir"} | others | place | {"dataset", "subset", "val_dataset"}
