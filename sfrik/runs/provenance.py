"""Where a number comes from: commit, versions, hardware, command; and paths made fit to be published."""

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
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import sfrik

__all__ = ["commit", "hide_paths", "now", "processor", "provenance", "version"]

CHECKOUT = Path(__file__).parents[2]
BEFORE = r"(?:(?<![\w.~-])|(?<=\dm|\\n))"  # where a path may begin: no part of a name, or the end of a colour or of a line


def provenance(device: str, precision: str, processes: int) -> dict[str, Any]:
    """Where a run comes from: no path and no host name, so that it can be published."""
    import torch  # here: who asks for a commit or the time does without

    return {
        "commit": commit(),
        "started": now(),
        "command": _command(),
        "versions": {
            "python": platform.python_version(),
            "sfrik": sfrik.__version__,
            **{package: version(package) for package in ("torch", "torchvision", "numpy", "scikit-learn")},
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
    """The command line, its paths by `hide_paths`; "notebook" in a kernel."""
    if "ipykernel" in sys.argv[0]:
        return "notebook"
    hide = hide_paths(argument.split("=", 1)[-1] for argument in sys.argv[1:])
    return " ".join([Path(sys.argv[0]).name, *map(hide, sys.argv[1:])])


def hide_paths(given: Iterable[str] = ()) -> Callable[[str], str]:
    """A function of a text that replaces the paths in it which name the user or folders of the machine.

    The checkout and the working directory become `.`, the home folder `~`. Of every other path that was given, `.../imagenet` is
    left, and so it is of the folders of Python and of temporary files. Any other absolute path is cut up to the user's name.

    Args:
        given: what the user gave, such as the parameters of a notebook; a text that is no path has no effect. A relative path
            counts where it leads out of the working directory.
    """
    inside = {form: short for short, place in (("~", Path.home()), (".", CHECKOUT), (".", Path.cwd())) for form in _forms(place)}
    inside.pop(os.sep, None)  # a container may start there
    places = dict(inside)
    ours = (sys.prefix, sys.base_prefix, tempfile.gettempdir())
    for text in (*ours, *(text for text in given if text.startswith("~") or "/" in text or os.sep in text)):
        expanded = os.path.expanduser(text)
        for form in _forms(Path(expanded)):
            folder = Path(form)
            if folder.parent != folder and not any(folder.is_relative_to(known) for known in inside):
                places |= {str(above): "..." for above in folder.parents if len(above.parts) > 2}
                places |= {form: f".../{folder.name}"} if text not in ours or len(folder.parts) > 2 else {}
        if not os.path.isabs(text) and (".." in Path(text).parts or expanded != text):
            places[text] = _replacing(places)(os.path.abspath(expanded))
    replace = _replacing(places)
    return lambda text: _without_user(replace(text))


def _forms(path: Path) -> set[str]:
    """An absolute path as it is written, and without symbolic links."""
    forms = {os.path.abspath(path)}
    with suppress(OSError, RuntimeError, ValueError):
        forms.add(os.path.realpath(path))
    return forms


def _replacing(places: dict[str, str]) -> Callable[[str], str]:
    """Replace each folder that occurs in a text, the longest first; also as HTML, JSON, Python and URLs spell it."""
    spelt: dict[str, str] = {}
    for place, short in places.items():
        for form in (place, html.escape(place), json.dumps(place)[1:-1], repr(place)[1:-1], urllib.parse.quote(place)):
            spelt.setdefault(form, short)
    # /root is not the end of /mnt/root; a path of several parts is found wherever it begins, as in -I/home/me/include
    forms = (
        rf"{'' if form.count('/') > 1 else BEFORE}{re.escape(form)}(?![\w-])" for form in sorted(spelt, key=len, reverse=True)
    )
    pattern = re.compile("|".join(forms))
    return lambda text: pattern.sub(lambda found: spelt[found[0]], text) if spelt else text


def _without_user(text: str) -> str:
    """Cut an absolute path up to a part that is the user's name, as in /scratch/NAME/results. Web addresses stay."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container that has no entry for the user
        return text
    return re.sub(rf"{BEFORE}(?<![<:/])(?:/[\w.+-]+)*/{re.escape(user)}(?![\w-])", "...", text) if user in text else text


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def commit() -> str:
    """The commit of the code that runs, with "-dirty" where files of it differ; "unknown" outside a checkout."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # results/ is written by the run itself and says nothing about the code
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":/sfrik", ":/notebooks")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
