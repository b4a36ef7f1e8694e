"""Backbones of other libraries: any model of timm, and the vision transformers of torchvision.

A model is tried without values, on PyTorch's meta device, before it is built: which of `img_size` and `dynamic_img_size` it
takes, how many features it gives, and whether it takes images of each size. So a mistake is found in a fraction of a second, and
before any images are read.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError, nearest
from sfrik.settings import Settings, keyword_arguments, takes_arguments
from sfrik.system.devices import physical_memory
from sfrik.system.files import format_bytes

__all__ = [
    "build_library_model",
    "check_network",
    "check_sizes",
    "without_values",
]

# torchvision's ViTs. Its functions vit_b_16 etc. do not let these arguments be changed.
VIT = ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim")
VITS = {
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
}
# A ViT of timm takes both: positions for images of `img_size`, interpolated for those of another size. A CNN takes neither.
SIZE_ARGUMENTS = (("img_size", "dynamic_img_size"), ("img_size",), ())
SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)  # tried to find the smallest that fits
SEVERAL = "a ResNet, a ConvNeXt, or a ViT of timm such as timm/vit_small_patch16_224"

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Facts:
    """What was found out about a model.

    Attributes:
        arguments: those of its constructor.
        num_features: d, the dimension of its features.
        weights: number of its parameters.
        idle: names of the parameters that no feature depends on.
    """

    arguments: dict[str, Any]
    num_features: int
    weights: int
    idle: frozenset[str]


def build_library_model(arch: str, channels: int, size: int, arch_args: tuple[str, ...] = ()) -> nn.Module:
    """A freshly initialised model without its classifier; `.num_features` is the dimension d of its features.

    Parameters that no feature depends on are frozen, since DDP waits for a gradient of every other one.

    Args:
        arch: timm/NAME, or the name of a ViT of torchvision.
        channels: channels of the images.
        size: side of the images in pixels, for which a ViT gets its positions.
        arch_args: the model's own arguments, as `sfrik.settings.parse_arch_args` returns them.

    Raises:
        SfrikError: timm is not installed or has no such model; the model does not take the arguments or images of this size; or
            it does not return features [n, d]; or its weights cannot fit in the memory of this machine.
    """
    facts = _facts(arch, channels, size, arch_args)
    if (needed := 4 * facts.weights) > physical_memory() and torch.get_default_device().type != "meta":
        raise SfrikError(
            f"{' '.join((arch, *arch_args))} needs {format_bytes(needed)} for its weights, and this machine has "
            f"{format_bytes(physical_memory())} of memory: use a smaller model"
        )
    net: Any = _create(arch, facts.arguments)
    net.num_features = facts.num_features  # timm's differs from d where a layer follows the pooling, as in MobileNetV3
    net.image_size = size  # for a reader of its weights
    for name, parameter in net.named_parameters():
        if name in facts.idle:
            parameter.requires_grad_(False)
    return net


def check_network(settings: Settings) -> None:
    """Refuse a model that cannot be built with these settings, or that does not take one of the views.

    Raises:
        SfrikError: as `build_library_model` and `check_sizes`.
    """
    if takes_arguments(settings.arch):
        check_sizes(settings.arch, settings.channels, settings.size, settings.arch_args, settings.view_sizes)


def check_sizes(arch: str, channels: int, size: int, arch_args: tuple[str, ...], sides: Collection[int]) -> None:
    """Refuse a model for images of `size` pixels that does not also take images of each of `sides`.

    Raises:
        SfrikError: as `build_library_model`; or it takes one size only.
    """
    arguments = _facts(arch, channels, size, arch_args).arguments
    for side in sorted({*sides} - {size}, reverse=True):
        _check_patch(arch, without_values(lambda: _patch(_create(arch, arguments))), side)
        try:
            without_values(lambda side=side: _create(arch, arguments).eval()(torch.zeros(2, channels, side, side)))
        except Exception:
            _facts(arch, channels, side, arch_args)  # refuses a size that the model takes in no case
            raise SfrikError(
                f"{arch} takes images of one size, which is {size} pixels here, and not those of {side} pixels: use views of one "
                f"size, or {SEVERAL}"
            ) from None


@lru_cache(maxsize=256)
def _facts(arch: str, channels: int, size: int, arch_args: tuple[str, ...]) -> _Facts:
    """Build a model without values and look at its features.

    Raises:
        SfrikError: as `build_library_model`.
    """
    given = keyword_arguments(arch_args)
    arguments = _arguments(arch, channels, size, given)
    try:
        return without_values(lambda: _features(arch, arguments, channels, size))
    except SfrikError:
        raise
    except Exception as error:
        raise _refusal(arch, channels, size, given, error) from None


def _arguments(arch: str, channels: int, size: int, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a model's constructor: those given, and those of `SIZE_ARGUMENTS` that it takes. Refuses wrong ones."""
    attempts = _attempts(arch, channels, size, given)
    for arguments in attempts:
        if arch in VITS and isinstance(side := arguments["patch_size"], int) and side > 0:
            _check_patch(arch, side, size)  # torchvision's assertion does not name it
        try:
            patch = without_values(lambda arguments=arguments: _patch(_create(arch, arguments)))
        except SfrikError:
            raise
        except Exception as error:
            unknown = _unknown_arguments(error)
            if arguments is not attempts[-1] and unknown & {"img_size", "dynamic_img_size"} and not unknown & given.keys():
                continue
            if names := sorted(unknown & given.keys()):
                known = _signature(arch, channels)
                raise SfrikError(f"{arch} has no argument {names[0]}{nearest(names[0], known)}: check --arch-args") from None
            raise _refusal(arch, channels, size, given, error, built=False) from None
        if ignored := _ignored(arch, arguments, channels, given):
            raise SfrikError(f"{arch} has no argument {ignored}{nearest(ignored, _signature(arch, channels))}: check --arch-args")
        _check_patch(arch, patch, size)
        return arguments
    raise AssertionError("the last attempt returns or raises")


