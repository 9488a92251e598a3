"""How a run speaks: log lines, tables, metrics.jsonl, TensorBoard, the progress bar."""

import errno
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dataloader import progress, streams
from dataloader.dataset import OF_HEAD
from dataloader.quantities import QUANTITIES, STRESS, Quantity
from losses import Loss, Metrics, error_names, metrics
from model_utils.files import durable
from model_utils.files.durable import NotWritten
from model_utils.run.fit import TrainRecord, ValidationRecord
from model_utils.run.train_state import TrainState
from model_utils.runtime import log

MILLI = 1000.0


def errors_text(m: Metrics, terms: str) -> str:
    """The errors of one line, in meV and meV/Å, and the loss with its terms, which are in eV and eV/Å."""
    parts = [f"loss {m.loss:.6g} ({terms})"]
    for quantity in QUANTITIES.values():
        errors = m.of(quantity)
        if errors["rmse"] is None:
            continue
        over = "/atom" if quantity.over_atoms else ""
        text = f"{quantity.symbol} rmse {_milli(errors['rmse'])} mae {_milli(errors['mae'])} m{quantity.unit}{over}"
        if quantity.over_atoms:
            text += f", mae {_milli(errors['mae_cfg'])} m{quantity.unit}/config"
        parts.append(text)
    return "  ".join(parts)


def _milli(value: float | None) -> str:
    return "-" if value is None else f"{value * MILLI:.2f}"


def log_train(record: TrainRecord) -> None:
    """The training line of an epoch."""
    if record.whole_epoch:
        rate = f"{record.metrics.n_atoms / max(record.seconds, 1e-9):.0f} atoms/s"
        log.info(
            "epoch %d train  %s  lr %.3g  %s", record.epoch, errors_text(record.metrics, record.terms), record.lr, rate
        )


def log_validation(record: ValidationRecord) -> None:
    """The validation line, and one per source where there are several."""
    which = "before the first step" if record.step == 0 else f"epoch {record.epoch}"
    mark = "  best" if record.best else ""
    errors = errors_text(record.metrics, record.terms)
    log.info("%s valid  %s  (%s weights)%s", which, errors, record.weights, mark)
    if len(record.by_source) > 1:
        for source, found in record.by_source.items():
            log.info("  %s  %s", source, errors_text(found, record.terms))


