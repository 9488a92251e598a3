"""All checks in one table, with their bounds for each precision; on which structures,
and what comes of them.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.symbols import Symbols

from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.neighbors import GraphFault
from dataloader.structure import Structure
from model_utils.physics import batches, energy_in_time, pairs, slopes, symmetries
from model_utils.physics.records import CheckRecord, Measured, Outcome, PhysicsReport
from model_utils.physics.subject import Subject, bare, moved

LOOKED_AT = 64  # smallest structures of the data among which those that are checked are chosen
RATTLE = 0.1  # Å; a structure at rest in a place of high symmetry would hide faults


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The largest deviation that passes, before the scale of a structure.

    Attributes:
        unit: of both.
        float64: in double precision.
        float32: in single precision.
    """

    unit: str
    float64: float
    float32: float

    def of(self, precision: str) -> float:
        """The bound for ``float64`` or ``float32``."""
        return self.float64 if precision == "float64" else self.float32


@dataclass(frozen=True, kw_only=True)
class Check:
    """One law.

    Attributes:
        measure: gives how far structures are from it.
        bounds: by quantity.
    """

    measure: Callable[[Subject, Sequence[Structure]], Outcome]
    bounds: Mapping[str, Bound]


SAME: Mapping[str, Bound] = {  # up to rounding
    "energy per atom": Bound(unit="eV", float64=1e-9, float32=2e-5),
    "forces": Bound(unit="eV/Å", float64=1e-8, float32=1e-4),
    "stress": Bound(unit="eV/Å³", float64=1e-8, float32=1e-4),
}

IN_BATCHES = {quantity: SAME[quantity] for quantity in ("energy per atom", "forces")}

CHECKS: Mapping[str, Check] = {
    "rotation": Check(measure=symmetries.rotation, bounds=SAME),
    "translation": Check(measure=symmetries.translation, bounds=SAME),
    "permutation": Check(measure=symmetries.permutation, bounds=SAME),
    "extensivity": Check(measure=symmetries.extensivity, bounds=SAME),
    "batches": Check(measure=batches.batching, bounds=IN_BATCHES),
    "isolated atoms": Check(measure=batches.isolated_atoms, bounds=IN_BATCHES),
    "forces as slopes": Check(
        measure=slopes.forces, bounds={"forces": Bound(unit="eV/Å", float64=1e-5, float32=1e-2)}
    ),
    "stress as slope": Check(
        measure=slopes.stress, bounds={"stress": Bound(unit="eV/Å³", float64=1e-5, float32=1e-2)}
    ),
    "smooth at r_max": Check(
        measure=pairs.smoothness,
        bounds={
            "energy jump": Bound(unit="eV", float64=1e-8, float32=1e-3),
            "force jump": Bound(unit="eV/Å", float64=1e-5, float32=1e-2),
        },
    ),
    "dimers": Check(
        measure=pairs.dimers,
        bounds={
            "forces off the axis": Bound(unit="eV/Å", float64=1e-8, float32=1e-3),
            "energy beyond r_max": Bound(unit="eV", float64=1e-8, float32=1e-3),
        },
    ),
    "NVE": Check(
        measure=energy_in_time.nve,
        bounds={"drift per atom": Bound(unit="meV/ps", float64=0.5, float32=2.0)},
    ),
}


def examined(
    subject: Subject, structures: Sequence[Structure], names: Collection[str] = CHECKS
) -> PhysicsReport:
    """Checks of the table on some structures.

    Args:
        subject: the network.
        structures: as they lie in the data; their atoms are moved by ``RATTLE`` first.
        names: of the checks; all of them unless given.
    """
    rng = np.random.default_rng(11)
    rattled = [moved(bare(s), rng.normal(0.0, RATTLE, s.positions.shape)) for s in structures]
    outcomes = {
        name: _outcome(check, subject, rattled) for name, check in CHECKS.items() if name in names
    }
    records = [
        record
        for name, outcome in outcomes.items()
        for record in _records(name, CHECKS[name], outcome, subject.precision)
    ]
    return PhysicsReport(
        precision=subject.precision,
        structures=[_described(structure) for structure in structures],
        checks=records,
        curves={name: outcome.curves for name, outcome in outcomes.items() if outcome.curves},
        notes=[note for outcome in outcomes.values() for note in outcome.notes],
    )


