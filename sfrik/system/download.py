"""Downloads: by one process at a time, to a temporary path that is renamed when all bytes are there and the checksum is right.

Processes of one job, of several nodes that share the folder, and of other jobs wait for the one that downloads, then use its
files. A download that fails or is killed leaves nothing at the target; the next one starts from scratch.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sfrik.errors import SfrikError
from sfrik.system.files import atomic_write, write_error
from sfrik.system.locks import folder_lock
from sfrik.system.progress import Progress
from sfrik.system.temporary import remove_abandoned, sync_folder, temporary_path
from sfrik.system.terminal import print_line

__all__ = ["ChecksumError", "Download", "DownloadError", "no_downloads"]

TIMEOUT = 60  # seconds without a byte from the server
BLOCK = 1 << 20
REFUSED = "nothing is downloaded only to compare"

_refused: ContextVar[bool] = ContextVar("_refused", default=False)


class DownloadError(SfrikError):
    """The reason why something could not be downloaded, without a remedy."""


class ChecksumError(DownloadError):
    """All bytes came, but they are not those that were expected."""


@contextmanager
def no_downloads() -> Generator[None]:
    """A context in which every download is refused: to compare records with what is present, and no more."""
    token = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(token)


@dataclass(frozen=True)
class Download:
    """A file on the web.

    Attributes:
        url: its address.
        checksum: its checksum in hexadecimal digits; "" if none is known.
        algorithm: of the checksum, a name of `hashlib`.
        progress: whether to show how many bytes are there.
    """

    url: str
    checksum: str = ""
    algorithm: str = "sha256"
    progress: bool = False

    def to_file(self, path: Path, is_there: Callable[[Path], bool] = Path.is_file) -> None:
        """Download the file to `path`, unless it is there.

        Args:
            path: the target; a file that is there and that `is_there` rejects is replaced.
            is_there: whether the file at the target is the one to download.

        Raises:
            DownloadError: the file could not be downloaded.
            WriteError: it could not be written.
        """
        with self._turn(path, is_there) as missing:
            if missing:
                with atomic_write(path) as file:
                    self.write(file)

    def to_folder(self, path: Path) -> None:
        """Download the tar archive and write its files into the new folder `path`, unless this is there. The archive is deleted.

        The folders inside the archive are left out. Raises the errors of `to_file`.
        """
        with self._turn(path, Path.exists) as missing:
            if missing:
                temporary = temporary_path(path)
                try:
                    temporary.mkdir()
                    archive = temporary / "archive.tar"
                    with archive.open("xb") as file:
                        self.write(file)
                    _unpack(archive, temporary)
                    archive.unlink()
                    temporary.rename(path)
                    sync_folder(path.parent)
                except tarfile.TarError as error:
                    raise DownloadError(f"it is not an archive that can be unpacked: {error}") from None
                except OSError as error:
                    raise write_error(path, error) from None
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)

    def write(self, file: BinaryIO) -> None:
        """Write the bytes to an open file.

        Raises:
            DownloadError: the connection failed or ended early, the checksum is another one, or downloads are refused.
            OSError: the file could not be written.
        """
        if _refused.get():
            raise DownloadError(REFUSED)
        digest, done = hashlib.new(self.algorithm, usedforsecurity=False), 0
        with _network_errors():
            response = urllib.request.urlopen(self.url, timeout=TIMEOUT)
        with response:
            size = int(response.headers.get("Content-Length") or 0)
            progress = Progress(-(-size // BLOCK), show=self.progress and size > 0)
            while True:
                with _network_errors():
                    block = response.read(BLOCK)
                if not block:
                    break
                file.write(block)
                digest.update(block)
                done += len(block)
                progress.step(-(-done // BLOCK), lambda: {"what": f"downloading {self.url}, in MiB"})
            progress.close()
        if done < size:
            raise DownloadError(f"the connection ended after {done} of {size} bytes")
        if self.checksum and (found := digest.hexdigest()) != self.checksum:
            name = self.algorithm.upper().replace("SHA", "SHA-")
            raise ChecksumError(f"{name} {found[:12]}... of {done} bytes, not {self.checksum[:12]}...")

    @contextmanager
    def _turn(self, path: Path, is_there: Callable[[Path], bool]) -> Generator[bool]:
        """Wait for this process's turn to download; whether the target is still missing then. Takes no lock if it is there."""
        if is_there(path):
            yield False
            return
        if _refused.get():
            raise DownloadError(REFUSED)
        work = f"downloads {self.url} to {path}"
        with folder_lock(path.parent, f".{path.name}.lock", wait=True, work=work, remove=True):
            missing = not is_there(path)
            if missing:
                remove_abandoned(path.parent)
                print_line(f"downloading {self.url} to {path}")
            yield missing


@contextmanager
def _network_errors() -> Generator[None]:
    """A context in which errors of the network are a `DownloadError`."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(str(getattr(error, "reason", "") or error or type(error).__name__)) from None


def _unpack(archive: Path, folder: Path) -> None:
    """Write the regular files of a tar archive into a folder, without the folders inside the archive."""
    with tarfile.open(archive) as members:
        for member in members:
            content = members.extractfile(member) if member.isfile() else None
            if content is not None:
                with content, (folder / Path(member.name).name).open("xb") as file:
                    shutil.copyfileobj(content, file)
