"""A logger that may be slow: it hears of records in a thread of its own,
through a queue with an end.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

HELD = 1000  # records that wait for a slow logger; later ones are left out
Call = tuple[str, tuple[Any, ...]]  # name of a method, and what it is told
END: Call = ("", ())
Fails = Callable[[BaseException], None]


class LoggerThread:
    """Hands records to a logger without ever waiting for it; for one thread that hands on.

    The logger is opened in the thread too: a server that is asked for a new run may hang as well.
    One that raised is told nothing more but to close.

    Args:
        opened: makes the logger.
        fails: is called, in the thread, with what a method raised.
    """

    def __init__(self, opened: Callable[[], Any], fails: Fails) -> None:
        self.left_out = 0  # records that found the queue full
        self._opened = opened
        self._fails = fails
        self._calls: SimpleQueue[Call] = SimpleQueue()
        self._has_failed = False
        # one that hangs does not keep the process
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def tell(self, method: str, record: object) -> None:
        """Put a record into the queue; one that finds it full is left out and counted."""
        if self._has_failed:
            return
        if self._calls.qsize() >= HELD:
            self.left_out += 1
        else:
            self._calls.put((method, (record,)))

    def ask_to_end(self) -> None:
        """Nothing more will come; does not wait."""
        self._calls.put(END)

    def ended_within(self, seconds: float) -> bool:
        """Wait for the thread; whether it has told the logger everything and closed it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Records that the logger has not heard of yet."""
        return max(self._calls.qsize() - 1, 0) + self.left_out  # less the end

    def _work(self) -> None:
        logger = self._attempt(self._opened)
        while (call := self._calls.get()) is not END:
            if not self._has_failed:
                method, words = call
                self._attempt(getattr(logger, method), *words)
        if logger is not None:
            self._attempt(logger.close)

    def _attempt(self, act: Callable[..., Any], *words: Any) -> Any:
        try:
            return act(*words)
        except BaseException as error:  # of a user's code, in a thread of its own
            self._has_failed = True
            self._fails(error)
            return None