def chosen(data: Dataset, n_structures: int, most_atoms: int) -> list[Structure]:
    """Small structures of the data, of every kind of periodicity that is seen among them,
    of different formulas.

    Args:
        data: what is evaluated.
        n_structures: how many at most.
        most_atoms: of one; where all have more, the smallest is taken. Single atoms are left aside.

    Raises:
        InputError: there are single atoms only.
    """
    n_atoms = data.n_atoms
    by_size = [int(i) for i in np.argsort(n_atoms, kind="stable") if n_atoms[i] > 1]
    if not by_size:
        raise InputError(
            "--physics needs a structure of two or more atoms, and the data have none; leave it out"
        )
    fitting = [i for i in by_size if n_atoms[i] <= most_atoms] or by_size[:1]
    # half of those that are looked at are the smallest; the others are spread over all sizes,
    # where other kinds may be
    step = max(1, len(fitting) // (LOOKED_AT // 2))
    numbers = sorted({*fitting[: LOOKED_AT // 2], *fitting[::step][:LOOKED_AT]}, key=fitting.index)
    looked_at = [data.structure(i) for i in numbers]
    return _different(looked_at, n_structures)


def _different(structures: Sequence[Structure], n_structures: int) -> list[Structure]:
    """The first structure of every periodicity, then of every formula, then the
    rest, in the order given.
    """
    by_kind = _first_of([sum(s.pbc) for s in structures])
    by_formula = _first_of([tuple(sorted(s.atomic_numbers.tolist())) for s in structures])
    order = [*by_kind, *by_formula, *range(len(structures))]
    picked = list(dict.fromkeys(order))[:n_structures]
    return [structures[i] for i in sorted(picked)]


def _first_of(keys: Sequence[object]) -> Iterator[int]:
    seen: set[object] = set()
    for i, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            yield i


def _outcome(check: Check, subject: Subject, structures: Sequence[Structure]) -> Outcome:
    """What a check gives; where it cannot be made, why not, as what it measured on no
    structure in particular.
    """
    try:
        return check.measure(subject, structures)
    except torch.OutOfMemoryError:
        raise
    except GraphFault as fault:
        # what a check makes of a sound structure is sound, where the network is
        reason = str(fault)
    except Exception as error:  # of a network: of any library, of a plug-in
        reason = (
            f"{type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no words'}"
        )
    nothing = Measured(quantity=next(iter(check.bounds)), value=math.nan, structure=reason[:200])
    return Outcome(measured=[nothing], why_not=reason[:200])


def _records(name: str, check: Check, outcome: Outcome, precision: str) -> Iterator[CheckRecord]:
    """A record for each quantity of a check: of the structure that is worst,
    compared with its bound.
    """
    for quantity, bound in check.bounds.items():
        of_quantity = [m for m in outcome.measured if m.quantity == quantity]
        if not of_quantity:
            why = outcome.why_not or "no structure is periodic in three directions"
            yield CheckRecord(
                check=name,
                quantity=quantity,
                value=None,
                bound=None,
                unit=bound.unit,
                passed=None,
                structure="",
                note=why,
            )
            continue
        worst = max(of_quantity, key=_badness)
        is_number = math.isfinite(worst.value)
        limit = bound.of(precision) * (worst.scale if math.isfinite(worst.scale) else 1.0)
        yield CheckRecord(
            check=name,
            quantity=quantity,
            value=worst.value if is_number else None,
            bound=limit,
            unit=bound.unit,
            passed=is_number and worst.value <= limit,
            structure=worst.structure,
            note="" if is_number else f"{worst.structure}: what was computed is no number",
        )


def _badness(measured: Measured) -> float:
    """Deviation over scale; what is no number is worst."""
    ratio = measured.value / measured.scale
    return ratio if math.isfinite(ratio) else math.inf


def _described(structure: Structure) -> dict[str, object]:
    return {
        "identifier": structure.identifier,
        "formula": Symbols(structure.atomic_numbers).get_chemical_formula(),
        "n_atoms": structure.n_atoms,
        "pbc": list(structure.pbc),
    }
