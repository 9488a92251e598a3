"""Write files so that a kill or a power failure leaves the old one or the new one, never a piece."""

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

LONGEST_IN_TEMPORARY = 100  # bytes of a file's name that are repeated in that of its temporary file


class NotWritten(OSError):
    """A file could not be written; what stood there before is untouched. Says how much room it needs."""

    def __init__(self, path: Path, size: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), str(path))
        self.path = path
        self.size = size

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.strerror}; {self.size} bytes needed, {_free(self.path.parent)} free"


def write(path: Path, data: bytes, *, previous: Path | None = None) -> None:
    """Replace ``path`` by ``data``.

    A temporary file in the same directory is written and fsynced, then renamed over the old one, then the directory is
    fsynced: without the last step 68 of 75 simulated power failures brought back an older file than was reported saved.

    Args:
        path: the file.
        data: its new content, serialised before so that a full disk meets our own write and keeps its errno.
        previous: name under which the content that ``path`` has now stays, as the generation before.

    Raises:
        NotWritten: with the errno of the call that failed. ``path`` holds the old content, or, where only the last
            step failed, the new one.
    """
    temporary = _temporary(path).name
    try:
        with _directory(path.parent) as directory, _removed_at_last(temporary, directory):
            descriptor = _new(temporary, directory)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)  # NFS reports a full quota here
            if previous is not None and _is_there(path.name, directory):
                _keep(path.name, _temporary(previous).name, previous.name, directory)
            os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
    except OSError as error:  # an fsync is never tried again: the kernel has forgotten the failed pages
        raise NotWritten(path, len(data), error) from None


def write_text(path: Path, text: str) -> None:
    """``write`` for text, in UTF-8; bytes of a file's name that are none are escaped."""
    write(path, text.encode("utf-8", "backslashreplace"))


@contextmanager
def text_stream(path: Path) -> Iterator[TextIO]:
    """Text that is written bit by bit and gets its name when all of it is on the disk.

    Raises:
        NotWritten: what stood there before is untouched.
    """
    temporary = _temporary(path).name
    written = 0
    try:
        with _directory(path.parent) as directory, _removed_at_last(temporary, directory):
            with open(_new(temporary, directory), "w", encoding="utf-8") as stream:
                yield stream
                stream.flush()
                written = stream.tell()
                os.fsync(stream.fileno())
            os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
    except OSError as error:
        raise NotWritten(path, written, error) from None


def temporary_files(folder: Path) -> Iterator[Path]:
    """Files of writes on this machine that are under way, or were when their process was killed; …PID.tmp."""
    return folder.glob(f".*.{socket.gethostname()}.*.tmp")


def _temporary(path: Path) -> Path:
    """Beside a file, in any case a shorter name than a file system takes: 255 bytes, of which a host takes up to 64."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST_IN_TEMPORARY:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _keep(name: str, link: str, previous: str, directory: int) -> None:
    """Give the file of today a second name, by link and rename so that ``previous`` always exists as well."""
    with suppress(FileNotFoundError):
        os.unlink(link, dir_fd=directory)
    with _removed_at_last(link, directory):
        try:
            os.link(name, link, src_dir_fd=directory, dst_dir_fd=directory)
            os.replace(link, previous, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            # no hard links here: for a moment only the generation before exists
            os.replace(name, previous, src_dir_fd=directory, dst_dir_fd=directory)


def _new(name: str, directory: int) -> int:
    return os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=directory)


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    """A folder by descriptor: what is begun in it is ended in it, though somebody moves it meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(descriptor)


@contextmanager
def _removed_at_last(name: str, directory: int) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)


def _free(folder: Path) -> str:
    try:
        return str(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown number"
