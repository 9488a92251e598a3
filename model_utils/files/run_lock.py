"""One writer per run: a lock file beside the checkpoint, held by the kernel, so that a dead holder's is free."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dataloader.errors import InputError
from model_utils.files import durable
from model_utils.runtime import log

WAIT = 10.0  # s that a requeued job gives the one before it to end
_held: set[int] = set()


@contextmanager
def held(path: Path, *, wait: bool, folders: Iterable[Path] = ()) -> Iterator[None]:
    """Hold the lock of a run.

    The file says who holds it. Where the file system has no locks (Lustre without ``flock``), that text decides: a
    holder on this machine that is dead, or a former start of this very job, is stale.

    Args:
        path: the lock file; removed at the end.
        wait: give a holder ten seconds to end, as after a requeue.
        folders: where else the run writes; half-written files of dead processes are removed there too.

    Raises:
        InputError: another process writes this run, or the file cannot be made.
    """
    descriptor = _acquire(path, WAIT if wait else 0.0)
    _held.add(descriptor)
    try:
        for folder in {path.parent, *folders}:
            _remove_leftovers(folder)
        with suppress(OSError):  # on a full disk: the kernel's lock counts, the text is for people
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(path: Path, patience: float) -> int:
    end, waiting = time.monotonic() + patience, False
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}; give another --output_checkpoint or --output_model"
            ) from None
        holder, free = _read(descriptor), False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as error:
            free = error.errno not in (errno.EWOULDBLOCK, errno.EACCES) and _is_stale(holder)
        if free and _still_there(descriptor, path):
            if holder:
                log.info("the lock of %s is stale and taken over", _words(holder))
            return descriptor
        os.close(descriptor)
        if not free and time.monotonic() >= end:
            raise InputError(
                f"{path.parent} is being written by {_words(holder)}; wait for its end, or give another "
                "--output_checkpoint"
            )
        if not waiting and not free:
            log.info("waiting for %s, which writes this run, to end", _words(holder))
            waiting = True
        time.sleep(0.1)


def _still_there(descriptor: int, path: Path) -> bool:
    """Whether the file that is locked is the one at the path: its holder removes it at the end."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _myself() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }


def _is_stale(holder: dict[str, str | int]) -> bool:
    mine = _myself()
    if not holder or (mine["job"] and holder.get("job") == mine["job"]):
        return True
    if holder.get("host") != mine["host"]:
        return False
    return holder.get("boot") != mine["boot"] or holder.get("started") != _started(int(holder.get("pid", 0)))


def _words(holder: dict[str, str | int]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= set(holder) else "another process"


def _read(descriptor: int) -> dict[str, str | int]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _started(pid: int) -> str:
    """Start of a process in ticks since boot: a number that was used again names another process."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left half written."""
    for path in durable.temporary_files(folder):
        pid = path.suffixes[-2].removeprefix(".")
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with suppress(OSError):
                path.unlink()


def _release_in_child() -> None:
    """A forked worker shares the lock; it must not outlive the process that took it."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
