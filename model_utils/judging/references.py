"""References: what is known already, and whose energies are the hull.

Energies of two methods have different zero points and errors, so a hull is of one of them.
``potential`` relaxes the references with the model that relaxes the candidates, once, and keeps
that under the hashes of model, structures and criteria. ``dft`` takes the labels of the file, where
the user knows that the model was trained on labels of this kind.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce

from dataloader.cache_folder import cache_folder
from dataloader.errors import InputError
from dataloader.filters import Filters
from dataloader.labels import NOT_READ, LabelKeys
from dataloader.structure import Structure
from model_utils.errors import cannot_write
from model_utils.files.run_lock import held
from model_utils.judging.candidates import crystal_fault, free_atoms_of
from model_utils.judging.hull import Hull, Point
from model_utils.judging.judged import BROKEN
from model_utils.runtime import log
from model_utils.simulation import relaxing
from model_utils.simulation.calculator import Calculator
from model_utils.simulation.inputs import NamedAtoms, structures_in
from model_utils.simulation.journal import Journal, Record
from model_utils.simulation.relaxation import Criteria

ENERGIES = LabelKeys(forces=NOT_READ, stress=NOT_READ)
ALONE = 6.5  # Å, to the nearest image of the only atom of a cell; 5.3 in caesium, 4.5 in xenon
NEUTRAL = Filters(charge_advice="take them out of the file")
SHOWN = 20  # references that are left out, by name
LOOKED_AT = 20  # labelled references whose energies are compared with the model's
# eV an atom by which they differ where something is said; what MatterGen calls stable
DOUBTFUL = 0.1


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One known crystal.

    Attributes:
        named: its atoms, as the file has them: novelty is judged by these.
        energy: label of the cell, eV; None where there is none.
    """

    named: NamedAtoms
    energy: float | None


@dataclass(frozen=True, kw_only=True)
class References:
    """All of them with the hull of one kind of energies.

    Attributes:
        kind: ``potential`` or ``dft``.
        known: in the order of the files.
        hull: of those with a usable energy.
        left_out: names of the others, with the reason.
        unconverged: names of those whose relaxation was given up: their energies are upper bounds.
        deviations: model less label of some references as they are, eV an atom; of ``dft`` alone.
    """

    kind: str
    known: Sequence[Reference]
    hull: Hull
    left_out: Sequence[tuple[str, str]] = ()
    unconverged: list[str] = field(default_factory=list)
    deviations: Sequence[float] = ()

    def as_plain(self, missing: Sequence[str]) -> dict[str, Any]:
        """What the files say of them.

        Args:
            missing: elements of the candidates that are no references by themselves.
        """
        return {
            "hull": self.kind,
            "files": sorted({reference.named.file for reference in self.known}),
            "digest": digest_of([reference.named for reference in self.known]),
            "count": len(self.known),
            "in_hull": len(self.hull.references),
            "left_out": dict(self.left_out[:SHOWN]),
            "n_left_out": len(self.left_out),
            "n_unconverged": len(self.unconverged),
            "missing_terminals": list(missing),
            **({} if self.kind != "dft" else {"model_less_labels": self._model_less_labels()}),
        }

    def _model_less_labels(self) -> dict[str, Any]:
        """How far the model is from the labels, eV an atom; null where
        there is nothing to compare.
        """
        known = np.array(self.deviations)
        return {
            "count": len(known),
            "mean": float(known.mean()) if len(known) else None,
            "rms": float(np.sqrt((known**2).mean())) if len(known) else None,
        }


def is_atom_in_a_box(structure: Structure) -> bool:
    """Whether a periodic structure is one atom, further from its images than any crystal has it."""
    if structure.n_atoms != 1 or not structure.periodic:
        return False
    reduced, _ = minkowski_reduce(structure.cell)
    return float(np.linalg.norm(reduced, axis=1).min()) > ALONE


def read(paths: Sequence[Path]) -> list[Reference]:
    """The references of files, with their energies where they have them.

    Raises:
        InputError: a file cannot be read, or a structure in it is no crystal.
    """
    references = []
    for source, structure in structures_in(paths, keys=ENERGIES, filters=NEUTRAL):
        if structure.is_isolated_atom:
            log.info("%s is an isolated atom and no reference", structure.identifier)
            continue
        if is_atom_in_a_box(structure):
            log.warning(
                "warning: --references %s, %s is one atom in a wide box: it is taken for an "
                "isolated atom, and is no reference",
                *(source.path, structure.identifier),
            )
            continue
        fault = crystal_fault(structure)
        if fault:
            raise InputError(f"--references {source.path}, {structure.identifier}: {fault}")
        references.append(_reference(structure, str(source.path)))
    if not references:
        raise InputError(
            f"--references {', '.join(map(str, paths))}: there is no crystal, only isolated atoms"
        )
    return references


def _reference(structure: Structure, file: str) -> Reference:
    atoms = free_atoms_of(structure)
    return Reference(
        named=NamedAtoms(atoms=atoms, identifier=structure.identifier, file=file),
        energy=structure.energy,
    )


