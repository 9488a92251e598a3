"""Who hears of a run's records: the loggers by name, and all of one run together.

A user names them after ``--loggers``; a plug-in adds its own to `LOGGERS`. metrics.jsonl is none of
them: it is a file of the run, which a checkpoint points into.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from model_utils.errors import InputError
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.loggers import plain_records
from model_utils.run.loggers.console import Console
from model_utils.run.loggers.csv_file import CsvFile
from model_utils.run.loggers.logged_run import LoggedRun
from model_utils.run.loggers.logger_thread import LoggerThread
from model_utils.run.loggers.rich_table import RichTables
from model_utils.run.loggers.tensorboard import TensorBoard
from model_utils.run.loggers.wandb_run import WandbRun
from model_utils.run.table_entry import entry_of
from model_utils.runtime import log

PATIENCE = 10.0  # s that all loggers together have at the end of a run
HookFunction = Callable[[str, Mapping[str, Any], int], None]


class Logger(Protocol):
    """Takes the records of a run as they arise; one that raises is not asked
    again, and the run goes on.
    """

    def train(self, record: TrainRecord) -> None:
        """Errors of the training steps of an epoch, or of a part of one."""
        ...

    def validation(self, record: ValidationRecord) -> None:
        """Errors of a validation."""
        ...

    def final(self, record: FinalRecord) -> None:
        """Errors of the best model at the end of the run."""
        ...

    def close(self) -> None:
        """The process is about to end; nothing more will come."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoggerKind:
    """A logger under the name that a user gives.

    Attributes:
        opened: makes the logger, as the run begins or goes on.
        writes: name of its file or folder beside the checkpoint; None where it writes none.
        what: what is in that file, in a phrase for the announcement.
        package: that the logger needs, by the name under which Python imports it;
            None where it needs none.
        at_once: its methods never wait for anything but the disk on which the run lies, and are
            called in the loop; those of others are called in a thread.
    """

    opened: Callable[[LoggedRun], Logger]
    writes: str | None = None
    what: str = ""
    package: str | None = None
    at_once: bool = False


def _console(run: LoggedRun) -> Logger:
    return Console()


def _tensorboard(run: LoggedRun) -> Logger:
    return TensorBoard(run)


def _csv(run: LoggedRun) -> Logger:
    return CsvFile(run.folder / "metrics.csv", step=run.step, n_records=run.n_records)


def _rich(run: LoggedRun) -> Logger:
    return RichTables()


def _wandb(run: LoggedRun) -> Logger:
    return WandbRun(run)


LOGGERS: dict[str, LoggerKind] = {
    "console": LoggerKind(opened=_console, at_once=True),
    "rich": LoggerKind(opened=_rich, package="rich"),
    "tensorboard": LoggerKind(
        opened=_tensorboard,
        writes="tensorboard",
        what="TensorBoard events",
        package="tensorboard",
        at_once=True,
    ),
    "csv": LoggerKind(
        opened=_csv, writes="metrics.csv", what="the records as a table", at_once=True
    ),
    "wandb": LoggerKind(
        opened=_wandb, writes="wandb", what="files of Weights & Biases", package="wandb"
    ),
}


class _Hook:
    """A logger that calls one function."""

    def __init__(self, function: HookFunction) -> None:
        self._function = function

    def train(self, record: TrainRecord) -> None:
        self._function("train", plain_records.of_train(record), record.epoch)

    def validation(self, record: ValidationRecord) -> None:
        self._function("validation", plain_records.of_validation(record), record.epoch)

    def final(self, record: FinalRecord) -> None:
        self._function("final", plain_records.of_final(record), record.epoch)

    def close(self) -> None:
        pass


def hook(function: HookFunction) -> LoggerKind:
    """A logger that is one function, for a plug-in: ``LOGGERS["mine"] = hook(function)``.

    Args:
        function: is called, in a thread of its own, with ``train``, ``validation`` or ``final``,
            values by name (of ``final`` those of each data set), and the epoch.
    """
    return LoggerKind(opened=lambda run: _Hook(function))


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The loggers of a run, each once: the console, and those that are named.

    Raises:
        InputError: there is none of that name, or its package is not installed.
    """
    loggers = tuple(dict.fromkeys(("console", *names)))
    for name in loggers:
        package = entry_of(LOGGERS, name, "the logger").package
        if package is not None and find_spec(package) is None:
            raise InputError(
                f"the logger {name} needs the package {package}, which is not installed: pip "
                f"install {package}, or leave it out"
            )
    return loggers


def announced(names: Sequence[str], folder: Path) -> Iterator[tuple[Path, str]]:
    """What loggers will write, with one phrase on each."""
    for kind in (LOGGERS[name] for name in names):
        if kind.writes is not None:
            yield folder / kind.writes, kind.what


class Loggers:
    """The loggers of one run; none of them delays or stops it.

    One that raises is reported once, by its name, and not asked again but to close. One that may be
    slow hears of the records in a thread of its own (``logger_thread``), which is never waited for
    but at the end, and not long.
    """

    def __init__(self, names: Sequence[str], run: LoggedRun) -> None:
        self._at_once: dict[str, Logger] = {}
        self._threads: dict[str, LoggerThread] = {}
        self._failed: set[str] = set()
        for name in names:
            kind = LOGGERS[name]
            if kind.at_once:
                self._attempt(name, self._open_at_once, name, run)
            else:
                self._threads[name] = LoggerThread(
                    partial(kind.opened, run), partial(self._fails, name)
                )

    def train(self, record: TrainRecord) -> None:
        """Hand on a training record."""
        self._tell("train", record)

    def validation(self, record: ValidationRecord) -> None:
        """Hand on a validation record."""
        self._tell("validation", record)

    def final(self, record: FinalRecord) -> None:
        """Hand on the errors of the best model."""
        self._tell("final", record)

    def close(self, seconds: float = PATIENCE) -> None:
        """Close every one that was opened, those that failed too; a second call does nothing.

        Args:
            seconds: for which all of them together are waited for; 0 where the process has to go.
        """
        end = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.ask_to_end()
        while self._at_once:
            name, logger = self._at_once.popitem()
            self._attempt(name, logger.close)
        while self._threads:
            name, thread = self._threads.popitem()
            ended = thread.ended_within(max(end - time.monotonic(), 0.0))
            self._say_what_is_lost(name, thread, ended or seconds == 0)

    def _say_what_is_lost(self, name: str, thread: LoggerThread, ended: bool) -> None:
        lost = thread.left_out if ended else thread.waiting
        if not ended:
            log.warning(
                "warning: the logger %s does not answer; it is left alone, with %d records unheard",
                name,
                lost,
            )
        elif lost:
            log.warning(
                "warning: the logger %s was too slow for %d records, which it did not get",
                name,
                lost,
            )

    def _open_at_once(self, name: str, run: LoggedRun) -> None:
        self._at_once[name] = LOGGERS[name].opened(run)

    def _tell(self, method: str, record: object) -> None:
        for name, logger in self._at_once.items():
            if name not in self._failed:
                self._attempt(name, getattr(logger, method), record)
        for thread in self._threads.values():
            thread.tell(method, record)

    def _attempt(self, name: str, act: Callable[..., None], *words: Any) -> None:
        try:
            act(*words)
        except (Exception, SystemExit) as error:  # what a plug-in raises may be anything
            self._fails(name, error)

    def _fails(self, name: str, error: BaseException) -> None:
        """Report the first failure of a logger, in whichever thread it happened."""
        if name in self._failed:
            return
        self._failed.add(name)
        why = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("warning: the logger %s failed and is left out from now on: %s", name, why)
