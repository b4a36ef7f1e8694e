"""`sfrik publish`: what is copied, what is refused, what is removed, and what an interruption leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from finished import finished_run

from sfrik.errors import SfrikError
from sfrik.reproduce import publish as publishing
from sfrik.reproduce.notebooks import copy_notebook, same_code
from sfrik.reproduce.publish import publish
from sfrik.reproduce.publishable import table_problems
from sfrik.runs.folder import Run
from sfrik.settings import run_folder
from sfrik.system.files import read_json, write_json
from sfrik.tables.collect import build_table
from sfrik.tables.definitions import rows_of, tables_of
from sfrik.tables.render import write_table
from sfrik.tables.run_pages import write_run_pages

HEAD = "a" * 40
RECIPES = [row.recipe for row in rows_of("table1", "smoke")]
RUN, LAST = "smoke/sfrik_l3_q64", RECIPES[-1]
HARDWARE = {"device": "cpu: X", "precision": "bf16", "processes": 1, "threads": 1}
DATA = {"images": 300, "classes": 10, "sha256": "e" * 64}
ALL = ("pretrain", "linear", "semi", "knn")


def train(root, recipe, seed, weights=b"1", stages=("pretrain", "linear", "knn"), top1=50.0, commit=HEAD):
    """A finished run with its provenance; other `weights` are those of another training."""
    shutil.rmtree(run_folder(recipe, seed, root), ignore_errors=True)
    run = finished_run(root, recipe, seed, stages, top1)
    sha = hashlib.sha256(weights).hexdigest()
    run.record(
        commit=commit,
        started=sha[:8],
        hardware=HARDWARE,
        versions={"torch": "2"},
        weights={run.backbone.name: sha},
    )
    if recipe != LAST:  # raw pixels are not trained
        record = run.folder / "settings.json"
        write_json(record, {**read_json(record), "data": DATA})
    for path in run.folder.glob("*.json"):
        if path.name not in publishing.RECORDS:
            found = {"backbone_sha256": sha, "commit": commit, "data": {"train": DATA, "test": DATA}}
            write_json(path, {**read_json(path), **found})
    run.backbone.unlink()  # a score counts without its weights
    run.log({"epoch": 1, "alignment": 0.5, "uniformity": -1.0, "effective_rank": 9.0})
    (run.folder / "features").mkdir(exist_ok=True)
    (run.folder / "features" / "a.npy").write_text("", encoding="utf-8")
    return run


def render(names, profile, root):
    """The tables and pages, without notebook 07, which draws the figures."""
    for name in names:
        write_table(name, profile, root)
    write_run_pages(profile, root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runs of table 1 for two seeds."""
    root = tmp_path_factory.mktemp("trained")
    for recipe in RECIPES:
        for seed in (0, 1):
            train(root, recipe, seed)
    return root


@pytest.fixture
def roots(trained, tmp_path, monkeypatch):
    """The folder of runs and that of the published results, without notebook 07 and without syncing to disk."""
    monkeypatch.setattr(publishing, "commit", lambda: HEAD)
    monkeypatch.setattr(publishing, "render_tables", render)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return shutil.copytree(trained, tmp_path / "runs"), tmp_path / "results"


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_records_and_scores_of_every_seed_and_the_notebooks_of_one_are_published(roots):
    root, target = roots
    found = publish(["table1"], "smoke", root, target)
    names = sorted(path.name for path in run_folder(RUN, 0, target).iterdir())
    records = ["knn.json", "linear.json", "logistic.json", "metrics.jsonl", "provenance.json", "settings.json"]
    notebooks = ["02_pretraining.ipynb", "03_linear_probing.ipynb", "05_knn_and_logistic_regression.ipynb"]
    assert names == sorted(records + notebooks)
    assert sorted(path.name for path in run_folder(RUN, 1, target).iterdir()) == records
    assert (target / "smoke" / "tables" / "table1.csv").is_file()
    assert found["files"] == {"new": len(files(target)), "changed": 0, "removed": 0}
    assert len([cell for cell in found["cells"] if cell.startswith("table1, ")]) == 3 * len(RECIPES)
    assert found["cells"][0].endswith(": – -> 50.0 ± 0.0 (n = 2)")
    before = files(target)
    again = publish(["all"], "smoke", root, target)
    assert (again["tables"], again["cells"], again["removed"]) == (["table1"], [], [])
    assert "table2 is not published: some of its cells have no score" in " ".join(again["notes"])
    assert set(again["files"].values()) == {0}
    assert files(target) == before


