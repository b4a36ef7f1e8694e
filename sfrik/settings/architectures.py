"""Which backbones there are, and the arguments of those of timm and torchvision. Checking them imports neither."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from sfrik.errors import nearest
from sfrik.settings.fields import LARGEST, PARTS

__all__ = [
    "ARCHITECTURES",
    "TORCHVISION_VITS",
    "ArchArguments",
    "Architecture",
    "check_arch",
    "is_dropout",
    "keyword_arguments",
    "parse_arch_args",
    "takes_arguments",
]

ARCHITECTURES = ("resnet8", "resnet18", "resnet34", "resnet50")
TORCHVISION_VITS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
PLAIN = (*ARCHITECTURES, *TORCHVISION_VITS)  # names without a library before them
# Arguments of timm's and torchvision's models that other settings determine, or with which they do not return features.
RESERVED = {"num_classes", "in_chans", "img_size", "image_size", "dynamic_img_size", "representation_size", "model_name"}
RESERVED |= {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"}
RESERVED |= {"weights", "progress", "features_only", "out_indices", "scriptable", "exportable", "no_jit", "device", "dtype"}
ARGUMENT = re.compile(
    r"(?<![^\s,])([A-Za-z_]\w*)=(\([^()=]*\)|\[[^\[\]=]*\]|[^\s,()\[\]=]+)(?=[\s,]|$)",  # NAME=(1, 2), NAME=[1, 2], NAME=1
    re.ASCII,
)
NUMBER = r"[0-9]{1,9}(?:\.[0-9]+)?"
EXAMPLE = "must be NAME=VALUE pairs with spaces between them, such as patch_size=4 depth=6"


def check_arch(name: str) -> str:
    """The name of a backbone, if it can be one. Whether timm has the model timm/NAME is found when it is built.

    Raises:
        ValueError: it names no backbone.
    """
    if name in (*PLAIN, "pixels"):
        return name
    library, slash, model = name.partition("/")
    if library == "timm" and slash:
        if re.fullmatch(r"\w+", model, re.ASCII):
            return name
        plain, dot, _ = model.partition(".")
        of = "a tag names pretrained weights, which are not loaded" if plain and dot else "give the name of one of its models"
        example = plain if re.fullmatch(r"\w+", plain, re.ASCII) else "resnet18"
        raise ValueError(f"{name!r:.100} is no model of timm: {of}, as in timm/{example}")
    meant = f"timm/{model}" if library.lower() == "timm" and slash else f"timm/{name}" if _is_of_timm(name) else ""
    close = f" (did you mean {meant:.100}?)" if meant else nearest(model or name, PLAIN)
    raise ValueError(
        f"unknown architecture {name!r:.100}{close}: choose one of {', '.join(PLAIN)}, or timm/NAME for one of timm's"
    )


def _is_of_timm(name: str) -> bool:
    """Whether the installed timm has a model of this name. Its files are searched, since importing it would import PyTorch."""
    spec = find_spec("timm") if re.fullmatch(r"\w+", name, re.ASCII) else None
    files = [file for place in (spec and spec.submodule_search_locations) or [] for file in Path(place, "models").glob("*.py")]
    return any(f"\ndef {name}(pretrained" in file.read_text(encoding="utf-8") for file in files)


def takes_arguments(arch: str) -> bool:
    """Whether a backbone is a model of timm or a ViT of torchvision: `arch_args` and the size of the images are for these."""
    return arch.startswith("timm/") or arch in TORCHVISION_VITS


def parse_arch_args(given: Any) -> tuple[str, ...]:
    """A model's own arguments as NAME=VALUE, sorted by name, so that equal arguments have one form.

    Args:
        given: a text such as "patch_size=4 depth=6", a list of such texts, or a dict. Values are numbers, true, false, words, and
            lists of numbers, written 2-2-6-2 or (2, 2, 6, 2).

    Raises:
        ValueError: it is none of these, or has an argument twice, one that other settings determine, or a probability of dropout
            outside of [0, 1).

    >>> parse_arch_args("patch_size=4 drop_path_rate=0.10 depth=06 depths=(2, 2) mlp_ratio=4.0 class_token=False")
    ('class_token=false', 'depth=6', 'depths=2-2', 'drop_path_rate=0.1', 'mlp_ratio=4', 'patch_size=4')
    """
    if isinstance(given, Mapping):
        given = [f"{name}={value}" for name, value in given.items()]
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list | tuple) or not all(isinstance(part, str) for part in given):
        raise ValueError(EXAMPLE)
    text = " ".join(given)
    text = "" if text.strip().lower() == "none" else text
    pairs = ARGUMENT.findall(text)
    if rest := ARGUMENT.sub("", text).strip(" ,"):
        raise ValueError(f"{EXAMPLE}, got {rest[:100]!r}")
    names = [name for name, _ in pairs]
    for name in names:
        if name in RESERVED:
            raise ValueError(f"{name} cannot be given, since other settings determine it, got {text[:100]!r}")
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice, got {text[:100]!r}")
    values = {name: _value(text) for name, text in sorted(pairs)}
    for name, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if is_dropout(name) and not all(isinstance(part, str) or 0 <= part < 1 for part in parts):
            raise ValueError(f"{name} must be a probability >= 0 and below 1, got {_written(value)!r}")
    return tuple(f"{name}={_written(value)}" for name, value in values.items())


def is_dropout(name: str) -> bool:
    """Whether an argument of a model is a probability of dropout or stochastic depth, such as drop_path_rate."""
    return "drop" in name


def keyword_arguments(arch_args: tuple[str, ...]) -> dict[str, Any]:
    """The arguments as Python's values.

    >>> keyword_arguments(("class_token=false", "depths=2-2", "drop_path_rate=0.1", "patch_size=4", "act_layer=gelu"))
    {'class_token': False, 'depths': (2, 2), 'drop_path_rate': 0.1, 'patch_size': 4, 'act_layer': 'gelu'}
    """
    return {name: _value(text) for name, _, text in (argument.partition("=") for argument in arch_args)}


def _value(text: str) -> Any:
    listed = text[0] in "([" or re.fullmatch(rf"{NUMBER}(-{NUMBER})+", text)
    if listed:
        parts = PARTS.findall(text) if text[0] in "([" else text.split("-")
        if not parts or not all(re.fullmatch(NUMBER, part) for part in parts):
            raise ValueError(f"a list must be one of numbers, such as 2-2-6-2, got {text[:100]!r}")
        return tuple(_value(part) for part in parts)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    if not abs(number) <= LARGEST:
        raise ValueError(f"numbers must be finite and at most {LARGEST:g}, got {text[:100]!r}")
    return int(number) if number.is_integer() else number


def _written(value: Any) -> str:
    """The form of a value that is recorded: 06 is 6, (2, 2) is 2-2, True is true."""
    if isinstance(value, tuple):
        return "-".join(map(_written, value)) if len(value) > 1 else f"[{_written(value[0])}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


Architecture = Annotated[str, AfterValidator(check_arch)]
ArchArguments = Annotated[tuple[str, ...], Field(max_length=100), BeforeValidator(parse_arch_args)]
