"""The exceptions for input that cannot be used as asked; every command turns them into one
line and an exit code.
"""

import errno
import os

AWAY = (
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOTCONN,
    errno.EREMOTEIO,
)
FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = "make room, and repeat the command"
START_AGAIN = "make room and start again with the same settings, it goes on where it was"


class InputError(Exception):
    """A file, record or option of the user cannot be used as asked.

    The message is one sentence for a tired person: what was found, where (file, key, frame), what
    was expected, what to do.
    """

    exit_code = 2


class MissingFileError(InputError):
    """A file of data that was named is not there."""


class AwayError(InputError):
    """A network file system lost what was open on it or does not answer: the same
    command may succeed later.
    """

    exit_code = 75  # EX_TEMPFAIL: a scheduler may requeue


class SaveError(Exception):
    """What was made could not be written: there is no room."""

    exit_code = 5


def cannot_write(
    what: object, error: OSError, remedy: str = "", *, room: str = ROOM, verb: str = "write"
) -> InputError | SaveError:
    """What to raise where a file or a folder cannot be written.

    Args:
        what: the file, or the flag that names it and the file.
        error: of the file system.
        remedy: what to type instead, where the place is at fault.
        room: what to do where there is no room.
        verb: what was tried.

    Returns:
        SaveError where there is no room: other words would help no more than the same ones later;
        AwayError where a network file system does not answer; else InputError with the remedy.
    """
    said = f"cannot {verb} {what}: {error.strerror or error}"
    if error.errno in FULL:
        return SaveError(f"{said}; {room}")
    if is_away(error):
        return AwayError(f"{said}; is its file system there?")
    return InputError(f"{said}; {remedy}" if remedy else said)


def is_away(error: Exception) -> bool:
    """Whether an error is a file system's that does not answer; lmdb's own exceptions
    say it in words alone.
    """
    if isinstance(error, OSError):
        return error.errno in AWAY
    return any(os.strerror(number) in str(error) for number in AWAY)


class RowError(ValueError):
    """A row is refused or damaged; the message names the global or the fault, numbers
    in brackets at its end.
    """
