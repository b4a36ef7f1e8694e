"""Which runs are missing, and the choice from a grid, which is written before the test images are scored."""

from __future__ import annotations

import json
import os
import re
import threading
import time

import pytest
from finished import finished_run

from sfrik.cli.main import main
from sfrik.cost.measure import hardware
from sfrik.errors import Preempted, SfrikError
from sfrik.evaluate import evaluate
from sfrik.pretrain.loop import pretrain
from sfrik.reproduce import run as run_module
from sfrik.reproduce import table as table_module
from sfrik.reproduce.local import run_side_by_side
from sfrik.reproduce.run import run_recipe
from sfrik.reproduce.stages import PlannedRun, missing_stages, refusal
from sfrik.reproduce.table import make_table, render_all, writable_root, write_choices
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, PretrainSettings, recipe_settings, run_folder
from sfrik.system.devices import pick_device
from sfrik.system.files import WriteError, write_json
from sfrik.system.locks import folder_lock
from sfrik.tables.definitions import experiment, grids, rows_of
from sfrik.tables.render import write_table


def tuned(root, scores):
    """Write tuning scores of the smoke grids: those given of SFRIK, equal ones of VICReg."""
    for recipe, score in {"smoke/tune_vicreg_q64_sim5": 60.0, "smoke/tune_vicreg_q64_sim10": 60.0, **scores}.items():
        folder = run_folder(recipe, 0, root)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "linear_tune.json", {"protocol": "linear_tune", "top1": score})


def test_a_run_without_weights_misses_every_stage_and_an_unknown_stage_is_refused(tmp_path):
    assert missing_stages("smoke/sfrik_l3_q64", 0, tmp_path, ("pretrain", "semi")) == ["pretrain", "semi"]
    with pytest.raises(SfrikError, match=r"unknown stage 'semy' .*semi"):
        run_recipe("smoke/sfrik_l3_q64", 0, tmp_path, ("semy",))
    assert list(tmp_path.iterdir()) == []


def test_a_score_counts_where_it_is_and_weights_are_missing_only_where_a_stage_needs_them(tmp_path):
    recipe, stages = "smoke/sfrik_l3_q64", ("pretrain", "linear", "knn")
    run = finished_run(tmp_path, recipe, stages=stages)
    run.backbone.unlink()
    assert missing_stages(recipe, 0, tmp_path, stages) == []
    assert missing_stages(recipe, 0, tmp_path, ("pretrain",)) == ["pretrain"], "the weights are all that is asked for"
    (run.folder / "knn.json").unlink()
    assert missing_stages(recipe, 0, tmp_path, stages) == ["pretrain", "knn"]
    run.backbone.write_bytes(b"")  # cut short
    assert missing_stages(recipe, 0, tmp_path, stages) == ["pretrain", "knn"]


WRITING = {
    "table": ["table", "table1", "--profile", "smoke", "--results"],
    "a rendered table": ["table", "table1", "--profile", "smoke", "--render-only", "--results"],
    "all tables": ["table", "all", "--profile", "smoke", "--results"],
    "costs": ["table", "table6", "--profile", "smoke", "--results"],
    "run": ["run", "--recipe", "smoke/raw_pixels", "--results"],
    "notebooks": ["chapters", "--profile", "smoke", "--results"],
    "pretrain": ["pretrain", "--recipe", "smoke/raw_pixels", "--exp-dir"],
    "pretrain, dry": ["pretrain", "--recipe", "smoke/raw_pixels", "--dry-run", "--exp-dir"],
    "evaluate": ["evaluate", "--recipe", "smoke/raw_pixels", "--exp-dir"],
    "kNN": ["knn-eval", "--recipe", "smoke/raw_pixels", "--exp-dir"],
    "logistic regression": ["logistic-regression", "--recipe", "smoke/raw_pixels", "--exp-dir"],
    "transfer": ["transfer", "--recipe", "smoke/raw_pixels", "--target", "digits8x8", "--exp-dir"],
    "features": ["extract-features", "--recipe", "smoke/raw_pixels", "--exp-dir"],
    "features elsewhere": ["extract-features", "--recipe", "smoke/raw_pixels", "--extraction-dir"],
}


