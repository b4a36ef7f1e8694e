"""LARS compared with a plain loop; PyTorch's optimizers without the compiler; parameter groups; the learning-rate schedule."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from sfrik.optim import LARS, SGD, AdamW, learning_rate, parameter_groups


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


SHAPES = [(4, 3), (3,), (2, 3, 2, 2), (5, 2), (1,)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_over_several_steps_equals_a_plain_loop_over_parameters(weight_decay, momentum):
    lr, trust = 2.0, 0.01
    start = tensors(0, *SHAPES)
    start[3].zero_()  # a parameter of norm 0
    params = [torch.nn.Parameter(p.clone()) for p in start]
    optimiser = LARS(params, lr, weight_decay=weight_decay, momentum=momentum, trust_coefficient=trust)
    plain, buffers = [p.clone() for p in start], [torch.zeros_like(p) for p in start]
    for step in range(5):
        gradients = tensors(step + 1, *SHAPES)
        if step == 2:
            gradients[0].zero_()  # a gradient of norm 0; with weight decay the sum is not 0
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        optimiser.step()
        for k, g in enumerate(gradients):
            if plain[k].ndim > 1:
                g = g + weight_decay * plain[k]
                if plain[k].norm() > 0 and g.norm() > 0:
                    g = g * trust * plain[k].norm() / g.norm()
            buffers[k] = momentum * buffers[k] + g
            plain[k] = plain[k] - lr * buffers[k]
        for p, expected, g in zip(params, plain, gradients, strict=True):
            torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
            assert torch.equal(p.grad, g)  # step does not modify the gradients


def test_lars_first_step_moves_a_matrix_by_lr_times_trust_coefficient_of_its_norm():
    p = torch.nn.Parameter(tensors(0, (6, 4))[0])
    before = p.detach().clone()
    p.grad = 1e3 * tensors(1, (6, 4))[0]  # the size of the gradient has no influence
    LARS([p], lr=3.0).step()
    assert (p.detach() - before).norm().item() == pytest.approx(3.0 * 1e-3 * before.norm().item(), rel=1e-12)


def test_lars_applies_neither_weight_decay_nor_trust_ratio_to_one_dimensional_parameters():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    p.grad = torch.tensor([0.5, 0.25])
    LARS([p], lr=0.1, weight_decay=10.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.95, -2.025]))


def test_lars_uses_the_settings_of_each_group_and_skips_parameters_without_gradient():
    first, second, idle = (torch.nn.Parameter(t) for t in tensors(0, (2, 2), (2, 2), (2, 2)))
    before = [p.detach().clone() for p in (first, second, idle)]
    first.grad, second.grad = tensors(1, (2, 2), (2, 2))
    optimiser = LARS([{"params": [first, idle]}, {"params": [second], "lr": 4.0}], lr=1.0)
    optimiser.step()
    moved = [(p.detach() - b).norm().item() / b.norm().item() for p, b in zip((first, second, idle), before, strict=True)]
    assert moved == pytest.approx([1e-3, 4e-3, 0.0], rel=1e-12)


def test_lars_resumed_from_its_state_dict_gives_the_same_parameters():
    gradients = [tensors(k, *SHAPES) for k in range(1, 5)]

    def run(stop: int | None) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(p) for p in tensors(0, *SHAPES)]
        optimiser = LARS(params, 1.0, weight_decay=0.1)
        for k, step in enumerate(gradients):
            if k == stop:
                state = optimiser.state_dict()
                optimiser = LARS(params, 7.0)
                optimiser.load_state_dict(state)
            for p, g in zip(params, step, strict=True):
                p.grad = g.clone()
            optimiser.step()
        return [p.detach() for p in params]

    assert all(torch.equal(p, q) for p, q in zip(run(None), run(2), strict=True))


def test_lars_calls_a_closure_with_gradients_enabled():
    p = torch.nn.Parameter(torch.tensor([3.0]))
    optimiser = LARS([p], lr=0.1)

    def closure():
        optimiser.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 9.0
    assert p.item() == pytest.approx(2.4)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr of LARS must be >= 0 and finite, got -1"),
        ({"lr": math.nan}, "lr of LARS must be >= 0 and finite, got nan"),
        ({"lr": INF}, "lr of LARS must be >= 0 and finite, got inf"),
        ({"lr": 1.0, "weight_decay": -0.1}, "weight_decay of LARS must be >= 0 and finite, got -0.1"),
        ({"lr": 1.0, "momentum": -0.9}, "momentum of LARS must be >= 0 and finite, got -0.9"),
        ({"lr": 1.0, "trust_coefficient": 0.0}, "trust_coefficient of LARS must be above 0 and finite, got 0"),
    ],
)
def test_lars_rejects_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        LARS([torch.nn.Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (AdamW, torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
        (AdamW, torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
        (SGD, torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True}),
        (SGD, torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    ],
)
def test_adamw_and_sgd_are_those_of_pytorch(ours, theirs, options):
    found = []
    for kind in (ours, theirs):
        params = [torch.nn.Parameter(p) for p in tensors(0, *SHAPES)]
        optimiser = kind(params, lr=0.1, **options)
        for step in range(3):
            for p, g in zip(params, tensors(step + 1, *SHAPES), strict=True):
                p.grad = g
            optimiser.step()
        found.append([p.detach() for p in params])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))
    assert not torch.equal(found[0][0], tensors(0, *SHAPES)[0])


def test_no_optimizer_imports_the_compiler():
    code = """if True:
        import sys, torch
        from sfrik.optim import LARS, SGD, AdamW
        for kind, options in ((LARS, {}), (SGD, {}), (SGD, {"fused": True}), (AdamW, {}), (AdamW, {"fused": True})):
            p = torch.nn.Parameter(torch.ones(3, 3))
            optimiser = kind([{"params": [p]}], lr=0.1, **options)
            p.grad = torch.ones(3, 3)
            torch.nn.utils.clip_grad_norm_([p], 1.0)
            optimiser.step()
            optimiser.load_state_dict(optimiser.state_dict())
            optimiser.zero_grad()
            assert "torch._dynamo" not in sys.modules, kind
    """
    subprocess.run([sys.executable, "-c", code], check=True)


class Tokens(torch.nn.Module):
    """A part of a transformer: a token and a position embedding that are not to decay, as timm's models declare them."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.pos_embed = torch.nn.Parameter(torch.ones(1, 1, 4)), torch.nn.Parameter(torch.ones(1, 3, 4))
        self.norm, self.linear = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)

    def no_weight_decay(self):
        return {"cls_token", "pos_embed", "dist_token"}


