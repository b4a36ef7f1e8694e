"""Backbones of timm and torchvision: features, training, resume, processes, weights, evaluations, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from toys import interrupted_at

from sfrik.cli import main
from sfrik.cost.memory import _counts, expected_memory
from sfrik.errors import SfrikError
from sfrik.evaluate import evaluate, extract_features, knn_eval, logistic_regression
from sfrik.evaluate.collapse import diagnose
from sfrik.evaluate.transfer import transfer
from sfrik.launch.launcher import launch
from sfrik.networks import (
    Encoder,
    build_backbone,
    build_encoder,
    build_projector,
    check_network,
    libraries,
    load_backbone,
    save_weights,
)
from sfrik.networks.precision import network_precision
from sfrik.networks.state_dicts import match
from sfrik.objectives.factory import build_objective
from sfrik.ops.collectives import rank, world_size
from sfrik.pretrain.accumulate import backward
from sfrik.pretrain.distributed import _synchronise_batchnorm, distribute
from sfrik.pretrain.loop import pretrain
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import (
    EvaluateSettings,
    FeatureSettings,
    KnnSettings,
    LogisticSettings,
    PretrainSettings,
    TransferSettings,
    keyword_arguments,
    parse_arch_args,
)
from sfrik.system.files import read_json

ROOT = Path(__file__).parents[1]
# Small models for digits of 28 pixels: name, arguments, dimension of the features.
MODELS = {
    "resnet": ("timm/resnet18", "layers=1-1-1-1 block_reduce_first=4", 512),
    "vit": ("timm/vit_tiny_patch16_224", "patch_size=7 depth=2 embed_dim=32 num_heads=2", 32),
    "convnext": ("timm/convnext_atto", "depths=1-1-1-1 dims=8-8-16-32 output_stride=16", 32),
    "torchvision": ("vit_b_16", "patch_size=7 num_layers=2 num_heads=2 hidden_dim=32 mlp_dim=64", 32),
}
VIT, VIT_ARGS, _ = MODELS["vit"]


def settings(folder, model="vit", **overrides):
    """A smoke recipe with another backbone, in float32 on the CPU, of two epochs of four steps."""
    arch, arch_args, _ = MODELS[model]
    fixed = {"arch": arch, "arch_args": arch_args, "exp_dir": str(folder), "device": "cpu", "precision": "fp32"}
    fixed["base_lr"] = 1.0 if model == "resnet" else 1e-4
    return PretrainSettings.from_recipe("smoke/sfrik_l2_q64", **{**fixed, **overrides})


def of_run(kind, folder, model="vit", **overrides):
    arch, arch_args, _ = MODELS[model]
    fixed = {"arch": arch, "arch_args": arch_args, "exp_dir": str(folder), "device": "cpu", "precision": "fp32"}
    return kind.from_recipe("smoke/sfrik_l2_q64", **{**fixed, **overrides})


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that returns the folder of a trained run of a model."""
    folders = {}

    def of(model):
        if model not in folders:
            folders[model] = tmp_path_factory.mktemp("any") / model
            pretrain(settings(folders[model], model), progress=False)
        return folders[model]

    return of


# --- features


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_maps_images_to_features_of_its_dimension(model, channels):
    arch, arch_args, features = MODELS[model]
    backbone = build_backbone(arch, channels=channels, size=28, arch_args=arch_args).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, channels, 28, 28)).shape == (2, backbone.num_features) == (2, features)


def test_the_dimension_is_that_of_the_output_where_a_layer_follows_the_pooling():
    backbone = build_backbone("timm/mobilenetv3_small_050", size=32).eval()
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.num_features) == (2, 1024)


