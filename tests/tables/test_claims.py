"""The verdicts on the paper's claims, from contrasts of hand-made cells."""

from __future__ import annotations

import math

import pytest

from sfrik.system.files import write_json
from sfrik.tables.claim_pages import PAGES
from sfrik.tables.claims import Contrast, claims, claims_as_markdown, value_and_error, verdict, write_claims
from sfrik.tables.collect import build_table
from sfrik.tables.definitions import grids, tables_of


def linear(root, recipe, *values, profile="digits"):
    for seed, value in enumerate(values):
        folder = root / profile / recipe / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "linear.json", {"protocol": "linear", "top1": value})


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (5.0, 2.4, "holds"),
        (5.0, 2.5, "not decided"),
        (-5.0, 2.5, "not decided"),
        (-5.0, 2.4, "does not hold"),
        (0, 0, "not decided"),
        (5.0, None, "not decided (one seed)"),
    ],
)
def test_a_claim_is_decided_beyond_two_standard_errors(value, error, expected):
    assert verdict(value, error) == expected


def test_the_standard_error_is_that_of_a_difference_of_means(tmp_path):
    linear(tmp_path, "sfrik_l2_q512", 90.0, 92.0, 97.0)
    linear(tmp_path, "sfrik_l1_q512", 40.0, 40.0, 43.0)
    contrast = Contrast("", "table1", "linear_top1", {("SFRIK L=2", 512): 1.0, ("SFRIK L=1", 512): -1.0})
    value, error, n = value_and_error(contrast, build_table("table1", "digits", tmp_path))
    # variances 13 and 3 of n = 3
    assert (value, n) == (pytest.approx(52.0), 3)
    assert error == pytest.approx(math.sqrt((13 + 3) / 3))


def test_a_single_seed_has_no_error_and_a_missing_cell_no_contrast(tmp_path):
    contrast = Contrast("", "table1", "linear_top1", {("SFRIK L=2", 512): 1.0, ("SFRIK L=1", 512): -1.0})
    linear(tmp_path, "sfrik_l2_q512", 90.0, 92.0)
    assert value_and_error(contrast, build_table("table1", "digits", tmp_path)) is None
    linear(tmp_path, "sfrik_l1_q512", 40.0)
    assert value_and_error(contrast, build_table("table1", "digits", tmp_path)) == (pytest.approx(51.0), None, 1)
    line = next(line for line in claims_as_markdown("digits", tmp_path).splitlines() if "linear probing" in line)
    assert line.endswith("| [linear probing](tables/table1.md) | +51.00 | 1 | not decided (one seed) |")


def test_a_contrast_can_have_a_constant_and_be_a_difference_of_differences(tmp_path):
    for recipe, values in {"vicreg_q512": (90.0, 90.0), "vicreg_q128": (80.0, 82.0), "sfrik_l2_q512": (90.0, 90.0)}.items():
        linear(tmp_path, recipe, *values)
    linear(tmp_path, "sfrik_l2_q128", 89.0, 89.0)
    rows = {("VICReg", 512): 1.0, ("VICReg", 128): -1.0, ("SFRIK L=2", 512): -1.0, ("SFRIK L=2", 128): 1.0}
    value, error, _ = value_and_error(
        Contrast("", "table1", "linear_top1", rows, constant=0.5), build_table("table1", "digits", tmp_path)
    )
    assert (value, error) == (pytest.approx(0.5 + 9.0 - 1.0), pytest.approx(1.0))


@pytest.mark.parametrize("profile", PAGES)
def test_every_contrast_refers_to_cells_of_its_table(profile):
    for claim in claims(profile):
        for contrast in claim.contrasts:
            table = build_table(contrast.table, profile, "nowhere")
            rows = {(m.row.method, m.row.q, *m.row.labels.values()) for m in table.measured}
            assert set(contrast.rows) <= rows, contrast
            assert contrast.column in {column.name for column in table.columns}


