"""Settings: recipes, refusals that name the nearest known word, the hash, and the two lists of versions."""

from __future__ import annotations

import itertools
import math
import os
import re
import time
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sfrik.cli.flags import whole_number
from sfrik.errors import SfrikError
from sfrik.runs.folder import Run
from sfrik.settings import (
    SECTIONS,
    EvaluateSettings,
    KnnSettings,
    LogisticSettings,
    PretrainSettings,
    as_list,
    as_path,
    base,
    load_recipe,
    recipe_names,
    recipe_of,
    recipe_settings,
    run_folder,
)
from sfrik.settings import recipes as recipe_listing
from sfrik.settings.optimizer import OPTIMIZERS, UNSET
from sfrik.settings.pretraining import CROPS

ROOT = Path(__file__).parents[2]
PLACES = {
    *("checkpoint_minutes", "loggers"),
    *("exp_dir", "data_dir", "extraction_dir", "workers", "device", "pretrained", "ckp_path"),
    *("label_list", "target_dir", "image_dir"),
}


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """An empty folder of recipes instead of the package's; returns a function that writes one."""
    for module in (base, recipe_listing):
        monkeypatch.setattr(module, "RECIPES", tmp_path / "recipes")

    def write(name: str, text: str) -> None:
        path = tmp_path / "recipes" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return write


# --- recipes

ONE_OF_EACH_FILE = list(
    {(name.split("/")[0], recipe_listing.recipe_files(name).paths[1]): name for name in recipe_names()}.values()
)


def test_there_are_recipes_for_the_digits_and_for_the_smoke_test():
    assert recipe_names("digits")
    assert recipe_names("smoke")
    assert not [name for name in recipe_names() if name.endswith("profile")]


@pytest.mark.parametrize("recipe", ONE_OF_EACH_FILE)
def test_every_recipe_resolves_for_every_command(recipe):
    pretraining = PretrainSettings.from_recipe(recipe)
    for section, kind in SECTIONS.items():
        settings = kind.from_recipe(recipe, seed=3)
        assert Path(settings.exp_dir).parts[-3:] == (*recipe.split("/"), "seed3"), section
        # table 8 evaluates on few labelled images, for STL10 of 96 pixels where the views have 64
        other_images = recipe.split("/")[1].startswith(("crops_", "stl10_"))
        # on CIFAR-10 all images are trained on, and heads on those before the tuning split
        other_images |= recipe.startswith("cifar10") and section in ("evaluate", "semi1", "semi10", "logistic_regression")
        for name in ("dataset", "arch", "stem") if other_images else ("dataset", "arch", "stem", "size", "subset"):
            assert getattr(settings, name) == getattr(pretraining, name), f"{section} evaluates another {name} than was trained"


@pytest.mark.parametrize("recipe", ONE_OF_EACH_FILE)
def test_the_first_lines_of_every_recipe_state_its_table_and_its_command(recipe):
    files = recipe_listing.recipe_files(recipe)
    head = (recipe_listing.RECIPES / f"{files.paths[1]}.toml").read_text(encoding="utf-8").split("\n\n")[0]
    assert head.startswith("# ")
    assert re.search(r"[Tt]able \d", head)
    commands = re.findall(r"--recipe (\S+)", head)
    if files.point:  # the file of a grid names one of its recipes
        assert commands[0] in recipe_listing.grid_recipes(*files.paths[1].split("/"))
    else:  # the recipe of a variant is that of another profile
        assert files.paths[1] in commands


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


GRID = """mlp = "64-32"
[evaluate]
epochs = 7
[grid]
"vicreg_sim_coeff = vicreg_std_coeff" = [5.0, 10.0]
base_lr = [2.5, 5.0]
"""


def test_a_grid_is_a_recipe_for_each_combination_of_its_values(recipes):
    recipes("toy/profile", "ssl_method = 'vicreg'\nbase_lr = 1.0\n")
    recipes("toy/tune_vicreg_q32", GRID)
    recipes("toy/tune_vicreg", "vicreg_sim_coeff = 3.0\n")
    of_grid = [f"toy/tune_vicreg_q32_sim{sim}_lr{lr}" for sim in (5, 10) for lr in (2.5, 5)]
    assert recipe_names("toy") == sorted(["toy/tune_vicreg", *of_grid])
    settings = [PretrainSettings.from_recipe(recipe) for recipe in of_grid]
    assert [(s.vicreg_sim_coeff, s.vicreg_std_coeff, s.base_lr) for s in settings] == [
        *((5.0, 5.0, 2.5), (5.0, 5.0, 5.0), (10.0, 10.0, 2.5), (10.0, 10.0, 5.0))
    ]
    assert {(s.ssl_method, s.mlp) for s in settings} == {("vicreg", "64-32")}
    assert EvaluateSettings.from_recipe(of_grid[0]).epochs == 7
    for section in SECTIONS:
        if section != "pretrain":
            assert load_recipe(of_grid[0], section)["choice"] == "vicreg_q32", section
    assert recipe_of(f"runs/{of_grid[3]}/seed2") == (of_grid[3], 2)
    recipes("toy/tune_vicreg_q32", GRID.replace("2.5, 5.0", "2.5, 5.0, 7.5"))
    assert len(recipe_names("toy")) == 7, "a file that has changed is read again"


@pytest.mark.parametrize("name", ["tune_vicreg_q32", "tune_vicreg_q32_sim5", "tune_vicreg_q32_sim5_lr9", "profile", "tune_other"])
def test_what_no_recipe_is_called_is_refused(recipes, name):
    recipes("toy/profile", "epochs = 3\n")
    recipes("toy/tune_vicreg_q32", GRID)
    refused = "recipe toy/tune_vicreg_q32 is a grid of 4 recipes" if name == "tune_vicreg_q32" else f"unknown recipe 'toy/{name}'"
    with pytest.raises(SfrikError, match=f"^{refused}"):
        load_recipe(f"toy/{name}")
    assert recipe_of(f"runs/toy/{name}/seed0") is None


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("base_lr = 5.0", "must have lists of values"),
        ("base_lr = []", "must have lists of values"),
        ("base_lr = [5.0, 5]", "give two recipes the same name"),
        ("base_rate = [5.0]", r"unknown setting base_rate .*did you mean base_lr\?"),
        ("base_lr = ['x']", "base_lr in recipe toy/tune_a_"),
    ],
)
def test_a_grid_that_is_none_is_refused_naming_its_file(recipes, grid, message):
    recipes("toy/tune_a", f"[grid]\n{grid}\n")
    with pytest.raises(SfrikError, match=message) as refusal:
        list(map(load_recipe, recipe_names("toy")))
    assert "toy/tune_a" in str(refusal.value)


