"""Backbones, projectors, and weights files: ours, the authors', and the broken ones."""

from __future__ import annotations

import os
import pickle
import tarfile

import pytest
import torch
import torchvision
from torch import nn

from sfrik.errors import SfrikError
from sfrik.networks import build_backbone, build_projector, load_backbone, pretrained, save_weights
from sfrik.settings import parse_mlp
from sfrik.system.download import Download


def scrambled(arch: str, **options) -> nn.Module:
    """A backbone whose every tensor differs from a fresh one's, in evaluation mode."""
    net = build_backbone(arch, **options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
            else:
                value.fill_(3)
    return net.eval()


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def resnet18():
    return scrambled("resnet18")


@pytest.fixture(scope="module")
def resnet8():
    return scrambled("resnet8")


@pytest.mark.parametrize(("arch", "features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_backbone_has_torchvisions_keys_and_shapes_without_the_classifier(arch, features):
    theirs = getattr(torchvision.models, arch)(weights=None).state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    net = build_backbone(arch)
    assert {key: value.shape for key, value in net.state_dict().items()} == expected
    assert net.num_features == features


@pytest.mark.parametrize(("arch", "last", "blocks"), [("resnet18", "bn2", 8), ("resnet50", "bn3", 16)])
def test_last_batchnorm_of_each_residual_branch_starts_at_zero_and_no_other_does(arch, last, blocks):
    net = build_backbone(arch)
    zero = [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.weight.abs().sum() == 0]
    assert len(zero) == blocks
    assert all(name.endswith(last) for name in zero)


@pytest.mark.parametrize(
    ("stem", "channels", "side"),
    [("imagenet", 3, 64), ("small", 3, 32), ("small", 1, 28), ("imagenet", 1, 64), ("patch", 3, 32), ("patch", 1, 32)],
)
def test_resnet18_maps_images_to_512_features(stem, channels, side):
    net = build_backbone("resnet18", stem=stem, channels=channels).eval()
    with torch.no_grad():
        assert net(torch.randn(2, channels, side, side)).shape == (2, 512)


def test_small_stem_is_a_3x3_convolution_of_stride_1_without_pooling():
    net = build_backbone("resnet18", stem="small")
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding, net.conv1.bias) == ((3, 3), (1, 1), (1, 1), None)
    x = torch.randn(1, 64, 9, 9)
    assert torch.equal(net.maxpool(x), x)
    assert build_backbone("resnet18").conv1.kernel_size == (7, 7)


@pytest.mark.parametrize("channels", [1, 3])
def test_resnet8_maps_digits_to_128_features(channels):
    net = build_backbone("resnet8", channels=channels).eval()
    with torch.no_grad():
        assert net(torch.randn(3, channels, 28, 28)).shape == (3, net.num_features) == (3, 128)


def test_resnet8_has_eight_layers_on_its_longest_path():
    net = build_backbone("resnet8")
    sides = [m.kernel_size[0] for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert (sides.count(3), sides.count(1)) == (7, 2)  # two shortcuts; the eighth layer is the linear one that follows


@pytest.mark.parametrize("arch", ["resnet8", "resnet18", "pixels"])
def test_an_unknown_stem_is_refused_with_the_known_ones(arch):
    with pytest.raises(SfrikError, match="stem must be one of imagenet, small, patch, got 'pathc'"):
        build_backbone(arch, stem="pathc")


def test_an_unknown_arch_is_refused_with_the_known_ones():
    with pytest.raises(SfrikError, match=r"architecture 'resnet19'.*: choose one of resnet8, resnet18, resnet34, resnet50"):
        build_backbone("resnet19")


@pytest.mark.parametrize(("mlp", "widths"), [("512", [512]), ("512-256", [512, 256]), ("8192-8192-32768", [8192, 8192, 32768])])
def test_parse_mlp_reads_widths_joined_by_hyphens(mlp, widths):
    assert parse_mlp(mlp) == widths


@pytest.mark.parametrize("mlp", ["", "512-", "-512", "512--512", "512x512", "0-512", "512-0", "5.5", "512 - 512"])
def test_parse_mlp_refuses_anything_else(mlp):
    with pytest.raises(ValueError, match="widths joined by hyphens, such as 8192-8192-8192, got"):
        parse_mlp(mlp)


def test_projector_is_linear_batchnorm_relu_twice_then_linear_without_bias():
    projector = build_projector(7, "5-6-4")
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in projector] == kinds
    linear = [(m.in_features, m.out_features, m.bias is not None) for m in projector if isinstance(m, nn.Linear)]
    assert linear == [(7, 5, True), (5, 6, True), (6, 4, False)]
    assert [m.num_features for m in projector if isinstance(m, nn.BatchNorm1d)] == [5, 6]
    assert projector(torch.randn(3, 7)).shape == (3, 4)


def test_projector_of_one_width_is_one_linear_layer_without_bias():
    (layer,) = build_projector(7, "4")
    assert (layer.in_features, layer.out_features, layer.bias) == (7, 4, None)


@pytest.mark.parametrize(("arch", "options"), [("resnet8", {"channels": 1}), ("resnet18", {"stem": "small"})])
def test_a_saved_backbone_loads_back_the_same_and_in_evaluation_mode(tmp_path, arch, options):
    net, path = scrambled(arch, **options), tmp_path / "backbone.safetensors"
    save_weights(net, path, arch=arch)
    assert [file.name for file in tmp_path.iterdir()] == ["backbone.safetensors"]  # nothing temporary is left
    loaded = load_backbone(path, arch, **options)
    assert same_weights(loaded, net)
    assert not any(m.training for m in loaded.modules())
    x = torch.randn(2, options.get("channels", 3), 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def authors_checkpoint(net: nn.Module) -> dict:
    model = {f"module.backbone.{key}": value for key, value in net.state_dict().items()}
    projector = build_projector(net.num_features, "8-8")
    model |= {f"module.projector.{key}": value for key, value in projector.state_dict().items()}
    optimiser = torch.optim.SGD(projector.parameters(), lr=0.1)
    return {"epoch": 100, "model": model, "optimizer": optimiser.state_dict()}


@pytest.mark.parametrize(
    "content",
    [
        lambda net: net.state_dict(),
        authors_checkpoint,
    ],
    ids=["backbone's state dict", "full checkpoint"],
)
def test_the_authors_files_load(tmp_path, resnet18, content):
    path = tmp_path / "resnet18.pth"
    torch.save(content(resnet18), path)
    assert same_weights(load_backbone(str(path), "resnet18"), resnet18)


def refused(path, arch: str = "resnet8") -> str:
    """The text of the refusal, which must be one line that names the file."""
    with pytest.raises(SfrikError) as caught:
        load_backbone(path, arch, channels=1)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "there is no weights file" in refused(tmp_path / "none.pth")
    assert "is a folder and not a regular file" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_a_truncated_safetensors_file_is_refused(tmp_path, kept):
    path = tmp_path / "backbone.safetensors"
    save_weights(build_backbone("resnet8"), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "is not a complete safetensors file" in refused(path)


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_a_truncated_pth_file_is_refused(tmp_path, resnet8, kept):
    path = tmp_path / "backbone.pth"
    torch.save(resnet8.state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "is not a complete PyTorch weights file" in refused(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".txt"])
def test_a_text_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"readme{suffix}"
    path.write_text("<html>404: not found</html>\n" * 20, encoding="utf-8")
    assert "is not a complete" in refused(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {0: torch.ones(2)}, torch.ones(3), {"model": {"a": 1}}])
def test_a_pth_file_of_anything_but_named_tensors_is_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    assert "holds no state dict of tensors" in refused(path)


def test_weights_of_another_architecture_are_refused_with_examples_of_tensors(tmp_path, resnet18):
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18.state_dict(), path)
    with pytest.raises(SfrikError, match=r"not hold the weights of a resnet50: .*missing \(such as .*of another shape.*--arch"):
        load_backbone(path, "resnet50")
    with pytest.raises(SfrikError, match=r"not hold the weights of a resnet34: tensors \d+ missing"):
        load_backbone(path, "resnet34")


def test_weights_of_another_stem_are_refused(tmp_path, resnet18):
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18.state_dict(), path)
    with pytest.raises(SfrikError, match=r"1 of another shape \(such as conv1.weight\)"):
        load_backbone(path, "resnet18", stem="small")


class Trap:
    """Unpickling it runs code: it makes the folder `marker`."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("write", ["torch.save", "pickle"])
def test_a_pickle_that_asks_for_code_is_refused_and_its_code_does_not_run(tmp_path, write):
    path, marker = tmp_path / "trap.pth", tmp_path / "ran"
    content = {"epoch": 1, "model": {"module.backbone.conv1.weight": Trap(marker)}}
    if write == "torch.save":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert "holds Python objects besides tensors" in refused(path)
    assert not marker.exists()


# --- the authors' release


def cut(content, folder, parts=3):
    """Bytes in parts named as the authors' full checkpoint is; the first part."""
    size = -(-len(content) // parts)
    for k in range(parts):
        (folder / f"last_ckpa{'abc'[k]}").write_bytes(content[k * size : (k + 1) * size])
    return folder / "last_ckpaa"


@pytest.mark.parametrize("archive", [False, True])
def test_a_full_checkpoint_in_parts_is_joined(tmp_path, archive):
    backbone = build_backbone("resnet18")
    model = {f"module.backbone.{key}": value for key, value in backbone.state_dict().items()}
    whole = tmp_path / "whole.pth"
    torch.save({"epoch": 3, "model": {**model, "module.projector.0.weight": torch.zeros(2, 2)}, "optimizer": {}}, whole)
    if archive:
        with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
            tar.add(whole, "last.pth")
        whole = tmp_path / "whole.tar.gz"
    for path in (cut(whole.read_bytes(), tmp_path), whole):
        loaded = load_backbone(path, "resnet18")
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in backbone.state_dict().items())


def test_an_archive_of_several_files_is_refused(tmp_path):
    with tarfile.open(tmp_path / "two.tar.gz", "w:gz") as tar:
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"")
            tar.add(tmp_path / name, name)
    with pytest.raises(SfrikError, match=r"two\.tar\.gz is an archive of 2 files: expected one"):
        load_backbone(tmp_path / "two.tar.gz", "resnet18")


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save({"model": build_backbone("resnet18").state_dict()}, whole)
    first = cut(whole.read_bytes(), tmp_path)
    (tmp_path / "last_ckpac").unlink()
    with pytest.raises(SfrikError, match="not a complete PyTorch weights file"):
        load_backbone(first, "resnet18")


def test_the_authors_backbone_is_downloaded_once_and_cached(tmp_path, monkeypatch):
    asked = []

    def download(self, file):
        asked.append(self.url)
        torch.save(build_backbone("resnet50").state_dict(), file)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(Download, "write", download)
    first, second = pretrained(), pretrained()
    assert asked == ["https://github.com/valeoai/sfrik/releases/download/v0.1.0/sfrik_32k_in1000_200ep_r50_backbone.pth"]
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert first(torch.zeros(1, 3, 32, 32)).shape == (1, 2048)


def test_weights_that_cannot_be_downloaded_end_in_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(SfrikError, match="no route to host"):
        pretrained()
    with pytest.raises(SfrikError, match="did you mean resnet50-sfrik-200ep"):
        pretrained("resnet50-sfrik-200")
