"""Command summaries: a few lines with the score, the files and a next command that works, or only JSON."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from sfrik.cli import main
from sfrik.cli.summaries import command
from sfrik.reproduce import run as run_module
from sfrik.reproduce import table as table_module
from sfrik.settings import PretrainSettings, run_folder
from sfrik.system.files import write_json
from sfrik.tables.definitions import rows_of

PLACE = ["--device", "cpu", "--workers", "0"]
QUICK = [*PLACE, "--precision", "fp32"]
RECIPE = "smoke/sfrik_l2_q64"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(capsys, *arguments):
    """The output of a command that succeeds."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr()


def summary(out):
    """The last lines, from the one with the result on: {first word: line}."""
    lines = [line for line in out.splitlines() if ": " in line][-3:]
    return {line.split(":")[0].split(" ")[0]: line for line in lines}


def next_command(out):
    last = out.splitlines()[-1]
    assert last.startswith("next: python -m sfrik ")
    return shlex.split(last)[4:]


def test_each_command_of_a_run_prints_the_next_until_all_scores_exist(here, capsys):
    out = called(capsys, "pretrain", "--recipe", RECIPE, "--epochs", "1", "--exp-dir", "my run", "--seed", "2", *QUICK).out
    printed = summary(out)
    assert "pretrained 1 epoch: loss" in printed["pretrained"]
    assert printed["pretrained"].endswith(", lambda 0.25"), "64 / 256"
    assert "trade-off: lambda 0.25 (sfrik_sim_coeff 256, sfrik_mmd_coeff 1, q = 64)" in out
    assert re.search(r"^mmd of random rows [\d.]+, of orthogonal rows [\d.]+, of equal rows 41$", out, re.MULTILINE)
    assert printed["weights"] == "weights: my run/backbone.safetensors"
    names = []
    for _ in range(3):
        following = next_command(out)
        names.append(following[0])
        assert following[1:3] == ["--recipe", RECIPE]
        out = called(capsys, *following, *(["--epochs", "1"] if following[0] != "knn-eval" else [])).out
        assert len(out.splitlines()[-3:]) == 3
    assert names == ["evaluate", "knn-eval", "logistic-regression"]
    assert {path.name for path in (here / "my run").glob("*.json")} >= {"linear.json", "knn.json", "logistic.json"}
    assert json.loads((here / "my run" / "linear.json").read_text(encoding="utf-8"))["seed"] == 2
    assert next_command(out) == ["diagnose", "my run"]


