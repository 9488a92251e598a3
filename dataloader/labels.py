"""Find energy, forces and stress among the names people use, without guessing silently and without inventing zeros."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.names import Entries

# REF_* names are mace's; y and force are OC20's. Order is preference: the first that is present is used.
ENERGY_NAMES = ("REF_energy", "energy", "y")
FREE_ENERGY_NAMES = ("REF_free_energy", "free_energy")
FORCES_NAMES = ("REF_forces", "forces", "force")
STRESS_NAMES = ("REF_stress", "stress")
VIRIAL_NAMES = ("REF_virials", "REF_virial", "virials", "virial")
CHARGE_NAMES = ("total_charge", "charge")  # the first is mace's, the second OMol25's
SPIN_NAMES = ("total_spin", "spin", "multiplicity", "spin_multiplicity")

NOT_READ = "none"  # of a key flag: the label is not looked for at all
QUANTITIES = ("energy", "forces", "stress")

LabelNames = tuple[str | None, str | None, str | None]  # of energy, forces and stress


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
    free_energy: bool = False  # take the free energy where no energy name was given

    def given(self) -> dict[str, str]:
        """The names that were given, by quantity; less those that are not to be looked for."""
        named = {quantity: getattr(self, quantity) for quantity in (*QUANTITIES, "charge", "spin")}
        return {quantity: name for quantity, name in named.items() if name not in (None, NOT_READ)}


@dataclass(frozen=True, kw_only=True)
class LabelNeeds:
    """What a command does with labels: which it cannot do without, and of which it looks at every value.

    Attributes:
        required: where one is absent, an xyz file is refused and a record of an LMDB is dropped.
        judged: where one cannot be used, likewise; an unusable label of the others counts as absent.
    """

    required: frozenset[str]
    judged: frozenset[str]


ALL_QUANTITIES = frozenset(QUANTITIES)
TO_TRAIN = LabelNeeds(required=frozenset({"energy", "forces"}), judged=ALL_QUANTITIES)
TO_EVALUATE = LabelNeeds(required=frozenset(), judged=ALL_QUANTITIES)
TO_PREDICT = LabelNeeds(required=frozenset(), judged=frozenset())


def usual_names(keys: LabelKeys) -> frozenset[str]:
    """Every name under which `find_labels`, or charge and spin, may be found."""
    usual = (ENERGY_NAMES, FREE_ENERGY_NAMES, FORCES_NAMES, STRESS_NAMES, VIRIAL_NAMES, CHARGE_NAMES, SPIN_NAMES)
    return frozenset({*keys.given().values(), *(name for names in usual for name in names)})


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one record, the names under which they were found, and what is wrong with those that are unusable.

    Attributes:
        energy: eV, of the whole structure.
        forces: (n_atoms, 3), eV/Å.
        stress: (3, 3), eV/Å³.
        names: of energy, forces and stress.
        faults: by quantity; such a label is None above.
    """

    energy: float | None
    forces: NDArray[np.float64] | None
    stress: NDArray[np.float64] | None
    names: LabelNames
    faults: Mapping[str, str] = field(default_factory=dict)


Scale = Callable[[str], float]  # of a quantity (energy, forces, stress, virial): what its stated unit is in ours


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
    of_structure = Entries.of(values)
    of_atoms = of_structure if columns is None else Entries.of(columns)
    energy_names = FREE_ENERGY_NAMES if keys.free_energy else ENERGY_NAMES
    faults: dict[str, str] = {}

    def attempt(quantity: str, find: Callable[[], tuple[str | None, Any]]) -> tuple[str | None, Any]:
        try:
            name, value = find()
        except LabelError as error:
            faults[quantity] = str(error)
            given = keys.given().get(quantity)
            return None if given is None else f"{given} (unusable)", None
        if value is None or (math.isfinite(value) if isinstance(value, float) else np.isfinite(value).all()):
            return name, value
        if np.isnan(value).all():
            return f"{name} (absent: NaN)", None
        faults[quantity] = _not_finite(quantity, value)
        return name, None

    def energy() -> tuple[str | None, float | None]:
        name = _choose(of_structure, keys.energy, energy_names, "energy")
        return name, None if name is None else scale("energy") * _scalar(of_structure[name], name)

    def forces() -> tuple[str | None, NDArray[np.float64] | None]:
        place = of_atoms if columns is None or _is_there(of_atoms, keys.forces, FORCES_NAMES) else of_structure
        name = _choose(place, keys.forces, FORCES_NAMES, "forces")
        return name, None if name is None else scale("forces") * _forces(place[name], name, n_atoms)

    def stress() -> tuple[str | None, NDArray[np.float64] | None]:
        return _stress(of_structure, keys.stress, volume, scale)

    energy_name, energy_value = attempt("energy", energy)
    forces_name, forces_value = attempt("forces", forces)
    stress_name, stress_value = attempt("stress", stress)
    names = (energy_name, forces_name, stress_name)
    return Labels(energy_value, forces_value, stress_value, names, faults)


