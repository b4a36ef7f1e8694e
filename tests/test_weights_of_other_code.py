"""Weights files of other code, written as that code writes them: every loaded tensor is compared with the written one."""

from __future__ import annotations

import argparse
import copy
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from test_networks import refused, same_weights, scrambled
from torch import nn

from sfrik.errors import SfrikError
from sfrik.evaluate.head_files import save_head
from sfrik.networks import Encoder, build_backbone, build_projector, load_backbone, save_weights
from sfrik.system.tensor_files import read_pickle


@pytest.fixture(scope="module")
def backbone():
    """The smallest backbone of the library: what is tested are the names around those of its layers."""
    return scrambled("resnet8", channels=1)


@pytest.fixture(scope="module")
def other():
    """The same network with other weights: a momentum encoder, a student."""
    return build_backbone("resnet8", channels=1)


def under(prefix, module):
    """A state dict with the prefix before every name."""
    state = module if isinstance(module, dict) else module.state_dict()
    return {f"{prefix}{key}": value for key, value in state.items()}


def mlp(prefix, *, norm=True):
    """A projection head of three layers."""
    layers = [nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)] if norm else [nn.Linear(4, 2)]
    return under(prefix, nn.Sequential(*layers))


def training(state, **more):
    """A checkpoint with the optimiser's state, as most training scripts write it."""
    optimiser = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    return {"epoch": 200, "arch": "resnet8", "state_dict": state, "optimizer": optimiser.state_dict(), **more}


ARGS = argparse.Namespace(lr=np.float64(0.03), local_crops_scale=(0.05, np.float32(0.4)), world_size=np.int64(8), resume="")

