"""Output that cannot be printed: closed streams, full disks, readers that are gone, characters that the encoding lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfrik.system.terminal import align, is_terminal, paint, print_line

ROOT = Path(__file__).parents[2]
# What a command does around its work, and lines larger than Python's buffer; then the work is done.
WORK = """
import sys
from pathlib import Path
from sfrik.system.progress import Bar
from sfrik.system.terminal import open_standard_streams, print_line, tolerate_output_errors
open_standard_streams()
data = open(sys.argv[1], "w", encoding="utf-8")
for number in range(300):
    print_line(f"line {number} " + 100 * "x")
    print_line(f"error {number} " + 100 * "y", error=True)
bar = Bar()
bar.show(1, 2, "half")
bar.write("a line above the bar")
bar.close()
data.write("done")
for stream in (sys.stdout, sys.stderr):
    with tolerate_output_errors(stream):
        stream.flush()
"""


@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&-", "<&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | head -n 1"])
def test_work_whose_output_cannot_be_printed_is_done(tmp_path, streams):
    script, path = tmp_path / "work.py", tmp_path / "data"
    script.write_text(WORK, encoding="utf-8")
    command = f"set -o pipefail; '{sys.executable}' '{script}' '{path}' {streams}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done
    assert path.read_text(encoding="utf-8") == "done", "a file with the number of a closed stream holds what was printed"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_stream_works_again_when_its_disk_has_space_again(tmp_path, monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_line("lost")
        with open(tmp_path / "log", "w", encoding="utf-8") as there:
            os.dup2(there.fileno(), stream.fileno())
        print_line("printed")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "printed\n"


def test_what_the_encoding_lacks_is_printed_as_a_question_mark(tmp_path, monkeypatch):
    with open(tmp_path / "log", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_line("é – ü")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "? ? ?\n"


def test_a_closed_stream_is_no_terminal(tmp_path):
    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        pass
    assert not is_terminal(stream)
    assert not is_terminal(None)


def test_wide_and_combining_characters_take_the_columns_that_a_terminal_gives_them():
    assert align([("写真", "1"), ("e\u0301te\u0301", "2"), ("abcd", "3")]) == ["写真  1", "e\u0301te\u0301   2", "abcd  3"]


def test_columns_are_aligned_whatever_colours_dashes_and_lines_a_cell_has(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    bold = paint("9.0", "bold")
    lines = align([("method", "q", "score"), ("a long\nname", "–", bold), ("b", "512", "10.0 ± 0.5")], right=[1, 2])
    assert lines == [
        "method    q       score",
        f"a long    –         {bold}",
        "name",
        "b       512  10.0 ± 0.5",
    ]
