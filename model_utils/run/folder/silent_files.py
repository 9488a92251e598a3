"""What becomes of a run while it lasts, in those of its processes that write nothing."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from dataloader.batch import Batch
from losses import Loss
from model_utils.metrics import Metrics
from model_utils.models.network import Network, Parameters
from model_utils.ranks.group import Group
from model_utils.run.data.open_data import TrainingData
from model_utils.run.evaluation import Evaluator
from model_utils.run.fit import FinalRecord, Hooks, TrainRecord, ValidationRecord
from model_utils.run.fit_plan import Stage
from model_utils.run.interruption import Interruption
from model_utils.run.replicas import require_equal_state
from model_utils.run.train_state import TrainState


class SilentFiles:
    """The loop's hooks where nothing is written: another process of the run writes, and this
    one waits where it must.

    ``run_files.RunFiles`` puts what is written in place of every method.

    Args:
        data: for names of structures.
        stop: is asked between batches.
        group: the processes of the run.
    """

    def __init__(self, data: TrainingData, stop: Interruption, group: Group) -> None:
        self.data = data
        self.stop = stop
        self.group = group

    def hooks(
        self,
        network: Network,
        validate: Evaluator,
        watch: Callable[[Iterator[Batch]], Iterator[Batch]],
    ) -> Hooks:
        """The loop's hooks; ``watch`` is handed the batches of every epoch, and may
        break them off.
        """

        def measure(parameters: Parameters, loss: Loss) -> tuple[Metrics, Mapping[str, Metrics]]:
            return validate(network, parameters, loss)

        return Hooks(
            alike=partial(require_equal_state, self.group),
            validate=measure,
            on_step=self.on_step,
            on_train=self.on_train,
            on_validation=self.on_validation,
            on_best=self.on_best,
            on_judged=self.on_judged,
            on_stage=self.on_stage,
            save=self.save,
            save_last=self.save_last,
            rescue=self.rescue,
            watch=watch,
            meet=self.group.raise_if_asked,
            names=self.data.train.names,
        )

    def on_step(self, state: TrainState, n_steps: int, loss: Loss) -> None:
        """A step of an epoch of ``n_steps`` was made."""

    def on_train(self, record: TrainRecord) -> None:
        """A training line."""

    def on_validation(self, record: ValidationRecord) -> None:
        """A validation line."""

    def on_best(self, state: TrainState, errors: Metrics) -> None:
        """A new best model."""

    def on_judged(self, state: TrainState, errors: Metrics, score: float) -> None:
        """A validation was judged, whether its model is the best or not."""

    def on_stage(self, state: TrainState, stage: Stage) -> None:
        """A stage begins."""

    def save(self, state: TrainState, reason: str) -> bool:
        """The process that writes saves, and tries again where it cannot; whether it
        is saved here: always.
        """
        return True

    def save_last(self, state: TrainState, reason: str) -> None:
        """Wait until the process that writes has written the last checkpoint."""
        self.stop.is_met()
        self.group.once(lambda: None)

    def rescue(self, state: TrainState, reason: str) -> None:
        """Another process ended: the one that writes saves what there is."""

    def final(self, record: FinalRecord) -> None:
        """The table at the end."""

    def close(self) -> None:
        """Close the records.

        Raises:
            NotWritten: records could not be written.
        """

    def close_loggers(self) -> None:
        """Close the loggers, however the run ended."""
