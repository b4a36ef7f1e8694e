"""The record of a training run whose loss became infinite or NaN: one file per process, ``fault.rank<k>.pt``.

It holds epoch, step, the names of the images and the embeddings; on rank 0 also the states of model, optimizer and scaler.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfrik.errors import SfrikError
from sfrik.objectives.base import NotFinite
from sfrik.ops.collectives import rank
from sfrik.system.files import WriteError, atomic_write

__all__ = ["save_nonfinite_state"]

MAX_NAMES = 4  # images listed in a message


def save_nonfinite_state(
    error: NotFinite,
    folder: Path,
    position: dict[str, int],
    names: Sequence[str],
    embeddings: list[Tensor],
    state: dict[str, Any],
) -> SfrikError:
    """Save the state of the step for debugging, and return an error that names the step, the loss term and the images.

    Args:
        error: The error of the objective.
        folder: The folder of the run.
        position: {"epoch": ..., "step": ...}.
        names: The name of the image of each local row.
        embeddings: The embeddings [n_local, q] of each view.
        state: The states of model, optimizer and scaler before the step.

    Returns:
        The error to raise.
    """
    path = folder / f"fault.rank{rank()}.pt"
    record = {**position, "message": str(error), "images": list(names), "views": [view.detach().cpu() for view in embeddings]}
    try:
        with atomic_write(path) as file:
            torch.save({**record, **(state if rank() == 0 else {})}, file)
        saved = f"the state is in {path}"
    except (WriteError, RuntimeError) as failure:
        saved = f"the state could not be saved ({str(failure).splitlines()[0]})"
    affected = [names[row] for row in error.rows] or list(names)
    shown = ", ".join(affected[:MAX_NAMES]) + (", ..." if len(affected) > MAX_NAMES else "")
    which = "images of these rows" if error.rows else "images of this batch"
    return SfrikError(
        f"epoch {position['epoch']}, step {position['step']}: {error}; {saved}; the checkpoint before it is "
        f"kept; a lower base_lr, another precision or a wider mlp, in a new exp_dir, often helps; {which}: {shown}"
    )
