"""Who hears of a run's records: the loggers by name, and all of one run together.

A user names them after ``--loggers``; a plug-in adds its own to `LOGGERS`. metrics.jsonl is none of them: it is a file
of the run, which a checkpoint points into.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from model_utils.errors import InputError
from model_utils.run.console import Console
from model_utils.run.csv_file import CsvFile
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.table_entry import entry_of
from model_utils.run.tensorboard import TensorBoard
from model_utils.runtime import log


class Logger(Protocol):
    """Takes the records of a run as they arise; one that raises is not asked again, and the run goes on."""

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
class LoggedRun:
    """What a logger is told of the run when it is opened.

    Attributes:
        folder: of the checkpoint.
        name: of the run.
        step: optimizer steps done at the checkpoint that the run goes on from; 0 for a new run.
        n_records: number of records in metrics.jsonl at that checkpoint; 0 for a new run.
        settings: every option by its name, as plain values.
    """

    folder: Path
    name: str
    step: int = 0
    n_records: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoggerKind:
    """A logger under the name that a user gives.

    Attributes:
        opened: makes the logger, as the run begins or goes on.
        writes: name of its file or folder beside the checkpoint; None where it writes none.
        what: what is in that file, in a phrase for the announcement.
        package: that the logger needs, by the name under which Python imports it; None where it needs none.
    """

    opened: Callable[[LoggedRun], Logger]
    writes: str | None = None
    what: str = ""
    package: str | None = None


def _console(run: LoggedRun) -> Logger:
    return Console()


def _tensorboard(run: LoggedRun) -> Logger:
    return TensorBoard(run.folder / "tensorboard", from_step=run.step + 1)


def _csv(run: LoggedRun) -> Logger:
    return CsvFile(run.folder / "metrics.csv", step=run.step, n_records=run.n_records)


LOGGERS: dict[str, LoggerKind] = {
    "console": LoggerKind(opened=_console),
    "tensorboard": LoggerKind(
        opened=_tensorboard, writes="tensorboard", what="TensorBoard events", package="tensorboard"
    ),
    "csv": LoggerKind(opened=_csv, writes="metrics.csv", what="the records as a table"),
}


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
                f"the logger {name} needs the package {package}, which is not installed: pip install {package}, or "
                "leave it out"
            )
    return loggers


def announced(names: Sequence[str], folder: Path) -> Iterator[tuple[Path, str]]:
    """What loggers will write, with one phrase on each."""
    for kind in (LOGGERS[name] for name in names):
        if kind.writes is not None:
            yield folder / kind.writes, kind.what


class Loggers:
    """The loggers of one run.

    One that raises is reported once, by its name, and not asked again but to close: a server that does not answer must
    not cost its time limit at every epoch. Nothing of it stops the run.
    """

    def __init__(self, names: Sequence[str], run: LoggedRun) -> None:
        self._open: dict[str, Logger] = {}
        self._failed: set[str] = set()
        for name in names:
            self._attempt(name, self._add, name, run)

    def train(self, record: TrainRecord) -> None:
        """Hand on a training record."""
        for name, logger in self._working():
            self._attempt(name, logger.train, record)

    def validation(self, record: ValidationRecord) -> None:
        """Hand on a validation record."""
        for name, logger in self._working():
            self._attempt(name, logger.validation, record)

    def final(self, record: FinalRecord) -> None:
        """Hand on the errors of the best model."""
        for name, logger in self._working():
            self._attempt(name, logger.final, record)

    def close(self) -> None:
        """Close every one that was opened, those that failed too; a second call does nothing."""
        while self._open:
            name, logger = self._open.popitem()
            self._attempt(name, logger.close)

    def _add(self, name: str, run: LoggedRun) -> None:
        self._open[name] = LOGGERS[name].opened(run)

    def _working(self) -> list[tuple[str, Logger]]:
        return [(name, logger) for name, logger in self._open.items() if name not in self._failed]

    def _attempt(self, name: str, act: Callable[..., None], *words: Any) -> None:
        try:
            act(*words)
        except (Exception, SystemExit) as error:  # what a plug-in raises may be anything
            if name in self._failed:
                return
            self._failed.add(name)
            why = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("warning: the logger %s failed and is left out from now on: %s", name, why)
