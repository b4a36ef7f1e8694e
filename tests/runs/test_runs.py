"""The folder of a run: settings, checkpoints, scores, locks, metrics and provenance."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sfrik.errors import SfrikError
from sfrik.networks import save_weights
from sfrik.runs.folder import Run
from sfrik.runs.provenance import provenance
from sfrik.settings import KnnSettings, PretrainSettings
from sfrik.system.files import WriteError, file_hash, read_json, write_json, write_text

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A run with the default settings, started but not trained."""
    run = Run(tmp_path / "run")
    run.start(PretrainSettings())
    return run


def changed(**values):
    return PretrainSettings.parse(values)


# --- settings


def test_a_run_writes_nothing_before_start(tmp_path):
    run = Run(tmp_path / "run")
    assert run.metrics() == []
    assert run.checkpoints.load() is None
    assert run.result("knn") is None
    assert not run.folder.exists()


def test_settings_are_written_with_their_hash_and_without_paths_and_devices(run):
    content = read_json(run.folder / "settings.json")
    assert content["hash"] == PretrainSettings().hash()
    assert content["settings"]["base_lr"] == 1.2
    assert not {"exp_dir", "data_dir", "workers", "device"} & content["settings"].keys()


@pytest.mark.parametrize("evidence", ["backbone.safetensors", "checkpoint.pt", "checkpoint.previous.pt"])
def test_other_settings_are_refused_with_a_message_that_lists_the_differences(run, evidence):
    if evidence == "backbone.safetensors":
        save_weights(nn.Linear(2, 2), run.backbone)
    else:
        torch.save({"epoch": 1}, run.folder / evidence)
    before = (run.folder / "settings.json").read_text(encoding="utf-8")
    with pytest.raises(SfrikError, match=r"base_lr 1\.2 -> 0\.4; epochs 100 -> 3.*--exp-dir"):
        run.start(changed(base_lr=0.4, epochs=3))
    assert (run.folder / "settings.json").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("evidence", ["backbone.safetensors", "checkpoint.pt"])
def test_the_same_settings_with_other_paths_and_devices_are_accepted(run, evidence):
    save_weights(nn.Linear(2, 2), run.folder / evidence)
    run.log({"epoch": 0})
    run.start(changed(workers=9, data_dir="elsewhere", device="cpu", exp_dir="there"))
    assert run.metrics() == [{"epoch": 0}]


def test_metrics_are_kept_if_a_crash_left_only_the_previous_checkpoint(run):
    torch.save({"epoch": 1}, run.folder / "checkpoint.previous.pt")
    run.log({"epoch": 0})
    run.start(PretrainSettings())
    assert run.metrics() == [{"epoch": 0}]


def test_a_published_run_without_weights_is_trained_again(run):
    run.log({"epoch": 0})
    run.start(changed(epochs=3))
    assert run.metrics() == []
    assert read_json(run.folder / "settings.json")["settings"]["epochs"] == 3


# --- checkpoints


