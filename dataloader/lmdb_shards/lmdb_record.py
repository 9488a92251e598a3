"""From the bytes of one LMDB row, in any of the layouts, to a structure."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloader.batch import FeatureSpec
from dataloader.labels import LabelKeys, feature_of, find_labels, kept, names_of_labels, weight_of
from dataloader.lmdb_shards import ase_rows, packed_rows, restricted_pickle
from dataloader.lmdb_shards.restricted_pickle import RowError, TorchGeometricData
from dataloader.neighbors import MIN_DISTANCE, closest_pair, surely_apart
from dataloader.structure import Edges, Structure, geometry_fault, label_fault, volume_of

POSITION_NAMES = ("pos", "positions")
NUMBER_NAMES = ("atomic_numbers", "numbers", "z")
ALIASES = {"total_charge": "charge", "total_spin": "spin"}  # mace's names of an input: OMol25's of the same
IS2RE_NAMES = ("y_relaxed", "pos_relaxed")

PYG_1, PYG_2 = "torch_geometric 1.x Data (pickle)", "torch_geometric 2.x Data (pickle)"
DICTS, ASE, PACKED = "plain dicts (pickle)", "ASE rows (zlib, JSON)", "packed by dataloader/pack.py"
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


class Decoded(NamedTuple):
    """One row."""

    structure: Structure
    names: tuple[str | None, str | None, str | None]  # under which energy, forces and stress were found
    pbc_rule: str
    layout: str
    charge: float  # 0 where the row names none
    spin: float  # multiplicity; 1 where the row names none
    is2re: bool  # relaxed energies or positions are there, as in OC20's IS2RE rows


def record_of(value: bytes, only: Collection[str] | None = None) -> tuple[Mapping[str, object], str]:
    """The names of a row with their values, and its layout; of a pickle only the names that are asked for.

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
        raise RowError(f"record is a {type(record).__name__}, expected a torch_geometric Data or a dict")
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
    keep: Sequence[str] = (),
) -> Decoded:
    """One row as a structure with its labels.

    Raises:
        RowError, LabelError: it cannot be read, or a label cannot be used.
    """
    record, layout = record_of(value, names_read(keys, tuple(features), tuple(keep)))
    numbers = _array(record, NUMBER_NAMES, np.float64)
    positions = _array(record, POSITION_NAMES, np.float64)
    if numbers.ndim != 1 or positions.shape != (len(numbers), 3):
        raise RowError(f"positions have shape {positions.shape} for {numbers.shape} atomic numbers")
    if not (np.abs(numbers) < 2**31).all() or (numbers != np.round(numbers)).any():
        raise RowError("atomic numbers are not whole")
    cell = _cell(record)
    pbc, rule = _periodicity(record, cell)
    labels = find_labels(_without_unit_axes(record), keys, len(numbers), volume_of(cell, pbc))
    named = {ours: record[theirs] for ours, theirs in ALIASES.items() if theirs in record and ours not in record}
    inputs = {**record, **named}
    structure = Structure(
        atomic_numbers=numbers.astype(np.int64),  # OC20 stores them as float32
        positions=positions,
        cell=cell,
        pbc=pbc,
        identifier=identifier,
        energy=labels.energy,
        forces=labels.forces,
        stress=labels.stress if all(pbc) else None,
        free_atoms=_free_atoms(record, len(numbers)),
        features={spec.name: feature_of(inputs, spec, len(numbers)) for spec in features},
        head=None if record.get("head") is None else str(record["head"])[:256],
        config_type=str(record.get("config_type", "Default"))[:256],
        weight=weight_of(record, "config_weight"),
        energy_weight=weight_of(record, "config_energy_weight"),
        forces_weight=weight_of(record, "config_forces_weight"),
        stress_weight=weight_of(record, "config_stress_weight"),
        extra=kept(record, keep) if keep else {},
        edges=edges if isinstance(edges := record.get("edges"), Edges) else None,
    )
    return Decoded(
        structure,
        labels.names,
        rule,
        layout,
        charge=_number(inputs, "total_charge", 0.0),
        spin=_number(inputs, "total_spin", 1.0),
        is2re=any(name in record for name in IS2RE_NAMES),
    )


