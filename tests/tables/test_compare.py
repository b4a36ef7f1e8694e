"""Did I reproduce it? Two folders of results compared cell by cell, and the table as plain text in a terminal's width."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfrik.cli import compare as command
from sfrik.cli import main
from sfrik.reproduce import table as table_module
from sfrik.settings import recipe_settings
from sfrik.system.files import read_json, write_json
from sfrik.system.terminal import text_width
from sfrik.tables.collect import build_table
from sfrik.tables.compare import compare_tables, prediction_interval, provenance_differences
from sfrik.tables.definitions import EXPERIMENTS
from sfrik.tables.text import agreement, as_text

RESULTS = Path(__file__).parents[2] / "results"
RECIPE = "sfrik_l2_q512"


def write_scores(root, recipe=RECIPE, images=1000, **columns):
    """Write scores of seeds 0, 1, ... of a recipe: {protocol: top-1 of each seed}."""
    for protocol, values in columns.items():
        for seed, value in enumerate(values):
            folder = root / "digits" / recipe / f"seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            found = {"top1_at": {"20": value}} if protocol == "knn" else {"top1": value}
            write_json(folder / f"{protocol}.json", {"protocol": protocol, "images": images, **found})


def record(root, recipe=RECIPE, **facts):
    folder = root / "digits" / recipe / "seed0"
    hardware = {"device": "cpu: A", "precision": "bf16", "processes": 1, "threads": 1}
    versions = {"torch": facts.pop("torch", "2.14.1")}
    commit = facts.pop("commit", "01234567890123456789")
    write_json(folder / "provenance.json", {"commit": commit, "hardware": hardware | facts, "versions": versions})


@pytest.fixture
def roots(tmp_path):
    """A folder without results, and one with three published seeds of one recipe: linear probing 93 ± 1, and kNN 70 ± 0."""
    write_scores(tmp_path / "results", linear=[92.0, 93.0, 94.0], knn=[70.0, 70.0, 70.0])
    return tmp_path / "runs", tmp_path / "results"


def cell(comparison, column="linear_top1", recipe=RECIPE):
    (found,) = [c for c in comparison.cells if c.column.name == column and c.row.recipe == f"digits/{recipe}"]
    return found


# --- the interval


def test_the_interval_is_the_textbooks():
    # 90, 92, 97: mean 93, s = sqrt((9 + 1 + 16) / 2) = sqrt(13); t(0.975, 2) = 4.302653 in every table
    low, high = prediction_interval([90.0, 92.0, 97.0], n=1)
    assert (low + high) / 2 == pytest.approx(93.0)
    assert (high - low) / 2 == pytest.approx(4.302653 * math.sqrt(13 * 4 / 3), rel=1e-6)
    low, high = prediction_interval([90.0, 92.0, 97.0], n=3)
    assert (high - low) / 2 == pytest.approx(4.302653 * math.sqrt(13 * 2 / 3), rel=1e-6)


@pytest.mark.parametrize(("published", "new"), [(2, 1), (3, 1), (3, 3), (5, 2)])
def test_the_mean_of_new_seeds_is_in_the_interval_with_95_percent(published, new):
    trials, random = 2000, np.random.default_rng(10 * published + new)
    inside = 0
    for old, others in zip(random.normal(90, 2, (trials, published)), random.normal(90, 2, (trials, new)), strict=True):
        low, high = prediction_interval(old.tolist(), new)
        inside += low <= others.mean() <= high
    assert abs(inside - 0.95 * trials) < 4 * math.sqrt(0.95 * 0.05 * trials)  # four standard deviations of the count


# --- cells


@pytest.mark.parametrize(
    ("values", "agree"), [([97.9], True), ([98.1], False), ([88.1], True), ([87.9], False), ([97.9, 97.9], False)]
)
def test_a_cell_agrees_if_the_mean_is_in_the_interval_of_so_many_seeds(roots, values, agree):
    write_scores(roots[0], linear=values)  # t(0.975, 2) sqrt(1 / k + 1 / 3) is 4.968 for one seed and 3.928 for two
    found = cell(compare_tables("table1", "digits", *roots))
    assert (found.mean_a, found.n_a, found.mean_b, found.n_b, found.reason) == (values[0], len(values), 93.0, 3, "")
    half = {1: 4.968, 2: 3.928}[len(values)]
    assert found.interval == pytest.approx((93 - half, 93 + half), abs=1e-3)
    assert found.agree is agree


@pytest.mark.parametrize(("images", "step"), [(1000, 0.1), (100, 1.0), (50_000, 0.1), (None, 0.1)])
def test_equal_published_values_allow_one_test_image_or_one_unit_of_the_last_decimal(roots, images, step):
    write_scores(roots[1], images=images, knn=[70.0, 70.0, 70.0])
    for steps, agree in ((0, True), (1, True), (-1, True), (1.1, False), (-1.1, False)):
        write_scores(roots[0], images=images, knn=[70.0 + steps * step])
        assert cell(compare_tables("table1", "digits", *roots), "knn_top1").agree is agree


def test_cells_that_are_missing_or_have_one_published_seed_are_not_compared(roots):
    write_scores(roots[0], linear=[93.0])
    write_scores(roots[0], "vicreg_q256", linear=[90.0])
    write_scores(roots[0], "vicreg_q512", linear=[90.0])
    write_scores(roots[1], "vicreg_q512", linear=[90.0])
    comparison = compare_tables("table1", "digits", *roots)
    assert cell(comparison, "knn_top1").reason == "missing in A"
    assert cell(comparison, recipe="vicreg_q256").reason == "missing in B"
    assert cell(comparison, recipe="vicreg_q512").reason == "one seed in B"
    assert comparison.reasons == {"missing in both": 48 - 4, "missing in A": 1, "missing in B": 1, "one seed in B": 1}
    assert all(c.agree is None and c.interval is None for c in comparison.cells if c.reason)
    assert (len(comparison.compared), comparison.outside) == (1, [])


def test_the_first_seeds_are_compared_if_their_number_is_given(roots):
    write_scores(roots[0], linear=[80.0, 93.0])
    assert cell(compare_tables("table1", "digits", *roots, seeds=1)).mean_a == 80.0
    assert cell(compare_tables("table1", "digits", *roots)).mean_a == 86.5


def test_of_costs_ratios_and_memory_are_compared_and_times_are_not():
    comparison = compare_tables("table5", "digits", RESULTS, RESULTS)
    compared = {c.column.name for c in comparison.compared}
    assert compared == {"loss_products", "loss_mib", "loss_time_ratio", "loss_memory_ratio"}
    assert {c.column.name for c in comparison.cells if c.reason == "a time"} == {"product_ms", "loss_ms"}
    baseline = [c for c in comparison.cells if c.row.method == "VICReg plain" and c.column.name.endswith("ratio")]
    assert baseline
    assert {c.reason for c in baseline} == {"1 by definition"}


# --- real runs: seeds that were not published, and ten times the learning rate


RECORDED = json.loads(Path(__file__).with_name("recorded_scores.json").read_text(encoding="utf-8"))


def place(root, runs):
    """Write recorded scores and metrics of tables 1 and 2 as runs of their recipes."""
    for recipe, seeds in runs.items():
        for seed, found in seeds.items():
            folder = root / "digits" / recipe / f"seed{seed}"
            folder.mkdir(parents=True)
            for protocol in ("linear", "logistic", "knn"):
                value = {"top1_at": {"20": found[protocol]}} if protocol == "knn" else {"top1": found[protocol]}
                write_json(folder / f"{protocol}.json", {"protocol": protocol, "images": 1000, **value})
            (folder / "metrics.jsonl").write_text(json.dumps(found["metrics"]) + "\n", encoding="utf-8")


def test_other_seeds_agree_with_the_published_ones(tmp_path):
    place(tmp_path / "a", RECORDED["runs"])
    place(tmp_path / "b", RECORDED["published"])
    for name, cells in (("table1", 3 * len(RECORDED["runs"])), ("table2", 6)):
        comparison = compare_tables(name, "digits", tmp_path / "a", tmp_path / "b")
        assert (len(comparison.compared), comparison.outside) == (cells, [])


def test_ten_times_the_learning_rate_does_not_agree(tmp_path):
    place(tmp_path / "a", RECORDED["base_lr_100"])
    place(tmp_path / "b", RECORDED["published"])
    first, second = (compare_tables(name, "digits", tmp_path / "a", tmp_path / "b") for name in ("table1", "table2"))
    assert {(cell.row.method, cell.column.name) for cell in first.outside} == {("SimCLR", "linear_top1"), ("SimCLR", "knn_top1")}
    assert {cell.column.name for cell in second.outside} == {"uniformity", "effective_rank"}
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "table2"]) == 1


def test_the_numbers_of_these_runs_on_the_page_are_the_recorded_ones(tmp_path):
    place(tmp_path / "a", RECORDED["base_lr_100"])
    place(tmp_path / "b", RECORDED["published"])
    both = [compare_tables(name, "digits", tmp_path / "a", tmp_path / "b") for name in ("table1", "table2")]
    cells = {(cell.row.method, cell.column.name): cell for comparison in both for cell in comparison.compared}
    simclr, sfrik, rank = (
        (cells[key].mean_a, *cells[key].interval)
        for key in (("SimCLR", "linear_top1"), ("SFRIK L=3", "linear_top1"), ("MMD", "effective_rank"))
    )
    page = " ".join((RESULTS.parent / "docs" / "reproducibility.md").read_text(encoding="utf-8").split())
    assert "scores {:.1f} % by linear probing, expected {:.1f} to {:.1f} %".format(*simclr) in page
    assert "its {:.1f} % is still between {:.1f} and {:.1f} %".format(*sfrik) in page
    assert "an effective rank of {:.1f} (expected {:.0f} to {:.0f})".format(*rank) in page


# --- text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_published_table_fits_48_80_and_140_columns_and_agrees_with_itself(name, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    comparison = compare_tables(name, "digits", RESULTS, RESULTS)
    assert comparison.compared
    assert comparison.outside == []
    blocks = {}
    for width in (48, 80, 140):
        lines = [*as_text(comparison, width), *agreement([comparison], width)]
        assert max(map(text_width, lines)) <= width
        text = "\n".join(lines)
        assert not re.search(r"\]\(|\*\*|\|\s*---", text)
        assert f"{len(comparison.compared)} of {len(comparison.compared)} cells agree with the published ones" in text
        headings = [line for line in lines if "yours" in line.split()]
        blocks[width] = len(headings)
        assert sum(line.split().count("yours") for line in headings) == len(comparison.a.columns)
        for cell in comparison.cells:
            assert cell.mean_a is None or f"{cell.mean_a:.{cell.column.digits}f}" in text
    assert blocks[140] < blocks[80] or blocks[80] == 1


def test_a_table_shows_yours_the_published_and_the_papers_figure_and_no_deviation_of_one_seed(roots):
    write_scores(roots[0], linear=[93.5])
    lines = as_text(compare_tables("table1", "digits", *roots), 80)
    line, *_ = [line for line in lines if re.match("SFRIK L=2 +512", line)]
    assert re.sub(" +", " ", line).startswith("SFRIK L=2 512 93.5 93.0 ± 1.0 47.0 (8192)")
    assert "paper (q)" in " ".join(lines)
    assert "Yours: n = 1. Published: mean ± standard deviation, n = 3. Paper: the paper's figures" in " ".join(lines)
    write_scores(roots[0], linear=[93.0, 94.0])
    write_scores(roots[0], "vicreg_q256", linear=[90.0])
    write_scores(roots[0], "vicreg_q512", linear=[90.0, 90.0])
    lines = as_text(compare_tables("table1", "digits", *roots), 80)
    assert any(re.match(r"SFRIK L=2 +512 +93\.5 ± 0\.7 +93\.0 ± 1\.0 ", line) for line in lines)
    assert any(re.match(r"VICReg +256 +90\.0 +\(1\) +– ", line) for line in lines)
    assert "n = 2 where no other is in brackets." in " ".join(lines)


def test_the_best_value_of_a_column_is_bold_on_a_terminal_only(roots, monkeypatch):
    for recipe, linear in ((RECIPE, 93.5), ("vicreg_q512", 91.0), ("simclr_q512", 93.5)):
        write_scores(roots[0], recipe, linear=[linear], knn=[50.0])
    table = compare_tables("table1", "digits", *roots)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert "\x1b" not in "".join(as_text(table, 80))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert re.findall("\x1b\\[1m *(.*?)\x1b", "\n".join(as_text(table, 80))) == ["93.5", "93.5"]  # and none of equal values


def test_lower_costs_are_better_at_the_same_size_and_an_effective_rank_is_not(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")

    def bold(name, column):
        table = compare_tables(name, "digits", RESULTS, RESULTS)
        one = replace(table, a=replace(table.a, columns=[c for c in table.a.columns if c.name == column]))
        return re.findall("\x1b\\[1m *(.*?)\x1b", "\n".join(as_text(one, 80)))

    lowest = min(build_table("table2", "digits", RESULTS).measured, key=lambda m: m.mean("alignment"))
    assert bold("table2", "alignment") == [f"{lowest.mean('alignment'):.3f} ± {lowest.spread('alignment'):.3f}"]
    assert bold("table2", "effective_rank") == []
    assert bold("table5", "loss_mib") == ["16 ± 0", "32 ± 0", "64 ± 0", "128 ± 0", "128 ± 0"]  # one for each batch size, or two
    assert bold("table5", "product_ms") == []


# --- agreement


def test_cells_outside_are_listed_with_what_differs_between_the_runs(roots):
    write_scores(roots[0], linear=[80.0], knn=[70.0])
    record(roots[0], threads=2, torch="2.10.0", commit="fedcba98765432100123-dirty")
    record(roots[1])
    text = "\n".join(agreement([compare_tables("table1", "digits", *roots)], 140, measure="make table1"))
    assert text.startswith("1 of 2 cells agree with the published ones (95 % prediction interval).\n")
    assert "\n  SFRIK L=2, q = 512, linear probing, %: 80.00, expected 88.03 to 97.97\n" in text
    theirs = "published: 1 thread, torch 2.14.1, code 012345678901."
    assert f"What differs: yours: 2 threads, torch 2.10.0, code fedcba987654-dirty; {theirs}" in text.replace("\n", " ")
    assert "Not compared: 46 missing in both." in text


def test_other_images_are_named_where_both_record_theirs(roots):
    write_scores(roots[0], linear=[80.0])
    for root, images, digest in ((roots[0], 900, "aaaaaaaaaa"), (roots[1], 1000, "bbbbbbbbbb")):
        path = root / "digits" / RECIPE / "seed0" / "linear.json"
        test = {"images": images, "classes": 10, "sha256": digest}
        write_json(path, {**read_json(path), "data": {"test": test, "train": {"images": 3500, "classes": 10, "sha256": "c"}}})
    settings = recipe_settings(f"digits/{RECIPE}", 0)  # published records of earlier releases do not have the key data
    data = {"images": 3000, "classes": 10, "sha256": "d"}
    record = {"version": 1, "hash": settings.hash(), "settings": settings.what(), "data": data}
    write_json(roots[0] / "digits" / RECIPE / "seed0" / "settings.json", record)
    text = " ".join(agreement([compare_tables("table1", "digits", *roots)], 200))
    assert "What differs: yours: test images 900 (SHA-256 aaaaaaaa); published: test images 1000 (SHA-256 bbbbbbbb)." in text


def test_what_is_the_same_in_both_is_not_named(roots):
    write_scores(roots[0], linear=[80.0])
    for root in roots:
        record(root)
    comparison = compare_tables("table1", "digits", *roots)
    assert provenance_differences([comparison]) == ({}, {})
    text = " ".join(agreement([comparison], 140, measure="make table1"))
    assert "name no difference; most often it is the precision" in text
    assert "1 missing in your results. To measure what is missing: make table1" in text
    write_scores(roots[0], linear=[93.0])
    assert "differ" not in " ".join(agreement([compare_tables("table1", "digits", *roots)], 140))


def test_a_table_that_is_not_published_is_one_line(roots):
    write_scores(roots[0], linear=[80.0])
    comparison = compare_tables("table8", "digits", *roots)
    assert agreement([comparison], 80) == ["Nothing is published for table8 in profile digits: nothing to compare with."]
    assert "published" not in "".join(as_text(comparison, 80))


def test_published_scores_that_cannot_be_shown_are_counted_with_a_reason(roots):
    write_scores(roots[0], linear=[93.0])
    for seed in range(3):
        write_json(roots[1] / "digits" / RECIPE / f"seed{seed}" / "settings.json", {"hash": "0", "settings": {"epochs": 1}})
    text = " ".join(agreement([compare_tables("table1", "digits", *roots)], 80))
    assert "Nothing is published for table1" in text
    assert f"Left out of the published ones: 3, such as digits/{RECIPE} seed 0: settings.json was edited" in text


# --- the commands


def compare(capsys, *arguments):
    """The exit status, stdout and stderr of `sfrik compare`."""
    capsys.readouterr()
    status = main(["compare", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_compare_ends_with_1_if_a_cell_does_not_agree(roots, capsys):
    write_scores(roots[0], linear=[93.5], knn=[70.0])
    status, out, _ = compare(capsys, *roots)
    assert status == 0
    assert out.startswith(f"A: {roots[0]}, B: {roots[1]}\n")
    for name in ("table1", "table4", "table7"):
        assert (f"{name}: 2 of 2 cells agree with those of B" in out) == any(m.row.recipe.endswith(RECIPE) for m in rows(name))
    write_scores(roots[0], linear=[70.0], knn=[70.0])
    status, out, _ = compare(capsys, *roots, "table1")
    assert status == 1
    assert "linear probing, %" in out  # the table itself, since it is named
    assert "1 of 2 cells agree with those of B" in out
    status, out, _ = compare(capsys, "--json", "table1", *roots)
    assert status == 1
    found = json.loads(out)
    assert {name: found[name] for name in ("a", "b", "profile", "compared", "agree")} == {
        "a": str(roots[0]), "b": str(roots[1]), "profile": "digits", "compared": 2, "agree": 1
    }  # fmt: skip
    cells = {(c["recipe"], c["column"]): c for c in found["tables"][0]["cells"]}
    assert len(cells) == 48
    linear = cells[f"digits/{RECIPE}", "linear_top1"]
    assert (linear["mean_a"], linear["n_a"], linear["sd_a"], linear["mean_b"], linear["n_b"]) == (70.0, 1, None, 93.0, 3)
    assert (linear["sd_b"], linear["agree"], linear["reason"]) == (1.0, False, "")
    assert linear["interval"] == pytest.approx([88.032, 97.968], abs=1e-3)
    other = cells["digits/raw_pixels", "knn_top1"]
    assert (other["agree"], other["interval"], other["reason"]) == (None, None, "missing in both")


def rows(name):
    return compare_tables(name, "digits", "nowhere", "nowhere").a.measured


def test_compare_takes_runs_and_results_by_default(roots, capsys, monkeypatch):
    write_scores(roots[0], linear=[93.5], knn=[70.0])
    monkeypatch.setattr(command, "published_root", lambda: roots[1])
    monkeypatch.setattr(command, "runs_root", lambda: roots[1].parent / "nothing")
    status, _, err = compare(capsys, "--profile", "digits")
    assert status == 2
    assert err.endswith(": python -m sfrik table table1 --profile digits\n")
    monkeypatch.setattr(command, "runs_root", lambda: roots[0])
    assert "2 of 2 cells agree with the published ones" in compare(capsys, "table1")[1]
    assert "2 of 2 cells agree with the published ones" in compare(capsys, roots[0], "table1")[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["A", "A"], ["are the same folder"]),
        (["A", "nowhere"], ["there are no results of profile digits in nowhere", "with digits/ in it"]),
        (["A", "tabel1"], ["there are no results", "did you mean table1?"]),
        (["A", "B", "C"], ["two folders are compared, got 3"]),
        (["A", "B", "table8"], ["table8 has no scores in", "python -m sfrik table table8 --profile digits --results"]),
        (["A", "B", "--profile", "smok"], ["did you mean smoke?"]),
    ],
)
def test_compare_refuses_what_has_nothing_in_one_line(roots, capsys, given, words):
    write_scores(roots[0], linear=[93.0])
    places = {"A": str(roots[0]), "B": str(roots[1])}
    status, out, err = compare(capsys, *(places.get(name, name) for name in given))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert all(word in err for word in words), err


def test_a_table_is_printed_beside_the_published_one_and_ends_with_0_where_cells_disagree(roots, capsys, monkeypatch):
    write_scores(roots[0], linear=[70.0], knn=[70.0])
    monkeypatch.setattr(table_module, "published_root", lambda: roots[1])
    monkeypatch.setattr(table_module, "execute", lambda *given: None)
    monkeypatch.setenv("COLUMNS", "80")
    assert table_module.make_table("table1", "digits", render_only=True, root=roots[0]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(text_width, lines)) <= 80
    assert "1 of 2 cells agree with the published ones (95 % prediction interval)." in lines
    assert not any("](" in line for line in lines)
    assert "to measure what is missing: python -m sfrik table table1" not in " ".join(
        lines
    )  # nothing that is published is missing
