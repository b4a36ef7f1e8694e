"""Every command of the authors' README works with the same flags and is on the page docs/original_commands.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sfrik.cli.flags import resolve_settings
from sfrik.cli.main import build_parser, main
from sfrik.cli.plan import format_value
from sfrik.settings import EvaluateSettings, FeatureSettings, PretrainSettings

ROOT = Path(__file__).parents[2]

# The flags of the original commands, in their order and spelling (github.com/valeoai/sfrik, README.md).
IN20 = '--dataset ImageNet --subset 260 --data-dir $IMAGENET_PATH --size 224 --augmentations "VICReg" --arch "resnet18"'
IN20 += " --mlp 8192-8192-8192 --epochs 100 --batch-size 2048"
SFRIK = '--ssl-method "SFRIK" --sfrik-sim-coeff 4000.0 --sfrik-mmd-coeff 1.0 --sfrik-weights 1.0-40.0-40.0'
CROPS = "--dataset ImageNet --subset 260 --data-dir $IMAGENET_PATH"
AFTER_CROPS = f'--arch "resnet18" --mlp 8192-8192-8192 --epochs 100 --batch-size 2048 --base-lr 1.2 {SFRIK}'
LINEAR = '--data-dir $IMAGENET_PATH --train-percent 100 --val-dataset "val" --pretrained $BACKBONE_PATH --arch "resnet50"'
LINEAR += ' --epochs 100 --batch-size 256 --weight-decay 0.000001 --lr-head 0.4 --weights "freeze"'
SEMI = '--val-dataset "val" --pretrained $BACKBONE_PATH --arch "resnet50" --epochs 20 --batch-size 256 --weight-decay 0.0'

# name -> our command, the original flags, the recipe with the same settings
ORIGINALS = {
    "imagenet": (
        "pretrain",
        '--dataset ImageNet --data-dir $IMAGENET_PATH --size 224 --augmentations "VICReg" --arch "resnet50" --mlp 8192-8192-32768'
        ' --epochs 200 --batch-size 2048 --base-lr 0.4 --ssl-method "SFRIK" --sfrik-sim-coeff 40000.0 --sfrik-mmd-coeff 1.0'
        " --sfrik-weights 1.0-40.0-40.0",
        "paper/in1k_r50_sfrik_l3_q32768",
    ),
    "stl10": (
        "pretrain",
        '--dataset STL10 --data-dir $STL10_PATH --size 64 --augmentations "AUH" --arch "resnet18" --mlp 8192-8192-8192'
        f" --epochs 100 --batch-size 2048 --base-lr 1.2 {SFRIK}",
        "paper/stl10_sfrik_l3_q8192",
    ),
    "in20_sfrik": ("pretrain", f"{IN20} --base-lr 1.2 {SFRIK}", "paper/in20_sfrik_l3_q8192"),
    "in20_simclr": ("pretrain", f'{IN20} --base-lr 0.8 --ssl-method "SimCLR" --simclr-temp 0.15', "paper/in20_simclr_q8192"),
    "in20_auh": (
        "pretrain",
        f'{IN20} --base-lr 1.0 --ssl-method "AUH" --auh-sim-coeff 3000.0 --auh-unif-coeff 1.0 --auh-scale 2.5',
        "paper/in20_auh_q8192",
    ),
    "in20_vicreg": (
        "pretrain",
        f'{IN20} --base-lr 0.7 --ssl-method "VICReg" --vicreg-sim-coeff 10.0 --vicreg-std-coeff 10.0 --vicreg-cov-coeff 1.0',
        "paper/in20_vicreg_q8192",
    ),
    "obow": (
        "pretrain",
        f'{CROPS} --augmentations "OBoW" --num_img_crops 2 --image_crop_size 160 --num_img_patches 5 --img_patch_size 96'
        f' --reg_small "True" {AFTER_CROPS}',
        "paper/in20_sfrik_l3_q8192_obow",
    ),
    "swav": (
        "pretrain",
        f'{CROPS} --augmentations "SwAV" --nmb_crops 2 6 --size_crops 224 96 --min_scale_crops 0.14 0.05'
        f' --max_scale_crops 1.0 0.14 --general_indices 0 1 --reg_small "False" {AFTER_CROPS}',
        "paper/in20_sfrik_l3_q8192_swav",
    ),
    "linear": ("evaluate", LINEAR, "paper/in1k_r50_sfrik_l3_q32768"),
    "linear_in20": ("evaluate", f"{LINEAR} --subset 260", None),
    "semi1": (
        "evaluate",
        f'--data-dir $IMAGENET_PATH --train-percent 1 {SEMI} --lr-backbone 0.004 --lr-head 1.0 --weights "finetune"',
        "paper/in1k_r50_sfrik_l3_q32768",
    ),
    "semi10": (
        "evaluate",
        f'--data-dir $IMAGENET_PATH --train-percent 10 {SEMI} --lr-backbone 0.02 --lr-head 0.1 --weights "finetune"',
        "paper/in1k_r50_sfrik_l3_q32768",
    ),
    "extract": (
        "extract-features",
        '--dataset ImageNet --val-dataset "val" --data-dir $IMAGENET_PATH --exp-dir $EXTRACTION_DIR --arch "resnet50"'
        " --pretrained $BACKBONE_PATH",
        "paper/in1k_r50_sfrik_l3_q32768",
    ),
    "knn": (
        "knn-eval",
        "--dataset ImageNet --extraction-dir $EXTRACTION_DIR --nb_knn 10 20 100 200 --temperature 0.07",
        None,
    ),
    "logistic": (
        "logistic-regression",
        "--dataset ImageNet --extraction-dir $EXTRACTION_DIR --epochs 100 --batch-size 256 --weight-decay 0.000001 --lr-head 0.4",
        None,
    ),
    "tuning": (
        "evaluate",
        '--data-dir $IMAGENET_PATH --subset 260 --train-percent 100 --val-dataset "train" --val-subset 260'
        ' --pretrained $BACKBONE_PATH --arch "resnet18" --epochs 100 --batch-size 256 --weight-decay 0.000001 --lr-head 0.4'
        ' --weights "freeze"',
        None,
    ),
    "inference": (
        "evaluate",
        '--data-dir $IMAGENET_PATH --subset 260 --train-percent 100 --val-dataset "val" --only-inference'
        ' --pretrained $BACKBONE_PATH --ckp-path $CHECKPOINT_PATH --arch "resnet18"',
        None,
    ),
}

# Resolved settings that the original commands imply, or write differently.
MEANING = {
    "imagenet": {"dataset": "imagenet", "augmentations": "vicreg", "ssl_method": "sfrik", "dim": 32768, "exp_dir": "exp"},
    "stl10": {"dataset": "stl10", "augmentations": "auh", "size": 64, "exp_dir": "exp"},
    "in20_sfrik": {"subset": 260, "kernel_weights": [1.0, 40.0, 40.0], "sfrik_sim_coeff": 4000.0},
    "in20_simclr": {"ssl_method": "simclr", "simclr_temp": 0.15, "base_lr": 0.8},
    "in20_auh": {"ssl_method": "auh", "auh_sim_coeff": 3000.0, "auh_scale": 2.5},
    "in20_vicreg": {"ssl_method": "vicreg", "vicreg_std_coeff": 10.0, "vicreg_cov_coeff": 1.0},
    "obow": {"reg_small": True, "view_sizes": [224, 160, 160, 96, 96, 96, 96, 96], "anchors": (0,)},
    "swav": {"reg_small": False, "nmb_crops": (2, 6), "max_scale_crops": (1.0, 0.14), "anchors": (0, 1)},
    "linear": {"dataset": "imagenet", "protocol": "linear", "subset": None, "weight_decay": 1e-6, "exp_dir": "exp"},
    "linear_in20": {"protocol": "linear", "subset": 260},
    "semi1": {"protocol": "semi1", "lr_backbone": 0.004, "lr_head": 1.0, "weight_decay": 0.0},
    "semi10": {"protocol": "semi10", "lr_backbone": 0.02, "lr_head": 0.1, "weight_decay": 0.0},
    "extract": {"exp_dir": "$EXTRACTION_DIR", "extraction_dir": "$EXTRACTION_DIR", "arch": "resnet50"},
    "knn": {"exp_dir": "$EXTRACTION_DIR", "extraction_dir": "$EXTRACTION_DIR", "nb_knn": (10, 20, 100, 200)},
    "logistic": {"exp_dir": "$EXTRACTION_DIR", "solver": "sgd", "epochs": 100, "lr_head": 0.4, "weight_decay": 1e-6},
    "tuning": {"val_dataset": "train", "val_subset": 260, "subset": 260},
    "inference": {"only_inference": True, "val_dataset": "val", "ckp_path": "$CHECKPOINT_PATH", "pretrained": "$BACKBONE_PATH"},
}


def settings_of(arguments):
    return resolve_settings(build_parser().parse_args(arguments))


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_original_command_works_with_its_own_flags(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, flags, _ = ORIGINALS[name]
    assert main([command, *shlex.split(flags), "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    memory = (
        "features: there are none in $EXTRACTION_DIR yet" if command in ("knn-eval", "logistic-regression") else "\n  1 process "
    )
    assert memory in captured.out
    assert list(tmp_path.iterdir()) == []
    settings = settings_of([command, *shlex.split(flags)])
    for setting, value in MEANING[name].items():
        assert getattr(settings, setting) == value, setting
        if setting in settings.model_fields_set and value != type(settings).model_fields[setting].default:
            shown = re.escape(format_value(value))
            line = f"folder: {shown}$" if setting == "exp_dir" else rf"  {setting} +{shown} +\(default: "
            assert re.search(f"^{line}", captured.out, re.MULTILINE), setting


@pytest.mark.parametrize("name", [name for name, (_, _, recipe) in ORIGINALS.items() if recipe])
def test_a_recipe_has_the_settings_of_the_original_command(name):
    command, flags, recipe = ORIGINALS[name]
    from_flags = settings_of([command, *shlex.split(flags)])
    kind = {"pretrain": PretrainSettings, "evaluate": EvaluateSettings, "extract-features": FeatureSettings}[command]
    chosen = {"train_percent": 1} if name == "semi1" else {"train_percent": 10} if name == "semi10" else {}
    assert kind.from_recipe(recipe, **chosen).what() == from_flags.what()


# --- docs/original_commands.md


def commands_of_the_page():
    """The arguments after `-m sfrik` of each command on the page."""
    text = (ROOT / "docs" / "original_commands.md").read_text(encoding="utf-8")
    section = re.search(r"<!-- commands -->\n(.*?)<!-- /commands -->", text, re.DOTALL)
    assert section, "the page has no section between <!-- commands --> and <!-- /commands -->"
    lines = section.group(1).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("    ")]
    commands = [shlex.split(words[-1]) if words[0] == "sbatch" else words for words in commands]
    return [words[words.index("sfrik") + 1 :] for words in commands]


def test_the_page_has_every_original_command():
    shown = [(words[0], sorted(words[1:])) for words in commands_of_the_page()]
    for name, (command, flags, _) in ORIGINALS.items():
        assert (command, sorted(shlex.split(flags))) in shown, name


def test_every_command_of_the_page_works_with_dry_run(capsys, tmp_path, monkeypatch):
    commands = commands_of_the_page()
    monkeypatch.chdir(tmp_path)
    for words in commands:
        assert main([*words, "--dry-run"]) == 0, " ".join(words)
    assert list(tmp_path.iterdir()) == []
    assert len(commands) == len(ORIGINALS) + 1, "the original commands, and the one for SLURM"


def test_no_flag_of_the_page_is_read_as_the_value_of_another():
    """argparse would accept it silently."""
    for words in commands_of_the_page():
        settings = settings_of(words)
        flags = {word.lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
        assert flags - {"recipe", "nproc_per_node"} <= set(type(settings).model_fields)
