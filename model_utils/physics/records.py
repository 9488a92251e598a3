"""What the checks give: measured values, and records of them with bounds, for
the log, JSON and a page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How far one structure is from a law.

    Attributes:
        quantity: what was compared, which also names the bound.
        value: the deviation, in the unit of the quantity.
        scale: by which the bound grows: rounding is relative to the size of what
            is computed; at least 1.
        structure: name of it.
    """

    quantity: str
    value: float
    structure: str
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one check gives.

    Attributes:
        measured: all deviations; empty where the check applies to none of the structures.
        curves: series of numbers that are worth a plot, as plain values.
        notes: remarks that fail nothing, a sentence each.
        why_not: why nothing was measured, as a phrase.
    """

    measured: Sequence[Measured] = ()
    curves: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """One line of the result.

    Attributes:
        check: a name of ``CHECKS``.
        quantity: what was compared.
        value: the worst deviation; None where nothing was measured or it is no number.
        bound: for the precision of the evaluation, times the scale of the structure.
        unit: of both.
        passed: None where the check does not apply.
        structure: where the deviation is worst.
        note: why the check does not apply, or why there is no value.
    """

    check: str
    quantity: str
    value: float | None
    bound: float | None
    unit: str
    passed: bool | None
    structure: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PhysicsReport:
    """All that was checked.

    Attributes:
        precision: ``float64`` or ``float32``, on which the bounds depend.
        structures: those on which it was checked: identifier, formula, n_atoms, pbc.
        checks: in the order of ``CHECKS``.
        curves: by check, series for plots.
        notes: remarks that fail nothing.
    """

    precision: str
    structures: Sequence[Mapping[str, Any]]
    checks: Sequence[CheckRecord]
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def failed(self) -> list[CheckRecord]:
        """The records that did not pass."""
        return [record for record in self.checks if record.passed is False]

    def as_plain(self) -> dict[str, Any]:
        """Lists, dicts, numbers and texts, as JSON has them; every number is finite."""
        return {
            "passed": not self.failed,
            "precision": self.precision,
            "structures": [dict(structure) for structure in self.structures],
            "checks": [asdict(record) for record in self.checks],
            "curves": {
                name: [dict(curve) for curve in curves] for name, curves in self.curves.items()
            },
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The table for a terminal."""
        rows: list[tuple[str, ...]] = [
            ("physics", "quantity", "deviation", "bound", "unit", "", "worst in")
        ]
        rows += [_cells(record) for record in self.checks]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        shown = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ]
        names = ", ".join(f"{s['identifier']} ({s['formula']})" for s in self.structures)
        title = f"physics in {self.precision}, on {names}"
        rule = "-" * len(shown[0])
        table = [line.rstrip() for line in shown]
        return [
            title,
            table[0],
            rule,
            *table[1:],
            *(f"  note: {note}" for note in self.notes),
            self.verdict(),
        ]

    def verdict(self) -> str:
        """One sentence."""
        if not self.failed:
            left_out = sum(record.passed is None for record in self.checks)
            n_passed = len(self.checks) - left_out
            more = f"; {left_out} do not apply to these structures" if left_out else ""
            return f"physics: all {n_passed} checks passed{more}"
        names = ", ".join(f"{record.check} ({record.quantity})" for record in self.failed)
        return f"physics: {len(self.failed)} of {len(self.checks)} checks FAILED: {names}"


def _cells(record: CheckRecord) -> tuple[str, ...]:
    value = "–" if record.value is None else f"{record.value:.1e}"
    bound = "–" if record.bound is None else f"{record.bound:.1e}"
    verdict = {True: "pass", False: "FAIL", None: "n/a"}[record.passed]
    return (
        record.check,
        record.quantity,
        value,
        bound,
        record.unit,
        verdict,
        record.note or record.structure,
    )
