"""How many steps a run takes and how much memory to expect, from the settings alone, without data."""

from __future__ import annotations

import torch
from torch import nn

from sfrik.networks import build_backbone, build_projector
from sfrik.settings import PretrainSettings

__all__ = ["expected_images", "expected_memory"]

SIZES = {"mnist5k": (350, 10), "cifar10": (5000, 10), "imagenet": (None, 1000)}  # images a class, classes
WHOLE = {"imagenet": 1_281_167, "stl10": 100_000}


def expected_images(settings: PretrainSettings) -> int | None:
    """Images that pretraining sees in an epoch before whole batches are made of them; None where the folder decides."""
    if settings.dataset in WHOLE and (settings.subset is None or settings.dataset == "stl10"):
        return WHOLE[settings.dataset]
    if settings.dataset not in SIZES:
        return None
    per_class, classes = SIZES[settings.dataset]
    return (settings.subset or per_class) * classes


def expected_memory(settings: PretrainSettings, processes: int = 1, bytes_per_value: int = 2) -> dict[str, float]:
    """Memory of a process in GiB by part: parameters (with gradient and momentum), activations, loss.

    Activations are what each layer puts out, counted on PyTorch's meta device, for all views of the process's share of the
    batch; the true figure also holds the allocator's reserve and the library's own kernels (about 0.5 GiB with CUDA).

    Args:
        settings: of the run. bytes_per_value: of activations, 2 under mixed precision.
    """
    channels = 1 if settings.dataset == "mnist5k" else 3
    with torch.device("meta"):
        backbone = build_backbone(settings.arch, settings.stem, channels)
        projector = build_projector(backbone.num_features, settings.mlp)
        probe = torch.empty(2, channels, settings.size, settings.size)
    network = nn.Sequential(backbone, projector)
    parameters = sum(p.numel() for p in network.parameters())
    values = _outputs_per_image(network, probe)
    local = settings.batch_size // processes
    views = 2
    # z, its gradient and the gathered rows in float32; for the Gram matrix a block of rows, for VICReg also C [q, q]
    loss = 4 * (3 * views * settings.batch_size * settings.dim + 3 * local * settings.batch_size)
    if settings.ssl_method == "vicreg":
        loss += 4 * 3 * views * settings.dim**2
    parts = {
        "parameters": 3 * 4 * parameters,
        "activations": views * local * values * bytes_per_value,
        "loss": loss,
    }
    return {name: size / 2**30 for name, size in parts.items()}


def _outputs_per_image(network: nn.Module, probe: torch.Tensor) -> float:
    """Values that the layers put out for one image."""
    count = 0

    def add(module: nn.Module, inputs, output: torch.Tensor) -> None:
        nonlocal count
        count += output.numel()

    leaves = [m for m in network.modules() if not list(m.children()) and not isinstance(m, (nn.Identity, nn.ReLU))]
    hooks = [module.register_forward_hook(add) for module in leaves]
    network(probe)
    for hook in hooks:
        hook.remove()
    return count / probe.shape[0]
