"""The fast form of the network: mace's energies on mace's own parameters, in an algebra made for differentiating twice.

A training step differentiates energies by positions and the result by parameters, so every operation here is followed
through its VJP and the VJP of that. What is different from mace-torch's forward pass, and exact:

1. atoms are sorted by species: weights per element act on slices, without one-hot vectors (``linear.per_element``);
2. what depends on a distance is computed per undirected pair (``graph``);
3. the first layer is factorised by the senders' element (``first_layer``);
4. the convolution is one trilinear sum over rows of edges (``convolution``);
5. the symmetric contraction is a sparse polynomial with coefficients per element (``contraction``).

Features lie as (components, n_atoms, channels): order l is the rows l² to (l + 1)² − 1, a contiguous matrix for its
linear map, and channels are innermost.
"""

import weakref

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.quantities import ENERGY
from model_utils.models.fast.backends import backend_of
from model_utils.models.fast.convolution import Convolution
from model_utils.models.fast.first_layer import FirstLayer
from model_utils.models.fast.gather import adds_in_one_order
from model_utils.models.fast.geometry import directions, pair_vectors
from model_utils.models.fast.graph import BatchGraph, graph_of
from model_utils.models.fast.linear import Blocks, linear, per_element, rows_of_elements, silu
from model_utils.models.fast.orders import prepared
from model_utils.models.fast.plan import Interaction, Readout, plan_of
from model_utils.models.fast.products import matmul
from model_utils.models.fast.sums import sums_over_neighbors, sums_over_structures
from model_utils.models.network import PLAIN_TORCH, Parameters


class FastNetwork:
    """The fast step over a module's own parameters; the network must be covered (``coverage.not_covered``)."""

    kind = "fast"
    gives = frozenset({ENERGY.name})

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.plan = plan_of(module)
        self._own = dict(module.named_parameters())
        self._make_ready(next(module.parameters()))
        self._latest: tuple[weakref.ref[Batch], BatchGraph] | None = None

    def _make_ready(self, like: Tensor) -> None:
        """Compile kernels, or copy tables to the device, and read constants there: not within the first step."""
        self.plan.radial.keep_constants()
        if backend_of(like) is not None:
            return
        for interaction in self.plan.interactions:
            interaction.couplings.keep_on(like)
            interaction.product.keep_on(like)

    @property
    def arithmetic(self) -> str:
        """The backend that computes, or plain torch; another one gives other last bits."""
        backend = backend_of(next(self.module.parameters()))
        return PLAIN_TORCH if backend is None else backend.name

    def prepared(self, batch: Batch) -> Batch:
        """The batch with its orders (``orders``)."""
        return prepared(batch)

    def outputs(self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor) -> dict[str, Tensor]:
        """Interaction energies (n_structures,), eV; the arguments are those of ``network.Network.outputs``."""
        weights = {**self._own, **parameters}  # parameters that are not trained are the module's own
        evaluation = _Pass(self, weights, batch, self.graph(batch))
        return {ENERGY.name: evaluation.energies(positions, shifts)}

    def graph(self, batch: Batch) -> BatchGraph:
        """The orders of a batch; kept for the latest batch, which several evaluations share."""
        if self._latest is None or self._latest[0]() is not batch:
            self._latest = (weakref.ref(batch), graph_of(batch))
        return self._latest[1]


