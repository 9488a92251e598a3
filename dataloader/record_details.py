"""What a record says beside geometry and labels: held atoms, charge and spin, inputs of the
model, weights, names.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dataloader.entry_values import RecordError, any_array, are_truths, first_present, is_absent
from dataloader.labels import (
    CHARGE_NAMES,
    NOT_READ,
    SPIN_NAMES,
    LabelError,
    Labels,
    is_virial,
    key_flag,
    name_of,
)
from dataloader.names import Entries
from dataloader.needs import FeatureSpec
from dataloader.quantities import QUANTITIES, STRESS
from dataloader.record_geometry import Pbc
from dataloader.structure import LabelValue, Structure

HELD_NAME = "fixed"  # True where an atom was held, as OC20 has it
# True where an atom was free to move, as ASE writes it into extended XYZ
MOVABLE_NAME = "move_mask"
WEIGHT_NAME = "config_weight"
# of a stress that is given as a virial
VIRIAL_WEIGHT_NAMES = ("config_virials_weight", "config_virial_weight")
PERIODIC_DIPOLE = (
    "a dipole of a periodic structure is known up to lattice vectors times e; it is "
    "taken as it stands"
)
CHARGED_DIPOLE = (
    "a dipole of a charged structure depends on the origin, a network's does not: labels must be "
    "from an origin that moves with the structure, such as its centre of mass"
)
HELD_IN_PART = "atoms that were held in some directions only count as free"  # a note
# a note; the names of what ASE held follow
HELD_OTHERWISE = "constraints that hold no single atoms are left aside: "
CONSTRAINTS = "constraints"  # what a reader could not make a mask of atoms of
_MOST_TEXT = 256  # letters of a head or config_type


def free_atoms_of(
    columns: Entries, values: Entries, n_atoms: int
) -> tuple[NDArray[np.bool_] | None, str | None]:
    """Which atoms were free to move, (n_atoms,), None where the record does not say; and a
    note of partly held ones.

    An atom is held where all its components are; the forces of one that may move in some
    direction count whole.
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    for usual in (HELD_NAME, MOVABLE_NAME):
        for entries in (columns, values) if columns is not values else (columns,):
            for name in entries.present((usual,)):
                mask = _truths(entries[name], name, n_atoms)
                masks[name] = np.logical_not(mask) if usual == HELD_NAME else mask
    if not masks:
        return None, None
    free: dict[str, NDArray[np.bool_]] = {
        name: np.any(mask, axis=1) for name, mask in masks.items()
    }
    first = next(iter(free))
    for name, mask in free.items():
        if not np.array_equal(mask, free[first]):
            raise RecordError(
                f"{first} and {name} are both there and differ about which atoms "
                "were held; keep one"
            )
    in_part = any((mask.any(axis=1) & ~mask.all(axis=1)).any() for mask in masks.values())
    return free[first], HELD_IN_PART if in_part else None


def held_otherwise(values: Mapping[str, object]) -> str | None:
    """A note of constraints that are no held atoms, such as bonds of fixed length."""
    left = values.get(CONSTRAINTS)
    if not isinstance(left, list):
        return None
    names = {str(one.get("name"))[:40] for one in left if isinstance(one, Mapping)}
    return HELD_OTHERWISE + ", ".join(sorted(names)) if names else None


def _truths(stored: object, name: str, n_atoms: int) -> NDArray[np.bool_]:
    """(n_atoms, 1 or 3) values that are true or false, 0 or 1; text would
    be true whatever it says.
    """
    values = any_array(stored, name)
    if values.shape not in ((n_atoms,), (n_atoms, 1), (n_atoms, 3), (1, n_atoms)):
        raise RecordError(
            f"{name} has {values.size} entries for {n_atoms} atoms, expected a "
            "column of true or false"
        )
    if values.dtype.kind not in "biuf" or not are_truths(values):
        raise RecordError(
            f"{name} holds other values than 0 and 1, expected a column of true or false"
        )
    return values.astype(bool).reshape(n_atoms, 3 if values.shape == (n_atoms, 3) else 1)


