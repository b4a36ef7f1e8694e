"""Weights files: written as safetensors; read from those, from checkpoints, and from the authors' files."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError, nearest
from sfrik.networks.backbones import Backbone, build_backbone
from sfrik.networks.libraries import check_sizes
from sfrik.networks.state_dicts import Match, match, size_of_positions, unusable
from sfrik.ops.finite import named_tensors
from sfrik.settings import ARCHITECTURES, Settings, is_dropout, parse_arch_args, takes_arguments
from sfrik.system.download import Download, DownloadError
from sfrik.system.files import WriteError, check_regular, file_hash, read_text, write_text
from sfrik.system.tensor_files import (
    check_finite,
    check_weights,
    is_safetensors,
    read_pickle,
    read_safetensors,
    write_safetensors,
)

__all__ = ["check_metadata", "load_backbone", "network_metadata", "pretrained", "save_weights"]

# The authors' release: name -> (file, architecture). Its backbone scores 70.3 % by linear probing on ImageNet (their README).
RELEASE = "https://github.com/valeoai/sfrik/releases/download/v0.1.0"
PRETRAINED = {"resnet50-sfrik-200ep": ("sfrik_32k_in1000_200ep_r50_backbone.pth", "resnet50")}


def save_weights(module: nn.Module, path: str | Path, **about: str) -> str:
    """Write a module's weights as safetensors, atomically, and return the SHA-256 of the file.

    The same weights and metadata `about` give the same file, byte for byte.

    Raises:
        WriteError: the file cannot be written; the message has the file, the space that it needs and the free space.
    """
    return write_safetensors(path, module.state_dict(), about)


def network_metadata(settings: Settings, backbone: nn.Module) -> dict[str, str]:
    """Metadata of a backbone's weights: what `load_backbone` needs besides the tensors."""
    if not takes_arguments(settings.arch):
        return {"arch": settings.arch}
    return {"arch": settings.arch, "arch_args": " ".join(settings.arch_args), "size": str(backbone.image_size)}


def load_backbone(
    path: str | Path,
    arch: str,
    stem: str = "imagenet",
    channels: int = 3,
    size: int | None = None,
    arch_args: str | Sequence[str] | Mapping[str, Any] | None = None,
) -> Backbone:
    """A backbone with the weights of a file, in evaluation mode.

    The file is in safetensors format or a PyTorch file, from this library or from other code: torchvision, timm, MoCo, SimSiam,
    SwAV, DINO, VICReg, Barlow Twins, lightly, solo-learn, and other code that uses torchvision's names. The backbone may be below
    any keys and prefixes (``model``, ``state_dict``, ``module.``, ``encoder_q.``, ``_orig_mod.``, ...). Heads, projectors,
    prototypes, queues and optimisers are left out, and a missing ``num_batches_tracked`` is 0. Of two networks in one file, that
    which its authors evaluate is loaded: DINO's teacher, the moving average (``ema``) of timm, I-JEPA's target_encoder beside
    encoder; otherwise the one that is trained, and not its momentum copy (MoCo's encoder_k, BYOL's target).

    Weights in float16, bfloat16 or float64 are converted to float32. Pickles are read with `weights_only`: they run no code.

    Args:
        path: the file. Also the first part of the authors' split checkpoint (`..._ckpaa`, with `..._ckpab` etc. in the same
            folder), or the archive that the parts form.
        arch: the architecture of the weights, as in `build_backbone`.
        stem: "imagenet", "small" or "patch", of a ResNet. channels: channels of the images.
        size: side of the images in pixels; that of the training when None, or 224 where the file does not record it. A ViT keeps
            the positions of the file, and timm's interpolates them for images of another size.
        arch_args: arguments of a model of timm or a ViT of torchvision; those that the file records when None.

    Raises:
        SfrikError: the file is missing, is not a weights file, is truncated, is for another architecture, has NaN or infinite
            values or some outside the range of float32, or holds several networks that differ and none of which is known to be
            the one to take.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save_weights(build_backbone("resnet8"), f"{folder}/backbone.safetensors", of="an untrained network")
    ...     load_backbone(f"{folder}/backbone.safetensors", "resnet8").training
    False
    """
    path = Path(path).expanduser()
    content, about = _read(path)
    arch_args = check_metadata(path, about, arch, arch_args)
    trained_size = int(about["size"]) if str(about.get("size")).isdecimal() else size or 224
    backbone = build_backbone(arch, stem, channels, trained_size, arch_args or ())
    try:
        tensors = dict(named_tensors(content))
    except RecursionError:
        raise SfrikError(f"{path} holds dicts that contain themselves: get the state dict of its network") from None
    parts = _usual_parts(arch, channels) if takes_arguments(arch) and arch_args else set()
    found = match(tensors, backbone, parts)
    if takes_arguments(arch) and (other := size_of_positions(backbone, found.state)):
        trained_size = other
        backbone = build_backbone(arch, stem, channels, other, arch_args or ())
        found = match(tensors, backbone, parts)
    if not found.state:
        raise SfrikError(
            f"{path} holds no state dict of tensors of a {arch}: its top-level keys are {_keys(content)}; looked for "
            f"{_listed(backbone.state_dict())} below any keys and prefixes{_guess(tensors, arch, stem, channels)}"
        )
    if not found.complete:
        of_file = "--arch, --arch-args and --size" if takes_arguments(arch) else "--arch"
        raise SfrikError(
            f"{path} does not hold the weights of a {arch}: tensors {_differences(found)}; its top-level keys are "
            f"{_keys(content)}{_guess(tensors, arch, stem, channels) or f'; give the {of_file} it was made with'}"
        )
    if found.rivals:
        raise SfrikError(
            f"{path} holds several networks that are a {arch} and differ, below {_listed(found.rivals)}: save the state dict of "
            "one of them to a file of its own"
        )
    if problem := unusable(found.state):
        raise SfrikError(f"{path} cannot be used: {problem}, expected a dense tensor of floating-point numbers")
    check_finite(found.state, path)
    own = backbone.state_dict()
    converted = {key: value.reshape(own[key].shape).to(own[key].dtype) for key, value in found.state.items()}
    check_finite(converted, path, "its values are outside the range of float32; use other weights")
    backbone.load_state_dict({**own, **converted})
    if takes_arguments(arch):
        check_sizes(arch, channels, trained_size, parse_arch_args(arch_args or ()), [size or trained_size])
    return backbone.eval()


