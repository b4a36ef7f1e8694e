"""The command line: one line, exit status 2 and no files for an input error; dry runs that write nothing."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from PIL import Image

import sfrik
from sfrik.cli.flags import add_command, resolve_settings
from sfrik.cli.main import REPORT, build_parser, main
from sfrik.cli.parser import Parser
from sfrik.cli.plan import headline
from sfrik.cli.train import COMMANDS as BY_SECTION
from sfrik.cost.memory import expected_images, expected_memory, expected_steps
from sfrik.launch import launcher as launching
from sfrik.networks import build_backbone, save_weights
from sfrik.runs.folder import Run
from sfrik.settings import SECTIONS, EvaluateSettings, FeatureSettings, LogisticSettings, PretrainSettings, TransferSettings
from sfrik.system import signals

ROOT = Path(__file__).parents[2]
COMMANDS = [section.replace("_", "-") for section in BY_SECTION]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def fails_in_one_line(capsys, arguments, *words):
    """Exit status 2 and one line on stderr that holds the words; the line."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert status == 2
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("sfrik: error: ")
    assert "Traceback" not in captured.out + captured.err
    for word in words:
        assert word in lines[0]
    return lines[0]


SMOKE = ["pretrain", "--recipe", "smoke/sfrik_l2_q64", "--exp-dir", "run"]

MISTAKES = {
    "a misspelt flag": ([*SMOKE, "--epoch", "3"], ["--epoch", "did you mean --epochs?"]),
    "a misspelt flag with its value": ([*SMOKE, "--epoch=3"], ["--epoch", "did you mean --epochs?"]),
    "a batch of none": ([*SMOKE, "--batch-size", "0"], ["batch_size", "greater than or equal to 2", "'0'"]),
    "weights that are no numbers": ([*SMOKE, "--sfrik-weights", "1.0-abc"], ["sfrik_weights", "1.0-40.0-40.0", "1.0-abc"]),
    "a negative weight": ([*SMOKE, "--sfrik-weights", "1.0--40.0"], ["sfrik_weights", ">= 0", "1.0--40.0"]),
    "a negative first weight": ([*SMOKE, "--sfrik-weights=-1.0-40.0"], ["sfrik_weights", ">= 0", "-1.0-40.0"]),
    "weights that are not finite": ([*SMOKE, "--sfrik-weights", "nan"], ["sfrik_weights", "nan"]),
    "a negative decay": ([*SMOKE, "--wd", "-1"], ["wd", "greater than or equal to 0", "'-1'"]),
    "an unknown method": ([*SMOKE, "--ssl-method", "byol"], ["ssl_method", "'simclr'", "'byol'"]),
    "an unknown optimizer": ([*SMOKE, "--optimizer", "adam"], ["optimizer", "'lars', 'adamw' or 'sgd' (did you mean adamw?)"]),
    "LARS's flag for AdamW": (
        [*SMOKE, "--optimizer", "adamw", "--trust-coefficient", "0.001"],
        ["recipe smoke/sfrik_l2_q64", "trust_coefficient is a setting of optimizer lars and not of adamw: leave it out"],
    ),
    "AdamW's flag for LARS": ([*SMOKE, "--betas", "0.9", "0.95"], ["betas is a setting of optimizer adamw and not of lars"]),
    "a flag of SGD for AdamW": (["pretrain", "--optimizer", "adamw", "--nesterov"], ["nesterov is a setting of optimizer sgd"]),
    "clipping to nothing": ([*SMOKE, "--clip-grad", "0"], ["clip_grad", "greater than or equal to 0.000001", "'0'"]),
    "a malformed mlp": ([*SMOKE, "--mlp", "64-x"], ["mlp", "8192-8192-8192", "64-x"]),
    "an mlp of no widths": ([*SMOKE, "--mlp", ""], ["mlp", "8192-8192-8192"]),
    "an unknown architecture": ([*SMOKE, "--arch", "resnet19"], ["arch", "did you mean resnet18?"]),
    "an unknown command": (["pretain", "--epochs", "3"], ["unknown command 'pretain' (did you mean pretrain?)"]),
    "the beginning of a command": (["pre"], ["unknown command 'pre' (did you mean pretrain?): see sfrik --help"]),
    "the beginning of a flag": (
        [*SMOKE, "--sfrik_sim", "3"],
        ["--sfrik_sim (did you mean --sfrik_sim_coeff?): see sfrik"],
    ),
    "the beginning of three flags": (
        [*SMOKE, "--vicreg", "3"],
        ["(did you mean --vicreg-sim-coeff, --vicreg-std-coeff or --vicreg-cov-coeff?)"],
    ),
    "the beginning of many flags": ([*SMOKE, "--sfrik=3"], ["--sfrik=3 (did you mean --sfrik-weights, ", ", ...?)"]),
    "a recipe without its profile": (["pretrain", "--recipe", "sfrik_l2_q64"], ["(did you mean smoke/sfrik_l2_q64?)"]),
    "a flag without its value": ([*SMOKE, "--epochs"], ["--epochs", "expected one argument"]),
    "an unknown recipe": (
        ["pretrain", "--recipe", "smoke/sfrik_l2_q1"],
        ["smoke/sfrik_l2_q1", "did you mean smoke/sfrik_l2_q64?"],
    ),
    "an unknown recipe to run": (
        ["run", "--recipe", "smoke/sfrik_l2_q1", "--results", "out"],
        ["did you mean smoke/sfrik_l2_q64?"],
    ),
    "a missing recipe to run": (["run"], ["--recipe"]),
    "neither true nor false": ([*SMOKE, "--reg-small", "maybe"], ["reg_small", "boolean", "'maybe'"]),
    "a list of text": (["knn-eval", "--exp-dir", "run", "--nb-knn", "10", "x"], ["nb_knn", "integer", "'x'"]),
    "lists of different lengths": (
        [*SMOKE, "--augmentations", "SwAV", "--nmb_crops", "2", "6", "--size_crops", "28"],
        ["SwAV", "same length"],
    ),
    "a share of labels that there is not": (
        ["evaluate", "--recipe", "smoke/random_weights", "--exp-dir", "run", "--train-percent", "101"],
        ["train_percent", "less than or equal to 100", "101"],
    ),
    "processes that are none": ([*SMOKE, "--nproc-per-node", "0"], ["--nproc-per-node", ">= 1", "'0'"]),
    "processes of an evaluation": (
        ["evaluate", "--exp-dir", "run", "--nproc-per-node", "2"],
        ["unknown argument --nproc-per-node"],
    ),
    "a batch that the processes do not share evenly": (
        [*SMOKE, "--nproc-per-node", "3", "--batch-size", "32", "--dry-run"],
        ["batch_size 32", "3"],
    ),
    "a setting of another script": (
        ["evaluate", "--exp-dir", "run", "--num-workers", "3"],
        ["--num-workers", "did you mean --workers?"],
    ),
    "a target that there is not": (["transfer", "--exp-dir", "run", "--target", "places"], ["target", "'places205'", "'places'"]),
    "an unknown table": (["table", "table0", "--profile", "smoke", "--results", "out"], ["table0", "table1"]),
    "an unknown profile": (["table", "table1", "--profile", "smok", "--results", "out"], ["smok", "did you mean smoke?"]),
    "an unknown profile of the states": (["status", "--profile", "smok"], ["profile 'smok' (did you mean smoke?)"]),
    "an unknown profile of all tables": (["table", "all", "--profile", "smok", "--results", "out"], ["did you mean smoke?"]),
    "an unknown profile of all tables, dry": (["table", "all", "--profile", "smok", "--dry-run"], ["did you mean smoke?"]),
    "the folder of a run for tables": (["table", "table1", "--exp-dir", "out"], ["--exp-dir", "--results, the root folder"]),
    "the root folder for a run": ([*SMOKE[:-2], "--results=out"], ["--results=out", "--exp-dir, the folder of one run"]),
    "no profile": (["status", "--profile", ""], ["unknown profile ''"]),
    "an unknown profile of the notebooks": (["chapters", "--profile", "Smoke"], ["did you mean smoke?"]),
    "no seeds": (["table", "table1", "--profile", "smoke", "--results", "out", "--seeds", "0"], ["--seeds", ">= 1", "'0'"]),
    "a missing data folder": (
        ["pretrain", "--exp-dir", "run", "--data-dir", "nowhere"],
        [os.path.join("nowhere", "train"), "--data-dir"],
    ),
    "a split of mnist5k that is too large": ([*SMOKE, "--subset", "351"], ["mnist5k", "350", "351"]),
    "a batch of more than the images": ([*SMOKE, "--batch-size", "301"], ["batch_size", "301", "300 images", "lower"]),
    "pixels that should be trained": ([*SMOKE, "--arch", "pixels"], ["pixels", "ssl_method none"]),
    "a missing weights file": (
        ["evaluate", "--recipe", "smoke/random_weights", "--exp-dir", "run", "--pretrained", "no.safetensors"],
        ["no.safetensors", "--pretrained"],
    ),
    "evaluation before pretraining": (
        ["knn-eval", "--recipe", "smoke/random_weights", "--exp-dir", "run"],
        [os.path.join("run", "backbone.safetensors"), "pretrain first"],
    ),
    "a missing folder of the test images": (
        ["evaluate", "--exp-dir", "run", "--data-dir", "nowhere", "--pretrained", "no.pth"],
        ["nowhere", "--data-dir"],
    ),
    "missing weights of a transfer": (
        ["transfer", "--recipe", "smoke/random_weights", "--exp-dir", "run"],
        [os.path.join("run", "backbone.safetensors"), "pretrain first"],
    ),
    "missing images of a transfer": (
        ["transfer", "--exp-dir", "run", "--target", "voc07", "--target-dir", "nowhere", "--pretrained", "no.pth"],
        ["voc07", "nowhere"],
    ),
    "a missing label list": (
        ["evaluate", "--recipe", "smoke/random_weights", "--exp-dir", "run", "--train-percent", "10", "--label-list", "no.txt"],
        ["no.txt"],
    ),
    "a missing head": (
        ["evaluate", "--recipe", "smoke/random_weights", "--exp-dir", "run", "--only-inference", "--ckp-path", "no.pt"],
        ["no.pt"],
    ),
    "missing features": (
        ["knn-eval", "--recipe", "smoke/random_weights", "--exp-dir", "run", "--extraction-dir", "features"],
        [os.path.join("features", "train_features.npy"), "extract-features first"],
    ),
    "a tuning split without its size": (
        ["evaluate", "--exp-dir", "run", "--data-dir", "nowhere", "--val-dataset", "val", "--val-subset", "x"],
        ["val_subset", "'x'"],
    ),
    "augmentations that are not for these images": (
        ["pretrain", "--dataset", "mnist5k", "--arch", "resnet8", "--size", "28", "--mlp", "8-8", "--exp-dir", "run"],
        ["augmentations", "digits"],
    ),
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=[name.replace(" ", "_") for name in MISTAKES])
def test_an_input_error_is_one_line_that_names_it_and_creates_no_files(here, capsys, arguments, words):
    fails_in_one_line(capsys, arguments, *words)
    assert list(here.iterdir()) == []


