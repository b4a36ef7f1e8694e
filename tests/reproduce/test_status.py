"""`sfrik status` and the dry runs when a file of one run is broken: it is shown, and the others are shown as they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from finished import finished_run

from sfrik.cli import main
from sfrik.errors import SfrikError
from sfrik.reproduce import local, stages
from sfrik.reproduce.run_log import error_summary
from sfrik.reproduce.status import run_status, tables_status
from sfrik.reproduce.table import write_choices
from sfrik.runs.folder import Run
from sfrik.settings import Settings, identity, load_recipe, run_folder
from sfrik.system import files
from sfrik.system.files import write_json
from sfrik.tables.claims import write_claims
from sfrik.tables.collect import build_table
from sfrik.tables.definitions import grids, rows_of
from sfrik.tables.run_pages import write_run_pages

STAGES = ("pretrain", "linear", "knn")
RECIPE = "smoke/sfrik_l3_q64"


@pytest.fixture
def root(tmp_path):
    """Table 1 of the smoke profile, finished but for two recipes."""
    root = tmp_path / "results"
    for row in rows_of("table1", "smoke")[:-2]:
        finished_run(root, row.recipe)
    return root


def empty(path):
    path.write_bytes(b"")


def replaced_by(make):
    def do(path):
        path.unlink()
        make(path)

    return do


def text(content):
    return lambda path: path.write_text(content, encoding="utf-8")


def without_keys(path):
    path.write_text("{}", encoding="utf-8")


WAYS = {
    "empty": empty,
    "not JSON": text('{"version": 1,'),
    "a list": text("[1, 2]"),
    "null": text("null"),
    "text": text('"done"'),
    "nested too deeply": text("[" * 100000),
    "not UTF-8": lambda path: path.write_bytes(b'{"hash": "\xff\xfe"}'),
    "of another version": text('{"version": 99}'),
    "a folder": replaced_by(Path.mkdir),
    "a FIFO": replaced_by(os.mkfifo),
    "a link to nothing": replaced_by(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replaced_by(lambda path: path.symlink_to(path.name)),
}
FILES = {
    "settings.json": [without_keys, text('{"hash": 3, "settings": {}}'), text('{"hash": "", "settings": []}')],
    "provenance.json": [text('{"weights": []}'), text('{"weights": {"backbone.safetensors": 3}}'), text('{"commit": 3}')],
    "state.json": [
        without_keys,
        text('{"state": "asleep"}'),
        text('{"state": "running", "epoch": "three"}'),
        text('{"state": 1}'),
    ],
    "linear.json": [without_keys, text('{"protocol": "linear", "top1": "good"}'), text('{"protocol": 1}')],
    "knn.json": [without_keys, text('{"protocol": "knn", "top1_at": [1]}'), text('{"protocol": "knn", "top1_at": {"20": null}}')],
}
BROKEN = [(name, way) for name in FILES for way in (*WAYS.values(), *FILES[name])]


def shown(capsys, *arguments):
    status = main([*arguments, "--profile", "smoke"] if arguments[0] != "run" else list(arguments))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return status, captured


@pytest.mark.parametrize(("name", "way"), BROKEN)
def test_a_broken_file_of_one_run_is_named_and_the_others_are_shown(root, capsys, name, way):
    path = run_folder(RECIPE, 0, root) / name
    path.touch()
    way(path)
    place = ["--results", str(root)]
    status, captured = shown(capsys, "status", "table1", *place)
    assert status == 0
    *lines, counts = captured.out.splitlines()
    (line,) = [line for line in lines if line.startswith(f"{RECIPE} ")]
    assert line.split()[3] == "broken"
    assert str(path) in line
    assert [line.split()[3] for line in lines].count("done") == 5
    assert counts == "5 done, 1 broken, 2 missing"

    shown_json = json.loads(shown(capsys, "status", "table1", *place, "--json")[1].out)
    assert shown_json["counts"]["broken"] == 1
    (run,) = [run for run in shown_json["runs"] if run["state"] == "broken"]
    assert (run["recipe"], run["missing"]) == (RECIPE, list(STAGES))
    assert str(path) in run["detail"]

    for arguments in (["table", "table1"], ["run", "--recipe", RECIPE]):
        status, captured = shown(capsys, *arguments, *place, "--dry-run")
        assert status == 1
        (line,) = [line for line in captured.out.splitlines() if line.startswith(f"{RECIPE} ")]
        assert line.startswith(f"{RECIPE} seed 0: broken: ")
        assert str(path) in line
        assert captured.out.splitlines()[-1].endswith(", 1 broken")
        shown_json = json.loads(shown(capsys, *arguments, *place, "--dry-run", "--json")[1].out)
        (run,) = [run for run in shown_json["runs"] if "broken" in run]
        assert (run["recipe"], run["would_run"]) == (RECIPE, [])


def test_a_folder_that_is_a_file_is_a_broken_run(root, capsys):
    shutil.rmtree(run_folder(RECIPE, 0, root))
    run_folder(RECIPE, 0, root).write_text("", encoding="utf-8")
    status, captured = shown(capsys, "status", "table1", "--results", str(root))
    assert status == 0
    assert captured.out.splitlines()[-1] == "5 done, 1 broken, 2 missing"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_a_broken_run(root, capsys):
    (run_folder(RECIPE, 0, root) / "linear.json").chmod(0)
    status, captured = shown(capsys, "status", "table1", "--results", str(root))
    assert status == 0
    assert captured.out.splitlines()[-1] == "5 done, 1 broken, 2 missing"


@pytest.mark.parametrize("way", [*WAYS.values(), without_keys, text('{"chosen": 3}'), text('{"chosen": "no_such_recipe"}')])
def test_a_broken_choice_is_named_and_the_grids_are_shown(root, capsys, way):
    path = root / "smoke" / "tuning" / "sfrik.json"
    path.parent.mkdir()
    path.touch()
    way(path)
    for arguments in (["status", "table9"], ["table", "table9", "--dry-run"]):
        status, captured = shown(capsys, *arguments, "--results", str(root))
        assert status == (0 if arguments[0] == "status" else 1)
        assert len([line for line in captured.out.splitlines() if line.startswith("smoke/tune_")]) == 4
        (line,) = [line for line in captured.out.splitlines() if line.startswith("smoke/tuning/sfrik ")]
        assert "broken" in line
        assert str(path) in line


@pytest.mark.parametrize("way", [*WAYS.values(), text('{"hardware": 3}'), text('{"VICReg q=512 n=64": [1]}')])
def test_a_broken_file_of_costs_is_named(root, capsys, way):
    path = run_folder("smoke/complexity", 0, root) / "table5.json"
    path.parent.mkdir(parents=True)
    path.touch()
    way(path)
    status, captured = shown(capsys, "status", "table5", "table1", "--results", str(root))
    assert status == 0
    assert captured.out.splitlines()[-1] == "6 done, 1 broken, 2 missing"
    (line,) = [line for line in captured.out.splitlines() if line.startswith("smoke/complexity/table5 ")]
    assert str(path) in line


def test_the_listing_hashes_no_weights_reads_few_files_and_checks_a_recipe_once(tmp_path, monkeypatch):
    """It is to take seconds for thousands of runs."""
    seeds = range(3)
    for seed in seeds:
        for row in rows_of("table1", "smoke"):
            finished_run(tmp_path, row.recipe, seed)
    read, parsed = [], []
    read_bytes, parse = files.read_bytes, Settings.parse.__func__
    monkeypatch.setattr(files, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    monkeypatch.setattr(Settings, "parse", classmethod(lambda kind, *given: parsed.append(kind) or parse(kind, *given)))
    monkeypatch.setattr("sfrik.runs.cached.file_hash", lambda path: pytest.fail(f"{path} is hashed"))
    identity._parsed.cache_clear()
    load_recipe.cache_clear() if hasattr(load_recipe, "cache_clear") else None
    found, _ = tables_status(["table1"], "smoke", len(seeds), tmp_path)
    assert {status.state for status in found} == {"done"}
    records = [path for path in read if Path(path).is_relative_to(tmp_path)]
    assert len(records) <= 6 * len(found), "settings, provenance twice, three scores"
    assert len(parsed) <= 12 * len({status.recipe for status in found}), "however many seeds there are"


def test_numbers_that_no_time_is_made_of_do_not_end_the_listing(root):
    run = Run(run_folder("smoke/raw_pixels", 0, root))
    for left in ("NaN", "Infinity", "-Infinity", "1e308", "null"):
        run.folder.mkdir(parents=True, exist_ok=True)
        state = '{"state": "running", "stage": "pretrain", "epoch": 1, "epochs": 3, "loss": NaN, "seconds_left": %s}'
        (run.folder / "state.json").write_text(state % left, encoding="utf-8")
        status = run_status("smoke/raw_pixels", 0, STAGES, root)
        assert (status.state, status.detail[:28]) == ("stopped", "pretrain: epoch 2/3, loss na")
    (run.folder / "state.json").write_text('{"state": "running", "stage": "pretrain", "epoch": 1}', encoding="utf-8")
    assert run_status("smoke/raw_pixels", 0, STAGES, root).detail == "pretrain; its process is gone"


def test_the_dry_run_of_all_tables_names_the_one_that_cannot_be_rendered(root, capsys):
    path = run_folder("smoke/vicreg_q64", 0, root) / "linear.json"
    path.write_text("", encoding="utf-8")
    status, captured = shown(capsys, "table", "all", "--dry-run", "--results", str(root))
    assert status == 1
    assert f"table1: broken: {path} " in captured.out
    assert captured.out.splitlines()[-1] == "would render table2; trains nothing", "it shares another run"


# --- what reads a broken file ends with one line that names it


@pytest.mark.parametrize("name", ["linear.json", "knn.json", "provenance.json"])
@pytest.mark.parametrize("way", [way for kind, way in WAYS.items() if not kind.startswith("a ") or kind == "a list"])
def test_a_run_and_a_table_name_the_broken_file(root, capsys, name, way):
    path = run_folder(RECIPE, 0, root) / name
    way(path)
    for arguments in (["table", "table1"], ["run", "--recipe", RECIPE]):
        status, captured = shown(capsys, *arguments, "--results", str(root))
        assert status == 2
        (line,) = captured.err.splitlines()
        assert line.startswith("sfrik: error: ")
        assert str(path) in line
    assert Run(run_folder(RECIPE, 0, root)).state()["state"] == "failed"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_tables_pages_claims_and_choices_name_the_broken_file(root, tmp_path, way):
    cases = {
        "smoke/sfrik_l3_q64/seed0/linear.json": lambda: build_table("table1", "smoke", root),
        "smoke/sfrik_l2_q64/seed0/provenance.json": lambda: write_run_pages("smoke", root),
        "smoke/complexity/seed0/table6.json": lambda: build_table("table6", "smoke", root),
        "digits/tuning/sfrik.json": lambda: write_claims("digits", root),
        "smoke/tune_sfrik_128/seed0/linear_tune.json": lambda: write_choices("smoke", root),
    }
    for recipe in grids("smoke")["vicreg"]:
        finished_run(root, recipe, stages=("pretrain", "tune"))
    for name, read in cases.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        way(path)
        with pytest.raises(SfrikError, match=re.escape(str(path))) as error:
            read()
        assert len(str(error.value).splitlines()) == 1
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("knn.json", {"protocol": "knn", "top1_at": {"20": "good"}}, "top1_at.20"),
        ("linear.json", {"protocol": "linear", "top1": [50.0]}, "top1"),
        ("linear.json", {"protocol": "linear", "top1": True}, "top1"),
    ],
)
def test_a_score_that_is_not_a_number_is_refused_by_the_table(root, name, content, key):
    path = run_folder(RECIPE, 0, root) / name
    write_json(path, content)
    with pytest.raises(SfrikError, match=key):
        build_table("table1", "smoke", root)


def test_costs_and_epochs_that_are_not_numbers_are_refused_by_the_table(root):
    path = run_folder("smoke/complexity", 0, root) / "table6.json"
    path.parent.mkdir(parents=True)
    entry = rows_of("table6", "smoke")[0].entry
    write_json(path, {entry: {"loss_ms": "fast"}, "hardware": "cpu"})
    with pytest.raises(SfrikError, match=f"table6.json: {entry}.loss_ms is 'fast'"):
        build_table("table6", "smoke", root)
    Run(run_folder(RECIPE, 0, root)).log({"epoch": 1, "effective_rank": 3.0, "alignment": {}})
    with pytest.raises(SfrikError, match=r"metrics\.jsonl: alignment is"):
        build_table("table2", "smoke", root)


# --- why a run failed, in one line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no images in data: see --data-dir", "no images in data: see --data-dir"),
        (
            "notebook 02 failed with WorkerError (see x): rank 1 on node2 failed:\n"
            'Traceback (most recent call last):\n  File "a.py", line 3, in f\n    g()\n'
            "RuntimeError: Error(s) in loading state_dict for ResNet:\n\tMissing key(s)\n\tUnexpected key(s)\n",
            "notebook 02 failed with WorkerError (see x): rank 1 on node2 failed: "
            "RuntimeError: Error(s) in loading state_dict for ResNet:",
        ),
        (
            'Traceback (most recent call last):\n  File "a.py", line 3\nKeyError: 1\n\nDuring handling of the above exception, '
            'another exception occurred:\n\nTraceback (most recent call last):\n  File "b.py", line 4\n    h()\n    ^^^\n'
            "ValueError: the cause\n+--------+\n| a table |\n+--------+",
            "ValueError: the cause",
        ),
        ("the images are not there:\n  data/train\n  data/val", "the images are not there: data/train"),
        ("out of memory\nhint: a smaller batch\n", "out of memory"),
        ("\n \n", "no output"),
    ],
)
def test_a_failure_is_summarised_in_one_line_that_names_the_exception(text, line):
    assert error_summary(text) == line


def child(folder, log, code=2, state=None):
    """A process of a table that has ended, and what it left."""
    process = subprocess.Popen(["sh", "-c", f"exit {code}" if code >= 0 else f"kill {code} $$"])
    process.wait()
    before = "--- sfrik run, an earlier one ---\nsfrik: error: an old one\n"
    Run(folder).folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.log").write_text(f"{before}--- sfrik run, this one ---\n{log}", encoding="utf-8")
    if state:
        write_json(folder / "state.json", {"pid": process.pid, **state})
    begins = len(before) + len("--- sfrik run, this one ---\n")
    return local.RunProcess(stages.PlannedRun(RECIPE, 0, STAGES), process, folder / "run.log", 0.0, begins)


TRACE = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\nRuntimeError: boom\n'


@pytest.mark.parametrize(
    ("log", "code", "state", "reason"),
    [
        ("02_pretraining\nsfrik: error: no images\n", 2, None, "no images"),
        (
            f"sfrik: error: notebook 02 failed with WorkerError (see x): rank 0 on a failed:\n{TRACE}+---+\n| x |\n",
            2,
            None,
            "boom",
        ),
        (f"02_pretraining\n{TRACE}", 2, None, "RuntimeError: boom"),
        ("\x1b[31msfrik: error:\x1b[0m in colour\n", 2, None, "in colour"),
        ("02_pretraining\n", -9, None, "ended by SIGKILL, and "),
        ("", 3, None, "ended with status 3, and "),
        ("", 2, {"state": "failed", "error": f"rank 0 failed:\n{TRACE}"}, "rank 0 failed: RuntimeError: boom"),
        ("sfrik: error: mine\n", 2, {"state": "failed", "error": "of another", "pid": 1}, "mine"),
        ("sfrik: error: mine\n--- sfrik run, of another ---\n02_pretraining\n", 2, None, "mine"),
    ],
)
def test_the_reason_of_a_failed_run_is_of_its_own_attempt_and_one_line(tmp_path, log, code, state, reason):
    root = tmp_path / "results"
    scores, found = local._outcome(child(run_folder(RECIPE, 0, root), log, code, state), root)
    assert scores == ""
    assert reason in found
    assert "an old one" not in found
    assert len(found.splitlines()) == 1


def test_a_run_that_ended_well_with_a_broken_score_is_reported_as_failed(root):
    folder = run_folder(RECIPE, 0, root)
    (folder / "linear.json").write_text("", encoding="utf-8")
    assert local._outcome(child(folder, "", 0), root) == (
        "",
        f"{folder / 'linear.json'} is not valid JSON (it is empty): move it away and run again",
    )


@pytest.mark.parametrize(
    ("attempts", "detail"),
    [
        (["02\nsfrik: error: old\n", "02\nknn: top-1 50 %\nnext: python\n"], ""),
        (["02\nsfrik: error: old\n", "waiting for pid 3 on a\n"], ""),
        (["02\nsfrik: error: old\n", ""], ""),
        (["02\nsfrik: error: old\n", "02\nsfrik: error: new\n"], "new"),
        (["\x1b[31msfrik: error:\x1b[0m in colour\n"], "in colour"),
    ],
)
def test_an_older_attempts_error_is_not_that_of_the_last(tmp_path, attempts, detail):
    run = Run(run_folder(RECIPE, 0, tmp_path))
    run.folder.mkdir(parents=True)
    log = "".join(f"--- sfrik run, {number} ---\n{text}" for number, text in enumerate(attempts))
    (run.folder / "run.log").write_text(log, encoding="utf-8")
    status = run_status(RECIPE, 0, STAGES, tmp_path)
    assert (status.state, status.detail) == (("failed", detail) if detail else ("missing", ", ".join(STAGES)))
    with run.lock("run.lock"):
        assert run_status(RECIPE, 0, STAGES, tmp_path).state == "running"
