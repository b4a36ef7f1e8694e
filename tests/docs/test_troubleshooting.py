"""docs/troubleshooting.md quotes messages: each one of this package is still in the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sfrik.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
# headings that end in (PyTorch), (Jupyter) or (no error) are not messages of this package
OURS = [
    message for heading in HEADINGS if not re.search(r"\([\w ,&]+\)$", heading) for message in re.findall(r"`([^`]+)`", heading)
]
HOLE = "\0"  # in place of a value in a message


def text_of(node: ast.AST) -> str:
    """A string of the source, with a hole in place of each value."""
    if isinstance(node, ast.Constant):
        return node.value
    return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)


@pytest.fixture(scope="module")
def printed():
    """All strings that the library, its batch script and the Makefile can print."""
    texts = [
        (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(PYTHON)", HOLE),
        (ROOT / "sfrik" / "launch" / "job.sh").read_text(encoding="utf-8"),
    ]
    for path in (ROOT / "sfrik").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                texts.append(text_of(node))
    return texts


def matches(text: str, message: str) -> bool:
    """Whether a string of the source contains the message, where `...` is any text and the rest contains no value."""
    return re.search(".*".join(re.escape(part) for part in message.split("...")), text, re.DOTALL) is not None


@pytest.mark.parametrize("message", OURS)
def test_each_message_of_this_package_is_in_the_source(printed, message):
    fixed = max(len(part) for part in message.split("..."))
    assert fixed >= 8, "too short to search for"
    assert any(matches(text, message) for text in printed)


def test_the_page_has_at_least_forty_messages_in_the_usual_order():
    assert len(OURS) >= 40
    assert len(HEADINGS) == len(set(HEADINGS))
    areas = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert areas[:4] == ["Installation", "Data", "Settings", "Training"]


def test_each_message_has_an_explanation():
    for part in re.split(r"^###? .+$", PAGE, flags=re.MULTILINE)[2:]:
        text = part.strip()
        assert not text or len(text) > 40


def test_the_commands_of_the_page_exist(capsys):
    commands = set(re.findall(r"python -m\s+sfrik\s+([a-z][a-z-]+)", PAGE))
    assert {"env", "memory", "diagnose", "completion", "pretrain", "table"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
    capsys.readouterr()