@pytest.mark.parametrize("model", MODELS)
def test_initial_weights_are_those_of_the_seed_whether_the_model_was_tried_before_or_not(model):
    arch, arch_args, _ = MODELS[model]
    states = []
    for _ in range(2):  # the first call tries the model without values, the second remembers what was found
        torch.manual_seed(3)
        states.append(build_backbone(arch, channels=1, size=28, arch_args=arch_args).state_dict())
    assert same_bits(*states)
    if arch.startswith("timm/"):
        given = {"in_chans": 1, **keyword_arguments(parse_arch_args(arch_args))}
        torch.manual_seed(3)
        ours = timm.create_model(
            arch.removeprefix("timm/"), num_classes=0, **given, **({"img_size": 28} if model == "vit" else {})
        )
        assert same_bits(ours.state_dict(), states[0])


def test_a_vit_takes_the_views_of_swav_and_the_gradient_reaches_its_positions():
    torch.manual_seed(0)
    backbone = build_backbone(VIT, channels=1, size=28, arch_args=VIT_ARGS)
    encoder = Encoder(backbone, build_projector(32, "16"), by_size=True)
    embeddings = encoder([torch.randn(2, 1, side, side) for side in (28, 14, 28, 14)])
    assert [z.shape for z in embeddings] == [(2, 16)] * 4
    embeddings[1].sum().backward()
    assert backbone.pos_embed.grad.abs().sum() > 0


def test_swav_trains_a_vit_and_writes_finite_weights(tmp_path):
    arch, arch_args, _ = MODELS["vit"]
    given = {"arch": arch, "arch_args": arch_args, "size_crops": (28, 14), "exp_dir": str(tmp_path), "epochs": 1, "base_lr": 1e-4}
    last = pretrain(PretrainSettings.from_recipe("smoke/vicreg_q64_swav", device="cpu", **given), progress=False)
    assert last["effective_rank"] > 1
    assert all(value.isfinite().all() for value in load_file(Run(tmp_path).backbone).values())


class WithIdleLayer(torch.nn.Module):
    """A model with a layer that no feature depends on."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.used, self.idle = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(2, 2)

    def forward(self, images):
        return self.used(images).mean(dim=(2, 3))


def test_parameters_that_no_feature_depends_on_are_frozen(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: WithIdleLayer())
    backbone = build_backbone("timm/resnet50", channels=1, size=28)
    assert {name for name, p in backbone.named_parameters() if not p.requires_grad} == {"idle.weight", "idle.bias"}


# --- training


@pytest.mark.parametrize("model", MODELS)
def test_training_changes_the_weights_and_records_how_the_model_is_built(trained, model):
    folder = trained(model)
    arch, arch_args, _ = MODELS[model]
    (about,) = [json.loads(line) for line in _metadata(Run(folder).backbone).values()]
    expected = {"arch": arch, "arch_args": " ".join(parse_arch_args(arch_args)), "size": "28"}
    assert about == {**expected, "settings": settings(folder, model).hash()}
    assert read_json(folder / "provenance.json")["versions"]["timm"] == timm.__version__
    pretrain(settings(folder.with_name(f"{model}_none"), model, ssl_method="none"), progress=False)
    initial = load_file(Run(folder.with_name(f"{model}_none")).backbone)
    assert not same_bits(initial, load_file(Run(folder).backbone))


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("model", "dropout"),
    [("vit", "drop_path_rate=0.3 proj_drop_rate=0.2"), ("convnext", "drop_path_rate=0.3"), ("torchvision", "dropout=0.2")],
)
def test_a_run_with_dropout_that_was_stopped_within_an_epoch_ends_with_the_same_weights(tmp_path, model, dropout):
    given = {"arch_args": f"{MODELS[model][1]} {dropout}"}
    pretrain(settings(tmp_path / "whole", model, **given), progress=False)
    with interrupted_at(step=6):
        pretrain(settings(tmp_path / "stopped", model, **given, checkpoint_minutes=1e-9), progress=False)
    place = Checkpoints(tmp_path / "stopped").load()["place"]
    assert (place["epoch"], place["step"]) == (1, 2)
    torch.manual_seed(123)
    pretrain(settings(tmp_path / "stopped", model, **given), progress=False)
    whole, resumed = (load_file(Run(tmp_path / name).backbone) for name in ("whole", "stopped"))
    assert same_bits(whole, resumed)
    pretrain(settings(tmp_path / "without", model), progress=False)
    assert not same_bits(whole, load_file(Run(tmp_path / "without").backbone)), "dropout has an effect"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Gradients of several models, and two trainings, by the same two processes: each would import the models' libraries."""
    folder = tmp_path_factory.mktemp("two")
    # a projector of one layer has no BatchNorm either
    several = [settings(folder, model, mlp="64", batch_size=8) for model in ("vit", "convnext", "torchvision")]
    given = {"epochs": 1, "subset": 10, "batch_size": 32}
    crops = {"augmentations": "swav", "size_crops": (28, 14), "arch_args": f"{VIT_ARGS} drop_path_rate=0.2"}
    runs = settings(folder / "resnet", "resnet", **given), settings(folder / "vit", "vit", **given, **crops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        found = launch("test_any_backbone:gradients_and_runs", len(several), *several, *runs, nproc_per_node=2)
    return several, found, runs


def gradients_and_runs(count, *given):
    """The gradients of the first `count` settings; the others are trained."""
    found = gradients(*given[:count])
    for run in given[count:]:
        pretrain(run, progress=False)
    return found


def test_two_processes_compute_the_gradient_of_one_without_batchnorm(two_processes):
    several, found, _ = two_processes
    for given, one, two in zip(several, gradients(*several), found, strict=True):
        assert two.keys() == one.keys()
        for name, value in one.items():
            # sums over images in another order; the largest gradient of a tensor sets the scale
            scale = max(map(abs, value))
            assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-4 * scale), f"{given.arch}: {name}"


