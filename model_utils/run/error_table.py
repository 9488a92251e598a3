"""The table of errors: a row for each data set, a column for each error."""

from collections.abc import Callable, Mapping
from functools import partial

from dataloader.dataset import OF_HEAD
from dataloader.quantities import QUANTITIES, STRESS, Quantity
from model_utils.metrics import Metrics, error_names
from model_utils.run.log_lines import milli


def table(rows: Mapping[str, Metrics]) -> str:
    """Errors of several data sets side by side, energies in meV, forces in meV/Å, stress in meV/Å³.

    Where names end in a head (``Dataset.by_source``), heads have a column of their own.
    """
    shown = [
        q
        for q in QUANTITIES.values()
        if q.required or any(m.of(q)["rmse"] is not None for m in rows.values())
    ]
    columns: dict[str, Callable[[Metrics], str]] = {"configs": lambda m: str(m.n_configs)}
    for quantity in shown:
        for short, name in error_names(quantity).items():
            columns[_heading(quantity, short)] = partial(_cell, name)
    units = [f"m{quantity.unit}" for quantity in shown if quantity is not STRESS] + [
        f"m{STRESS.unit}"
    ]
    names = [name.partition(OF_HEAD) for name in rows]
    cells = [["", "head", *columns]]
    cells += [
        [n[0], n[2], *(column(m) for column in columns.values())]
        for n, m in zip(names, rows.values(), strict=True)
    ]
    if not any(name[2] for name in names):
        cells = [[row[0], *row[2:]] for row in cells]
    n_words = len(cells[0]) - len(columns)  # columns of text, which begin at one place
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(w) if i < n_words else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(
        [
            f"errors in {', '.join(units[:-1])} and {units[-1]}",
            lines[0],
            "-" * len(lines[0]),
            *lines[1:],
        ]
    )


def _cell(name: str, m: Metrics) -> str:
    return milli(m[name])


def _heading(quantity: Quantity, short: str) -> str:
    """``E rmse/atom``, ``|E| mae cfg``, ``F mae``."""
    if short == "mae_cfg":
        return f"|{quantity.symbol}| mae cfg"
    return (
        f"{quantity.symbol} {short}/atom" if quantity.over_atoms else f"{quantity.symbol} {short}"
    )
