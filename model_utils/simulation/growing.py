"""Files that grow with a run, and are cut to what its state knows where it goes on."""

import io
import os
from pathlib import Path

from dataloader.durable import NotWritten
from dataloader.errors import InputError


def holds_something(path: Path) -> bool:
    """Whether a file is there and not empty."""
    return path.exists() and path.stat().st_size > 0


def add(path: Path, text: io.StringIO) -> int:
    """Add what waits to a file and to the disk; the number of bytes.

    Raises:
        NotWritten: the disk does not take it.
    """
    data = text.getvalue().encode()
    text.seek(0)
    text.truncate()
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NotWritten(path, len(data), error) from None
    return len(data)


def cut(path: Path, size: int, state: str) -> None:
    """Take away what was written after a state.

    Args:
        path: of the file.
        size: bytes that the state knows of.
        state: its name, for messages.

    Raises:
        InputError: the file is shorter than the state says.
    """
    there = path.stat().st_size if path.exists() else 0
    if there < size:
        raise InputError(
            f"{path} has {there} bytes, but {state} knows of {size}; give --overwrite to begin anew"
        )
    if there:
        os.truncate(path, size)
