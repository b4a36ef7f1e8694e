"""SLURM, with stand-ins for its commands: the arguments of sbatch, what is submitted once, the batch script, the status."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from slurm_jobs import RUN, SCRIPT, submit_runs

from sfrik.cli import main
from sfrik.errors import SfrikError
from sfrik.launch import slurm
from sfrik.launch.slurm import Job, Layout, Site, read_site, submit
from sfrik.launch.slurm_queue import job_name, queued_jobs
from sfrik.reproduce import submit as submit_module
from sfrik.reproduce.stages import PlannedRun
from sfrik.reproduce.status import needed_runs, run_status, tables_status
from sfrik.reproduce.submit import submit_table
from sfrik.runs.folder import Run
from sfrik.settings import run_folder
from sfrik.system.locks import folder_lock
from sfrik.tables.definitions import grids

CHECKOUT = Path(__file__).parents[2]
UNTRAINED = PlannedRun("smoke/random_weights", 0, ("pretrain", "linear", "knn"))


@pytest.fixture
def finished(monkeypatch):
    """The runs and stages that count as done, instead of executed notebooks."""
    done: set[tuple[str, str]] = set()
    there = lambda recipe, seed, root, stages, present=None: [s for s in stages if (recipe, s) not in done]  # noqa: E731
    monkeypatch.setattr(submit_module, "missing_stages", there)
    monkeypatch.setattr("sfrik.reproduce.status.missing_stages", there)
    return done


# --- the jobs


def test_a_run_is_a_pretraining_on_all_nodes_and_evaluations_on_one_gpu_after_it(cluster, root):
    ids = submit_runs([RUN], Layout.of(nodes=2, gpus=4), Site(partition="a100", time="20:00:00"), root, "/images")
    assert ids == ["1", "2"]
    first, second = cluster.jobs
    option = cluster.option
    assert option(first, "nodes") == "2"
    assert option(first, "ntasks-per-node") == "4"
    assert option(first, "gres") == "gpu:4"
    assert option(first, "partition") == "a100"
    assert option(first, "time") == "20:00:00"
    assert option(first, "signal") == "USR1@120"
    assert option(first, "dependency") is None
    assert (option(second, "nodes"), option(second, "ntasks-per-node"), option(second, "gres")) == ("1", "1", "gpu:1")
    assert option(second, "dependency") == "afterok:1"
    assert option(second, "kill-on-invalid-dep") == "yes"
    command = first[first.index(str(SCRIPT)) + 5 :]
    assert command[:4] == [sys.executable, "-m", "sfrik", "run"]
    shared = ["--recipe", RUN[0], "--seed", "0", f"--results={root}", "--data-dir=/images"]
    assert command[4:] == [*shared, "--stages", "pretrain", "--nproc-per-node", "4"]
    assert second[second.index("--stages") :] == ["--stages", "linear", "knn"]
    log = str(run_folder(RUN[0], 0, root) / "slurm.log")
    assert option(first, "output") == log == first[first.index(str(SCRIPT)) + 1]


def test_without_gpus_a_node_runs_the_requested_number_of_processes(cluster, root):
    submit_runs([RUN], Layout.of(nodes=2, procs=2), Site(), root)
    assert cluster.option(cluster.jobs[0], "ntasks-per-node") == "2"
    assert cluster.jobs[0][-2:] == ["--nproc-per-node", "2"]
    assert cluster.option(cluster.jobs[0], "gres") is None
    with pytest.raises(SfrikError, match="a node of 4 GPUs runs 4 processes: leave --procs 2"):
        Layout.of(gpus=4, procs=2)


def test_a_method_without_training_is_one_job_on_one_node(cluster, root):
    submit_runs([UNTRAINED], Layout.of(nodes=2, procs=2), Site(), root)
    (job,) = cluster.jobs
    assert cluster.option(job, "nodes") == cluster.option(job, "ntasks-per-node") == "1"
    assert job[-4:] == ["--stages", "pretrain", "linear", "knn"]


def test_a_batch_that_does_not_divide_among_the_processes_is_refused_before_anything_is_submitted(cluster, root):
    with pytest.raises(
        SfrikError, match=r"smoke/sfrik_l3_q64 on 3 nodes x 1 process: batch_size 64 .* not divisible by 3; choose"
    ):
        submit_runs([UNTRAINED, RUN], Layout.of(nodes=3), Site(), root)
    assert cluster.jobs == []


def test_a_table_is_its_runs_and_a_job_that_waits_for_all_of_them_however_they_end(cluster, root, capsys):
    assert submit_table("table1", "smoke", 2, Layout.of(2, 0, 2), Site(partition="debug"), root) == 0
    trained, untrained = 6, 2
    count = 2 * (2 * trained + untrained)
    assert len(cluster.jobs) == count + 1
    last = cluster.jobs[-1]
    assert cluster.option(last, "dependency") == "afterany:" + ":".join(map(str, range(1, count + 1)))
    places = ["--profile", "smoke", "--seeds", "2", f"--results={root}"]
    again = ["--launch", "slurm", "--part", "1", "--nodes", "2", "--gpus", "0", "--procs", "2", "--partition=debug"]
    assert last[last.index("table") :] == ["table", "table1", *places, *again]
    printed = capsys.readouterr().out
    assert "table1: 16 runs, 0 finished here" in printed
    assert "1  smoke/simclr_q64 seed 0: pretrain on 2 nodes x 2 processes" in printed
    assert f"{count + 1}  table1, rendered, after 1 2 3" in printed


def test_what_is_queued_or_running_is_not_submitted_again(cluster, root, capsys):
    submit_table("table1", "smoke", 1, Layout(), Site(), root)
    submitted = len(cluster.jobs)
    cluster.becomes("1", "RUNNING")
    capsys.readouterr()
    submit_table("table1", "smoke", 1, Layout(), Site(), root)
    assert len(cluster.jobs) == submitted
    printed = capsys.readouterr().out
    assert "1  smoke/simclr_q64 seed 0: pretrain, running already" in printed
    assert f"{submitted}  table1, queued already" in printed


def test_the_jobs_of_another_clone_are_ignored(cluster, root, tmp_path):
    submit_runs([RUN], Layout(), Site(), root)
    submit_runs([RUN], Layout(), Site(), tmp_path / "clone" / "results")
    assert len(cluster.jobs) == 4
    assert len(queued_jobs(root)) == 2
    assert job_name("x", root) != job_name("x", tmp_path / "clone" / "results")
    assert job_name("x", root) == job_name("x", root / ".." / "results")


def test_a_second_table_uses_the_pretraining_of_the_first_and_adds_its_own_stages(cluster, root):
    submit_runs([RUN], Layout(), Site(), root)
    ids = submit_runs([PlannedRun(RUN.recipe, 0, ("pretrain", "linear", "semi", "knn"))], Layout(), Site(), root)
    assert cluster.names[2:] == ["smoke/sfrik_l3_q64/seed0/semi"]
    # after the pretraining went well, and not beside the other evaluations of the same folder
    assert cluster.option(cluster.jobs[2], "dependency") == "afterok:1,afterany:2"
    assert ids == ["1", "2", "3"]


def test_a_run_that_failed_is_submitted_again_and_the_waiting_table_waits_for_it_too(cluster, root):
    submit_table("table1", "smoke", 1, Layout(), Site(), root)
    table = str(len(cluster.jobs))
    cluster.leaves("1")  # it failed; its evaluations stay in the queue until SLURM finds that they can never run
    submit_table("table1", "smoke", 1, Layout(), Site(), root)
    again = cluster.names[int(table) :]
    assert again == ["smoke/simclr_q64/seed0/pretrain", "smoke/simclr_q64/seed0/linear+knn"]
    first, second = int(table) + 1, int(table) + 2
    assert cluster.option(cluster.jobs[second - 1], "dependency") == f"afterok:{first}"
    (update,) = cluster.updates
    assert update.startswith(f"update JobId={table} Dependency=afterany:")
    assert {str(first), str(second), "3", "4"} <= set(update.split(":")[1:])


def test_a_table_that_runs_already_is_followed_by_another_when_runs_were_added(cluster, root):
    submit_table("table1", "smoke", 1, Layout(), Site(), root)
    table = str(len(cluster.jobs))
    cluster.leaves("1", "2")
    cluster.becomes(table, "RUNNING")
    submit_table("table1", "smoke", 1, Layout(), Site(), root)
    assert cluster.names[-1] == cluster.names[int(table) - 1]
    assert cluster.option(cluster.jobs[-1], "dependency").endswith(f":{table}")


def test_a_job_whose_dependency_can_never_be_satisfied_counts_as_gone(cluster, root, finished):
    submit_runs([RUN], Layout(), Site(), root)
    cluster.leaves("1")
    cluster.becomes("2", "PENDING", "DependencyNeverSatisfied")
    finished.add((RUN[0], "pretrain"))  # by hand
    assert submit_runs([RUN], Layout(), Site(), root) == ["3"]


def test_two_makes_at_the_same_moment_submit_once(cluster, root):
    threads = [threading.Thread(target=submit_runs, args=([RUN], Layout(), Site(), root)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cluster.jobs) == 2


def test_the_second_process_waits_for_the_first_and_says_so(cluster, root, capsys):
    inside = threading.Event()

    def second():
        submit_runs([RUN], Layout(), Site(), root)
        inside.set()

    with folder_lock(root):
        thread = threading.Thread(target=second)
        thread.start()
        assert not inside.wait(0.3)
    assert inside.wait(5)
    thread.join()
    assert f"waiting for pid {os.getpid()} on " in capsys.readouterr().out


# --- the table's last job


def test_costs_are_measured_by_one_job_on_one_node_that_makes_the_table_there(cluster, root):
    for _ in range(2):
        submit_table("table5", "smoke", 1, Layout.of(2, 4), Site(), root)
    (job,) = cluster.jobs
    assert (cluster.option(job, "nodes"), cluster.option(job, "gres")) == ("1", "gpu:1")
    assert job[job.index("table") :] == ["table", "table5", "--profile", "smoke", "--seeds", "1", f"--results={root}"]


def test_table9_submits_the_choices_when_the_grids_are_there_and_renders_after_them(cluster, root, finished, monkeypatch):
    chosen = {"vicreg_q64": "smoke/tune_vicreg_q64_sim5", "sfrik_q64": "smoke/tune_sfrik_q64_sim128"}
    monkeypatch.setattr("sfrik.reproduce.table.write_choices", lambda profile, root: chosen)
    rendered = []
    monkeypatch.setattr(submit_module, "make_table", lambda name, *args, **kwargs: rendered.append(name) or 0)
    submit_table("table9", "smoke", 1, Layout(), Site(), root)
    assert sum("tune_" in name for name in cluster.names) == 8
    assert cluster.jobs[-1][cluster.jobs[-1].index("--part") + 1] == "1"
    points = [recipe for recipes in grids("smoke").values() for recipe in recipes]
    finished |= {(recipe, stage) for recipe in points for stage in ("pretrain", "tune")}
    cluster.queue()
    before = len(cluster.jobs)
    assert submit_table("table9", "smoke", 1, Layout(), Site(), root, part=1) == 0
    assert cluster.names[before:] == [*(f"{recipe}/seed0/inference" for recipe in chosen.values()), "smoke/table9/seeds1/part2"]
    finished |= {(recipe, "inference") for recipe in chosen.values()}
    cluster.queue()
    assert submit_table("table9", "smoke", 1, Layout(), Site(), root, part=2) == 0
    assert len(cluster.jobs) == before + 3
    assert rendered == ["table9"]


def test_the_last_job_of_a_table_never_submits_what_failed_and_says_why(cluster, root, finished, monkeypatch, capsys):
    rendered = []
    monkeypatch.setattr(submit_module, "make_table", lambda *args, **kwargs: rendered.append(kwargs["render_only"]))
    finished |= {(recipe, stage) for (recipe, _), stages in needed_runs(["table1"], "smoke", 1, root).items() for stage in stages}
    finished -= {("smoke/simclr_q64", stage) for stage in ("pretrain", "linear", "knn")}
    Run(run_folder("smoke/simclr_q64", 0, root)).update_status("failed", stage="pretrain", error="no images")
    assert submit_table("table1", "smoke", 1, Layout(), Site(), root, part=1) == 1
    assert cluster.jobs == []
    assert rendered == [True]
    assert "failed: smoke/simclr_q64 seed 0: pretrain: no images" in capsys.readouterr().err


def test_a_table_that_is_complete_is_rendered_here_unless_a_job_will(cluster, root, finished, monkeypatch, capsys):
    rendered = []
    monkeypatch.setattr(submit_module, "make_table", lambda name, *args, **kwargs: rendered.append(name) or 0)
    submit_table("table8", "smoke", 1, Layout(), Site(), root)
    finished |= {(recipe, stage) for (recipe, _), stages in needed_runs(["table8"], "smoke", 1, root).items() for stage in stages}
    table = str(len(cluster.jobs))
    cluster.leaves(*map(str, range(1, int(table))))
    submit_table("table8", "smoke", 1, Layout(), Site(), root)
    assert f"job {table} renders it" in capsys.readouterr().out
    assert rendered == []
    cluster.queue()
    submit_table("table8", "smoke", 1, Layout(), Site(), root)
    assert rendered == ["table8"]


# --- what goes wrong


def test_a_refusal_is_reported_in_the_words_of_sbatch(cluster, root, capsys):
    (cluster.folder / "refuses").write_text(
        "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name\n",
        encoding="utf-8",
    )
    command = ["table", "table1", "--profile", "smoke", "--launch", "slurm", "--partition", "nope", "--results", str(root)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error == (
        "sfrik: error: sbatch refuses: invalid partition specified: nope; Batch job submission failed: Invalid partition name "
        "(set PARTITION=, or partition in slurm.toml; `sinfo -s` lists the partitions)\n"
    )


def test_without_slurm_the_error_says_what_is_missing(root, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SfrikError, match="sbatch is not on PATH: LAUNCH=slurm works on a machine of a SLURM cluster"):
        submit_runs([RUN], Layout(), Site(), root)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nodes", "2"], "--nodes has an effect only with --launch slurm"),
        (["--launch", "slrum"], "did you mean slurm"),
        (["--launch", "slurm", "--nodes", "0"], "--nodes must be a whole number >= 1"),
        (["--launch", "slurm", "--gpus", "two"], "--gpus must be a whole number >= 0"),
        (["--launch", "slurm", "--jobs", "2"], "--jobs .* in parallel on one machine"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, words, capsys, root):
    assert main(["table", "table1", "--profile", "smoke", "--results", str(root), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


# --- slurm.toml


def test_the_settings_of_the_committed_file_are_the_clusters_defaults_and_its_comments_are_settings(tmp_path):
    assert read_site(CHECKOUT / "slurm.toml") == Site()
    text = (CHECKOUT / "slurm.toml").read_text(encoding="utf-8")
    path = tmp_path / "site.toml"
    path.write_text(
        "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line and line[0] == "#"), encoding="utf-8"
    )
    everything = read_site(path)
    assert {name for name in Site.model_fields if getattr(everything, name) != getattr(Site(), name)} == (
        set(Site.model_fields) - {"signal_seconds"}
    )


def test_the_settings_of_a_site_reach_sbatch_and_flags_override_them(cluster, root):
    path = cluster.folder / "slurm.toml"
    path.write_text(
        'account = "lab"\npartition = "gpu"\nqos = "long"\nconstraint = "a100&nvlink"\ntime = 600\nsignal_seconds = 300\n'
        'cpus_per_task = 10\nmem = "120G"\nsbatch = ["--exclusive"]\npython = "python3"\nprefix = "env A=1"\n'
        'setup = ["module load cuda", "export WHERE=\\"a b\\""]\n',
        encoding="utf-8",
    )
    submit_runs([UNTRAINED], Layout(), read_site(partition="other"), root)
    (job,) = cluster.jobs
    expected = {"account": "lab", "partition": "other", "qos": "long", "constraint": "a100&nvlink", "time": "600", "mem": "120G"}
    assert {name: cluster.option(job, name) for name in expected} == expected
    assert cluster.option(job, "cpus-per-task") == "10"
    assert cluster.option(job, "signal") == "USR1@300"
    script = job.index(str(SCRIPT))
    assert "--exclusive" in job[:script]
    assert job[script + 3 : script + 6] == ['module load cuda\nexport WHERE="a b"', "env A=1", "python3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('partitoin = "gpu"', r"unknown setting partitoin in .*\(did you mean partition\?\)"),
        ("cpus_per_task = 0", "cpus_per_task in .*greater than 0, got 0"),
        ('setup = "module load cuda"', "setup in .*got 'module load cuda'"),
        ("time = ", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(text, words, tmp_path):
    (tmp_path / "slurm.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SfrikError, match=words):
        read_site(tmp_path / "slurm.toml")
    with pytest.raises(SfrikError, match="cannot be read"):
        read_site(tmp_path / "absent.toml")


def test_a_job_that_submits_others_does_not_pass_its_size_on(cluster, root, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    submit(Job("x", ("run",), root / "log"), Site(), root)
    names = {line.split("=")[0] for line in (cluster.folder / "env1").read_text(encoding="utf-8").splitlines()}
    assert {name for name in names if name.startswith("SLURM_")} == {"SLURM_CONF"}


# --- the batch script


def script(cluster, tmp_path, command, setup="", prefix="", **variables):
    """The exit status and the output of the batch script, whose job has number 5."""
    log = tmp_path / "run" / "slurm.log"
    log.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "node1", **variables}
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(["bash", SCRIPT, log, "", setup, prefix, *command], stdout=file, stderr=file, env=environment)
    return done.returncode, log.read_text(encoding="utf-8")


def test_the_script_runs_the_command_after_the_setup_and_behind_the_prefix(cluster, tmp_path):
    show = ["bash", "-c", 'echo "$WHERE|$INSIDE|$SFRIK_PREFIX|$1"', "-", "a 'b'  c"]
    status, log = script(cluster, tmp_path, show, 'WHERE="x  y"\nexport WHERE', "env INSIDE='1 2'")
    assert status == 0
    assert "x  y|1 2|env INSIDE='1 2'|a 'b'  c" in log
    assert cluster.updates == []


def test_a_command_that_saved_and_stopped_is_requeued_and_one_that_failed_is_not(cluster, tmp_path):
    status, _ = script(cluster, tmp_path, ["bash", "-c", "exit 75"])
    assert (status, cluster.updates) == (0, ["requeue 5"])
    status, log = script(cluster, tmp_path, ["bash", "-c", "exit 2"])
    assert (status, cluster.updates) == (2, ["requeue 5"])
    assert log.endswith("sfrik job 5 ended with status 2\n")


def test_a_job_that_slurm_ends_waits_for_the_command_and_does_not_requeue_itself(cluster, tmp_path):
    stops = ["bash", "-c", "kill -TERM $PPID; sleep 0.2; echo saved; exit 75"]
    (cluster.folder / "shows").write_text("JobId=5 JobState=COMPLETING Reason=None Dependency=(null)\n", encoding="utf-8")
    status, log = script(cluster, tmp_path, stops)
    assert status == 75
    assert "saved" in log
    assert cluster.updates == []
    (cluster.folder / "shows").write_text("JobId=5 JobState=COMPLETING Reason=TimeLimit Dependency=(null)\n", encoding="utf-8")
    assert script(cluster, tmp_path, stops)[0] == 0, "unless it was the limit, of which no step got a signal"
    assert cluster.updates == ["requeue 5"]


def test_a_job_that_stops_three_times_at_the_same_step_is_not_requeued_again(cluster, tmp_path):
    run = Run(tmp_path / "run")

    def stopped_at(step):
        run.update_status("preempted", stage="pretrain", epoch=0, step=step, steps=8)
        return script(cluster, tmp_path, ["bash", "-c", "exit 75"])[0]

    assert [stopped_at(step) for step in (0, 4, 4)] == [0, 0, 0]
    assert stopped_at(4) == 1
    assert len(cluster.updates) == 3
    assert "stopped three times at the same step" in (tmp_path / "run" / "slurm.log").read_text(encoding="utf-8")
    assert stopped_at(5) == 0


# --- status


@pytest.fixture
def run(cluster, root):
    found = Run(run_folder(RUN[0], 0, root))
    found.folder.mkdir(parents=True)
    return found


def status(root):
    return run_status(*RUN, root, queued_jobs(root))


def test_a_run_that_was_never_started_is_missing_and_one_in_the_queue_is_queued(cluster, root):
    assert (status(root).state, status(root).detail) == ("missing", "pretrain, linear, knn")
    submit_runs([RUN], Layout(), Site(), root)
    assert (status(root).state, status(root).detail) == ("queued", "pretrain: job 1 waits (Priority)")
    assert status(root).jobs == ("1", "2")


def test_a_running_run_shows_epoch_loss_time_left_and_job(cluster, root, run):
    submit_runs([RUN], Layout(), Site(), root)
    cluster.becomes("1", "RUNNING")
    assert (status(root).state, status(root).detail) == ("running", "starting, job 1 on node[1-2]")
    run.update_status("running", stage="pretrain", epoch=2, epochs=20, step=30, steps=400, loss=1.23456, seconds_left=312.0)
    assert status(root).detail == "pretrain: epoch 3/20, loss 1.2346, 5 min left, job 1 on node[1-2]"
    run.update_status("running", stage="linear")
    assert status(root).detail == "linear, job 1 on node[1-2]"


def test_a_run_of_this_machine_is_running_while_its_process_holds_the_lock_and_stopped_when_it_is_gone(root, run):
    run.update_status("running", stage="pretrain", epoch=0, epochs=2)
    with run.lock():
        assert status(root).state == "running"
        assert status(root).detail.startswith("pretrain: epoch 1/2, on ")
    assert (status(root).state, status(root).detail) == ("stopped", "pretrain: epoch 1/2; its process is gone")
    (run.folder / "slurm.log").write_text(
        "epoch 1\nslurmstepd: error: *** JOB 3 ON node1 CANCELLED DUE TO TIME LIMIT ***\n", encoding="utf-8"
    )
    assert status(root).detail.endswith("(slurmstepd: error: *** JOB 3 ON node1 CANCELLED DUE TO TIME LIMIT ***)")


def test_a_preempted_run_shows_whether_a_job_resumes_it(cluster, root, run, monkeypatch):
    run.update_status("preempted", stage="pretrain", epoch=1, epochs=2)
    assert (status(root).state, status(root).detail) == ("preempted", "pretrain: epoch 2/2; the same command resumes")
    submit_runs([RUN], Layout(), Site(), root)
    assert status(root).state == "queued", "another job than the one that stopped"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    run.update_status("preempted", stage="pretrain", epoch=1, epochs=2)
    cluster.becomes("1", "PENDING", "BeginTime", "")
    assert status(root).detail == "pretrain: epoch 2/2; requeued, job 1 waits (BeginTime)"
    assert status(root).state == "preempted"


def test_a_failed_run_shows_its_last_error_in_one_line(root, run):
    run.update_status("failed", stage="pretrain", error="rank 1 on node2 failed:\nTraceback\n  File x\nValueError: the reason")
    assert (status(root).state, status(root).detail) == ("failed", "pretrain: rank 1 on node2 failed: ValueError: the reason")


def test_the_log_tells_why_a_job_failed_before_the_run_wrote_its_state(root, run):
    (run.folder / "slurm.log").write_text(
        "sfrik job 5 on node1\n/usr/bin/python: No module named sfrik\nsfrik job 5 ended with status 1\n", encoding="utf-8"
    )
    assert (status(root).state, status(root).detail) == ("failed", "/usr/bin/python: No module named sfrik")


def test_status_without_slurm_works_from_the_folders_and_as_json(root, run, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    run.update_status("failed", stage="pretrain", error="no images")
    assert main(["status", "table1", "--profile", "smoke", "--results", str(root)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["smoke/sfrik_l3_q64", "seed", "0", "failed", "pretrain:", "no", "images"] for line in printed)
    assert printed[:3] == ["failed   1", "missing  7", ""]
    assert main(["status", "table1", "table5", "--profile", "smoke", "--seeds", "2", "--results", str(root), "--json"]) == 0
    shown_json = json.loads(capsys.readouterr().out)
    assert shown_json["counts"]["missing"] == 17
    (failed,) = [entry for entry in shown_json["runs"] if entry["state"] == "failed"]
    assert failed["facts"]["error"] == "no images"
    assert failed["missing"] == ["pretrain", "linear", "knn"]


def test_a_queue_that_does_not_answer_is_reported_where_jobs_were_submitted(cluster, root, tmp_path, capsys):
    submit_runs([RUN], Layout(), Site(), root)
    cluster.replace("squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    for place, reported in ((root, True), (tmp_path / "another", False)):
        capsys.readouterr()
        found, _ = tables_status(["table1"], "smoke", root=place)
        assert {entry.state for entry in found} == {"missing"}
        assert capsys.readouterr().err == (
            "sfrik: the queue is left out: squeue refuses: Unable to contact slurm controller\n" if reported else ""
        )


def test_the_runs_of_a_choice_are_known_once_it_has_been_made(root):
    before = needed_runs(["table9"], "smoke", 2, root)
    assert {seed for _, seed in before} == {0}
    folder = root / "smoke" / "tuning"
    folder.mkdir(parents=True)
    (folder / "sfrik_q64.json").write_text(json.dumps({"chosen": "tune_sfrik_q64_sim128"}), encoding="utf-8")
    after = needed_runs(["table9"], "smoke", 2, root)
    assert after["smoke/tune_sfrik_q64_sim128", 1] == ("pretrain", "tune", "inference")
    assert ("smoke/tune_sfrik_q64_sim256", 1) not in after


def test_the_makefile_passes_the_flags_that_are_set_and_no_others():
    def flags(*variables):
        made = subprocess.run(
            ["make", "-n", "--no-print-directory", "table1", "VENV=", *variables],
            cwd=CHECKOUT,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return shlex.split(made.stdout.replace("\\\n", ""))[-8:]

    assert flags()[-2:] == ["--launch", "local"]
    given = ["PARTITION=gpu", "NODES=2", "GPUS=4", "TIME=1-00"]
    assert flags("LAUNCH=slurm", *given) == ["--partition", "gpu", "--nodes", "2", "--gpus", "4", "--time", "1-00"]


def test_the_batch_script_is_valid_bash_and_part_of_the_package():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert slurm.SCRIPT.samefile(SCRIPT)
