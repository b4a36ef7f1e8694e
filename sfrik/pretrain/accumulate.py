"""Gradient accumulation through the embeddings: the loss of a whole batch, with the activations of a micro-batch.

A contrastive loss looks at all embeddings at once, so the losses of micro-batches do not add up to it. But the network sees an
image's gradient only through the image's embedding (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory
limited setup", section 3.2):

    1. embed all micro-batches without a graph;
    2. the loss of the whole batch, and its gradient with respect to the embeddings;
    3. embed each micro-batch again, now with a graph, and send its embeddings' gradient back through it.

One more forward pass buys activations of a micro-batch alone. The gradient is that of the whole batch, where no layer mixes
images; BatchNorm does: it normalises each micro-batch by itself, as DDP's processes do without SyncBatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["backward", "micro_batches"]


def micro_batches(images: int, most: int | None) -> int:
    """How many micro-batches of at most so many images a batch takes; their sizes differ by one at most."""
    return math.ceil(images / most) if most else 1


def backward(
    model: nn.Module,
    views: Sequence[Tensor],
    loss_of: Callable[[list[Tensor]], Any],
    parts: int = 1,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[list[Tensor], Any]:
    """Add the gradient of a batch's loss to the parameters' `.grad`.

    Args:
        model: a list of views to their embeddings; under DDP the gradients are averaged once, in the last micro-batch.
        views: each [n_local, c, h, w], of any sizes.
        loss_of: embeddings, one [n_local, q] for each view, to loss terms; their `.loss` is a scalar.
        parts: micro-batches; with 1, one forward and one backward pass.
        precision: makes the context of the network's forward passes. scale: of the loss, as `GradScaler.scale`.

    Returns:
        The embeddings, and what `loss_of` gave.
    """
    if parts == 1:
        with precision():
            embeddings = model(list(views))
        terms = loss_of(embeddings)
        scale(terms.loss).backward()
        return embeddings, terms
    pieces = [list(piece) for piece in zip(*(view.tensor_split(parts) for view in views), strict=True)]
    generators, averages = _Generators(views[0].device), _RunningAverages(model)
    found, states = [], []
    with torch.no_grad(), precision():
        for piece in pieces:
            states.append(generators.state())
            found.append(model(piece))
    averages.restore()
    embeddings = [torch.cat(parts_of_view).requires_grad_() for parts_of_view in zip(*found, strict=True)]
    del found
    terms = loss_of(embeddings)
    scale(terms.loss).backward()
    gradients = zip(*(z.grad.tensor_split(parts) for z in embeddings if z.grad is not None), strict=True)
    with generators.kept():  # the loss may have drawn numbers of its own
        for place, (piece, state, gradient) in enumerate(zip(pieces, states, gradients, strict=True), 1):
            generators.restore(state)
            averages.restore()
            # not in the context of the first passes: it keeps copies of the weights in low precision, which have no graph
            with nullcontext() if place == parts else _without_exchange(model):
                with precision():
                    again = model(piece)
                torch.autograd.backward(again, gradient)
            averages.add(len(piece[0]) / len(views[0]))
    averages.settle()
    return [z.detach() for z in embeddings], terms


def _without_exchange(model: nn.Module) -> AbstractContextManager:
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


class _Generators:
    """The random numbers of the two passes of a micro-batch, as of dropout, are the same: torch's generators."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []

    def state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def restore(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for device, of_device in zip(self.devices, state[1:], strict=True):
            torch.cuda.set_rng_state(of_device, device)

    def kept(self) -> AbstractContextManager:
        """Within it they may be set at will; after it they are as they were."""
        return torch.random.fork_rng(devices=self.devices)


class _RunningAverages:
    """BatchNorm's running averages, which a step moves as far as it does on a whole batch, whatever the micro-batches.

    Each micro-batch moves them from where the step found them; they come to rest at the mean of these places, by images.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = list(model.named_buffers())
        self.averages = [buffer for name, buffer in buffers if name.endswith(("running_mean", "running_var"))]
        self.counts = [buffer for name, buffer in buffers if name.endswith("num_batches_tracked")]
        self.before = [buffer.clone() for buffer in self.averages + self.counts]
        self.mean = [torch.zeros_like(buffer) for buffer in self.averages]

    def restore(self) -> None:
        """Undo what passes did since the step began."""
        if self.before:
            torch._foreach_copy_(self.averages + self.counts, self.before)

    def add(self, share: float) -> None:
        """Count the last pass, of a share of the images."""
        if self.averages:
            torch._foreach_add_(self.mean, self.averages, alpha=share)

    def settle(self) -> None:
        if self.averages:
            torch._foreach_copy_(self.averages, self.mean)
