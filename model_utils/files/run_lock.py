"""One writer per run: lock files beside what it writes, held by the kernel, so that a
dead holder's are free.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dataloader import durable, file_lock
from dataloader.errors import InputError
from dataloader.file_lock import Lock
from model_utils.errors import OTHER_PLACE, cannot_write
from model_utils.files.held_folder import HeldFolder
from model_utils.files.outputs import Outputs
from model_utils.runtime import log

WAIT = 10.0  # s that a requeued job gives the one before it to end
_held: set[int] = set()


@contextmanager
def run_held(outputs: Outputs, *, wait: bool, remedy: str | None = None) -> Iterator[Outputs]:
    """Be the only writer of every folder and file of a run.

    Half-written files of dead processes are removed from its folders.

    Args:
        outputs: of the run; its folders are there.
        wait: give a holder ten seconds to end, as after a requeue.
        remedy: what else than waiting can be done where another process writes;
            another place unless given.

    Yields:
        The same names, which follow folders that are moved.

    Raises:
        InputError: another process writes this run or a file of it, or a lock cannot be made.
    """
    patience = WAIT if wait else 0.0
    if remedy is None and outputs.model.parent == outputs.checkpoint.parent:
        remedy = "give another --output_checkpoint"  # which moves the model along
    with ExitStack() as stack:
        of_checkpoint = _opened(stack, outputs.checkpoint.parent)
        of_model = _opened(stack, outputs.model.parent)
        of_model = of_checkpoint if of_model.identity == of_checkpoint.identity else of_model
        folders = {outputs.model.parent: of_model, outputs.checkpoint.parent: of_checkpoint}
        locks = {
            (folders[lock.parent].identity, lock.name): (lock, place)
            for lock, place in outputs.locks.items()
        }
        # in one order, or two runs might wait for each other
        for _, (lock, place) in sorted(locks.items()):
            stack.enter_context(_locked(folders[lock.parent], lock, place, patience, remedy))
        for folder in folders:
            _remove_leftovers(folder)
        yield outputs.held_in(of_checkpoint, of_model)


def _opened(stack: ExitStack, folder: Path) -> HeldFolder:
    try:
        return stack.enter_context(HeldFolder(folder))
    except OSError as error:
        raise cannot_write(folder, error, OTHER_PLACE) from None


@contextmanager
def held(path: Path, *, wait: bool, flag: str = "--output_checkpoint") -> Iterator[None]:
    """Hold one lock.

    The file says who holds it. Where the file system has no locks (Lustre without
    ``flock``), that text decides: a holder on this machine that is dead, or a former start
    of this very job, is stale.

    Args:
        path: the lock file; removed at the end, from its folder wherever that is then, and
            only if it is still ours.
        wait: give a holder ten seconds to end, as after a requeue.
        flag: which names the folder, for messages.

    Raises:
        InputError: another process holds it, or the file cannot be made.
    """
    with ExitStack() as stack:
        folder = _opened(stack, path.parent)
        stack.enter_context(
            _locked(folder, path, path.parent, WAIT if wait else 0.0, f"give another {flag}")
        )
        _remove_leftovers(path.parent)
        yield


@contextmanager
def _locked(
    folder: HeldFolder, path: Path, place: Path, patience: float, remedy: str | None = None
) -> Iterator[None]:
    """Hold a lock file, with a text that says who holds it; arguments and errors are
    those of ``_acquire``.
    """
    usual = "--output_checkpoint" if place == path.parent else "--output_model"
    descriptor = _acquire(folder, path, place, patience, remedy or f"give another {usual}")
    _held.add(descriptor)
    try:
        with suppress(OSError):  # on a full disk: the kernel's lock counts, the text is for people
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            if _still_there(descriptor, folder, path.name):
                os.unlink(path.name, dir_fd=folder.descriptor)
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(folder: HeldFolder, path: Path, place: Path, patience: float, remedy: str) -> int:
    """The descriptor of a lock file that is ours.

    Args:
        folder: of the lock file.
        path: of the lock file.
        place: the folder or file that it guards, for messages.
        patience: s that a holder may still take to end.
        remedy: what else than waiting can be done, for messages.

    Raises:
        InputError: another process holds it for longer, or the file cannot be made.
    """
    end = time.monotonic() + patience
    waiting = False
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(path.name, flags, 0o666, dir_fd=folder.descriptor)
        except OSError as error:
            raise cannot_write(path, error, OTHER_PLACE) from None
        holder = _read(descriptor)
        lock = file_lock.ask(descriptor)
        free = lock is Lock.OURS or (lock is Lock.NONE and _is_stale(holder))
        if free and _still_there(descriptor, folder, path.name):
            if holder and place == path.parent:  # once for a run
                log.info("the lock of %s is stale and taken over", _words(holder))
            return descriptor
        os.close(descriptor)
        if not free and time.monotonic() >= end:
            raise InputError(
                f"{place} is being written by {_words(holder)}; wait for its end, or {remedy}"
            )
        if not waiting and not free:
            log.info("waiting for %s, which writes %s, to end", _words(holder), place)
            waiting = True
        time.sleep(0.1)


def _still_there(descriptor: int, folder: HeldFolder, name: str) -> bool:
    """Whether the file that is locked is the one in the folder: its holder
    removes it at the end.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name, dir_fd=folder.descriptor))
    except FileNotFoundError:
        return False


def _myself() -> dict[str, str | int]:
    """This process as a lock file names it."""
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }


def _is_stale(holder: dict[str, str | int]) -> bool:
    """Whether the holder that a lock file names has ended, as far as its text tells."""
    mine = _myself()
    if not holder or (mine["job"] and holder.get("job") == mine["job"]):
        return True
    if holder.get("host") != mine["host"]:
        return False
    return holder.get("boot") != mine["boot"] or holder.get("started") != _started(
        int(holder.get("pid", 0))
    )


def _words(holder: dict[str, str | int]) -> str:
    """Who holds a lock, for a message."""
    return (
        f"process {holder['pid']} on {holder['host']}"
        if {"pid", "host"} <= set(holder)
        else "another process"
    )


def _read(descriptor: int) -> dict[str, str | int]:
    """Who holds a lock, as its file says; empty where it says nothing that can be read."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _started(pid: int) -> str:
    """Start of a process in ticks since boot: a number that was used again
    names another process.
    """
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
    """Close the locks in a forked worker: it shares them, and they must not outlive the
    process that took them.
    """
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
