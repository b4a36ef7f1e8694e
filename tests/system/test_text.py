"""Text files and pipes are UTF-8 in every locale, and a character that cannot be printed is no error."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfrik.cli.main import main
from sfrik.errors import SfrikError
from sfrik.reproduce.notebooks import execute
from sfrik.runs.provenance import hide_paths
from sfrik.system.files import read_json, write_json, write_text
from sfrik.system.terminal import replace_unprintable

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for place in ("sfrik", "tests", "tools", "docs", "benchmarks") for path in (ROOT / place).rglob("*.py"))
NOT_TEXT = os.fsdecode(b"caf\xe9")  # a name in Latin-1, read where names are UTF-8


def without_encoding(tree):
    """The lines of the calls that open a text file or pipe in the encoding of the locale. ruff's PLW1514 misses half of them."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        first = call.args[0] if call.args else given.get("mode", ast.Constant("r"))
        mode = first.value if isinstance(first, ast.Constant) else None
        text_mode = method == "open" and isinstance(mode, str) and set(mode) <= set("rwax+t")
        pipe = any(isinstance(given.get(key), ast.Constant) and given[key].value for key in ("text", "universal_newlines"))
        if (text_mode or pipe or method in ("read_text", "write_text")) and "encoding" not in given:
            yield call.lineno


def test_every_text_file_and_pipe_is_opened_with_an_encoding():
    assert len(SOURCES) > 200
    for path in SOURCES:
        assert list(without_encoding(ast.parse(path.read_text(encoding="utf-8")))) == [], path
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = "".join(cell["source"]).split("\n") if cell["cell_type"] == "code" else []
            code = "\n".join("" if line.startswith(("%", "!")) else line for line in lines)
            assert list(without_encoding(ast.parse(code))) == [], path


def test_a_character_that_stdout_lacks_is_printed_as_a_question_mark(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    monkeypatch.setattr("sfrik.cli.shell.environment", dict)
    monkeypatch.setattr("sfrik.cli.shell.format_environment", lambda facts: [f"93.4 ± 0.3 – {NOT_TEXT}"])
    assert main(["env"]) == 0
    assert written.getvalue() == b"93.4 ? 0.3 ? caf?\n"


def test_a_worker_prints_utf_8_as_its_caller_reads(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="gbk"))
    replace_unprintable("utf-8")
    print(f"王 {NOT_TEXT}", flush=True)
    assert written.getvalue() == "王 caf?\n".encode()


def test_a_command_reads_its_files_where_the_locale_is_ascii(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "sfrik", "table", "all", "--profile", "digits", "--dry-run", "--results", tmp_path / "é"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 2
    assert b"has bytes that are not text in the encoding ascii: rename it, or set LC_ALL=C.UTF-8" in done.stderr
    shutil.copytree(ROOT / "results/digits/raw_pixels", tmp_path / "runs/digits/raw_pixels")
    command[-1] = tmp_path / "runs"
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.stdout.startswith(b"would render table1")


def test_what_is_not_text_is_written_as_an_escape(tmp_path):
    write_json(tmp_path / "a.json", {"path": NOT_TEXT})
    assert read_json(tmp_path / "a.json") == {"path": NOT_TEXT}
    write_text(tmp_path / "b.json", json.dumps({"path": NOT_TEXT}, ensure_ascii=False))  # as notebooks are written
    assert read_json(tmp_path / "b.json") == {"path": NOT_TEXT}


def test_paths_are_hidden_in_a_folder_whose_name_is_not_text(tmp_path, monkeypatch):
    try:
        (tmp_path / NOT_TEXT).mkdir()
    except OSError:
        pytest.skip("the file system accepts UTF-8 only")
    monkeypatch.chdir(tmp_path / NOT_TEXT)
    assert hide_paths()(f"{tmp_path / NOT_TEXT}/data") == "./data"


COMMANDS = {
    "table": ["table", "table1", "--profile", "smoke"],
    "a dry run": ["table", "table1", "--profile", "smoke", "--dry-run"],
    "run": ["run", "--recipe", "smoke/sfrik_l2_q64"],
    "chapters": ["chapters", "--profile", "smoke"],
    "pretrain": ["pretrain", "--recipe", "smoke/sfrik_l2_q64"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_folder_that_a_notebook_could_not_be_told_is_refused(arguments, tmp_path, capsys):
    """A Jupyter kernel would get the name with U+FFFD for the byte, and train into another folder."""
    flag = "--exp-dir" if arguments[0] == "pretrain" else "--results"
    assert main([*arguments, flag, str(tmp_path / NOT_TEXT)]) == 2
    assert r"caf\udce9' has bytes that are not text in the encoding utf-8: rename it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_of_a_notebook_is_text(tmp_path):
    with pytest.raises(SfrikError, match="not text"):
        execute("07_tables", {"root": NOT_TEXT}, tmp_path / "a.ipynb")
