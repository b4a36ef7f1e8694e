"""SLURM with stand-ins for its commands: the user's variables, clients that fail, limits, holds, setups that fail, and srun."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from slurm_jobs import RUN, SCRIPT, submit_runs

from sfrik.cli import main
from sfrik.errors import SfrikError
from sfrik.launch import addresses, slurm_client
from sfrik.launch.allocation import allocated_nodes, check_nodes, drives_job
from sfrik.launch.slurm import Layout, Site, read_site
from sfrik.launch.slurm_client import step_environment
from sfrik.launch.slurm_queue import QueuedJob, queued_jobs
from sfrik.reproduce.status import run_status, tables_status
from sfrik.runs.folder import Run
from sfrik.settings import run_folder

USERS = {
    **{
        "SQUEUE_STATES": "RUNNING",
        "SQUEUE_FORMAT": "%i",
        "SQUEUE_FORMAT2": "jobid",
        "SQUEUE_SORT": "-i",
        "SQUEUE_PARTITION": "x",
    },
    **{"SBATCH_QOS": "long", "SBATCH_EXPORT": "NONE", "SBATCH_WAIT": "1", "SLURM_CLUSTERS": "other", "SLURM_TIME_FORMAT": "%s"},
    **{"SCONTROL_ALL": "1", "SACCT_FORMAT": "JobID", "SALLOC_ACCOUNT": "x", "SINFO_STATES": "idle", "SRUN_DEBUG": "4"},
}


def queue_of(state: str = "PENDING", reason: str = "None") -> str:
    return str(QueuedJob("7", state, reason, "node1", "smoke/x/seed0/pretrain"))


# --- variables and clients


def test_no_variable_of_the_user_changes_what_is_seen_or_submitted(cluster, root, monkeypatch, capsys):
    for name, value in USERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CONF", "/etc/of/the/cluster.conf")
    for _ in range(2):
        submit_runs([RUN], Layout(), Site(), root)
    tables_status(["table1"], "smoke", root=root)
    assert len(cluster.jobs) == 2
    names = {line.split("=")[0] for line in (cluster.folder / "seen").read_text(encoding="utf-8").splitlines()}
    assert {name for name in names if re.match("S[A-Z]+_", name)} & {*USERS, "SLURM_CONF"} == {"SLURM_CONF"}
    said = capsys.readouterr().err
    assert "SBATCH_EXPORT, SBATCH_QOS, SBATCH_WAIT, SLURM_CLUSTERS of the environment: ignored; set it in slurm.toml" in said
    assert said.count("ignored") == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1", "squeue refuses: Unable to contact"),
        ("exit 3", "squeue refuses: exit status 3"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2", "squeue refuses: slurm_load_jobs error"),
        ("sleep 4; true", "squeue does not answer within 1 s"),
        ("echo Welcome to the cluster", "squeue prints a line that is no job: 'Welcome to the cluster'"),
        ("head -c 100 /dev/urandom | tr -d '|\\n'; echo", "squeue prints a line that is no job"),
        ('cat "$HERE/queue"; echo 8 PENDING', "squeue prints a line that is no job: '8 PENDING'"),
        (None, "squeue is not on PATH"),
    ],
)
def test_a_queue_that_is_not_known_is_never_taken_for_an_empty_one(cluster, root, monkeypatch, capsys, body, words):
    monkeypatch.setattr(slurm_client, "CLIENT_SECONDS", 1.0)
    submit_runs([RUN], Layout(), Site(), root)
    if body is None:
        (cluster.folder / "squeue").unlink()
        monkeypatch.setenv("PATH", str(cluster.folder))
    else:
        cluster.replace("squeue", body)
    submitted = (cluster.folder / "count").read_text(encoding="utf-8")
    with pytest.raises(SfrikError, match=words):
        submit_runs([RUN], Layout(), Site(), root)
    assert (cluster.folder / "count").read_text(encoding="utf-8") == submitted
    tables_status(["table1"], "smoke", root=root)
    assert re.search(f"the queue is left out: {words}", capsys.readouterr().err)


def test_jobs_that_have_ended_are_not_in_the_queue_and_those_held_after_a_requeue_are(cluster, root):
    submit_runs([RUN], Layout(), Site(), root)
    cluster.becomes("1", "COMPLETED")
    cluster.becomes("2", "REQUEUE_HOLD", "job requeued in held state")
    (job,) = queued_jobs(root)
    assert (job.id, job.waits) == ("2", True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo Submitted", "sbatch prints no job number but 'Submitted'"),
        ("exec sleep 20", "within 1 s.*the job may have been added"),
    ],
)
def test_a_submission_whose_outcome_is_not_known_is_an_error(cluster, root, monkeypatch, body, words):
    monkeypatch.setattr(slurm_client, "CLIENT_SECONDS", 1.0)
    cluster.replace("sbatch", body)
    with pytest.raises(SfrikError, match=words):
        submit_runs([RUN], Layout(), Site(), root)


# --- limits and holds


def test_at_a_submit_limit_the_error_counts_what_was_submitted_and_the_same_command_submits_the_rest(cluster, root):
    sbatch = (cluster.folder / "sbatch").read_text(encoding="utf-8")
    limit = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Job violates accounting/QOS policy"
    stop = f"[ $(wc -l < \"$HERE/queue\") -lt 1 ] || {{ echo '{limit}' >&2; exit 1; }}"
    cluster.replace("sbatch", stop + "\n" + sbatch.split("\n", 2)[2])
    with pytest.raises(SfrikError, match=r"QOSMaxSubmitJobPerUserLimit; .*submits the rest.*submitted before: 1"):
        submit_runs([RUN], Layout(), Site(), root)
    (cluster.folder / "sbatch").write_text(sbatch, encoding="utf-8")
    assert submit_runs([RUN], Layout(), Site(), root) == ["1", "2"]
    assert cluster.names == ["smoke/sfrik_l3_q64/seed0/pretrain", "smoke/sfrik_l3_q64/seed0/linear+knn"]


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("error: AssocMaxSubmitJobLimit", "the same command submits the rest"),
        ("Invalid job array specification: MaxArraySize", "the same command submits the rest"),
        ("Invalid account or account/partition combination specified", "set account"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "set TIME="),
        ("Invalid generic resource (gres) specification", "set GPUS= or PARTITION="),
        ("Requested node configuration is not available", "set NODES="),
        ("Invalid qos specification", "set qos"),
        ("Batch job submission failed: Socket timed out on send/recv operation", "may have been added"),
    ],
)
def test_a_refusal_is_quoted_with_what_to_do(cluster, root, message, remedy):
    (cluster.folder / "refuses").write_text(f"sbatch: error: {message}\n", encoding="utf-8")
    with pytest.raises(SfrikError, match=rf"sbatch refuses: .*{re.escape(message[6:])} \(.*{remedy}"):
        submit_runs([RUN], Layout(), Site(), root)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "job 7 waits (Priority)"),
        ("Resources", "job 7 waits (Resources)"),
        ("JobHeldUser", "scontrol release 7"),
        ("JobHeldAdmin", "ask the administrators"),
        ("DependencyNeverSatisfied", "scancel 7"),
        ("(launch failed requeued held)", "scontrol release 7"),
        ("BadConstraints", "scancel 7, change slurm.toml"),
        ("PartitionTimeLimit", "scancel 7, change slurm.toml"),
        ("QOSMaxWallDurationPerJobLimit", "scancel 7, change slurm.toml"),
        ("QOSMaxJobsPerUserLimit", "when other jobs have ended"),
        ("AssocGrpCpuLimit", "when other jobs have ended"),
        ("AssocGrpCPUMinutesLimit", "used up its time"),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "sinfo -R"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", "sinfo -R"),
    ],
)
def test_status_gives_the_reason_why_a_job_waits_and_what_to_do(reason, words):
    assert words in queue_of(reason=reason)
    assert reason.strip("()") in queue_of(reason=reason)


def test_status_and_a_repeated_make_show_a_hold_and_not_what_waits_behind_it(cluster, root, capsys):
    submit_runs([RUN], Layout(), Site(), root)
    held, behind = "1|PENDING|JobHeldUser||", "2|PENDING|Dependency||"
    names = [line.split("|", 4)[4] for line in (cluster.folder / "queue").read_text(encoding="utf-8").splitlines()]
    cluster.queue(behind + names[1], held + names[0])
    found = run_status(*RUN, root, queued_jobs(root))
    assert (found.state, found.detail) == (
        "queued",
        "pretrain: job 1 is held by its user (JobHeldUser): scontrol release 1",
    )
    capsys.readouterr()
    submit_runs([RUN], Layout(), Site(), root)
    assert "pretrain, queued already; it is held by its user (JobHeldUser): scontrol release 1" in capsys.readouterr().out
    cluster.queue("2|PENDING|DependencyNeverSatisfied||" + names[1])
    found = run_status(*RUN, root, queued_jobs(root))
    assert (found.state, "scancel 2" in found.detail) == ("failed", True)


# --- the batch script


def script(tmp_path: Path, setup: str, variables: str = "", prefix: str = "", environment: dict[str, str] | None = None):
    """The exit status and the output of the batch script with a command that prints ran, WHERE and its own arguments."""
    log = run_folder(RUN.recipe, RUN.seed, tmp_path) / "slurm.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["bash", "-c", 'echo "ran $WHERE $*"', "-", "a b"]
    environment = {**(os.environ if environment is None else environment), "SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "node1"}
    with log.open("a", encoding="utf-8") as file:
        words = ["/bin/bash", str(SCRIPT), str(log), variables, setup, prefix, *command]
        done = subprocess.run(words, stdout=file, stderr=file, env=environment, cwd=tmp_path)
    return done.returncode, log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (
            "module load cuda",
            r"setup line 1 \(module load cuda\) of slurm.toml failed with status 127: .*module: command not found",
        ),
        ("WHERE=x\nsource absent/activate\nWHERE=y", r"setup line 2 \(source absent/activate\) .*No such file"),
        (
            "echo fine\nfalse",
            r"setup line 2 \(false\) of slurm.toml failed with status 1: |setup line 2 \(false\) .* status 1 \(",
        ),
        ("if true; then\n  nothing_like_it\nfi", r"setup line 3 \(if true; then;   nothing_like_it; fi\) .*command not found"),
        ("source exits.sh", r"setup line 1 \(source exits.sh\) .* status 0: leaving"),
        ("set -u; echo $NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE: unbound variable"),
        ("if true; then", "setup line 1 .*syntax error"),
    ],
)
def test_a_setup_line_that_fails_ends_the_job_and_status_shows_it(tmp_path, setup, words):
    (tmp_path / "exits.sh").write_text("echo leaving\nexit 0\n", encoding="utf-8")
    run = Run(run_folder(RUN.recipe, RUN.seed, tmp_path))
    run.update_status("preempted", stage="pretrain", epoch=1, epochs=2)  # of an earlier job
    status, log = script(tmp_path, setup)
    assert status == 1
    assert "\nran " not in log
    found = run_status(*RUN, tmp_path)
    assert found.state == "failed"
    assert re.match(words if words.startswith("setup") else f"setup line 1 .*{words}", found.detail), found.detail
    costs = tmp_path / "smoke" / "tables" / "table5.slurm.log"
    costs.parent.mkdir()
    costs.write_text(log, encoding="utf-8")
    assert run_status("smoke/complexity/table5", 0, (), tmp_path).detail == found.detail


def test_a_setup_may_use_unset_variables_and_ignore_failures_within_a_script(tmp_path):
    (tmp_path / "conda.sh").write_text(
        'WHERE="$UNSET$#"\nfalse\n[ -d /no/such ]; export WHERE\nprefix=/opt log=/dev/null\n[ -f absent ] && source absent\n',
        encoding="utf-8",
    )
    status, log = script(
        tmp_path, 'source conda.sh\nif [ "$WHERE" ]; then\n  WHERE=${WHERE}x\nfi\nset -euo pipefail', prefix="env A=1"
    )
    assert (status, log.splitlines()[-1]) == (0, "ran 0x a b")
    assert "setup line 1 (source conda.sh) returned status 1 without a message: harmless" in log


def test_a_prefix_that_is_no_shell_words_is_an_error_and_not_left_out(tmp_path):
    status, log = script(tmp_path, "", prefix="env 'A")
    assert status == 1
    assert "\nran " not in log
    assert "sfrik: error: prefix (env 'A) of slurm.toml failed" in log


def test_a_job_without_the_submitting_environment_has_what_it_needs(cluster, root, tmp_path, monkeypatch):
    monkeypatch.setenv("SFRIK_GRACE", "a 'quoted' value")
    monkeypatch.setenv("SFRIK_BAR", "1")
    monkeypatch.setenv("PYTHONPATH", "/a path")
    submit_runs([RUN], Layout(), Site(sbatch=("--export=NONE",)), root)
    job = cluster.jobs[0]
    variables = job[job.index(str(SCRIPT)) + 2]
    setup = 'echo "<$SFRIK_GRACE|$SFRIK_BAR|$PYTHONPATH|${HOME:+home}|${PATH##*:}>"'
    status, log = script(tmp_path, setup, variables, environment={})
    assert status == 0
    assert f"<a 'quoted' value||/a path|home|{cluster.folder}>" in log


# --- the allocation


def test_variables_of_the_user_do_not_reach_the_step_and_those_of_the_allocation_do():
    allocation = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_GPUS_ON_NODE": "2",
    }
    users = {**USERS, "SLURM_LABELIO": "1", "SLURM_EXPORT_ENV": "NONE", "SLURM_TIMELIMIT": "1", "SLURM_STDOUTMODE": "none"}
    rest = {"HOME": "/root", "SLURMD_NODENAME": "node1", "SLURM_CONF": "x"}
    assert step_environment({**allocation, **users, **rest}) == {**allocation, **rest}


@pytest.fixture
def step(monkeypatch):
    """This process as the first of two tasks that `srun -N1 -n2` started."""
    for name, value in {"JOB_ID": "7", "STEP_ID": "0", "STEP_NUM_TASKS": "2", "STEP_NUM_NODES": "1", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    "command",
    [
        ["pretrain", "--recipe", RUN.recipe, "--dry-run"],
        ["pretrain", "--recipe", RUN.recipe, "--nproc-per-node", "2"],
        ["evaluate", "--recipe", RUN.recipe],
        ["run", "--recipe", RUN.recipe],
        ["table", "table1", "--profile", "smoke"],
        ["chapters", "--profile", "smoke"],
    ],
)
def test_several_tasks_of_srun_with_the_same_command_are_refused_once_and_before_anything_is_written(
    step, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flag = "--exp-dir" if command[0] in ("pretrain", "evaluate") else "--results"
    assert main([*command, flag, str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("srun started 2 tasks.*leave srun out.*`python -m sfrik pretrain --nproc-per-node 2 ...`", line)
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit) as end:
        main([*command, flag, str(tmp_path / "runs")])
    assert (end.value.code, capsys.readouterr().err) == (2, "")
    assert not list(tmp_path.iterdir())


def test_tasks_with_a_run_of_their_own_are_allowed_on_request_and_mpirun_is_recognised(step, monkeypatch, capsys):
    dry_run = ["pretrain", "--recipe", RUN.recipe, "--dry-run"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(dry_run) == 0
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert main(dry_run) == 0
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    capsys.readouterr()
    assert main(dry_run) == 2
    assert "mpirun started 4 tasks" in capsys.readouterr().err
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")  # as left in a shell
    assert main(dry_run) == 2
    assert "OMPI_COMM_WORLD_SIZE is left in the shell: WORLD_SIZE=1" in capsys.readouterr().err


def test_more_nodes_than_the_job_has_and_nodes_without_srun_are_refused(cluster, monkeypatch):
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    cluster.replace("srun", "")
    (cluster.folder / "srun").chmod(0o755)
    with pytest.raises(SfrikError, match=r"launch on 2 nodes, but SLURM job 7 has 1: leave nodes out, or .* --nodes=2"):
        check_nodes(2)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    check_nodes(2)
    monkeypatch.setenv("SLURM_STEP_ID", "4294967290")  # the shell of salloc on a node
    assert (drives_job(), allocated_nodes()) == (True, 2)
    monkeypatch.setenv("PATH", "/no/such/folder")
    with pytest.raises(SfrikError, match=r"SLURM job 7 has 2 nodes, but srun.* is not on PATH"):
        allocated_nodes()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert (drives_job(), allocated_nodes()) == (False, 1)
    with pytest.raises(SfrikError, match="this process is in a step of a SLURM job: start it without srun"):
        check_nodes(2)


def test_the_home_folder_is_expanded_in_the_path_of_the_settings_and_of_python(cluster, root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SFRIK_SLURM", "~/site.toml")
    (tmp_path / "site.toml").write_text('python = "~/venv/bin/python"', encoding="utf-8")
    submit_runs([RUN], Layout(), read_site(), root)
    assert str(tmp_path / "venv" / "bin" / "python") in cluster.jobs[0]


@pytest.mark.parametrize("option", ["--job-name=x", "--output=/dev/null", "-o/dev/null", "--clusters=b", "--array=1-3", "--wait"])
def test_options_of_sbatch_that_are_set_for_each_job_are_refused(tmp_path, option):
    (tmp_path / "slurm.toml").write_text(f'sbatch = ["{option}"]\n', encoding="utf-8")
    with pytest.raises(SfrikError, match=f"{option} is set for each job, leave it out"):
        read_site(tmp_path / "slurm.toml")


# --- addresses


def test_the_caller_is_reached_at_the_first_address_that_answers_and_the_error_lists_all(monkeypatch):
    monkeypatch.setattr(addresses, "TRY_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert addresses.reachable_address(["no-such-host.invalid", "127.0.0.1"], port) == "127.0.0.1"
    with pytest.raises(SfrikError) as error:
        addresses.reachable_address(["127.0.0.1", "no-such-host.invalid"], port)
    assert re.search(rf"cannot connect to port {port} .*; tried no-such-host.invalid \(.+\), 127.0.0.1 \(.+\)$", str(error.value))


def test_a_name_that_does_not_resolve_in_time_does_not_hold_the_others_up(monkeypatch):
    def slow(*args):
        time.sleep(2)
        raise OSError("the name is unknown")

    monkeypatch.setattr(addresses, "TRY_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", slow)
    assert addresses._try("slow", 1) == "no answer within 0 s"


def test_the_addresses_of_a_node_are_those_of_slurm_then_of_its_interfaces_then_its_name(cluster, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    monkeypatch.setattr(addresses, "_interfaces", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5"})
    (cluster.folder / "shows").write_text(
        "NodeName=node1 Arch=x86_64 NodeAddr=10.0.0.5 NodeHostName=nowhere Port=1\n", encoding="utf-8"
    )
    assert addresses.addresses_of_this_node() == ["10.0.0.5", "10.1.0.5", socket.gethostname()]
    cluster.replace("scontrol", "exit 1")
    assert addresses.addresses_of_this_node() == ["10.0.0.5", "10.1.0.5", socket.gethostname()]


def test_gloo_uses_the_interface_that_reaches_the_caller_only_where_the_name_of_the_node_leads_nowhere(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(addresses, "_interfaces", lambda: {"eth0": "10.0.0.5", "loopback": "127.0.0.1"})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(addresses, "_name_is_usable", lambda: True)
        addresses.use_interface_to("127.0.0.1", port)
        assert "GLOO_SOCKET_IFNAME" not in os.environ
        monkeypatch.setattr(addresses, "_name_is_usable", lambda: False)
        addresses.use_interface_to("127.0.0.1", port)
        assert os.environ["GLOO_SOCKET_IFNAME"] == "loopback"
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
        addresses.use_interface_to("127.0.0.1", port)
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth9"
    monkeypatch.undo()
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert not addresses._name_is_usable()
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert not addresses._name_is_usable()
