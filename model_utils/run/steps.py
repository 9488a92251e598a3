"""The optimizer steps of any epoch: which structures each has, which of them are computed
here, how they are added.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.batch import Batch
from dataloader.batching import PlannedBatches
from dataloader.dealing import cost_of, deal
from dataloader.loader import EpochBatches
from model_utils.ranks.group import Group
from model_utils.run.exact_addition import ExactAddition
from model_utils.run.step import IN_TURN, Addition

Indices = NDArray[np.int64]
LOOKED_AT = 50  # steps of an epoch: the balance is known to a percent then


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step.

    Attributes:
        members: numbers of the structures of the whole step, over all processes.
        n_batches: micro-batches that this process computes.
        batches: makes the numbers of the structures of each of them.
        addition: how they, and those of other processes, are added.
    """

    members: Indices
    n_batches: int
    batches: Callable[[], Sequence[Indices]]
    addition: Addition = IN_TURN


class Steps(Protocol):
    """The training data as optimizer steps."""

    def of_epoch(self, epoch: int) -> Sequence[Step]:
        """All steps of an epoch, the same list in every process."""
        ...

    def batches(self, steps: Sequence[Step]) -> Iterator[Batch]:
        """What this process computes of some steps, one micro-batch after the other."""
        ...

    def largest_part(self, batch: Indices) -> Indices:
        """The most that is computed at once where a step is one batch."""
        ...


class StepsInTurn:
    """Steps of several batches each, computed here one after the other.

    Args:
        epochs: the batches of any epoch.
        accumulate: batches of a step; the last step of an epoch may have fewer.
    """

    def __init__(self, epochs: EpochBatches, accumulate: int = 1) -> None:
        self._epochs = epochs
        self._accumulate = accumulate

    def of_epoch(self, epoch: int) -> Sequence[Step]:
        """The steps of an epoch."""
        return _EpochSteps(self._epochs.plan(epoch), self._accumulate, self._step)

    def _step(self, batches: Sequence[Indices]) -> Step:
        return Step(
            members=np.concatenate(batches), n_batches=len(batches), batches=lambda: batches
        )

    def batches(self, steps: Sequence[Step]) -> Iterator[Batch]:
        """Their batches."""
        return self._epochs.batches(_PlanOfSteps(steps))

    def largest_part(self, batch: Indices) -> Indices:
        """All of it."""
        return batch


@dataclass(frozen=True, kw_only=True)
class DealtStepsOfEpoch:
    """How steps are dealt.

    Attributes:
        sizes: (n_steps, n_parts), structures of each part.
        costs: (n_steps, n_parts), what each costs, in edges.
        largest: what the costliest structure of the data costs.
    """

    sizes: NDArray[np.int64]
    costs: NDArray[np.float64]
    largest: float

    def of_processes(self, values: NDArray[Any], n_processes: int) -> NDArray[Any]:
        """Sums over the parts of each process, (n_steps, n_processes), as
        `Group.mine` shares them.
        """
        return values.reshape(len(values), -1, n_processes).sum(axis=1)

    def balance(self, n_processes: int) -> float:
        """Mean over largest cost of the processes, over the steps: the share of
        time in which none waits.
        """
        costs = self.of_processes(self.costs, n_processes)
        return float(costs.mean(axis=1).sum() / costs.max(axis=1).sum())


class DealtSteps:
    """Steps whose structures are dealt to parts of equal cost; this process
    computes its share of them.

    Args:
        epochs: the batches of any epoch.
        accumulate: batches of a step.
        n_parts: of a step, over all processes.
        group: the processes; their number divides ``n_parts``.
        device: of the network.
    """

    def __init__(
        self,
        epochs: EpochBatches,
        accumulate: int,
        n_parts: int,
        group: Group,
        device: torch.device,
    ) -> None:
        dataset = epochs.dataset
        self.n_parts = n_parts
        self._epochs = epochs
        self._accumulate = accumulate
        self._group = group
        self._device = device
        self._cost = cost_of(dataset.n_edges, dataset.n_atoms)

    def of_epoch(self, epoch: int) -> Sequence[Step]:
        """The steps of an epoch."""
        return _EpochSteps(self._epochs.plan(epoch), self._accumulate, self._step)

    def _step(self, batches: Sequence[Indices]) -> Step:
        members = np.concatenate(batches)
        own = self._group.mine(range(self.n_parts))
        # the first parts where there are too few
        filled = [number for number in own if number < len(members)]

        def dealt() -> list[Indices]:
            parts = deal(self._cost[members], self.n_parts)
            return [members[parts[number]] for number in filled]

        addition = ExactAddition(
            group=self._group,
            n_parts=self.n_parts,
            numbers=filled,
            labelled=lambda: self._epochs.dataset.labelled_rows(members),
            budget=self._epochs.budget,
            device=self._device,
        )
        return Step(members=members, n_batches=len(filled), batches=dealt, addition=addition)

    def batches(self, steps: Sequence[Step]) -> Iterator[Batch]:
        """The parts that this process computes."""
        return self._epochs.batches(_PlanOfSteps(steps))

    def dealt(self, n_looked_at: int = LOOKED_AT) -> "DealtStepsOfEpoch":
        """Some steps of the first epoch, spread over it, as they are dealt:
        for what is said of them.
        """
        steps = self.of_epoch(0)
        chosen = np.unique(np.linspace(0, len(steps) - 1, min(n_looked_at, len(steps))).astype(int))
        sizes = np.zeros((len(chosen), self.n_parts), dtype=np.int64)
        costs = np.zeros((len(chosen), self.n_parts))
        for row, number in enumerate(chosen.tolist()):
            cost = self._cost[steps[number].members]
            for column, part in enumerate(deal(cost, self.n_parts)):
                sizes[row, column] = len(part)
                costs[row, column] = cost[part].sum()
        return DealtStepsOfEpoch(sizes=sizes, costs=costs, largest=float(self._cost.max()))

    def largest_part(self, batch: Indices) -> Indices:
        """The costliest part of those that fill a device as the batches of the plan do."""
        cost = self._cost[batch]
        parts = deal(cost, max(self.n_parts // self._accumulate, 1))
        return batch[max(parts, key=lambda part: float(cost[part].sum()))]


class _EpochSteps(Sequence[Step]):
    """The steps of a plan, each made when it is asked for."""

    def __init__(
        self, plan: PlannedBatches, size: int, make: Callable[[Sequence[Indices]], Step]
    ) -> None:
        self._plan = plan
        self._size = size
        self._make = make

    def __len__(self) -> int:
        return -(-len(self._plan) // self._size)

    @overload
    def __getitem__(self, i: int) -> Step: ...
    @overload
    def __getitem__(self, i: slice) -> list[Step]: ...
    def __getitem__(self, i: int | slice) -> Step | list[Step]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        begin = range(len(self))[i] * self._size
        return self._make(self._plan[begin : begin + self._size])


class _PlanOfSteps(Sequence[Indices]):
    """The micro-batches of some steps one after the other; the structures of a step are
    dealt when they are read.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._ends = np.cumsum([0, *(step.n_batches for step in steps)])
        self._known: tuple[int, Sequence[Indices]] = (-1, ())

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, i: int) -> Indices: ...
    @overload
    def __getitem__(self, i: slice) -> "Sequence[Indices]": ...
    def __getitem__(self, i: int | slice) -> "Indices | Sequence[Indices]":
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        place = range(len(self))[i]
        number = int(np.searchsorted(self._ends, place, side="right")) - 1
        if self._known[0] != number:
            self._known = (number, self._steps[number].batches())
        return self._known[1][place - int(self._ends[number])]
