"""HDF5 files of ``mace_prepare_data``: a group for each structure, ``config_batch_N/config_M``.

The structures are kept in memory. A structure lies in some fifteen data sets of its own: one of 48
atoms takes 5 ms to read, eight times what its neighbour list takes, and reading it anew in every
epoch would set the pace. In memory it has 4 kB where the file has 12 kB. What is larger than memory
becomes shards once, with ``dataloader/pack.py``, a part of the files at a time.

Labels lie in the group ``properties`` and their weights in ``property_weights``. Until mace-torch
0.3.12 they were data sets of the structure itself, and a label that was absent was written as
zeros with the weight 0.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.entry_values import RecordError
from dataloader.errors import InputError
from dataloader.in_memory import RawFrame, kept_format
from dataloader.limits import HDF5_VALUES
from dataloader.names import Entries
from dataloader.progress import ProgressBar
from dataloader.record import RawRecord
from dataloader.record_geometry import Pbc

ENDINGS = (".h5", ".hdf5")
BEGINS = b"\x89HDF\r\n\x1a\n"
WHAT = "an HDF5 file of mace_prepare_data"
ABSENT = "None"  # the text that mace writes for what a structure lacks
FILLED = "zeros with the weight 0 in place of a label (%s) are taken as absent"
UNITS = "mace's units: eV, Å"
_BATCH = re.compile(r"config_batch_(\d+)$")
_CONFIG = re.compile(r"config_(\d+)$")
_GEOMETRY = ("atomic_numbers", "positions", "cell", "pbc")
# those that had weights until mace-torch 0.3.12
_WEIGHTED = ("energy", "forces", "stress", "virials")
_UNWEIGHTED = ("dipole", "charges")  # those that were zeros too where they were absent


def raw_frames(path: Path) -> Iterator[RawFrame]:
    """The structures of one file, one after another, as names and values; in eV
    and Å, as mace has them.

    Raises:
        InputError: the file cannot be read, or is not one of ``mace_prepare_data``.
    """
    h5py = _library()
    try:
        input_files.require_regular(path)
        with h5py.File(path, "r") as file:
            places = _places(file, path)
            with ProgressBar(f"reading {path.name}", len(places)) as bar:
                for place in places:
                    where = f"{path} {place}"
                    yield _frame(h5py, file[place], f"{path.name}#{place}", where)
                    bar.update(1)
    except (OSError, RuntimeError) as error:  # h5py raises both for damaged files
        raise InputError(f"cannot read {path}: {_short(error)}; expected {WHAT}") from None


def _library() -> Any:
    """h5py, which comes with mace-torch.

    Raises:
        InputError: it is absent.
    """
    try:
        import h5py
    except ImportError:
        raise InputError("HDF5 files need h5py, which is not installed: pip install h5py") from None
    return h5py


def _short(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split())[:160]


def _places(file: Any, path: Path) -> list[str]:
    """The names of the structures in the order in which mace counts them.

    Raises:
        InputError: there are none, or something else lies beside them.
    """
    batches = _numbered(file, _BATCH)
    if not batches:
        has = ", ".join(list(file)[:5]) or "nothing"
        raise InputError(f"{path} has no config_batch_0 (it has: {has}); expected {WHAT}")
    return [f"{batch}/{config}" for batch in batches for config in _numbered(file[batch], _CONFIG)]


def _numbered(group: Any, pattern: re.Pattern[str]) -> list[str]:
    matches = [match for name in group if (match := pattern.match(name))]
    return [match.string for match in sorted(matches, key=lambda match: int(match[1]))]


def _frame(h5py: Any, group: Any, identifier: str, where: str) -> RawFrame:
    """One structure from its group."""
    try:
        values, notes = _values(h5py, group)
    except RecordError as error:
        raise InputError(f"{where}: {error}") from None
    return RawFrame(RawRecord(values), identifier, where, notes, never_periodic)


def _values(h5py: Any, group: Any) -> tuple[dict[str, object], tuple[str, ...]]:
    """Names and values, and what is to be said of them."""
    entries = _read(h5py, group)
    labels = entries.pop("properties", None)
    weights = entries.pop("property_weights", None)
    values: dict[str, object] = {
        name: entries.pop(name, None) for name in (*_GEOMETRY, "config_type")
    }
    values["config_weight"] = entries.pop("weight", None)
    values["head"] = entries.pop("head", None)
    if not isinstance(labels, dict):
        weights = {name: entries.pop(f"{name}_weight", None) for name in _WEIGHTED}
        weights |= dict.fromkeys(_UNWEIGHTED, np.zeros(()))
        labels = entries
    notes = [UNITS]
    for name, value in labels.items():
        weight = weights.get(name) if isinstance(weights, dict) else None
        if _is_filled(value, weight):
            notes.append(FILLED % name)
        elif not (name == "head" and value == ""):  # of a file that was made for one head
            values[name] = value
            _take_weight(values, name, value, weight)
    return {name: value for name, value in values.items() if value is not None}, tuple(notes)


def _take_weight(values: dict[str, object], name: str, value: object, weight: object) -> None:
    """Keep the weight of a label."""
    if value is None or weight is None or name in _UNWEIGHTED:
        return
    values.setdefault(f"config_{name}_weight", weight)


def _is_filled(value: object, weight: object) -> bool:
    """Whether a label is what mace wrote where there was none: zeros, which count nothing."""
    if value is None or weight is None or isinstance(value, str):
        return False
    return not np.any(np.asarray(weight)) and not np.any(np.asarray(value))


def _read(h5py: Any, group: Any) -> dict[str, Any]:
    """A group as names and values; ``None`` where mace wrote the text.

    Raises:
        RecordError: an entry is no array of numbers and no text, lies in another
            file, or is too large.
    """
    if not isinstance(group, h5py.Group):
        raise RecordError("it is no group, as a structure of mace is one")
    values: dict[str, Any] = {}
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise RecordError(f"{name} is a link to another place; copy the data into the file")
        item = group[name]
        if isinstance(item, h5py.Group):
            if group.name.count("/") > 2:
                raise RecordError(f"{name} holds groups in groups, which mace does not write")
            values[name] = _read(h5py, item)
        else:
            values[name] = _value(h5py, item, name)
    return values


def _value(h5py: Any, item: Any, name: str) -> NDArray[np.generic] | str | None:
    """One data set: numbers, a text, or None."""
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
        raise RecordError(f"{name} lies in another file; copy the data into this one")
    if item.size is None or item.size > HDF5_VALUES:
        raise RecordError(f"{name} has {item.size} values, at most {HDF5_VALUES} are read")
    if item.dtype.kind not in "biuf" and h5py.check_string_dtype(item.dtype) is None:
        raise RecordError(f"{name} holds neither numbers nor a text")
    value = item[()]
    if item.dtype.kind in "biuf":
        return np.asarray(value)
    if not isinstance(value, bytes | str):
        raise RecordError(f"{name} is a list of texts, expected numbers or one text")
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return None if text == ABSENT else text


def never_periodic(entries: Entries, cell: NDArray[np.float64]) -> tuple[Pbc, str]:
    """As mace takes a structure of which it does not know the periodic directions."""
    return (False, False, False), "not stored; not periodic, as mace takes it"


def _takes(path: Path) -> bool:
    if path.suffix in ENDINGS:
        return True
    try:
        with input_files.opened(path) as file:
            return file.read(len(BEGINS)) == BEGINS
    except OSError:
        return False


HDF5 = kept_format(name="hdf5", what=WHAT, takes=_takes, frames=raw_frames, endings=ENDINGS)
