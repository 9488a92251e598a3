"""MACE as a family of networks.

Its modules are imported only when one is built: mace-torch takes seconds to import.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from model_utils.models.dipole_description import DipoleDescription
from model_utils.models.fast.coverage import not_covered
from model_utils.models.fast.orders import prepared
from model_utils.models.mace_description import MaceDescription
from model_utils.models.network import Network
from model_utils.models.seams import Form, Repeated


def _fast(module: nn.Module, description: MaceDescription) -> Network:
    from model_utils.models.fast.fast_network import FastNetwork

    return FastNetwork(module)


def _reference(module: nn.Module, description: MaceDescription) -> Network:
    from model_utils.models.reference import ReferenceNetwork

    return ReferenceNetwork(module)


def _cueq(module: nn.Module, description: MaceDescription) -> Network:
    from model_utils.models.accelerated import AcceleratedNetwork

    return AcceleratedNetwork(module, "cueq", description)


def _oeq(module: nn.Module, description: MaceDescription) -> Network:
    from model_utils.models.accelerated import AcceleratedNetwork

    return AcceleratedNetwork(module, "oeq", description)


FORMS: dict[str, Form] = {
    "fast": Form(network=_fast, prepare=prepared, why_not=not_covered),
    "reference": Form(network=_reference),
    "cueq": Form(network=_cueq),
    "oeq": Form(network=_oeq),
}


class OfMaceTorch:
    """What all families of mace-torch's own modules have in common."""

    namespaces = ("mace.modules.",)

    def repeated(
        self, description: MaceDescription | DipoleDescription, module: nn.Module
    ) -> list[Repeated]:
        """E0s, cutoff, elements, scale and shift, and what parts of the network repeat of these."""
        from model_utils.models.build import repeated

        return repeated(description, module)

    def versions(self) -> Mapping[str, str]:
        """Versions of mace-torch and e3nn."""
        from model_utils.models.mace_import import VERSIONS

        return VERSIONS

    def narrowed(
        self, source: nn.Module, target: nn.Module, kept: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The state of a module for some of the source's elements (``narrowing``).

        Raises:
            InputError: a tensor depends on the elements in a way that is not known.
        """
        from model_utils.models.narrowing import narrowed

        return narrowed(source, target, kept)


class MaceArchitecture(OfMaceTorch):
    """mace-torch's classes MACE and ScaleShiftMACE."""

    description = MaceDescription
    reference_energies = "atomic_energies_fn.atomic_energies"
    forms: ClassVar = FORMS
    exports = ("safetensors", "module", "lammps", "mliap")

    def build(self, description: MaceDescription, dtype: torch.dtype, where: str) -> nn.Module:
        """mace-torch's own module on the CPU, with weights drawn from torch's generator.

        Raises:
            InputError: this installation cannot build the structure, or would build another one.
        """
        from model_utils.models.build import build_module

        return build_module(description, dtype, where)

    def with_copied_heads(
        self, source: nn.Module, target: nn.Module, parents: Sequence[int]
    ) -> Mapping[str, Tensor]:
        """The state of a module with other heads (``heads``).

        Raises:
            InputError: a readout is not of a kind whose columns are known.
        """
        from model_utils.models.heads import with_copied_heads

        return with_copied_heads(source, target, parents)


MACE = MaceArchitecture()