FORMATS = {
    "torchvision": lambda b, o: {**b.state_dict(), **under("fc.", nn.Linear(4, 10))},
    "timm": lambda b, o: training(
        {**b.state_dict(), **under("fc.", nn.Linear(4, 10))},
        version=2,
        args=ARGS,
        metric=np.float64(71.5),
        amp_scaler={"scale": 1.0},
    ),
    "timm, with its moving average": lambda b, o: training(o.state_dict(), state_dict_ema=b.state_dict(), args=ARGS),
    "MoCo v1": lambda b, o: training(
        {
            **under("module.encoder_q.", b),
            **mlp("module.encoder_q.fc.", norm=False),
            **under("module.encoder_k.", o),
            **mlp("module.encoder_k.fc.", norm=False),
            "module.queue": torch.randn(4, 8),
            "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        }
    ),
    "MoCo v2, momentum first": lambda b, o: training(
        {**under("module.encoder_k.", o), **under("module.encoder_q.", b), **mlp("module.encoder_q.fc.")}
    ),
    "MoCo v3": lambda b, o: training(
        {
            **under("module.momentum_encoder.", o),
            **under("module.base_encoder.", b),
            **mlp("module.base_encoder.fc."),
            **mlp("module.predictor."),
        },
        scaler={"scale": 1.0},
    ),
    "SimSiam": lambda b, o: training({**under("module.encoder.", b), **mlp("module.encoder.fc."), **mlp("module.predictor.")}),
    "SwAV": lambda b, o: {
        **under("module.", b),
        **mlp("module.projection_head."),
        "module.prototypes.weight": torch.randn(5, 2),
    },
    "SwAV, checkpoint": lambda b, o: training({**under("module.", b), "module.prototypes.weight": torch.randn(5, 2)}),
    "DINO": lambda b, o: {
        "student": {**under("module.backbone.", o), **mlp("module.head.mlp.", norm=False)},
        "teacher": {**under("backbone.", b), **mlp("head.mlp.", norm=False)},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 100,
        "args": ARGS,
        "dino_loss": {"center": torch.zeros(1, 4)},
    },
    "DINO, only the student": lambda b, o: {"student": under("module.backbone.", b)},
    "DINOv2": lambda b, o: {
        "model": {
            **under("student.backbone._fsdp_wrapped_module.", o),
            **under("teacher.backbone._fsdp_wrapped_module.", b),
            **mlp("teacher.dino_head."),
        },
        "iteration": 124999,
    },
    "I-JEPA": lambda b, o: {
        "encoder": under("module.", o),
        "predictor": mlp(""),
        "target_encoder": under("module.", b),
        "epoch": 3,
    },
    "BYOL": lambda b, o: {**under("target_encoder.net.", o), **under("online_encoder.net.", b), **mlp("online_predictor.")},
    "VICReg, Barlow Twins: backbone": lambda b, o: OrderedDict(b.state_dict()),
    "VICReg": lambda b, o: {
        "epoch": 99,
        "model": {**under("module.backbone.", b), **mlp("module.projector.")},
        "optimizer": {"state": {0: {"mu": torch.zeros(2)}}, "param_groups": []},
    },
    "Barlow Twins": lambda b, o: {
        "epoch": 99,
        "model": {
            **under("module.backbone.", b),
            **mlp("module.projector."),
            **under("module.bn.", nn.BatchNorm1d(2, affine=False)),
        },
    },
    "solo-learn": lambda b, o: {
        "state_dict": {
            **under("momentum_backbone.", o),
            **under("backbone.", b),
            **mlp("projector."),
            **mlp("momentum_projector."),
            **under("classifier.", nn.Linear(4, 10)),
            "queue": torch.randn(2, 2, 4),
        },
        "pytorch-lightning_version": "1.6.4",
        "global_step": 100,
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "best_model_path": ""}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": np.float64(0.3), "backbone": "resnet8"},
    },
    "lightly": lambda b, o: {
        "state_dict": {
            **under("backbone.", numbered(b)),
            **under("backbone_momentum.", numbered(o)),
            **mlp("projection_head.layers."),
        }
    },
    "Lightning": lambda b, o: {"state_dict": {**under("model.backbone.", b), **mlp("model.head.")}, "loops": {"fit_loop": {}}},
    "torch.compile": lambda b, o: under("_orig_mod.", b),
    "DDP of a compiled module": lambda b, o: {"model": under("module._orig_mod.backbone.", b)},
    "compiled DDP": lambda b, o: {"net": under("_orig_mod.module.encoder.backbone.", b)},
    "a compiled layer": lambda b, o: {key.replace("layers.", "layers._orig_mod."): v for key, v in under("model.", b).items()},
    "model_state_dict": lambda b, o: {"model_state_dict": under("net.", b), "loss": np.float32(0.25)},
    "dicts of parts": lambda b, o: {"backbone": under("module.", b), "head": mlp(""), "epoch": 3},
    "VISSL": lambda b, o: {
        "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", b), "heads": mlp("0.")}}}
    },
    "averaged": lambda b, o: {"n_averaged": torch.tensor(3), **under("module.", b)},
    "the same network twice": lambda b, o: {"model": b.state_dict(), "best": copy.deepcopy(b).state_dict()},
    "ours: checkpoint": lambda b, o: {"model": Encoder(b, build_projector(128, "8-8")).state_dict(), "place": {"epoch": 3}},
    "nn.Sequential of backbone and head": lambda b, o: {"model": under("module.0.", b) | under("module.1.", nn.Linear(4, 10))},
}


def numbered(net):
    """The state dict of `nn.Sequential(*net.children())`."""
    return nn.Sequential(*net.children()).state_dict()


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_other_code_loads_every_tensor_of_the_backbone(tmp_path, backbone, other, name):
    torch.save(FORMATS[name](backbone, other), tmp_path / "weights.pth.tar")
    assert same_weights(load_backbone(tmp_path / "weights.pth.tar", "resnet8", channels=1), backbone)


