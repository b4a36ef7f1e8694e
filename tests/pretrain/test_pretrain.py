"""Pretraining: the run's folder, rerun and resume, baselines, errors, two processes, multi-crop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from toys import write_photos

from sfrik.datasets.images import load_images
from sfrik.errors import SfrikError
from sfrik.networks import build_backbone, build_encoder, save_weights
from sfrik.objectives import AUH, SFRIK, SimCLR, VICReg
from sfrik.objectives.factory import build_objective
from sfrik.pretrain import loop as module
from sfrik.pretrain.loop import pretrain
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings, recipe_names
from sfrik.system.files import file_hash, read_json

ROOT = Path(__file__).parents[2]


def settings(folder, recipe="smoke/sfrik_l2_q64", **overrides):
    """A smoke recipe in float32 on the CPU, where runs are reproducible to the bit, with the values that the tests assume."""
    fixed = {"batch_size": 64, "subset": 30, "epochs": 2, "base_lr": 10.0, "sfrik_sim_coeff": 32.0, "sfrik_mmd_coeff": 1.0}
    defaults = {"exp_dir": str(folder), "device": "cpu", "precision": "fp32", **fixed}
    return PretrainSettings.from_recipe(recipe, **{**defaults, **overrides})


def weights(folder):
    return load_file(Run(folder).backbone)


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of two epochs, and the return value of `pretrain`."""
    folder = tmp_path_factory.mktemp("pretrain") / "whole"
    return folder, pretrain(settings(folder), progress=False)


def without_seconds(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


# --- the folder


def test_a_finished_run_has_weights_and_provenance_and_no_checkpoint(whole):
    folder, _ = whole
    assert {path.name for path in folder.iterdir()} - {"lock"} == {
        "settings.json",
        "provenance.json",
        "metrics.jsonl",
        "projector.safetensors",
        "backbone.safetensors",
    }
    facts = read_json(folder / "provenance.json")
    assert facts["started"] <= facts["finished"]
    assert facts["hardware"]["processes"] == 1
    with safe_open(Run(folder).backbone, "pt") as file:
        about = json.loads(file.metadata()["about"])
        assert about == {"arch": "resnet8", "stem": "patch", "settings": settings(folder).hash()}


def test_backbone_and_projector_of_a_finished_run_load_into_the_encoder(whole):
    folder, _ = whole
    encoder = build_encoder(settings(folder), channels=1)
    encoder.backbone.load_state_dict(load_file(Run(folder).backbone))
    encoder.projector.load_state_dict(load_file(Run(folder).projector))
    (z,) = encoder.eval()([torch.zeros(2, 1, 28, 28)])
    assert z.shape == (2, 64)


def test_the_metrics_have_every_step_and_the_diagnostics_of_every_epoch(whole):
    folder, last = whole
    lines = Run(folder).metrics()
    steps = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "effective_rank" in line]
    assert [line["step"] for line in steps] == list(range(8)), "300 images in batches of 64, two epochs"
    assert [line["epoch"] for line in epochs] == [0, 1]
    for line in steps:
        # the loss is the weighted sum of its terms; each is logged as float32
        assert line["loss"] == pytest.approx(32 * line["alignment"] + line["mmd"], rel=1e-5)
        assert line["excess"] == pytest.approx(line["mmd"] - 41 / 64, rel=1e-5), "b_1 + b_2, and 64 images"
        assert line["relative_excess"] == pytest.approx(line["excess"] / (41 - 41 / 64), rel=1e-5)
    assert {"alignment", "uniformity", "effective_rank", "knn", "loss", "excess", "seconds"} <= epochs[1].keys()
    assert epochs[1]["relative_excess"] == steps[-1]["relative_excess"]
    assert last == epochs[1]


def test_the_learning_rate_warms_up_from_zero_and_then_decays(whole):
    rates = [line["lr"] for line in Run(whole[0]).metrics() if "step" in line]
    # peak 10 * 64 / 256 = 2.5 after one epoch of four steps
    assert rates[:5] == pytest.approx([0, 0.625, 1.25, 1.875, 2.5])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_training_changes_the_weights(whole, tmp_path):
    pretrain(settings(tmp_path, ssl_method="none"), progress=False)
    assert not same_bits(weights(whole[0]), weights(tmp_path))


