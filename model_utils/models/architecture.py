"""The table of families of networks, and what is looked up in it.

To add a family, write a class with what ``seams.Architecture`` asks for and put an object of it
into ``ARCHITECTURES`` under each ``model_class`` that its model.json may name. Everything outside
``models/`` asks here.
"""

from collections.abc import Callable

import torch
from torch import nn

from dataloader.batch import Batch
from dataloader.errors import InputError
from model_utils.models.dipole_architecture import ATOMIC_DIPOLES, ENERGY_DIPOLES
from model_utils.models.libraries.library_architecture import (
    NEQUIP,
    PAINN,
    SCHNET,
    TENSORNET,
    VISNET,
)
from model_utils.models.libraries.not_here import why_not_here
from model_utils.models.mace_architecture import MACE
from model_utils.models.network import Network
from model_utils.models.schema import ModelDescription
from model_utils.models.seams import Architecture, Form
from model_utils.runtime import log

ARCHITECTURES: dict[str, Architecture] = {
    "MACE": MACE,
    "ScaleShiftMACE": MACE,
    "AtomicDipolesMACE": ATOMIC_DIPOLES,
    "EnergyDipolesMACE": ENERGY_DIPOLES,
    "PaiNN": PAINN,
    "TensorNet": TENSORNET,
    "ZEmbeddingNequIP": NEQUIP,
    "SchNet": SCHNET,
    "ViSNet": VISNET,
}
# what a model.json is taken for that names no class, or none that is known
USUAL = "ScaleShiftMACE"


def architecture_of(description: ModelDescription) -> Architecture:
    """The family of the network that a description describes."""
    return ARCHITECTURES[description.model_class]


def build_module(
    description: ModelDescription, dtype: torch.dtype, where: str = "model.json"
) -> nn.Module:
    """A module on the CPU, with weights drawn from torch's generator.

    Raises:
        InputError: this installation cannot build the structure, or would build another one.
    """
    return architecture_of(description).build(description, dtype, where)


def build_network(module: nn.Module, kind: str, description: ModelDescription) -> Network:
    """The form of the network that ``--step`` names, over the module's own parameters.

    A network that the fast step does not cover runs the reference step, and the log says why.

    Args:
        module: as ``build_module`` made it, with any weights, on the device where it will compute.
        kind: the form, as ``--step`` names it.
        description: of the module.

    Raises:
        InputError: the family has no such form, or an accelerated one cannot be had here
            or not for this network.
    """
    form, reason = _form(kind, description)
    if reason is not None:
        log.info("step: reference, since the fast one does not cover this network: %s", reason)
    return form.network(module, description)


def preparation(kind: str, description: ModelDescription) -> Callable[[Batch], Batch]:
    """The function that adds to a batch what a form of the network needs of it;
    for the loader's workers.

    Args:
        kind: the form, as ``--step`` names it.
        description: of the network.

    Raises:
        InputError: the family has no such form.
    """
    return _form(kind, description)[0].prepare


def _form(kind: str, description: ModelDescription) -> tuple[Form, str | None]:
    """The form that is used for the one asked for, and why it is the reference
    where it was not asked for.
    """
    forms = architecture_of(description).forms
    if kind == "fast" and kind not in forms:
        return forms["reference"], f"there is none for {description.model_class}"
    if kind not in forms:
        raise InputError(
            f"--step {kind}: there is no such form of {description.model_class}; there is "
            f"{', '.join(forms)}"
        )
    reason = forms[kind].why_not(description)
    if reason is not None:
        return forms["reference"], reason
    return forms[kind], None


def opens_in_mace(description: ModelDescription) -> bool:
    """Whether mace's calculator opens the bare module, so that a run writes one at its end."""
    return "module" in architecture_of(description).exports


def namespaces() -> tuple[str, ...]:
    """How the full names of all families' classes begin."""
    names = [name for family in ARCHITECTURES.values() for name in family.namespaces]
    return tuple(dict.fromkeys(names))


def proved_by_tests(description: ModelDescription) -> bool:
    """Whether tests of this toolkit hold the family's physics; what others compute is
    examined before it is trained.
    """
    return architecture_of(description) is MACE


def refuse_elsewhere(name: object, where: str) -> None:
    """Refuse a class of networks that people know and that cannot be had here.

    Raises:
        InputError: with the reason; a name that nobody knows passes, and is refused
            with those that there are.
    """
    reason = why_not_here(name) if isinstance(name, str) else None
    if reason is not None and name not in ARCHITECTURES:
        raise InputError(f"{where}: model_class {name!r:.60} cannot be had here: {reason}")
