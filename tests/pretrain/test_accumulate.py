"""Gradient accumulation through the embeddings: gradients, BatchNorm, random numbers, processes, whole runs, compilation."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import in_group
from safetensors.torch import load_file
from torch import nn

from sfrik.cost.memory import expected_memory
from sfrik.errors import SfrikError
from sfrik.networks import Encoder
from sfrik.objectives import SFRIK
from sfrik.pretrain.accumulate import backward, micro_batches
from sfrik.pretrain.loop import pretrain
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system.devices import autocast

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
N, Q = 10, 6
SIZES = (8, 8, 5)  # side lengths of three views


def images(dtype=torch.float64, rows=slice(None)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(N, 3, side, side, generator=generator).to(dtype)[rows] for side in SIZES]


def network(*middle, by_size=False, dtype=torch.float64):
    """A convolution, the given layers, and a linear projector."""
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Encoder(backbone, nn.Linear(4, Q), by_size).to(dtype)


def compute_loss(embeddings):
    return SFRIK(Q, sim_coeff=20.0)(embeddings, anchors=(0,))


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def embed_with_autograd(model, views, parts, precision=nullcontext):
    """The embeddings of all micro-batches in one graph, and the model's buffers after each micro-batch."""
    buffers, embeddings = [], []
    for piece in zip(*(view.tensor_split(parts) for view in views), strict=True):
        buffers.append({name: buffer.clone() for name, buffer in model.named_buffers()})
        with precision():
            embeddings.append(torch.func.functional_call(model, buffers[-1], (list(piece),)))
    return [torch.cat(z) for z in zip(*embeddings, strict=True)], buffers


@pytest.mark.parametrize(("n", "limit", "parts"), [(10, None, 1), (10, 10, 1), (10, 99, 1), (10, 9, 2), (10, 4, 3), (10, 1, 10)])
def test_a_batch_is_split_evenly_into_as_few_micro_batches_as_possible(n, limit, parts):
    assert micro_batches(n, limit) == parts
    sizes = [len(piece) for piece in torch.arange(n).tensor_split(parts)]
    assert max(sizes) <= (limit or n)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("parts", [2, 3, N])
