"""The reference form of the network: mace-torch's own module, called as mace calls it."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dataloader.batch import Batch
from dataloader.quantities import ENERGY
from model_utils.models.build import ENERGIES
from model_utils.models.default_dtype import default_dtype
from model_utils.models.guarded_import import choose_executor
from model_utils.models.network import Parameters


def as_mace_reads(
    module: nn.Module, batch: Batch, positions: Tensor, shifts: Tensor
) -> dict[str, Tensor]:
    """A batch as the dictionary that mace-torch's forward passes take.

    Args:
        module: mace-torch's own.
        batch: everything of the structures but their geometry.
        positions: (n_atoms, 3), Å.
        shifts: (n_edges, 3), Å.
    """
    n_elements = len(module.get_buffer("atomic_numbers"))
    return {
        "positions": positions,
        "node_attrs": nn.functional.one_hot(batch.species, n_elements).to(positions.dtype),
        "edge_index": torch.stack([batch.senders, batch.receivers]),
        "shifts": shifts,
        "cell": batch.cell,
        "batch": batch.structure,
        "ptr": batch.ptr,
        "head": batch.head,
        **batch.features,
    }


class ReferenceNetwork:
    """mace-torch's forward pass on flat batches.

    Reference energies are set to zero for the call: mace casts E0 to the working precision, and at
    10⁵ eV a float32 step is 8 meV; the loss compares interaction energies instead.
    """

    kind = "reference"
    gives = frozenset({ENERGY.name})
    arithmetic = "mace-torch"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        energies = module.get_buffer(ENERGIES)
        self._no_reference = {ENERGIES: torch.zeros_like(energies)}
        choose_executor(energies.device)

    def prepared(self, batch: Batch) -> Batch:
        """Nothing is needed besides the batch's arrays."""
        return batch

    def energies_of_atoms(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> Tensor:
        """Interaction energies (n_atoms,), eV; the arguments are those of
        ``network.Network.outputs``.

        mace's energies of atoms lack what a readout of charge and spin gives, which its energy of
        the structure has.
        """
        readout = getattr(self.module, "embedding_readout", None)
        if readout is None:
            of_atoms: Tensor = self._computed(parameters, batch, positions, shifts)["node_energy"]
            return of_atoms
        given: list[Tensor] = []
        hook = readout.register_forward_hook(lambda *call: given.append(call[-1]))
        try:
            of_atoms = self._computed(parameters, batch, positions, shifts)["node_energy"]
        finally:
            hook.remove()
        heads = batch.head[batch.structure]
        return of_atoms + given[0][torch.arange(len(heads)), heads].reshape(-1)

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """Interaction energies (n_structures,), eV; the arguments are those of
        ``network.Network.outputs``.
        """
        return {ENERGY.name: self._computed(parameters, batch, positions, shifts)["energy"]}

    def _computed(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """What mace's forward pass gives."""
        data = as_mace_reads(self.module, batch, positions, shifts)
        tensors = {**parameters, **self._no_reference}
        # parts of mace's forward make constants in torch's default precision
        with default_dtype(positions.dtype):
            computed: dict[str, Tensor] = functional_call(
                self.module, tensors, (data,), {"training": True, "compute_force": False}
            )
        return computed
