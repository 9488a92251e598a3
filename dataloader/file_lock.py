"""A lock of the kernel on an open file: it ends with the process that has it, however that ends."""

import errno
import fcntl
from enum import Enum

HELD_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EACCES)


class Lock(Enum):
    """What came of asking for a lock."""

    OURS = "ours"
    HELD = "held by another process"
    NONE = "the file system has no locks"  # Lustre without ``flock``, for one


def ask(descriptor: int, *, shared: bool = False) -> Lock:
    """Ask for the lock of an open file, without waiting for it.

    Args:
        descriptor: of the file, open for reading and writing; closing it gives the lock back.
        shared: with others that ask for it so; else nobody has it beside this process.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return Lock.HELD if error.errno in HELD_BY_ANOTHER else Lock.NONE
    return Lock.OURS
