"""The recipes at the paper's scale and of natural images: every row of a table has one, published values are as published."""

from __future__ import annotations

import re

import pytest

from sfrik.cost.memory import _counts, expected_memory
from sfrik.errors import SfrikError
from sfrik.settings import SECTIONS, EvaluateSettings, KnnSettings, LogisticSettings, PretrainSettings, recipe_names
from sfrik.settings.recipes import RECIPES, recipe_files
from sfrik.tables.definitions import EXPERIMENTS, grids, rows_of
from sfrik.tables.rows import DIMS

PAPER = recipe_names("paper")
CIFAR10 = recipe_names("cifar10")
PHOTOS = recipe_names("photos")
IN20 = [recipe for recipe in PAPER if recipe.startswith("paper/in20_")]
IN1K = [recipe for recipe in PAPER if recipe.startswith("paper/in1k_")]
STL10 = [recipe for recipe in PAPER if recipe.startswith("paper/stl10_")]


def text_of(recipe):
    return (RECIPES / f"{recipe_files(recipe).paths[1]}.toml").read_text(encoding="utf-8")


def q_of(recipe):
    return int(re.search(r"_q(\d+)", recipe).group(1))


# --- completeness


@pytest.mark.parametrize("recipe", [recipe for recipe in PAPER + CIFAR10 if "/tune_" not in recipe])
def test_a_part_of_the_labels_has_a_protocol_of_its_own(recipe):
    """That each section of each recipe can be read is tested in test_settings.py."""
    for section, percent in (("semi1", 1), ("semi10", 10)):
        settings = SECTIONS[section].from_recipe(recipe, train_percent=percent)
        expected = (f"linear{percent}", "freeze") if settings.arch == "pixels" else (section, "finetune")
        assert (settings.protocol, settings.weights) == expected


TABLES = [
    (name, profile)
    for name, table in EXPERIMENTS.items()
    for profile in ("paper", "cifar10", "photos")
    if profile in table.profiles
]


@pytest.mark.parametrize(("name", "profile"), TABLES)
def test_every_row_of_a_table_has_its_recipe_and_the_recipe_names_the_table(name, profile):
    for row in rows_of(name, profile):
        if row.entry is not None:  # measurements of a loss, no training
            continue
        assert row.recipe in PAPER + CIFAR10 + PHOTOS
        head = text_of(row.recipe).split("\n\n")[0].lower()
        assert re.search(rf"\b{name[:-1]} {name[-1]}\b", head), f"{row.recipe} does not say that it fills {name}"
        settings = PretrainSettings.from_recipe(row.recipe)
        if row.q is not None:
            assert settings.dim == row.q
        for figure in row.paper.values():
            assert re.search(rf"\b{re.escape(str(figure))}\b", head), (
                f"{row.recipe}: the paper's {figure} is not in its first lines"
            )


def test_every_recipe_is_in_a_table():
    rows = {row.recipe for name, profile in TABLES for row in rows_of(name, profile)}
    beside = {name for name in PHOTOS if "/vit_" in name}  # other networks than the tables'
    assert set(PAPER + PHOTOS) - beside <= rows
    assert len(beside) == 3


def test_the_grids_of_table_9_have_the_same_number_of_runs_of_the_same_length():
    for profile in ("photos", "cifar10"):
        sizes = {name: len(recipes) for name, recipes in grids(profile).items()}
        assert set(sizes) == {
            f"{method}_q{q}" for method in ("simclr", "auh", "vicreg", "sfrik") for q in (DIMS[profile][0], DIMS[profile][-1])
        }
        assert len(set(sizes.values())) == 1, sizes
        runs = [PretrainSettings.from_recipe(row.recipe) for row in rows_of("table9", profile)]
        assert len({(run.epochs, run.warmup_epochs, run.subset, run.batch_size, run.base_lr > 0) for run in runs}) == 1
        methods = {run.ssl_method: {other.base_lr for other in runs if other.ssl_method == run.ssl_method} for run in runs}
        assert len({len(rates) for rates in methods.values()}) == 1


def test_the_name_of_a_grid_is_refused_with_one_of_its_recipes():
    for profile, first in {"photos": "sim1.25_lr2.5", "cifar10_quick": "sim5_lr0.6"}.items():
        name = f"{profile}/tune_vicreg_q512"
        with pytest.raises(SfrikError, match=rf"^recipe {name} is a grid of 9 recipes: choose one, such as {name}_{first}$"):
            PretrainSettings.from_recipe(name)


@pytest.mark.parametrize("recipe", PAPER)
def test_the_first_lines_state_table_figure_hardware_and_command(recipe):
    head = re.match(r"(#.*\n)+", text_of(recipe)).group()
    assert re.match(r"# Table \d", head)
    assert re.search(r"# The paper(, top-1 and top-5 in %)?: (no source gives it|.*\d)", head)
    assert "GPU" in head
    assert "not measured" in head
    command = head.splitlines()[-1].removeprefix("# ")
    assert re.fullmatch(
        rf"(torchrun --nproc-per-node=\d|python) -m sfrik pretrain --recipe {recipe} --data-dir \$(IMAGENET|STL10)_PATH", command
    )


