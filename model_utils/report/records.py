"""metrics.jsonl as curves: what a run wrote, read while it may still be writing."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader import input_files
from dataloader.errors import InputError
from dataloader.limits import RECORD_BYTES
from model_utils.files.run_names import SETTINGS

TRAINING = ("train", "train_steps")
COUNTERS = ("epoch", "step", "stage")  # of a record, which are no errors

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One number of a run over its course, in the order of the records.

    Attributes:
        kind: ``train``, the means of epochs, ``train_steps``, those of some steps, or ``valid``.
        epoch: (n,), in which each record was written.
        step: (n,), optimizer steps before it.
        value: (n,), eV, eV/Å, eV/Å³, or the loss.
        best: (n,), whether the model was the best so far.
        stage: (n,), 1 or 2.
    """

    kind: str
    epoch: NDArray[np.int64]
    step: NDArray[np.int64]
    value: NDArray[np.float64]
    best: NDArray[np.bool_]
    stage: NDArray[np.int64]


def read(path: Path) -> list[Record]:
    """Whole records of a metrics.jsonl; a last line that is being written is left out.

    Raises:
        InputError: it cannot be read, or a line is no record.
    """
    records: list[Record] = []
    try:
        with input_files.opened(path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if not line.endswith(b"\n"):
                    break
                records.append(_record(line, path, number))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return records


def _lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(RECORD_BYTES):
        yield line


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InputError(
            f"{path}, line {number}: not a record of a run (one JSON object a line was expected); "
            "name the metrics.jsonl that train_mace.py wrote"
        )
    return record


def curve(records: list[Record], kind: str, metric: str, stage_two_after: int | None) -> Curve:
    """The curve of a metric over the records of one kind that have it.

    Args:
        records: of a run.
        kind: of the records.
        metric: ``loss``, ``lr``, or an error by its name.
        stage_two_after: the last epoch of stage one; None of a run with one stage.
    """
    there = [
        record
        for record in records
        if record.get("kind") == kind and _is_number(record.get(metric))
    ]
    epoch = np.array([_whole(record.get("epoch")) for record in there], dtype=np.int64)
    after = np.iinfo(np.int64).max if stage_two_after is None else stage_two_after
    return Curve(
        kind=kind,
        epoch=epoch,
        step=np.array([_whole(record.get("step")) for record in there], dtype=np.int64),
        value=np.array([record[metric] for record in there], dtype=np.float64),
        best=np.array([record.get("best") is True for record in there], dtype=bool),
        stage=np.where(epoch > after, 2, 1),
    )


def metrics_in(records: list[Record]) -> list[str]:
    """Names of the numbers that training or validation records have, in their order."""
    names: dict[str, None] = {}
    for record in records:
        if record.get("kind") in (*TRAINING, "valid"):
            names.update({name: None for name, value in record.items() if _is_number(value)})
    return [name for name in names if name not in COUNTERS]


def last_epoch_of_stage_one(records: list[Record], folder: Path) -> int | None:
    """The epoch after which stage two begins; None where there is no such stage.

    By the records, since patience and a longer run may move it; or by the settings beside them,
    where these say earlier: runs of before did not say it in their records, and may have gone on.
    """
    of_stage_two = [
        _whole(record.get("epoch"))
        for record in records
        if record.get("kind") in TRAINING and _whole(record.get("stage")) > 1
    ]
    by_settings = _by_settings(folder)
    if not of_stage_two:
        return by_settings
    by_records = min(of_stage_two) - 1
    return by_records if by_settings is None else min(by_records, by_settings)


def _by_settings(folder: Path) -> int | None:
    """The epoch after which stage two was planned to begin as a run began."""
    from model_utils.settings import plain_yaml

    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        settings = plain_yaml.read(path, "the settings of a run", "epochs: 10")
    except InputError:
        return None
    if settings.get("stage_two") is not True:
        return None
    start = settings.get("start_stage_two")
    epochs = settings.get("epochs")
    if isinstance(start, int) and start > 0:
        return start
    return max(epochs // 4 * 3, 1) if isinstance(epochs, int) else None


def _is_number(value: object) -> bool:
    """Whether it is a number that a float can hold; a whole number may be
    larger than all of them.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _whole(value: object) -> int:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62
        else 0
    )
