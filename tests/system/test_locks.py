"""Locks on folders, on file systems with and without flock."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfrik.errors import SfrikError
from sfrik.system.locks import folder_lock, is_locked

fcntl = pytest.importorskip("fcntl")

ROOT = Path(__file__).parents[2]
# a process that holds a lock on a file system without flock, as some network file systems are
HOLDER = """
import errno, fcntl, os, sys, time
def missing(file, kind):
    raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
fcntl.flock = missing
from sfrik.system.locks import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
MISSING = [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP]


def without_flock(monkeypatch, number):
    def missing(file, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", missing)


@pytest.mark.parametrize("number", MISSING)
def test_without_flock_the_lock_works_and_leaves_no_marker_file(number, monkeypatch, tmp_path):
    without_flock(monkeypatch, number)
    assert not is_locked(tmp_path / "lock")
    with folder_lock(tmp_path):
        assert is_locked(tmp_path / "lock")
        with pytest.raises(SfrikError, match=rf"another process \(pid {os.getpid()} on "), folder_lock(tmp_path):
            pytest.fail("two processes hold the lock")
    assert not is_locked(tmp_path / "lock")
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", MISSING)
def test_without_flock_the_lock_of_a_dead_process_of_this_machine_can_be_acquired(number, monkeypatch, tmp_path):
    without_flock(monkeypatch, number)
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8") as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            assert is_locked(tmp_path / "lock")
            with (
                pytest.raises(SfrikError, match=rf"pid {holder.pid} on .*delete .*lock\.soft if it has ended"),
                folder_lock(tmp_path),
            ):
                pytest.fail("two processes hold the lock")
        finally:
            holder.kill()
    assert (tmp_path / "lock.soft").exists()
    assert not is_locked(tmp_path / "lock")
    with folder_lock(tmp_path):
        pass


def test_is_locked_writes_nothing_and_does_not_hold_the_lock(tmp_path):
    assert not is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path):
        held = (tmp_path / "lock").read_bytes()
        assert is_locked(tmp_path / "lock")
        assert (tmp_path / "lock").read_bytes() == held
    assert not is_locked(tmp_path / "lock")


def test_a_folder_in_place_of_the_lock_file_is_an_error(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(SfrikError, match="lock is a folder"), folder_lock(tmp_path):
        pytest.fail("a folder was locked")