def test_a_variant_has_the_recipes_of_another_profile_with_its_own_settings(recipes):
    recipes("toy/profile", "epochs = 200\nbatch_size = 64\n[evaluate]\nepochs = 100\n")
    recipes("toy/one", "base_lr = 0.5\nepochs = 300\n")
    recipes("toy/tune_a", "wd = 0.1\n[grid]\nbase_lr = [1.0]\n")
    recipes("quick/profile", 'base = "toy"\nepochs = 50\n[evaluate]\nlr_head = 0.1\n')
    assert recipe_names("quick") == ["quick/one", "quick/tune_a_lr1"]
    settings = PretrainSettings.from_recipe("quick/one")
    assert (settings.epochs, settings.batch_size, settings.base_lr) == (50, 64, 0.5)
    assert Path(settings.exp_dir).parts[-3:] == ("quick", "one", "seed0")
    evaluation = EvaluateSettings.from_recipe("quick/one")
    assert (evaluation.epochs, evaluation.lr_head) == (100, 0.1)
    assert PretrainSettings.from_recipe("toy/one").epochs == 300, "the other profile's recipes stay"
    grid = PretrainSettings.from_recipe("quick/tune_a_lr1")
    assert (grid.base_lr, grid.wd, grid.epochs) == (1.0, 0.1, 50)
    recipes("toy/one", "base_lr = 0.7\n")
    assert PretrainSettings.from_recipe("quick/one").base_lr == 0.7, "a file that has changed is read again"
    recipes("lost/profile", 'base = "toys"\n')
    with pytest.raises(SfrikError, match=r"base in recipe lost/profile.toml must be the name of another profile, got 'toys'"):
        load_recipe("lost/one")


def test_exp_dir_is_kept_if_given_and_else_follows_from_recipe_and_seed():
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


@pytest.mark.parametrize("name", [5, None, 1.0, True])
def test_a_recipe_that_is_no_text_is_refused(name):
    with pytest.raises(SfrikError, match=rf"^unknown recipe '{name}'"):
        PretrainSettings.from_recipe(name)


@pytest.mark.parametrize("kind", SECTIONS.values())
def test_an_unknown_recipe_is_refused_naming_the_nearest(kind):
    with pytest.raises(SfrikError, match=r"unknown recipe 'smoke/sfrik_l2_q17' \(did you mean smoke/sfrik_l2_q1?\d+\?\)"):
        kind.from_recipe("smoke/sfrik_l2_q17")


@pytest.mark.parametrize(
    "name",
    ["smoke/profile", "../recipes/smoke/sfrik_l2_q64", "", "smoke", "../smoke", "smoke/", "/sfrik_l2_q64", "a\0/b", "x/" * 999],
)
def test_what_is_not_a_recipe_is_not_read_as_one(name):
    with pytest.raises(SfrikError, match="unknown recipe"):
        load_recipe(name)


def test_a_recipe_that_is_not_toml_is_refused_naming_the_file(recipes):
    recipes("toy/one", "epochs = = 3\n")
    with pytest.raises(SfrikError, match=r"toy/one\.toml is not valid TOML"):
        load_recipe("toy/one")


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "pretrain"])
@pytest.mark.parametrize("asked", ["pretrain", "evaluate", "knn_eval"])
def test_every_section_is_checked_whichever_command_asks(recipes, section, asked):
    for k, (line, words) in enumerate(
        {
            "epoks = 3": "unknown setting epoks in recipe toy/{name}, section [{section}]",
            "batch_size = 1": "batch_size in recipe toy/{name}, section [{section}]: Input should be greater than or equal to 2",
            "seed = inf": "seed in recipe toy/{name}, section [{section}]: Input should be a finite number, got inf",
            'precision = "half"': "precision in recipe toy/{name}, section [{section}]: Input should be",
        }.items()
    ):
        recipes(f"toy/{k}", f"epochs = 2\n[{section}]\n{line}\n")
        with pytest.raises(SfrikError) as caught:
            load_recipe(f"toy/{k}", asked)
        assert str(caught.value).startswith(words.format(name=k, section=section))


def test_what_must_fit_together_is_checked_in_every_section_and_with_the_profile(recipes):
    recipes("toy/profile", '[semi1]\nweights = "finetune"\n')
    recipes("toy/one", 'arch = "pixels"\nssl_method = "none"\n')
    with pytest.raises(SfrikError, match=r"recipe toy/one, section \[semi1\]: arch pixels has nothing to fine-tune"):
        load_recipe("toy/one")
    recipes("toy/two", '[evaluate]\nweights = "finetune"\nlr_sweep = [0.1]\n')
    with pytest.raises(SfrikError, match=r"recipe toy/two, section \[evaluate\]: lr_sweep trains several heads"):
        PretrainSettings.from_recipe("toy/two")


def test_a_section_of_pretraining_is_refused_with_the_remedy(recipes):
    recipes("toy/one", "[pretrain]\nepochs = 3\n")
    with pytest.raises(SfrikError, match=r"section \[pretrain\] in recipe toy/one\.toml: move its settings to the top"):
        EvaluateSettings.from_recipe("toy/one")


