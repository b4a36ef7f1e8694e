"""Every setting with its type, default, unit and meaning; recipes, which are files of settings."""

from sfrik.settings.architectures import (
    ARCHITECTURES,
    TORCHVISION_VITS,
    check_arch,
    is_dropout,
    keyword_arguments,
    parse_arch_args,
    takes_arguments,
)
from sfrik.settings.base import SECTIONS, Settings, examples_root, load_recipe, published_root, run_folder, runs_root
from sfrik.settings.evaluation import (
    EvaluateSettings,
    FeatureSettings,
    FrozenSettings,
    KnnSettings,
    LogisticSettings,
    TransferSettings,
)
from sfrik.settings.fields import as_list, as_path, as_whole, parse_mlp
from sfrik.settings.identity import recipe_of, recipe_settings, score_settings
from sfrik.settings.pretraining import PretrainSettings
from sfrik.settings.recipes import grid_recipes, recipe_names

__all__ = [
    "ARCHITECTURES",
    "SECTIONS",
    "TORCHVISION_VITS",
    "EvaluateSettings",
    "FeatureSettings",
    "FrozenSettings",
    "KnnSettings",
    "LogisticSettings",
    "PretrainSettings",
    "Settings",
    "TransferSettings",
    "as_list",
    "as_path",
    "as_whole",
    "check_arch",
    "examples_root",
    "grid_recipes",
    "is_dropout",
    "keyword_arguments",
    "load_recipe",
    "parse_arch_args",
    "parse_mlp",
    "published_root",
    "recipe_names",
    "recipe_of",
    "recipe_settings",
    "run_folder",
    "runs_root",
    "score_settings",
    "takes_arguments",
]
