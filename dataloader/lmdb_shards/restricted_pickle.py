"""Read the pickled row of an LMDB (torch_geometric rows of OC20/OC22, plain dicts) without
running anything in it.

Three files share the work: ``pickle_scanner`` looks through the opcodes, ``pickle_stand_ins`` has
what takes the place of classes, ``plain_values`` makes values of what the unpickler leaves.
"""

import pickle
from collections.abc import Collection
from typing import NoReturn

from dataloader.errors import RowError
from dataloader.lmdb_shards.pickle_scanner import printable, scan
from dataloader.lmdb_shards.pickle_stand_ins import GLOBALS
from dataloader.lmdb_shards.plain_values import PlainValues, TorchGeometricData

# a stride-0 tensor repeats its storage: arrays may take twice the row's size and this much more
_SPARE_BYTES = 2**20


def loads(
    data: bytes, *, max_bytes: int = 64 * 2**20, only: Collection[str] | None = None
) -> object:
    """Return the row as plain Python values and numpy arrays; nothing the row names
    is imported or called.

    torch tensors become arrays that own their memory, numpy scalars become Python numbers, a
    torch_geometric ``Data`` becomes a `TorchGeometricData` of its attributes that are not
    None. Memory stays in proportion to the row: a few times its size, and some 100 bytes for
    each of at most 2¹⁸ opcodes.

    Args:
        data: the value as it lies in the LMDB, pickle protocol 2 to 5.
        max_bytes: longer rows are refused unread.
        only: names of a Data or dict at the top of the row; the others, half of an OC20 row,
            are left out unconverted.

    Raises:
        RowError: whatever is wrong; no other exception leaves this function.
    """
    if not isinstance(data, bytes):
        raise RowError(f"row is a {type(data).__name__}, expected bytes")
    if len(data) > max_bytes:
        raise RowError(f"row is too large ({len(data)} bytes, at most {max_bytes} are read)")
    if not data.startswith(pickle.PROTO):
        raise RowError(
            f"row is no pickle of protocol 2 to 5 (it begins with {ascii(data[:4])[1:]})"
        )
    try:
        scan(data)
        return PlainValues(2 * len(data) + _SPARE_BYTES, only).value(_unpickle(data))
    except RowError:
        raise
    except MemoryError:
        raise RowError(f"row needs more memory than there is ({len(data)} bytes long)") from None
    except Exception as error:
        # what the C reader and wrong arguments of stand-ins raise has no common class
        raise RowError(
            f"damaged pickle ({type(error).__name__}: {printable(str(error))})"
        ) from error


class _Unpickler(pickle.Unpickler):
    """The standard library's unpickler, which gets a stand-in for every allowed global and
    none of the real ones.
    """

    def find_class(self, module: str, name: str, /) -> type:
        stand_in = GLOBALS.get((module, name))
        if stand_in is None:
            raise RowError(f"global {printable(module + '.' + name)} is not allowed")
        return stand_in

    def persistent_load(self, pid: object, /) -> NoReturn:
        raise RowError("persistent id outside a torch storage")


def _unpickle(data: bytes) -> object:
    """Run the C unpickler over a row that `scan` has passed.

    Reading a file, it drops what is left of a frame when an opcode crosses the frame's end, and
    goes on elsewhere than a straight pass over the bytes does. One frame around everything leaves
    it nothing to drop, and is faster too.
    """
    return _Unpickler(_Framed(data)).load()


class _Framed:
    """A file of one frame, in the three pieces that the C unpickler asks for: the
    row itself is not copied.
    """

    def __init__(self, data: bytes) -> None:
        self._pieces = [data, len(data).to_bytes(8, "little"), pickle.FRAME]

    def read(self, n: int, /) -> bytes:
        """The next piece, as long as was asked for; nothing where there is none."""
        piece = self._pieces.pop() if self._pieces else b""
        # an unpickler that gets too little refuses the row
        return piece if len(piece) == n else b""

    def readline(self) -> bytes:
        """Nothing lies outside of the frame."""
        return b""


__all__ = ["RowError", "TorchGeometricData", "loads"]
