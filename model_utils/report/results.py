"""The numbers of a report, as --output_json has them: errors of groups, intervals, two models
on the same structures.

The page is made of these very numbers; nothing is computed twice.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.quantities import QUANTITIES, Quantity
from model_utils.metrics import Metrics, error_names
from model_utils.report.collected import Collected, ErrorSums, named_errors
from model_utils.report.statistics import CONFIDENCE, Difference, Interval, difference, interval

Floats = NDArray[np.float64]
Plain = dict[str, Any]


def with_groups(content: Mapping[str, Any], collected: Collected, draws: int, seed: int) -> Plain:
    """What --output_json holds, with errors by head, size and force magnitude, and
    intervals of all errors.

    Args:
        content: metrics as top-level keys, ``by_element`` and ``by_config_type``.
        collected: the same evaluation.
        draws: sets of structures that are drawn for an interval.
        seed: of the draws.
    """
    extended = dict(content)
    intervals: Plain = {
        "confidence": CONFIDENCE,
        "draws": draws,
        "seed": seed,
        "drawn": "structures",
        "total": _intervals(collected.total, draws, seed),
    }
    for kind in collected.groups:
        known: Mapping[str, Any] = content.get(kind, {})
        extended[kind] = {
            name: {**_errors_of(collected.groups[kind][name]), **known.get(name, {})}
            for name in collected.ordered_groups(kind)
        }
        extended[kind].update(
            {name: errors for name, errors in known.items() if name not in extended[kind]}
        )
        intervals[kind] = {
            name: _intervals(collected.groups[kind][name], draws, seed)
            for name in collected.ordered_groups(kind)
        }
    extended["intervals"] = intervals
    return extended


def _errors_of(sums: Mapping[str, ErrorSums]) -> Plain:
    structures = {number for of_quantity in sums.values() for number in of_quantity.structures}
    return {
        "n_configs": len(structures),
        **named_errors(sums, lambda quantity, short, of_quantity: of_quantity.error(short)),
    }


def _intervals(sums: Mapping[str, ErrorSums], draws: int, seed: int) -> Plain:
    """``[low, high]`` of every error by its name; None where there are too few structures."""

    def of_one(quantity: Quantity, short: str, of_quantity: ErrorSums) -> list[float] | None:
        found = interval(
            np.array(of_quantity.of(short)),
            np.array(of_quantity.counts, dtype=np.float64),
            root=short == "rmse",
            draws=draws,
            seed=seed,
        )
        return _as_list(found)

    return named_errors(sums, of_one)


def _as_list(bounds: Interval | None) -> list[float] | None:
    if bounds is None or not np.isfinite([bounds.low, bounds.high]).all():
        return None
    return [bounds.low, bounds.high]


def refuse_other_structures(data: Dataset, other: Dataset) -> None:
    """Raise InputError unless both models were given the same structures in the same order."""
    if len(data) != len(other) or not np.array_equal(data.n_atoms, other.n_atoms):
        raise InputError(
            f"--compare_with: the models do not take the same structures ({len(data)} and "
            f"{len(other)}): name the elements that both have with --elements"
        )


def compared(
    new: tuple[Metrics, Collected], baseline: tuple[Metrics, Collected], draws: int, seed: int
) -> Plain:
    """Two models on the same structures, structure by structure.

    Args:
        new: errors of the model that is judged.
        baseline: errors of the model that it is compared with.
        draws: sets of structures for the intervals, and exchanges for the p-values.
        seed: of both.

    Returns:
        ``baseline``, ``finetuned`` and ``delta`` (finetuned minus baseline) by name of the
        metric, with ``delta_intervals`` ([low, high]) and ``p_values``; None where one of the
        models gives no such quantity.
    """
    plain = {"baseline": baseline[0].as_plain(), "finetuned": new[0].as_plain()}
    delta: Plain = {}
    intervals: Plain = {}
    p_values: Plain = {}
    for name, value in plain["finetuned"].items():
        before = plain["baseline"][name]
        if name not in ("n_configs", "n_atoms"):
            delta[name] = None if value is None or before is None else value - before
    for name, quantity in QUANTITIES.items():
        for short, error in error_names(quantity).items():
            found = _difference(baseline[1], new[1], name, short, draws, seed)
            intervals[error] = _as_list(found.interval) if found is not None else None
            p_values[error] = found.p_value if found is not None else None
    return {**plain, "delta": delta, "delta_intervals": intervals, "p_values": p_values}


def _difference(
    first: Collected, second: Collected, name: str, short: str, draws: int, seed: int
) -> Difference | None:
    sums_a, counts_a = _by_structure(first, name, short)
    sums_b, counts_b = _by_structure(second, name, short)
    both = (counts_a > 0) & (counts_a == counts_b)
    return difference(
        sums_a[both], sums_b[both], counts_a[both], root=short == "rmse", draws=draws, seed=seed
    )


def _by_structure(collected: Collected, name: str, short: str) -> tuple[Floats, Floats]:
    """Sums and counts of one quantity by number in the data set: batches of two models
    differ in their order.
    """
    indices = np.array([judged.index for judged in collected.structures], dtype=np.int64)
    sums = np.zeros(int(indices.max(initial=-1)) + 1)
    counts = np.zeros_like(sums)
    of_quantity = collected.total[name]
    places = indices[np.array(of_quantity.structures, dtype=np.int64)]
    sums[places] = of_quantity.of(short)
    counts[places] = of_quantity.counts
    return sums, counts
