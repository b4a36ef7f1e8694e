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
from sfrik.reproduce.publishable import name_runs
from sfrik.reproduce.run_log import error_summary
from sfrik.reproduce.status import run_status, tables_status
from sfrik.reproduce.table import write_choices
from sfrik.runs.folder import Run
from sfrik.settings import Settings, identity, load_recipe, published_root, run_folder
from sfrik.system import files
from sfrik.system.files import write_json
from sfrik.tables.claim_pages import write_claims
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


def listed(captured):
    """The lines of the states, and those of the runs that are not done."""
    lines = captured.out.splitlines()
    return lines[: lines.index("")], lines[lines.index("") + 1 :]


@pytest.mark.parametrize(("name", "way"), BROKEN)
def test_a_broken_file_of_one_run_is_named_and_the_others_are_shown(root, capsys, name, way):
    path = run_folder(RECIPE, 0, root) / name
    path.touch()
    way(path)
    place = ["--results", str(root)]
    status, captured = shown(capsys, "status", "table1", *place)
    assert status == 0
    counts, lines = listed(captured)
    (line,) = [line for line in lines if line.startswith(f"{RECIPE} ")]
    assert line.split()[3] == "broken"
    assert str(path) in line
    assert [line.split()[3] for line in lines] == ["broken", "missing", "missing"], "what is done is only counted"
    assert counts == ["done     5", "broken   1", "missing  2"]

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
    assert listed(captured)[0] == ["done     5", "broken   1", "missing  2"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_a_broken_run(root, capsys):
    (run_folder(RECIPE, 0, root) / "linear.json").chmod(0)
    status, captured = shown(capsys, "status", "table1", "--results", str(root))
    assert status == 0
    assert listed(captured)[0] == ["done     5", "broken   1", "missing  2"]


@pytest.mark.parametrize("way", [*WAYS.values(), without_keys, text('{"chosen": 3}'), text('{"chosen": "no_such_recipe"}')])
def test_a_broken_choice_is_named_and_the_grids_are_shown(root, capsys, way):
    path = root / "smoke" / "tuning" / "sfrik_q64.json"
    path.parent.mkdir()
    path.touch()
    way(path)
    for arguments in (["status", "table9"], ["table", "table9", "--dry-run"]):
        status, captured = shown(capsys, *arguments, "--results", str(root))
        assert status == (0 if arguments[0] == "status" else 1)
        assert len([line for line in captured.out.splitlines() if line.startswith("smoke/tune_")]) == 4
        (line,) = [line for line in captured.out.splitlines() if line.startswith("smoke/tuning/sfrik_q64 ")]
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
    assert listed(captured)[0] == ["done     6", "broken   1", "missing  2"]
    (line,) = [line for line in captured.out.splitlines() if line.startswith("smoke/complexity/table5  repetition 0 ")]
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


# --- what is listed


def test_each_state_is_counted_and_what_is_not_done_is_listed_by_state_with_missing_seeds_on_one_line(root, capsys):
    write_json(run_folder("smoke/raw_pixels", 1, root) / "state.json", {"state": "failed", "stage": "knn", "error": "no images"})
    other = finished_run(root, RECIPE, 2)
    (other.folder / "settings.json").unlink()
    write_json(other.folder / "settings.json", {"hash": "", "settings": {"epochs": 1}})
    with Run(run_folder(RECIPE, 1, root)).lock("run.lock"):
        Run(run_folder(RECIPE, 1, root)).update_status("running", stage="linear", epoch=1, epochs=4, seconds_left=0.2)
        counts, lines = listed(shown(capsys, "status", "table1", "--seeds", "4", "--results", str(root))[1])
    assert counts == ["done      6", "running   1", "failed    1", "refused   1", "missing  23"]
    assert re.fullmatch(rf"{RECIPE}    seed 1 +running  linear: epoch 2/4, on \S+", lines[0]), "no time is left below a second"
    assert re.fullmatch(r"smoke/raw_pixels      seed 1 +failed   knn: no images", lines[1])
    assert re.fullmatch(rf"{RECIPE}    seed 2 +refused  .* holds another run, .*", lines[2])
    assert lines[3:5] == [
        "smoke/simclr_q64      seeds 1 to 3   missing  pretrain, linear, knn",
        "smoke/auh_q64         seeds 1 to 3   missing  pretrain, linear, knn",
    ]
    assert lines[-1] == "smoke/raw_pixels      seeds 0, 2, 3  missing  pretrain, linear, knn"


def test_published_runs_that_are_missing_here_are_listed_as_published(tmp_path, monkeypatch, capsys):
    published = tmp_path / "results"
    monkeypatch.setattr("sfrik.reproduce.status.published_root", lambda: published)
    for seed, top1 in enumerate((90.0, 92.0)):
        run = finished_run(published, RECIPE, seed)
        write_json(
            run.folder / "linear.json", {**json.loads((run.folder / "linear.json").read_text(encoding="utf-8")), "top1": top1}
        )
        for weights in run.folder.glob("*.safetensors"):
            weights.unlink()
    finished_run(tmp_path / "runs", RECIPE, 1)
    finished_run(published, "smoke/auh_q64")
    (run_folder("smoke/auh_q64", 0, published) / "linear.json").write_text("", encoding="utf-8")
    place = ["--results", str(tmp_path / "runs"), "--seeds", "3"]
    counts, lines = listed(shown(capsys, "status", "table1", *place)[1])
    assert counts[0] == f"1 of 24 runs are yours ({tmp_path}/runs/); 3 are published ({published}/)"
    assert counts[1:] == ["done      1", "missing  23"]
    of_recipe = [line.split(maxsplit=2)[2] for line in lines if line.startswith(f"{RECIPE} ")]
    assert [" ".join(line.split()) for line in of_recipe] == [
        "0 missing published: 91.0 % linear, n = 2",
        "2 missing pretrain, linear, knn",
    ]
    runs = json.loads(shown(capsys, "status", "table1", *place, "--json")[1].out)["runs"]
    scores = {(run["recipe"], run["seed"]): run["published"] for run in runs}
    assert scores[RECIPE, 0]["linear"] == {"top1": 90.0, "mean": 91.0, "n": 2}
    assert scores[RECIPE, 2] == {}
    assert "linear" not in scores["smoke/auh_q64", 0], "a published score that cannot be read is not shown"
    assert not any(
        run["published"] for run in json.loads(shown(capsys, "status", "--results", str(published), "--json")[1].out)["runs"]
    )


def test_what_tables_of_costs_lack_is_counted_in_repetitions(tmp_path, capsys):
    place = ["--profile", "smoke", "--results", str(tmp_path), "--seeds", "2"]
    assert main(["status", "table1", "table5", *place]) == 0
    lines = capsys.readouterr().out.splitlines()
    numbers = {line.split()[0]: " ".join(line.split()[1:5]) for line in lines if line.startswith("smoke/")}
    assert numbers["smoke/complexity/table5"] == "repetitions 0 to 1"
    assert numbers[RECIPE] == "seeds 0 to 1"
    assert main(["table", "table6", *place, "--dry-run"]) == 0
    assert "smoke/complexity/table6 repetition 1: would run table6" in capsys.readouterr().out
    assert name_runs([("smoke/complexity", 1), (RECIPE, 1)]) == f"smoke/complexity repetition 1; {RECIPE} seed 1"


def test_a_fresh_clone_shows_what_is_published(tmp_path, capsys):
    assert main(["status", "table1", "--results", str(tmp_path)]) == 0
    counts, lines = listed(capsys.readouterr())
    assert counts == [f"0 of 16 runs are yours ({tmp_path}/); 16 are published ({published_root()}/)", "missing  16"]
    assert all(re.search(r"seed 0  missing  published: \d+\.\d % linear, n = \d+$", line) for line in lines)
    assert max(map(len, lines)) <= 80


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
        "digits/tuning/sfrik_q512.json": lambda: write_claims("digits", root),
        "smoke/tune_sfrik_q64_sim128/seed0/linear_tune.json": lambda: write_choices("smoke", root),
    }
    for recipe in grids("smoke")["vicreg_q64"]:
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


def test_a_run_that_ended_well_is_reported_with_its_scores_and_one_with_a_broken_score_as_failed(root):
    folder = run_folder(RECIPE, 0, root)
    scores = "linear 50.0 %, knn 50.0 %, logistic 50.0 %, 20-NN 50.0 %"  # a knn.json of the library has no top1
    assert local._outcome(child(folder, "", 0), root) == (scores, "")
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
