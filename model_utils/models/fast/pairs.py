"""What the layers read of the pairs of a batch: radial features and harmonics, for each
pair or for each edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model_utils.models.fast import pair_network
from model_utils.models.fast.backends import PairKernels
from model_utils.models.fast.convolution import signs
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.graph_views import directed, of_edges
from model_utils.models.fast.pair_layers import pair_kernels_of
from model_utils.models.fast.pair_network import HiddenLayer
from model_utils.models.fast.radial import Basis, Radial


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of atoms, or their directed edges (``graph_views.directed``)."""

    graph: BatchGraph
    features: Tensor  # radial, (n_pairs, n_basis)
    cutoff: Tensor | None  # (n_pairs, 1), where it is not in the features
    harmonics: Tensor  # (n_pairs, (max_ell + 1)²)
    basis: Basis | None  # features and cutoff with their slopes, where kernels take them
    kernels: PairKernels | None
    kept: list["Pairs"] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        graph: BatchGraph,
        radial: Radial,
        lengths: Tensor,
        numbers: tuple[Tensor, Tensor],
        harmonics: Tensor,
    ) -> "Pairs":
        """The pairs of a batch.

        Args:
            graph: orders of the batch.
            radial: the radial part of the network.
            lengths: (n_pairs, 1), Å.
            numbers: atomic numbers of both atoms, (n_pairs, 1) each.
            harmonics: (n_pairs, (max_ell + 1)²).
        """
        kernels = pair_kernels_of(lengths, radial)
        if kernels is None:
            features, cutoff = radial.by_torch(lengths, numbers)
            return cls(
                graph=graph,
                features=features,
                cutoff=cutoff,
                harmonics=harmonics,
                basis=None,
                kernels=None,
            )
        basis = radial.basis(lengths, numbers, kernels)
        return cls(
            graph=graph,
            features=basis.features,
            cutoff=basis.cutoff_of_lengths,
            harmonics=harmonics,
            basis=basis,
            kernels=kernels,
        )

    def directed(self, max_ell: int) -> "Pairs":
        """Features and harmonics of directed edges, which share nothing."""
        if not self.kept:
            pairs = self.graph
            basis = self.basis
            takes = self.kernels is not None and self.kernels.takes_edges
            edges = Pairs(
                graph=directed(pairs),
                features=of_edges(pairs, self.features),
                cutoff=None if self.cutoff is None else of_edges(pairs, self.cutoff),
                harmonics=of_edges(pairs, self.harmonics)
                * signs(pairs.flipped, max_ell, self.harmonics.dtype),
                basis=_basis_of_edges(pairs, basis) if basis is not None and takes else None,
                kernels=self.kernels,
            )
            self.kept.append(edges)
        return self.kept[0]

    def network(
        self,
        layers: Sequence[HiddenLayer],
        offset: Tensor | None,
        *,
        times_cutoff: bool,
        appended: bool = False,
    ) -> Tensor:
        """Hidden layers of a network of pairs.

        Args:
            layers: of the network, without its last matrix.
            offset: added to what the first activation gets, (n_pairs, width of the first layer).
            times_cutoff: multiply by the cutoff where it is not in the features; it
                commutes with a matrix.
            appended: add a column of ones, before that.

        Returns:
            (n_pairs, width of the last layer), or one column more.
        """
        kernels = self.kernels
        basis = self.basis
        if (
            kernels is not None
            and basis is not None
            and layers
            and kernels.takes_layers(layers, offset, appended)
        ):
            basis = basis if times_cutoff else basis.without_cutoff()
            return pair_network.by_kernels(kernels, basis, layers, offset, appended)
        x = pair_network.by_torch(self.features, layers, offset)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if appended else x
        return x * self.cutoff if times_cutoff and self.cutoff is not None else x


def _basis_of_edges(graph: BatchGraph, basis: Basis) -> Basis:
    """The radial functions of pairs for each directed edge; their values are copied,
    their lengths followed.
    """
    pair = graph.pair.long()

    def copied(x: Tensor) -> Tensor:
        return x.detach().index_select(0, pair)

    first, second = (copied(n) for n in basis.numbers)
    return replace(
        basis,
        lengths=of_edges(graph, basis.lengths),
        numbers=(first, second),
        value=copied(basis.value),
        slope=copied(basis.slope),
        cutoff=None if basis.cutoff is None else copied(basis.cutoff),
        cutoff_slope=None if basis.cutoff_slope is None else copied(basis.cutoff_slope),
    )
