"""The code that a record names: the version always, the commit only in a clone of this project, with what differs from it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import sfrik
from sfrik.runs import provenance
from sfrik.runs.folder import Run
from sfrik.runs.provenance import code, commit, format_code
from sfrik.system.files import read_json

ROOT = Path(__file__).parents[2]
AUTHOR = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


def git(folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", folder, *AUTHOR, *arguments], check=True, capture_output=True, encoding="utf-8", env=environment
    )
    return done.stdout.strip()


def write_package(folder):
    """The files of a checkout that `commit` looks at."""
    for name in ("sfrik/runs", "sfrik/recipes", "notebooks", "results"):
        (folder / name).mkdir(parents=True)
    for name in ("pyproject.toml", ".gitignore", "sfrik/runs/provenance.py"):
        shutil.copyfile(ROOT / name, folder / name)
    for name in ("sfrik/recipes/a.toml", "notebooks/a.ipynb", "results/a.json"):
        (folder / name).write_text("1", encoding="utf-8")
    return folder


def commit_all(folder):
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def commit_of(monkeypatch):
    """The commit that the package in a folder records."""

    def of(folder):
        monkeypatch.setattr(provenance, "__file__", str(folder / "sfrik" / "runs" / "provenance.py"))
        monkeypatch.setattr(provenance, "CHECKOUT", folder)
        commit.cache_clear()
        return commit()

    yield of
    commit.cache_clear()


def test_a_clone_and_its_worktrees_and_submodules_have_a_commit(tmp_path, commit_of):
    folder = write_package(tmp_path / "clone")
    head = commit_all(folder)
    assert commit_of(folder) == head
    git(folder, "worktree", "add", "-q", tmp_path / "worktree")
    assert commit_of(tmp_path / "worktree") == head
    other = tmp_path / "other"
    other.mkdir()
    git(tmp_path, "init", "-q", "other")
    git(other, "-c", "protocol.file.allow=always", "submodule", "add", "-q", folder, "sub")
    assert commit_of(other / "sub") == head
    (tmp_path / "link").symlink_to(folder)
    assert commit_of(tmp_path / "link") == head


@pytest.mark.parametrize(
    "name", ["sfrik/recipes/a.toml", "sfrik/new.py", "notebooks/a.ipynb", "notebooks/new.ipynb", "pyproject.toml"]
)
def test_a_change_or_a_new_file_in_what_determines_results_makes_it_dirty(tmp_path, commit_of, name):
    head = commit_all(write_package(tmp_path / "clone"))
    git(tmp_path / "clone", "config", "status.showUntrackedFiles", "no")
    with (tmp_path / "clone" / name).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert commit_of(tmp_path / "clone") == f"{head}-dirty"


def test_results_documents_and_ignored_files_do_not_make_it_dirty(tmp_path, commit_of):
    head = commit_all(write_package(tmp_path / "clone"))
    for name in (
        "results/a.json",
        "results/new.json",
        "README.md",
        "sfrik/__pycache__/a.pyc",
        "notebooks/.ipynb_checkpoints/a.ipynb",
    ):
        (tmp_path / "clone" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "clone" / name).write_text("2", encoding="utf-8")
    assert commit_of(tmp_path / "clone") == head


def in_no_repository(folder):
    return write_package(folder)


def in_an_environment_of_another_project(folder):
    """Also: a home folder under git, a wheel unpacked in another clone."""
    commit_all(write_package(folder))
    return write_package(folder / ".venv" / "site-packages")


def tracked_in_a_folder_of_another_repository(folder):
    write_package(folder / "vendored")
    commit_all(folder)
    return folder / "vendored"


def at_the_top_of_another_repository_untracked(folder):
    folder.mkdir()
    (folder / "a").write_text("", encoding="utf-8")
    commit_all(folder)
    return write_package(folder)


def tracked_by_another_project(folder):
    write_package(folder)
    (folder / "pyproject.toml").write_text('[project]\nname = "other"\n', encoding="utf-8")
    commit_all(folder)
    return folder


def before_the_first_commit(folder):
    write_package(folder)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    return folder


@pytest.mark.parametrize(
    "build",
    [
        in_no_repository,
        in_an_environment_of_another_project,
        tracked_in_a_folder_of_another_repository,
        at_the_top_of_another_repository_untracked,
        tracked_by_another_project,
        before_the_first_commit,
    ],
)
def test_outside_a_clone_of_this_project_there_is_no_commit(tmp_path, commit_of, build):
    assert commit_of(build(tmp_path / "there")) is None


def test_the_environment_of_a_git_hook_has_no_effect(tmp_path, commit_of, monkeypatch):
    head = commit_all(write_package(tmp_path / "clone"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("", encoding="utf-8")
    commit_all(tmp_path / "other")
    names = {"GIT_DIR": ".git", "GIT_INDEX_FILE": ".git/index", "GIT_WORK_TREE": "", "GIT_PREFIX": ""}
    for name, path in names.items():
        monkeypatch.setenv(name, str(tmp_path / "other" / path))
    assert commit_of(tmp_path / "clone") == head
    assert commit_of(write_package(tmp_path / "copy")) is None


def test_without_git_there_is_a_version_and_no_commit(tmp_path, commit_of, monkeypatch):
    folder = write_package(tmp_path / "clone")
    commit_all(folder)
    monkeypatch.setenv("PATH", "")
    assert commit_of(folder) is None
    assert code() == {"sfrik": sfrik.__version__, "commit": None}


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({"commit": "0123456789abcdef"}, "0123456789ab"),
        ({"commit": "0123456789abcdef-dirty", "sfrik": "1.0"}, "0123456789ab-dirty"),
        ({"commit": None, "sfrik": "1.0"}, "sfrik 1.0"),
        ({"commit": "unknown", "versions": {"sfrik": "0.1"}}, "sfrik 0.1"),
        ({}, ""),
    ],
)
def test_a_reader_is_shown_the_commit_or_else_the_version(record, shown):
    assert format_code(record) == shown


# --- a run's own record


def test_a_resumed_run_has_no_record_of_another_run_in_its_folder(tmp_path):
    run = Run(tmp_path)
    origin = run.record_start(started="monday", commit="a")
    origin = run.record_resumption(origin, step=3)
    run.record_start(started="tuesday", resumed=[{"step": 1}], finished="x", weights={"backbone.safetensors": "y"})  # another run
    assert run.record_resumption(origin, step=5) == read_json(tmp_path / "provenance.json")
    expected = {"version": 1, "started": "monday", "commit": "a", "resumed": [{"step": 3}, {"step": 5}]}
    assert read_json(tmp_path / "provenance.json") == expected


@pytest.mark.parametrize("origin", [{}, {"started": "monday"}])
def test_a_resumed_run_keeps_the_resumptions_that_saved_no_checkpoint(tmp_path, origin):
    run = Run(tmp_path)
    run.record_start(started="monday", resumed=[{"step": 3}], finished="x", weights={"backbone.safetensors": "y"})
    assert run.record_resumption(origin, step=3)["resumed"] == [{"step": 3}, {"step": 3}]
    assert sorted(read_json(tmp_path / "provenance.json")) == ["resumed", "started", "version"]