@pytest.mark.parametrize("recipe", [*PAPER, "paper/profile"])
def test_every_value_is_marked_as_theirs_or_as_ours_with_a_reason(recipe):
    for line in (RECIPES / f"{recipe}.toml").read_text(encoding="utf-8").splitlines():
        if " = " in line and not line.startswith("#"):
            assert re.search(r"  # (theirs|ours)(: .+)?$", line), f"{recipe}: {line}"


@pytest.mark.parametrize("file", [*sorted({recipe_files(recipe).paths[1] for recipe in CIFAR10}), "cifar10/profile"])
def test_the_cifar10_recipes_say_that_nothing_was_measured(file):
    text = (RECIPES / f"{file}.toml").read_text(encoding="utf-8")
    assert "not measured" in text or "not run here" in text


# --- published values


@pytest.mark.parametrize("recipe", IN20 + STL10)
def test_the_small_experiments_are_trained_as_published(recipe):
    s = PretrainSettings.from_recipe(recipe)
    assert (s.arch, s.stem, s.epochs, s.batch_size, s.warmup_epochs, s.wd) == ("resnet18", "imagenet", 100, 2048, 10, 1e-6)
    assert s.mlp == f"8192-8192-{s.dim}"
    if recipe in STL10:
        assert (s.dataset, s.size, s.augmentations, s.subset) == ("stl10", 64, "auh", None)
    else:
        assert (s.dataset, s.size, s.subset) == ("imagenet", 224, 260)
    assert s.base_lr == {"sfrik": 1.2, "simclr": 0.8, "auh": 1.0, "vicreg": 0.7}[s.ssl_method]
    assert s.simclr_temp == 0.15
    assert (s.auh_unif_coeff, s.auh_scale) == (1.0, 2.5)
    assert (s.vicreg_sim_coeff, s.vicreg_std_coeff, s.vicreg_cov_coeff) == (10.0, 10.0, 1.0)
    if s.dim == 8192:
        assert (s.sfrik_sim_coeff, s.auh_sim_coeff) == (4000.0, 3000.0)


@pytest.mark.parametrize("recipe", IN1K)
def test_the_whole_of_imagenet_is_trained_as_published(recipe):
    s = PretrainSettings.from_recipe(recipe)
    assert (s.dataset, s.subset, s.size, s.arch, s.epochs, s.batch_size) == ("imagenet", None, 224, "resnet50", 200, 2048)
    assert s.mlp == f"8192-8192-{s.dim}"
    if s.ssl_method == "sfrik":
        assert s.base_lr == 0.4
        assert s.sfrik_mmd_coeff == 1.0


def test_the_published_run_on_imagenet():
    s = PretrainSettings.from_recipe("paper/in1k_r50_sfrik_l3_q32768")
    assert (s.dim, s.sfrik_sim_coeff, s.kernel_weights) == (32768, 40000.0, [1.0, 40.0, 40.0])


@pytest.mark.parametrize("recipe", [r for r in PAPER + CIFAR10 if "sfrik_l" in r])
def test_the_trade_off_of_sfrik_is_the_same_at_every_q(recipe):
    """lambda = q mmd_coeff / sim_coeff: 8192 / 4000, on the whole of ImageNet 32768 / 40000."""
    s = PretrainSettings.from_recipe(recipe)
    assert q_of(recipe) == s.dim
    assert s.dim * s.sfrik_mmd_coeff / s.sfrik_sim_coeff == (32768 / 40000 if recipe in IN1K else 8192 / 4000)
    degree = int(re.search(r"sfrik_l(\d)", recipe).group(1))
    assert s.kernel_weights == [1.0, 40.0, 40.0][:degree]


@pytest.mark.parametrize("recipe", [r for r in PAPER + CIFAR10 if "auh" in r and "tune_" not in r])
def test_the_trade_off_of_auh_is_the_same_at_every_q(recipe):
    s = PretrainSettings.from_recipe(recipe)
    assert s.auh_sim_coeff / s.dim == 3000 / 8192


def test_the_kernels_of_table_2_differ_from_the_truncated_one_only_in_the_kernel_and_its_weight():
    truncated = PretrainSettings.from_recipe("paper/in20_sfrik_l3_q8192").model_dump()
    for kernel in ("rbf", "power", "heat"):
        other = PretrainSettings.from_recipe(f"paper/in20_kernel_{kernel}").model_dump()
        different = {name for name in truncated if truncated[name] != other[name]} - {"exp_dir"}
        assert "sfrik_kernel" in different
        assert different <= {"sfrik_kernel", "sfrik_kernel_scale", "sfrik_kernel_degree", "sfrik_mmd_coeff"}


