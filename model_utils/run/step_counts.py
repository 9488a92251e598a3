"""How many optimizer steps the epochs of a run have, before they are taken."""

import math
from dataclasses import dataclass
from functools import cached_property

from dataloader.loader import EpochBatches
from model_utils.settings.options import TrainingOptions

LOOKED_AT = 10_000_000  # structures whose batches are counted: some seconds


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run is, or a part of it; 0 or below where nothing is left."""

    steps: int
    epochs: float  # the last one may be a part of one
    least: int  # steps that it surely has: not all epochs may be counted


class StepCounts:
    """The optimizer steps of any epoch.

    Where batches have a budget of atoms or edges, epochs have different numbers of steps. They are
    counted one by one: a million structures take 0.1 s to 0.6 s, 2.5 s where every second one is a
    batch of its own. So only the first epochs are counted, of ``LOOKED_AT`` structures in all. Any
    later one is taken to have the most of these and the square root of that beside, which is more
    than it has: batches are about equally full. A schedule then ends a little above its lowest
    rate, and no step is taken at rate 0.

    Args:
        batches: of any epoch.
        accumulate: batches of a step.
    """

    def __init__(self, batches: EpochBatches, accumulate: int) -> None:
        self._batches = batches
        self._accumulate = accumulate
        budget = batches.budget
        self.differ = budget.atoms is not None or budget.edges is not None
        self._n_counted = max(LOOKED_AT // max(batches.structures_per_epoch, 1), 1)

    def of(self, epoch: int) -> int:
        """Steps of an epoch."""
        if not self.differ:
            return self._counted(0)
        if epoch < self._n_counted:
            return self._counted(epoch)
        return self._at_most

    @cached_property
    def _at_most(self) -> int:
        most = max(self._counted(epoch) for epoch in range(self._n_counted))
        return most + math.isqrt(most)

    @cached_property
    def _at_least(self) -> int:
        fewest = min(self._counted(epoch) for epoch in range(self._n_counted))
        return max(fewest - math.isqrt(fewest), 1)

    def _counted(self, epoch: int) -> int:
        return math.ceil(self._batches.n_batches(epoch) / self._accumulate)

    def between(self, begin: int, end: int, most: int | None = None) -> Length:
        """From the beginning of an epoch to that of another one.

        Args:
            begin: epochs before it.
            end: epochs before the other one.
            most: steps after which it is over in any case.
        """
        if not self.differ:
            per_epoch = self.of(0)
            steps = (end - begin) * per_epoch
            steps = steps if most is None else min(steps, most)
            return Length(steps=steps, epochs=steps / per_epoch, least=steps)
        steps = 0
        least = 0
        for epoch in range(begin, end):
            in_epoch = self.of(epoch)
            least += in_epoch if epoch < self._n_counted else self._at_least
            if most is not None and steps + in_epoch >= most:
                part = (most - steps) / in_epoch
                return Length(steps=most, epochs=epoch - begin + part, least=min(least, most))
            steps += in_epoch
        return Length(steps=steps, epochs=float(end - begin), least=least)


def step_counts(options: TrainingOptions, batches: EpochBatches) -> StepCounts:
    """The steps of every epoch of a run with these options."""
    return StepCounts(batches, options.optimizer.accumulate_batches)


def length_of_run(options: TrainingOptions, batches: EpochBatches) -> Length:
    """How long a whole run is, from its first step to its last."""
    run = options.run
    return step_counts(options, batches).between(0, run.epochs, run.max_steps)
