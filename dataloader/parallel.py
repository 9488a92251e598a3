"""Work in child processes that end with this one, and whose death is one
sentence that names the file.
"""

import ctypes
import logging
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_sharer
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from multiprocessing.util import get_temp_dir
from types import TracebackType
from typing import Any, TypeVar

from dataloader import processors, progress
from dataloader.errors import FULL, ROOM, AwayError, InputError, SaveError, is_away

Task = TypeVar("Task")
Result = TypeVar("Result")

log = logging.getLogger("mace_pretrain")  # the one that commands configure
PR_SET_PDEATHSIG = 1  # sys/prctl.h
# that ask a run to end: by a scheduler (SIGTERM, SIGUSR1, SIGUSR2), by a user, because CPU time is
# nearly used up, because the terminal was closed
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
    signal.SIGHUP,
)
LOOK_EVERY = 2.0  # s
THREADS_OF_BLAS = "OPENBLAS_NUM_THREADS"
# says that a command of ours chose the number, and no user
CHOSEN_HERE = "MACE_TRAIN_OPENBLAS_NUM_THREADS"
# how a process ends that did nothing wrong itself
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
SHORT_PLACES = ("/tmp", "/dev/shm")  # for temporary files where TMPDIR is too long
# bytes; behind it come pymp-12345678/listener-12345678, and a socket's name has 107
LONGEST_PLACE = 107 - 33
_SLOT = 1024  # bytes for the note of one process
# where this process writes what it reads, if its parent looks there
_notes: "SharedNotes | None" = None
_slot = 0
_noted = ""
_temporary = (0, "")  # process and folder, which its workers share


class SharedNotes:
    """Shared memory on which each child notes the file it is about to read:
    a dead one cannot tell.
    """

    def __init__(self, n_children: int) -> None:
        self._memory = mmap.mmap(-1, max(n_children, 1) * _SLOT)

    def use(self, slot: int) -> None:
        """In a child: note here from now on."""
        global _notes, _slot, _noted
        _notes = self
        _slot = slot
        _noted = ""

    def write(self, slot: int, text: str) -> None:
        """Note a file."""
        data = text.encode("utf-8", "replace")[: _SLOT - 1]
        self._memory[slot * _SLOT : slot * _SLOT + len(data) + 1] = data + b"\0"

    def read(self, slot: int) -> str:
        """What a child noted last."""
        return (
            self._memory[slot * _SLOT : (slot + 1) * _SLOT]
            .partition(b"\0")[0]
            .decode("utf-8", "replace")
        )


def note(path: str) -> None:
    """Say which file this process is about to read; costs nothing where
    nobody looks at the notes.
    """
    global _noted
    if _notes is not None and path != _noted:
        _notes.write(_slot, path)
        _noted = path


def death(exitcode: int | None, path: str) -> str:
    """One sentence for a child that ended while it read a file."""
    where = f"while reading {path}" if path else "before it read anything"
    if exitcode == -signal.SIGBUS:
        return (
            f"a process was ended by SIGBUS {where}: the file is damaged, was cut off or replaced "
            "while in use, or its file system failed; copy it again, or let --verify compare it"
        )
    if exitcode == -signal.SIGKILL:
        return (
            f"a process was killed {where}: is there enough memory? lower "
            "--num_workers, or ask for more"
        )
    if exitcode is not None and exitcode < 0:
        return (
            f"a process was ended by {signal.Signals(-exitcode).name} {where}: is the file "
            "damaged? copy it again"
        )
    return f"a process ended with code {exitcode} {where}"


