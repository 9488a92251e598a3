"""Output that cannot end a run: what a full disk or a reader that left refuses waits in
memory, and is tried again.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

# bytes that wait for a stream or a log, ten thousand lines; later lines are counted, and lost
HELD = 2**20
STREAMS = ("stdout", "stderr")


class ReaderLeft(Exception):
    """Nobody reads what a command says, and it makes nothing else: it ends without
    a word, as by SIGPIPE.
    """

    exit_code = 141  # 128 + SIGPIPE, which shells know


class PatientFile(io.RawIOBase):
    """Bytes are added to a file; writing never fails.

    Args:
        descriptor: open for writing.
        name: of the file, for messages.
        path: where to open it again when its handle has become stale (NFS); None
            where it has no place.
        most: bytes that may wait.
    """

    def __init__(
        self, descriptor: int, name: str, path: Path | None = None, most: float = HELD
    ) -> None:
        super().__init__()
        self.name = name
        self.most = most
        self.is_product = False
        self.refused: OSError | None = None  # why what waits could not be written
        self._descriptor = descriptor
        self._path = path
        self._waiting = b""
        self._lost = 0  # lines
        self._told = False
        _files.add(self)

    @classmethod
    def adding_to(cls, path: Path, most: float = HELD) -> "PatientFile":
        """Open a file to add lines to; a last line that was torn by a kill is closed first.

        Raises:
            OSError: it cannot be opened.
        """
        file = cls(_opened(path), str(path), path, most)
        size = os.fstat(file._descriptor).st_size
        if size and os.pread(file._descriptor, 1, size - 1) != b"\n":
            file.write(b"\n")
        return file

    def writable(self) -> bool:
        """Whether text can be written: always, it is kept while the descriptor takes none."""
        return True

    def fileno(self) -> int:
        """The descriptor, for those who ask about a terminal."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """Write, or keep for later; returns the number of bytes.

        Raises:
            ReaderLeft: nobody reads, and what is written is all that the command makes.
        """
        new = bytes(data)
        if self._waiting:
            self.flush()  # room may be there again
        if self.is_product or len(self._waiting) + len(new) <= self.most:
            self._waiting += new
        else:
            self._lost += max(new.count(b"\n"), 1)
        self.flush()
        return len(new)

    def flush(self) -> None:
        """Try again to write what waits."""
        try:
            self._write_waiting()
            if self._lost:
                self._waiting = f"… {self._lost} lines could not be kept …\n".encode()
                self._lost = 0
                self._write_waiting()
            self.refused = None
        except OSError as error:
            self.refused = error
            if error.errno == errno.EPIPE and self.is_product:
                self._waiting = b""
                self.is_product = False
                raise ReaderLeft from None

    def _write_waiting(self) -> None:
        while self._waiting:
            try:
                written = os.write(self._descriptor, self._waiting)
            except OSError as error:
                if error.errno != errno.ESTALE or self._path is None:
                    raise
                fresh = _opened(self._path)
                os.dup2(fresh, self._descriptor, inheritable=False)
                os.close(fresh)
                written = os.write(self._descriptor, self._waiting)
            self._waiting = self._waiting[written:]

    def news(self) -> str | None:
        """One sentence when it begins to refuse, or takes bytes again,
        since this was asked last.
        """
        if (self.refused is not None) == self._told:
            return None
        self._told = self.refused is not None
        if self.refused is None:
            return f"{self.name} can be written again"
        return (
            f"{self.name} cannot be written ({self.refused.strerror}): its lines wait, "
            "and nothing else does"
        )

    def close(self) -> None:
        """Close it, and its descriptor where it was opened here; what still waits is lost."""
        if self.closed:
            return
        self.flush()
        self.forget()
        if self._path is not None:
            os.close(self._descriptor)
        super().close()

    def forget(self) -> None:
        """Forget the text that could not be written yet."""
        self._waiting = b""
        self._lost = 0


_files: WeakSet[PatientFile] = WeakSet()


def _forget_in_child() -> None:
    """What waits is written by the process that said it, and not a second time by a fork of it."""
    for file in _files:
        file.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)


def guard() -> None:
    """Make stdout and stderr of this process such files; one that is closed
    leads nowhere from now on.

    Streams that somebody put in the place of the process's own are left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would get what is meant for a terminal
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in enumerate(STREAMS, start=1):
        own = getattr(sys, f"__{name}__")
        if getattr(sys, name) is not own or (own is not None and own.fileno() != number):
            continue
        encoding = "utf-8" if own is None else own.encoding
        file = PatientFile(number, name)
        patient = io.TextIOWrapper(file, encoding, errors="backslashreplace", line_buffering=True)
        setattr(sys, name, patient)


def _guarded() -> Iterator[PatientFile]:
    for name in STREAMS:
        file = getattr(getattr(sys, name), "buffer", None)
        if isinstance(file, PatientFile):
            yield file


def say_product(is_product: bool) -> None:
    """Whether what goes to stdout is all that the command makes: then it is worth an exit code."""
    for file in _guarded():
        file.is_product = is_product and file.name == "stdout"


def refused_by_stdout() -> OSError | None:
    """Why stdout lacks lines, after a last try; None where it has them all, or where
    nobody reads it any more.
    """
    for file in _guarded():
        file.flush()
        if file.name == "stdout" and file.refused is not None and file.refused.errno != errno.EPIPE:
            return file.refused
    return None


def news() -> Iterator[str]:
    """What stdout and stderr have to tell, see ``PatientFile.news``."""
    for file in _guarded():
        if (sentence := file.news()) is not None:
            yield sentence


def printable(text: str) -> str:
    """Text with ``?`` for what steers a terminal instead of being shown, which
    names in data may hold.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
