"""The optimizers of a training: weight decay, gradient clipping with fp16's scaler and on two processes, exact resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import in_group
from safetensors.torch import load_file
from torch import nn

from sfrik.errors import SfrikError
from sfrik.networks import build_encoder
from sfrik.ops.collectives import world_size
from sfrik.pretrain import loop
from sfrik.pretrain.loop import pretrain
from sfrik.pretrain.optimizer import build_optimizer, update
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system.files import read_json

ADAMW = {"optimizer": "adamw", "base_lr": 2e-3, "wd": 0.05, "betas": (0.9, 0.95), "clip_grad": 0.5}
SGD = {"optimizer": "sgd", "base_lr": 0.05, "wd": 1e-4, "nesterov": True, "clip_grad": 0.5}
VIT = {"arch": "timm/vit_tiny_patch16_224", "arch_args": "patch_size=7 embed_dim=12 depth=1 num_heads=1", "mlp": "64-16"}
STEPS = 4  # of an epoch: 240 images in batches of 60


def settings(folder, **overrides):
    fixed = {"exp_dir": str(folder), "device": "cpu", "precision": "fp32", "workers": 0, "warmup_epochs": 1}
    fixed |= {"subset": 24, "batch_size": 60, "epochs": 2, "log_every": 1, "knn_every": 0}
    return PretrainSettings.from_recipe("smoke/sfrik_l2_q64", **{**fixed, **overrides})


def norms(folder):
    return [line["grad_norm"] for line in Run(folder).metrics() if "grad_norm" in line]


def assert_same(folder, whole):
    for name in ("backbone", "projector"):
        first, second = (load_file(getattr(Run(place), name)) for place in (folder, whole))
        assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = ([{**line, "seconds": 0} for line in Run(place).metrics()] for place in (folder, whole))
    assert first == second


# --- what an optimizer does with the settings


@pytest.mark.parametrize("optimizer", ["lars", "adamw", "sgd"])
def test_the_settings_reach_the_optimizer_and_only_matrices_decay(optimizer):
    own = {"lars": {"momentum": 0.5, "trust_coefficient": 0.01}, "adamw": {"betas": (0.8, 0.95), "eps": 1e-6}}
    own["sgd"] = {"momentum": 0.5, "nesterov": True}
    given = settings("", optimizer=optimizer, wd=0.5, **own[optimizer])
    encoder = build_encoder(given, 1)
    built = build_optimizer(given, encoder)
    for group in built.param_groups:
        assert own[optimizer].items() <= group.items()
        group["lr"] = 0.1
    for p in encoder.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in encoder.parameters()]
    built.step()
    moved = [not torch.equal(p, old) for p, old in zip(encoder.parameters(), before, strict=True)]
    assert moved == [p.ndim > 1 for p in encoder.parameters()]


def test_lars_of_a_network_without_declared_exceptions_keeps_the_form_of_earlier_checkpoints():
    encoder = build_encoder(settings(""), 1)
    (group,) = build_optimizer(settings(""), encoder).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in encoder.parameters()]
    assert (group["momentum"], group["trust_coefficient"], group["weight_decay"]) == (0.9, 1e-3, 1e-6)


def test_a_rate_of_lars_is_reported_before_adamw_trains(tmp_path, capsys):
    pretrain(settings(tmp_path, optimizer="adamw", base_lr=10, epochs=1))
    lines = capsys.readouterr().out.splitlines()
    assert "base_lr 10 is too large for optimizer adamw, which needs about 0.0005 to 0.001: lower --base-lr" in lines[:-1]
    assert lines[-1].startswith("epoch 1/1")


# --- clipping


def linear(value: float = 1.0) -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, value)
    nn.init.zeros_(model.bias)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


@pytest.mark.parametrize("max_norm", [None, 0.5, 100.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_gradient_is_clipped_by_the_norm_of_all_parameters_after_it_is_unscaled(scaled, max_norm):
    """With fp16 the gradient is scaled by 2^16, which must not count."""
    model, optimizer = linear()
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    scaler.scale(3 * model.weight.sum() + 4 * model.bias.sum()).backward()
    norm = update(optimizer, scaler, max_norm)
    expected = math.sqrt(6 * 9 + 2 * 16)
    assert norm is None if max_norm is None else norm.item() == pytest.approx(expected, rel=1e-6)
    factor = min(1.0, (max_norm or math.inf) / expected)
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 3), 1 - 3 * factor), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bias.detach(), torch.full((2,), -4 * factor), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["lars", "adamw", "sgd"])
def test_a_step_whose_gradient_overflows_fp16_is_skipped_with_clipping_too(optimizer):
    given = settings("", optimizer=optimizer)
    model = build_encoder(given, 1)
    built, scaler = build_optimizer(given, model), torch.amp.GradScaler("cpu")
    before = [p.detach().clone() for p in model.parameters()]
    for overflow, moved in ((math.inf, False), (1.0, True)):
        for group in built.param_groups:
            group["lr"] = 0.1
        built.zero_grad()
        scaler.scale(overflow * sum(p.sum() for p in model.parameters())).backward()
        norm = update(built, scaler, 1.0)
        assert math.isfinite(norm.item()) == moved
        assert all(torch.equal(p, old) != moved for p, old in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 2**15


def test_the_norm_before_clipping_is_logged_only_with_clipping(tmp_path, monkeypatch):
    pretrain(settings(tmp_path / "clipped", **ADAMW), progress=False)
    found = norms(tmp_path / "clipped")
    assert len(found) == 2 * STEPS
    assert max(found) > ADAMW["clip_grad"], "some were clipped"
    pretrain(settings(tmp_path / "free", **{**ADAMW, "clip_grad": "none"}), progress=False)
    assert norms(tmp_path / "free") == []
    clipped, free = (load_file(Run(tmp_path / name).projector) for name in ("clipped", "free"))
    assert any(not torch.equal(clipped[name], free[name]) for name in free)

    monkeypatch.setattr(loop, "update", lambda *_: torch.tensor(math.inf))  # an overflow: JSON has no infinity
    pretrain(settings(tmp_path / "overflow", **ADAMW), progress=False)
    assert norms(tmp_path / "overflow") == [None] * 2 * STEPS
    assert "Infinity" not in (tmp_path / "overflow" / "metrics.jsonl").read_text(encoding="utf-8")


# --- resuming, and the same weights on all processes


@pytest.mark.parametrize(
    ("given", "processes"),
    [
        (ADAMW, 1),
        ({**ADAMW, "precision": "bf16"}, 1),
        (ADAMW, 2),
        ({**ADAMW, **VIT}, 2),
        ({**SGD, "micro_batch": 20}, 1),
        ({**SGD, "micro_batch": 20}, 2),
    ],
    ids=lambda value: (
        value
        if isinstance(value, int)
        else f"{value['optimizer']}-{value.get('precision', 'fp32')}-{value.get('arch', 'resnet8')}"
    ),
)
def test_a_run_resumed_within_an_epoch_ends_with_the_same_bytes(given, processes, tmp_path):
    """That fresh processes resume like this is tested in test_resume.py."""
    if "arch" in given:
        pytest.importorskip("timm")
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    three = settings(whole, **given), settings(folder, **given, checkpoint_minutes=1e-9), settings(folder, **given)
    if processes == 1:
        same = train_stop_and_resume(*three)
    else:
        same, _ = in_group(processes, tmp_path, train_stop_and_resume, *three)
    assert len(same) > 10
    assert all(same), "each process would otherwise clip by a norm of its own, and the copies of the network would drift apart"
    assert max(norms(whole)) > given["clip_grad"]
    assert_same(folder, whole)
    assert len(read_json(folder / "provenance.json")["resumed"]) == 1


def train_stop_and_resume(whole: PretrainSettings, often: PretrainSettings, resumed: PretrainSettings) -> list[bool]:
    """Train; train elsewhere until the second epoch, and resume there. For each parameter, whether it is the same everywhere."""
    encoders, original = [], loop.build_encoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_encoder", lambda *arguments: encoders.append(original(*arguments)) or encoders[-1])
        pretrain(whole, progress=False)
    same = []
    for parameter in encoders[0].parameters():
        others = [parameter.detach().clone() for _ in range(world_size())]
        if world_size() > 1:
            dist.all_gather(others, parameter.detach().contiguous())
        same.append(all(torch.equal(other, parameter) for other in others))
    stop_in_second_epoch(often)
    if world_size() > 1:
        dist.barrier()  # the first process writes the checkpoint
    place = Checkpoints(Path(often.exp_dir)).load()["place"]
    assert (place["epoch"], place["step"]) == (1, 2)
    torch.manual_seed(123)
    pretrain(resumed, progress=False)
    return same


def stop_in_second_epoch(given: PretrainSettings) -> None:
    """Train until the checkpoint after step 2 of the second epoch."""
    save = loop._Training._save

    def save_and_stop(self) -> None:
        save(self)
        if (self.position.epoch, self.position.step) == (1, 2):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Training, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(given, progress=False)


def test_a_run_is_not_resumed_with_another_optimizer(tmp_path):
    stop_in_second_epoch(settings(tmp_path, **ADAMW, checkpoint_minutes=1e-9))
    for other, words in (({**ADAMW, "betas": "none"}, "betas"), ({**ADAMW, "clip_grad": 1}, "clip_grad 0.5 -> 1"), (SGD, "sgd")):
        with pytest.raises(SfrikError, match=f"unfinished run with other settings .*{words}") as caught:
            pretrain(settings(tmp_path, **other), progress=False)
        assert "\n" not in str(caught.value)