class _Pass:
    """One evaluation of the network; holds weights, batch and orders so that the layers read as formulas."""

    def __init__(self, network: FastNetwork, weights: Parameters, batch: Batch, graph: BatchGraph) -> None:
        self.plan = network.plan
        self.module = network.module
        self.weights = weights
        self.batch = batch
        self.graph = graph
        self._all_present = graph.n_present == len(self.module.get_buffer("atomic_numbers"))

    def select(self, weight: Tensor, axis: int) -> Tensor:
        """The entries of the elements that occur, along an axis of a weight; without a copy where all occur."""
        return weight if self._all_present else weight.index_select(axis, self.graph.present)

    def energies(self, positions: Tensor, shifts: Tensor) -> Tensor:
        """Interaction energies of the structures, (n_structures,), eV; positions and shifts in Å."""
        graph = self.graph
        plan = self.plan
        vectors = pair_vectors(graph, positions, shifts)
        lengths, harmonics = directions(vectors, plan.max_ell)
        numbers = self.module.get_buffer("atomic_numbers")[self.batch.species].unsqueeze(1)
        of_pair = (numbers[graph.pair_receiver], numbers[graph.pair_sender])
        features, cutoff = plan.radial.features(lengths, of_pair)

        embedding = plan.embedding.parts[0]
        h_element = self.weights[plan.embedding.name].view(-1, embedding.n_out) * embedding.scale
        h_element = self.select(h_element, 0)  # (n_present, n_channels)

        layers: list[Tensor] = []
        for interaction in plan.interactions:
            weights = self.radial_network(interaction, features, cutoff)
            h = layers[-1] if layers else None
            layers.append(self.layer(interaction, h, h_element, weights, harmonics, features, cutoff))
        node_energy = torch.stack([self.readout(r, layers[r.layer]) for r in plan.readouts]).sum(dim=0)
        return self.total(node_energy, lengths, of_pair)

    def radial_network(self, interaction: Interaction, x: Tensor, cutoff: Tensor | None) -> Tensor:
        """The features before the radial network's last matrix, (n_pairs, n_radial); the cutoff commutes with it."""
        for layer in interaction.hidden:
            x = silu(matmul(x, self.weights[layer.name] * layer.scale), layer.gain)
        return x if cutoff is None else x * cutoff

    def layer(
        self,
        interaction: Interaction,
        h: Tensor | None,
        h_element: Tensor,
        radial: Tensor,
        harmonics: Tensor,
        features: Tensor,
        cutoff: Tensor | None,
    ) -> Tensor:
        """One interaction with its product block.

        Args:
            interaction: its constants.
            h: features that come in, (components, n_atoms, n_channels); None in the first layer.
            h_element: (n_present, n_channels), features of atoms of each element before the first layer.
            radial: what ``radial_network`` gives, (n_pairs, n_radial).
            harmonics: (n_pairs, (max_ell + 1)²).
            features: radial features, (n_pairs, n_basis).
            cutoff: (n_pairs, 1), where it is not in the features.

        Returns:
            (components, n_atoms, n_channels).
        """
        graph = self.graph
        n_atoms = self.graph.n_atoms
        density = None if interaction.density is None else self.density(interaction, features, cutoff)
        factor = 1.0 if density is not None else 1.0 / interaction.norm
        last = self.weights[interaction.last.name] * interaction.last.scale
        down = self.weights[interaction.down.name]
        if isinstance(interaction.couplings, FirstLayer):
            up = _square(self.weights[interaction.up.name], interaction.up)[0]
            maps = [w * factor for w in _square(down, interaction.down)]
            x = interaction.couplings(graph, radial, harmonics, last, h_element @ up, maps)
        else:
            assert h is not None
            assert isinstance(interaction.couplings, Convolution)
            sent = linear(h, self.weights[interaction.up.name], interaction.up, n_atoms).view(h.shape)
            x = interaction.couplings(graph, sent, harmonics, matmul(radial, last))
            x = linear(x, down, interaction.down, n_atoms, factor).view(-1, n_atoms, interaction.product.n_channels)
        if density is not None:
            x = x / (density + 1.0)
        if not interaction.residual:
            x = self.per_element(x, interaction.skip)
        y = interaction.product(graph, x, lambda name: self.select(self.weights[name], 0))
        y = linear(y, self.weights[interaction.update.name], interaction.update, n_atoms).view(y.shape)
        if interaction.residual:
            y = self.add_skip(y, interaction.skip, h, h_element)
        return y

    def density(self, interaction: Interaction, features: Tensor, cutoff: Tensor | None) -> Tensor:
        """Σ_{j → i} tanh(f(r_ij)²), (n_atoms, 1)."""
        layer = interaction.density
        assert layer is not None
        of_pair = torch.tanh((features @ (self.weights[layer.name] * layer.scale)) ** 2)
        of_pair = of_pair if cutoff is None else of_pair * cutoff
        return sums_over_neighbors(self.graph, of_pair)

    def per_element(self, x: Tensor, blocks: Blocks) -> Tensor:
        """Features mapped by the matrices of each atom's element (``linear.per_element``)."""
        return per_element(x, self.weights[blocks.name], blocks, self.graph)

    def add_skip(self, y: Tensor, blocks: Blocks, h: Tensor | None, h_element: Tensor) -> Tensor:
        """y and the features that came in, mapped per element; those of the first layer are one row per element."""
        if h is None:
            part = blocks.parts[0]
            matrices = self.weights[blocks.name].view(part.n_in, part.n_elements, part.n_out)
            matrices = self.select(matrices, 1).transpose(0, 1)
            rows = torch.bmm(h_element.unsqueeze(1), matrices).squeeze(1) * part.scale
            skip = rows_of_elements(rows, self.graph.species).unsqueeze(0)
        else:
            skip = self.per_element(h, blocks)
        if len(skip) == len(y):
            return y + skip
        first, rest = y.split([len(skip), len(y) - len(skip)])
        return torch.cat([first + skip, rest])

    def readout(self, readout: Readout, h: Tensor) -> Tensor:
        """Energies of atoms by one layer's scalars, each by its head's column; (n_atoms,), eV before scaling."""
        x = h[0]
        n_heads = self.plan.n_heads
        for index, (blocks, bias) in enumerate(zip(readout.maps, readout.biases, strict=True)):
            part = blocks.parts[0]
            x = x @ (self.weights[blocks.name].view(part.n_in, part.n_out) * part.scale)
            x = x if bias is None else x + self.weights[bias]
            if index + 1 < len(readout.maps) and readout.activation is not None:
                x = readout.activation(x)
                if n_heads > 1:
                    of_head = nn.functional.one_hot(self.graph.head, n_heads).to(x.dtype)
                    x = x * of_head.repeat_interleave(part.n_out // n_heads, dim=1)
        return x.squeeze(1) if n_heads == 1 else x.gather(1, self.graph.head.unsqueeze(1)).squeeze(1)

    def total(self, node_energy: Tensor, lengths: Tensor, numbers: tuple[Tensor, Tensor]) -> Tensor:
        """Energies of structures: scaled, shifted sums over atoms and the repulsion of pairs; (n_structures,), eV."""
        graph = self.graph
        buffers = dict(self.module.named_buffers()) if hasattr(self.module, "scale_shift") else {}
        scale = buffers.get("scale_shift.scale")
        shift = buffers.get("scale_shift.shift")
        if scale is not None and shift is not None:
            scale = torch.atleast_1d(scale)
            shift = torch.atleast_1d(shift)
            node_energy = scale[graph.head] * node_energy + shift[graph.head]
        if self.plan.radial.repulsion is None:
            return sums_over_structures(graph, node_energy)
        repulsion = self.plan.radial.repulsion_energy(lengths, numbers)
        if not adds_in_one_order(node_energy):
            halves = 0.5 * sums_over_neighbors(graph, repulsion.unsqueeze(1)).squeeze(1)
            return sums_over_structures(graph, node_energy + (halves if scale is None else scale[graph.head] * halves))
        structure = self.batch.structure[graph.pair_receiver]
        if scale is not None:
            repulsion = repulsion * scale[self.batch.head[structure]]
        return sums_over_structures(graph, node_energy).index_add(0, structure, repulsion)


def _square(weight: Tensor, blocks: Blocks) -> list[Tensor]:
    """The matrices of a map as tensors of their own."""
    flat = weight.split([p.size for p in blocks.parts])
    return [w.view(p.n_in, p.n_out) * p.scale for p, w in zip(blocks.parts, flat, strict=True)]
