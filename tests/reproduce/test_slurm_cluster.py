"""On a real SLURM cluster of two nodes (both this machine): a table by jobs, preemption, a killed worker, scancel, refusals.

`pytest -m slurm tests/reproduce/test_slurm_cluster.py`; some minutes. It needs root and Debian's slurm-wlm and munge.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rendered import assert_cells_are_scores
from slurm_jobs import submit_runs

from sfrik.errors import SfrikError
from sfrik.launch.slurm import Layout, Site
from sfrik.launch.slurm_queue import queued_jobs
from sfrik.reproduce.stages import PlannedRun
from sfrik.reproduce.status import RunStatus, run_status
from sfrik.runs.folder import Run
from sfrik.settings import run_folder
from sfrik.tables.definitions import rows_of

psutil = pytest.importorskip("psutil", reason="comes with ipykernel")
CHECKOUT = Path(__file__).parents[2]
TESTBED = CHECKOUT / "tests" / "slurm_testbed.sh"
LAYOUT = Layout.of(nodes=2, procs=2)
RECIPE = "smoke/sfrik_l3_q64"
UNTRAINED = "smoke/random_weights"
STAGES = ("pretrain", "linear", "knn")

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))), reason="apt-get install slurm-wlm munge"
    ),
    pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="slurmd and munged are started as root"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """Two nodes, and the environment in which jobs are submitted to them."""
    folder = tmp_path_factory.mktemp("cluster")
    site = folder / "slurm.toml"
    site.touch()
    try:
        printed = subprocess.run([TESTBED, "start", folder, str(os.getpid())], capture_output=True, encoding="utf-8", timeout=120)
        assert printed.returncode == 0, printed.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", printed.stdout.strip().split("SLURM_CONF=")[1])
            patch.setenv("SFRIK_SLURM", str(site))
            patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
            patch.setenv("PYTHONPATH", str(CHECKOUT))
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.chdir(CHECKOUT)
            yield
    finally:
        subprocess.run([TESTBED, "stop", folder], check=True, timeout=120)


def wait_for(condition, seconds: float, what: str, every: float = 0.5):
    """The value of the condition, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(every)
    return found


def facts(job: str) -> dict[str, str]:
    printed = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, encoding="utf-8", check=True).stdout
    return dict(re.findall(r"(\w+)=(\S*)", printed))


def ended(job: str) -> str:
    """The state of a job once it has ended, else an empty string."""
    state = facts(job)["JobState"]
    return state if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") else ""


def processes(job: str) -> list:
    """The living processes of a job."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
        except psutil.Error:
            continue
    return found


def workers(job: str) -> dict[int, Any]:
    """A job's workers by their rank."""
    found = {}
    for process in processes(job):
        if "sfrik.launch.worker" in process.cmdline() and "SLURM_STEP_ID" in process.environ():  # srun itself is in no step
            found[int(process.environ()["SLURM_PROCID"])] = process
    return found


def halted_in_training(job: str, root: Path):
    """The worker of rank 0, halted (SIGSTOP) between the first step and the last; the others then wait for it.

    There are only eight steps, which take a second or two.
    """
    run = Run(run_folder(RECIPE, 0, root))
    lock, metrics = run.folder / "lock", run.folder / "metrics.jsonl"
    pattern = re.compile(rf"pid (\d+) on .*, SLURM job {job}")

    def holder() -> psutil.Process | None:
        """The worker that holds the lock; `sfrik run` takes it before, to wait for others."""
        found = pattern.fullmatch(lock.read_text(encoding="utf-8")) if lock.is_file() else None
        with suppress(psutil.Error):
            if found and "sfrik.launch.worker" in (process := psutil.Process(int(found[1]))).cmdline():
                return process
        return None

    worker = wait_for(holder, 120, f"the training of job {job}", 0.05)
    wait_for(lambda: metrics.is_file() and metrics.stat().st_size, 180, "the first step", 0.005)
    worker.suspend()
    wait_for(lambda: worker.status() == psutil.STATUS_STOPPED, 5, "the halt", 0.001)
    assert not run.backbone.exists(), "the training had ended before it could be halted"
    return worker


def requeued(job: str) -> None:
    """Wait until the job is back in the queue."""
    wait_for(lambda: facts(job)["Restarts"] != "0" and facts(job)["JobState"] == "PENDING", 60, f"job {job} is requeued")


