"""Locks on folders, on file systems with and without flock."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sfrik.errors import SfrikError
from sfrik.system.files import WriteError
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
MISSING = [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY]


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


def test_without_flock_the_lock_of_a_dead_process_of_this_machine_can_be_acquired(monkeypatch, tmp_path):
    without_flock(monkeypatch, errno.ENOLCK)
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(errno.ENOLCK)]
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


def test_without_flock_a_waiting_process_prints_which_file_to_delete(monkeypatch, tmp_path, capsys):
    """The marker of a process that died on another machine stays."""
    without_flock(monkeypatch, errno.ENOLCK)
    marker = tmp_path / "lock.soft"
    marker.write_text("17\nanother-host\n", encoding="utf-8")
    threading.Timer(0.5, marker.unlink).start()
    with folder_lock(tmp_path, wait=True):
        pass
    printed = capsys.readouterr().out
    assert printed == f"waiting for pid 17 on another-host, which writes {tmp_path}; delete {marker} if it has ended\n"


def test_an_error_of_the_disk_is_not_taken_for_a_missing_flock(monkeypatch, tmp_path):
    """Another process may hold the real lock."""
    without_flock(monkeypatch, errno.EIO)
    with pytest.raises(WriteError, match="Input/output error"), folder_lock(tmp_path):
        pytest.fail("locked by a marker file")


def test_finished_work_in_a_folder_that_cannot_be_written_is_read_without_a_lock(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # as on a read-only mount; root ignores modes
    with folder_lock(tmp_path, optional=True):
        assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path), folder_lock(tmp_path / "new", optional=True):  # what is not there yet is created, or refused
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "new"}


def test_a_folder_in_place_of_the_lock_file_is_an_error(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(SfrikError, match="lock is a folder"), folder_lock(tmp_path):
        pytest.fail("a folder was locked")
