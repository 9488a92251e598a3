"""model.json of mace-torch's networks of dipoles: the fields that their constructors use, and
what contradicts itself.

Both classes of mace-torch take arguments that they ignore (heads, scale and shift, the Agnesi
transform, ZBL, inputs besides species): these are no fields here.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dataloader.quantities import DIPOLE, ENERGY, FORCES, STRESS
from model_utils.models.mace_description import InteractionName, Irreps
from model_utils.models.schema import SHARED_RULES, ModelDescription, Rule, Size

# MLP_irreps unless given
READOUTS = {"AtomicDipolesMACE": "16x1o", "EnergyDipolesMACE": "16x0e+16x1o"}


class DipoleDescription(ModelDescription):
    """The fields of a model.json of AtomicDipolesMACE, which gives dipoles alone,
    and of EnergyDipolesMACE.

    Dipoles are in the unit of the labels, e·Å here.
    """

    rules: ClassVar[tuple[Rule, ...]]  # at the end of this file

    model_class: Literal["AtomicDipolesMACE", "EnergyDipolesMACE"]
    num_bessel: Annotated[int, Field(ge=1, le=1024)] = 8
    num_polynomial_cutoff: Annotated[int, Field(ge=2, le=64)] = 5
    max_ell: Annotated[int, Field(ge=1, le=11)] = 3
    interaction_cls: InteractionName = "RealAgnosticResidualInteractionBlock"
    interaction_cls_first: InteractionName = "RealAgnosticInteractionBlock"
    num_interactions: Annotated[int, Field(ge=1, le=12)] = 2
    hidden_irreps: Irreps = "128x0e+128x1o"
    MLP_irreps: Irreps
    correlation: Annotated[int, Field(ge=1, le=6)] = 3
    gate: Literal["silu", "tanh", "abs", "None"] = "silu"
    radial_type: Literal["bessel", "gaussian"] = "bessel"
    radial_MLP: Annotated[list[Size], Field(min_length=1, max_length=16)] = Field(
        default=[64, 64, 64]
    )

    @classmethod
    def spread(cls, data: dict[str, Any]) -> dict[str, Any]:
        """What a person may leave out: the readout's irreps of the class, and E0s of a
        network without energies.

        Raises:
            ValueError: what is written cannot be spread.
        """
        name = data.get("model_class")
        if isinstance(name, str) and name in READOUTS:
            data.setdefault("MLP_irreps", READOUTS[name])
        numbers = data.get("atomic_numbers")
        if name == "AtomicDipolesMACE" and isinstance(numbers, list):
            data.setdefault("atomic_energies", [[0.0] * len(numbers)])
        return super().spread(data)

    @classmethod
    def has_energies(cls, model_class: str) -> bool:
        """Only EnergyDipolesMACE gives energies."""
        return model_class != "AtomicDipolesMACE"

    def gives(self) -> tuple[str, ...]:
        """Dipoles, and what follows from an energy where there is one."""
        if not self.has_energies(self.model_class):
            return (DIPOLE.name,)
        return (ENERGY.name, FORCES.name, STRESS.name, DIPOLE.name)

    def summary(self) -> str:
        """Class and hidden irreps."""
        return f"{self.model_class}, {self.hidden_irreps}"

    def details(self) -> list[str]:
        """Class, irreps, layers and blocks."""
        return [
            f"{self.summary()}, {self.num_interactions} layers",
            f"blocks {self.interaction_cls_first}, then {self.interaction_cls}",
            f"gives {', '.join(self.gives())}",
        ]

    def notes(self) -> list[str]:
        """The unit, and which layers mace-torch's readouts leave without effect."""
        notes = [f"dipoles are in the unit of the labels, {DIPOLE.unit} (1 e·Å = 4.80320 Debye)"]
        if self.model_class == "AtomicDipolesMACE" and self.num_interactions > 1:
            notes.append(
                f"the last of the {self.num_interactions} layers gives nothing in mace-torch's "
                "AtomicDipolesMACE: its readout is gated by scalars that this layer has not; take "
                "a layer more, or EnergyDipolesMACE"
            )
        return notes


def _vectors_second(model: DipoleDescription) -> str | None:
    """mace-torch takes the first of the hidden irreps for scalars and the second for vectors."""
    terms = model.hidden_irreps.split("+")
    widths = {term.partition("x")[0] for term in terms}
    kinds = [term.partition("x")[2] for term in terms]
    if kinds[:2] == ["0e", "1o"] and len(set(kinds)) == len(kinds) and len(widths) == 1:
        return None
    return (
        f"hidden_irreps: {model.hidden_irreps} must begin with scalars and vectors of one "
        "width (32x0e+32x1o)"
    )


def _readout_of_the_class(model: DipoleDescription) -> str | None:
    """mace-torch builds others too, and fails when it computes."""
    expected = r"\d+x1o" if model.model_class == "AtomicDipolesMACE" else r"\d+x0e(\+\d+x1o)?"
    if re.fullmatch(expected, model.MLP_irreps):
        return None
    return (
        f"MLP_irreps: {model.MLP_irreps} is none of {model.model_class}; expected "
        f"{READOUTS[model.model_class]}"
    )


def _one_head(model: DipoleDescription) -> str | None:
    return None if len(model.heads) == 1 else f"heads: {model.model_class} has one head"


def _no_energies(model: DipoleDescription) -> str | None:
    if model.model_class != "AtomicDipolesMACE" or not any(
        any(row) for row in model.atomic_energies
    ):
        return None
    return "atomic_energies: AtomicDipolesMACE has no energies; leave them out"


def _bases_of_the_class(model: DipoleDescription) -> str | None:
    if model.model_class == "AtomicDipolesMACE" or model.radial_type == "bessel":
        return None
    return f"radial_type: EnergyDipolesMACE has the bessel basis only (found {model.radial_type})"


DipoleDescription.rules = (
    *SHARED_RULES,
    _one_head,
    _no_energies,
    _vectors_second,
    _readout_of_the_class,
    _bases_of_the_class,
)