# --- rerun and resume


def test_a_rerun_trains_nothing_and_returns_the_last_epoch(whole, monkeypatch):
    folder, last = whole

    def train(*arguments):
        pytest.fail("a finished run was trained again")

    monkeypatch.setattr(module, "_Training", train)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert pretrain(settings(folder), progress=False) == last
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_rerun_with_other_settings_is_an_error_that_names_the_difference(whole):
    with pytest.raises(SfrikError, match=r"epochs 2 -> 3"):
        pretrain(settings(whole[0], epochs=3), progress=False)


def test_the_same_settings_give_the_same_weights_to_the_last_bit(whole, tmp_path):
    pretrain(settings(tmp_path), progress=False)
    assert same_bits(weights(tmp_path), weights(whole[0]))


def test_the_same_weights_give_the_same_file_so_that_scores_remain_valid(whole, tmp_path):
    backbone = build_backbone("resnet8", "patch", 1)
    backbone.load_state_dict(weights(whole[0]))
    for k in range(12):  # three metadata keys in random order would agree twelve times with probability below 6^-11
        save_weights(backbone, tmp_path / f"{k}.safetensors", arch="resnet8", stem="patch", settings=settings(whole[0]).hash())
    assert {file_hash(path) for path in tmp_path.iterdir()} == {file_hash(Run(whole[0]).backbone)}


def test_another_seed_gives_other_weights(whole, tmp_path):
    pretrain(settings(tmp_path, seed=1, epochs=2), progress=False)
    assert not same_bits(weights(tmp_path), weights(whole[0]))


def stop_after_first_epoch(monkeypatch):
    save = Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


def stop_in_second_epoch(monkeypatch):
    log = Run.log

    def log_or_stop(self, line):
        if line.get("step") == 6:
            raise KeyboardInterrupt
        log(self, line)

    monkeypatch.setattr(Run, "log", log_or_stop)


