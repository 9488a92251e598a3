"""Records of a run for Weights & Biases, online or off: W&B's own variables say which
(WANDB_MODE, WANDB_PROJECT …).
"""

import os
import secrets
from typing import Any

from dataloader import durable, input_files
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.loggers import plain_records
from model_utils.run.loggers.logged_run import LoggedRun

PROJECT = "mace-pretrain"  # unless WANDB_PROJECT names another
ID_FILE = "wandb_id.txt"  # beside the checkpoint, so that a run that goes on is the same one there
MOST_ID = 100  # bytes


class WandbRun:
    """One run there.

    Its methods may wait for a server, so they are called in a thread (``loggers.Loggers``).

    Args:
        run: what is told of it.
    """

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=_id_of(run),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(console="off", silent=True),
        )

    def train(self, record: TrainRecord) -> None:
        """Errors of training steps, at their step."""
        self._log("train", plain_records.of_train(record), record.step)

    def validation(self, record: ValidationRecord) -> None:
        """Errors of a validation and of its sources, at its step."""
        values = plain_records.of_validation(record)
        by_source = values.pop("by_source")
        self._log("valid", values, record.step)
        if len(by_source) > 1:
            for source, errors in by_source.items():
                self._log(f"valid/{source}", errors, record.step)

    def final(self, record: FinalRecord) -> None:
        """The table at the end, as the run's summary."""
        for name, errors in plain_records.of_final(record).items():
            for error, value in errors.items():
                self._run.summary[f"final/{name}/{error}"] = value

    def close(self) -> None:
        """Finish the run there, which waits for what is still to be sent."""
        self._run.finish()

    def _log(self, part: str, values: dict[str, Any], step: int) -> None:
        known = {f"{part}/{name}": value for name, value in values.items() if value is not None}
        self._run.log(known, step=step)


def _id_of(run: LoggedRun) -> str:
    """The name of the run among all of W&B's: a new one, or that with which it was begun."""
    path = run.folder / ID_FILE
    if run.step > 0 and path.exists():
        return input_files.read_text(path, MOST_ID).strip()
    identifier = secrets.token_hex(8)  # no generator of the training moves
    durable.write_text(path, identifier + "\n")
    return identifier
