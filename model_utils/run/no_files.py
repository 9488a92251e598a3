"""What becomes of a run while it lasts, and how it is in those of its processes that write nothing."""

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from losses import Loss, Metrics
from model_utils.models.network import Network, Parameters
from model_utils.ranks.group import Group
from model_utils.run.evaluation import Evaluator
from model_utils.run.fit import FinalRecord, Hooks
from model_utils.run.interruption import Interruption
from model_utils.run.open_data import TrainingData
from model_utils.run.replicas import require_equal_state
from model_utils.run.train_state import TrainState


class Files(Protocol):
    """What becomes of a run while it lasts."""

    def hooks(self, network: Network, validate: Evaluator) -> Hooks:
        """The loop's hooks."""
        ...

    def final(self, record: FinalRecord) -> None:
        """The table at the end."""
        ...

    def close(self) -> None:
        """Close the records.

        Raises:
            NotWritten: records could not be written.
        """
        ...

    def close_loggers(self) -> None:
        """Close the loggers, however the run ended."""
        ...


class NoFiles:
    """The files of a run as one of its other processes has them: the first writes, and this one waits where it must.

    Args:
        data: for names of structures.
        stop: is asked between batches.
        group: the processes of the run.
    """

    def __init__(self, data: TrainingData, stop: Interruption, group: Group) -> None:
        self.data = data
        self.stop = stop
        self.group = group

    def hooks(self, network: Network, validate: Evaluator) -> Hooks:
        """The loop's hooks, which write nothing."""

        def measure(parameters: Parameters, loss: Loss) -> tuple[Metrics, Mapping[str, Metrics]]:
            return validate(network, parameters, loss)

        return Hooks(
            alike=partial(require_equal_state, self.group),
            validate=measure,
            on_step=_nothing,
            on_train=_nothing,
            on_validation=_nothing,
            on_best=_nothing,
            on_stage=_nothing,
            save=_is_saved,
            save_last=self.wait_for_last,
            rescue=_nothing,
            watch=self.stop.watch,
            meet=self.group.raise_if_asked,
            names=self.data.train.names,
        )

    def wait_for_last(self, state: TrainState, reason: str) -> None:
        """Wait until the first process has written the checkpoint."""
        self.stop.is_met()
        self.group.once(_nothing)

    def final(self, record: FinalRecord) -> None:
        """Nothing: the first process prints and writes the table."""

    def close(self) -> None:
        """Nothing is open."""

    def close_loggers(self) -> None:
        """There are none."""


def _nothing(*_: object) -> None: ...


def _is_saved(state: TrainState, reason: str) -> bool:
    """The first process saves, and tries again where it cannot."""
    return True