def test_the_newest_checkpoint_is_loaded_and_the_one_before_is_kept(run):
    for epoch in (1, 2, 3):
        run.checkpoints.save({"epoch": epoch})
    assert run.checkpoints.load() == {"epoch": 3}
    assert torch.load(run.folder / "checkpoint.previous.pt", weights_only=True) == {"epoch": 2}
    assert sorted(path.name for path in run.folder.glob("checkpoint*")) == ["checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.parametrize("size", [0, 100, 400])
def test_a_truncated_checkpoint_is_replaced_by_the_previous_one(run, size, capsys):
    for epoch in (1, 2):
        run.checkpoints.save({"epoch": epoch, "model": {"weight": torch.ones(3)}})
    newest = run.folder / "checkpoint.pt"
    assert newest.stat().st_size > size
    newest.write_bytes(newest.read_bytes()[:size])
    assert run.checkpoints.load()["epoch"] == 1
    assert "checkpoint.pt is broken" in capsys.readouterr().err
    run.checkpoints.save({"epoch": 3})  # must not replace the previous checkpoint by the broken one
    assert torch.load(run.folder / "checkpoint.previous.pt", weights_only=True)["epoch"] == 1


def test_a_crash_between_the_two_renames_loses_nothing(run):
    run.checkpoints.save({"epoch": 1})
    (run.folder / "checkpoint.pt").replace(run.folder / "checkpoint.previous.pt")
    assert run.checkpoints.load() == {"epoch": 1}


def test_a_full_disk_is_an_error_that_names_the_space_and_keeps_the_checkpoint(run):
    run.checkpoints.save({"epoch": 1})
    large = {"epoch": 2, "model": {"weight": torch.zeros(2**20)}}  # 4 MiB
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # writing more is then an error, as on a full disk
    try:
        with pytest.raises(SfrikError, match=r"it needs 4 MiB and [\d.]+ [GM]iB are free.*checkpoint\.pt is kept"):
            run.checkpoints.save(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in run.folder.glob("checkpoint*")) == ["checkpoint.pt"]
    assert run.checkpoints.load() == {"epoch": 1}
    run.checkpoints.save(large)
    assert run.checkpoints.load()["epoch"] == 2


def test_a_flipped_bit_in_a_checkpoint_is_detected_by_its_checksum(run, capsys):
    for epoch in (1, 2):
        run.checkpoints.save({"epoch": epoch, "model": {"weight": torch.ones(1000)}})
    newest = run.folder / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    position = content.index(torch.ones(1000).numpy().tobytes()) + 1234
    content[position] ^= 4
    newest.write_bytes(content)
    assert torch.load(newest, weights_only=True)["epoch"] == 2, "torch.load does not check it"
    assert run.checkpoints.load()["epoch"] == 1
    assert "does not match its checksum" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_saved(run):
    run.checkpoints.save({"epoch": 1})
    with pytest.raises(SfrikError, match=r"model\.bias has NaN or infinite values: not saved"):
        run.checkpoints.save({"epoch": 2, "model": {"weight": torch.ones(3), "bias": torch.tensor([1.0, float("nan")])}})
    assert run.checkpoints.load() == {"epoch": 1}


def test_an_error_of_the_file_system_does_not_rename_the_checkpoint(run, monkeypatch):
    run.checkpoints.save({"epoch": 1})

    def unreachable(*arguments, **keywords):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", unreachable)
        with pytest.raises(OSError, match="Input/output error"):
            run.checkpoints.load()
    assert run.checkpoints.load() == {"epoch": 1}


def test_if_all_checkpoints_are_broken_loading_is_an_error(run, capsys):
    assert run.checkpoints.load() is None
    (run.folder / "checkpoint.pt").write_text("nothing", encoding="utf-8")
    with pytest.raises(SfrikError, match=r"no checkpoint in .* can be read \(.*checkpoint\.broken\); run again to start"):
        run.checkpoints.load()
    assert (run.folder / "checkpoint.broken").read_text(encoding="utf-8") == "nothing"
    assert run.checkpoints.load() is None
    run.checkpoints.delete()
    run.checkpoints.delete()


# --- status


def test_a_run_has_a_status_until_it_is_cleared(run):
    assert run.state() is None
    run.update_status("running", epoch=3)
    state = run.state()
    assert (state["state"], state["epoch"], state["pid"]) == ("running", 3, os.getpid())
    assert not run.is_locked()
    with run.lock():
        assert run.is_locked()
    run.clear_status()
    assert run.state() is None


# --- scores


def test_a_score_is_not_valid_beside_other_weights_than_those_it_was_measured_on(run):
    settings = KnnSettings()
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    digest = save_weights(first, run.backbone)
    saved = run.save_result("knn", settings, {"top1": 50.0}, digest)
    assert saved["backbone_sha256"] == hashlib.sha256(run.backbone.read_bytes()).hexdigest()
    assert run.result("knn", settings) == saved
    save_weights(second, run.backbone)
    assert run.result("knn", settings) is None
    save_weights(first, run.backbone)
    assert run.result("knn", settings) == saved
    run.backbone.unlink()
    assert run.result("knn", settings) == saved, "a score counts without its weights, too"


def test_a_score_is_valid_only_for_its_settings_but_on_any_device_and_path(run):
    run.save_result("knn", KnnSettings(), {"top1": 50.0}, save_weights(nn.Linear(2, 2), run.backbone))
    assert run.result("knn", KnnSettings(temperature=0.1)) is None
    assert run.result("knn", KnnSettings(workers=7, exp_dir="there"))["top1"] == 50.0
    assert run.result("knn")["top1"] == 50.0
    assert run.result("linear") is None


def test_a_score_has_its_seed_settings_commit_and_weights_and_no_path(run):
    run.backbone.write_bytes(b"weights")
    score = run.save_result("knn", KnnSettings(seed=4, data_dir="secret"), {"top1": 50.0}, file_hash(run.backbone))
    assert read_json(run.folder / "knn.json") == score
    assert score["seed"] == 4
    assert score["settings_hash"] == KnnSettings(seed=4).hash()
    assert score["settings"]["nb_knn"] == [10, 20, 100, 200]
    assert "commit" in score
    assert "secret" not in json.dumps(score)


def test_scores_of_other_weights_are_deleted_and_other_files_are_kept(run):
    run.backbone.write_bytes(b"old")
    run.save_result("knn", KnnSettings(), {"top1": 1.0}, file_hash(run.backbone))
    run.backbone.write_bytes(b"new")
    run.save_result("linear", KnnSettings(), {"top1": 2.0}, file_hash(run.backbone))
    run.record(commit="abc")
    run.delete_outdated_scores()
    assert sorted(path.name for path in run.folder.glob("*.json")) == ["linear.json", "provenance.json", "settings.json"]


def test_the_hash_of_a_file_is_its_sha256_for_any_length(tmp_path):
    for content in (b"", b"abc", bytes(range(256)) * 8193):  # the last is longer than two blocks of 1 MiB
        (tmp_path / "file").write_bytes(content)
        assert file_hash(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# --- the lock


HOLDER = """
import sys, time
from sfrik.runs.folder import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_refuses_a_second_process_and_is_released_when_the_first_dies(run):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8") as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(SfrikError, match=rf"another process \(pid {holder.pid} on .*\): wait for it"), run.lock():
                pytest.fail("two processes hold the lock")
        finally:
            holder.kill()
    with run.lock():
        assert (run.folder / "lock").read_text(encoding="utf-8").startswith(f"pid {os.getpid()} on ")


FORKING = """
import os, sys, time
from sfrik.runs.folder import Run
with Run(sys.argv[1]).lock():
    if not os.fork():  # like the processes that decode images
        print(os.getpid(), flush=True)  # the child
    time.sleep(60)
"""


def test_the_lock_of_a_dead_process_is_not_held_by_its_forked_children(run):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FORKING, str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8") as holder:
        child = int(holder.stdout.readline())
        try:
            assert run.is_locked()
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # it is alive
            with run.lock():
                pass
        finally:
            os.kill(child, 9)


def test_the_lock_is_released_after_an_error(run):
    with pytest.raises(ZeroDivisionError), run.lock():
        raise ZeroDivisionError
    with run.lock():
        pass


# --- metrics, provenance, files


def test_metrics_are_read_line_by_line_and_a_truncated_last_line_is_skipped(run):
    lines = [{"epoch": epoch, "loss": 1 / (epoch + 3)} for epoch in range(3)]
    for line in lines:
        run.log(line)
    assert run.metrics() == lines
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    assert run.metrics() == lines[:2]


def test_truncating_the_log_removes_the_lines_that_a_resumed_run_writes_again(run):
    for epoch in (0, 0, 1, 1, 2):
        run.log({"epoch": epoch})
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "lo')
    run.truncate_log(1, 2)
    run.log({"epoch": 1})
    assert [line["epoch"] for line in run.metrics()] == [0, 0, 1]


def test_facts_are_added_to_the_provenance(run):
    run.record(commit="abc", started="now")
    run.record(finished="later")
    assert read_json(run.folder / "provenance.json") == {"commit": "abc", "started": "now", "finished": "later"}


def test_the_provenance_names_versions_and_hardware(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    facts = provenance("cpu", "fp32", 2)
    assert torch.__version__.split("+")[0] == facts["versions"]["torch"].split("+")[0]
    assert facts["hardware"]["precision"] == "fp32"
    assert facts["hardware"]["processes"] == 2
    assert facts["slurm_job"] == "17"


def test_the_provenance_holds_no_path_and_no_host_name(monkeypatch):
    home = "/home/somebody"
    flags = ["pretrain", "--recipe", "smoke/sfrik_l2_q64", "--data-dir", f"{home}/images", f"--exp-dir={home}/run"]
    monkeypatch.setattr(sys, "argv", [f"{home}/venv/bin/sfrik", *flags])
    facts = provenance("cpu", "fp32", 1)
    assert facts["command"].startswith("sfrik pretrain --recipe smoke/sfrik_l2_q64")
    assert home not in json.dumps(facts)
    assert platform.node() not in json.dumps(facts)


def test_a_failed_write_leaves_the_file_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"file\.json could not be written \(the disk is full; it needs 4 bytes and .* are free"):
        write_text(path, "half")
    assert read_json(path) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["file.json"]


def test_truncated_json_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "score.json").write_text('{"top1": 5', encoding="utf-8")
    with pytest.raises(SfrikError, match=r"score\.json is not valid JSON"):
        read_json(tmp_path / "score.json")