def test_the_next_command_after_training_on_your_images_evaluates_the_same_images_and_network(here, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            folder = here / "photos" / split / name
            folder.mkdir(parents=True)
            for k in range(4):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    flags = ["--dataset", "image_folder", "--data-dir", "photos", "--arch", "resnet8", "--size", "16", "--stem", "small"]
    training = [*flags, "--mlp", "8-8", "--batch-size", "4", "--epochs", "1", "--warmup-epochs", "0", "--base-lr", "0.1"]
    out = called(capsys, "pretrain", *training, *QUICK, "--exp-dir", "ours").out
    following = next_command(out)
    assert following[0] == "evaluate"
    out = called(capsys, *following, "--epochs", "1").out
    assert "linear: top-1" in out
    assert "8 images" in out
    called(capsys, *next_command(out))


def test_the_next_command_has_the_arguments_of_a_model_of_timm_and_unsets_those_of_a_recipe(here, capsys):
    pytest.importorskip("timm")
    vit = ["--arch", "timm/vit_tiny_patch16_224", "--arch-args", "depth=1", "embed_dim=12", "num_heads=1", "patch_size=7"]
    training = ["pretrain", "--recipe", RECIPE, "--ssl-method", "none", "--exp-dir", "ours", *vit, *QUICK]
    following = next_command(called(capsys, *training).out)
    assert following[0] == "evaluate"
    assert " ".join(vit) in " ".join(following)
    assert "linear: top-1" in called(capsys, *following, "--epochs", "1").out
    unset = PretrainSettings.from_recipe("photos/vit_simclr_q512", arch="resnet18", arch_args="none", subset="none")
    proposed = shlex.split(command("evaluate", "photos/vit_simclr_q512", unset))
    assert proposed[proposed.index("--arch-args") + 1] == proposed[proposed.index("--subset") + 1] == "none"


def test_the_next_command_after_training_on_unlabelled_images_is_diagnose(here, capsys):
    rng = np.random.default_rng(0)
    (here / "photos").mkdir()
    for k in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(here / "photos" / f"{k}.png")
    flags = ["--dataset", "image_folder", "--data-dir", "photos", "--arch", "resnet8", "--size", "16", "--stem", "small"]
    training = [*flags, "--mlp", "8-8", "--batch-size", "4", "--epochs", "1", "--warmup-epochs", "0", "--base-lr", "0.1"]
    out = called(capsys, "pretrain", *training, *QUICK, "--exp-dir", "ours").out
    following = next_command(out)
    assert following == ["diagnose", "ours", "--data-dir", "photos"]
    assert main(following) in (0, 1), "1: what eight images of noise teach is a collapse"


def test_features_without_a_run_are_followed_only_by_the_two_scores(here, capsys):
    called(capsys, "pretrain", "--recipe", "smoke/random_weights", "--exp-dir", "run", *QUICK)
    flags = ["--dataset", "mnist5k", "--subset", "3", "--arch", "resnet8", "--size", "28", "--stem", "patch", *QUICK]
    out = called(capsys, "extract-features", *flags, "--pretrained", "run/backbone.safetensors", "--exp-dir", "features").out
    following = next_command(out)
    assert following[0] == "knn-eval"
    shutil.rmtree(here / "run")  # the scores need only the features
    out = called(capsys, "knn-eval", "--dataset", "mnist5k", "--extraction-dir", "features").out
    out = called(capsys, *next_command(out), "--epochs", "1").out
    assert not out.splitlines()[-1].startswith("next:")


def test_a_score_on_the_tuning_split_proposes_nothing(here, capsys):
    called(capsys, "pretrain", "--recipe", "smoke/random_weights", "--exp-dir", "run", *QUICK)
    flags = ["--recipe", "smoke/random_weights", "--exp-dir", "run", "--val-dataset", "train", "--epochs", "1"]
    out = called(capsys, "evaluate", *flags, *QUICK).out
    assert "linear_tune: top-1" in out
    assert "next:" not in out


def test_with_json_stdout_holds_only_json_and_progress_goes_to_stderr(here, capsys):
    printed = called(capsys, "pretrain", "--recipe", RECIPE, "--epochs", "1", "--exp-dir", "run", *QUICK, "--json")
    content = json.loads(printed.out)
    assert content["weights"] == "run/backbone.safetensors"
    assert content["last_epoch"]["epoch"] == 0
    assert "epoch 1/1  loss" in printed.err
    printed = called(capsys, "evaluate", "--recipe", RECIPE, "--epochs", "1", "--exp-dir", "run", *QUICK, "--json")
    assert json.loads(printed.out) == json.loads((here / "run" / "linear.json").read_text(encoding="utf-8"))
    assert "epoch 1/1" in printed.err
    printed = called(capsys, "knn-eval", "--recipe", RECIPE, "--exp-dir", "run", *QUICK, "--json")
    assert json.loads(printed.out)["top1_at"].keys() == {"10", "20"}
    printed = called(capsys, "transfer", "--recipe", RECIPE, "--exp-dir", "run", *QUICK, "--json")
    assert json.loads(printed.out)["target"] == "digits8x8"


COMMANDS = ["pretrain", "evaluate", "extract-features", "knn-eval", "logistic-regression", "transfer"]


@pytest.mark.parametrize(
    "arguments",
    [
        *([name, "--recipe", RECIPE, "--dry-run"] for name in COMMANDS),
        ["run", "--recipe", RECIPE, "--results", "out", "--dry-run"],
        ["table", "table1", "--profile", "smoke", "--results", "out", "--dry-run"],
        ["memory", "--recipe", RECIPE],
        ["status", "--profile", "smoke", "--results", "out"],
        ["env"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_only_prints_has_json(here, capsys, arguments):
    content = json.loads(called(capsys, *arguments, "--json").out)
    assert content
    if arguments[0] in COMMANDS:
        assert content["settings"]["arch"] == "resnet8"
        assert content["memory_gib"]["1"]["total"] > 0
    assert list(here.iterdir()) == []


def test_a_mistake_with_json_leaves_stdout_empty(here, capsys):
    assert main(["pretrain", "--recipe", RECIPE, "--batch-size", "0", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("sfrik: error: batch_size")


# --- runs and tables


def test_a_dry_run_of_a_table_prints_what_is_finished_and_writes_nothing(here, capsys):
    called(capsys, "pretrain", "--recipe", "smoke/random_weights", "--exp-dir", "out/smoke/random_weights/seed0", *PLACE)
    (here / "out/smoke/random_weights/seed0/02_pretraining.ipynb").write_text("{}", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    lines = called(capsys, "table", "table1", "--profile", "smoke", "--results", "out", "--dry-run").out.splitlines()
    assert "smoke/random_weights seed 0: would run linear, knn; finished pretrain" in lines
    assert f"{RECIPE} seed 0: would run pretrain, linear, knn" in lines
    assert lines[-1] == "8 runs in out: 0 finished, 8 to run"
    run = ["run", "--recipe", "smoke/random_weights", "--results", "out", "--stages", "pretrain", "--dry-run"]
    assert called(capsys, *run).out.splitlines()[0] == "smoke/random_weights seed 0: finished pretrain"
    assert "would run table6" in called(capsys, "table", "table6", "--profile", "smoke", "--results", "out", "--dry-run").out
    assert "would render nothing" in called(capsys, "table", "all", "--profile", "smoke", "--results", "out", "--dry-run").out
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_a_dry_run_still_refuses_an_unknown_stage_recipe_and_table(here, capsys):
    for arguments in (
        ["run", "--recipe", RECIPE, "--stages", "semy"],
        ["run", "--recipe", "smoke/nothing"],
        ["table", "table0", "--profile", "smoke"],
    ):
        assert main([*arguments, "--results", "out", "--dry-run"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(here.iterdir()) == []


def test_a_run_of_notebooks_prints_its_scores_their_folder_and_the_table(here, capsys, monkeypatch):
    def run(recipe, seed, root, stages, data_dir, nproc):
        folder = run_folder(recipe, seed, root)
        folder.mkdir(parents=True)
        write_json(folder / "linear.json", {"protocol": "linear", "top1": 91.25, "images": 1000})

    monkeypatch.setattr(run_module, "run_recipe", run)
    lines = called(capsys, "run", "--recipe", RECIPE, "--results", "out").out.splitlines()
    assert lines == [
        "linear: top-1 91.25 %, 1000 images",
        f"notebooks and scores: out/{RECIPE}/seed0",
        "next: python -m sfrik table table1 --profile smoke --results out --render-only",
    ]
    shutil.rmtree(here / "out")
    printed = json.loads(called(capsys, "run", "--recipe", RECIPE, "--results", "out", "--json").out)
    assert printed["scores"]["linear"]["top1"] == 91.25


def test_a_table_prints_its_files_and_the_command_for_more_seeds(here, capsys, monkeypatch):
    def make(name, profile, seeds, jobs, render_only, root, data_dir):
        for place in ("tables/table1.md", "tables/table1.csv", "figures/table1.png"):
            path = here / root / profile / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("method,q\nVICReg,64\n", encoding="utf-8")
        return 0

    monkeypatch.setattr(table_module, "make_table", make)
    table = ["table", "table1", "--profile", "smoke", "--results", "out"]
    assert called(capsys, *table).out.splitlines() == [
        "table: out/smoke/tables/table1.md, .csv",
        "figure: out/smoke/figures/table1.png",
        "next: python -m sfrik table table1 --profile smoke --results out --seeds 3",
    ]
    assert called(capsys, *table, "--seeds", "3").out.splitlines()[-1] == (
        "next: python -m sfrik table all --profile smoke --results out"
    )
    monkeypatch.setenv("SFRIK_MAKE", "VENV=")  # as the Makefile does
    following = called(capsys, *table, "--data-dir", "my images").out.splitlines()[-1]
    assert following == "next: make table1 VENV= PROFILE=smoke SEEDS=3 RESULTS=out 'DATA=my images'"
    monkeypatch.setenv("SFRIK_MAKE", "")
    assert called(capsys, *table, "--seeds", "3").out.splitlines()[-1] == "next: make tables PROFILE=smoke RESULTS=out"
    printed = json.loads(called(capsys, *table, "--json").out)
    assert printed["rows"] == [{"method": "VICReg", "q": "64"}]
    assert (printed["comparison"]["table"], printed["comparison"]["compared"]) == ("table1", 0)
    assert len(printed["comparison"]["cells"]) == 3 * len(rows_of("table1", "smoke"))
