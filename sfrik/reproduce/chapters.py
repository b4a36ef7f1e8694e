"""The notebooks as a reader sees them, executed from the first to the last into <root>/<profile>/notebooks.

`sfrik run` executes notebooks 02 to 05 for a run of a table, without the cells that are only for a reader. Here they are executed
whole, on a separate run in <root>/<profile>/chapters, so that no score of a table is measured again.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sfrik.reproduce.kernel import Kernel
from sfrik.reproduce.notebooks import execute
from sfrik.reproduce.table import render_lock, writable_root
from sfrik.settings import load_recipe
from sfrik.system.locks import folder_lock
from sfrik.system.signals import stop_at_once
from sfrik.system.terminal import print_line
from sfrik.tables.definitions import tables_of
from sfrik.tables.rows import DIMS

__all__ = ["execute_chapters"]

RENDERED = ("01_kernel_theory", "07_tables")  # these write figures and tables, as `sfrik table` does


def execute_chapters(profile: str = "digits", root: str | Path | None = None, data_dir: str = "") -> dict[str, float]:
    """Execute the notebooks with their default parameters; 06 only for a profile that has tables 5 and 6.

    A finished run in <root>/<profile>/chapters is shown as it is; remove that folder to train again. Waits for another process
    that executes the notebooks of this profile.

    Args:
        root: the folder of the results.
        data_dir: the folder of the images; the recipe's when empty.

    Returns:
        Seconds by notebook.
    """
    tables = tables_of(profile)  # an unknown profile is an error before any kernel is started
    folder = writable_root(profile, root) / profile
    recipe = f"{profile}/sfrik_l3_q{DIMS[profile][-1]}"
    load_recipe(recipe)
    of_run: dict[str, Any] = {
        "recipe": recipe,
        "exp_dir": str(folder / "chapters"),
        **({"data_dir": data_dir} if data_dir else {}),
    }
    short = {"collapse_recipe": recipe, "collapse_epochs": 2, "collapse_subset": 13, "ddp_epochs": 1}
    parameters: dict[str, dict[str, Any]] = {
        "01_kernel_theory": {"figures": str(folder / "figures")},
        "02_pretraining": {**of_run, **(short if profile == "smoke" else {"beside": f"{profile}/sfrik_l1_q{DIMS[profile][-1]}"})},
        "03_linear_probing": of_run,
        "04_semi_supervised": of_run,
        "05_knn_and_logistic_regression": of_run,
        "06_complexity": {"profile": profile, "exp_dir": str(folder / "complexity" / "seed0")},
        "07_tables": {"profile": profile, "root": str(folder.parent)},
    }
    if "table6" not in tables:
        del parameters["06_complexity"]  # of random embeddings, as in the other profiles
    seconds = {}
    with stop_at_once(), folder_lock(folder / "chapters", "run.lock", wait=True), Kernel() as kernel:
        for name, values in parameters.items():
            with render_lock(profile, folder.parent) if name in RENDERED else nullcontext():
                started = time.monotonic()
                execute(name, values, folder / "notebooks" / f"{name}.ipynb", kernel)
            seconds[name] = time.monotonic() - started
            print_line(f"{name}: {seconds[name]:.0f} s")
    return seconds
