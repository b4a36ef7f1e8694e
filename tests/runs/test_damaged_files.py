"""Damaged, empty or exchanged files of a run are written again, skipped with a warning, or refused; they are never scored."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfrik.errors import SfrikError
from sfrik.evaluate import evaluate, knn_eval
from sfrik.pretrain.loop import pretrain
from sfrik.runs import cached
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, KnnSettings, PretrainSettings
from sfrik.system.files import atomic_write, file_hash, read_json, write_json
from sfrik.system.records import VERSION
from sfrik.system.tensor_files import read_pickle

RECIPE = "smoke/sfrik_l2_q64"
SMALL = {"subset": 2, "device": "cpu", "precision": "fp32"}
TRAINING = {**SMALL, "batch_size": 10, "epochs": 3, "log_every": 1, "knn_every": 0}


def train(folder: Path, **overrides) -> dict:
    settings = PretrainSettings.from_recipe(RECIPE, **{**TRAINING, **overrides}, exp_dir=str(folder))
    return pretrain(settings, progress=False)


def score_linear(folder: Path, **overrides) -> dict:
    settings = EvaluateSettings.from_recipe(RECIPE, **SMALL, epochs=1, exp_dir=str(folder), **overrides)
    return evaluate(settings, progress=False)


def score_knn(folder: Path, **overrides) -> dict:
    return knn_eval(KnnSettings.from_recipe(RECIPE, **SMALL, nb_knn=(5,), exp_dir=str(folder), **overrides))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train(folder)
    score_linear(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that stopped after its second epoch."""
    folder = tmp_path_factory.mktemp("run") / "stopped"
    save = Checkpoints.save

    def stop(self, state) -> None:
        save(self, state)
        if state["place"]["epoch"] == 2:
            raise RuntimeError("pulled the plug")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            train(folder)
    return folder


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def unfinished(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


# --- weights


@pytest.mark.parametrize("content", [b"", bytes(1_000_000), "cut"])
def test_weights_that_cannot_be_opened_are_renamed_and_trained_again(finished, whole, content, capsys):
    weights = finished / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000] if content == "cut" else content)
    with pytest.raises(SfrikError, match="not a complete safetensors file"):
        score_knn(finished)
    train(finished)
    assert "backbone.safetensors is broken" in capsys.readouterr().err
    assert weights.read_bytes() == (whole / "backbone.safetensors").read_bytes()
    assert (finished / "backbone.broken").exists()
    assert Run(finished).result("linear") is not None, "the score is still valid for the same weights"


@pytest.mark.parametrize("name", ["backbone.safetensors", "projector.safetensors"])
def test_weights_with_a_flipped_bit_are_refused(finished, name):
    flip_a_bit(finished / name)
    with pytest.raises(SfrikError, match=rf"{name} is not the file that was trained: its SHA-256 .*provenance\.json"):
        train(finished)
    assert not list(finished.glob("*.broken"))


def test_evaluations_refuse_weights_with_a_flipped_bit(finished, tmp_path):
    flip_a_bit(finished / "backbone.safetensors")
    for score in (score_linear, score_knn):
        with pytest.raises(SfrikError, match="is not the file that was trained"):
            score(finished, seed=5)
        with pytest.raises(SfrikError, match="is not the file that was trained"):
            score(tmp_path / "elsewhere", pretrained=str(finished / "backbone.safetensors"))


@pytest.mark.parametrize("name", ["backbone.safetensors", "settings.json", "linear.json", "provenance.json"])
def test_an_unreadable_file_is_an_error_and_no_file_is_changed(finished, name, monkeypatch):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    real = (io.open, os.open)

    def unreadable(function):
        def call(path, *arguments, **keywords):
            if isinstance(path, str | os.PathLike) and os.path.basename(path) == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", unreadable(real[0]))
        patch.setattr("builtins.open", unreadable(real[0]))
        cached._checked_header.cache_clear()
        cached._read_provenance.cache_clear()
        for work in (train, score_linear):
            if (work, name) not in ((train, "linear.json"), (score_linear, "settings.json")):
                with pytest.raises((SfrikError, OSError), match=rf"{name}|Permission denied"):
                    work(finished)
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_broken_provenance_file_does_not_change_the_score(finished):
    before = (finished / "linear.json").read_bytes()
    (finished / "provenance.json").write_text("", encoding="utf-8")
    with pytest.raises(SfrikError, match=r"provenance\.json is not valid JSON"):
        score_linear(finished)
    assert (finished / "linear.json").read_bytes() == before
    assert not list(finished.glob("*.broken"))