@pytest.mark.parametrize("part", ["profile", "one"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs = 3 # caf\xe9\n", r"is not UTF-8 text \(byte 16 is 0xe9\)"),
        (b"epochs = = 3\n", "is not valid TOML"),
        (b"epochs = " + b"9" * 5000, "is not valid TOML"),
        (b"epochs = " + b"[" * 100_000, "is not valid TOML"),
        (b"\x00", "is not valid TOML"),
        (None, "is a FIFO and not a regular file"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused_in_one_line_with_its_file(recipes, tmp_path, part, content, words):
    recipes("toy/one", "epochs = 2\n")
    path = tmp_path / "recipes" / "toy" / f"{part}.toml"
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(SfrikError, match=rf"toy/{part}\.toml {words}") as caught:
        load_recipe("toy/one")
    assert "\n" not in str(caught.value)


def test_a_recipe_with_a_byte_order_mark_is_read(recipes):
    recipes("toy/one", "\ufeffepochs = 3\n")
    assert PretrainSettings.from_recipe("toy/one").epochs == 3


def test_a_recipe_is_read_again_when_it_or_its_profile_has_changed(recipes, tmp_path):
    recipes("toy/one", "epochs = 3\n")
    assert load_recipe("toy/one") == {"epochs": 3}
    load_recipe("toy/one")["epochs"] = 4
    assert load_recipe("toy/one") == {"epochs": 3}, "what is returned may be changed"
    recipes("toy/one", "epochs = 5\n")
    assert load_recipe("toy/one") == {"epochs": 5}
    recipes("toy/profile", "batch_size = 64\n")
    assert load_recipe("toy/one") == {"epochs": 5, "batch_size": 64}
    (tmp_path / "recipes" / "toy" / "profile.toml").unlink()
    assert load_recipe("toy/one") == {"epochs": 5}
    (tmp_path / "recipes" / "toy" / "one.toml").unlink()
    with pytest.raises(SfrikError, match="unknown recipe"):
        load_recipe("toy/one")


def test_recipes_are_read_once(recipes, monkeypatch):
    recipes("toy/one", "epochs = 3\n")
    load_recipe("toy/one")
    monkeypatch.setattr(base, "read_toml", lambda path: pytest.fail(f"{path} was read again"))
    assert [load_recipe("toy/one", section) for section in SECTIONS]


ILL_TYPED = [
    ("epochs", "three"),
    ("epochs", 2.5),
    ("epochs", -1),
    ("batch_size", 0),
    ("batch_size", 1),
    ("seed", -1),
    ("base_lr", 0),
    ("base_lr", float("nan")),
    ("base_lr", 1e-320),
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


# Every field of every command that takes numbers: a whole number, a number, or several of either.
NUMERIC = [
    (kind, name, get_origin(field.annotation) is tuple)
    for kind in sorted(set(SECTIONS.values()), key=lambda kind: kind.__name__)
    for name, field in kind.model_fields.items()
    if re.search(r"\b(int|float)\b", repr(field.annotation))
]
NEVER = [math.inf, -math.inf, math.nan, 1e300, -1e300, "inf", "nan", "1e400", "1e300", True, "٣", "3x", ""]


def refusal(kind, values) -> str:
    with pytest.raises(SfrikError) as caught:
        kind.parse(values, "recipe toy/one")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(("kind", "name", "several"), NUMERIC, ids=[f"{kind.__name__}-{name}" for kind, name, _ in NUMERIC])
def test_every_number_is_finite_and_bounded(kind, name, several):
    whole = re.search(r"\bint\b", repr(kind.model_fields[name].annotation))
    default = (kind.model_fields[name].default or (1,)) if several else ()
    for value in [*NEVER, *([10**30, -(10**30), "9" * 30, 1e30, 2.5] if whole else [10**40, "9" * 5000])]:
        given = (*default, value) if several else value
        assert refusal(kind, {name: given}).startswith(f"{name}{f'.{len(given) - 1}' if several else ''} in recipe toy/one: ")
    if several:
        assert refusal(kind, {name: default[:1] * 1001}).startswith(f"{name} in recipe toy/one: Tuple should have at most 10")


def test_the_walk_over_the_settings_meets_those_that_are_numbers():
    names = {name for _, name, _ in NUMERIC}
    assert {"epochs", "base_lr", "seed", "subset", "nb_knn", "lr_sweep", "min_scale_crops", "temperature"} <= names
    assert len(NUMERIC) > 60


def test_a_bound_is_written_briefly():
    assert "greater than or equal to 1.2e-38, got 1e-320" in refusal(PretrainSettings, {"base_lr": 1e-320})
    assert "less than or equal to 3.4e+38, got '1e300'" in refusal(PretrainSettings, {"base_lr": "1e300"})
    assert "less than or equal to 4294967295, got" in refusal(PretrainSettings, {"seed": 2**32})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("mlp", "8-70000", "at most 65536"),
        ("mlp", "-".join(["8"] * 17), "at most 16 widths"),
        ("mlp", "9" * 5000, "widths joined by hyphens"),
        ("mlp", "٣-٣", "widths joined by hyphens"),
        ("sfrik_weights", "1-1e300", r"at most 1e\+07"),
        ("sfrik_weights", "1-1e400", r"at most 1e\+07"),
        ("sfrik_weights", "٣", "numbers >= 0"),
        ("sfrik_weights", "-".join(["1"] * 65), "at most 64 numbers"),
        ("seed", 2**32, "4294967295"),
        ("sfrik_kernel_scale", 1e6, "80"),
    ],
)
def test_a_value_beyond_its_bound_is_refused_with_the_bound(name, value, words):
    assert re.match(f"{name} in recipe toy/one: .*{words}", refusal(PretrainSettings, {name: value}))


@pytest.mark.parametrize(("kernel", "most"), [("rbf", 40), ("heat", 80), ("power", 1.999)])
def test_every_kernel_that_the_settings_accept_is_built_at_once(kernel, most):
    from sfrik.objectives.factory import build_objective

    started = time.process_time()
    refusals = []
    refused = "beyond the range of torch.float32|exceed the range of float64|below the range of float64|degrees that matter"
    for scale, q, degree in itertools.product((None, 1e-6, 1.0, most), (2, 256, 65536), (None, 1, 64)):
        given = {"sfrik_kernel": kernel, "sfrik_kernel_scale": scale, "sfrik_kernel_degree": degree, "mlp": f"8-{q}"}
        try:
            build_objective(PretrainSettings(**given), lambda note: None)
        except SfrikError as error:
            refusals.append((kernel, scale, str(error)))
    # only short times give values that no loss can have
    assert {(name, scale) for name, scale, _ in refusals} <= {("heat", 1e-6), ("heat", 1.0), ("heat", most)}
    assert all(re.search(refused, text) for _, _, text in refusals)
    assert time.process_time() - started < 36 * 0.5
    refusal(PretrainSettings, {"sfrik_kernel": kernel, "sfrik_kernel_scale": most + 0.01})


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        *((flag, "99999999999") for flag in ("--seeds", "--jobs", "--nodes", "--gpus", "--nproc-per-node", "--images", "--seed")),
        *(("--seeds", text) for text in ("99999999", "0", "-1", "1.5", "", "١٢", "²", " 3", "3\n", "9" * 5000, "1e3", "inf")),
    ],
)
def test_a_flag_is_a_whole_number_within_its_bounds(flag, text):
    assert whole_number("3", flag, 1) == 3
    with pytest.raises(SfrikError, match=rf"^{flag} must be a whole number >= 1 and <= \d+, got ") as caught:
        whole_number(text, flag, 1)
    assert "\n" not in str(caught.value)