def check_metadata(path: Path, about: Mapping[str, Any], arch: str, arch_args: Any) -> tuple[str, ...]:
    """The arguments of a model whose weights a file holds; refuses those of another model, whose tensors may have the same names.

    The probabilities of dropout may differ, as they often do between pretraining and fine-tuning.

    Args:
        about: the file's metadata, those of `network_metadata`; empty for a file of other code.
        arch_args: the arguments given; those of the file when None.

    Raises:
        SfrikError: the file is of another model, or with other arguments.
    """
    recorded = tuple(str(about.get("arch_args", "")).split())
    try:
        given = recorded if arch_args is None else parse_arch_args(arch_args)
    except ValueError as error:
        raise SfrikError(f"arch_args: {error}") from None
    theirs, ours = ({name for name in names if not is_dropout(name.partition("=")[0])} for names in (recorded, given))
    # timm/resnet18 is the network resnet18
    same = str(about.get("arch", "")).removeprefix("timm/") == arch.removeprefix("timm/")
    library = takes_arguments(arch) or takes_arguments(str(about.get("arch", "")))  # ours are compared by their tensors
    if not about.get("arch") or not library or (same and theirs == ours):
        return given
    arguments = f" --arch-args {' '.join(recorded)}" if recorded else ""
    without = ", without --arch-args" if ours and not theirs else ""
    raise SfrikError(f"{path} holds the weights of --arch {about['arch']}{arguments}: give these{without}, or other weights")


def _usual_parts(arch: str, channels: int) -> set[str]:
    """First components of the names of a model's tensors without arguments, some of which leave a part out: final_norm=false."""
    with suppress(SfrikError), torch.device("meta"):
        return {key.split(".")[0] for key in build_backbone(arch, channels=channels).state_dict()}
    return set()  # it does not take images of 224 pixels


