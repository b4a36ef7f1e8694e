"""Provenance of a run: commit, versions, hardware and command, without paths that identify the user or machine."""

from __future__ import annotations

import getpass
import html
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import sfrik
from sfrik.errors import SfrikError
from sfrik.system.files import read_toml

__all__ = ["HARDWARE", "code", "commit", "format_code", "hide_paths", "now", "processor", "provenance", "version"]

GIT_SECONDS = 60  # until a checkout on a file system that does not answer counts as none
GIT_KEPT = ("GIT_CONFIG", "GIT_EXEC_PATH")  # such as safe.directory
CHECKOUT = Path(__file__).parents[2]
HARDWARE = ("device", "precision", "processes", "threads")  # what provenance.json names as the hardware
DETERMINES_RESULTS = ("sfrik", "notebooks", "pyproject.toml")
PATH_START = r"(?:(?<![\w.~-])|(?<=\dm|\\n))"  # not within a name, or right after a colour code or an escaped newline


def provenance(device: str, precision: str, processes: int) -> dict[str, Any]:
    """The provenance of a run that starts now, without paths and host names, so that it can be published.

    Args:
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16".
        processes: The number of processes.
    """
    import torch  # not needed for the other functions of this module

    return {
        "commit": commit(),
        "started": now(),
        "command": _command(),
        "versions": {
            "python": platform.python_version(),
            "sfrik": sfrik.__version__,
            **{package: version(package) for package in ("torch", "torchvision", "timm", "numpy", "scikit-learn")},
        },
        "hardware": {
            "device": torch.cuda.get_device_name() if device == "cuda" else f"{device}: {processor()}",
            "precision": precision,
            "processes": processes,
            "threads": torch.get_num_threads(),
        },
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _command() -> str:
    """The command line after `hide_paths`; "notebook" in a Jupyter kernel."""
    if "ipykernel" in sys.argv[0]:
        return "notebook"
    hide = hide_paths(argument.split("=", 1)[-1] for argument in sys.argv[1:])
    return " ".join([Path(sys.argv[0]).name, *map(hide, sys.argv[1:])])


def hide_paths(given: Iterable[str] = ()) -> Callable[[str], str]:
    """Make a function that replaces the paths in a text that identify the user or the machine.

    The checkout and the working directory become ``.`` and the home folder becomes ``~``. Every other path in `given`, and the
    folders of Python and of temporary files, are shortened to their last part, such as ``.../imagenet``. Any other absolute path
    that contains the user's name is shortened up to it.

    Args:
        given: The user's input, such as the parameters of a notebook. Texts that are not paths have no effect; relative paths
            have one only if they lead out of the working directory.

    Returns:
        The function, from text to text.
    """
    known = {form: short for short, path in (("~", Path.home()), (".", CHECKOUT), (".", Path.cwd())) for form in _forms(path)}
    known.pop(os.sep, None)  # the working directory of a container may be the root
    replacements = dict(known)
    system = (sys.prefix, sys.base_prefix, tempfile.gettempdir())
    for text in (*system, *(text for text in given if text.startswith("~") or "/" in text or os.sep in text)):
        expanded = os.path.expanduser(text)
        for form in _forms(Path(expanded)):
            folder = Path(form)
            if folder.parent != folder and not any(folder.is_relative_to(path) for path in known):
                replacements |= {str(parent): "..." for parent in folder.parents if len(parent.parts) > 2}
                replacements |= {form: f".../{folder.name}"} if text not in system or len(folder.parts) > 2 else {}
        if not os.path.isabs(text) and (".." in Path(text).parts or expanded != text):
            replacements[text] = _replacer(replacements)(os.path.abspath(expanded))
    replace = _replacer(replacements)
    return lambda text: _hide_user(replace(text))


def _forms(path: Path) -> set[str]:
    """The absolute path as given, and with symbolic links resolved."""
    forms = {os.path.abspath(path)}
    with suppress(OSError, RuntimeError, ValueError):
        forms.add(os.path.realpath(path))
    return forms


def _replacer(replacements: dict[str, str]) -> Callable[[str], str]:
    """Make a function that replaces paths in a text, longest first, also those escaped for HTML, JSON, Python or URLs."""
    spellings: dict[str, str] = {}
    for path, short in replacements.items():
        for form in (path, html.escape(path), json.dumps(path)[1:-1], repr(path)[1:-1], urllib.parse.quote(os.fsencode(path))):
            spellings.setdefault(form, short)
    # /root is not replaced within /mnt/root; paths with several components are replaced anywhere, as in -I/home/me/include
    forms = (
        rf"{'' if form.count('/') > 1 else PATH_START}{re.escape(form)}(?![\w-])"
        for form in sorted(spellings, key=len, reverse=True)
    )
    pattern = re.compile("|".join(forms))
    return lambda text: pattern.sub(lambda match: spellings[match[0]], text) if spellings else text


def _hide_user(text: str) -> str:
    """Shorten absolute paths up to the user's name, as in /scratch/NAME/results. URLs are unchanged."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # in a container without an entry for the user
        return text
    return re.sub(rf"{PATH_START}(?<![<:/])(?:/[\w.+-]+)*/{re.escape(user)}(?![\w-])", "...", text) if user in text else text


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def commit() -> str | None:
    """The commit of the running code, with "-dirty" appended if what determines results differs from it.

    That is the package with its recipes, the notebooks and pyproject.toml, and new files there that git does not ignore. None
    outside a clone of this project, even if a folder above belongs to some repository.
    """
    try:
        # the folder is the top level of its repository, which tracks this very file
        if _git("rev-parse", "--show-prefix"):
            return None
        _git("ls-files", "--error-unmatch", "--", Path(__file__).relative_to(CHECKOUT), "pyproject.toml")
        if read_toml(CHECKOUT / "pyproject.toml").get("project", {}).get("name") != "sfrik":
            return None
        dirty = _git("status", "--porcelain", "--untracked-files=all", "--", *DETERMINES_RESULTS)
        return _git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError, SfrikError):
        return None


def _git(*arguments: str | Path) -> str:
    """The output of a git command in the checkout, whatever repository a git hook's environment names."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(GIT_KEPT)}
    command = ["git", "--no-optional-locks", "-C", CHECKOUT, *arguments]  # `git status` would write the index
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, check=True, timeout=GIT_SECONDS, env=environment, **pipes)
    return done.stdout.strip()


def code() -> dict[str, str | None]:
    """What a score records of the code: the version of the package and, in a clone of this project, the commit."""
    return {"sfrik": sfrik.__version__, "commit": commit()}


def format_code(record: Mapping[str, Any]) -> str:
    """The code that a provenance or a score names, for a reader: the commit, shortened, else the version, else nothing."""
    found = record.get("commit") or "unknown"  # earlier releases wrote "unknown"
    if found == "unknown":
        release = record.get("sfrik") or record.get("versions", {}).get("sfrik")
        return f"sfrik {release}" if release else ""
    digits, dash, dirty = found.partition("-")
    return f"{digits[:12]}{dash}{dirty}"


def now() -> str:
    """The time in UTC, in ISO 8601 format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
