"""Figures of a report and of runs, by matplotlib: parity, residuals, groups, curves.

Text of data is drawn as it is, never as mathematics, and many points are drawn as a density.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.quantities import Quantity
from dataloader.streams import printable
from model_utils.report.libraries import needed
from model_utils.run.log_lines import MILLI

Floats = NDArray[np.float64]

MOST_POINTS = 2_000  # beyond, a density is drawn
TICKS = 5  # along a narrow axis: energies differ in the fifth digit, and all are written
BINS = 160  # of a density, in each direction
COLOR = "#2864a8"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "svg.fonttype": "path",
    "figure.dpi": 110,
}


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of so many inches with its axes side by side; no window is opened.

    Raises:
        InputError: matplotlib is not installed.
    """
    matplotlib, figures = needed("matplotlib", "matplotlib.figure", what="a figure")
    matplotlib.rcParams.update(STYLE)
    figure = figures.Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def as_png(figure: Any, dpi: int = 110) -> bytes:
    """A figure as PNG, without a date, so that the same numbers make the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Any) -> bytes:
    """A figure as SVG, without a date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def as_data(image: bytes) -> str:
    """A PNG as the address of an image within a page."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def parity(quantity: Quantity, labels: Floats, predictions: Floats) -> bytes:
    """Predictions over labels, errors over labels, and how many errors are below a
    size, side by side, as PNG.

    Args:
        quantity: what is compared.
        labels: (n,), in its unit, energies per atom.
        predictions: (n,), likewise.
    """
    unit = quantity.error_unit
    figure, (left, middle, right) = new_figure(12.4, 3.5, 3)
    low = float(min(labels.min(), predictions.min()))
    high = float(max(labels.max(), predictions.max()))
    margin = 0.03 * (high - low) or 0.5 * max(abs(low), 1e-3)
    limits = (low - margin, high + margin)
    _points(figure, left, labels, predictions)
    left.plot(limits, limits, color="#444444", linewidth=0.8, linestyle="--")
    left.set(xlim=limits, ylim=limits, xlabel=f"label ({unit})", ylabel=f"predicted ({unit})")
    errors = MILLI * (predictions - labels)
    _points(figure, middle, labels, errors)
    middle.axhline(0.0, color="#444444", linewidth=0.8, linestyle="--")
    middle.set(xlim=limits, xlabel=f"label ({unit})", ylabel=f"predicted minus label (m{unit})")
    for axes in (left, middle):
        axes.locator_params(axis="x", nbins=TICKS)
    _shares(right, np.abs(errors))
    right.set(xlabel=f"size of the error (m{unit})", ylabel="errors below it (%)", ylim=(0, 101))
    return as_png(figure)


def _points(figure: Any, axes: Any, x: Floats, y: Floats) -> None:
    """Points, or where they are many their density on a logarithmic scale."""
    if len(x) <= MOST_POINTS:
        axes.plot(x, y, ".", color=COLOR, markersize=4, alpha=0.7, markeredgewidth=0)
        return
    (colors,) = needed("matplotlib.colors", what="a figure")
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=BINS)
    counts[counts == 0] = np.nan
    image = axes.pcolormesh(
        x_edges, y_edges, counts.T, norm=colors.LogNorm(vmin=1), cmap="viridis", rasterized=True
    )
    figure.colorbar(image, ax=axes, label="points", pad=0.01, aspect=30)


def _shares(axes: Any, sizes: Floats) -> None:
    """Which share of errors is below a size, from the smallest to the largest."""
    ordered = np.sort(sizes)
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    picked = np.unique(np.linspace(0, len(ordered) - 1, 800).astype(np.int64))
    axes.plot(
        ordered[picked], 100 * share[picked], color=COLOR, linewidth=1.4, drawstyle="steps-post"
    )
    positive = ordered[ordered > 0]
    if len(positive):
        axes.set_xscale("log")
        axes.set_xlim(left=max(float(np.quantile(positive, 0.005)), float(positive.max()) * 1e-6))


def groups(
    errors: Mapping[str, float],
    intervals: Mapping[str, Sequence[float] | None],
    metric: str,
    unit: str,
) -> bytes:
    """One error of several groups as bars with their intervals, as PNG.

    Args:
        errors: by name of the group, from the top down.
        intervals: ``[low, high]`` by name of the group.
        metric: name of the error.
        unit: of it; thousandths are drawn.
    """
    names = list(errors)
    figure, (axes,) = new_figure(6.4, 0.9 + 0.24 * len(names))
    values = MILLI * np.array([errors[name] for name in names])
    places = np.arange(len(names))
    axes.barh(places, values, color="#9dbbe0", height=0.7)
    for place, name in enumerate(names):
        bounds = intervals.get(name)
        if bounds is not None:
            axes.plot(MILLI * np.array(bounds), [place, place], color="#1d3d63", linewidth=1.2)
    axes.set_yticks(places, [plain_text(name, most=40) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{metric} (m{unit})")
    return as_png(figure)


def plain_text(text: str, most: int = 60) -> str:
    """Text of data as matplotlib draws it letter by letter, cut where it is long; $
    would begin mathematics.
    """
    shown = printable(text)
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    return shown.replace("$", r"\$")
