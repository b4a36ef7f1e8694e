"""`make tableN PROFILE=smoke` as a user runs it: interrupted, resumed, repeated; the notebooks run headless.

Runs that differ from others only in a coefficient or the objective are not executed: `finished_run` writes what they would leave.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from finished import finished_run
from rendered import assert_cells_are_scores

pytest.importorskip("psutil", reason="comes with ipykernel")
import psutil
from processes import HANG, wait_for

from sfrik.reproduce.run_log import last_attempt
from sfrik.tables.collect import build_table
from sfrik.tables.definitions import grids, rows_of

CHECKOUT = Path(__file__).parents[2]
# of tables 1 and 4, not executed; test_two_tables.py executes the notebooks on random weights
WRITTEN = ["smoke/random_weights", *(f"smoke/{name}_q64" for name in ("sfrik_l1", "sfrik_l2", "simclr", "auh", "vicreg"))]


def make(target: str, results: Path) -> list[str]:
    # VENV= : the interpreter that runs the tests, wherever it is
    return ["make", target, "PROFILE=smoke", "VENV=", f"RESULTS={results}"]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT)}


def executed_runs(results: Path) -> list[Path]:
    """The last notebook of each run of table 1 that was executed to its end."""
    found = sorted(results.glob("smoke/*/seed0/05_knn_and_logistic_regression.ipynb"))
    return [path for path in found if f"smoke/{path.parent.parent.name}" not in WRITTEN]


@pytest.fixture(scope="module")
def interrupted_then_finished(tmp_path_factory):
    """Table 1, killed by SIGKILL after its first run, then started again: the folder, and what was seen."""
    results = tmp_path_factory.mktemp("results")
    for recipe in WRITTEN:
        finished_run(results, recipe, stages=("pretrain", "linear", "knn", "semi"))
    command = make("table1", results)
    patient = {**environment(), "SFRIK_GRACE": str(2 * HANG)}  # what does not end by itself is not killed within the test's time
    first = subprocess.Popen(command, cwd=CHECKOUT, env=patient, stdout=subprocess.PIPE, encoding="utf-8")
    # a run is finished with its last executed notebook, which follows its last score
    wait_for(lambda: executed_runs(results) or first.poll() is not None, 2 * HANG, "a finished run")
    assert first.poll() is None, first.stdout.read()
    done = executed_runs(results)
    family = psutil.Process(first.pid).children(recursive=True)
    for process in [psutil.Process(first.pid), *family[:1]]:  # make, and the Python that it started
        process.send_signal(signal.SIGKILL)
    first.wait()
    _, left = psutil.wait_procs(family, timeout=HANG)
    stamps = {path: path.stat().st_mtime_ns for path in done}
    second = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, encoding="utf-8")
    return {"results": results, "left": left, "stamps": stamps, "second": second}


def test_a_killed_make_leaves_no_process_behind(interrupted_then_finished):
    assert interrupted_then_finished["left"] == []


def test_the_same_command_resumes_where_it_was_killed(interrupted_then_finished):
    second = interrupted_then_finished["second"]
    assert second.returncode == 0, second.stdout + second.stderr
    finished = int(re.search(r"(\d+) finished here", second.stdout).group(1))
    assert finished >= len(WRITTEN) + len(interrupted_then_finished["stamps"]) >= len(WRITTEN) + 1
    for path, stamp in interrupted_then_finished["stamps"].items():
        assert path.stat().st_mtime_ns == stamp, f"{path} was measured twice"


def test_every_cell_of_table1_is_measured(interrupted_then_finished):
    folder = interrupted_then_finished["results"] / "smoke"
    assert_cells_are_scores(folder, "table1")
    for suffix in ("md", "tex"):
        assert "SFRIK L=3" in (folder / "tables" / f"table1.{suffix}").read_text(encoding="utf-8")
    for suffix in ("png", "svg"):
        assert (folder / "figures" / f"table1.{suffix}").stat().st_size > 1000


def test_the_executed_notebooks_are_beside_the_scores_and_have_run_to_the_end(interrupted_then_finished):
    folder = interrupted_then_finished["results"] / "smoke"
    run = folder / "sfrik_l3_q64" / "seed0"
    stages = ("02_pretraining", "03_linear_probing", "05_knn_and_logistic_regression")
    paths = [run / f"{stage}.ipynb" for stage in stages]
    paths += [folder / "notebooks" / "07_table1.ipynb"]
    for path in paths:
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in cells), path
        outputs = [output for cell in cells for output in cell["outputs"]]
        assert not [output for output in outputs if output.get("name") == "stderr"], f"warnings in {path}"
        if path.parent == run:
            tags = [tag for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for tag in cell["metadata"]["tags"]]
            assert "injected-parameters" in tags
            assert "explore" not in tags, "a run of a table leaves out what is only for the reader"


def test_nothing_that_is_published_names_a_place_or_a_host(interrupted_then_finished):
    folder = interrupted_then_finished["results"]
    places = {str(CHECKOUT), str(Path.home()), str(folder), sys.prefix, socket.gethostname()} - {"/", "localhost"}
    published = [path for suffix in ("json", "jsonl", "ipynb", "csv", "md", "tex", "svg") for path in folder.rglob(f"*.{suffix}")]
    assert len(published) > 50
    for path in published:
        text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))  # images are random letters
        for place in places:
            assert not re.search(rf"(?<!\w){re.escape(place)}\b", text), f"{path} holds {place}"


def test_a_second_make_trains_nothing_and_changes_no_file(interrupted_then_finished):
    folder = interrupted_then_finished["results"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")}
    again = subprocess.run(make("table1", folder), cwd=CHECKOUT, env=environment(), capture_output=True, encoding="utf-8")
    assert again.returncode == 0, again.stderr
    count = len(rows_of("table1", "smoke"))
    assert f"{count} runs, {count} finished here" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")} == before


@pytest.fixture(scope="module")
def other_tables(interrupted_then_finished):
    """Tables 4, 6 and 9 beside table 1, then all of them rendered: the standard output of each by its name."""
    results = interrupted_then_finished["results"]
    finished_run(results, "smoke/tune_vicreg_q64_sim5", stages=("pretrain", "tune", "inference"))
    for recipe in ("smoke/tune_vicreg_q64_sim10", "smoke/tune_sfrik_q64_sim128"):
        finished_run(results, recipe, stages=("pretrain", "tune"), top1=1.0)  # not chosen
    printed = {}
    for target in ("table4", "table6", "table9", "tables"):
        done = subprocess.run(make(target, results), cwd=CHECKOUT, env=environment(), capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr
        printed[target] = done.stdout
    return results / "smoke", printed


@pytest.mark.parametrize("name", ["table4", "table6", "table9"])
def test_another_table_has_all_its_cells_and_its_executed_notebooks(other_tables, name):
    folder, _ = other_tables
    table = build_table(name, "smoke", folder.parent)
    for measured in table.measured:
        empty = {column.name for column in table.columns if measured.mean(column.name) is None}
        # memory below a page has no ratio; of a grid only the choice is scored on the test images
        assert empty <= {"table6": {"loss_memory_ratio"}, "table9": {"test_top1"}}.get(name, set()), measured.row
    assert (folder / "notebooks" / f"07_{name}.ipynb").is_file()
    assert (folder / "figures" / f"{name}.svg").is_file()


def test_table4_trains_nothing_that_table1_has_trained(other_tables):
    folder, printed = other_tables
    stages = last_attempt((folder / "sfrik_l3_q64" / "seed0" / "run.log").read_text(encoding="utf-8"))
    assert "04_semi_supervised" in stages
    assert "02_pretraining" not in stages
    assert "table4: 3 runs, 2 finished here" in printed["table4"]


def test_each_grid_of_table9_has_one_choice_and_only_that_one_has_a_test_score(other_tables):
    folder, _ = other_tables
    for grid, recipes in grids("smoke").items():
        choice = json.loads((folder / "tuning" / f"{grid}.json").read_text(encoding="utf-8"))
        scored = [recipe for recipe in recipes if (folder.parent / recipe / "seed0" / "linear_inference.json").is_file()]
        assert [recipe.split("/")[1] for recipe in scored] == [choice["chosen"]]
        assert choice["tune_top1"][scored[0]] == max(choice["tune_top1"].values())


def test_make_tables_renders_every_table_with_a_score_in_one_notebook_and_names_them(other_tables):
    folder, printed = other_tables
    # the runs of table 1 and 4 fill rows of tables 2, 3 and 7 too
    assert re.search(r"tables in .*: table1, table2, table3, table4, table6, table7, table9", printed["tables"])
    assert (folder / "notebooks" / "07_tables.ipynb").is_file()


def test_make_alone_prints_the_targets():
    printed = subprocess.run(["make"], cwd=CHECKOUT, capture_output=True, encoding="utf-8", check=True).stdout
    for target in ("setup", "table1", "tables", "test", "lab"):
        assert re.search(rf"^  {target} ", printed, re.MULTILINE)
