"""The types of settings, with their bounds: numbers, lists, paths, kernel weights. Checking them does not need PyTorch.

A value may come from a recipe, the command line, a notebook or papermill. papermill makes numbers of `-p mlp 64` and
`-p sfrik_weights 1.0`, and one text of `-p loggers tensorboard` and `-p nb_knn "10 20"`: each type accepts in every form what the
command line accepts. "none" unsets.
"""

from __future__ import annotations

import os
import re
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError

from sfrik.errors import SfrikError

__all__ = [
    "LARGEST",
    "LARGEST_WIDTH",
    "MOST_DEGREES",
    "PARTS",
    "SCALES",
    "Batch",
    "Count",
    "Datasets",
    "Decay",
    "Epochs",
    "Fraction",
    "Int",
    "KernelWeights",
    "LowerCase",
    "Mlp",
    "Name",
    "NotNegative",
    "OptionalPath",
    "Penalties",
    "Percent",
    "Pixels",
    "Rate",
    "Rates",
    "Real",
    "RequiredPath",
    "Several",
    "Slices",
    "Switch",
    "Temperature",
    "Tiny",
    "TradeOff",
    "Unset",
    "as_list",
    "as_path",
    "as_whole",
    "parse_mlp",
]

LARGEST_WIDTH = 65536  # of the projector: twice the paper's; the last layer would have 17 GB of weights
MOST_LAYERS = 16
PARTS = re.compile(r"[^\s,\[\]()'\"]+")  # of a list that was written as a text

# The authors' commands write ImageNet, VICReg, SFRIK.
LowerCase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
Datasets = Annotated[Literal["mnist5k", "cifar10", "cifar100", "stl10", "imagenet", "image_folder"], LowerCase]


def _unset(empty: Any) -> BeforeValidator:
    """Replace the text "none" by `empty`, the value of a setting that is not set."""
    return BeforeValidator(lambda value: empty if isinstance(value, str) and value.strip().lower() == "none" else value)


def as_path(value: Any, optional: bool = True) -> Any:
    """The text of a path, with `~` and `~user` replaced by the home folder; other values are returned unchanged.

    Args:
        value: A text, a number (a folder named 2024) or a `Path`.
        optional: Whether "none" gives "", no path.

    Raises:
        ValueError: There is no such home folder, or the path has a null byte.
    """
    if isinstance(value, os.PathLike) or type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        return value
    if optional and value.strip().lower() == "none":
        return ""
    expanded = os.path.expanduser(value)
    if expanded.startswith("~") or "\0" in value:
        problem = "has a null byte" if "\0" in value else "names no home folder (write ./~ for a folder of that name)"
        raise ValueError(f"the path {value!r:.100} {problem}")
    return expanded


def as_list(value: Any) -> Any:
    """A list from one value, or from a text of several with commas or spaces between them; "none" and "" give an empty list.

    >>> as_list("10, 20"), as_list(20), as_list(["table1"]), as_list("none")
    (['10', '20'], [20], ['table1'], [])
    """
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):  # of the command line
        value = value[0]
    if isinstance(value, str):
        return [] if value.strip().lower() == "none" else PARTS.findall(value)
    if isinstance(value, list | tuple):
        return [part for item in value for part in (isinstance(item, str) and PARTS.findall(item)) or [item]]
    return [value] if isinstance(value, int | float) else value


def as_whole(value: Any, name: str, least: int, most: int) -> int:
    """A whole number from a number or a text, for parameters of notebooks that are not settings.

    Raises:
        SfrikError: It is none, or outside of its bounds.

    >>> as_whole("5", "rounds", 1, 10), as_whole(5.0, "rounds", 1, 10)
    (5, 5)
    """
    try:
        return TypeAdapter(Annotated[Int, Field(ge=least, le=most)]).validate_python(value)
    except ValidationError:
        raise SfrikError(f"{name} must be a whole number >= {least} and <= {most}, got {value!r:.100}") from None


