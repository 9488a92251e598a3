"""The only import of graph-pes: its networks over our batches.

graph-pes adds messages up at the first atom of an edge, our sender; edges go both ways, so nothing
is lost. Its cells are unit matrices here, and its integer offsets our shifts in Å: strain of the
cell then enters as it does in shifts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from model_utils.models.guarded_import import choose_executor, unsafe_loading_during_import
from model_utils.models.libraries.graph_pes_descriptions import (
    NequipDescription,
    PainnDescription,
    SchnetDescription,
    TensornetDescription,
)
from model_utils.models.libraries.library_module import LibraryModule

with unsafe_loading_during_import():
    import graph_pes.models as library
    from graph_pes.atomic_graph import AtomicGraph
    from graph_pes.models.components.aggregation import ScaledSumNeighbours
    from graph_pes.models.components.distances import PolynomialEnvelope
    from graph_pes.utils.nn import HaddamardProduct, PerElementParameter

choose_executor(torch.device("cpu"))  # until a network is built elsewhere


class PlainState:
    """In front of a class of graph-pes: its state has tensors only, without the
    version that graph-pes adds.
    """

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


class Painn(PlainState, library.PaiNN):
    """graph-pes' PaiNN."""


class Tensornet(PlainState, library.TensorNet):
    """graph-pes' TensorNet."""


class Schnet(PlainState, library.SchNet):
    """graph-pes' SchNet."""


class Nequip(PlainState, library.ZEmbeddingNequIP):
    """graph-pes' NequIP with a learned embedding of the elements."""


def painn(d: PainnDescription) -> nn.Module:
    """PaiNN as a description has it."""
    return Painn(
        cutoff=d.r_max, channels=d.channels, radial_features=d.radial_features, layers=d.layers
    )


def tensornet(d: TensornetDescription) -> nn.Module:
    """TensorNet as a description has it."""
    return Tensornet(
        cutoff=d.r_max,
        channels=d.channels,
        radial_features=d.radial_features,
        radial_expansion=d.radial_expansion,
        layers=d.layers,
    )


def schnet(d: SchnetDescription) -> nn.Module:
    """SchNet whose filters end at the cutoff: its Gaussians do not, and an energy would
    jump by some meV there.
    """
    network = Schnet(
        cutoff=d.r_max,
        channels=d.channels,
        expansion_features=d.expansion_features,
        layers=d.layers,
    )
    for interaction in network.interactions:
        convolution = interaction.cfconv
        envelope = PolynomialEnvelope(d.r_max)
        convolution.filter_generator = HaddamardProduct(
            convolution.filter_generator, envelope, left_aligned=True
        )
    return network


def nequip(d: NequipDescription) -> nn.Module:
    """NequIP as a description has it; sums over neighbours are divided by the
    description's average.
    """
    network = Nequip(
        cutoff=d.r_max,
        Z_embed_dim=d.Z_embed_dim,
        features={"channels": d.channels, "l_max": d.l_max, "use_odd_parity": d.use_odd_parity},
        layers=d.layers,
        self_interaction=d.self_interaction,
        prune_last_layer=d.prune_last_layer,
        neighbour_aggregation=d.neighbour_aggregation,
        radial_features=d.radial_features,
    )
    for part in network.modules():
        if isinstance(part, ScaledSumNeighbours):
            average = torch.tensor(d.avg_num_neighbors)
            if part.scale.requires_grad:
                part.scale = nn.Parameter(average)
            else:  # a buffer, which is compared with model.json whenever weights are loaded
                del part.scale
                part.register_buffer("scale", average)
    return network


BUILDERS: dict[type, Callable[[Any], nn.Module]] = {
    PainnDescription: painn,
    TensornetDescription: tensornet,
    SchnetDescription: schnet,
    NequipDescription: nequip,
}


def with_plain_parameters(network: nn.Module) -> nn.Module:
    """The network with its tables of elements as plain parameters.

    graph-pes' own say that they have no elements until a training set was shown to them;
    they would not be trained.
    """
    for part in network.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if isinstance(parameter, PerElementParameter):
                setattr(
                    part,
                    name,
                    nn.Parameter(parameter.data.clone(), requires_grad=parameter.requires_grad),
                )
    return network


class GraphPesModule(LibraryModule):
    """A network of graph-pes."""

    descriptions = tuple(BUILDERS)

    def built(self, description: Any) -> nn.Module:
        """The network of a description, in torch's default precision."""
        return with_plain_parameters(BUILDERS[type(description)](description))

    def energies(self, numbers: Tensor, batch: Batch, positions: Tensor, shifts: Tensor) -> Tensor:
        """What the network gives of every atom (n_atoms,); the arguments are those of
        ``LibraryModule.energies``.
        """
        n_structures = batch.n_structures
        unit = torch.eye(3, dtype=positions.dtype, device=positions.device).expand(
            n_structures, 3, 3
        )
        graph = AtomicGraph(
            Z=numbers,
            R=positions,
            cell=unit,
            neighbour_list=torch.stack([batch.senders, batch.receivers]),
            neighbour_cell_offsets=shifts,
            properties={},
            cutoff=self.cutoff,
            other={},
            batch=batch.structure,
            ptr=batch.ptr,
        )
        # graph-pes squeezes a single one
        of_atoms: Tensor = self.network(graph)["local_energies"].reshape(-1)
        return of_atoms
