"""Variables of make: quoted for the shell, and refused when they are misspelt."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from sfrik.cli.flags import DEFAULT_EXP_DIR
from sfrik.settings import KnnSettings, PretrainSettings, recipe_names
from sfrik.tables.cost_rows import cost_folder

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^\.PHONY: (.*)$", TEXT, re.MULTILINE)[0].replace("$(TABLES)", "table2 table5 table9").split()
ODD = 'it\'s my $x $(y) "results" `id` %h;(z)&'  # as a folder may be called


def make(*arguments, **environment):
    command = ["make", "--no-print-directory", "-n", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env={**os.environ, **environment})


def words(*arguments, **environment):
    """The words of the shell commands that a target would run."""
    done = make(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.replace("\\\n", ""))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_printed_and_quotes_its_variables(target):
    names = ("RESULTS", "DATA", "SEEDS", "JOBS", "LAUNCH", "PARTITION", "TIME", "PYTHON")
    given = words(target, "VENV=", *(f"{name}={ODD}" for name in names))
    takes = set(re.findall(r"--(results|data-dir|data|seeds|partition)\b", " ".join(given)))
    takes = takes if target != "clean-results" else set()  # its --results is the folder of a profile
    for flag in takes:
        assert f"--{flag}={ODD}" in given or given[given.index(f"--{flag}") + 1] == ODD, flag
    assert bool(takes) == (target.startswith("table") or target in ("notebooks", "publish", "status", "bench"))
    assert (ODD in given or f"PYTHON={ODD}" in given) or target not in ("matrix", "clean", "clean-results")
    assert f"--results={ODD}/digits" in given or target != "clean-results"


def test_the_environment_and_its_python_may_have_any_name(tmp_path):
    place = 'it\'s my $x "environment"'
    given = words("setup", f"VENV={tmp_path}/{place}", "PYTHON=/opt/my python")
    assert given[0] == "/opt/my python"
    assert f"{tmp_path}/{place}/bin/python" in given
    assert given[-2:] == ["touch", f"{tmp_path}/{place}/ready"]
    (tmp_path / "my $venv").mkdir()
    (tmp_path / "my $venv" / "ready").touch()  # up to date: it is not made again
    assert words("types", f"VENV={tmp_path}/my $venv")[0] == f"{tmp_path}/my $venv/bin/python"


def test_a_tilde_is_the_home_folder():
    assert f"--results={os.environ['HOME']}/my results" in words("status", "VENV=", "RESULTS=~/my results")


def test_help_lists_every_target_and_variable_within_80_columns():
    text = subprocess.run(["make"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert max(map(len, text.splitlines())) <= 80
    targets, variables = text.split("variables, with their defaults:")
    listed = re.findall(r"^  ([a-z0-9-]+) +\S", targets, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(phony.replace("$(TABLES)", " ".join(f"table{k}" for k in range(2, 10))).split())
    known = re.search(r"^VARIABLES := (.*)$", TEXT, re.MULTILINE)[1].split()
    assert sorted(re.findall(r"^  ([A-Z]+)=", variables, re.MULTILINE)) == sorted(known)


MISSPELT = {"SEED": "SEEDS", "JOB": "JOBS", "GPU": "GPUS", "NODE": "NODES", "PROFIL": "PROFILE", "results": "RESULTS"}


@pytest.mark.parametrize("name", [*MISSPELT, "EPOCHS", "BATCH_SIZE", "DATADIR2"])
@pytest.mark.parametrize("target", ["table1", "help"])
def test_a_variable_that_make_does_not_have_is_refused_with_the_nearest_one(target, name):
    done = make(target, f"{name}=3")
    assert done.returncode == 2
    near = f" (did you mean {MISSPELT[name]}?)" if name in MISSPELT else ""
    assert f"make has no variable {name}{near}: the first lines of the Makefile list them" in done.stderr
    assert make(target, "VENV=", **{name: "3"}).returncode == 0, "the environment is not refused"


def test_a_variable_of_another_program_may_be_given_to_make():
    assert words("table1", "VENV=", "CUDA_VISIBLE_DEVICES=1", "OMP_NUM_THREADS=2", "SFRIK_GRACE=3", "SHELL=/bin/bash")


@pytest.mark.parametrize("target", ["table1", "status", "clean-results", "setup"])
def test_a_misspelt_profile_is_refused_with_the_nearest_one(target):
    done = make(target, "PROFILE=smok")
    assert done.returncode == 2
    assert (
        "unknown PROFILE smok (did you mean smoke?): choose one of cifar10 cifar10_quick digits paper photos smoke" in done.stderr
    )


@pytest.mark.parametrize("profile", ["", " ", "smoke digits", "smoke smok"])
def test_a_profile_is_one_word(profile):
    done = make("clean-results", f"PROFILE={profile}")
    assert done.returncode == 2
    assert "unknown PROFILE" in done.stderr


def test_the_profile_of_the_environment_is_not_looked_at():
    assert make("types", "VENV=", PROFILE="smok").returncode == 0
    assert "--profile=smok" in words("status", "VENV=", PROFILE="smok"), "the command refuses it"


def test_scripts_have_unix_line_ends_in_every_checkout():
    names = ["sfrik/launch/job.sh", "Makefile", ".ci/run", "sfrik/cli/main.py", "notebooks/07_tables.ipynb", "pyproject.toml"]
    command = ["git", "--no-optional-locks", "check-attr", "eol", "--", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        pytest.skip("not in a git checkout")
    assert done.stdout.splitlines() == [f"{name}: eol: lf" for name in names]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_git_ignores_everything_that_commands_write_in_a_checkout():
    """So that `git status` is as clean after any make as before it, also where one of the folders is a link to another disk."""
    folders = [PretrainSettings.from_recipe(name).exp_dir for name in recipe_names()]
    folders += [KnnSettings.from_recipe("smoke/sfrik_l2_q64", nb_knn=[1]).exp_dir, cost_folder("digits", 0, 1)]
    folders += [ROOT / name for name in ("runs", DEFAULT_EXP_DIR, "data", "site", "jupyter_execute", ".venv")]
    paths = [os.path.abspath(folder) for folder in folders]
    command = ["git", "check-ignore", "--stdin"]
    done = subprocess.run(command, input="\n".join(paths), cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.stdout.splitlines() == paths


def test_a_table_knows_that_make_started_it_and_with_which_environment():
    """Then the commands that it proposes are those of make."""
    assert words("table1", "VENV=")[0] == "SFRIK_MAKE=VENV="
    assert "SFRIK_MAKE=VENV=my venv" in words("table1", "VENV=my venv")
    assert "SFRIK_MAKE=" in words("table1")
