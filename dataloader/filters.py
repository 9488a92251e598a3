"""Which structures of a source are used by choice: sizes, forces, and charges that the
model has no input for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import InputError
from dataloader.labels import CHARGE_NAMES, SPIN_NAMES
from dataloader.lookup import Elements
from dataloader.needs import FeatureSpec
from dataloader.neighbors import MAX_NEIGHBORS
from dataloader.structure import Structure

ADVICE = (
    "give it one, leave them out with --drop_charged, or say with --{what}_key none that the "
    "{what} does not matter"
)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which structures are used; those left out by choice do not count as faulty."""

    max_atoms: int | None = None
    max_force: float | None = None  # eV/Å
    max_neighbors: int = MAX_NEIGHBORS  # see ``neighbors.build_graph``
    verify: bool = False  # compare the sha256 of LMDBs
    charges: Literal["refuse", "drop", "keep"] = "refuse"  # that the model has no input for
    charge_advice: str = ADVICE  # what the command has for them, where they are refused
    # atomic numbers beside which none may be; None where ``Selection`` sees to that, or nobody
    elements: tuple[int, ...] | None = None


NO_FILTERS = Filters()
# reasons for which structures are left out
TOO_LARGE = "more than %d atoms"
TOO_STRONG = "a force above %g eV/Å"
OTHER_ELEMENT = "an element outside --elements"
NO_INPUT = "a %s for which the model has no input"
# the flag that says so, by a part of the reason
FLAGS_BY_REASON = {
    TOO_LARGE.partition("%")[0]: "--max_atoms",
    TOO_STRONG.partition("%")[0]: "--max_force",
    OTHER_ELEMENT: "--elements",
    NO_INPUT.partition("%s")[2]: "--drop_charged",
}
KEEP_CHARGES = Filters(charges="keep")


@dataclass(frozen=True, kw_only=True)
class FilterColumns:
    """What filters look at, for every structure of a source.

    Attributes:
        n_atoms: (n,), integers.
        elements: gives the atomic numbers that occur in each, where they choose.
        max_force: (n,), eV/Å, the longest force; NaN where there are none.
        charged: (n,), whether a charge other than zero is named.
        open_shell: (n,), whether a multiplicity other than one is named.
    """

    n_atoms: NDArray[Any]
    elements: Callable[[], Elements]
    max_force: NDArray[Any]
    charged: NDArray[np.bool_]
    open_shell: NDArray[np.bool_]

    @classmethod
    def of(cls, structures: Sequence[Structure]) -> "FilterColumns":
        """The columns of structures that are in memory."""
        return cls(
            n_atoms=np.array([s.n_atoms for s in structures], dtype=np.int64),
            elements=partial(elements_of, structures),
            max_force=np.array([longest_force(s) for s in structures]),
            charged=np.array([s.charged for s in structures], dtype=bool),
            open_shell=np.array([s.open_shell for s in structures], dtype=bool),
        )


def elements_of(structures: Sequence[Structure]) -> Elements:
    """The atomic numbers that occur in structures that are in memory."""
    return Elements.of(frozenset(s.atomic_numbers.tolist()) for s in structures)


def longest_force(structure: Structure) -> float:
    """Largest length of a force in eV/Å; NaN where there are none."""
    if structure.forces is None:
        return float("nan")
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.square(structure.forces).sum(axis=1).max()))


Drop = Callable[[NDArray[np.bool_], str], None]  # takes out structures for a reason that is counted


def apply_filters(
    columns: FilterColumns,
    filters: Filters,
    features: Sequence[FeatureSpec],
    usable: Callable[[], NDArray[np.bool_]],
    drop: Drop,
    where: Callable[[int], str],
    path: Path,
) -> None:
    """Leave out what the filters name.

    Args:
        columns: of the source.
        filters: what to leave out.
        features: inputs of the model; a charge that is one of them is no reason.
        usable: which structures are used so far.
        drop: leaves some out and counts the reason.
        where: the name of a structure, for a message.
        path: of the source, for a message.

    Raises:
        InputError: structures have a charge or spin that the model does not know of, and
            nobody said what to do.
    """
    if filters.elements is not None:
        drop(~columns.elements().within(filters.elements), OTHER_ELEMENT)
    if filters.max_atoms is not None:
        drop(columns.n_atoms > filters.max_atoms, TOO_LARGE % filters.max_atoms)
    if filters.max_force is not None:
        # False for NaN
        drop(columns.max_force > filters.max_force, TOO_STRONG % filters.max_force)
    if filters.charges == "keep":
        return
    inputs = {spec.name for spec in features}
    for what, names, has in (
        ("charge", CHARGE_NAMES, columns.charged),
        ("spin", SPIN_NAMES, columns.open_shell),
    ):
        concerned = usable() & has
        if inputs & set(names) or not concerned.any():
            continue
        if filters.charges == "drop":
            drop(has, NO_INPUT % what)
            continue
        raise InputError(
            f"{path}: {int(concerned.sum())} of {len(has)} structures have a {what} (first: "
            f"{where(int(np.argmax(concerned)))}), but model.json has no {names[0]} among "
            "its embedding_specs and would take them for neutral singlets; "
            + filters.charge_advice.format(what=what)
        )


def why_left_out(
    structure: Structure, filters: Filters, features: Sequence[FeatureSpec]
) -> str | None:
    """Why the filters leave one structure out, in the words of ``apply_filters``; None where they
    do not. A charge without an input, unless it is to be dropped, is no reason here.
    """
    allowed = filters.elements
    if allowed is not None and not set(structure.atomic_numbers.tolist()) <= set(allowed):
        return OTHER_ELEMENT
    if filters.max_atoms is not None and structure.n_atoms > filters.max_atoms:
        return TOO_LARGE % filters.max_atoms
    if filters.max_force is not None and longest_force(structure) > filters.max_force:
        return TOO_STRONG % filters.max_force
    if filters.charges != "drop":
        return None
    inputs = {spec.name for spec in features}
    for what, names, has in (
        ("charge", CHARGE_NAMES, structure.charged),
        ("spin", SPIN_NAMES, structure.open_shell),
    ):
        if has and not inputs & set(names):
            return NO_INPUT % what
    return None
