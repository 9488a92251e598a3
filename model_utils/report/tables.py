"""Tables of a report, from the numbers that --output_json has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataloader.quantities import QUANTITIES
from model_utils.metrics import error_names, error_units
from model_utils.run.log_lines import MILLI, milli

BETTER = "better"
WORSE = "worse"
UNDECIDED = "not told apart"
SIGNIFICANT = 0.05  # p-value below which two models are told apart
LOOKS = {BETTER: "good", WORSE: "bad", "pass": "good", "fail": "bad"}
CONFIGS = "n_configs"

Plain = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its notes; the first columns are text.

    Attributes:
        heads: of the columns.
        rows: of cells as they are shown.
        text_columns: how many of the first columns are text.
        notes: sentences below it.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    notes: Sequence[str] = field(default=())

    def look_of(self, cell: str) -> str:
        """Class of a cell whose word is a verdict."""
        return LOOKS.get(cell, "")


def units_of_errors() -> dict[str, str]:
    """Units of errors as tables have them, by name of the error: ``meV/atom``, ``meV/Å``."""
    units: dict[str, str] = {}
    for quantity in QUANTITIES.values():
        names = error_names(quantity)
        units |= {names[short]: f"m{unit}" for short, unit in error_units(quantity).items()}
    return units


def interval_text(bounds: Sequence[float] | None) -> str:
    """``20.71 to 22.05`` in thousandths; a dash where there is none."""
    return "-" if bounds is None else f"{milli(bounds[0])} to {milli(bounds[1])}"


def total(content: Plain) -> Table:
    """Every error on all structures with its interval."""
    intervals = content["intervals"]["total"]
    rows = [
        [name, milli(content[name]), interval_text(intervals.get(name)), unit]
        for name, unit in units_of_errors().items()
        if content.get(name) is not None
    ]
    percent = round(100 * content["intervals"]["confidence"])
    return Table(heads=["error", "value", f"{percent} % interval", "unit"], rows=rows)


def by_source(content: Plain) -> Table:
    """Errors on the structures of each file and head."""
    sources: Plain = content["by_source"]
    names = _labelled(sources)
    heads = ["source", "structures", *_with_units(names)]
    rows = [
        [source, str(errors[CONFIGS]), *(milli(errors[name]) for name in names)]
        for source, errors in sources.items()
    ]
    return Table(heads=heads, rows=rows)


def of_groups(content: Plain, kind: str, what: str) -> Table:
    """Errors of the groups of one kind, root mean squares with their intervals.

    Args:
        content: what --output_json has.
        kind: of the groups, as ``by_element``.
        what: they are, as the head of the first column.
    """
    groups: Plain = content[kind]
    intervals: Plain = content["intervals"][kind]
    names = [name for name in _labelled(groups) if not name.endswith("_cfg")]
    roots = {error_names(quantity)["rmse"] for quantity in QUANTITIES.values()}
    heads = [what, "structures"]
    for name, head in zip(names, _with_units(names), strict=True):
        heads += [head, "interval"] if name in roots else [head]
    rows = []
    for group, errors in groups.items():
        row = [group, str(errors.get(CONFIGS, ""))]
        for name in names:
            row.append(milli(errors.get(name)))
            if name in roots:
                row.append(interval_text(intervals.get(group, {}).get(name)))
        rows.append(row)
    return Table(heads=heads, rows=rows)


def comparison(content: Plain) -> Table:
    """Baseline, new model and delta with intervals, p-values and what follows from them."""
    units = units_of_errors()
    rows = []
    for name, unit in units.items():
        delta = content["delta"].get(name)
        if delta is None:
            continue
        p_value = content["p_values"][name]
        rows.append(
            [
                name,
                milli(content["baseline"][name]),
                milli(content["finetuned"][name]),
                f"{MILLI * delta:+.2f}",
                interval_text(content["delta_intervals"][name]),
                unit,
                f"{p_value:.4f}",
                verdict(delta, p_value),
            ]
        )
    heads = ["error", "baseline", "new", "delta", "interval of delta", "unit", "p", "new model is"]
    return Table(heads=heads, rows=rows)


def verdict(delta: float, p_value: float) -> str:
    """Whether the new model is better, worse, or not told apart from the baseline."""
    if p_value >= SIGNIFICANT or delta == 0:
        return UNDECIDED
    return BETTER if delta < 0 else WORSE


def _labelled(groups: Plain) -> list[str]:
    """Names of the errors that any of the groups has."""
    return [
        name
        for name in units_of_errors()
        if any(errors.get(name) is not None for errors in groups.values())
    ]


def _with_units(names: Sequence[str]) -> list[str]:
    """``forces rmse`` and its unit, as heads of two lines."""
    units = units_of_errors()
    return [f"{name.replace('_per_atom', '').replace('_', ' ')}\n({units[name]})" for name in names]


def committee(of_quantities: Plain) -> Table:
    """Errors of a committee's means beside its spread, a row for each labelled quantity."""
    rows = []
    for name, quantity in QUANTITIES.items():
        spreads = of_quantities.get(name)
        if spreads is None:
            continue
        numbers = [spreads["rmse_over_spread"], spreads["rank_correlation"]]
        shown = ["-" if number is None else f"{number:.2f}" for number in numbers]
        rows.append(
            [
                name,
                milli(spreads["rmse"]),
                milli(spreads["rms_spread"]),
                f"m{quantity.error_unit}",
                *shown,
            ]
        )
    return Table(
        heads=["quantity", "rmse", "rms spread", "unit", "rmse over spread", "rank correlation"],
        rows=rows,
    )
