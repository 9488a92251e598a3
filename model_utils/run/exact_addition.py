"""The parts of an optimizer step, computed by any number of processes, added to the same bits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dataloader.batch import Batch, Rows
from dataloader.batching import Budget
from dataloader.dividing import halves
from losses import Loss, sum_names
from model_utils.ranks.exact_sum import add_rounded, largest_entries, rounders
from model_utils.ranks.group import Group
from model_utils.run.step import StepResult, added


@dataclass(frozen=True, kw_only=True)
class ExactAddition:
    """Adds the parts of one step over all processes without rounding: neither their order
    nor their owner matters.

    Attributes:
        group: the processes.
        n_parts: of the step, over all processes; some may hold no structure.
        numbers: which of them each of the batches here is.
        labelled: gives the labelled rows of the whole step, known without reading it.
        budget: what a device computes at once; a part that exceeds it is computed in pieces.
        device: of the network.
    """

    group: Group
    n_parts: int
    numbers: Sequence[int]
    labelled: Callable[[], Rows]
    budget: Budget
    device: torch.device

    def rows(self, batches: Sequence[Batch]) -> Rows:
        """Labelled rows of the whole step, also of what other processes compute."""
        return self.labelled()

    def pieces(self, batch: Batch) -> list[Batch]:
        """A part in halves, and so on, down to what the budget of atoms and edges admits."""
        fits = self.budget.admits(0, batch.n_atoms, batch.n_edges)
        if fits or batch.n_structures == 1:
            return [batch]
        first, second = halves(batch)
        return [*self.pieces(first), *self.pieces(second)]

    def total(
        self, parts: Iterable[Iterable[StepResult]], like: Sequence[Tensor], loss: Loss, rows: Rows
    ) -> StepResult:
        """Gradients on a grid of their own each, the sums of errors part by part in their order.

        One reduction of float64 numbers, and a small one before it for the grids.
        """
        results = [reduce(added, pieces) for pieces in parts]
        largest = largest_entries([result.gradients for result in results], self.device)
        # no part is here: in the last step of an epoch, with fewer structures than parts
        if not len(largest):
            largest = torch.zeros(len(like), dtype=torch.float64, device=self.device)
        constants = rounders(self.group.largest(largest), self.n_parts)
        sizes = [tensor.numel() for tensor in like]
        width = len(sum_names())
        whole = self.group.zeros(sum(sizes) + self.n_parts * width, self.device)
        *flat, sums_of_parts = whole.split([*sizes, self.n_parts * width])
        gradients = [values.view_as(tensor) for values, tensor in zip(flat, like, strict=True)]
        for result in results:
            add_rounded(gradients, result.gradients, constants)
        by_part = sums_of_parts.view(self.n_parts, width)
        for number, result in zip(self.numbers, results, strict=True):
            by_part[number] = result.sums
        self.group.add_up(whole)
        sums = by_part.sum(dim=0)
        return StepResult(
            loss=loss.total(sums, rows),
            gradients=[
                gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, like, strict=True)
            ],
            sums=sums,
        )
