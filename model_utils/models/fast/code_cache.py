"""Machine code that is kept on disk and loaded again: only what this user wrote, whole, in a
folder of this user alone.

A seal is a text file beside the code with the SHA-256 of one file or several, in the form of
``sha256sum`` (so ``sha256sum --check`` reads it). Code without a seal that fits, or that somebody
else could have written, is not loaded: half a library ends the process with SIGBUS, and one with a
flipped bit computes anything. This knows nothing of who compiled what, so that other compilers'
caches can be looked at in the same way.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from dataloader import durable
from model_utils.runtime import log

_MAX_SEAL = 2**20  # bytes
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Unfit(Exception):
    """Code that must not be loaded; says why, in words that follow a file's name."""


def private_folder(folder: Path) -> Path:
    """Make a folder that is this user's alone, or make it so; what others could have put
    there loses its seals.

    Raises:
        OSError: it cannot be made or written, is a link, or belongs to another user.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(about.st_mode):
        raise PermissionError(f"{folder} is not a folder of its own")
    if about.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if stat.S_IMODE(about.st_mode) != 0o700:
        folder.chmod(0o700)
    if about.st_mode & _OTHERS_WRITE:
        for seal_file in folder.glob("*.sha256"):
            with contextlib.suppress(IsADirectoryError):  # which is no seal
                seal_file.unlink()
        log.warning(
            "%s could be written by other users and is closed to them; code in "
            "it is compiled again",
            folder,
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder


def check(seal_file: Path) -> list[str]:
    """Refuse files that are not those that were sealed, or not this user's; the
    names of those that are.

    Raises:
        Unfit: they must not be loaded.
    """
    try:
        sealed = _sealed(seal_file)
        for digest, name in sealed:
            with _own(seal_file.parent / name) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise Unfit("is not what was compiled: its digest is another")
        return [name for _, name in sealed]
    except OSError as error:
        raise Unfit(f"cannot be read ({error.strerror})") from None


def seal(seal_file: Path, names: Sequence[str]) -> None:
    """Seal files of this process, which reach the disk before the seal does, and which
    nobody else can write then.

    Args:
        seal_file: what ``check`` is asked for; ends in .sha256.
        names: paths of the files from the folder of the seal.

    Raises:
        OSError: it cannot be written.
        Unfit: a file is another user's, or none.
    """
    lines = []
    for name in names:
        path = seal_file.parent / name
        _close(path)
        with _own(path) as file:
            os.fsync(file.fileno())
            lines.append(_line(hashlib.file_digest(file, "sha256").hexdigest(), name))
    durable.write_text(seal_file, "".join(lines))
    _close(seal_file)


def keep(built: Path, place: Path) -> None:
    """Give a file of code its name once it is on the disk, and then its seal,
    ``<stem>.sha256`` beside it.

    Raises:
        OSError: it cannot be written.
        Unfit: the file is another user's.
    """
    _close(built)
    with _own(built) as file:
        os.fsync(file.fileno())
    os.replace(built, place)
    seal(place.with_suffix(".sha256"), [place.name])


def _sealed(seal_file: Path) -> list[tuple[str, str]]:
    """Digests and names of the files of a seal."""
    try:
        with _own(seal_file) as file:
            text = file.read(_MAX_SEAL).decode()
    except FileNotFoundError:
        raise Unfit("has no digest") from None
    except UnicodeDecodeError:
        text = ""
    entries = [(line[:64], line[66:]) for line in text.split("\n")[:-1]]
    if not entries or "\0" in text or not all(_is_inside(name) for _, name in entries):
        raise Unfit("has a damaged digest")
    if text != "".join(_line(digest, name) for digest, name in entries):
        raise Unfit("has a damaged digest")
    return entries


def _is_inside(name: str) -> bool:
    """Whether a path in a seal stays in the seal's folder."""
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _line(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"


@contextlib.contextmanager
def _own(path: Path) -> Iterator[BufferedReader]:
    """Open a file of this user that nobody else can write; never a link, a pipe or a device.

    Raises:
        Unfit: it is another one.
        OSError: it cannot be opened.
    """
    with open(
        os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb"
    ) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise Unfit("is no file")
        if about.st_uid != os.getuid():
            raise Unfit("belongs to another user")
        if about.st_mode & _OTHERS_WRITE:
            raise Unfit("can be written by other users")
        yield file


def _close(path: Path) -> None:
    """Take away others' right to write a file, whatever the umask was."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS_WRITE)
