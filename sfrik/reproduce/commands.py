"""The command of a table, as the user would type it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from sfrik.settings import runs_root

__all__ = ["table_command"]


def table_command(
    name: str,
    profile: str,
    root: str | Path | None = None,
    seeds: int = 1,
    data_dir: str = "",
    render_only: bool = False,
) -> str:
    """`make table1 ...` in a command that make started (the Makefile sets SFRIK_MAKE), else `python -m sfrik table table1 ...`.

    SFRIK_MAKE is VENV=..., or empty where make was called without.

    Args:
        name: table1, table2, ..., or all.
        root: the folder of the runs; `runs_root()` when None.
    """
    elsewhere = str(root) if root is not None and Path(root).resolve() != runs_root().resolve() else ""
    environment = os.environ.get("SFRIK_MAKE")
    if environment is not None and not render_only:
        given = {"PROFILE": "" if profile == "digits" else profile, "SEEDS": str(seeds) if seeds > 1 else ""}
        given |= {"RESULTS": elsewhere, "DATA": data_dir}
        target = "tables" if name == "all" else name
        variables = [f"{variable}={value}" for variable, value in given.items() if value]
        return shlex.join(["make", target, *([environment] if environment else []), *variables])
    words = ["python", "-m", "sfrik", "table", name, "--profile", profile]
    for flag, value in (("--results", elsewhere), ("--seeds", str(seeds) if seeds > 1 else ""), ("--data-dir", data_dir)):
        words += [f"{flag}={value}"] if value.startswith("-") else [flag, value] if value else []
    return shlex.join([*words, *(["--render-only"] if render_only else [])])
