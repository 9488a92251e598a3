"""How a run speaks: log lines, tables, metrics.jsonl, TensorBoard, the progress bar."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataloader import progress
from dataloader.dataset import OF_HEAD
from losses import Loss, Metrics, metrics
from model_utils.files.durable import NotWritten
from model_utils.run.fit import TrainRecord, ValidationRecord
from model_utils.run.train_state import TrainState
from model_utils.runtime import log

MILLI = 1000.0


def errors_text(m: Metrics, terms: str) -> str:
    """The errors of one line, in meV and meV/Å, and the loss with its terms, which are in eV and eV/Å."""
    parts = [f"loss {m.loss:.6g} ({terms})"]
    if m.energy_rmse_per_atom is not None:
        per_atom = f"E rmse {_milli(m.energy_rmse_per_atom)} mae {_milli(m.energy_mae_per_atom)} meV/atom"
        parts.append(f"{per_atom}, mae {_milli(m.energy_mae_cfg)} meV/config")
    if m.forces_rmse is not None:
        parts.append(f"F rmse {_milli(m.forces_rmse)} mae {_milli(m.forces_mae)} meV/Å")
    if m.stress_rmse is not None:
        parts.append(f"S rmse {_milli(m.stress_rmse)} mae {_milli(m.stress_mae)} meV/Å³")
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
    columns: dict[str, Callable[[Metrics], str]] = {
        "configs": lambda m: str(m.n_configs),
        "E rmse/atom": lambda m: _milli(m.energy_rmse_per_atom),
        "E mae/atom": lambda m: _milli(m.energy_mae_per_atom),
        "|E| mae cfg": lambda m: _milli(m.energy_mae_cfg),
        "F rmse": lambda m: _milli(m.forces_rmse),
        "F mae": lambda m: _milli(m.forces_mae),
    }
    if any(m.stress_rmse is not None for m in rows.values()):
        columns |= {"S rmse": lambda m: _milli(m.stress_rmse), "S mae": lambda m: _milli(m.stress_mae)}
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
    return "\n".join(["errors in meV, meV/Å and meV/Å³", lines[0], "-" * len(lines[0]), *lines[1:]])


class MetricsFile:
    """metrics.jsonl: one object per record; what depends on the clock or the machine stands in one ``perf`` object."""

    def __init__(self, path: Path, offset: int | None = None) -> None:
        """Open for adding; with an offset, what was written beyond it by a run that was killed is cut off first."""
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._descriptor).st_size
        self._held = b""  # records that a full disk refused
        self._unsynced = b""  # records that were written but not yet brought to the disk
        if offset is not None and offset < self._size:
            os.ftruncate(self._descriptor, offset)
            self._size = offset
        elif offset is not None and offset > self._size:
            log.warning("warning: %s lacks the last %d bytes of the run's records", path, offset - self._size)

    def train(self, record: TrainRecord) -> None:
        """A training record."""
        self._write(
            kind="train" if record.whole_epoch else "train_steps",
            epoch=record.epoch,
            step=record.step,
            lr=record.lr,
            **dataclasses.asdict(record.metrics),
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
            **dataclasses.asdict(record.metrics),
            by_source={source: dataclasses.asdict(m) for source, m in record.by_source.items()},
            perf={"seconds": record.seconds},
        )

    def final(self, rows: Mapping[str, Metrics]) -> None:
        """The table at the end."""
        self._write(kind="final", **{name: dataclasses.asdict(m) for name, m in rows.items()})

    def _write(self, **record: Any) -> None:
        self._held += (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with suppress(OSError):  # on a full disk the record waits; the next checkpoint must bring it to the disk
            self._flush()

    def _flush(self) -> None:
        while self._held:
            written = os.write(self._descriptor, self._held)
            self._unsynced += self._held[:written]
            self._held, self._size = self._held[written:], self._size + written

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


class TensorBoard:
    """The same numbers as TensorBoard events."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        """Open for adding; what a run that was killed wrote from this step on is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(exist_ok=True)
        # the writer opens its file by name for every event: by a name that stays where the run's folder is moved
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._writer = SummaryWriter(f"/proc/self/fd/{self._descriptor}", purge_step=from_step)

    def train(self, record: TrainRecord) -> None:
        """A training record."""
        self._scalars("train", record.metrics, record.step)
        self._writer.add_scalar("lr", record.lr, record.step)
        self._writer.add_scalar("gradient_norm", record.gradient_norm, record.step)

    def validation(self, record: ValidationRecord) -> None:
        """A validation record."""
        self._scalars("valid", record.metrics, record.step)
        self._writer.flush()

    def _scalars(self, part: str, found: Metrics, step: int) -> None:
        for name, value in dataclasses.asdict(found).items():
            if value is not None:
                self._writer.add_scalar(f"{part}/{name}", value, step)


class EpochProgress:
    """How far an epoch is: tqdm on a terminal with loss, rate, atoms/s and time left, a line now and then in a file."""

    REFRESH = 0.5  # s; reading the loss waits for a GPU

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
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
            self._bar = tqdm(total=steps_of_epoch, initial=self._first, unit="step", leave=False)
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
