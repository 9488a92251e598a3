"""Find labels among the names people use, without guessing silently and without inventing zeros."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dataloader.names import Entries
from dataloader.quantities import ENERGY, FORCES, QUANTITIES, STRESS, Quantity
from dataloader.structure import LabelValue

FREE_ENERGY_NAMES = ("REF_free_energy", "free_energy")
VIRIAL_NAMES = ("REF_virials", "REF_virial", "virials", "virial")
CHARGE_NAMES = ("total_charge", "charge")  # the first is mace's, the second OMol25's
SPIN_NAMES = ("total_spin", "spin", "multiplicity", "spin_multiplicity")

NOT_READ = "none"  # of a key flag: the label is not looked for at all

# under which the labels of a record were found, in the order of QUANTITIES
LabelNames = tuple[str | None, ...]


class LabelError(ValueError):
    """A label is present but cannot be used; the reader adds file and frame."""


@dataclass(frozen=True, kw_only=True)
class LabelKeys:
    """Names of the labels where the user gave them.

    None means the usual names are looked for, ``none`` that the label is not looked for.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    charge: str | None = None
    spin: str | None = None
    # of quantities beside energy, forces and stress: quantity and name
    others: tuple[tuple[str, str], ...] = ()
    free_energy: bool = False  # take the free energy where no energy name was given

    def of(self, quantity: str) -> str | None:
        """The name that was given for a quantity, for ``charge`` or for ``spin``."""
        if quantity in ("energy", "forces", "stress", "charge", "spin"):
            name: str | None = getattr(self, quantity)
            return name
        return dict(self.others).get(quantity)

    def given(self) -> dict[str, str]:
        """The names that were given, by quantity; less those that are not to be looked for."""
        named = {what: self.of(what) for what in (*QUANTITIES, "charge", "spin")}
        return {what: name for what, name in named.items() if name is not None and name != NOT_READ}


@dataclass(frozen=True, kw_only=True)
class LabelNeeds:
    """What a command does with labels: which it cannot do without, and of which
    it looks at every value.

    Attributes:
        required: where one is absent, an xyz file is refused and a record of an LMDB is dropped.
        judged: where one cannot be used, likewise; an unusable label of the
            others counts as absent.
    """

    required: frozenset[str]
    judged: frozenset[str] | None  # None: every quantity there is

    def judges(self, quantity: str) -> bool:
        """Whether a label of the quantity must be usable where it is there."""
        return self.judged is None or quantity in self.judged


REQUIRED = tuple(quantity.name for quantity in (ENERGY, FORCES, STRESS) if quantity.required)
TO_TRAIN = LabelNeeds(required=frozenset(REQUIRED), judged=None)
TO_EVALUATE = LabelNeeds(required=frozenset(), judged=None)
TO_PREDICT = LabelNeeds(required=frozenset(), judged=frozenset())


def usual_names(keys: LabelKeys) -> frozenset[str]:
    """Every name under which `find_labels`, or charge and spin, may be found."""
    return names_of_labels().union(keys.given().values(), CHARGE_NAMES, SPIN_NAMES)


def names_of_labels() -> frozenset[str]:
    """Every name under which a label is looked for where the user gives none."""
    groups = (FREE_ENERGY_NAMES, VIRIAL_NAMES, *(q.names for q in QUANTITIES.values()))
    return frozenset(name for names in groups for name in names)


def is_virial(name: str | None) -> bool:
    """Whether a label of this name is a virial, eV: −V times the stress."""
    return name is not None and "virial" in name.lower()


