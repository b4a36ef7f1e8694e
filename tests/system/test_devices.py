"""Cores under a container's quota, and GPUs that are asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from sfrik.cli import main
from sfrik.cli.environment import environment
from sfrik.errors import SfrikError
from sfrik.settings import PretrainSettings
from sfrik.system.devices import cores, pick_device

ROOT = Path(__file__).parents[2]
OF_SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "SLURMD_NODENAME", "SLURM_STEP_ID")
VARIABLES = ("CUDA_VISIBLE_DEVICES", *OF_SLURM)
TORCHRUN = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {}, 16),
        ("", {}, 16),
        ("0::/slice/job", {"slice/cpu.max": "300000 100000", "slice/job/cpu.max": "max 100000"}, 3),
        ("0::/slice/job", {"slice/cpu.max": "300000 100000", "slice/job/cpu.max": "100000 100000"}, 1),
        ("0::/../other", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "6400000 100000"}, 16),
        ("4:cpu,cpuacct:/docker/1\n3:memory:/docker/1", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "50000"}, 5),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "100000", "cpu,cpuacct/a/cpu.cfs_period_us": "50000"}, 2),
        ("4:cpu:/a\n0::/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_cores_are_those_of_the_affinity_or_of_a_smaller_quota(tmp_path, monkeypatch, groups, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    assert cores(tmp_path) == expected


def test_cores_without_control_groups_are_those_of_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert cores(tmp_path / "none") == 3


@pytest.fixture
def gpus(monkeypatch):
    """Set the number of GPUs that PyTorch finds, and the variables of the environment."""

    def found(count, **variables):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        for name in (*VARIABLES, *TORCHRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return found


@pytest.mark.parametrize(
    "variables",
    [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"},
        {"SLURM_JOB_GPUS": "0,1", "SLURMD_NODENAME": "n1"},
        {"SLURM_GPUS_ON_NODE": "2", "SLURMD_NODENAME": "n1", "CUDA_VISIBLE_DEVICES": ""},
    ],
)
def test_gpus_that_are_asked_for_and_not_there_are_an_error_and_not_a_cpu(gpus, variables):
    gpus(0, **variables)
    with pytest.raises(SfrikError, match=r"GPUs were requested .*, but PyTorch finds none here: .* give --device cpu"):
        pick_device("auto")
    assert pick_device("cpu").type == "cpu"
    assert "GPUs were requested" in environment()["device"], "sfrik env, which is to explain it, still works"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_GPUS_ON_NODE": "0", "SLURMD_NODENAME": "n1"},
        {"SLURM_JOB_GPUS": "0,1"},  # a shell of salloc on a login node
    ],
)
def test_without_gpus_that_are_asked_for_auto_is_the_cpu(gpus, variables):
    gpus(0, **variables)
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize("hidden", ["", "0"])
def test_cuda_that_is_hidden_is_refused_with_the_variable(gpus, hidden):
    gpus(0, CUDA_VISIBLE_DEVICES=hidden)
    with pytest.raises(SfrikError, match=rf"device cuda is not available .* \(CUDA_VISIBLE_DEVICES is '{hidden}'\)"):
        pick_device("cuda")


def by_torchrun(processes, rank):
    return dict(zip(TORCHRUN, ("1", str(processes), str(rank), str(processes), str(rank)), strict=True))


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_needs_a_gpu_of_its_own(gpus, name):
    gpus(2, **by_torchrun(4, 1))
    with pytest.raises(SfrikError, match="4 processes need a GPU each, and this machine has 2: use --nproc-per-node 2"):
        pick_device(name)
    gpus(2, **by_torchrun(2, 1))
    assert pick_device(name) == torch.device("cuda", 1)
    gpus(1, **by_torchrun(4, 3), SLURM_STEP_ID="0")  # each sees the one that SLURM gave it
    assert pick_device(name) == torch.device("cuda", 0)
    gpus(1, LOCAL_WORLD_SIZE="4")  # left in a shell, and of no meaning
    assert pick_device(name) == torch.device("cuda", 0)


def test_a_pretraining_on_gpus_that_are_not_there_writes_nothing(gpus, tmp_path, capsys):
    gpus(0, CUDA_VISIBLE_DEVICES="0")
    assert main(["pretrain", "--recipe", "smoke/sfrik_l3_q64", "--exp-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "GPUs were requested (CUDA_VISIBLE_DEVICES=0)" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("plan", [[], ["--dry-run"]])
def test_a_table_refuses_gpus_without_slurm_also_in_a_dry_run(plan, tmp_path, capsys):
    assert main(["table", "table1", "--profile", "smoke", "--gpus", "2", "--results", str(tmp_path), *plan]) == 2
    assert "--gpus has an effect only with --launch slurm (LAUNCH=slurm)" in capsys.readouterr().err


def test_a_table_on_gpus_that_are_not_there_starts_no_run(gpus, tmp_path, capsys):
    gpus(0, CUDA_VISIBLE_DEVICES="0,1")
    for jobs in ("0", "2"):
        assert main(["table", "table1", "--profile", "smoke", "--jobs", jobs, "--results", str(tmp_path)]) == 2
        assert "GPUs were requested (CUDA_VISIBLE_DEVICES=0,1)" in capsys.readouterr().err
    assert not list(tmp_path.glob("smoke/*/seed0"))


def test_gpus_in_the_environment_of_make_are_refused():
    for value, status in (("2", 2), ("0", 0)):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | {"GPUS": value}
        command = ["make", "-n", "table1", "VENV=", "PROFILE=smoke"]
        made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
        assert made.returncode == status
        assert ("GPUS=2 of the environment has no effect: use make ... LAUNCH=slurm GPUS=2" in made.stderr) == bool(status)


# --- batches over processes


@pytest.mark.parametrize(
    ("chosen", "processes", "synchronised", "problem"),
    [
        ({"batch_size": 2}, 2, False, "batch_size 2 leaves each of 2 processes one: use fewer processes or a larger batch_size"),
        ({"batch_size": 2}, 2, True, None),
        ({"batch_size": 4}, 2, False, None),
        ({"batch_size": 2, "ssl_method": "none"}, 2, False, None),
        ({"batch_size": 6}, 4, True, "batch_size 6 is over all processes and is not divisible by 4"),
        ({"batch_size": 2}, 4, True, "batch_size 2 is over all processes and is not divisible by 4"),
        ({"batch_size": 2, "augmentations": "swav"}, 2, False, None),  # two views of 224 pixels and six of 96 pass together
        ({"batch_size": 2, "augmentations": "swav", "nmb_crops": (1, 6), "general_indices": (0,)}, 2, False, "processes one"),
        ({"batch_size": 8, "micro_batch": 2}, 2, False, None),
        ({"batch_size": 6, "micro_batch": 2}, 2, False, "micro_batch 2 splits the 3 images per process into batches of one"),
    ],
)
def test_a_batch_that_leaves_batchnorm_one_image_is_refused(chosen, processes, synchronised, problem):
    settings = PretrainSettings(**chosen)
    if problem is None:
        settings.check_processes(processes, synchronised)
    else:
        with pytest.raises(SfrikError, match=problem):
            settings.check_processes(processes, synchronised)


@pytest.mark.parametrize("plan", [[], ["--dry-run"]])
def test_one_image_per_process_is_refused_before_a_process_starts(plan, tmp_path, capsys):
    flags = ["--batch-size", "2", "--nproc-per-node", "2", "--device", "cpu", "--exp-dir", str(tmp_path / "run")]
    assert main(["pretrain", "--recipe", "smoke/sfrik_l3_q64", *flags, *plan]) == 2
    assert "leaves each of 2 processes one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "", None])
def test_an_unknown_device_of_a_notebook_is_refused(name):
    with pytest.raises(SfrikError, match="device must be auto, cuda, mps, cpu, got "):
        pick_device(name)
