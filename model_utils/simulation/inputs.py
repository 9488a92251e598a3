"""Structures from files as ASE's atoms, ready to be moved, and the calculator that the options name."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms

from dataloader.data_file import Source, SourceSpec
from dataloader.errors import InputError
from dataloader.formats import format_of
from dataloader.frames import bare_atoms
from dataloader.labels import NOT_READ, TO_EVALUATE, LabelKeys
from dataloader.sources import open_sources
from dataloader.structure import Structure
from model_utils.runtime import log
from model_utils.settings.options import SimulatedOptions
from model_utils.simulation.calculator import Calculator

NO_LABELS = LabelKeys(energy=NOT_READ, forces=NOT_READ, stress=NOT_READ)


@dataclass(frozen=True, kw_only=True)
class NamedAtoms:
    """Atoms with the name under which a person finds them in a file."""

    atoms: Atoms
    identifier: str
    file: str

    def fingerprint(self) -> bytes:
        """What tells the structure from others."""
        content = hashlib.sha256(self.identifier.encode())
        for values in (self.atoms.numbers, self.atoms.positions, self.atoms.cell.array, self.atoms.pbc):
            content.update(np.ascontiguousarray(values).tobytes())
        content.update(repr(sorted((name, str(value)) for name, value in self.atoms.info.items())).encode())
        content.update(repr([constraint.todict() for constraint in self.atoms.constraints]).encode())
        return content.digest()


def calculator_of(options: SimulatedOptions, device: torch.device, dtype: str | None, skin: float) -> Calculator:
    """The calculator of the models that are named.

    Raises:
        InputError, VerificationError: see ``Calculator``.
    """
    calculator = Calculator(
        options.input_model,
        device=str(device),
        dtype=dtype or "float64",
        head=options.head,
        step=options.step,
        skin=skin,
    )
    for potential in calculator.potentials:
        log.info("model %s", potential)
    return calculator


def structures_of(options: SimulatedOptions, calculator: Calculator) -> list[NamedAtoms]:
    """All structures of the files that are named.

    Raises:
        InputError: a file cannot be read, or there is none.
    """
    features = {spec.name: spec for potential in calculator.potentials for spec in potential.facts.features}
    specs = [
        SourceSpec(path=path, format=options.data_format or format_of(path), keys=NO_LABELS) for path in options.data
    ]
    sources = open_sources(specs, needs=TO_EVALUATE, max_dropped=0.0, features=list(features.values()))
    structures = [_named(source, structure) for source in sources for structure in _structures(source)]
    if not structures:
        raise InputError(f"there is no structure in {', '.join(map(str, options.data))}")
    log.info("%d structures, %d atoms", len(structures), sum(len(named.atoms) for named in structures))
    return structures


def _structures(source: Source) -> Sequence[Structure]:
    """All structures of a file, isolated atoms included."""
    return [*(source.structure(i) for i in range(len(source))), *source.isolated_atoms]


def _named(source: Source, structure: Structure) -> NamedAtoms:
    atoms = bare_atoms(structure)
    if structure.free_atoms is not None and not structure.free_atoms.all():
        atoms.set_constraint(FixAtoms(mask=~structure.free_atoms))
    for name, value in structure.features.items():
        if value.size == 1:
            atoms.info[name] = float(value.reshape(()))
        else:
            atoms.arrays[name] = value
    return NamedAtoms(atoms=atoms, identifier=structure.identifier, file=str(source.path))
