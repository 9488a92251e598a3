"""Read LMDB records (OC20/OC22 pickles, plain dicts) as structures; faulty ones are dropped and counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataloader.batch import FeatureSpec
from dataloader.errors import InputError
from dataloader.labels import LabelError, LabelKeys, feature_of, find_labels, weight_of
from dataloader.lmdb_file import LmdbFile
from dataloader.neighbors import MIN_DISTANCE, closest_pair
from dataloader.restricted_pickle import RowError, TorchGeometricData, loads
from dataloader.structure import Structure, geometry_fault, label_fault, volume_of

POSITION_NAMES = ("pos", "positions")
NUMBER_NAMES = ("atomic_numbers", "numbers", "z")
SHOWN_OFFENDERS, SHOWN_REASONS = 3, 5


class LmdbSource:
    """The usable records of one LMDB; every record is looked at once when the source is opened."""

    in_memory = False

    def __init__(
        self,
        path: Path,
        keys: LabelKeys,
        *,
        require_labels: bool,
        max_dropped: float,
        features: Sequence[FeatureSpec] = (),
    ) -> None:
        self.path, self.label_keys, self.features = path, keys, features
        self.file = LmdbFile(path)
        self.isolated_atoms: list[Structure] = []
        self.label_names: Counter[tuple[str | None, str | None, str | None]] = Counter()
        self.pbc_rules: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._index(require_labels)
        self._refuse_too_many_drops(max_dropped)

    def _index(self, require_labels: bool) -> None:
        kept: list[bytes] = []
        sizes: list[int] = []
        self.elements: list[frozenset[int]] = []
        self.heads: list[str | None] = []
        compositions: dict[frozenset[int], frozenset[int]] = {}  # one object per composition: a row costs 8 bytes
        self.offenders: dict[str, list[str]] = {}
        all_keys = self.file.sample_keys()
        for key in tqdm(all_keys, desc=f"index {self.path.name}", unit="rows", disable=len(all_keys) < 2000):
            try:
                structure, names, rule = self._decode(key)
                fault = _usable(structure, names, require_labels)
            except (RowError, LabelError) as error:
                fault = str(error)
            if fault:
                reason = fault.split(" (")[0]
                self.dropped[reason] += 1
                self.offenders.setdefault(reason, []).append(key.decode())
                continue
            kept.append(key)
            sizes.append(structure.n_atoms)
            elements = frozenset(structure.atomic_numbers.tolist())
            self.heads.append(structure.head)
            self.elements.append(compositions.setdefault(elements, elements))
            self.label_names[names] += 1
            self.pbc_rules[rule] += 1
        self.keys, self.n_atoms = kept, np.array(sizes, dtype=np.int64)

    def _refuse_too_many_drops(self, max_dropped: float) -> None:
        dropped, total = self.dropped.total(), self.dropped.total() + len(self.keys)
        if total == 0:
            raise InputError(f"{self.path} holds no samples (keys 0, 1, 2 …)")
        if dropped > max_dropped * total or not self.keys:
            raise InputError(
                f"{self.path}: {dropped} of {total} records cannot be used ({self.drop_report()}); "
                f"mend them, name the labels with --energy_key/--forces_key, or raise --max_dropped {max_dropped:g}"
            )

    def drop_report(self) -> str:
        """Reasons with counts and the first keys: ``3 × forces missing (keys 7, 12, 19)``."""
        shown = [
            f"{count} × {reason} (key{'s' if count > 1 else ''} {', '.join(self.offenders[reason][:SHOWN_OFFENDERS])})"
            for reason, count in self.dropped.most_common(SHOWN_REASONS)
        ]
        more = len(self.dropped) - len(shown)
        return "; ".join([*shown, f"and {more} other reasons"] if more else shown)

    def __len__(self) -> int:
        return len(self.keys)

    def identifier(self, i: int) -> str:
        """Shard and key."""
        return f"{self.path.name} key {self.keys[i].decode()}"

    def structure(self, i: int) -> Structure:
        """Decode the i-th usable record.

        Raises:
            InputError: the record could be read when it was indexed and cannot be now.
        """
        try:
            return self._decode(self.keys[i])[0]
        except (RowError, LabelError) as error:
            raise InputError(f"{self.path} key {self.keys[i].decode()}: {error}; did the file change?") from None

    def _decode(self, key: bytes) -> tuple[Structure, tuple[str | None, str | None, str | None], str]:
        record = loads(self.file.get(key))
        if not isinstance(record, dict):
            raise RowError(f"record is a {type(record).__name__}, expected a torch_geometric Data or a dict")
        numbers = _array(record, NUMBER_NAMES, np.float64)
        positions = _array(record, POSITION_NAMES, np.float64)
        if numbers.ndim != 1 or positions.shape != (len(numbers), 3):
            raise RowError(f"positions have shape {positions.shape} for {numbers.shape} atomic numbers")
        if not (np.abs(numbers) < 2**31).all() or (numbers != np.round(numbers)).any():
            raise RowError("atomic numbers are not whole")
        cell = _cell(record)
        pbc, rule = _periodicity(record, cell)
        volume = volume_of(cell, pbc)
        labels = find_labels(_without_unit_axes(record), self.label_keys, len(numbers), volume)
        structure = Structure(
            atomic_numbers=numbers.astype(np.int64),  # OC20 stores them as float32
            positions=positions,
            cell=cell,
            pbc=pbc,
            identifier=f"{self.path.name} key {key.decode()}",
            energy=labels.energy,
            forces=labels.forces,
            stress=labels.stress if all(pbc) else None,
            free_atoms=_free_atoms(record, len(numbers)),
            features={spec.name: feature_of(record, spec, len(numbers)) for spec in self.features},
            head=None if record.get("head") is None else str(record["head"]),
            config_type=str(record.get("config_type", "Default")),
            weight=weight_of(record, "config_weight"),
            energy_weight=weight_of(record, "config_energy_weight"),
            forces_weight=weight_of(record, "config_forces_weight"),
            stress_weight=weight_of(record, "config_stress_weight"),
        )
        return structure, labels.names, rule


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
    if not np.isin(values, (0.0, 1.0)).all():
        raise RowError(f"{name} holds other values than 0 and 1")
    return values.astype(bool)


def _usable(structure: Structure, names: tuple[str | None, ...], require_labels: bool) -> str | None:
    fault = geometry_fault(structure) or label_fault(structure)
    if fault:
        return fault
    if require_labels and names[0] is None:
        return "energy missing"
    if require_labels and names[1] is None:
        return "forces missing"
    closest = closest_pair(structure)
    if closest and closest[0] < MIN_DISTANCE:
        return f"two atoms closer than {MIN_DISTANCE} Å (atoms {closest[1]} and {closest[2]})"
    return None