@pytest.mark.parametrize("stem", ["sfrik_l3", "vicreg"])
def test_multi_crop_has_the_published_views(stem):
    obow = PretrainSettings.from_recipe(f"paper/in20_{stem}_q8192_obow")
    assert obow.view_sizes == [224, 160, 160, 96, 96, 96, 96, 96]
    assert (obow.anchors, obow.regularise) == ((0,), "all")
    swav = PretrainSettings.from_recipe(f"paper/in20_{stem}_q8192_swav")
    assert swav.view_sizes == [224, 224, 96, 96, 96, 96, 96, 96]
    assert (swav.anchors, swav.regularise) == ((0, 1), "anchors")
    assert (swav.min_scale_crops, swav.max_scale_crops) == ((0.14, 0.05), (1.0, 0.14))


@pytest.mark.parametrize("recipe", PAPER)
def test_the_evaluations_are_as_published(recipe):
    linear = EvaluateSettings.from_recipe(recipe)
    assert (linear.weights, linear.epochs, linear.batch_size, linear.lr_head, linear.weight_decay) == (
        "freeze",
        100,
        256,
        0.4,
        1e-6,
    )
    for percent, lr_backbone, lr_head in ((1, 0.004, 1.0), (10, 0.02, 0.1)):
        semi = EvaluateSettings.from_recipe(recipe, train_percent=percent, weights="finetune")
        assert (semi.epochs, semi.batch_size, semi.weight_decay) == (20, 256, 0.0)
        assert (semi.lr_backbone, semi.lr_head) == (lr_backbone, lr_head)
    knn = KnnSettings.from_recipe(recipe)
    assert (knn.nb_knn, knn.temperature) == ((10, 20, 100, 200), 0.07)
    logistic = LogisticSettings.from_recipe(recipe)
    assert (logistic.solver, logistic.epochs, logistic.lr_head, logistic.weight_decay) == ("sgd", 100, 0.4, 1e-6)


@pytest.mark.parametrize("recipe", STL10)
def test_stl10_is_evaluated_on_whole_images(recipe):
    for kind in (EvaluateSettings, KnnSettings, LogisticSettings):
        assert kind.from_recipe(recipe).size == 96


@pytest.mark.parametrize("profile", ["cifar10", "cifar10_quick"])
def test_cifar10_is_trained_on_whole_and_tuned_on_images_that_the_heads_and_the_grids_are_not_trained_on(profile):
    """The tuning split starts one image after the subset; there are 5,000 images per class."""
    for recipe in recipe_names(profile):
        run, tuned = PretrainSettings.from_recipe(recipe), "/tune_" in recipe
        assert run.subset == (4500 if tuned else None), recipe
        assert KnnSettings.from_recipe(recipe).subset == run.subset, recipe
        for kind in (EvaluateSettings, LogisticSettings):
            s = kind.from_recipe(recipe)
            assert s.subset + 1 + s.val_subset == 5000, recipe
        assert run.epochs == (50 if tuned or profile == "cifar10_quick" else 200), recipe


def test_the_quick_profile_differs_in_nothing_but_the_epochs():
    assert [recipe.split("/")[1] for recipe in recipe_names("cifar10_quick")] == [recipe.split("/")[1] for recipe in CIFAR10]
    one, quick = (PretrainSettings.from_recipe(f"{profile}/sfrik_l3_q2048") for profile in ("cifar10", "cifar10_quick"))
    assert {name for name in one.what() if one.what()[name] != quick.what()[name]} == {"epochs", "warmup_epochs"}


def test_photos_are_tuned_on_images_that_are_not_trained_on():
    for recipe in PHOTOS:
        assert PretrainSettings.from_recipe(recipe).subset == 1000
        for kind in (EvaluateSettings, KnnSettings, LogisticSettings):
            s = kind.from_recipe(recipe)
            assert s.subset + 1 + s.val_subset == 1500


# --- memory


@pytest.mark.parametrize(("batch_size", "gigabytes"), [(256, 10.3), (512, 13.1), (1024, 18.8), (2048, 30.9)])
def test_the_expected_memory_is_close_to_what_the_paper_measured(batch_size, gigabytes):
    """The authors' peak at q = 32768 (paper.toml), on 8 GPUs. Their code keeps the gradients from step to step (`zero_grad` of
    PyTorch 1.10 fills them with zeros), four bytes a weight; ours lets go of them."""
    settings = PretrainSettings.from_recipe("paper/in1k_r50_sfrik_l3_q32768", batch_size=batch_size)
    kept = 4 * _counts(settings, settings.size, settings.mlp).weights
    expected = sum(expected_memory(settings, processes=8).values()) * 2**30 + kept
    assert expected / 1e9 == pytest.approx(gigabytes, rel=0.02)
