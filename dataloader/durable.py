"""Write files so that a kill or a power failure leaves the old one or the new one, never a piece.

Every file that is written as a whole is written here: weights, tables, JSON, indexes,
shards of packed data.
"""

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

LONGEST_IN_TEMPORARY = 100  # bytes of a file's name that are repeated in that of its temporary file


class NotWritten(OSError):
    """A file could not be written; what stood there before is untouched.

    Says how much room it needs.
    """

    def __init__(self, path: Path, size: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), str(path))
        self.path = path
        self.size = size

    def __str__(self) -> str:
        return f"cannot write {self.path}: {self.strerror}; {_room(self)}"


def write(path: Path, data: bytes, *, previous: Path | None = None) -> None:
    """Replace ``path`` by ``data``.

    A temporary file in the same directory is written and fsynced, then renamed over the old one,
    then the directory is fsynced: without the last step 68 of 75 simulated power failures brought
    back an older file than was reported saved.

    Args:
        path: the file.
        data: its new content, serialised before so that a full disk meets our own
            write and keeps its errno.
        previous: name under which the content that ``path`` has now stays, as
            the generation before.

    Raises:
        NotWritten: with the errno of the call that failed. ``path`` holds the old content, or,
            where only the last step failed, the new one.
    """
    temporary = _temporary(path).name
    try:
        with _directory(path.parent) as directory, _removed_at_last(temporary, directory):
            descriptor = _new(temporary, directory)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)  # NFS reports a full quota here
            if previous is not None and _is_there(path.name, directory):
                _keep(path.name, _temporary(previous).name, previous.name, directory)
            os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
    except OSError as error:
        # an fsync is never tried again: the kernel has forgotten the failed pages
        raise NotWritten(path, len(data), error) from None


def write_text(path: Path, text: str) -> None:
    """``write`` for text, in UTF-8; bytes of a file's name that are none are escaped."""
    write(path, text.encode("utf-8", "backslashreplace"))


@contextmanager
def text_stream(path: Path, *, made_in: Path | None = None) -> Iterator[TextIO]:
    """Text, in UTF-8, that is written bit by bit and gets its name when all of it is on the disk.

    Args:
        path: the file.
        made_in: folder of the same file system where the file lies until it is whole; that of
            ``path`` where none is given. After a kill its piece lies there.

    Raises:
        NotWritten: what stood there before is untouched.
    """
    with _stream(path, made_in or path.parent, "w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def byte_stream(path: Path, *, made_in: Path | None = None) -> Iterator[BinaryIO]:
    """Bytes that are written piece by piece, never all in memory, and get their name
    when all are on the disk.

    Args:
        path: the file.
        made_in: folder of the same file system where the file lies until it is whole; that of
            ``path`` where none is given. After a kill its piece lies there.

    Raises:
        NotWritten: what stood there before is untouched.
    """
    with _stream(path, made_in or path.parent, "wb") as stream:
        yield stream


def give_name(made: Path, path: Path) -> None:
    """Bring a file to the disk that a library wrote by itself, and then give it its name.

    Args:
        made: the file, on the file system of ``path``.
        path: its name from now on; a file that has it is replaced.

    Raises:
        NotWritten: what stood there before is untouched, or, where only the last
            step failed, replaced.
    """
    size = 0
    try:
        with made.open("rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        with _directory(path.parent) as directory:
            os.replace(made, path.name, dst_dir_fd=directory)
            os.fsync(directory)
    except OSError as error:
        raise NotWritten(path, size, error) from None


def link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link, in place of one that is there.

    Args:
        path: of the link.
        target: where it leads, relative to its folder.

    Raises:
        OSError: the file system has no links, or something else than a link is there.
    """
    temporary = _temporary(path).name
    if path.exists() and not path.is_symlink():
        raise FileExistsError(errno.EEXIST, "something else than a link is there", str(path))
    with _directory(path.parent) as directory, _removed_at_last(temporary, directory):
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        os.symlink(target, temporary, dir_fd=directory)
        os.replace(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)


def new_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder that has all of its first files from the moment it is there.

    Args:
        path: the folder; its parent is there.
        files: content by name.

    Raises:
        FileExistsError: something is there.
        OSError: it cannot be made.
    """
    made = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        for name, content in files.items():
            write(made / name, content)
        if path.exists():
            raise FileExistsError(errno.EEXIST, "it is there", str(path))
        os.rename(made, path)  # over an empty folder at most; one with files refuses
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, "it is there", str(path)) from None
        raise


def temporary_files(folder: Path) -> Iterator[Path]:
    """Files of writes on this machine that are under way, or were when their
    process was killed; …PID.tmp.
    """
    return folder.glob(f".*.{socket.gethostname()}.*.tmp")


@contextmanager
def _stream(path: Path, made_in: Path, mode: str, encoding: str | None = None) -> Iterator[Any]:
    temporary = _temporary(path).name
    size = 0
    try:
        with (
            _directory(path.parent) as directory,
            _directory(made_in) as workshop,
            _removed_at_last(temporary, workshop),
        ):
            with open(_new(temporary, workshop), mode, encoding=encoding) as stream:
                yield stream
                stream.flush()
                size = stream.tell()
                os.fsync(stream.fileno())
            os.replace(temporary, path.name, src_dir_fd=workshop, dst_dir_fd=directory)
            os.fsync(directory)
    except OSError as error:
        raise NotWritten(path, size, error) from None


def _temporary(path: Path) -> Path:
    """Beside a file, in any case a shorter name than a file system takes: 255 bytes, of which
    a host takes up to 64.
    """
    name = path.name
    if len(os.fsencode(name)) > LONGEST_IN_TEMPORARY:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _keep(name: str, link: str, previous: str, directory: int) -> None:
    """Give the file of today a second name, by link and rename so that ``previous``
    always exists as well.
    """
    with suppress(FileNotFoundError):
        os.unlink(link, dir_fd=directory)
    with _removed_at_last(link, directory):
        try:
            os.link(name, link, src_dir_fd=directory, dst_dir_fd=directory)
            os.replace(link, previous, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            # no hard links here: for a moment only the generation before exists
            os.replace(name, previous, src_dir_fd=directory, dst_dir_fd=directory)


def _new(name: str, directory: int) -> int:
    return os.open(
        name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=directory
    )


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    """A folder by descriptor: what is begun in it is ended in it, though
    somebody moves it meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # nothing was written through it
            os.close(descriptor)


@contextmanager
def _removed_at_last(name: str, directory: int) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)


def _room(error: NotWritten) -> str:
    """What there is of what was not enough."""
    if error.errno == errno.EDQUOT:  # the file system itself may have room
        return f"{error.size} bytes needed, see `quota`"
    try:
        about = os.statvfs(error.path.parent)
    except OSError:
        return f"{error.size} bytes needed, an unknown number free"
    free = about.f_bavail * about.f_frsize
    if free > error.size and about.f_files and about.f_favail == 0:
        return "no file can be made any more (inodes, see `df -i`), though there is room"
    return f"{error.size} bytes needed, {free} free"
