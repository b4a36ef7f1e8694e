"""The encoder: backbone and projector as one module."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.networks.backbones import build_backbone, build_pixels, build_projector
from sfrik.settings import PretrainSettings, parse_mlp
from sfrik.system.devices import physical_memory, pick_device
from sfrik.system.files import format_bytes

__all__ = ["Encoder", "build_encoder"]


class Encoder(nn.Module):
    """Backbone and projector: maps a list of views to the list of their embeddings.

    Two views are passed through one after the other, so that BatchNorm's statistics are those of one view; with `by_size`, for
    multi-crop, all views of one size are passed through together. One call takes all views, since DDP expects one forward pass
    per backward pass.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, by_size: bool = False) -> None:
        super().__init__()
        self.backbone, self.projector, self.by_size = backbone, projector, by_size

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        if not self.by_size:
            return [self._embed(view) for view in views]
        together: dict[int, list[int]] = {}
        for index, view in enumerate(views):
            together.setdefault(view.shape[-1], []).append(index)
        embeddings: dict[int, Tensor] = {}
        for indices in together.values():
            embedded = self._embed(torch.cat([views[index] for index in indices]))
            embeddings.update(zip(indices, embedded.chunk(len(indices)), strict=True))
        return [embeddings[index] for index in range(len(views))]

    def _embed(self, images: Tensor) -> Tensor:
        return self.projector(self.backbone(images.contiguous(memory_format=torch.channels_last)))


def build_encoder(settings: PretrainSettings, channels: int) -> Encoder:
    """The encoder that the settings describe, for images with this number of channels.

    Raises:
        SfrikError: the projector cannot fit in the memory of this machine.
    """
    if settings.arch == "pixels":
        return Encoder(build_pixels(settings.size, channels), nn.Identity())
    _check_memory(settings)
    backbone = build_backbone(**settings.network, channels=channels)
    encoder = Encoder(backbone, build_projector(backbone.num_features, settings.mlp), settings.multi_crop)
    if settings.compile:
        # compiles in place, at the first call: parameter names do not change, and calling the backbone itself runs uncompiled
        encoder.compile()
    return encoder


def _check_memory(settings: PretrainSettings) -> None:
    """Refuse a projector before a part of its weights fills the memory, after which the system would kill the process."""
    weights = 4 * sum(a * b for a, b in pairwise(parse_mlp(settings.mlp)))
    # the weights are initialised on the host; on a CPU gradients and the optimizer's state are there too
    needed = weights if pick_device(settings.device).type == "cuda" else (2 + settings.state_size) * weights
    if needed > physical_memory():
        raise SfrikError(
            f"mlp {settings.mlp:.60} needs {format_bytes(needed)} for the projector's weights, and this machine has "
            f"{format_bytes(physical_memory())} of memory: use smaller widths"
        )
