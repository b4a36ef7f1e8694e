"""The backbone's tensors in the files of other code: which of a file's tensors they are, under which names.

A training's file holds more than a backbone: settings and optimisers, a projector, a queue, a second network that follows the
first as a moving average. Names have prefixes of the modules around the backbone (``encoder_q.``, ``backbone.``) and of wrappers
(``module.`` of DistributedDataParallel, ``_orig_mod.`` of `torch.compile`), in any order. So a backbone is found by its own
names: it is what follows the prefix under which they are all present, with their shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Match", "match", "size_of_positions", "unusable", "unwrapped"]

# Components that wrappers put into a name, at its beginning or before the layer that they wrap.
WRAPPERS = {"module", "_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Of two networks in one file the one is taken that its authors evaluate; lower is better, and 1 is a network of any other name.
RANKS = {
    "teacher": 0,  # DINO, DINOv2
    "ema": 0,  # the moving average that timm and torchvision evaluate
    "student": 2,
    "momentum": 3,  # MoCo v3, solo-learn, lightly
    "k": 3,  # MoCo
    "key": 3,
    "target": 3,  # BYOL
}
STAGE = re.compile(r"(layer|conv|bn|norm|stage|block|res)s?_?\d+")  # a name that belongs to a backbone, and not to a head
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Match:
    """The tensors of a file that come closest to those of a backbone.

    Attributes:
        state: the tensors found, by the backbone's names.
        missing: names of the backbone that were not found.
        unknown: names of a backbone with more layers.
        shapes: names of tensors that have another shape.
        rivals: prefixes, if several networks of the file match equally well and differ.
    """

    state: dict[str, Tensor]
    missing: list[str]
    unknown: list[str]
    shapes: list[str]
    rivals: list[str]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unknown or self.shapes)


def match(tensors: Mapping[str, Tensor], backbone: nn.Module, parts: Collection[str] = ()) -> Match:
    """Find a backbone among the tensors of a file.

    Args:
        tensors: those of the file, by their names in all its dicts.
        backbone: the network they are for; only the names and shapes of its tensors are used.
        parts: further names that belong to a backbone and not to a head, such as blocks; the first components of tensors' names.
    """
    own = backbone.state_dict()
    groups = _by_prefix(_with_names_of_children(tensors, backbone, own), own)
    if not groups:
        return Match({}, sorted(own), [], [], [])
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # may be missing, or of another shape
    same = {prefix: sum(_fits(own, key, value) for key, value in group.items()) for prefix, group in groups.items()}
    most = max(same.values())
    if most < len(own.keys() - counters) / 2:  # nothing that could be loaded: the closest one is described
        best = [max(groups, key=lambda prefix: (len(groups[prefix].keys() & own.keys()), same[prefix]))]
    else:
        near = [prefix for prefix in groups if same[prefix] >= most / 2]
        rank = {prefix: _rank(prefix, near) for prefix in near}
        best = [prefix for prefix in near if rank[prefix] == min(rank.values())]
        most = max(same[prefix] for prefix in best)
        best = [prefix for prefix in best if same[prefix] == most]
    group = groups[best[0]]
    rivals = best if any(not _equal(group, groups[prefix], own) for prefix in best[1:]) else []
    layers, heads = {*parts, *(key.split(".")[0] for key in own)}, tuple(f"{name}." for name in _classifier_names(backbone))
    others = [key for key in group.keys() - own.keys() if not key.startswith(heads)]
    unknown = [key for key in others if key.split(".")[0] in layers or STAGE.fullmatch(key.split(".")[0])]
    return Match(
        {key: value for key, value in group.items() if key in own},
        sorted(own.keys() - group.keys() - counters),
        sorted(unknown),
        sorted(key for key in group.keys() & own.keys() - counters if group[key].shape != own[key].shape),
        [".".join(prefix) for prefix in rivals],
    )


def size_of_positions(backbone: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The side of the images for which the positions in a file are; None if they are those of the backbone, or not found.

    Args:
        backbone: a ViT of `build_library_model`, with `prefix + (image_size / patch)^2` positions.
        state: tensors of the file, by the backbone's names.
    """
    patch = getattr(getattr(backbone, "patch_embed", backbone), "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    own = backbone.state_dict()
    for name in ("pos_embed", "encoder.pos_embedding"):
        if name not in own or name not in state or not isinstance(patch, int) or own[name].ndim != 3 or state[name].ndim != 3:
            continue
        prefix = own[name].shape[1] - (cast("int", backbone.image_size) // patch) ** 2
        side = math.isqrt(max(0, state[name].shape[1] - prefix))
        if side**2 + prefix == state[name].shape[1] != own[name].shape[1]:
            return side * patch
    return None


def unusable(state: Mapping[str, Tensor]) -> str:
    """The first tensor that holds no dense floating-point numbers, and what it holds; empty if there is none."""
    for key, value in state.items():
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_meta:
            kind = "on the meta device, without values"
        elif value.layout != torch.strided or value.is_nested:
            kind = "sparse" if not value.is_nested else "nested"
        elif value.is_quantized:
            kind = f"quantised, {kind}"
        elif value.dtype in FLOATS or (key.endswith("num_batches_tracked") and value.numel() == 1):
            continue
        return f"{key} is {kind}"
    return ""


def unwrapped(name: str) -> str:
    """A tensor's name without what wrappers put into it: "module._orig_mod.fc.bias" is "fc.bias"."""
    return _join(name.split("."))


def _classifier_names(backbone: nn.Module) -> tuple[str, ...]:
    """The layers of a timm model's classifier, such as "head.fc", which its weights files contain and a backbone has not."""
    about = cast("dict", getattr(backbone, "default_cfg", None) or {})
    names = about.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _by_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """The tensors below each prefix that has at least one of the backbone's names, by their names without it."""
    split = {key: key.split(".") for key in tensors}
    prefixes: dict[tuple[str, ...], None] = {}
    for parts in split.values():
        for start, part in enumerate(parts):
            if part not in WRAPPERS and _join(parts[start:]) in own:
                prefixes[tuple(parts[:start])] = None
    groups: dict[tuple[str, ...], dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    for key, parts in split.items():
        for start in range(len(parts)):
            prefix = tuple(parts[:start])
            if prefix in groups and parts[start] not in WRAPPERS:
                groups[prefix][_join(parts[start:])] = tensors[key]
    return groups


def _join(parts: Sequence[str]) -> str:
    return ".".join(part for part in parts if part not in WRAPPERS)


def _with_names_of_children(tensors: Mapping[str, Tensor], backbone: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the backbone's layers in place of their numbers, and ``downsample`` in place of ``shortcut``.

    `nn.Sequential(*list(resnet.children())[:-1])`, which lightly's models are, numbers the layers in their order. Some write the
    stem differently, so that the numbers alone say little; but a layer without parameters has no tensors.
    """
    layers = list(dict.fromkeys(key.split(".")[0] for key in own))
    numbered: dict[tuple[str, ...], dict[int, bool]] = {}  # prefix -> the numbers below it, and whether they are one tensor
    for key, value in tensors.items():
        parts = key.split(".")
        for index, part in enumerate(parts):
            if part.isdecimal() and len(part) < 4 and not any(_join(parts[start:]) in own for start in range(index + 1)):
                stem = parts[index + 1 :] == ["weight"] and value.dim() == 4
                below = numbered.setdefault(tuple(parts[:index]), {})
                below[int(part)] = below.get(int(part), False) or stem
    names: dict[tuple[str, ...], dict[str, str]] = {}
    for prefix, below in numbered.items():
        order = sorted(below)
        if len(order) >= len(layers) and below[order[0]]:  # the first one is a convolution
            names[prefix] = {str(number): name for number, name in zip(order, layers, strict=False)}
    shortcut = any(".downsample." in key for key in own) and not any(".shortcut." in key for key in own)
    renamed = {}
    for key, value in tensors.items():
        parts = key.split(".")
        for index, part in enumerate(parts):
            parts[index] = names.get(tuple(key.split(".")[:index]), {}).get(part, part)
        renamed[".".join("downsample" if shortcut and part == "shortcut" else part for part in parts)] = value
    return renamed


def _fits(own: Mapping[str, Tensor], key: str, value: Tensor) -> bool:
    return key in own and own[key].shape == value.shape and not key.endswith("num_batches_tracked")


def _rank(prefix: Sequence[str], others: Sequence[Sequence[str]]) -> int:
    """The place of a network among those of its file."""
    if "target_encoder" in prefix and not any("online" in part for other in others for part in other):
        return 0  # I-JEPA
    words = {word for part in prefix for word in part.lower().split("_")}
    found = [RANKS[word] for word in words if word in RANKS]
    return min(found, default=1)


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether two networks have the same weights."""
    return all(key in second and _identical(first[key], second[key]) for key in first.keys() & own.keys())


def _identical(first: Tensor, second: Tensor) -> bool:
    dense = all(value.layout == torch.strided and not value.is_meta for value in (first, second))
    return dense and first.dtype == second.dtype and torch.equal(first, second)