def seconds(time: str) -> int:
    """A time of SLURM's, such as 00:01:30, in seconds."""
    hours, minutes, rest = map(int, time.split(":"))
    return 60 * (60 * hours + minutes) + rest


def status(root: Path) -> RunStatus:
    return run_status(RECIPE, 0, STAGES, root, queued_jobs(root))


def pretraining(root: Path, **site) -> str:
    (job,) = submit_runs([PlannedRun(RECIPE, 0, ("pretrain",))], LAYOUT, Site(**site), root)
    return job


def weights(root: Path) -> bytes:
    return Run(run_folder(RECIPE, 0, root)).backbone.read_bytes()


def log(root: Path) -> str:
    return (run_folder(RECIPE, 0, root) / "slurm.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A results folder in which the run was trained and evaluated without a break, and one without training evaluated."""
    root = tmp_path_factory.mktemp("undisturbed")
    jobs = submit_runs([PlannedRun(RECIPE, 0, STAGES), PlannedRun(UNTRAINED, 0, STAGES)], LAYOUT, Site(), root)
    for job in jobs:
        assert wait_for(lambda job=job: ended(job), 400, f"job {job}") == "COMPLETED", log(root)
    return root


@pytest.fixture(scope="module")
def table(tmp_path_factory, undisturbed):
    """`make table2` twice, with one of its jobs requeued in mid-training; the results folder and what was printed."""
    root = tmp_path_factory.mktemp("table")
    command = ["make", "table2", "PROFILE=smoke", "VENV=", f"RESULTS={root}"]
    command += ["LAUNCH=slurm", "PARTITION=debug", "NODES=2", "GPUS=0", "PROCS=2"]
    # variables of a user who looks at running jobs only: what waits must not be submitted again
    environment = {**os.environ, "SQUEUE_STATES": "RUNNING", "SQUEUE_FORMAT": "%i", "SBATCH_QOS": "long", "SLURM_CLUSTERS": "x"}
    printed = [
        subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=environment).stdout for _ in range(2)
    ]
    (job,) = [job.id for job in queued_jobs(root) if job.what == f"{RECIPE}/seed0/pretrain"]
    halted_in_training(job, root)
    subprocess.run(["scontrol", "requeue", job], check=True)  # SLURM lets halted processes go on before it asks them to stop
    requeued(job)
    wait_for(lambda: not queued_jobs(root), 900, "table2")
    return root, printed


def test_a_table_through_slurm_has_every_row(table, undisturbed):
    folder = table[0] / "smoke"
    assert_cells_are_scores(folder, "table2")
    runs = [(folder.parent / row.recipe, 4) for row in rows_of("table2", "smoke")] + [(undisturbed / UNTRAINED, 1)]
    for run, processes in runs:
        origin = json.loads((run / "seed0" / "provenance.json").read_text(encoding="utf-8"))
        assert origin["slurm_job"].isdigit()
        assert origin["hardware"]["processes"] == processes
    assert (folder / "notebooks" / "07_table2.ipynb").is_file()
    assert "table2: 4 runs, 4 finished here" in (folder / "tables" / "table2.slurm.log").read_text(encoding="utf-8")


def test_submitting_twice_submits_once(table):
    first, second = (re.findall(r"^ +(\d+)  (.*)", printed, re.MULTILINE) for printed in table[1])
    assert [job for job, _ in first] == [job for job, _ in second]
    assert len(first) == len({job for job, _ in first}) == 9
    assert all(re.search("queued already|running already", what) for _, what in second)


def test_a_job_that_was_requeued_in_mid_training_ends_in_the_same_weights_and_scores(table, undisturbed):
    root = table[0]
    assert "restart 1" in log(root)
    assert weights(root) == weights(undisturbed)
    for protocol in ("linear", "logistic", "knn"):
        ours, theirs = (
            json.loads((run_folder(RECIPE, 0, r) / f"{protocol}.json").read_text(encoding="utf-8")) for r in (root, undisturbed)
        )
        assert {**ours, "commit": ""} == {**theirs, "commit": ""}


def test_a_worker_killed_on_a_node_fails_the_job_within_ten_seconds_and_status_says_who(tmp_path):
    job = pretraining(tmp_path)
    first = halted_in_training(job, tmp_path)
    started = time.monotonic()
    workers(job)[3].kill()
    first.resume()
    assert wait_for(lambda: ended(job), 30, "the job's end") == "FAILED"
    assert time.monotonic() - started < 10
    found = status(tmp_path)
    assert found.state == "failed", found
    assert re.search(r"rank 3 on node2 was ended \(Killed\)", found.detail), found.detail
    assert processes(job) == []


