"""A network of another library as our module and as a form of the network.

The module holds what model.json says beside the library's own network. A weights file, and a copy
in memory, has the text of its model.json and its tensors in place of the library's objects: a
later release of the library, whose objects have other attributes, opens it, and nothing of the
library is needed to look at it.
"""

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dataloader.batch import Batch
from dataloader.quantities import ENERGY
from model_utils.models.default_dtype import default_dtype
from model_utils.models.guarded_import import choose_executor
from model_utils.models.libraries.library_description import LibraryDescription
from model_utils.models.network import Parameters
from model_utils.runtime import DTYPES, dtype_name


class LibraryModule(nn.Module, ABC):
    """A library's network with scale, shift and what else repeats model.json,
    as buffers of its names.

    Args:
        description: of the network.
        dtype: of all its floating-point tensors.
    """

    # of the classes that the library has
    descriptions: ClassVar[tuple[type[LibraryDescription], ...]]
    atomic_numbers: Tensor
    atomic_inter_scale: Tensor
    atomic_inter_shift: Tensor

    def __init__(self, description: LibraryDescription, dtype: torch.dtype) -> None:
        super().__init__()
        self._make(description, dtype)

    @abstractmethod
    def built(self, description: Any) -> nn.Module:
        """The library's network, with weights drawn from torch's generator, in
        torch's default precision.
        """

    @abstractmethod
    def energies(self, numbers: Tensor, batch: Batch, positions: Tensor, shifts: Tensor) -> Tensor:
        """What the network gives of every atom, before scale and shift.

        Args:
            numbers: atomic numbers (n_atoms,).
            batch: everything of the structures but their geometry.
            positions: (n_atoms, 3), Å.
            shifts: (n_edges, 3), Å, added to positions[receiver] - positions[sender].

        Returns:
            (n_atoms,), without unit.
        """

    def forward(self, batch: Batch, positions: Tensor, shifts: Tensor) -> Tensor:
        """Interaction energies (n_atoms,), eV; the arguments are those of
        ``network.Network.outputs``.
        """
        of_atoms = self.energies(self.atomic_numbers[batch.species], batch, positions, shifts)
        return self.atomic_inter_scale * of_atoms + self.atomic_inter_shift

    def _make(self, description: LibraryDescription, dtype: torch.dtype) -> None:
        self.model_json_text = description.canonical_text()
        self.summary = description.summary()
        self.cutoff = description.r_max  # Å, on the host
        with default_dtype(dtype):
            self.network = self.built(description).to(dtype)
        self.register_buffer("atomic_numbers", torch.tensor(description.atomic_numbers))
        for name in ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift", "r_max"):
            self.register_buffer(
                name, torch.tensor(getattr(description, name), dtype=torch.float64).to(dtype)
            )

    def __repr__(self) -> str:
        # libraries' parts print tables of elements that they expect
        return f"{type(self).__name__}({self.summary})"

    def __getstate__(self) -> dict[str, Any]:
        """What a file or a copy has of it: plain values, and tensors where every module
        has them, by full names.
        """
        tensors = self.state_dict()
        parameters = {name for name, _ in self.named_parameters()}
        return {
            "model_json_text": self.model_json_text,
            "dtype": dtype_name(self.atomic_inter_scale.dtype),
            "frozen": [
                name for name, parameter in self.named_parameters() if not parameter.requires_grad
            ],
            "training": self.training,
            "_parameters": {name: tensor for name, tensor in tensors.items() if name in parameters},
            "_buffers": {
                name: tensor for name, tensor in tensors.items() if name not in parameters
            },
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build it anew and give it its tensors; torch's generator stays as it was."""
        fields = json.loads(state["model_json_text"])
        [kind] = [kind for kind in self.descriptions if _class_of(kind) == fields["model_class"]]
        generator = torch.random.get_rng_state()
        try:
            nn.Module.__init__(self)
            self._make(kind.model_validate(fields), DTYPES[state["dtype"]])
        finally:
            torch.random.set_rng_state(generator)
        self.load_state_dict({**state["_parameters"], **state["_buffers"]}, assign=True)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in state["frozen"])
        self.train(state["training"])


def _class_of(kind: type[LibraryDescription]) -> str:
    """The ``model_class`` that a description is of."""
    [name] = kind.model_fields["model_class"].annotation.__args__  # type: ignore[union-attr]
    return str(name)


class LibraryNetwork:
    """What the loop calls: the library's network over parameters that are handed in."""

    kind = "reference"
    gives = frozenset({ENERGY.name})

    def __init__(self, module: nn.Module, description: LibraryDescription) -> None:
        self.module = module
        self.arithmetic = description.package
        choose_executor(next(module.parameters()).device)

    def prepared(self, batch: Batch) -> Batch:
        """Nothing is needed besides the batch's arrays."""
        return batch

    def energies_of_atoms(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> Tensor:
        """Interaction energies (n_atoms,), eV; the arguments are those of
        ``network.Network.outputs``.
        """
        # libraries make constants in torch's default precision
        with default_dtype(positions.dtype):
            of_atoms: Tensor = functional_call(
                self.module, dict(parameters), (batch, positions, shifts)
            )
        return of_atoms

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """Interaction energies (n_structures,), eV; the arguments are those of
        ``network.Network.outputs``.
        """
        of_atoms = self.energies_of_atoms(parameters, batch, positions, shifts)
        return {
            ENERGY.name: of_atoms.new_zeros(batch.n_structures).index_add(
                0, batch.structure, of_atoms
            )
        }