def test_text_from_the_command_line_becomes_the_settings_type():
    settings = KnnSettings.parse({"nb_knn": ["10", "20"], "temperature": "0.1", "seed": "4"})
    assert settings.nb_knn == (10, 20)
    assert settings.temperature == 0.1
    assert settings.seed == 4


@pytest.mark.parametrize(
    ("kind", "name", "text", "expected"),
    [
        (PretrainSettings, "sfrik_weights", "1.0", "1.0"),
        (PretrainSettings, "sfrik_weights", "1", "1.0"),
        (PretrainSettings, "sfrik_weights", "0.00001", "0.00001"),
        (PretrainSettings, "mlp", "64", "64"),
        (PretrainSettings, "mlp", "64-32", "64-32"),
        (PretrainSettings, "loggers", "tensorboard", ("tensorboard",)),
        (PretrainSettings, "loggers", "none", ()),
        (PretrainSettings, "nmb_crops", "2", (2,)),
        (PretrainSettings, "subset", "none", None),
        (PretrainSettings, "subset", "None", None),
        (PretrainSettings, "micro_batch", "NONE", None),
        (PretrainSettings, "sfrik_slices", "64", 64),
        (PretrainSettings, "skip_broken", "True", True),
        (PretrainSettings, "skip_broken", "false", False),
        (PretrainSettings, "reg_small", "1", True),
        (PretrainSettings, "epochs", "3", 3),
        (PretrainSettings, "base_lr", "1e-3", 1e-3),
        (PretrainSettings, "exp_dir", "2024", "2024"),
        (PretrainSettings, "exp_dir", "none", ""),
        (PretrainSettings, "data_dir", "none", "none"),
        (KnnSettings, "nb_knn", "20", (20,)),
        (KnnSettings, "nb_knn", "10 20", (10, 20)),
        (KnnSettings, "nb_knn", "10,20", (10, 20)),
        (KnnSettings, "nb_knn", "[10, 20]", (10, 20)),
        (KnnSettings, "choice", "none", ""),
        (EvaluateSettings, "lr_sweep", "0.1", (0.1,)),
        (EvaluateSettings, "lr_sweep", "none", ()),
        (EvaluateSettings, "only_inference", "yes", True),
    ],
)
def test_a_value_is_the_same_from_papermill_the_command_line_and_a_list(kind, name, text, expected):
    """papermill makes numbers, booleans and None of texts; the command line gives lists of texts to settings that are lists."""
    cli = pytest.importorskip("papermill.cli", reason="comes with the extra notebooks")
    forms = [text, cli._resolve_type(text)]
    if isinstance(expected, tuple):
        forms += [text.replace("[", "").replace(",", " ").replace("]", "").split(), expected, list(expected)]
    for form in forms:
        if form is not None or expected is None:  # None keeps a recipe's value, so papermill's None is not parsed
            found = getattr(kind.parse({name: form}), name)
            assert (found, type(found)) == (expected, type(expected)), form
    first, second = (kind.parse({name: form}).hash() for form in (text, expected))
    assert first == second


def test_none_unsets_what_a_recipe_sets():
    assert PretrainSettings.from_recipe("smoke/sfrik_l3_q64").subset == 30
    assert PretrainSettings.from_recipe("smoke/sfrik_l3_q64", subset="none").subset is None
    assert EvaluateSettings.from_recipe("digits/sfrik_l3_q512", lr_sweep="none").lr_sweep == ()


PATHS = {"exp_dir", "data_dir", "image_dir", "extraction_dir", "pretrained", "ckp_path", "label_list", "target_dir"}


