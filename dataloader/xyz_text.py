"""The text of one extended-XYZ frame as names and values, strictly: what is not
as declared is refused.

The grammar is that of extended XYZ (github.com/libAtoms/extxyz) in the dialect that ASE reads
and writes: pairs ``key=value`` with quotes or brackets, ``Properties=name:type:columns:…`` for
the columns of the atoms.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader import plain_json
from dataloader.entry_values import RecordError
from dataloader.labels import names_of_labels
from dataloader.limits import XYZ_COLUMNS, XYZ_COMMENT_KEYS
from dataloader.names import WantedNames, folded
from dataloader.record import RawRecord
from dataloader.record_geometry import FRACTIONAL_NAMES, NUMBER_NAMES, POSITION_NAMES, SPECIES_NAMES
from dataloader.units import parsed

PLAIN = "species:S:1:pos:R:3"  # where no Properties are declared
_QUOTED = r'"(?:[^"\\]++|\\.)*+"' + r"|'(?:[^'\\]++|\\.)*+'"
_BRACKETS = r"\{[^{}]*\}" + r"|\[(?:[^\[\]]++|\[[^\[\]]*+\])*+\]"
_SPACES = re.compile(r"\s*")
_PAIR = re.compile(
    # ASE writes `name= pbc="T T T"` for an empty text: what follows is the next entry
    rf"(?P<key>{_QUOTED}|[^\s=]+)(?:(?:=(?=\s+[A-Za-z_][\w.:-]*=)|\s*=\s*)"
    rf"(?P<value>{_QUOTED}|{_BRACKETS}|[^\s]*))?"
)
_TRUTHS = {"T": True, "F": False, "true": True, "false": False, "True": True, "False": False}
_TRUTHS |= {"TRUE": True, "FALSE": False}
_ZEROS_BEFORE = re.compile(r"[+-]?0\d+$")  # 0012 is a name and no number
_NAMES_OF_RECORDS = {"uid"}  # text though it may look like a number
_LABELS = WantedNames(names_of_labels())
_TYPES = {"R": np.float64, "I": np.int64, "S": np.str_, "L": np.bool_}


@dataclass(frozen=True, slots=True)
class Column:
    """One entry of Properties."""

    name: str
    kind: str  # R, I, S or L
    begin: int
    end: int


def parse_frame(comment: str, rows: Sequence[str]) -> RawRecord:
    """Names and values of one frame.

    Args:
        comment: the second line.
        rows: the lines of the atoms.

    Raises:
        RecordError: the text is not as the comment declares it, or a key is there twice.
    """
    values, texts = parse_comment(comment)
    declared = [name for name in values if folded(name) == "properties"]
    text = values.pop(declared[0]) if declared else PLAIN
    columns = parse_properties(str(text))
    _require_geometry(columns, declared=bool(declared))
    width = columns[-1].end
    words = [row.split() for row in rows]
    for atom, row in enumerate(words):
        if len(row) != width:
            which = (
                "that Properties declares"
                if declared
                else "of plain xyz; declare more in Properties"
            )
            raise RecordError(f"atom {atom} has {len(row)} columns, expected the {width} {which}")
    return RawRecord(values, {column.name: _column(words, column) for column in columns}, texts)


def parse_comment(comment: str) -> tuple[dict[str, object], dict[str, str]]:
    """The comment line by its keys: values, and how they are spelt.

    A word without a value is True, and has no spelling.

    Raises:
        RecordError: a key is there twice, be it in another case, or a unit stands behind a label.
    """
    values: dict[str, object] = {}
    texts: dict[str, tuple[str, str]] = {}  # by the key in one case
    before_it: str | None = None  # the label that stands before a word
    for count, match in enumerate(_pairs(comment.strip())):
        if count == XYZ_COMMENT_KEYS:
            raise RecordError(
                f"the comment has more than {XYZ_COMMENT_KEYS} entries; is a line of "
                "another file here?"
            )
        key = _unquoted(match["key"])
        if match["value"] is None:
            _refuse_unit(key, before_it)
            values.setdefault(key, True)
            before_it = None
            continue
        text = _unquoted(match["value"])
        before = texts.get(folded(key))
        if before is not None:
            raise RecordError(
                f"{key} is there twice, {_shown(*before)} and {_shown(key, text)}; remove one"
            )
        texts[folded(key)] = (key, text)
        values[key] = text if key.casefold() in _NAMES_OF_RECORDS else parse_value(text)
        is_label = key in _LABELS and not isinstance(values[key], str | bool)
        before_it = key if is_label else None
    return values, dict(texts.values())


def _refuse_unit(word: str, key: str | None) -> None:
    """Raise RecordError where a label is followed by a unit that is not ours, as in
    ``energy=-5.0 Ha``, which would be read as eV.
    """
    unit = parsed(word) if key is not None and len(word) > 1 else None
    if unit is not None and unit.energy and unit.factor != 1.0:
        raise RecordError(
            f"{word} stands behind {key} like its unit, which is no entry; state the units of all "
            "labels (energy_unit=…, forces_unit=…, stress_unit=…), or convert to eV and Å"
        )


def _pairs(text: str) -> Iterator[re.Match[str]]:
    """Every key with its value; a stray ``=`` is passed over.

    Each letter is looked at a bounded number of times.
    """
    position = 0
    while match := _SPACES.match(text, position):
        pair = _PAIR.match(text, match.end())
        if pair is not None:
            yield pair
        position = match.end() + 1 if pair is None else pair.end()
        if position >= len(text):
            return


def _shown(key: str, text: str) -> str:
    return f"{key}={text!r:.60}"


def _unquoted(text: str) -> str:
    if text[:1] in "\"'" and len(text) > 1 and text[-1] == text[0]:
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    if text[:1] == "{" and text[-1:] == "}":
        return text[1:-1]
    return text


def parse_value(text: str) -> object:
    """A number, truth or text, or an array of numbers or truths; ``_JSON …`` as ASE writes
    what is none of these.
    """
    if text.startswith("_JSON "):
        return _from_json(text.removeprefix("_JSON "))
    bare = re.sub(r"[\[\]]", " ", text) if text.startswith("[") and text.endswith("]") else text
    words = re.findall(r"[^\s,]+", bare)
    if not words:
        return text
    if all(word in _TRUTHS for word in words):
        truths = [_TRUTHS[word] for word in words]
        return truths[0] if len(truths) == 1 else np.array(truths)
    numbers = _numbers(words)
    if numbers is None:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


def _numbers(words: Sequence[str]) -> NDArray[np.generic] | None:
    if any("_" in word for word in words) or _ZEROS_BEFORE.match(words[0]):
        return None
    for kind in (np.int64, np.float64):
        try:
            return np.array(words, dtype=kind)
        except (ValueError, OverflowError):
            continue
    return None


def _from_json(text: str) -> object:
    try:
        value = plain_json.loads(text)
    except ValueError:
        return text
    if isinstance(value, list):
        try:
            array = np.array(value)
        except ValueError:
            return value
        return array if array.dtype.kind in "bif" else value
    return value


def parse_properties(text: str) -> list[Column]:
    """The columns of the atoms from ``name:type:columns:…``.

    Raises:
        RecordError: it is not of that form, or names a column twice.
    """
    fields = text.split(":")
    expected = "expected name:type:columns with the types R, I, S, L, as in species:S:1:pos:R:3"
    if len(fields) % 3 or not all(fields[::3]):
        raise RecordError(f"Properties is {text!r:.80}, {expected}")
    columns: list[Column] = []
    seen: set[str] = set()
    begin = 0
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
        if (
            kind.upper() not in _TYPES
            or not width.isdecimal()
            or not 0 < int(width[:6]) <= XYZ_COLUMNS
        ):
            raise RecordError(f"Properties has {f'{name}:{kind}'!s:.60}:{width!r:.20}, {expected}")
        if folded(name) in seen:
            raise RecordError(f"Properties names {name} twice; remove or rename one")
        seen.add(folded(name))
        columns.append(Column(name, kind.upper(), begin, begin + int(width)))
        begin += int(width)
        if begin > XYZ_COLUMNS:
            raise RecordError(
                f"Properties declares more than {XYZ_COLUMNS} columns; leave large entries out"
            )
    return columns


def _require_geometry(columns: Sequence[Column], *, declared: bool) -> None:
    names = {folded(column.name) for column in columns}
    there = ", ".join(column.name for column in columns)
    if not names & set(map(folded, (*SPECIES_NAMES, *NUMBER_NAMES))):
        raise RecordError(
            f"Properties has no species and no Z; it has {there}: name the column of "
            "the elements species"
        )
    if not names & set(map(folded, POSITION_NAMES)):
        fractional = sorted(names & set(map(folded, FRACTIONAL_NAMES)))
        also = (
            f"; {fractional[0]} are fractions of the cell: convert them to Å" if fractional else ""
        )
        raise RecordError(f"Properties has no pos (Cartesian positions in Å); it has {there}{also}")


def _column(words: Sequence[Sequence[str]], column: Column) -> NDArray[np.generic]:
    """(n_atoms,) or (n_atoms, width)."""
    table = [row[column.begin : column.end] for row in words]
    if column.kind == "L":
        values = np.array(
            [[_truth(word, column, atom) for word in row] for atom, row in enumerate(table)],
            dtype=bool,
        )
    else:
        try:
            values = np.array(table, dtype=_TYPES[column.kind])
        except (ValueError, OverflowError):
            raise _first_bad(table, column) from None
    values = values.reshape(len(table), column.end - column.begin)
    return values[:, 0] if values.shape[1] == 1 else values


def _truth(word: str, column: Column, atom: int) -> bool:
    truths: Mapping[str, bool] = {**_TRUTHS, "1": True, "0": False}
    if word not in truths:
        raise RecordError(f"atom {atom}: {column.name} is {word!r:.30}, expected T or F")
    return truths[word]


def _first_bad(table: Sequence[Sequence[str]], column: Column) -> RecordError:
    kind = {"R": "a number", "I": "a whole number"}[column.kind]
    for atom, row in enumerate(table):
        for word in row:
            try:
                np.array(word, dtype=_TYPES[column.kind])
            except (ValueError, OverflowError):
                return RecordError(f"atom {atom}: {column.name} is {word!r:.30}, expected {kind}")
    return RecordError(f"{column.name} holds something else than {kind}")
