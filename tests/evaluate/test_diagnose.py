"""`sfrik diagnose`: weights, images, verdicts, the command, and the thresholds and page against the measured numbers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from sfrik.cli import main
from sfrik.datasets import batches, describe_data, load_images
from sfrik.diagnostics import Measures, measure
from sfrik.errors import SfrikError
from sfrik.evaluate.collapse import (
    DIMENSIONAL,
    FULL,
    HEALTHY,
    LEAST_RANK,
    LEAST_UNIFORMITY,
    MOST_ALIGNMENT,
    UNKNOWN,
    classify,
    diagnose,
)
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
import left_out  # noqa: E402
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


def run_on(folder, dataset):
    """A run on images that are not digits, of which only the weights are there."""
    settings = PretrainSettings(
        dataset=dataset, arch="resnet8", stem="small", size=16, mlp="8-8", batch_size=4, workers=0, exp_dir=str(folder)
    )
    torch.manual_seed(0)
    encoder, run = build_encoder(settings, channels=3), Run(folder)
    run.start(settings)
    for part in ("backbone", "projector"):
        save_weights(getattr(encoder, part), getattr(run, part))


@pytest.mark.parametrize("dataset", ["cifar10", "stl10", "image_folder", "imagenet"])
@pytest.mark.parametrize("flags", [[], ["--data-dir", "moved"]])
def test_images_that_are_elsewhere_are_asked_for_and_not_downloaded(tmp_path, monkeypatch, capsys, dataset, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    run_on(tmp_path / "run", dataset)
    assert main(["diagnose", "run", "--device", "cpu", *flags]) == 2
    printed = capsys.readouterr()
    place = "moved" if flags else "data"
    assert f"run was trained on images ({dataset}) that are not in {place}: name their folder with --data-dir" in printed.err
    assert "downloading" not in printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


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


@pytest.mark.parametrize(("rank", "verdict", "warned"), [(30, HEALTHY, True), (1, DIMENSIONAL, False)])
def test_views_that_hardly_agree_are_a_reason_that_changes_no_verdict(rank, verdict, warned):
    """In a collapse the remedy is the opposite: a smaller weight of the alignment."""
    for alignment, above in ((0.99 * MOST_ALIGNMENT, False), (1.01 * MOST_ALIGNMENT, True)):
        found, reasons = classify(Measures(64, 64, alignment, -3.0, rank))
        assert found == verdict
        assert any("two views of an image hardly agree" in reason for reason in reasons) == (warned and above)


def test_too_few_images_or_dimensions_give_no_verdict_on_the_rank():
    verdict, reasons = classify(Measures(12, 512, 0.1, -3.0, 6.0))
    assert verdict == UNKNOWN
    assert "no rank can exceed 12" in reasons[0]
    assert classify(Measures(12, 512, 0.1, 0.0, 1.0))[0] == FULL


# --- the command


def test_the_command_prints_each_measure_with_its_expected_value(whole, capsys):
    assert main(["diagnose", str(whole[0].folder), "--images", "64", "--device", "cpu"]) in (0, 1)
    stdout = " ".join(capsys.readouterr().out.split())  # it is wrapped
    for words in ("uniformity", "RankMe", "energy of degree 2", "should be", "verdict: ", "what to do: "):
        assert words in stdout
    test = diagnose(whole[0].folder, images=64, device="cpu").uniformity_test
    low, high = test.degrees[0].interval
    assert f"95 % interval {low:.3f} to {high:.3f}" in stdout
    assert "p-value of uniformity, degrees 1 and 2 < 0.001" in stdout, "untrained: all images have nearly the same embedding"


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_the_lines_are_wrapped_at_the_width_of_the_terminal(whole, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(whole[0].folder)  # a longer path is left whole
    main(["diagnose", ".", "--images", "40", "--device", "cpu"])
    text = capsys.readouterr().out.split("\n", 1)[1]  # the first line is that of all commands on their images
    assert max(map(len, text.splitlines())) <= columns
    for words in ("from backbone.safetensors and projector.safetensors, after 2 epochs", "no rank can exceed 40", "what to do: "):
        assert words in " ".join(text.split())
    (row,) = (line for line in text.splitlines() if line.startswith("uniformity  "))
    cells = row.split()
    assert float(cells[1]) < 0
    assert cells[2] == "at"


@pytest.mark.parametrize(("degree", "shown"), [(2, "86 %"), (None, None)])
@pytest.mark.filterwarnings("ignore::sfrik.kernels.TruncationWarning")
def test_a_diagnosis_states_what_the_series_of_the_kernel_leaves_out(tmp_path, capsys, degree, shown):
    run, _, _ = run_of(tmp_path / "run", parts=(), sfrik_kernel="rbf", sfrik_kernel_degree=degree)
    run.log(line())
    found = diagnose(run.folder)
    assert found.left_out == (RotationInvariantKernel.rbf(2.5, found.q, degree).left_out if degree else 0)
    main(["diagnose", str(run.folder)])
    rows = [text for text in capsys.readouterr().out.splitlines() if "left out of the kernel" in text]
    assert [shown in row and "0 if the kernel is exact" in row for row in rows] == ([True] if degree else [])


@pytest.mark.parametrize(("rank", "status"), [(30.0, 0), (1.5, 1)])
def test_the_exit_status_is_1_for_a_collapse(tmp_path, capsys, rank, status):
    run, _, _ = run_of(tmp_path / "run", parts=())
    run.log(line(effective_rank=rank))
    assert main(["diagnose", str(run.folder)]) == status


@pytest.mark.parametrize(("mlp", "advice"), [("64-8", "no threshold fits 8 dimensions: compare"), ("64-16", "use more images")])
def test_more_images_are_advised_only_where_they_can_help(tmp_path, capsys, mlp, advice):
    run, _, _ = run_of(tmp_path / "run", mlp=mlp)
    assert main(["diagnose", str(run.folder), "--images", "12", "--device", "cpu"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"what to do: {advice}" in text


@pytest.mark.parametrize("alignment", [0.1, 1.9])
def test_the_command_warns_of_views_that_hardly_agree_and_succeeds(tmp_path, capsys, alignment):
    run, _, _ = run_of(tmp_path / "run", parts=())
    run.log(line(alignment=alignment))
    assert main(["diagnose", str(run.folder)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "verdict: healthy" in text
    warned = "alignment 1.9, above 1.5: two views of an image hardly agree" in text
    assert (warned, "nothing to fix" in text) == (alignment > 1.5, alignment < 1.5)
    assert main(["diagnose", str(run.folder), "--json"]) == 0
    reasons = json.loads(capsys.readouterr().out)["reasons"]
    assert sum("hardly agree" in reason and "--base-lr" in reason for reason in reasons) == (alignment > 1.5)


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


def test_of_the_recorded_runs_six_are_warned_of_their_alignment_and_none_of_them_is_good():
    numbers, scored = (read_json(benchmark.NUMBERS / f"{name}.json") for name in ("diagnosis", "ranking"))
    trained = [row for row in numbers["runs"] if row["group"] != "not trained"]
    runs = [(1000, row["knn20"], row["alignment"]) for row in trained]
    runs += [(row["images"], row["knn"], row["alignment"]) for row in scored["runs"]]
    best = {images: max(knn for of, knn, _ in runs if of == images) for images, *_ in runs}
    lost = [(best[images] - knn, alignment) for images, knn, alignment in runs]
    warned = sorted(points for points, alignment in lost if alignment > MOST_ALIGNMENT)
    assert (len(lost), len(warned), sum(points > left_out.LOST for points in warned)) == (63, 6, 5)
    assert warned[0] == pytest.approx(8.0)
    assert max(alignment for points, alignment in lost if points < 5) == pytest.approx(1.03, abs=0.005)
    logged = {row["log"]["alignment"]: row["run"] for row in [*trained, *numbers["committed"]]}
    assert max(logged) == pytest.approx(1.40, abs=0.005)
    assert logged[max(logged)] == "vicreg_q512_swav"


def test_the_correlations_follow_from_the_recorded_runs():
    numbers = read_json(benchmark.NUMBERS / "ranking.json")
    assert ranking.ranking(numbers["runs"]) == numbers
    assert len(numbers["runs"]) > 30


def test_the_tables_of_the_page_show_the_numbers():
    page = benchmark.PAGE.read_text(encoding="utf-8")
    assert page == benchmark.rendered(page)
    assert len(re.findall(r"^\| ", page, re.MULTILINE)) > 20


def test_rank_correlations_equal_scipys():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 12))
    y[:3] = y[0]  # ties
    assert ranking.rho(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert ranking.rho(np.array([1, 1, 1]), np.array([1, 2, 3])) == 0
    two = ranking.rho(np.array([[1, 2, 3], [1, 2, 3]]), np.array([[10, 20, 400], [2, 1, 3]]))
    assert two == pytest.approx([1, 0.5])


def test_correlations_are_within_groups_so_a_difference_between_groups_does_not_count():
    apart = [(shift + np.arange(9.0), shift - np.array([1, 0, 2, 5, 3, 4, 7, 8, 6])) for shift in (0, 100)]
    found = ranking.correlated([*apart, (np.arange(9), np.arange(9))])
    assert ranking.rho(*(np.concatenate(parts) for parts in zip(*apart, strict=True))) > 0.4
    assert found["rho"] == pytest.approx((2 * spearmanr(*apart[0]).statistic + 1) / 3)
    assert found["rho"] < 0
    assert found["interval"][0] < found["rho"] < found["interval"][1]
    same = ranking.correlated([(x, x) for x, _ in apart])
    assert (same["rho"], same["interval"]) == (pytest.approx(1), pytest.approx([1, 1]))
    assert same["p"] < 0.001
    assert ranking.correlated([(np.arange(5), np.arange(5))])["interval"] is None, "too few runs for a bootstrap"
    assert ranking.correlated([(np.arange(3), np.arange(3))])["p"] == pytest.approx(1 / 3, abs=0.05)  # 2 of 6 permutations


@pytest.mark.parametrize("n", [9, 40])
def test_a_correlation_that_is_detectable_is_found_in_four_of_five_samples(n):
    generator, true = np.random.default_rng(0), ranking.detectable([n])
    normal = 2 * np.sin(np.pi * true / 6)  # Pearson's correlation of normal variables with this rank correlation
    x, noise = generator.normal(size=(2, 4000, n))
    found = ranking.rho(x, normal * x + np.sqrt(1 - normal**2) * noise)
    critical = np.quantile(np.abs(ranking.rho(x, noise)), 0.95)
    assert (found > critical).mean() == pytest.approx(0.8, abs=0.06)  # Fisher's transform is an approximation at n = 9
    assert ranking.detectable([n] * 4) < true
    assert ranking.detectable([3] * 8) == pytest.approx(2.80 / 4, abs=0.01)


def grid_of(folder, recipe="sfrik_l2_q512", points=9, **measures):
    """A grid of finished runs: the rank grows with the point, and the scores with it."""
    for k in range(points):
        run = Run(folder / recipe / f"{2 ** (k // 3)}_lr{k % 3 + 1}")
        run.folder.mkdir(parents=True)
        write_json(run.folder / "settings.json", {"hash": "", "settings": {"base_lr": k % 3 + 1.0, "seed": 0}})
        write_json(run.folder / "provenance.json", {"commit": "c" * 40})
        run.log(line(loss=float(k), effective_rank=10.0 + k, **measures))
        write_json(run.folder / "knn_tune.json", {"top1_at": {"20": 80.0 + k}, "images": 500})
        if k != 1:  # diverged, or not finished
            write_json(run.folder / "logistic_tune.json", {"top1": 80.0 + k, "images": 500})
    return folder


def test_the_grids_of_a_folder_are_read_and_what_a_choice_costs_is_counted(tmp_path):
    rows = ranking.read_grids(grid_of(tmp_path))
    assert len(rows) == 8
    assert (rows[0]["weight"], rows[0]["rate"], rows[0]["commit"]) == ("1", 1.0, "c" * 40)
    found = ranking.ranking(rows)
    own = found["grids"]["sfrik_l2_q512"]["knn"]
    assert (own["least"], own["largest"], own["random choice"]) == (80.0, 88.0, pytest.approx(88 - np.mean([80, *range(82, 89)])))
    assert own["measures"]["effective_rank"] == {**own["measures"]["effective_rank"], "rho": pytest.approx(1), "choice": 0.0}
    assert own["measures"]["uniformity"]["choice"] == 8.0, "all equal: the first run"
    assert "relative_excess" not in own["measures"], "this method logs none"
    assert own["error"] == pytest.approx(100 * (0.84 * 0.16 / 500) ** 0.5, rel=0.05)
    assert (found["loss at one weight"]["knn"]["groups"], found["loss at one weight"]["knn"]["runs"]) == (2, 6)
    assert ranking.ranking(rows[:4])["grids"] == {}, "too few runs"


# --- the error of a threshold on a method that did not determine it


def test_a_threshold_is_tested_on_the_method_that_did_not_choose_it():
    values = [left_out.Value("A", rank, rank < 5) for rank in (1.0, 2.0, 20.0, 30.0)]
    values += [left_out.Value("B", 3.0, True), left_out.Value("B", 16.0, False), left_out.Value("B", 9.0, True)]
    found = left_out.left_out(values, 7.4)
    a, b = found["methods"]["A"], found["methods"]["B"]
    assert (a["threshold"], a["missed"], a["false"]) == (pytest.approx(12.0), 0, 0)  # the middle of 9 and 16
    assert b["threshold"] == pytest.approx(40**0.5)  # of 2 and 20
    assert (b["missed"], b["false"]) == (1, 0)
    assert (found["all"]["missed"], found["all"]["missed in use"]) == (1, 1)


def test_the_widest_gap_decides_between_thresholds_with_as_few_errors():
    values = [left_out.Value("A", rank, rank < 5) for rank in (1.0, 4.0, 6.0, 7.0)]
    assert left_out.chosen(values) == pytest.approx(24**0.5)
    mixed = [left_out.Value("A", rank, bad) for rank, bad in ((1.0, True), (2.0, False), (3.0, True), (30.0, False))]
    assert left_out.chosen(mixed) == pytest.approx(90**0.5), "one error there, and one between 1 and 2"


def test_a_run_is_bad_by_its_outcome_if_it_loses_more_than_ten_points():
    found = left_out.with_outcome([("A", 5.0, 95.0), ("A", 6.0, 85.0), ("B", 7.0, 84.9)])
    assert [value.bad for value in found] == [False, False, True]
