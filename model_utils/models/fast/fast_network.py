"""The fast form of the network: mace's energies on mace's own parameters, in an algebra made for
differentiating twice.

A training step differentiates energies by positions and the result by parameters, so every
operation here is followed through its VJP and the VJP of that. What is different from mace-torch's
forward pass, and exact:

1. atoms are sorted by species: weights per element act on slices, without one-hot vectors
   (``linear``, ``maps``);
2. what depends on a distance is computed per undirected pair, its value and its slope together
   (``pair_network``);
3. the first layer is factorised by the senders' element (``first_layer``);
4. the convolution is one trilinear sum over rows of edges (``convolution``);
5. the symmetric contraction is a sparse polynomial with coefficients per element
   (``contraction``).

The formulas stand in ``forward_pass``.
"""

import weakref

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.quantities import ENERGY
from model_utils.models.fast.backends import backend_of, prepare
from model_utils.models.fast.forward_pass import ForwardPass
from model_utils.models.fast.frozen_weights import Kept, made_anew
from model_utils.models.fast.graph import BatchGraph, graph_of
from model_utils.models.fast.orders import prepared
from model_utils.models.fast.plan import plan_of
from model_utils.models.network import PLAIN_TORCH, Parameters


class FastNetwork:
    """The fast step over a module's own parameters; the network must be covered
    (``coverage.not_covered``).
    """

    kind = "fast"
    gives = frozenset({ENERGY.name})

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.plan = plan_of(module)
        self._own = dict(module.named_parameters())
        self._make_ready(next(module.parameters()))
        self._latest: tuple[weakref.ref[Batch], BatchGraph] | None = None
        self._kept: Kept | None = None

    def freeze(self) -> None:
        """The weights stay as they are from here on, and what follows from them
        alone is computed once.
        """
        self._kept = Kept()

    def _make_ready(self, like: Tensor) -> None:
        """Compile kernels, or copy tables to the device, and read constants there: not
        within the first step.
        """
        prepare(self.plan, self._own)  # which may leave all to plain torch
        self.plan.radial.keep_constants()
        is_plain = backend_of(like) is None
        for interaction in self.plan.interactions:
            interaction.keep_on(like, products=is_plain)

    @property
    def arithmetic(self) -> str:
        """The backend that computes, or plain torch; another one gives other last bits."""
        backend = backend_of(next(self.module.parameters()))
        return PLAIN_TORCH if backend is None else backend.name

    def prepared(self, batch: Batch) -> Batch:
        """The batch with its orders (``orders``)."""
        return prepared(batch)

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """Interaction energies (n_structures,), eV; the arguments are those of
        ``network.Network.outputs``.
        """
        energies = self._pass(parameters, batch).energies(positions, shifts)
        return {ENERGY.name: energies.of_structures()}

    def energies_of_atoms(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> Tensor:
        """Interaction energies (n_atoms,), eV, in the batch's order; arguments as
        ``network.Network.outputs`` has them.

        The repulsion of a pair belongs to both atoms by halves.
        """
        energies = self._pass(parameters, batch).energies(positions, shifts)
        return energies.of_atoms()[self.graph(batch).rank]

    def _pass(self, parameters: Parameters, batch: Batch) -> ForwardPass:
        # parameters that are not trained are the module's own
        weights = {**self._own, **parameters}
        graph = self.graph(batch)
        of_weights = made_anew if self._kept is None else self._kept.of(graph.present, weights)
        return ForwardPass(self.plan, self.module, weights, batch, graph, of_weights)

    def graph(self, batch: Batch) -> BatchGraph:
        """The orders of a batch; kept for the latest batch, which several evaluations share."""
        if torch.is_inference_mode_enabled():  # of whose tensors there are no forces later
            return graph_of(batch)
        if self._latest is None or self._latest[0]() is not batch:
            self._latest = (weakref.ref(batch), graph_of(batch))
        return self._latest[1]