@cache
def names_read(keys: LabelKeys, features: tuple[FeatureSpec, ...], keep: tuple[str, ...]) -> frozenset[str]:
    """Every name of a record that `decode` looks at."""
    weights = ("config_weight", "config_energy_weight", "config_forces_weight", "config_stress_weight")
    others = ("cell", "pbc", "fixed", "head", "config_type", "edges", *ALIASES, *ALIASES.values(), *weights)
    inputs = [spec.name for spec in features]
    return frozenset({*NUMBER_NAMES, *POSITION_NAMES, *IS2RE_NAMES, *others, *names_of_labels(keys), *inputs, *keep})


def fault_of(structure: Structure) -> str | None:
    """What makes a structure unusable whoever uses it, as a phrase; None where it is sound."""
    fault = geometry_fault(structure) or label_fault(structure)
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


def _number(record: Mapping[str, object], name: str, default: float) -> float:
    """One number; a value that is none counts as the default, the model's inputs are checked where they are used."""
    try:
        value = np.asarray(record.get(name, default), dtype=np.float64)
    except (TypeError, ValueError):
        return default
    return float(value.reshape(-1)[0]) if value.size == 1 else default


def _array(record: Mapping[str, object], names: tuple[str, ...], dtype: type) -> NDArray[np.float64]:
    for name in names:
        if record.get(name) is not None:
            try:
                return np.asarray(record[name]).astype(dtype)
            except (TypeError, ValueError):
                raise RowError(f"{name} is not an array of numbers") from None
    raise RowError(f"{names[0]} missing")


def _cell(record: Mapping[str, object]) -> NDArray[np.float64]:
    """The cell as (3, 3): OC20 stores (1, 3, 3); a record without one has none."""
    if record.get("cell") is None:
        return np.zeros((3, 3))
    cell = _array(record, ("cell",), np.float64)
    if cell.size != 9:
        raise RowError(f"cell has shape {cell.shape}, expected (3, 3)")
    return cell.reshape(3, 3)


def _periodicity(record: Mapping[str, object], cell: NDArray[np.float64]) -> tuple[tuple[bool, bool, bool], str]:
    """Periodic directions and the rule that gave them.

    OC20 rows store none; taken periodic in three directions they reproduce the edges stored in the rows exactly, taken
    as open clusters 60 % of them.
    """
    if record.get("pbc") is not None:
        stored = _truths(record, "pbc")
        if stored.size not in (1, 3):
            raise RowError(f"pbc has {stored.size} values, expected 3")
        x, y, z = np.broadcast_to(stored, 3).tolist()
        return (x, y, z), "as stored"
    if isinstance(record, TorchGeometricData):
        return (True, True, True), "not stored; torch_geometric rows are periodic in three directions"
    periodic = (
        volume_of(cell, (True, True, True)) > 0 or not np.isfinite(cell).all()
    )  # then the cell is what is refused
    return (periodic,) * 3, "not stored; periodic where the cell has a volume"


def _without_unit_axes(record: Mapping[str, object]) -> Mapping[str, object]:
    """Labels that collation left with a leading axis of one: stress (1, 3, 3), energy (1, 1)."""
    return {
        k: v.squeeze(0) if isinstance(v, np.ndarray) and v.ndim == 3 and len(v) == 1 else v for k, v in record.items()
    }


def _free_atoms(record: Mapping[str, object], n_atoms: int) -> NDArray[np.bool_] | None:
    if record.get("fixed") is None:
        return None
    fixed = _truths(record, "fixed")
    if len(fixed) != n_atoms:
        raise RowError(f"fixed has {len(fixed)} entries for {n_atoms} atoms")
    return ~fixed


def _truths(record: Mapping[str, object], name: str) -> NDArray[np.bool_]:
    """Values that are true or false, 0 or 1; text would be true whatever it says."""
    values = _array(record, (name,), np.float64).reshape(-1)
    if not ((values == 0.0) | (values == 1.0)).all():
        raise RowError(f"{name} holds other values than 0 and 1")
    return values.astype(bool)
