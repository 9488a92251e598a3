"""Records of a run as TensorBoard events."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from dataloader import streams
from losses import Metrics
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord


class TensorBoard:
    """Records as TensorBoard events; those that a full disk refuses are written later, in order."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        """Open a new file beside the others; what a run that was killed wrote from this step on is hidden.

        Raises:
            OSError: it cannot be made.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._file = streams.PatientFile.adding_to(_next_events_file(folder), most=float("inf"))
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._add(step=from_step, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())

    def train(self, record: TrainRecord) -> None:
        """A training record."""
        self._scalars("train", record.metrics, record.step)
        self._scalar("lr", record.lr, record.step)
        self._scalar("gradient_norm", record.gradient_norm, record.step)

    def validation(self, record: ValidationRecord) -> None:
        """A validation record."""
        self._scalars("valid", record.metrics, record.step)

    def final(self, record: FinalRecord) -> None:
        """The best model's errors, at the last step of the run."""
        for name, errors in record.sets.items():
            self._scalars(f"final/{name}", errors, record.step)

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()

    def _scalars(self, part: str, errors: Metrics, step: int) -> None:
        for name, value in errors.as_plain().items():
            if value is not None:
                self._scalar(f"{part}/{name}", value, step)

    def _scalar(self, tag: str, value: float, step: int) -> None:
        from torch.utils.tensorboard.summary import scalar

        self._add(step=step, summary=scalar(tag, value))


def _next_events_file(folder: Path) -> Path:
    """A name that TensorBoard reads after those that are there, also where the clock was set back since.

    It reads files in the order of their names, and hides what the later ones replace.
    """
    times = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    after = max((int(text) for text in times if text.isdecimal()), default=0) + 1
    return folder / f"events.out.tfevents.{max(int(time.time()), after):010d}.{socket.gethostname()}.{os.getpid()}.0"