def test_choices_of_grids_that_are_gone_are_deleted_and_other_records_of_tuning_are_not(tmp_path):
    folder = tmp_path / "smoke" / "tuning"
    folder.mkdir(parents=True)
    for name, content in {"vicreg": {"chosen": "tune_vicreg_5"}, "vicreg_q64": {"chosen": "x"}, "search": {}}.items():
        write_json(folder / f"{name}.json", content)
    publishing._tidy("smoke", tmp_path)
    assert sorted(path.stem for path in folder.iterdir()) == ["search", "vicreg_q64"]


def test_notebooks_of_runs_are_those_of_one_row_of_table_1(tmp_path):
    names = ("simclr_q512", "sfrik_l3_q512", "random_weights", "kernel_rbf", "tune_sfrik_q512_sim128_lr10")
    for name in names:
        finished_run(tmp_path, f"digits/{name}", 0, ("pretrain", "linear"), 50.0)
    publishing._tidy("digits", tmp_path)
    kept = {name: sorted(path.name for path in (tmp_path / "digits" / name).rglob("*.ipynb")) for name in names}
    assert kept.pop("sfrik_l3_q512") == ["02_pretraining.ipynb", "03_linear_probing.ipynb"]
    assert set(map(len, kept.values())) == {0}
    assert (run_folder("digits/simclr_q512", 0, tmp_path) / "linear.json").is_file()


def test_notebook_01_is_published_with_one_profile(roots, monkeypatch):
    root, target = roots
    monkeypatch.setattr(publishing, "same_code", lambda name, path: True)
    for name in ("notebooks/01_kernel_theory.ipynb", "figures/flow.gif", "figures/flow_dark.gif", "figures/flow.png"):
        for profile in ("smoke", publishing.GENERAL):
            write_json(root / profile / name, {"cells": [], "metadata": {}})
    assert publishing._copy_chapters(["table1"], "smoke", root, target) == []
    assert not (target / "smoke").exists()
    assert publishing._copy_chapters(["table1"], publishing.GENERAL, root, target) == []
    assert len(files(target)) == 4


def record(**changes):
    def change(run):
        run.record(**changes)

    return change


def hardware(**changes):
    return record(hardware={**HARDWARE, **changes})


def score(**changes):
    def change(run):
        write_json(run.folder / "linear.json", {**read_json(run.folder / "linear.json"), **changes})

    return change


def other_settings(run):
    found = read_json(run.folder / "settings.json")
    found["settings"]["epochs"] = 77
    write_json(run.folder / "settings.json", {**found, "hash": ""})


def images(run):
    score(data={"train": {"images": 9, "classes": 3, "sha256": "f" * 64}})(run)


def trained_on(run):
    write_json(run.folder / "settings.json", {**read_json(run.folder / "settings.json"), "data": {**DATA, "images": 9}})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (record(commit="b" * 40), f"mixed commit: {'b' * 40}: {RUN} seed 1 | {HEAD}: the other runs"),
        (record(resumed=[{"commit": "b" * 40, "hardware": HARDWARE, "versions": {"torch": "2"}}]), f"mixed commit: {'b' * 40}"),
        (record(commit=f"{HEAD}-dirty"), f"not of a clean checkout (commit {HEAD}-dirty): {RUN} seed 1"),
        (record(commit=None), f"not of a clean checkout (commit none): {RUN} seed 1"),
        (record(commit="unknown"), f"not of a clean checkout (commit unknown): {RUN} seed 1"),
        (score(commit=None), f"not of a clean checkout (commit none): {RUN} seed 1"),
        (score(commit="b" * 40), f"mixed commit: {'b' * 40}: {RUN} seed 1"),
        (hardware(device="cpu: Y"), f"mixed device: cpu: Y: {RUN} seed 1 | cpu: X: the other runs"),
        (hardware(precision="fp32"), f"mixed precision: fp32: {RUN} seed 1 | bf16: the other runs"),
        (trained_on, f"not shown: {RUN} seed 1: the run was trained on other images than most of this table (9 images ->"),
        (hardware(threads=2), f"mixed threads: 2: {RUN} seed 1"),
        (hardware(processes=2), f"mixed processes: 2: {RUN} seed 1"),
        (record(versions={"torch": "3"}), f"mixed torch: 3: {RUN} seed 1"),
        (images, f"mixed images of linear: train 9 (ffffffffffff): {RUN} seed 1"),
        (lambda run: (run.folder / "knn.json").unlink(), f"{RUN}: 20-NN, % of seed 1 is missing"),
        (other_settings, f"not shown: {RUN} seed 1: its settings are not the recipe's"),
        (score(backbone_sha256="0" * 64), f"not shown: {RUN} seed 1: linear.json was measured on other weights"),
        (lambda run: run.update_status("running"), f"is not finished: {RUN} seed 1"),
    ],
)
def test_runs_that_do_not_fit_together_are_named(roots, change, named):
    change(Run(run_folder(RUN, 1, roots[0])))
    problems = table_problems("table1", "smoke", roots[0])
    assert any(problem.startswith(f"table1: {named}") for problem in problems), problems


