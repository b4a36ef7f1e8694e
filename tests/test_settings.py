"""Settings: recipes, refusals that name the nearest known word, the hash, and the two lists of versions."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sfrik import settings as module
from sfrik.errors import SfrikError
from sfrik.settings import (
    CROPS,
    SECTIONS,
    EvaluateSettings,
    KnnSettings,
    LogisticSettings,
    PretrainSettings,
    load_recipe,
    recipe_names,
    run_folder,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PLACES = {
    *("checkpoint_minutes", "loggers"),
    *("exp_dir", "data_dir", "extraction_dir", "workers", "device", "pretrained", "ckp_path"),
    *("label_list", "target_dir"),
}


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """An empty folder of recipes instead of the package's; returns a function that writes one."""
    monkeypatch.setattr(module, "RECIPES", tmp_path / "recipes")

    def write(name: str, text: str) -> None:
        path = tmp_path / "recipes" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


# --- recipes


def test_there_are_recipes_for_the_desk_and_for_the_smoke_test():
    assert recipe_names("desk")
    assert recipe_names("smoke")
    assert not [name for name in recipe_names() if name.endswith("profile")]


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_resolves_for_every_command(recipe, section):
    settings = SECTIONS[section].from_recipe(recipe, seed=3)
    assert Path(settings.exp_dir).parts[-3:] == (*recipe.split("/"), "seed3")
    pretraining = PretrainSettings.from_recipe(recipe)
    # table 8 judges on labels of few images, STL10's of 96 pixels where the views have 64
    other_images = recipe.split("/")[1].startswith(("crops_", "stl10_"))
    for name in ("dataset", "arch", "stem") if other_images else ("dataset", "arch", "stem", "size", "subset"):
        assert getattr(settings, name) == getattr(pretraining, name), f"{section} judges another {name} than was trained"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_says_its_table_and_its_command_in_its_first_lines(recipe):
    head = (module.RECIPES / f"{recipe}.toml").read_text().split("\n\n")[0]
    assert head.startswith("# ")
    assert re.search(r"[Tt]able \d", head)
    assert f"--recipe {recipe}" in head


def test_a_recipe_overrides_its_profile_and_a_flag_overrides_both(recipes):
    recipes("toy/profile", "epochs = 3\nbatch_size = 64\n[evaluate]\nepochs = 7\nlr_head = 0.1\n")
    recipes("toy/one", "epochs = 5\n[evaluate]\nepochs = 8\n")
    assert PretrainSettings.from_recipe("toy/one").epochs == 5
    assert PretrainSettings.from_recipe("toy/one").batch_size == 64
    assert PretrainSettings.from_recipe("toy/one", epochs=9).epochs == 9
    assert PretrainSettings.from_recipe("toy/one", epochs=None).epochs == 5, "None keeps the recipe's value"
    evaluation = EvaluateSettings.from_recipe("toy/one")
    assert (evaluation.epochs, evaluation.lr_head) == (8, 0.1)
    assert evaluation.batch_size == 256, "the batch of pretraining is not the batch of the probe"
    assert EvaluateSettings.from_recipe("toy/one", epochs=9).epochs == 9


def test_an_exp_dir_that_is_given_stands_and_one_that_is_not_follows_from_recipe_and_seed():
    assert PretrainSettings.from_recipe("smoke/sfrik_l2_q64", exp_dir="here").exp_dir == "here"
    expected = str(run_folder("smoke/sfrik_l2_q64", 2))
    assert PretrainSettings.from_recipe("smoke/sfrik_l2_q64", seed=2).exp_dir == expected
    assert str(run_folder("smoke/a", 1, "out")) == str(Path("out/smoke/a/seed1"))


# --- what is refused


def test_an_unknown_setting_is_refused_naming_the_nearest():
    with pytest.raises(SfrikError, match=r"unknown setting epoch \(did you mean epochs\?\)"):
        PretrainSettings.parse({"epoch": 3})


def test_an_unknown_setting_in_a_recipe_is_refused_naming_the_nearest_and_the_recipe(recipes):
    recipes("toy/one", "batchsize = 64\n")
    with pytest.raises(SfrikError, match=r"unknown setting batchsize in recipe toy/one.*did you mean batch_size\?"):
        PretrainSettings.from_recipe("toy/one")
    recipes("toy/two", "[knn_eval]\nnb_kn = [3]\n")
    with pytest.raises(SfrikError, match=r"unknown setting nb_kn in recipe toy/two.*did you mean nb_knn\?"):
        KnnSettings.from_recipe("toy/two")


