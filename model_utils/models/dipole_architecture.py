"""mace-torch's networks of dipoles as a family: ``AtomicDipolesMACE`` and ``EnergyDipolesMACE``."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dataloader.errors import InputError
from model_utils.models.dipole_description import DipoleDescription
from model_utils.models.network import Network
from model_utils.models.seams import Form, Repeated


def _reference(module: nn.Module, description: DipoleDescription) -> Network:
    from model_utils.models.dipole_network import DipoleNetwork

    return DipoleNetwork(module)


class DipoleArchitecture:
    """mace-torch's classes of dipoles; they have the reference step alone, one head, and no form for LAMMPS.

    Args:
        with_energies: the class gives energies too, and so has E0s.
    """

    description = DipoleDescription
    namespaces = ("mace.modules.",)
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

    def repeated(self, description: DipoleDescription, module: nn.Module) -> list[Repeated]:
        """E0s where there are some, cutoff, elements, and what parts of the network repeat of these."""
        from model_utils.models.build import repeated

        return repeated(description, module)

    def versions(self) -> Mapping[str, str]:
        """Versions of mace-torch and e3nn."""
        from model_utils.models.mace_import import VERSIONS

        return VERSIONS

    def narrowed(self, source: nn.Module, target: nn.Module, kept: Sequence[int]) -> Mapping[str, Tensor]:
        """The state of a module for some of the source's elements (``narrowing``).

        Raises:
            InputError: a tensor depends on the elements in a way that is not known.
        """
        from model_utils.models.narrowing import narrowed

        return narrowed(source, target, kept)

    def with_copied_heads(self, source: nn.Module, target: nn.Module, parents: Sequence[int]) -> Mapping[str, Tensor]:
        """There is one head.

        Raises:
            InputError: always.
        """
        raise InputError("a network of dipoles has one head, and no other can be added; leave the flag out")


ATOMIC_DIPOLES = DipoleArchitecture(with_energies=False)
ENERGY_DIPOLES = DipoleArchitecture(with_energies=True)
