"""Read the pickled row of an LMDB (torch_geometric rows of OC20/OC22, plain dicts) without running anything in it."""

import math
import operator
import pickle
import pickletools
import re
from collections.abc import Collection
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

_MAX_OPCODES = 2**18  # a real OC20 row has 340; each costs some 100 bytes and 1 µs, so this bounds memory and time
_MAX_TUPLES = 2**13  # hashing nested tuples recurses in C without a check: the process dies at some 10⁵ levels
_MAX_SHARED_TUPLES = 16  # tuples of one tuple twice, and again: the cost of a hash doubles with every level
_MAX_INT_BYTES = 9  # holds a uint64; long ints are slow to hash, and multiples of 2⁶¹−1 all collide
_MAX_NAME = 256  # bytes of a module or class name
_MAX_DEPTH = 32  # containers within containers
_MAX_NDIM = 4
_ARRAY_BYTES = 100  # an array object without its elements
_SPARE_BYTES = 2**20  # a stride-0 tensor repeats its storage: arrays may take twice the row's size and this much more


class RowError(ValueError):
    """A row is refused or damaged; the message names the global or the fault, numbers in brackets at its end."""


class TorchGeometricData(dict[str, object]):
    """The attributes of one torch_geometric ``Data``; a class of its own because such rows imply periodicity."""

    version = 1  # of torch_geometric: 1, or 2 where the attributes lie in a GlobalStorage


def loads(data: bytes, *, max_bytes: int = 64 * 2**20, only: Collection[str] | None = None) -> object:
    """Return the row as plain Python values and numpy arrays; nothing the row names is imported or called.

    torch tensors become arrays that own their memory, numpy scalars become Python numbers, a torch_geometric ``Data``
    becomes a `TorchGeometricData` of its attributes that are not None. Memory stays in proportion to the row: a few
    times its size, and some 100 bytes for each of at most 2¹⁸ opcodes.

    Args:
        data: the value as it lies in the LMDB, pickle protocol 2 to 5.
        max_bytes: longer rows are refused unread.
        only: names of a Data or dict at the top of the row; the others, half of an OC20 row, are left out unconverted.

    Raises:
        RowError: whatever is wrong; no other exception leaves this function.
    """
    if not isinstance(data, bytes):
        raise RowError(f"row is a {type(data).__name__}, expected bytes")
    if len(data) > max_bytes:
        raise RowError(f"row is too large ({len(data)} bytes, at most {max_bytes} are read)")
    if not data.startswith(pickle.PROTO):
        raise RowError(f"row is no pickle of protocol 2 to 5 (it begins with {ascii(data[:4])[1:]})")
    try:
        _scan(data)
        return _Plain(2 * len(data) + _SPARE_BYTES, only).value(_unpickle(data))
    except RowError:
        raise
    except MemoryError:
        raise RowError(f"row needs more memory than there is ({len(data)} bytes long)") from None
    except Exception as error:  # what the C reader and wrong arguments of stand-ins raise has no common class
        raise RowError(f"damaged pickle ({type(error).__name__}: {_printable(str(error))})") from error