@pytest.mark.parametrize("kind", sorted(set(SECTIONS.values()), key=lambda kind: kind.__name__))
def test_the_home_folder_is_expanded_in_every_path(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = PATHS & kind.model_fields.keys()
    assert {name for name in kind.model_fields if re.search(r"_(dir|path|list)$|pretrained", name)} == names
    base = {"train_percent": 10} if "train_percent" in kind.model_fields else {}  # a label list needs it
    for name in names:
        for given in ("~/x", Path("~/x"), f"{tmp_path}/x"):
            assert getattr(kind.parse({**base, name: given}), name) == f"{tmp_path}/x"
        assert getattr(kind.parse({**base, name: "a/~x"}), name) == "a/~x"
        assert refusal(kind, {name: "~no_such_user/x"}).startswith(
            f"{name} in recipe toy/one: the path '~no_such_user/x' names no"
        )
        assert "null byte" in refusal(kind, {name: "a\0b"})
    assert run_folder("smoke/a", 0, "~/r") == tmp_path / "r" / "smoke" / "a" / "seed0"
    assert Run("~/r").folder == tmp_path / "r"
    assert as_path("none") == ""


def test_functions_that_take_a_path_expand_the_home_folder_too(monkeypatch, tmp_path):
    from sfrik.datasets import load_images
    from sfrik.evaluate import load_features
    from sfrik.evaluate.head_files import load_head
    from sfrik.networks import load_backbone

    monkeypatch.setenv("HOME", str(tmp_path))
    calls = [lambda: load_features("~/x", "train"), lambda: load_head("~/x"), lambda: load_backbone("~/x", "resnet8")]
    for call in [*calls, lambda: load_images("image_folder", "train", "~/x")]:
        with pytest.raises(SfrikError, match=re.escape(f"{tmp_path}/x")):
            call()


def test_parameters_of_notebooks_that_are_not_settings_are_read_alike():
    assert [as_list(value) for value in ("table1", "table1, table2", [], "none", ["voc07"])] == [
        *(["table1"], ["table1", "table2"], [], [], ["voc07"])
    ]


@pytest.mark.parametrize(("epochs", "warmup", "words"), [(3, 10, "ends at 30 % of its peak"), (1, 1e7, "ends at 1e-05 % of")])
def test_a_warm_up_longer_than_the_training_is_reported_in_the_plan(epochs, warmup, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    from sfrik.cli.plan import format_plan

    settings = PretrainSettings(epochs=epochs, warmup_epochs=warmup)
    (line,) = [line for line in format_plan(settings, 1, True) if "is longer than the training" in line]
    assert words in line
    for sound in ({"epochs": 10}, {"epochs": 0}, {"epochs": 3, "ssl_method": "none"}, {"epochs": 3, "warmup_epochs": 3}):
        assert PretrainSettings(**{"warmup_epochs": 10, **sound}).notes == []


def test_settings_cannot_be_changed_once_checked():
    with pytest.raises(ValueError, match="frozen"):
        PretrainSettings().epochs = 3


# --- the optimizer

GIVEN = {"momentum": 0.5, "trust_coefficient": 0.01, "betas": "0.9 0.95", "eps": 1e-6, "nesterov": True}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", UNSET)
def test_a_setting_of_one_optimizer_is_refused_for_another_however_it_is_given(name, optimizer):
    value = GIVEN[name]
    if name in OPTIMIZERS[optimizer]:
        assert PretrainSettings.parse({"optimizer": optimizer, name: value}).what()["optimizer" if optimizer != "lars" else name]
        return
    owners = " and ".join(owner for owner, names in OPTIMIZERS.items() if name in names)
    for given in (value, PretrainSettings.model_fields[name].default or True, str(value)):  # also one that equals the default
        refused = f"{name} is a setting of optimizer {owners} and not of {optimizer}: leave it out"
        assert refused in refusal(PretrainSettings, {"optimizer": optimizer, name: given})
        with pytest.raises(SfrikError, match=f"settings in recipe smoke/sfrik_l2_q64 with overrides: {refused}"):
            PretrainSettings.from_recipe("smoke/sfrik_l2_q64", optimizer=optimizer, **{name: given})
    unset = PretrainSettings.parse({"optimizer": optimizer, name: "none"})
    assert unset == PretrainSettings.parse({"optimizer": optimizer})
    assert getattr(unset, name) == UNSET[name]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_settings_of_an_optimizer_have_defaults_that_are_not_refused_when_settings_are_read_again(optimizer):
    settings = PretrainSettings(optimizer=optimizer)
    own = {name: getattr(settings, name) for name in OPTIMIZERS[optimizer]}
    assert own == {name: PretrainSettings.model_fields[name].default for name in own}
    again = PretrainSettings.parse({**settings.model_dump(), **dict.fromkeys(own, "none")})
    assert again.hash() == settings.hash()
    assert again.model_dump() == settings.model_dump()
    given = PretrainSettings.parse({"optimizer": optimizer.upper(), **own})
    assert given.hash() == settings.hash(), "a default that is given is the same setting"
    assert settings.differences(given.what()) == ""


def test_a_recipe_of_another_optimizer_is_overridden_with_its_settings_unset(recipes):
    recipes("toy/vit", 'optimizer = "adamw"\nbase_lr = 1e-3\nbetas = [0.9, 0.95]\n')
    assert PretrainSettings.from_recipe("toy/vit", betas="none").betas == (0.9, 0.999)
    with pytest.raises(SfrikError, match=r"recipe toy/vit with overrides: betas is a setting of optimizer adamw and not of sgd"):
        PretrainSettings.from_recipe("toy/vit", optimizer="sgd")
    assert PretrainSettings.from_recipe("toy/vit", optimizer="sgd", betas="none").momentum == 0.9


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optimizer": "adam"}, r"optimizer: Input should be 'lars', 'adamw' or 'sgd' \(did you mean adamw\?\), got 'adam'"),
        ({"ssl_method": "simclear"}, r"ssl_method: .*\(did you mean simclr\?\), got 'simclear'"),
        ({"optimizer": "none"}, "optimizer: Input should be 'lars', 'adamw' or 'sgd'.*, got 'none'"),
        ({"optimizer": "adamw", "betas": 0.9}, r"betas must be two numbers, such as 0.9 0.999, got \(0.9,\)"),
        ({"optimizer": "adamw", "betas": (0.9, 0.9, 0.9)}, "betas must be two numbers"),
        ({"optimizer": "adamw", "betas": (0.9, 1)}, "betas.1: Input should be less than 1, got 1"),
        ({"optimizer": "adamw", "betas": (-0.1, 0.9)}, "betas.0: Input should be greater than or equal to 0, got -0.1"),
        ({"optimizer": "adamw", "eps": 0}, "eps: Input should be greater than or equal to 1e-12, got 0"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum: Input should be less than 1, got 1"),
        ({"optimizer": "sgd", "momentum": 0, "nesterov": True}, "nesterov needs a momentum above 0"),
        ({"trust_coefficient": 0}, "trust_coefficient: Input should be greater than or equal to 1e-12, got 0"),
        ({"clip_grad": 0}, "clip_grad: Input should be greater than or equal to 0.000001, got 0"),
        ({"clip_grad": -1}, "clip_grad: Input should be greater than or equal to 0.000001, got -1"),
    ],
)
def test_an_unsound_setting_of_an_optimizer_is_refused(given, words):
    with pytest.raises(SfrikError, match=words) as caught:
        PretrainSettings.parse(given)
    assert "\n" not in str(caught.value)


def test_a_rate_of_lars_for_adamw_is_reported_in_the_plan(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    from sfrik.cli.plan import format_plan

    def reported(**given) -> list[str]:
        return [line for line in format_plan(PretrainSettings(**given), 1, True) if "too large for optimizer" in line]

    (line,) = reported(optimizer="adamw", base_lr=10)
    assert line.startswith("base_lr 10 is too large for optimizer adamw")
    assert not any(
        reported(**given)
        for given in (
            {"optimizer": "adamw", "base_lr": 0.1},
            {"optimizer": "lars", "base_lr": 10},
            {"optimizer": "sgd", "base_lr": 10},
            {"optimizer": "adamw", "base_lr": 10, "ssl_method": "none"},
            {"optimizer": "adamw", "base_lr": 10, "epochs": 0},
        )
    )


# --- the hash


def test_settings_of_the_optimizer_do_not_change_the_hash_of_a_recipe_that_has_none():
    """Recipes without them were run, and published, by releases that did not have these settings."""
    own, others = {"optimizer", "clip_grad", *UNSET}, 0
    for recipe in recipe_names():
        if not own & load_recipe(recipe).keys():
            assert not own & PretrainSettings.from_recipe(recipe).what().keys(), recipe
            others += 1
    assert others > 100


def another_value(kind, name, choice):
    """Settings with a valid value of the one named that is not its default."""
    field, default = kind.model_fields[name], getattr(kind(), name)
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    pool = [
        *choices,
        3,
        0.5,
        10,
        True,
        "64-32",
        "1.0-2.0",
        "resnet34",
        "elsewhere",
        (1, 2),
        (0.14, 0.14),
        (3,),
        (0.5,),
        "2",
        "swav",
    ]
    pool += [("wandb",), "depth=2"]
    for value in pool:
        try:
            settings = kind.parse({**choice, name: value})
        except SfrikError:
            continue
        if getattr(settings, name) != default:
            return settings
    return None


# Settings that have an effect only with a certain choice, and that choice.
BELONGS = [
    (("sfrik_kernel_scale", "sfrik_kernel_degree"), {"sfrik_kernel": "rbf"}),
    (CROPS["obow"], {"augmentations": "obow"}),
    (CROPS["swav"], {"augmentations": "swav"}),
    (("reg_small",), {"augmentations": "swav"}),
    (("sigreg_weight", "sigreg_slices"), {"ssl_method": "sigreg"}),
    (OPTIMIZERS["adamw"], {"optimizer": "adamw"}),
    (("nesterov",), {"optimizer": "sgd"}),
    (("lr_backbone",), {"weights": "finetune"}),
    (("label_list",), {"train_percent": 10}),
    (("arch_args",), {"arch": "timm/resnet18"}),
]
# Those that are refused without that choice, and why.
REFUSED = {
    "label_list": "label_list names a part of the training images: give train_percent",
    "arch_args": "arch_args are for timm/NAME and torchvision's ViTs",
}

CASES = [(kind, name) for kind in SECTIONS.values() for name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.__name__}-{name}" for kind, name in CASES])
def test_the_hash_ignores_places_and_changes_with_any_other_setting(kind, name):
    # a setting that belongs to a choice counts only where that choice is made
    choice = next((choice for names, choice in BELONGS if name in names), {})
    changed = another_value(kind, name, choice)
    if changed is None:
        choices = get_args(kind.model_fields[name].annotation)
        assert len(choices) == 1, f"no other value found for {name}: add one to the pool"
        pytest.skip(f"{name} has one value only")
    assert (changed.hash() == kind.parse(choice).hash()) == (name in PLACES)
    if name in REFUSED:
        with pytest.raises(SfrikError, match=REFUSED[name]):
            kind.parse({name: getattr(changed, name)})
    elif "optimizer" in choice:  # refused under another one
        assert f"{name} is a setting of optimizer {choice['optimizer']}" in refusal(kind, {name: getattr(changed, name)})
    elif choice:
        assert kind.parse({name: getattr(changed, name)}).hash() == kind().hash()


@pytest.mark.parametrize(
    ("given", "kept", "protocol"),
    [(1, 1, "semi1"), ("10.0", 10, "semi10"), (2.5, 2.5, "semi2.5"), ("0.5", 0.5, "semi0.5"), ("100", 100, "finetune")],
)
def test_a_share_of_the_labels_has_one_name_and_one_hash_however_it_is_written(given, kept, protocol):
    settings, same = (EvaluateSettings.parse({"train_percent": value, "weights": "finetune"}) for value in (given, kept))
    assert settings.protocol == protocol
    assert repr(settings.what().get("train_percent", 100)) == repr(kept)
    assert settings.hash() == same.hash()
    # the published scores of 10 % have this hash
    assert EvaluateSettings(train_percent="10", weights="freeze").hash() == "231d76ef2f92"


@pytest.mark.parametrize("value", [0, -1, 100.1, "nan", "inf", "10%", True, [1]])
def test_a_share_outside_0_to_100_is_refused(value):
    with pytest.raises(SfrikError, match=r"^train_percent: "):
        EvaluateSettings.parse({"train_percent": value})


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({"train_percent": "2.5"}, "finetune"),
        ({"train_percent": 30}, "finetune"),
        ({}, "freeze"),
        ({"train_percent": 100}, "freeze"),
    ],
)
def test_a_share_takes_the_settings_of_the_nearer_section_of_1_or_10_percent(given, weights):
    settings = EvaluateSettings.from_recipe("digits/sfrik_l3_q512", **given)
    assert settings.weights == weights
    if weights == "finetune":
        near = EvaluateSettings.from_recipe("digits/sfrik_l3_q512", train_percent=1 if given["train_percent"] == "2.5" else 10)
        assert settings.lr_head == near.lr_head


