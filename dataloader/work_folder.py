"""A folder of unfinished work, which one process has at a time; a killed one leaves it to
the next, which goes on.

The kernel's lock on a file in the folder says whether somebody works there, so nothing is left
behind by a process that is gone. Where a file system has no locks several may work in one folder;
what they write must then be the same, each file whole under its name, and who finds the folder gone
(``Overtaken``) looks whether the work is done.
"""

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from dataloader import file_lock
from dataloader.errors import InputError
from dataloader.file_lock import Lock

LOCK = "lock"
LOOK_EVERY = 0.2  # s, of a process that waits for another
# to take a folder that another process is just removing; to do work that another has overtaken
TRIES = 10


class Overtaken(InputError):
    """The folder of the work is gone: another process has finished, where locks
    do not keep two apart.
    """


class WorkFolder:
    """A folder that this process has.

    Attributes:
        path: where it is.
        alone: False where others may work in it too: it was taken with them, or the
            file system has no locks.
    """

    def __init__(self, path: Path, descriptor: int, *, alone: bool) -> None:
        self.path = path
        self.alone = alone
        self._descriptor: int | None = descriptor

    def clear(self) -> None:
        """Remove what an earlier try has left."""
        for entry in self.path.iterdir():
            if entry.name != LOCK:
                _remove(entry)

    def finish(self) -> None:
        """The work is done: the folder goes."""
        with contextlib.suppress(OSError):
            self.clear()
        self.release()

    def release(self) -> None:
        """Let others take it, with what is in it; an empty one goes."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            if [entry.name for entry in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
        os.close(self._descriptor)
        self._descriptor = None


def take(path: Path, *, shared: bool = False) -> WorkFolder | None:
    """Have a folder, which is made where it is not there; None where another process has it.

    Args:
        path: where it is.
        shared: with others that take it so; else nobody has it beside this process.

    Raises:
        OSError: it cannot be made, or not be written by this user.
    """
    for _ in range(TRIES):
        path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(
                path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
        except FileNotFoundError:  # whoever had it has just removed it
            continue
        lock = file_lock.ask(descriptor, shared=shared)
        if lock is Lock.HELD:
            os.close(descriptor)
            return None
        if _lies_at(descriptor, path / LOCK):
            with contextlib.suppress(OSError):  # for people only
                os.ftruncate(descriptor, 0)
                os.pwrite(
                    descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0
                )
            return WorkFolder(path, descriptor, alone=lock is Lock.OURS and not shared)
        os.close(descriptor)
    return None


def own_name(path: Path) -> Path:
    """The name under which this process writes a file that is not whole yet."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def holder(path: Path) -> str:
    """``process 12 on node3``: who has a folder, as far as it says."""
    try:
        with (path / LOCK).open("rb") as file:
            text = file.read(200).decode()
    except (OSError, UnicodeDecodeError):
        text = ""
    return text if text.isprintable() and text else "another process"


@contextlib.contextmanager
def overtaken(path: Path) -> Iterator[None]:
    """Around work in a folder: that a file of it is gone means that another process has finished.

    Raises:
        Overtaken: in place of an OSError that says so: FileNotFoundError, or
            ``NotWritten`` for that cause.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        raise Overtaken(
            f"{path} was removed while this process worked in it; start again"
        ) from None


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether the file that is locked is still the one of this name: who is done removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
