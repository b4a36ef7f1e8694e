"""The paper's claims: contrasts of hand-made cells, their verdicts, and the pages."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sfrik.errors import SfrikError
from sfrik.runs.correctness import pack
from sfrik.system.files import read_json, write_json
from sfrik.tables import contrasts
from sfrik.tables.claim_pages import claims_as_markdown, write_claims
from sfrik.tables.claims import claims, verdict
from sfrik.tables.contrasts import families
from sfrik.tables.definitions import grids, rows_of, tables_of
from sfrik.tables.inference import Estimate, estimate
from sfrik.tables.rows import paper_figures


def score(root, recipe, *values, seeds=None, protocol="logistic", profile="digits", **content):
    for seed, value in zip(seeds or range(len(values)), values, strict=True):
        folder = root / profile / recipe / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{protocol}.json", {"protocol": protocol, "top1": value, **content})


def result(root, title, profile="digits", family="accuracy"):
    (found,) = [r for f, results in claims(profile, root) if f.name == family for r in results if r.contrast.title == title]
    return found


def line(text, title):
    """The cells of the first line of a page with the contrast."""
    found = next(line for line in text.splitlines() if f"[{title}](" in line)
    return [cell.strip() for cell in found.split("|")][1:-1]


# --- the file of contrasts


def test_the_contrasts_of_each_profile():
    written = tomllib.loads((Path(contrasts.__file__).parent / "contrasts.toml").read_text(encoding="utf-8"))
    of = {profile: {family.name: family for family in families(profile)} for profile in ("digits", "photos", "smoke", "paper")}
    everywhere = [
        "L = 2 - L = 1",
        "L = 2 - (L = 1, b_1 = 41)",
        "L = 3 - L = 2",
        "L = 3 - Gaussian kernel",
        "L = 3 - power kernel",
        "L = 3 - VICReg",
        "L = 3 - AUH",
        "loss of VICReg - loss of L = 2",
    ]
    assert [c["title"] for c in written["accuracy"]["contrast"]] == [
        *everywhere,
        "VICReg - L = 3, 1 % of the labels",
        "L = 3 - VICReg, transfer",
    ]
    control = "digits/sfrik_l1_b41_q512" in [row.recipe for row in rows_of("table2", "digits")]
    pending = set() if control else {"L = 2 - (L = 1, b_1 = 41)"}
    on_photos = [contrast.title for contrast in of["photos"]["accuracy"].contrasts]
    assert [title for title in everywhere if "b_1" not in title] == [title for title in on_photos if "b_1" not in title]
    on_digits = {contrast.title for contrast in of["digits"]["accuracy"].contrasts}
    assert {contrast["title"] for contrast in written["accuracy"]["contrast"]} - on_digits == pending
    assert [c.title for c in of["digits"]["cost"].contrasts] == [c["title"] for c in written["cost"]["contrast"]]
    assert (of["digits"]["accuracy"].margin, of["digits"]["cost"].margin) == (0.5, 5.0)
    assert {contrast.column for contrast in of["photos"]["accuracy"].contrasts} == {"logistic_top1"}
    assert "cost" not in of["photos"]
    assert "loss of VICReg - loss of L = 2" not in {c.title for c in of["smoke"]["accuracy"].contrasts}, "it has one q"


def test_a_contrast_takes_the_largest_and_smallest_q_of_the_profile_and_the_figures_of_the_paper():
    (found,) = [c for c in families("photos")[0].contrasts if c.title.startswith("loss of VICReg")]
    assert [(cells.method, cells.q) for cells in (*found.higher, *found.lower)] == [
        ("VICReg", 512),
        ("SFRIK L=2", 128),
        ("VICReg", 128),
        ("SFRIK L=2", 512),
    ]
    figures = paper_figures()["linear_in20"]
    vicreg, l2 = figures["VICReg"], figures["SFRIK_L2"]
    assert figures["q"][1::2] == [2048, 8192]
    assert found.paper == f"from q = 8192 to 2048 VICReg {vicreg[3]} to {vicreg[1]} %, L = 2 {l2[3]} to {l2[1]} %"
    assert families("digits")[0].contrasts[0].paper == "47.0 against 27.7 %"


# --- contrasts


def test_the_seeds_that_all_rows_have_are_paired(tmp_path):
    score(tmp_path, "sfrik_l3_q512", 96.0, 96.9, 95.1, 94.0)
    score(tmp_path, "sfrik_l2_q512", 94.2, 95.5, 96.1, 10.0, seeds=(2, 0, 1, 7))
    found = result(tmp_path, "L = 3 - L = 2").estimate
    expected = stats.ttest_rel([96.0, 96.9, 95.1], [95.5, 96.1, 94.2])
    assert found.n == 3
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_a_difference_of_differences_and_a_row_that_is_the_same_for_all_seeds(tmp_path):
    for recipe, values in {"vicreg_q512": (90.0, 91.0), "vicreg_q128": (80.0, 82.0), "sfrik_l2_q512": (90.0, 90.0)}.items():
        score(tmp_path, recipe, *values)
    score(tmp_path, "sfrik_l2_q128", 89.0, 89.0)
    assert result(tmp_path, "loss of VICReg - loss of L = 2").estimate == estimate([10.0 - 1.0, 9.0 - 1.0])


def test_one_seed_has_no_interval_and_a_missing_cell_no_contrast(tmp_path):
    score(tmp_path, "sfrik_l2_q512", 90.0, 92.0)
    assert result(tmp_path, "L = 2 - L = 1").verdict == "not measured"
    score(tmp_path, "sfrik_l1_q512", 40.0)
    found = line(claims_as_markdown("digits", tmp_path), "L = 2 - L = 1")
    assert found[3:] == ["+50.00", "1", "–", "–", "undecided (one seed)", "–"]
    score(tmp_path, "sfrik_l1_q512", 42.0, seeds=(1,))
    assert result(tmp_path, "L = 2 - L = 1").verdict == "undecided (no spread)"


@pytest.mark.parametrize(
    ("mean", "error", "p", "p_equal", "expected"),
    [
        (5.0, 1.0, 0.04, 1.0, "holds"),
        (-5.0, 1.0, 0.04, 1.0, "does not hold"),
        (5.0, 1.0, 0.06, 1.0, "undecided"),
        (0.1, 0.1, 0.9, 0.04, "equal within the margin"),
        (0.3, 0.01, 0.001, 0.04, "equal within the margin"),
        (-0.3, 0.01, 0.001, 0.06, "does not hold"),
    ],
)
def test_the_four_verdicts(mean, error, p, p_equal, expected):
    assert verdict(Estimate(10, mean, error, 9), p, p_equal) == expected


def test_a_verdict_has_the_correction_of_all_contrasts_of_the_family_measured_or_not(tmp_path):
    differences = [1.0, 1.3, 0.8, 1.1]
    score(tmp_path, "sfrik_l2_q512", *[90.0] * 4)
    score(tmp_path, "sfrik_l1_q512", *[90.0 - each for each in differences])
    found, size = result(tmp_path, "L = 2 - L = 1"), len(families("digits")[0].contrasts)
    assert found.p == pytest.approx(size * stats.ttest_1samp(differences, 0).pvalue)
    assert found.verdict == "holds"
    score(tmp_path, "sfrik_l1_q512", 89.0, 88.7, 89.6, 89.2)
    found = result(tmp_path, "L = 2 - L = 1")
    assert (found.estimate.p < 0.05 < found.p, found.verdict) == (True, "undecided")


# --- the test images


def with_bits(root, recipe, correct, protocol="logistic", **content):
    for seed, each in enumerate(correct):
        score(root, recipe, 100 * each.mean(), seeds=(seed,), protocol=protocol, correct=pack(each), images=len(each), **content)


def test_the_bits_of_the_scores_bring_in_the_error_of_the_test_images(tmp_path):
    rng = np.random.default_rng(0)
    l3, l2 = rng.random((2, 4, 300)) < 0.9 - 0.3 * (rng.random(300) < 0.3)
    with_bits(tmp_path, "sfrik_l3_q512", l3)
    with_bits(tmp_path, "sfrik_l2_q512", l2)
    found, on_images = result(tmp_path, "L = 3 - L = 2").estimate, 100.0 * l3 - 100.0 * l2
    expected = estimate(on_images.mean(axis=1).tolist(), on_images)
    assert (found.mean, found.error, found.df) == pytest.approx((expected.mean, expected.error, expected.df))
    assert found.images == pytest.approx(on_images.mean(axis=0).std() / 300**0.5)
    assert line(claims_as_markdown("digits", tmp_path), "L = 3 - L = 2")[5] == f"{found.images:.2f}"
    path = tmp_path / "digits" / "sfrik_l2_q512" / "seed3" / "logistic.json"
    whole = read_json(path)
    for other in ({"correct": None}, {"broken_images": {"test": ["1.png"]}}, {"data": {"test": {"images": 300, "sha256": "b"}}}):
        write_json(
            path,
            {**whole, **other, "data": {"test": {"images": 300, "classes": 10, "sha256": "b"}}}
            if "data" in other
            else {**whole, **other},
        )
        without = result(tmp_path, "L = 3 - L = 2").estimate
        assert (without.n, without.images, without.df) == (4, None, 3), other
    for text, message in (("no base64", "not base64"), (pack(~l2[3]), "not those of top1")):
        write_json(path, {**whole, "correct": text})
        with pytest.raises(SfrikError, match=rf"seed3/logistic\.json: .*{message}"):
            claims("digits", tmp_path)


def test_the_bits_of_20_nn_are_those_of_20_neighbours(tmp_path):
    rng = np.random.default_rng(0)
    for recipe in ("sfrik_l3_q512", "sfrik_l2_q512"):
        for seed in (0, 1):
            at = {"10": rng.random(50) < 0.5, "20": rng.random(50) < 0.8}
            top1 = {k: 100 * each.mean() for k, each in at.items()}
            bits = {k: pack(each) for k, each in at.items()}
            score(tmp_path, recipe, 0.0, seeds=(seed,), protocol="knn", top1_at=top1, correct_at=bits, images=50)
    assert result(tmp_path, "L = 3 - L = 2").secondary["knn_top1"].images > 0


# --- costs


def test_costs_are_compared_in_percent_and_paired_by_repetition(tmp_path):
    times = {
        "VICReg plain": (64.0, 66.0, 60.0),
        "SFRIK L=3 plain": (8.0, 8.5, 7.4),
        "VICReg": (4.0, 4.1, 3.9),
        "SFRIK L=3": (4.02, 4.1, 3.93),
    }
    memory = {"VICReg plain": 1600.0, "SFRIK L=3 plain": 200.0, "VICReg": 64.0, "SFRIK L=3": 70.0}
    for seed in range(3):
        folder = tmp_path / "digits" / "complexity" / f"seed{seed}"
        folder.mkdir(parents=True)
        entries = {f"{m} q=8192 n=512": {"loss_products": times[m][seed], "loss_mib": memory[m], "step_ms": 0.0} for m in times}
        write_json(folder / "table6.json", {**entries, "hardware": "cpu"})
    (results,) = [results for family, results in claims("digits", tmp_path) if family.name == "cost"]
    plain, fast = ({r.contrast.title: r for r in results[k : k + 7]} for k in (0, 7))
    time = "time of the loss, q = 8192"
    assert plain[time].estimate == estimate([100 * (1 - b / a) for a, b in zip(*list(times.values())[:2], strict=True)])
    assert (plain[time].verdict, fast[time].verdict) == ("holds", "equal within the margin")
    mib = "memory of the loss, q = 8192"
    assert (plain[mib].estimate.mean, plain[mib].verdict) == (87.5, "holds")
    assert (fast[mib].estimate.mean, fast[mib].verdict) == (pytest.approx(-9.375), "does not hold")
    assert plain["time of a step, q = 8192"].verdict == "not measured", "a cost of 0 has no ratio"


# --- the pages


def test_the_page_has_a_line_for_every_contrast_and_marks_those_not_measured(tmp_path):
    text = claims_as_markdown("digits", tmp_path)
    rows = [row for row in text.splitlines() if "](tables/table" in row]
    assert len(rows) == sum(len(family.contrasts) for family in families("digits"))
    assert all("| not measured |" in row for row in rows)
    assert max(row.count("|") for row in text.splitlines()) == 10, "at most nine columns"
    assert "of which 0 are measured" in text


def test_the_page_of_photos_has_the_claims_whose_tables_it_has(tmp_path):
    for recipe, values in (("sfrik_l2_q512", (50.0, 50.8)), ("sfrik_l1_q512", (49.0, 49.5))):
        score(tmp_path, recipe, *values, profile="photos")
        score(tmp_path, recipe, *values, profile="photos", protocol="linear")
    page = write_claims("photos", tmp_path).read_text(encoding="utf-8")
    assert line(page, "L = 2 - L = 1")[3:5] == ["+1.15 [-0.76, +3.06]", "2"]
    assert "\n| L = 2 - L = 1 | – | +1.15 [-0.76, +3.06] |" in page
    assert "\n10,000 of CIFAR-10's training images, its 10,000 test images; an eight-layer ResNet" in page
    assert {name: f"tables/{name}.md)" in page.splitlines()[-2] for name in tables_of("photos")} == {
        "table1": True,
        "table2": False,
        "table7": False,
        "table9": False,
    }
    assert "table 9" not in page
    assert write_claims("smoke", tmp_path) is None
    assert not (tmp_path / "smoke").exists()
    assert not (tmp_path / "claims.md").exists(), "with one profile there is nothing to put beside it"


def test_profiles_are_put_beside_each_other(tmp_path):
    for profile, values in (("digits", (94.0, 94.1, 93.8)), ("photos", (49.0,))):
        score(tmp_path, "sfrik_l3_q512", 95.0, 95.3, 94.6, seeds=(0, 1, 2), profile=profile)
        score(tmp_path, "sfrik_l2_q512", *values, profile=profile)
    write_claims("photos", tmp_path)
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| Degree 3 helps")]
    found = result(tmp_path, "L = 3 - L = 2")
    low, high = found.estimate.interval
    digits = f"+1.00 [{low:+.2f}, {high:+.2f}] | 3; {found.p:.3f} | {found.verdict}"
    assert row.endswith(f"| 47.5 against 47.0 % | {digits} | +46.00 | 1; – | undecided (one seed) |")
    assert "[digits](digits/README.md) · [photos](photos/README.md)" in text
    assert len([line for line in text.splitlines() if "not measured" in line]) >= 8


def test_choices_at_the_edge_of_a_grid_of_two_settings_are_named_with_the_settings(tmp_path):
    for name, chosen in (("vicreg_q128", 0), ("vicreg_q512", 4), ("auh_q512", 3)):  # of 3 x 3: a corner, the middle, one side
        recipe = grids("photos")[name][chosen].split("/")[1]
        write_json(tmp_path / "photos" / "tuning" / f"{name}.json", {"chosen": recipe})
    page = write_claims("photos", tmp_path).read_text(encoding="utf-8")
    corner, side = (grids("photos")[name][k].split("/")[1] for name, k in (("vicreg_q128", 0), ("auh_q512", 3)))
    assert f"{side} (base_lr), {corner} (vicreg_sim_coeff = vicreg_std_coeff, base_lr)." in page
