"""metrics.jsonl, the records of a run: a file of the run as its checkpoint is, cut
and continued with it.
"""

import errno
import itertools
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataloader import durable
from dataloader.durable import NotWritten
from dataloader.limits import RECORD_BYTES
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.runtime import log


class MetricsFile:
    """metrics.jsonl: one object per record; what depends on the clock or the machine stands
    in one ``perf`` object.
    """

    def __init__(self, path: Path, offset: int | None = None, step: int = 0) -> None:
        """Open for adding.

        Args:
            path: the file.
            offset: bytes of the records that a checkpoint knows; what a run that was killed
                wrote beyond is cut off.
            step: of that checkpoint, by which the records are told where the file
                was cut or edited since.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self.mended = offset is not None and _mended(path, offset, step)
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        self._size = os.fstat(self._descriptor).st_size
        self._held = b""  # records that a full disk refused
        self._unsynced = b""  # records that were written but not yet brought to the disk
        if not self.mended and offset is not None and offset < self._size:
            log.info(
                "%s: the %d bytes after the checkpoint are cut off and made again (what a run "
                "wrote after its last save, or at its end)",
                path,
                self._size - offset,
            )
            os.ftruncate(self._descriptor, offset)
            self._size = offset

    def train(self, record: TrainRecord) -> None:
        """A training record."""
        self._write(
            kind="train" if record.whole_epoch else "train_steps",
            epoch=record.epoch,
            step=record.step,
            lr=record.lr,
            **_stage(record.stage),
            **record.metrics.as_plain(),
            gradient_norm=record.gradient_norm,
            gradient_norm_max=record.gradient_norm_max,
            clipped_share=record.clipped_share,
            perf={
                "seconds": record.seconds,
                "atoms_per_s": record.metrics.n_atoms / max(record.seconds, 1e-9),
            },
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
            **_stage(record.stage),
            **record.metrics.as_plain(),
            by_source={source: m.as_plain() for source, m in record.by_source.items()},
            perf={"seconds": record.seconds},
        )

    def final(self, record: FinalRecord) -> None:
        """The best model's errors at the end."""
        self._write(
            kind="final", **{name: errors.as_plain() for name, errors in record.sets.items()}
        )

    def _write(self, **record: Any) -> None:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        self._held += text.encode("utf-8", "backslashreplace")  # a file's name need not be UTF-8
        # on a full disk the record waits; the next checkpoint must bring it to the disk
        with suppress(OSError):
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
            self._held = self._held[written:]
            self._size += written

    def _open_again(self, stale: OSError) -> None:
        """Get a new handle where that of a network file system is stale, and write again
        what may have been lost.
        """
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            self._size -= len(self._unsynced)
            self._held = self._unsynced + self._held
            self._unsynced = b""
            if os.fstat(descriptor).st_size < self._size:
                raise stale  # another file has the name now
            os.ftruncate(descriptor, self._size)
            os.dup2(descriptor, self._descriptor, inheritable=False)
        finally:
            os.close(descriptor)

    def n_records(self) -> int:
        """Records in the file."""
        return self._path.read_bytes().count(b"\n")

    def offset(self) -> int:
        """Bytes written so far, all of them on the disk; a checkpoint remembers it.

        Raises:
            NotWritten: records could not be written; they are tried again the next time.
        """
        try:
            self._flush()
            try:
                os.fsync(self._descriptor)
            except OSError:
                # the kernel forgets the failed pages: a second fsync would succeed without them
                self._size -= len(self._unsynced)
                self._held = self._unsynced + self._held
                self._unsynced = b""
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


def _stage(stage: int) -> dict[str, int]:
    """The entry of a record that is not of a run's first stage, as all are of most runs."""
    return {"stage": stage} if stage > 1 else {}


def _mended(path: Path, offset: int, step: int) -> bool:
    """Keep the whole records of a checkpoint's past where the file is not as it was left;
    whether that was needed.

    The run saves at once when it was: the checkpoint's offset would cut the new
    file in the wrong place.
    """
    if offset == 0 or (path.exists() and _is_as_left(path, offset, step)):
        return False
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    starts = itertools.accumulate((len(line) for line in lines), initial=0)
    kept = [
        line
        for line, start in zip(lines, starts, strict=False)
        if _is_of_the_past(line, start, offset, step)
    ]
    durable.write(path, b"".join(line.rstrip(b"\r\n") + b"\n" for line in kept))
    log.warning(
        "warning: %s was cut or edited since the checkpoint, which knows %d bytes of it: %d whole "
        "records up to step %d are kept, %d other lines are removed",
        *(path, offset, len(kept), step, len(lines) - len(kept)),
    )
    return True


def _is_as_left(path: Path, offset: int, step: int) -> bool:
    """Whether a line ends at an offset, which is not a record of later steps: lines of another
    length may end there by chance.
    """
    with path.open("rb") as file:
        file.seek(max(offset - RECORD_BYTES, 0))
        before = file.read(min(offset, RECORD_BYTES))
    if len(before) < min(offset, RECORD_BYTES) or not before.endswith(b"\n"):
        return False
    try:
        record = json.loads(before.splitlines()[-1])
    except (ValueError, RecursionError):
        return False
    of_step = record.get("step") if isinstance(record, dict) else None
    return not isinstance(of_step, int) or of_step <= step


def _is_of_the_past(line: bytes, start: int, offset: int, step: int) -> bool:
    """Whether a line is a whole record that was written before the checkpoint of a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    of_step = record.get("step") if isinstance(record, dict) else None
    return isinstance(of_step, int) and (of_step < step or (of_step == step and start < offset))