def test_the_weights_of_the_truncated_kernel_do_not_count_under_another_kernel():
    first, second = (PretrainSettings(sfrik_kernel="heat", sfrik_weights=weights) for weights in ("1.0", "1.0-40.0"))
    assert first.hash() == second.hash()
    assert "sfrik_weights" not in first.what()
    assert PretrainSettings(sfrik_weights="1.0").hash() != PretrainSettings(sfrik_weights="1.0-40.0").hash()


def test_sfriks_weight_of_the_alignment_is_in_proportion_to_q_unless_it_or_the_trade_off_is_given():
    assert [PretrainSettings(mlp=mlp).sfrik_sim_coeff for mlp in ("64", "512-512", "8192-8192")] == [31.25, 250.0, 4000.0]
    assert PretrainSettings(mlp="64").trade_off == 2.048
    assert PretrainSettings(mlp="64", sfrik_sim_coeff="none").sfrik_sim_coeff == 31.25
    assert PretrainSettings(mlp="64", sfrik_sim_coeff=0).trade_off == math.inf
    settings = PretrainSettings(mlp="512", sfrik_mmd_coeff=0.5, sfrik_trade_off=1.0)
    assert (settings.sfrik_sim_coeff, settings.trade_off) == (256.0, 1.0)
    assert settings.hash() == PretrainSettings(mlp="512", sfrik_mmd_coeff=0.5, sfrik_sim_coeff=256).hash()
    assert PretrainSettings.model_validate(settings.model_dump(mode="json")).hash() == settings.hash()
    assert PretrainSettings(ssl_method="auh", mlp="64").what()["sfrik_sim_coeff"] == 4000, "as in runs of earlier releases"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sfrik_sim_coeff": 4000, "sfrik_trade_off": 2.048}, "sfrik_trade_off and sfrik_sim_coeff are two forms of one weight"),
        ({"sfrik_mmd_coeff": 0, "sfrik_trade_off": 1}, "sfrik_trade_off needs a sfrik_mmd_coeff above 0, got 0"),
        ({"sfrik_trade_off": 0}, "sfrik_trade_off: Input should be greater than 0, got 0"),
        ({"sfrik_trade_off": 1e-6}, r"sfrik_trade_off 1e-06 needs a sfrik_sim_coeff of 8.19e\+09, above 1e\+07: raise it"),
    ],
)
def test_a_trade_off_that_contradicts_other_settings_is_refused_by_name(given, message):
    with pytest.raises(SfrikError, match=message):
        PretrainSettings.parse(given)