def test_a_held_job_is_named_and_scancel_leaves_no_process_and_the_checkpoint_and_the_job_stays_cancelled(tmp_path):
    job = pretraining(tmp_path, sbatch=("--hold",))
    wait_for(lambda: "JobHeldUser" in status(tmp_path).detail, 30, "the reason")
    assert status(tmp_path).detail == f"pretrain: job {job} is held by its user (JobHeldUser): scontrol release {job}"
    subprocess.run(["scontrol", "release", job], check=True)
    halted_in_training(job, tmp_path)
    subprocess.run(["scancel", job], check=True)
    assert wait_for(lambda: ended(job), 60, "the job's end") == "CANCELLED"
    wait_for(lambda: not processes(job), 5, "the end of its processes")
    assert Run(run_folder(RECIPE, 0, tmp_path)).checkpoints.load() is not None
    assert status(tmp_path).state == "preempted"
    assert queued_jobs(tmp_path) == []


def test_a_job_that_nears_its_limit_saves_requeues_itself_and_resumes_without_environment_and_names(tmp_path, undisturbed):
    """The job has no variable of the submitting process (--export=NONE), and its nodes have names that do not resolve."""
    unnamed = not subprocess.run(["unshare", "--uts", "true"]).returncode  # not allowed in each container
    prefix = "unshare --uts bash -c 'hostname no-such-host && exec \"$@\"' -" if unnamed else ""
    job = pretraining(tmp_path, time="60", signal_seconds=150, sbatch=("--export=NONE",), prefix=prefix)
    first = halted_in_training(job, tmp_path)
    assert not unnamed or "on no-such-host" in (run_folder(RECIPE, 0, tmp_path) / "lock").read_text(encoding="utf-8")
    assert "SFRIK_SLURM" in first.environ()
    # 120 to 180 s from now: SLURM then sends the signal as soon as it looks, every 30 s
    limit = math.ceil((seconds(facts(job)["RunTime"]) + 120) / 60)
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={limit}"], check=True)

    def signalled() -> bool:
        """Whether SIGUSR1 waits for the halted worker; or SLURM has let it go on, to hear it."""
        text = Path(f"/proc/{first.pid}/status").read_text(encoding="utf-8") if first.is_running() else ""
        pending = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", text, re.MULTILINE)
        return "State:\tT" not in text or any(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1 for mask in pending)

    wait_for(signalled, 80, "the signal before the limit")
    with suppress(psutil.NoSuchProcess):
        first.resume()
    requeued(job)
    found = status(tmp_path)
    assert (found.state, found.jobs) == ("preempted", (job,))
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=10"], check=True)
    assert wait_for(lambda: ended(job), 400, f"job {job}") == "COMPLETED", log(tmp_path)
    assert "stopped by SIGUSR1" in log(tmp_path)
    assert weights(tmp_path) == weights(undisturbed)


def test_what_cannot_run_is_refused_or_fails_at_once_with_the_reason(tmp_path):
    job = pretraining(tmp_path, setup=("module load cuda",))
    assert wait_for(lambda: ended(job), 30, "the job's end") == "FAILED"
    found = status(tmp_path)
    reason = r"setup line 1 \(module load cuda\) of slurm.toml failed with status 127: module: command not found"
    assert (found.state, bool(re.match(reason, found.detail))) == ("failed", True), found
    with pytest.raises(SfrikError, match=r"sbatch refuses: .*Requested node configuration is not available \(set NODES=, GPUS="):
        submit_runs([PlannedRun(RECIPE, 0, ("pretrain",))], Layout.of(gpus=4), Site(), tmp_path)
    command = [sys.executable, "-m", "sfrik", "pretrain", "--recipe", RECIPE, "--exp-dir", tmp_path / "run"]
    done = subprocess.run(["srun", "--nodes=2", "--ntasks=2", *command], capture_output=True, encoding="utf-8")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("srun: "))
    assert re.match(r"sfrik: error: srun started 2 tasks.*`python -m sfrik pretrain --nproc-per-node 1 ...`", line)
    assert not (tmp_path / "run").exists()
