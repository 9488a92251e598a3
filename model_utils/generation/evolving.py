"""``--generator evolve``: the best relaxed crystals, mutated and crossed; the only
place that knows ase-ga.

Operators are those of genetic algorithms for crystals (Glass, Oganov, Hansen, Comput. Phys. Commun.
175, 713 (2006)): cut and splice, strain, exchange of elements, rattle. Energies of one composition
are compared, and of no two.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from dataloader.errors import InputError
from dataloader.structure import Structure
from model_utils import runtime
from model_utils.generation import guards
from model_utils.generation.candidate import Candidate, Maker, NotMade
from model_utils.generation.prototypes import crystals_of
from model_utils.judging import pymatgen_library
from model_utils.judging.candidates import inputs_of
from model_utils.report.libraries import needed
from model_utils.runtime import log
from model_utils.settings.options import GenerateOptions
from model_utils.simulation.atoms import unknown_states
from model_utils.simulation.inputs import NamedAtoms, calculator_of_models
from model_utils.simulation.relaxed_frames import CONVERGED, ENERGY, ENERGY_OF, HOLE_MARK

STRAIN = 0.3  # standard deviation of a mutation's strain; the volume is kept
RATTLE = 0.6  # Å, at most, of atoms that are moved


@dataclass(frozen=True, kw_only=True)
class Parent:
    """One of the best crystals of its composition.

    Attributes:
        atoms: in the order of their elements.
        name: under which a person finds it.
        energy: eV an atom.
    """

    atoms: Atoms
    name: str
    energy: float

    def is_like(self, other: "Parent") -> bool:
        """Whether both have the same atoms, charge and spin, and are two."""
        return (
            self is not other
            and np.array_equal(self.atoms.numbers, other.atoms.numbers)
            and inputs_of(self.atoms) == inputs_of(other.atoms)
        )


# of a parent and another one that is like it (None without): a child, or None where
# the operator found none
Operator = Callable[
    [Parent, Parent | None, Mapping[tuple[int, int], float], np.random.RandomState], Atoms | None
]


def prepared(options: GenerateOptions, _: Path) -> Maker:
    """A maker of children of the best parents.

    Raises:
        InputError: ase-ga is not installed, there are no parents as are asked for, or their
            energies are not known.
    """
    needed("ase_ga", what="--generator evolve", extra=pymatgen_library.EXTRA)
    if not options.sources.parents:
        raise InputError(
            "--generator evolve needs relaxed crystals to begin with; name them with --parents"
        )
    parents = _best(options)

    def make(_: int, rng: np.random.Generator) -> Candidate:
        parent = parents[int(rng.integers(len(parents)))]
        mates = [other for other in parents if other.is_like(parent)]
        mate = mates[int(rng.integers(len(mates)))] if mates else None
        names = [name for name, needs in NEEDS.items() if needs(parent, mate)]
        name = names[int(rng.integers(len(names)))]
        shortest = guards.shortest_allowed(parent.atoms.numbers, options.guards.min_distance)
        state = np.random.RandomState(int(rng.integers(2**32)))
        child = OPERATORS[name](parent, mate, shortest, state)
        if child is None:
            raise NotMade(f"{name} found no crystal without atoms that meet")
        both = name == "crossing" and mate is not None
        origin: dict[str, str | int] = {"operation": name, "parent": parent.name}
        if both and mate is not None:
            origin["parents"] = f"{parent.name} {mate.name}"
        atoms = Atoms(
            child.numbers, child.positions, cell=child.cell, pbc=True, info=inputs_of(parent.atoms)
        )
        atoms.wrap()
        return Candidate(atoms=atoms, origin=origin)

    return make


def _crossing(
    parent: Parent,
    mate: Parent | None,
    shortest: Mapping[tuple[int, int], float],
    rng: np.random.RandomState,
) -> Atoms | None:
    from ase_ga.cutandsplicepairing import CutAndSplicePairing

    assert mate is not None
    operator = CutAndSplicePairing(
        Atoms(pbc=True),
        len(parent.atoms),
        dict(shortest),
        number_of_variable_cell_vectors=3,
        rng=rng,
    )
    return _or_none(operator.cross(parent.atoms, mate.atoms))


def _strain(
    parent: Parent,
    _: Parent | None,
    shortest: Mapping[tuple[int, int], float],
    rng: np.random.RandomState,
) -> Atoms | None:
    from ase_ga.standardmutations import StrainMutation
    from ase_ga.utilities import CellBounds

    operator = StrainMutation(
        dict(shortest),
        cellbounds=CellBounds(),
        stddev=STRAIN,
        number_of_variable_cell_vectors=3,
        rng=rng,
    )
    return _or_none(operator.mutate(parent.atoms))


def _exchange(
    parent: Parent,
    _: Parent | None,
    shortest: Mapping[tuple[int, int], float],
    rng: np.random.RandomState,
) -> Atoms | None:
    from ase_ga.standardmutations import PermutationMutation

    operator = PermutationMutation(len(parent.atoms), blmin=dict(shortest), rng=rng)
    return _or_none(operator.mutate(parent.atoms))


def _rattle(
    parent: Parent,
    _: Parent | None,
    shortest: Mapping[tuple[int, int], float],
    rng: np.random.RandomState,
) -> Atoms | None:
    from ase_ga.standardmutations import RattleMutation

    operator = RattleMutation(dict(shortest), len(parent.atoms), rattle_strength=RATTLE, rng=rng)
    return _or_none(operator.mutate(parent.atoms))


OPERATORS: Mapping[str, Operator] = {
    "crossing": _crossing,
    "strain": _strain,
    "exchange": _exchange,
    "rattle": _rattle,
}
# what an operator cannot do without
NEEDS: Mapping[str, Callable[[Parent, Parent | None], bool]] = {
    "crossing": lambda parent, mate: mate is not None and len(parent.atoms) > 1,
    "strain": lambda parent, mate: True,
    "exchange": lambda parent, mate: len(set(parent.atoms.numbers.tolist())) > 1,
    "rattle": lambda parent, mate: len(parent.atoms) > 1,
}


def _or_none(made: Any) -> Atoms | None:
    return made if isinstance(made, Atoms) else None


def _best(options: GenerateOptions) -> list[Parent]:
    """The best parents of each composition, charge and spin, by energy an atom and then by name."""
    left_out: Counter[str] = Counter()

    def takes(structure: Structure) -> bool:
        reason = _unfit(structure)
        left_out[reason] += 1
        return not reason

    try:
        crystals = crystals_of(options.sources.parents, "--parents", takes)
    finally:  # where none is left, it is why
        for reason in sorted(filter(None, left_out)):
            log.info("%d parents %s and are left out", left_out[reason], reason)
    wanted = [crystal for crystal in crystals if _is_asked_for(crystal.atoms, options)]
    if not wanted:
        raise InputError(
            f"--parents: none of {len(crystals)} crystals is of the composition, the "
            "elements and the size that are asked for; give others"
        )
    by_formula: dict[tuple[str, str], list[Parent]] = defaultdict(list)
    for crystal, energy in zip(wanted, _energies(wanted, options), strict=True):
        atoms = crystal.atoms[np.argsort(crystal.atoms.numbers, kind="stable")]
        parent = Parent(
            atoms=atoms, name=str(crystal.atoms.info.get("id", crystal.identifier)), energy=energy
        )
        state = str(sorted(inputs_of(atoms).items()))
        by_formula[pymatgen_library.reduced_formula(atoms), state].append(parent)
    best = []
    for formula in sorted(by_formula):
        ordered = sorted(by_formula[formula], key=lambda parent: (parent.energy, parent.name))
        best += ordered[: options.sources.best]
    return best


def _unfit(structure: Structure) -> str:
    """Why the file itself says that a structure is no parent, as a phrase; empty where it does
    not.
    """
    if structure.extra.get(CONVERGED, True) is False:
        return "did not converge"
    return "are holes of the model" if structure.extra.get(HOLE_MARK, False) is True else ""


def _is_asked_for(atoms: Atoms, options: GenerateOptions) -> bool:
    wanted = options.wanted
    is_of_size = wanted.min_atoms <= len(atoms) <= wanted.max_atoms
    return is_of_size and guards.is_of_wanted(atoms, wanted)


def _energies(crystals: Sequence[NamedAtoms], options: GenerateOptions) -> list[float]:
    """Energies an atom, eV: of the model where one is named, else those that
    stand beside the crystals.

    Raises:
        InputError: no model is named, and a crystal has no energy, or they are of several models.
    """
    if options.sources.input_model:
        return _computed(crystals, options)
    marks = sorted({str(crystal.atoms.info.get(ENERGY_OF, "")) for crystal in crystals} - {""})
    if len(marks) > 1:
        raise InputError(
            f"--parents: {ENERGY} is of {len(marks)} models or precisions ({', '.join(marks)}), "
            "whose energies cannot be compared; give crystals that one model relaxed, or name one "
            "with --input_model"
        )
    for crystal in crystals:
        energy = crystal.atoms.info.get(ENERGY)
        if not isinstance(energy, int | float) or not math.isfinite(energy):
            raise InputError(
                f"--parents {crystal.file}, {crystal.identifier}: {ENERGY}, which relax.py and "
                f"judge.py write, is {energy!s:.40}, expected a number; name a model with "
                "--input_model"
            )
    return [float(crystal.atoms.info[ENERGY]) / len(crystal.atoms) for crystal in crystals]


def _computed(crystals: Sequence[NamedAtoms], options: GenerateOptions) -> list[float]:
    device = runtime.start(
        device=options.device.device,
        dtype=torch.float64,
        threads=options.device.threads,
        seed=options.seed,
    )
    calculator = calculator_of_models(
        options.sources.input_model,
        device=device,
        dtype=options.device.dtype,
        head=None,
        step="fast",
        skin=0.0,
    )
    energies = []
    for crystal in crystals:
        calculator.forget()  # or the last bits would depend on the crystal before
        atoms = crystal.atoms.copy()
        for potential in calculator.potentials:
            unknown = unknown_states(atoms, potential.facts)
            if unknown:
                raise InputError(
                    f"--parents {crystal.file}, {crystal.identifier}: {' and '.join(unknown)}, for "
                    "which the model has no input; leave such crystals out"
                )
        atoms.calc = calculator
        energies.append(float(atoms.get_potential_energy()) / len(atoms))
    return energies