@pytest.mark.parametrize("name", ["backbone.safetensors", "checkpoint.pt", "state.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_refused_before_training(tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(SfrikError, match=rf"{name} is a folder, but the run writes a file of that name"):
        train(tmp_path / "run")


def test_a_score_is_invalid_after_other_weights_with_an_old_modification_time_are_copied_here(finished, tmp_path):
    train(tmp_path / "other", seed=1)
    os.utime(tmp_path / "other" / "backbone.safetensors", (1, 1))
    shutil.copy2(tmp_path / "other" / "backbone.safetensors", finished / "backbone.safetensors")
    assert Run(finished).result("linear") is None


def test_two_processes_that_extract_into_one_folder_extract_once(finished, tmp_path):
    script = (
        "import sys\nfrom sfrik.evaluate import features\nfrom sfrik.settings import FeatureSettings\n"
        "real = features._extract\n"
        "def report(*a):\n    print('extracting', flush=True)\n    real(*a)\n"
        "features._extract = report\n"
        f"features.extract_features(FeatureSettings.from_recipe({RECIPE!r}, exp_dir=sys.argv[1], **{SMALL!r}))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(finished)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("extracting") for text in outputs) == 1


def test_truncated_features_are_extracted_again(finished):
    top1 = score_knn(finished)["top1_at"]
    path = finished / "features" / "val_features.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    (finished / "knn.json").unlink()
    assert score_knn(finished)["top1_at"] == top1


def test_a_head_with_a_flipped_bit_is_refused(finished):
    assert score_linear(finished, only_inference=True)["head_sha256"] == read_json(finished / "linear.json")["head_sha256"]
    (finished / "linear_inference.json").unlink()
    flip_a_bit(finished / "head_linear.safetensors")
    with pytest.raises(SfrikError, match=r"head_linear\.safetensors is not the head whose score is in .*linear\.json"):
        score_linear(finished, only_inference=True)


def test_checkpoints_are_kept_until_the_weights_are_verified_by_reading_them_back(unfinished, monkeypatch):
    def wrong_hash(path):
        return "0" * 64 if Path(path).name == "backbone.safetensors" else file_hash(path)

    with monkeypatch.context() as patch:
        patch.setattr("sfrik.system.tensor_files.file_hash", wrong_hash)
        with pytest.raises(SfrikError, match="reads back different bytes than were written"):
            train(unfinished)
    assert Run(unfinished).checkpoints.exist
    assert not Run(unfinished).finished
    train(unfinished)
    assert Run(unfinished).finished
    assert not Run(unfinished).checkpoints.exist


# --- settings and checkpoints


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"hash": "0"}', '{"hash": 3, "settings": {}}', "\udc80", None])
def test_a_broken_settings_file_is_written_again(unfinished, whole, content, capsys):
    path = unfinished / "settings.json"
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    train(unfinished)
    assert path.read_bytes() == before
    assert (unfinished / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
    assert ("settings.json is broken" in capsys.readouterr().err) == (content is not None)


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("again", [1, 2])
def test_another_seed_does_not_resume_a_checkpoint_without_settings_file(unfinished, content, again):
    path = unfinished / "settings.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    for _ in range(again):
        with pytest.raises(SfrikError, match=r"unfinished run with other settings .*seed 0 -> 1"):
            train(unfinished, seed=1)
    train(unfinished)


def test_another_seed_does_not_use_finished_weights_without_settings_file(finished):
    (finished / "settings.json").unlink()
    with pytest.raises(SfrikError, match=r"a run with other settings .*hash"):
        train(finished, seed=1)
    train(finished)
    assert read_json(finished / "settings.json")["settings"]["seed"] == 0


def test_a_checkpoint_of_another_run_is_refused_even_if_the_settings_file_matches(unfinished, tmp_path):
    train(tmp_path / "other", seed=1, epochs=1)
    state = Run(unfinished).checkpoints.load()
    Run(unfinished).checkpoints.save({**state, "settings": {**state["settings"], "seed": 7}})
    with pytest.raises(SfrikError, match=r"checkpoint\.pt is of a run with other settings \(seed 7 -> 0\)"):
        train(unfinished)


@pytest.mark.parametrize("missing", ["version", "settings", "model", "optimizer", "scaler", "place", "processes", "random"])
def test_a_checkpoint_without_a_key_is_refused_in_one_line(unfinished, missing):
    state = Run(unfinished).checkpoints.load()
    del state[missing]
    Run(unfinished).checkpoints.save(state)
    with pytest.raises(SfrikError, match=rf'checkpoint\.pt has no key "{missing}"') as error:
        train(unfinished)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", VERSION + 1),
        ("place", {"epoch": 1}),
        ("place", {"epoch": "one", "step": 0, "seconds": 0.0, "broken": []}),
        ("model", {"backbone.conv1.weight": torch.zeros(2)}),
        ("model", [1, 2]),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("random", [{"torch": "AAAA", "cuda": None, "numpy": [], "python": []}]),
        ("random", []),
        ("processes", "many"),
    ],
)
def test_a_checkpoint_with_a_wrong_part_is_refused_in_one_line(unfinished, key, value):
    Run(unfinished).checkpoints.save({**Run(unfinished).checkpoints.load(), key: value})
    with pytest.raises(SfrikError, match=r"checkpoint\.pt") as error:
        train(unfinished)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [torch.zeros(3), [1], "text"])
