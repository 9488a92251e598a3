"""Energies as other programs form them: mace's own forward pass, which adds E0s in
the module's precision.

A sum of E0s near 10⁵ eV is known to 8 meV in single precision. Loss, metrics and ``evaluate.py``
add them in double precision; mace's calculator and LAMMPS do not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from dataloader.batch import Batch
from dataloader.quantities import ENERGY
from model_utils.models.dipole_network import DipoleNetwork, is_of_dipoles
from model_utils.models.network import Network
from model_utils.models.reference import ReferenceNetwork

TOO_LARGE = 1e-4  # eV per atom; energies are judged to about a tenth of this
WORTH_A_WORD = 1e-3  # eV per structure: what a user sees who compares two programs


@dataclass(frozen=True, kw_only=True)
class FormingError:
    """The largest deviation, over some structures, of energies formed in a module's
    precision from the exact sum.
    """

    per_structure: float  # eV
    per_atom: float  # eV, of the same or another structure

    @property
    def matters(self) -> bool:
        """Whether the deviation is of the size of a model's errors."""
        return not self.per_atom <= TOO_LARGE

    def __str__(self) -> str:
        return (
            f"{1000 * self.per_structure:.3g} meV a structure ({1000 * self.per_atom:.2g} meV/atom)"
        )


class FormedNetwork(ReferenceNetwork):
    """mace-torch's forward pass as mace calls it: total energies, E0s included, in
    the module's precision.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._no_reference = {}


class FormedDipoleNetwork(DipoleNetwork):
    """The forward pass of a network of dipoles as mace calls it; see ``FormedNetwork``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._no_reference = {}


def forming_error(module: nn.Module, batches: Iterable[Batch]) -> FormingError:
    """How far energies formed in the module's precision are from the same interaction
    energies plus exact E0s.

    Args:
        module: on the CPU.
        batches: structures, with their reference energies in double precision.
    """
    per_structure = 0.0
    per_atom = 0.0
    weights = dict(module.named_parameters())
    forms: tuple[Network, Network]
    if is_of_dipoles(module):
        forms = (DipoleNetwork(module), FormedDipoleNetwork(module))
    else:
        forms = (ReferenceNetwork(module), FormedNetwork(module))
    if ENERGY.name not in forms[0].gives:
        return FormingError(per_structure=0.0, per_atom=0.0)
    for batch in batches:
        with torch.no_grad():
            interaction, total = (
                form.outputs(weights, batch, batch.positions, batch.shifts)[ENERGY.name].double()
                for form in forms
            )
        error = (total - interaction - batch.reference_energy).abs()
        n_atoms = batch.ptr.diff()
        per_structure = max(per_structure, float(error.max()))
        per_atom = max(per_atom, float((error / n_atoms).max()))
    return FormingError(per_structure=per_structure, per_atom=per_atom)
