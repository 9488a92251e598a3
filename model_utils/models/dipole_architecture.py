"""mace-torch's networks of dipoles as a family: ``AtomicDipolesMACE`` and ``EnergyDipolesMACE``."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dataloader.errors import InputError
from model_utils.models.dipole_description import DipoleDescription
from model_utils.models.mace_architecture import OfMaceTorch
from model_utils.models.network import Network
from model_utils.models.seams import Form


def _reference(module: nn.Module, description: DipoleDescription) -> Network:
    from model_utils.models.dipole_network import DipoleNetwork

    return DipoleNetwork(module)


class DipoleArchitecture(OfMaceTorch):
    """mace-torch's classes of dipoles; they have the reference step alone, one head,
    and no form for LAMMPS.

    Args:
        with_energies: the class gives energies too, and so has E0s.
    """

    description = DipoleDescription
    forms: ClassVar = {"reference": Form(network=_reference)}
    exports = ("safetensors", "module")

    def __init__(self, *, with_energies: bool) -> None:
        self.reference_energies = "atomic_energies_fn.atomic_energies" if with_energies else None

    def build(self, description: DipoleDescription, dtype: torch.dtype, where: str) -> nn.Module:
        """mace-torch's own module on the CPU, with weights drawn from torch's generator.

        Raises:
            InputError: this installation cannot build the structure.
        """
        from model_utils.models.build import build_dipoles

        return build_dipoles(description, dtype, where)

    def with_copied_heads(
        self, source: nn.Module, target: nn.Module, parents: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """There is one head.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a network of dipoles has one head, and no other can be added; leave the flag out"
        )


ATOMIC_DIPOLES = DipoleArchitecture(with_energies=False)
ENERGY_DIPOLES = DipoleArchitecture(with_energies=True)
