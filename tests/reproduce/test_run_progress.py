"""While runs train: live lines on a terminal, plain lines elsewhere, and how long the rest takes."""

from __future__ import annotations

import json
import sys
import warnings
from types import SimpleNamespace

import pytest
from screen import Terminal, shown

from sfrik.reproduce import local, run_progress
from sfrik.reproduce.run_progress import Forecast, StageClock, format_progress
from sfrik.reproduce.stages import PlannedRun
from sfrik.settings import run_folder
from sfrik.system import live
from sfrik.system.live import LiveLines
from sfrik.system.progress import time_left
from sfrik.system.terminal import print_line

STAGES = ("pretrain", "linear", "knn")
SECONDS = 11  # that each stage of a run takes


class Runs:
    """Runs without processes, and the clock that they follow. Each stage takes `SECONDS`; a seed 1 fails in its second stage."""

    def __init__(self, root, monkeypatch):
        self.root, self.now, self.hooks, self.stopped = root, 0.0, {}, []
        for module in (run_progress, local):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))
        monkeypatch.setattr(run_progress, "missing_stages", lambda recipe, seed, root, stages, present: stages)
        monkeypatch.setattr(local, "_start", self.start)
        monkeypatch.setattr(local, "_outcome", lambda ended, root: ("linear 50.0 %", "" if ended.run.seed != 1 else "no images"))

    def sleep(self, seconds):
        self.now += max(0.5, seconds)  # faster than the command asks
        for at in [at for at in self.hooks if at <= self.now]:
            self.hooks.pop(at)()

    def start(self, run, root, jobs, data_dir):
        began, folder = self.now, run_folder(run.recipe, run.seed, root)
        folder.mkdir(parents=True)

        def poll():
            done = (self.now - began) / SECONDS
            if done >= (len(run.stages) if run.seed != 1 else 1.6):
                return 0
            part = done % 1
            epoch = {"epoch": int(part * 4), "epochs": 4, "loss": 1.5, "seconds_left": SECONDS * (1 - part)}
            state = {"state": "running", "stage": run.stages[int(done)], **(epoch if done < 2 else {})}
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
            return None

        process = SimpleNamespace(poll=poll, terminate=lambda: self.stopped.append(run), wait=lambda timeout: None)
        return local.RunProcess(run, process, folder / "run.log", began)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return Runs(tmp_path, monkeypatch)


@pytest.fixture
def terminal(monkeypatch):
    """Makes a terminal of stdout and stderr."""
    made = []

    def make(columns, rows=24):
        made.append(Terminal(columns, rows))
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, made[-1].stream)
        return made[-1]

    yield make
    monkeypatch.undo()
    for found in made:
        if not found.stream.closed:
            found.close()


def planned(*names, seeds=1):
    return [PlannedRun(f"smoke/{name}", seed, STAGES) for seed in range(seeds) for name in names]


NAMES = ("auh_q64", "crops_sfrik_l3_q512_swav")


# --- on a terminal


@pytest.mark.parametrize("columns", [80, 140])
def test_a_terminal_shows_a_line_for_each_running_run_and_one_for_all_below_those_that_have_ended(runs, terminal, columns):
    found, views = terminal(columns), {}
    for at in (2.5, 12.5, 27.5, 43.0):
        runs.hooks[at] = lambda at=at: views.update({at: len(found.written())})
    assert local.run_side_by_side(planned(*NAMES, seeds=2), runs.root, 2) == [
        (run, "no images") for run in planned(*NAMES, seeds=2)[2:]
    ]
    output = found.close()
    before = {at: shown(plain(output[:end]), columns) for at, end in views.items()}
    first = "smoke/" if columns == 140 else ""
    assert before[2.5] == (
        [
            f"{first}auh_q64 seed 0                   pretrain: epoch 1/4, loss 1.5000, 9 s left",
            f"{first}crops_sfrik_l3_q512_swav seed 0  pretrain: epoch 1/4, loss 1.5000, 9 s left",
            "0 of 4 runs done, about 64 s left",
        ],
        (0, 0),
    ), "the cursor is at the start of the first line"
    assert before[12.5][0][0].endswith("  linear: epoch 1/4, loss 1.5000, 10 s left")
    assert before[27.5][0][1:] == [f"{first}crops_sfrik_l3_q512_swav seed 0  knn", "0 of 4 runs done, about 39 s left"]
    assert before[43.0][0][:2] == [f"[{n}/4] smoke/{name} seed 0: linear 50.0 %, 33 s" for n, name in enumerate(NAMES, 1)]
    assert before[43.0][0][2].startswith(f"{first}auh_q64 seed 1")
    lines, cursor = shown(plain(output), columns)
    assert lines[2:] == [f"[{n}/4] smoke/{name} seed 1: failed after 18 s: no images" for n, name in enumerate(NAMES, 3)] + [""]
    assert cursor == (4, 0)