def _printable(text: str) -> str:
    """Text from a row as it may stand in a log: no control characters, not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:120])


def _table(values: dict[int, str]) -> tuple[int, ...]:
    """A lookup by opcode: the value of every opcode that is named, 0 for the rest."""
    codes = {getattr(pickle, name)[0]: value for value, names in values.items() for name in names.split()}
    return tuple(codes.get(code, 0) for code in range(256))


_WIDTHS = _table(
    {
        1: "NONE NEWTRUE NEWFALSE MARK EMPTY_DICT EMPTY_LIST SETITEM SETITEMS APPEND APPENDS "
        "STACK_GLOBAL REDUCE BUILD NEWOBJ",
        2: "PROTO BININT1",
        3: "BININT2",
        5: "BININT",
        9: "BINFLOAT",
    }
)
_LENGTH_BYTES = _table(
    {
        1: "SHORT_BINUNICODE SHORT_BINBYTES LONG1",
        4: "BINUNICODE BINBYTES",
        8: "BINUNICODE8 BINBYTES8 BYTEARRAY8",
    }
)
_PUT_BYTES = _table({1: "MEMOIZE", 2: "BINPUT", 5: "LONG_BINPUT"})
_GET_BYTES = _table({2: "BINGET", 5: "LONG_BINGET"})
_TUPLE, _OTHER = 2, 1
_MAKES = _table(
    {
        _TUPLE: "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3",
        _OTHER: "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
        "EMPTY_DICT EMPTY_LIST GLOBAL STACK_GLOBAL REDUCE NEWOBJ",
    }
)
_FRAME, _GLOBAL, _INST, _LONG1, _STOP = b"".join((pickle.FRAME, pickle.GLOBAL, pickle.INST, pickle.LONG1, pickle.STOP))
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def _scan(data: bytes) -> None:
    """Refuse what the C unpickler would take down the process with, before it sees the row.

    Restricting `find_class` is not enough. On CPython 3.11 and without any global, 9 bytes with a memo index of 2³⁰
    take 16 GiB, 12 bytes reserve as much, 2 MB of nested tuples used as a dict key end in SIGSEGV, 200 bytes of shared
    tuples used as one never end, and one byte makes an empty set of 232. A pickle has no jumps, so one pass over the
    opcodes sees all that will run. It keeps no stack; instead it counts: opcodes, tuples and memo entries are bounded,
    lengths must lie inside the row, and only what picklers of protocol 2 to 5 emit for such rows is let through.

    On a real OC20 row this loop takes 0.03 ms, a bare `pickletools.genops` 0.06 ms and all the rest 0.05 ms.
    """
    widths, makes, put_bytes, get_bytes, length_bytes = _WIDTHS, _MAKES, _PUT_BYTES, _GET_BYTES, _LENGTH_BYTES
    position = last = puts = n_tuples = n_shared = 0
    tuples: set[int] = set()  # memo entries that are tuples
    try:
        for _ in range(_MAX_OPCODES):
            op = data[position]
            if width := widths[op]:
                position += width
            elif width := put_bytes[op]:
                # Picklers memoize what they just made, under the next number. Held to it, the memo stays as short as
                # the row, and which entries are tuples is known without a stack.
                index = puts if width == 1 else int.from_bytes(data[position + 1 : position + width], "little")
                if index != puts or not makes[last]:
                    raise RowError(f"memo entry out of order (byte {position})")
                if makes[last] == _TUPLE:
                    tuples.add(puts)
                puts += 1
                position += width
            elif makes[op] == _TUPLE:
                n_tuples += 1
                position += 1
            elif width := get_bytes[op]:
                if int.from_bytes(data[position + 1 : position + width], "little") in tuples:
                    n_shared += 1
                position += width
            elif width := length_bytes[op]:
                position = _after_counted(data, position, op, width)
            elif op == _STOP:
                break
            elif op == _FRAME:
                position += 9
                continue  # stands between a byte string of more than 64 KiB and its memo entry
            elif op == _GLOBAL:
                position = _after_line(data, _after_line(data, position + 1))
            else:
                _refuse_opcode(data, position)
            last = op
        else:
            raise RowError(f"too many pickle opcodes (more than {_MAX_OPCODES})")
    except IndexError:
        raise RowError(f"pickle is cut off ({len(data)} bytes)") from None
    if n_tuples > _MAX_TUPLES:
        raise RowError(f"too many tuples ({n_tuples}, at most {_MAX_TUPLES})")
    if n_shared > _MAX_SHARED_TUPLES:
        raise RowError(f"too many uses of one tuple ({n_shared}, at most {_MAX_SHARED_TUPLES})")
    if position + 1 != len(data):
        raise RowError(f"bytes after the end of the pickle ({len(data) - position - 1})")


def _after_counted(data: bytes, position: int, op: int, n_length_bytes: int) -> int:
    """The position after a string, byte string or int that states its own length."""
    start = position + 1 + n_length_bytes
    claimed = int.from_bytes(data[position + 1 : start], "little")
    if claimed > len(data) - start:
        raise RowError(f"pickle is cut off ({_NAMES[op]} claims {claimed} bytes, {len(data) - start} are left)")
    if op == _LONG1 and claimed > _MAX_INT_BYTES:
        raise RowError(f"int is too long ({claimed} bytes, at most {_MAX_INT_BYTES})")
    return start + claimed


def _after_line(data: bytes, position: int) -> int:
    """The position after a module or class name, which ends with a newline."""
    end = data.find(b"\n", position, position + _MAX_NAME)
    if end < 0:
        raise RowError(f"name of a global has no end (byte {position})")
    return end + 1


def _refuse_opcode(data: bytes, position: int) -> NoReturn:
    """Name an opcode that no pickler of protocol 2 to 5 emits for a row, and the global it would fetch."""
    name = _NAMES.get(data[position], f"{data[position]:#04x}")
    if data[position] == _INST:
        module_and_class = data[position + 1 : position + _MAX_NAME].decode("latin-1").split("\n")[:2]
        name += f" of {_printable('.'.join(module_and_class))}"
    raise RowError(f"pickle opcode {name} is not allowed")


class _Inert:
    """Base of the stand-ins: they keep what the row gave them, and BUILD cannot set anything on them.

    The C unpickler sets attributes on whatever lies on its stack, functions and classes too, unless that has a
    `__setstate__`; every stand-in has one, and a class answers BUILD with a TypeError because `self` is missing.
    Stand-ins are what REDUCE returns, never arrays: SETITEMS on an array would run numpy's fancy indexing.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise RowError(f"a state is set on {type(self).__name__[1:]}")


