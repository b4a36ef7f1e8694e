"""The types of settings, with their bounds: numbers, kernel weights, networks. Checking them does not need PyTorch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from sfrik.errors import nearest

__all__ = [
    "ARCHITECTURES",
    "LARGEST_WIDTH",
    "MOST_DEGREES",
    "SCALES",
    "Architecture",
    "Batch",
    "Count",
    "Datasets",
    "Epochs",
    "Fraction",
    "Int",
    "KernelWeights",
    "LowerCase",
    "Mlp",
    "NotNegative",
    "Penalties",
    "Percent",
    "Pixels",
    "Rate",
    "Rates",
    "Real",
    "Slices",
    "Temperature",
    "parse_mlp",
]

ARCHITECTURES = ("resnet8", "resnet18", "resnet34", "resnet50")
LARGEST_WIDTH = 65536  # of the projector: twice the paper's; the last layer would have 17 GB of weights
MOST_LAYERS = 16

# The authors' commands write ImageNet, VICReg, SFRIK.
LowerCase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
Datasets = Annotated[Literal["mnist5k", "cifar10", "stl10", "imagenet", "image_folder"], LowerCase]


def _number(value: Any) -> Any:
    """Refuse booleans, which Python takes for numbers, and convert whole floats to integers."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Every number is finite and bounded: by what can be computed, or by what is plausible.
Int = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
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
Rate = Annotated[Real, Field(gt=0, le=3.4e38)]  # the range of float32
Temperature = Annotated[Real, Field(ge=1e-6, le=1e6)]  # of similarities, which float32 resolves to 1e-7
Penalty = Annotated[Real, Field(ge=1e-12, le=1e12)]
# 10, 10.0 and "10" are one share: one name of the score and one hash
Percent = Annotated[Real, Field(gt=0, le=100), AfterValidator(_number), PlainSerializer(_number)]
Rates = Annotated[tuple[Rate, ...], Field(max_length=100)]
Penalties = Annotated[tuple[Penalty, ...], Field(min_length=1, max_length=100)]


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
    """Check kernel weights such as "1.0-40.0-40.0"."""
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
    return text


def _mlp(text: str) -> str:
    parse_mlp(text)
    return text


def _arch(name: str) -> str:
    if name not in (*ARCHITECTURES, "pixels"):
        raise ValueError(f"unknown architecture {name!r}{nearest(name, ARCHITECTURES)}: choose one of {', '.join(ARCHITECTURES)}")
    return name


KernelWeights = Annotated[str, AfterValidator(_weights)]
Mlp = Annotated[str, AfterValidator(_mlp)]
Architecture = Annotated[str, AfterValidator(_arch)]
