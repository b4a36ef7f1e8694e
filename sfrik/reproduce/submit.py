"""`make tableN LAUNCH=slurm`: submit the missing runs of a table as jobs that wait for each other.

Each run becomes a job that pretrains, on all nodes, then one with its evaluations, on one GPU. After all of them comes a job that
runs `sfrik table` again: it submits the runs that only became known then (table 9: the choices), or renders the table. It depends
on the others with `afterany`, not `afterok`: if a run failed it still renders the scores that exist, names the run and its error
in its log and ends as failed, whereas `afterok` would remove it from the queue without a message. It submits no run a second
time; a repeated `make` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfrik.errors import SfrikError
from sfrik.launch.slurm import Job, Layout, Site, read_site, scontrol, submit
from sfrik.launch.slurm_client import ignored_variables
from sfrik.launch.slurm_queue import QueuedJob, queued_jobs
from sfrik.reproduce.notebooks import notebook_path
from sfrik.reproduce.present import PresentImages
from sfrik.reproduce.stages import PlannedRun, missing_stages
from sfrik.reproduce.status import run_status
from sfrik.reproduce.table import make_table, table_runs, without_refused, writable_root
from sfrik.settings import PretrainSettings, run_folder
from sfrik.system.locks import folder_lock
from sfrik.system.signals import stop_at_once
from sfrik.system.terminal import print_line
from sfrik.tables.definitions import experiment

__all__ = ["check_layout", "submit_table"]


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
    """Submit the jobs of the missing runs of a table and a job that renders it; render it here when nothing is missing.

    Args:
        part: how many parts of the table (`table_runs`) have been submitted already, as the last job of each part passes it
            on. A run of those that is missing has failed, and is not submitted again.

    Returns:
        The exit status: 1 if a part that was submitted is not complete.
    """
    root = writable_root(profile, root)
    experiment(name, profile)
    notebook_path("07_tables")
    with _submitting(layout or Layout(), site or read_site(), root, data_dir) as submission:
        if name in ("table5", "table6"):  # one job measures the costs and renders the table
            submission.submit_table(name, profile, seeds, part=0, after=[], local=True)
            return 0
        for number, (title, runs) in enumerate(table_runs(name, profile, seeds, root)):
            missing = submission.missing(runs)
            if missing and number < part:
                return _render_incomplete(name, profile, title, missing, root)
            if missing:
                print_line(f"{title}: {len(runs)} runs, {len(runs) - len(missing)} finished here")
                jobs = submission.submit_runs(missing)
                submission.submit_table(name, profile, seeds, number + 1, jobs)
                return 0
        waiting = [] if part else submission.queued(_table_prefix(name, profile, seeds))
    if waiting:
        print_line(f"{name} is complete; job {waiting[0].id} renders it")
        return 0
    return make_table(name, profile, seeds, root=root, data_dir=data_dir)


@contextmanager
def _submitting(layout: Layout, site: Site, root: str | Path, data_dir: str) -> Iterator[_Submission]:
    """Admit one process at a time for a results folder: a second one waits, then finds the jobs of the first."""
    with stop_at_once(), folder_lock(root, wait=True):
        yield _Submission(layout, site, root, data_dir)


class _Submission:
    """Adds jobs to the queue that are not in it.

    Args:
        layout: of a pretraining.
        root: the folder of the results.
    """

    def __init__(self, layout: Layout, site: Site, root: str | Path, data_dir: str) -> None:
        self.layout, self.site, self.root, self.present = layout, site, root, PresentImages(data_dir)
        self.places = (f"--results={root}", *((f"--data-dir={data_dir}",) if data_dir else ()))
        # before the folders are read: a run that ends in between is not submitted again
        self.jobs = [job for job in queued_jobs(root) if job.can_start]
        self.submitted = 0

    def missing(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """The runs with missing stages, and these stages; without those whose folder holds another run."""
        missing = [(run, missing_stages(run.recipe, run.seed, self.root, run.stages, self.present)) for run in runs]
        return without_refused([run._replace(stages=tuple(stages)) for run, stages in missing if stages], self.root, self.present)

    def queued(self, what: str) -> list[QueuedJob]:
        """The jobs in the queue whose names start with `what`."""
        return [job for job in self.jobs if job.what.startswith(what)]

    def submit_runs(self, missing: Sequence[PlannedRun]) -> list[str]:
        """Submit the jobs of runs; returns their ids, and those of jobs that were in the queue already."""
        for run in missing:
            if "pretrain" in run.stages:
                check_layout(run.recipe, self.layout)
        return [job for run in missing for job in self._submit_run(*run)]

    def submit_table(self, name: str, profile: str, seeds: int, part: int, after: Sequence[str], local: bool = False) -> None:
        """Submit the job that runs `sfrik table` after the others; one that is pending already gets their ids as a dependency."""
        what = f"{_table_prefix(name, profile, seeds)}part{part}"
        queued = self.queued(what)
        waiting = [job for job in queued if job.waits]
        if waiting and (not after or scontrol("update", f"JobId={waiting[0].id}", f"Dependency=afterany:{':'.join(after)}")):
            _print_job(waiting[0].id, f"{name}, {_state(waiting[0])}{_after(after)}")
            return
        if queued and local:
            _print_job(queued[0].id, f"{name}, {_state(queued[0])}")
            return
        command = ["table", name, "--profile", profile, "--seeds", str(seeds), *self.places]
        if not local:
            command += ["--launch", "slurm", "--part", str(part), "--nodes", str(self.layout.nodes)]
            command += ["--gpus", str(self.layout.gpus), "--procs", str(self.layout.procs)]
            command += [f"--{flag}={value}" for flag in ("partition", "time") if (value := getattr(self.site, flag))]
        log = Path(self.root) / profile / "tables" / f"{name}.slurm.log"
        # with a GPU if the runs have GPUs: many partitions accept no job without one
        job = Job(what, tuple(command), log, self.layout.one, after_any=(*after, *(job.id for job in queued)))
        work = "measured and rendered" if local else "rendered"
        _print_job(self._submit(job), f"{name}, {work}{_after(after)}")

    def _submit(self, job: Job) -> str:
        """Submit a job, and return its id; a refusal says how many were accepted before it."""
        if not self.submitted and (names := ignored_variables()):
            print_line(f"sfrik: {', '.join(names)} of the environment: ignored; set it in slurm.toml", error=True)
        try:
            identity = submit(job, self.site, self.root)
        except SfrikError as error:
            before = f"; jobs submitted before: {self.submitted}; the same command submits the rest" if self.submitted else ""
            raise SfrikError(f"{error}{before}") from None
        self.submitted += 1
        return identity

    def _submit_run(self, recipe: str, seed: int, stages: tuple[str, ...]) -> list[str]:
        """Submit the jobs of one run, except for stages that are queued or running; returns the ids of all of them."""
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
                assert job.run is not None  # since it is claimed
                _print_job(job.id, f"{recipe} seed {seed}: {', '.join(job.run[2])}, {_state(job)}")
            new = tuple(stage for stage in group if stage not in claimed)
            group_ids = [job.id for job in dict.fromkeys(claimed.values())]
            if new:
                parallel = trained and new == ("pretrain",)
                layout = self.layout if parallel else self.layout.one
                command = ["run", "--recipe", recipe, "--seed", str(seed), *self.places, "--stages", *new]
                command += ["--nproc-per-node", str(layout.procs)] if parallel else []
                # two jobs of one run must not write its folder at the same time
                others = tuple(job.id for job in ours if job.id not in pretrained_by)
                folder = run_folder(recipe, seed, self.root)
                what = f"{recipe}/seed{seed}/{'+'.join(new)}"
                job = Job(what, tuple(command), folder / "slurm.log", layout, after_ok=pretrained_by, after_any=others)
                group_ids.append(self._submit(job))
                _print_job(group_ids[-1], f"{recipe} seed {seed}: {', '.join(new)} on {layout}{_after(pretrained_by)}")
                if parallel:  # evaluations that wait for an earlier pretraining, which is gone, will leave the queue
                    ours = [job for job in ours if not job.waits]
            if group == ("pretrain",):
                pretrained_by = tuple(group_ids)
            ids += group_ids
        return ids


def check_layout(recipe: str, layout: Layout) -> None:
    """Check what every process of a pretraining would otherwise find only when it runs."""
    settings = PretrainSettings.from_recipe(recipe)
    if settings.ssl_method == "none":
        return
    try:
        settings.check_processes(layout.processes, synchronised=layout.gpus > 0)
    except SfrikError as error:
        raise SfrikError(f"{recipe} on {layout}: {error}; choose other --nodes and --gpus or --procs") from None


def _render_incomplete(name: str, profile: str, title: str, missing: Sequence[PlannedRun], root: str | Path) -> int:
    """In the last job of a table of which runs are missing: print which and why, and render the others."""
    for recipe, seed, stages in missing:
        status = run_status(recipe, seed, stages, root)
        print_line(f"{status.state}: {recipe} seed {seed}: {status.detail}", error=True)
    print_line(
        f"{title}: {len(missing)} runs are not complete; the table is rendered without them, the same make submits them again"
    )
    make_table(name, profile, render_only=True, root=root)
    return 1


def _table_prefix(name: str, profile: str, seeds: int) -> str:
    return f"{profile}/{name}/seeds{seeds}/"


def _after(ids: Sequence[str]) -> str:
    return f", after {' '.join(ids)}" if ids else ""


def _state(job: QueuedJob) -> str:
    """The state of a job that was in the queue already."""
    state = "queued already" if job.waits else "running already"
    return f"{state}; it {job.obstacle}" if job.obstacle else state


def _print_job(identity: str, what: str) -> None:
    print_line(f"{identity:>8}  {what}")