def _joined(value: Any) -> Any:
    """The text of kernel weights or widths from a number, or from a list of numbers."""
    if isinstance(value, list | tuple):
        return "-".join(str(_joined(part)) for part in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return f"{Decimal(repr(value)):f}"  # 0.00001, not 1e-05, whose hyphen would separate two weights


def _number(value: Any) -> Any:
    """Refuse booleans, which Python takes for numbers, and convert whole floats to integers."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Every number is finite and bounded: by what can be computed, or by what is plausible.
Int = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), AfterValidator(lambda value: value + 0.0)]  # "-0" and 0 have one hash
LARGEST = 1e7  # float32 has 7 digits: next to a larger term of the loss, a term of size 1 is lost
SCALES = {"truncated": 80.0, "rbf": 40.0, "heat": 80.0, "power": 2.0}  # above these the coefficients are 0 in float32
MOST_DEGREES = 64  # N(65536, 64) is 1e219, within the range of float64
Count = Annotated[Int, Field(ge=1, le=10**9)]
Epochs = Annotated[Int, Field(ge=0, le=10**6)]
Batch = Annotated[Int, Field(ge=2, le=2**20)]
Pixels = Annotated[Int, Field(ge=1, le=4096)]
Slices = Annotated[Int, Field(ge=1, le=LARGEST_WIDTH)]  # up to the largest dimension of the embeddings
Fraction = Annotated[Real, Field(ge=0, le=1)]
NotNegative = Annotated[Real, Field(ge=0, le=LARGEST)]
Rate = Annotated[Real, Field(ge=1.2e-38, le=3.4e38)]  # the range of float32; below it nothing would be trained
Temperature = Annotated[Real, Field(ge=1e-6, le=1e6)]  # of similarities, which float32 resolves to 1e-7
Decay = Annotated[Real, Field(ge=0, lt=1)]  # of a running average
Tiny = Annotated[Real, Field(ge=1e-12, le=1)]
Penalty = Annotated[Real, Field(ge=1e-12, le=1e12)]
# 10, 10.0 and "10" are one share: one name of the score and one hash
Percent = Annotated[Real, Field(gt=0, le=100), AfterValidator(_number), PlainSerializer(_number)]
Several = BeforeValidator(as_list)  # for tuples
Rates = Annotated[tuple[Rate, ...], Field(max_length=100), Several]
Penalties = Annotated[tuple[Penalty, ...], Field(min_length=1, max_length=100), Several]
Unset = _unset(None)  # for settings that are None when unset
# None in a file of settings, which has the weight that follows from it
TradeOff = Annotated[Annotated[Real, Field(gt=0, le=LARGEST)] | None, Unset, PlainSerializer(lambda value: None)]
Switch = Annotated[bool, _unset(False)]
Name = Annotated[str, _unset("")]
OptionalPath = Annotated[str, BeforeValidator(as_path)]
RequiredPath = Annotated[str, BeforeValidator(partial(as_path, optional=False))]


def parse_mlp(mlp: str) -> list[int]:
    """The layer widths in a string such as "512-512".

    >>> parse_mlp("8192-8192-32768")
    [8192, 8192, 32768]
    """
    parts = mlp.split("-")
    if len(parts) > MOST_LAYERS:
        raise ValueError(f"mlp must have at most {MOST_LAYERS} widths, got {len(parts)}")
    if not all(re.fullmatch("0*[1-9][0-9]{0,17}", part) for part in parts):
        raise ValueError(f"mlp must be widths joined by hyphens, such as 8192-8192-8192, got {mlp[:100]!r}")
    widths = [int(part) for part in parts]
    if max(widths) > LARGEST_WIDTH:
        raise ValueError(f"mlp must have widths of at most {LARGEST_WIDTH}, got {mlp[:100]!r}")
    return widths


def _weights(text: str) -> str:
    """Check kernel weights; 1-40-40 and 1.0-40.0-40.00 are one setting, written 1.0-40.0-40.0."""
    parts = text.split("-")
    try:
        values = [float(part) for part in parts if part.isascii()]
    except ValueError:
        values = []
    if len(values) < len(parts):
        raise ValueError(f"must be numbers >= 0 joined by hyphens, such as 1.0-40.0-40.0, got {text[:100]!r}")
    if len(values) > MOST_DEGREES:
        raise ValueError(f"must be at most {MOST_DEGREES} numbers, one for each degree, got {len(values)}")
    if not all(value <= LARGEST for value in values):
        raise ValueError(f"must be finite numbers, each at most {LARGEST:g}, got {text[:100]!r}")
    if not any(values):
        raise ValueError(f"at least one weight must be above 0, got {text[:100]!r}")
    return "-".join(_joined(value) for value in values)


def _mlp(text: str) -> str:
    """Check widths; 064-64 and 64-64 are one setting."""
    return "-".join(map(str, parse_mlp(text)))


KernelWeights = Annotated[str, BeforeValidator(_joined), AfterValidator(_weights)]
Mlp = Annotated[str, BeforeValidator(_joined), AfterValidator(_mlp)]
