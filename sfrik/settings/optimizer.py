"""The settings of the optimizer and its schedule.

Those of one optimizer are refused beside another one, so that none is given in vain.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfrik.settings.base import Settings
from sfrik.settings.fields import Decay, Epochs, LowerCase, NotNegative, Rate, Real, Several, Switch, Tiny, Unset

__all__ = ["UNSET", "OptimizerSettings"]

# The settings of each optimizer, and the value of each of them under the others, for which it plays no part.
OPTIMIZERS = {"lars": ("momentum", "trust_coefficient"), "adamw": ("betas", "eps"), "sgd": ("momentum", "nesterov")}
UNSET = {"momentum": None, "trust_coefficient": None, "betas": (), "eps": None, "nesterov": False}
ADAMW_RATE = 0.1  # larger values of base_lr are LARS's


class OptimizerSettings(Settings):
    """The settings of the optimizer, for `PretrainSettings`."""

    epochs: Epochs = Field(100, description="passes over the images")
    warmup_epochs: NotNegative = Field(10, description="epochs of linear warm-up of the learning rate")
    base_lr: Rate = Field(1.2, description="learning rate for a batch of 256 images; the peak is base_lr * batch_size / 256")
    wd: NotNegative = Field(1e-6, description="weight decay; not of normalisation layers and biases")
    optimizer: Annotated[Literal["lars", "adamw", "sgd"], LowerCase] = Field("lars", description="optimizer: lars, adamw or sgd")
    momentum: Annotated[Decay | None, Unset] = Field(0.9, description="LARS and SGD: momentum")
    trust_coefficient: Annotated[Tiny | None, Unset] = Field(
        1e-3, description="LARS: length of a step relative to the norm of the weights, at a learning rate of 1"
    )
    betas: Annotated[tuple[Decay, ...], Several] = Field(
        (0.9, 0.999), max_length=10, description="AdamW: decay of the averages of the gradient and of its square"
    )
    eps: Annotated[Tiny | None, Unset] = Field(1e-8, description="AdamW: term added to the denominator")
    nesterov: Switch = Field(False, description="SGD: Nesterov momentum")
    clip_grad: Annotated[Annotated[Real, Field(ge=1e-6, le=1e6)] | None, Unset] = Field(
        None, description="largest norm of the gradient of all weights together, to which a larger one is scaled; unset: any"
    )

    @model_validator(mode="after")
    def _resolve_optimizer(self) -> Self:
        """Refuse the settings of other optimizers that were given. Unset ones of this optimizer get their defaults."""
        for name, unset in UNSET.items():
            value = getattr(self, name)
            if name in OPTIMIZERS[self.optimizer]:
                value = type(self).model_fields[name].default if value == unset else value
            elif name in self.model_fields_set and value != unset:
                owners = " and ".join(owner for owner, names in OPTIMIZERS.items() if name in names)
                raise ValueError(
                    f"{name} is a setting of optimizer {owners} and not of {self.optimizer}: leave it out, set it to none, or "
                    "choose another optimizer"
                )
            else:
                value = unset
            object.__setattr__(self, name, value)  # the model is frozen for others
        if self.betas and len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers, such as 0.9 0.999, got {self.betas}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, got 0")
        return self

    def without_effect(self) -> set[str]:
        idle = super().without_effect()
        idle |= {name for name in UNSET if getattr(self, name) in (UNSET[name], type(self).model_fields[name].default)}
        idle |= set() if self.clip_grad else {"clip_grad"}
        return idle | ({"optimizer"} if self.optimizer == "lars" else set())

    @property
    def notes(self) -> list[str]:
        """Sentences on a schedule that is allowed and unlikely to be meant."""
        notes = []
        if self.epochs and self.warmup_epochs > self.epochs:
            notes.append(
                f"warmup_epochs {self.warmup_epochs:g} is longer than the training of {self.epochs} epochs: the learning rate "
                f"ends at {100 * self.epochs / self.warmup_epochs:.2g} % of its peak, without decay; lower --warmup-epochs"
            )
        if self.epochs and self.optimizer == "adamw" and self.base_lr > ADAMW_RATE:
            notes.append(
                f"base_lr {self.base_lr:g} is too large for optimizer adamw, which needs about 0.0005 to 0.001: lower --base-lr"
            )
        return notes

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The settings that only this optimizer has, by the names of its arguments."""
        return {name: getattr(self, name) for name in OPTIMIZERS[self.optimizer]}

    @property
    def state_size(self) -> int:
        """Number of values that the optimizer keeps for each weight."""
        return {"lars": 1, "adamw": 2, "sgd": int(bool(self.momentum))}[self.optimizer]
