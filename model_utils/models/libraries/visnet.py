"""The only import of torch_geometric: ViSNet over our batches.

torch_geometric's ViSNet makes its own neighbour list, of molecules alone, and takes an edge from an
atom to itself for the loop that it adds to every atom. In a small cell such edges lead to images of
the atom, and as shipped they are left out. Here edges are ours, the loops are known by their place,
and everything else is the library's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from model_utils.models.guarded_import import unsafe_loading_during_import
from model_utils.models.libraries.library_module import LibraryModule
from model_utils.models.libraries.visnet_description import MAX_Z, VisnetDescription

with unsafe_loading_during_import():
    from torch_geometric.nn.models import visnet as library


class Blocks(library.ViSNetBlock):
    """The library's blocks on edges that are handed in."""

    def forward(self, z: Tensor, edges: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (n_atoms, channels) and vectors (n_atoms, 3 or 8, channels) of every atom.

        Args:
            z: atomic numbers (n_atoms,).
            edges: (2, n_edges), the neighbour and the atom that it is one of; loops are added here.
            vectors: (n_edges, 3), Å, from the atom to its neighbour.
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        loops = torch.arange(len(z), device=z.device).expand(2, -1)
        all_edges = torch.cat([edges, loops], dim=1)
        distances = torch.cat([lengths, lengths.new_zeros(len(z))])
        directions = torch.cat([vectors / lengths[:, None], vectors.new_zeros(len(z), 3)])
        harmonics = self.sphere(directions)
        radial = self.distance_expansion(distances)
        x = self._with_neighbors(z, edges, lengths, radial[: len(lengths)])
        vec = x.new_zeros(len(z), (self.lmax + 1) ** 2 - 1, x.shape[1])
        of_edges = self.edge_embedding(all_edges, radial, x)
        for layer in self.vis_mp_layers:
            dx, dvec, change = layer(x, vec, all_edges, distances, of_edges, harmonics)
            x = x + dx
            vec = vec + dvec
            of_edges = of_edges if change is None else of_edges + change
        return self.out_norm(x), self.vec_out_norm(vec)

    def _with_neighbors(self, z: Tensor, edges: Tensor, lengths: Tensor, radial: Tensor) -> Tensor:
        """Embeddings of atoms with those of their neighbours, images of an
        atom itself among them.
        """
        part = self.neighbor_embedding
        filters = part.distance_proj(radial) * part.cutoff(lengths)[:, None]
        messages = part.embedding(z)[edges[0]] * filters
        x = self.embedding(z)
        return part.combine(
            torch.cat([x, torch.zeros_like(x).index_add(0, edges[1], messages)], dim=1)
        )


class Network(nn.Module):
    """Blocks and output of ViSNet; its table of energies of elements is left
    out, E0s are model.json's.
    """

    def __init__(self, d: VisnetDescription) -> None:
        super().__init__()
        self.representation_model = Blocks(
            lmax=d.lmax,
            trainable_vecnorm=d.trainable_vecnorm,
            num_heads=d.num_heads,
            num_layers=d.num_layers,
            hidden_channels=d.hidden_channels,
            num_rbf=d.num_rbf,
            trainable_rbf=d.trainable_rbf,
            max_z=MAX_Z,
            cutoff=d.r_max,
            vertex=d.vertex,
        )
        for layer in self.representation_model.vis_mp_layers:
            # it would be learned, and vectors would jump where a neighbour comes or goes
            layer.s_proj.bias = None
        self.output_model = library.EquivariantScalar(hidden_channels=d.hidden_channels)

    def forward(self, z: Tensor, edges: Tensor, vectors: Tensor) -> Tensor:
        """Energies (n_atoms,) without unit; the arguments are those of ``Blocks.forward``."""
        x, vec = self.representation_model(z, edges, vectors)
        for layer in self.output_model.output_network:
            x, vec = gated(layer, x, vec)
        return x.squeeze(-1)


def gated(block: Any, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
    """The library's gated block, whose lengths of vectors have a slope where a vector is zero.

    An atom without neighbours has such vectors, and torch's second derivative of their lengths is
    no number: one of them would spoil the gradients of a whole batch.
    """
    lengths = _lengths(block.vec1_proj(vec))
    x, gate = torch.split(
        block.update_net(torch.cat([x, lengths], dim=-1)), block.out_channels, dim=-1
    )
    return (x if block.act is None else block.act(x)), gate.unsqueeze(1) * block.vec2_proj(vec)


def _lengths(vec: Tensor) -> Tensor:
    """Lengths along the second dimension; with slope zero where a vector is zero."""
    squares = (vec * vec).sum(dim=1)
    is_zero = squares == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squares).sqrt())


class VisnetModule(LibraryModule):
    """ViSNet of torch_geometric."""

    descriptions = (VisnetDescription,)

    def built(self, description: Any) -> nn.Module:
        """The network of a description, in torch's default precision."""
        return Network(description)

    def energies(self, numbers: Tensor, batch: Batch, positions: Tensor, shifts: Tensor) -> Tensor:
        """What the network gives of every atom (n_atoms,); the arguments are those of
        ``LibraryModule.energies``.
        """
        vectors = positions[batch.receivers] - positions[batch.senders] + shifts
        of_atoms: Tensor = self.network(
            numbers, torch.stack([batch.receivers, batch.senders]), vectors
        )
        return of_atoms
