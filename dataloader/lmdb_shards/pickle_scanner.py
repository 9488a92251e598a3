"""The opcodes of a pickled row, looked through before the C unpickler sees them.

Bounds and opcode tables were chosen for rows of OC20 and OC22; ``scan`` says
which attacks they answer.
"""

import pickle
import pickletools
from typing import NoReturn

from dataloader.errors import RowError

# a real OC20 row has 340; each costs some 100 bytes and 1 µs, so this bounds memory and time
MAX_OPCODES = 2**18
# hashing nested tuples recurses in C without a check: the process dies at some 10⁵ levels
_MAX_TUPLES = 2**13
# tuples of one tuple twice, and again: the cost of a hash doubles with every level
_MAX_SHARED_TUPLES = 16
_MAX_INT_BYTES = 9  # holds a uint64; long ints are slow to hash, and multiples of 2⁶¹−1 all collide
_MAX_NAME = 256  # bytes of a module or class name


def printable(text: str) -> str:
    """Text from a row as it may stand in a log: no control characters, not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:120])


def _table(values: dict[int, str]) -> tuple[int, ...]:
    """A lookup by opcode: the value of every opcode that is named, 0 for the rest."""
    codes = {
        getattr(pickle, name)[0]: value for value, names in values.items() for name in names.split()
    }
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
_TUPLE = 2
_OTHER = 1
_MAKES = _table(
    {
        _TUPLE: "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3",
        _OTHER: (
            "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
            "EMPTY_DICT EMPTY_LIST GLOBAL STACK_GLOBAL REDUCE NEWOBJ"
        ),
    }
)
_FRAME, _GLOBAL, _INST, _LONG1, _STOP = b"".join(
    (pickle.FRAME, pickle.GLOBAL, pickle.INST, pickle.LONG1, pickle.STOP)
)
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def scan(data: bytes) -> None:
    """Refuse what the C unpickler would take down the process with, before it sees the row.

    Restricting `find_class` is not enough. On CPython 3.11 and without any global, 9 bytes with a
    memo index of 2³⁰ take 16 GiB, 12 bytes reserve as much, 2 MB of nested tuples used as a dict
    key end in SIGSEGV, 200 bytes of shared tuples used as one never end, and one byte makes an
    empty set of 232. A pickle has no jumps, so one pass over the opcodes sees all that will run. It
    keeps no stack; instead it counts: opcodes, tuples and memo entries are bounded, lengths must
    lie inside the row, and only what picklers of protocol 2 to 5 emit for such rows is let through.

    On a real OC20 row this loop takes 0.03 ms, a bare `pickletools.genops` 0.06 ms
    and all the rest 0.05 ms.
    """
    widths = _WIDTHS
    makes = _MAKES
    put_bytes = _PUT_BYTES
    get_bytes = _GET_BYTES
    length_bytes = _LENGTH_BYTES
    position = last = puts = n_tuples = n_shared = 0
    tuples: set[int] = set()  # memo entries that are tuples
    try:
        for _ in range(MAX_OPCODES):
            op = data[position]
            if width := widths[op]:
                position += width
            elif width := put_bytes[op]:
                # Picklers memoize what they just made, under the next number. Held to it, the memo
                # stays as short as the row, and which entries are tuples is known without a stack.
                index = (
                    puts
                    if width == 1
                    else int.from_bytes(data[position + 1 : position + width], "little")
                )
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
            else:
                position = _after_rare(data, position, op)
                # stands between a long byte string and its memo entry
                op = last if op == _FRAME else op
            last = op
        else:
            raise RowError(f"too many pickle opcodes (more than {MAX_OPCODES})")
    except IndexError:
        raise RowError(f"pickle is cut off ({len(data)} bytes)") from None
    _refuse_counts(n_tuples, n_shared, len(data) - position - 1)


def _refuse_counts(n_tuples: int, n_shared: int, n_bytes_left: int) -> None:
    """Raise where a row that was looked through has more tuples than are safe,
    or bytes behind its end.
    """
    if n_tuples > _MAX_TUPLES:
        raise RowError(f"too many tuples ({n_tuples}, at most {_MAX_TUPLES})")
    if n_shared > _MAX_SHARED_TUPLES:
        raise RowError(f"too many uses of one tuple ({n_shared}, at most {_MAX_SHARED_TUPLES})")
    if n_bytes_left:
        raise RowError(f"bytes after the end of the pickle ({n_bytes_left})")


def _after_rare(data: bytes, position: int, op: int) -> int:
    """The position after a frame's length or the two lines of a global; every
    other opcode is refused.
    """
    if op == _FRAME:  # written around byte strings of more than 64 KiB
        return position + 9
    if op == _GLOBAL:
        return _after_line(data, _after_line(data, position + 1))
    _refuse_opcode(data, position)


def _after_counted(data: bytes, position: int, op: int, n_length_bytes: int) -> int:
    """The position after a string, byte string or int that states its own length."""
    start = position + 1 + n_length_bytes
    claimed = int.from_bytes(data[position + 1 : start], "little")
    if claimed > len(data) - start:
        raise RowError(
            f"pickle is cut off ({_NAMES[op]} claims {claimed} bytes, {len(data) - start} are left)"
        )
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
    """Name an opcode that no pickler of protocol 2 to 5 emits for a row, and the
    global it would fetch.
    """
    name = _NAMES.get(data[position], f"{data[position]:#04x}")
    if data[position] == _INST:
        module_and_class = (
            data[position + 1 : position + _MAX_NAME].decode("latin-1").split("\n")[:2]
        )
        name += f" of {printable('.'.join(module_and_class))}"
    raise RowError(f"pickle opcode {name} is not allowed")
