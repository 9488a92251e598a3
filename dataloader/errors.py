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


class InputError(Exception):
    """A file, record or option of the user cannot be used as asked.

    The message is one sentence for a tired person: what was found, where (file, key, frame), what
    was expected, what to do.
    """

    exit_code = 2


class AwayError(InputError):
    """A network file system lost what was open on it or does not answer: the same
    command may succeed later.
    """

    exit_code = 75  # EX_TEMPFAIL: a scheduler may requeue


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
