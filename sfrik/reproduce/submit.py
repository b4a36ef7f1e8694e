"""`make tableN LAUNCH=slurm`: what a table misses, as jobs that wait for each other.

For each run one job that pretrains, on all nodes, then one with its evaluations, on one GPU; after all of them one that
runs `sfrik table` again. That one submits what only became known now (table 9: the choices), or renders the table. It
waits for the others with `afterany`, not `afterok`: when a run failed it still renders what is there, names the run and
its error in its log and ends as failed, where `afterok` would leave the queue without a word. It submits no run a second
time; a repeated `make` does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfrik.errors import SfrikError
from sfrik.launch.slurm import Job, Layout, QueuedJob, Site, queued_jobs, read_site, scontrol, submit
from sfrik.reproduce.notebooks import notebook_path
from sfrik.reproduce.status import run_status
from sfrik.reproduce.table import make_table, missing_stages, stop_at_once, table_runs
from sfrik.settings import PretrainSettings, results_root, run_folder
from sfrik.system.locks import folder_lock
from sfrik.tables.definitions import experiment

__all__ = ["Wanted", "submit_runs", "submit_table"]

Wanted = tuple[str, int, tuple[str, ...]]  # recipe, seed, stages


def submit_table(
    name: str,
    profile: str,
    seeds: int = 1,
    layout: Layout | None = None,
    site: Site | None = None,
    root: str | Path | None = None,
    data_dir: str = "",
    part: int = 0,
) -> int:
    """Submit the jobs of what a table misses, and one that renders it; render it here when nothing is missing.

    Args:
        part: how many parts of the table have been submitted already; the last job of each hands it on. What is missing of
            those has failed and is not submitted again.

    Returns:
        The exit status: 1 where a part that was submitted is not complete.
    """
    root = root or results_root()
    experiment(name, profile)
    notebook_path("07_tables")
    with _submitting(root):
        submission = _Submission(layout or Layout(), site or read_site(), root, data_dir)
        if name in ("table5", "table6"):  # costs: measured where the job runs, and rendered there
            submission.table(name, profile, seeds, part=0, after=[], local=True)
            return 0
        for number, (title, wanted) in enumerate(table_runs(name, profile, seeds, root)):
            missing = submission.missing(wanted)
            if missing and number < part:
                return _render_incomplete(name, profile, title, missing, root)
            if missing:
                print(f"{title}: {len(wanted)} runs, {len(wanted) - len(missing)} finished here", flush=True)
                jobs = submission.runs(missing)
                submission.table(name, profile, seeds, number + 1, jobs)
                return 0
        waiting = [] if part else submission.queued(_table_what(name, profile, seeds))
    if waiting:
        print(f"{name} is complete; job {waiting[0].id} renders it")
        return 0
    return make_table(name, profile, seeds, root=root, data_dir=data_dir)


def submit_runs(
    wanted: Sequence[Wanted],
    layout: Layout | None = None,
    site: Site | None = None,
    root: str | Path | None = None,
    data_dir: str = "",
) -> list[str]:
    """Submit the jobs of what runs miss; the ids, also of those that are in the queue already."""
    root = root or results_root()
    with _submitting(root):
        submission = _Submission(layout or Layout(), site or read_site(), root, data_dir)
        return submission.runs(submission.missing(wanted))


@contextmanager
def _submitting(root: str | Path) -> Iterator[None]:
    """Keep two processes that submit for one results folder apart: the second waits, then finds the first one's jobs."""
    with stop_at_once(), folder_lock(root, wait=True):
        yield


