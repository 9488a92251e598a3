"""Read extended-XYZ files into structures, frame by frame, with every refusal naming file and frame."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io.extxyz import read_extxyz

from dataloader.batch import FeatureSpec
from dataloader.errors import InputError
from dataloader.labels import LabelError, LabelKeys, find_labels
from dataloader.structure import Structure, geometry_fault, label_fault

NOT_LABELS = {"numbers", "positions", "config_type", "head", "fixed"}


@dataclass
class XyzFile:
    """The frames of one file: those to train on, the isolated atoms that give E0s, and the label names found."""

    path: Path
    structures: list[Structure] = field(default_factory=list)
    isolated_atoms: list[Structure] = field(default_factory=list)
    label_names: Counter[tuple[str | None, str | None, str | None]] = field(default_factory=Counter)


def read_xyz(path: Path, keys: LabelKeys, *, require_labels: bool, features: Sequence[FeatureSpec] = ()) -> XyzFile:
    """Read all frames of one extended-XYZ file.

    Args:
        path: the file; always parsed as extended XYZ, whatever its name, so that no other parser of ASE can be chosen.
        keys: label names given by the user.
        require_labels: energy and forces must be there (training); without them a frame is for inference.
        features: embedding inputs that each frame must carry in info or arrays.

    Raises:
        InputError: the file cannot be read, or a frame is faulty; an xyz file is small enough to be mended, so the
            first fault stops the run (in LMDBs faulty records are dropped and counted instead).
    """
    file = XyzFile(path)
    for frame, atoms in enumerate(_frames(path)):
        structure, names = _structure(atoms, f"{path.name}#{frame}", keys, features, where=f"{path} frame {frame}")
        isolated = structure.is_isolated_atom
        file.label_names[names] += not isolated
        _refuse(structure, names, keys, atoms, f"{path} frame {frame}", require_labels, isolated)
        (file.isolated_atoms if isolated else file.structures).append(structure)
    if not file.structures and not file.isolated_atoms:
        raise InputError(f"{path} holds no frames; expected an extended-XYZ file with at least one")
    return file


def _frames(path: Path) -> Iterator[Atoms]:
    frame = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for atoms in read_extxyz(stream, index=slice(None)):
                yield atoms
                frame += 1
    except OSError as error:
        reason = error.strerror or f"frame {frame}: {error}"  # ASE's XYZError is an OSError without errno
        raise InputError(f"cannot read {path}: {reason}; expected an extended-XYZ file") from None
    except InputError:
        raise
    except Exception as error:  # ASE raises a dozen types on damaged text
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} frame {frame} is not extended XYZ: {detail}") from None


def _structure(
    atoms: Atoms, identifier: str, keys: LabelKeys, features: Sequence[FeatureSpec], where: str
) -> tuple[Structure, tuple[str | None, str | None, str | None]]:
    # Calculator results are read raw: get_forces() would zero the forces of constrained atoms.
    record = {**atoms.info, **atoms.arrays, **(atoms.calc.results if atoms.calc else {})}
    cell, pbc = np.array(atoms.cell, dtype=float), tuple(bool(p) for p in atoms.pbc)
    volume = float(abs(np.linalg.det(cell))) if all(pbc) and np.isfinite(cell).all() else 0.0
    try:
        labels = find_labels(record, keys, len(atoms), volume)
        structure = Structure(
            atomic_numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions.astype(np.float64),
            cell=cell,
            pbc=pbc,  # type: ignore[arg-type]
            identifier=identifier,
            free_atoms=_free_atoms(record),
            head=None if record.get("head") is None else str(record["head"]),
            config_type=str(record.get("config_type", "Default")),
            features={spec.name: _feature(record, spec, len(atoms)) for spec in features},
            energy=labels.energy,
            forces=labels.forces,
            stress=labels.stress if all(pbc) else None,  # without a volume a stress means nothing
            weight=_weight(record, "config_weight"),
            energy_weight=_weight(record, "config_energy_weight"),
            forces_weight=_weight(record, "config_forces_weight"),
            stress_weight=_weight(record, "config_stress_weight"),
        )
    except LabelError as error:
        raise InputError(f"{where}: {error}") from None
    return structure, labels.names


def _weight(record: dict[str, object], name: str) -> float:
    """One of mace's per-configuration weights; 1 where the frame has none."""
    try:
        return float(record.get(name, 1.0))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise LabelError(f"{name} is not a number") from None


def _free_atoms(record: dict[str, object]) -> np.ndarray | None:
    return None if record.get("fixed") is None else ~np.asarray(record["fixed"]).astype(bool)


def _feature(record: dict[str, object], spec: FeatureSpec, n_atoms: int) -> np.ndarray:
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


def _refuse(
    structure: Structure,
    names: tuple[str | None, str | None, str | None],
    keys: LabelKeys,
    atoms: Atoms,
    where: str,
    require_labels: bool,
    isolated: bool,
) -> None:
    fault = geometry_fault(structure) or label_fault(structure)
    if fault:
        raise InputError(f"{where}: {fault}")
    if not require_labels:
        return
    for what, given, found in (("energy", keys.energy, names[0]), ("forces", keys.forces, names[1])):
        if found is None and not (isolated and what == "forces"):
            looked = given or "the usual names"
            there = sorted(
                ({*atoms.info, *atoms.arrays} | set(atoms.calc.results if atoms.calc else ())) - NOT_LABELS, key=str
            )
            has = ", ".join(map(str, there)) or "nothing"
            raise InputError(
                f"{where}: {what} missing (looked for {looked}; the frame has: {has}); name it with --{what}_key"
            )
