"""`make clean` deletes what can be rebuilt in seconds; results are deleted only after confirmation in a terminal."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "clean.py"

spec = importlib.util.spec_from_file_location("clean", SCRIPT)
clean = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean)

DELETED = ["sfrik/__pycache__/a.pyc", ".pytest_cache/x", ".ruff_cache/x", "site/index.html", ".coverage", "coverage.xml"]
DELETED += ["runs/digits/a/seed0/.settings.json.host-1-0a1b2c3d.tmp"]
DELETED += ["runs/digits/a/seed0/02_pretraining.partial.ipynb", "notebooks/.ipynb_checkpoints/01.ipynb"]
KEPT = ["sfrik/a.py", "runs/digits/a/seed0/settings.json", "runs/digits/a/seed0/backbone.safetensors", "data/cifar10/x"]
KEPT += [
    "runs/digits/a/seed0/02_pretraining.ipynb",
    ".venv/lib/__pycache__/a.pyc",
    "env/lib/__pycache__/a.pyc",
    "env/pyvenv.cfg",
]
KEPT += ["sfrik.egg-info/PKG-INFO"]


@pytest.fixture
def checkout(tmp_path):
    """A checkout with caches, builds and results, two hours old."""
    for name in DELETED + KEPT:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
        os.utime(path, (time.time() - 7200,) * 2)
    return tmp_path


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def track(checkout, *names):
    git(checkout, "init", "-q")
    git(checkout, "add", "-f", *names)
    git(checkout, "commit", "-qm", "results")


@pytest.fixture
def answer_with(monkeypatch):
    """A function that sets the line typed in a terminal."""

    def type_line(text):
        stream = io.StringIO(text + "\n")
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stream)

    return type_line


def test_caches_and_builds_are_deleted_and_everything_else_is_kept(checkout, capsys):
    assert clean.main([], checkout) == 0
    assert [name for name in DELETED if (checkout / name).exists()] == []
    assert [name for name in KEPT if not (checkout / name).exists()] == []
    assert "results are kept" in capsys.readouterr().out
    assert clean.main([], checkout) == 0
    assert capsys.readouterr().out.startswith("0 caches")


@pytest.mark.parametrize("name", ["02_pretraining.partial.ipynb", ".settings.json.host-1-0a1b2c3d.tmp"])
def test_files_that_may_still_be_written_are_kept(checkout, name):
    path = checkout / "runs/digits/a/seed0" / name
    os.utime(path)
    clean.main([], checkout)
    assert path.exists()


def test_files_that_git_tracks_are_kept_even_if_they_look_like_a_cache(checkout):
    track(checkout, "site/index.html")
    clean.main([], checkout)
    assert (checkout / "site/index.html").exists()
    assert not (checkout / ".coverage").exists()


@pytest.mark.parametrize(("answer", "deleted"), [("yes", True), ("y", False), ("", False)])
def test_results_are_deleted_if_the_answer_is_yes(checkout, answer_with, capsys, answer, deleted):
    answer_with(answer)
    assert clean.main(["--results", str(checkout / "runs/digits")]) == (0 if deleted else 1)
    assert (checkout / "runs/digits").exists() != deleted
    out = capsys.readouterr().out
    assert "1 run folders, 0.0 MiB" in out
    assert ("nothing was deleted" in out) != deleted


@pytest.mark.parametrize("answer", ["yes", "digits"])
def test_results_that_git_tracks_are_never_deleted(checkout, answer_with, capsys, answer):
    track(checkout, "runs/digits/a/seed0/settings.json")
    answer_with(answer)
    assert clean.main(["--results", str(checkout / "runs/digits")]) == 1
    assert (checkout / "runs/digits").exists()
    assert "git tracks 1 files" in capsys.readouterr().err


LOCKS = ["digits/a/seed0/lock", "digits/a/seed0/run.lock", "digits/a/seed0/linear.lock", "digits/render.lock", "lock"]


@pytest.mark.parametrize("lock", [*LOCKS, "digits/complexity/seed0/lock"])
def test_results_that_a_process_is_writing_are_kept(checkout, answer_with, capsys, lock):
    answer_with("yes")
    path = checkout / "runs" / lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert clean.main(["--results", str(checkout / "runs/digits")]) == 1
    assert "is being written by another process" in capsys.readouterr().err
    assert (checkout / "runs/digits").exists()


def test_results_with_a_marker_of_a_file_system_without_flock_are_kept(checkout, answer_with):
    answer_with("yes")
    (checkout / "runs/digits/a/seed0/lock.soft").write_text("17", encoding="utf-8")
    assert clean.main(["--results", str(checkout / "runs/digits")]) == 1
    assert (checkout / "runs/digits").exists()


def test_without_a_terminal_no_results_are_deleted(checkout):
    command = ["make", "--no-print-directory", "clean-results", "PROFILE=digits", f"RESULTS={checkout / 'runs'}"]
    done = subprocess.run(command, cwd=ROOT, input="yes\ndigits\n", capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode != 0
    assert "confirmation in a terminal" in done.stderr
    assert (checkout / "runs/digits/a/seed0/settings.json").exists()


def test_missing_results_are_not_an_error(tmp_path, capsys):
    assert clean.main(["--results", str(tmp_path / "digits")]) == 0
    assert "there are no results" in capsys.readouterr().out


@pytest.mark.parametrize("profile", ["", ".", "..", "smok", "digits/sfrik_l3_q512", "smoke digits"])
def test_only_the_results_of_a_profile_are_deleted(tmp_path, monkeypatch, capsys, profile):
    (tmp_path / "results" / profile).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    assert clean.main(["--results", f"{tmp_path}/results/{profile}"]) == 2
    assert "is not the folder of a profile's results" in capsys.readouterr().err
    assert (tmp_path / "results").is_dir()
