"""Learning curves of one or several runs: training and validation, stage two, the best model."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.errors import InputError
from dataloader.quantities import OFFERED, QUANTITIES
from model_utils.files.csv_cells import csv_text
from model_utils.metrics import error_names, error_units
from model_utils.report import records
from model_utils.report.figures import COLOR, new_figure, plain_text
from model_utils.report.records import Curve, Record

COLORS = (COLOR, "#d1682c", "#3b8f55", "#8a4fa3", "#a3333d", "#5f6b78", "#b28d1e", "#2a8c92")
OF_A_WINDOW = 5  # a mean is taken over at most a fifth of a curve
COLUMNS = ("run", "stage", "kind", "epoch", "step", "metric", "value", "smoothed", "best")
SHOWN = {"train": "train", "train_steps": "train (steps)", "valid": "valid"}


@dataclass(frozen=True, kw_only=True)
class RunRecords:
    """The records of a run under the name by which a figure calls it.

    Attributes:
        name: as short as tells it from the others.
        path: of its metrics.jsonl.
        records: in their order.
        stage_two_after: the last epoch of stage one; None of a run with one stage.
    """

    name: str
    path: Path
    records: list[Record]
    stage_two_after: int | None

    def curves(self, metric: str) -> list[Curve]:
        """Curves of a metric: training by steps where there are such records, else by
        epochs, and validation.
        """
        all_three = {
            kind: records.curve(self.records, kind, metric, self.stage_two_after)
            for kind in (*records.TRAINING, "valid")
        }
        training = "train_steps" if len(all_three["train_steps"].step) else "train"
        return [curve for curve in (all_three[training], all_three["valid"]) if len(curve.step)]


def opened(path: Path, name: str) -> RunRecords:
    """The run whose metrics.jsonl this is.

    Raises:
        InputError: it cannot be read, or has no record of a training or validation.
    """
    of_run = records.read(path)
    if not records.metrics_in(of_run):
        raise InputError(
            f"{path}: no record of an epoch or a validation is in it yet; try again later"
        )
    return RunRecords(
        name=name,
        path=path,
        records=of_run,
        stage_two_after=records.last_epoch_of_stage_one(of_run, path.parent),
    )


def window(smooth: int, n: int) -> int:
    """Records over which a curve of n is averaged: as asked for, but at most a fifth
    of it, and at least one.
    """
    return max(min(smooth, n // OF_A_WINDOW), 1)


def smoothed(curve: Curve, smooth: int) -> NDArray[np.float64]:
    """(n,): centred means over `window` records, fewer at the ends, never over the
    border between two stages.
    """
    result = np.empty_like(curve.value)
    for stage in np.unique(curve.stage):
        own = np.flatnonzero(curve.stage == stage)
        width = window(smooth, len(own))
        value = curve.value[own]
        for k, place in enumerate(own):
            reach = min((width - 1) // 2, k, len(own) - 1 - k)
            result[place] = value[k - reach : k + reach + 1].mean()
    return result


def drawn(
    runs: Sequence[RunRecords], metrics: Sequence[str], *, smooth: int, by: str, title: str | None
) -> Any:
    """A figure with a panel for each metric.

    Args:
        runs: one or several.
        metrics: ``loss`` or errors by their names.
        smooth: records over which training is averaged.
        by: ``epoch`` or ``step``.
        title: above all panels; none unless given.

    Raises:
        InputError: matplotlib is missing, or no run has a metric.
    """
    figure, panels = new_figure(6.8 if len(metrics) == 1 else 5.4 * len(metrics), 4.4, len(metrics))
    for metric, axes in zip(metrics, panels, strict=True):
        lowest = np.inf
        for number, run in enumerate(runs):
            color = COLORS[number % len(COLORS)]
            for curve in run.curves(metric):
                label = SHOWN[curve.kind] if len(runs) == 1 else f"{run.name}, {SHOWN[curve.kind]}"
                _draw(axes, curve, smooth=smooth, by=by, color=color, label=label)
                lowest = min(lowest, float(curve.value.min()))
            _mark_stage_two(axes, run, metric, by, color)
        if lowest == np.inf:
            there = sorted({name for run in runs for name in records.metrics_in(run.records)})
            raise InputError(
                f"--metric {metric} is in no record of the runs, which have {', '.join(there)}"
            )
        if lowest > 0:
            axes.set_yscale("log")
        axes.set(xlabel=by if by == "epoch" else "optimizer step", ylabel=_with_unit(metric))
        axes.legend(fontsize=8, frameon=False)
    if title is not None:
        figure.suptitle(plain_text(title), fontsize=11)
    return figure


def _draw(axes: Any, curve: Curve, *, smooth: int, by: str, color: str, label: str) -> None:
    """Training as a dashed line over its raw values; validation as points; no line from
    one stage to the next.
    """
    x = curve.epoch if by == "epoch" else curve.step
    is_training = curve.kind != "valid"
    y = smoothed(curve, smooth) if is_training else curve.value
    for number, stage in enumerate(np.unique(curve.stage)):
        own = curve.stage == stage
        if is_training and not np.array_equal(y[own], curve.value[own]):
            axes.plot(x[own], curve.value[own], color=color, linewidth=0.6, alpha=0.3)
        axes.plot(
            x[own],
            y[own],
            "--" if is_training else "o-",
            color=color,
            markersize=3,
            linewidth=1.4 if is_training else 1.0,
            label=plain_text(label) if number == 0 else None,
        )
    best = np.flatnonzero(curve.best)
    if len(best):
        last = best[-1]
        of_star = {"markersize": 13, "markeredgecolor": "black", "markeredgewidth": 0.6}
        axes.plot(x[last], y[last], "*", color=color, label=plain_text(f"{label}, best"), **of_star)


def _mark_stage_two(axes: Any, run: RunRecords, metric: str, by: str, color: str) -> None:
    """A line where stage two begins; before and after it a loss has other weights."""
    later = [
        curve
        for curve in run.curves(metric)
        if (curve.stage == 2).any() and (curve.stage == 1).any()
    ]
    if not later:
        return
    if by == "epoch" and run.stage_two_after is not None:
        place = run.stage_two_after + 0.5
    else:
        place = max(float(curve.step[curve.stage == 1].max()) for curve in later)
    axes.axvline(place, color=color, linewidth=0.8, linestyle=":")
    axes.annotate(
        "stage two",
        (place, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        va="top",
        fontsize=7,
        color=color,
    )


def _with_unit(metric: str) -> str:
    """A metric with its unit, as an axis has it; others than errors, and those of quantities
    that only a plug-in knows, by their names alone.
    """
    for quantity in (OFFERED | QUANTITIES).values():
        units = error_units(quantity)
        for short, name in error_names(quantity).items():
            if name == metric:
                return f"{metric} ({units[short]})"
    return metric


def long_table(runs: Sequence[RunRecords], metrics: Sequence[str], smooth: int) -> str:
    """Every record of the curves as CSV: a row for each run, kind, record and metric."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for run in runs:
        for metric in metrics:
            for row in _rows(run, metric, smooth):
                table.writerow([csv_text(run.name), *row])
    return text.getvalue()


def _rows(run: RunRecords, metric: str, smooth: int) -> Iterator[list[object]]:
    for curve in run.curves(metric):
        means = smoothed(curve, smooth) if curve.kind != "valid" else curve.value
        for k in range(len(curve.step)):
            yield [
                int(curve.stage[k]),
                curve.kind,
                int(curve.epoch[k]),
                int(curve.step[k]),
                metric,
                float(curve.value[k]),
                float(means[k]),
                int(curve.best[k]),
            ]
