"""A training step of a network on two views, for the other scripts."""

from __future__ import annotations

import torch
from torch import Tensor

from sfrik.networks import Encoder, build_backbone, build_projector
from sfrik.optim import LARS
from sfrik.system.devices import autocast, channels_last, pick_precision


class Step:
    """`step(views, loss)` trains once; `loss(embeddings)` gives a scalar."""

    def __init__(self, arch: str, mlp: str, device: torch.device, stem: str = "imagenet") -> None:
        torch.manual_seed(0)
        backbone = build_backbone(arch, stem)
        self.encoder = channels_last(Encoder(backbone, build_projector(backbone.num_features, mlp)), device)
        self.optimizer = LARS(self.encoder.parameters(), lr=1e-3)
        self.device, self.precision = device, pick_precision("auto", device)

    def __call__(self, views: list[Tensor], loss) -> None:
        with autocast(self.device, self.precision):
            embeddings = self.encoder(views)
        self.optimizer.zero_grad(set_to_none=True)
        loss(embeddings).backward()
        self.optimizer.step()
