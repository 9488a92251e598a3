"""One LMDB: keys in order, refusals in a sentence, no SIGBUS, one environment per process."""

import faulthandler
import gzip
import os
import pickle
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from dataloader.errors import InputError
from dataloader.lmdb_file import LmdbFile, shards_of

N_SAMPLES = 12


def write_lmdb(
    path: Path, *, subdir: bool = False, n_samples: int = N_SAMPLES, size: int = 9000
) -> Path:
    """An LMDB like OC20's, with every kind of key that is no sample."""
    keys = (
        b"length",
        b"metadata",
        b"nextid",
        b"deleted_ids",
        b"-1",
        b"1.5",
        b"\xff\x00",
        "²".encode(),
    )
    samples = {str(i).encode(): bytes([i % 256]) * size for i in range(n_samples)}
    put(path, samples | dict.fromkeys(keys, b"no sample"), subdir=subdir)
    return path


def put(path: Path, values: dict[bytes, bytes], *, subdir: bool = False) -> None:
    with (
        lmdb.open(str(path), subdir=subdir, map_size=2**26, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_lmdb(tmp_path / "data.lmdb")


def in_fork(task: Callable[[], object]) -> int:
    """Exit code of the task in a child process: 0 where it returned something true,
    negative after a signal.
    """
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # a child that is expected to die need not print where
        code = 1
        try:
            code = 0 if task() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        LmdbFile(path).sample_keys()
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_sample_keys_are_the_decimal_ones_in_numerical_order(path: Path) -> None:
    file = LmdbFile(path)
    assert file.sample_keys() == [str(i).encode() for i in range(N_SAMPLES)]
    assert len(file) == N_SAMPLES
    assert set(file.metadata_keys()) == {
        b"length", b"metadata", b"nextid", b"deleted_ids", b"-1", b"1.5", b"\xff\x00", "²".encode(),
    }  # fmt: skip
    assert file.get(b"10") == b"\x0a" * 9000
    assert file.get(b"length") == b"no sample"


def test_a_missing_key_is_named(path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.lmdb has no key 99; was the file replaced"):
        LmdbFile(path).get(b"99")
    with pytest.raises(InputError, match=r"has no key \\x1b\[2J;"):
        LmdbFile(path).get(b"\x1b[2J")


def test_files_and_directories_are_both_opened(tmp_path: Path) -> None:
    directory = write_lmdb(tmp_path / "folder.lmdb", subdir=True)
    assert LmdbFile(directory).get(b"3") == b"\x03" * 9000
    assert LmdbFile(str(directory / "data.mdb")).get(b"3") == b"\x03" * 9000


def test_nothing_is_written_beside_the_file(path: Path) -> None:
    LmdbFile(path).get(b"0")
    assert [entry.name for entry in path.parent.iterdir()] == ["data.lmdb"]


def test_files_larger_than_the_default_map_are_read(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "large.lmdb", n_samples=300, size=60_000)
    assert path.stat().st_size > 15 * 2**20
    assert LmdbFile(path).get(b"299") == bytes([299 % 256]) * 60_000


def test_the_real_oc20_file(shared_data: Path) -> None:
    file = LmdbFile(shared_data / "oc20/s2ef_val_20_data.lmdb")
    assert file.sample_keys() == [str(i).encode() for i in range(20)]
    assert file.metadata_keys() == [b"length"]
    assert len(file.get(b"0")) == 32433


# ---- what is no LMDB

OTHERS = {
    "empty": (b"", "is empty; expected an LMDB"),
    "zeros": (bytes(8192), "is filled with zeros; expected an LMDB"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a git-lfs pointer; fetch the file itself with `git lfs pull`",
    ),
    "page": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "is an HTML page, not an LMDB"),
    "gzip": (gzip.compress(bytes(8192)), "is a gzip file; unpack it first"),
    "database": (b"SQLite format 3\0" + bytes(4096), "is an SQLite (ASE) database"),
    "lock": (struct.pack("=I", 0xBEEFC0DE) + bytes(8188), "is the lock file of an LMDB"),
    "text": (
        b"20\nProperties=species:S:1:pos:R:3\n" * 90,
        "is not an LMDB (it begins with '20\\nPropertie')",
    ),
    "short": (b"\x01", "is not an LMDB (it begins with '\\x01')"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_refused_by_what_they_are(name: str, tmp_path: Path) -> None:
    content, expected = OTHERS[name]
    (tmp_path / "data.lmdb").write_bytes(content)
    assert expected in message(tmp_path / "data.lmdb")


def test_paths_without_an_lmdb_are_refused(tmp_path: Path) -> None:
    assert "does not exist; expected an LMDB" in message(tmp_path / "none.lmdb")
    (tmp_path / "folder").mkdir()
    assert "is a directory without a data.mdb" in message(tmp_path / "folder")
    write_lmdb(tmp_path / "folder" / "data.0000.lmdb")
    assert shards_of(tmp_path / "folder") == [tmp_path / "folder" / "data.0000.lmdb"]


def test_a_damaged_page_is_an_input_error(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2 * 4096 :] = b"\xa5" * (len(content) - 2 * 4096)
    path.write_bytes(content)
    assert "cannot be read as an LMDB" in message(path)


# ---- truncation


def read_everything(path: Path) -> bool:
    file = LmdbFile(path)
    return all(file.get(key) for key in file.sample_keys())


def refused(path: Path) -> bool:
    try:
        read_everything(path)
    except InputError:
        return True
    return False


def test_a_truncated_file_is_refused_and_not_mapped(path: Path) -> None:
    whole = path.read_bytes()
    assert in_fork(lambda: read_everything(path)) == 0
    for size in [
        1,
        100,
        152,
        4095,
        4096,
        4248,
        8191,
        8192,
        *range(12288, len(whole), 12288),
        len(whole) - 1,
    ]:
        path.write_bytes(whole[:size])
        assert in_fork(lambda: refused(path)) == 0, size
    assert (
        f"is cut off: it has {len(whole) - 1} bytes where its header counts "
        f"{len(whole)}; copy it again"
    ) in message(path)


def test_lmdb_itself_dies_of_a_truncated_file(path: Path) -> None:
    """Why the size is checked first; if this fails, LMDB has learned to."""
    os.truncate(path, path.stat().st_size // 2)

    def trusting_read() -> bool:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False).begin() as transaction:
            return len([bytes(value) for _, value in transaction.cursor()]) > 0

    assert in_fork(trusting_read) in (-signal.SIGBUS, -signal.SIGSEGV)  # by kernel and file system


def test_the_later_of_the_two_meta_pages_counts(path: Path) -> None:
    """Two more transactions: the file grows, each meta page in turn is the later one."""
    for number in (100, 101):
        old = path.stat().st_size
        put(path, {str(number).encode(): bytes(40_000)})
        assert LmdbFile(path).get(str(number).encode()) == bytes(40_000)
        cut = path.with_suffix(".cut")
        shutil.copy(path, cut)
        os.truncate(cut, old)
        assert in_fork(lambda cut=cut: refused(cut)) == 0
        assert "is cut off" in message(cut)


def test_a_file_whose_last_pages_were_freed_is_told_how_to_become_readable(path: Path) -> None:
    """A large value put and deleted in one transaction, with free pages for all else: it is
    counted, never written.
    """
    for value in (bytes(50_000), bytes(60_000), bytes(70_000)):
        put(path, {b"50": value})
    with lmdb.open(str(path), subdir=False, map_size=2**26, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"50", bytes(900_000))
            transaction.delete(b"50")
        environment.copy(str(path.parent / "copy.lmdb"), compact=True)
    assert "`mdb_copy -c` makes a copy that can be read" in message(path)
    assert len(LmdbFile(path.parent / "copy.lmdb")) == N_SAMPLES


# ---- processes


def test_the_file_is_not_opened_before_it_is_used(tmp_path: Path) -> None:
    file = LmdbFile(tmp_path / "later.lmdb")
    write_lmdb(tmp_path / "later.lmdb")
    assert len(file) == N_SAMPLES


def test_a_fork_opens_the_file_anew(path: Path) -> None:
    file, untouched = LmdbFile(path), LmdbFile(path)
    assert file.get(b"1")
    inherited = file._environment

    def child() -> bool:
        same = file.get(b"2") == b"\x02" * 9000 and LmdbFile(path).get(b"3") == b"\x03" * 9000
        return same and untouched.get(b"4") == b"\x04" * 9000 and file._environment is not inherited

    for _ in range(3):
        assert in_fork(child) == 0
    assert file._environment is inherited
    assert file.get(b"5") == b"\x05" * 9000


def test_an_open_file_can_be_pickled(path: Path) -> None:
    file = LmdbFile(path)
    assert len(file) == N_SAMPLES
    copy = pickle.loads(pickle.dumps(file))
    assert copy.sample_keys() == file.sample_keys()
    assert copy.get(b"7") == file.get(b"7")


def test_one_file_may_be_opened_twice_and_closed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.lmdb").symlink_to(path)
    first, second = LmdbFile(path), LmdbFile(tmp_path / "link.lmdb")
    assert first.get(b"1") == second.get(b"1")
    first.close()
    assert second.get(b"2") == first.get(b"2")
    first.close()
    second.close()
    # refused while it is open in this process
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False):
        pass


def test_a_file_that_is_replaced_while_it_is_read_is_said(path: Path, tmp_path: Path) -> None:
    """py-lmdb would say that it is open already, by whatever name."""
    (tmp_path / "link.lmdb").symlink_to(path)
    reading = LmdbFile(tmp_path / "link.lmdb")
    before = reading.get(b"7")
    put(tmp_path / "new.lmdb", {b"7": b"another"})
    (tmp_path / "new.lmdb").rename(path)
    assert reading.get(b"7") == before
    assert f"{path} was replaced, and this process still reads the file" in message(path)
    # a link that leads elsewhere now says nothing of the file that was opened
    write_lmdb(tmp_path / "elsewhere.lmdb")
    (tmp_path / "link.lmdb").unlink()
    (tmp_path / "link.lmdb").symlink_to(tmp_path / "elsewhere.lmdb")
    assert LmdbFile(tmp_path / "elsewhere.lmdb").get(b"7") == before
    reading.close()
    assert LmdbFile(path).get(b"7") == b"another"