def test_a_file_that_is_not_a_checkpoint_is_replaced_by_the_previous_checkpoint(unfinished, whole, content, capsys):
    with atomic_write(unfinished / "checkpoint.pt") as file:
        torch.save(content, file)
    train(unfinished)
    assert "instead of a checkpoint); renamed to checkpoint.broken" in capsys.readouterr().err
    assert (unfinished / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()


# --- the log


@pytest.mark.parametrize(
    "line", ["{", "[1]", "3", "null", '{"step": 2}', '{"epoch": "one"}', '{"epoch": 1, "step": null}', "\udcff\udcfe", "[" * 5000]
)
def test_a_broken_line_within_the_log_is_skipped_with_a_warning_and_the_others_are_kept(unfinished, whole, line, capsys):
    path = unfinished / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line.encode(errors="surrogateescape"), *lines[3:]]) + b"\n")
    train(unfinished)
    warning = capsys.readouterr().err
    assert f"{path}: line 3" in warning
    assert "skipped" in warning

    def without_seconds(folder):
        return [{name: value for name, value in found.items() if name != "seconds"} for found in Run(folder).metrics()]

    expected = without_seconds(whole)
    assert without_seconds(unfinished) == expected[:2] + expected[3:]


def test_a_truncated_last_line_of_the_log_is_skipped_silently(unfinished, capsys):
    with (unfinished / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "ste')
    assert len(Run(unfinished).metrics()) == len((unfinished / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) - 1
    assert not capsys.readouterr().err


# --- scores and the rest


@pytest.mark.parametrize("content", ["", "[]", "{", '{"top1": 3}', '{"protocol": "linear", "top1": "high"}', "\udc80"])
def test_a_broken_score_is_renamed_and_measured_again(finished, whole, content, capsys):
    path = finished / "linear.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert score_linear(finished)["top1"] == read_json(whole / "linear.json")["top1"]
    assert "linear.json is broken" in capsys.readouterr().err
    assert json.loads(path.read_text(encoding="utf-8"))["version"] == VERSION


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"weights": 3}', '{"weights": {"backbone.safetensors": 3}}', '{"version": 9}']
)
def test_a_broken_provenance_file_is_an_error_that_names_it(finished, content):
    (finished / "provenance.json").write_text(content, encoding="utf-8")
    for work in (train, score_knn):
        with pytest.raises(SfrikError, match=r"provenance\.json") as error:
            work(finished)
        assert "\n" not in str(error.value)


def test_an_invalid_state_file_counts_as_missing(unfinished):
    for content in ("", "[]", '{"state": "flying"}'):
        (unfinished / "state.json").write_text(content, encoding="utf-8")
        assert Run(unfinished).state() is None


def test_a_new_training_replaces_the_provenance_of_an_earlier_one(finished):
    Run(finished).record(resumed=[{"step": 3}])
    for path in finished.glob("*.safetensors"):
        path.unlink()
    train(finished)
    assert "resumed" not in read_json(finished / "provenance.json")


# --- pickles


@pytest.mark.parametrize("old_format", [False, True])
def test_pickles_are_loaded_without_running_code_and_errors_do_not_recommend_unsafe_loading(tmp_path, old_format):
    path = tmp_path / "x.pth"
    torch.save({"args": argparse.Namespace(a=1)}, path, _use_new_zipfile_serialization=not old_format)
    assert read_pickle(path)["args"].a == 1
    for content in ({"model": print}, {"model": Path("x")}, {"model": torch.nn.Linear(2, 2)}, {"model": argparse.ArgumentParser}):
        torch.save(content, path, _use_new_zipfile_serialization=not old_format)
        with pytest.raises(SfrikError, match="holds Python objects besides tensors") as error:
            read_pickle(path)
        assert "weights_only" not in str(error.value)
        assert "\n" not in str(error.value)
    for content in (b"", b"PK\x03\x04", b"\x80\x02.", b"garbage" * 40):
        path.write_bytes(content)
        with pytest.raises(SfrikError, match="is not a complete PyTorch weights file") as error:
            read_pickle(path)
        assert "weights_only" not in str(error.value)


def test_types_allowed_in_a_pickle_are_allowed_only_while_it_is_read(tmp_path):
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "x.pth")
    read_pickle(tmp_path / "x.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


# --- writing


def test_temporary_files_of_dead_processes_are_deleted_and_those_of_living_ones_are_kept(tmp_path):
    host = re.sub(r"\W", "_", socket.gethostname())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {pid: f".score.json.{host}-{pid}-0123abcd.tmp" for pid in (ended.pid, os.getpid())}
    others = [f".score.json.elsewhere-{ended.pid}-0123abcd.tmp", ".mine.tmp", "notes.tmp"]
    for name in (*names.values(), *others):
        (tmp_path / name).touch()
    write_json(tmp_path / "score.json", {})
    assert not (tmp_path / names[ended.pid]).exists()
    assert all((tmp_path / name).exists() for name in (names[os.getpid()], *others))
    os.utime(tmp_path / others[0], (1, 1))  # older than a day
    write_json(tmp_path / "score.json", {})
    assert not (tmp_path / others[0]).exists()


def test_the_umask_sets_the_mode_of_all_files(tmp_path):
    before = os.umask(0o027)
    try:
        train(tmp_path / "run", epochs=0)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "run").iterdir()} == {"0o640"}