def number_named(
    entries: Entries, given: str | None, usual: tuple[str, ...], what: str
) -> float | None:
    """Charge or spin of the whole structure; None where the record names none.

    A list with a value for each atom is something else (partial charges,
    moments) and is passed over.
    """
    if given == NOT_READ:
        return None
    numbers: dict[str, float] = {}
    for name in entries.present((given,) if given is not None else usual, exact=given is not None):
        value = entries[name]
        if is_absent(value):
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
        raise RecordError(
            f"{' and '.join(numbers)} are both there and differ: say which with {key_flag(what)}"
        )
    return next(iter(numbers.values()), None)


def is_charged(entries: Entries, charge: float | None) -> bool:
    """Whether a record names a charge other than zero, also where it is to be passed over
    (``--charge_key none``).
    """
    values = (
        [charge]
        if charge is not None
        else [entries[name] for name in entries.present(CHARGE_NAMES)]
    )
    numbers = [np.asarray(value) for value in values]
    return any(
        n.size == 1 and n.dtype.kind in "iuf" and abs(float(n.reshape(()))) > 0 for n in numbers
    )


def feature_of(
    spec: FeatureSpec, entries: Entries, n_atoms: int, charge: float | None, spin: float | None
) -> NDArray[np.float64]:
    """An embedding input that the model asks for; charge and spin under any of their names."""
    looked_for = (
        "which the model's embedding_specs ask for (looked for "
        f"{', '.join(_names_of_feature(spec))})"
    )
    if not spec.per_atom and spec.name in (*CHARGE_NAMES, *SPIN_NAMES):
        number = charge if spec.name in CHARGE_NAMES else spin
        if number is None:
            raise LabelError(f"{spec.name} is missing, {looked_for}")
        value = np.array(number)
    else:
        name = first_present(entries, (spec.name,))
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


def text_of(entries: Entries, usual: str, texts: Mapping[str, str]) -> str | None:
    """Head or config_type, as the file spells it; None where the record has none."""
    name = first_present(entries, (usual,))
    return None if name is None else texts.get(name, str(entries[name]))[:_MOST_TEXT] or None


def meaningful(labels: Labels, pbc: Pbc) -> Mapping[str, LabelValue]:
    """The labels of a record by quantity, less those that need a volume where the cell has none."""
    if all(pbc):
        return labels.values
    return {
        name: value for name, value in labels.values.items() if not QUANTITIES[name].needs_volume
    }


def weights_of(entries: Entries, labels: Labels) -> Mapping[str, float]:
    """The weights of single quantities that are not 1; a stress that is taken from a virial may
    have that of the virial.
    """
    names: dict[str, tuple[str, ...]] = {
        name: (quantity.weight_name,) for name, quantity in QUANTITIES.items()
    }
    if is_virial(name_of(STRESS.name, labels.names)):
        names[STRESS.name] = (*VIRIAL_WEIGHT_NAMES, STRESS.weight_name)
    weights = {name: weight_of(entries, *usual) for name, usual in names.items()}
    return {name: weight for name, weight in weights.items() if weight != 1.0}


def weights_by_name(structure: Structure) -> dict[str, float]:
    """A structure's weights that are not 1, by the names under which records have them."""
    own = {} if structure.weight == 1.0 else {WEIGHT_NAME: structure.weight}
    return own | {QUANTITIES[name].weight_name: value for name, value in structure.weights.items()}


def weight_of(entries: Entries, *usual: str) -> float:
    """One of mace's per-configuration weights, under the first of its names that the record has;
    1 where it has none.
    """
    name = first_present(entries, usual)
    if name is None:
        return 1.0
    try:
        return float(entries[name])  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise LabelError(f"{name} is not a number") from None