def test_the_cost_claim_uses_the_plain_formulas_and_the_next_claim_the_closed_forms(tmp_path):
    cells = {  # time in products and relative to VICReg plain; memory in MiB and relative to VICReg plain
        "VICReg plain": (64.0, 1.0, 1600.0, 1.0),
        "SFRIK L=3 plain": (8.0, 0.125, 200.0, 0.125),
        "VICReg": (3.5, 0.055, 64.0, 0.04),
        "SFRIK L=3": (3.75, 0.059, 70.0, 0.044),
    }
    names = ("loss_products", "loss_time_ratio", "loss_mib", "loss_memory_ratio")
    for seed in range(2):
        folder = tmp_path / "digits" / "complexity" / f"seed{seed}"
        folder.mkdir(parents=True)
        entries = {f"{method} q=8192 n=512": dict(zip(names, values, strict=True)) for method, values in cells.items()}
        write_json(folder / "table6.json", {**entries, "hardware": "cpu"})
    lines = [line for line in claims_as_markdown("digits", tmp_path).splitlines() if "q = 8192, batch 512" in line]
    assert len(lines) == 4
    found = [[cell.strip() for cell in line.split("|")][4:7] for line in lines]
    assert found[0] == ["+0.875 ± 0.000", "2", "holds"]
    assert found[1] == ["+0.875 ± 0.000", "2", "holds"]
    assert found[2] == ["-0.25 ± 0.00", "2", "does not hold"]
    assert found[3] == ["-6.00 ± 0.00", "2", "does not hold"]


def test_the_page_has_a_line_for_every_contrast_and_marks_those_not_measured(tmp_path):
    text = claims_as_markdown("digits", tmp_path)
    lines = text.splitlines()[2:]
    assert len(lines) == sum(len(claim.contrasts) for claim in claims())
    assert all(line.endswith("not measured |") for line in lines)
    assert {line.count("|") for line in text.splitlines()} == {7}
    linear(tmp_path, "sfrik_l2_q512", 90.0, 92.0, 97.0)
    linear(tmp_path, "sfrik_l1_q512", 40.0, 40.0, 43.0)
    page = write_claims("digits", tmp_path).read_text(encoding="utf-8")
    assert "[linear probing](tables/table1.md) | +52.00 ± 2.31 | 3 | holds |" in page


def test_the_page_of_photos_has_the_claims_whose_tables_it_has(tmp_path):
    of_digits, of_photos = claims("digits"), claims("photos")
    assert {contrast.table for claim in of_photos for contrast in claim.contrasts} == {"table1", "table2"}
    assert [claim.paper for claim in of_photos] == [claim.paper for claim in of_digits[:5]]
    needs_a_large_q = (claims[4].text.partition(" (")[2] for claims in (of_digits, of_photos))
    assert "chosen at the largest q" in next(needs_a_large_q)
    assert "chosen at each q" in next(needs_a_large_q)
    for recipe, value in (("sfrik_l3_q128", 50.0), ("sfrik_l2_q128", 49.0)):
        linear(tmp_path, recipe, value, profile="photos")
    page = write_claims("photos", tmp_path).read_text(encoding="utf-8")
    assert "| [linear probing, q = 128](tables/table1.md) | +1.00 | 1 | not decided (one seed) |" in page
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


def test_choices_at_the_edge_of_a_grid_of_two_settings_are_named_with_the_settings(tmp_path):
    for name, chosen in (("vicreg_q128", 0), ("vicreg_q512", 4), ("auh_q512", 3)):  # of 3 x 3: a corner, the middle, one side
        recipe = grids("photos")[name][chosen].split("/")[1]
        write_json(tmp_path / "photos" / "tuning" / f"{name}.json", {"chosen": recipe})
    page = write_claims("photos", tmp_path).read_text(encoding="utf-8")
    corner, side = (grids("photos")[name][k].split("/")[1] for name, k in (("vicreg_q128", 0), ("auh_q512", 3)))
    assert f"{side} (base_lr), {corner} (vicreg_sim_coeff = vicreg_std_coeff, base_lr)." in page