def _not_finite(quantity: str, value: Any) -> str:
    if quantity == "forces":
        return f"forces of atom {int(np.nonzero(~np.isfinite(value).all(axis=1))[0][0])} are not finite"
    return f"energy is {value}" if quantity == "energy" else f"{quantity} is not finite"


def _is_there(entries: Entries, given: str | None, usual: tuple[str, ...]) -> bool:
    return bool(entries.present((given,) if given is not None else usual, exact=given is not None))


def _choose(entries: Entries, given: str | None, usual: tuple[str, ...], what: str) -> str | None:
    """The name to use: the one given, else the first usual one; usual names that disagree are an error."""
    if given == NOT_READ:
        return None
    if given is not None:
        return given if entries.get(given) is not None else None
    present = entries.present(usual)
    for other in present[1:]:
        first, second = _array(entries[present[0]], present[0]), _array(entries[other], other)
        if first.shape != second.shape or not _close(first, second):
            raise LabelError(f"{present[0]} and {other} are both there and differ: say which with --{what}_key")
    return present[0] if present else None


def _close(first: NDArray[np.generic], second: NDArray[np.generic]) -> bool:
    try:
        return bool(np.allclose(first.astype(float), second.astype(float), rtol=1e-8, atol=1e-8, equal_nan=True))
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


def _scalar(value: object, name: str) -> float:
    array = _numbers(value, name)
    if array.size != 1:
        raise LabelError(f"{name} has {array.size} values, expected one energy of the whole structure in eV")
    return float(array.reshape(()))


def _forces(value: object, name: str, n_atoms: int) -> NDArray[np.float64]:
    array = _without_unit_axis(_numbers(value, name))
    if array.shape != (n_atoms, 3):
        raise LabelError(f"{name} has shape {array.shape}, expected ({n_atoms}, 3) in eV/Å")
    return array


def _stress(
    entries: Entries, given: str | None, volume: float, scale: Scale
) -> tuple[str | None, NDArray[np.float64] | None]:
    name = _choose(entries, given, STRESS_NAMES, "stress")
    if name is not None and volume == 0:
        return f"{name} (absent: no volume)", None
    is_virial = name is not None and "virial" in name.lower()
    stress = None if name is None else scale("virial" if is_virial else "stress") * as_tensor(entries[name], name)
    if is_virial and stress is not None and volume > 0:
        stress = -stress / volume
    virial = _choose(entries, None, VIRIAL_NAMES, "stress") if given is None and volume > 0 else None
    if virial is None:
        return name, stress
    converted = -scale("virial") * as_tensor(entries[virial], virial) / volume
    if stress is None:
        return virial, converted
    if np.isnan(stress).all() or np.isnan(converted).all():
        return (virial, converted) if np.isnan(stress).all() else (name, stress)
    if not np.allclose(stress, converted, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise LabelError(f"{name} and {virial} (as −virial / V) are both there and differ: say which with --stress_key")
    return name, stress


def as_tensor(value: object, name: str) -> NDArray[np.float64]:
    """A symmetric 3×3 tensor from 3×3, nine numbers, or six in Voigt order xx, yy, zz, yz, xz, xy."""
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
        f"{name} has {array.size} numbers, expected 3×3, nine, or six in Voigt order (xx, yy, zz, yz, xz, xy), in eV/Å³"
    )


def _describe(value: object) -> str:
    return f"text ({value!r:.40})" if isinstance(value, str) else f"of type {type(value).__name__}"