def test_a_trade_off_replaces_the_weight_of_a_recipe():
    recipe = "smoke/sfrik_l3_q64"
    settings = PretrainSettings.from_recipe(recipe, sfrik_trade_off="2")
    assert (settings.sfrik_sim_coeff, settings.trade_off) == (32.0, 2.0)
    assert Path(settings.exp_dir).name == "seed0-sfrik_sim_coeff_32.0"
    for kept in ({}, {"sfrik_trade_off": None}, {"sfrik_trade_off": "none"}, {"sfrik_trade_off": 0.25}):
        assert PretrainSettings.from_recipe(recipe, **kept).exp_dir.endswith("seed0"), "lambda is 64 / 256"
    assert PretrainSettings.from_recipe(recipe, sfrik_sim_coeff="none").sfrik_sim_coeff == 31.25
    with pytest.raises(SfrikError, match="two forms of one weight"):
        PretrainSettings.from_recipe(recipe, sfrik_trade_off=2, sfrik_sim_coeff=32)


def test_auhs_entropy_is_part_of_a_run_only_if_it_is_chosen():
    settings = PretrainSettings.from_recipe("smoke/auh_q64", auh_entropy=True)
    assert settings.what()["auh_entropy"] is True
    assert "auh_entropy" in settings.shown()
    assert "auh_entropy" not in PretrainSettings.from_recipe("smoke/auh_q64", auh_entropy=False).what()


def test_the_smallest_scale_of_two_views_counts_only_where_they_have_it_and_it_is_not_the_papers():
    assert "min_crop_scale" not in PretrainSettings().what()
    for augmentations in ("vicreg", "simclr", "auh", "cifar"):
        settings = PretrainSettings(augmentations=augmentations, min_crop_scale=0.2)
        assert settings.what()["min_crop_scale"] == 0.2
        assert settings.crops == {"min_crop_scale": 0.2}
    digits = {"dataset": "mnist5k", "size": 28, "augmentations": "auh"}
    crops = {"image_crop_size": 96, "img_patch_size": 64}
    for others in ({"augmentations": "obow", **crops}, {"augmentations": "swav"}, digits):
        settings = PretrainSettings(**others, min_crop_scale=0.2)
        assert settings.hash() == PretrainSettings(**others).hash()
        assert "min_crop_scale" not in settings.crops
    for wrong in (0, 1.1):
        with pytest.raises(SfrikError, match="min_crop_scale"):
            PretrainSettings.parse({"min_crop_scale": wrong})
    with pytest.raises(SfrikError, match="augmentations cifar are not for the images of mnist5k"):
        PretrainSettings.parse({"dataset": "mnist5k", "augmentations": "cifar"})


TRAINED = "dataset size arch stem seed batch_size precision epochs"
PRETRAINED = f"{TRAINED} augmentations mlp warmup_epochs base_lr wd ssl_method log_every knn_every"
UNTRAINED = "dataset size arch stem seed mlp ssl_method"
SCORED = "dataset size arch stem seed batch_size precision val_dataset"
SGD = "epochs lr_head weight_decay"