def gradients(*several):
    """For each of the settings, the first gradients of each parameter for a batch of random views that the processes divide."""
    return [gradients_of(given) for given in several]


def gradients_of(given):
    torch.manual_seed(0)
    encoder = build_encoder(given, 1)
    model = distribute(encoder, torch.device("cpu"), "fp32", given.view_sizes, 1)
    views = [torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    local = [view.chunk(world_size())[rank()] for view in views]
    backward(model, local, partial(build_objective(given), step=0))
    return {name: p.grad.flatten()[:50].tolist() for name, p in encoder.named_parameters() if p.requires_grad}


def test_two_processes_pretrain_with_dropout_and_several_views(two_processes):
    _, _, runs = two_processes
    assert all(Run(Path(given.exp_dir)).finished for given in runs)


def test_synchronised_batchnorm_keeps_the_activations_of_timms_layers():
    torch.manual_seed(0)
    backbone = build_backbone("timm/efficientnet_b0", size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        encoder = _synchronise_batchnorm(Encoder(backbone, torch.nn.Identity())).eval()
        assert torch.equal(encoder.backbone(images), expected)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in encoder.modules())


def test_bf16_on_a_cpu_is_replaced_where_a_strided_convolution_sees_one_pixel(tmp_path):
    cpu = torch.device("cpu")
    tiny = settings(tmp_path, "resnet", precision="bf16", size=16)
    with pytest.raises(SfrikError, match=r"views of 16 pixels shrink to one pixel .*larger views, or --precision fp32"):
        network_precision(tiny, cpu)
    assert network_precision(settings(tmp_path, "resnet", precision="bf16", size=64), cpu) == "bf16"
    assert network_precision(settings(tmp_path, "vit", precision="bf16"), cpu) == "bf16"
    assert network_precision(settings(tmp_path, "convnext", precision="bf16"), cpu) == "bf16"


@pytest.mark.parametrize("model", MODELS)
def test_memory_is_predicted_from_the_parameters_and_layers_of_the_model(model):
    parts = expected_memory(settings("run", model))
    encoder = build_encoder(settings("run", model), 1)
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    assert parts["parameters"] * 2**30 / 4 >= 2 * weights
    assert parts["activations"] > 0
    larger = expected_memory(settings("run", model, batch_size=128))
    assert larger["activations"] == pytest.approx(2 * parts["activations"], rel=0.05)


@pytest.mark.parametrize("model", ["vit", "torchvision"])
def test_attention_is_counted_as_the_kernels_of_this_machine_keep_it(model):
    given = settings("run", model)
    images, kept = torch.zeros(2, 1, 28, 28), {}
    encoder = build_encoder(given, 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}

    def keep(x):
        if x.ndim > 1 and x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        encoder([images])
    measured = sum(storage.nbytes() for storage in kept.values()) / 2
    (view, *_) = given.view_sizes
    assert _counts(given, view, given.mlp).kept(4) == pytest.approx(measured, rel=0.01)


class Items(WithIdleLayer):
    """A model that computes with the values of its images, which has none on the meta device."""

    def forward(self, images):
        return super().forward(images) * (1 + images.sum().item())


def test_a_model_that_needs_values_is_tried_with_them(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Items())
    given = settings("run", arch="timm/resnet101", arch_args=())
    check_network(given)
    assert expected_memory(given)["activations"] > 0


def test_the_memory_of_a_model_that_does_not_take_a_view_is_refused_in_one_line(capsys):
    flags = ["--arch", "vit_b_16", "--dataset", "cifar10", "--size", "32", "--augmentations", "swav", "--size-crops", "32", "16"]
    assert main(["memory", *flags]) == 2
    assert "takes images of one size, which is 32 pixels here" in capsys.readouterr().err


# --- weights


@pytest.mark.parametrize("model", ["resnet", "vit", "convnext"])
def test_weights_are_handed_back_to_timm_and_give_the_same_features(trained, model):
    path = Run(trained(model)).backbone
    arch, arch_args, _ = MODELS[model]
    own = {"img_size": 28} if model == "vit" else {}
    net = timm.create_model(
        arch.removeprefix("timm/"), num_classes=0, in_chans=1, **own, **keyword_arguments(parse_arch_args(arch_args))
    )
    net.load_state_dict(load_file(path))  # strict
    ours, images = load_backbone(path, arch, channels=1), torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(net.eval()(images), ours(images))
    assert not ours.training


@pytest.mark.parametrize("model", ["resnet", "vit", "convnext"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_timm_load_without_their_classifier(tmp_path, model, suffix):
    arch, arch_args, _ = MODELS[model]
    own = {"img_size": 28} if model == "vit" else {}
    theirs = timm.create_model(
        arch.removeprefix("timm/"), num_classes=7, in_chans=1, **own, **keyword_arguments(parse_arch_args(arch_args))
    )
    path = tmp_path / f"theirs.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, path)
    else:
        save_file(theirs.state_dict(), path)
    backbone = load_backbone(path, arch, channels=1, size=28, arch_args=arch_args)
    theirs.reset_classifier(0)
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(backbone(images), theirs.eval()(images))


def test_layers_numbered_by_timm_keep_their_names():
    with torch.device("meta"):
        net = build_backbone("timm/vgg11", size=32)
    found = match({f"module.{key}": value for key, value in net.state_dict().items()}, net)
    assert found.complete
    assert found.state.keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("arch_args", "text"),
    [
        (VIT_ARGS.replace("depth=2", "depth=3"), "12 missing (such as blocks.2.attn.proj.bias)"),
        (VIT_ARGS.replace("depth=2", "depth=1"), "12 unknown (such as blocks.1.attn.proj.bias)"),
        (VIT_ARGS.replace("depth=2", "depth=0"), "24 unknown (such as blocks.0.attn.proj.bias)"),
        (f"{VIT_ARGS} final_norm=false", "2 unknown (such as norm.bias)"),
        (f"{VIT_ARGS} pos_embed=none", "1 unknown (such as pos_embed)"),
        (f"{VIT_ARGS} class_token=false global_pool=avg fc_norm=false no_embed_class=true", "1 unknown (such as cls_token)"),
    ],
)
def test_weights_of_other_arguments_are_refused_by_their_tensors_where_the_file_records_none(tmp_path, arch_args, text):
    theirs = f"{VIT_ARGS} no_embed_class={'no_embed_class' in arch_args}"
    state = build_backbone(VIT, channels=1, size=28, arch_args=theirs).state_dict()
    save_file({**state, "decoder_blocks.0.weight": torch.ones(2)}, tmp_path / "theirs.safetensors")
    load_backbone(tmp_path / "theirs.safetensors", VIT, channels=1, size=28, arch_args=theirs)
    with pytest.raises(SfrikError) as caught:
        load_backbone(tmp_path / "theirs.safetensors", VIT, channels=1, size=28, arch_args=arch_args)
    assert text in str(caught.value)
    assert str(caught.value).endswith("give the --arch, --arch-args and --size it was made with")


@pytest.mark.parametrize("size", [28, 42, 56])
def test_a_vit_keeps_the_positions_of_its_file_and_takes_images_of_other_sizes(trained, tmp_path, size):
    path = Run(trained("vit")).backbone
    backbone = load_backbone(path, VIT, channels=1, size=size, arch_args=VIT_ARGS)
    assert torch.equal(backbone.pos_embed, load_file(path)["pos_embed"])
    assert backbone(torch.zeros(2, 1, size, size)).shape == (2, 32)
    save_file(load_file(path), tmp_path / "no_metadata.safetensors")  # as another tool writes it
    other = load_backbone(tmp_path / "no_metadata.safetensors", VIT, channels=1, size=size, arch_args=VIT_ARGS)
    assert same_bits(other.state_dict(), backbone.state_dict())


def test_other_arguments_than_those_of_the_file_are_refused_unless_they_are_dropout(trained):
    path = Run(trained("vit")).backbone
    with pytest.raises(
        SfrikError, match=r"holds the weights of --arch timm/vit_tiny_patch16_224 --arch-args depth=2 embed_dim=32"
    ):
        load_backbone(path, VIT, channels=1, size=28, arch_args=VIT_ARGS.replace("num_heads=2", "num_heads=4"))
    with pytest.raises(SfrikError, match="holds the weights of --arch timm/vit_tiny_patch16_224"):
        load_backbone(path, "timm/vit_small_patch16_224", channels=1)
    with pytest.raises(SfrikError, match="holds the weights of --arch timm/vit_tiny_patch16_224"):
        load_backbone(path, "resnet8", channels=1)
    assert load_backbone(path, VIT, channels=1, arch_args=f"{VIT_ARGS} drop_path_rate=0.1")
    with pytest.raises(
        SfrikError, match="vit_b_16 takes images of one size, which is 28 pixels here, and not those of 56 pixels"
    ):
        load_backbone(Run(trained("torchvision")).backbone, "vit_b_16", channels=1, size=56)


def test_weights_of_a_resnet_are_those_of_timms(tmp_path):
    save_weights(build_backbone("resnet18"), tmp_path / "b.safetensors", arch="resnet18", stem="imagenet")
    state = load_file(tmp_path / "b.safetensors")
    assert same_bits(load_backbone(tmp_path / "b.safetensors", "timm/resnet18").state_dict(), state)
    save_weights(build_backbone("timm/resnet18"), tmp_path / "t.safetensors", arch="timm/resnet18", arch_args="", size="224")
    assert load_backbone(tmp_path / "t.safetensors", "resnet18").num_features == 512


# --- evaluations


@pytest.mark.parametrize("model", MODELS)
def test_every_protocol_evaluates_a_run(trained, model):
    folder = trained(model)
    chance = 12  # of ten classes, and 1,000 images
    assert evaluate(of_run(EvaluateSettings, folder, model), progress=False)["top1"] > chance
    assert evaluate(of_run(EvaluateSettings, folder, model, epochs=1, weights="finetune"), progress=False)["images"] == 1000
    assert knn_eval(of_run(KnnSettings, folder, model))["top1_at"]["20"] > chance
    assert logistic_regression(of_run(LogisticSettings, folder, model))["top1"] > chance
    assert transfer(of_run(TransferSettings, folder, model))["top1"] > chance
    inference = of_run(EvaluateSettings, folder, model, weights="finetune", only_inference=True)
    again, score = evaluate(inference), json.loads((folder / "finetune.json").read_text(encoding="utf-8"))
    assert again["top1"] == score["top1"]
    assert diagnose(folder)
    first = extract_features(of_run(FeatureSettings, folder, model))
    assert first


def test_a_fine_tuned_backbone_is_not_scored_with_other_arguments(trained):
    of = partial(of_run, EvaluateSettings, trained("vit"), weights="finetune", train_percent=10)
    top1 = evaluate(of(epochs=1), progress=False)["top1"]
    other = VIT_ARGS.replace("num_heads=2", "num_heads=1")  # whose tensors have the same names and shapes
    with pytest.raises(SfrikError, match=r"head_semi10\.safetensors holds the weights of --arch timm/.* num_heads=2"):
        evaluate(of(only_inference=True, arch_args=other), progress=False)
    assert evaluate(of(only_inference=True, arch_args=f"{VIT_ARGS} drop_path_rate=0.1"), progress=False)["top1"] == top1


# --- what is refused


def refused(**given) -> str:
    fixed = {"dataset": "image_folder", "data_dir": "no such folder", "augmentations": "simclr", "size": 32}
    with pytest.raises(SfrikError) as caught:
        check_network(PretrainSettings.parse({**fixed, **given}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


SWAV = {"augmentations": "swav", "size_crops": (32, 16)}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"arch": "timm/vit_tiny_patch16_244"}, "has no model vit_tiny_patch16_244 (did you mean vit_tiny_patch16_224?)"),
        (
            {"arch": VIT, "size": 40},
            "divides images into patches of 16 pixels, which do not divide 40 pixels: use views of 32 or 48",
        ),
        (
            {"arch": VIT, **SWAV, "size_crops": (32, 20)},
            "patches of 16 pixels, which do not divide 20 pixels: use views of 16 or 32",
        ),
        ({"arch": "vit_b_16", "size": 40}, "vit_b_16 divides images into patches of 16 pixels, which do not divide 40 pixels"),
        ({"arch": VIT, "size": 10}, "use views of 16 pixels"),
        ({"arch": "timm/convnext_atto", "size": 8}, "does not take images of 8 pixels (Calculated padded input size"),
        ({"arch": "timm/convnext_atto", **SWAV, "size_crops": (32, 8)}, "use larger views, for example of 32 pixels"),
        ({"arch": "timm/mixer_s32_224", **SWAV, "size_crops": (32, 64)}, "takes images of one size, which is 32 pixels here"),
        ({"arch": "vit_b_16", **SWAV}, "vit_b_16 takes images of one size, which is 32 pixels here, and not those of 16 pixels"),
        ({"arch": VIT, "arch_args": "dept=3"}, "has no argument dept (did you mean depth?)"),
        ({"arch": "vit_b_16", "arch_args": "num_layer=3"}, "vit_b_16 has no argument num_layer (did you mean num_layers?)"),
        # Swin's class takes any argument and ignores those that it does not know
        ({"arch": "timm/swin_tiny_patch4_window7_224", "arch_args": "dept=3"}, "has no argument dept (did you mean depths?)"),
        (
            {"arch": "timm/convmixer_768_32", "arch_args": "dim=8"},
            "convmixer_768_32 does not let its argument dim be changed",
        ),
        ({"arch": "timm/" + 300 * "a"}, f"has no model {100 * 'a'}: check --arch"),
        ({"arch": VIT, "arch_args": "norm_layer=batchnorm2d"}, "with arch_args norm_layer=batchnorm2d (expected 4D input"),
        ({"arch": VIT, "arch_args": "num_heads=5"}, "cannot be used for images of 32 pixels with arch_args num_heads=5 ("),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line_before_images_are_read(given, text):
    assert text in refused(**given)


def test_a_model_whose_weights_cannot_fit_in_memory_is_refused_before_it_is_built(monkeypatch, capsys):
    monkeypatch.setattr(libraries, "physical_memory", lambda: 2**30)
    wide = {"arch": VIT, "arch_args": "embed_dim=8192 num_heads=1 depth=2"}
    text = r"depth=2 embed_dim=8192 num_heads=1 needs 6\.02 GiB for its weights, and this machine has 1 GiB of memory"
    with pytest.raises(SfrikError, match=text):
        build_backbone(**wide, size=32)
    assert build_backbone(**{**wide, "arch_args": "embed_dim=32 num_heads=1 depth=1"}, size=32).num_features == 32
    assert main(["memory", "--arch", VIT, "--arch-args", wide["arch_args"]]) == 0, "of a machine with more memory"


def test_a_model_without_features_is_refused(monkeypatch):
    class Detector(torch.nn.Module):
        def forward(self, x):
            return {"boxes": x}

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Detector())
    assert "timm/resnet26 has no num_features" in refused(arch="timm/resnet26")
    monkeypatch.setattr(Detector, "num_features", 3, raising=False)
    assert "timm/resnet34d returns dict for 2 images, and a backbone returns features [2, 3]" in refused(arch="timm/resnet34d")


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("vit_tiny_patch16_224", "unknown architecture 'vit_tiny_patch16_224' (did you mean timm/vit_tiny_patch16_224?)"),
        ("torchvision/vit_b_16", "unknown architecture 'torchvision/vit_b_16' (did you mean vit_b_16?)"),
        ("timm/resnet18.a1_in1k", "a tag names pretrained weights, which are not loaded, as in timm/resnet18"),
        ("timm/", "'timm/' is no model of timm"),
        ("timm/hf-hub:someone/model", "is no model of timm"),
        ("TIMM/resnet18", "(did you mean timm/resnet18?)"),
        ("ResNet50", "(did you mean resnet50?)"),
        ("resnet19", "unknown architecture 'resnet19' (did you mean resnet18?): choose one of resnet8, resnet18"),
    ],
)
def test_a_name_that_can_be_none_is_refused_by_the_settings(arch, text):
    with pytest.raises(SfrikError) as caught:
        PretrainSettings.parse({"arch": arch})
    assert text in str(caught.value)
    assert str(caught.value).count(repr(arch)) == 1


