"""Nothing is silent for long: a bar on a terminal, a line of the log now and then where
output goes to a file.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

log = logging.getLogger("mace_pretrain")  # the one that commands configure
clock = time.monotonic
QUIET = 10.0  # s without a word before a line is written
BETWEEN = 10.0  # s from one line of the same work to the next
DELAY = 1.0  # s before a bar appears

_quiet = False  # in the processes of a run that leave all words to the first
_spoken = clock()  # when a line was written last, by anybody
_running: list["ProgressBar"] = []


def be_quiet() -> None:
    """Show nothing from now on: another process of the run does."""
    global _quiet
    _quiet = True


def spoken() -> None:
    """A line was written: the silence begins anew."""
    global _spoken
    _spoken = clock()


def due(said: float | None) -> bool:
    """Whether a line is due from work that wrote its own last one at ``said``: never in what
    lasts for seconds only.
    """
    now = clock()
    return not _quiet and now - _spoken >= QUIET and (said is None or now - said >= BETWEEN)


def look() -> None:
    """From loops that wait: let the work that runs write a line where one is due."""
    if _running:
        _running[-1].look()


def on_a_terminal() -> bool:
    """Whether a bar can be shown."""
    return not _quiet and sys.stderr.isatty()


def lasting(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Bar(tqdm):
    """tqdm's bar on a clock that nobody sets: after the time of day was set back, its own
    would stand still as long.
    """

    monitor_interval = 0  # its thread looks at the time of day

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)
        self._time = clock
        self.start_t = self.last_print_t = clock()


class ProgressBar:
    """How far some work has come; nothing is shown of what is done within a
    second (bar) or ten (lines).

    Args:
        what: the work, as it is named.
        total: how many units there are; None where nobody knows.
        unit: of what is counted; ``B`` for bytes.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "structures") -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = 0
        self._before = 0  # done already when it began
        self._began = clock()
        self._said: float | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> "ProgressBar":
        self._began = clock()
        if on_a_terminal():
            is_size = self.unit == "B"
            self._bar = Bar(
                total=self.total,
                desc=self.what,
                leave=False,
                delay=DELAY,
                unit=self.unit,
                unit_scale=is_size,
            )
        _running.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self in _running:
            _running.remove(self)
        if self._bar is not None:
            self._bar.close()

    def begin_at(self, done: int) -> None:
        """So much was done before, in another process."""
        self.done = self._before = done
        if self._bar is not None:
            self._bar.update(done)

    def update(self, n: int = 1) -> None:
        """Say that ``n`` more of the work are done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        self.look()

    def look(self) -> None:
        """Write a line where one is due."""
        if self._bar is None and due(self._said):
            self._said = clock()
            log.info("%s", self.text())
            spoken()

    def text(self) -> str:
        """How far it is, since when, and how much longer it will take."""
        passed = clock() - self._began
        new = self.done - self._before
        if self.total is None:
            return f"{self.what}: {self.done} {self.unit} in {lasting(passed)}"
        share = f"{self.done} of {self.total} {self.unit}, " if self.unit != "B" else ""
        percent = 100 * self.done / max(self.total, 1)
        left = f", about {lasting(passed * (self.total - self.done) / new)} left" if new > 0 else ""
        return f"{self.what}: {share}{percent:.0f} % in {lasting(passed)}{left}"


def over(
    items: Iterable[Item], what: str, total: int | None = None, unit: str = "structures"
) -> Iterator[Item]:
    """The items, with progress; one that is handed out counts when the next is asked for."""
    with ProgressBar(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()