def test_nothing_is_written_if_a_run_does_not_fit(roots, capsys):
    root, target = roots
    publish(["table1"], "smoke", root, target)
    before = files(target)
    train(root, RUN, 0, b"2", top1=60.0)
    train(root, RUN, 1, b"2", top1=60.0, commit="b" * 40)
    with pytest.raises(SfrikError, match="nothing was published"):
        publish(["table1"], "smoke", root, target)
    assert f"not published: table1: mixed commit: {'b' * 40}: {RUN} seed 1" in capsys.readouterr().err
    assert files(target) == before


@pytest.mark.parametrize(("commit", "named"), [(f"{HEAD}-dirty", "not committed"), (None, "not a clone")])
def test_a_dirty_checkout_publishes_nothing(roots, capsys, monkeypatch, commit, named):
    root, target = roots
    monkeypatch.setattr(publishing, "commit", lambda: commit)
    with pytest.raises(SfrikError, match="nothing was published"):
        publish(["table1"], "smoke", root, target)
    assert named in capsys.readouterr().err
    assert not target.exists()


def test_a_row_without_a_seed_that_others_have_is_named(roots):
    train(roots[0], LAST, 2)
    problems = table_problems("table1", "smoke", roots[0])
    assert f"table1: {RUN}: linear probing, % of seed 2 is missing, which other rows have" in problems
    assert not [problem for problem in problems if LAST in problem]


def test_rows_of_table_1_may_have_more_seeds_than_the_rows_that_another_table_adds(roots):
    root, own = roots[0], [row.recipe for row in rows_of("table7", "smoke") if row.recipe not in RECIPES]
    for recipe in own:
        train(root, recipe, 0)  # those of table 1 have two
    assert table_problems("table7", "smoke", root) == []
    train(root, own[0], 1)
    assert {problem.split(": ")[1] for problem in table_problems("table7", "smoke", root)} == set(own[1:])


def test_scores_of_other_tables_stay_if_they_are_of_the_same_weights(roots):
    root, target = roots
    publish(["table1"], "smoke", root, target)
    published = run_folder(RUN, 0, target)
    sha = read_json(published / "linear.json")["backbone_sha256"]
    for name, weights in (("semi10", sha), ("transfer_digits8x8", sha), ("semi1", "0" * 64)):
        write_json(published / f"{name}.json", {"protocol": name, "top1": 1.0, "backbone_sha256": weights})
    found = publish(["table1"], "smoke", root, target)
    assert found["removed"] == [f"{RUN}/seed0/semi1.json: measured on other weights"]
    assert (published / "semi10.json").is_file()
    train(root, RUN, 0, b"2", top1=55.0)
    found = publish(["table1"], "smoke", root, target)
    gone = {f"{RUN}/seed0/{name}.json: measured on other weights" for name in ("semi10", "transfer_digits8x8")}
    assert set(found["removed"]) == gone
    assert "-> 52.5 ± 3.5 (n = 2)" in found["cells"][0]
    assert (
        read_json(published / "provenance.json")["started"] == read_json(run_folder(RUN, 0, root) / "provenance.json")["started"]
    )


