"""Energies of atoms and of structures, from what the layers of a network give."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from model_utils.models.fast.gather import adds_in_one_order
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.radial import Radial
from model_utils.models.fast.sums import sums_over_neighbors, sums_over_structures


@dataclass(frozen=True)
class Energies:
    """What the interaction energies of a batch are made of; atoms are sorted by element.

    Args:
        module: mace's network, for scale and shift.
        radial: constants of the network, for the repulsion.
        batch: whose structures they are.
        graph: its orders.
        of_readouts: of atoms, (n_atoms,), which are scaled and shifted.
        of_first_features: of atoms, (n_atoms,), eV, which are not; None where there are none.
        lengths: of pairs, (n_pairs, 1), Å.
        numbers: atomic numbers of receiver and sender of each pair, (n_pairs, 1) each.
    """

    module: nn.Module
    radial: Radial
    batch: Batch
    graph: BatchGraph
    of_readouts: Tensor
    of_first_features: Tensor | None
    lengths: Tensor
    numbers: tuple[Tensor, Tensor]

    def of_structures(self) -> Tensor:
        """Energies of structures, (n_structures,), eV."""
        graph = self.graph
        without_repulsion = self._scaled()
        if self.radial.repulsion is None:
            return sums_over_structures(graph, without_repulsion)
        repulsion = self.radial.repulsion_energy(self.lengths, self.numbers)
        if not adds_in_one_order(without_repulsion):
            return sums_over_structures(graph, without_repulsion + self._halves(repulsion))
        structure = self.batch.structure[graph.pair_receiver]
        scale = self._scale
        if scale is not None:
            repulsion = repulsion * scale[self.batch.head[structure]]
        return sums_over_structures(graph, without_repulsion).index_add(0, structure, repulsion)

    def of_atoms(self) -> Tensor:
        """Energies of atoms sorted by element, (n_atoms,), eV.

        The repulsion of a pair belongs to both atoms by halves.
        """
        without_repulsion = self._scaled()
        if self.radial.repulsion is None:
            return without_repulsion
        repulsion = self.radial.repulsion_energy(self.lengths, self.numbers)
        return without_repulsion + self._halves(repulsion)

    @property
    def _scale(self) -> Tensor | None:
        # (n_heads,); None where the network has none
        if not hasattr(self.module, "scale_shift"):
            return None
        return torch.atleast_1d(self.module.get_buffer("scale_shift.scale"))

    def _scaled(self) -> Tensor:
        energies = self.of_readouts
        head = self.graph.head
        scale = self._scale
        if scale is not None:
            shift = torch.atleast_1d(self.module.get_buffer("scale_shift.shift"))
            energies = scale[head] * energies + shift[head]
        return energies if self.of_first_features is None else energies + self.of_first_features

    def _halves(self, repulsion: Tensor) -> Tensor:
        # of each pair, half for either atom
        halves = 0.5 * sums_over_neighbors(self.graph, repulsion.unsqueeze(1)).squeeze(1)
        scale = self._scale
        return halves if scale is None else scale[self.graph.head] * halves
