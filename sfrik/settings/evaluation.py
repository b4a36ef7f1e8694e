"""The settings of the evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfrik.settings.base import Settings
from sfrik.settings.fields import Count, Epochs, Int, LowerCase, NotNegative, Penalties, Rate, Rates, Temperature

__all__ = ["EvaluateSettings", "FeatureSettings", "FrozenSettings", "KnnSettings", "LogisticSettings", "TransferSettings"]


class FrozenSettings(Settings):
    """What the evaluations share: which weights, and which images they are judged on."""

    pretrained: str = Field("", description="weights file; backbone.safetensors in the run's folder when unset")
    val_dataset: Literal["val", "train"] = Field("val", description="val: the test images; train: the tuning split")
    val_subset: Count | None = Field(None, description="images a class of the tuning split")
    choice: str = Field("", description="name of a grid of settings; its test images are barred until the choice is made")

    def without_effect(self) -> set[str]:
        return set() if self.choice and self.val_dataset == "val" else {"choice"}


class EvaluateSettings(FrozenSettings, sections=("evaluate", "semi1", "semi10")):
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


class FeatureSettings(FrozenSettings, sections=("extract_features",)):
    """`sfrik extract-features`."""

    extraction_dir: str = Field("", description="folder of the features; features/ in the run's folder when unset")


class KnnSettings(FeatureSettings, sections=("knn_eval",)):
    """`sfrik knn-eval`: DINO's weighted kNN."""

    nb_knn: tuple[Count, ...] = Field((10, 20, 100, 200), min_length=1, max_length=100, description="numbers of neighbours")
    temperature: Temperature = Field(0.07, description="of the votes exp(similarity / temperature)")


class LogisticSettings(FeatureSettings, sections=("logistic_regression",)):
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


class TransferSettings(FrozenSettings, sections=("transfer",)):
    """`sfrik transfer`: the frozen backbone on another data set's images."""

    target: Annotated[Literal["places205", "voc07", "digits8x8"], LowerCase] = Field(
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