def table(rows: Mapping[str, Metrics]) -> str:
    """Errors of several data sets side by side, energies in meV, forces in meV/Å, stress in meV/Å³.

    Where names end in a head (``Dataset.by_source``), heads have a column of their own.
    """
    shown = [q for q in QUANTITIES.values() if q.required or any(m.of(q)["rmse"] is not None for m in rows.values())]
    columns: dict[str, Callable[[Metrics], str]] = {"configs": lambda m: str(m.n_configs)}
    for quantity in shown:
        for short, name in error_names(quantity).items():
            columns[_heading(quantity, short)] = partial(_cell, name)
    units = [f"m{quantity.unit}" for quantity in shown if quantity is not STRESS] + [f"m{STRESS.unit}"]
    names = [name.partition(OF_HEAD) for name in rows]
    cells = [["", "head", *columns]]
    cells += [
        [n[0], n[2], *(column(m) for column in columns.values())] for n, m in zip(names, rows.values(), strict=True)
    ]
    if not any(name[2] for name in names):
        cells = [[row[0], *row[2:]] for row in cells]
    n_words = len(cells[0]) - len(columns)  # columns of text, which begin at one place
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(w) if i < n_words else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([f"errors in {', '.join(units[:-1])} and {units[-1]}", lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(name: str, m: Metrics) -> str:
    return _milli(m[name])


def _heading(quantity: Quantity, short: str) -> str:
    """``E rmse/atom``, ``|E| mae cfg``, ``F mae``."""
    if short == "mae_cfg":
        return f"|{quantity.symbol}| mae cfg"
    return f"{quantity.symbol} {short}/atom" if quantity.over_atoms else f"{quantity.symbol} {short}"


class MetricsFile:
    """metrics.jsonl: one object per record; what depends on the clock or the machine stands in one ``perf`` object."""

    def __init__(self, path: Path, offset: int | None = None, step: int = 0) -> None:
        """Open for adding.

        Args:
            path: the file.
            offset: bytes of the records that a checkpoint knows; what a run that was killed wrote beyond is cut off.
            step: of that checkpoint, by which the records are told where the file was cut or edited since.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self.mended = offset is not None and _mended(path, offset, step)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._descriptor).st_size
        self._held = b""  # records that a full disk refused
        self._unsynced = b""  # records that were written but not yet brought to the disk
        if not self.mended and offset is not None and offset < self._size:
            log.info("%s: the %d bytes after the checkpoint are cut off and made again", path, self._size - offset)
            os.ftruncate(self._descriptor, offset)
            self._size = offset

    def train(self, record: TrainRecord) -> None:
        """A training record."""
        self._write(
            kind="train" if record.whole_epoch else "train_steps",
            epoch=record.epoch,
            step=record.step,
            lr=record.lr,
            **record.metrics.as_plain(),
            gradient_norm=record.gradient_norm,
            gradient_norm_max=record.gradient_norm_max,
            clipped_share=record.clipped_share,
            perf={"seconds": record.seconds, "atoms_per_s": record.metrics.n_atoms / max(record.seconds, 1e-9)},
        )

    def validation(self, record: ValidationRecord) -> None:
        """A validation record."""
        self._write(
            kind="valid",
            epoch=record.epoch,
            step=record.step,
            lr=record.lr,
            weights=record.weights,
            best=record.best,
            **record.metrics.as_plain(),
            by_source={source: m.as_plain() for source, m in record.by_source.items()},
            perf={"seconds": record.seconds},
        )

    def final(self, rows: Mapping[str, Metrics]) -> None:
        """The table at the end."""
        self._write(kind="final", **{name: m.as_plain() for name, m in rows.items()})

    def _write(self, **record: Any) -> None:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        self._held += text.encode("utf-8", "backslashreplace")  # a file's name need not be UTF-8
        with suppress(OSError):  # on a full disk the record waits; the next checkpoint must bring it to the disk
            self._flush()

    def _flush(self) -> None:
        while self._held:
            try:
                written = os.write(self._descriptor, self._held)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                self._open_again(error)
                continue
            self._unsynced += self._held[:written]
            self._held, self._size = self._held[written:], self._size + written

    def _open_again(self, stale: OSError) -> None:
        """Get a new handle where that of a network file system is stale, and write again what may have been lost."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            self._size -= len(self._unsynced)
            self._held, self._unsynced = self._unsynced + self._held, b""
            if os.fstat(descriptor).st_size < self._size:
                raise stale  # another file has the name now
            os.ftruncate(descriptor, self._size)
            os.dup2(descriptor, self._descriptor, inheritable=False)
        finally:
            os.close(descriptor)

    def offset(self) -> int:
        """Bytes written so far, all of them on the disk; a checkpoint remembers it.

        Raises:
            NotWritten: records could not be written; they are tried again the next time.
        """
        try:
            self._flush()
            try:
                os.fsync(self._descriptor)
            except OSError:  # the kernel forgets the failed pages: a second fsync would succeed without them
                self._size -= len(self._unsynced)
                self._held, self._unsynced = self._unsynced + self._held, b""
                os.ftruncate(self._descriptor, self._size)
                raise
        except OSError as error:
            raise NotWritten(self._path, len(self._held), error) from None
        self._unsynced = b""
        return self._size

    def close(self) -> None:
        """Close the file.

        Raises:
            NotWritten: records could not be written.
        """
        try:
            self.offset()
        finally:
            os.close(self._descriptor)


def _mended(path: Path, offset: int, step: int) -> bool:
    """Keep the whole records of a checkpoint's past where the file is not as it was left; whether that was needed.

    The run saves at once when it was: the checkpoint's offset would cut the new file in the wrong place.
    """
    if offset == 0 or (path.exists() and _ends_a_line(path, offset)):
        return False
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    starts = itertools.accumulate((len(line) for line in lines), initial=0)
    kept = [line for line, start in zip(lines, starts, strict=False) if _is_of_the_past(line, start, offset, step)]
    durable.write(path, b"".join(line.rstrip(b"\r\n") + b"\n" for line in kept))
    log.warning(
        "warning: %s was cut or edited since the checkpoint, which knows %d bytes of it: %d whole records up to step "
        "%d are kept, %d other lines are removed",
        *(path, offset, len(kept), step, len(lines) - len(kept)),
    )
    return True


def _ends_a_line(path: Path, offset: int) -> bool:
    """Whether a line of a file ends at an offset."""
    with path.open("rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def _is_of_the_past(line: bytes, start: int, offset: int, step: int) -> bool:
    """Whether a line is a whole record that was written before the checkpoint of a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    of_step = record.get("step") if isinstance(record, dict) else None
    return isinstance(of_step, int) and (of_step < step or (of_step == step and start < offset))


class TensorBoard:
    """The same numbers as TensorBoard events; those that a full disk refuses are written later, in order."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        """Open a new file beside the others; what a run that was killed wrote from this step on is hidden.

        Raises:
            OSError: it cannot be made.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._file = streams.PatientFile.adding_to(_next_events_file(folder), most=float("inf"))
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._add(step=from_step, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())

    def train(self, record: TrainRecord) -> None:
        """A training record."""
        self._scalars("train", record.metrics, record.step)
        self._scalar("lr", record.lr, record.step)
        self._scalar("gradient_norm", record.gradient_norm, record.step)

    def validation(self, record: ValidationRecord) -> None:
        """A validation record."""
        self._scalars("valid", record.metrics, record.step)

    def _scalars(self, part: str, found: Metrics, step: int) -> None:
        for name, value in found.as_plain().items():
            if value is not None:
                self._scalar(f"{part}/{name}", value, step)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        from torch.utils.tensorboard.summary import scalar

        self._add(step=step, summary=scalar(tag, value))


def _next_events_file(folder: Path) -> Path:
    """A name that TensorBoard reads after those that are there, also where the clock was set back since.

    It reads files in the order of their names, and hides what the later ones replace.
    """
    times = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    after = max((int(text) for text in times if text.isdecimal()), default=0) + 1
    return folder / f"events.out.tfevents.{max(int(time.time()), after):010d}.{socket.gethostname()}.{os.getpid()}.0"


class EpochProgress:
    """How far an epoch is: tqdm on a terminal with loss, rate, atoms/s and time left, a line now and then in a file."""

    REFRESH = 0.5  # s; reading the loss waits for a GPU

    def __init__(self) -> None:
        self._bar: progress.Bar | None = None
        self._next = 0.0
        self._began: float | None = None
        self._said: float | None = None
        self._first = 0  # steps and atoms of the epoch before time is taken
        self._atoms = 0

    def __call__(self, state: TrainState, steps_of_epoch: int, loss: Loss) -> None:
        """One step was taken."""
        done = state.progress.steps_in_epoch
        if self._began is None:
            self._begin(state, steps_of_epoch, loss)
        elif self._bar is not None:
            self._bar.update()
        if self._bar is not None:
            if progress.clock() >= self._next:
                self._refresh(state, loss)
        elif progress.due(self._said):
            self._said = progress.clock()
            log.info("%s", self._line(state, steps_of_epoch, loss))
        if done >= steps_of_epoch:
            self.close()

    def _begin(self, state: TrainState, steps_of_epoch: int, loss: Loss) -> None:
        self._began, self._said, self._first = progress.clock(), None, state.progress.steps_in_epoch
        if progress.on_a_terminal():
            self._bar = progress.Bar(total=steps_of_epoch, initial=self._first, unit="step", leave=False)
            self._atoms = metrics(state.tally.sums.tolist(), loss).n_atoms

    def _refresh(self, state: TrainState, loss: Loss) -> None:
        assert self._bar is not None
        assert self._began is not None
        found = metrics(state.tally.sums.tolist(), loss)
        speed = (found.n_atoms - self._atoms) / max(progress.clock() - self._began, 1e-9)
        self._bar.set_description(f"epoch {state.progress.epoch + 1}")
        self._bar.set_postfix_str(f"loss {found.loss:.4g}, lr {state.schedule.rate():.2g}, {speed:.0f} atoms/s")
        self._next = progress.clock() + self.REFRESH

    def _line(self, state: TrainState, steps_of_epoch: int, loss: Loss) -> str:
        assert self._began is not None
        done = state.progress.steps_in_epoch
        passed = progress.clock() - self._began
        left = progress.lasting(passed / max(done - self._first, 1) * (steps_of_epoch - done))
        found = metrics(state.tally.sums.tolist(), loss)
        where = f"epoch {state.progress.epoch + 1}: step {done} of {steps_of_epoch}"
        return f"{where}, loss {found.loss:.4g}, lr {state.schedule.rate():.2g}, about {left} left"

    def close(self) -> None:
        """The epoch is over: take the bar off the terminal."""
        self._began = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None
