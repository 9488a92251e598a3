"""Records of a run as a table for spreadsheets and plots."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from dataloader import durable, streams
from dataloader.quantities import QUANTITIES
from model_utils.files.csv_cells import csv_text
from model_utils.metrics import Metrics, error_names
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord

Row = dict[str, str]


def columns() -> list[str]:
    """Names of the columns: those of every record, the errors of every quantity,
    those of training records.
    """
    errors = [name for quantity in QUANTITIES.values() for name in error_names(quantity).values()]
    steps = ["gradient_norm", "gradient_norm_max", "clipped_share"]
    return [
        "record",
        "kind",
        "set",
        "epoch",
        "step",
        "lr",
        "best",
        "loss",
        *errors,
        "n_configs",
        "n_atoms",
        *steps,
    ]


class CsvFile:
    """metrics.csv: one row for each record of metrics.jsonl.

    A validation has one more row for each of its sources, and the last record has
    one for each data set.

    Units are those of metrics.jsonl: eV, eV/Å, eV/Å³. What a full disk refuses is
    written later, in order.
    """

    def __init__(self, path: Path, *, step: int, n_records: int) -> None:
        """Open for adding; rows that a killed run wrote after its checkpoint are cut
        off, as in metrics.jsonl.

        Args:
            path: the file; replaced where the run is new (``n_records`` of 0).
            step: of the checkpoint.
            n_records: number of records in metrics.jsonl at the checkpoint. It is needed beside the
                step, since records of one step may be written before and after a checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        self._columns = columns()
        self._n_records = n_records
        kept = (
            [row for row in _rows(path) if _is_of_the_past(row, step, n_records)]
            if n_records
            else []
        )
        text = self._text(dict(zip(self._columns, self._columns, strict=True)))
        durable.write_text(path, text + "".join(map(self._text, kept)))
        self._file = streams.PatientFile.adding_to(path, most=float("inf"))

    def train(self, record: TrainRecord) -> None:
        """A row of an epoch, or of the part of it so far."""
        steps = {
            name: getattr(record, name)
            for name in ("gradient_norm", "gradient_norm_max", "clipped_share")
        }
        self._begin()
        self._add(
            record,
            "train" if record.whole_epoch else "train_steps",
            "all",
            record.metrics,
            lr=record.lr,
            **steps,
        )

    def validation(self, record: ValidationRecord) -> None:
        """A row of all, and one of each source where there are several."""
        sets = {"all": record.metrics}
        if len(record.by_source) > 1:
            sets |= record.by_source
        self._begin()
        for name, errors in sets.items():
            self._add(record, "valid", name, errors, lr=record.lr, best=int(record.best))

    def final(self, record: FinalRecord) -> None:
        """A row of each set and source: the best model's errors."""
        self._begin()
        for name, errors in record.all_rows().items():
            self._add(record, "final", name, errors)

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()

    def _begin(self) -> None:
        self._n_records += 1

    def _add(
        self,
        record: TrainRecord | ValidationRecord | FinalRecord,
        kind: str,
        name: str,
        errors: Metrics,
        **more: float,
    ) -> None:
        place = {
            "record": self._n_records,
            "kind": kind,
            "set": csv_text(name),
            "epoch": record.epoch,
            "step": record.step,
        }
        self._file.write(
            self._text({**place, **errors.as_plain(), **more}).encode("utf-8", "backslashreplace")
        )

    def _text(self, row: Mapping[str, object]) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        cells = [row.get(name) for name in self._columns]
        writer.writerow(["" if cell is None else cell for cell in cells])
        return stream.getvalue()


def _rows(path: Path) -> list[Row]:
    """Rows by column; a last one that was torn by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = csv.DictReader(io.StringIO(text.rpartition("\n")[0] + "\n"), restval=None)
    return [row for row in rows if None not in row.values() and None not in row]


def _is_of_the_past(row: Row, step: int, n_records: int) -> bool:
    """Whether a row was written before the checkpoint of a step."""
    number = row.get("record", "")
    of_step = row.get("step", "")
    if not (number.isdecimal() and of_step.isdecimal()):
        return False
    return int(of_step) < step or (int(of_step) == step and int(number) <= n_records)
