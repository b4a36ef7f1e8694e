"""What runs on a GPU gives what the CPU gives; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from test_memory import two_steps

from sfrik.cost.measure import measure
from sfrik.cost.memory import expected_memory
from sfrik.evaluate import evaluate, extract_features, knn_eval, load_features, weighted_knn
from sfrik.evaluate.logistic import logistic_sgd
from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import MMD, mmd_to_uniform
from sfrik.objectives import AUH, SFRIK, SimCLR, VICReg
from sfrik.pretrain.loop import pretrain
from sfrik.settings import EvaluateSettings, FeatureSettings, KnnSettings, PretrainSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


OBJECTIVES = {
    "SFRIK": SFRIK(64),
    "SFRIK by moments": SFRIK(64, (1.0, 40.0)),
    "AUH": AUH(),
    "SimCLR": SimCLR(),
    "VICReg": VICReg(),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
@pytest.mark.parametrize("n", [128, 2050], ids=["a tile", "several"])
def test_an_objective_and_its_gradient_are_those_of_the_cpu(objective, n):
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(n, 64, generator=generator) for _ in range(2)]
    outcomes = []
    for device in ("cpu", "cuda"):
        placed = [view.to(device).requires_grad_() for view in views]
        terms = objective(placed)
        terms.loss.backward()
        outcomes.append((terms.loss.cpu(), placed[0].grad.cpu()))
    # TF32 is off for float32 products unless asked for: sums of 128 terms differ in the last digits
    torch.testing.assert_close(outcomes[1][0], outcomes[0][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outcomes[1][1], outcomes[0][1], rtol=1e-3, atol=1e-3 * float(outcomes[0][1].abs().max()))


def test_the_mmd_is_that_of_the_cpu():
    z = torch.nn.functional.normalize(torch.randn(256, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    kernel = RotationInvariantKernel.truncated((1.0, 40.0, 40.0), 32)
    torch.testing.assert_close(mmd_to_uniform(z.cuda(), kernel).cpu(), mmd_to_uniform(z, kernel), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_low_precision_keep_to_the_stated_error(dtype):
    z = torch.nn.functional.normalize(torch.randn(2050, 256, generator=torch.Generator().manual_seed(1)), dim=1).cuda()
    kernel, found = RotationInvariantKernel((1.0, 40.0, 40.0), 256), []
    for rows in (z.double(), z.to(dtype)):
        gradient = torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
        (value,) = MMD(kernel).partial_values([rows], [len(z)], [gradient], 1.0)
        found.append((value.item(), gradient.double() - (gradient.double() * z).sum(1, keepdim=True) * z))
    (expected, exact), (value, rounded) = found
    eps = torch.finfo(dtype).eps / 2
    assert abs(value - expected) <= 0.1 * eps * expected
    assert (rounded - exact).norm() <= 4 * eps * exact.norm()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"micro_batch": 16},
        {"precision": "fp32", "ssl_method": "vicreg"},
        {"mlp": "8192-8192-32768", "batch_size": 16},
    ],
)
def test_the_expected_memory_is_what_training_allocates(given):
    settings = PretrainSettings(**{"arch": "resnet50", "batch_size": 64, "precision": "bf16", "device": "cuda", **given})
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    two_steps(settings, torch.device("cuda"), torch.cuda.reset_peak_memory_stats)
    peak = torch.cuda.max_memory_allocated() - before
    # what the libraries take for themselves, such as cuDNN's workspaces, is not counted
    assert sum(expected_memory(settings).values()) * 2**30 == pytest.approx(peak, rel=0.1)


def test_weighted_knn_is_that_of_the_cpu_with_the_bank_on_the_host():
    generator = torch.Generator().manual_seed(2)
    train, test = torch.randn(500, 16, generator=generator), torch.randn(100, 16, generator=generator)
    labels = torch.randint(0, 10, (500,), generator=generator)
    on_gpu = weighted_knn(train, labels, test.cuda(), 20).cpu()
    torch.testing.assert_close(on_gpu, weighted_knn(train, labels, test, 20), rtol=1e-3, atol=1e-4)


def test_logistic_regression_learns_what_a_line_separates():
    labels = torch.arange(600) % 3
    points = 3 * torch.eye(3, 8)[labels] + 0.3 * torch.randn(600, 8, generator=torch.Generator().manual_seed(3))
    score = logistic_sgd((points[:400], labels[:400]), (points[400:], labels[400:]), 3, epochs=5, device="cuda")
    assert score["top1"] > 99


@pytest.mark.parametrize("recipe", ["smoke/sfrik_l3_q64", "smoke/vicreg_q64_swav"])
def test_a_run_trains_is_evaluated_and_gives_the_features_of_the_cpu(recipe, tmp_path):
    given = {"exp_dir": str(tmp_path / "run"), "device": "cuda"}
    line = pretrain(PretrainSettings.from_recipe(recipe, **given), progress=False)
    assert line["effective_rank"] > 1
    assert 0 <= evaluate(EvaluateSettings.from_recipe(recipe, **given), progress=False)["top1"] <= 100
    assert 0 <= evaluate(EvaluateSettings.from_recipe(recipe, train_percent=10, **given), progress=False)["top1"] <= 100
    assert 0 <= knn_eval(KnnSettings.from_recipe(recipe, **given))["top1_at"]["20"] <= 100
    features = []
    for device in ("cuda", "cpu"):
        chosen = {**given, "device": device, "precision": "fp32", "extraction_dir": str(tmp_path / device)}
        features.append(load_features(extract_features(FeatureSettings.from_recipe(recipe, **chosen)), "val")[0])
    # cuDNN's convolutions in float32 may use TF32, of ten bits
    assert torch.nn.functional.cosine_similarity(*features, dim=1).min() > 0.999


def test_costs_on_a_gpu_hold_whole_steps_too():
    found = measure("table5", "smoke", "cuda", rounds=1, progress=False)
    entries = [value for key, value in found.items() if " q=" in key]
    assert entries
    assert all({"loss_ms", "loss_mib", "step_ms", "step_mib"} <= set(entry) for entry in entries)