def _attempts(arch: str, channels: int, size: int, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments with which a model is tried; the first that it knows are used."""
    if arch in VITS:
        return [{**dict(zip(VIT, VITS[arch], strict=True)), **given, "image_size": size, "channels": channels}]
    own = {"img_size": size, "dynamic_img_size": True}
    return [{**given, "in_chans": channels, **{name: own[name] for name in names}} for names in SIZE_ARGUMENTS]


def _unknown_arguments(error: Exception) -> set[str]:
    """The names that a TypeError calls unknown."""
    text = str(error).split("Did you mean")[0] if isinstance(error, TypeError) else ""  # Python 3.13 names one that exists
    return set(re.findall(r"'(\w+)'", text.partition("unexpected keyword argument")[2]))


def _ignored(arch: str, arguments: dict[str, Any], channels: int, given: dict[str, Any]) -> str:
    """The first argument that a model which ignores unknown ones does not know; empty if there is none."""
    strange = [name for name in sorted(given) if name not in _signature(arch, channels)]
    if not strange:
        return ""
    try:
        without_values(lambda: _create(arch, {**arguments, "sfrik_has_no_such_argument": 1}))
    except Exception:  # it refuses unknown ones itself, and has not refused these
        return ""
    return strange[0]


def _signature(arch: str, channels: int) -> set[str]:
    """The names of the arguments of a model's class."""
    if arch in VITS:
        kinds: tuple[type, ...] = (_torchvision().models.VisionTransformer,)
    else:
        kinds = type(without_values(lambda: _create(arch, {"in_chans": channels}))).__mro__
    return {name for kind in kinds for name in inspect.signature(kind.__init__).parameters} - {"self", "args", "kwargs"}


def _features(arch: str, arguments: dict[str, Any], channels: int, size: int) -> _Facts:
    """Pass two blank images through a model in training mode, and the gradient of its features back."""
    net = _create(arch, arguments)
    features = net(torch.zeros(2, channels, size, size))
    widths: set[int] = {getattr(net, name) for name in ("num_features", "head_hidden_size") if getattr(net, name, None)}
    if not widths:
        raise SfrikError(f"{arch} has no num_features, the dimension of its features: choose a model that classifies images")
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] not in widths:
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise SfrikError(
            f"{arch} returns {found} for 2 images, and a backbone returns features [2, {max(widths)}]: check --arch-args, or "
            "choose a model that classifies images"
        )
    features.sum().backward()
    idle = frozenset(name for name, parameter in net.named_parameters() if parameter.grad is None)
    return _Facts(arguments, features.shape[1], sum(parameter.numel() for parameter in net.parameters()), idle)