def name_of(quantity: str, names: LabelNames) -> str | None:
    """The name under which the label of a quantity was found."""
    return names[list(QUANTITIES).index(quantity)]


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one record, the names under which they were found, and what is wrong with
    those that are unusable.

    Attributes:
        values: by quantity, of those that are there and can be used; in the
            quantity's unit and shape.
        names: of all quantities, in the order of ``QUANTITIES``; None where there is none.
        faults: by quantity, of those that are there and cannot be used.
    """

    values: Mapping[str, LabelValue]
    names: LabelNames
    faults: Mapping[str, str] = field(default_factory=dict)


# of energy, forces, stress, virial or dipole: what its stated unit is in ours
Scale = Callable[[str], float]


def find_labels(
    values: Mapping[str, object],
    keys: LabelKeys,
    n_atoms: int,
    volume: float,
    *,
    columns: Mapping[str, object] | None = None,
    scale: Scale = lambda quantity: 1.0,
) -> Labels:
    """Pick the labels of one record.

    A label whose numbers are all NaN is absent: it is how programs write what they do not know.

    Args:
        values: every name of the record with its value.
        keys: names the user gave.
        n_atoms: expected length of the forces.
        volume: of the cell in Å³, to turn a virial (eV) into a stress: σ = −virial / V.
        columns: the names that have a value for each atom, where the file tells them apart.
        scale: what the stated unit of a quantity is in ours.
    """
    record = _Record(
        of_structure=Entries.of(values),
        of_atoms=Entries.of(values if columns is None else columns),
        keys=keys,
        n_atoms=n_atoms,
        volume=volume,
        scale=scale,
    )
    usable: dict[str, LabelValue] = {}
    names: list[str | None] = []
    faults: dict[str, str] = {}
    for quantity in QUANTITIES.values():
        find = FINDERS.get(quantity.name, _find_other)
        try:
            name, value = find(quantity, record)
        except LabelError as error:
            faults[quantity.name] = str(error)
            given = keys.given().get(quantity.name)
            names.append(None if given is None else f"{given} (unusable)")
            continue
        if value is None:
            names.append(name)
        elif math.isfinite(value) if isinstance(value, float) else np.isfinite(value).all():
            names.append(name)
            usable[quantity.name] = value
        elif np.isnan(value).all():
            names.append(f"{name} (absent: NaN)")
        else:
            names.append(name)
            faults[quantity.name] = _not_finite(quantity, value)
    return Labels(usable, tuple(names), faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What the finders read: the entries of a record, and what is known of its structure."""

    of_structure: Entries
    of_atoms: Entries  # the same where the format does not tell them apart
    keys: LabelKeys
    n_atoms: int
    volume: float  # Å³
    scale: Scale


Finding = tuple[str | None, LabelValue | None]  # the name of a label, and its value


def _find_energy(quantity: Quantity, record: _Record) -> Finding:
    usual = FREE_ENERGY_NAMES if record.keys.free_energy else quantity.names
    name = _choose(record.of_structure, record.keys.energy, usual, quantity.name)
    if name is None:
        return None, None
    return name, record.scale(quantity.name) * _scalar(record.of_structure[name], name, quantity)


def _find_forces(quantity: Quantity, record: _Record) -> Finding:
    """Among the columns, else among the entries of the structure."""
    given = record.keys.forces
    entries = (
        record.of_atoms
        if _is_there(record.of_atoms, given, quantity.names)
        else record.of_structure
    )
    name = _choose(entries, given, quantity.names, quantity.name)
    if name is None:
        return None, None
    return name, record.scale(quantity.name) * _rows(entries[name], name, quantity, record.n_atoms)


def _find_stress(quantity: Quantity, record: _Record) -> Finding:
    return _stress(record.of_structure, record.keys.stress, record.volume, record.scale)


def _find_other(quantity: Quantity, record: _Record) -> Finding:
    """A quantity without ways of its own: its numbers in its shape."""
    given = record.keys.of(quantity.name)
    entries = record.of_structure
    if quantity.per_atom and _is_there(record.of_atoms, given, quantity.names):
        entries = record.of_atoms
    name = _choose(entries, given, quantity.names, quantity.name)
    if name is None:
        return None, None
    if quantity.needs_volume and record.volume == 0:
        return f"{name} (absent: no volume)", None
    scale = record.scale(quantity.name)
    if quantity.per_atom or quantity.components:
        return name, scale * _rows(entries[name], name, quantity, record.n_atoms)
    return name, scale * _scalar(entries[name], name, quantity)


# of quantities with ways of their own
FINDERS: dict[str, Callable[[Quantity, _Record], Finding]] = {
    ENERGY.name: _find_energy,
    FORCES.name: _find_forces,
    STRESS.name: _find_stress,
}


def _not_finite(quantity: Quantity, value: LabelValue) -> str:
    if isinstance(value, float):
        return f"{quantity.name} is {value}"
    if quantity.per_atom:
        rows = np.isfinite(value).reshape(len(value), -1).all(axis=1)
        return f"{quantity.name} of atom {int(np.nonzero(~rows)[0][0])} are not finite"
    return f"{quantity.name} is not finite"


def _is_there(entries: Entries, given: str | None, usual: tuple[str, ...]) -> bool:
    return bool(entries.present((given,) if given is not None else usual, exact=given is not None))


def _choose(entries: Entries, given: str | None, usual: tuple[str, ...], what: str) -> str | None:
    """The name to use: the one given, else the first usual one; usual names that
    disagree are an error.
    """
    if given == NOT_READ:
        return None
    if given is not None:
        return given if entries.get(given) is not None else None
    present = entries.present(usual)
    for other in present[1:]:
        first = _in_one_shape(entries[present[0]], present[0], what)
        second = _in_one_shape(entries[other], other, what)
        if first.shape != second.shape or not _close(first, second):
            raise LabelError(
                f"{present[0]} and {other} are both there and differ: say which "
                f"with {key_flag(what)}"
            )
    return present[0] if present else None


