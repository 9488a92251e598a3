"""The view of runs, once or again and again."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from dataloader.errors import InputError
from model_utils.settings.options import WatchOptions
from model_utils.watching import places
from model_utils.watching.status import Limits, Status, status_of
from model_utils.watching.tail import Tail
from model_utils.watching.view import view

PLAIN_WIDTH = 120  # columns, where the output is no terminal


class _Watched:
    """One of the runs that were named, which is another one where its experiment has a newer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tail = Tail(places.metrics_of(path))

    def status(self, limits: Limits, now: float) -> tuple[str, Status]:
        """Name and status, by the files as they are now."""
        metrics = self._metrics()
        if metrics != self._tail.path:
            self._tail = Tail(metrics)
        self._tail.look()
        folder = metrics.parent
        silent = _age(metrics, now) if self._tail.records else None
        status = status_of(
            self._tail.records,
            places.plan_of(folder),
            places.ending_of(folder),
            silent,
            limits,
            has_writer=places.has_writer(folder),
        )
        return str(folder), status

    def _metrics(self) -> Path:
        """The file of today; that of before while a folder is moved or its file system is away."""
        try:
            return places.metrics_of(self._path)
        except InputError:
            return self._tail.path


def watch(options: WatchOptions) -> None:
    """Show the runs until all of them are finished, or once.

    Raises:
        InputError: one of the names is no run's.
    """
    limits = Limits(no_improvement=options.no_improvement, silence=60.0 * options.silent_minutes)
    watched = [_Watched(path) for path in options.runs]
    console = _console()
    if options.once or not console.is_terminal:
        console.print(_look(watched, limits)[0])
        return
    with _ended_by_exceptions(), Live(console=console, auto_refresh=False) as live:
        while True:
            shown, is_over = _look(watched, limits)
            live.update(shown, refresh=True)
            if is_over:
                return
            time.sleep(options.every)


@contextmanager
def _ended_by_exceptions() -> Iterator[None]:
    """Within it, signals that end the process do so by an exception, so that what has hidden the
    cursor of a terminal shows it again.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _console() -> Console:
    is_terminal = sys.stdout.isatty()
    return Console(
        markup=False, emoji=False, highlight=False, width=None if is_terminal else PLAIN_WIDTH
    )


def _look(watched: list[_Watched], limits: Limits) -> tuple[RenderableType, bool]:
    """What is shown now, and whether all runs are finished."""
    statuses = [one.status(limits, time.time()) for one in watched]
    return view(statuses), all(status.ending is not None for _, status in statuses)


def _age(path: Path, now: float) -> float | None:
    """Seconds since a file was written; None where it is gone."""
    try:
        return max(now - os.stat(path).st_mtime, 0.0)
    except OSError:
        return None
