"""What takes the place of every class and function that a pickled row may name:
inert, of bounded cost.

A stand-in keeps what the row hands it and checks it only when it is converted (``plain_values``).
"""

import math
import operator
import re
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import RowError
from dataloader.lmdb_shards.pickle_scanner import printable

_MAX_NDIM = 4


class Converter(Protocol):
    """What stand-ins are handed when they become values: it counts the memory that they take."""

    def take(self, n_bytes: int) -> None:
        """Count memory before it is taken; raises RowError where a row wants more than it may."""
        ...

    def buffer(self, value: object) -> bytes:
        """A byte string of the row in any of its spellings."""
        ...

    def array(
        self,
        buffer: bytes,
        start: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> NDArray[Any]:
        """A copy of a strided view (stride in elements, start in bytes) of a byte string."""
        ...


class Inert:
    """Base of the stand-ins: they keep what the row gave them, and BUILD
    cannot set anything on them.

    The C unpickler sets attributes on whatever lies on its stack, functions and classes too, unless
    that has a `__setstate__`; every stand-in has one, and a class answers BUILD with a TypeError
    because `self` is missing. Stand-ins are what REDUCE returns, never arrays: SETITEMS on an array
    would run numpy's fancy indexing.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise RowError(f"a state is set on {type(self).__name__}")


class Name(Inert):
    """A class that rows mention and never use: numpy.ndarray, torch_geometric's
    DataTensorAttr and DataEdgeAttr.
    """

    __slots__ = ()


class OrderedDict(dict[object, object]):
    """`collections.OrderedDict`: filled by SETITEMS only, since a copying constructor
    would multiply memory.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        raise RowError("a state is set on OrderedDict")


class Latin1(Inert):
    """`_codecs.encode(text, 'latin1')` and `bytes()`: how protocol 2 spells a byte string;
    encoded when asked for.
    """

    __slots__ = ("_bytes", "_text")

    def __init__(self, text: str = "", encoding: str = "latin1") -> None:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise RowError("_codecs.encode of something else than latin1 text")
        self._text = text
        self._bytes = b""

    def encoded(self, plain: Converter) -> bytes:
        """The byte string, made once however often the row uses it."""
        if not self._bytes:
            plain.take(len(self._text))
            self._bytes = self._text.encode("latin-1")
        return self._bytes


class GlobalStorage(Inert):
    """`torch_geometric.data.storage.GlobalStorage` (2.x): a state with the
    attributes under `_mapping`.
    """

    __slots__ = ("state",)
    state: dict[object, object]

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise RowError(f"state of {type(self).__name__} is a {type(state).__name__}")
        self.state = state


class Data(GlobalStorage):
    """`torch_geometric.data.data.Data`: attributes in the state (1.x), or in the
    GlobalStorage under `_store` (2.x).
    """

    __slots__ = ()

    def attributes(self) -> dict[str, object]:
        """The attributes that are not None; torch_geometric's own private names
        (`__num_nodes__`) are none.
        """
        mapping: object = self.state
        store = self.state.get("_store")
        if isinstance(store, GlobalStorage):
            mapping = store.state.get("_mapping")
        if not isinstance(mapping, dict):
            raise RowError("torch_geometric Data has no attributes")
        if not all(type(name) is str for name in mapping):
            raise RowError("torch_geometric Data has an attribute whose name is no str")
        return {k: v for k, v in mapping.items() if v is not None and not (k[:2] == "__" == k[-2:])}


# What torch.save writes for one storage in its legacy form, up to the elements: five pickles of
# protocol 2 (magic number, version 1001, system, persistent id of the storage, list of the one
# key) and the element count as int64. It is always these bytes, so it is matched as bytes: no
# unpickler runs inside a row.
_STORAGE_HEADER = re.compile(
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."
    rb"\x80\x02M\xe9\x03\."
    rb"\x80\x02}(?:q.)?\(X\x10\0\0\0protocol_version(?:q.)?M\xe9\x03X\r\0\0\0little_endian(?:q.)?\x88"
    rb"X\n\0\0\0type_sizes(?:q.)?}(?:q.)?\(X\x05\0\0\0short(?:q.)?K\x02X\x03\0\0\0int(?:q.)?K\x04"
    rb"X\x04\0\0\0long(?:q.)?K[\x04\x08]uu\."
    rb"\x80\x02\(X\x07\0\0\0storage(?:q.)?c([^\n]{1,256})\n([^\n]{1,256})\n(?:q.)?"
    rb"X.\0\0\0([0-9]{1,40})(?:q.)?X.\0\0\0[a-z]{1,40}(?::[0-9]{1,9})?(?:q.)?(?:K(.)|M(..)|J(....))Nt(?:q.)?Q\."
    rb"\x80\x02\](?:q.)?X.\0\0\0([0-9]{1,40})(?:q.)?a\."
    rb"(.{8})",
    re.DOTALL,
)
_STORAGE_DTYPES: dict[bytes, np.dtype[Any]] = {
    b"DoubleStorage": np.dtype("<f8"),
    b"FloatStorage": np.dtype("<f4"),
    b"HalfStorage": np.dtype("<f2"),
    b"LongStorage": np.dtype("<i8"),
    b"IntStorage": np.dtype("<i4"),
    b"ShortStorage": np.dtype("<i2"),
    b"CharStorage": np.dtype("i1"),
    b"ByteStorage": np.dtype("u1"),
    b"BoolStorage": np.dtype("?"),
}


class Storage(Inert):
    """`torch.storage._load_from_bytes(payload)`: the elements of a tensor, in the
    payload from `start` on.
    """

    __slots__ = ("payload",)

    def __init__(self, payload: object) -> None:
        self.payload = payload

    def elements(self, plain: Converter) -> tuple[bytes, int, np.dtype[Any], int]:
        """(buffer, first byte, dtype, number of elements)."""
        payload = plain.buffer(self.payload)
        header = _STORAGE_HEADER.match(payload)
        if header is None:
            raise RowError("torch storage is not in the legacy layout")
        module, name, key, n1, n2, n4, only_key, n8 = header.groups()
        if module != b"torch" or name not in _STORAGE_DTYPES:
            raise RowError(
                f"global {printable(b'.'.join((module, name)).decode('latin-1'))} is not allowed"
            )
        dtype = _STORAGE_DTYPES[name]
        count = int.from_bytes(n8, "little")
        if key != only_key or count != int.from_bytes(n1 or n2 or n4, "little"):
            raise RowError("torch storage contradicts itself")
        if len(payload) - header.end() != count * dtype.itemsize:
            raise RowError(
                f"torch storage is cut off ({len(payload) - header.end()} bytes "
                f"for {count} elements)"
            )
        return payload, header.end(), dtype, count


class Tensor(Inert):
    """`torch._utils._rebuild_tensor_v2(…)`: a strided view into a storage."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(
        self,
        storage: object,
        storage_offset: object,
        size: object,
        stride: object,
        requires_grad: object,
        backward_hooks: object,
        metadata: object = None,
    ) -> None:
        if metadata:
            raise RowError("torch tensor with metadata (conjugate or negative view)")
        self.storage = storage
        self.offset = storage_offset
        self.size = size
        self.stride = stride

    def array(self, plain: Converter) -> NDArray[Any]:
        """The tensor as an array that owns its memory; raises RowError where it
        reaches beyond its storage.
        """
        if not isinstance(self.storage, Storage):
            raise RowError("torch tensor without a storage")
        buffer, start, dtype, count = self.storage.elements(plain)
        size = _counts(self.size)
        stride = _counts(self.stride)
        (offset,) = _counts((self.offset,))
        if len(size) != len(stride):
            raise RowError("torch tensor has a stride for another number of axes")
        end = offset + 1 + sum(map(operator.mul, size, stride)) - sum(stride)
        if 0 not in size and end > count:
            raise RowError(f"torch tensor reaches beyond its storage ({end} of {count} elements)")
        return plain.array(buffer, start + offset * dtype.itemsize, dtype, size, stride)


_NUMPY_TYPES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


_TEXT = re.compile(r"U[1-9]\d{0,3}")  # of a text, in UTF-32


class Dtype(Inert):
    """`numpy.dtype(name, align, copy)` and its state, of which only the byte order counts."""

    __slots__ = ("name", "order")

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if type(name) is not str:
            raise RowError("numpy dtype has no name")
        if name not in _NUMPY_TYPES and not _TEXT.fullmatch(name):
            raise RowError(f"numpy dtype {printable(name)} is not allowed")
        self.name = name
        self.order = "="

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, "<" | ">" | "=" | "|" as order, None, None, None, *_):
                self.order = order
            case _:
                raise RowError(
                    f"numpy dtype {self.name} with fields, a shape or metadata is not allowed"
                )


class NumpyArray(Inert):
    """`_reconstruct(ndarray, (0,), b'b')` and its state, or `_frombuffer(buffer,
    dtype, shape, order, axes)`.
    """

    __slots__ = ("axes", "dtype", "order", "raw", "shape")

    def __init__(self, *_: object) -> None:
        # the arguments describe an empty array; all that counts comes with the state
        self.shape: object = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, shape, dtype, fortran, raw):
                self.fill(raw, dtype, shape, "F" if fortran else "C", None)
            case _:
                raise RowError("numpy array has a state of an unknown form")

    def fill(self, raw: object, dtype: object, shape: object, order: object, axes: object) -> None:
        """Keep what describes the array, unchecked until it is asked for."""
        self.raw = raw
        self.dtype = dtype
        self.shape = shape
        self.order = order
        self.axes = axes

    def array(self, plain: Converter) -> NDArray[Any]:
        """The array with memory of its own; raises RowError where shape and bytes do not agree."""
        if self.shape is None:
            raise RowError("numpy array without data")
        raw = plain.buffer(self.raw)
        dtype = _dtype(self.dtype)
        shape = _counts(self.shape)
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise RowError(
                f"numpy array is cut off ({len(raw)} bytes for shape {shape} of {dtype})"
            )
        if self.order == "F":
            return plain.array(raw, 0, dtype, shape[::-1], _c_stride(shape[::-1])).T.copy()
        array = plain.array(raw, 0, dtype, shape, _c_stride(shape))
        if self.order == "K" and self.axes is not None:
            axes = _counts(self.axes)
            if sorted(axes) != list(range(len(shape))):
                raise RowError("numpy array has axes that are no permutation")
            return array.transpose(axes).copy()
        return array


class FromBuffer(NumpyArray):
    """`_frombuffer`: the same in one call (protocol 5)."""

    __slots__ = ()

    def __init__(
        self, buffer: object, dtype: object, shape: object, order: object, axes: object = None
    ) -> None:
        self.fill(buffer, dtype, shape, order, axes)

    def __setstate__(self, state: object) -> None:
        raise RowError("a state is set on FromBuffer")


class Scalar(Inert):
    """`numpy.core.multiarray.scalar(dtype, raw)`."""

    __slots__ = ("dtype", "raw")

    def __init__(self, dtype: object, raw: object = None) -> None:
        self.dtype = dtype
        self.raw = raw

    def value(self, plain: Converter) -> bool | int | float | str:
        """The one element as a Python number, or as a text: iterating over an array of names
        gives such.
        """
        raw = plain.buffer(self.raw)
        if isinstance(self.dtype, Dtype) and _TEXT.fullmatch(self.dtype.name):
            return _text(bytes(raw), self.dtype)
        dtype = _dtype(self.dtype)
        if len(raw) != dtype.itemsize:
            raise RowError(f"numpy scalar is cut off ({len(raw)} bytes for {dtype})")
        number: bool | int | float = plain.array(raw, 0, dtype, (), ()).item()
        return number


def _text(raw: bytes, dtype: Dtype) -> str:
    if len(raw) != 4 * int(dtype.name[1:]):
        raise RowError(f"numpy scalar is cut off ({len(raw)} bytes for {dtype.name})")
    try:
        return raw.decode("utf-32-be" if dtype.order == ">" else "utf-32-le").rstrip("\0")
    except UnicodeDecodeError:
        raise RowError("numpy scalar is no text") from None


def _dtype(stand_in: object) -> np.dtype[Any]:
    if not isinstance(stand_in, Dtype):
        raise RowError("numpy array without a dtype")
    if stand_in.name not in _NUMPY_TYPES:
        raise RowError(f"numpy dtype {printable(stand_in.name)} is not allowed")
    return np.dtype(stand_in.order + stand_in.name)


def _c_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of an array whose last axis runs fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _counts(value: object) -> tuple[int, ...]:
    """A shape, stride or offset from the row: a short tuple of ints that are not negative."""
    if type(value) is not tuple or len(value) > _MAX_NDIM:
        raise RowError(f"shape or stride is not a tuple of at most {_MAX_NDIM} ints")
    for number in value:
        if type(number) is not int or number < 0:
            raise RowError("shape, stride or offset is not an int ≥ 0")
    return value


GLOBALS: dict[tuple[str, str], type] = {
    ("torch_geometric.data.data", "Data"): Data,
    ("torch_geometric.data.data", "DataTensorAttr"): Name,
    ("torch_geometric.data.data", "DataEdgeAttr"): Name,
    ("torch_geometric.data.storage", "GlobalStorage"): GlobalStorage,
    ("torch._utils", "_rebuild_tensor_v2"): Tensor,
    ("torch.storage", "_load_from_bytes"): Storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): Name,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): Latin1,  # protocol 2 only, as is the next
    ("__builtin__", "bytes"): Latin1,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")  # numpy 1 and numpy 2
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", NumpyArray),
        ("multiarray", "scalar", Scalar),
        ("numeric", "_frombuffer", FromBuffer),
    )
}
