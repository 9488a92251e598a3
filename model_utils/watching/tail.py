"""Records of a metrics.jsonl that grows: read on where they ended, and anew
where the file is another.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataloader.errors import InputError
from dataloader.limits import RECORD_BYTES

Record = Mapping[str, Any]
MARK = 4096  # bytes before the end of what was read, by which the file is known again


class Tail:
    """The whole records of a file that may grow, be cut to a checkpoint and go on, or be replaced.

    Args:
        path: the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self.n_bad_lines = 0
        self._read = 0  # bytes, to the end of a line
        self._mark = b""  # the last of them

    def look(self) -> None:
        """Read what has come.

        A last line without its end waits; what can be read no longer stays as it was.

        Raises:
            InputError: this user may not read the file.
        """
        try:
            with self.path.open("rb") as file:
                if not self._goes_on(file):
                    self._forget()
                file.seek(self._read)
                self._take(file.read())
        except FileNotFoundError:
            self._forget()
        except PermissionError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        except OSError:  # a network file system that is away for a while
            return

    def _goes_on(self, file: Any) -> bool:
        """Whether the file still holds what was read of it: a run that is resumed cuts
        it, and may write beyond.
        """
        file.seek(self._read - len(self._mark))
        return bool(file.read(len(self._mark)) == self._mark)

    def _forget(self) -> None:
        self.records = []
        self.n_bad_lines = 0
        self._read = 0
        self._mark = b""

    def _take(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        for line in data[:end].splitlines():
            self._take_line(line)
        self._read += end
        self._mark = (self._mark + data[:end])[-MARK:]

    def _take_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            record = json.loads(line) if len(line) <= RECORD_BYTES else None
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            self.records.append(record)
        else:
            self.n_bad_lines += 1
