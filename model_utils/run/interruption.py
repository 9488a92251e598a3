"""Asked to stop: by a signal, by --time_limit, or by the end of the time a scheduler gives.

Needs no torch.
"""

import logging
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any, TypeVar

from dataloader.parallel import remove_temporary_folder
from model_utils.errors import InputError, Preempted, StopRequested
from model_utils.ranks.ending import SIGNALS, end_at_once, listened_to

Item = TypeVar("Item")

# s: SLURM without a grace time sends SIGTERM twice, 7 to 17 ms apart on an idle machine
ONE_DELIVERY = 0.5
# nobody insists by these: one comes every second, one of the shell, the terminal and the session
REPEATED = (signal.SIGXCPU, signal.SIGHUP)
RESUME = "start again with --resume auto"
REPEAT = "repeat the command: it goes on"
SOON = 0.02  # s until a request is tried again that could not be met
# methods of the standard library that start processes
STARTS = {("multiprocessing.process", "start"), ("subprocess", "_execute_child")}
RESERVE = 2.0  # s kept for the end of the process
PATIENCE = 25.0  # s for a step with others to end; SLURM kills 30 s after SIGTERM
PATIENCE_AHEAD = 100.0  # s after SIGUSR1, which comes ahead of the end: job files ask for 120
GAPS_WITH_OTHERS = 5  # longest times between two batches, after which all have met