def say_nothing_of_a_run_that_left() -> None:
    """In a worker: nothing is wrong where the run ends while it takes a batch, and Python's thread
    that hands out shared memory would print a traceback of it.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        where = None if trace is None else trace.tb_frame.f_globals["__name__"]
        left = isinstance(error, (EOFError, ConnectionError)) or (
            isinstance(error, OSError) and "got end of file" in str(error)  # within a message
        )
        if not (left and where == resource_sharer.__name__):
            before(kind, error, trace)

    sys.excepthook = hook


def share_temporary_folder() -> None:
    """Have worker processes that begin later keep their sockets in one temporary folder of this
    process; of a worker that is killed its own would stay for ever.

    Where the usual place has too long a name for a socket, another is taken: a worker could not
    hand over what it read, and the run would wait for it without a word.

    Raises:
        InputError: all such places have too long names.
    """
    global _temporary
    usual = tempfile.gettempdir()
    short = (
        place
        for place in (usual, *SHORT_PLACES)
        if len(os.fsencode(place)) <= LONGEST_PLACE and os.access(place, os.W_OK)
    )
    chosen = next(short, None)
    if chosen is None:
        raise InputError(
            f"TMPDIR is {usual}, too long a name for the sockets of workers; set it to a shorter "
            "one, or give --num_workers 0"
        )
    before = tempfile.tempdir
    tempfile.tempdir = chosen
    try:
        folder = get_temp_dir()
    finally:
        tempfile.tempdir = before
    os.makedirs(folder, mode=0o700, exist_ok=True)  # somebody may have emptied /tmp
    if folder != _temporary[1]:  # else it may be that of the process that this was forked from
        _temporary = (os.getpid(), folder)


def remove_temporary_folder() -> None:
    """Where the process leaves without Python's own end, which removes the folder."""
    process, folder = _temporary
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def live_and_die_with_the_run() -> None:
    """A scheduler signals the whole process group: children outlive that so that the
    main process can save.

    When the main process is killed, the kernel ends them, also one that hangs in a read.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_blas_to_one_thread() -> None:
    """Keep numpy and scipy from threads of their own, where they are not imported yet;
    torch's are asked for.

    Their OpenBLAS makes one for each core of the machine, and these wait busily between products of
    3x3 matrices: children that relaxed crystals on two cores took twice the time.
    """
    if THREADS_OF_BLAS not in os.environ:
        os.environ[THREADS_OF_BLAS] = os.environ[CHOSEN_HERE] = "1"


def environment_of_others() -> dict[str, str]:
    """The environment for a program that is not ours: as the user gave it, also where a
    command of ours began this.
    """
    chosen = os.environ.get(CHOSEN_HERE)
    ours = (
        {CHOSEN_HERE, THREADS_OF_BLAS}
        if chosen == os.environ.get(THREADS_OF_BLAS)
        else {CHOSEN_HERE}
    )
    return {name: value for name, value in os.environ.items() if name not in ours}


def in_children(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    processes: int | None = None,
    instead: Callable[[Task, int], Result] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Do the tasks in forked processes; yields (number of the task, its result) as they are done.

    Whatever ends this generator (an error, a request to stop, the caller) ends the processes. A
    task whose process was killed from outside is begun once more in another.

    Args:
        work: what is done with a task.
        tasks: in the order in which they are begun.
        processes: at most so many at once; ``processors.n_cores`` unless given.
        instead: the result of a task whose process died, from it and the exit code;
            without it that is an error.

    Raises:
        InputError: what a task raised, or that a process died, with the file it was reading.
        SaveError: a task found no room for what it writes.
    """
    children = _Children(work, tasks, min(processes or processors.n_cores(), len(tasks)))
    try:
        children.begin_all()
        while children.busy:
            while not (done := wait(list(children.busy), timeout=LOOK_EVERY)):
                progress.look()
            for ready in done:
                assert isinstance(ready, Connection)
                slot, task = children.busy.pop(ready)
                try:
                    number, result, error = ready.recv()
                except (EOFError, OSError):
                    exitcode = children.buried(slot, task, is_fatal=instead is None)
                    if instead is not None and exitcode is not None:
                        yield task, instead(tasks[task], exitcode)
                    continue
                if error is not None:
                    raise error
                children.send_next(slot)
                yield number, result
    finally:
        children.end()


