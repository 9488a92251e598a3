"""model.json of ViSNet of torch_geometric: the fields of its constructor, with
their names and defaults.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from model_utils.models.libraries.library_description import (
    Channels,
    Layers,
    LibraryDescription,
    RadialFunctions,
)
from model_utils.models.schema import Rule

MAX_Z = 119  # rows of the table of elements: none is left out


def _heads_share_channels(model: "VisnetDescription") -> str | None:
    if model.hidden_channels % model.num_heads == 0:
        return None
    return (
        f"hidden_channels: {model.hidden_channels} cannot be shared by {model.num_heads} num_heads"
    )


def _channels_to_halve(model: "VisnetDescription") -> str | None:
    if model.hidden_channels >= 2:
        return None
    return "hidden_channels: the output halves them, and needs at least 2"


class VisnetDescription(LibraryDescription):
    """ViSNet (Wang et al., Nat. Commun. 15, 313, 2024): scalars, vectors and edges with attention.

    Every neighbour within ``r_max`` counts: the library's ``max_num_neighbors``, which leaves
    some out, is not offered.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        *LibraryDescription.rules,
        _heads_share_channels,
        _channels_to_halve,
    )
    package: ClassVar[str] = "torch-geometric"

    model_class: Literal["ViSNet"]
    lmax: Literal[1, 2] = 1
    trainable_vecnorm: bool = False
    num_heads: Annotated[int, Field(ge=1, le=64)] = 8
    num_layers: Layers = 6
    hidden_channels: Channels = 128
    num_rbf: RadialFunctions = 32
    trainable_rbf: bool = False
    vertex: bool = False

    def sizes(self) -> str:
        """Channels, orders and layers."""
        return f"{self.hidden_channels} channels up to l = {self.lmax}, {self.num_layers} layers"

    def notes(self) -> list[str]:
        """What it has otherwise than the library's."""
        return [
            (
                "ViSNet's vector messages have no bias, with which the energy would jump where a "
                "neighbour comes or goes"
            )
        ]
