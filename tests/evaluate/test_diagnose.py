"""`sfrik diagnose`: weights, images, verdicts, the command, and the thresholds and page against the measured numbers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sfrik.cli import main
from sfrik.datasets import batches, describe_data, load_images
from sfrik.diagnostics import Measures, measure
from sfrik.errors import SfrikError
from sfrik.evaluate.collapse import DIMENSIONAL, FULL, HEALTHY, LEAST_RANK, LEAST_UNIFORMITY, UNKNOWN, classify, diagnose
from sfrik.kernels import RotationInvariantKernel
from sfrik.networks import build_encoder, save_weights
from sfrik.ops.random import derived_seed
from sfrik.plots.runs import draw_diagnosis
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system.files import file_hash, read_json, write_json
from sfrik.views.base import build_views

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import diagnosis as benchmark  # noqa: E402
import ranking  # noqa: E402


def run_of(folder, recipe="smoke/sfrik_l2_q64", parts=("backbone", "projector"), weights=None, **changes):
    """The folder of a finished run without training: its weights are as initialised, or changed by `weights`."""
    settings = PretrainSettings.from_recipe(recipe, exp_dir=str(folder), **changes)
    torch.manual_seed(0)
    encoder = build_encoder(settings, channels=1)
    if weights:
        weights(encoder)
    run = Run(folder)
    run.start(settings)
    for part in parts:
        save_weights(getattr(encoder, part), getattr(run, part))
    return run, settings, encoder.eval()


def line(**values):
    return {"epoch": 3, "loss": 1.0, "alignment": 0.1, "uniformity": -3.0, "effective_rank": 30.0, **values}


@torch.no_grad()
def to_one_line(encoder):
    """Map all embeddings onto one line through the origin, on both sides of it."""
    last = encoder.projector[-1].weight
    signs = torch.ones(last.shape[1])
    signs[::2] = -1
    last.copy_(torch.randn(last.shape[0], 1) * signs)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of one batch; with the initial ones all images have nearly the same embedding
    digits = load_images("mnist5k", "pretrain", subset=30).tensor
    encoder.train()(build_views("digits", 28, "mnist5k").per_batch([digits], torch.Generator().manual_seed(0)))


@torch.no_grad()
def to_nothing(encoder):
    encoder.projector[-1].weight.zero_()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("diagnose") / "whole")


# --- what is measured


@torch.no_grad()
def test_the_embeddings_are_of_two_random_views_of_training_images_in_evaluation_mode(whole):
    run, settings, encoder = whole
    found = diagnose(run.folder, images=100, seed=5, device="cpu")
    images = load_images("mnist5k", "pretrain", subset=30)
    chosen = np.random.default_rng(derived_seed("diagnosis", 5)).permutation(300)[:100]
    views = build_views("digits", 28, "mnist5k")
    drawn = [batch for batch, _, _ in batches(images, chosen, views, settings.batch_size, seeds=(5,))]
    first, second = (encoder([torch.cat([batch[k] for batch in drawn])])[0] for k in (0, 1))
    expected = measure(first, second)
    assert (found.n, found.q) == (100, 64)
    for name in ("alignment", "uniformity", "effective_rank", "rankme", "energy_share", "spectrum"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-7), name
    assert found.alignment > 1e-4


def test_the_same_seed_gives_the_same_numbers_and_another_seed_different_ones(whole):
    folder = whole[0].folder
    one, again, other = (diagnose(folder, images=64, seed=seed, device="cpu") for seed in (0, 0, 1))
    assert one == again
    assert one.alignment != other.alignment


def test_a_diagnosis_reports_images_that_the_run_was_not_trained_on(tmp_path, capsys):
    run, _, _ = run_of(tmp_path)
    record, data = read_json(run.folder / "settings.json"), describe_data(load_images("mnist5k", "pretrain", subset=30))
    for recorded, expected in ((data, ""), (data | {"images": 500}, "500 images -> 300 images"), (None, "")):
        write_json(run.folder / "settings.json", record | {"data": recorded})
        reasons = diagnose(run.folder, images=64, device="cpu").reasons
        assert "training images: 300, 10 classes" in capsys.readouterr().out
        assert [reason for reason in reasons if "trained on" in reason] == (
            [f"these are not the images that the run was trained on ({expected})"] if expected else []
        )


def test_at_most_all_images_are_measured_and_so_are_their_features(whole):
    run = whole[0]
    found = diagnose(run.folder, device="cpu")
    assert found.n == 300
    assert (found.source, found.epoch, found.backbone_sha256) == (
        "backbone.safetensors and projector.safetensors",
        2,
        file_hash(run.backbone),
    )
    assert (found.features.n, found.features.q, found.features.energy, found.features.uniformity_test) == (300, 128, (), None)


def test_fewer_images_than_dimensions_are_mentioned(whole):
    assert any("fewer than the 64 dimensions" in reason for reason in diagnose(whole[0].folder, images=40, device="cpu").reasons)


def test_the_first_two_views_of_multi_crop_are_measured(tmp_path):
    run, settings, _ = run_of(tmp_path / "run", "smoke/sfrik_l3_q64_obow")
    assert len(settings.view_sizes) > 2
    found = diagnose(run.folder, images=32, device="cpu")
    assert (found.n, found.q) == (32, 64)


# --- which weights


def test_an_unfinished_run_is_measured_by_its_checkpoint(whole, tmp_path):
    finished = diagnose(whole[0].folder, images=64, device="cpu")
    run, _, encoder = run_of(tmp_path / "run", parts=())
    run.checkpoints.save({"model": encoder.state_dict(), "place": {"epoch": 1, "step": 0}})
    found = diagnose(run.folder, images=64, device="cpu")
    assert (found.source, found.epoch, found.backbone_sha256) == ("checkpoint.pt", 1, None)
    assert (found.alignment, found.spectrum) == (finished.alignment, finished.spectrum)


def test_without_weights_the_log_is_classified_and_the_missing_measures_are_named(tmp_path):
    run, settings, _ = run_of(tmp_path / "run", parts=())
    run.log(line(epoch=0))
    run.log(line(epoch=1, effective_rank=1.5))
    run.log({"epoch": 1, "step": 9, "loss": 1.0})
    found = diagnose(run.folder)
    assert (found.verdict, found.source, found.epoch) == (DIMENSIONAL, "metrics.jsonl", 2)
    assert (found.n, found.q) == (settings.batch_size, 64)
    assert (found.rankme, found.energy, found.spectrum, found.features, found.uniformity_test) == (None, (), (), None, None)
    assert "the test of uniformity need the weights" in found.reasons[-1]


def test_a_backbone_without_its_projector_gives_the_features_and_the_log(tmp_path):
    run, _, _ = run_of(tmp_path / "run", parts=("backbone",))
    run.log(line())
    found = diagnose(run.folder, images=64, device="cpu")
    assert (found.verdict, found.source, found.features.q) == (HEALTHY, "metrics.jsonl", 128)
    assert "no projector.safetensors" in found.reasons[-1]


@pytest.mark.parametrize(("recipe", "d"), [("smoke/random_weights", 128), ("smoke/raw_pixels", 784)])
def test_a_run_that_trained_nothing_shows_its_features_without_a_verdict(tmp_path, recipe, d):
    run, _, _ = run_of(tmp_path / "run", recipe, parts=("backbone",), mlp="8-8")
    found = diagnose(run.folder, images=64, device="cpu")
    assert (found.verdict, found.epoch, found.q, found.energy) == (UNKNOWN, 0, d, ())
    assert "nothing was pretrained" in found.reasons[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run.folder / "settings.json").unlink(), "no settings.json"),
        (lambda run: write_json(run.folder / "settings.json", {"hash": "", "settings": {"size": 28}}), "no ssl_method"),
        (lambda run: write_json(run.folder / "settings.json", {"settings": {"size": 28}}), r"settings\.json has no key .hash."),
        (lambda run: (run.folder / "settings.json").write_text("[]", encoding="utf-8"), r"settings\.json holds a list"),
        (
            lambda run: [run.backbone.unlink(), run.log(line(alignment=None))],
            r"metrics\.jsonl has no finite number alignment",
        ),
        (lambda run: [run.backbone.unlink(), run.projector.unlink()], "neither weights nor an epoch"),
        (lambda run: save_weights(nn.Linear(3, 3), run.projector), "does not fit the settings"),
        (lambda run: run.projector.write_bytes(b"cut short"), "not a complete safetensors file"),
    ],
)
def test_a_folder_that_cannot_be_diagnosed_is_an_error_with_the_reason(tmp_path, change, words):
    run, _, _ = run_of(tmp_path / "run")
    change(run)
    with pytest.raises(SfrikError, match=words):
        diagnose(run.folder, images=16, device="cpu")


# --- the verdict


@pytest.mark.parametrize(("weights", "verdict"), [(to_one_line, DIMENSIONAL), (to_nothing, FULL)])
def test_an_artificial_collapse_is_detected(tmp_path, weights, verdict):
    run, _, _ = run_of(tmp_path / "run", weights=weights)
    found = diagnose(run.folder, device="cpu")
    assert found.verdict == verdict
    if verdict == DIMENSIONAL:
        assert found.energy_share[1] == pytest.approx(1, abs=1e-3)
        assert found.spectrum[1] < 1e-6


def test_a_point_a_line_and_the_uniform_distribution_have_their_verdicts():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 32, generator=generator)
    point, opposite = torch.ones(200, 32), torch.ones(200, 32) * torch.randn(200, 1, generator=generator)
    for z, verdict in ((point + 1e-3 * noise, FULL), (opposite + 1e-3 * noise, DIMENSIONAL), (noise, HEALTHY)):
        assert classify(measure(z, z))[0] == verdict


@pytest.mark.parametrize(
    ("uniformity", "rank", "verdict"),
    [
        (-LEAST_UNIFORMITY * 0.99, 30, FULL),
        (-LEAST_UNIFORMITY * 0.99, 1, FULL),
        (-LEAST_UNIFORMITY * 1.01, LEAST_RANK * 0.99, DIMENSIONAL),
        (-LEAST_UNIFORMITY * 1.01, LEAST_RANK * 1.01, HEALTHY),
    ],
)
def test_the_thresholds_separate_the_verdicts(uniformity, rank, verdict):
    assert classify(Measures(64, 64, 0.1, uniformity, rank))[0] == verdict


def test_too_few_images_or_dimensions_give_no_verdict_on_the_rank():
    verdict, reasons = classify(Measures(12, 512, 0.1, -3.0, 6.0))
    assert verdict == UNKNOWN
    assert "no rank can exceed 12" in reasons[0]
    assert classify(Measures(12, 512, 0.1, 0.0, 1.0))[0] == FULL


# --- the command


def test_the_command_prints_each_measure_with_its_expected_value(whole, capsys):
    assert main(["diagnose", str(whole[0].folder), "--images", "64", "--device", "cpu"]) in (0, 1)
    stdout = capsys.readouterr().out
    for words in ("uniformity", "RankMe", "energy of degree 2", "should be", "verdict: ", "what to do: "):
        assert words in stdout
    test = diagnose(whole[0].folder, images=64, device="cpu").uniformity_test
    low, high = test.degrees[0].interval
    assert f"95 % interval {low:.3f} to {high:.3f}" in stdout
    (line,) = (line for line in stdout.splitlines() if "p-value of uniformity, degrees 1 and 2" in line)
    assert "< 0.001" in line, "untrained: all images have nearly the same embedding"


@pytest.mark.parametrize(("degree", "shown"), [(2, "86 %"), (None, None)])
@pytest.mark.filterwarnings("ignore::sfrik.kernels.TruncationWarning")
def test_a_diagnosis_states_what_the_series_of_the_kernel_leaves_out(tmp_path, capsys, degree, shown):
    run, _, _ = run_of(tmp_path / "run", parts=(), sfrik_kernel="rbf", sfrik_kernel_degree=degree)
    run.log(line())
    found = diagnose(run.folder)
    assert found.left_out == (RotationInvariantKernel.rbf(2.5, found.q, degree).left_out if degree else 0)
    main(["diagnose", str(run.folder)])
    rows = [text for text in capsys.readouterr().out.splitlines() if "left out of the kernel" in text]
    assert [shown in row for row in rows] == ([True] if degree else [])


@pytest.mark.parametrize(("rank", "status"), [(30.0, 0), (1.5, 1)])
def test_the_exit_status_is_1_for_a_collapse(tmp_path, capsys, rank, status):
    run, _, _ = run_of(tmp_path / "run", parts=())
    run.log(line(effective_rank=rank))
    assert main(["diagnose", str(run.folder)]) == status


def test_json_holds_every_number(whole, capsys):
    main(["diagnose", str(whole[0].folder), "--images", "64", "--device", "cpu", "--json"])
    printed = json.loads(capsys.readouterr().out)
    found = diagnose(whole[0].folder, images=64, device="cpu")
    assert tuple(printed["spectrum"]) == found.spectrum
    assert (printed["verdict"], printed["n"], printed["features"]["q"]) == (found.verdict, 64, 128)
    assert printed["spread"] == found.spread
    test = found.uniformity_test
    assert printed["uniformity_test"]["p_value"] == test.p_value
    for one, shown, share in zip(test.degrees, printed["uniformity_test"]["degrees"], found.energy_share, strict=False):
        assert (shown["degree"], shown["p_value"], tuple(shown["interval"])) == (one.degree, one.p_value, one.interval)
        assert one.statistic == pytest.approx(share, rel=1e-9)


def test_embeddings_that_are_all_0_are_diagnosed_without_a_test_of_uniformity(tmp_path, capsys):
    run, _, _ = run_of(tmp_path / "run", weights=to_nothing)
    assert main(["diagnose", str(run.folder), "--images", "64", "--device", "cpu"]) == 1
    assert "p-value" not in capsys.readouterr().out


def test_the_command_writes_the_figure(whole, tmp_path, capsys):
    path = tmp_path / "new" / "picture.svg"
    main(["diagnose", str(whole[0].folder), "--images", "64", "--device", "cpu", "--figure", str(path)])
    assert path.read_text(encoding="utf-8").startswith("<?xml")


def test_a_recipe_names_its_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sfrik.cli.diagnose.run_folder", lambda name, seed: tmp_path / name / f"seed{seed}")
    run, _, _ = run_of(tmp_path / "smoke/sfrik_l2_q64/seed2", parts=(), seed=2)
    run.log(line())
    assert main(["diagnose", "smoke/sfrik_l2_q64", "--seed", "2"]) == 0
    assert main(["diagnose", "smoke/sfrik_l2_q64", "--seed", "3"]) == 2
    assert "pretrain --recipe smoke/sfrik_l2_q64 --seed 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smoke/sfrik_l2_q65"], "did you mean smoke/sfrik_l2_q64"),
        ([".", "--images", "1"], "--images must be a whole number >= 2"),
        ([".", "--device", "tpu"], "--device must be one of"),
        ([".", "--figure", "picture"], "ending in .png"),
    ],
)
def test_a_wrong_argument_is_a_one_line_error_with_the_remedy(arguments, words, capsys):
    assert main(["diagnose", *arguments]) == 2
    assert words in capsys.readouterr().err


# --- the figure


def test_the_figure_has_one_line_per_run_and_omits_what_a_log_lacks(whole, tmp_path):
    run, _, _ = run_of(tmp_path / "run", parts=())
    run.log(line())
    several = {"by weights": diagnose(whole[0].folder, images=64, device="cpu"), "by log": diagnose(run.folder)}
    spectrum, energy, plane = draw_diagnosis(several).axes
    assert [len(axis.lines[1].get_xdata()) for axis in (spectrum, energy)] == [0, 0]
    assert plane.lines[1].get_xydata().tolist() == [[3.0, 30.0]]
    assert list(energy.lines[0].get_ydata()) == list(several["by weights"].energy_share)


# --- the thresholds and docs/diagnosis.md


def test_the_thresholds_are_the_middle_of_the_measured_gaps():
    gaps = read_json(benchmark.NUMBERS / "diagnosis.json")["gaps"]
    for name, threshold in (("uniformity", LEAST_UNIFORMITY), ("effective_rank", LEAST_RANK)):
        gap = gaps[name]
        assert f"{threshold:.2g}" == f"{gap['middle']:.2g}"
        assert gap["low"] < threshold < gap["high"]


def test_the_gaps_and_the_verdicts_follow_from_the_runs():
    numbers = read_json(benchmark.NUMBERS / "diagnosis.json")
    assert benchmark.gaps(numbers["runs"], numbers["committed"]) == numbers["gaps"]
    for row in numbers["runs"]:
        assert row["verdict"] == (UNKNOWN if row["group"] == "not trained" else classify(benchmark.diagnosis(row))[0]), row["run"]
    expected = {"healthy": {HEALTHY}, "degree 1": {DIMENSIONAL, FULL}, "alignment alone": {FULL}}
    for group, verdicts in expected.items():
        assert {row["verdict"] for row in numbers["runs"] if row["group"] == group} <= verdicts


def test_the_numbers_are_those_of_the_committed_logs():
    assert benchmark.committed() == read_json(benchmark.NUMBERS / "diagnosis.json")["committed"]
    numbers = read_json(benchmark.NUMBERS / "ranking.json")
    assert [{**run, "commits": tuple(run["commits"])} for run in numbers["runs"]] == [vars(run) for run in ranking.scored_runs()]


def test_the_tables_of_the_page_show_the_numbers():
    page = benchmark.PAGE.read_text(encoding="utf-8")
    assert page == benchmark.rendered(page)
    assert len(re.findall(r"^\| ", page, re.MULTILINE)) > 20


def test_rank_correlations_equal_their_closed_forms():
    assert ranking.rho([1, 2, 3], [10, 20, 400]) == pytest.approx(1)
    assert ranking.rho([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert ranking.rho([1, 2, 3], [2, 1, 3]) == pytest.approx(0.5)
    assert ranking.rho([1, 1, 1], [1, 2, 3]) == 0


def test_the_joint_p_value_accounts_for_recipes_that_share_their_seeds():
    runs = [
        ranking.Scored(f"r{k}", seed, "AUH", "digits", -float(seed), 0.1 * seed, -3.0, 30.0, 90.0 + seed, None, None, ())
        for k in range(6)
        for seed in range(3)
    ]
    found = ranking.by_seeds(runs, "linear")
    assert (found["rho"], found["recipes"]) == (pytest.approx(-1), 6)
    assert found["p"] < 0.01
    assert found["joint p"] == pytest.approx(2 / 6)  # and its reverse


def test_a_measure_is_correlated_over_runs_with_a_bootstrap_interval_over_recipes():
    runs = [
        ranking.Scored(f"r{k}", seed, "AUH", "digits", 0.0, k + 0.1 * seed, -3.0, 30.0, 90.0 + k + 0.1 * seed, None, None, ())
        for k in range(8)
        for seed in range(3)
    ]
    found = ranking.by_recipes(runs, "alignment", "linear")
    assert (found["rho"], found["rho of means"], found["recipes"], found["runs"]) == (pytest.approx(1), pytest.approx(1), 8, 24)
    assert found["interval"] == pytest.approx([1, 1])
    assert found["p of means"] < 0.01
