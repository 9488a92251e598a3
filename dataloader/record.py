"""What a record means, whatever file it came from: one set of rules for every reader.

A reader brings names and values (`RawRecord`); from here on it does not matter any more whether they stood in an
extended-XYZ comment, in a pickle or in an ASE row. Names that decide physics are read in any case, units that are
stated are converted and said, charge and spin have one set of names, and held atoms one meaning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from numpy.typing import NDArray

from dataloader.labels import (
    CHARGE_NAMES,
    NOT_READ,
    SPIN_NAMES,
    LabelError,
    LabelKeys,
    LabelNames,
    Labels,
    find_labels,
    key_flag,
    usual_names,
)
from dataloader.names import Entries, WantedNames
from dataloader.needs import FeatureSpec
from dataloader.quantities import QUANTITIES
from dataloader.structure import Edges, LabelValue, Structure, volume_of
from dataloader.units import UnitError, factor_to_ours, parsed, stated_quantity

NUMBER_NAMES = ("atomic_numbers", "numbers", "z", "Z")
SPECIES_NAMES = ("species", "symbols", "symbol", "elements", "element")
POSITION_NAMES = ("pos", "positions")
FRACTIONAL_NAMES = (
    "frac_pos",
    "scaled_positions",
    "frac_coords",
    "fractional",
    "scaled_pos",
    "direct",
    "frac_positions",
)
LATTICE_NAMES = ("Lattice", "cell")  # what they hold is a cell, or the record is refused
NEAR_LATTICE_NAMES = ("unit_cell", "lattice_vectors", "cell_vectors", "box", "box_vectors")
PBC_NAMES = ("pbc", "periodic", "periodicity", "periodic_boundary_conditions")
HELD_NAME = "fixed"  # True where an atom was held, as OC20 has it
MOVABLE_NAME = "move_mask"  # True where an atom was free to move, as ASE writes it into extended XYZ
WEIGHT_NAME = "config_weight"
ABSENT_TEXTS = {"", "none", "null", "nan", "n/a"}
EVERYTHING: Literal["everything"] = "everything"  # of names to keep

Keep = Sequence[str] | Literal["everything"]
Pbc = tuple[bool, bool, bool]
PbcRule = Callable[[Entries, NDArray[np.float64]], tuple[Pbc, str]]  # where a record stores none
_MOST_TEXT = 256  # letters of a head or config_type


class RecordError(LabelError):
    """A record cannot be read as a structure; the reader adds file and frame or key."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Names and values as a file has them.

    Attributes:
        values: of the whole structure.
        columns: those with a value for each atom, where the format tells them apart; None where ``values`` holds all.
    """

    values: Mapping[str, object]
    columns: Mapping[str, object] | None = None


class Reading(NamedTuple):
    """A structure, and what is to be known of how it was read."""

    structure: Structure
    names: LabelNames  # under which the labels were found
    faults: tuple[tuple[str, str], ...]  # quantity and reason, of labels that are there and unusable
    pbc_rule: str
    notes: tuple[str, ...]  # what was converted or passed over, for the log


def read_record(
    raw: RawRecord,
    identifier: str,
    keys: LabelKeys,
    features: Sequence[FeatureSpec],
    keep: Keep,
    pbc_rule: PbcRule,
) -> Reading:
    """One record as a structure with its labels.

    Args:
        raw: names and values.
        identifier: a name under which a person finds the record again.
        keys: names of labels, charge and spin that the user gave.
        features: inputs that the model takes.
        keep: names of further entries to keep with the structure, or all that are left.
        pbc_rule: periodic directions where the record does not say them, and the rule in words.

    Raises:
        RecordError, LabelError: the record is no structure, or an entry that is always read has no meaning.
    """
    of_structure = Entries.of(raw.values)
    of_atoms = of_structure if raw.columns is None else Entries.of(raw.columns)
    units = _StatedUnits(of_structure)
    numbers = _atomic_numbers(of_atoms)
    n_atoms = len(numbers)
    positions = _positions(of_atoms, n_atoms) * units.of_lengths("positions")
    cell = _cell(of_structure) * units.of_lengths("cell")
    pbc, rule = _periodicity(of_structure, cell, pbc_rule)
    labels = find_labels(
        of_structure,
        keys,
        n_atoms,
        volume_of(cell, pbc),
        columns=None if raw.columns is None else of_atoms,
        scale=lambda quantity: units.scale(quantity, n_atoms),
    )
    units.refuse_half_stated(labels)
    charge = _number_named(of_structure, keys.charge, CHARGE_NAMES, "charge")
    spin = _number_named(of_structure, keys.spin, SPIN_NAMES, "spin")
    free_atoms, held_in_part = _free_atoms(of_atoms, of_structure, n_atoms)
    structure = Structure(
        atomic_numbers=numbers,
        positions=positions,
        cell=cell,
        pbc=pbc,
        identifier=identifier,
        free_atoms=free_atoms,
        charge=charge,
        spin=spin,
        head=_text(of_structure, "head"),
        config_type=_text(of_structure, "config_type") or "Default",
        features={
            spec.name: _feature(spec, of_atoms if spec.per_atom else of_structure, n_atoms, charge, spin)
            for spec in features
        },
        labels=_meaningful(labels, pbc),
        weight=_weight(of_structure, WEIGHT_NAME),
        weights=_weights(of_structure),
        extra=_kept(raw, keep, labels, n_atoms),
        columns=_kept_columns(raw, keep, labels, n_atoms) if keep == EVERYTHING else {},
        edges=edges if isinstance(edges := raw.values.get("edges"), Edges) else None,
    )
    return Reading(
        structure=structure,
        names=labels.names,
        faults=tuple(labels.faults.items()),
        pbc_rule=rule,
        notes=(*units.notes(), *([held_in_part] if held_in_part else [])),
    )


@cache
def names_read(keys: LabelKeys, features: tuple[FeatureSpec, ...], keep: tuple[str, ...]) -> WantedNames:
    """Every name of a record that `read_record` looks at, in any case, and the names that state units."""
    groups = (
        NUMBER_NAMES,
        SPECIES_NAMES,
        POSITION_NAMES,
        FRACTIONAL_NAMES,
        LATTICE_NAMES,
        NEAR_LATTICE_NAMES,
        PBC_NAMES,
        [WEIGHT_NAME, *(quantity.weight_name for quantity in QUANTITIES.values())],
        (HELD_NAME, MOVABLE_NAME, "head", "config_type", "edges"),
        [spec.name for spec in features],
        keep,
    )
    return WantedNames({*usual_names(keys), *(name for group in groups for name in group)})


# Units


class _StatedUnits:
    """Units that a record states beside its numbers.

    Raises:
        RecordError: a stated unit is not known, or measures something else.
    """

    def __init__(self, entries: Entries) -> None:
        self._scales: dict[str, tuple[float, bool]] = {}
        self._texts: dict[str, str] = {}
        for name in entries.stating_units():
            value = entries[name]
            if _is_absent(value):
                continue
            quantity = stated_quantity(name)
            if quantity is not None:
                self._take(name, quantity, value)
            elif isinstance(value, Mapping):
                for part, text in value.items():
                    of_part = stated_quantity(f"{part}_unit")
                    if of_part is not None:
                        self._take(f"{name}[{part}]", of_part, text)
            else:
                _refuse_unclear(name, value)

    def _take(self, name: str, quantity: str, text: object) -> None:
        try:
            scale = factor_to_ours(text, quantity)
        except UnitError as error:
            raise RecordError(f"{name}: {error}") from None
        if self._scales.get(quantity, scale) != scale:
            raise RecordError(f"{name} says {text!r:.40}, and another entry another unit of {quantity}; keep one")
        self._scales[quantity] = scale
        self._texts[quantity] = f"{name} {text}"

    def scale(self, quantity: str, n_atoms: int) -> float:
        """What the unit of a label is in ours; 1 where none is stated."""
        factor, per_atom = self._scales.get(quantity, (1.0, False))
        return factor * n_atoms if per_atom else factor

    def of_lengths(self, quantity: str) -> float:
        """What the unit of positions or of the cell is in Å."""
        return self._scales.get(quantity, self._scales.get("lengths", (1.0, False)))[0]

    def refuse_half_stated(self, labels: Labels) -> None:
        """Raise RecordError where one label is said to be in another unit than ours and another label says nothing."""
        foreign = [text for quantity, text in self._texts.items() if self._scales[quantity][0] != 1.0]
        if not foreign:
            return
        for quantity, name in zip(QUANTITIES, labels.names, strict=True):
            if quantity not in labels.values or quantity not in _OURS:
                continue
            stated = "virial" if quantity == "stress" and name and "virial" in name.lower() else quantity
            if name is not None and stated not in self._scales:
                raise RecordError(
                    f"{foreign[0]} is stated and no unit of {name}; state it as {stated}_unit, for example "
                    f"{stated}_unit={_EXAMPLES[stated]}"
                )

    def notes(self) -> tuple[str, ...]:
        """What was converted, with its factor."""
        lines = []
        for quantity, (factor, per_atom) in self._scales.items():
            if (factor, per_atom) != (1.0, False):
                times = f" × {factor:.9g}" if factor != 1.0 else ""
                atoms = " × atoms" if per_atom else ""
                lines.append(f"{quantity} converted to {_OURS[quantity]}:{times}{atoms} ({self._texts[quantity]})")
        return tuple(lines)


_OURS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "virial": "eV"}
_OURS |= {"positions": "Å", "cell": "Å", "lengths": "Å"}
_EXAMPLES = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3", "virial": "eV"}
_OTHER_STYLES = {"real", "electron", "si", "cgs", "lj", "au", "a.u.", "atomic"}  # of LAMMPS, and atomic units


def _refuse_unclear(name: str, value: object) -> None:
    """Raise RecordError for ``units=real``: it says that the numbers are not ours, and not which is in what."""
    if not isinstance(value, str):
        return
    style = value.strip().casefold()
    unit = parsed(value)
    foreign = unit is not None and (unit.factor, unit.per_atom) != (1.0, False)
    if style in _OTHER_STYLES or foreign:
        raise RecordError(
            f"{name} is {value!r:.40}: of what, it does not say; state energy_unit and forces_unit (they are "
            "converted), or convert to eV, Å"
        )


def _is_absent(value: object) -> bool:
    """None, and the texts that programs write for it."""
    return value is None or (isinstance(value, str) and value.strip().casefold() in ABSENT_TEXTS)


# Geometry


def _first(entries: Entries, names: tuple[str, ...]) -> str | None:
    present = entries.present(names)
    return present[0] if present else None


def _numeric(entries: Entries, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(entries[name]).astype(np.float64)
    except (TypeError, ValueError):
        raise RecordError(f"{name} is not an array of numbers") from None


def _array(stored: object, name: str) -> NDArray[np.generic]:
    try:
        return np.asarray(stored)
    except ValueError:
        raise RecordError(f"{name} is a ragged list") from None


def _atomic_numbers(entries: Entries) -> NDArray[np.int64]:
    """(n_atoms,), from numbers or from symbols."""
    by_number = _first(entries, NUMBER_NAMES)
    by_symbol = _first(entries, SPECIES_NAMES)
    if by_number is None and by_symbol is None:
        raise RecordError(f"{NUMBER_NAMES[0]} missing")
    numbers = None if by_number is None else _whole(_numeric(entries, by_number))
    if by_symbol is None:
        assert numbers is not None
        return numbers
    try:
        of_symbols = _from_symbols(entries[by_symbol], by_symbol)
    except RecordError:
        if numbers is not None:  # a column of another meaning: types, labels of sites
            return numbers
        raise
    if numbers is not None and not np.array_equal(numbers, of_symbols):
        raise RecordError(f"{by_number} and {by_symbol} are both there and differ")
    return of_symbols


def _whole(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    if numbers.ndim != 1:
        raise RecordError(f"atomic numbers have shape {numbers.shape}, expected one for each atom")
    if not (np.abs(numbers) < 2**31).all() or (numbers != np.round(numbers)).any():
        raise RecordError("atomic numbers are not whole")
    return numbers.astype(np.int64)  # OC20 stores them as float32


def _from_symbols(stored: object, name: str) -> NDArray[np.int64]:
    symbols = _array(stored, name)
    if symbols.ndim != 1 or symbols.dtype.kind not in "OUS":
        raise RecordError(f"{name} holds no element symbols; name a column of atomic numbers Z")
    spelled = [str(symbol).capitalize() for symbol in symbols]
    unknown = next((s for s in spelled if number_of_symbol.get(s, 0) < 1), None)
    if unknown is not None:
        raise RecordError(f"{unknown!r} is no element symbol")
    return np.array([number_of_symbol[s] for s in spelled], dtype=np.int64)


def _positions(entries: Entries, n_atoms: int) -> NDArray[np.float64]:
    """(n_atoms, 3), Cartesian."""
    name = _first(entries, POSITION_NAMES)
    if name is None:
        fractional = _first(entries, FRACTIONAL_NAMES)
        if fractional is not None:
            raise RecordError(
                f"{fractional} and no {POSITION_NAMES[0]}: expected Cartesian positions in Å under the name pos"
            )
        raise RecordError(f"{POSITION_NAMES[0]} missing")
    positions = _numeric(entries, name)
    if positions.shape != (n_atoms, 3):
        raise RecordError(f"positions have shape {positions.shape} for {(n_atoms,)} atomic numbers")
    return positions


def _cell(entries: Entries) -> NDArray[np.float64]:
    """(3, 3), rows are the lattice vectors; zero where the record has none. OC20 stores (1, 3, 3)."""
    cells: dict[str, NDArray[np.float64]] = {}
    for name in entries.present(LATTICE_NAMES):
        cells[name] = _nine(entries, name)
    if not cells:
        for name in entries.present(NEAR_LATTICE_NAMES):
            if not _says_something_else(_array(entries[name], name)):
                cells[name] = _nine(entries, name)
    names = list(cells)
    for other in names[1:]:
        if not np.allclose(cells[names[0]], cells[other], rtol=1e-8, atol=1e-8, equal_nan=True):
            raise RecordError(f"{names[0]} and {other} are both there and differ; keep one")
    return cells[names[0]] if names else np.zeros((3, 3))


def _says_something_else(array: NDArray[np.generic]) -> bool:
    """Whether an entry that is called like a cell is none: a name (``fcc``), a number of a cell."""
    return array.dtype.kind not in "iuf" or (array.size == 1 and array.dtype.kind in "iu")


def _nine(entries: Entries, name: str) -> NDArray[np.float64]:
    cell = _numeric(entries, name)
    if cell.size != 9:
        raise RecordError(
            f"{name} has shape {cell.shape}, expected (3, 3): the nine numbers of three lattice vectors, one after "
            'another, as in Lattice="ax ay az bx by bz cx cy cz"'
        )
    return cell.reshape(3, 3)


def _periodicity(entries: Entries, cell: NDArray[np.float64], rule: PbcRule) -> tuple[Pbc, str]:
    """Periodic directions and the rule that gave them: what the record says, else what its format says."""
    stated = {name: _pbc(entries[name], name) for name in entries.present(PBC_NAMES)}
    if not stated:
        return rule(entries, cell)
    if len(set(stated.values())) > 1:
        raise RecordError(f"{' and '.join(stated)} are both there and differ; keep one")
    return next(iter(stated.values())), "as stored"


def _pbc(stored: object, name: str) -> Pbc:
    values = _array(stored, name).reshape(-1)
    if values.size not in (1, 3) or values.dtype.kind not in "biuf" or not _are_truths(values):
        shown = " ".join(map(str, values[:6]))
        raise RecordError(f'{name} is {shown!r:.40}, expected three of T and F: {name}="T T F"')
    stated = [bool(value) for value in values.tolist()]
    x, y, z = stated * 3 if len(stated) == 1 else stated
    return x, y, z


def _are_truths(values: NDArray[np.generic]) -> bool:
    """Whether all are 0 or 1; of tensors that were made floats, too."""
    return values.dtype.kind == "b" or bool(((values == 0) | (values == 1)).all())


def periodic_with_a_lattice(entries: Entries, cell: NDArray[np.float64]) -> tuple[Pbc, str]:
    """Of extended XYZ: periodic in three directions where there is a lattice (ASE's rule)."""
    periodic = bool(cell.any()) or not np.isfinite(cell).all()
    return (periodic,) * 3, "not stored; periodic where there is a Lattice"


def periodic_with_a_volume(entries: Entries, cell: NDArray[np.float64]) -> tuple[Pbc, str]:
    """Of plain dicts and ASE rows: periodic where the cell has a volume; a cell that is not finite is refused later."""
    periodic = volume_of(cell, (True, True, True)) > 0 or not np.isfinite(cell).all()
    return (periodic,) * 3, "not stored; periodic where the cell has a volume"


def always_periodic(entries: Entries, cell: NDArray[np.float64]) -> tuple[Pbc, str]:
    """Of torch_geometric rows, which store none.

    Taken periodic in three directions OC20 rows reproduce the edges stored in them exactly, taken as clusters 60 %.
    """
    return (True, True, True), "not stored; torch_geometric rows are periodic in three directions"


# Everything beside geometry and labels


def _free_atoms(columns: Entries, values: Entries, n_atoms: int) -> tuple[NDArray[np.bool_] | None, str | None]:
    """Which atoms were free to move, (n_atoms,), None where the record does not say; and a note of partly held ones.

    An atom is held where all its components are; the forces of one that may move in some direction count whole.
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    for usual in (HELD_NAME, MOVABLE_NAME):
        for entries in (columns, values) if columns is not values else (columns,):
            for name in entries.present((usual,)):
                mask = _truths(entries[name], name, n_atoms)
                masks[name] = np.logical_not(mask) if usual == HELD_NAME else mask
    if not masks:
        return None, None
    free: dict[str, NDArray[np.bool_]] = {name: np.any(mask, axis=1) for name, mask in masks.items()}
    first = next(iter(free))
    for name, mask in free.items():
        if not np.array_equal(mask, free[first]):
            raise RecordError(f"{first} and {name} are both there and differ about which atoms were held; keep one")
    in_part = any((mask.any(axis=1) & ~mask.all(axis=1)).any() for mask in masks.values())
    return free[first], "atoms that were held in some directions only count as free" if in_part else None


def _truths(stored: object, name: str, n_atoms: int) -> NDArray[np.bool_]:
    """(n_atoms, 1 or 3) values that are true or false, 0 or 1; text would be true whatever it says."""
    values = _array(stored, name)
    if values.shape not in ((n_atoms,), (n_atoms, 1), (n_atoms, 3), (1, n_atoms)):
        raise RecordError(f"{name} has {values.size} entries for {n_atoms} atoms, expected a column of true or false")
    if values.dtype.kind not in "biuf" or not _are_truths(values):
        raise RecordError(f"{name} holds other values than 0 and 1, expected a column of true or false")
    return values.astype(bool).reshape(n_atoms, 3 if values.shape == (n_atoms, 3) else 1)


def _number_named(entries: Entries, given: str | None, usual: tuple[str, ...], what: str) -> float | None:
    """Charge or spin of the whole structure; None where the record names none.

    A list with a value for each atom is something else (partial charges, moments) and is passed over.
    """
    if given == NOT_READ:
        return None
    numbers: dict[str, float] = {}
    for name in entries.present((given,) if given is not None else usual, exact=given is not None):
        value = entries[name]
        if _is_absent(value):
            continue
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise RecordError(
                f"{name} is {value!r:.40}, expected the {what} of the whole structure, a number"
            ) from None
        if array.size == 1 and not np.isnan(array).all():
            numbers[name] = float(array.reshape(()))
    if len(set(numbers.values())) > 1:
        raise RecordError(f"{' and '.join(numbers)} are both there and differ: say which with {key_flag(what)}")
    return next(iter(numbers.values()), None)


def _feature(
    spec: FeatureSpec, entries: Entries, n_atoms: int, charge: float | None, spin: float | None
) -> NDArray[np.float64]:
    """An embedding input that the model asks for; charge and spin under any of their names."""
    looked_for = f"which the model's embedding_specs ask for (looked for {', '.join(_names_of_feature(spec))})"
    if not spec.per_atom and spec.name in (*CHARGE_NAMES, *SPIN_NAMES):
        number = charge if spec.name in CHARGE_NAMES else spin
        if number is None:
            raise LabelError(f"{spec.name} is missing, {looked_for}")
        value = np.array(number)
    else:
        name = _first(entries, (spec.name,))
        if name is None:
            raise LabelError(f"{spec.name} is missing, {looked_for}")
        try:
            value = np.asarray(entries[name], dtype=np.float64)
        except (TypeError, ValueError):
            raise LabelError(f"{name} is not a number") from None
    fault = spec.fault(value, n_atoms)
    if fault:
        raise LabelError(fault)
    return value


def _names_of_feature(spec: FeatureSpec) -> tuple[str, ...]:
    for names in (CHARGE_NAMES, SPIN_NAMES):
        if spec.name in names and not spec.per_atom:
            return names
    return (spec.name,)


def _text(entries: Entries, usual: str) -> str | None:
    name = _first(entries, (usual,))
    return None if name is None else str(entries[name])[:_MOST_TEXT]


def _meaningful(labels: Labels, pbc: Pbc) -> Mapping[str, LabelValue]:
    """Less those that need a volume where there is none."""
    if all(pbc):
        return labels.values
    return {name: value for name, value in labels.values.items() if not QUANTITIES[name].needs_volume}


def _weights(entries: Entries) -> Mapping[str, float]:
    """The weights of single quantities that are not 1."""
    weights = {name: _weight(entries, quantity.weight_name) for name, quantity in QUANTITIES.items()}
    return {name: weight for name, weight in weights.items() if weight != 1.0}


def _weight(entries: Entries, usual: str) -> float:
    """One of mace's per-configuration weights; 1 where the record has none."""
    name = _first(entries, (usual,))
    if name is None:
        return 1.0
    try:
        return float(entries[name])  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise LabelError(f"{name} is not a number") from None


def _kept(raw: RawRecord, keep: Keep, labels: Labels, n_atoms: int) -> dict[str, object]:
    """The named entries that are one number or one text; of everything, small arrays too."""
    if keep != EVERYTHING:
        named = {name: _plain(raw.values.get(name)) for name in keep}
        return {name: value for name, value in named.items() if value is not None}
    used = _used_names(raw, labels)
    kept: dict[str, object] = {}
    for name, value in raw.values.items():
        plain = _plain(value)
        if name in used or value is None:
            continue
        if plain is not None:
            kept[name] = plain
        elif isinstance(value, np.ndarray | list) and not _is_column(value, n_atoms) and np.size(value) <= 9:
            kept[name] = np.asarray(value)
    return kept


def _kept_columns(raw: RawRecord, keep: Keep, labels: Labels, n_atoms: int) -> dict[str, NDArray[np.generic]]:
    used = _used_names(raw, labels)
    columns = raw.values if raw.columns is None else raw.columns
    return {
        name: np.asarray(value)
        for name, value in columns.items()
        if name not in used and value is not None and _is_column(value, n_atoms)
    }


def _is_column(value: object, n_atoms: int) -> bool:
    return isinstance(value, np.ndarray | list) and np.ndim(value) in (1, 2) and len(value) == n_atoms


def _plain(value: object) -> str | int | float | None:
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        item: object = value.reshape(-1)[0].item()
        return item if isinstance(item, str | int | float) else None
    return value if isinstance(value, str | int | float) else None


def _used_names(raw: RawRecord, labels: Labels) -> WantedNames:
    """Names whose meaning is in the structure already, and those of labels."""
    geometry = (*NUMBER_NAMES, *SPECIES_NAMES, *POSITION_NAMES, *LATTICE_NAMES, *PBC_NAMES)
    named = [name.split(" (")[0] for name in labels.names if name]
    return WantedNames({*geometry, *named, "head", "config_type", "edges", "natoms"})
