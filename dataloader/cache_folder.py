"""The one place for what is kept for a user from one process to the next: compiled
kernels, indexes of shards.
"""

import contextlib
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

NAME = "mace-pretrain"


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/mace-pretrain``, else ``~/.cache/mace-pretrain``, which
    need not be there yet.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # others are to be ignored, says the XDG specification
        return Path(given) / NAME
    return (_home() or _in_temporary()) / ".cache" / NAME


def settle() -> None:
    """Give the process a home where it has none, as in a container for a user that
    the system does not know.

    Libraries want one as soon as they are imported (ase for its settings,
    matplotlib for its fonts).
    """
    if _home() is None:
        os.environ["HOME"] = str(_in_temporary())


def _home() -> Path | None:
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


@cache
def _in_temporary() -> Path:
    """A folder of the user's alone in ``$TMPDIR``; for this process another one where
    somebody was there before.
    """
    folder = Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if (
            stat.S_ISDIR(status.st_mode)
            and status.st_uid == os.getuid()
            and not status.st_mode & 0o077
        ):
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