class _Children:
    """Forked processes, each in a slot of its own with one task at a time.

    Args:
        work: what is done with a task.
        tasks: all of them.
        count: of processes.
    """

    def __init__(self, work: Callable[[Any], Any], tasks: Sequence[Any], count: int) -> None:
        self.busy: dict[Connection, tuple[int, int]] = {}  # slot and task that work behind it
        self._work = work
        self._tasks = tasks
        self._count = count
        self._notes = SharedNotes(count)
        self._waiting = iter(range(len(tasks)))
        self._begun_again = set[int]()
        self._children: dict[int, tuple[ForkProcess, Connection]] = {}  # by slot

    def begin_all(self) -> None:
        """Make the processes, each with a task."""
        for slot in range(self._count):
            self._begin(slot, next(self._waiting))

    def _begin(self, slot: int, task: int) -> None:
        _, pipe = self._children[slot] = _child(self._work, self._tasks, self._notes, slot)
        self.busy[pipe] = (slot, task)
        pipe.send(task)

    def send_next(self, slot: int) -> None:
        """Give a process its next task, or let it go where none is left."""
        _, pipe = self._children[slot]
        following = next(self._waiting, None)
        if following is None:
            pipe.close()
        else:
            self.busy[pipe] = (slot, following)
            pipe.send(following)

    def buried(self, slot: int, task: int, *, is_fatal: bool) -> int | None:
        """Put another process in the place of one that died: with its task once
        more, or with the next one.

        Returns:
            The exit code where the task is not begun again; of a signal, the negative one.

        Raises:
            InputError: the task is not begun again, and that is fatal.
        """
        child, pipe = self._children[slot]
        pipe.close()
        child.join()
        sentence = death(child.exitcode, self._notes.read(slot))
        if child.exitcode in FROM_OUTSIDE and task not in self._begun_again:
            log.warning("warning: %s; its work begins again", sentence)
            self._begun_again.add(task)
            self._begin(slot, task)
            return None
        if is_fatal:
            raise InputError(sentence)
        following = next(self._waiting, None)
        if following is not None:
            self._begin(slot, following)
        return child.exitcode

    def end(self) -> None:
        """End all of them at once."""
        for child, pipe in self._children.values():
            child.kill()
            pipe.close()
        for child, _ in self._children.values():
            child.join()


def _child(
    work: Callable[[Any], Any], tasks: Sequence[Any], notes: SharedNotes, slot: int
) -> tuple[ForkProcess, Connection]:
    """A process that waits for numbers of tasks, and our end of the pipe to it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=_serve, args=(work, tasks, theirs, ours, notes, slot), daemon=True
    )
    child.start()
    theirs.close()
    return child, ours


def _serve(
    work: Callable[[Any], Any],
    tasks: Sequence[Any],
    pipe: Connection,
    parents: Connection,
    notes: SharedNotes,
    slot: int,
) -> None:
    """A child: numbers of tasks in, results or errors out, until the pipe is closed."""
    live_and_die_with_the_run()
    parents.close()
    notes.use(slot)
    while True:
        try:
            number = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer: tuple[int, Any, Exception | None]
        try:
            answer = (number, work(tasks[number]), None)
        except (InputError, SaveError) as error:
            answer = (number, None, error)
        except OSError as error:
            answer = (number, None, _of_file_system(error, notes.read(slot)))
        except MemoryError:
            answer = (
                number,
                None,
                InputError(f"there is not enough memory to read {notes.read(slot)}"),
            )
        except Exception:
            answer = (number, None, RuntimeError(f"in a child process:\n{traceback.format_exc()}"))
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)


def _of_file_system(error: OSError, read: object) -> InputError | SaveError:
    """What a child answers whose file system failed; ``read`` is the file it was reading."""
    said = f"{error.strerror or error} ({error.filename or read})"
    if error.errno in FULL:
        return SaveError(f"{said}; {ROOM}")
    return AwayError(said) if is_away(error) else InputError(said)
