"""The commands that train and evaluate, and `sfrik memory`, which estimates the memory of pretraining."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from sfrik.cli.checks import check_folder, check_plan
from sfrik.cli.flags import (
    add_command,
    add_dry_run,
    add_nproc_per_node,
    add_recipe,
    add_settings,
    nproc_per_node,
    resolve_settings,
)
from sfrik.cli.output import CommandOutput, add_json
from sfrik.cli.plan import format_plan, headline
from sfrik.cli.summaries import summary
from sfrik.errors import SfrikError, WorkerError
from sfrik.launch.allocation import check_one_task
from sfrik.settings import SECTIONS, PretrainSettings, Settings, recipe_of
from sfrik.system.devices import explain_out_of_memory
from sfrik.system.files import check_text
from sfrik.system.processes import process_place
from sfrik.system.terminal import print_line, wrap

__all__ = ["COMMANDS", "MULTI_PROCESS", "add_memory", "add_training"]

MULTI_PROCESS = ("pretrain", "extract_features")  # commands that can split their work over processes
DESCRIPTIONS = {
    "pretrain": "Pretrain a backbone without labels.",
    "evaluate": "Evaluate a backbone by linear probing or fine-tuning. --train-percent 10 uses a tenth of the labels.",
    "extract_features": "Save the features of images to .npy files.",
    "knn_eval": "Evaluate features by weighted kNN, as DINO does.",
    "logistic_regression": "Evaluate features by logistic regression.",
    "transfer": "Evaluate a frozen backbone on another data set.",
}


def add_training(commands) -> None:
    """Add a command for each section of settings."""
    for section, work in COMMANDS.items():
        command = add_command(commands, section.replace("_", "-"), DESCRIPTIONS[section])
        add_recipe(command.group("run"))
        add_dry_run(command, "print settings, steps, memory and folder, and stop")
        add_json(command)
        if section in MULTI_PROCESS:
            add_nproc_per_node(command.group("run"), "processes on this machine, or per node of a SLURM job")
        add_settings(command, SECTIONS[section])
        command.set_defaults(run=_command(section, work), section=section)


def add_memory(commands) -> None:
    memory = add_command(commands, "memory", "Estimate the memory of pretraining. This needs neither data nor a GPU.")
    add_recipe(memory.group("run"))
    add_json(memory)
    add_nproc_per_node(memory.group("run"), "processes that share the batch (default: 1, 2, 4 and 8)")
    add_settings(memory, PretrainSettings)
    memory.set_defaults(run=_memory, section="pretrain")


def _command(section: str, work: Callable[[Any], dict[str, Any]]) -> Callable[[argparse.Namespace], CommandOutput]:
    """The function of a command: resolve its settings, then print the plan (`--dry-run`) or do the work."""

    def run(options: argparse.Namespace) -> CommandOutput:
        settings = resolve_settings(options)
        check_text(settings.exp_dir, *(getattr(settings, name, "") for name in ("pretrained", "ckp_path", "extraction_dir")))
        check_folder(settings.exp_dir, "--exp-dir")
        check_one_task()
        multi_process = section in MULTI_PROCESS
        nproc = nproc_per_node(options)
        by_torchrun = process_place().size
        if by_torchrun > 1 and nproc is not None:
            raise SfrikError("--nproc-per-node starts processes, but torchrun has already done so: use only one of them")
        if options.dry_run:
            return _plan(settings, multi_process, nproc or (by_torchrun if by_torchrun > 1 else None), options.recipe)
        _check_processes(settings, nproc)
        if process_place().rank == 0:
            print_line(headline(settings, nproc or by_torchrun))
            if not hasattr(options, "exp_dir") and not options.recipe:
                print_line("choose another folder with --exp-dir")
            elif not hasattr(options, "exp_dir") and recipe_of(settings.exp_dir) is None:
                print_line(f"tables do not read this folder, since the settings are not those of recipe {options.recipe}")
        outcome = _on_processes(work, settings, nproc)
        return CommandOutput(outcome, summary(section, settings, options.recipe, outcome))

    return run


def _on_processes(work: Callable[[Any], dict[str, Any]], settings: Settings, nproc: int | None) -> dict[str, Any]:
    """Run `work` in this process (which torchrun may have started), or on `nproc` processes started here."""
    from sfrik.launch.launcher import launch
    from sfrik.launch.worker import process_group

    if nproc is None:
        with process_group(settings.device):
            return work(settings)
    try:
        return launch(work, settings, nproc_per_node=nproc)
    except WorkerError as error:
        if error.mistake is not None:  # an error in the input: one line, as with one process
            raise SfrikError(error.mistake) from error
        raise


@explain_out_of_memory()
def _pretrain(settings):
    from sfrik.pretrain.loop import pretrain

    last = pretrain(settings)
    return {"weights": f"{settings.exp_dir}/backbone.safetensors", "last_epoch": last}


@explain_out_of_memory()
def _evaluate(settings):
    from sfrik.evaluate import evaluate

    return evaluate(settings)


@explain_out_of_memory()
def _extract(settings) -> dict[str, Any]:
    from sfrik.evaluate import extract_features

    return {"features": str(extract_features(settings))}


@explain_out_of_memory()
def _knn(settings):
    from sfrik.evaluate import knn_eval

    return knn_eval(settings)


@explain_out_of_memory()
def _logistic(settings):
    from sfrik.evaluate import logistic_regression

    return logistic_regression(settings)


@explain_out_of_memory()
def _transfer(settings):
    from sfrik.evaluate.transfer import transfer

    return transfer(settings)


COMMANDS = {
    "pretrain": _pretrain,
    "evaluate": _evaluate,
    "extract_features": _extract,
    "knn_eval": _knn,
    "logistic_regression": _logistic,
    "transfer": _transfer,
}


def _plan(settings: Settings, multi_process: bool, nproc: int | None, recipe: str | None) -> CommandOutput:
    """Settings, steps, images and expected memory on `nproc` processes; None: on 1, with `multi_process` also on 2, 4 and 8."""
    _check_processes(settings, nproc)
    if process_place().rank == 0:
        print_line("\n".join(wrap(headline(settings, nproc or 1))))
    check_plan(settings, nproc or 1)
    from sfrik.cost.memory import expected_images, expected_steps
    from sfrik.cost.report import memory_by_processes

    steps = expected_steps(settings)
    content = {
        "settings": settings.model_dump(mode="json"),
        "steps_per_epoch": steps[0] if steps else None,
        "epochs": steps[1] if steps else None,
        "images": expected_images(settings),
        "memory_gib": _with_totals(memory_by_processes(settings, nproc or (None if multi_process else 1))),
    }
    return CommandOutput(content, format_plan(settings, nproc, multi_process, recipe))


def _memory(options: argparse.Namespace) -> CommandOutput:
    settings, nproc = resolve_settings(options), nproc_per_node(options)
    assert isinstance(settings, PretrainSettings)
    _check_processes(settings, nproc)
    from sfrik.cost.report import format_memory, memory_by_processes

    memory = memory_by_processes(settings, nproc)
    return CommandOutput(_with_totals(memory), format_memory(settings, memory))


def _with_totals(memory: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {str(count): {**parts, "total": sum(parts.values())} for count, parts in memory.items()}


def _check_processes(settings: Settings, nproc: int | None) -> None:
    """Check that a training's batch can be divided over processes on one node. In extraction the batch size is per process."""
    if nproc and isinstance(settings, PretrainSettings):
        import torch

        on_gpus = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        settings.check_processes(nproc, synchronised=on_gpus)
