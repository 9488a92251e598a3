"""Structures made for a network alone, before it has seen data: a molecule, a
small crystal, a layer.

Their elements are the network's and their sizes follow its cutoff: cells are shorter than it, so
that atoms are neighbours of their own images, and no atom has more than some eighty neighbours.
"""

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from dataloader.needs import FeatureSpec, ModelFacts
from dataloader.structure import Structure

MOST_ELEMENTS = 4
SHORTEST = 0.25  # of the cutoff: distance of neighbours
LONGEST = 0.45
MOLECULE = np.array(
    [[0.0, 0.0, 0.0], [1.0, 0.1, 0.0], [-0.3, 0.95, 0.1], [0.2, -0.5, 0.9], [1.3, 0.9, 0.6]]
)
CRYSTAL = np.array([[0.0, 0.0, 0.0], [0.9, 0.8, 1.1]])
LAYER = np.array([[0.0, 0.0, 0.0], [1.0, 0.7, 0.3], [0.2, 1.1, 1.1]])
# rows are the lattice vectors
CELL = np.array([[1.7, 0.0, 0.1], [0.4, 1.9, 0.0], [-0.2, 0.3, 2.1]])


def structures_for(facts: ModelFacts) -> list[Structure]:
    """Structures of a network's elements (of the first ``MOST_ELEMENTS`` of them), in
    units of a bond's length.
    """
    numbers = np.array(facts.atomic_numbers[:MOST_ELEMENTS])
    contact = 2.0 * float(covalent_radii[numbers].mean())
    bond = float(np.clip(contact, SHORTEST * facts.r_max, LONGEST * facts.r_max))
    kinds = {
        "molecule": (MOLECULE, (False, False, False)),
        "small crystal": (CRYSTAL, (True, True, True)),
        "layer": (LAYER, (True, True, False)),
    }
    return [
        _structure(name, bond * places, bond * CELL, pbc, facts)
        for name, (places, pbc) in kinds.items()
    ]


def _structure(
    name: str,
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: tuple[bool, bool, bool],
    facts: ModelFacts,
) -> Structure:
    n_atoms = len(positions)
    elements = np.array(facts.atomic_numbers[:MOST_ELEMENTS])
    return Structure(
        atomic_numbers=np.resize(elements, n_atoms).astype(np.int64),
        positions=positions,
        cell=cell if any(pbc) else np.zeros((3, 3)),
        pbc=pbc,
        identifier=name,
        head=facts.heads[0],
        features={spec.name: _input(spec, n_atoms) for spec in facts.features},
    )


def _input(spec: FeatureSpec, n_atoms: int) -> NDArray[np.float64]:
    """A value that an input of the network may have: zero, or the nearest class."""
    lowest, highest = spec.classes or (0, 0)
    shape = (n_atoms, spec.width) if spec.per_atom else (1,)
    return np.full(shape, float(np.clip(0, lowest, highest)))
