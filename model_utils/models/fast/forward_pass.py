"""One evaluation of the network: its layers as formulas, on mace's own parameters.

Features lie as (components, n_atoms, channels): order l is the rows l² to (l + 1)² − 1, a
contiguous matrix for its linear map, and channels are innermost.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dataloader.batch import Batch
from model_utils.models.fast.backends import fused_kernels_of
from model_utils.models.fast.energies import Energies
from model_utils.models.fast.frozen_weights import OfWeights
from model_utils.models.fast.gated import added, divided, gate
from model_utils.models.fast.gather import gather
from model_utils.models.fast.geometry import directions, pair_vectors
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.graph_views import of_one_element, species_one_hot
from model_utils.models.fast.linear import Blocks, linear, per_element, rows_of_elements, silu
from model_utils.models.fast.maps import mapped
from model_utils.models.fast.pair_network import HiddenLayer
from model_utils.models.fast.pairs import Pairs
from model_utils.models.fast.plan import Dense, Gated, Interaction, Plan, Readout
from model_utils.models.fast.products import matmul
from model_utils.models.fast.sums import sums_over_neighbors
from model_utils.models.network import Parameters


class ForwardPass:
    """One evaluation of the network; holds weights, batch and orders so that the
    layers read as formulas.
    """

    def __init__(
        self,
        plan: Plan,
        module: nn.Module,
        weights: Parameters,
        batch: Batch,
        graph: BatchGraph,
        of_weights: OfWeights,
    ) -> None:
        self.plan = plan
        self.module = module
        self.weights = weights
        self.batch = batch
        self.graph = graph
        self.of_weights = of_weights
        self._all_present = graph.n_present == len(self.module.get_buffer("atomic_numbers"))

    def select(self, weight: Tensor, axis: int) -> Tensor:
        """The entries of the elements that occur, along an axis of a weight; without
        a copy where all occur.
        """
        return weight if self._all_present else weight.index_select(axis, self.graph.present)

    def energies(self, positions: Tensor, shifts: Tensor) -> Energies:
        """What energies are made of; positions of atoms and shifts of edges in Å."""
        graph = self.graph
        plan = self.plan
        vectors = pair_vectors(graph, positions, shifts)
        lengths, harmonics = directions(vectors, plan.max_ell)
        numbers = self.module.get_buffer("atomic_numbers")[self.batch.species].unsqueeze(1)
        of_pair = (numbers[graph.pair_receiver], numbers[graph.pair_sender])
        pairs = Pairs.of(graph, plan.radial, lengths, of_pair, harmonics)

        h_element = self.of_weights(plan.embedding.name, self.embedding)
        h = self.joint(h_element) if plan.joint else None
        first_energy = (
            None
            if h is None or plan.joint_readout is None
            else self.joint_energy(h[0], plan.joint_readout)
        )

        layers: list[Tensor] = []
        for interaction in plan.interactions:
            h = self.layer(interaction, h, h_element, pairs)
            layers.append(h)
        node_energy = torch.stack([self.readout(r, layers[r.layer]) for r in plan.readouts]).sum(
            dim=0
        )
        return Energies(
            module=self.module,
            radial=plan.radial,
            batch=self.batch,
            graph=graph,
            of_readouts=node_energy,
            of_first_features=first_energy,
            lengths=lengths,
            numbers=of_pair,
        )

    def embedding(self) -> Tensor:
        """Features of the elements that occur before the first layer, (n_present, n_channels)."""
        part = self.plan.embedding.parts[0]
        return self.select(
            self.weights[self.plan.embedding.name].view(-1, part.n_out) * part.scale, 0
        )

    def joint(self, h_element: Tensor) -> Tensor:
        """The first features where charge, spin or other inputs join the elements,
        (1, n_atoms, n_channels).
        """
        embedding = self.module.get_submodule("joint_embedding")
        weights = {
            name: self.weights[f"joint_embedding.{name}"]
            for name, _ in embedding.named_parameters()
        }
        joint = functional_call(embedding, weights, (self.batch.structure, self.batch.features))
        graph = self.graph
        return (
            rows_of_elements(h_element, graph.species) + gather(joint, graph.in_order)
        ).unsqueeze(0)

    def joint_energy(self, x: Tensor, blocks: Blocks) -> Tensor:
        """Energies of atoms by their first features, (n_atoms,), eV; they move no atom."""
        return self.of_head(x @ self.square(blocks))

    def hidden_layers(self, layers: Sequence[Dense], first: Tensor | None) -> list[HiddenLayer]:
        """Layers of a network of pairs with their weights; ``first`` stands for weight and
        bias of the first one.
        """
        hidden = []
        for number, layer in enumerate(layers):
            weight = self.weights[layer.name]
            bias = None if layer.bias is None else self.weights[layer.bias]
            if number == 0 and first is not None:
                weight = first
                bias = None
            elif layer.bias is not None:
                weight = weight.t()
            norm = (
                None
                if layer.norm is None
                else (self.weights[layer.norm[0]], self.weights[layer.norm[1]])
            )
            hidden.append(
                HiddenLayer(weight=weight, bias=bias, norm=norm, scale=layer.scale, gain=layer.gain)
            )
        return hidden

    def by_elements(self, layer: Dense, gated: Gated) -> tuple[Tensor, Tensor]:
        """The first layer of a network that also reads numbers of the sender's and of
        the receiver's element.

        Returns:
            The rows of its matrix for radial features, (n_basis, n_out), and what the rest
            gives to each edge with its bias, (n_edges, n_out): one row per element, which a product
            with zeros and ones hands to the edges.
        """
        assert layer.bias is not None
        n_inputs = gated.source.parts[0].n_out
        weight = self.weights[layer.name].t()
        radial, *by_end = weight.split([len(weight) - 2 * n_inputs, n_inputs, n_inputs])
        rows = []
        for blocks, matrix in zip((gated.source, gated.target), by_end, strict=True):
            embedding = self.weights[blocks.name].view(-1, n_inputs) * blocks.parts[0].scale
            rows.append(self.select(embedding, 0) @ matrix)
        rows[1] = rows[1] + self.weights[layer.bias]  # every edge has one receiver
        return radial, matmul(species_one_hot(self.graph, radial.dtype), torch.cat(rows))

    def pair_network(
        self,
        layers: Sequence[Dense],
        pairs: Pairs,
        gated: Gated | None,
        *,
        times_cutoff: bool,
        appended: bool = False,
    ) -> Tensor:
        """Hidden layers of a network of pairs: see ``Pairs.network``; ``gated``
        has elements as inputs.
        """
        first, offset = (None, None) if gated is None else self.by_elements(layers[0], gated)
        hidden = self.hidden_layers(layers, first)
        return pairs.network(hidden, offset, times_cutoff=times_cutoff, appended=appended)

    def path_features(self, interaction: Interaction, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """R, (n_pairs, n_radial), and the radial network's last matrix, (n_radial,
        n_paths · n_channels).

        A bias is the matrix's last row, of which R is one, or the cutoff.
        """
        last = interaction.last
        appended = last.bias is not None
        radial = self.pair_network(
            interaction.hidden, pairs, interaction.gated, times_cutoff=True, appended=appended
        )
        return radial, self.of_weights(last.name, lambda: self.last_matrix(last))

    def last_matrix(self, last: Dense) -> Tensor:
        """The radial network's last matrix, (n_radial, n_paths · n_channels),
        with the bias below it.
        """
        matrix = self.weights[last.name]
        if last.bias is None:
            return matrix * last.scale
        return torch.cat([matrix.t(), self.weights[last.bias].unsqueeze(0)])

    def layer(
        self, interaction: Interaction, h: Tensor | None, h_element: Tensor, pairs: Pairs
    ) -> Tensor:
        """One interaction with its product block.

        Args:
            interaction: its constants.
            h: features that come in, (components, n_atoms, n_channels); None where atoms of
                one element are alike.
            h_element: (n_present, n_channels), features of atoms of each element
                before the first layer.
            pairs: radial features and harmonics.

        Returns:
            (components, n_atoms, n_channels).
        """
        graph = self.graph
        n_atoms = graph.n_atoms
        gated = interaction.gated
        pairs = pairs if gated is None else pairs.directed(self.plan.max_ell)
        density = self.density(interaction, pairs) if interaction.density else None
        x, sent = self.messages(interaction, h, h_element, pairs)
        if gated is not None:
            assert density is not None
            widths = tuple(part.n_out for part in interaction.down.parts)
            x = divided(x, density * self.weights[gated.beta] + self.weights[gated.alpha], widths)
            x = gate(added(x, self.own(gated, sent)), gated, n_atoms, widths)
            x = self.map(x, gated.mix)
        x = x.view(-1, n_atoms, interaction.product.n_channels)
        if gated is None and density is not None:
            x = x / (density + 1.0)
        if not interaction.residual:
            x = self.per_element(x, interaction.skip)
        y = self.product(interaction, x)
        y = self.map(y, interaction.update).view(y.shape)
        if interaction.residual:
            y = self.add_skip(y, interaction, h, h_element)
        return y

    def messages(
        self, interaction: Interaction, h: Tensor | None, h_element: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor]:
        """Messages behind their linear map, in flat blocks; what atoms send, a row for
        each or for each element.
        """
        factor = interaction.factor
        radial, last = self.path_features(interaction, pairs)
        n_atoms = self.graph.n_atoms
        n_channels = interaction.couplings.n_channels
        first = interaction.first
        if first is None:
            assert h is not None
            sent = self.map(h, interaction.up).view(-1, n_atoms, n_channels)
        else:
            sent = self.of_weights(
                interaction.up.name, lambda: h_element @ self.square(interaction.up)
            )
            if fused_kernels_of(sent) is None or first.pays(
                pairs.graph, radial.shape[1], interaction.down
            ):
                down = (self.weights[interaction.down.name], interaction.down, factor)
                return first(
                    pairs.graph, radial, pairs.harmonics, last, sent, down, self.of_weights
                ), sent
        sent_by_atoms = (
            sent if first is None else rows_of_elements(sent, self.graph.species).unsqueeze(0)
        )
        x = interaction.couplings(pairs.graph, sent_by_atoms, pairs.harmonics, matmul(radial, last))
        return self.map(x, interaction.down, factor), sent

    def own(self, gated: Gated, sent: Tensor) -> Tensor:
        """What an atom itself sends, mapped to what is added to its messages, in flat blocks."""
        if sent.dim() == 3:
            return self.map(sent, gated.own)
        rows = sent @ self.square(gated.own)
        return rows_of_elements(rows, self.graph.species).view(-1)

    def density(self, interaction: Interaction, pairs: Pairs) -> Tensor:
        """Σ_{j → i} tanh(f(r_ij)²), (n_atoms, 1)."""
        *hidden, last = interaction.density
        x = self.pair_network(hidden, pairs, interaction.gated, times_cutoff=False)
        weight = self.weights[last.name]
        f = (
            x @ (weight * last.scale)
            if last.bias is None
            else x @ weight.t() + self.weights[last.bias]
        )
        of_pair = torch.tanh(f**2)
        of_pair = of_pair if pairs.cutoff is None else of_pair * pairs.cutoff
        return sums_over_neighbors(pairs.graph, of_pair)

    def product(self, interaction: Interaction, x: Tensor) -> Tensor:
        """The symmetric contraction of x with the weights of each atom's
        element, or with those of all.
        """
        if interaction.agnostic:
            return interaction.product(
                of_one_element(self.graph), x, self.weights.__getitem__, self.of_weights
            )
        return interaction.product(
            self.graph, x, lambda name: self.select(self.weights[name], 0), self.of_weights
        )

    def map(self, x: Tensor, blocks: Blocks, factor: float = 1.0) -> Tensor:
        """Features in blocks mapped by the same matrices for all atoms, in flat blocks."""
        kernels = fused_kernels_of(x)
        if kernels is None:
            return linear(x, self.weights[blocks.name], blocks, self.graph.n_atoms, factor)
        return mapped(kernels, self.graph, x, self.weights[blocks.name], blocks, factor)

    def per_element(self, x: Tensor, blocks: Blocks) -> Tensor:
        """Features mapped by the matrices of each atom's element, (components, n_atoms, n_out)."""
        kernels = fused_kernels_of(x)
        if kernels is None:
            return per_element(x, self.weights[blocks.name], blocks, self.graph)
        y = mapped(kernels, self.graph, x, self.weights[blocks.name], blocks)
        return y.view(-1, self.graph.n_atoms, blocks.parts[0].n_out)

    def add_skip(
        self, y: Tensor, interaction: Interaction, h: Tensor | None, h_element: Tensor
    ) -> Tensor:
        """y and the mapped features that came in; those of the first layer may
        be one row per element.
        """
        blocks = interaction.skip
        n_atoms = self.graph.n_atoms
        if h is None:
            rows = self.of_weights(blocks.name, lambda: self.skip_rows(blocks, h_element))
            skip = rows_of_elements(rows, self.graph.species).unsqueeze(0)
        elif interaction.gated is not None:
            skip = self.map(h, blocks).view(-1, n_atoms, y.shape[2])
        else:
            skip = self.per_element(h, blocks)
        if len(skip) == len(y):
            return y + skip
        first, rest = y.split([len(skip), len(y) - len(skip)])
        return torch.cat([first + skip, rest])

    def skip_rows(self, blocks: Blocks, h_element: Tensor) -> Tensor:
        """Mapped features of the elements before the first layer, (n_present, n_channels)."""
        part = blocks.parts[0]
        matrices = self.weights[blocks.name][: part.size].view(
            part.n_in, part.n_elements, part.n_out
        )
        matrices = matrices if part.n_elements == 1 else self.select(matrices, 1)
        return (
            torch.matmul(h_element.unsqueeze(1), matrices.transpose(0, 1)).squeeze(1) * part.scale
        )

    def readout(self, readout: Readout, h: Tensor) -> Tensor:
        """Energies of atoms by one layer's scalars, each by its head's column;
        (n_atoms,), eV before scaling.
        """
        x = h[0]
        n_heads = self.plan.n_heads
        for index, (blocks, bias) in enumerate(zip(readout.maps, readout.biases, strict=True)):
            part = blocks.parts[0]
            x = x @ self.of_weights(blocks.name, partial(self.square, blocks))
            x = x if bias is None else x + self.weights[bias]
            if index + 1 < len(readout.maps) and readout.activation is not None:
                x = (
                    readout.activation(x)
                    if readout.silu_gain is None
                    else silu(x, readout.silu_gain)
                )
                if n_heads > 1:
                    of_head = nn.functional.one_hot(self.graph.head, n_heads).to(x.dtype)
                    x = x * of_head.repeat_interleave(part.n_out // n_heads, dim=1)
        return self.of_head(x)

    def of_head(self, x: Tensor) -> Tensor:
        """The column of each atom's head, (n_atoms,)."""
        return (
            x.squeeze(1)
            if x.shape[1] == 1
            else x.gather(1, self.graph.head.unsqueeze(1)).squeeze(1)
        )

    def square(self, blocks: Blocks) -> Tensor:
        """The matrix of a map's first order, (n_in, n_out)."""
        part = blocks.parts[0]
        weight = self.weights[blocks.name]
        if len(blocks.parts) > 1:
            weight = weight.split([p.size for p in blocks.parts])[0]
        return weight.view(part.n_in, part.n_out) * part.scale