@pytest.mark.parametrize("vectors", [False, True])
def test_norms_biases_and_what_a_module_declares_have_no_weight_decay(vectors):
    model = torch.nn.Sequential(torch.nn.ModuleDict({"backbone": Tokens()}), torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, excepted = parameter_groups(model, 0.05, vectors)
    assert (decayed["weight_decay"], excepted["weight_decay"]) == (0.05, 0.0)
    matrices, tokens = ["0.backbone.linear.weight", "1.weight"], ["0.backbone.cls_token", "0.backbone.pos_embed"]
    others = [name for name in names.values() if name not in (*matrices, *tokens)]
    assert len(others) == 6
    found = [[names[id(p)] for p in group["params"]] for group in (decayed, excepted)]
    everything = [*others, *matrices] if vectors else matrices
    assert [sorted(part) for part in found] == [sorted(everything), sorted(tokens if vectors else [*tokens, *others])]
    (only,) = parameter_groups(model[1:], 0.05, vectors=True)
    assert [id(p) for p in only["params"]] == [id(p) for p in model[1:].parameters()], "LARS of a ResNet has one group, in order"


def test_a_vision_transformer_of_timm_declares_its_tokens_and_position_embeddings():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 1, "num_classes": 0, "init_values": 0.1}
    model = torch.nn.ModuleDict({"backbone": timm.create_model("vit_tiny_patch16_224", **sizes)})
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, _ = parameter_groups(model, 0.05)
    expected = {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}
    assert {names[id(p)] for p in decayed["params"]} == {f"backbone.{name}.weight" for name in expected}


def test_learning_rate_at_the_key_steps_of_the_papers_schedule():
    """Base rate 1.2 at batch 2048 over 100 epochs of 127 steps: the peak is 9.6."""

    def rate(step):
        return learning_rate(step, steps_per_epoch=127, epochs=100, base_lr=1.2, batch_size=2048)

    assert rate(0) == 0
    assert rate(635) == pytest.approx(4.8)  # half of the warm-up
    assert rate(1270) == pytest.approx(9.6)  # its end, 10 epochs
    assert rate(1270 + 11430 // 2) == pytest.approx((9.6 + 0.0096) / 2)  # half of the cosine
    assert rate(12700) == pytest.approx(0.0096)  # the end, 0.001 of the peak
    assert rate(12699) == pytest.approx(0.0096, rel=1e-3)
    assert rate(20000) == pytest.approx(0.0096)  # and no rise after it


def test_learning_rate_rises_over_the_warm_up_and_falls_after_it():
    rates = [learning_rate(step, 10, 20, 0.4, 512, warmup_epochs=3) for step in range(201)]
    assert max(rates) == rates[30] == pytest.approx(0.8)
    assert all(a < b for a, b in pairwise(rates[:31]))
    assert all(a > b for a, b in pairwise(rates[30:]))


def test_learning_rate_without_warm_up_starts_at_the_peak():
    assert learning_rate(0, 10, 20, 0.4, 256, warmup_epochs=0) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            ({name: value}, f"finite numbers >= 0, got {name}=")
            for name in ("warmup_epochs", "base_lr")
            for value in (NAN, INF, -1)
        ),
        ({"step": -1}, "got step=-1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be >= 1, got 0"),
    ],
)
def test_learning_rate_rejects_what_has_no_rate(change, words):
    with pytest.raises(ValueError, match=words):
        learning_rate(**{"step": 1, "steps_per_epoch": 10, "epochs": 20, "base_lr": 0.4, "batch_size": 256, **change})


def test_a_warm_up_longer_than_the_training_ends_below_the_peak():
    assert learning_rate(30, 10, 3, 0.4, 256, warmup_epochs=10) == pytest.approx(0.3 * 0.4)