def plain(output):
    """Output without colours, which have no width."""
    return output.replace("\x1b[31m", "").replace("\x1b[0m", "")


def test_the_lines_fit_a_terminal_that_is_resized(runs, terminal):
    found = terminal(140)
    views = {}

    def resize(columns, rows=24):
        views[len(found.written())] = columns
        found.resize(columns, rows)

    runs.hooks = {5.0: lambda: resize(60), 10.0: lambda: resize(30), 15.0: lambda: resize(0, 0), 20.0: lambda: resize(100)}
    local.run_side_by_side(planned(*NAMES), runs.root, 2)
    output = found.close()
    assert len(views) == 4
    starts = [0, *views, len(output)]
    for begin, end, columns in zip(starts, starts[1:], (140, 60, 30, 80, 100), strict=False):
        shown(output[begin:end], columns)


def test_what_is_printed_meanwhile_is_above_the_lines(runs, terminal):
    found = terminal(80)
    runs.hooks = {
        2.5: lambda: print_line("from print_line"),
        3.5: lambda: print("from print, on stderr", file=sys.stderr),
        4.5: lambda: sys.stderr.write(warnings.formatwarning("a warning", UserWarning, "x.py", 3, "")),
        5.5: lambda: print("no end of ", end=""),
        7.5: lambda: print("a line"),
    }
    local.run_side_by_side(planned("auh_q64"), runs.root, 1)
    lines, _ = shown(found.close(), 80)
    assert lines[:3] == ["from print_line", "from print, on stderr", "x.py:3: UserWarning: a warning"]
    assert [line for line in lines if line.strip()][3:] == ["no end of a line", "[1/1] smoke/auh_q64 seed 0: linear 50.0 %, 33 s"]
    assert sys.stdout is found.stream


def test_ctrl_c_removes_the_lines_and_stops_the_runs(runs, terminal):
    found = terminal(80)

    def interrupt():
        raise KeyboardInterrupt

    runs.hooks = {12.0: interrupt}
    with pytest.raises(KeyboardInterrupt):
        local.run_side_by_side(planned(*NAMES), runs.root, 2)
    assert runs.stopped == planned(*NAMES)
    assert sys.stdout is found.stream
    lines, cursor = shown(found.close(), 80)
    assert (lines, cursor) == (["stopping 2 runs, which save first", ""], (1, 0))


def test_a_terminal_that_is_gone_ends_no_work(runs, monkeypatch):
    found = Terminal(80)
    monkeypatch.setattr(sys, "stdout", found.stream)
    runs.hooks = {5.0: found.hang_up}
    assert local.run_side_by_side(planned(*NAMES), runs.root, 2) == []
    monkeypatch.undo()
    found.close()


