"""`make clean` deletes what is rebuilt within seconds; results are deleted by a person at a terminal alone."""

from __future__ import annotations

import fcntl
import importlib.util
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "clean.py"

spec = importlib.util.spec_from_file_location("clean", SCRIPT)
clean = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean)

GOES = ["sfrik/__pycache__/a.pyc", ".pytest_cache/x", ".ruff_cache/x", "site/index.html", ".coverage", "coverage.xml"]
GOES += ["results/digits/a/seed0/.settings.json.host-1-0a1b2c3d.tmp"]
GOES += ["results/digits/a/seed0/02_pretraining.partial.ipynb", "notebooks/.ipynb_checkpoints/01.ipynb"]
STAYS = ["sfrik/a.py", "results/digits/a/seed0/settings.json", "results/digits/a/seed0/backbone.safetensors", "data/cifar10/x"]
STAYS += [
    "results/digits/a/seed0/02_pretraining.ipynb",
    ".venv/lib/__pycache__/a.pyc",
    "env/lib/__pycache__/a.pyc",
    "env/pyvenv.cfg",
]
STAYS += ["sfrik.egg-info/PKG-INFO"]


@pytest.fixture
def checkout(tmp_path):
    """A checkout as it is after some work, its results tracked by git."""
    for name in GOES + STAYS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
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
def person(monkeypatch):
    """Somebody at a terminal who types one answer."""

    def types(text):
        stream = io.StringIO(text + "\n")
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", stream)

    return types


def test_caches_and_builds_go_and_everything_else_stays(checkout, capsys):
    assert clean.main([], checkout) == 0
    assert [name for name in GOES if (checkout / name).exists()] == []
    assert [name for name in STAYS if not (checkout / name).exists()] == []
    assert "results are left alone" in capsys.readouterr().out
    assert clean.main([], checkout) == 0
    assert capsys.readouterr().out.startswith("0 caches")


@pytest.mark.parametrize("name", ["02_pretraining.partial.ipynb", ".settings.json.host-1-0a1b2c3d.tmp"])
def test_what_is_being_written_stays(checkout, name):
    path = checkout / "results/digits/a/seed0" / name
    os.utime(path)
    clean.main([], checkout)
    assert path.exists()


def test_what_git_tracks_stays_even_where_it_looks_like_a_cache(checkout):
    track(checkout, "site/index.html")
    clean.main([], checkout)
    assert (checkout / "site/index.html").exists()
    assert not (checkout / ".coverage").exists()


@pytest.mark.parametrize(("answer", "deleted"), [("yes", True), ("y", False), ("", False)])
def test_results_go_when_a_person_says_yes(checkout, person, capsys, answer, deleted):
    person(answer)
    assert clean.main(["--results", str(checkout / "results/digits")]) == (0 if deleted else 1)
    assert (checkout / "results/digits").exists() != deleted
    out = capsys.readouterr().out
    assert "1 run folders, 0.0 MiB" in out
    assert ("nothing was deleted" in out) != deleted


@pytest.mark.parametrize(("answer", "deleted"), [("yes", False), ("digits", True)])
def test_results_that_git_tracks_go_when_their_profile_is_typed(checkout, person, capsys, answer, deleted):
    track(checkout, "results/digits/a/seed0/settings.json")
    person(answer)
    clean.main(["--results", str(checkout / "results/digits")])
    assert (checkout / "results/digits").exists() != deleted
    assert "git tracks 1 of the files" in capsys.readouterr().out


LOCKS = ["digits/a/seed0/lock", "digits/a/seed0/run.lock", "digits/a/seed0/linear.lock", "digits/render.lock", "lock"]


@pytest.mark.parametrize("lock", [*LOCKS, "digits/complexity/seed0/lock"])
def test_results_that_a_process_is_writing_stay(checkout, person, capsys, lock):
    person("yes")
    path = checkout / "results" / lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert clean.main(["--results", str(checkout / "results/digits")]) == 1
    assert "is being written by another process" in capsys.readouterr().err
    assert (checkout / "results/digits").exists()


def test_without_a_terminal_no_result_is_deleted(checkout):
    command = ["make", "--no-print-directory", "clean-results", "PROFILE=digits", f"RESULTS={checkout / 'results'}"]
    done = subprocess.run(command, cwd=ROOT, input="yes\ndigits\n", capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "by a person at a terminal alone" in done.stderr
    assert (checkout / "results/digits/a/seed0/settings.json").exists()


def test_results_that_are_not_there_are_no_error(tmp_path, capsys):
    assert clean.main(["--results", str(tmp_path / "digits")]) == 0
    assert "there are no results" in capsys.readouterr().out
