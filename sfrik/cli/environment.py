"""The environment for a bug report: versions, processor, GPUs, precision. It holds no paths, host names or user names."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

import sfrik
from sfrik.errors import SfrikError
from sfrik.runs.provenance import commit, processor, version
from sfrik.system.devices import cores, pick_device, pick_precision
from sfrik.system.terminal import align

__all__ = ["environment", "format_environment"]

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pydantic", "safetensors")
OPTIONAL = (
    *("scikit-learn", "scipy", "matplotlib", "pandas", "mlxtend", "jupyterlab", "ipykernel", "ipywidgets", "papermill"),
    *("timm", "tensorboard", "wandb", "shtab"),
)
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "SLURM_JOB_ID")


def environment() -> dict[str, Any]:
    """Facts by name, None for a missing package. A PyTorch that cannot be imported is reported, not raised."""
    facts: dict[str, Any] = {
        "sfrik": sfrik.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
        "optional": {name: version(name) for name in OPTIONAL},
        "processor": processor(),
        "cores": cores(),
        "slurm": shutil.which("sbatch") is not None,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    try:
        facts |= _torch()
    except (ImportError, OSError, RuntimeError) as error:  # a broken build, or a driver that does not respond
        facts["torch_error"] = type(error).__name__
    return facts


def _torch() -> dict[str, Any]:
    import torch

    try:
        device = pick_device("auto")
        chosen = {"device": device.type, "precision": pick_precision("auto", device)}
    except SfrikError as error:  # GPUs that are requested and not there
        chosen = {"device": str(error)}
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}" for gpu in gpus],
        **chosen,
    }


def format_environment(facts: dict[str, Any]) -> list[str]:
    """One line per fact, to paste into an issue."""
    rows = {
        **facts,
        "commit": facts["commit"] or "none",
        "gpus": facts.get("gpus") or "none",
        "slurm": "installed" if facts["slurm"] else "not installed",
    }
    cells = []
    for name, value in rows.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {'not installed' if one is None else one}" for key, one in value.items()) or "none"
        elif isinstance(value, list):
            value = "; ".join(value)
        cells.append((name, str(value)))
    return align(cells)
