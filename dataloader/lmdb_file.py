"""One LMDB opened for reading, safe to fork and to pickle, refused in one sentence where it
is none or is cut off.
"""

import errno
import glob
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import lmdb

from dataloader import input_files, parallel
from dataloader.errors import AwayError, InputError, is_away
from dataloader.limits import LMDB_ENTRY_BYTES

# Environments open now, by (process, device, inode): py-lmdb refuses to open a file twice in one
# process, and the same file may well be asked for twice, as training and as test set.
_OPEN: WeakValueDictionary[tuple[int, int, int], lmdb.Environment] = WeakValueDictionary()

_MAGIC = struct.pack("=I", 0xBEEFC0DE)
# page header, magic, version, …, page size, …, entries of the main database, its root,
# last page, transaction
_META = struct.Struct("=16x4sI16xI76xQ8xQQ")
_MIN_PAGE = 256
_MAX_PAGE = 65536

_OTHER_FILES = {
    b"version https://git-lfs": "a git-lfs pointer; fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"PK\x03\x04": "a zip file; unpack it first",
    b"SQLite format 3": "an SQLite (ASE) database, not an LMDB",
    _MAGIC: "the lock file of an LMDB; name the data file beside it",
}


class LmdbFile:
    """The records of one LMDB, a file or a directory that holds ``data.mdb``.

    The environment is opened at first use and once per process: a memory map and its file
    descriptor must not be used across a fork, and cannot be pickled.
    """

    def __init__(self, path: Path | str, *, in_order: bool = False) -> None:
        """``in_order``: records are read one after another, so that pages are fetched
        ahead; else at random.
        """
        self.path = Path(path)
        self.in_order = in_order
        self._environment: lmdb.Environment | None = None
        self._pid = 0
        self._n_samples: int | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_environment": None}

    def __len__(self) -> int:
        if self._n_samples is None:
            self._n_samples = sum(map(_is_sample, self._keys()))
        return self._n_samples

    def sample_keys(self) -> list[bytes]:
        """The decimal keys in numerical order (LMDB's own is 0, 1, 10, 11, …, 2);
        other keys hold no samples.

        The keys are listed rather than counted up to the ``length`` record: that one is missing in
        IS2RE files, and the number of entries counts it too where it is there.
        """
        return self.sample_and_other_keys()[0]

    def metadata_keys(self) -> list[bytes]:
        """The keys that are not decimal: ``length``, ``nextid``,
        ``deleted_ids``, ``metadata``, ….
        """
        return self.sample_and_other_keys()[1]

    def sample_and_other_keys(self) -> tuple[list[bytes], list[bytes]]:
        """The decimal keys in numerical order, and all others; the file is gone through once."""
        keys: tuple[list[bytes], list[bytes]] = ([], [])
        for key in self._keys():
            keys[0 if _is_sample(key) else 1].append(key)
        keys[0].sort(key=lambda key: (int(key), key))
        return keys

    def get(self, key: bytes) -> bytes:
        """The value of one record.

        Raises:
            InputError: there is no such key, or the file is no intact LMDB.
        """
        parallel.note(str(self.path))
        with self._explained(f" at key {_shown(key)}"), self._open().begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise InputError(
                f"{self.path} has no key {_shown(key)}; was the file replaced since it was indexed?"
            )
        return value

    def get_all(self, keys: Iterable[bytes]) -> Iterator[bytes]:
        """The values of several records in one transaction.

        Raises:
            InputError: a key is not there, or the file is no intact LMDB.
        """
        parallel.note(str(self.path))
        with self._explained(), self._open().begin() as transaction:
            for key in keys:
                value = transaction.get(key)
                if value is None:
                    raise InputError(
                        f"{self.path} has no key {_shown(key)}; was the file replaced "
                        "while it was read?"
                    )
                yield value

    def find(self, key: bytes) -> bytes | None:
        """The value of a record that need not be there, such as ``deleted_ids``."""
        parallel.note(str(self.path))
        with self._explained(f" at key {_shown(key)}"), self._open().begin() as transaction:
            value: bytes | None = transaction.get(key)
        return value

    def close(self) -> None:
        """Let the file go; the next use opens it again.

        It is closed once no other `LmdbFile` of it is in use.
        """
        self._environment = None

    def _keys(self) -> Iterator[bytes]:
        parallel.note(str(self.path))
        with self._explained(), self._open().begin() as transaction:
            stated = transaction.stat()["entries"]
            if stated > data_file_of(self.path).stat().st_size // LMDB_ENTRY_BYTES:
                raise InputError(
                    f"{self.path} is damaged: it counts {stated} records, more than it can hold"
                )
            for count, key in enumerate(transaction.cursor().iternext(keys=True, values=False)):
                if count == stated:  # a damaged tree can lead to the same page again and again
                    raise InputError(
                        f"{self.path} is damaged: it has more records than the "
                        f"{stated} that it counts"
                    )
                yield key

    def _open(self) -> lmdb.Environment:
        """The environment of this process."""
        if self._environment is None or self._pid != os.getpid():
            self._environment = _environment(self.path, self.in_order)
            self._pid = os.getpid()
        return self._environment

    @contextmanager
    def _explained(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            self.close()  # the next read opens it anew
            if is_away(error):
                raise AwayError(
                    f"{self.path} cannot be read{where} ({error}); is its file system there?"
                ) from error
            raise InputError(
                f"{self.path} cannot be read as an LMDB{where} ({error}); check its "
                "permissions, or copy it again"
            ) from error


class FileState(NamedTuple):
    """What tells one version of an LMDB from another without reading it."""

    size: int  # bytes
    transaction: int  # number of the last one


def state_of(path: Path) -> FileState:
    """Size and last transaction; the file is not mapped.

    Raises:
        InputError: it is no LMDB, or cut off.
    """
    data_file = data_file_of(path)
    meta, size = _whole_lmdb(data_file)
    return FileState(size, meta.transaction)


def n_entries_of(path: Path) -> int:
    """Records of all kinds, as the file itself counts them; it is not mapped.

    Raises:
        InputError: it is no LMDB, or cut off.
    """
    return _whole_lmdb(data_file_of(path))[0].n_entries


SHARD_ENDINGS = (".lmdb", ".aselmdb", ".mdb")


def _has_shards(folder: Path) -> bool:
    """Whether a folder has files with the ending of a shard."""
    return folder.is_dir() and any(entry.suffix in SHARD_ENDINGS for entry in folder.iterdir())


def shards_of(path: Path) -> list[Path]:
    """The LMDBs that a name stands for: one, those of a directory, or those that a
    pattern with * ? [ ] matches.

    Raises:
        InputError: there are none.
    """
    if not path.exists() and any(character in str(path) for character in "*?["):
        named = sorted(Path(name) for name in glob.glob(str(path)) if not name.endswith("-lock"))
        if not named:
            raise InputError(
                f"{path} matches no file; look at the folder and the name (one without a / in "
                f"front begins at {Path.cwd()})"
            )
        folders = [name for name in named if _has_shards(name)]
        if folders:  # a pattern may match folders of shards, with other things beside them
            beside = [name for name in named if name.suffix in SHARD_ENDINGS]
            within = [shard for folder in folders for shard in shards_of(folder)]
            return [name for name in beside if name not in folders] + within
        return named
    if path.is_dir() and not (path / "data.mdb").is_file():
        named = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix in SHARD_ENDINGS and not entry.name.startswith(".")
        )
        for entry in named:
            if not entry.is_file() and not entry.is_dir():
                raise InputError(
                    f"{entry} is a broken link or no regular file; restore it, or remove it if its "
                    "data are not wanted"
                )
        if found := [entry for entry in named if _may_be_lmdb(entry)]:
            return found
        if below := [entry for entry in sorted(path.iterdir()) if _has_shards(entry)]:
            raise InputError(
                f"{path} has no shards of its own; {len(below)} folders in it have (the first: "
                f"{below[0].name}): name them, as {path}/*"
            )
    data_file_of(path)
    return [path]


