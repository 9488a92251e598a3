"""The one evaluation: validation during training, the table at the end and evaluate.py all come through here."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dataloader.batch import Batch
from losses import Loss, Prediction, error_sums, no_sums
from model_utils.models.network import Network, Parameters, predict
from model_utils.run.memory import in_parts

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
