"""mace-torch's own modules of dipoles, called as mace calls them."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dataloader.batch import Batch
from dataloader.quantities import DIPOLE, ENERGY
from model_utils.models.build import ENERGIES
from model_utils.models.default_dtype import default_dtype
from model_utils.models.guarded_import import choose_executor
from model_utils.models.network import Parameters
from model_utils.models.reference import as_mace_reads


def is_of_dipoles(module: nn.Module) -> bool:
    """Whether a module is one of mace-torch's classes of dipoles."""
    return type(module).__name__ in ("AtomicDipolesMACE", "EnergyDipolesMACE")


class DipoleNetwork:
    """Dipoles, and energies where the class has them, by mace-torch's forward pass on flat batches.

    Reference energies are zero for the call, as in ``reference.ReferenceNetwork``. mace-torch adds
    Σ q r of the atomic charges that a frame has (``REF_charges``); here they are zero, so that the
    dipole is the network's own.
    """

    kind = "reference"
    arithmetic = "mace-torch"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        energies = dict(module.named_buffers()).get(ENERGIES)
        self.gives = frozenset({DIPOLE.name} if energies is None else {ENERGY.name, DIPOLE.name})
        self._no_reference = {} if energies is None else {ENERGIES: torch.zeros_like(energies)}
        choose_executor(next(module.parameters()).device)

    def prepared(self, batch: Batch) -> Batch:
        """Nothing is needed besides the batch's arrays."""
        return batch

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """Dipoles (n_structures, 3), e·Å, and interaction energies (n_structures,),
        eV, where there are some.

        The arguments are those of ``network.Network.outputs``.
        """
        data = as_mace_reads(self.module, batch, positions, shifts)
        data["charges"] = positions.new_zeros(batch.n_atoms)
        tensors = {**parameters, **self._no_reference}
        with default_dtype(positions.dtype):
            computed: dict[str, Tensor] = functional_call(
                self.module, tensors, (data,), {"training": True, "compute_force": False}
            )
        return {name: computed[name] for name in (ENERGY.name, DIPOLE.name) if name in self.gives}
