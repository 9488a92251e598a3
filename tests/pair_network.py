"""A toy family of networks of pairs, as a plug-in would bring it: energies are sums of Gaussians of distances."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from dataloader.batch import Batch
from dataloader.errors import InputError
from model_utils.models.network import Parameters
from model_utils.models.schema import ModelDescription
from model_utils.models.seams import Form, Repeated


class PairsDescription(ModelDescription):
    """model.json of the toy: fields of its own beside those that all share."""

    model_class: Literal["Pairs"]
    n_gaussians: Annotated[int, Field(ge=2, le=64)] = 6

    def summary(self) -> str:
        return f"{self.model_class}, {self.n_gaussians} gaussians"

    def notes(self) -> list[str]:
        return ["a toy: nothing that it predicts is physics"]


class Pairs(nn.Module):
    def __init__(self, description: PairsDescription, dtype: torch.dtype) -> None:
        super().__init__()
        n_elements = len(description.atomic_numbers)
        self.weights = nn.Parameter(0.1 * torch.randn(n_elements, n_elements, description.n_gaussians, dtype=dtype))
        centres = torch.linspace(0.5, description.r_max, description.n_gaussians, dtype=dtype)
        self.register_buffer("centres", centres)
        self.register_buffer("r_max", torch.tensor(description.r_max, dtype=dtype))
        self.register_buffer("E0s", torch.tensor(description.atomic_energies, dtype=dtype))
        self.register_buffer("atomic_numbers", torch.tensor(description.atomic_numbers))

    def forward(self, batch: Batch, positions: Tensor, shifts: Tensor) -> Tensor:
        vectors = positions[batch.receivers] - positions[batch.senders] + shifts
        length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        basis = torch.exp(-4.0 * (length - self.centres) ** 2) * (1 - (length / self.r_max) ** 2) ** 3
        of_pair = self.weights[batch.species[batch.receivers], batch.species[batch.senders]]
        energies = 0.5 * (of_pair * basis).sum(dim=1)
        structure = batch.structure[batch.receivers]
        return positions.new_zeros(batch.n_structures).index_add(0, structure, energies)


class PairNetwork:
    kind = "reference"
    gives = frozenset({"energy"})
    arithmetic = "plain torch"

    def __init__(self, module: nn.Module, description: PairsDescription) -> None:
        self.module = module

    def prepared(self, batch: Batch) -> Batch:
        return batch

    def outputs(self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor) -> dict[str, Tensor]:
        return {"energy": functional_call(self.module, dict(parameters), (batch, positions, shifts))}


class PairArchitecture:
    description = PairsDescription
    reference_energies = "E0s"
    namespaces = ("pair_network.",)
    forms = {"reference": Form(network=PairNetwork)}  # noqa: RUF012
    exports = ("safetensors",)

    def build(self, description: PairsDescription, dtype: torch.dtype, where: str) -> nn.Module:
        return Pairs(description, dtype)

    def repeated(self, description: PairsDescription, module: nn.Module) -> list[Repeated]:
        return [
            Repeated("r_max", "r_max", description.r_max),
            Repeated("atomic_energies", "E0s", description.atomic_energies),
            Repeated("atomic_numbers", "atomic_numbers", description.atomic_numbers),
        ]

    def versions(self) -> Mapping[str, str]:
        return {"pairs": "1"}

    def narrowed(self, source: nn.Module, target: nn.Module, kept: Sequence[int]) -> Mapping[str, Any]:
        raise InputError("--elements: a network of pairs cannot be narrowed; leave the flag out")

    def with_copied_heads(self, source: nn.Module, target: nn.Module, parents: Sequence[int]) -> Mapping[str, Any]:
        raise InputError("a network of pairs has no heads of its own to copy")
