"""Files of linear heads: ours, as an evaluation saves them, and the authors' checkpoints of a probe or of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.evaluate.name_files import check_same_classes
from sfrik.networks import Backbone, build_backbone
from sfrik.networks.libraries import check_sizes
from sfrik.networks.state_dicts import unusable, unwrapped
from sfrik.networks.weights import check_metadata
from sfrik.settings import EvaluateSettings, takes_arguments
from sfrik.system.tensor_files import check_finite, is_safetensors, read_pickle, read_safetensors, write_safetensors

__all__ = ["SavedHead", "load_head", "save_head"]

# Names of the head in a file, without those of wrappers such as DataParallel's "module". The authors' model is
# nn.Sequential(backbone, head).
NAMES = ("head", "1", "fc", "linear", "classifier", "")


@dataclass(frozen=True)
class SavedHead:
    """A head, and what else its file contains.

    Attributes:
        path: of the file.
        head: features [n, d] to class scores [n, classes].
        backbone: state dict of the backbone it was trained with; None if the file contains only a head.
        about: metadata of our files: protocol, arch, num_classes, classes (their names, if they have any), settings (their hash)
            and backbone_sha256, the hash of the pretrained weights.
    """

    path: Path
    head: nn.Linear
    backbone: dict[str, Tensor] | None
    about: dict[str, Any]

    def check(self, num_features: int, num_classes: int, classes: Sequence[str] | None = None) -> None:
        """Raise SfrikError if the head is for other features or classes.

        Args:
            num_features: d, the dimension of the features.
            num_classes: the number of classes.
            classes: their names, in the order of the labels; compared if the file has them too.
        """
        remedy = "class folders were renamed, added or removed since the head was trained: train it again, or check --ckp-path"
        check_same_classes(self.about.get("classes"), classes, f"the head {self.path}", "the images", remedy)
        if (self.head.in_features, self.head.out_features) != (num_features, num_classes):
            raise SfrikError(
                f"{self.path} has a head of {self.head.in_features} features and {self.head.out_features} classes, but "
                f"this evaluation has {num_features} features and {num_classes} classes: check --ckp-path, --arch and --dataset"
            )

    def build_backbone(self, settings: EvaluateSettings, channels: int) -> Backbone:
        """The backbone that was saved with the head, in evaluation mode.

        Raises:
            SfrikError: it is for another architecture or has other arguments, or does not take images of this size.
        """
        check_metadata(self.path, self.about, settings.arch, settings.arch_args)
        arch, size = settings.arch, int(self.about.get("size", settings.size))
        backbone = build_backbone(**(settings.network | {"size": size}), channels=channels)
        if takes_arguments(arch):
            check_sizes(arch, channels, size, settings.arch_args, settings.view_sizes)
        try:
            backbone.load_state_dict(self.backbone or {})
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise SfrikError(f"{self.path} does not hold the backbone of a {arch} ({reason}): check --arch") from None
        return backbone.eval()


def save_head(path: Path, head: nn.Linear, backbone: nn.Module | None = None, **about: Any) -> str:
    """Write a head and, after fine-tuning, its backbone as safetensors, atomically.

    Args:
        about: metadata, as in `SavedHead.about`.

    Returns:
        The SHA-256 of the file.

    Raises:
        WriteError: the file cannot be written.
    """
    parts = {"head": head} | ({"backbone": backbone} if backbone is not None else {})
    state = {f"{name}.{key}": value for name, module in parts.items() for key, value in module.state_dict().items()}
    return write_safetensors(path, state, about)


def load_head(path: str | Path) -> SavedHead:
    """Load a head from a file: ours (.safetensors), or a PyTorch checkpoint such as the authors' {epoch, best_acc, model, ...}.

    In a checkpoint the head is the linear layer named head, 1, fc, linear or classifier; the backbone, if there is one, has
    the keys that start with `backbone.` or `0.`, or else all other keys. Names of wrappers, such as `module.`, are removed.

    Raises:
        SfrikError: the file is missing or cut short, has no linear head, or has NaN or infinite values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise SfrikError(
            f"there is no head {path}: run evaluate without --only-inference (a finished score moved away), or check --ckp-path"
        )
    state, about = read_safetensors(path) if is_safetensors(path) else (_read_checkpoint(path), {})
    state = {unwrapped(key): value for key, value in state.items()}
    for name in NAMES:
        dot = f"{name}." if name else ""
        weight, bias = state.get(f"{dot}weight"), state.get(f"{dot}bias")
        if weight is not None and bias is not None and weight.dim() == 2 and bias.shape == weight.shape[:1]:
            break
    else:
        raise SfrikError(f"{path} has no linear head (such as fc.weight and fc.bias): check --ckp-path")
    if problem := unusable({f"{dot}weight": weight, f"{dot}bias": bias}):
        raise SfrikError(f"{path} cannot be used: {problem}, expected a dense tensor of floating-point numbers")
    check_finite(state, path)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    check_finite(head.state_dict(), path, "its values are outside the range of float32; use another head")
    rest = {key: value for key, value in state.items() if key not in (f"{dot}weight", f"{dot}bias")}
    for prefix in ("backbone.", "0."):
        if any(key.startswith(prefix) for key in rest):
            rest = {key.removeprefix(prefix): value for key, value in rest.items() if key.startswith(prefix)}
            break
    return SavedHead(path, head.eval(), rest or None, about)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, a pickle read with `weights_only`."""
    content = read_pickle(path)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if isinstance(content, dict) and isinstance(content.get("head"), dict):  # {backbone: {...}, head: {...}}
        parts = {name: content[name] for name in ("backbone", "head") if isinstance(content.get(name), dict)}
        content = {f"{name}.{key.removeprefix('module.')}": value for name, part in parts.items() for key, value in part.items()}
    if not isinstance(content, dict):
        raise SfrikError(f"{path} has no state dict of tensors: check --ckp-path")
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
