"""Named arrays behind a JSON header in one file: written whole or not at all,
opened without being read.

The header and every array have a CRC-32: disks, copies and memory damage by accident, and of
accidents it lets one in 4·10⁹ pass, and none that changes one bit or up to 32 in a row. zlib's does
4 GB/s on one core, where SHA-256 does 1.8 with the CPU's own instructions and 0.5 without: an index
of 10⁶ records is checked in 7 ms. Whoever means to change a file could change its digest as well.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import durable, input_files, plain_json
from dataloader.limits import ARRAY_AXES

_MAGIC = b"mace-pretrain arrays 2\n"
_MAGIC_1 = b"mace-pretrain arrays 1\n"  # had no digests
_HEAD = len(_MAGIC) + 8 + 4  # bytes before the header's text: its length and CRC-32 stand there
_HEAD_1 = len(_MAGIC_1) + 8
_ALIGNMENT = 64
_MAX_HEADER = 64 * 2**20
_KINDS = "biufS"
MAX_KIND = 16  # letters of a dtype


class Contents(NamedTuple):
    """An opened file of arrays: its header, and its arrays mapped into memory."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]  # read-only, mapped
    # CRC-32 of every array; None in a file of the first form, which had none
    digests: dict[str, int | None]
    name: str


class Damaged(Exception):
    """The file is not one of these, or not whole; whoever made it makes it again."""


def write(
    path: Path,
    header: Mapping[str, Any],
    columns: Mapping[str, Sequence[NDArray[Any]]],
    *,
    made_in: Path | None = None,
) -> None:
    """Write a file, which gets its name when all of it is on the disk.

    Args:
        path: where.
        header: plain JSON.
        columns: pieces of each array, which are laid end to end; all of one dtype.
        made_in: folder where the file lies until it is whole; that of ``path`` where none is given.

    Raises:
        NotWritten: an OSError: it cannot be written; what stood there before is untouched.
    """
    with durable.byte_stream(path, made_in=made_in) as file:
        for piece in _pieces(header, columns):
            file.write(piece)


def encoded(header: Mapping[str, Any], columns: Mapping[str, Sequence[NDArray[Any]]]) -> bytes:
    """A whole file of arrays as bytes, for what is sent to another process and not kept."""
    return b"".join(_pieces(header, columns))


def _pieces(
    header: Mapping[str, Any], columns: Mapping[str, Sequence[NDArray[Any]]]
) -> Iterable[bytes]:
    layout = []
    position = 0
    for name, pieces in columns.items():
        count = sum(map(len, pieces))
        first = pieces[0]
        digest = 0
        for piece in pieces:
            digest = zlib.crc32(_stored(piece).data, digest)
        layout.append(
            [name, first.dtype.newbyteorder("<").str, [count, *first.shape[1:]], position, digest]
        )
        position += -(-sum(piece.nbytes for piece in pieces) // _ALIGNMENT) * _ALIGNMENT
    text = json.dumps({"header": header, "arrays": layout}).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little") + text
    yield head + bytes(-len(head) % _ALIGNMENT)
    for pieces in columns.values():
        for piece in pieces:
            yield _stored(piece).tobytes()
        yield bytes(-sum(piece.nbytes for piece in pieces) % _ALIGNMENT)


def _stored(piece: NDArray[Any]) -> NDArray[Any]:
    """An array with its bytes as they lie in the file: contiguous and little-endian."""
    return np.ascontiguousarray(piece, dtype=piece.dtype.newbyteorder("<"))


def read(path: Path) -> Contents:
    """Open a file and compare all of it with its digests, at some GB a second.

    Raises:
        Damaged: it is no such file, not whole, or has no digests.
        OSError: it cannot be read.
    """
    contents = look(path)
    check(contents)
    return contents


def look(path: Path) -> Contents:
    """Open a file, of which only the header is compared with its digest.

    The arrays are mapped: they cost memory and time where they are looked at; ``check`` says
    whether they are whole.

    Raises:
        Damaged: it is no such file, or cut off, or its header is damaged.
        OSError: it cannot be read.
    """
    with input_files.opened(path) as file:
        if os.fstat(file.fileno()).st_size < _HEAD:
            raise Damaged(f"{path} is too short")
        return decoded(_mapped(file), str(path))


def check(contents: Contents) -> None:
    """Compare the arrays of an opened file with their digests.

    Raises:
        Damaged: one is another than was written, or the file is of the form that had no digests.
    """
    for name, array in contents.arrays.items():
        digest = contents.digests[name]
        if digest is None:
            raise Damaged(f"{contents.name} has no digests")
        if zlib.crc32(array.data) != digest:
            raise Damaged(
                f"{contents.name} does not have the digest of {name} that was written with it"
            )


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def decoded(data: bytes | mmap.mmap, name: str) -> Contents:
    """A file of arrays from its bytes; the arrays are views of them, and only
    the header is checked.

    Raises:
        Damaged: they are not what ``encoded`` gives.
    """
    text, begin = _header_text(data, name)
    arrays: dict[str, NDArray[Any]] = {}
    digests: dict[str, int | None] = {}
    try:
        content = plain_json.loads(text)
        for array_name, kind, shape, position, *digest in content["arrays"]:
            if len(shape) > ARRAY_AXES or not isinstance(kind, str) or len(kind) > MAX_KIND:
                raise Damaged(f"{name} holds an array of an unknown form")
            dtype = np.dtype(kind)
            count = int(np.prod(shape, dtype=object))
            if dtype.kind not in _KINDS or min([position, *shape]) < 0:
                raise Damaged(f"{name} holds an array of {kind}")
            if begin + position + count * dtype.itemsize > len(data):
                raise Damaged(f"{name} is cut off")
            arrays[array_name] = np.frombuffer(data, dtype, count, begin + position).reshape(shape)
            digests[array_name] = int(digest[0]) if digest else None
        header = content["header"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise Damaged(f"{name} has a damaged header ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise Damaged(f"{name} has a damaged header")
    return Contents(header, arrays, digests, name)


def _header_text(data: bytes | mmap.mmap, name: str) -> tuple[bytes, int]:
    """The JSON, whole as it was written, and where the arrays begin."""
    beginning = data[: len(_MAGIC)]
    if beginning not in (_MAGIC, _MAGIC_1):
        raise Damaged(f"{name} is no file of arrays")
    head = _HEAD if beginning == _MAGIC else _HEAD_1
    n_header = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if n_header > min(_MAX_HEADER, len(data) - head):
        raise Damaged(f"{name} is cut off")
    text = data[head : head + n_header]
    if beginning == _MAGIC and zlib.crc32(text) != int.from_bytes(
        data[_HEAD - 4 : _HEAD], "little"
    ):
        raise Damaged(f"{name} has a damaged header")
    return text, -(-(head + n_header) // _ALIGNMENT) * _ALIGNMENT