def key_flag(what: str) -> str:
    """The flag that names a label, as a user writes it."""
    own = what in ("energy", "forces", "stress", "charge", "spin")
    return f"--{what}_key" if own else f"--label_keys {what}=NAME"


def _in_one_shape(value: object, name: str, what: str) -> NDArray[np.generic]:
    """A value whose numbers can be compared with another's, though one is written in six
    numbers and the other in nine, or has a leading axis of one.
    """
    array = _array(value, name)
    if what == STRESS.name and array.dtype.kind in "iuf" and array.size in (6, 9):
        tensor = array.astype(np.float64).squeeze()
        return as_tensor(tensor, name) if tensor.ndim == 1 else tensor
    return array.reshape(array.shape[1:]) if array.ndim and len(array) == 1 else array


def _close(first: NDArray[np.generic], second: NDArray[np.generic]) -> bool:
    try:
        return bool(
            np.allclose(
                first.astype(float), second.astype(float), rtol=1e-8, atol=1e-8, equal_nan=True
            )
        )
    except (TypeError, ValueError):
        return False


def _array(value: object, name: str) -> NDArray[np.generic]:
    try:
        return np.asarray(value)
    except ValueError:
        raise LabelError(f"{name} is a ragged list, expected numbers") from None


def _numbers(value: object, name: str) -> NDArray[np.float64]:
    array = _array(value, name)
    if array.dtype.kind not in "iuf":
        raise LabelError(f"{name} is {_describe(value)}, expected numbers")
    return array.astype(np.float64)


def _without_unit_axis(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Less the leading axis of one that collation leaves: stress (1, 3, 3), forces (1, n, 3)."""
    return array.squeeze(0) if array.ndim == 3 and len(array) == 1 else array


def _scalar(value: object, name: str, quantity: Quantity) -> float:
    array = _numbers(value, name)
    if array.size != 1:
        raise LabelError(
            f"{name} has {array.size} values, expected one {quantity.name} of the whole structure "
            f"in {quantity.unit}"
        )
    return float(array.reshape(()))


def _rows(value: object, name: str, quantity: Quantity, n_atoms: int) -> NDArray[np.float64]:
    """The label in its shape; a leading axis of one, and one number of a row as a
    column, are taken for it.
    """
    array = _without_unit_axis(_numbers(value, name))
    expected = quantity.shape(n_atoms)
    if array.shape == (1, *expected) or (array.shape == (*expected, 1) and not quantity.components):
        array = array.reshape(expected)
    if array.shape != expected:
        raise LabelError(f"{name} has shape {array.shape}, expected {expected} in {quantity.unit}")
    return array


def _stress(
    entries: Entries, given: str | None, volume: float, scale: Scale
) -> tuple[str | None, NDArray[np.float64] | None]:
    name = _choose(entries, given, STRESS.names, STRESS.name)
    if name is not None and volume == 0:
        return f"{name} (absent: no volume)", None
    named_virial = is_virial(name)
    stress = (
        None
        if name is None
        else scale("virial" if named_virial else "stress") * as_tensor(entries[name], name)
    )
    if named_virial and stress is not None and volume > 0:
        stress = -stress / volume
    virial = (
        _choose(entries, None, VIRIAL_NAMES, STRESS.name) if given is None and volume > 0 else None
    )
    if virial is None:
        return name, stress
    converted = -scale("virial") * as_tensor(entries[virial], virial) / volume
    if stress is None:
        return virial, converted
    if np.isnan(stress).all() or np.isnan(converted).all():
        return (virial, converted) if np.isnan(stress).all() else (name, stress)
    if not np.allclose(stress, converted, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise LabelError(
            f"{name} and {virial} (as −virial / V) are both there and differ: say "
            "which with --stress_key"
        )
    return name, stress


def as_tensor(value: object, name: str) -> NDArray[np.float64]:
    """A symmetric 3×3 tensor from 3×3, nine numbers, or six in Voigt order
    xx, yy, zz, yz, xz, xy.
    """
    array = _numbers(value, name).squeeze()
    if array.shape == (6,):
        xx, yy, zz, yz, xz, xy = array
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if array.shape in ((9,), (3, 3)):
        tensor = array.reshape(3, 3)
        finite = np.isfinite(tensor).all()  # else it is named as not finite
        if finite and np.abs(tensor - tensor.T).max() > 1e-4 + 1e-3 * np.abs(tensor).max():
            raise LabelError(f"{name} is not symmetric")
        return tensor
    raise LabelError(
        f"{name} has {array.size} numbers, expected 3×3, nine, or six in Voigt order (xx, yy, zz, "
        "yz, xz, xy), in eV/Å³"
    )


def _describe(value: object) -> str:
    return f"text ({value!r:.40})" if isinstance(value, str) else f"of type {type(value).__name__}"
