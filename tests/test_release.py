"""The package, CITATION.cff and CHANGELOG.md agree on the release; issue templates ask for the environment."""

from __future__ import annotations

import re
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
