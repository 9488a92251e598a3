"""Which samples a shard has, and what they are, byte for byte: by it an index knows a shard
that was written anew with other numbers.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import RowError
from dataloader.lmdb_file import LmdbFile, data_file_of
from dataloader.lmdb_shards import ase_rows
from dataloader.lmdb_shards.shard_index import key_bytes

# entries about all samples, of OC20's files and of ASE's
NO_SAMPLES = (b"length", b"nextid", b"deleted_ids", b"metadata")
SHOWN = 40  # bytes of a key


class Checksum:
    """Of records that pass by, at some GB a second: the sum of a CRC-32 of each, key and value, so
    that the sum over the parts of a shard is that of the shard, however it was cut.
    """

    def __init__(self) -> None:
        self.value = 0
        self.n = 0

    def of(self, keys: NDArray[Any], values: Iterable[bytes]) -> Iterator[bytes]:
        """The values, each counted as it is taken."""
        for key, value in zip(keys, values, strict=True):
            self.value += zlib.crc32(value, zlib.crc32(key_bytes(key)))
            self.n += 1
            yield value


def is_unchanged(path: Path, content: Sequence[int]) -> bool:
    """Whether the samples of a shard are those that were indexed; all of them are read.

    Args:
        path: of the shard.
        content: how many samples were indexed, and their checksum.
    """
    keys, _ = sample_keys(LmdbFile(path))
    n, expected = content
    if n != len(keys):
        return False
    checksum = Checksum()
    for _ in checksum.of(keys, LmdbFile(path, in_order=True).get_all(map(key_bytes, keys))):
        pass
    return checksum.value == expected


def written_at(path: Path) -> int:
    """When a shard's file was written, in whole seconds since 1970: what copies that keep the time
    have too.
    """
    return int(data_file_of(path).stat().st_mtime)


def sample_keys(file: LmdbFile) -> tuple[NDArray[Any], list[str]]:
    """Keys of the samples in numerical order, less those that ASE has deleted; and warnings of
    counts that disagree and of entries that are neither samples nor about them.
    """
    keys, others = file.sample_and_other_keys()
    others = [key for key in others if key not in NO_SAMPLES]
    deleted = _plain_metadata(file, b"deleted_ids")
    if isinstance(deleted, list) and deleted:
        gone = {str(i).encode() for i in deleted if type(i) is int}
        keys = [key for key in keys if key not in gone]
    stated = _plain_metadata(file, b"nextid")
    warnings = []
    if others:
        warnings.append(
            f"{len(others)} entries have keys that are no numbers (the first: "
            f"{others[0][:SHOWN].decode(errors='replace')}) and are passed over; those of samples "
            "are 0, 1, …"
        )
    if (
        type(stated) is int
        and isinstance(deleted, list | None)
        and stated - 1 - len(set(map(str, deleted or ()))) != len(keys)
    ):
        warnings.append(
            f"nextid {stated} less deleted_ids does not give the {len(keys)} records that are there"
        )
    if any(
        key != str(int(key)).encode() or len(key) > 18
        for key in keys
        if key[:1] == b"0" or len(key) > 18
    ):
        return np.array(keys), warnings
    return np.array([int(key) for key in keys], dtype=np.uint64), warnings


def _plain_metadata(file: LmdbFile, name: bytes) -> object:
    value = file.find(name)
    if value is None or not value.startswith(ase_rows.ZLIB_BEGINS):
        return None
    try:
        return ase_rows.plain(value)
    except RowError:
        return None
