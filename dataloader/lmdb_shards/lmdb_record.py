"""From the bytes of one LMDB row, in any of the layouts, to a structure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dataloader.errors import RowError
from dataloader.labels import LabelKeys
from dataloader.lmdb_shards import ase_rows, restricted_pickle
from dataloader.lmdb_shards.restricted_pickle import TorchGeometricData
from dataloader.names import WantedNames
from dataloader.needs import FeatureSpec
from dataloader.neighbors import MIN_DISTANCE, closest_pair, surely_apart
from dataloader.packed import packed_rows
from dataloader.record import (
    EVERYTHING,
    Keep,
    RawRecord,
    Reading,
    names_read,
    read_record,
)
from dataloader.record_geometry import periodic_with_a_cell, periodic_with_a_volume
from dataloader.structure import Structure, geometry_fault, weight_fault

IS2RE_NAMES = ("y_relaxed", "pos_relaxed")

PYG_1 = "torch_geometric 1.x Data (pickle)"
PYG_2 = "torch_geometric 2.x Data (pickle)"
DICTS = "plain dicts (pickle)"
ASE = "ASE rows (zlib, JSON)"
PACKED = "packed by dataloader/pack.py"
NO_LAYOUT = "none of the layouts that are read"
SUPPORTED = f"{PYG_1}, {PYG_2}, {DICTS}, {ASE}, {PACKED}"

_OTHER_ROWS = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "HDF5",
    b"{": "JSON that is not compressed",
    b"(dp": "a pickle of protocol 0",
    b"}q": "a pickle of protocol 1",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


def unreadable(path: Path, reasons: Iterable[str]) -> str:
    """What to do about rows of none of the layouts that are read."""
    if any("msgpack" in reason for reason in reasons):
        return (
            "DeePMD writes such LMDBs; dpdata converts them to extended XYZ: "
            f"python -c \"import dpdata; dpdata.MultiSystems.from_file('{path}', fmt='deepmd/lmdb')"
            f".to('mace/xyz', '{path.stem}.xyz')\""
        )
    return f"the layouts that are read: {SUPPORTED}"


class Decoded(NamedTuple):
    """A row of an LMDB as a structure, and in which layout it lay there."""

    reading: Reading
    layout: str
    is2re: bool  # relaxed energies or positions are there, as in OC20's IS2RE rows

    @property
    def structure(self) -> Structure:
        """The structure of the row with its labels, in eV and Å."""
        return self.reading.structure


def record_of(
    value: bytes, only: Collection[str] | None = None
) -> tuple[Mapping[str, object], str]:
    """The names of a row with their values, and its layout; of a pickle only the
    names that are asked for.

    Raises:
        RowError: it is none of the layouts, or damaged.
    """
    if value.startswith(packed_rows.MAGIC):
        return packed_rows.loads(value), PACKED
    if value.startswith(ase_rows.ZLIB_BEGINS):
        return ase_rows.loads(value), ASE
    if value[:1] == b"\x80" and value[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        record = restricted_pickle.loads(value, only=only)
        if isinstance(record, TorchGeometricData):
            return record, PYG_1 if record.version == 1 else PYG_2
        if isinstance(record, dict):
            return record, DICTS
        raise RowError(
            f"record is a {type(record).__name__}, expected a torch_geometric Data or a dict"
        )
    raise RowError(f"row is {_what_it_is(value)}, {NO_LAYOUT}")


def _what_it_is(value: bytes) -> str:
    for beginning, what in _OTHER_ROWS.items():
        if value.startswith(beginning):
            return what
    if value[:1] and (0x80 <= value[0] <= 0x8F or value[0] in (0xDE, 0xDF)):
        return "msgpack"
    return f"of an unknown form, beginning with {ascii(value[:8])[1:]}" if value else "empty"


def decode(
    value: bytes,
    identifier: str,
    keys: LabelKeys,
    features: Sequence[FeatureSpec] = (),
    keep: Keep = (),
) -> Decoded:
    """One row as a structure with its labels.

    Raises:
        RowError, LabelError: it cannot be read, or an entry that is always read has no meaning.
    """
    only = None if keep == EVERYTHING else wanted_names(keys, tuple(features), tuple(keep))
    record, layout = record_of(value, only)
    pbc_rule = (
        periodic_with_a_cell if isinstance(record, TorchGeometricData) else periodic_with_a_volume
    )
    reading = read_record(RawRecord(record), identifier, keys, features, keep, pbc_rule)
    return Decoded(reading, layout, any(name in record for name in IS2RE_NAMES))


def wanted_names(
    keys: LabelKeys, features: tuple[FeatureSpec, ...], keep: tuple[str, ...]
) -> WantedNames:
    """Every name of a row that `decode` looks at."""
    return _with_names_of_is2re(names_read(keys, features, keep))


@cache
def _with_names_of_is2re(names: WantedNames) -> WantedNames:
    return WantedNames({*names, *IS2RE_NAMES})


def fault_of(structure: Structure) -> str | None:
    """What makes a structure unusable whoever uses it, as a phrase; None where it is sound."""
    fault = geometry_fault(structure) or weight_fault(structure)
    if fault:
        return fault
    if len(set(structure.pbc)) == 1:
        cells = structure.cell[None] if structure.periodic else None
        if surely_apart(structure.positions[None], cells)[0]:
            return None
    closest = closest_pair(structure)
    if closest and closest[0] < MIN_DISTANCE:
        return f"two atoms closer than {MIN_DISTANCE} Å (atoms {closest[1]} and {closest[2]})"
    return None
