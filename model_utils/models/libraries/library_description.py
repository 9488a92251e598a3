"""model.json of networks of other libraries: what all of them have besides the
fields of every family.

A library's own fields keep its names; its cutoff is ``r_max``. Energies of atoms are multiplied by
``atomic_inter_scale`` and get ``atomic_inter_shift``, as those of mace's ScaleShiftMACE.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from model_utils.models.schema import SHARED_RULES, ModelDescription, PerHead, Rule

Channels = Annotated[int, Field(ge=1, le=1024)]
RadialFunctions = Annotated[int, Field(ge=2, le=1024)]
Layers = Annotated[int, Field(ge=1, le=12)]


def _one_head(model: "LibraryDescription") -> str | None:
    if len(model.heads) == 1:
        return None
    return (
        f"heads: {model.model_class} has one head, found {len(model.heads)} "
        f"({', '.join(model.heads)})"
    )


def _one_scale(model: "LibraryDescription") -> str | None:
    for name in ("atomic_inter_scale", "atomic_inter_shift"):
        values = getattr(model, name)
        if len(values) != 1:
            return f"{name}: {len(values)} values for one head"
    return None


class LibraryDescription(ModelDescription):
    """The fields that networks of other libraries share; energies in eV, lengths in Å."""

    rules: ClassVar[tuple[Rule, ...]] = (*SHARED_RULES, _one_head, _one_scale)
    package: ClassVar[str]  # whose network it is, as the registry of packages names it

    atomic_inter_scale: PerHead
    atomic_inter_shift: PerHead

    @classmethod
    def scales_energies(cls, model_class: str) -> bool:
        """Every one of them has a scale and a shift."""
        return True

    def energy_shifts(self) -> list[float]:
        """The shift of every head."""
        return self.atomic_inter_shift or [0.0]

    def energy_scales(self) -> list[float]:
        """The scale of its head."""
        return self.atomic_inter_scale

    def sizes(self) -> str:
        """How large the network is, in a few words."""
        raise NotImplementedError

    def summary(self) -> str:
        """Class, size and library."""
        return f"{self.model_class} of {self.package}, {self.sizes()}"