class _Name(_Inert):
    """A class that rows mention and never use: numpy.ndarray, torch_geometric's DataTensorAttr and DataEdgeAttr."""

    __slots__ = ()


class _OrderedDict(dict[object, object]):
    """`collections.OrderedDict`: filled by SETITEMS only, since a copying constructor would multiply memory."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        raise RowError("a state is set on OrderedDict")


class _Latin1(_Inert):
    """`_codecs.encode(text, 'latin1')` and `bytes()`: how protocol 2 spells a byte string; encoded when asked for."""

    __slots__ = ("_bytes", "_text")

    def __init__(self, text: str = "", encoding: str = "latin1") -> None:
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise RowError("_codecs.encode of something else than latin1 text")
        self._text, self._bytes = text, b""

    def encoded(self, plain: "_Plain") -> bytes:
        if not self._bytes:
            plain.take(len(self._text))
            self._bytes = self._text.encode("latin-1")
        return self._bytes


class _GlobalStorage(_Inert):
    """`torch_geometric.data.storage.GlobalStorage` (2.x): a state with the attributes under `_mapping`."""

    __slots__ = ("state",)
    state: dict[object, object]

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise RowError(f"state of {type(self).__name__[1:]} is a {type(state).__name__}")
        self.state = state


class _Data(_GlobalStorage):
    """`torch_geometric.data.data.Data`: attributes in the state (1.x), or in the GlobalStorage under `_store` (2.x)."""

    __slots__ = ()

    def attributes(self) -> dict[str, object]:
        """The attributes that are not None; torch_geometric's own private names (`__num_nodes__`) are none."""
        mapping: object = self.state
        store = self.state.get("_store")
        if isinstance(store, _GlobalStorage):
            mapping = store.state.get("_mapping")
        if not isinstance(mapping, dict):
            raise RowError("torch_geometric Data has no attributes")
        if not all(type(name) is str for name in mapping):
            raise RowError("torch_geometric Data has an attribute whose name is no str")
        return {k: v for k, v in mapping.items() if v is not None and not (k[:2] == "__" == k[-2:])}


