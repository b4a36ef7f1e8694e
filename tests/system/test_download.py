"""Downloads: one process at a time, whole or not at all, whatever the server, the disk or a kill does."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from toys import web_server

from sfrik.system import download
from sfrik.system.download import ChecksumError, Download, DownloadError, no_downloads
from sfrik.system.files import WriteError
from sfrik.system.locks import folder_lock

ROOT = Path(__file__).parents[2]
FETCH = """
import sys
from pathlib import Path
from sfrik.system.download import Download
Download(sys.argv[1], sys.argv[2], "md5").to_folder(Path(sys.argv[3]))
print(sorted(path.name for path in Path(sys.argv[3]).iterdir()))
"""


def archive_of(files):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return whole.getvalue()


@pytest.fixture
def server():
    content = {"/a.tar.gz": archive_of({"set/one": os.urandom(3 << 20), "set/two": b"2"}), "/list.txt": b"a\nb\n"}
    with web_server(content) as running:
        running.content = content
        running.md5 = hashlib.md5(content["/a.tar.gz"]).hexdigest()
        yield running


def missing(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")


WITHOUT_FLOCK = """
import errno, fcntl
def missing(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = missing
"""  # as on some network file systems


def process(server, target, before=""):
    command = [sys.executable, "-c", before + FETCH, f"{server.url}/a.tar.gz", server.md5, str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", env=environment)


def until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in five minutes"
        time.sleep(0.02)


def archives(folder):
    """The archives that are being downloaded, with some bytes."""
    return [path for path in folder.glob(".set.*.tmp/archive.tar") if path.stat().st_size]


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK])
def test_of_three_processes_one_downloads_and_the_others_wait_and_use_its_files(server, tmp_path, before):
    server.pause.clear()
    first = process(server, tmp_path / "data" / "set", before)
    until(lambda: archives(tmp_path / "data"))
    others = [process(server, tmp_path / "data" / "set", before) for _ in range(2)]
    lines = [other.stdout.readline() for other in others]  # printed while they wait
    for line in lines:
        assert f"waiting for pid {first.pid} on " in line
        assert f", which downloads {server.url}/a.tar.gz to {tmp_path / 'data' / 'set'}" in line
    server.pause.set()
    for each in (first, *others):
        out, err = each.communicate(timeout=300)
        assert each.returncode == 0, err
        assert out.splitlines()[-1] == "['one', 'two']"
    assert server.asked == ["/a.tar.gz"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["set"], "no lock, archive or temporary folder is left"


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK])
def test_a_killed_download_neither_counts_nor_blocks_the_next_one(server, tmp_path, monkeypatch, before):
    if before:
        monkeypatch.setattr("fcntl.flock", missing)
    server.pause.clear()
    killed = process(server, tmp_path / "set", before)
    until(lambda: archives(tmp_path))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    server.pause.set()
    assert not (tmp_path / "set").exists()
    assert archives(tmp_path)
    source = Download(f"{server.url}/a.tar.gz", server.md5, "md5")
    source.to_folder(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set" / "two").read_bytes() == b"2"
    server.content.clear()
    source.to_folder(tmp_path / "set")
    assert server.asked == ["/a.tar.gz", "/a.tar.gz"], "what is there is not asked for again"


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def cut(server, patch):
    server.missing = 1000
    return DownloadError, "the connection ended after "


def other_bytes(server, patch):
    server.content["/a.tar.gz"] = server.content["/list.txt"] = b"<html>please log in</html>"
    return ChecksumError, r"\.\.\. of 26 bytes, not "


def not_found(server, patch):
    server.content.clear()
    return DownloadError, "Not Found"


def no_network(server, patch):
    patch.setattr("urllib.request.urlopen", lambda *given, **named: (_ for _ in ()).throw(OSError("no route to host")))
    return DownloadError, "no route to host"


def no_space(server, patch):
    patch.setattr(Download, "write", full_disk)
    return WriteError, "the disk is full"


def no_space_to_unpack(server, patch):
    patch.setattr(download, "_unpack", full_disk)
    return WriteError, "the disk is full"


def interrupted(server, patch):
    def stop(*given):
        raise KeyboardInterrupt

    patch.setattr(Download, "write", stop)
    return KeyboardInterrupt, None


@pytest.mark.parametrize("fault", [cut, other_bytes, not_found, no_network, no_space, no_space_to_unpack, interrupted])
def test_a_failure_leaves_nothing_and_the_next_start_succeeds(server, tmp_path, monkeypatch, fault):
    whole = dict(server.content)
    folder, file = tmp_path / "new" / "data", tmp_path / "cache" / "list.txt"
    steps = [(Download(f"{server.url}/a.tar.gz", server.md5, "md5").to_folder, folder / "set")]
    if fault is not no_space_to_unpack:
        steps.append((Download(f"{server.url}/list.txt", hashlib.sha256(b"a\nb\n").hexdigest()).to_file, file))
    for step, target in steps:
        with monkeypatch.context() as patch:
            kind, message = fault(server, patch)
            with pytest.raises(kind, match=message) as caught:
                step(target)
            assert "\n" not in str(caught.value)
        server.content.update(whole)
        server.missing = 0
    assert list(tmp_path.iterdir()) == [], "not even the folders that were made for it"
    for step, target in steps:
        step(target)
        assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_failure_deletes_nothing_that_was_there(server, tmp_path):
    for name in ("mine", ".set.other-1-00000000.tmp"):
        (tmp_path / name).mkdir()
    with pytest.raises(ChecksumError):
        Download(f"{server.url}/a.tar.gz", "0" * 32, "md5").to_folder(tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.other-1-00000000.tmp", "mine"]


def test_a_download_without_a_known_checksum_must_still_be_as_long_as_announced(server, tmp_path):
    Download(f"{server.url}/list.txt").to_file(tmp_path / "list.txt")
    assert (tmp_path / "list.txt").read_bytes() == b"a\nb\n"
    server.missing = 1
    with pytest.raises(DownloadError, match="the connection ended after 4 of 5 bytes"):
        Download(f"{server.url}/list.txt").to_file(tmp_path / "other.txt")


def test_to_compare_nothing_is_downloaded_and_what_is_there_is_used(server, tmp_path, capsys):
    source = Download(f"{server.url}/list.txt")
    with no_downloads():
        with pytest.raises(DownloadError, match="nothing is downloaded only to compare"):
            source.to_file(tmp_path / "new" / "list.txt")
        with pytest.raises(DownloadError, match="nothing is downloaded only to compare"):
            source.write(io.BytesIO())
    assert server.asked == list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == "", "no download is announced"
    source.to_file(tmp_path / "list.txt")
    with no_downloads():
        source.to_file(tmp_path / "list.txt")
    assert server.asked == ["/list.txt"]


def test_what_is_there_is_used_without_a_lock_in_a_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.setattr(download, "folder_lock", lambda *given, **named: pytest.fail("a lock was taken"))
    Download(f"{server.url}/a.tar.gz", server.md5, "md5").to_folder(tmp_path / "set")
    assert server.asked == []


def test_a_lock_that_removes_its_folder_removes_those_that_the_process_before_made(tmp_path):
    """As when a process waits while the holder removes one of its two folders, and makes that one again."""
    folder = tmp_path / "made" / "here"
    folder.mkdir(parents=True)
    (folder / "lock").write_text("pid 1 on elsewhere\n2", encoding="utf-8")
    with folder_lock(folder, remove=True):
        assert (folder / "lock").read_text(encoding="utf-8").endswith("\n2"), "for the next one"
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_removes_its_folder_is_taken_again_by_a_process_that_waits(tmp_path):
    folder = tmp_path / "made" / "here"
    wait = (
        f"import sys; from sfrik.system.locks import folder_lock\nwith folder_lock({str(folder)!r}, wait=True, remove=True): pass"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with folder_lock(folder, work="counts", remove=True):
        waiting = subprocess.Popen(
            [sys.executable, "-c", wait], stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
        )
        assert waiting.stdout.readline().startswith(f"waiting for pid {os.getpid()} on ")
    waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert list(tmp_path.iterdir()) == []
