"""Weights files: written as safetensors; read from those, from checkpoints, and from the authors' files."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError, nearest
from sfrik.networks.backbones import Backbone, build_backbone
from sfrik.system.files import WriteError, check_regular, file_hash, read_text, write_text
from sfrik.system.tensor_files import check_finite, check_weights, read_pickle, read_safetensors, write_safetensors

__all__ = ["backbone_state", "load_backbone", "pretrained", "save_weights"]

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


def load_backbone(path: str | Path, arch: str, stem: str = "imagenet", channels: int = 3) -> Backbone:
    """A backbone with the weights of a file, in evaluation mode.

    Args:
        path: a file of this library (`backbone.safetensors`, `checkpoint.pt`) or of the authors (`.pth`): the state dict of a
            backbone, a full checkpoint `{epoch, model, optimizer}` whose keys start with `module.backbone.`, the first part of a
            split checkpoint (`..._ckpaa`, with `..._ckpab` etc. in the same folder), or the archive that the parts form.
        arch: the architecture of the weights, one of `ARCHITECTURES`.
        stem: "imagenet" or "small". channels: channels of the images.

    Raises:
        SfrikError: the file is missing, is not a weights file, is truncated, is for another architecture, or has NaN or infinite
            values.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save_weights(build_backbone("resnet8"), f"{folder}/backbone.safetensors", of="an untrained network")
    ...     load_backbone(f"{folder}/backbone.safetensors", "resnet8").training
    False
    """
    state = backbone_state(Path(path))
    backbone = build_backbone(arch, stem, channels)
    own = backbone.state_dict()
    # Files of torchvision also contain a classifier.
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unknown or shapes:
        about = "; ".join(
            f"{len(keys)} {what} (such as {keys[0]})"
            for what, keys in [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
            if keys
        )
        raise SfrikError(f"{path} does not hold the weights of a {arch}: tensors {about}; give the --arch it was made with")
    check_finite(state, path)
    backbone.load_state_dict(state)
    return backbone.eval()


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
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(f"{RELEASE}/{file}", str(path), progress=progress)
        except (OSError, RuntimeError) as error:
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


def backbone_state(path: Path) -> dict[str, Tensor]:
    """The backbone's state dict in any file that `load_backbone` accepts. Pickles are read with `weights_only`."""
    if not path.exists():
        raise SfrikError(f"there is no weights file {path}: check --pretrained, or pretrain first")
    if path.suffix == ".safetensors":
        state, _ = read_safetensors(path)
        check_weights(path)
        return state
    try:
        check_regular(path)
        with _whole_file(path) as whole:
            content = read_pickle(whole, path)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise SfrikError(f"{path} cannot be read ({error}): copy or download it again") from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise SfrikError(f"{path} holds no state dict of tensors: expected a backbone or a full checkpoint")
    keys = {key.removeprefix("module."): value for key, value in content.items()}
    if any(key.startswith("backbone.") for key in keys):
        keys = {key.removeprefix("backbone."): value for key, value in keys.items() if key.startswith("backbone.")}
    return keys


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