# What torch.save writes for one storage in its legacy form, up to the elements: five pickles of protocol 2 (magic
# number, version 1001, system, persistent id of the storage, list of the one key) and the element count as int64.
# It is always these bytes, so it is matched as bytes: no unpickler runs inside a row.
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


class _Storage(_Inert):
    """`torch.storage._load_from_bytes(payload)`: the elements of a tensor, in the payload from `start` on."""

    __slots__ = ("payload",)

    def __init__(self, payload: object) -> None:
        self.payload = payload

    def elements(self, plain: "_Plain") -> tuple[bytes, int, np.dtype[Any], int]:
        """(buffer, first byte, dtype, number of elements)."""
        payload = plain.buffer(self.payload)
        header = _STORAGE_HEADER.match(payload)
        if header is None:
            raise RowError("torch storage is not in the legacy layout")
        module, name, key, n1, n2, n4, only_key, n8 = header.groups()
        if module != b"torch" or name not in _STORAGE_DTYPES:
            raise RowError(f"global {_printable(b'.'.join((module, name)).decode('latin-1'))} is not allowed")
        dtype, count = _STORAGE_DTYPES[name], int.from_bytes(n8, "little")
        if key != only_key or count != int.from_bytes(n1 or n2 or n4, "little"):
            raise RowError("torch storage contradicts itself")
        if len(payload) - header.end() != count * dtype.itemsize:
            raise RowError(f"torch storage is cut off ({len(payload) - header.end()} bytes for {count} elements)")
        return payload, header.end(), dtype, count


class _Tensor(_Inert):
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
        self.storage, self.offset, self.size, self.stride = storage, storage_offset, size, stride

    def array(self, plain: "_Plain") -> NDArray[Any]:
        if not isinstance(self.storage, _Storage):
            raise RowError("torch tensor without a storage")
        buffer, start, dtype, count = self.storage.elements(plain)
        size, stride, (offset,) = _counts(self.size), _counts(self.stride), _counts((self.offset,))
        if len(size) != len(stride):
            raise RowError("torch tensor has a stride for another number of axes")
        end = offset + 1 + sum(map(operator.mul, size, stride)) - sum(stride)
        if 0 not in size and end > count:
            raise RowError(f"torch tensor reaches beyond its storage ({end} of {count} elements)")
        return plain.array(buffer, start + offset * dtype.itemsize, dtype, size, stride)


_NUMPY_TYPES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


class _Dtype(_Inert):
    """`numpy.dtype(name, align, copy)` and its state, of which only the byte order counts."""

    __slots__ = ("name", "order")

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if type(name) is not str:
            raise RowError("numpy dtype has no name")
        if name not in _NUMPY_TYPES:
            raise RowError(f"numpy dtype {_printable(name)} is not allowed")
        self.name, self.order = name, "="

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, "<" | ">" | "=" | "|" as order, None, None, None, *_):
                self.order = order
            case _:
                raise RowError(f"numpy dtype {self.name} with fields, a shape or metadata is not allowed")


class _NumpyArray(_Inert):
    """`_reconstruct(ndarray, (0,), b'b')` and its state, or `_frombuffer(buffer, dtype, shape, order, axes)`."""

    __slots__ = ("axes", "dtype", "order", "raw", "shape")

    def __init__(self, *_: object) -> None:
        self.shape: object = None  # the arguments describe an empty array; all that counts comes with the state

    def __setstate__(self, state: object) -> None:
        match state:
            case (1, shape, dtype, fortran, raw):
                self.fill(raw, dtype, shape, "F" if fortran else "C", None)
            case _:
                raise RowError("numpy array has a state of an unknown form")

    def fill(self, raw: object, dtype: object, shape: object, order: object, axes: object) -> None:
        self.raw, self.dtype, self.shape, self.order, self.axes = raw, dtype, shape, order, axes

    def array(self, plain: "_Plain") -> NDArray[Any]:
        if self.shape is None:
            raise RowError("numpy array without data")
        raw, dtype, shape = plain.buffer(self.raw), _dtype(self.dtype), _counts(self.shape)
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise RowError(f"numpy array is cut off ({len(raw)} bytes for shape {shape} of {dtype})")
        if self.order == "F":
            return plain.array(raw, 0, dtype, shape[::-1], _c_stride(shape[::-1])).T.copy()
        array = plain.array(raw, 0, dtype, shape, _c_stride(shape))
        if self.order == "K" and self.axes is not None:
            axes = _counts(self.axes)
            if sorted(axes) != list(range(len(shape))):
                raise RowError("numpy array has axes that are no permutation")
            return array.transpose(axes).copy()
        return array


