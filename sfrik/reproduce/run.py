"""One run: its missing stages, executed one after the other in one kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sfrik.errors import Preempted, SfrikError
from sfrik.reproduce.kernel import Kernel
from sfrik.reproduce.notebooks import execute
from sfrik.reproduce.present import PresentImages
from sfrik.reproduce.stages import (
    DEFAULT_STAGES,
    STAGES,
    PlannedRun,
    check_images,
    check_run,
    missing_stages,
    refusal,
    score_problems,
)
from sfrik.runs.folder import Run
from sfrik.runs.refusals import refuse_published
from sfrik.settings import run_folder
from sfrik.system.signals import RUN_GRACE, stop, stop_at_end_of_stdin, stop_at_once, stop_requests
from sfrik.system.terminal import print_line

__all__ = ["STOP_AT_END_OF_STDIN", "run_recipe"]

STOP_AT_END_OF_STDIN = "SFRIK_STOP_AT_END_OF_STDIN"  # set by a process that starts a run and holds its stdin open


def run_recipe(
    recipe: str,
    seed: int,
    root: str | Path | None = None,
    stages: Sequence[str] = DEFAULT_STAGES,
    data_dir: str = "",
    nproc_per_node: int | None = None,
) -> None:
    """Execute the notebooks of a run that are not finished; the executed copies are in the run's folder.

    Waits for another process that works on the run. The file state.json holds what the run is doing, or why it stopped, for
    `sfrik status`.

    Args:
        root: the folder of the results.
        data_dir: the folder of the images; the recipe's when empty.
        nproc_per_node: processes of the pretraining on each node.

    Raises:
        SfrikError: an unknown recipe or stage, a folder that holds another run, or a notebook failed.
        Preempted: SIGTERM, SIGUSR1 or SIGHUP asked this process to stop, or SLURM its workers.
        KeyboardInterrupt: SIGINT asked it to stop.
    """
    check_run(recipe, stages)  # before any folder is made
    run = Run(run_folder(recipe, seed, root))
    refuse_published(run.folder)
    started_by_table = os.environ.pop(STOP_AT_END_OF_STDIN, None)  # not for the kernel
    if started_by_table:
        stop_at_end_of_stdin(RUN_GRACE)
    with stop_at_once(), run.lock("run.lock", wait=True, optional=True):
        _wait_for_writers(run)
        present = PresentImages(data_dir)
        if reason := refusal(recipe, seed, root, present):
            raise SfrikError(reason)
        with stop_requests() as requests, Kernel() as kernel:
            name = ""
            try:
                missing = missing_stages(recipe, seed, root, stages, present)
                if not started_by_table:  # which has checked them
                    check_images([PlannedRun(recipe, seed, tuple(missing))], data_dir)
                for name in missing:
                    stage = STAGES[name]
                    print_line(f"{recipe} seed {seed}: {stage.notebook}")
                    parameters = {"recipe": recipe, "seed": seed, "exp_dir": str(run.folder)}
                    parameters |= stage.parameters | ({"data_dir": data_dir} if data_dir else {})
                    parameters |= {"nproc_per_node": nproc_per_node} if nproc_per_node and name == "pretrain" else {}
                    run.update_status("running", stage=name)
                    if requests.number:  # between two notebooks, each of which handles signals itself
                        stop(requests.number, f"before {stage.notebook}")
                    execute(stage.notebook, parameters, run.folder / stage.copy, kernel, explore=False)
                    if problems := score_problems(recipe, seed, root, [name]):  # of a notebook whose cells were changed
                        raise SfrikError(f"notebook {stage.notebook} measured something else: {'; '.join(problems)}")
            except (Preempted, KeyboardInterrupt):
                if missing_stages(recipe, seed, root, stages, present):
                    run.update_last_status("preempted", stage=name)
                else:  # the request came when everything was done
                    run.clear_status()
                raise
            except Exception as error:
                known = isinstance(error, SfrikError | OSError)
                run.update_last_status("failed", stage=name, error=str(error) if known else f"{type(error).__name__}: {error}")
                raise
            run.clear_status()


def _wait_for_writers(run: Run) -> None:
    """Wait for processes that write the folder without `run.lock`: another command, or workers that outlive a killed run."""
    for name in ("lock", *(path.name for path in run.folder.glob("*.lock") if path.name != "run.lock")):
        with run.lock(name, wait=True, optional=True):
            pass
