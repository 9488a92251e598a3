"""Named arrays behind a JSON header in one file: written whole or not at all, opened without being read."""

import json
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files, plain_json
from dataloader.limits import ARRAY_AXES

_MAGIC = b"mace-pretrain arrays 1\n"
_ALIGNMENT = 64
_MAX_HEADER = 64 * 2**20
_KINDS = "biufS"
MAX_KIND = 16  # letters of a dtype

Arrays = Mapping[str, NDArray[Any]]


class Contents(NamedTuple):
    """An opened file."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]  # read-only, mapped


class Damaged(Exception):
    """The file is not one of these, or not whole; whoever made it makes it again."""


def write(path: Path, header: Mapping[str, Any], columns: Mapping[str, Sequence[NDArray[Any]]]) -> None:
    """Write a file under a temporary name, bring it to disk, and give it its name.

    Args:
        path: where.
        header: plain JSON.
        columns: pieces of each array, which are laid end to end; all of one dtype.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in _pieces(header, columns):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encoded(header: Mapping[str, Any], columns: Mapping[str, Sequence[NDArray[Any]]]) -> bytes:
    """The same as bytes."""
    return b"".join(_pieces(header, columns))


def _pieces(header: Mapping[str, Any], columns: Mapping[str, Sequence[NDArray[Any]]]) -> Iterable[bytes]:
    layout, position = [], 0
    for name, pieces in columns.items():
        count, first = sum(map(len, pieces)), pieces[0]
        layout.append([name, first.dtype.newbyteorder("<").str, [count, *first.shape[1:]], position])
        position += -(-sum(piece.nbytes for piece in pieces) // _ALIGNMENT) * _ALIGNMENT
    text = json.dumps({"header": header, "arrays": layout}).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + text
    yield head + bytes(-len(head) % _ALIGNMENT)
    for pieces in columns.values():
        for piece in pieces:
            yield np.ascontiguousarray(piece, dtype=piece.dtype.newbyteorder("<")).tobytes()
        yield bytes(-sum(piece.nbytes for piece in pieces) % _ALIGNMENT)


def read(path: Path) -> Contents:
    """Open a file; arrays are mapped and cost memory only where they are looked at.

    Raises:
        Damaged: it is no such file or not whole.
        OSError: it cannot be read.
    """
    with input_files.opened(path) as file:
        if os.fstat(file.fileno()).st_size < len(_MAGIC) + 8:
            raise Damaged(f"{path} is too short")
        return decoded(_mapped(file), str(path))


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def decoded(data: bytes | mmap.mmap, name: str) -> Contents:
    """The same from bytes.

    Raises:
        Damaged: they are not what ``encoded`` gives.
    """
    start = len(_MAGIC) + 8
    if data[: len(_MAGIC)] != _MAGIC:
        raise Damaged(f"{name} is no file of arrays")
    n_header = int.from_bytes(data[len(_MAGIC) : start], "little")
    if n_header > min(_MAX_HEADER, len(data) - start):
        raise Damaged(f"{name} is cut off")
    begin = -(-(start + n_header) // _ALIGNMENT) * _ALIGNMENT
    arrays: dict[str, NDArray[Any]] = {}
    try:
        content = plain_json.loads(data[start : start + n_header])
        for array_name, kind, shape, position in content["arrays"]:
            if len(shape) > ARRAY_AXES or not isinstance(kind, str) or len(kind) > MAX_KIND:
                raise Damaged(f"{name} holds an array of an unknown form")
            dtype, count = np.dtype(kind), int(np.prod(shape, dtype=object))
            if dtype.kind not in _KINDS or min([position, *shape]) < 0:
                raise Damaged(f"{name} holds an array of {kind}")
            if begin + position + count * dtype.itemsize > len(data):
                raise Damaged(f"{name} is cut off")
            arrays[array_name] = np.frombuffer(data, dtype, count, begin + position).reshape(shape)
        header = content["header"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise Damaged(f"{name} has a damaged header ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise Damaged(f"{name} has a damaged header")
    return Contents(header, arrays)
