"""The one evaluation: validation during training, the table at the end and evaluate.py all come through here."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from dataloader.batch import Batch
from dataloader.batching import Budget
from dataloader.dataset import Dataset
from dataloader.loader import Loader, Plan, evaluation_plan
from dataloader.progress import ProgressBar
from losses import Loss, Metrics, Prediction, error_sums, metrics, no_sums
from model_utils.errors import NonFiniteError
from model_utils.models.network import Network, Parameters, predict
from model_utils.run.memory import in_parts, naming

OnBatch = Callable[[Batch, Prediction], None]


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

    Gradients exist only inside the prediction, for the forces; parameters carry none, and every output is detached at
    once. What costs more is computed where a batch has a label for it, or always where asked.

    Args:
        network: the form of the network.
        parameters: the weights to judge, raw or averaged.
        batches: of the data set, each structure once.
        loss: for the loss among the metrics.
        device: of the network.
        on_batch: sees every batch with its prediction, for tables and files.
        everything: compute what costs more for every batch, not only where there is a label of it.

    Returns:
        (n_sums,), float64, on the device; ``losses.metrics`` divides.

    Raises:
        TooLarge: a single structure does not fit into the memory.
    """
    frozen = {name: p.detach() for name, p in parameters.items()}

    def predicted(batch: Batch) -> tuple[Batch, Prediction]:
        wanted = [name for name, count in batch.rows.items() if count > 0 or everything]
        return batch, predict(network, frozen, batch, wanted=wanted, training=False)

    total = no_sums(device)
    for on_host in batches:
        for batch, prediction in in_parts(predicted, on_host.to(device)):
            total += error_sums(prediction, batch.labels, batch.sizes, loss).detach()
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
        self.plans = {name: evaluation_plan(dataset, indices, budget) for name, indices in sources.items()}


class Evaluator:
    """Evaluates one data set again and again.

    Args:
        data: the structures in batches.
        device: of the network.
        watch: is handed every stream of batches, and may break it off.
        what: the work, as progress names it.
        everything: compute what costs more for every batch, not only where there is a label of it.
    """

    def __init__(
        self,
        data: EvaluatedData,
        device: torch.device,
        watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
        *,
        what: str = "evaluation",
        everything: bool = False,
    ) -> None:
        self.data = data
        self.device = device
        self.what = what
        self.watch = watch
        self.everything = everything

    def __call__(
        self, network: Network, parameters: Parameters, loss: Loss, on_batch: OnBatch | None = None
    ) -> tuple[Metrics, dict[str, Metrics]]:
        """Metrics of the whole data set and of each source.

        Raises:
            NonFiniteError: naming the structures of the first batch whose errors are no numbers.
        """
        with ProgressBar(self.what, len(self.data.dataset)) as progress, naming(self.data.dataset.names):

            def watched(plan: Plan) -> Iterator[Batch]:
                for batch in self.watch(self.data.loader.batches(plan)):
                    yield batch
                    progress.update(batch.n_structures)

            def sums_of(plan: Plan) -> Tensor:
                batches = watched(plan)
                return evaluate(network, parameters, batches, loss, self.device, on_batch, everything=self.everything)

            sums = {name: sums_of(plan) for name, plan in self.data.plans.items()}
        total = torch.stack(list(sums.values())).sum(dim=0)
        if not torch.isfinite(total).all():
            raise NonFiniteError(
                f"the errors are not finite for the batch of {self._culprits(network, parameters, loss)}; nothing "
                "of it was saved: look at these structures, at energies, scale and shift in model.json, or lower --lr"
            )
        return metrics(total.tolist(), loss), {name: metrics(s.tolist(), loss) for name, s in sums.items()}

    def _culprits(self, network: Network, parameters: Parameters, loss: Loss) -> str:
        for indices in chain.from_iterable(self.data.plans.values()):
            sums = evaluate(network, parameters, self.data.loader.batches([indices]), loss, self.device)
            if not torch.isfinite(sums).all():
                return self.data.dataset.names(indices.tolist())
        return "all structures together"
