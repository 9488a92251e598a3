"""The pickle of a weights file, looked through before torch's unpickler runs it: what it
would do, and at what cost.

torch's restricted unpickler runs nothing foreign, but it hashes whatever is a key, copies what
is built of a shared part, and calls all that rebuilds any kind of tensor; 800 bytes can keep it
busy for ever. A pickle has no jumps, so one pass with a stack of descriptions instead of values
sees all that will be done. What no network and no checkpoint of ours or of mace needs is
refused; 0.01 s for a network.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

from dataloader.limits import PICKLE_LONG_BYTES, PICKLE_NAMES, PICKLE_WORK, PICKLE_WORK_PER_BYTE

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as protocol 2 spells modules


@dataclass(slots=True)
class _Item:
    """What is known of one value on the stack."""

    # text, int, long, plain (None, truths, floats), tuple, list, dict, set, storage, tensor,
    # object; a global: name
    kind: str
    size: int = 1  # letters of a text, items of a collection
    name: str = ""  # of a global
    keys: bool = True  # of a list: whether all its items may be keys
    items: tuple["_Item", ...] = ()  # of a tuple


_PLAIN = _Item("plain")
_INT = _Item("int")
_KEYS = frozenset({"text", "int", "plain"})


class PickleWalk:
    """One pass over a pickle, which follows its opcodes with a stack of descriptions.

    Attributes:
        names: the globals it asks for, by full name.
        n_bytes: its length.
    """

    def __init__(self, data: bytes) -> None:
        """Look through a pickle of protocol 2.

        Args:
            data: the pickle.

        Raises:
            ValueError: it is cut off, or does what no network and no checkpoint does;
                the message is a phrase.
        """
        self.names: set[str] = set()
        self.n_bytes = len(data)
        self._data = data
        self._position = 0
        self._work = PICKLE_WORK + PICKLE_WORK_PER_BYTE * len(data)
        self._stack: list[_Item] = []
        self._marks: list[list[_Item]] = []
        self._memo: dict[int, _Item] = {}
        self._calls = 0
        self._run(data)
        self._take(self._calls * len(self.names) // 4)  # torch looks for each in a list of all

    def _run(self, data: bytes) -> None:
        """Follow the opcodes to the end; one that is not in the table is refused."""
        try:
            while (code := data[self._position]) != _STOP:
                self._position += 1
                step = _STEPS.get(code)
                if step is None:
                    raise ValueError(
                        f"its pickle has the opcode {_OPCODES.get(code, hex(code))}, "
                        "which no network has"
                    )
                step(self)
        except (IndexError, KeyError):
            raise ValueError(f"its pickle is cut off or damaged at byte {self._position}") from None

    def _take(self, work: int) -> None:
        """Count what a step costs; refuse where all of it together is out of proportion
        to the pickle's length.
        """
        self._work -= work
        if self._work < 0:
            raise ValueError("its pickle repeats shared parts out of all proportion")

    def _number(self, n_bytes: int) -> int:
        if n_bytes == 1:  # of most opcodes: a third of the time of a slice
            number = self._data[self._position]
            self._position += 1
            return number
        return int.from_bytes(self._bytes(n_bytes), "little")

    def _bytes(self, n_bytes: int) -> bytes:
        begin = self._position
        self._position += n_bytes
        if self._position > len(self._data):
            raise IndexError
        return self._data[begin : self._position]

    def _line(self) -> str:
        end = self._data.find(b"\n", self._position, self._position + 512)
        if end < 0:
            raise IndexError
        line = self._data[self._position : end]
        self._position = end + 1
        return line.decode("utf-8", "replace")

    def _pop(self, kind: str | None = None) -> _Item:
        item = self._stack.pop()
        if kind is not None and item.kind != kind:
            raise ValueError(f"its pickle has a {item.kind} where a {kind} belongs")
        return item

    def _to_mark(self) -> list[_Item]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _collect(self, items: list[_Item]) -> None:
        self._stack.append(_Item("tuple", 1 + len(items), items=tuple(items)))

    # What the opcodes do: one method each, or one for several with the number of bytes that follow.

    def _value(self, n_bytes: int, item: _Item) -> None:
        self._bytes(n_bytes)
        self._stack.append(item)

    def _protocol(self) -> None:
        protocol = self._number(1)
        if protocol != 2:
            raise ValueError(f"its pickle is of protocol {protocol}; torch writes 2")

    def _text(self, n_bytes: int) -> None:
        length = self._number(n_bytes)
        self._bytes(length)
        self._stack.append(_Item("text", length))

    def _long(self) -> None:
        length = self._number(1)
        if length > PICKLE_LONG_BYTES:
            raise ValueError(f"its pickle has a whole number of {length} bytes")
        self._bytes(length)
        # multiples of 2⁶¹−1 all have one hash: as keys, long ones are compared with all others
        self._stack.append(_Item("int" if length <= 8 else "long"))

    def _global(self) -> None:
        module = self._line()
        name = self._line()
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        self.names.add(full)
        if len(self.names) > PICKLE_NAMES:
            raise ValueError(f"its pickle asks for more than {PICKLE_NAMES} classes and functions")
        self._stack.append(_Item("name", name=full))

    def _put(self, n_bytes: int) -> None:
        self._memo[self._number(n_bytes)] = self._stack[-1]

    def _get(self, n_bytes: int) -> None:
        self._stack.append(self._memo[self._number(n_bytes)])

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _tuple(self, n: int | None) -> None:
        if n is None:
            self._collect(self._to_mark())
            return
        items = self._stack[-n:]
        if len(items) < n:
            raise IndexError
        del self._stack[-n:]
        self._collect(items)

    def _append(self, items: list[_Item]) -> None:
        target = self._stack[-1]
        if target.kind != "list":
            raise ValueError(f"its pickle appends to a {target.kind}")
        target.size += len(items)
        target.keys = target.keys and all(item.kind in _KEYS for item in items)

    def _set_items(self, items: list[_Item]) -> None:
        target = self._stack[-1]
        if target.kind != "dict" or len(items) % 2:
            raise ValueError(f"its pickle sets items of a {target.kind}")
        target.size += len(items) // 2
        for key in items[::2]:
            if key.kind not in _KEYS:
                raise ValueError(
                    f"its pickle has a key that is a {key.kind}, not a word or a number"
                )

    def _key_and_value(self) -> list[_Item]:
        value = self._pop()
        key = self._pop()
        return [key, value]

    def _storage(self) -> None:
        self._pop("tuple")
        self._stack.append(_Item("storage"))

    def _new(self) -> None:
        arguments = self._pop("tuple")
        kind = self._pop("name")
        if kind.name in _CALLS:
            raise ValueError(f"its pickle makes a {kind.name} as no network does")
        self._called(arguments)
        self._stack.append(_Item("object"))

    def _call(self) -> None:
        """REDUCE: a function that torch really calls must get what a network gives it;
        others are not called.
        """
        arguments = self._pop("tuple")
        function = self._pop("name")
        self._called(arguments)
        outcome = _CALLS.get(function.name, lambda items: _Item("object"))
        result = outcome(arguments.items)
        if result is None:
            raise ValueError(f"its pickle calls {function.name} as no network does")
        self._take(result.size)
        self._stack.append(result)

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1]
        if target.kind not in ("object", "dict"):
            raise ValueError(f"its pickle sets a state on a {target.kind}")
        self._called(state)

    def _called(self, given: _Item) -> None:
        self._calls += 1
        self._take(given.size)


def _encoded(given: tuple[_Item, ...]) -> _Item | None:
    """Bytes, which protocol 2 spells as text and the name of its encoding."""
    if [item.kind for item in given] != ["text", "text"]:
        return None
    return _Item("text", given[0].size)


def _set(given: tuple[_Item, ...]) -> _Item | None:
    """A set of words and numbers, made of a list of them."""
    if len(given) != 1 or given[0].kind != "list" or not given[0].keys:
        return None
    return _Item("set", given[0].size)


def _size(given: tuple[_Item, ...]) -> _Item | None:
    """A shape, made of one tuple or list."""
    if len(given) != 1 or given[0].kind not in ("tuple", "list"):
        return None
    return _Item("tuple", given[0].size)


def _tensor(given: tuple[_Item, ...]) -> _Item | None:
    return _Item("tensor") if given and given[0].kind == "storage" else None


def _parameter(given: tuple[_Item, ...]) -> _Item | None:
    return _Item("tensor") if given and given[0].kind == "tensor" else None


# What torch's unpickler really calls, of all that it would: everything else of a network
# becomes a sandboxed object. Each gives what the call makes of its arguments, None where
# no network calls it so.
_CALLS: dict[str, Callable[[tuple[_Item, ...]], _Item | None]] = {
    "collections.OrderedDict": lambda given: None if given else _Item("dict"),
    "builtins.set": _set,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
    "torch.device": lambda given: _Item("object"),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


def is_called(name: str) -> bool:
    """Whether a global that torch itself provides may be in a network: one of the above,
    a storage, or a dtype.
    """
    return name in _CALLS or name.endswith("Storage") or name.removeprefix("torch.") in _DTYPES


_DTYPES = frozenset(
    {
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "complex64",
    }
)
_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CODES = {name: code for code, name in _OPCODES.items()}
_STOP = _CODES["STOP"]
_STEPS: dict[int, Callable[[PickleWalk], None]] = {
    _CODES[name]: step
    for name, step in {
        "PROTO": PickleWalk._protocol,
        "NONE": lambda walk: walk._value(0, _PLAIN),
        "NEWTRUE": lambda walk: walk._value(0, _PLAIN),
        "NEWFALSE": lambda walk: walk._value(0, _PLAIN),
        "BININT": lambda walk: walk._value(4, _INT),
        "BININT1": lambda walk: walk._value(1, _INT),
        "BININT2": lambda walk: walk._value(2, _INT),
        "BINFLOAT": lambda walk: walk._value(8, _PLAIN),
        "LONG1": PickleWalk._long,
        "BINUNICODE": lambda walk: walk._text(4),
        "SHORT_BINSTRING": lambda walk: walk._text(1),
        "EMPTY_TUPLE": lambda walk: walk._collect([]),
        "TUPLE1": lambda walk: walk._tuple(1),
        "TUPLE2": lambda walk: walk._tuple(2),
        "TUPLE3": lambda walk: walk._tuple(3),
        "TUPLE": lambda walk: walk._tuple(None),
        "EMPTY_LIST": lambda walk: walk._value(0, _Item("list")),
        "EMPTY_DICT": lambda walk: walk._value(0, _Item("dict")),
        "APPEND": lambda walk: walk._append([walk._pop()]),
        "APPENDS": lambda walk: walk._append(walk._to_mark()),
        "SETITEM": lambda walk: walk._set_items(walk._key_and_value()),
        "SETITEMS": lambda walk: walk._set_items(walk._to_mark()),
        "MARK": PickleWalk._mark,
        "BINPUT": lambda walk: walk._put(1),
        "LONG_BINPUT": lambda walk: walk._put(4),
        "BINGET": lambda walk: walk._get(1),
        "LONG_BINGET": lambda walk: walk._get(4),
        "GLOBAL": PickleWalk._global,
        "BINPERSID": PickleWalk._storage,
        "REDUCE": PickleWalk._call,
        "NEWOBJ": PickleWalk._new,
        "BUILD": PickleWalk._build,
    }.items()
}
