"""The commands that train and evaluate, and `sfrik memory`, which says what that needs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from sfrik.cli.flags import add_command, add_processes, add_recipe, add_settings, processes, resolve
from sfrik.cli.output import Answer, add_json
from sfrik.cli.summaries import summary
from sfrik.errors import SfrikError, WorkerError
from sfrik.settings import SECTIONS, PretrainSettings, Settings

__all__ = ["COMMANDS", "add_memory", "add_training"]

SEVERAL = ("pretrain", "extract_features")  # commands that share their work among processes
WORDS = {
    "pretrain": "Train a backbone without labels.",
    "evaluate": "Linear probing on the frozen backbone, or fine-tuning with 1, 10 or 100 % of the labels.",
    "extract_features": "Write the features of the training and the test images as .npy files.",
    "knn_eval": "Weighted kNN on features, DINO's protocol.",
    "logistic_regression": "Logistic regression on features.",
    "transfer": "The frozen backbone on another data set's images.",
}


def add_training(commands) -> None:
    """A command for each kind of settings."""
    for section, work in COMMANDS.items():
        command = add_command(commands, section.replace("_", "-"), WORDS[section])
        add_recipe(command)
        command.add_argument("--dry-run", "--dry_run", action="store_true", help="print what would run, touch no data")
        add_json(command)
        if section in SEVERAL:
            add_processes(
                command,
                "start N processes, on every node of a SLURM allocation; without it this process is the only one, or torchrun's",
            )
        add_settings(command, SECTIONS[section])
        command.set_defaults(run=_command(section, work), section=section)


def add_memory(commands) -> None:
    words = "The memory that a pretraining will need, by part; touches no data."
    memory = add_command(commands, "memory", words)
    add_recipe(memory)
    add_json(memory)
    add_processes(memory, "processes that share the batch; 1, 2, 4 and 8 when unset")
    add_settings(memory, PretrainSettings)
    memory.set_defaults(run=_memory, section="pretrain")


def _command(section: str, work: Callable[[Any], dict[str, Any]]) -> Callable[[argparse.Namespace], Answer]:
    """A command: resolve the settings, then tell them or do the work."""

    def run(options: argparse.Namespace) -> Answer:
        settings = resolve(options)
        several = section in SEVERAL
        nproc = processes(options)
        there = int(os.environ.get("WORLD_SIZE", "1"))  # processes, where torchrun has started them
        if there > 1 and not several:
            raise SfrikError("the evaluations run in one process: start them without torchrun")
        if there > 1 and nproc is not None:
            raise SfrikError("--nproc-per-node starts processes, and torchrun has done so already: leave one of them out")
        if options.dry_run:
            return _plan(settings, several, nproc or (there if there > 1 else None))
        _check_shares(settings, nproc)
        if not (options.recipe or hasattr(options, "exp_dir")) and os.environ.get("RANK", "0") == "0":
            print(f"results go to {settings.exp_dir} (--exp-dir)", flush=True)
        outcome = _on_processes(work, settings, nproc)
        return Answer(outcome, summary(section, settings, options.recipe, outcome))

    return run


def _on_processes(work: Callable[[Any], dict[str, Any]], settings: Settings, nproc: int | None) -> dict[str, Any]:
    """Work in this process, which may be one of torchrun's, or on processes that are started here."""
    from sfrik.launch.launcher import launch
    from sfrik.launch.worker import process_group

    if nproc is None:
        with process_group(settings.device):
            return work(settings)
    try:
        return launch(work, settings, nproc_per_node=nproc)
    except WorkerError as error:
        if error.mistake is not None:  # in the input: one line, as on one process
            raise SfrikError(error.mistake) from error
        raise


def _pretrain(settings):
    from sfrik.pretrain.loop import pretrain

    last = pretrain(settings)
    return {"weights": f"{settings.exp_dir}/backbone.safetensors", "last_epoch": last}


def _evaluate(settings):
    from sfrik.evaluate import evaluate

    return evaluate(settings)


def _extract(settings) -> dict[str, Any]:
    from sfrik.evaluate import extract_features

    return {"features": str(extract_features(settings))}


def _knn(settings):
    from sfrik.evaluate import knn_eval

    return knn_eval(settings)


def _logistic(settings):
    from sfrik.evaluate import logistic_regression

    return logistic_regression(settings)


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


def _plan(settings: Settings, several: bool, nproc: int | None) -> Answer:
    """The settings, the steps, the images and the memory to expect: of `nproc` processes, else of one and of usual numbers."""
    _check_shares(settings, nproc)
    from sfrik.cost.memory import expected_images, expected_steps
    from sfrik.cost.report import format_plan, memory_by_processes

    steps = expected_steps(settings)
    content = {
        "settings": settings.model_dump(mode="json"),
        "steps_per_epoch": steps[0] if steps else None,
        "epochs": steps[1] if steps else None,
        "images": expected_images(settings),
        "memory_gib": _gib(memory_by_processes(settings, nproc or (None if several else 1))),
    }
    return Answer(content, format_plan(settings, nproc, several))


def _memory(options: argparse.Namespace) -> Answer:
    settings, nproc = resolve(options), processes(options)
    assert isinstance(settings, PretrainSettings)
    _check_shares(settings, nproc)
    from sfrik.cost.report import format_memory, memory_by_processes

    found = memory_by_processes(settings, nproc)
    return Answer(_gib(found), format_memory(settings, found))


def _gib(found: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {str(count): {**parts, "total": sum(parts.values())} for count, parts in found.items()}


def _check_shares(settings: Settings, nproc: int | None) -> None:
    if nproc and settings.batch_size % nproc:
        raise SfrikError(f"batch_size {settings.batch_size} is over all processes and is not divisible by {nproc}")