class Interruption:
    """Listens to signals and the clock as long as it is entered; the first request ends
    the run in good order.

    Outside ``deferred`` a signal raises StopRequested where it arrives, or after the import or the
    start of a process that it met: nothing of the run is in memory only. Inside, it is remembered,
    and ``watch`` raises it between two batches or while one is waited for, so that the state that
    is then saved is that of a finished step. A second signal ends the process at once, with 128 +
    its number.

    Args:
        give_up: given where other processes compute the run too. Then nobody leaves by himself:
            a request is remembered, all processes hear of it at the next step, and
            ``group.Group`` raises it in all of them. Where no step comes to an end within
            ``PATIENCE``, as where data or another process stall, this is called with the exit
            code, to end all of them as they are.
        again: how the work goes on, for the message.
    """

    def __init__(
        self, *, give_up: Callable[[int], None] | None = None, again: str = RESUME
    ) -> None:
        self.again = again
        self.with_others = give_up is not None
        self._give_up = give_up
        self.reason: str | None = None
        self.save_seconds = 0.0  # the longest save so far; whoever saves keeps it up to date
        self._began = time.monotonic()
        self._end: float | None = None
        self._checked: float | None = None
        self._longest_gap = 0.0
        self._at_once = True
        self._ends_loop = False  # ``watch`` raised the request: what comes now may be a save
        self._is_met = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._before_unraisable: Callable[[Any], Any] | None = None
        self._before_timer: tuple[float, float] | None = None
        self._going_on = 0  # where this was entered: as in a process that was forked
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1  # where Python wrote signal numbers, as for a loop of asyncio

    def __enter__(self) -> "Interruption":
        global _listening
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._before = {
                number: signal.signal(number, self._on_signal) for number in listened_to()
            }
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._going_on = _going_on(sys._getframe())
            self._before_unraisable = sys.unraisablehook
            sys.unraisablehook = self._on_unraisable
            hurry = None if self._give_up is None else self._hurry
            threading.Thread(
                target=_leave_at_the_second, args=(self._pipe[0], hurry), daemon=True
            ).start()
            _listening = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _listening
        self._at_once = False
        if self._pipe is not None:
            _listening = False
            with suppress(ValueError, OSError):  # its owner closed it meanwhile
                signal.set_wakeup_fd(self._wakeup_before)
            sys.unraisablehook = self._before_unraisable or sys.__unraisablehook__
            self._no_more_soon()
            for number, handler in self._before.items():
                if handler is not None:  # else it is not Python's, and cannot be given back
                    signal.signal(number, handler)
            if self._before_timer is not None:
                signal.setitimer(signal.ITIMER_REAL, *self._before_timer)
            os.close(self._pipe[1])  # ends the thread, which closes the other side
            if kind is not None:
                _end_workers()
        if kind is StopRequested or (not self._ends_loop and _is_made_of_a_request(error)):
            raise Preempted(
                f"{self.reason or error}: stopped where nothing had to be saved, every file is "
                f"intact; {self.again}"
            ) from None

    def limit(self, minutes: float | None) -> str | None:
        """Stop in time for a limit in minutes since the start, and for the scheduler's
        own; says what was found.
        """
        ends = []
        if minutes is not None:
            ends.append((self._began + 60 * minutes, "time limit"))
        left = scheduler_left()
        if left is not None:
            ends.append((time.monotonic() + left, "end of the scheduler's allocation"))
        if not ends:
            return None
        self._end, self._limit_name = min(ends)
        at = datetime.fromtimestamp(time.time() + self._end - time.monotonic())
        return (
            f"{self._limit_name}: the run is saved and ends with 75 before {at:%Y-%m-%d %H:%M:%S}"
        )

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; a request to stop is met before each of them and while
        waiting for it, never after.

        Raises:
            StopRequested: with the reason.
        """
        iterator = iter(items)
        while True:
            self._look_at_the_clock()
            self._at_once = not self.with_others
            try:
                if self.reason is not None and self._at_once:
                    self._no_more_soon()
                    raise StopRequested(self.reason)
                item = next(iterator, _END)
            except StopRequested:
                self._ends_loop = True
                raise
            except Exception as error:
                if not _is_made_of_a_request(error):
                    raise
                self._ends_loop = True
                raise StopRequested(self.reason) from None
            finally:
                self._at_once = False
            if item is _END:
                return
            yield item  # type: ignore[misc]

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Remember requests; only ``watch`` raises them."""
        self._at_once = False
        try:
            yield
        finally:
            self._at_once = not self.with_others

    def is_met(self) -> None:
        """A request to stop was met: what is saved now may take its time."""
        self._is_met.set()

    def _hurry(self) -> None:
        """End all processes as they are, unless the request was met meanwhile."""
        if self._give_up is not None and not self._is_met.is_set():
            self._give_up(Preempted.exit_code)

    def _look_at_the_clock(self) -> None:
        """Stop when another step (or batch of a validation) and a save might not
        fit into the time left.
        """
        now = time.monotonic()
        if self._checked is not None:
            self._longest_gap = max(self._longest_gap, now - self._checked)
        self._checked = now
        gaps = 1 if self._give_up is None else GAPS_WITH_OTHERS
        needed = gaps * self._longest_gap + 2 * self.save_seconds + RESERVE
        if self.reason is None and self._end is not None and now + needed > self._end:
            self.reason = self._limit_name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.reason = signal.Signals(number).name
            self._meet(frame)

    def _meet(self, frame: FrameType | None) -> None:
        """Raise the request where it may be met at once, or a moment later where what is going
        on must not be cut short.
        """
        if not self._at_once:
            return
        if _going_on(frame) <= self._going_on:
            raise StopRequested(self.reason)
        self._meet_soon()

    def _meet_soon(self) -> None:
        if signal.SIGALRM not in self._before:
            again = signal.signal(signal.SIGALRM, lambda _, frame: self._meet(frame))
            self._before[signal.SIGALRM] = again
        before = signal.setitimer(signal.ITIMER_REAL, SOON)
        if self._before_timer is None:
            self._before_timer = before

    def _no_more_soon(self) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _on_unraisable(self, unraisable: Any) -> None:
        """Where Python drops an exception, as in what it calls when it frees an object."""
        if unraisable.exc_type is StopRequested:
            self._meet_soon()
        elif self._before_unraisable is not None:
            self._before_unraisable(unraisable)


