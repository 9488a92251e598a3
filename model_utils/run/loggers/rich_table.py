"""Errors as tables of rich, in the log: after each validation one of its sources,
and the one at the end.
"""

import io
from collections.abc import Mapping

from dataloader.quantities import QUANTITIES
from model_utils.metrics import Metrics, error_units
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.log_lines import milli
from model_utils.runtime import log

WIDTH = 160  # columns; a log has no width of its own


class RichTables:
    """A table for each validation, with the training errors of the epoch as its first row."""

    def __init__(self) -> None:
        # what rich imports by and by costs more than a table: not in the first epoch
        _lines("", {})
        self._trained: Metrics | None = None

    def train(self, record: TrainRecord) -> None:
        """Keep the errors of an epoch for the next table."""
        if record.whole_epoch:
            self._trained = record.metrics

    def validation(self, record: ValidationRecord) -> None:
        """Errors of training, of validation, and of each source where there are several."""
        rows = {} if self._trained is None else {"train": self._trained}
        rows["valid"] = record.metrics
        if len(record.by_source) > 1:
            rows |= {f"valid {source}": errors for source, errors in record.by_source.items()}
        best = ", best" if record.best else ""
        _show(f"epoch {record.epoch}, step {record.step}, lr {record.lr:.3g}{best}", rows)

    def final(self, record: FinalRecord) -> None:
        """Errors of the best model."""
        _show("best model", record.all_rows())

    def close(self) -> None:
        """The log stays open."""


def _show(title: str, rows: Mapping[str, Metrics]) -> None:
    for line in _lines(title, rows):
        log.info("%s", line.rstrip())


def _lines(title: str, rows: Mapping[str, Metrics]) -> list[str]:
    """The table as text."""
    from rich.console import Console
    from rich.table import Table

    shown = [
        q for q in QUANTITIES.values() if any(m.of(q)["rmse"] is not None for m in rows.values())
    ]
    table = Table(title=title, title_justify="left")
    for name in ("", "loss", "configs"):
        table.add_column(name, justify="right" if name else "left")
    for quantity in shown:
        for short, unit in error_units(quantity).items():
            table.add_column(f"{quantity.symbol} {short}\nm{unit}", justify="right")
    for name, errors in rows.items():
        cells = [milli(value) for quantity in shown for value in errors.of(quantity).values()]
        table.add_row(name, f"{errors.loss:.6g}", str(errors.n_configs), *cells)
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None, markup=False, emoji=False).print(table)
    return text.getvalue().splitlines()