def pretrained(name: str = "resnet50-sfrik-200ep", progress: bool = True) -> nn.Module:
    """The authors' backbone, downloaded on first use to torch.hub's cache (`TORCH_HOME`), in evaluation mode.

    Raises:
        SfrikError: the name is unknown; the file could not be downloaded (an interrupted download leaves no file); or the file
            has changed since its first use. The authors publish no checksum, so the SHA-256 of the first download is stored next
            to it and compared from then on.
    """
    if name not in PRETRAINED:
        raise SfrikError(f"unknown weights {name!r}{nearest(name, PRETRAINED)}: choose {', '.join(PRETRAINED)}")
    file, arch = PRETRAINED[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    try:
        Download(f"{RELEASE}/{file}", progress=progress).to_file(path)
    except DownloadError as error:
        raise SfrikError(f"{RELEASE}/{file} could not be downloaded ({error}): fetch it yourself to {path}") from None
    backbone = load_backbone(path, arch)
    record, digest = path.with_name(f"{file}.sha256"), file_hash(path)
    known = read_text(record).strip() if record.is_file() else ""
    if known and known != digest:
        raise SfrikError(f"{path} has changed since it was downloaded: its SHA-256 is not the one in {record}. Delete both files")
    if not known:
        with suppress(WriteError):  # a read-only cache
            write_text(record, digest + "\n")
    return backbone


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """The content of a weights file as it is, and the metadata of ours."""
    if not path.exists():
        raise SfrikError(f"there is no weights file {path}: check --pretrained, or pretrain first")
    try:
        check_regular(path)
        if is_safetensors(path):
            found = read_safetensors(path)
            check_weights(path)
            return found
        with _whole_file(path) as whole:
            return read_pickle(whole, path), {}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise SfrikError(f"{path} cannot be read ({error}): copy or download it again") from None


def _keys(content: Any) -> str:
    """The top-level keys of a file, for a message."""
    return _listed(content) if isinstance(content, Mapping) else f"none (the file holds a {type(content).__name__})"


def _listed(names: Iterable[Any], most: int = 5) -> str:
    """The first names, each shortened and on one line."""
    texts = [str(name)[:60] for name in names]
    shown = ", ".join(text if text.isprintable() else repr(text) for text in texts[:most])
    return f"{shown or 'none'}{f', ... ({len(texts)} in all)' if len(texts) > most else ''}"


def _differences(found: Match) -> str:
    kinds = [("missing", found.missing), ("unknown", found.unknown), ("of another shape", found.shapes)]
    return "; ".join(f"{len(keys)} {what} (such as {keys[0]})" for what, keys in kinds if keys)


def _guess(tensors: Mapping[str, Tensor], arch: str, stem: str, channels: int) -> str:
    """The architecture of this library that a file's tensors are for, in words and as flags; empty if there is none."""
    for name in ARCHITECTURES:
        with torch.device("meta"):
            found = match(tensors, build_backbone(name))
        if found.missing or found.unknown or found.shapes not in ([], ["conv1.weight"]):
            continue
        first = found.state["conv1.weight"].shape
        theirs = {7: "imagenet", 3: "small", 4: "patch"}.get(first[-1] if len(first) == 4 else 0, "")
        theirs = stem if name == "resnet8" and {stem, theirs} <= {"imagenet", "small"} else theirs
        flags = ([f"--arch {name}"] if name != arch else []) + ([f"--stem {theirs}"] if theirs and theirs != stem else [])
        images = "" if len(first) != 4 or first[1] == channels else f" for {first[1]}-channel images, not {channels}"
        if flags or images:
            return f"; these are weights of {name}{images}{': ' if flags else ''}{' '.join(flags)}"
    return ""


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """The weights file; parts "...aa", "...ab" are joined and an archive of one file is unpacked in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        if path.name.endswith("ckpaa"):
            parts = sorted(path.parent.glob(f"{path.name[:-2]}[a-z][a-z]"))
            path = Path(folder) / "joined"
            with path.open("wb") as whole:
                for part in parts:
                    check_regular(part)
                    with part.open("rb") as piece:
                        shutil.copyfileobj(piece, whole)
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                members = [member for member in archive if member.isfile()]
                if len(members) != 1:
                    raise SfrikError(f"{path.name} is an archive of {len(members)} files: expected one checkpoint")
                path = Path(folder) / "checkpoint"
                content = archive.extractfile(members[0])
                assert content is not None  # not None for a regular file
                with content as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
        yield path