def test_seeds_and_rows_that_are_no_longer_there_leave_and_files_of_others_stay(roots):
    root, target = roots
    (run_folder(RUN, 0, target) / "tables").mkdir(parents=True)
    publish(["table1"], "smoke", root, target)
    (run_folder(RUN, 1, target) / "notes.txt").write_text("mine", encoding="utf-8")
    write_json(target / "smoke" / "old" / "seed0" / "linear.json", {"protocol": "linear", "top1": 1.0})
    write_json(target / "smoke" / "diagnosis" / "diagnosis.json", {})
    (target / "smoke" / "tables" / "table5.csv").write_text("", encoding="utf-8")
    for recipe in RECIPES:
        for path in (folder := run_folder(recipe, 1, root)).glob("*.*"):
            path.unlink()
        assert folder.is_dir()
    found = publish(["table1"], "smoke", root, target)
    assert "50.0 ± 0.0 (n = 2) -> 50.0 (n = 1)" in found["cells"][0]
    assert len(found["removed"]) == 3 * len(RECIPES)
    assert [path.name for path in run_folder(RUN, 1, target).iterdir()] == ["notes.txt"]
    assert not run_folder(LAST, 1, target).exists()
    assert not (target / "smoke" / "old").exists()
    assert (target / "smoke" / "diagnosis" / "diagnosis.json").is_file()
    assert not (target / "smoke" / "tables" / "table5.csv").exists()


@pytest.mark.parametrize("place", [".", "smoke", RUN])
def test_links_out_of_the_published_results_are_refused(roots, tmp_path, capsys, place):
    root, target = roots
    (target / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    (target / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SfrikError, match="nothing was published"):
        publish(["table1"], "smoke", root, target)
    assert "is a symbolic link" in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("place", ["runs", "results/runs", "."])
def test_the_published_results_are_not_published_again(roots, place):
    with pytest.raises(SfrikError, match="are one folder, or one is in the other"):
        publish(["table1"], "smoke", roots[0].parent / place, roots[0] if place == "runs" else roots[1])


@pytest.mark.parametrize("stop", [1, 30, 90])
def test_an_interrupted_publication_shows_no_wrong_number_and_the_next_completes_it(roots, tmp_path, monkeypatch, stop):
    root, target = roots
    train(root, RUN, 0, stages=ALL)
    publish(["table1"], "smoke", root, target)
    old = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    for recipe in RECIPES:
        for seed in (0, 1):
            train(root, recipe, seed, b"2", top1=70.0)
    calls, replace, unlink = [], publishing.atomic_write, Path.unlink

    def count(call, *arguments, **options):
        calls.append(call)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return call(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "atomic_write", lambda *a: count(replace, *a))
        patch.setattr(Path, "unlink", lambda *a, **k: count(unlink, *a, **k))
        with pytest.raises(KeyboardInterrupt):
            publish(["table1"], "smoke", root, target)
    for measured in build_table("table1", "smoke", target).measured:
        for by_seed in measured.scores.values():
            for seed, value in by_seed.items():
                sha = read_json(run_folder(measured.row.recipe, seed, target) / "linear.json")["backbone_sha256"]
                assert value == (70.0 if sha == hashlib.sha256(b"2").hexdigest() else 50.0)
    publish(["table1"], "smoke", root, target)
    publish(["table1"], "smoke", root, tmp_path / "whole")
    assert files(target) == files(tmp_path / "whole")
    assert old.keys() == {path for path in target.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", tables_of("digits"))
def test_the_published_tables_are_complete(name):
    root = Path(__file__).parents[2] / "results"
    problems = table_problems(name, "digits", root)
    assert [problem for problem in problems if "mixed" not in problem and "clean checkout" not in problem] == []


def test_links_of_a_copied_notebook_hold_at_its_new_place(tmp_path):
    checkout = Path(__file__).parents[2]
    text = "[a](../README.md) [b](02_pretraining.ipynb) [c](https://x.org)"
    source = tmp_path / "mine" / "digits" / "notebooks" / "a.ipynb"
    write_json(source, {"cells": [{"cell_type": "markdown", "metadata": {}, "source": text}]})
    target = checkout / "results" / "digits" / "notebooks" / "never.ipynb"
    written = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfrik.reproduce.notebooks.write_text", lambda path, content: written.update({path: content}))
        copy_notebook(source, target, tmp_path / "mine")
    (content,) = written.values()
    assert json.loads(content)["cells"][0]["source"] == text.replace("../README.md", "../../../README.md")


def test_an_executed_copy_has_the_code_of_the_notebook_or_not(tmp_path):
    checkout = Path(__file__).parents[2]
    content = read_json(checkout / "notebooks" / "07_tables.ipynb")
    injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": "a = 1", "outputs": []}
    write_json(tmp_path / "a.ipynb", {**content, "cells": [*content["cells"], injected]})
    assert same_code("07_tables", tmp_path / "a.ipynb")
    write_json(tmp_path / "a.ipynb", {**content, "cells": content["cells"][:-2]})
    assert not same_code("07_tables", tmp_path / "a.ipynb")
