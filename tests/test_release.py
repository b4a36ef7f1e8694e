"""The package, CITATION.cff and CHANGELOG.md agree on the release; issue templates, workflows, containers and addresses."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

import sfrik

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_package_citation_and_changelog_have_the_same_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == sfrik.__version__
    newest = re.search(
        r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert newest.group(1) == sfrik.__version__


def test_the_changelog_is_in_order_and_only_its_newest_release_may_be_unreleased():
    heads = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    versions = [tuple(int(part) for part in head.split()[0].split(".")) for head in heads]
    assert versions == sorted(versions, reverse=True)
    assert not any("unreleased" in head for head in heads[1:])


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_every_issue_template_asks_for_the_environment(path):
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = [field for field in template["body"] if field["type"] != "markdown"]
    assert any("`python -m sfrik env`" in field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


# --- what is written for other services


def test_a_release_has_the_address_of_its_repository_and_a_readme_with_absolute_links(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("address", ROOT / "tools" / "address.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for name in ("README.md", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    for wrong in ([], ["example.com/sfrik"], ["https://github.com/sfrik"]):
        with pytest.raises(SystemExit, match="not the address of a repository on GitHub"):
            tool.main(wrong)
    for _ in range(2):  # the second time changes nothing
        tool.main(["https://github.com/someone/kernels.git"])
        readme = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert readme.count("https://github.com/someone/kernels/actions/workflows/ci.yml/badge.svg") == 1
        for link in (
            "https://mybinder.org/v2/gh/someone/kernels/main?labpath=notebooks%2F01_kernel_theory.ipynb",
            "https://colab.research.google.com/github/someone/kernels/blob/main/notebooks/02_pretraining.ipynb",
        ):
            assert readme.count(f"]({link})") == 1
    citation = yaml.safe_load((tmp_path / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == "https://github.com/someone/kernels"
    assert "](docs/install.md)" in readme
    tool.main(["https://github.com/someone/kernels", "--release"])
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Changelog"] == "https://github.com/someone/kernels/blob/main/CHANGELOG.md"
    assert project["urls"]["Paper"] == "https://arxiv.org/abs/2208.00789"
    assert tool.LINK.sub(r"\1x", '<source srcset="a.gif"> <img src="b.gif">') == '<source srcset="x"> <img src="x">'
    readme, written = ((folder / "README.md").read_text(encoding="utf-8") for folder in (ROOT, tmp_path))
    links = re.findall(r"\]\(([^)]+)\)", written)
    assert len(links) == len(re.findall(r"\]\(([^)]+)\)", readme)) + 7  # the badge has two, the sentence on Binder and Colab five
    assert all(link.startswith(("https://", "#")) for link in links)
    assert "https://raw.githubusercontent.com/someone/kernels/main/results/digits/figures/flow.gif" in written
    assert "](https://github.com/someone/kernels/blob/main/CITATION.cff)" in written


def test_the_workflows_test_every_python_that_is_supported_and_run_commands_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    tested = {entry["python"] for entry in ci["jobs"]["matrix"]["strategy"]["matrix"]["include"]}
    assert tested == {line.rsplit(" ")[-1] for line in project["classifiers"] if re.search(r":: 3\.\d", line)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"(?<!-)\bmake (?!setup_)([a-z][\w-]*)", text):
            assert re.search(rf"^{target}\b.*:", makefile, re.MULTILINE), target
        for script in re.findall(r"\b(?:tests|tools|examples)/[\w./]+", text):
            assert (ROOT / script).is_file(), script
    for extra in re.findall(r"'\.\[([\w,]+)\]'", (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")):
        assert set(extra.split(",")) <= project["optional-dependencies"].keys()


def test_the_containers_have_a_supported_python_and_slurm_toml_names_the_image():
    supported = {line.rsplit(" ")[-1] for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").split('",')}
    for name in ("Dockerfile", "sfrik.def", "binder/runtime.txt"):
        found = re.findall(r"python[:-](3\.\d+)", (ROOT / name).read_text(encoding="utf-8"))
        assert found
        assert set(found) <= supported
    slurm = (ROOT / "slurm.toml").read_text(encoding="utf-8")
    assert "apptainer build image.sif sfrik.def" in slurm
    assert re.search(r'^# prefix = "apptainer exec .* image\.sif"$', slurm, re.MULTILINE)
