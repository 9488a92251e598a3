"""Structures from files as ASE's atoms, ready to be moved, and the calculator
that the options name.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from dataloader.atomic_energies import without_energy
from dataloader.data_file import Source, SourceSpec
from dataloader.errors import InputError
from dataloader.filters import NO_FILTERS, Filters
from dataloader.formats import format_of
from dataloader.frames import bare_atoms
from dataloader.labels import NOT_READ, TO_EVALUATE, LabelKeys
from dataloader.needs import FeatureSpec
from dataloader.record import EVERYTHING
from dataloader.record_details import HELD_IN_PART, HELD_OTHERWISE
from dataloader.sources import open_sources
from dataloader.structure import Structure, symbols
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
    others_left_out: bool = False  # of the data, so that its place among those read is not its own

    def fingerprint(self) -> bytes:
        """What tells the structure from others."""
        content = hashlib.sha256(self.identifier.encode())
        for values in (
            self.atoms.numbers,
            self.atoms.positions,
            self.atoms.cell.array,
            self.atoms.pbc,
        ):
            content.update(np.ascontiguousarray(values).tobytes())
        content.update(self.atoms.get_masses().tobytes())
        content.update(
            repr(sorted((name, str(value)) for name, value in self.atoms.info.items())).encode()
        )
        content.update(
            repr([constraint.todict() for constraint in self.atoms.constraints]).encode()
        )
        return content.digest()


def calculator_of(
    options: SimulatedOptions, device: torch.device, dtype: str | None, skin: float
) -> Calculator:
    """The calculator of the models that are named.

    Raises:
        InputError, VerificationError: see ``Calculator``.
    """
    return calculator_of_models(
        options.input_model,
        device=device,
        dtype=dtype,
        head=options.head,
        step=options.step,
        skin=skin,
    )


def calculator_of_models(
    paths: Sequence[Path],
    *,
    device: torch.device,
    dtype: str | None,
    head: str | None,
    step: str,
    skin: float,
) -> Calculator:
    """The calculator of weights files; several are a committee, whose mean counts.

    Args:
        paths: of the models.
        device: on which they compute.
        dtype: float64 unless given.
        head: of the networks, where they have several.
        step: the form that computes.
        skin: Å, how far neighbour lists reach beyond the cutoff.

    Raises:
        InputError, VerificationError: a model cannot be used as asked.
    """
    calculator = Calculator(
        paths, device=str(device), dtype=dtype or "float64", head=head, step=step, skin=skin
    )
    for potential in calculator.potentials:
        potential.require_energies()
        log.info("model %s", potential)
    return calculator


def _say_other_heads(read: Sequence[tuple[Source, Structure]], calculator: Calculator) -> None:
    """Say how many structures name a head by which they are not computed, of networks with
    several.
    """
    several = [potential for potential in calculator.potentials if len(potential.facts.heads) > 1]
    used = {potential.head for potential in several}
    others = sum(structure.head not in {None, *used} for _, structure in read)
    if several and others:
        log.warning(
            "warning: %d of %d structures name another head; all are computed by head %s, which "
            "is given",
            *(others, len(read), ", ".join(sorted(used))),
        )


def _say_zero_energies(read: Sequence[tuple[Source, Structure]], calculator: Calculator) -> None:
    """Warn of elements whose E0 in the head that computes is 0 while others have one."""
    occurring = {int(z) for _, structure in read for z in structure.atomic_numbers}
    for potential in calculator.potentials:
        without = without_energy(potential.reference_energies, occurring)
        if without:
            log.warning(
                "warning: %s: the E0 of %s in head %s is 0 eV, which says nothing: energies of "
                "structures with it are off by that of the atoms",
                *(potential.path, symbols(without), potential.head),
            )


def structures_of(
    options: SimulatedOptions, calculator: Calculator, *, with_momenta: bool = False
) -> list[NamedAtoms]:
    """All structures of the files that are named.

    Args:
        options: name them.
        calculator: whose networks may take inputs besides.
        with_momenta: those with which the data say that atoms move are kept.

    Raises:
        InputError: a file cannot be read, or there is none.
    """
    features = {
        spec.name: spec for potential in calculator.potentials for spec in potential.facts.features
    }
    sources = _sources_in(
        options.data,
        data_format=options.data_format,
        features=list(features.values()),
        keys=replace(NO_LABELS, charge=options.charge_key, spin=options.spin_key),
        filters=Filters(charges="drop" if options.drop_charged else "refuse"),
    )
    read = [(source, structure) for source in sources for structure in _structures(source)]
    if not read:
        raise InputError(f"there is no structure in {', '.join(map(str, options.data))}")
    _say_other_heads(read, calculator)
    _say_zero_energies(read, calculator)
    some_left_out = any(source.census.left_out for source in sources)
    structures = [_named(source, structure, some_left_out) for source, structure in read]
    if with_momenta:
        for named, (_, structure) in zip(structures, read, strict=True):
            momenta = structure.columns.get("momenta")
            if momenta is not None and _are_vectors(momenta, structure.n_atoms):
                named.atoms.set_momenta(np.asarray(momenta, dtype=float))
    log.info(
        "%d structures, %d atoms", len(structures), sum(len(named.atoms) for named in structures)
    )
    return structures


def structure_at(structures: Sequence[NamedAtoms], index: int | None, n_files: int) -> NamedAtoms:
    """The one of several structures that is asked for.

    Args:
        structures: of ``structures_of``.
        index: its place in the data, counted from 0 with those that were left out.
        n_files: how many files, folders or patterns were named.

    Raises:
        InputError: there is none there, or nothing says which.
    """
    if index is None:
        if len(structures) > 1:
            raise InputError(
                f"the data hold {len(structures)} structures; say which moves with --index (from 0)"
            )
        return structures[0]
    if not any(structure.others_left_out for structure in structures):
        if index < len(structures):
            return structures[index]
        raise InputError(f"--index {index}, but the data hold {len(structures)} structures")
    numbers = [
        structure.identifier.rpartition("#")[2]
        for structure in structures
        if structure.file == structures[0].file
    ]
    one_file = len(numbers) == len(structures) and n_files == 1
    if not one_file or not all(number.isdecimal() for number in numbers):
        raise InputError(
            f"--index {index} does not say which structure is meant, since others of the data are "
            "left out; give a file that holds it alone"
        )
    if str(index) not in numbers:
        raise InputError(
            f"--index {index}: this structure is left out, or not there; there are "
            f"{', '.join(numbers[:10])}"
        )
    return structures[numbers.index(str(index))]


def _are_vectors(values: NDArray[np.generic], n_atoms: int) -> bool:
    """Whether an entry has three finite numbers for each atom."""
    is_of_numbers = values.shape == (n_atoms, 3) and values.dtype.kind in "iuf"
    return is_of_numbers and bool(np.isfinite(values.astype(float)).all())


def structures_in(
    paths: Sequence[Path],
    *,
    data_format: str | None = None,
    features: Sequence[FeatureSpec] = (),
    keys: LabelKeys = NO_LABELS,
    filters: Filters = NO_FILTERS,
) -> list[tuple[Source, Structure]]:
    """All structures of files, isolated atoms among them, each with its file.

    Args:
        paths: files of any format, folders of them, patterns.
        data_format: where ending and content do not say it.
        features: inputs of a network that each structure must carry.
        keys: names of the labels that are read; none are unless given.
        filters: what is left out, and what of charges.

    Raises:
        InputError: a file cannot be read, holds a faulty structure, or there is none in any.
    """
    sources = _sources_in(
        paths, data_format=data_format, features=features, keys=keys, filters=filters
    )
    structures = [(source, structure) for source in sources for structure in _structures(source)]
    if not structures:
        raise InputError(f"there is no structure in {', '.join(map(str, paths))}")
    return structures


def _sources_in(
    paths: Sequence[Path],
    *,
    data_format: str | None,
    features: Sequence[FeatureSpec],
    keys: LabelKeys,
    filters: Filters,
) -> list[Source]:
    """The files, opened; the arguments are those of ``structures_in``."""
    specs = [
        SourceSpec(path=path, format=data_format or format_of(path), keys=keys, keep=EVERYTHING)
        for path in paths
    ]
    sources = open_sources(
        specs, needs=TO_EVALUATE, max_dropped=0.0, features=features, filters=filters
    )
    for source in sources:
        if source.census.left_out:
            log.info("%s: left out %s", source.path, source.census.left_out_report())
        _refuse_partly_held(source)
    return sources


def _refuse_partly_held(source: Source) -> None:
    """Readers take an atom that is held in one direction for a free one, and leave other
    constraints aside, which is right for labels and wrong here.

    Raises:
        InputError: there is one.
    """
    if HELD_IN_PART in source.census.notes:
        raise InputError(
            f"{source.path}: atoms are held in some directions only, which is not done here; hold "
            "them whole (move_mask F F F), or free them"
        )
    for note in source.census.notes:
        if note.startswith(HELD_OTHERWISE):
            raise InputError(
                f"{source.path}: the constraints {note.removeprefix(HELD_OTHERWISE)} are not done "
                "here; take them out, or hold atoms whole"
            )


def _structures(source: Source) -> Sequence[Structure]:
    """All structures of a file in its order, isolated atoms among them: an index says the frame."""
    structures = [*(source.structure(i) for i in range(len(source))), *source.isolated_atoms]
    return sorted(structures, key=_frame_number) if source.isolated_atoms else structures


def _frame_number(structure: Structure) -> tuple[str, int]:
    """File and number of a frame, from a name like ``file.xyz#7``."""
    file, _, number = structure.identifier.rpartition("#")
    return (file, int(number)) if number.isdecimal() else (structure.identifier, 0)


def _named(source: Source, structure: Structure, others_left_out: bool) -> NamedAtoms:
    return NamedAtoms(
        atoms=atoms_of(structure),
        identifier=structure.identifier,
        file=str(source.path),
        others_left_out=others_left_out,
    )


def atoms_of(structure: Structure) -> Atoms:
    """A structure as ASE's atoms with what moves them: held atoms, masses, inputs of networks."""
    atoms = bare_atoms(structure)
    if structure.free_atoms is not None and not structure.free_atoms.all():
        atoms.set_constraint(FixAtoms(mask=~structure.free_atoms))
    if "masses" in structure.columns:
        atoms.set_masses(np.asarray(structure.columns["masses"], dtype=float))
    for name, value in structure.features.items():
        if value.size == 1:
            atoms.info[name] = float(value.reshape(()))
        else:
            atoms.arrays[name] = value
    return atoms