def test_without_batch_norm_the_gradient_is_that_of_the_whole_batch(parts, by_size):
    model, factor = network(by_size=by_size), 1024.0
    expected, terms = backward(model, images(), compute_loss)
    whole = gradients(model)
    model.zero_grad()
    embeddings, other = backward(model, images(), compute_loss, parts, scale=lambda loss: factor * loss)
    torch.testing.assert_close(other.loss, terms.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(embeddings, [z.detach() for z in expected], rtol=1e-12, atol=1e-14)
    for name, gradient in gradients(model).items():  # the order of summation differs
        assert gradient.abs().max() > 1
        torch.testing.assert_close(gradient / factor, whole[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("parts", [2, 3])
def test_batch_norm_normalises_each_micro_batch_and_updates_its_averages_once(parts):
    model = network(nn.BatchNorm2d(4))
    plain, whole = copy.deepcopy(model), copy.deepcopy(model)
    embeddings, averages = embed_with_autograd(plain, images(), parts)
    terms = compute_loss(embeddings)
    terms.loss.backward()
    _, found = backward(model, images(), compute_loss, parts)
    torch.testing.assert_close(found.loss, terms.loss, rtol=1e-12, atol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain.get_parameter(name).grad, rtol=1e-10, atol=1e-13)
    whole(images())
    fractions = [len(rows) / N for rows in torch.arange(N).tensor_split(parts)]
    for name in ("running_mean", "running_var"):
        mean = sum(fraction * buffers[f"backbone.1.{name}"] for fraction, buffers in zip(fractions, averages, strict=True))
        torch.testing.assert_close(model.get_buffer(f"backbone.1.{name}"), mean, rtol=1e-12, atol=1e-14)
    # the mean of the means is the overall mean; for variances this does not hold
    torch.testing.assert_close(model.backbone[1].running_mean, whole.backbone[1].running_mean, rtol=1e-10, atol=1e-13)
    assert model.backbone[1].num_batches_tracked == whole.backbone[1].num_batches_tracked == len(SIZES)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_both_passes_draw_the_same_random_numbers_and_the_loss_draws_from_its_own_state(device):
    model, views = network(nn.Dropout(0.4)).to(device), [view.to(device) for view in images()]

    def noisy(embeddings):
        drawn.append(torch.rand((), device=device).item())
        return compute_loss(embeddings)

    drawn = []
    torch.manual_seed(3)
    embeddings, _ = embed_with_autograd(model, views, 3)
    noisy(embeddings).loss.backward()
    expected, after = gradients(model), torch.rand((), device=device)
    model.zero_grad()
    torch.manual_seed(3)
    backward(model, views, noisy, 3)
    assert torch.equal(torch.rand((), device=device), after)
    assert drawn[0] == drawn[1]
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13)


def test_in_low_precision_every_weight_has_a_gradient():
    """The autocast context of the passes without a graph caches copies of the weights that would cut the graph."""
    model, views = network(dtype=torch.float32), images(torch.float32)
    precision = partial(autocast, torch.device("cpu"), "bf16")
    embeddings, _ = embed_with_autograd(model, views, 2, precision)
    compute_loss(embeddings).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    embeddings, _ = backward(model, views, compute_loss, 2, precision)
    assert embeddings[0].dtype == torch.bfloat16
    for name, gradient in gradients(model).items():  # the same products in the same precision; the order of summation differs
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max().item())


def test_an_error_in_the_loss_leaves_the_running_averages_unchanged():
    model = network(nn.BatchNorm2d(4))
    before = copy.deepcopy(model.state_dict())

    def fail(embeddings):
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        backward(model, images(), fail, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- several processes


def work(folder: Path) -> dict:
    rank = dist.get_rank()
    rows, reduced = slice(rank * N // 2, (rank + 1) * N // 2), []

    def count_and_average(state, bucket):
        reduced.append(bucket.index())
        dist.all_reduce(bucket.buffer())
        future = torch.futures.Future()
        future.set_result(bucket.buffer() / 2)
        return future

    model = nn.parallel.DistributedDataParallel(network())
    model.register_comm_hook(None, count_and_average)
    for _ in range(2):  # DDP rebuilds its buckets after the first backward pass
        model.zero_grad()
        reduced.clear()
        backward(model, images(rows=rows), compute_loss, 3)
    line = pretrain(smoke(folder / "run", batch_size=64, micro_batch=9, epochs=1), progress=False)
    return {"gradients": gradients(model.module), "reduced": reduced, "line": line}


def test_two_processes_reduce_gradients_once_and_get_those_of_the_whole_batch(tmp_path):
    results = in_group(2, tmp_path, work, tmp_path)
    model = network()
    backward(model, images(), compute_loss)
    for found in results:
        assert found["reduced"] == [0], "one bucket, in the last of three micro-batches"
        for name, expected in gradients(model).items():
            torch.testing.assert_close(found["gradients"][name], expected, rtol=1e-10, atol=1e-13)
    assert found["line"]["effective_rank"] > 1
    assert Run(tmp_path / "run").backbone.is_file()


# --- whole runs


def smoke(folder, recipe="smoke/sfrik_l2_q64", **overrides):
    fixed = {"batch_size": 64, "subset": 13, "epochs": 2, "device": "cpu", "precision": "fp32", "knn_every": 0}
    return PretrainSettings.from_recipe(recipe, **{"exp_dir": str(folder), **fixed, **overrides})


def weights(folder):
    return load_file(Run(folder).backbone)


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_with_micro_batches_gives_the_same_weights_as_an_uninterrupted_one(tmp_path, monkeypatch):
    pretrain(smoke(tmp_path / "whole", micro_batch=25), progress=False)
    with monkeypatch.context() as patch:
        save = Checkpoints.save

        def save_and_stop(self, state):
            save(self, state)
            raise KeyboardInterrupt

        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(smoke(tmp_path / "stopped", micro_batch=25), progress=False)
    pretrain(smoke(tmp_path / "stopped", micro_batch=25), progress=False)
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_multi_crop_trains_with_micro_batches(tmp_path):
    chosen = smoke(tmp_path / "run", "smoke/sfrik_l3_q64_swav", subset=7, micro_batch=30, epochs=1)
    assert pretrain(chosen, progress=False)["effective_rank"] > 1


def test_a_loss_that_is_not_finite_is_an_error_that_names_step_and_images(tmp_path):
    with pytest.raises(SfrikError, match=r"epoch \d, step \d: .*MNIST5k image \d+"):
        pretrain(smoke(tmp_path, micro_batch=30, base_lr=1e38), progress=False)
    assert len(torch.load(tmp_path / "fault.rank0.pt")["views"][0]) == 64


def test_a_micro_batch_of_one_image_is_refused_before_the_folder_is_created(tmp_path):
    with pytest.raises(SfrikError, match=r"micro_batch 2 splits the 3 images per process into batches of one"):
        pretrain(smoke(tmp_path / "run", batch_size=3, micro_batch=2), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_expected_memory_has_the_activations_of_a_micro_batch():
    whole = expected_memory(PretrainSettings(batch_size=2048))
    small = expected_memory(PretrainSettings(batch_size=2048, micro_batch=128))
    assert small["activations"] == pytest.approx(whole["activations"] / 16)
    assert small["loss"] == whole["loss"]
    # two views of 2,048 images; their embeddings and the gradient, at two bytes
    assert small["images"] == pytest.approx(2 * 2048 * 3 * 224**2 * 4 / 2**30)
    assert small["embeddings"] == pytest.approx(2 * 2048 * 8192 * 2 * 2 / 2**30)
    assert expected_memory(PretrainSettings(batch_size=2048), 8) == expected_memory(
        PretrainSettings(batch_size=2048, micro_batch=256), 8
    )


# --- compiled


def test_a_compiled_network_trains_and_its_weights_keep_their_names(tmp_path, monkeypatch):
    """The backend runs the traced operations one by one and needs no compiler."""
    compiled, calls = torch.compile, []

    def compile_eagerly(function, **options):
        calls.append(function)
        return compiled(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    pretrain(smoke(tmp_path / "run", compile=True, epochs=1), progress=False)
    assert len(calls) == 1
    pretrain(smoke(tmp_path / "plain", epochs=1), progress=False)
    torch.testing.assert_close(weights(tmp_path / "run"), weights(tmp_path / "plain"), rtol=1e-4, atol=1e-5)


def test_a_missing_compiler_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    def backend(graph, inputs):
        raise OSError("no working C++ compiler found")

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend=backend, **options))
    with pytest.raises(SfrikError, match=r"could not be compiled \(.*no working C\+\+ compiler.*install a C\+\+ compiler"):
        pretrain(smoke(tmp_path / "run", compile=True, epochs=1), progress=False)
