"""The command line: one line and exit status 2 for a mistake, no folder left behind; dry runs that touch nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfrik.cli import main
from sfrik.networks import build_backbone, save_backbone
from sfrik.settings import SECTIONS

ROOT = Path(__file__).parents[1]
COMMANDS = [section.replace("_", "-") for section in SECTIONS]


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
    "a malformed mlp": ([*SMOKE, "--mlp", "64-x"], ["mlp", "8192-8192-8192", "64-x"]),
    "an mlp of no widths": ([*SMOKE, "--mlp", ""], ["mlp", "8192-8192-8192"]),
    "an unknown architecture": ([*SMOKE, "--arch", "resnet19"], ["arch", "did you mean resnet18?"]),
    "an unknown command": (["pretain", "--epochs", "3"], ["pretain", "pretrain"]),
    "no command": ([], ["COMMAND"]),
    "a flag without its value": ([*SMOKE, "--epochs"], ["--epochs", "expected one argument"]),
    "an unknown recipe": (
        ["pretrain", "--recipe", "smoke/sfrik_l2_q1"],
        ["smoke/sfrik_l2_q1", "did you mean smoke/sfrik_l2_q64?"],
    ),
    "an unknown recipe to run": (
        ["run", "--recipe", "smoke/sfrik_l2_q1", "--exp-dir", "out"],
        ["did you mean smoke/sfrik_l2_q64?"],
    ),
    "a missing recipe to run": (["run"], ["--recipe"]),
    "no place for the results": (["pretrain", "--dataset", "mnist5k", "--augmentations", "digits"], ["--exp-dir", "--recipe"]),
    "an unknown table": (["table", "table0", "--profile", "smoke", "--exp-dir", "out"], ["table0", "table1"]),
    "an unknown profile": (["table", "table1", "--profile", "smok", "--exp-dir", "out"], ["smok", "did you mean smoke?"]),
    "no seeds": (["table", "table1", "--profile", "smoke", "--exp-dir", "out", "--seeds", "0"], ["--seeds", ">= 1", "'0'"]),
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
def test_a_mistake_ends_in_one_line_that_names_it_and_leaves_nothing_behind(here, capsys, arguments, words):
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
    save_backbone(build_backbone("resnet8", "small", 1), whole)
    cut = folder / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:5000])
    empty = folder / "empty.safetensors"
    empty.touch()
    cut_pth = folder / "cut.pth"
    torch.save(build_backbone("resnet8", "small", 1).state_dict(), cut_pth)
    cut_pth.write_bytes(cut_pth.read_bytes()[:5000])
    text = folder / "text.pth"
    text.write_text("not weights\nat all\n")
    other = folder / "other.pth"
    torch.save(build_backbone("resnet18").state_dict(), other)
    listing = folder / "list.pth"
    torch.save([1, 2], listing)
    return {
        "cut": (cut, "copy or make it again"),
        "empty": (empty, "copy or make it again"),
        "cut_pth": (cut_pth, "copy or download it again"),
        "text": (text, "copy or download it again"),
        "wrong_architecture": (other, "--arch"),
        "no_state_dict": (listing, "expected a backbone"),
    }


@pytest.mark.parametrize("kind", ["cut", "empty", "cut_pth", "text", "wrong_architecture", "no_state_dict"])
def test_a_weights_file_that_cannot_be_used_is_named_with_the_remedy(here, tmp_path, capsys, kind):
    path, remedy = weights_files(tmp_path)[kind]
    arguments = ["evaluate", "--recipe", "smoke/random_weights", "--exp-dir", "run", "--pretrained", path]
    fails_in_one_line(capsys, arguments, str(path), remedy)
    assert list(here.iterdir()) == []


# --- debug, spelling, help


def test_debug_shows_the_traceback(here):
    with pytest.raises(ValueError, match="batch_size"):
        main([*SMOKE, "--batch-size", "0", "--debug"])


def test_an_interruption_says_how_to_go_on(here, capsys, monkeypatch):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("sfrik.pretrain.pretrain", interrupted)
    assert main(SMOKE) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--sfrik-mmd-coeff", "--sfrik_mmd_coeff"])
def test_a_flag_is_written_with_hyphens_or_underscores(here, capsys, name):
    assert main([*SMOKE, name, "2.5", "--dry-run"]) == 0
    assert re.search(r"^sfrik_mmd_coeff +2\.5$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_a_flag_in_both_spellings(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in SECTIONS[command.replace("-", "_")].model_fields:
        assert re.search(rf"--{name}\b", text), name
        assert re.search(rf"--{name.replace('_', '-')}\b", text), name


# --- dry runs


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_prints_the_settings_and_touches_nothing(here, capsys, command):
    assert main([command, "--recipe", "smoke/sfrik_l2_q64", "--seed", "5", "--exp-dir", "run", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for name in SECTIONS[command.replace("-", "_")].model_fields:
        assert re.search(rf"^{name} ", captured.out, re.MULTILINE), name
    assert re.search(r"^seed +5$", captured.out, re.MULTILINE)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_needs_no_data(here, capsys, command):
    assert main([command, "--exp-dir", "run", "--data-dir", "nowhere", "--dry-run"]) == 0
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_still_refuses_a_mistake(here, capsys, command):
    fails_in_one_line(capsys, [command, "--exp-dir", "run", "--seed", "-1", "--dry-run"], "seed")


@pytest.mark.parametrize(
    ("flags", "an_epoch", "in_all"),
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
def test_a_dry_run_counts_the_steps(here, capsys, flags, an_epoch, in_all):
    assert main(["pretrain", "--exp-dir", "run", *flags, "--dry-run"]) == 0
    assert f"steps: {an_epoch} an epoch, {in_all} in all" in capsys.readouterr().out


def test_a_dry_run_names_the_memory_to_expect(here, capsys):
    assert main(["pretrain", "--exp-dir", "run", "--dry-run"]) == 0
    total, *parts = map(float, re.findall(r"(\d+\.\d+)", capsys.readouterr().out.split("memory of one process")[1]))
    assert total == pytest.approx(sum(parts), abs=0.02), "each of four numbers is rounded to 0.01"
    # weight, gradient and momentum, 4 bytes each, of 11.2 M parameters in the ResNet-18 and 138 M in the projector: 1.67 GiB
    assert parts[0] == pytest.approx(1.67, abs=0.05)


# --- a process of its own


def test_a_process_of_its_own_ends_with_status_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "sfrik", *SMOKE, "--epoch", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "did you mean --epochs?" in done.stderr
    assert list(tmp_path.iterdir()) == []
