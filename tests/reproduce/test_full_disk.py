"""A run and a table on a full disk: one line names the file, the state says why, and with room the same command resumes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfrik.reproduce.status import run_status
from sfrik.runs.folder import Run
from sfrik.settings import run_folder

pytest.importorskip("papermill", reason="comes with the extra notebooks")
CHECKOUT = Path(__file__).parents[2]
RECIPE = "smoke/sfrik_l2_q64"
STAGES = ("pretrain", "linear", "knn")


@pytest.fixture
def disk(tmp_path):
    """`disk(options)` mounts a small file system in memory and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(options):
        if shutil.which("mount") is None:
            pytest.skip("there is no mount")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, encoding="utf-8")
        if done.returncode:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def sfrik(*arguments, most=None):
    """Run a command whose files may have at most `most` bytes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # its file is too large
    environment |= {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    limit = None if most is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    command = [sys.executable, "-m", "sfrik", *map(str, arguments)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, encoding="utf-8", preexec_fn=limit, timeout=300
    )


def assert_failed(done, results, path, reason, stages=STAGES):
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("sfrik: error: ")
    assert f"{path} could not be written ({reason}" in line
    assert Run(run_folder(RECIPE, 0, results)).state()["state"] == "failed"
    status = run_status(RECIPE, 0, stages, results)
    assert status.state == "failed"
    assert f"{path} could not be written ({reason}" in status.detail
    assert not list(results.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [("size=64k", "the disk is full; it needs"), ("nr_inodes=8", "no inode")],
)
def test_a_run_on_a_full_disk_names_the_file_and_its_state_says_why(disk, options, reason):
    results = disk(options)
    done = sfrik("run", "--recipe", RECIPE, "--results", results)
    assert_failed(done, results, run_folder(RECIPE, 0, results) / "02_pretraining.partial.ipynb", reason)


def test_a_run_limited_to_small_files_names_the_file_too(tmp_path):
    done = sfrik("run", "--recipe", RECIPE, "--results", tmp_path, most=16384)
    assert_failed(done, tmp_path, run_folder(RECIPE, 0, tmp_path) / "02_pretraining.partial.ipynb", "file too large")


def test_a_full_disk_during_training_names_the_checkpoint_and_the_same_command_resumes_when_there_is_room(disk):
    results = disk("size=400k")
    command = ("run", "--recipe", RECIPE, "--results", results, "--stages", "pretrain")
    path = run_folder(RECIPE, 0, results) / "checkpoint.pt"
    assert_failed(sfrik(*command), results, path, "the disk is full; it needs", ("pretrain",))
    subprocess.run(["mount", "-o", "remount,size=40m", results], check=True)
    done = sfrik(*command)
    assert done.returncode == 0, done.stderr
    assert run_status(RECIPE, 0, ("pretrain",), results).state == "done"


@pytest.mark.parametrize("options", ["size=16k", "nr_inodes=7"])
def test_a_table_whose_runs_cannot_write_their_logs_names_each_of_them(disk, options):
    results = disk(options)
    done = sfrik("table", "table8", "--profile", "smoke", "--results", results)
    assert done.returncode == 1, "the table is not complete"
    lines = done.stderr.splitlines()
    assert len(lines) == 4, "one for each run"
    assert all(line.startswith("failed: smoke/crops_") for line in lines)
    # of one that could write its log, but nothing after it, the line may be cut short
    written = [line for line in lines if re.search(r"(run\.log|seed0) could not be written \((the disk is full|no inode)", line)]
    assert len(written) >= 2
    assert "Traceback" not in done.stdout + done.stderr
