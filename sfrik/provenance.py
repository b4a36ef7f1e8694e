"""Where a number comes from: commit, versions, hardware, command."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import sfrik

__all__ = ["commit", "now", "processor", "provenance", "version"]


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
    """The command line, with absolute paths left out; "notebook" in a kernel."""
    if "ipykernel" in sys.argv[0]:
        return "notebook"
    arguments = [re.sub(r"(^|=)(/|~|[A-Za-z]:\\).*", r"\1<path>", argument) for argument in sys.argv[1:]]
    return " ".join([Path(sys.argv[0]).name, *arguments])


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


def commit() -> str:
    """The commit of the code that runs, with "-dirty" where files of it differ; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # results/ is written by the run itself and says nothing about the code
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":/sfrik", ":/notebooks")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