def test_an_unknown_section_of_a_recipe_is_refused_naming_the_nearest(recipes):
    recipes("toy/one", "epochs = 2\n[evalute]\nepochs = 7\n")
    with pytest.raises(SfrikError, match=r"unknown section \[evalute\] in recipe toy/one.*did you mean evaluate\?"):
        load_recipe("toy/one")


@pytest.mark.parametrize("kind", SECTIONS.values())
def test_an_unknown_recipe_is_refused_naming_the_nearest(kind):
    with pytest.raises(SfrikError, match=r"unknown recipe 'smoke/sfrik_l2_q17' \(did you mean smoke/sfrik_l2_q1?\d+\?\)"):
        kind.from_recipe("smoke/sfrik_l2_q17")


@pytest.mark.parametrize("name", ["smoke/profile", "../recipes/smoke/sfrik_l2_q64", "", "smoke"])
def test_what_is_not_a_recipe_is_not_read_as_one(name):
    with pytest.raises(SfrikError, match="unknown recipe"):
        load_recipe(name)


def test_a_recipe_that_is_not_toml_is_refused_naming_the_file(recipes):
    recipes("toy/one", "epochs = = 3\n")
    with pytest.raises(SfrikError, match=r"toy/one\.toml is not valid TOML"):
        load_recipe("toy/one")


ILL_TYPED = [
    ("epochs", "three"),
    ("epochs", 2.5),
    ("epochs", -1),
    ("batch_size", 0),
    ("batch_size", 1),
    ("seed", -1),
    ("base_lr", 0),
    ("base_lr", float("nan")),
    ("wd", -1e-6),
    ("subset", 0),
    ("dataset", "mnist"),
    ("device", "gpu"),
    ("arch", "resnet19"),
    ("mlp", "512-"),
    ("mlp", "512-x"),
    ("mlp", "0-512"),
    ("mlp", ""),
    ("sfrik_weights", "1.0-abc"),
    ("sfrik_weights", "1.0--40.0"),
    ("sfrik_weights", "-1.0"),
    ("sfrik_weights", "0-0"),
    ("sfrik_weights", ""),
    ("sfrik_weights", "nan"),
    ("sfrik_weights", "1.0-inf"),
    ("simclr_temp", 0.0),
    ("ssl_method", "sfrk"),
]


@pytest.mark.parametrize(("name", "value"), ILL_TYPED)
def test_an_ill_typed_value_is_refused_naming_setting_and_value(name, value):
    with pytest.raises(SfrikError) as error:
        PretrainSettings.parse({name: value}, "recipe toy/one")
    text = str(error.value)
    assert text.startswith(f"{name} in recipe toy/one: ")
    assert str(value) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (KnnSettings, "nb_knn", (0,)),
        (KnnSettings, "nb_knn", ("x",)),
        (KnnSettings, "temperature", 0),
        (LogisticSettings, "solver", "adam"),
        (LogisticSettings, "inverse_penalties", (-1.0,)),
        (EvaluateSettings, "val_dataset", "test"),
        (EvaluateSettings, "epochs", 0),
    ],
)
def test_an_ill_typed_value_of_an_evaluation_is_refused_naming_setting(kind, name, value):
    with pytest.raises(SfrikError, match=f"^{name}"):
        kind.parse({name: value})


def test_text_from_the_command_line_becomes_the_settings_type():
    settings = KnnSettings.parse({"nb_knn": ["10", "20"], "temperature": "0.1", "seed": "4"})
    assert settings.nb_knn == (10, 20)
    assert settings.temperature == 0.1
    assert settings.seed == 4


def test_settings_cannot_be_changed_once_checked():
    with pytest.raises(ValueError, match="frozen"):
        PretrainSettings().epochs = 3


# --- the hash


