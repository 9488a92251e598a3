"""A plug-in with a quantity, a format and an architecture: ``--plugin configs/plugins/pairs.py``.

The quantity is the dipole of a structure, the format one ``.npz`` for a set of molecules of one
composition, and the architecture a toy: energies are sums over pairs of atoms, dipoles come from a
charge for each element. Trained with

    train_mace.py … --plugin configs/plugins/pairs.py --train_file waters.npz \\
        --quantity_weights dipole=10
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from dataloader import input_files, quantities
from dataloader.batch import Batch
from dataloader.errors import InputError
from dataloader.formats import FORMATS
from dataloader.in_memory import RawFrame, kept_format
from dataloader.quantities import Quantity
from dataloader.record import RawRecord
from model_utils.models.architecture import ARCHITECTURES
from model_utils.models.network import Parameters
from model_utils.models.schema import ModelDescription
from model_utils.models.seams import Form, Repeated

# A quantity: from here on it is read from files, packed, batched, trained on and reported

quantities.add(
    Quantity(name="dipole", symbol="D", unit="e·Å", names=("REF_dipole", "dipole"), components=(3,))
)


# A format: a reader of one file, and how a file is known


def frames_of(path: Path) -> Iterator[RawFrame]:
    """The structures of one ``.npz``: numbers (n_atoms,), and stacked positions,
    energies, forces and dipoles.

    Raises:
        InputError: the file cannot be read as such.
    """
    try:
        input_files.require_regular(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        count = len(arrays["positions"])
        of_all = {name: arrays.pop(name) for name in ("numbers", "cell") if name in arrays}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"cannot read {path}: {error}; expected numbers and positions in an .npz"
        ) from None
    for row in range(count):
        values = {**of_all, **{name: array[row] for name, array in arrays.items()}}
        yield RawFrame(RawRecord(values), f"{path.name}#{row}", f"{path} structure {row}")


FORMATS["npz"] = kept_format(
    name="npz",
    what="an .npz of molecules",
    takes=lambda path: path.suffix == ".npz",
    frames=frames_of,
    endings=(".npz",),
)


# An architecture: a description with its fields, a module, and a network over its parameters


class PairsDescription(ModelDescription):
    """model.json of a network of pairs."""

    model_class: Literal["Pairs"]
    n_gaussians: Annotated[int, Field(ge=2, le=64)] = 6

    def summary(self) -> str:
        """The network in a few words, for the log."""
        return f"{self.model_class}, {self.n_gaussians} gaussians"

    def notes(self) -> list[str]:
        """What is said where such a network is trained."""
        return ["a toy: nothing that it predicts is physics"]


class Pairs(nn.Module):
    """Energies of pairs as sums of Gaussians of their distance; a charge for each element."""

    def __init__(self, description: PairsDescription, dtype: torch.dtype) -> None:
        super().__init__()
        n_elements = len(description.atomic_numbers)
        self.weights = nn.Parameter(
            0.1 * torch.randn(n_elements, n_elements, description.n_gaussians, dtype=dtype)
        )
        self.charges = nn.Parameter(0.1 * torch.randn(n_elements, dtype=dtype))
        centres = torch.linspace(0.5, description.r_max, description.n_gaussians, dtype=dtype)
        self.register_buffer("centres", centres)
        self.register_buffer("r_max", torch.tensor(description.r_max, dtype=dtype))
        self.register_buffer("E0s", torch.tensor(description.atomic_energies, dtype=dtype))
        self.register_buffer("atomic_numbers", torch.tensor(description.atomic_numbers))

    def forward(self, batch: Batch, positions: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """Interaction energies (n_structures,), eV, and dipoles (n_structures, 3), e·Å."""
        vectors = positions[batch.receivers] - positions[batch.senders] + shifts
        length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        basis = (
            torch.exp(-4.0 * (length - self.centres) ** 2) * (1 - (length / self.r_max) ** 2) ** 3
        )
        of_pair = self.weights[batch.species[batch.receivers], batch.species[batch.senders]]
        of_edge = 0.5 * (of_pair * basis).sum(dim=1)
        energies = positions.new_zeros(batch.n_structures).index_add(
            0, batch.structure[batch.receivers], of_edge
        )
        charges = self.charges[batch.species]
        total = charges.new_zeros(batch.n_structures).index_add(0, batch.structure, charges)
        # the origin does not matter then
        neutral = charges - (total / batch.sizes.to(charges.dtype))[batch.structure]
        moments = neutral[:, None] * positions
        dipoles = moments.new_zeros(batch.n_structures, 3).index_add(0, batch.structure, moments)
        return energies, dipoles


class PairNetwork:
    """What the loop calls; the parameters are handed in, since averaged ones are judged as well."""

    kind = "reference"
    gives = frozenset({"energy", "dipole"})
    arithmetic = "plain torch"

    def __init__(self, module: nn.Module, description: PairsDescription) -> None:
        self.module = module

    def prepared(self, batch: Batch) -> Batch:
        """The batch as it is."""
        return batch

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """Energies and dipoles; arguments and result as in
        ``model_utils.models.network.Network.outputs``.
        """
        energy, dipole = functional_call(self.module, dict(parameters), (batch, positions, shifts))
        return {"energy": energy, "dipole": dipole}


class PairArchitecture:
    """The family, as the table knows it."""

    description = PairsDescription
    reference_energies = "E0s"
    namespaces = ("plugin_pairs.",)
    forms = {"reference": Form(network=PairNetwork)}  # noqa: RUF012
    exports = ("safetensors",)

    def build(self, description: PairsDescription, dtype: torch.dtype, where: str) -> nn.Module:
        """A module with weights drawn from torch's generator."""
        return Pairs(description, dtype)

    def repeated(self, description: PairsDescription, module: nn.Module) -> list[Repeated]:
        """Buffers that must agree with model.json."""
        return [
            Repeated("r_max", "r_max", description.r_max),
            Repeated("atomic_energies", "E0s", description.atomic_energies),
            Repeated("atomic_numbers", "atomic_numbers", description.atomic_numbers),
        ]

    def versions(self) -> Mapping[str, str]:
        """What computes it, besides torch."""
        return {"pairs": "1"}

    def narrowed(
        self, source: nn.Module, target: nn.Module, kept: Sequence[int]
    ) -> Mapping[str, Any]:
        """Not offered."""
        raise InputError("--elements: a network of pairs cannot be narrowed; leave the flag out")

    def with_copied_heads(
        self, source: nn.Module, target: nn.Module, parents: Sequence[int]
    ) -> Mapping[str, Any]:
        """Not offered."""
        raise InputError("a network of pairs has no heads of its own to copy")


ARCHITECTURES["Pairs"] = PairArchitecture()