class _FromBuffer(_NumpyArray):
    """`_frombuffer`: the same in one call (protocol 5)."""

    __slots__ = ()

    def __init__(self, buffer: object, dtype: object, shape: object, order: object, axes: object = None) -> None:
        self.fill(buffer, dtype, shape, order, axes)

    def __setstate__(self, state: object) -> None:
        raise RowError("a state is set on FromBuffer")


class _Scalar(_Inert):
    """`numpy.core.multiarray.scalar(dtype, raw)`."""

    __slots__ = ("dtype", "raw")

    def __init__(self, dtype: object, raw: object = None) -> None:
        self.dtype, self.raw = dtype, raw

    def number(self, plain: "_Plain") -> bool | int | float:
        raw, dtype = plain.buffer(self.raw), _dtype(self.dtype)
        if len(raw) != dtype.itemsize:
            raise RowError(f"numpy scalar is cut off ({len(raw)} bytes for {dtype})")
        number: bool | int | float = plain.array(raw, 0, dtype, (), ()).item()
        return number


def _dtype(stand_in: object) -> np.dtype[Any]:
    if not isinstance(stand_in, _Dtype):
        raise RowError("numpy array without a dtype")
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


_GLOBALS: dict[tuple[str, str], type] = {
    ("torch_geometric.data.data", "Data"): _Data,
    ("torch_geometric.data.data", "DataTensorAttr"): _Name,
    ("torch_geometric.data.data", "DataEdgeAttr"): _Name,
    ("torch_geometric.data.storage", "GlobalStorage"): _GlobalStorage,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("collections", "OrderedDict"): _OrderedDict,
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Latin1,  # protocol 2 only, as is the next
    ("__builtin__", "bytes"): _Latin1,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")  # numpy 1 and numpy 2
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _NumpyArray),
        ("multiarray", "scalar", _Scalar),
        ("numeric", "_frombuffer", _FromBuffer),
    )
}


class _Unpickler(pickle.Unpickler):
    """The standard library's unpickler, which gets a stand-in for every allowed global and none of the real ones."""

    def find_class(self, module: str, name: str, /) -> type:
        stand_in = _GLOBALS.get((module, name))
        if stand_in is None:
            raise RowError(f"global {_printable(module + '.' + name)} is not allowed")
        return stand_in

    def persistent_load(self, pid: object, /) -> NoReturn:
        raise RowError("persistent id outside a torch storage")


def _unpickle(data: bytes) -> object:
    """Run the C unpickler over a row that `_scan` has passed.

    Reading a file, it drops what is left of a frame when an opcode crosses the frame's end, and goes on elsewhere than
    a straight pass over the bytes does. One frame around everything leaves it nothing to drop, and is faster too.
    """
    return _Unpickler(_Framed(data)).load()


class _Framed:
    """A file of one frame, in the three pieces that the C unpickler asks for: the row itself is not copied."""

    def __init__(self, data: bytes) -> None:
        self._pieces = [data, len(data).to_bytes(8, "little"), pickle.FRAME]

    def read(self, n: int, /) -> bytes:
        """The next piece, as long as was asked for; nothing where there is none."""
        piece = self._pieces.pop() if self._pieces else b""
        return piece if len(piece) == n else b""  # an unpickler that gets too little refuses the row

    def readline(self) -> bytes:
        """Nothing lies outside of the frame."""
        return b""


