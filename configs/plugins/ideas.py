"""A plug-in with one small idea for each table of the loop: ``--plugin configs/plugins/ideas.py``.

    train_mace.py … --plugin configs/plugins/ideas.py --forces_loss log_cosh \
        --scheduler inverse_root --optimizer momentum --loggers lines
"""

from typing import Any

import torch
from torch import Tensor

from losses import SHAPES, Shape
from model_utils.run.fit import FinalRecord, TrainRecord, ValidationRecord
from model_utils.run.loggers import LOGGERS, LoggedRun, LoggerKind
from optimizer import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerSettings,
    ScheduleKind,
    ScheduleSettings,
    ScheduleTime,
)


def log_cosh(error: Tensor, label: Tensor, delta: float) -> Tensor:
    """δ² ln cosh(e / δ): e²/2 for small errors, δ|e| for large ones, and smooth everywhere."""
    scaled = error / delta
    # ln cosh x = |x| + ln(1 + exp(−2|x|)) − ln 2, which does not overflow
    magnitude = scaled.abs()
    return delta**2 * (
        magnitude + torch.log1p(torch.exp(-2 * magnitude)) - torch.log(torch.tensor(2.0))
    )


def inverse_root(settings: ScheduleSettings, time: ScheduleTime) -> float:
    """1 / √(1 + t): a closed form of the time, so that a resumed run is where an
    unbroken one would be.
    """
    return (1.0 + time.now - time.start) ** -0.5


def momentum(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Gradient descent with momentum; --beta1 is the momentum."""
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.beta1)


class Lines:
    """A logger: one line for each record, in a file beside the checkpoint."""

    def __init__(self, run: LoggedRun) -> None:
        self.run = run

    def _add(self, text: str) -> None:
        # the folder is asked for each time: somebody may move it
        with (self.run.folder / "lines.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def train(self, record: TrainRecord) -> None:
        """Errors of the training steps of an epoch."""
        self._add(f"train {record.epoch} {record.metrics.loss:.6g}")

    def validation(self, record: ValidationRecord) -> None:
        """Errors of a validation."""
        self._add(f"valid {record.epoch} {record.metrics.loss:.6g}")

    def final(self, record: FinalRecord) -> None:
        """Errors of the best model."""
        self._add(f"final {' '.join(record.rows)}")

    def close(self) -> None:
        """Nothing is open between two lines."""


SHAPES["log_cosh"] = Shape(of=log_cosh, text="log_cosh({})")
SCHEDULES["inverse_root"] = ScheduleKind(factor=inverse_root)
OPTIMIZERS["momentum"] = momentum
LOGGERS["lines"] = LoggerKind(opened=Lines, writes="lines.txt", what="a line for each record")
