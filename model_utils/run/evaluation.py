"""The one evaluation: validation during training, the table at the end and evaluate.py
all come through here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from dataloader.batch import Batch
from dataloader.batching import Budget
from dataloader.dataset import Dataset
from dataloader.dealing import deal
from dataloader.loader import Loader, Plan, evaluation_plan
from dataloader.progress import ProgressBar
from losses import Loss, Prediction, error_sums, no_sums
from model_utils.errors import NonFiniteError
from model_utils.metrics import Metrics, metrics
from model_utils.models.network import Network, Parameters, predict
from model_utils.ranks.group import ALONE, Group
from model_utils.run.memory import in_parts, naming

OnBatch = Callable[[Batch, Prediction], None]
Watched = Callable[[Plan], Iterator[Batch]]
SumsOf = Callable[[Iterable[Batch], OnBatch | None], Tensor]
BETWEEN_MEETINGS = 4  # batches after which processes ask each other whether to stop


def evaluate(
    network: Network,
    parameters: Parameters,
    batches: Iterable[Batch],
    loss: Loss,
    device: torch.device,
    on_batch: OnBatch | None = None,
    *,
    everything: bool = False,
) -> Tensor:
    """Sums over all labelled entries of all batches (see ``losses.error_sums``).

    Gradients exist only inside the prediction, for the forces; parameters carry none, and
    every output is detached at once. What costs more is computed where a batch has a label
    for it, or always where asked.

    Args:
        network: the form of the network.
        parameters: the weights to judge, raw or averaged.
        batches: of the data set, each structure once.
        loss: for the loss among the metrics.
        device: of the network.
        on_batch: sees every batch with its prediction, for tables and files.
        everything: compute what costs more for every batch, not only where there is a label of it.

    Returns:
        (n_sums,), float64, on the device; ``metrics.metrics`` divides.

    Raises:
        TooLarge: a single structure does not fit into the memory.
    """
    frozen = {name: p.detach() for name, p in parameters.items()}

    def predicted(batch: Batch) -> tuple[Batch, Prediction]:
        wanted = [name for name, count in batch.rows.items() if count > 0 or everything]
        return batch, predict(network, frozen, batch, wanted=wanted, training=False)

    total = no_sums(device)
    for on_host in batches:
        for batch, prediction in in_parts(predicted, on_host.to(device), "evaluation"):
            volumes = batch.volumes if loss.needs_volumes else None
            total += error_sums(prediction, batch.labels, batch.sizes, loss, volumes).detach()
            if on_batch is not None:
                on_batch(batch, prediction)
    return total


class EvaluatedData:
    """A data set and the batches in which it is evaluated; no batch mixes sources.

    Args:
        dataset: the structures.
        budget: limits of a batch.
        loader: makes the batches.
    """

    def __init__(self, dataset: Dataset, budget: Budget, loader: Loader) -> None:
        self.dataset = dataset
        self.loader = loader
        sources = {name: indices for name, indices in dataset.by_source().items() if len(indices)}
        self.plans = {
            name: evaluation_plan(dataset, indices, budget) for name, indices in sources.items()
        }


class Evaluator:
    """Evaluates one data set again and again.

    Args:
        data: the structures in batches.
        device: of the network.
        watch: is handed every stream of batches, and may break it off.
        what: the work, as progress names it.
        everything: compute what costs more for every batch, not only where there is a label of it.
        group: the processes that share the batches; the result is the same for any number of them.
    """

    def __init__(
        self,
        data: EvaluatedData,
        device: torch.device,
        watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
        *,
        what: str = "evaluation",
        everything: bool = False,
        group: Group = ALONE,
    ) -> None:
        self.data = data
        self.device = device
        self.what = what
        self.watch = watch
        self.everything = everything
        self.group = group

    def __call__(
        self, network: Network, parameters: Parameters, loss: Loss, on_batch: OnBatch | None = None
    ) -> tuple[Metrics, dict[str, Metrics]]:
        """Metrics of the whole data set and of each source.

        Args:
            network: the form of the network.
            parameters: the weights to judge.
            loss: for the loss among the metrics.
            on_batch: sees all batches in their order, in the first process alone.

        Raises:
            NonFiniteError: naming the structures of the first batch whose errors are no numbers.
        """
        with (
            ProgressBar(self.what, len(self.data.dataset)) as progress,
            naming(self.data.dataset.names),
        ):

            def watched(plan: Plan) -> Iterator[Batch]:
                for batch in self.watch(self.data.loader.batches(plan)):
                    yield batch
                    progress.update(batch.n_structures)

            def sums_of_batches(batches: Iterable[Batch], on_batch: OnBatch | None) -> Tensor:
                return evaluate(
                    network,
                    parameters,
                    batches,
                    loss,
                    self.device,
                    on_batch,
                    everything=self.everything,
                )

            def sums_of(plan: Plan) -> Tensor:
                if self.group.rank.size == 1:
                    return sums_of_batches(watched(plan), on_batch)
                if on_batch is None:
                    return self._shared(plan, watched, sums_of_batches)
                return self._shared_and_seen(plan, watched, sums_of_batches, on_batch)

            sums = {name: sums_of(plan) for name, plan in self.data.plans.items()}
        total = torch.stack(list(sums.values())).sum(dim=0)
        if not torch.isfinite(total).all():
            raise NonFiniteError(
                "the errors are not finite for the batch of "
                f"{self._culprits(network, parameters, loss)}; nothing of it was saved: look at "
                "these structures, at energies, scale and shift in model.json, or lower --lr"
            )
        return metrics(total.tolist(), loss), {
            name: metrics(s.tolist(), loss) for name, s in sums.items()
        }

    def _shared(self, plan: Plan, watched: Watched, sums_of: SumsOf) -> Tensor:
        """Sums over a plan of which every process computes a part."""
        sizes = np.array(
            [self.data.dataset.n_atoms[indices].sum() for indices in plan], dtype=np.float64
        )
        parts = deal(sizes, self.group.rank.size)
        own = parts[self.group.rank.number].tolist()
        batches = watched([plan[number] for number in own])
        rows = []
        for round_ in range(-(-max(map(len, parts)) // BETWEEN_MEETINGS)):
            for _ in own[round_ * BETWEEN_MEETINGS : (round_ + 1) * BETWEEN_MEETINGS]:
                rows.append(sums_of([next(batches)], None))
            self.group.meet()
        return self._in_order(rows, own, len(plan))

    def _shared_and_seen(
        self, plan: Plan, watched: Watched, sums_of: SumsOf, on_batch: OnBatch
    ) -> Tensor:
        """Sums over a plan; the first process is shown every batch, one of
        each process at a time.
        """
        size = self.group.rank.size
        own = list(range(self.group.rank.number, len(plan), size))
        batches = watched([plan[number] for number in own])
        rows = []
        for round_ in range(-(-len(plan) // size)):
            seen: list[tuple[Batch, Prediction]] = []

            def keep(
                batch: Batch, prediction: Prediction, seen: list[tuple[Batch, Prediction]] = seen
            ) -> None:
                seen.append(
                    (
                        batch.without_edges(),
                        {name: value.cpu() for name, value in prediction.items()},
                    )
                )

            if round_ < len(own):
                rows.append(sums_of([next(batches)], keep))
            for of_process in self.group.gathered(seen):
                for batch, prediction in of_process:
                    on_batch(batch, prediction)
            self.group.meet()
        return self._in_order(rows, own, len(plan))

    def _in_order(self, rows: Sequence[Tensor], numbers: Sequence[int], n: int) -> Tensor:
        """The rows of all processes, added one after the other as a single process adds them."""
        total = no_sums(self.device)
        stacked = torch.stack(list(rows)) if rows else total[None][:0]
        for row in self.group.in_order(stacked, numbers, n):
            total += row
        self.group.raise_if_asked()
        return total

    def _culprits(self, network: Network, parameters: Parameters, loss: Loss) -> str:
        for indices in chain.from_iterable(self.data.plans.values()):
            sums = evaluate(
                network, parameters, self.data.loader.batches([indices]), loss, self.device
            )
            if not torch.isfinite(sums).all():
                return self.data.dataset.names(indices.tolist())
        return "all structures together"
