"""Records of a run as TensorBoard events."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataloader import streams
from model_utils.metrics import Metrics
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.loggers.logged_run import LoggedRun


class TensorBoard:
    """Records as TensorBoard events; those that a full disk refuses are written later, in order."""

    def __init__(self, run: LoggedRun) -> None:
        """Open a new file beside the others; what a run that was killed wrote after its last
        checkpoint is hidden.

        Raises:
            OSError: it cannot be made.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        # asked for after the imports, which take a second
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._event = Event
        self._summary = Summary
        self._file = streams.PatientFile.adding_to(_next_events_file(folder), most=float("inf"))
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._add(step=run.step + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())

    def train(self, record: TrainRecord) -> None:
        """A training record."""
        more = {"lr": record.lr, "gradient_norm": record.gradient_norm}
        self._scalars({**_errors("train", record.metrics), **more}, record.step)

    def validation(self, record: ValidationRecord) -> None:
        """A validation record."""
        self._scalars(_errors("valid", record.metrics), record.step)

    def final(self, record: FinalRecord) -> None:
        """The best model's errors of each set and source, at the last step of the run."""
        for name, errors in record.all_rows().items():
            self._scalars(_errors(f"final/{name}", errors), record.step)

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        """All values of a record as one event."""
        numbers = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()
        ]
        self._add(step=step, summary=self._summary(value=numbers))


def _errors(part: str, errors: Metrics) -> dict[str, float]:
    """The numbers of a data set by their tags."""
    return {
        f"{part}/{name}": value for name, value in errors.as_plain().items() if value is not None
    }


def _next_events_file(folder: Path) -> Path:
    """A name that TensorBoard reads after those that are there, also where the
    clock was set back since.

    It reads files in the order of their names, and hides what the later ones replace.
    """
    times = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    after = max((int(text) for text in times if text.isdecimal()), default=0) + 1
    began = max(int(time.time()), after)
    return folder / f"events.out.tfevents.{began:010d}.{socket.gethostname()}.{os.getpid()}.0"