class _Submission:
    """What is in the queue, and how to add to it."""

    def __init__(self, layout: Layout, site: Site, root: str | Path, data_dir: str) -> None:
        self.layout, self.site, self.root = layout, site, root
        self.places = ("--exp-dir", str(root), *(("--data-dir", data_dir) if data_dir else ()))
        self.jobs = queued_jobs(root)  # before the folders are looked at: a run that ends in between is not run again

    def missing(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        there = ((recipe, seed, tuple(missing_stages(recipe, seed, self.root, stages))) for recipe, seed, stages in wanted)
        return [run for run in there if run[2]]

    def queued(self, what: str) -> list[QueuedJob]:
        return [job for job in self.jobs if job.what.startswith(what)]

    def runs(self, missing: Sequence[Wanted]) -> list[str]:
        for recipe, _, stages in missing:
            if "pretrain" in stages:
                self._check(recipe)
        return [job for run in missing for job in self._run(*run)]

    def table(self, name: str, profile: str, seeds: int, part: int, after: Sequence[str], local: bool = False) -> None:
        """Submit the job that runs `sfrik table` after the others; one that waits already is told to wait for these too."""
        what = f"{_table_what(name, profile, seeds)}part{part}"
        there = self.queued(what)
        waiting = [job for job in there if job.waits]
        if waiting and (not after or scontrol("update", f"JobId={waiting[0].id}", f"Dependency=afterany:{':'.join(after)}")):
            _say(waiting[0].id, f"{name}, queued already{_after(after)}")
            return
        if there and local:
            _say(there[0].id, f"{name}, running already")
            return
        command = ["table", name, "--profile", profile, "--seeds", str(seeds), *self.places]
        if not local:
            command += ["--launch", "slurm", "--part", str(part), "--nodes", str(self.layout.nodes)]
            command += ["--gpus", str(self.layout.gpus), "--procs", str(self.layout.procs)]
            command += [f"--{flag}={value}" for flag in ("partition", "time") if (value := getattr(self.site, flag))]
        log = Path(self.root) / profile / "tables" / f"{name}.slurm.log"
        # with a GPU where the runs have them: many a partition takes no job without
        job = Job(what, tuple(command), log, self.layout.one, after_any=(*after, *(job.id for job in there)))
        _say(submit(job, self.site, self.root), f"{name}, {'measured and rendered' if local else 'rendered'}{_after(after)}")

    def _run(self, recipe: str, seed: int, stages: tuple[str, ...]) -> list[str]:
        """The jobs of one run; of its stages, those that are queued or running are left alone."""
        ours = [job for job in self.jobs if job.run and job.run[:2] == (recipe, seed)]
        trained = PretrainSettings.from_recipe(recipe).ssl_method != "none"
        groups = [stages]
        if trained and "pretrain" in stages:
            groups = [("pretrain",), tuple(stage for stage in stages if stage != "pretrain")]
        ids: list[str] = []
        pretrained_by: tuple[str, ...] = ()
        for group in filter(None, groups):
            claimed = {stage: job for job in ours if job.run for stage in job.run[2] if stage in group}
            for job in dict.fromkeys(claimed.values()):
                assert job.run is not None  # as those that are claimed
                _say(
                    job.id,
                    f"{recipe} seed {seed}: {', '.join(job.run[2])}, {'queued' if job.waits else 'running'} already",
                )
            new = tuple(stage for stage in group if stage not in claimed)
            group_ids = [job.id for job in dict.fromkeys(claimed.values())]
            if new:
                many = trained and new == ("pretrain",)
                layout = self.layout if many else self.layout.one
                command = ["run", "--recipe", recipe, "--seed", str(seed), *self.places, "--stages", *new]
                command += ["--nproc-per-node", str(layout.procs)] if many else []
                # two jobs of one run must not write its folder at the same time
                others = tuple(job.id for job in ours if job.id not in pretrained_by)
                folder = run_folder(recipe, seed, self.root)
                what = f"{recipe}/seed{seed}/{'+'.join(new)}"
                job = Job(what, tuple(command), folder / "slurm.log", layout, after_ok=pretrained_by, after_any=others)
                group_ids.append(submit(job, self.site, self.root))
                _say(group_ids[-1], f"{recipe} seed {seed}: {', '.join(new)} on {layout}{_after(pretrained_by)}")
                if many:  # evaluations that wait for an earlier pretraining, which is gone, will leave the queue
                    ours = [job for job in ours if not job.waits]
            if group == ("pretrain",):
                pretrained_by = tuple(group_ids)
            ids += group_ids
        return ids

    def _check(self, recipe: str) -> None:
        """What every process of a pretraining would find out only when it runs."""
        settings = PretrainSettings.from_recipe(recipe)
        if settings.ssl_method != "none" and settings.batch_size % self.layout.processes:
            raise SfrikError(
                f"batch_size {settings.batch_size} of {recipe} is over all processes and does not divide by the "
                f"{self.layout.processes} of {self.layout}: choose other --nodes and --gpus or --procs"
            )


def _render_incomplete(name: str, profile: str, title: str, missing: Sequence[Wanted], root: str | Path) -> int:
    """The last job, and runs are missing: say which and why, and render the others."""
    for recipe, seed, stages in missing:
        status = run_status(recipe, seed, stages, root)
        print(f"{status.state}: {recipe} seed {seed}: {status.detail}", file=sys.stderr)
    print(f"{title}: {len(missing)} runs are not complete; what is there is rendered, the same make submits them again")
    make_table(name, profile, render_only=True, root=root)
    return 1


def _table_what(name: str, profile: str, seeds: int) -> str:
    return f"{profile}/{name}/seeds{seeds}/"


def _after(ids: Sequence[str]) -> str:
    return f", after {' '.join(ids)}" if ids else ""


def _say(identity: str, what: str) -> None:
    print(f"{identity:>8}  {what}", flush=True)