class _Plain:
    """Turns what the unpickler left, stand-ins within containers, into plain values, within a budget.

    What the row shares is converted again at every place. So a value that unfolds to more than the row could have
    spelled out (a list of one list twice, of one list twice, …) is refused here and not met by whoever uses the row.
    """

    _ATOMS = frozenset({str, int, float, bool, bytes, type(None)})

    def __init__(self, n_bytes: int, only: Collection[str] | None = None) -> None:
        self.bytes_left = n_bytes
        self.items_left = _MAX_OPCODES
        self.only = only

    def take(self, n_bytes: int) -> None:
        """Count memory before it is taken."""
        self.bytes_left -= n_bytes
        if self.bytes_left < 0:
            raise RowError("arrays of the row are out of proportion to its size")

    def value(self, value: object, depth: int = 0) -> object:
        """The plain form of a value; the top of a row has depth 0."""
        if type(value) in self._ATOMS:
            return value
        if depth > _MAX_DEPTH:
            raise RowError(f"containers are nested too deep (more than {_MAX_DEPTH})")
        if isinstance(value, dict | list | tuple):
            self.items_left -= len(value)
            if self.items_left < 0:
                raise RowError(f"containers hold too much, shared parts counted at each place (over {_MAX_OPCODES})")
        return self._convert(value, depth + 1)

    def _convert(self, value: object, depth: int) -> object:
        match value:
            case _Tensor() | _NumpyArray():
                return value.array(self)
            case _Data():
                data = TorchGeometricData(self._values(value.attributes(), depth))
                data.version = 2 if isinstance(value.state.get("_store"), _GlobalStorage) else 1
                return data
            case dict():
                if not all(type(key) in (str, int) for key in value):
                    raise RowError("dict has a key that is neither str nor int")
                return self._values(value, depth)
            case list():
                return [self.value(item, depth) for item in value]
            case tuple():
                return tuple([self.value(item, depth) for item in value])
            case _Scalar():
                return value.number(self)
            case bytearray() | _Latin1():
                return self.buffer(value)
        raise RowError(f"a bare {getattr(value, '__name__', type(value).__name__).lstrip('_')} is no value")

    def _values(self, named: dict[Any, object], depth: int) -> dict[Any, object]:
        """The values of a dict; at the top of a row those that were asked for."""
        if self.only is not None and depth == 1:
            named = {name: named[name] for name in named if name in self.only}
        return {name: self.value(value, depth) for name, value in named.items()}

    def buffer(self, value: object) -> bytes:
        """A byte string of the row in any of its three spellings."""
        if type(value) is bytes:
            return value
        if isinstance(value, _Latin1):
            return value.encoded(self)
        if isinstance(value, bytearray):
            self.take(len(value))
            return bytes(value)
        raise RowError(f"expected bytes, found {type(value).__name__.lstrip('_')}")

    def array(
        self, buffer: bytes, start: int, dtype: np.dtype[Any], shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> NDArray[Any]:
        """Copy a strided view (stride in elements, start in bytes) out of the row: contiguous, aligned, writable."""
        count = math.prod(shape)
        self.take(count * dtype.itemsize + _ARRAY_BYTES)
        if count == 0:
            self.take(max(shape))  # (0, 2⁶⁰) takes nothing here, and who knows what where it is used
            return np.empty(shape, dtype.newbyteorder("="))
        is_bool = dtype.kind == "b"
        view: NDArray[Any] = np.ndarray(
            shape, np.uint8 if is_bool else dtype, buffer, start, [step * dtype.itemsize for step in stride]
        )
        if is_bool:
            return np.asarray(np.not_equal(view, 0, order="C"))  # a byte that is neither 0 nor 1 would be no bool
        return view.copy() if dtype.isnative else view.astype(dtype.newbyteorder("="), order="C")
