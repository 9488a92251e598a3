"""A folder that a run writes, known by its inode: the run follows it where somebody
moves it while it lasts.
"""

import errno
import os
import time
from pathlib import Path
from types import TracebackType

from model_utils.errors import SaveError
from model_utils.runtime import log

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # any other error of a file system may pass
TRIES = 10  # a folder may be moved again while its new name is asked for


class HeldFolder:
    """Holds a folder open from where it is entered, so that its inode is given to no other one.

    Args:
        path: of the folder, which is there.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.identity = _identity(os.fstat(self.descriptor))
        self._began_at = path
        self._last = path

    def __enter__(self) -> "HeldFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.descriptor)

    def path(self) -> Path:
        """Where the folder is now; another one may lie at its former path.

        Raises:
            SaveError: it is nowhere: removed, or moved to another file system, which
                copies and removes it.
        """
        for _ in range(TRIES):
            for known in (self._last, self._began_at):
                if self._is_at(known):
                    return self._now_at(known)
            now = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            if self._is_at(now):
                return self._now_at(now)
            time.sleep(0.01)
        raise SaveError(
            f"{self._last}, a folder of this run, was removed or moved to another file system "
            "while the run was writing it: what was not saved before is lost; resume the copy of "
            "it, or start again elsewhere"
        )

    def _is_at(self, path: Path) -> bool:
        try:
            return _identity(os.stat(path)) == self.identity
        except OSError as error:
            return error.errno not in NOT_THERE

    def _now_at(self, path: Path) -> Path:
        if path != self._last:
            log.warning(
                "warning: %s was moved while the run writes it; the run goes on in %s",
                self._last,
                path,
            )
            self._last = path
        return path


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
