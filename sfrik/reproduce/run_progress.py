"""The progress of the runs of a table: what each is doing, from its state.json, and the time left."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from sfrik.reproduce.present import PresentImages
from sfrik.reproduce.stages import STAGES, PlannedRun, missing_stages
from sfrik.runs.folder import Run
from sfrik.settings import run_folder
from sfrik.system.live import LiveLines
from sfrik.system.progress import duration, time_left
from sfrik.system.terminal import align, paint, print_line

__all__ = ["Forecast", "StageClock", "TableProgress", "format_progress"]

REPORT_SECONDS = 60.0  # between two reports of the running runs in a log
READ_SECONDS = 1.0  # between two looks at their state.json
LONGEST_TEXT = 48  # characters: pretrain: epoch 12/100, loss 1.2345, 3 h 20 min left


class TableProgress:
    """Reports the runs of a table, which are executed in processes of their own.

    A run that has ended gets a line. What the others are doing is drawn below these lines on a terminal; in a log it is printed
    once a minute.

    Args:
        root: the folder of the results.
        jobs: the number of runs in parallel.
        present: the images, as `missing_stages` compares them.
    """

    def __init__(self, runs: Sequence[PlannedRun], root: str | Path, jobs: int, present: PresentImages | None = None) -> None:
        self._root, self._jobs, self._live = root, jobs, LiveLines()
        self._total, self._failed, self._forecast = len(runs), 0, Forecast()
        self._waiting = {run: tuple(missing_stages(run.recipe, run.seed, root, run.stages, present)) for run in runs}
        self._running: dict[PlannedRun, StageClock] = {}
        self._started = self._reported = time.monotonic()
        self._read = 0.0

    def __enter__(self) -> TableProgress:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(*error)

    def start(self, run: PlannedRun) -> None:
        """Report a run whose process is about to be started."""
        clock = StageClock(self._waiting.pop(run), time.monotonic(), self._state(run))
        self._running[run] = clock
        if not self._live.possible:
            print_line(f"{_name(run)}: started ({', '.join(clock.missing)})")

    def end(self, run: PlannedRun, scores: str = "", reason: str = "") -> None:
        """Report a run that has ended: its scores, or the reason why it failed."""
        clock = self._running.pop(run)
        after = duration(time.monotonic() - clock.began)
        if reason:
            self._failed += 1
            text = paint(f"failed after {after}: {reason}", "red")
        else:
            clock.end(self._forecast, clock.remaining)
            text = f"{scores}, {after}{'' if self._live.possible else self._left('; about ')}"
        print_line(f"[{self._ended}/{self._total}] {_name(run)}: {text}")

    def refresh(self) -> None:
        """Report what the runs are doing, if it is time to."""
        now = time.monotonic()
        if not self._running or now - self._read < READ_SECONDS:
            return
        self._read = now
        for run, clock in self._running.items():
            clock.read(self._state(run), self._forecast)
        if self._live.possible:
            self._live.show(self._lines(self._live.size[0]))
        elif now - self._reported >= REPORT_SECONDS:
            self._reported = now
            print_line("\n".join(self._lines()))

    @property
    def _ended(self) -> int:
        return self._total - len(self._waiting) - len(self._running)

    def _state(self, run: PlannedRun) -> dict[str, Any]:
        return Run(run_folder(run.recipe, run.seed, self._root)).state() or {}

    def _left(self, prefix: str) -> str:
        return time_left(self._forecast.left(list(self._running.values()), self._waiting.values(), self._jobs), prefix)

    def _lines(self, width: int = 0) -> list[str]:
        """A line for each run and one for all of them. Recipes lack their profile where a `width` is too small for it."""
        names = [_name(run) for run in self._running]
        if 0 < width < max(map(len, names)) + 2 + LONGEST_TEXT:
            names = [name.split("/", 1)[-1] for name in names]
        texts = [format_progress(clock.facts) for clock in self._running.values()]
        lines = align(list(zip(names, texts, strict=True)))
        failed = f", {self._failed} failed" if self._failed else ""
        left = self._left("about ") or f"{duration(time.monotonic() - self._started)} so far"
        return [*lines, f"{self._ended - self._failed} of {self._total} runs done{failed}, {left}"]


def _name(run: PlannedRun) -> str:
    return f"{run.recipe} seed {run.seed}"


def format_progress(facts: dict[str, Any], running: bool = True) -> str:
    """The progress recorded in a run's state, such as `pretrain: epoch 3/20, loss 1.2345, 12 min left`.

    Args:
        facts: the content of state.json.
        running: whether the run is still running; if not, it has no time left.
    """
    parts = []
    epoch, epochs, stage = facts.get("epoch"), facts.get("epochs"), facts.get("stage") or "starting"
    if epoch is not None and epochs is not None:
        parts.append(f"epoch {min(epoch + 1, epochs)}/{epochs}")
        parts += [f"loss {facts['loss']:.4f}"] if facts.get("loss") is not None else []
        parts += [left] if running and (left := time_left(facts.get("seconds_left"))) else []
    return f"{stage}: {', '.join(parts)}" if parts else stage


@dataclass
class StageClock:
    """The stages of a running run and when the current one started.

    Attributes:
        missing: the stages that this run executes.
        began: when the process was started.
        before: what state.json held then.
        facts: its newest content that is not of an earlier attempt.
        started: when the current stage started; that of the first one includes the start of the process.
    """

    missing: Sequence[str]
    began: float
    before: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.began

    @property
    def elapsed(self) -> float:
        """Seconds since the current stage started."""
        return time.monotonic() - self.started

    @property
    def remaining(self) -> Sequence[str]:
        """The current stage and those after it."""
        return self.missing[self.missing.index(self.stage) :] if self.stage else self.missing

    def read(self, facts: dict[str, Any], forecast: Forecast) -> None:
        """Take the content of state.json; a stage that has ended since is added to the forecast."""
        if facts == self.before or facts.get("stage") not in self.missing:  # an earlier attempt wrote it, or it is not there
            return
        if self.stage and facts["stage"] != self.stage:
            self.end(forecast, [self.stage])
        self.facts, self.stage = facts, facts["stage"]

    def end(self, forecast: Forecast, stages: Sequence[str]) -> None:
        """Add stages that have ended to the forecast; the short ones among them may never have been seen."""
        for stage in stages:
            forecast.add(stage, self.elapsed * self._whole / len(stages))
        self.started += self.elapsed

    def left(self) -> float | None:
        """Seconds until the end of the current stage; None if unknown, as in a stage of several scores."""
        if not self.stage or len(STAGES[self.stage].scores) > 1:
            return None
        if (seconds := self.facts.get("seconds_left")) is not None:
            return max(0.0, seconds)
        epoch, epochs = self.facts.get("epoch") or 0, self.facts.get("epochs") or 0
        made = epoch - self._resumed
        return self.elapsed / made * (epochs - epoch) if made > 0 else None

    def predicted(self) -> float | None:
        """Seconds that the current stage takes from its first epoch to its last; None if unknown."""
        left = self.left()
        return None if left is None else (self.elapsed + left) * self._whole

    @property
    def _resumed(self) -> int:
        """The epoch at which an earlier attempt left the current stage; 0 if this one began it."""
        return (self.before.get("epoch") or 0) if self.before.get("stage") == self.stage else 0

    @property
    def _whole(self) -> float:
        """The whole stage in relation to what was left of it."""
        epochs = self.facts.get("epochs") or 0
        return epochs / (epochs - self._resumed) if self._resumed < epochs else 1.0


class Forecast:
    """Estimates how long the runs of a table still take, from the stages that were executed since the command started.

    A stage takes the mean of its durations; where none has ended, that of the running ones; where none of these is known, the
    shortest of the other stages.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Take the duration of a stage."""
        self._seconds.setdefault(stage, []).append(seconds)

    def left(self, running: Sequence[StageClock], waiting: Collection[Sequence[str]], jobs: int) -> float | None:
        """Seconds until all runs have ended; None if nothing is known.

        Args:
            waiting: the missing stages of the runs that have not started.
            jobs: the number of runs in parallel.
        """
        known = {stage: mean(seconds) for stage, seconds in self._seconds.items()}
        predicted: dict[str, list[float]] = {}
        for clock in running:
            if clock.stage not in known and (seconds := clock.predicted()) is not None:
                predicted.setdefault(clock.stage, []).append(seconds)
        known |= {stage: mean(seconds) for stage, seconds in predicted.items()}
        if not known:
            return None
        shortest = min(known.values())

        def cost(stages: Sequence[str]) -> float:
            return sum(known.get(stage, shortest) for stage in stages)

        def rest(clock: StageClock) -> float:
            left = clock.left()
            current = max(0.0, cost(clock.remaining[:1]) - clock.elapsed) if left is None else left
            return current + cost(clock.remaining[1:])

        each = [rest(clock) for clock in running]
        total = sum(each) + sum(cost(stages) for stages in waiting)
        return max([total / max(1, min(jobs, len(each) + len(waiting))), *each], default=0.0)
