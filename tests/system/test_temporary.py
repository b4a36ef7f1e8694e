"""Temporary folders: TMPDIR that is too long for a socket or cannot be written, and processes without a home folder."""

from __future__ import annotations

import multiprocessing.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sfrik.errors import SfrikError
from sfrik.system import temporary
from sfrik.system.home import provide_home
from sfrik.system.temporary import short_socket_folder, temporary_folder, user_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The temporary folder of this process, in place of the system's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_user_folder_is_private_and_the_same_at_each_call(folder):
    found = user_folder()
    assert found == user_folder() == folder / f"sfrik-{os.getuid()}"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_user_folder_that_somebody_else_may_have_made_is_not_used(folder, kind):
    taken, other = folder / f"sfrik-{os.getuid()}", folder / "other"
    other.mkdir(mode=0o700)
    if kind == "a link":
        taken.symlink_to(other)
    elif kind == "a file":
        taken.touch()
    else:
        taken.mkdir()
        taken.chmod(0o777)
    found = user_folder()
    assert found not in (taken, other)
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert not list(other.iterdir())


def test_without_a_writable_temporary_folder_the_error_says_what_to_do(monkeypatch, tmp_path):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    for make in (user_folder, lambda: temporary_folder().__enter__()):
        with pytest.raises(SfrikError, match=r"no temporary folder can be written .*set TMPDIR"):
            make()


@pytest.fixture
def no_socket_folder(monkeypatch):
    """Multiprocessing as in a process that has made no folder for sockets yet."""
    made = {}
    monkeypatch.setattr(multiprocessing.util.process.current_process(), "_config", made)
    return made


def test_sockets_are_in_a_short_folder_where_tmpdir_is_too_long(tmp_path, monkeypatch, no_socket_folder):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    short_socket_folder()
    assert len(no_socket_folder["tempdir"]) < temporary.SOCKET_FOLDER + 15
    assert tempfile.gettempdir() == str(long), "other temporary files stay where the user wants them"
    assert not list(long.iterdir())


def test_sockets_are_in_tmpdir_where_it_is_short_enough(monkeypatch, no_socket_folder):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    short_socket_folder()
    assert not no_socket_folder


def test_a_tmpdir_that_is_too_long_is_refused_where_there_is_no_other(tmp_path, monkeypatch, no_socket_folder):
    def fails(*arguments, **keywords):
        raise OSError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(tempfile, "mkdtemp", fails)
    with pytest.raises(SfrikError, match="too long for a socket: set TMPDIR to a shorter one"):
        short_socket_folder()


@pytest.mark.parametrize("home", ["/nowhere", "", "relative", "~"])
def test_a_home_that_does_not_exist_is_replaced_and_another_is_kept(folder, monkeypatch, home):
    monkeypatch.setenv("HOME", str(folder))
    provide_home()
    assert os.environ["HOME"] == str(folder)
    monkeypatch.setenv("HOME", home)
    provide_home()
    assert os.environ["HOME"] == str(user_folder())


HOMELESS = """
import os
import sfrik.plots, sfrik.runs.provenance
from sfrik.datasets.listing import cache_folder
from sfrik.reproduce.kernel import Kernel
sfrik.runs.provenance.hide_paths()("a text")
manager = Kernel().manager()
print(os.environ["HOME"], os.environ["USER"], cache_folder(), manager.connection_file, manager.kernel_spec.env["IPYTHONDIR"])
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to become a user without an entry")
@pytest.mark.parametrize("home", [{}, {"HOME": "/"}])
def test_a_user_without_entry_and_home_gets_a_temporary_one(home):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's folders are closed to other users
        tmp_path = Path(folder)
        tmp_path.chmod(0o777)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), **home}
        identity = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
        identity += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # this Python may be below root's home
        command = [*identity, sys.executable, "-B", "-c", HOMELESS]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, done.stderr
        found, user, *places = done.stdout.split()
        assert user == "uid12345"
        assert found == ("/" if home == {"HOME": "/"} else f"{tmp_path}/sfrik-12345"), "a home that cannot be written may be read"
        assert not (tmp_path / "~").exists()
        assert all(place.startswith(f"{tmp_path}/sfrik-12345/") for place in places[1:])