def another_value(kind, name, choice):
    """Settings with a valid value of the one named that is not its default."""
    field, default = kind.model_fields[name], getattr(kind(), name)
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    pool = [*choices, 3, 0.5, True, "64-32", "1.0-2.0", "resnet34", "elsewhere", (1, 2), (0.14, 0.14), (3,), (0.5,), "2", "swav"]
    pool.append(("wandb",))
    for value in pool:
        try:
            settings = kind.parse({**choice, name: value})
        except SfrikError:
            continue
        if getattr(settings, name) != default:
            return settings
    return None


# Settings that have an effect under a choice alone, with that choice.
BELONGS = [
    (("sfrik_kernel_scale", "sfrik_kernel_degree"), {"sfrik_kernel": "rbf"}),
    (CROPS["obow"], {"augmentations": "obow"}),
    (CROPS["swav"], {"augmentations": "swav"}),
    (("reg_small",), {"augmentations": "swav"}),
    (("sigreg_weight", "sigreg_slices"), {"ssl_method": "sigreg"}),
    (("lr_backbone",), {"weights": "finetune"}),
]

CASES = [(kind, name) for kind in SECTIONS.values() for name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.__name__}-{name}" for kind, name in CASES])
def test_the_hash_ignores_places_and_changes_with_any_other_setting(kind, name):
    # a setting that belongs to a choice counts where that choice is made, and there alone
    choice = next((choice for names, choice in BELONGS if name in names), {})
    changed = another_value(kind, name, choice)
    if changed is None:
        choices = get_args(kind.model_fields[name].annotation)
        assert len(choices) == 1, f"no other value found for {name}: add one to the pool"
        pytest.skip(f"{name} has one value only")
    assert (changed.hash() == kind.parse(choice).hash()) == (name in PLACES)
    if choice:
        assert kind.parse({name: getattr(changed, name)}).hash() == kind().hash()


def test_the_weights_of_the_truncated_kernel_do_not_count_under_another_kernel():
    first, second = (PretrainSettings(sfrik_kernel="heat", sfrik_weights=weights) for weights in ("1.0", "1.0-40.0"))
    assert first.hash() == second.hash()
    assert "sfrik_weights" not in first.what()
    assert PretrainSettings(sfrik_weights="1.0").hash() != PretrainSettings(sfrik_weights="1.0-40.0").hash()


def test_names_are_read_as_the_original_commands_write_them():
    settings = PretrainSettings.parse({"dataset": "ImageNet", "augmentations": "VICReg", "ssl_method": "SFRIK"})
    assert (settings.dataset, settings.augmentations, settings.ssl_method) == ("imagenet", "vicreg", "sfrik")


def test_a_power_of_two_or_more_is_no_kernel():
    with pytest.raises(SfrikError, match="under 2"):
        PretrainSettings.parse({"sfrik_kernel": "power", "sfrik_kernel_scale": 2.0})


def test_the_hash_is_twelve_hexadecimal_digits_and_the_same_for_the_same_settings():
    first = PretrainSettings.from_recipe("smoke/sfrik_l2_q64")
    assert re.fullmatch(r"[0-9a-f]{12}", first.hash())
    again = PretrainSettings.parse({**first.model_dump(), "exp_dir": "elsewhere", "workers": 9, "device": "cpu", "data_dir": "d"})
    assert again.hash() == first.hash()


# --- versions


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def exact_versions():
    lines = re.findall(r"^\s*- ([A-Za-z0-9_.-]+)(==?)([0-9][\w.]*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    return {name.lower(): version for name, _, version in lines}


def requirements():
    content = project()
    lines = [*content["dependencies"], *(line for group in content["optional-dependencies"].values() for line in group)]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_the_ranges_of_pyproject_contain_the_exact_versions_of_environment_yml(requirement):
    versions = exact_versions()
    if requirement.marker and not requirement.marker.evaluate({"python_version": versions["python"]}):
        pytest.skip(f"{requirement.name} is not needed on Python {versions['python']}")
    assert requirement.name.lower() in versions, f"environment.yml lacks {requirement.name}"
    assert requirement.specifier.contains(versions[requirement.name.lower()])


def test_the_python_of_environment_yml_is_in_the_range_of_pyproject():
    assert SpecifierSet(project()["requires-python"]).contains(Version(exact_versions()["python"]))


def test_environment_yml_pins_nothing_that_pyproject_does_not_ask_for():
    asked = {requirement.name.lower() for requirement in requirements()}
    assert set(exact_versions()) - {"python"} <= asked
