"""model.json of the networks of graph-pes: the fields of its constructors, with
their names and defaults.

Channels and layers of the default networks are few; 128 channels (TensorNet 64) are
what is usually trained.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from model_utils.models.libraries.library_description import (
    Channels,
    Layers,
    LibraryDescription,
    RadialFunctions,
)
from model_utils.models.schema import Rule

Expansion = Literal["Bessel", "ExponentialRBF", "GaussianSmearing", "SinExpansion"]


class GraphPesDescription(LibraryDescription):
    """What all networks of graph-pes have."""

    package: ClassVar[str] = "graph-pes"
    layers: Layers = 3


class PainnDescription(GraphPesDescription):
    """PaiNN (Schütt et al., ICML 2021): scalars and vectors of every atom."""

    model_class: Literal["PaiNN"]
    channels: Channels = 32
    radial_features: RadialFunctions = 20

    def sizes(self) -> str:
        """Channels and layers."""
        return f"{self.channels} channels, {self.layers} layers"


class TensornetDescription(GraphPesDescription):
    """TensorNet (Simeon and De Fabritiis, NeurIPS 2023): Cartesian tensors of
    rank two of every atom.
    """

    model_class: Literal["TensorNet"]
    channels: Channels = 32
    radial_features: RadialFunctions = 32
    radial_expansion: Expansion = "ExponentialRBF"
    layers: Layers = 2

    def sizes(self) -> str:
        """Channels and layers."""
        return f"{self.channels} channels, {self.layers} layers"


class SchnetDescription(GraphPesDescription):
    """SchNet (Schütt et al., J. Chem. Phys. 148, 241722, 2018), whose filters end
    smoothly at the cutoff.
    """

    model_class: Literal["SchNet"]
    channels: Channels = 64
    expansion_features: RadialFunctions = 50

    def sizes(self) -> str:
        """Channels and layers."""
        return f"{self.channels} channels, {self.layers} layers"

    def notes(self) -> list[str]:
        """That its filters are not those of the paper."""
        return [
            (
                "SchNet's filters are multiplied by a polynomial that ends at r_max; without it "
                "the energy would jump"
            )
        ]


def _channels_of_every_order(model: "NequipDescription") -> str | None:
    given = len(model.channels)
    orders = model.l_max + 1
    return (
        None
        if given == orders
        else f"channels: {given} numbers for the {orders} orders up to l_max"
    )


class NequipDescription(GraphPesDescription):
    """NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022) with a learned
    embedding of the elements.

    ``channels``, ``l_max`` and ``use_odd_parity`` are what graph-pes has together as ``features``.
    Of its ways to add up neighbours, ``mean`` and ``sqrt`` are left out: with them the energy jumps
    where a neighbour comes or goes. The constant ones divide by ``avg_num_neighbors``.
    """

    rules: ClassVar[tuple[Rule, ...]] = (*LibraryDescription.rules, _channels_of_every_order)

    model_class: Literal["ZEmbeddingNequIP"]
    Z_embed_dim: Channels = 8
    channels: Annotated[list[Channels], Field(min_length=1, max_length=7)] = Field(
        default=[16, 16, 16]
    )
    l_max: Annotated[int, Field(ge=0, le=6)] = 2
    use_odd_parity: bool = True
    self_interaction: Literal["linear", "tensor_product"] | None = "tensor_product"
    prune_last_layer: bool = True
    neighbour_aggregation: Literal["sum", "constant_fixed", "constant_learnable"] = "sum"
    radial_features: RadialFunctions = 8

    @classmethod
    def spread(cls, data: dict[str, Any]) -> dict[str, Any]:
        """One number of channels for all orders.

        Raises:
            ValueError: what is written cannot be spread.
        """
        channels = data.get("channels", 16)
        l_max = data.get("l_max", 2)
        if type(channels) is int and type(l_max) is int:
            data["channels"] = [channels] * (min(max(l_max, 0), 64) + 1)
        return super().spread(data)

    def sizes(self) -> str:
        """Channels of every order and layers."""
        return f"channels {self.channels} up to l = {self.l_max}, {self.layers} layers"
