"""An error, a kill and a power cut at each file operation of a run (tests/storage.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/fd").is_dir(), reason="needs fork and /proc")


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[dict]:
    """The outcome of a fault at each operation."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # forks would share its file
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "storage.py"), str(tmp_path_factory.mktemp("faults"))]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) > 100
    return found


def test_after_a_kill_power_cut_or_error_at_any_operation_a_rerun_gives_the_same_weights_and_scores(cases):
    wrong = {(case["number"], *case["event"], name): text for case in cases for name, text in case["problems"].items() if text}
    assert not wrong
    assert sum(text is not None for case in cases for text in case["problems"].values()) > 30, "most folders differ"


def test_files_are_flushed_before_they_are_renamed_and_names_before_anything_is_deleted(cases):
    events = [tuple(case["event"]) for case in cases]
    for index, (kind, path) in enumerate(events):
        if kind != "replace" or path.endswith((".previous.pt", "_features.npy")):
            continue
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name}.")
        written = max(i for i, (_, other) in enumerate(events[:index]) if other.startswith(temporary))
        assert events[written][0] == "fsync", f"{path} was not flushed after its last write"
        assert events[index + 1] == ("fsync", folder or "."), f"the folder was not flushed after {path} was renamed"
    deleted = next(i for i, event in enumerate(events) if event == ("unlink", "checkpoint.pt"))
    for name in ("projector.safetensors", "backbone.safetensors", "provenance.json"):
        renamed = max(i for i, event in enumerate(events) if event == ("replace", name))
        assert renamed + 1 < deleted, f"the checkpoint was deleted before {name} was on disk"
    for index, (_, path) in enumerate(events):
        if path.startswith(".checkpoint.pt"):
            logged = max(i for i, (_, other) in enumerate(events[:index]) if other == "metrics.jsonl")
            assert events[logged] == ("fsync", "metrics.jsonl"), "a checkpoint was saved before the log was on disk"


def test_a_full_disk_at_any_operation_is_reported_in_one_line_and_in_the_state_of_the_run(cases):
    failed = [case for case in cases if case["status"]]
    assert len(failed) > 80
    for case in failed:
        last = case["output"].strip().splitlines()[-1]
        assert last.startswith("sfrik.system.files.WriteError: "), case
        assert "the disk is full" in last, case
        assert f"error{case['number']}/" in last.split(" could not be written")[0], case
    started = next(case["number"] for case in cases if case["event"][1].startswith(".provenance"))
    finished = next(case["number"] for case in cases if case["event"] == ["unlink", "state.json"])
    training = [case for case in failed if started <= case["number"] < finished]
    assert len(training) > 40
    for case in training:
        assert case["state"] == "failed", case
        assert "could not be written" in case["error"], case