@pytest.mark.parametrize("name", ["torchvision", "SwAV", "BYOL", "torch.compile", "DDP of a compiled module"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_so_does_a_safetensors_file_whatever_its_name(tmp_path, backbone, other, name, file):
    state = FORMATS[name](backbone, other)
    save_file({key: value.contiguous() for key, value in state.get("model", state).items()}, tmp_path / file, {"format": "pt"})
    assert same_weights(load_backbone(tmp_path / file, "resnet8", channels=1), backbone)


def test_the_backbone_that_was_saved_with_our_head_loads(tmp_path, backbone):
    save_head(tmp_path / "head.safetensors", nn.Linear(128, 10), backbone, protocol="finetune")
    assert same_weights(load_backbone(tmp_path / "head.safetensors", "resnet8", channels=1), backbone)


def test_a_resnet_whose_layers_are_numbered_loads(tmp_path):
    """As lightly writes it: nn.Sequential(*list(resnet.children())[:-1]); ReLU and pooling have numbers, and no tensors."""
    theirs = scrambled("resnet18")
    torch.save({"state_dict": under("backbone.", nn.Sequential(*list(theirs.children())[:-1]))}, tmp_path / "lightly.ckpt")
    layers = [theirs.conv1, theirs.bn1, theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4, nn.AdaptiveAvgPool2d(1)]
    torch.save(nn.Sequential(*layers).state_dict(), tmp_path / "lightly.pth")
    for name in ("lightly.ckpt", "lightly.pth"):
        assert same_weights(load_backbone(tmp_path / name, "resnet18"), theirs)


def test_shortcuts_of_the_common_resnet_for_cifar_are_torchvisions_downsamples(tmp_path):
    theirs = scrambled("resnet18", stem="small")
    state = {key.replace("downsample", "shortcut"): value for key, value in theirs.state_dict().items()}
    torch.save(
        {"net": {**under("module.", state), **under("module.linear.", nn.Linear(4, 10))}, "acc": 95.1}, tmp_path / "ckpt.pth"
    )
    assert same_weights(load_backbone(tmp_path / "ckpt.pth", "resnet18", stem="small"), theirs)


def test_missing_counters_of_batchnorm_are_zero_and_those_of_another_shape_are_read(tmp_path, backbone):
    state = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    for file, write in (("old.pth", torch.save), ("old.safetensors", save_file)):
        write(state, tmp_path / file)
        loaded = load_backbone(tmp_path / file, "resnet8", channels=1).state_dict()
        assert loaded["bn1.num_batches_tracked"] == 0
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
    torch.save({**state, "bn1.num_batches_tracked": torch.tensor([7.0])}, tmp_path / "float.pth")
    counter = load_backbone(tmp_path / "float.pth", "resnet8", channels=1).bn1.num_batches_tracked
    assert (counter.dtype, counter.tolist()) == (torch.int64, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_weights_of_another_precision_are_converted(tmp_path, backbone, dtype, write):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in backbone.state_dict().items()}
    write(state, tmp_path / ("half.safetensors" if write is save_file else "half.pth"))
    loaded = load_backbone(next(tmp_path.iterdir()), "resnet8", channels=1).state_dict()
    assert all(value.dtype == torch.float32 for key, value in loaded.items() if not key.endswith("tracked"))
    assert all(torch.equal(loaded[key], state[key].to(loaded[key].dtype)) for key in state)


def test_two_networks_that_differ_are_refused_by_name(tmp_path, backbone, other):
    torch.save({"model": backbone.state_dict(), "best": {"net": other.state_dict()}}, tmp_path / "two.pth")
    text = refused(tmp_path / "two.pth")
    assert "holds several networks that are a resnet8 and differ, below" in text
    assert "best.net" in text


# --- refusals


def vit():
    layers = {"cls_token": torch.zeros(1, 1, 4), "patch_embed.proj.weight": torch.zeros(4, 3, 2, 2)}
    blocks = {f"blocks.{k}.attn.qkv.weight": torch.zeros(12, 4) for k in range(12)}
    return {"model": {**layers, **blocks, "norm.weight": torch.ones(4)}, "epoch": 3, "args": ARGS}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "top-level keys are none;"),
        ({"state_dict": {}}, "top-level keys are state_dict;"),
        (vit(), "top-level keys are model, epoch, args;"),
        ({f"blocks.{k}.weight": torch.ones(1) for k in range(9)}, "blocks.0.weight, blocks.1.weight, .*9 in all"),
        ({"head.weight": torch.ones(2, 2), "odd\nname": torch.ones(2)}, r"head.weight, 'odd\\nname'"),
        (torch.ones(3), r"none \(the file holds a Tensor\)"),
        ([torch.ones(3)], r"none \(the file holds a list\)"),
    ],
)
def test_a_file_without_the_backbone_is_refused_with_its_keys_and_those_looked_for(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pth")
    text = refused(tmp_path / "other.pth")
    assert re.search(f"holds no state dict of tensors of a resnet8: .*{found}.*looked for conv1.weight", text)


def test_half_of_the_keys_are_refused_whatever_else_the_file_holds(tmp_path, backbone, other):
    half = dict(list(backbone.state_dict().items())[::2])
    torch.save(training({**under("module.encoder_q.", half), **mlp("module.encoder_q.fc.")}), tmp_path / "half.pth")
    text = refused(tmp_path / "half.pth")
    counters = sum(key.endswith("tracked") for key in backbone.state_dict().keys() - half.keys())  # these may be missing
    assert f"tensors {len(backbone.state_dict()) - len(half) - counters} missing (such as bn1.running_mean)" in text
    assert "top-level keys are epoch, arch, state_dict, optimizer" in text
    most = dict(list(backbone.state_dict().items())[:-3])
    torch.save({"teacher": most, "student": other.state_dict()}, tmp_path / "teacher.pth")
    assert "missing" in refused(tmp_path / "teacher.pth"), "the student is not loaded in place of a teacher that lacks tensors"


def test_a_layer_more_is_refused_and_a_head_is_not(tmp_path, backbone):
    for name in ("layers.3.conv1.weight", "layer5.0.conv1.weight", "conv1.bias"):
        torch.save({**backbone.state_dict(), name: torch.zeros(2)}, tmp_path / "more.pth")
        assert f"1 unknown (such as {name})" in refused(tmp_path / "more.pth")


@pytest.mark.parametrize(
    ("theirs", "asked", "remedy"),
    [
        (("resnet18", "imagenet", 3), ("resnet34", "imagenet", 3), "these are weights of resnet18: --arch resnet18"),
        (("resnet34", "imagenet", 3), ("resnet18", "imagenet", 3), "these are weights of resnet34: --arch resnet34"),
        (("resnet18", "small", 3), ("resnet50", "imagenet", 3), "these are weights of resnet18: --arch resnet18 --stem small"),
        (("resnet18", "small", 3), ("resnet18", "imagenet", 3), "these are weights of resnet18: --stem small"),
        (("resnet8", "imagenet", 1), ("resnet8", "imagenet", 3), "these are weights of resnet8 for 1-channel images, not 3"),
        (("resnet8", "patch", 1), ("resnet8", "small", 1), "these are weights of resnet8: --stem patch"),
        (("resnet8", "small", 1), ("resnet8", "patch", 1), "these are weights of resnet8: --stem small"),
    ],
)
def test_weights_of_another_network_of_ours_are_named_with_the_flags(tmp_path, theirs, asked, remedy):
    with torch.device("meta"):
        state = build_backbone(*theirs).state_dict()
    torch.save(
        training(under("module.encoder_q.", {key: torch.empty(value.shape) for key, value in state.items()})), tmp_path / "w.pth"
    )
    with pytest.raises(SfrikError) as error:
        load_backbone(tmp_path / "w.pth", *asked)
    assert str(error.value).endswith(f"; {remedy}")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda value: value.to_sparse(), "sparse"),
        (lambda value: value.to("meta"), "on the meta device, without values"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantised, qint8"),
        (lambda value: value.to(torch.int64), "int64"),
        (lambda value: value > 0, "bool"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (lambda value: value.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_dense_floating_point_numbers_are_refused(tmp_path, backbone, change, kind):
    state = backbone.state_dict()
    torch.save({"model": {**state, "bn1.bias": change(state["bn1.bias"])}}, tmp_path / "odd.pth")
    assert f"cannot be used: bn1.bias is {kind}, expected" in refused(tmp_path / "odd.pth")


def test_values_that_are_not_finite_are_refused_in_the_backbone_and_ignored_elsewhere(tmp_path, backbone):
    state = backbone.state_dict()
    torch.save({"model": state, "loss": torch.tensor(float("nan")), "queue": torch.full((2,), float("inf"))}, tmp_path / "w.pth")
    assert same_weights(load_backbone(tmp_path / "w.pth", "resnet8", channels=1), backbone)
    torch.save({"model": {**state, "bn1.bias": torch.full((32,), float("nan"))}}, tmp_path / "w.pth")
    assert "tensor bn1.bias has NaN or infinite values" in refused(tmp_path / "w.pth")
    torch.save({"model": {**state, "bn1.bias": torch.full((32,), 1e300, dtype=torch.float64)}}, tmp_path / "w.pth")
    assert "bn1.bias has NaN or infinite values: its values are outside the range of float32" in refused(tmp_path / "w.pth")


def test_dicts_that_contain_themselves_are_refused(tmp_path, backbone):
    content = {"model": backbone.state_dict()}
    torch.save({**content, "again": {"best": content}}, tmp_path / "twice.pth")
    assert same_weights(load_backbone(tmp_path / "twice.pth", "resnet8", channels=1), backbone)
    content["self"] = content
    torch.save(content, tmp_path / "endless.pth")
    assert "holds dicts that contain themselves" in refused(tmp_path / "endless.pth")


def test_a_whole_module_is_refused_with_the_remedy(tmp_path):
    torch.save(torchvision.models.resnet18(), tmp_path / "module.pth")
    text = refused(tmp_path / "module.pth")
    assert "(torchvision.models.resnet.ResNet)" in text
    assert "torch.save(model.state_dict(), path) where it was made" in text


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    assert "is a TorchScript program" in refused(tmp_path / "scripted.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html><title>404</title></html>" * 9, "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 94567\n", "it is a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_no_weights_file_is_refused_by_what_it_is(tmp_path, suffix, content, kind):
    (tmp_path / f"weights{suffix}").write_bytes(content)
    text = refused(tmp_path / f"weights{suffix}")
    assert "is not a complete" in text
    assert kind in text


# --- NumPy's numbers in pickles


def test_numpy_numbers_are_read_as_pythons_and_no_numpy_object_is_made(tmp_path):
    kinds = [
        np.float64(0.5),
        np.float32(0.25),
        np.float16(2),
        np.int64(-3),
        np.uint8(7),
        np.bool_(True),
        np.complex64(1j),
        np.str_("ab"),
    ]
    for value in [*kinds, np.dtype(">f4").type(2.0), np.array([1.5], ">f8")[0]]:
        torch.save({"value": value}, tmp_path / "number.pth")
        read = read_pickle(tmp_path / "number.pth")["value"]
        assert (read, type(read)) == (value, type(value.item()))
    torch.save({"type": np.dtype("float32")}, tmp_path / "type.pth")
    assert not isinstance(read_pickle(tmp_path / "type.pth")["type"], np.dtype)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        np.ones(2),
        np.float64,
        np.datetime64("2020-01-01"),
        Call(np.dtype, "O"),
        Call(np.frombuffer, b"1234"),
        Call(np.array(1.0).item),
    ],
    ids=["array", "class", "date", "dtype", "function", "method"],
)
def test_other_objects_of_numpy_are_refused(tmp_path, content):
    scalar = np.float64(1).__reduce__()[0]
    value = Call(scalar, np.dtype("O"), b"12345678") if isinstance(content, Call) and content.call[0] is np.dtype else content
    torch.save({"value": value}, tmp_path / "odd.pth")
    with pytest.raises(SfrikError, match=r"holds Python objects besides tensors \((numpy|builtins|getattr)"):
        read_pickle(tmp_path / "odd.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_protocol_4_is_refused_in_one_line(tmp_path, backbone):
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": {"a": 1}}, protocol=4))
    assert "is a pickle of another protocol than PyTorch writes" in refused(tmp_path / "plain.pth")


def test_our_own_files_are_what_they_were(tmp_path, backbone):
    save_weights(backbone, tmp_path / "backbone.safetensors")
    assert same_weights(load_backbone(tmp_path / "backbone.safetensors", "resnet8", channels=1), backbone)
