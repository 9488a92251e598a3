"""Open what a user names: regular files only, and read whole only what is not
larger than its kind can be.

A pipe, a device or a socket in the place of a file would let a command wait without a
word, or read without end.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")  # of files that are not read


class UnfitFile(OSError):
    """Something stands there that is not read; ``strerror`` says what, as of any OSError."""


def opened(path: Path) -> BufferedReader:
    """A regular file, for reading bytes; nothing is waited for.

    Raises:
        OSError: it is absent, may not be read, or is something else than a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno != errno.ENXIO:  # so a socket answers
            raise
        raise UnfitFile(error.errno, "it is a socket, not a regular file", str(path)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
            raise UnfitFile(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def require_regular(path: Path) -> None:
    """Raise OSError where ``opened`` would; for libraries that open a name themselves."""
    opened(path).close()


def read_bytes(path: Path, limit: int) -> bytes:
    """All of a file that has at most ``limit`` bytes.

    Raises:
        OSError: as ``opened``, or it is larger.
    """
    with opened(path) as file:
        content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > limit:
        raise UnfitFile(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return content


def read_text(path: Path, limit: int) -> str:
    """All of a regular file as text, with line ends as Python reads them.

    Raises:
        OSError: as ``read_bytes``.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def holds(path: Path, content: bytes) -> bool:
    """Whether a regular file is there with just this content; a larger one is not read."""
    try:
        return read_bytes(path, len(content)) == content
    except OSError:
        return False