@pytest.mark.parametrize(
    ("section", "recipe", "given", "names"),
    [
        ("pretrain", "digits/simclr_q512", {}, f"{PRETRAINED} simclr_temp"),
        ("pretrain", "digits/vicreg_q512", {}, f"{PRETRAINED} vicreg_sim_coeff vicreg_std_coeff vicreg_cov_coeff"),
        ("pretrain", "digits/auh_q512", {"subset": 9}, f"{PRETRAINED} subset auh_sim_coeff auh_unif_coeff auh_scale"),
        ("pretrain", "digits/sfrik_l3_q512", {}, f"{PRETRAINED} sfrik_sim_coeff sfrik_mmd_coeff sfrik_weights"),
        (
            *("pretrain", "digits/sfrik_l3_q512", {"sfrik_kernel": "rbf", "sfrik_slices": 8}),
            f"{PRETRAINED} sfrik_sim_coeff sfrik_mmd_coeff sfrik_kernel sfrik_slices",
        ),
        ("pretrain", "digits/simclr_q512", {"ssl_method": "sigreg"}, f"{PRETRAINED} sigreg_weight sigreg_slices"),
        ("pretrain", "cifar10/simclr_q512", {}, f"{PRETRAINED} simclr_temp input_pipeline min_crop_scale"),
        (
            *("pretrain", "digits/simclr_q512", {"optimizer": "adamw", "clip_grad": 1, "betas": (0.9, 0.95)}),
            f"{PRETRAINED} simclr_temp optimizer clip_grad betas",
        ),
        ("pretrain", "digits/random_weights", {"optimizer": "adamw", "clip_grad": 1}, UNTRAINED),
        ("pretrain", "digits/random_weights", {}, UNTRAINED),
        ("pretrain", "digits/raw_pixels", {}, "dataset size arch seed ssl_method"),
        ("evaluate", "cifar10/simclr_q512", {"lr_sweep": ()}, f"{SCORED} subset weights {SGD}"),
        (
            *("evaluate", "digits/simclr_q512", {"val_subset": 9}),
            f"{SCORED} weights epochs lr_sweep weight_decay val_subset head_norm",
        ),
        ("evaluate", "smoke/sfrik_l3_q64", {"val_subset": 9}, f"{SCORED} subset weights {SGD}"),
        ("evaluate", "digits/simclr_q512", {"only_inference": True}, f"{SCORED} weights only_inference"),
        ("semi1", "digits/simclr_q512", {}, f"{SCORED} weights train_percent lr_backbone {SGD}"),
        ("knn_eval", "digits/simclr_q512", {"val_subset": 9}, f"{SCORED} nb_knn temperature"),
        ("logistic_regression", "digits/simclr_q512", {}, f"{SCORED} solver inverse_penalties"),
        ("logistic_regression", "digits/simclr_q512", {"solver": "sgd"}, f"{SCORED} solver {SGD}"),
        ("transfer", "digits/simclr_q512", {}, "size arch stem seed batch_size precision target"),
        ("transfer", "digits/simclr_q512", {"target": "voc07"}, "size arch stem seed batch_size precision target svm_costs"),
        ("transfer", "digits/simclr_q512", {"target": "places205"}, f"size arch stem seed batch_size precision target {SGD}"),
    ],
)
def test_settings_that_play_no_part_are_not_shown(section, recipe, given, names):
    settings = recipe_settings(recipe, 0, section, **given)
    assert settings.shown().keys() == set(names.split())
    assert settings.shown().items() <= settings.what().items()


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("sfrik_weights", ["1.0-40.0-0.5", "1-40-.5", " 1.00-+40-0.5\n", (1, 40.0, "0.50"), [1.0, "40", 0.5]]),
        ("sfrik_weights", ["1.0-0.00001", (1, 1e-5), "1-0.000010"]),
        ("mlp", ["64-8", "064-08", (64, 8), ["64", 8]]),
        ("wd", [0.0, "-0", "-0.0", 0, -0.0, "0e5"]),
        ("min_scale_crops", [(0.14, 0.05), "0.140 5e-2", [0.14, "0.05"]]),
    ],
)
def test_a_number_has_one_form_and_one_hash_however_it_is_written(name, forms):
    """1-40-40 and 1.0-40.0-40.0 were different settings, so that a run by the first was none of the recipe."""
    first, *others = (PretrainSettings.parse({"augmentations": "swav", name: form}) for form in forms)
    for other in others:
        assert repr(getattr(other, name)) == repr(getattr(first, name))
        assert other.hash() == first.hash()
    assert PretrainSettings.from_recipe("smoke/sfrik_l3_q64", sfrik_weights="1-40-40", mlp="064-64").exp_dir.endswith("seed0")


def test_settings_that_an_earlier_release_recorded_as_given_are_read_in_the_form_of_today():
    settings = PretrainSettings.from_recipe("smoke/sfrik_l3_q64")
    recorded = settings.what() | {"sfrik_weights": "1-40.0-4e1", "mlp": "064-64"}
    assert settings.differences(recorded) == ""
    assert settings.differences(recorded | {"sfrik_weights": "1-40-41"}).startswith("sfrik_weights '1.0-40.0-41.0' -> '1.0-")
    assert "epochs 'x' -> 2" in settings.differences(recorded | {"epochs": "x"})
    assert "later 1 -> None" in settings.differences(recorded | {"later": 1})


def test_names_are_read_as_the_original_commands_write_them():
    settings = PretrainSettings.parse({"dataset": "ImageNet", "augmentations": "VICReg", "ssl_method": "SFRIK"})
    assert (settings.dataset, settings.augmentations, settings.ssl_method) == ("imagenet", "vicreg", "sfrik")


def test_the_scale_of_a_kernel_is_by_default_its_own():
    scales = {name: PretrainSettings(sfrik_kernel=name, mlp="8-512").kernel_scale for name in ("rbf", "power", "heat")}
    assert scales == {"rbf": 2.5, "power": 1.0, "heat": math.log(512)}
    assert PretrainSettings(sfrik_kernel="rbf", sfrik_kernel_scale=1.0).kernel_scale == 1.0
    for name in ("sfrik_kernel_scale", "sfrik_kernel_degree"):
        assert PretrainSettings.parse({"sfrik_kernel": "heat", name: "none"}) == PretrainSettings(sfrik_kernel="heat")
        assert name not in PretrainSettings(sfrik_kernel="heat").shown()
        assert PretrainSettings.parse({name: 2}).hash() == PretrainSettings().hash(), "without effect on the truncated kernel"
    for name, value in {"sfrik_kernel_scale": 0, "sfrik_kernel_degree": 65, "sfrik_stein": 3}.items():
        refusal(PretrainSettings, {name: value})


def test_the_stein_discrepancy_is_a_setting_of_every_kernel_and_of_the_power_kernel_with_a_degree_only():
    assert "sfrik_stein" not in PretrainSettings().what()
    assert PretrainSettings(sfrik_stein=1).what()["sfrik_stein"] == 1
    with pytest.raises(SfrikError, match="sfrik_stein 1 needs a sfrik_kernel_degree with sfrik_kernel power"):
        PretrainSettings.parse({"sfrik_kernel": "power", "sfrik_stein": 1})
    PretrainSettings.parse({"sfrik_kernel": "power", "sfrik_stein": 1, "sfrik_kernel_degree": 4})


def test_a_power_of_two_or_more_is_refused_as_a_kernel():
    with pytest.raises(SfrikError, match="below 2"):
        PretrainSettings.parse({"sfrik_kernel": "power", "sfrik_kernel_scale": 2.0})


def test_the_hash_is_twelve_hexadecimal_digits_and_the_same_for_the_same_settings():
    first = PretrainSettings.from_recipe("smoke/sfrik_l2_q64")
    assert re.fullmatch(r"[0-9a-f]{12}", first.hash())
    again = PretrainSettings.parse({**first.model_dump(), "exp_dir": "elsewhere", "workers": 9, "device": "cpu", "data_dir": "d"})
    assert again.hash() == first.hash()


# --- versions


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def exact_versions():
    lines = re.findall(
        r"^\s*- ([A-Za-z0-9_.-]+)(==?)([0-9][\w.]*)$", (ROOT / "environment.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
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


@pytest.mark.parametrize(("name", "vulnerable"), [("torch", "2.9.1"), ("torchvision", "0.24.1"), ("pillow", "12.2.0")])
def test_versions_with_known_vulnerabilities_to_user_files_are_excluded(name, vulnerable):
    (requirement,) = [requirement for requirement in requirements() if requirement.name == name]
    assert not requirement.specifier.contains(vulnerable)