def _may_be_lmdb(entry: Path) -> bool:
    return entry.is_file() or (entry / "data.mdb").is_file()


def write_lmdb(path: Path, rows: Iterable[tuple[bytes, bytes]]) -> int:
    """Write a new LMDB file in one transaction; the same rows give the same bytes.

    Args:
        path: must not be there.
        rows: keys in ascending order, and values.

    Returns:
        The number of rows.

    Raises:
        OSError: it cannot be written.
    """
    count = 0
    try:
        with (
            lmdb.open(
                str(path), subdir=False, map_size=2**40, lock=False, max_dbs=0
            ) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in rows:
                if not transaction.put(key, value, append=True):
                    raise ValueError(f"key {key!r} stands twice")
                count += 1
    except lmdb.Error as error:
        code = getattr(error, "code", 0)
        raise OSError(
            code if code > 0 else errno.EIO, os.strerror(code) if code > 0 else str(error), path
        ) from None
    return count


def _is_sample(key: bytes) -> bool:
    return key.isdigit()


def _shown(key: bytes) -> str:
    """A key for a message: as text where it is plain, else with escapes."""
    text = ascii(key)[2:-1]
    return text if len(text) <= 40 else text[:40] + "…"


def _environment(path: Path, in_order: bool) -> lmdb.Environment:
    """Open a file for reading, or take the environment that this process has already opened."""
    pid = os.getpid()
    _close_inherited(pid)
    data_file = data_file_of(path)
    stat = data_file.stat()
    key = (pid, stat.st_dev, stat.st_ino)
    environment = _OPEN.get(key)
    if environment is None:
        _whole_lmdb(data_file)
        # by its real name, which no link and no folder of the process changes later
        name = os.path.realpath(path)
        if name in [opened.path() for opened in _OPEN.values()]:
            raise InputError(  # py-lmdb opens a name once
                f"{path} was replaced, and this process still reads the file that was there "
                "before; begin anew in a new process, or let go first of what was opened with it"
            )
        environment = lmdb.open(
            name,
            subdir=data_file != path,
            readonly=True,
            # nobody writes: works on read-only directories, and a reader table
            # does not survive forks
            lock=False,
            # at random it would fetch pages nobody asked for; a page at a time costs 10 µs each
            readahead=in_order,
            meminit=False,  # clears pages before writing only
            max_readers=1,
        )
        _OPEN[key] = environment
    return environment


def _close_inherited(pid: int) -> None:
    """What was opened before a fork: py-lmdb takes it for open here until it is closed here."""
    for key, environment in list(_OPEN.items()):
        if key[0] != pid:
            del _OPEN[key]
            environment.close()


def data_file_of(path: Path) -> Path:
    """The file with the data: the path itself, or its data.mdb.

    Raises:
        InputError: there is none.
    """
    if path.is_dir():
        if not (path / "data.mdb").is_file():
            raise InputError(
                f"{path} is a directory without a data.mdb and without shards "
                f"(*{', *'.join(SHARD_ENDINGS)}), so it is no LMDB; name an LMDB file, or "
                "a directory of them"
            )
        return path / "data.mdb"
    if not path.is_file():
        raise InputError(
            f"{path} {'is not a file' if path.exists() else 'does not exist'}; expected an LMDB"
        )
    return path


class _Meta(NamedTuple):
    """What one of the two meta pages says; the one of the later transaction holds."""

    transaction: int
    page_size: int
    n_pages: int
    n_entries: int


def _whole_lmdb(path: Path) -> tuple[_Meta, int]:
    """The meta page that holds, and the size; an LMDB shorter than that page says is
    refused, as is what is none.

    A read beyond the end of a mapped file is no error but SIGBUS, and the process
    is gone without a word.
    """
    try:
        file = input_files.opened(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected an LMDB") from None
    with file:
        head = file.read(_META.size)
        first = _meta(head)
        if first is None:
            raise InputError(f"{path} is {_what_it_is(head)}")
        file.seek(first.page_size)
        second = _meta(file.read(_META.size))
        size = os.fstat(file.fileno()).st_size
    meta = first if second is None else max(first, second)
    expected = meta.n_pages * meta.page_size
    if size < expected:
        raise InputError(
            f"{path} is cut off: it has {size} bytes where its header counts {expected}; copy it "
            "again (if it is complete and its last pages were only freed, `mdb_copy -c` makes a "
            "copy that can be read)"
        )
    return meta, size


def _meta(page: bytes) -> _Meta | None:
    """Decode the beginning of a meta page of LMDB 0.9; None where it is none."""
    if len(page) < _META.size:
        return None
    magic, _version, page_size, n_entries, last_page, transaction = _META.unpack(page)
    if magic != _MAGIC or not _MIN_PAGE <= page_size <= _MAX_PAGE:
        return None
    return _Meta(transaction, page_size, last_page + 1, n_entries)


def _what_it_is(head: bytes) -> str:
    if not head:
        return "empty; expected an LMDB, was the download or copy broken off?"
    if not head.strip(b"\0"):
        return "filled with zeros; expected an LMDB, was the download or copy broken off?"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, not an LMDB; the download link gave a web page instead of the data"
    for beginning, what in _OTHER_FILES.items():
        if head.startswith(beginning):
            return what
    return (
        f"not an LMDB (it begins with {ascii(head[:12])[1:]}); name an LMDB file, or the "
        "directory of its data.mdb"
    )