def test_more_lines_than_the_screen_has_are_counted(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    found = terminal(40, 6)
    with LiveLines() as lines:
        lines.show([f"line {number}" for number in range(20)])
    output = found.close()
    assert shown(output[: output.rindex(live.ERASE)], 40)[0] == ["line 0", "line 1", "line 2", "(16 more)", "line 19"]


# --- elsewhere


@pytest.mark.parametrize("term", [None, "dumb", ""])
def test_without_a_terminal_plain_lines_report_starts_ends_and_each_minute_the_progress(
    runs, terminal, monkeypatch, capsys, term
):
    if term is not None:
        found = terminal(80)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("NO_COLOR", "1")
    local.run_side_by_side(planned("auh_q64", "vicreg_q64", seeds=2) + planned("simclr_q64"), runs.root, 1)
    output = capsys.readouterr().out if term is None else found.close().replace("\r\n", "\n")
    assert {character for character in output if not character.isprintable()} == {"\n"}
    assert output.splitlines() == [
        "smoke/auh_q64 seed 0: started (pretrain, linear, knn)",
        "[1/5] smoke/auh_q64 seed 0: linear 50.0 %, 33 s; about 2 min left",
        "smoke/vicreg_q64 seed 0: started (pretrain, linear, knn)",
        "smoke/vicreg_q64 seed 0  knn",
        "1 of 5 runs done, about 2 min left",
        "[2/5] smoke/vicreg_q64 seed 0: linear 50.0 %, 33 s; about 99 s left",
        "smoke/auh_q64 seed 1: started (pretrain, linear, knn)",
        "[3/5] smoke/auh_q64 seed 1: failed after 18 s: no images",
        "smoke/vicreg_q64 seed 1: started (pretrain, linear, knn)",
        "[4/5] smoke/vicreg_q64 seed 1: failed after 18 s: no images",
        "smoke/simclr_q64 seed 0: started (pretrain, linear, knn)",
        "smoke/simclr_q64 seed 0  linear: epoch 3/4, loss 1.5000, 3 s left",
        "2 of 5 runs done, 2 failed, about 14 s left",
        "[5/5] smoke/simclr_q64 seed 0: linear 50.0 %, 33 s",
    ]


# --- the time left


def test_a_time_left_is_never_negative_nor_below_a_second_nor_made_of_nothing():
    for seconds in (None, 0, 0.99, -5, float("nan"), float("inf"), float("-inf"), 1e308):
        assert time_left(seconds, ", about ") == ""
    assert time_left(1.0, ", about ") == ", about 1 s left"


def test_the_progress_of_a_run_that_no_longer_runs_has_no_time_left():
    facts = {"stage": "pretrain", "epoch": 4, "epochs": 4, "loss": float("nan"), "seconds_left": 9.0}
    assert format_progress(facts) == "pretrain: epoch 4/4, loss nan, 9 s left"
    assert format_progress(facts, running=False) == "pretrain: epoch 4/4, loss nan"
    assert format_progress({}) == "starting"


@pytest.fixture
def clock(monkeypatch):
    """Sets the time."""
    now = SimpleNamespace(now=0.0)
    monkeypatch.setattr(run_progress, "time", SimpleNamespace(monotonic=lambda: now.now))
    return now


def test_nothing_is_estimated_before_an_epoch_or_a_stage_has_ended(clock):
    forecast, run = Forecast(), StageClock(STAGES, began=0.0)
    assert forecast.left([run], [STAGES], 1) is None
    clock.now = 5.0
    run.read({"stage": "pretrain"}, forecast)
    assert forecast.left([run], [STAGES], 1) is None
    run.read({"stage": "pretrain", "epoch": 0, "epochs": 4}, forecast)
    assert forecast.left([run], [STAGES], 1) is None
    clock.now = 10.0
    run.read({"stage": "pretrain", "epoch": 1, "epochs": 4}, forecast)
    assert forecast.left([run], [STAGES], 1) == 30 + 2 * 40 + 3 * 40, "10 s an epoch; the other stages count as much"


def test_stages_that_were_finished_before_do_not_distort_the_estimate(clock):
    forecast = Forecast()
    resumed = StageClock(("knn",), began=0.0)  # the others were finished by an earlier command
    resumed.read({"stage": "knn"}, forecast)
    clock.now = 6.0
    resumed.end(forecast, resumed.remaining)
    whole = StageClock(STAGES, began=6.0)
    whole.read({"stage": "pretrain", "seconds_left": 90.0}, forecast)
    clock.now = 16.0
    whole.read({"stage": "pretrain", "seconds_left": 90.0}, forecast)
    assert forecast.left([whole], [("knn",), ("linear", "knn")], 1) == (90 + 6 + 6) + 6 + (6 + 6), "linear: as the shortest known"
    assert forecast.left([whole], [("knn",), ("linear", "knn")], 2) == 102, "not less than the longest run takes"


def test_a_stage_that_is_resumed_counts_as_a_whole_one_for_the_runs_that_wait(clock):
    forecast, before = Forecast(), {"stage": "pretrain", "epoch": 15, "epochs": 20}
    run = StageClock(("pretrain",), began=0.0, before=before)
    run.read(before, forecast)
    assert run.facts == {}, "what an earlier attempt wrote"
    run.read({"stage": "pretrain", "epoch": 15, "epochs": 20, "seconds_left": 50.0}, forecast)
    assert forecast.left([run], [("pretrain",)], 1) == 50 + 200
    clock.now = 50.0
    run.end(forecast, run.remaining)
    assert forecast.left([], [("pretrain",)], 1) == 200


def test_the_last_run_and_a_run_that_takes_longer_than_the_others_have_no_time_left(clock):
    forecast = Forecast()
    forecast.add("knn", 10.0)
    assert forecast.left([], [], 4) == 0.0
    run = StageClock(("knn",), began=0.0)
    run.read({"stage": "knn"}, forecast)
    clock.now = 300.0
    assert forecast.left([run], [], 4) == 0.0
