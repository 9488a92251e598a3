"""What is known of one candidate after it was judged by one model, as plain values."""

from dataclasses import dataclass, field
from typing import Any

from ase import Atoms

HOLE = "energy hole"
NOT_CONVERGED = "not converged"
FAILED = "failed"
# kinds of relaxations that ran astray
BROKEN = ("a hole of the model", "the cell collapsed", "the cell exploded")


@dataclass(kw_only=True)
class Judged:
    """One candidate.

    Attributes:
        number: of the frame in the file of candidates, from 0 on.
        identifier: as the frame names itself, or file and frame.
        origin: what the frame says of how it was made.
        before: atoms as they were generated; None where the frame is no structure.
        after: atoms as they were judged, relaxed where that was asked for; None where
            nothing could be computed.
        converged: whether no force is above the criterion.
        kind: of the reason, by which candidates are counted; empty where there is none.
        reason: why it failed, or is no minimum; empty where it is one.
        steps: of the relaxation.
        energy: of the cell, eV.
        fmax: eV/Å, largest force.
        energy_above_hull: eV an atom; None where it is not known.
        self_consistent_energy_above_hull: the same over the hull of candidates, see
            ``Hull.self_consistent``.
        missing: elements that the references lack.
        stable: whether it is within the threshold of the hull; None where that is not known.
        first_of_equals: number of the first candidate that is the same crystal.
        known_as: identifiers of references that are the same; None without references.
        known_numbers: of these among the references.
        rmsd: Å, by which atoms moved between primitive cells, as MatterGen has it; None where
            nothing was relaxed.
        displacement: Å, the root mean square by which the atoms of the cell moved, likewise.
        valid_structure: by distances and volume.
        valid_composition: by charges; None where that cannot be judged.
        is_hole: whether its energy is suspected to be a hole of the model.
    """

    number: int
    identifier: str
    origin: dict[str, Any] = field(default_factory=dict)
    before: Atoms | None = None
    after: Atoms | None = None
    converged: bool = False
    kind: str = ""
    reason: str = ""
    steps: int = 0
    energy: float | None = None
    fmax: float | None = None
    energy_above_hull: float | None = None
    self_consistent_energy_above_hull: float | None = None
    missing: list[str] = field(default_factory=list)
    stable: bool | None = None
    first_of_equals: int | None = None
    known_as: list[str] | None = None
    known_numbers: list[int] = field(default_factory=list)
    rmsd: float | None = None
    displacement: float | None = None
    valid_structure: bool | None = None
    valid_composition: bool | None = None
    is_hole: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether there is an energy at all."""
        return self.energy is not None

    @property
    def unique(self) -> bool:
        """Whether no candidate before it is the same crystal."""
        return self.first_of_equals == self.number

    @property
    def novel(self) -> bool | None:
        """Whether no reference is the same crystal; None without references."""
        return None if self.known_as is None else not self.known_as

    @property
    def left_out(self) -> str:
        """Why it is left out of the trusted values; empty where it is not."""
        if not self.succeeded:
            return FAILED
        if self.is_hole:
            return HOLE
        return "" if self.converged else NOT_CONVERGED

    def as_plain(self) -> dict[str, Any]:
        """Everything but the atoms, under MatterGen's names where it has one."""
        n_atoms = None if self.before is None else len(self.before)
        return {
            "number": self.number,
            "id": self.identifier,
            **({"origin": self.origin} if self.origin else {}),
            "formula": None if self.before is None else self.before.get_chemical_formula(),
            "n_atoms": n_atoms,
            "successful": self.succeeded,
            "converged": self.converged,
            "kind": self.kind,
            "reason": self.reason,
            "steps": self.steps,
            "energy": self.energy,
            "energy_per_atom": None
            if self.energy is None or n_atoms is None
            else self.energy / n_atoms,
            "fmax": self.fmax,
            "energy_above_hull_per_atom": self.energy_above_hull,
            "self_consistent_energy_above_hull": self.self_consistent_energy_above_hull,
            "missing_terminals": self.missing,
            "stable": self.stable,
            "unique": self.unique if self.succeeded else None,
            "first_of_equals": self.first_of_equals,
            "novel": self.novel,
            "known_as": self.known_as,
            "novel_unique_stable": self.all_three(),
            "rmsd_from_relaxation": self.rmsd,
            "displacement_in_relaxation": self.displacement,
            "structure_validity": self.valid_structure,
            "comp_validity": self.valid_composition,
            "energy_hole": self.is_hole,
            "trusted": not self.left_out,
            "left_out_of_trusted": self.left_out,
        }

    def all_three(self) -> bool | None:
        """Novel, unique and stable; None where one of them is not known and
        none of them is denied.
        """
        answers = (self.stable, self.novel, self.unique)
        if not self.succeeded or False in answers:
            return False
        return None if None in answers else True
