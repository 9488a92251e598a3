"""The end of a process that nothing waits for."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dataloader.parallel import SIGNALS


def listened_to() -> tuple[signal.Signals, ...]:
    """The signals that ask this process to end; not SIGHUP where it is ignored, as under nohup."""
    is_deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in SIGNALS if number != signal.SIGHUP or not is_deaf)


def end_at_once(code: int) -> None:
    """End the process and its workers, from any thread; what is not on the disk is lost."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


@contextmanager
def ended_by_signals(code: int) -> Iterator[None]:
    """Within it, a signal ends the process at once with a code and no word, also
    inside a call that blocks.

    While the processes of a run come together, a launcher that asks one of them to stop does
    so because another died before it came, and says why; to be requeued for that would be to
    begin again and again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, _is_read_from_the_pipe) for number in listened_to()}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_first, args=(reading, code), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the thread, which closes the other side


def _is_read_from_the_pipe(*_: object) -> None: ...


def _end_at_the_first(reading: int, code: int) -> None:
    with os.fdopen(reading, "rb", buffering=0) as stream:
        while number := stream.read(1):
            if number[0] in SIGNALS:
                end_at_once(code)
