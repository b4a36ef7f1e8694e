"""Another user of the machine, or of its network, attacks a run while it trains.

The intruder is a process of another user id. It connects to every port of the run, over the machine's own addresses and over its
loopback interface, speaks to PyTorch's stores in their own protocol, sends noise to the others, and reads the temporary
folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("psutil", reason="comes with ipykernel")
import psutil
from processes import descendants, last_step, named, wait_for

from sfrik.launch.remote_call import PIECE, Reporter, Reports

ROOT = Path(__file__).parents[2]
NOBODY = 65534
SETTINGS = {"subset": 24, "batch_size": 30, "epochs": 6, "device": "cpu", "precision": "fp32", "log_every": 1, "knn_every": 0}

ATTACK = """
import encodings.idna, json, os, socket, sys, tempfile, threading
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
os.setgroups([]), os.setgid(NOBODY), os.setuid(NOBODY)  # all is imported: another user need not be able to read this Python
addresses, ports, marker = sys.argv[1].split(), [int(port) for port in sys.argv[2].split()], sys.argv[3]
call = json.dumps({"function": "os:system", "args": ["touch " + marker], "kwargs": {}})
planted = {"call": call, "first": "stopped", "stopped": "stopped by SIGTERM (by a stranger); the same command", "stoppeds": "1",
           "result": json.dumps({"forged": True}), "ends": "1", "progress": "{}"}
planted["failure"] = json.dumps({"rank": 0, "host": "a stranger", "traceback": "forged"})
reached = []
for address in addresses:
    for port in ports:
        try:
            with socket.create_connection((address, port), timeout=1):
                reached.append([address, port])
        except OSError:
            pass
print(json.dumps(reached), flush=True)
for address, port in reached:
    for noise in (b"", os.urandom(64), bytes(8), (8).to_bytes(8, "little") + os.urandom(8)):
        try:
            with socket.create_connection((address, port), timeout=1) as link:
                link.settimeout(0.2)
                link.sendall(noise)
                link.recv(64)
        except OSError:
            pass
def plant(address, port):
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
        names = list(store.list_keys()) if hasattr(store, "list_keys") else []
        for key in [*planted, *names]:
            store.set(key, planted.get(key, "forged"))
    except Exception:
        pass
for address, port in reached:  # what is no store never answers
    thread = threading.Thread(target=plant, args=(address, port), daemon=True)
    thread.start()
    thread.join(3)
for folder in Path(tempfile.gettempdir()).glob("sfrik-*"):
    try:
        print("looked into", list(folder.iterdir()), flush=True)
    except PermissionError:
        pass
sys.stdout.flush()
os._exit(0)
"""


def own_addresses() -> list[str]:
    """The machine's addresses, those on its network first."""
    found = [a.address for some in psutil.net_if_addrs().values() for a in some if a.family.name in ("AF_INET", "AF_INET6")]
    return sorted({address for address in found if "%" not in address}, key=lambda address: address in ("127.0.0.1", "::1"))


def listening(pid: int) -> set[tuple[str, int]]:
    """The addresses and ports on which a process and its descendants listen."""
    family = [psutil.Process(pid), *descendants(pid)]
    links = [link for process in family for link in process.net_connections("inet") if link.status == "LISTEN"]
    return {(link.laddr.ip, link.laddr.port) for link in links}


TRAIN = f"""
import sys
from sfrik.launch.launcher import launch
from sfrik.settings import PretrainSettings
runs = [PretrainSettings.from_recipe("smoke/sfrik_l2_q64", exp_dir=folder, **{SETTINGS}) for folder in sys.argv[1:]]
launch("launch_targets:pretrain_each", *runs, nproc_per_node=2)
"""


def start(*folders: Path) -> subprocess.Popen:
    """A process that trains into one folder after the other, on two workers."""
    command = [sys.executable, "-c", TRAIN, *map(str, folders)]
    # a variable that a user has set for a cluster must not open a run on one machine to its network
    network = next((name for name, some in psutil.net_if_addrs().items() if name != "lo" and some), "lo")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": network}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to act as another user, and Linux")
def test_another_user_runs_no_code_stops_no_run_and_falsifies_no_result(tmp_path):
    whole, attacked, marker = tmp_path / "whole", tmp_path / "attacked", tmp_path / "ran"
    run = start(whole, attacked)  # the first is finished when the attack begins
    wait_for(lambda: last_step(attacked) >= 1 or run.poll() is not None, 180, "the training")
    assert run.poll() is None, run.communicate()[0]
    second = named("sfrik.launch.worker", run.pid)[1]
    second.suspend()  # the first one waits for it, so that the training lasts as long as the attack
    try:
        found = listening(run.pid)
        ports = " ".join(str(port) for _, port in found)
        command = [sys.executable, "-c", f"NOBODY = {NOBODY}\n{ATTACK}", " ".join(own_addresses()), ports, str(marker)]
        attack = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    finally:
        second.resume()
    assert attack.returncode == 0, attack.stderr
    assert {address for address, _ in found} <= {"127.0.0.1", "::1"}
    assert {address for address, _ in json.loads(attack.stdout.splitlines()[0])} <= {"127.0.0.1", "::1"}
    assert "looked into" not in attack.stdout

    printed = run.communicate(timeout=300)[0]
    assert run.returncode == 0, printed
    assert not marker.exists()
    assert "stranger" not in printed
    assert "forged" not in printed
    assert (attacked / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()


def test_the_reports_of_several_ranks_in_one_pipe_are_separated_and_their_lines_are_short():
    reading, writing = os.pipe()
    for rank in (1, 0):
        Reporter(writing, "token", rank).send("progress" if rank else "result", "x" * PIECE * 3)
    Reporter(writing, "other token", 0).send("result", "forged")
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        lines = file.readlines()
    assert max(map(len, lines)) < 1024
    reports = Reports("token")
    taken = [reports.read(line) for line in sorted(lines, key=lambda line: line.split(" ")[3])]
    assert taken.count(False) == 1
    assert reports.result == ["x" * PIECE * 3]


def test_no_pickle_passes_between_the_processes():
    paths = [path for room in ("launch", "ops", "pretrain") for path in (ROOT / "sfrik" / room).glob("*.py")]
    assert {"worker.py", "remote_call.py", "collectives.py", "loop.py"} <= {path.name for path in paths}
    for path in paths:
        for name in ("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object", "import pickle"):
            assert name not in path.read_text(encoding="utf-8"), path


def test_a_process_without_the_token_is_refused_by_the_group():
    from sfrik.launch.worker import _check_proofs, _proof

    assert _proof("one", "0") != _proof("other", "0")
    import sfrik.launch.worker as worker

    def others(own, device):
        return [own, _proof("other", "1")]

    patch = pytest.MonkeyPatch()
    with patch.context() as change:
        change.setattr(worker, "all_gather_json", others)
        change.setattr(worker.dist, "get_rank", lambda: 0)
        with pytest.raises(ValueError, match="rank 1 is no process of this launch"):
            _check_proofs("one", torch.device("cpu"))
