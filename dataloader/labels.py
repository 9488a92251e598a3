"""Find energy, forces and stress among the names people use, without guessing silently and without inventing zeros."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader.batch import FeatureSpec

# REF_* names are mace's; y and force are OC20's. Order is preference: the first that is present is used.
ENERGY_NAMES = ("REF_energy", "energy", "y")
FREE_ENERGY_NAMES = ("REF_free_energy", "free_energy")
FORCES_NAMES = ("REF_forces", "forces", "force")
STRESS_NAMES = ("REF_stress", "stress")
VIRIAL_NAMES = ("REF_virials", "REF_virial", "virials", "virial")


class LabelError(ValueError):
    """A label is present but cannot be used; the reader adds file and frame."""


@dataclass(frozen=True, kw_only=True)
class LabelKeys:
    """Names of the labels where the user gave them; None means the usual names are looked for."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    free_energy: bool = False  # take the free energy where no energy name was given


def names_of_labels(keys: LabelKeys) -> frozenset[str]:
    """Every name under which `find_labels` may find one."""
    given = {name for name in (keys.energy, keys.forces, keys.stress) if name is not None}
    return frozenset({*ENERGY_NAMES, *FREE_ENERGY_NAMES, *FORCES_NAMES, *STRESS_NAMES, *VIRIAL_NAMES, *given})


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one record and the names under which they were found."""

    energy: float | None
    forces: NDArray[np.float64] | None  # (n_atoms, 3), eV/Å
    stress: NDArray[np.float64] | None  # (3, 3), eV/Å³
    names: tuple[str | None, str | None, str | None]


def find_labels(record: Mapping[str, object], keys: LabelKeys, n_atoms: int, volume: float) -> Labels:
    """Pick the labels of one record.

    Args:
        record: every name of the record with its value (calculator results, info and arrays merged).
        keys: names the user gave.
        n_atoms: expected length of the forces.
        volume: of the cell in Å³, to turn a virial (eV) into a stress: σ = −virial / V.

    Raises:
        LabelError: a value has the wrong shape or type, or two usual names are present and disagree.
    """
    energy_names = FREE_ENERGY_NAMES if keys.free_energy else ENERGY_NAMES
    energy_name = _choose(record, keys.energy, energy_names, "energy")
    forces_name = _choose(record, keys.forces, FORCES_NAMES, "forces")
    energy = None if energy_name is None else _scalar(record[energy_name], energy_name)
    forces = None if forces_name is None else _forces(record[forces_name], forces_name, n_atoms)
    stress_name, stress = _stress(record, keys.stress, volume)
    return Labels(energy, forces, stress, (energy_name, forces_name, stress_name))


def _choose(record: Mapping[str, object], given: str | None, usual: tuple[str, ...], what: str) -> str | None:
    """The name to use: the one given, else the first usual one; usual names that disagree are an error."""
    if given is not None:
        return given if record.get(given) is not None else None
    present = [name for name in usual if record.get(name) is not None]
    for other in present[1:]:
        first, second = _array(record[present[0]], present[0]), _array(record[other], other)
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


def _scalar(value: object, name: str) -> float:
    array = _numbers(value, name)
    if array.size != 1:
        raise LabelError(f"{name} has {array.size} values, expected one energy of the whole structure in eV")
    return float(array.reshape(()))


def _forces(value: object, name: str, n_atoms: int) -> NDArray[np.float64]:
    array = _numbers(value, name)
    if array.shape != (n_atoms, 3):
        raise LabelError(f"{name} has shape {array.shape}, expected ({n_atoms}, 3) in eV/Å")
    return array


def _stress(
    record: Mapping[str, object], given: str | None, volume: float
) -> tuple[str | None, NDArray[np.float64] | None]:
    name = _choose(record, given, STRESS_NAMES, "stress")
    if name is not None and volume == 0:
        return f"{name} (absent: no volume)", None
    stress = None if name is None else as_tensor(record[name], name)
    if name is not None and stress is not None and "virial" in name.lower() and volume > 0:
        stress = -stress / volume
    virial = _choose(record, None, VIRIAL_NAMES, "stress") if given is None and volume > 0 else None
    if virial is None:
        return name, stress
    converted = -as_tensor(record[virial], virial) / volume
    if stress is None:
        return virial, converted
    if not np.allclose(stress, converted, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise LabelError(f"{name} and {virial} (as −virial / V) are both there and differ: say which with --stress_key")
    return name, stress


def feature_of(record: Mapping[str, object], spec: FeatureSpec, n_atoms: int) -> NDArray[np.float64]:
    """An embedding input that the model asks for."""
    if record.get(spec.name) is None:
        raise LabelError(f"{spec.name} is missing, which the model's embedding_specs ask for")
    try:
        value = np.asarray(record[spec.name], dtype=np.float64)
    except (TypeError, ValueError):
        raise LabelError(f"{spec.name} is not a number") from None
    fault = spec.fault(value, n_atoms)
    if fault:
        raise LabelError(fault)
    return value


def kept(record: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """The named entries of a record that are one number or one text."""
    found: dict[str, object] = {}
    for name in names:
        value = record.get(name)
        if isinstance(value, np.ndarray | np.generic) and value.size == 1:
            value = value.reshape(-1)[0].item()
        if isinstance(value, str | int | float):
            found[name] = value
    return found


def weight_of(record: Mapping[str, object], name: str) -> float:
    """One of mace's per-configuration weights; 1 where the record has none."""
    try:
        return float(record.get(name, 1.0))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise LabelError(f"{name} is not a number") from None


def as_tensor(value: object, name: str) -> NDArray[np.float64]:
    """A symmetric 3×3 tensor from 3×3, nine numbers, or six in Voigt order xx, yy, zz, yz, xz, xy."""
    array = _numbers(value, name).squeeze()
    if array.shape == (6,):
        xx, yy, zz, yz, xz, xy = array
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if array.shape in ((9,), (3, 3)):
        tensor = array.reshape(3, 3)
        finite = np.isfinite(tensor).all()  # else label_fault names it
        if finite and np.abs(tensor - tensor.T).max() > 1e-4 + 1e-3 * np.abs(tensor).max():
            raise LabelError(f"{name} is not symmetric")
        return tensor
    raise LabelError(f"{name} has shape {array.shape}, expected (3, 3), (9,) or (6,) in eV/Å³")


def _describe(value: object) -> str:
    return f"text ({value!r:.40})" if isinstance(value, str) else f"of type {type(value).__name__}"
