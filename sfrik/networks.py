"""Backbone and projector, and the reading and writing of their weights.

A backbone is torchvision's ResNet without classifier, under torchvision's own keys, with the last BatchNorm of each
residual branch initialised to zero; it maps images [n, c, h, w] to features [n, d]. For images of 32 pixels or so the
stem is one 3 x 3 convolution and no pooling. `resnet8` is the desk profile's network.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from sfrik.architectures import ARCHITECTURES, parse_mlp
from sfrik.errors import SfrikError, nearest
from sfrik.system.files import WriteError, check_regular, file_hash, read_text, write_text
from sfrik.system.tensor_files import check_weights, read_pickle, read_safetensors, write_safetensors

__all__ = ["Backbone", "build_backbone", "build_projector", "load_backbone", "pretrained", "save_weights"]

# The authors' release: name -> (file, architecture). Its backbone scores 70.3 % by linear probing on ImageNet (their README).
RELEASE = "https://github.com/valeoai/sfrik/releases/download/v0.1.0"
PRETRAINED = {"resnet50-sfrik-200ep": ("sfrik_32k_in1000_200ep_r50_backbone.pth", "resnet50")}


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the width changes (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Identity()
        if inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.shortcut(x))


class Backbone(nn.Module):
    """A network of images [n, c, h, w] whose features [n, d] have d = `num_features` dimensions."""

    num_features: int


class ResNet8(Backbone):
    """Eight layers for 28-pixel digits: a 3 x 3 stem of stride 2, residual blocks of 32, 64, 128 channels; d = 128.

    The residual branches are not initialised to zero: the untrained network would be nearly linear, and as a baseline
    it scored 46 % where this one scores 81 %.
    """

    def __init__(self, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, inside = [], width
        for stage in range(3):
            outside = width * 2**stage
            blocks.append(ResidualBlock(inside, outside, stride=1 if stage == 0 else 2))
            inside = outside
        self.layers = nn.Sequential(*blocks)
        self.num_features = inside
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.layers(x).mean(dim=(2, 3))  # [n, d]


def build_backbone(arch: str, stem: str = "imagenet", channels: int = 3) -> Backbone:
    """A freshly initialised backbone; `.num_features` is the dimension d of its features.

    Args:
        arch: one of `ARCHITECTURES`.
        stem: "imagenet" (7 x 7 convolution of stride 2 and a max-pool) or "small" (3 x 3 of stride 1, no pool).
        channels: of the images, 3 or 1.

    >>> backbone = build_backbone("resnet8", channels=1)
    >>> backbone(torch.zeros(2, 1, 28, 28)).shape, backbone.num_features
    (torch.Size([2, 128]), 128)
    """
    if arch not in ARCHITECTURES:
        raise SfrikError(f"unknown arch {arch!r}: choose one of {', '.join(ARCHITECTURES)}")
    if arch == "resnet8":
        return ResNet8(channels)
    import torchvision  # here, since it takes seconds to import and the desk profile does without

    net = getattr(torchvision.models, arch)(weights=None, zero_init_residual=True)
    net.num_features = net.fc.in_features  # a Backbone in all but name
    net.fc = nn.Identity()
    if stem == "small" or channels != 3:
        kernel, stride = (3, 1) if stem == "small" else (7, 2)
        net.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem == "small":
        net.maxpool = nn.Identity()
    return net


class Pixels(Backbone):
    """No network: the pixels themselves are the features, the baseline that any backbone should beat."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)  # [n, c h w]


def build_pixels(size: int, channels: int) -> Backbone:
    return Pixels(channels * size * size)


def build_projector(num_features: int, mlp: str) -> nn.Sequential:
    """Projector from its widths, "8192-8192-8192": Linear, BatchNorm, ReLU for each but the last, Linear without bias.

    The last width is q, the dimension of the embeddings.

    >>> build_projector(128, "256-64")(torch.zeros(2, 128)).shape
    torch.Size([2, 64])
    """
    widths = parse_mlp(mlp)
    layers: list[nn.Module] = []
    inside = num_features
    for width in widths[:-1]:
        layers += [nn.Linear(inside, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        inside = width
    return nn.Sequential(*layers, nn.Linear(inside, widths[-1], bias=False))


def save_weights(module: nn.Module, path: str | Path, **about: str) -> str:
    """Write a module's weights as safetensors, complete or not at all; the SHA-256 of the file.

    The same weights and `about` give the same file, byte for byte.

    Raises:
        WriteError: the file cannot be written; it names the file, what it needs and what is free.
    """
    return write_safetensors(path, module.state_dict(), about)


def load_backbone(path: str | Path, arch: str, stem: str = "imagenet", channels: int = 3) -> Backbone:
    """A backbone with the weights of a file, in evaluation mode.

    Args:
        path: ours (`backbone.safetensors`, `checkpoint.pt`), or the authors' `.pth`: the state dict of a backbone, or a full
            checkpoint `{epoch, model, optimizer}` whose keys start with `module.backbone.`, or the first part of one that
            is cut in parts (`..._ckpaa`, with `..._ckpab` and so on beside it), or the archive that the parts make.
        arch: the architecture that the weights are for.

    Raises:
        SfrikError: the file is missing, is not a weights file, is cut short, or is for another architecture.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = save_weights(build_backbone("resnet8"), f"{folder}/backbone.safetensors", of="an untrained network")
    ...     load_backbone(f"{folder}/backbone.safetensors", "resnet8").training
    False
    """
    state = backbone_state(Path(path))
    backbone = build_backbone(arch, stem, channels)
    own = backbone.state_dict()
    # A classifier that came along (torchvision's own files) is no part of a backbone.
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
    backbone.load_state_dict(state)
    return backbone.eval()


def pretrained(name: str = "resnet50-sfrik-200ep", progress: bool = True) -> nn.Module:
    """The authors' backbone, downloaded on first use to torch.hub's cache (`TORCH_HOME`), in evaluation mode.

    Raises:
        SfrikError: an unknown name, or the file could not be downloaded; a download that broke off leaves nothing behind. Or the
            file has changed since its first use: the authors publish no checksum, so the first download's SHA-256 is kept beside
            it and compared from then on.
    """
    if name not in PRETRAINED:
        raise SfrikError(f"unknown weights {name!r}{nearest(name, PRETRAINED)}: there is {', '.join(PRETRAINED)}")
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
        with suppress(WriteError):  # a cache that is read-only
            write_text(record, digest + "\n")
    return backbone


def backbone_state(path: Path) -> dict[str, Tensor]:
    """The backbone's state dict in any file that `load_backbone` reads. Pickles are read with `weights_only`."""
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
    """The weights file: parts "...aa", "...ab" are joined, and an archive of one file is unpacked, in a temporary folder."""
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
                    raise SfrikError(f"{path.name} is an archive of {len(members)} files: expected one checkpoint in it")
                path = Path(folder) / "checkpoint"
                content = archive.extractfile(members[0])
                assert content is not None  # of a file there is content
                with content as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
        yield path
