"""The settings of the evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfrik.settings.base import Settings
from sfrik.settings.fields import Count, Epochs, Int, LowerCase, NotNegative, Penalties, Rate, Rates, Temperature

__all__ = ["EvaluateSettings", "FeatureSettings", "FrozenSettings", "KnnSettings", "LogisticSettings", "TransferSettings"]


class FrozenSettings(Settings):
    """The settings that all evaluations share: the weights, and the images they are evaluated on."""

    pretrained: str = Field("", description="file of the backbone's weights; backbone.safetensors in the run's folder when unset")
    val_dataset: Literal["val", "train"] = Field(
        "val", description="images to score: val for the test images, train for the tuning split"
    )
    val_subset: Count | None = Field(None, description="images per class in the tuning split")
    choice: str = Field(
        "", description="name of a grid of settings; the test images cannot be scored before the choice is recorded"
    )

    def without_effect(self) -> set[str]:
        return set() if self.choice and self.val_dataset == "val" else {"choice"}

    def elsewhere(self, folder: Path) -> dict[str, Any]:
        given = {name: value for name in ("pretrained", "ckp_path", "extraction_dir") if (value := getattr(self, name, ""))}
        own = folder.resolve() / "backbone.safetensors"
        return {name: path for name, path in given.items() if name != "pretrained" or Path(path).resolve() != own}


class EvaluateSettings(FrozenSettings, sections=("evaluate", "semi1", "semi10")):
    """`sfrik evaluate`: a linear probe on the frozen backbone, or fine-tuning, with augmentation."""

    weights: Literal["freeze", "finetune"] = Field(
        "freeze", description="freeze: train only the linear head; finetune: train the backbone too"
    )
    train_percent: Int = Field(100, ge=1, le=100, description="percentage of the training labels: 1, 10 or 100")
    label_list: str = Field("", description="list of the 1 or 10 % of ImageNet, one file name per line; downloaded when unset")
    epochs: Epochs = Field(100, ge=1, description="passes over the labelled images")
    lr_head: Rate = Field(0.4, description="learning rate of the linear head")
    lr_sweep: Rates = Field(
        (), description="learning rates of heads trained together; the best on the tuning split is kept; only with freeze"
    )
    lr_backbone: Rate = Field(0.01, description="learning rate of the backbone; only with finetune")
    weight_decay: NotNegative = Field(1e-6, description="weight decay")
    only_inference: bool = Field(False, description="only score the saved head (ckp_path), without training")
    ckp_path: str = Field("", description="file of a head saved by an evaluation; the one in the run's folder when unset")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.train_percent not in (1, 10, 100):
            raise ValueError(f"train_percent must be 1, 10 or 100, got {self.train_percent}")
        if self.lr_sweep and self.weights == "finetune":
            raise ValueError("lr_sweep trains several heads on a frozen backbone: use it with weights freeze")
        if self.arch == "pixels" and self.weights == "finetune":
            raise ValueError("arch pixels has nothing to fine-tune: use weights freeze")
        return self

    @classmethod
    def section(cls, given: Mapping[str, Any]) -> str:
        """[semi1] or [semi10] for 1 or 10 % of the labels, unless the backbone is frozen; else [evaluate]."""
        share = str(given.get("train_percent"))
        return f"semi{share}" if share in ("1", "10") and given.get("weights") != "freeze" else "evaluate"

    @property
    def protocol(self) -> str:
        """Name of the score, one of linear, linear1, linear10 (frozen), finetune, semi1, semi10 (fine-tuned)."""
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

    def elsewhere(self, folder: Path) -> dict[str, Any]:
        written = {"extraction_dir"} if type(self) is FeatureSettings else set()  # `sfrik extract-features` writes it
        return {name: path for name, path in super().elsewhere(folder).items() if name not in written}


class KnnSettings(FeatureSettings, sections=("knn_eval",)):
    """`sfrik knn-eval`: the weighted kNN of DINO."""

    nb_knn: tuple[Count, ...] = Field((10, 20, 100, 200), min_length=1, max_length=100, description="numbers of neighbours")
    temperature: Temperature = Field(0.07, description="temperature of the votes, exp(similarity / temperature)")


class LogisticSettings(FeatureSettings, sections=("logistic_regression",)):
    """`sfrik logistic-regression` on frozen features."""

    solver: Literal["lbfgs", "sgd"] = Field(
        "sgd", description="sgd: as in the paper; lbfgs: scikit-learn's, with C chosen on the tuning split"
    )
    epochs: Epochs = Field(100, ge=1, description="sgd: passes over the features")
    lr_head: Rate = Field(0.4, description="sgd: learning rate")
    lr_sweep: Rates = Field((), description="sgd: learning rates of heads trained together; the best on the tuning split is kept")
    weight_decay: NotNegative = Field(1e-6, description="sgd: weight decay")
    inverse_penalties: Penalties = Field((0.01, 0.1, 1.0, 10.0), description="lbfgs: values of C to choose from")

    def without_effect(self) -> set[str]:
        return super().without_effect() | ({"lr_sweep"} if not self.lr_sweep else {"lr_head"})


class TransferSettings(FrozenSettings, sections=("transfer",)):
    """`sfrik transfer`: a frozen backbone on another data set."""

    target: Annotated[Literal["places205", "voc07", "digits8x8"], LowerCase] = Field(
        "places205", description="data set: places205, voc07, or digits8x8 (scikit-learn's digits of 8 x 8 pixels)"
    )
    target_dir: str = Field("", description="folder of the target's images; data_dir when unset")
    svm_costs: Penalties = Field(
        (0.001, 0.01, 0.1, 1.0, 10.0),
        description="costs C of the linear SVMs, chosen per class by cross-validation on training images",
    )
    epochs: Epochs = Field(28, ge=1, description="Places205: passes over the training images")
    lr_head: Rate = Field(0.4, description="Places205: learning rate of the linear head")
    weight_decay: NotNegative = Field(1e-6, description="Places205: weight decay of the linear head")
