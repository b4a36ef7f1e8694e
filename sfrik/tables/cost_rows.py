"""Rows and columns of tables 5 and 6, which compare costs: a row is a method at one size, stored as an entry of a shared file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.records import Costs
from sfrik.runs.refusals import refuse_published
from sfrik.settings import as_whole, run_folder
from sfrik.system.files import path_exists
from sfrik.system.records import read_record
from sfrik.tables.rows import Column, Row, paper_figures

__all__ = [
    "BASELINE",
    "PLAIN",
    "ROUNDS",
    "STEP_BATCH",
    "check_cost_folder",
    "complexity_columns",
    "cost_folder",
    "cost_problem",
    "cost_settings",
    "load_note",
    "read_costs",
    "table5_rows",
    "table6_rows",
    "unit_of",
]


def _rows(profile: str, sizes: dict[str, tuple], with_paper: Callable[[str, int, int], dict]) -> list[Row]:
    """One row for each method, q and batch size."""
    methods, dims, batches = sizes[profile]
    return [
        Row(
            method,
            q,
            f"{profile}/complexity",
            with_paper(method, q, n),
            labels={"batch size": str(n)},
            entry=f"{method}{ENTRY}{q} n={n}",
        )
        for q in dims
        for n in batches
        for method in methods
    ]


# Images per step, in profiles where a step with the batch size of the loss takes minutes or more memory than one GPU has.
STEP_BATCH = {"smoke": 16, "digits": 256, "paper": 256}
ROUNDS = 5  # timings per method in the tables
MOST_ROUNDS = 100_000
QUIET = 0.1  # of the cores: a machine is quiet if other processes keep at most this part of them busy
PLAIN = " plain"  # suffix of a method: the formula of its paper with autograd, as in the authors' code
ENTRY = " q="  # part of the name of every entry
BASELINE = "VICReg plain"  # ratios are relative to this method
BOTH = ("VICReg plain", "SFRIK L=3 plain", "VICReg", "SFRIK L=3", "SIGReg")
ALL = (
    "VICReg plain",
    "SimCLR plain",
    "AUH plain",
    "SFRIK L=3 plain",
    "VICReg",
    "SimCLR",
    "AUH",
    "SFRIK L=2",
    "SFRIK L=3",
    "SIGReg",
)
# Methods, dimensions and batch sizes of each profile.
TABLE5 = {
    "smoke": (BOTH, (512,), (64, 128)),
    "digits": (BOTH, (4096,), (256, 512, 1024, 2048)),
    "cifar10": (BOTH, (8192,), (256, 512, 1024, 2048)),
    "paper": (BOTH, (32768,), (256, 512, 1024, 2048)),
}
TABLE6 = {
    "smoke": (ALL, (64, 128), (64,)),
    "digits": (ALL, (256, 512, 1024, 2048, 4096, 8192), (512,)),
    "cifar10": (ALL, (512, 1024, 2048, 4096, 8192), (512,)),
    "paper": (ALL, (2048, 4096, 8192, 16384, 32768), (2048,)),
}


def read_costs(path: Path) -> dict[str, Any]:
    """The measurements for table 5 or 6: one object per entry, the hardware and the commit; empty if the file does not exist.

    Raises:
        SfrikError: the file cannot be read or has another content; the message names it.
    """
    found = read_record(path, Costs) if path_exists(path) else {}
    for name, value in found.items():
        kinds = {"hardware": str, "commit": str | None, "settings": dict}
        expected = kinds.get(name, dict if ENTRY in name else object)
        if not isinstance(value, expected):
            raise SfrikError(f"{path}: {name} is {str(value)[:60]!r}, not a record of costs: move the file away and run again")
    return found


def cost_settings(table: str, profile: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """The settings of a measurement of costs, which its file records.

    Raises:
        SfrikError: rounds is no whole number from 1 to 100000.
    """
    return {"table": table, "profile": profile, "rounds": as_whole(rounds, "rounds", 1, MOST_ROUNDS)}


def cost_problem(found: dict[str, Any], table: str, profile: str, rounds: int = ROUNDS) -> str:
    """Why measurements are not those of a table of a profile; empty if nothing contradicts it."""
    ours, theirs = cost_settings(table, profile, rounds), found.get("settings", {})
    differences = [f"{name} {theirs[name]!r} -> {value!r}" for name, value in ours.items() if theirs.get(name, value) != value]
    return f"{table}.json was measured with other settings ({'; '.join(differences)})" if differences else ""


def load_note(loads: Sequence[dict[str, Any] | None], only_problems: bool = False) -> str:
    """Whether the machine was quiet in each repetition of a measurement; empty without any.

    Args:
        loads: what each repetition recorded (`sfrik.cost.load`), None if nothing.
        only_problems: leave out that it was quiet.
    """
    busy = [load for load in loads if load and (_busy_cores(load) or 0.0) > QUIET * load["cores"]]
    unknown = [load for load in loads if not load or _busy_cores(load) is None]
    parts = []
    if busy:
        most = max(busy, key=lambda load: (_busy_cores(load) or 0.0) / load["cores"])
        averages = " and ".join(f"{most[name]:.1f} {name}" for name in ("before", "after") if most.get(name) is not None)
        of_all = f" in {len(busy)} of {len(loads)} repetitions" if len(loads) > 1 else ""
        parts.append(
            f"The machine was not quiet{of_all}: other processes kept up to "
            f"{_busy_cores(most):.1f} of {most['cores']} cores busy (load average {averages}). Measure again without them."
        )
    if unknown:
        of_all = f" in {len(unknown)} of {len(loads)} repetitions" if 0 < len(unknown) < len(loads) else ""
        parts.append(f"Whether the machine was quiet was not recorded{of_all}.")
    if loads and not parts and not only_problems:
        most = max(_busy_cores(load) or 0.0 for load in loads if load)
        parts.append(f"The machine was quiet: other processes kept at most {most:.1f} cores busy.")
    return " ".join(parts)


def _busy_cores(load: dict[str, Any]) -> float | None:
    """The cores that other processes kept busy; where the system does not report them, the load average before."""
    return load["before"] if load["others"] is None else load["others"]


def unit_of(recipe: str) -> str:
    """What the number of a run is: a "seed", or a "repetition" of PROFILE/complexity, the measurements of tables 5 and 6."""
    return "repetition" if recipe.split("/")[1:2] == ["complexity"] else "seed"


def cost_folder(profile: str, seed: int, rounds: int = ROUNDS) -> Path:
    """The folder of a measurement: the one that tables 5 and 6 read, or one beside it for another number of rounds.

    Raises:
        SfrikError: seed or rounds is no whole number within its bounds.
    """
    rounds = as_whole(rounds, "rounds", 1, MOST_ROUNDS)
    folder = run_folder(f"{profile}/complexity", as_whole(seed, "seed", 0, 2**32 - 1))
    return folder if rounds == ROUNDS else folder.with_name(f"{folder.name}-rounds_{rounds}")


def check_cost_folder(folder: Path, table: str, profile: str, rounds: int) -> None:
    """Refuse to measure another profile, or with other rounds, into a folder <profile>/complexity/seed<k>, which tables read.

    Raises:
        SfrikError: the settings that differ are named.
    """
    refuse_published(folder)
    of, kind, seed = ("", "", "", *folder.absolute().parts)[-3:]
    read = of in TABLE6 and kind == "complexity" and re.fullmatch("seed[0-9]+", seed)
    if read and (problem := cost_problem({"settings": cost_settings(table, profile, rounds)}, table, of)):
        raise SfrikError(f"{folder} is read by tables 5 and 6, but {problem}: choose another exp_dir")


def table5_rows(profile: str) -> list[Row]:
    """Methods and batch sizes at one q."""
    figures = paper_figures()["memory_q32768"]

    def paper(method: str, q: int, n: int) -> dict[str, float]:
        of_method = dict(zip(figures["batch_size"], figures.get(method.split()[0], ()), strict=False))
        return {"peak": of_method[n]} if method.endswith(PLAIN) and n in of_method else {}

    return _rows(profile, TABLE5, paper)


def table6_rows(profile: str) -> list[Row]:
    """Methods and dimensions at one batch size."""
    figures = paper_figures()["time_and_memory"]

    def paper(method: str, q: int, n: int) -> dict[str, str]:
        said = figures.get(f"q{q}")
        return {"against_vicreg": said} if method == f"SFRIK L=3{PLAIN}" and said else {}

    return _rows(profile, TABLE6, paper)


def complexity_columns(table: str, profile: str) -> list[Column]:
    """Columns of the measured costs. Table 6 has those of a whole training step, table 5 only on a GPU."""
    cost = partial(Column, score=table, better="lower")
    columns = [
        Column("product_ms", "one product of n x n x q", table, ("product_ms",), "ms", better=""),
        cost("loss_ms", "loss, forward and backward", key=("loss_ms",), unit="ms"),
        cost("loss_products", "loss in products of n x n x q", key=("loss_products",), unit="", digits=2),
        cost("loss_mib", "peak memory of the loss", key=("loss_mib",), unit="MiB", digits=0),
        cost("loss_time_ratio", f"time of the loss / {BASELINE}", key=("loss_time_ratio",), unit="", digits=3),
        cost("loss_memory_ratio", f"memory of the loss / {BASELINE}", key=("loss_memory_ratio",), unit="", digits=2),
    ]
    on_gpu = profile in ("cifar10", "paper")
    if table == "table6" or on_gpu:
        batch = f" of {STEP_BATCH[profile]} images" if profile in STEP_BATCH else ""
        columns.append(cost("step_ms", f"whole step{batch}", key=("step_ms",), unit="ms"))
        columns.append(cost("step_time_ratio", f"time of a step / {BASELINE}", key=("step_time_ratio",), unit="", digits=2))
    if on_gpu:
        columns.append(cost("step_mib", "peak memory of a step", key=("step_mib",), unit="MiB", digits=0))
        columns.append(cost("step_memory_ratio", f"memory of a step / {BASELINE}", key=("step_memory_ratio",), unit="", digits=2))
    return columns
