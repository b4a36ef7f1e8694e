"""docs/troubleshooting.md starts from messages as they are printed: each of ours is one that the source still prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from sfrik.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
# (PyTorch), (Jupyter), ...: somebody else prints it, (no error): nobody does
OURS = [
    message for heading in HEADINGS if not re.search(r"\([\w ,&]+\)$", heading) for message in re.findall(r"`([^`]+)`", heading)
]
HOLE = "\0"  # where a message holds a value


def text_of(node: ast.AST) -> str:
    """A string of the source, with a hole where a value is put in."""
    if isinstance(node, ast.Constant):
        return node.value
    return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)


@pytest.fixture(scope="module")
def printed():
    """All that the library and the Makefile may print."""
    texts = [(ROOT / "Makefile").read_text().replace("$(PYTHON)", HOLE)]
    for path in (ROOT / "sfrik").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                texts.append(text_of(node))
    return texts


def holds(text: str, message: str) -> bool:
    """Whether a string of the source prints the message, `...` being any text; a fixed part spans no value."""
    return re.search(".*".join(re.escape(part) for part in message.split("...")), text, re.DOTALL) is not None


@pytest.mark.parametrize("message", OURS)
def test_each_message_of_ours_is_in_the_source(printed, message):
    fixed = max(len(part) for part in message.split("..."))
    assert fixed >= 8, "too little to search for"
    assert any(holds(text, message) for text in printed)


def test_the_page_has_the_messages_that_users_meet():
    assert len(OURS) >= 40
    assert len(HEADINGS) == len(set(HEADINGS))
    areas = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert areas[:4] == ["Installation", "Data", "Settings", "Training"]


def test_each_message_is_followed_by_what_to_do():
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