def of_labels(
    known: Sequence[Reference],
    calculator: Calculator,
    criteria: Criteria,
    processes: int,
    cache: Path | None,
) -> References:
    """References whose hull is made of the labels in their files; the model says of some
    whether it is of their kind.

    Args:
        known: all references.
        calculator: of the model.
        criteria: of a look at a structure as it is.
        processes: structures that are looked at at once.
        cache: folder; one in the user's cache folder where None.

    Raises:
        InputError: none has an energy.
    """
    labelled = [reference for reference in known if reference.energy is not None]
    if not labelled:
        raise InputError(
            "--reference_kind dft, but no reference has an energy; give labelled references, or "
            "--reference_kind potential"
        )
    points = [Point(atoms=r.named.atoms, energy=r.energy) for r in labelled if r.energy is not None]
    without = [(r.named.identifier, "no energy in the file") for r in known if r.energy is None]
    _say_left_out(without)
    some = labelled[:: max(len(labelled) // LOOKED_AT, 1)][:LOOKED_AT]
    folder = cache or cache_folder() / "references"
    records = relaxations(
        [reference.named for reference in some], calculator, criteria, processes, folder
    )
    deviations = [
        (record["energy"] - reference.energy) / len(reference.named.atoms)
        for reference, record in zip(some, records, strict=True)
        if record["energy"] is not None and reference.energy is not None
    ]
    _say_doubtful(deviations)
    return References(
        kind="dft", known=known, hull=Hull(points), left_out=without, deviations=deviations
    )


def _say_doubtful(deviations: Sequence[float]) -> None:
    """Warn where a model gives other energies than the labels, so that a hull
    would compare methods.
    """
    rms = float(np.sqrt(np.mean(np.square(deviations)))) if deviations else 0.0
    if rms > DOUBTFUL:
        log.warning(
            "warning: energies of %d references differ from the model's by %.3g eV/atom (rms): "
            "labels of another method or zero point? Then energies above their hull say nothing; "
            "--reference_kind potential needs none",
            len(deviations),
            rms,
        )


def _say_left_out(left_out: Sequence[tuple[str, str]]) -> None:
    """Warn of references that make no hull: crystals above them seem more stable than they are.

    Args:
        left_out: names and reasons.
    """
    for name, reason in left_out[:SHOWN]:
        log.warning("warning: reference %s is left out of the hull: %s", name, reason)
    if len(left_out) > SHOWN:
        log.warning(
            "warning: and %d more references are left out of the hull", len(left_out) - SHOWN
        )


def of_model(
    known: Sequence[Reference],
    calculator: Calculator,
    criteria: Criteria,
    processes: int,
    cache: Path | None,
) -> References:
    """References relaxed by a model, which makes their hull; what was relaxed before
    is taken from the cache.

    Args:
        known: all references; those with elements that the model lacks are left out of the hull.
        calculator: of the model.
        criteria: of the relaxations.
        processes: structures that are relaxed at once.
        cache: folder; one in the user's cache folder where None.
    """
    folder = cache or cache_folder() / "references"
    records = relaxations(
        [reference.named for reference in known], calculator, criteria, processes, folder
    )
    points = []
    left_out = []
    unconverged = []
    for reference, record in zip(known, records, strict=True):
        name = reference.named.identifier
        if record["energy"] is None or record["kind"] in BROKEN:
            left_out.append((name, record["reason"]))
            continue
        points.append(Point(atoms=moved(reference.named.atoms, record), energy=record["energy"]))
        if not record["converged"]:
            unconverged.append(name)
    _say_left_out(left_out)
    if unconverged:
        log.warning(
            "warning: %d of %d references did not converge: their energies are too high, and "
            "energies above the hull too low; --max_steps gives them more",
            len(unconverged),
            len(points),
        )
    return References(
        kind="potential", known=known, hull=Hull(points), left_out=left_out, unconverged=unconverged
    )


def relaxations(
    structures: Sequence[NamedAtoms],
    calculator: Calculator,
    criteria: Criteria,
    processes: int,
    folder: Path,
) -> list[Record]:
    """A record of the relaxation of each structure; a journal in a folder keeps what is done.

    Args:
        structures: in their order.
        calculator: of the model.
        criteria: of the relaxations.
        processes: structures that are relaxed at once.
        folder: of journals, each of which is called by the hash of its work: two works never meet.

    Raises:
        InputError: the folder cannot be used, or the journal in it is damaged.
    """
    work = relaxing.work_of(calculator, structures, criteria)
    key = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the folder {folder} of relaxations"
        raise cannot_write(what, error, verb="make") from None
    with held(folder / f".{key}.lock", wait=True, flag="folder"):
        journal = Journal(folder / f"{key}.jsonl", work, "move the file away")
        relaxing.relax_rest(structures, calculator, criteria, journal, processes)
        return sorted(journal.records, key=lambda record: int(record["number"]))


def moved(atoms: Atoms, record: Record) -> Atoms:
    """Atoms as a relaxation left them."""
    after = atoms.copy()
    after.set_constraint()
    after.set_cell(record["cell"])
    after.positions[:] = record["positions"]
    return after


def digest_of(structures: Sequence[NamedAtoms]) -> str:
    """Hash of structures in their order, hexadecimal."""
    content = hashlib.sha256()
    for structure in structures:
        content.update(structure.fingerprint())
    return content.hexdigest()
