"""A table prints a run and its scores only if their settings are those of the recipe; otherwise it gives the reason."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from finished import finished_run
from safetensors.numpy import save_file

from sfrik.cost.measure import complexity
from sfrik.errors import SfrikError
from sfrik.evaluate import evaluate, extract_features, knn_eval, logistic_regression
from sfrik.evaluate.transfer import transfer
from sfrik.pretrain import pretrain
from sfrik.reproduce.stages import existing_scores, missing_stages, refusal
from sfrik.reproduce.status import run_status
from sfrik.reproduce.table import write_choices
from sfrik.runs.folder import Run
from sfrik.settings import (
    EvaluateSettings,
    FeatureSettings,
    KnnSettings,
    LogisticSettings,
    PretrainSettings,
    TransferSettings,
    recipe_of,
    recipe_settings,
    run_folder,
    score_settings,
)
from sfrik.system.files import read_json, write_json
from sfrik.tables.claim_pages import claims_as_markdown
from sfrik.tables.collect import build_table, read_score, tables_with_scores
from sfrik.tables.cost_rows import cost_folder
from sfrik.tables.render import as_csv, as_latex, as_markdown
from sfrik.tables.rows import DIMS
from sfrik.tables.run_pages import write_run_pages

RECIPE, OTHER = "smoke/sfrik_l3_q64", "smoke/sfrik_l2_q64"
STAGES = ("pretrain", "linear", "knn")
assert RECIPE.endswith(str(DIMS["smoke"][-1]))


@pytest.fixture
def root(tmp_path):
    """Two finished runs of table 1, of which table 2 shows the first, with 2 epochs of metrics."""
    for recipe, top1 in ((RECIPE, 61.25), (OTHER, 50.0)):
        run = finished_run(tmp_path, recipe, top1=top1)
        for epoch in range(2):
            run.log({"epoch": epoch, "alignment": 0.5, "uniformity": -1.0, "effective_rank": 9.0})
    return tmp_path


def record_settings(run, settings):
    """Write settings.json as a run with these settings does."""
    write_json(run.folder / "settings.json", {"version": 1, "hash": settings.hash(), "settings": settings.what()})


def record_score(run, name, settings, **changes):
    """Write the settings of a score as a measurement with these settings does."""
    path = run.folder / f"{name}.json"
    recorded = {"settings": settings.what(), "settings_hash": settings.hash()}
    write_json(path, {**read_json(path), **recorded, **changes})


def changed(name="linear", **changes):
    return score_settings(RECIPE, 0, name).model_copy(update=changes)


def trained_with(root, **changes):
    run = Run(run_folder(RECIPE, 0, root))
    record_settings(run, recipe_settings(RECIPE, 0).model_copy(update=changes))
    return run


def test_a_score_of_other_images_than_most_of_its_column_is_left_out(root):
    first, second = (finished_run(root, RECIPE, seed=seed, top1=60.0 + seed) for seed in (1, 2))
    images = {"images": 1000, "classes": 10, "sha256": "a"}
    for run, count in ((Run(run_folder(OTHER, 0, root)), 1000), (first, 1000), (second, 900)):
        path = run.folder / "linear.json"
        recorded = {"train": images, "test": images | {"images": count}}
        write_json(path, {**read_json(path), "images": count, "data": recorded})
    table = build_table("table1", "smoke", root)  # RECIPE's seed 0 is of an earlier release, which did not record its images
    (measured,) = (m for m in table.measured if m.row.recipe == RECIPE)
    assert set(measured.scores["linear_top1"]) == {0, 1}
    assert measured.images["linear_top1"] == 1000
    assert table.left_out == [
        f"{RECIPE} seed 2: linear.json was measured on other images than most of this column (test: 900 images -> 1000 images): "
        "measure it again, with the make of this table"
    ]
    assert set(measured.scores["knn_top1"]) == {0, 1, 2}


def test_a_run_that_was_trained_on_other_images_than_most_is_left_out_with_all_its_scores(root):
    runs = [Run(run_folder(OTHER, 0, root)), *(finished_run(root, RECIPE, seed=seed) for seed in (1, 2))]
    for run, count in zip(runs, (300, 200, 300), strict=True):
        path = run.folder / "settings.json"
        write_json(path, read_json(path) | {"data": {"images": count, "classes": 10, "sha256": str(count)}})
    table = build_table("table1", "smoke", root)  # RECIPE's seed 0 is of an earlier release, which did not record its images
    (measured,) = (m for m in table.measured if m.row.recipe == RECIPE)
    assert measured.seeds == [0, 2]
    assert table.left_out == [
        f"{RECIPE} seed 1: the run was trained on other images than most of this table (200 images -> 300 images): "
        "move its folder away, and run again"
    ]


def copied_from_another_recipe(root):
    shutil.rmtree(run_folder(RECIPE, 0, root))
    shutil.copytree(run_folder("smoke/vicreg_q64", 0, root), run_folder(RECIPE, 0, root))


def renamed_to_another_seed(root):
    shutil.copytree(run_folder(RECIPE, 0, root), run_folder(RECIPE, 1, root))
    shutil.rmtree(run_folder(RECIPE, 0, root))


def edited(root):
    path = run_folder(RECIPE, 0, root) / "settings.json"
    content = read_json(path)
    write_json(path, {**content, "settings": {**content["settings"], "epochs": 3}})


def settings_of_other_weights(root):
    """settings.json was replaced by that of another run, with its hash; the weights still name their own."""
    run = Run(run_folder(RECIPE, 0, root))
    save_file({}, run.backbone, {"about": json.dumps({"settings": "0123456789ab"})})
    write_json(run.folder / "provenance.json", {"version": 1, "commit": "abc", "weights": {run.backbone.name: "0" * 64}})


RUNS = {
    "epochs of a notebook": (lambda root: trained_with(root, epochs=1), "epochs 1 -> 2"),
    "degree 1": (lambda root: trained_with(root, sfrik_weights="1.0"), "sfrik_weights '1.0' -> '1.0-40.0-40.0'"),
    "a recipe changed afterwards": (lambda root: trained_with(root, base_lr=1.0), "base_lr 1.0 -> "),
    "another seed": (lambda root: trained_with(root, seed=5), "seed 5 -> 0"),
    "another objective": (lambda root: trained_with(root, ssl_method="vicreg"), "ssl_method 'vicreg' -> 'sfrik'"),
    "edited by hand": (edited, "settings.json was edited"),
    "other weights": (settings_of_other_weights, "weights were trained with other settings (hash 0123456789ab -> "),
}


@pytest.mark.parametrize(("change", "reason"), RUNS.values(), ids=RUNS)
def test_a_run_with_other_settings_is_missing_everywhere_and_the_reason_is_given(root, change, reason):
    for name in ("table1", "table2"):
        assert "61.2" in as_markdown(build_table(name, "smoke", root))
    change(root)
    for name in ("table1", "table2"):
        table = build_table(name, "smoke", root)
        assert [m.seeds for m in table.measured if m.row.recipe == RECIPE] == [[]]
        for text in (as_markdown(table), as_csv(table), as_latex(table)):
            assert "61.2" not in text
        for text in (as_markdown(table), as_latex(table)):
            (note,) = [line for line in text.splitlines() if f"{RECIPE} seed 0: " in line]
            assert reason in note
            assert "move the folder" in note
        assert str(root) not in as_markdown(table)
    assert tables_with_scores("smoke", root)[:2] == ["table1", "table2"], "to be rendered again, without it"
    write_run_pages("smoke", root)
    page = (root / RECIPE / "README.md").read_text(encoding="utf-8")
    assert "61.2" not in page
    assert reason in page
    assert missing_stages(RECIPE, 0, root, STAGES) == list(STAGES)
    assert existing_scores(RECIPE, 0, root, STAGES) == {}
    status = run_status(RECIPE, 0, STAGES, root)
    assert status.state == "missing"
    assert reason in status.detail == refusal(RECIPE, 0, root)
    assert f"{run_folder(RECIPE, 0, root)} holds another run" in status.detail
    assert "move that folder away, or restore the recipe" in status.detail
    assert run_status(OTHER, 0, STAGES, root).state == "done"


def test_a_folder_under_the_name_of_another_recipe_or_seed_is_not_its_run(root):
    finished_run(root, "smoke/vicreg_q64", top1=77.0)
    copied_from_another_recipe(root)
    (row,) = [m for m in build_table("table1", "smoke", root).measured if m.row.recipe == RECIPE]
    assert (row.seeds, list(row.left_out)) == ([], [0])
    shutil.rmtree(run_folder(RECIPE, 0, root))
    finished_run(root, RECIPE, top1=61.25)
    renamed_to_another_seed(root)
    (row,) = [m for m in build_table("table1", "smoke", root).measured if m.row.recipe == RECIPE]
    assert row.seeds == []
    assert "seed 0 -> 1" in row.left_out[1][0]


def test_a_run_without_weights_and_checkpoints_may_be_trained_again_in_its_folder(root):
    run = trained_with(root, epochs=1)
    run.backbone.unlink()
    assert refusal(RECIPE, 0, root) == ""
    assert build_table("table2", "smoke", root).left_out
    (run.folder / "checkpoint.previous.pt").touch()
    assert "epochs 1 -> 2" in refusal(RECIPE, 0, root)


SCORES = {
    "epochs": ("linear", {"epochs": 9}, {}, "linear.json was measured with other settings (epochs 9 -> "),
    "a size": ("linear", {"size": 14}, {}, "(size 14 -> 28)"),
    "part of the images": ("knn", {"subset": 5}, {}, "(subset 5 -> 30)"),
    "another seed": ("linear", {"seed": 1}, {}, "(seed 1 -> 0)"),
    "the tuning split": ("linear", {"val_dataset": "train"}, {}, "(val_dataset 'train' -> 'val')"),
    "another temperature": ("knn", {"temperature": 1.0}, {}, "(temperature 1.0 -> 0.07)"),
    "another penalty": ("logistic", {"solver": "sgd"}, {}, "solver 'sgd' -> 'lbfgs'"),
    "other weights": (
        "linear",
        {},
        {"backbone_sha256": "1" * 64},
        "measured on other weights (SHA-256 111111111111 -> ",
    ),
    "edited by hand": ("linear", {}, {"settings_hash": "0123456789ab"}, "linear.json was edited"),
}


@pytest.mark.parametrize(("name", "settings", "content", "reason"), SCORES.values(), ids=SCORES)
def test_a_score_with_other_settings_is_missing_and_measured_again(root, name, settings, content, reason):
    record_score(Run(run_folder(RECIPE, 0, root)), name, changed(name, **settings), **content)
    table = build_table("table1", "smoke", root)
    (row,) = [m for m in table.measured if m.row.recipe == RECIPE]
    assert row.mean(f"{name}_top1") is None
    assert len(row.scores) == 2, "the other scores are shown"
    (line,) = table.left_out
    assert reason in line
    assert "measure it again" in line
    assert missing_stages(RECIPE, 0, root, STAGES) == ["linear" if name == "linear" else "knn"]
    status = run_status(RECIPE, 0, STAGES, root)
    assert (status.state, status.refused) == ("missing", "")
    assert reason in status.detail
    assert name not in existing_scores(RECIPE, 0, root, STAGES)


def test_the_claims_and_the_choice_of_table9_use_the_same_reader(root):
    for recipe in ("vicreg_q64_sim5", "vicreg_q64_sim10", "sfrik_q64_sim128", "sfrik_q64_sim256"):
        finished_run(root, f"smoke/tune_{recipe}", stages=("pretrain", "tune"), top1=10.0)
    for recipe, count in (("vicreg_q64_sim5", 500), ("vicreg_q64_sim10", 499)):
        path = run_folder(f"smoke/tune_{recipe}", 0, root) / "linear_tune.json"
        write_json(path, {**read_json(path), "data": {"tune": {"images": count, "classes": 10, "sha256": ""}}})
    with pytest.raises(
        SfrikError, match=r"tune_vicreg_q64_sim10 .* other images than smoke/tune_vicreg_q64_sim5 of grid .*499 images -> 500"
    ):
        write_choices("smoke", root)
    run = Run(run_folder("smoke/tune_vicreg_q64_sim10", 0, root))
    other = score_settings("smoke/tune_vicreg_q64_sim10", 0, "linear_tune").model_copy(update={"epochs": 9})
    record_score(run, "linear_tune", other, top1=99.0)
    with pytest.raises(SfrikError, match=r"smoke/tune_vicreg_q64_sim10 seed 0: linear_tune\.json .*epochs 9 -> "):
        write_choices("smoke", root)
    for stem in ("l2", "l1"):
        for seed in (0, 1):
            finished_run(root, f"digits/sfrik_{stem}_q512", seed, top1=50.0 + seed)
    assert "| +0.00 | 2 |" in claims_as_markdown("digits", root)
    run = Run(run_folder("digits/sfrik_l1_q512", 1, root))
    record_settings(run, recipe_settings("digits/sfrik_l1_q512", 1).model_copy(update={"epochs": 1}))
    assert "| +0.00 | 1 |" in claims_as_markdown("digits", root), "one seed is left"


def test_a_score_of_a_head_goes_with_the_score_that_the_head_was_saved_with(root):
    recipe = "smoke/tune_vicreg_q64_sim5"
    run = finished_run(root, recipe, stages=("pretrain", "tune", "inference"))
    for name, digest in (("linear_tune", "a"), ("linear_inference", "a")):
        head = {"head": "head_linear_tune.safetensors"} if name == "linear_inference" else {}
        record_score(run, name, score_settings(recipe, 0, name), head_sha256=digest, **head)
    assert read_score(recipe, 0, "linear_inference", root)[0]
    record_score(run, "linear_tune", score_settings(recipe, 0, "linear_tune"), head_sha256="b")
    found, problem = read_score(recipe, 0, "linear_inference", root)
    assert (found, problem.split(":")[0]) == ({}, "linear_inference.json is of another head than linear_tune.json")
    assert missing_stages(recipe, 0, root, ("pretrain", "tune", "inference")) == ["inference"]


def test_the_metrics_of_an_unfinished_training_are_not_shown(root):
    run = Run(run_folder(RECIPE, 0, root))
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (run.folder / "metrics.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    table = build_table("table2", "smoke", root)
    assert table.measured[0].mean("effective_rank") is None
    assert "metrics.jsonl ends after 1 of 2 epochs" in table.left_out[0]


def test_records_without_settings_and_settings_of_later_releases_contradict_nothing(root):
    run = Run(run_folder(RECIPE, 0, root))
    settings = recipe_settings(RECIPE, 0)
    older = {name: value for name, value in settings.what().items() if name != "auh_scale"}  # has its default
    digest = PretrainSettings.parse(older | {"sfrik_slices": 3}).hash()  # any hash
    write_json(run.folder / "settings.json", {"hash": "", "settings": older})
    assert digest != settings.hash()
    for name in ("linear", "knn", "logistic"):
        content = read_json(run.folder / f"{name}.json")
        write_json(run.folder / f"{name}.json", {k: v for k, v in content.items() if not k.startswith("settings")})
    table = build_table("table2", "smoke", root)
    assert table.measured[0].seeds == [0]
    assert table.left_out == []
    (run.folder / "settings.json").unlink()
    assert build_table("table2", "smoke", root).measured[0].seeds == [0]


def test_the_published_results_are_all_shown():
    for name in ("table1", "table2", "table4", "table9"):
        table = build_table(name, "digits")
        assert table.left_out == []


@pytest.mark.parametrize(
    ("settings", "folder", "score"),
    [
        (EvaluateSettings.from_recipe(RECIPE), "seed0", "linear"),
        (EvaluateSettings.from_recipe(RECIPE, val_dataset="train"), "seed0", "linear_tune"),
        (EvaluateSettings.from_recipe(RECIPE, only_inference=True), "seed0", "linear_inference"),
        (EvaluateSettings.from_recipe(RECIPE, train_percent=1), "seed0", "semi1"),
        (EvaluateSettings.from_recipe(RECIPE, train_percent=10, weights="freeze"), "seed0", "linear10"),
        (EvaluateSettings.from_recipe(RECIPE, train_percent="2.5"), "seed0", "semi2.5"),
        (EvaluateSettings.from_recipe(RECIPE, train_percent=33.3, weights="freeze"), "seed0", "linear33.3"),
        (EvaluateSettings.from_recipe(RECIPE, weights="finetune"), "seed0", "finetune"),
    ],
)
def test_the_settings_of_a_score_follow_from_its_name(settings, folder, score):
    assert settings.exp_dir == str(run_folder(RECIPE, 0).with_name(folder))
    assert score_settings(RECIPE, 0, score).what() == settings.what()


# --- what may be written into the folder of a recipe's run


OTHERS = {
    "epochs": (evaluate, EvaluateSettings, {"epochs": 9}, "epochs 2 -> 9"),
    "a seed": (evaluate, EvaluateSettings, {"seed": 1}, "seed 0 -> 1"),
    "few labels": (evaluate, EvaluateSettings, {"train_percent": 1, "lr_backbone": 1.0}, "lr_backbone 0.02 -> 1.0"),
    "a head from elsewhere": (evaluate, EvaluateSettings, {"only_inference": True, "ckp_path": "head"}, "ckp_path head"),
    "neighbours": (knn_eval, KnnSettings, {"nb_knn": (3,)}, "nb_knn "),
    "weights from elsewhere": (knn_eval, KnnSettings, {"pretrained": "other.pth"}, "pretrained other.pth"),
    "features from elsewhere": (knn_eval, KnnSettings, {"extraction_dir": "features"}, "extraction_dir features"),
    "penalties": (logistic_regression, LogisticSettings, {"inverse_penalties": (1.0,)}, "inverse_penalties "),
    "another size": (transfer, TransferSettings, {"target": "digits8x8", "size": 14}, "size 28 -> 14"),
    "features of another size": (extract_features, FeatureSettings, {"size": 14}, "size 28 -> 14"),
    "features of part of the images": (extract_features, FeatureSettings, {"subset": 4}, "subset 30 -> 4"),
    "pretraining": (pretrain, PretrainSettings, {"sfrik_weights": "1.0"}, "sfrik_weights '1.0-40.0-40.0' -> '1.0'"),
}


@pytest.mark.parametrize(("work", "kind", "given", "reason"), OTHERS.values(), ids=OTHERS)
def test_other_settings_are_refused_in_the_folder_of_the_recipe_and_go_to_another_without_one(root, work, kind, given, reason):
    folder = run_folder(RECIPE, 0, root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(SfrikError, match=f"{re.escape(reason)}.*leave --exp-dir out, or choose another"):
        work(kind.from_recipe(RECIPE, exp_dir=str(folder), **given))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock"} == before
    elsewhere = kind.from_recipe(RECIPE, **given)
    own = run_folder(RECIPE, elsewhere.seed)
    if "seed" in given:
        assert elsewhere.exp_dir == str(own)
        return
    assert Path(elsewhere.exp_dir).parent == own.parent
    assert Path(elsewhere.exp_dir).name.startswith("seed0-")
    assert recipe_of(elsewhere.exp_dir) is None
    if kind is not PretrainSettings:
        assert elsewhere.pretrained == given.get("pretrained", str(own / "backbone.safetensors"))


def test_settings_without_effect_on_the_result_stay_in_the_folder_of_the_recipe():
    for kind, given in (
        (
            PretrainSettings,
            {"workers": 0, "device": "cpu", "data_dir": "d", "loggers": ("tensorboard",), "checkpoint_minutes": 1},
        ),
        (PretrainSettings, {"epochs": 2, "simclr_temp": None}),
        (EvaluateSettings, {"lr_backbone": 3.0, "workers": 1}),
        (KnnSettings, {"pretrained": str(run_folder(RECIPE, 0) / "backbone.safetensors")}),
        (FeatureSettings, {"extraction_dir": "anywhere"}),
    ):
        assert kind.from_recipe(RECIPE, **given).exp_dir == str(run_folder(RECIPE, 0))


def test_the_folder_of_other_settings_is_named_after_them_and_each_has_its_own():
    def name(kind=PretrainSettings, **given):
        return Path(kind.from_recipe(RECIPE, **given).exp_dir).name

    assert name(epochs=1, sfrik_weights="1.0") == "seed0-epochs_1-sfrik_weights_1.0"
    assert name(EvaluateSettings, epochs=9, seed=2) == "seed2-evaluation-epochs_9"
    many = {"augmentations": "swav", "size_crops": (28, 20), "nmb_crops": (2, 2), "seed": 1}
    assert re.fullmatch("seed1-[0-9a-f]{12}", name(**many))
    assert name(**many) != name(**{**many, "nmb_crops": (2, 3)})


def test_a_link_to_the_folder_of_a_run_is_that_folder(root):
    (root / "link").symlink_to(run_folder(RECIPE, 0, root))
    assert recipe_of(root / "link") == recipe_of(run_folder(RECIPE, 0, root)) == (RECIPE, 0)
    for other in ("smoke/profile/seed0", "smoke/nothing/seed0", f"{RECIPE}/seed0-epochs_1", f"{RECIPE}/seed01", "seed0"):
        assert recipe_of(root / other) is None


def test_costs_with_other_rounds_or_of_another_profile_are_not_shown(tmp_path):
    folder = run_folder("smoke/complexity", 0, tmp_path)
    folder.mkdir(parents=True)
    table = build_table("table5", "smoke", tmp_path)
    entries = {m.row.entry: {"loss_ms": 3.0} for m in table.measured}
    for settings, shown in (
        ({}, True),
        ({"table": "table5", "profile": "smoke", "rounds": 5}, True),
        ({"table": "table5", "profile": "smoke", "rounds": 1}, False),
        ({"table": "table5", "profile": "digits", "rounds": 5}, False),
    ):
        (folder / "table5.json").write_text(json.dumps({**entries, "settings": settings, "hardware": "cpu"}), encoding="utf-8")
        table = build_table("table5", "smoke", tmp_path)
        assert all((m.seeds == [0]) == shown for m in table.measured)
        assert len(table.left_out) == (0 if shown else 1)
        assert run_status("smoke/complexity/table5", 0, (), tmp_path).state == ("done" if shown else "missing")
    for table, profile, rounds, reason in (
        ("table5", "smoke", 1, "rounds 1 -> 5"),
        ("table5", "digits", 5, "profile 'digits' -> "),
    ):
        with pytest.raises(SfrikError, match=rf"is read by tables 5 and 6, .*{reason}.*choose another exp_dir"):
            complexity(table, profile, str(folder), "cpu", rounds)
    assert cost_folder("smoke", 0) == run_folder("smoke/complexity", 0)
    assert cost_folder("smoke", 0, 1).name == "seed0-rounds_1"


@pytest.mark.parametrize("number", [0, -1, 1.5, "x", math.inf, "inf", True, None, 10**12])
def test_rounds_and_seeds_of_a_notebook_are_whole_numbers(tmp_path, number):
    """Infinite rounds never ended, and -1 seeds wrote an empty table in the place of the real one."""
    for call in (
        lambda: cost_folder("smoke", 0, number),
        lambda: complexity("table5", "smoke", str(tmp_path / "run"), "cpu", number),
    ):
        with pytest.raises(SfrikError, match=r"^rounds must be a whole number >= 1 and <= 100000, got "):
            call()
    if number not in (0, 1.0):
        with pytest.raises(SfrikError, match=r"^seed must be a whole number >= 0 and <= 4294967295, got "):
            cost_folder("smoke", number)
    if number is not None:
        with pytest.raises(SfrikError, match=r"^seeds must be a whole number >= 1 and <= 10000, got "):
            build_table("table1", "smoke", tmp_path, number)
    assert list(tmp_path.iterdir()) == []
    assert cost_folder("smoke", "0", 5.0) == cost_folder("smoke", 0)