def _patch(net: nn.Module) -> int | tuple[int, ...] | None:
    """The side of a ViT's patches, if images of other sizes than its multiples are not padded."""
    embed: Any = getattr(net, "patch_embed", None)
    ours = type(embed).__name__ == "PatchEmbed" and type(embed).__module__.startswith("timm.layers")
    return embed.patch_size if ours and not embed.dynamic_img_pad else None


def _check_patch(arch: str, patch: int | tuple[int, ...] | None, size: int) -> None:
    """Refuse images whose side is not a multiple of the patches'."""
    side = math.lcm(*((patch,) if isinstance(patch, int) else patch or (1,)))
    if size % side:
        below = size // side * side
        fitting = f"{below} or {below + side}" if below else str(side)
        raise SfrikError(
            f"{arch} divides images into patches of {side} pixels, which do not divide {size} pixels: use views of {fitting} "
            "pixels (--size, and the sizes of crops), or another patch_size in --arch-args"
        )


def _refusal(arch: str, channels: int, size: int, given: dict[str, Any], error: Exception, built: bool = True) -> SfrikError:
    """The error for a model that cannot be built, or does not take images of this size; with a larger size that it takes."""
    reason = f"({' '.join(str(error).split())[:200] or type(error).__name__})"
    if fixed := re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error)):
        return SfrikError(f"{arch} does not let its argument {fixed[1]} be changed: check --arch-args")
    larger = [side for side in SIZES if side > size]
    likely = [side for side in (224, 240, 256, 384) if side > size] or larger  # for which timm's models were trained
    if built and any(_takes(arch, channels, side, given) for side in likely):
        side = next(side for side in larger if _takes(arch, channels, side, given))
        return SfrikError(
            f"{arch} does not take images of {size} pixels {reason}: use larger views, for example of {side} pixels "
            "(--size, and the sizes of crops), or another --arch"
        )
    if given:
        text = " ".join(f"{name}={value}" for name, value in given.items())
        return SfrikError(f"{arch} cannot be used for images of {size} pixels with arch_args {text} {reason}: check --arch-args")
    return SfrikError(f"{arch} does not take images of {size} pixels {reason}: use another --size or --arch")


def _takes(arch: str, channels: int, side: int, given: dict[str, Any]) -> bool:
    """Whether a model returns features of images of `side` pixels."""
    for arguments in _attempts(arch, channels, side, given):
        with suppress(Exception):
            without_values(lambda arguments=arguments: _features(arch, arguments, channels, side))
            return True
    return False


def _create(arch: str, arguments: dict[str, Any]) -> nn.Module:
    """The model with initial weights."""
    if arch not in VITS:
        timm, name = _timm(), arch.removeprefix("timm/")
        if not timm.is_model(name):
            raise SfrikError(f"timm {timm.__version__} has no model {name:.100}{nearest(name, timm.list_models())}: check --arch")
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    channels, arguments = arguments["channels"], {name: value for name, value in arguments.items() if name != "channels"}
    net = _torchvision().models.VisionTransformer(**arguments)
    if channels != 3:
        old = net.conv_proj
        net.conv_proj = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride)
        nn.init.trunc_normal_(net.conv_proj.weight, std=math.sqrt(1 / net.conv_proj.weight[0].numel()))  # as in torchvision
        nn.init.zeros_(cast("Tensor", net.conv_proj.bias))
    net.heads, net.num_features = nn.Identity(), net.hidden_dim
    return net


def without_values(function: Callable[[], Result]) -> Result:
    """Call a function that builds a model, on the meta device; with values on the CPU if the model computes with them."""
    with torch.random.fork_rng(devices=[]):  # the values of the initialisation are those of the seed, whatever was tried before
        try:
            with torch.device("meta"):
                return function()
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, SfrikError) or not re.search(r"\bmeta\b|data-dependent", str(error)):
                raise
        return function()


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise SfrikError("arch timm/NAME needs the package timm: python -m pip install timm") from None
    return timm


def _torchvision() -> Any:
    import torchvision  # slow to import

    return torchvision
