"""Tables from hand-made results: means, standard deviations, counts, dashes, and the paper's figures in separate columns."""

from __future__ import annotations

import csv
import json
import re
import statistics
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from finished import finished_run

from sfrik.errors import SfrikError
from sfrik.plots.costs import draw_costs
from sfrik.settings import PretrainSettings, load_recipe, recipe_names
from sfrik.system.files import read_json, write_json
from sfrik.tables import remarks
from sfrik.tables import rows as table_rows
from sfrik.tables.claim_pages import PAGES, claims_as_markdown, overview
from sfrik.tables.claims import claims
from sfrik.tables.collect import build_table, tables_with_scores
from sfrik.tables.compare import compare_tables
from sfrik.tables.definitions import EXPERIMENTS, grids, rows_of, tables_of
from sfrik.tables.render import as_csv, as_latex, as_markdown, escape, published_lines, write_table
from sfrik.tables.rows import paper_figures
from sfrik.tables.run_pages import write_run_pages
from sfrik.tables.text import as_text

SHARED = Path(__file__).parents[3] / "shared" / "paper.toml"
MEASURED = [f"{protocol}_top1_{part}" for protocol in ("linear", "logistic", "knn") for part in ("mean", "sd")]


def score(root, recipe, seed, protocol, top1, **more):
    folder = root / "digits" / recipe / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    found = {"top1_at": {"10": 1.0, "20": top1}} if protocol == "knn" else {"top1": top1}
    write_json(folder / f"{protocol}.json", {"protocol": protocol, **found, **more})


@pytest.fixture
def root(tmp_path):
    """Three seeds of SFRIK L=2 at q = 512, one of VICReg at q = 256, and only a linear probe of the random weights."""
    for seed, linear in enumerate([90.0, 92.0, 97.0]):
        score(tmp_path, "sfrik_l2_q512", seed, "linear", linear)
        score(tmp_path, "sfrik_l2_q512", seed, "logistic", 80.0)
        score(tmp_path, "sfrik_l2_q512", seed, "knn", 70.0 + seed)
    for protocol in ("linear", "logistic", "knn"):
        score(tmp_path, "vicreg_q256", 0, protocol, 55.55)
    score(tmp_path, "random_weights", 0, "linear", 12.0)
    (tmp_path / "digits" / "vicreg_q256" / "seed0.old").mkdir()
    return tmp_path


def csv_rows(table):
    return {(row["method"], row["q"]): row for row in csv.DictReader(as_csv(table).splitlines())}


def cells(text, start):
    """The cells of the only line of a Markdown or LaTeX table that starts with `start`."""
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip(" \\") for cell in re.split(r"[|&]", line.strip("| "))]


# --- rows


