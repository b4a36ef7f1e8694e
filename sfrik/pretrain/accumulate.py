"""Gradient accumulation through the embeddings: the loss of the whole batch with the activation memory of a micro-batch.

A contrastive loss depends on all embeddings at once, so it is not a sum of losses of micro-batches. But the gradient reaches the
network only through the embeddings (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup",
section 3.2):

1. Embed all micro-batches without a graph.
2. Compute the loss of the whole batch and its gradient with respect to the embeddings.
3. Embed each micro-batch again, with a graph, and backpropagate the gradient of its embeddings.

The cost is a second forward pass. The gradient is that of the whole batch as long as no layer mixes images. BatchNorm does mix
them: it normalises each micro-batch separately, as DDP's processes do without SyncBatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["backward", "micro_batches"]


def micro_batches(images: int, max_size: int | None) -> int:
    """The number of micro-batches of at most `max_size` images (None: no limit) into which a batch is split.

    `torch.tensor_split` makes their sizes differ by at most one.
    """
    return math.ceil(images / max_size) if max_size else 1


def backward(
    model: nn.Module,
    views: Sequence[Tensor],
    compute_loss: Callable[[list[Tensor]], Any],
    parts: int = 1,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[list[Tensor], Any]:
    """Compute the loss of a batch and add its gradient to the parameters' `.grad`.

    Args:
        model: Maps a list of views to their embeddings. Under DDP the gradients are averaged once, in the last micro-batch.
        views: The views, each [n_local, c, h, w]; their sizes may differ.
        compute_loss: Maps embeddings, one [n_local, q] for each view, to loss terms whose `.loss` is a scalar.
        parts: The number of micro-batches. With 1, one forward and one backward pass.
        precision: Makes a context for a forward pass of the network, such as autocast.
        scale: Scales the loss, such as `GradScaler.scale`.

    Returns:
        The embeddings of the views, and the loss terms.
    """
    if parts == 1:
        with precision():
            embeddings = model(list(views))
        terms = compute_loss(embeddings)
        scale(terms.loss).backward()
        return embeddings, terms
    pieces = [list(piece) for piece in zip(*(view.tensor_split(parts) for view in views), strict=True)]
    generators, averages = _Generators(views[0].device), _RunningAverages(model)
    outputs, states = [], []
    with torch.no_grad(), precision():
        for piece in pieces:
            states.append(generators.state())
            outputs.append(model(piece))
    averages.restore()
    embeddings = [torch.cat(parts_of_view).requires_grad_() for parts_of_view in zip(*outputs, strict=True)]
    del outputs
    terms = compute_loss(embeddings)
    scale(terms.loss).backward()
    gradients = zip(*(z.grad.tensor_split(parts) for z in embeddings if z.grad is not None), strict=True)
    with generators.fork():  # keeps the state after the loss, which may have drawn random numbers
        for number, (piece, state, gradient) in enumerate(zip(pieces, states, gradients, strict=True), 1):
            generators.restore(state)
            averages.restore()
            # a new context: autocast of the first passes caches low-precision copies of the weights, which have no graph
            with nullcontext() if number == parts else _no_sync(model):
                with precision():
                    outputs = model(piece)
                torch.autograd.backward(outputs, gradient)
            averages.add(len(piece[0]) / len(views[0]))
    averages.set_mean()
    return [z.detach() for z in embeddings], terms


def _no_sync(model: nn.Module) -> AbstractContextManager:
    """A context in which DDP does not average gradients."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


class _Generators:
    """The states of torch's random number generators: both passes of a micro-batch draw the same numbers, e.g. in dropout."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []

    def state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def restore(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        for device, device_state in zip(self.devices, state[1:], strict=True):
            torch.cuda.set_rng_state(device_state, device)

    def fork(self) -> AbstractContextManager:
        """A context that restores the current states at its end."""
        return torch.random.fork_rng(devices=self.devices)


class _RunningAverages:
    """BatchNorm's running averages, updated once per step whatever the number of micro-batches.

    Each micro-batch updates the values from before the step. The result is the mean of these updates, weighted by the number of
    images.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = list(model.named_buffers())
        self.averages = [buffer for name, buffer in buffers if name.endswith(("running_mean", "running_var"))]
        self.counts = [buffer for name, buffer in buffers if name.endswith("num_batches_tracked")]
        self.before = [buffer.clone() for buffer in self.averages + self.counts]
        self.mean = [torch.zeros_like(buffer) for buffer in self.averages]

    def restore(self) -> None:
        """Set the buffers to their values before the step."""
        if self.before:
            torch._foreach_copy_(self.averages + self.counts, self.before)

    def add(self, fraction: float) -> None:
        """Add the update by the last pass, which had this fraction of the images, to the mean."""
        if self.averages:
            torch._foreach_add_(self.mean, self.averages, alpha=fraction)

    def set_mean(self) -> None:
        """Set the running averages to the mean."""
        if self.averages:
            torch._foreach_copy_(self.averages, self.mean)
