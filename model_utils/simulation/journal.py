"""A journal of finished work, a line of JSON for each piece: what stands in it is not
done again after a kill.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataloader import input_files, plain_json
from dataloader.durable import NotWritten
from dataloader.errors import InputError

Record = Mapping[str, Any]


class Journal:
    """The lines of a file whose first one says what the work is.

    Args:
        path: of the file; made where it is not there.
        work: what decides the results, as plain values; the journal of another
            work is not gone on with.
        again: what to do where another work is met, for the message.

    Raises:
        InputError: the file is of another work, or no journal.
    """

    def __init__(self, path: Path, work: Record, again: str) -> None:
        self.path = path
        self.records: list[Record] = []
        text = json.dumps({"work": work}, sort_keys=True)
        lines = list(_whole_lines(path))
        if lines and json.dumps(lines[0], sort_keys=True) != text:
            before = lines[0].get("work")
            changes = differences(before if isinstance(before, dict) else {}, work)
            raise InputError(f"{path} is the journal of other work: {changes}; {again}")
        self.records = lines[1:]
        if not lines:
            self._append(text)

    def add(self, record: Record, *, lasting: bool = True) -> None:
        """Put a finished piece on the disk.

        Args:
            record: of the piece.
            lasting: otherwise it is a record of this process alone, and the piece is
                done again in another.

        Raises:
            OSError: it cannot be written.
        """
        if lasting:
            self._append(json.dumps(record, allow_nan=False))
        self.records.append(record)

    def _append(self, text: str) -> None:
        data = f"{text}\n".encode()
        descriptor = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError as error:
            raise NotWritten(self.path, len(data), error) from None
        finally:
            os.close(descriptor)


def _whole_lines(path: Path) -> Iterator[Record]:
    """The records of a journal; a torn line at its end, left by a kill, is taken away.

    Raises:
        InputError: another line is none of ours.
    """
    if not path.exists():
        return
    with input_files.opened(path) as file:
        content: bytes = file.read()
    whole, _, torn = content.rpartition(b"\n")
    if torn:
        os.truncate(path, len(content) - len(torn))
    for number, line in enumerate(whole.split(b"\n") if whole else []):
        try:
            record = plain_json.loads(line.decode(), _no_number)
        except ValueError as error:
            raise InputError(
                f"{path} line {number + 1}: {error}; move the file away to begin anew"
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                f"{path} line {number + 1} is no record; move the file away to begin anew"
            )
        yield record


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of a record")


def differences(before: Record, now: Record, shown: int = 3) -> str:
    """Names and values in which two works differ, the first few; empty where they are one."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(
        f"{name} {before.get(name)!s:.60} → {now.get(name)!s:.60}" for name in names[:shown]
    )