def test_fp16_on_a_cpu_is_refused_with_the_remedy(here, capsys):
    fails_in_one_line(capsys, [*SMOKE, "--device", "cpu", "--precision", "fp16"], "fp16", "--precision auto")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("content", ["", "train", "train/n01"])
def test_an_empty_data_folder_is_named_and_no_run_is_left_behind(here, capsys, content):
    (here / "data" / content).mkdir(parents=True)
    fails_in_one_line(capsys, ["pretrain", "--exp-dir", "run", "--data-dir", "data"], os.path.join("data", "train"))
    assert [path.name for path in here.iterdir()] == ["data"]


def test_a_data_set_that_cannot_be_downloaded_leaves_no_folder_behind(here, capsys, monkeypatch):
    def offline(*arguments, **keywords):
        raise OSError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    arguments = ["pretrain", "--dataset", "cifar10", "--size", "32", "--exp-dir", "run", "--data-dir", "data"]
    fails_in_one_line(capsys, arguments, "CIFAR10", "data")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_reported_in_one_line_by_its_name(here, capsys, workers):
    folder = here / "data" / "train" / "n01"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{k}.JPEG")
    whole = (folder / "2.JPEG").read_bytes()
    (folder / "2.JPEG").write_bytes(whole[: len(whole) // 2])
    flags = ["--size", "16", "--stem", "small", "--mlp", "8-8", "--batch-size", "2", "--epochs", "1", "--precision", "fp32"]
    arguments = ["pretrain", "--arch", "resnet8", *flags, "--exp-dir", "run", "--data-dir", "data"]
    arguments += ["--workers", workers, "--device", "cpu", "--knn-every", "0"]
    fails_in_one_line(capsys, arguments, os.path.join("n01", "2.JPEG"))


# --- weights files of an evaluation


def weights_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are not the weights of a resnet8 with one channel, and a word of the error."""
    whole = folder / "whole.safetensors"
    save_weights(build_backbone("resnet8", "small", 1), whole)
    cut = folder / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:5000])
    empty = folder / "empty.safetensors"
    empty.touch()
    cut_pth = folder / "cut.pth"
    torch.save(build_backbone("resnet8", "small", 1).state_dict(), cut_pth)
    cut_pth.write_bytes(cut_pth.read_bytes()[:5000])
    text = folder / "text.pth"
    text.write_text("not weights\nat all\n", encoding="utf-8")
    other = folder / "other.pth"
    torch.save(build_backbone("resnet18").state_dict(), other)
    listing = folder / "list.pth"
    torch.save([1, 2], listing)
    return {
        "cut": (cut, "copy it again or recreate it"),
        "empty": (empty, "copy it again or recreate it"),
        "cut_pth": (cut_pth, "copy or download it again"),
        "text": (text, "copy or download it again"),
        "wrong_architecture": (other, "--arch"),
        "no_state_dict": (listing, "holds no state dict of tensors of a resnet8"),
    }


@pytest.mark.parametrize("kind", ["cut", "empty", "cut_pth", "text", "wrong_architecture", "no_state_dict"])
def test_a_weights_file_that_cannot_be_used_is_named_with_the_remedy(here, tmp_path, capsys, kind):
    path, remedy = weights_files(tmp_path)[kind]
    arguments = ["evaluate", "--recipe", "smoke/random_weights", "--exp-dir", "run", "--pretrained", path]
    fails_in_one_line(capsys, arguments, str(path), remedy)
    assert list(here.iterdir()) == []


# --- debug, spelling, help


def test_debug_shows_the_traceback_and_the_exit_status_is_the_same(here, capsys):
    assert main([*SMOKE, "--batch-size", "0", "--debug"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):\n")
    assert re.search(r"^sfrik\.errors\.SfrikError: batch_size", error, re.MULTILINE)


UNEXPECTED = [RuntimeError("boom"), KeyError("boom"), AssertionError("boom"), ValueError("boom"), OSError("boom")]


@pytest.mark.parametrize("error", [*UNEXPECTED, MemoryError("boom"), torch.OutOfMemoryError("boom")])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_unexpected_error_shows_its_traceback_and_exits_with_2(here, capsys, monkeypatch, error, rank):
    """Exit status 1, Python's own for an exception, would mean for `diagnose` that the run has collapsed."""

    def fails(*arguments, **keywords):
        raise error

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("sfrik.evaluate.collapse.diagnose", fails)
    assert main(["diagnose", "."]) == 2
    printed = capsys.readouterr().err
    request = f"{REPORT}\n" if error in UNEXPECTED else ""  # memory may run out without a bug
    assert printed.startswith(f"{request}Traceback (most recent call last):\n")
    assert re.match(rf"(torch\.)?{type(error).__name__}\b.*boom", printed.splitlines()[-1])


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_results_under_a_link_that_leads_nowhere_are_refused(here, capsys, target):
    (here / "link").symlink_to(target)
    for command in (SMOKE[:-1], ["run", *SMOKE[1:-2], "--results"], ["status", "--profile", "smoke", "--results"]):
        fails_in_one_line(capsys, [*command, "link/run"], f"link is a link that leads nowhere: check {command[-1]}")
    fails_in_one_line(capsys, [*SMOKE[:-1], "link", "--dry-run"], "link is a link that leads nowhere")


def test_a_working_directory_that_was_deleted_is_refused(here, capsys):
    here.rmdir()
    fails_in_one_line(capsys, SMOKE, "the working directory was deleted")


@pytest.mark.parametrize("seconds", ["x", "", "-3", "inf", "nan", "1e9"])
def test_a_grace_that_is_no_number_of_seconds_is_refused(here, capsys, monkeypatch, seconds):
    monkeypatch.setenv("SFRIK_GRACE", seconds)
    monkeypatch.setattr(sys.modules["sfrik.cli.main"], "GRACE", signals._seconds(seconds))
    fails_in_one_line(capsys, SMOKE, f"SFRIK_GRACE must be a number of seconds from 0 to 86400, got '{seconds}'")


def test_an_error_of_the_operating_system_is_one_line(here, capsys, monkeypatch):
    def fails(*arguments, **keywords):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "weights")

    monkeypatch.setattr("sfrik.evaluate.collapse.diagnose", fails)
    fails_in_one_line(capsys, ["diagnose", "."], "Input/output error: 'weights'")


def test_output_that_cannot_be_printed_is_a_failure(tmp_path):
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "sfrik", "status", "table8", "--profile", "smoke", "--results", str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, encoding="utf-8", timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "sfrik: error: the output could not be printed: No space left on device"


def test_an_interrupted_command_prints_how_to_resume(here, capsys, monkeypatch):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("sfrik.pretrain.loop.pretrain", interrupted)
    assert main(SMOKE) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--sfrik-mmd-coeff", "--sfrik_mmd_coeff"])
def test_a_flag_is_written_with_hyphens_or_underscores(here, capsys, name):
    assert main([*SMOKE, name, "2.5", "--dry-run"]) == 0
    assert re.search(r"^  sfrik_mmd_coeff +2\.5 +\(", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("dry", [True, False])
def test_a_kernel_whose_series_is_cut_is_reported_once_before_the_training(here, capsys, recwarn, monkeypatch, dry):
    monkeypatch.setenv("COLUMNS", "200")
    cut = ["--sfrik-kernel", "rbf", "--sfrik-kernel-degree", "2"]
    flags = ["--dry-run"] if dry else ["--epochs", "1", "--subset", "7", "--device", "cpu"]
    assert main([*SMOKE, *cut, *flags]) == 0
    printed = capsys.readouterr()
    note = "the degrees 1 to 2 leave out 86 % of the kernel in dimension 64: without a degree nothing is left out"
    assert [line for line in printed.out.splitlines() if "leave out" in line] == [note]
    assert not [warning for warning in recwarn if "leave out" in str(warning.message)]
    assert main([*SMOKE[:-1], "other", *cut[:2], "--dry-run"]) == 0
    assert "leave out" not in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_a_flag_in_both_spellings_and_help_all_lists_it_once_with_its_choices(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help-all"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "_" not in "".join(re.findall(r"^  (--\S+)", text, re.MULTILINE)), "one spelling is enough"
    for name, field in SECTIONS[command.replace("-", "_")].model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        assert len(re.findall(rf"^  {flag}(?= )", text, re.MULTILINE)) == 1, name
        help = " ".join(re.split(rf"^  {flag}(?= )", text, flags=re.MULTILINE)[1].split("\n  -")[0].split())
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        assert [choice for choice in choices if choice not in help] == [], name
        for spelling in (flag, f"--{name}"):
            assert getattr(build_parser().parse_args([command, f"{spelling}=1"]), name) in ("1", ["1"])


def test_the_value_of_a_flag_and_what_follows_two_hyphens_keep_their_underscores():
    options = build_parser().parse_args(["pretrain", "--exp_dir=a_b", "--data_dir", "c_d", "--sfrik_mmd_coeff", "2"])
    assert (options.exp_dir, options.data_dir, options.sfrik_mmd_coeff) == ("a_b", "c_d", "2")
    assert build_parser().parse_args(["publish", "--", "--data_dir"]).names == ["--data_dir"]


# --- booleans, lists, the place of the results


@pytest.mark.parametrize(
    ("flags", "value"),
    [([], False), (["--only-inference"], True), (["--only_inference", "True"], True), (["--only-inference", "False"], False)],
)
def test_a_boolean_flag_without_a_value_is_true(here, capsys, flags, value):
    assert main(["evaluate", *flags, "--exp-dir", "run", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["only_inference"] is value


def test_a_flag_after_a_boolean_is_not_its_value(here, capsys):
    assert main(["evaluate", "--only-inference", "--epochs", "7", "--exp-dir", "run", "--dry-run", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["only_inference"], settings["epochs"]) == (True, 7)


@pytest.mark.parametrize("flag", ["--lr-sweep", "--lr_sweep"])
def test_a_flag_takes_several_values_separated_by_spaces(here, capsys, flag):
    assert main(["evaluate", flag, "0.1", "0.4", "--subset", "9", "--val-subset", "9", "--exp-dir", "run", "--dry-run"]) == 0
    assert re.search(r"^  lr_sweep +0\.1 0\.4 +\(default: none\)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "exp_dir", "extraction_dir"),
    [
        (["pretrain"], "exp", None),
        (["evaluate"], "exp", None),
        (["knn-eval"], "exp", ""),
        (["knn-eval", "--extraction-dir", "d"], "d", "d"),
        (["logistic-regression", "--extraction-dir", "d"], "d", "d"),
        (["knn-eval", "--extraction-dir", "d", "--exp-dir", "e"], "e", "d"),
        (["extract-features", "--exp-dir", "e"], "e", ""),
        (["extract-features", "--pretrained", "w", "--exp-dir", "e"], "e", "e"),
        (["extract-features", "--pretrained", "w"], "exp", "exp"),
        (["extract-features", "--pretrained", "w", "--exp-dir", "e", "--extraction-dir", "d"], "e", "d"),
    ],
)
def test_without_a_recipe_results_go_where_the_original_commands_put_them(here, capsys, arguments, exp_dir, extraction_dir):
    assert main([*arguments, "--dry-run", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["exp_dir"], settings.get("extraction_dir")) == (exp_dir, extraction_dir)


def test_the_default_folder_of_the_results_is_printed_in_one_line(here, capsys):
    flags = ["--dataset", "mnist5k", "--augmentations", "digits", "--arch", "resnet8", "--size", "28", "--mlp", "8-8"]
    flags += ["--ssl-method", "none", "--workers", "0"]
    assert main(["pretrain", *flags]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "no training, ResNet-8, q = 8, 3,500 images, 1 process -> exp"
    assert second == "choose another folder with --exp-dir"
    assert (here / "exp" / "backbone.safetensors").is_file()


def test_scores_find_the_features_in_the_folder_they_were_extracted_to(here, capsys):
    """The three commands as the original ones chain them: --exp-dir of the first is --extraction-dir of the others."""
    save_weights(build_backbone("resnet8", "small", 1), here / "weights.safetensors")
    network = ["--dataset", "mnist5k", "--subset", "3", "--arch", "resnet8", "--size", "28"]
    extraction = ["extract-features", *network, "--stem", "small", "--pretrained", "weights.safetensors", "--exp-dir", "features"]
    assert main([*extraction, "--workers", "0", "--device", "cpu", "--precision", "fp32"]) == 0
    assert (here / "features" / "train_features.npy").is_file()
    assert main(["knn-eval", "--dataset", "mnist5k", "--extraction-dir", "features", "--nb_knn", "5", "10"]) == 0
    assert main(["logistic-regression", "--dataset", "mnist5k", "--extraction-dir", "features", "--epochs", "2"]) == 0
    assert {"knn.json", "logistic.json"} <= {path.name for path in (here / "features").iterdir()}
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in here.iterdir()) == ["features", "weights.safetensors"]


# --- processes


def test_the_evaluations_refuse_several_processes_and_extraction_does_not(here, capsys, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    for command in COMMANDS:
        arguments = [command, "--exp-dir", "run", "--dry-run"]
        if command in ("pretrain", "extract-features"):
            assert main(arguments) == 0
            assert list(memory_lines(capsys.readouterr().out)) == [2]
        else:
            fails_in_one_line(capsys, arguments, "one process", "torchrun")
    fails_in_one_line(capsys, ["table", "table1", "--profile", "smoke"], "one process", "torchrun")
    fails_in_one_line(capsys, ["pretrain", "--nproc-per-node", "2", "--exp-dir", "run"], "torchrun", "only one")


def test_variables_of_another_launcher_are_reported_or_have_no_effect(here, capsys, monkeypatch):
    command = ["pretrain", "--recipe", "smoke/sfrik_l2_q64", "--exp-dir", "run", "--dry-run"]
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    for size in (None, "1", "many", ""):
        monkeypatch.setenv("WORLD_SIZE", size) if size is not None else monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert main(command) == 0
        assert "1 process" in capsys.readouterr().out, "nothing is printed on another rank than 0"
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails_in_one_line(capsys, command, "WORLD_SIZE is 2", "torchrun did not start this process", "unset WORLD_SIZE")
    assert main(["status", "table8", "--profile", "smoke", "--results", "run"]) == 0


@pytest.mark.parametrize(
    "left",
    [{"RANK": "2"}, {"LOCAL_RANK": "2"}, {"RANK": "x"}, {"RANK": None}, {"LOCAL_RANK": None}, {"RANK": "-1"}],
)
def test_variables_of_torchrun_that_do_not_fit_together_are_no_processes_of_it(here, capsys, monkeypatch, left):
    """Left in a shell, they made a process wait for others, or raised KeyError."""
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**torchrun, **left}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    command = ["pretrain", "--recipe", "smoke/sfrik_l2_q64", "--exp-dir", "run", "--dry-run"]
    fails_in_one_line(capsys, command, "WORLD_SIZE is 2", "torchrun did not start this process")
    monkeypatch.delenv("WORLD_SIZE")
    assert main(command) == 0


def test_a_mistake_on_several_processes_ends_in_one_line_too(here, capsys, monkeypatch):
    def launch(function, settings, nproc_per_node):
        assert nproc_per_node == 2
        assert launching.importable_name(function) == "sfrik.cli.train:_pretrain", "a worker imports the function by its name"
        raise launching.WorkerError(
            "rank 0 on host failed:\nTraceback\n  File\nsfrik.files.WriteError: ...", "no images: lower it"
        )

    monkeypatch.setattr(launching, "launch", launch)
    assert fails_in_one_line(capsys, [*SMOKE, "--nproc-per-node", "2"]) == "sfrik: error: no images: lower it"


@pytest.mark.parametrize(
    "text",
    [
        "rank 0 on host failed:\nTraceback (most recent call last):\n  File x\nRuntimeError: mat1 and mat2",
        "rank 1 on host was ended by SIGKILL before it could report an error; unless someone killed it, it most likely ran "
        "out of memory",
    ],
)
def test_a_failure_of_a_worker_is_shown_as_the_worker_reported_it(here, capsys, monkeypatch, text):
    def launch(function, settings, nproc_per_node):
        raise launching.WorkerError(text)

    monkeypatch.setattr(launching, "launch", launch)
    assert main([*SMOKE, "--nproc-per-node", "2"]) == 2
    request = f"{REPORT}\n" if "Traceback" in text else ""
    assert capsys.readouterr().err == f"{request}sfrik: error: {text}\n", "without the traceback of this process"


# --- dry runs


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_prints_the_settings_and_touches_nothing(here, capsys, command):
    assert main([command, "--recipe", "smoke/sfrik_l2_q64", "--seed", "5", "--exp-dir", "run", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    kind = SECTIONS[command.replace("-", "_")]
    settings = kind.from_recipe("smoke/sfrik_l2_q64")
    for name, field in kind.model_fields.items():
        differs = name == "seed" or (getattr(settings, name) != field.default and name not in settings.unused() | {"exp_dir"})
        assert bool(re.search(rf"^  {name} ", captured.out, re.MULTILINE)) == differs, name
    assert re.search(r"^  seed +5 +\(recipe: 0\)$", captured.out, re.MULTILINE)
    assert re.search(r"^  arch +resnet8 +\(default: resnet18\)$", captured.out, re.MULTILINE)
    first, last = captured.out.splitlines()[0], captured.out.splitlines()[-1]
    assert re.search(r"ResNet-8, .*\b\d+ images, 1 process -> run", first)
    assert last == ("folder: run/features" if command == "extract-features" else "folder: run")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "given", "processes", "line"),
    [
        ("pretrain", {"exp_dir": "r"}, 8, "SFRIK L=3, ResNet-18, q = 8192, 1,281,167 images, 8 processes -> r"),
        (
            "pretrain",
            {"sfrik_kernel": "rbf", "sfrik_stein": 1},
            1,
            "SFRIK with the rbf kernel, Stein order 1, ResNet-18, q = 8192",
        ),
        (
            "pretrain",
            {"ssl_method": "vicreg", "arch": "vit_b_16", "dataset": "stl10"},
            1,
            "VICReg, vit_b_16, q = 8192, 100,000 im",
        ),
        ("pretrain", {"ssl_method": "none", "arch": "pixels"}, 1, "no training, raw pixels, 1,281,167 images, 1 process -> "),
        (
            "pretrain",
            {"dataset": "image_folder", "data_dir": "mine"},
            1,
            "SFRIK L=3, ResNet-18, q = 8192, the images in mine, 1 pr",
        ),
        ("evaluate", {"train_percent": 10, "weights": "finetune"}, 1, "fine-tuning with 10 % of the labels, ResNet-18, 128,116"),
        ("evaluate", {"only_inference": True}, 1, "score of a saved head: linear probing, ResNet-18, 50,000 images"),
        ("extract_features", {"exp_dir": "r"}, 1, "features, ResNet-18, 1,331,167 images, 1 process -> r/features"),
        ("knn_eval", {"extraction_dir": "f", "exp_dir": "r"}, 1, "kNN (k = 10, 20, 100, 200), the features in f, 1 process -> r"),
        ("logistic_regression", {}, 1, "logistic regression (sgd), ResNet-18, 1,281,167 images, 1 process -> "),
        ("transfer", {"target": "voc07"}, 1, "transfer to voc07, ResNet-18, 9,963 images, 1 process -> "),
    ],
)
def test_the_first_line_of_a_run_states_what_it_does(section, given, processes, line):
    assert headline(SECTIONS[section].parse(given), processes).startswith(line)


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_a_dry_run_is_wrapped_at_the_width_of_the_terminal_between_words(here, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    flags = ["--warmup-epochs", "9", "--sfrik-kernel", "rbf", "--sfrik-kernel-degree", "2"]
    assert main([*SMOKE, *flags, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    assert "the learning rate ends at 22 % of its peak, without decay; lower --warmup-epochs" in " ".join(text.split())
    assert "loss" in text


@pytest.mark.parametrize("command", ["knn-eval", "logistic-regression"])
@pytest.mark.parametrize("recipe", [[], ["--recipe", "smoke/sfrik_l2_q64"]])
def test_a_dry_run_describes_the_features_that_are_read_and_no_images_or_network(here, capsys, command, recipe):
    flags = [command, *recipe, "--extraction-dir", "f", "--exp-dir", "run", "--batch-size", "4", "--data-dir", "nowhere"]
    flags += ["--solver", "sgd", "--epochs", "3"] if command == "logistic-regression" else ["--nb-knn", "2"]
    assert main([*flags, "--dry-run"]) == 0
    assert "features: there are none in f yet, on which the memory depends" in " ".join(capsys.readouterr().out.split())
    assert main([*flags, "--dry-run", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["images"], content["steps_per_epoch"], content["memory_gib"]) == (None, None, {})

    (here / "f").mkdir()
    for split, n, d in (("train", 10, 6), ("val", 5, 6)):
        np.save(here / "f" / f"{split}_features.npy", np.ones((n, d), dtype=np.float32))
        np.save(here / "f" / f"{split}_labels.npy", np.arange(n) % 3)
    assert main([*flags, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "features: 10 to train on and 5 to score, of 6 dimensions and 3 classes" in text.splitlines()
    assert ("steps: 3 per epoch, 9 in total" in text.splitlines()) == (command == "logistic-regression")
    for words in ("images", "resnet", "mnist", "nowhere", "subset"):
        assert words not in text
    memory = {}
    for dim in (6, 6000):
        for split, n in (("train", 10), ("val", 5)):
            np.save(here / "f" / f"{split}_features.npy", np.ones((n, dim), dtype=np.float32))
        assert main([*flags, "--dry-run", "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        memory[dim] = content["memory_gib"]["1"]["features"]
    assert content["images"] == 10
    assert memory[6000] == pytest.approx(1000 * memory[6])


def test_a_dry_run_refuses_features_that_the_command_would_refuse(here, capsys):
    for name in ("train_features", "train_labels", "val_features", "val_labels"):
        (here / f"{name}.npy").write_bytes(b"PK")
    fails_in_one_line(capsys, ["knn-eval", "--extraction-dir", ".", "--dry-run"], "train_features.npy", "such as .npz")


def test_a_dry_run_shows_the_defaults_where_a_recipe_is_overridden_by_them_and_the_form_that_was_given(here, capsys):
    assert main([*SMOKE, "--epochs", "100", "--sfrik-trade-off", "0.5", "--dry-run"]) == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines() if "  (" in line}
    assert lines["epochs"] == "100 (recipe: 2)"
    assert lines["sfrik_trade_off"] == "0.5 (recipe: none)"
    assert "sfrik_sim_coeff" not in lines
    assert main(["pretrain", "--dry-run"]) == 0
    assert "all settings have their defaults" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_needs_no_data(here, capsys, command):
    assert main([command, "--exp-dir", "run", "--data-dir", "nowhere", "--dry-run"]) == 0
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("transfer", "--target voc07 --val-dataset train", "voc07 has no tuning split"),
        ("evaluate", "--val-dataset train", "the tuning split needs subset"),
        ("evaluate", "--lr-sweep 0.1 0.4", "the tuning split needs subset"),
        ("logistic-regression", "--solver lbfgs --extraction-dir d", "an extraction folder lacks: use --solver sgd"),
        ("knn-eval", "--dataset stl10 --subset 501", "stl10 has 500 images per class in its train split, but 501"),
        ("extract-features", "--dataset cifar10 --subset 4990 --val-subset 10 --val-dataset train", "but 5001 are required"),
        ("extract-features", "--dataset mnist5k --image-dir photos", "image_dir is for image files"),
        ("evaluate", "--label-list list.txt", "give train_percent"),
        ("evaluate", "--train-percent 0", "train_percent"),
        ("pretrain", "--dataset mnist5k --augmentations digits --subset 351", "mnist5k has 350 images per class"),
        ("pretrain", "--dataset mnist5k --augmentations digits --subset 2 --batch-size 64", "the data set of 20 images"),
        ("pretrain", "--batch-size 6 --micro-batch 2 --nproc-per-node 2", "BatchNorm needs at least two images"),
    ],
)
def test_a_dry_run_refuses_the_images_and_labels_that_the_run_would_refuse(here, capsys, command, flags, words):
    fails_in_one_line(capsys, [command, "--exp-dir", "run", *flags.split(), "--dry-run"], words)


REFUSED = {  # also by the command itself, without --dry-run
    "augmentations for photos only": ([*SMOKE, "--augmentations", "vicreg"], ["augmentations", "digits"]),
    "a logger that is not installed": ([*SMOKE, "--loggers", "wandb"], ["wandb", "python -m pip install wandb"]),
    "the folder of another recipe": (
        [*SMOKE[:-1], "results/smoke/sfrik_l3_q64/seed0"],
        ["is the folder of recipe smoke/sfrik_l3_q64", "sfrik_weights"],
    ),
    "results in a file": ([*SMOKE[:-1], f"{__file__}/run"], ["test_cli.py is a file and not a folder", "--exp-dir"]),
    "results of a run in a file": (
        ["run", "--recipe", "smoke/sfrik_l2_q64", "--results", __file__],
        ["test_cli.py is a file and not a folder"],
    ),
    "tables in a file": (["table", "table1", "--profile", "smoke", "--results", __file__], ["is a file and not a folder"]),
    "an unknown stage of a list": (
        ["run", "--recipe", "smoke/sfrik_l2_q64", "--stages", "linear,ken"],
        ["unknown stage 'ken' (did you mean knn?)"],
    ),
    "an unknown recipe": (["evaluate", "--recipe", "smoke/sfrik_l2_q6"], ["did you mean smoke/sfrik_l2_q64?"]),
    "an unknown table": (["table", "table10", "--profile", "smoke"], ["table10"]),
    "GPUs of no cluster": (["table", "table1", "--profile", "smoke", "--gpus", "2"], ["--gpus", "--launch slurm"]),
    "a batch that nodes do not share": (
        ["table", "table1", "--profile", "smoke", "--launch", "slurm", "--nodes", "7"],
        ["batch_size", "7 nodes x 1 process"],
    ),
    "jobs on a cluster": (["table", "table1", "--profile", "smoke", "--launch", "slurm", "--jobs", "2"], ["--jobs"]),
    "an unknown stage": (["run", "--recipe", "smoke/sfrik_l2_q64", "--stages", "liner"], ["did you mean linear?"]),
    "processes that do not share a batch": (
        ["run", "--recipe", "smoke/sfrik_l2_q64", "--nproc-per-node", "7"],
        ["batch_size", "not divisible by 7"],
    ),
}


@pytest.mark.parametrize("command", [["table", "--dry-run"], ["table"], ["status"], ["publish"], ["compare"]])
@pytest.mark.parametrize("name", ["2", "Table 2", "tab2", "TABLE_2"])
def test_a_table_that_is_named_by_its_number_is_refused_with_its_name(here, capsys, command, name):
    """Of all names that are similar, only the one with this number is suggested."""
    fails_in_one_line(capsys, [*command, "--profile", "smoke", "--", name], "(did you mean table2?)")


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=[name.replace(" ", "_") for name in REFUSED])
def test_a_dry_run_refuses_what_the_run_would_and_writes_nothing(here, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    fails_in_one_line(capsys, [*arguments, "--dry-run"], *words)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pretrain", "--data-dir", "nowhere"], "there is no folder nowhere yet: check --data-dir"),
        (["pretrain", "--data-dir", "."], "the folder . is empty: check --data-dir"),
        (["transfer", "--target-dir", "nowhere"], "there is no folder nowhere yet: check --target-dir"),
        (["evaluate", "--train-percent", "1", "--label-list", "no.txt"], "there is no file no.txt yet: check --label-list"),
        (["evaluate", "--train-percent", "1", "--label-list", "."], "there is no file . yet: check --label-list"),
        (["table", "table4", "--profile", "paper", "--data-dir", "nowhere"], "there is no folder nowhere yet: check --data-dir"),
    ],
)
def test_a_dry_run_reports_images_and_labels_that_are_missing(here, capsys, arguments, line):
    assert main([*arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert line in lines
    assert "->" in lines[0] or arguments[0] == "table", "what the command does comes first"
    assert list(here.iterdir()) == []


def test_a_dry_run_refuses_the_folder_of_a_run_with_other_settings(here, capsys):
    run = Run(here / "run")
    run.start(PretrainSettings.from_recipe("smoke/sfrik_l2_q64", epochs=7))
    assert main([*SMOKE, "--dry-run"]) == 0, "nothing was trained there"
    (run.folder / "checkpoint.pt").touch()
    for arguments in ([*SMOKE, "--dry-run"], SMOKE):
        assert "holds an unfinished run with other settings (epochs 7 -> 2)" in fails_in_one_line(capsys, arguments)
    assert sorted(path.name for path in run.folder.iterdir() if path.name != "lock") == ["checkpoint.pt", "settings.json"]


def test_a_dry_run_refuses_a_run_that_another_process_trains(here, capsys):
    with Run(here / "run").lock():
        fails_in_one_line(capsys, [*SMOKE, "--dry-run"], f"another process (pid {os.getpid()} on ", "wait for it, or stop it")
        assert main(["run", "--recipe", "smoke/sfrik_l2_q64", "--dry-run"]) == 0, "which waits"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_still_refuses_a_mistake(here, capsys, command):
    fails_in_one_line(capsys, [command, "--exp-dir", "run", "--seed", "-1", "--dry-run"], "seed")


@pytest.mark.parametrize(
    ("flags", "per_epoch", "total"),
    [
        # 260 images of each of 1,000 classes in whole batches of 2,048: floor(126.95) steps, 100 times
        (["--subset", "260", "--batch-size", "2048", "--epochs", "100"], 126, 12600),
        # ILSVRC-2012 has 1,281,167 training images: floor(625.57) steps
        (["--batch-size", "2048", "--epochs", "200"], 625, 125000),
        # 100,000 unlabelled images: floor(48.8) steps
        (["--dataset", "stl10", "--batch-size", "2048", "--epochs", "1"], 48, 48),
        (["--recipe", "smoke/sfrik_l2_q64", "--subset", "30", "--batch-size", "64", "--epochs", "2"], 4, 8),
    ],
)
def test_a_dry_run_counts_the_steps(here, capsys, flags, per_epoch, total):
    assert main(["pretrain", "--exp-dir", "run", *flags, "--dry-run"]) == 0
    assert f"steps: {per_epoch} per epoch, {total} in total" in capsys.readouterr().out


def memory_lines(text):
    """{processes: (total GiB, {part: GiB})} of a dry run."""
    head, *rows = [line.split() for line in text.splitlines() if re.match(r"  [GM]iB per process |  \d+ process", line)]
    gib = {"GiB": 1, "MiB": 1 / 1024}[head[0]]
    found = {int(row[0]): dict(zip(head[3:], (gib * float(size) for size in row[2:]), strict=True)) for row in rows}
    return {count: (parts.pop("total"), parts) for count, parts in found.items()}


def test_a_dry_run_prints_the_expected_memory_on_1_2_4_and_8_processes(here, capsys):
    assert main(["pretrain", "--exp-dir", "run", "--batch-size", "2044", "--dry-run"]) == 0
    lines = memory_lines(capsys.readouterr().out)
    assert list(lines) == [1, 2, 4], "2,044 images do not divide by 8"
    for total, parts in lines.values():
        assert list(parts) == ["parameters", "activations", "images", "embeddings", "loss"]
        assert total == pytest.approx(sum(parts.values()), abs=0.03), "each of six numbers is rounded to 0.01"
    # weight and momentum, copy and gradient in bfloat16, 12 bytes for each of 11.2 M parameters in the ResNet-18 and 138 M in the
    # projector, are 1.67 GiB; several processes have DDP's buckets, 4 bytes more
    assert lines[1][1]["parameters"] == pytest.approx(1.67, abs=0.02)
    assert lines[2][1]["parameters"] == pytest.approx(1.67 * 16 / 12, abs=0.02)
    assert lines[4][1]["activations"] == pytest.approx(lines[1][1]["activations"] / 4, abs=0.01)


def test_the_memory_of_a_small_run_is_in_mib(here, capsys):
    assert main(["pretrain", "--recipe", "smoke/sfrik_l2_q64", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "  MiB per process " in text
    expected = sum(expected_memory(PretrainSettings.from_recipe("smoke/sfrik_l2_q64"), 1).values())
    assert memory_lines(text)[1][0] == pytest.approx(expected, abs=0.51 / 1024)
    assert main(["memory", "--recipe", "smoke/sfrik_l2_q64", "--nproc-per-node", "1"]) == 0
    assert re.search(rf"% of {1024 * expected:.0f} MiB", capsys.readouterr().out)


def test_a_dry_run_with_a_number_of_processes_prints_only_their_memory(here, capsys):
    assert main(["pretrain", "--exp-dir", "run", "--batch-size", "24", "--nproc-per-node", "3", "--dry-run"]) == 0
    assert list(memory_lines(capsys.readouterr().out)) == [3]


def test_a_dry_run_counts_the_images_that_are_seen(here, capsys):
    assert main(["pretrain", "--subset", "260", "--batch-size", "2048", "--epochs", "100", "--dry-run"]) == 0
    # 126 whole batches of 2,048
    assert "images: 258048 per epoch (of 260000), 25804800 in total" in capsys.readouterr().out


# --- what to expect


def test_multi_crop_counts_every_view_at_its_size():
    """A convolutional network's outputs grow with the square of the side (the projector's 24,576 values do not)."""
    two = expected_memory(PretrainSettings(batch_size=64))["activations"]
    crops = {"nmb_crops": (2, 4), "size_crops": (224, 112), "min_scale_crops": (0.1, 0.1), "max_scale_crops": (1.0, 1.0)}
    many = expected_memory(PretrainSettings(batch_size=64, augmentations="swav", **crops))["activations"]
    assert many / two == pytest.approx((2 + 4 / 4) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "images", "steps"),
    [
        # ceil(1,281,167 / 256) = 5,005
        (EvaluateSettings(), 1_281_167, (5005, 100)),
        (EvaluateSettings(subset=260), 260_000, (1016, 100)),
        (EvaluateSettings(train_percent=1, weights="finetune", epochs=20), 12_811, (51, 20)),
        (EvaluateSettings(train_percent=10, weights="finetune", epochs=20), 128_116, (501, 20)),
        (EvaluateSettings(only_inference=True), 50_000, None),
        (EvaluateSettings(only_inference=True, subset=260, val_dataset="train", val_subset=260), 260_000, None),
        (EvaluateSettings(dataset="mnist5k", train_percent=1), 40, (1, 100)),
        # 5,000 to learn on, 8,000 to score: 20 and 32 batches
        (FeatureSettings(dataset="stl10"), 13_000, (52, 1)),
        (LogisticSettings(dataset="stl10"), 5000, (20, 100)),
        (LogisticSettings(dataset="stl10", solver="lbfgs"), 5000, None),
        (TransferSettings(), 2_448_873, (9566, 28)),
        (TransferSettings(target="voc07"), 9963, None),
        (PretrainSettings(dataset="image_folder"), None, None),
        (EvaluateSettings(dataset="image_folder"), None, None),
    ],
)
def test_images_and_steps_follow_from_the_settings(settings, images, steps):
    assert expected_images(settings) == images
    assert expected_steps(settings) == steps


def test_fine_tuning_needs_the_memory_of_training_and_probing_does_not():
    probe, tuned = (expected_memory(EvaluateSettings(arch="resnet50", weights=weights)) for weights in ("freeze", "finetune"))
    assert tuned["parameters"] > 2 * probe["parameters"]
    assert tuned["activations"] > 10 * probe["activations"]
    sweep = expected_memory(EvaluateSettings(arch="resnet50", lr_sweep=(0.1, 0.2, 0.4)))
    assert sweep["head"] == pytest.approx(3 * probe["head"])


def test_the_memory_of_kept_features_is_their_number_times_their_dimension():
    gib = expected_memory(LogisticSettings(arch="resnet50"))["features"]
    assert gib == pytest.approx((1_281_167 + 50_000) * 2048 * 4 / 2**30)


# --- a separate process


def test_a_separate_process_exits_with_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "sfrik", *SMOKE, "--epoch", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean --epochs?" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- the program itself

PROGRAMS = {"sfrik": [str(Path(sys.executable).with_name("sfrik"))], "python -m sfrik": [sys.executable, "-m", "sfrik"]}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_help_lists_every_command_with_what_it_does(program, arguments):
    if program == "sfrik" and not Path(PROGRAMS[program][0]).is_file():
        pytest.skip("the program is not installed beside this Python")
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([*PROGRAMS[program], *arguments], capture_output=True, encoding="utf-8", env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    listed = re.findall(r"^  ([a-z-]+)(?= )", done.stdout.split("options:")[0], re.MULTILINE)
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    assert sorted(listed) == sorted(commands)
    lines = done.stdout.splitlines()
    assert len(re.findall(r"^  ", done.stdout.split("options:")[0], re.MULTILINE)) == len(commands), "one line each"
    assert len(lines) <= 40


PARSERS = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("command", PARSERS)
def test_the_help_of_a_command_fits_two_screens_and_any_width(command, monkeypatch):
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        for text in (PARSERS[command].format_help(), PARSERS[command].format_help(everything=True)):
            assert max(map(len, text.splitlines())) <= columns
            assert not re.search(r"default: (None|\))|\(default:$|\w-$", text, re.MULTILINE), "nothing is broken within a word"
        if columns >= 80:
            assert len(PARSERS[command].format_help().splitlines()) <= 80


@pytest.mark.parametrize("command", [name for name in PARSERS if name != "completion"])
def test_the_examples_of_the_help_are_command_lines_without_a_mistake(here, command, capsys):
    assert PARSERS[command].examples
    for example in PARSERS[command].examples:
        program, *arguments = shlex.split(example)
        options = build_parser().parse_args(arguments)
        assert (program, options.command) == ("sfrik", command)
        if hasattr(options, "section"):
            resolve_settings(options)


@pytest.mark.parametrize("arguments", [["pretrain", "table1"], ["table"], ["run", "--seed"], ["--recipe", "x"]])
def test_arguments_that_do_not_fit_a_command_name_its_help(here, capsys, arguments):
    fails_in_one_line(capsys, arguments, "--help")


def test_the_help_fits_a_terminal_of_80_columns(monkeypatch):
    pty = pytest.importorskip("pty", reason="not on Windows")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.delenv("COLUMNS", raising=False)
    done = subprocess.Popen(PROGRAMS["python -m sfrik"], stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux ends a terminal so
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    os.close(ours)
    assert done.wait(timeout=300) == 0
    lines = shown.decode().splitlines()
    assert lines[0].startswith("usage: sfrik ")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_prints_the_version_of_the_package(program):
    if program == "sfrik" and not Path(PROGRAMS[program][0]).is_file():
        pytest.skip("the program is not installed beside this Python")
    done = subprocess.run([*PROGRAMS[program], "--version"], capture_output=True, encoding="utf-8", timeout=300)
    assert (done.returncode, done.stdout) == (0, f"sfrik {sfrik.__version__}\n")


def test_a_percent_sign_in_the_description_of_a_command_is_printed_unchanged():
    parser = Parser(prog="x", commands={"numbers": ["half"]})
    add_command(parser.add_subparsers(parser_class=Parser), "half", "Half: 50 % and 50%s of %(it)s. Not this.")
    assert "half: 50 % and 50%s of %(it)s\n" in parser.format_help()
