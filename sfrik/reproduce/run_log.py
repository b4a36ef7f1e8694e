"""Why the last attempt of a run failed, in one line, from its log, `run.log`, to which each attempt is appended."""

from __future__ import annotations

import re

__all__ = ["attempt_header", "error_summary", "last_attempt", "reported_error"]

ATTEMPT = re.compile(r"^--- .* ---$", re.MULTILINE)  # the first line of each attempt
COLOUR = re.compile(r"\x1b\[[\d;]*m")
FRAME = re.compile(r"\s+File ")  # of a traceback


def attempt_header(command: str, time: str) -> str:
    """The first line of an attempt."""
    return f"--- {command}, {time} ---\n"


def last_attempt(log: str) -> str:
    """The output of the last attempt in a log, without colours."""
    return ATTEMPT.split(COLOUR.sub("", log))[-1]


def reported_error(output: str) -> str:
    """The last error in the output of a command, in one line; empty if there is none."""
    text = COLOUR.sub("", output)
    for sign in ("sfrik: error: ", "sfrik: ", "Traceback "):
        if found := list(re.finditer(f"^{sign}", text, re.MULTILINE)):
            return error_summary(text[found[-1].start() :])
    return ""


def error_summary(text: str) -> str:
    """An error message in one line: its first line, and of a traceback in it the line that names the exception."""
    lines = [line.rstrip() for line in text.removeprefix("sfrik: error: ").splitlines() if line.strip()]
    if not lines:
        return "no output"
    frames = [number for number, line in enumerate(lines) if FRAME.match(line)]
    causes = [line for line in lines[frames[-1] :] if not line[0].isspace()] if frames else []
    if lines[0].startswith("Traceback ") and causes:
        return causes[0]
    if not causes and lines[0].endswith(":"):
        causes = [line.strip() for line in lines[1:2]]
    return " ".join([lines[0].strip(), *causes[:1]])