@pytest.mark.parametrize("profile", ["smoke", "digits"])
def test_every_row_of_table1_has_its_recipe(profile):
    rows = rows_of("table1", profile)
    assert len(rows) == 4 * {"smoke": 1, "digits": 3}[profile] + 2 + 2
    assert {row.recipe for row in rows} <= set(recipe_names(profile))
    assert len({row.recipe for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("method", "q", "paper", "paper_q"),
    [
        ("SimCLR", 512, 46.1, 8192),
        ("AUH", 256, 46.7, 4096),
        ("VICReg", 128, 44.0, 2048),
        ("SFRIK L=2", 512, 47.0, 8192),
        ("SFRIK L=1", 512, 27.7, 8192),
        ("SFRIK L=3", 512, 47.5, 8192),
        ("random weights", None, None, None),
        ("raw pixels", None, None, None),
    ],
)
def test_a_row_has_the_papers_figure_of_its_method_and_dimension(method, q, paper, paper_q):
    (row,) = [row for row in rows_of("table1", "digits") if (row.method, row.q) == (method, q)]
    assert (row.paper.get("linear_top1"), row.paper_q) == (paper, paper_q)


def test_an_unknown_table_is_refused_with_the_nearest_name_and_all_names():
    with pytest.raises(SfrikError, match=r"unknown table 'tabel1' \(did you mean table1\?\): the tables are table1, table2"):
        rows_of("tabel1", "digits")


@pytest.mark.parametrize(
    ("profile", "near"), [("digit", "did you mean digits"), ("smok", "did you mean smoke"), ("sky", "choose")]
)
def test_a_profile_without_the_table_is_refused_with_the_profiles_that_have_it(profile, near):
    with pytest.raises(SfrikError, match=rf"no recipes in profile '{profile}'.*{near}.*smoke"):
        rows_of("table1", profile)


# --- the paper's figures


def test_the_papers_figures_in_the_package_equal_the_reference_copy():
    if not SHARED.is_file():
        pytest.skip(f"the original is not at {SHARED}")
    assert paper_figures() == tomllib.loads(SHARED.read_text(encoding="utf-8"))


def test_every_group_of_the_papers_figures_names_its_source():
    for name, group in paper_figures().items():
        assert group.get("source"), name


def test_without_results_every_measured_cell_is_empty_and_the_papers_column_is_filled(tmp_path):
    table = build_table("table1", "digits", tmp_path)
    rows = csv_rows(table)
    assert all(row[column] == "" for row in rows.values() for column in MEASURED)
    assert all(row[f"{protocol}_top1_n"] == "0" for row in rows.values() for protocol in ("linear", "logistic", "knn"))
    assert all(row["seeds"] == row["runs"] == "" for row in rows.values())
    assert rows["SFRIK L=2", "512"]["paper_linear_top1"] == "47.0"
    assert cells(as_markdown(table), "| SFRIK L=3 ") == ["SFRIK L=3", "512", "–", "–", "–", "–", "47.5 (8192)"]
    assert cells(as_latex(table), "SFRIK L=3 ") == ["SFRIK L=3", "512", "--", "--", "--", "0", "47.5 (8192)"]


def test_no_figure_of_the_paper_is_in_a_measured_column(root):
    rows = csv_rows(build_table("table1", "digits", root))
    written = {(90.0 + 92.0 + 97.0) / 3, statistics.stdev([90.0, 92.0, 97.0]), 80.0, 0.0, 71.0, 1.0, 55.55, 12.0}
    shown = {row[column] for row in rows.values() for column in MEASURED} - {""}
    assert shown <= {f"{value:.3f}" for value in written}


def test_a_changed_figure_of_the_paper_changes_only_the_papers_column(root, monkeypatch):
    before = csv_rows(build_table("table1", "digits", root))
    figures = paper_figures()
    figures["linear_in20"]["SFRIK_L2"] = [1.0, 2.0, 3.0, 4.0]
    monkeypatch.setattr(table_rows, "paper_figures", lambda: figures)
    after = csv_rows(build_table("table1", "digits", root))
    assert after["SFRIK L=2", "512"]["paper_linear_top1"] == "4.0"
    for key, row in after.items():
        differing = {column for column in row if row[column] != before[key][column]}
        assert differing == ({"paper_linear_top1"} if key[0] == "SFRIK L=2" else set())


# --- cells


def test_the_csv_has_mean_standard_deviation_count_seeds_and_runs(root):
    rows = csv_rows(build_table("table1", "digits", root))
    row = rows["SFRIK L=2", "512"]
    assert row["linear_top1_mean"] == "93.000"
    # 90, 92, 97: sum of squared deviations 9 + 1 + 16 = 26, divided by n - 1 = 2
    assert row["linear_top1_sd"] == f"{13**0.5:.3f}"
    assert (row["logistic_top1_mean"], row["logistic_top1_sd"]) == ("80.000", "0.000")
    assert (row["knn_top1_mean"], row["knn_top1_sd"], row["knn_top1_n"]) == ("71.000", "1.000", "3")
    assert row["seeds"] == "0 1 2"
    assert row["runs"] == "digits/sfrik_l2_q512/seed0 digits/sfrik_l2_q512/seed1 digits/sfrik_l2_q512/seed2"
    assert (row["paper_linear_top1"], row["paper_q"]) == ("47.0", "8192")


def test_one_seed_has_no_deviation_and_a_missing_score_no_mean(root):
    rows = csv_rows(build_table("table1", "digits", root))
    one = rows["VICReg", "256"]
    assert (one["linear_top1_mean"], one["linear_top1_sd"], one["linear_top1_n"]) == ("55.550", "", "1")
    partial = rows["random weights", ""]
    assert (partial["linear_top1_mean"], partial["logistic_top1_mean"], partial["logistic_top1_n"]) == ("12.000", "", "0")
    assert (partial["paper_linear_top1"], partial["paper_q"]) == ("", "")


def test_the_markdown_shows_mean_and_deviation_links_and_dashes(root):
    text = as_markdown(build_table("table1", "digits", root))
    links = " ".join(f"[{seed}](../sfrik_l2_q512/seed{seed})" for seed in range(3))
    found = [line for line in text.splitlines() if line.startswith("| SFRIK L=2 | 512 ")]
    numbers = " | ".join(f"[{number}](../sfrik_l2_q512/README.md)" for number in ("93.0 ± 3.6", "80.0 ± 0.0", "71.0 ± 1.0"))
    assert found == [f"| SFRIK L=2 | 512 | {numbers} | {links} | 47.0 (8192) |"]
    number, run = "[12.0](../random_weights/README.md)", "[0](../random_weights/seed0)"
    assert cells(text, "| random weights ") == ["random weights", "–", number, "–", "–", run, "–"]
    assert cells(text, "| raw pixels ") == ["raw pixels", "–", "–", "–", "–", "–", "–"]
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "every line has as many cells as the header"


def test_the_latex_shows_the_same_numbers_and_escapes_percent(root):
    text = as_latex(build_table("table1", "digits", root))
    assert cells(text, "SFRIK L=2 & 512 ")[2:] == [r"93.0 $\pm$ 3.6", r"80.0 $\pm$ 0.0", r"71.0 $\pm$ 1.0", "3", "47.0 (8192)"]
    assert cells(text, "raw pixels ") == ["raw pixels", "--", "--", "--", "--", "0", "--"]
    body = text.split("\n", 1)[1]
    assert text.startswith("% ")
    assert "%" not in body.replace(r"\%", "")
    assert body.count(r"\\") == 17, "a header and sixteen rows"


def test_the_note_states_the_number_of_seeds_and_the_source_of_the_papers_figures(root):
    text = as_markdown(build_table("table1", "digits", root))
    assert "n = 1 to 3 seeds" in text
    assert paper_figures()["linear_in20"]["source"] in text
    assert "n = 1 seeds" in as_markdown(build_table("table1", "digits", root, seeds=1))


def test_a_table_can_be_limited_to_the_first_seeds(root):
    row = csv_rows(build_table("table1", "digits", root, seeds=2))["SFRIK L=2", "512"]
    assert (row["linear_top1_mean"], row["seeds"]) == ("91.000", "0 1")


def test_a_table_is_written_in_three_formats_with_the_same_content(root):
    table = write_table("table1", "digits", root)
    folder = root / "digits" / "tables"
    assert sorted(path.name for path in folder.iterdir()) == ["table1.csv", "table1.md", "table1.tex"]
    for suffix, render in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        assert (folder / f"table1.{suffix}").read_text(encoding="utf-8") == render(table)
    assert as_csv(build_table("table1", "digits", root)) == as_csv(table), "a table depends only on the scores"


def test_the_markdown_links_to_the_runs_and_to_the_pages_of_the_recipes(root):
    write_table("table1", "digits", root)
    write_run_pages("digits", root)
    path = root / "digits" / "tables" / "table1.md"
    links = re.findall(r"\]\((.*?)\)", path.read_text(encoding="utf-8"))
    pages = [link for link in links if link.endswith("README.md")]
    assert len(links) - len(pages) == 5
    assert all((path.parent / link).is_dir() for link in links if link not in pages)
    assert len(pages) == 7, "one link per measured number"
    assert all((path.parent / page).is_file() for page in pages)


def test_the_links_of_the_markdown_are_relative_to_base(root):
    text = as_markdown(build_table("table1", "digits", root), base="../results/digits")
    assert "](../results/digits/sfrik_l2_q512/README.md)" in text
    assert "](../sfrik" not in text


def test_a_truncated_score_file_is_named(root):
    (root / "digits" / "vicreg_q256" / "seed0" / "linear.json").write_text('{"top1": 5', encoding="utf-8")
    with pytest.raises(SfrikError, match=r"vicreg_q256/seed0/linear\.json is not valid JSON"):
        build_table("table1", "digits", root)


def test_a_knn_score_without_twenty_neighbours_is_a_missing_cell_not_an_error(root):
    write_json(root / "digits" / "vicreg_q256" / "seed0" / "knn.json", {"protocol": "knn", "top1_at": {"10": 50.0}})
    assert csv_rows(build_table("table1", "digits", root))["VICReg", "256"]["knn_top1_mean"] == ""


# --- the other tables


def with_scores(root, name, profile="digits", value=50.0):
    """Write every score of each row of a table, for seed 0."""
    for row in rows_of(name, profile):
        folder = root / row.recipe / "seed0"
        folder.mkdir(parents=True, exist_ok=True)
        everything = {"top1": value, "top5": value + 1, "map": value + 2, "top1_at": {"20": value + 3}}
        for column in EXPERIMENTS[name].columns(profile):
            path = folder / f"{column.score}.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and row.entry else {}
            measured = {"protocol": column.score, column.key[0]: value, **everything}
            write_json(path, {**known, row.entry: {**known.get(row.entry, {}), **measured}} if row.entry else measured)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("profile", ["smoke", "digits", "photos", "cifar10", "cifar10_quick", "paper"])
def test_every_row_of_every_table_has_a_recipe_and_rows_are_unique(name, profile):
    if profile not in EXPERIMENTS[name].profiles:
        with pytest.raises(SfrikError, match=f"{name} has no recipes in profile"):
            rows_of(name, profile)
        return
    rows = rows_of(name, profile)
    keys = {(row.method, row.q, *row.labels.values()) for row in rows}
    assert len(keys) == len(rows) >= 2
    if EXPERIMENTS[name].stages:
        assert {row.recipe for row in rows} <= set(recipe_names(profile))


@pytest.mark.parametrize("profile", ["photos", "paper"])
def test_the_caption_says_how_images_that_are_published_as_arrays_were_encoded(tmp_path, profile):
    first, second, *_ = (row.recipe for row in rows_of("table1", profile))
    assert "encoded" not in build_table("table1", profile, tmp_path).title
    for recipe, encoding in ((first, "original"), (second, "JPEG")):
        run = finished_run(tmp_path, recipe)
        record = {"images": 10000, "classes": 10, "sha256": "0", "encoding": encoding}
        write_json(path := run.folder / "settings.json", {**read_json(path), "data": record})
        encoded = build_table("table1", profile, tmp_path).title.endswith(", its 10,000 test images, re-encoded as JPEG")
        assert encoded == (profile == "photos" and encoding == "JPEG")
    scored = run.folder / "knn.json"
    write_json(run.folder / "settings.json", {**read_json(run.folder / "settings.json"), "data": None})
    assert "encoded" not in build_table("table1", profile, tmp_path).title
    write_json(scored, {**read_json(scored), "data": {"test": record}})
    assert ("re-encoded as JPEG" in build_table("table1", profile, tmp_path).title) == (profile == "photos")


def test_the_caption_leaves_out_the_encodings_of_runs_and_scores_that_are_not_shown(tmp_path):
    for number, row in enumerate(rows_of("table1", "photos")[:4]):
        run = finished_run(tmp_path, row.recipe)
        data = {name: {"images": 10000, "classes": 10, "sha256": name, "encoding": name} for name in ("JPEG", "PNG", "BMP")}
        trained, scored = data["PNG" if number == 2 else "JPEG"], data["BMP" if number == 3 else "JPEG"]
        write_json(path := run.folder / "settings.json", {**read_json(path), "data": trained})
        write_json(path := run.folder / "knn.json", {**read_json(path), "data": {"test": scored}})
    table = build_table("table1", "photos", tmp_path)
    assert len(table.left_out) == 2
    assert [len(m.scores.get("knn_top1", {})) for m in table.measured[:4]] == [1, 1, 0, 0]
    assert table.title.endswith(", its 10,000 test images, re-encoded as JPEG")


def test_figures_that_others_publish_are_below_the_table_of_their_images_and_never_in_it():
    for profile in EXPERIMENTS["table1"].profiles:
        for name in tables_of(profile):
            table = build_table(name, profile, "nowhere")
            shown = ["84.7" in text for text in (as_markdown(table), as_latex(table), "".join(published_lines(table)))]
            assert shown == [name == "table1" and profile.startswith("cifar10")] * 3, (name, profile)
            assert "84.7" not in as_csv(table)
            rows = [line for line in as_markdown(table).split("Published by others")[0].splitlines() if line.startswith("|")]
            assert not any(figure in row for row in rows for figure in ("84.7", "92.07", "90.74"))


def test_a_remark_is_that_of_the_profile(tmp_path):
    for profile in EXPERIMENTS["table1"].profiles:
        for name in tables_of(profile):
            text = as_markdown(build_table(name, profile, tmp_path))
            assert ("MNIST5k" in text) <= (profile in ("smoke", "digits")), (name, profile)
    for profile in ("digits", "photos"):
        text = as_markdown(build_table("table2", profile, ""))
        (pairs,) = re.findall(r"Alignment weight and learning rate of each row, in order: (.*?)\. ", text)
        recipes = [PretrainSettings.from_recipe(row.recipe) for row in rows_of("table2", profile)]
        assert pairs == "; ".join(f"{recipe.sfrik_sim_coeff:g} and {recipe.base_lr:g}" for recipe in recipes)


def test_table_1_states_the_trade_offs_of_its_recipes_beside_the_papers():
    for profile in EXPERIMENTS["table1"].profiles:
        (text,) = re.findall(
            r"Trade-off λ of SFRIK: (.*); the paper's is 2.048\.", as_markdown(build_table("table1", profile, ""))
        ) or ("",)
        values = {
            PretrainSettings.from_recipe(row.recipe).trade_off for row in rows_of("table1", profile) if "SFRIK" in row.method
        }
        assert {float(value) for value in re.findall(r"(?:^|; )([\d.]+)", text)} == (set() if profile == "paper" else values)


def test_table_2_states_what_the_kernels_of_its_recipes_leave_out(monkeypatch):
    for profile in ("smoke", "digits", "photos"):
        text = as_markdown(build_table("table2", profile, ""))
        assert "s = 2.5, exact; p = 1, exact; heat at time log(q) / (q - 1), exact." in text
        assert "leave out" not in text
    cut = {"rbf": {"sfrik_kernel_degree": 8}, "heat": {"sfrik_kernel_degree": 4, "sfrik_kernel_scale": 4.0}}
    monkeypatch.setattr(remarks, "load_recipe", lambda name: load_recipe(name) | cut.get(name.partition("kernel_")[2], {}))
    text = as_markdown(build_table("table2", "digits", ""))
    for kernel, share in {"s = 2.5, degrees 1 to 8": "6.5", "heat at time 4 / (q - 1), degrees 1 to 4": "93"}.items():
        assert f"{kernel}, which leave out {share} % of it" in text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_papers_figures_of_a_row_belong_to_columns_of_the_table(name):
    for profile in EXPERIMENTS[name].profiles:
        for row in rows_of(name, profile):
            assert set(row.paper) <= set(EXPERIMENTS[name].paper_columns)
    group = EXPERIMENTS[name].figures
    has_figures = any(row.paper for row in rows_of(name, "digits"))
    assert has_figures == (group is not None)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_measured_cell_of_a_table_is_filled_from_its_score_file(name, tmp_path):
    with_scores(tmp_path, name)
    table = build_table(name, "digits", tmp_path)
    filled = {column.name for column in table.columns if column.score != "metrics"}
    for measured in table.measured:
        assert {column for column in filled if measured.mean(column) is not None} == filled
    for text in (as_markdown(table), as_latex(table), as_csv(table)):
        assert text.count("50.0") >= 1
    widths = {line.count("|") for line in as_markdown(table).splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_kernels_of_table2_have_the_figures_of_the_poster():
    rows = {row.labels["kernel"]: row.paper.get("linear_top1") for row in rows_of("table2", "digits")}
    controls = {"degree 1, b_1 = 41": None, "degree 1, b_1 = 1000": None}
    assert rows == {"truncated L=3": 47.5, "exp(-s |u - v|^2)": 41.3, "C - |u - v|^p": 27.8, "heat": None, **controls}


def test_each_row_of_table4_has_the_nine_figures_of_the_slides():
    rows = {(row.method, row.paper_q): row for row in rows_of("table4", "digits")}
    assert len(rows) == 7
    assert rows.pop(("VICReg", None)).paper == {}, "VICReg at the large q is only in the digits profile"
    assert rows["VICReg", 8192].paper["semi1_top1"] == 49.4
    assert rows["SFRIK L=3", 32768].paper["semi10_top5"] == 87.5
    assert all(len(row.paper) == 9 for row in rows.values())
    assert (rows["SFRIK L=3", 32768].q, rows["VICReg", 8192].q) == (512, 128)


def test_table5_reads_all_batch_sizes_from_one_file(tmp_path):
    folder = tmp_path / "digits" / "complexity" / "seed0"
    folder.mkdir(parents=True)
    cells = {"loss_ms": 40.0, "product_ms": 8.0, "loss_products": 5.0, "loss_mib": 100.4}
    write_json(folder / "table5.json", {"VICReg plain q=4096 n=512": cells})
    rows = {
        (row["method"], row["batch_size"]): row
        for row in csv.DictReader(as_csv(build_table("table5", "digits", tmp_path)).splitlines())
    }
    assert rows["VICReg plain", "512"]["loss_ms_mean"] == "40.000"
    assert rows["VICReg plain", "512"]["loss_products_mean"] == "5.000"
    assert rows["VICReg plain", "256"]["loss_ms_mean"] == rows["SFRIK L=3 plain", "512"]["loss_ms_mean"] == ""
    assert rows["SFRIK L=3 plain", "1024"]["paper_peak"] == "18.8"
    assert rows["SFRIK L=3", "1024"]["paper_peak"] == "", "the paper's figures are of the plain formulas"


def with_costs(root, loads, name="table5"):
    """A repetition of a table of costs for each load that was recorded; None: in a file of an earlier release."""
    for k, load in enumerate(loads):
        folder = root / "digits" / "complexity" / f"seed{k}"
        folder.mkdir(parents=True)
        cells = {row.entry: {"loss_ms": 40.0 + k, "loss_products": 5.0 + k, "loss_mib": 1.0} for row in rows_of(name, "digits")}
        write_json(folder / f"{name}.json", cells if load is None else {**cells, "load": load})
    return build_table(name, "digits", root)


def load(others, before=0.0):
    return {"before": before, "after": 2.5, "others": others, "cores": 2}


def test_repetitions_are_not_called_seeds_in_any_format(tmp_path):
    table = with_costs(tmp_path, [load(0.05)] * 3)
    assert "mean ± standard deviation over 3 repetitions, measured here" in as_markdown(table)
    assert "[3](../complexity/README.md)" in as_markdown(table)
    assert "& repetitions &" in as_latex(table)
    assert csv_rows(table)["VICReg", "4096"]["repetitions"] == "0 1 2"
    shown = "\n".join(as_text(compare_tables("table5", "digits", tmp_path, tmp_path), 100))
    assert "mean ± standard deviation, 3 repetitions." in shown
    caption = " ".join(draw_costs(table).get_supxlabel().split())  # it is wrapped
    assert "over 3 repetitions. The machine was quiet: other processes kept at most 0.1 cores busy." in caption
    (page,) = write_run_pages("digits", tmp_path)
    texts = [as_markdown(table), as_latex(table), as_csv(table), shown, caption, page.read_text(encoding="utf-8")]
    for text in texts:  # but in the names of folders
        assert not re.search(r"\bseeds?\b|\bn = [0-9]+ (?!q)|\$n\$", re.sub(r"\(?(\S*/)?seed[0-9]\S*", "", text)), text
    for text in (shown, as_markdown(table), as_latex(table)):
        assert "The machine was quiet" in " ".join(text.split())
    one = with_costs(tmp_path / "one", [load(0.0)])
    assert "over 1 repetition, measured" in as_markdown(one)
    assert draw_costs(one).get_supxlabel().split(". ")[0].endswith("random embeddings")
    plt.close("all")


@pytest.mark.parametrize(
    ("loads", "words"),
    [
        ([load(0.05), load(0.2)], "The machine was quiet: other processes kept at most 0.2 cores busy."),
        (
            [load(0.05), load(1.3, before=0.7), load(0.3)],
            "The machine was not quiet in 2 of 3 repetitions: other processes kept up to 1.3 of 2 cores busy (load average 0.7 "
            "before and 2.5 after). Measure again without them.",
        ),
        ([load(None, before=0.1)], "The machine was quiet"),
        ([load(None, before=0.9)], "The machine was not quiet: other processes kept up to 0.9 of 2 cores busy"),
        ([None, None], "Whether the machine was quiet was not recorded."),
        ([None, load(0.0)], "Whether the machine was quiet was not recorded in 1 of 2 repetitions."),
    ],
)
def test_the_caption_says_whether_the_machine_was_quiet(loads, words, tmp_path):
    table = with_costs(tmp_path, loads, "table6")
    assert words in as_markdown(table)
    assert words in as_latex(table)
    if all(loads) and "not" not in words:
        assert "not" not in table.load_note


def test_a_broken_record_of_the_load_is_an_error(tmp_path):
    with pytest.raises(SfrikError, match=r"table5\.json has no key \"load.cores\""):
        with_costs(tmp_path, [{"before": 0.0, "after": 0.0, "others": 0.0}])


@pytest.mark.parametrize("name", ["table5", "table6"])
@pytest.mark.parametrize(
    "content", [None, {"VICReg q=8192 n=1024": {"loss_ms": 40.0, "loss_time_ratio": 1.0}, "hardware": "cpu"}]
)
def test_costs_that_are_missing_or_of_other_rows_are_rendered_as_dashes(name, content, tmp_path):
    folder = tmp_path / "digits" / "complexity" / "seed0"
    folder.mkdir(parents=True)
    if content:
        write_json(folder / f"{name}.json", content)
    table = build_table(name, "digits", tmp_path)
    assert not any(m.seeds for m in table.measured)
    lines = [line for line in as_markdown(table).splitlines() if line.startswith(("| VICReg", "| SFRIK", "| SIGReg"))]
    assert lines
    assert all(line.count(" – ") >= len(table.columns) for line in lines)
    assert as_csv(table)
    assert as_latex(table)


def test_table9_compares_the_grid_with_the_first_seed_only(tmp_path):
    for seed, value in enumerate((90.0, 10.0)):
        folder = tmp_path / "smoke" / "tune_sfrik_q64_sim128" / f"seed{seed}"
        folder.mkdir(parents=True)
        for name in ("linear_tune", "linear_inference"):
            write_json(folder / f"{name}.json", {"protocol": name, "top1": value})
    (row,) = [m for m in build_table("table9", "smoke", tmp_path).measured if m.row.recipe == "smoke/tune_sfrik_q64_sim128"]
    assert (row.mean("tune_top1"), row.mean("test_top1")) == (90.0, 50.0)


def test_the_grids_of_table9_are_named_after_the_setting_choice():
    assert {name: len(recipes) for name, recipes in grids("smoke").items()} == {"vicreg_q64": 2, "sfrik_q64": 2}


def test_the_last_epoch_of_the_training_curve_gives_alignment_and_rank(tmp_path):
    folder = tmp_path / "digits" / "kernel_heat" / "seed0"
    folder.mkdir(parents=True)
    lines = [{"epoch": e, "alignment": 1.8 - e / 10, "uniformity": -3.0, "effective_rank": e - 3.0} for e in range(16)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (row,) = [m for m in build_table("table2", "digits", tmp_path).measured if m.row.labels["kernel"] == "heat"]
    assert (row.mean("alignment"), row.mean("effective_rank")) == (pytest.approx(0.3), 12.0)


def test_the_tables_with_scores_have_at_least_one_measured_cell(tmp_path):
    assert tables_with_scores("digits", tmp_path) == []
    score(tmp_path, "kernel_rbf", 0, "linear", 50.0)
    assert tables_with_scores("digits", tmp_path) == ["table2"]


def test_a_cell_with_a_choice_at_the_edge_of_its_sweep_is_marked_in_every_format(root):
    score(root, "sfrik_l2_q512", 2, "linear", 97.0, lr_head=1.0, sweep={"0.1": 90.0, "1.0": 96.0})
    score(root, "vicreg_q256", 0, "linear", 55.55, lr_head=0.1, sweep={"0.1": 60.0, "1.0": 50.0, "0.01": 50.0})
    table = build_table("table1", "digits", root)
    assert [(m.row.recipe, column.name) for m in table.measured for column in table.columns if m.at_edge(column.name)] == [
        ("digits/sfrik_l2_q512", "linear_top1")
    ]
    text = as_markdown(table)
    assert cells(text, "| SFRIK L=2 | 512")[2] == "[93.0 ± 3.6 †](../sfrik_l2_q512/README.md)"
    assert text.count("†") == 2
    assert "† At least one seed's learning rate or penalty is the lowest or highest that was tried" in text
    assert csv_rows(table)["SFRIK L=2", "512"]["sweep_edge"] == "linear_top1"
    assert csv_rows(table)["VICReg", "256"]["sweep_edge"] == ""
    assert r"93.0 $\pm$ 3.6 $\dagger$" in as_latex(table)
    lines = as_text(compare_tables("table1", "digits", root, root / "nothing"), 100)
    assert sum(bool(re.search(r"93\.0 ± 3\.6( \(3\))? †", line)) for line in lines) == 1
    assert "† At least one seed's" in " ".join(lines)
    unmarked = build_table("table1", "digits", root, seeds=2)
    assert not any("†" in render(unmarked) for render in (as_markdown, as_latex, as_csv))
    assert "sweep_edge" not in as_csv(unmarked)


def test_latex_escapes_special_characters_outside_of_formulas():
    assert escape("a_b 5 % $q^2$ |u|^2") == r"a\_b 5 \% $q^2$ \textbar{}u\textbar{}\^{}2"


ROOT = Path(__file__).parents[2]


PUBLISHED = sorted((ROOT / "results").glob("*/tables/*.md"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_the_published_tables_equal_those_rendered_from_the_score_files(path):
    table = build_table(path.stem, path.parts[-3], ROOT / "results")
    for suffix, render in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
        assert path.with_suffix(f".{suffix}").read_text(encoding="utf-8") == render(table)
    assert {path.stem for path in PUBLISHED if path.parts[-3] == "digits"} == set(EXPERIMENTS)


def test_the_published_claims_equal_those_rendered_from_the_score_files():
    results = ROOT / "results"
    for profile in PAGES:
        assert claims_as_markdown(profile, results) in (results / profile / "README.md").read_text(encoding="utf-8")
    assert overview({profile: claims(profile, results) for profile in PAGES}) == (results / "claims.md").read_text(
        encoding="utf-8"
    )
