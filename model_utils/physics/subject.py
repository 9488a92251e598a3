"""The network that is checked, as energies, forces and stress of structures
that the checks make.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloader.batch import Batch, collate
from dataloader.errors import InputError
from dataloader.needs import ModelFacts
from dataloader.neighbors import MAX_NEIGHBORS, build_graph
from dataloader.quantities import ENERGY, FORCES, STRESS
from dataloader.structure import Structure, volume_of
from model_utils.models.network import Network, predict
from model_utils.runtime import dtype_name

ATOMS_AT_ONCE = 256  # of a batch, so that the checks need no more memory than an evaluation


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the network gives of one structure.

    Attributes:
        energy: eV, with the reference energies E0.
        forces: (n_atoms, 3), eV/Å.
        stress: (3, 3), eV/Å³, positive under tension; no meaning without three periodic directions.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The network under examination.

    Attributes:
        network: in any of its forms.
        weights: its parameters by mace's names.
        facts: elements, cutoff, heads, inputs.
        dtype: working precision, on which the bounds depend.
        device: on which it computes.
    """

    network: Network
    weights: Mapping[str, Tensor]
    facts: ModelFacts
    dtype: torch.dtype
    device: torch.device

    def require_energies(self) -> None:
        """Refuse a network from whose outputs no law follows.

        Raises:
            InputError: it gives no energies.
        """
        if ENERGY.name not in self.network.gives:
            raise InputError(
                "--physics checks energies, and the network gives "
                f"{', '.join(sorted(self.network.gives))}"
            )

    @property
    def precision(self) -> str:
        """``float64`` or ``float32``."""
        return dtype_name(self.dtype)

    def answers(self, structures: Sequence[Structure]) -> list[Answer]:
        """Energies, forces and stress of structures.

        Raises:
            GraphFault: two atoms of one lie in one place.
        """
        return [answer for batch in self._batches(structures) for answer in self._of_batch(batch)]

    def energies(self, structures: Sequence[Structure]) -> NDArray[np.float64]:
        """Energies alone, (n_structures,), eV, E0s included; a third of the cost.

        Raises:
            GraphFault: two atoms of one lie in one place.
        """
        return np.concatenate([self._energies_of(batch) for batch in self._batches(structures)])

    def _batches(self, structures: Sequence[Structure]) -> Iterator[Batch]:
        for part in _parts(structures):
            graphs = [build_graph(s, self.facts.r_max, MAX_NEIGHBORS) for s in part]
            batch = collate(
                part, graphs, range(len(part)), self.facts, self.dtype, free_atoms_only=False
            )
            yield self.network.prepared(batch).to(self.device)

    def _of_batch(self, batch: Batch) -> Iterator[Answer]:
        wanted = (ENERGY.name, FORCES.name, STRESS.name)
        predicted = predict(self.network, self.weights, batch, wanted=wanted, training=False)
        energies = _plain(predicted[ENERGY.name].double() + batch.reference_energy)
        forces = _plain(predicted[FORCES.name])
        stress = _plain(predicted[STRESS.name]).reshape(-1, 3, 3)
        bounds = batch.ptr.tolist()
        for k, energy in enumerate(energies.tolist()):
            yield Answer(energy=energy, forces=forces[bounds[k] : bounds[k + 1]], stress=stress[k])

    def _energies_of(self, batch: Batch) -> NDArray[np.float64]:
        with torch.no_grad():
            outputs = self.network.outputs(self.weights, batch, batch.positions, batch.shifts)
        return _plain(outputs[ENERGY.name].double() + batch.reference_energy)

    def interaction(self, structure: Structure, energy: float) -> float:
        """An energy without the reference energies, eV per atom: what rounding of the
        network is relative to.
        """
        head = self.facts.heads.index(structure.head) if structure.head in self.facts.heads else 0
        references = np.array(self.facts.atomic_energies[head])
        rest = energy - references[self.facts.species_of(structure.atomic_numbers)].sum()
        return float(rest) / structure.n_atoms

    def taken(self, structure: Structure, rows: NDArray[np.int64]) -> Structure:
        """Atoms of a structure in a given order, which may take one twice, with all that the
        network reads of them.
        """
        per_atom = {spec.name for spec in self.facts.features if spec.per_atom}
        return replace(
            structure,
            atomic_numbers=structure.atomic_numbers[rows],
            positions=structure.positions[rows],
            features={n: v[rows] if n in per_atom else v for n, v in structure.features.items()},
        )


def bare(structure: Structure) -> Structure:
    """A structure without what belongs to its places: labels, masks, a stored neighbour list."""
    nothing: dict[str, Any] = {"labels": {}, "columns": {}, "extra": {}}
    return replace(structure, free_atoms=None, edges=None, **nothing)


def moved(structure: Structure, displacement: NDArray[np.float64]) -> Structure:
    """A structure with its atoms displaced by (n_atoms, 3) or (3,), Å."""
    return replace(structure, positions=structure.positions + displacement)


def volume(structure: Structure) -> float:
    """Å³; 0 where the structure is not periodic in three directions."""
    return volume_of(structure.cell, structure.pbc)


def _parts(structures: Sequence[Structure]) -> Iterator[list[Structure]]:
    part: list[Structure] = []
    for structure in structures:
        if part and sum(s.n_atoms for s in part) + structure.n_atoms > ATOMS_AT_ONCE:
            yield part
            part = []
        part.append(structure)
    if part:
        yield part


def _plain(values: Tensor) -> NDArray[np.float64]:
    plain: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return plain
