"""Units that a record states beside its numbers: converted, or refused where they are not clear."""

from collections.abc import Mapping

from dataloader.entry_values import RecordError, is_absent
from dataloader.labels import Labels
from dataloader.names import Entries
from dataloader.quantities import OFFERED, QUANTITIES
from dataloader.units import UnitError, factor_to_ours, parsed, stated_quantity

_OURS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "virial": "eV"}
_OURS |= {"positions": "Å", "cell": "Å", "lengths": "Å", "dipole": "e·Å"}
_EXAMPLES = {
    "energy": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å^3",
    "virial": "eV",
    "dipole": "Debye",
}
# of LAMMPS, and atomic units
_OTHER_STYLES = {"real", "electron", "si", "cgs", "lj", "au", "a.u.", "atomic"}


class StatedUnits:
    """Units that a record states beside its numbers.

    Raises:
        RecordError: a stated unit is not known, or measures something else.
    """

    def __init__(self, entries: Entries) -> None:
        self._scales: dict[str, tuple[float, bool]] = {}
        self._texts: dict[str, str] = {}
        for name in entries.stating_units():
            value = entries[name]
            if is_absent(value):
                continue
            quantity = stated_quantity(name)
            if quantity in OFFERED and quantity not in QUANTITIES:
                continue  # a unit of what is nobody's label
            if quantity is not None:
                self._take(name, quantity, value)
            elif isinstance(value, Mapping):
                for part, text in value.items():
                    of_part = stated_quantity(f"{part}_unit")
                    if of_part is not None:
                        self._take(f"{name}[{part}]", of_part, text)
            else:
                _refuse_unclear(name, value)

    def _take(self, name: str, quantity: str, text: object) -> None:
        try:
            scale = factor_to_ours(text, quantity)
        except UnitError as error:
            raise RecordError(f"{name}: {error}") from None
        if self._scales.get(quantity, scale) != scale:
            raise RecordError(
                f"{name} says {text!r:.40}, and another entry another unit of {quantity}; keep one"
            )
        self._scales[quantity] = scale
        self._texts[quantity] = f"{name} {text}"

    def scale(self, quantity: str, n_atoms: int) -> float:
        """What the unit of a label is in ours; 1 where none is stated."""
        factor, per_atom = self._scales.get(quantity, (1.0, False))
        return factor * n_atoms if per_atom else factor

    def of_lengths(self, quantity: str) -> float:
        """What the unit of positions or of the cell is in Å."""
        return self._scales.get(quantity, self._scales.get("lengths", (1.0, False)))[0]

    def refuse_half_stated_lengths(self, *, has_cell: bool) -> None:
        """Raise RecordError where positions are said to be in another unit than Å and the cell
        says nothing, or the other way round.
        """
        if not has_cell or "lengths" in self._scales:
            return
        for stated, other in (("positions", "cell"), ("cell", "positions")):
            if self._scales.get(stated, (1.0, False))[0] != 1.0 and other not in self._scales:
                raise RecordError(
                    f"{self._texts[stated]} is stated and no unit of the {other}; state it as "
                    f"{other}_unit, for example {other}_unit=Å"
                )

    def refuse_half_stated(self, labels: Labels) -> None:
        """Raise RecordError where one label is said to be in another unit than ours and
        another label says nothing.
        """
        foreign = [
            text for quantity, text in self._texts.items() if self._scales[quantity][0] != 1.0
        ]
        if not foreign:
            return
        for quantity, name in zip(QUANTITIES, labels.names, strict=True):
            if quantity not in labels.values or quantity not in _OURS:
                continue
            stated = (
                "virial" if quantity == "stress" and name and "virial" in name.lower() else quantity
            )
            if name is not None and stated not in self._scales:
                raise RecordError(
                    f"{foreign[0]} is stated and no unit of {name}; state it as {stated}_unit, for "
                    f"example {stated}_unit={_EXAMPLES[stated]}"
                )

    def notes(self) -> tuple[str, ...]:
        """What was converted, with its factor."""
        lines = []
        for quantity, (factor, per_atom) in self._scales.items():
            if (factor, per_atom) != (1.0, False):
                times = f" × {factor:.9g}" if factor != 1.0 else ""
                atoms = " × atoms" if per_atom else ""
                lines.append(
                    f"{quantity} converted to {_OURS[quantity]}:{times}{atoms} "
                    f"({self._texts[quantity]})"
                )
        return tuple(lines)


def _refuse_unclear(name: str, value: object) -> None:
    """Raise RecordError for ``units=real``: it says that the numbers are not ours,
    and not which is in what.
    """
    if not isinstance(value, str):
        return
    style = value.strip().casefold()
    unit = parsed(value)
    foreign = unit is not None and (unit.factor, unit.per_atom) != (1.0, False)
    if style in _OTHER_STYLES or foreign:
        raise RecordError(
            f"{name} is {value!r:.40}: of what, it does not say; state energy_unit and forces_unit "
            "(they are converted), or convert to eV, Å"
        )