def _is_made_of_a_request(error: BaseException | None) -> bool:
    """Whether an error is what became of a request that was raised within a library: what it does
    to leave in good order fails where it had not come far enough. A reader of ours may have taken
    that for a fault of its file.
    """
    if error is None or getattr(error, "exit_code", InputError.exit_code) != InputError.exit_code:
        return False
    before = error.__context__
    while before is not None and not isinstance(before, StopRequested):
        before = before.__context__
    return before is not None


def _going_on(frame: FrameType | None) -> int:
    """How many things go on that an exception would leave half done: imports, within which
    libraries catch whatever is raised; the starts of processes that nobody would know of; the
    ends of objects, of which Python drops it.
    """
    count = 0
    while frame is not None:
        module = frame.f_globals.get("__name__")
        name = frame.f_code.co_name
        count += module == "importlib._bootstrap" or (module, name) in STARTS or name == "__del__"
        frame = frame.f_back
    return count


_END = object()
_listening = False


def _leave_at_the_second(pipe: int, hurry: Callable[[], None] | None) -> None:
    """Read signal numbers as they arrive, also while the main thread is inside a
    long operation of torch.

    Args:
        pipe: of the numbers; its end is the end of listening.
        hurry: called once when patience is over, some time after the first signal; None: nobody
            waits for this process.
    """
    first: float | None = None
    end: float | None = None  # of patience
    with os.fdopen(pipe, "rb", buffering=0) as stream:
        while True:
            wait = None if end is None else max(end - time.monotonic(), 0.0)
            readable, _, _ = select.select([stream], [], [], wait)
            if not readable and hurry is not None:
                hurry()
                end = None
                continue
            number = stream.read(1)
            if not number:
                return
            if number[0] in SIGNALS:
                if first is None:
                    first = time.monotonic()
                    ahead = number[0] == signal.SIGUSR1
                    end = None if hurry is None else first + (PATIENCE_AHEAD if ahead else PATIENCE)
                elif number[0] not in REPEATED and time.monotonic() - first > ONE_DELIVERY:
                    end_at_once(128 + number[0])


def leave(code: int) -> None:
    """End the process; a worker that hangs on a file, and ignores SIGTERM as all do,
    must not keep it alive.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _end_workers()
    remove_temporary_folder()
    os._exit(code)


def _end_workers() -> None:
    """End workers now: torch would wait ten seconds for one that hangs in a
    read, and then in vain.
    """
    children = multiprocessing.active_children()
    if children:
        # torch's handler complains of a worker's death
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in children:
            child.kill()
        for child in children:
            child.join()
        signal.signal(signal.SIGCHLD, before)


def _forget_in_child() -> None:
    """A forked worker gets the signals of the group too; it leaves them to
    the process that saves.
    """
    if _listening:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


os.register_at_fork(after_in_child=_forget_in_child)


def scheduler_left() -> float | None:
    """Seconds until SLURM ends this job; None outside a job or where it has no limit.

    Where the clock of this machine disagrees with the job's own times, as before it was set,
    SLURM itself is asked.
    """
    end, start = (os.environ.get(f"SLURM_JOB_{name}_TIME", "") for name in ("END", "START"))
    if end.isdecimal():
        left = float(end) - time.time()
        longest = float(end) - float(start) if start.isdecimal() else float("inf")
        return left if 0 < left <= longest else _left_by_squeue()
    return None if end else _left_by_squeue()  # SLURM before 23.02 does not tell the job


def _left_by_squeue() -> float | None:
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%L"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        days, _, clock = asked.stdout.strip().rpartition("-")
        seconds = [float(part) for part in clock.split(":")]
    except (OSError, subprocess.SubprocessError, ValueError):
        # no squeue here, no answer, or UNLIMITED
        return None
    return 86400 * float(days or 0) + sum(
        60**power * part for power, part in enumerate(reversed(seconds))
    )