@pytest.mark.parametrize("stop", [stop_after_first_epoch, stop_in_second_epoch])
def test_a_resumed_run_gives_the_weights_of_the_uninterrupted_one(whole, tmp_path, capsys, stop):
    with pytest.MonkeyPatch.context() as patch:
        stop(patch)
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings(tmp_path), progress=False)
    assert not Run(tmp_path).backbone.exists()
    torch.manual_seed(123)  # the global state of the generators must not matter
    last = pretrain(settings(tmp_path))
    assert "resuming after epoch 1" in capsys.readouterr().out
    resumed = read_json(tmp_path / "provenance.json")["resumed"]
    assert [(record["step"], record["hardware"]["processes"]) for record in resumed] == [(4, 1)]
    assert same_bits(weights(tmp_path), weights(whole[0]))
    assert without_seconds(Run(tmp_path).metrics()) == without_seconds(Run(whole[0]).metrics())
    assert without_seconds([last]) == without_seconds([whole[1]])
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.mark.parametrize(
    "views",
    [
        {"augmentations": "cifar", "min_crop_scale": 0.2},
        {"augmentations": "obow", "num_img_crops": 1, "image_crop_size": 20, "num_img_patches": 2, "img_patch_size": 12},
        {"augmentations": "cifar", "input_pipeline": "pil"},
    ],
    ids=["cifar", "obow", "pil"],
)
def test_a_run_on_photos_in_memory_resumes_within_an_epoch_to_the_same_weights(tmp_path, monkeypatch, views):
    write_photos(tmp_path / "photos", per_class=6)
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path))

    def photos(folder, workers=0):
        given = {"data_dir": str(tmp_path / "photos"), "arch": "resnet8", "mlp": "64-16", "batch_size": 12, "subset": 6}
        fixed = {"checkpoint_minutes": 1e-9, "log_every": 1, "workers": workers}
        return settings(tmp_path / folder, "cifar10/sfrik_l3_q2048", **given, **fixed, **views)

    pretrain(photos("whole"), progress=False)
    with pytest.MonkeyPatch.context() as patch:
        stop_in_second_epoch(patch)
        with pytest.raises(KeyboardInterrupt):
            pretrain(photos("resumed"), progress=False)
    torch.manual_seed(123)
    pretrain(photos("resumed", workers=2), progress=False)
    resumed = read_json(tmp_path / "resumed" / "provenance.json")["resumed"]
    assert [record["step"] for record in resumed] == [6], "within the second epoch of five steps"
    assert same_bits(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    assert without_seconds(Run(tmp_path / "resumed").metrics()) == without_seconds(Run(tmp_path / "whole").metrics())


def test_an_unfinished_run_is_not_resumed_with_other_settings(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_after_first_epoch(patch)
        with pytest.raises(KeyboardInterrupt):
            pretrain(settings(tmp_path), progress=False)
    with pytest.raises(SfrikError, match=r"unfinished run with other settings \(base_lr 10\.0 -> 5\.0\)"):
        pretrain(settings(tmp_path, base_lr=5.0), progress=False)


@pytest.mark.parametrize("overrides", [{}, {"base_lr": 5.0}])
def test_a_second_process_is_refused_and_does_not_change_the_files_of_the_first(tmp_path, overrides):
    run = Run(tmp_path)
    run.start(settings(tmp_path))
    run.log({"epoch": 0, "loss": 1.0})
    before = {name: (tmp_path / name).read_text(encoding="utf-8") for name in ("settings.json", "metrics.jsonl")}
    with run.lock(), pytest.raises(SfrikError):
        pretrain(settings(tmp_path, **overrides), progress=False)
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in before if (tmp_path / name).exists()} == before


# --- baselines and objectives


def test_the_method_none_writes_the_initial_weights(tmp_path):
    assert pretrain(settings(tmp_path / "none", "smoke/random_weights"), progress=False) == {}
    assert pretrain(settings(tmp_path / "zero", epochs=0), progress=False) == {}
    assert same_bits(weights(tmp_path / "none"), weights(tmp_path / "zero"))
    assert Run(tmp_path / "none").metrics() == []
    assert read_json(tmp_path / "none" / "provenance.json")["finished"]
    assert pretrain(settings(tmp_path / "none", "smoke/random_weights"), progress=False) == {}


def test_pixels_have_an_empty_weights_file_and_cannot_be_trained(tmp_path):
    pretrain(settings(tmp_path / "pixels", "smoke/raw_pixels"), progress=False)
    assert weights(tmp_path / "pixels") == {}
    with pytest.raises(SfrikError, match="ssl_method none"):
        pretrain(settings(tmp_path / "other", arch="pixels"), progress=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("method", "kind"), [("sfrik", SFRIK), ("auh", AUH), ("simclr", SimCLR), ("vicreg", VICReg)])
def test_the_settings_choose_the_objective(tmp_path, method, kind):
    assert isinstance(build_objective(settings(tmp_path, ssl_method=method)), kind)


@pytest.mark.parametrize("name", [f"smoke/{name}" for name in ("auh_q64", "simclr_q64", "vicreg_q64", "sfrik_l3_q64")])
def test_every_method_trains_an_epoch_with_a_finite_loss(tmp_path, name):
    assert name in recipe_names("smoke")
    last = pretrain(settings(tmp_path, name, epochs=1, knn_every=0), progress=False)
    assert abs(last["loss"]) < float("inf")
    assert Run(tmp_path).backbone.is_file()


# --- errors


def test_a_loss_that_is_not_finite_is_an_error_that_names_epoch_step_and_images(tmp_path):
    with pytest.raises(ValueError, match=r"epoch 0, step [1-3]: .*MNIST5k image \d+") as error:
        pretrain(settings(tmp_path, base_lr=1e38), progress=False)
    images = load_images("mnist5k", "pretrain", subset=30)
    known = {images.name(i) for i in range(len(images))}
    named = [name for name in str(error.value).split("images of these rows: ")[1].split(", ") if name != "..."]
    assert named
    assert set(named) <= known
    assert not Run(tmp_path).backbone.exists()


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    forward, calls = SFRIK.forward, []

    def fails_at_sixth(self, views, *arguments, **keywords):
        calls.append(len(views))
        return forward(self, [view * float("nan") for view in views] if len(calls) == 6 else views)

    monkeypatch.setattr(SFRIK, "forward", fails_at_sixth)
    with pytest.raises(ValueError, match=r"epoch 1, step 1: .*view 0 holds NaN"):
        pretrain(settings(tmp_path), progress=False)
    assert Run(tmp_path).state()["state"] == "failed"
    assert "view 0 holds NaN" in Run(tmp_path).state()["error"]
    assert Run(tmp_path).checkpoints.load()["place"]["epoch"] == 1


def test_a_batch_larger_than_the_data_set_is_refused_before_the_folder_is_created(tmp_path):
    with pytest.raises(SfrikError, match=r"batch_size 301 is larger than the data set of 300 images"):
        pretrain(settings(tmp_path / "run", batch_size=301), progress=False)
    assert not (tmp_path / "run").exists()


# --- two processes


def test_two_processes_of_torchrun_train_on_cpu_and_print_how_batch_norm_works(tmp_path):
    flags = ["--recipe", "smoke/sfrik_l2_q64", "--exp-dir", "run", "--device", "cpu", "--precision", "fp32", "--epochs", "1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sfrik", "pretrain"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *flags], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("BatchNorm on CPU: each process normalises its own shard") == 1
    assert done.stdout.count("epoch 1/1") == 1
    run = Run(tmp_path / "run")
    assert [line["step"] for line in run.metrics() if "step" in line] == [0, 1, 2, 3]
    assert read_json(run.folder / "provenance.json")["hardware"]["processes"] == 2
    assert weights(run.folder)


# --- multi-crop


class ShapeRecorder(torch.nn.Module):
    """Returns the mean of each image and records the shapes of its inputs."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return images.mean(dim=(2, 3))


def test_multi_crop_embeds_views_of_one_size_together_and_returns_them_in_order():
    views = [torch.full((4, 1, size, size), float(index)) for index, size in enumerate((12, 8, 12, 8, 8))]
    backbone = ShapeRecorder()
    embeddings = module.Encoder(backbone, torch.nn.Identity(), by_size=True)(views)
    assert backbone.shapes == [(8, 1, 12, 12), (12, 1, 8, 8)]
    assert [embedding.unique().tolist() for embedding in embeddings] == [[0.0], [1.0], [2.0], [3.0], [4.0]]
    backbone.shapes.clear()
    module.Encoder(backbone, torch.nn.Identity())(views[1:2] + views[3:4])
    assert backbone.shapes == [(4, 1, 8, 8), (4, 1, 8, 8)], "without by_size the views are embedded one by one"


@pytest.mark.parametrize(
    ("recipe", "anchors", "regularise"),
    [
        ("smoke/sfrik_l3_q64_obow", (0,), "all"),
        ("smoke/sfrik_l3_q64_swav", (0, 1), "anchors"),
        ("smoke/sfrik_l3_q64", (0, 1), "all"),
    ],
)
def test_the_objective_gets_the_anchors_the_regularised_views_and_the_step(recipe, anchors, regularise, tmp_path, monkeypatch):
    seen, steps = [], []

    class Recorder(SFRIK):
        def forward(self, views, *, anchors, regularise, step):
            seen.append((len(views), tuple(anchors), regularise))
            steps.append(step)
            return super().forward(views, anchors=anchors, regularise=regularise, step=step)

    monkeypatch.setattr("sfrik.objectives.factory.SFRIK", Recorder)
    chosen = settings(tmp_path / "run", recipe, epochs=2, subset=7)
    pretrain(chosen, progress=False)
    assert steps == list(range(len(steps))), "a resumed run draws the random directions of the whole run"
    assert set(seen) == {(len(chosen.view_sizes), anchors, regularise)}


@pytest.mark.parametrize("method", ["auh", "simclr", "vicreg"])
def test_the_other_methods_train_on_multi_crop_too(method, tmp_path):
    chosen = settings(tmp_path / "run", "smoke/sfrik_l3_q64_swav", ssl_method=method, epochs=1, subset=7, base_lr=1.0)
    line = pretrain(chosen, progress=False)
    assert line["effective_rank"] > 1
    assert Run(tmp_path / "run").backbone.is_file()