def test_settings_with_a_model_of_timm_are_checked_without_importing_it():
    code = """
import sys
from sfrik.errors import SfrikError
from sfrik.settings import PretrainSettings
PretrainSettings.parse({"arch": "timm/vit_tiny_patch16_224", "arch_args": "depth=3"}).hash()
try:
    PretrainSettings.parse({"arch": "vit_tiny_patch16_224"})
except SfrikError as error:
    assert "timm/vit_tiny" in str(error)
assert not {"torch", "timm", "torchvision"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_without_timm_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refused(arch="timm/resnet26d") == "arch timm/NAME needs the package timm: python -m pip install timm"
    assert build_backbone("resnet18").num_features == 512


def test_a_dry_run_and_the_commands_refuse_an_unknown_model_before_they_look_for_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("pretrain", "evaluate", "extract-features"):
        for more in ([], ["--dry-run"]):
            flags = [command, "--arch", "timm/resnet18x", "--dataset", "image_folder", "--data-dir", "none", "--exp-dir", "run"]
            assert main([*flags, *more]) == 2
            captured = capsys.readouterr()
            assert "has no model resnet18x (did you mean resnet18?)" in captured.err
            assert not (tmp_path / "run").exists()


def test_arguments_are_flags_of_several_words_or_one_text(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans = []
    for words in (["depth=2", "patch_size=4"], ["patch_size=4 depth=02"]):
        flags = ["pretrain", "--arch", VIT, "--arch-args", *words, "--dataset", "cifar10", "--size", "32", "--mlp", "64-64"]
        assert main([*flags, "--augmentations", "simclr", "--dry-run", "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0] == plans[1]
    assert plans[0]["settings"]["arch_args"] == ["depth=2", "patch_size=4"]


# --- settings


def test_the_stem_and_the_arguments_are_in_the_hash_only_where_they_have_an_effect():
    plain = PretrainSettings.parse({"arch": "resnet18"})
    assert "arch_args" not in plain.what()
    assert "stem" in plain.what()
    of_timm = PretrainSettings.parse({"arch": VIT, "arch_args": {"depth": 2, "class_token": False}})
    assert of_timm.what()["arch_args"] == ["class_token=false", "depth=2"]
    assert "stem" not in of_timm.what()
    assert (
        of_timm.hash() == PretrainSettings.parse({"arch": VIT, "stem": "small", "arch_args": "depth=2, class_token=False"}).hash()
    )
    assert PretrainSettings.parse({"arch": VIT}).hash() == PretrainSettings.parse({"arch": VIT, "arch_args": "none"}).hash()
    whole, fraction = (PretrainSettings.parse({"arch": VIT, "arch_args": f"mlp_ratio={value}"}) for value in ("2", "2.0"))
    assert whole.hash() == fraction.hash()


def test_none_unsets_the_arguments_of_a_recipe_on_the_command_line(capsys):
    flags = ["pretrain", "--recipe", "photos/vit_simclr_q512", "--dry-run", "--json", "--arch-args", "none"]
    for more in (["--arch", "resnet18"], ["--size", "224", "--arch", "vit_b_16"]):
        assert main([*flags, *more]) == 0
        assert json.loads(capsys.readouterr().out)["settings"]["arch_args"] == []
    assert main([*flags[:4], "--arch", "resnet18"]) == 2
    assert "resnet18 has none: set them to none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("num_classes=3", "num_classes cannot be given"),
        ("img_size=32", "img_size cannot be given"),
        ("pretrained=true", "pretrained cannot be given, since other settings determine it, got 'pretrained=true'$"),
        ("device=meta", "device cannot be given"),
        ("dtype=float16", "dtype cannot be given"),
        ("drop_path_rate=1.5", "drop_path_rate must be a probability >= 0 and below 1, got '1.5'"),
        ("proj_drop_rate=-0.1", "must be a probability"),
        ("drop_path_rate=1", "must be a probability"),
        ("attn_drop_rate=(0.1, 1.0)", "must be a probability"),
        ("depth=2 depth=3", "depth is given twice"),
        ("depth", "must be NAME=VALUE pairs"),
        ("depth = 2", "must be NAME=VALUE pairs"),
        (3, "must be NAME=VALUE pairs"),
        ("drop_path_rate=nan", "numbers must be finite"),
        ("depths=(1, x)", "a list must be one of numbers"),
    ],
)
def test_arguments_that_are_none_are_refused_by_the_settings(value, text):
    with pytest.raises(SfrikError, match=f"arch_args: .*{text}"):
        PretrainSettings.parse({"arch": VIT, "arch_args": value})


def test_arguments_of_a_resnet_are_refused():
    with pytest.raises(SfrikError, match="arch_args are for timm/NAME and torchvision's ViTs, and resnet18 has none"):
        PretrainSettings.parse({"arch": "resnet18", "arch_args": "layers=1-1-1-1"})
    with pytest.raises(SfrikError, match="resnet18 has none"):
        build_backbone("resnet18", arch_args="layers=1-1-1-1")