@pytest.mark.parametrize("command", WRITING.values(), ids=WRITING)
@pytest.mark.parametrize("place", ["results", "results/smoke/mine", "link"])
def test_no_command_but_publish_writes_into_the_published_results(command, place, tmp_path, monkeypatch, capsys):
    (tmp_path / "sfrik" / "recipes").mkdir(parents=True)  # another checkout than the one of the tests, such as a worktree
    (tmp_path / "results" / "smoke" / "mine").mkdir(parents=True)
    (tmp_path / "link").symlink_to("results")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([*command, place]) == 2
    assert re.search(f"error: {place}.* published results, which only sfrik publish changes", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


def test_published_results_are_refused_behind_links_and_a_folder_of_that_name_elsewhere_is_not(tmp_path, monkeypatch):
    checkout, disk, runs = (tmp_path / name for name in ("checkout", "disk", "runs"))
    for folder in (checkout / "sfrik" / "recipes", disk / "smoke" / "tables", runs / "digits", tmp_path / "results"):
        folder.mkdir(parents=True)
    (checkout / "results").symlink_to(disk)
    monkeypatch.setattr("sfrik.runs.refusals.published_root", lambda: checkout / "results")
    writable_root("smoke", runs)
    writable_root("smoke", tmp_path / "results")  # of no checkout
    (runs / "smoke").symlink_to(checkout / "results" / "smoke")
    (runs / "digits" / "tables").symlink_to(disk / "smoke" / "tables")
    for profile, root in {"smoke": disk, "paper": checkout / "results", "digits": runs}.items():
        with pytest.raises(SfrikError, match="part of the published results"):
            writable_root(profile, root)
    for command in (["table", "all"], ["table", "table8"], ["run", "--recipe", "smoke/raw_pixels"]):
        profile = [] if command[0] == "run" else ["--profile", "smoke", "--dry-run"]
        assert main([*command, *profile, "--results", str(runs)]) == 2
    assert sorted(path.name for path in disk.rglob("*")) == ["smoke", "tables"]


def test_the_choice_is_the_best_on_the_tuning_split_and_the_first_of_equals(tmp_path):
    tuned(tmp_path, {"smoke/tune_sfrik_q64_sim128": 70.0, "smoke/tune_sfrik_q64_sim256": 80.0})
    assert write_choices("smoke", tmp_path) == {
        "vicreg_q64": "smoke/tune_vicreg_q64_sim5",
        "sfrik_q64": "smoke/tune_sfrik_q64_sim256",
    }
    path = tmp_path / "smoke" / "tuning" / "sfrik_q64.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["chosen"] == "tune_sfrik_q64_sim256"
    assert written["tune_top1"] == {"smoke/tune_sfrik_q64_sim128": 70.0, "smoke/tune_sfrik_q64_sim256": 80.0}
    stamp = path.stat().st_mtime_ns
    write_choices("smoke", tmp_path)
    assert path.stat().st_mtime_ns == stamp, "the same scores write nothing"
    tuned(tmp_path, {"smoke/tune_sfrik_q64_sim128": 90.0})
    assert write_choices("smoke", tmp_path)["sfrik_q64"] == "smoke/tune_sfrik_q64_sim128"
    assert json.loads(path.read_text(encoding="utf-8"))["chosen"] == "tune_sfrik_q64_sim128"


def test_every_recipe_of_a_grid_refuses_its_test_images_before_the_choice():
    for profile in ("smoke", "digits"):
        for grid, recipes in grids(profile).items():
            for recipe in recipes:
                assert EvaluateSettings.from_recipe(recipe).choice == grid


def test_the_test_images_are_scored_after_the_choice_and_only_by_the_chosen_recipe(tmp_path):
    for recipe in ("smoke/tune_sfrik_q64_sim128", "smoke/tune_sfrik_q64_sim256"):
        folder = str(run_folder(recipe, 0, tmp_path))
        small = {"device": "cpu", "exp_dir": folder}
        pretrain(PretrainSettings.from_recipe(recipe, **small), progress=False)
        evaluate(EvaluateSettings.from_recipe(recipe, val_dataset="train", **small), progress=False)

    def on_test(recipe):
        given = {"exp_dir": str(run_folder(recipe, 0, tmp_path)), "device": "cpu"}
        return evaluate(EvaluateSettings.from_recipe(recipe, only_inference=True, **given), progress=False)

    with pytest.raises(SfrikError, match="the choice of grid sfrik_q64 is not recorded yet"):
        on_test("smoke/tune_sfrik_q64_sim256")
    tuned(tmp_path, {})
    chosen = write_choices("smoke", tmp_path)["sfrik_q64"]
    other = next(recipe for recipe in grids("smoke")["sfrik_q64"] if recipe != chosen)
    with pytest.raises(SfrikError, match=chosen.split("/")[1]):
        on_test(other)
    assert not Run(run_folder(other, 0, tmp_path)).folder.joinpath("linear_inference.json").exists()
    assert on_test(chosen)["images"] == 1000
    assert missing_stages(chosen, 0, tmp_path, ("inference",)) == ["inference"], "its notebook was not executed"


def test_rendering_all_tables_without_a_score_names_the_command_to_run(tmp_path):
    with pytest.raises(SfrikError, match=r"nothing has been measured .*make table1 PROFILE=smoke"):
        render_all("smoke", tmp_path)


def test_a_table_with_a_run_of_other_settings_computes_the_others_and_is_rendered_without_it(tmp_path, monkeypatch, capsys):
    recipes = [row.recipe for row in rows_of("table2", "smoke")]
    for recipe in recipes[:3]:
        run = finished_run(tmp_path, recipe)
    other = recipe_settings(recipes[2], 0).model_copy(update={"epochs": 1})
    write_json(run.folder / "settings.json", {"hash": other.hash(), "settings": other.what()})
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    executed = []
    monkeypatch.setattr(table_module, "run_side_by_side", lambda runs, *given: executed.extend(runs) or [])
    monkeypatch.setattr(table_module, "execute", lambda *given: None)
    monkeypatch.setattr(table_module, "_render", lambda name, profile, root, seeds: write_table(name, profile, root, seeds))
    assert make_table("table2", "smoke", jobs=1, root=tmp_path) == 1
    assert [run.recipe for run in executed] == recipes[3:]
    printed = capsys.readouterr()
    assert "table2: 4 runs, 2 finished here" in printed.out
    shown = " ".join(printed.out.split())
    assert (
        f"Not shown: {recipes[2]} seed 0: its settings are not the recipe's (epochs 1 -> 2): restore the recipe, or move" in shown
    )
    assert "Nothing is published for table2 in profile smoke" in shown
    assert printed.err == f"refused: {recipes[2]} seed 0: {refusal(recipes[2], 0, tmp_path)}\n"
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
    with pytest.raises(SfrikError, match=r"holds another run, .*epochs 1 -> 2.*: move that folder away, or restore the recipe"):
        run_recipe(recipes[2], 0, tmp_path)
    assert main(["table", "table2", "--profile", "smoke", "--results", str(tmp_path), "--dry-run"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{recipes[2]} seed 0: refused: {refusal(recipes[2], 0, tmp_path)}" in lines
    assert lines[-1] == f"4 runs in {tmp_path}: 2 finished, 1 to run, 1 refused"


def test_a_cost_that_was_measured_on_other_hardware_is_measured_again(tmp_path, monkeypatch):
    executed = []
    monkeypatch.setattr(table_module, "execute", lambda *arguments, **_: executed.append(arguments[1]["table"]))
    folder = run_folder("smoke/complexity", 0, tmp_path)
    folder.mkdir(parents=True)
    (folder / "06_complexity_table5.ipynb").write_text("{}", encoding="utf-8")
    rows = {row.entry: {} for row in experiment("table5", "smoke").rows("smoke")}
    write_json(folder / "table5.json", {**rows, "hardware": hardware(pick_device("auto"))})
    table_module._measure_costs("table5", "smoke", 0, tmp_path)
    assert executed == []
    write_json(folder / "table5.json", {**rows, "hardware": "cuda: another"})
    table_module._measure_costs("table5", "smoke", 0, tmp_path)
    assert executed == ["table5"]


def test_costs_that_another_process_measured_meanwhile_are_not_measured_again(tmp_path, monkeypatch):
    executed = []
    monkeypatch.setattr(table_module, "execute", lambda *arguments, **_: executed.append(arguments))
    folder = run_folder("smoke/complexity", 0, tmp_path)
    with folder_lock(folder, "run.lock"):
        waiting = threading.Thread(target=table_module._measure_costs, args=("table5", "smoke", 0, tmp_path))
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
        (folder / "06_complexity_table5.ipynb").write_text("{}", encoding="utf-8")
        rows = {row.entry: {} for row in experiment("table5", "smoke").rows("smoke")}
        write_json(folder / "table5.json", {**rows, "hardware": hardware(pick_device("auto"))})
    waiting.join(30)
    assert not waiting.is_alive()
    assert executed == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SfrikError("no images"), "no images"),
        (WriteError("x could not be written"), "x could not be written"),
        (OSError(28, "No space left on device", "x.ipynb"), "[Errno 28] No space left on device: 'x.ipynb'"),
        (RuntimeError("boom"), "RuntimeError: boom"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_the_state_of_a_run_that_fails_holds_the_reason_whatever_the_error(tmp_path, monkeypatch, error, reason):
    def fails(*arguments, **_):
        raise error

    monkeypatch.setattr(run_module, "execute", fails)
    with pytest.raises(type(error)):
        run_recipe("smoke/sfrik_l3_q64", 0, tmp_path, ("pretrain",))
    state = Run(tmp_path / "smoke" / "sfrik_l3_q64" / "seed0").state()
    assert (state["state"], state["stage"], state["error"]) == ("failed", "pretrain", reason)


def test_runs_whose_log_cannot_be_written_fail_and_the_others_continue(tmp_path):
    folder = tmp_path / "smoke" / "random_weights" / "seed0"
    (folder / "run.log").mkdir(parents=True)
    (tmp_path / "smoke" / "raw_pixels").write_text("", encoding="utf-8")
    third = tmp_path / "smoke" / "sfrik_l3_q64" / "seed0"
    third.mkdir(parents=True)
    os.mkfifo(third / "run.log")
    runs = [PlannedRun(f"smoke/{name}", 0, ("pretrain",)) for name in ("random_weights", "raw_pixels", "sfrik_l3_q64")]
    failed = run_side_by_side(runs, tmp_path, 1)
    assert [run for run, _ in failed] == runs
    assert "run.log is a folder" in failed[0][1]
    assert "raw_pixels" in failed[1][1]
    assert "run.log is a FIFO" in failed[2][1]


@pytest.mark.parametrize("done", [False, True])
def test_a_run_that_is_stopped_records_where_unless_everything_is_done(tmp_path, monkeypatch, done):
    run = Run(tmp_path / "smoke" / "sfrik_l3_q64" / "seed0")

    def stopped(*arguments, **_):
        run.update_status("running", stage="pretrain", epoch=3)
        if done:
            monkeypatch.setattr(run_module, "missing_stages", lambda *arguments: [])
        raise Preempted("stopped by SIGTERM (somewhere); the same command resumes from there")

    monkeypatch.setattr(run_module, "execute", stopped)
    with pytest.raises(Preempted):
        run_recipe("smoke/sfrik_l3_q64", 0, tmp_path, ("pretrain",))
    state = run.state()
    assert state is None if done else (state["state"], state["epoch"], state["stage"]) == ("preempted", 3, "pretrain")
