"""The labelled quantities: what an entry of each is, wherever it is read, batched,
learned, judged or printed.

Whoever handles labels iterates over `QUANTITIES`. A quantity that is added here, or by a plug-in
through `add`, is looked for in every format, kept in shards, batched, trained on and reported
without another line elsewhere; only what computes it, the network, has to be written.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A labelled quantity under the one name that structures, predictions, flags and metrics share.

    Attributes:
        name: as in ``REF_<name>``, ``<name>_rmse`` and ``--label_keys <name>=…``.
        symbol: a letter for it in log lines and in the terms of a loss.
        unit: of its numbers, in labels and in predictions alike.
        names: under which files have it, in order of preference.
        per_atom: a row for each atom; otherwise one for each structure.
        components: shape of a row: () of an energy, (3,) of forces and dipoles, (3, 3) of a stress.
        over_atoms: its errors are divided by the number of atoms before they are judged.
        required: training data must have it, unless its term of the loss has the weight 0.
        needs_volume: it has no meaning for a structure that is not periodic in three directions.
        of_free_atoms: it counts for atoms only that were free to move, where the data say so
            and that is asked for.
        of_isolated_atoms: it is asked of an isolated atom, a frame that gives a reference
            energy and little else.
        unknown_is_fault: a label that is NaN is counted among the faults of a record of a
            shard; else as absent.
    """

    name: str
    symbol: str
    unit: str
    names: tuple[str, ...]
    per_atom: bool = False
    components: tuple[int, ...] = ()
    over_atoms: bool = False
    required: bool = False
    needs_volume: bool = False
    of_free_atoms: bool = False
    of_isolated_atoms: bool = False
    unknown_is_fault: bool = True

    @property
    def numbers(self) -> int:
        """Numbers of a row."""
        return math.prod(self.components)

    @property
    def error_unit(self) -> str:
        """Unit of its errors as they are judged: ``eV/atom`` of energies, ``eV/Å`` of forces."""
        return f"{self.unit}/atom" if self.over_atoms else self.unit

    @property
    def weight_name(self) -> str:
        """The entry of a record with the structure's own weight in the term of this quantity."""
        return f"config_{self.name}_weight"

    def rows(self, n_atoms: int) -> int:
        """Rows that a structure of ``n_atoms`` atoms has."""
        return n_atoms if self.per_atom else 1

    def shape(self, n_atoms: int) -> tuple[int, ...]:
        """Shape of a label of a structure."""
        return (n_atoms, *self.components) if self.per_atom else self.components


# REF_* names are mace's; y and force are OC20's.
ENERGY = Quantity(
    name="energy",
    symbol="E",
    unit="eV",
    names=("REF_energy", "energy", "y"),
    over_atoms=True,
    required=True,
    of_isolated_atoms=True,
)
FORCES = Quantity(
    name="forces",
    symbol="F",
    unit="eV/Å",
    names=("REF_forces", "forces", "force"),
    per_atom=True,
    components=(3,),
    required=True,
    of_free_atoms=True,
)
STRESS = Quantity(
    name="stress",
    symbol="S",
    unit="eV/Å³",
    names=("REF_stress", "stress"),
    components=(3, 3),
    needs_volume=True,
    unknown_is_fault=False,
)
# mace-torch divides it by the number of atoms too. Its networks give numbers in the unit of their
# training data; what they can add for charges of atoms is in Debye (1 e·Å = 4.80320 Debye).
DIPOLE = Quantity(
    name="dipole",
    symbol="D",
    unit="e·Å",
    names=("REF_dipole", "dipole"),
    components=(3,),
    over_atoms=True,
    unknown_is_fault=False,
)
QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in (ENERGY, FORCES, STRESS)}
# Known, and in the table once a network gives them or an option names them: until then they are
# nobody's labels, and a file that has some is read, indexed and judged as one that has none.
OFFERED: dict[str, Quantity] = {quantity.name: quantity for quantity in (DIPOLE,)}
MOST_QUANTITIES = 16  # each takes a bit in the index of a shard


def add(quantity: Quantity) -> None:
    """Make another quantity known, before any file is opened.

    Raises:
        ValueError: its name or symbol is taken, or there are too many.
    """
    if quantity.name in QUANTITIES:
        raise ValueError(f"there is a quantity {quantity.name} already")
    if quantity.symbol in {known.symbol for known in QUANTITIES.values()}:
        raise ValueError(f"the symbol {quantity.symbol} of the quantity {quantity.name} is taken")
    if not quantity.name.isidentifier():
        raise ValueError(f"the quantity's name {quantity.name!r} is no plain word")
    if len(QUANTITIES) >= MOST_QUANTITIES:
        raise ValueError(f"at most {MOST_QUANTITIES} quantities are kept apart")
    QUANTITIES[quantity.name] = quantity


def include(name: str) -> None:
    """Put a quantity that is offered into the table; others, and those that are
    there, stay as they are.
    """
    if name in OFFERED and name not in QUANTITIES:
        add(OFFERED[name])


def added() -> tuple[Quantity, ...]:
    """The quantities beside energy, forces and stress."""
    return tuple(
        quantity for quantity in QUANTITIES.values() if quantity not in (ENERGY, FORCES, STRESS)
    )
