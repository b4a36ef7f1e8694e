"""What is kept of a training that went wrong, and what it says.

fault.rank<k>.pt    of each process: the step, the images by name, the embeddings; of rank 0 also model and optimiser
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

__all__ = ["not_finite"]

NAMED = 4  # images that a message names


def not_finite(
    error: NotFinite, folder: Path, where: dict[str, int], names: Sequence[str], views: list[Tensor], state: dict[str, Any]
) -> SfrikError:
    """Save what a study of the fault needs; the error that names step, term and images.

    Args:
        folder: the run's. where: {"epoch", "step"}. names: of this process's images, a row each. views: their embeddings.
        state: of model, optimiser and scaler, before the step.
    """
    path = folder / f"fault.rank{rank()}.pt"
    record = {**where, "message": str(error), "images": list(names), "views": [view.detach().cpu() for view in views]}
    try:
        with atomic_write(path) as file:
            torch.save({**record, **(state if rank() == 0 else {})}, file)
        kept = f"the state is in {path}"
    except (WriteError, RuntimeError) as failure:
        kept = f"the state could not be saved ({str(failure).splitlines()[0]})"
    guilty = [names[row] for row in error.rows] or list(names)
    shown = ", ".join(guilty[:NAMED]) + (", ..." if len(guilty) > NAMED else "")
    which = "images of these rows" if error.rows else "images of this batch"
    return SfrikError(
        f"epoch {where['epoch']}, step {where['step']}: {error}; {kept}; the checkpoint before it is "
        f"kept; a lower base_lr or another precision, in a new exp_dir, often helps; {which}: {shown}"
    )
