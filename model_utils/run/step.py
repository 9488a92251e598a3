"""One optimizer step's gradient: (parameters, batches) → (loss, gradients, sums and counts)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from dataloader.batch import Batch, Rows, added_rows
from losses import Loss, error_sums
from model_utils.models.network import Network, Parameters, predict
from model_utils.run.memory import in_parts


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step computed; tensors stay on the device, nothing here has waited for it."""

    loss: Tensor  # (), float64
    gradients: list[Tensor]  # in the order of the parameters
    sums: Tensor  # in the order of losses.sum_names


def loss_and_gradients(network: Network, parameters: Parameters, batches: Sequence[Batch], loss: Loss) -> StepResult:
    """Loss of several micro-batches together and its gradient by every parameter.

    The labelled rows behind the means are known before the first backward pass, so any division into micro-batches
    gives the loss of the undivided batch; one that the memory does not hold is divided further (``memory.in_parts``).
    There is no ``.item()``, no branch on data and no wait for a GPU.

    Args:
        network: the form of the network.
        parameters: its trainable tensors.
        batches: micro-batches on the network's device.
        loss: weights and shapes of the terms.

    Raises:
        TooLarge: a single structure does not fit into the memory.
    """
    rows = added_rows(batch.rows for batch in batches)
    tensors = list(parameters.values())

    def micro_step(batch: Batch) -> StepResult:
        return _micro_step(network, parameters, tensors, batch, loss, rows)

    return reduce(_added, (result for batch in batches for result in in_parts(micro_step, batch)))


def _added(total: StepResult, part: StepResult) -> StepResult:
    return StepResult(
        loss=total.loss + part.loss,
        gradients=list(torch._foreach_add(total.gradients, part.gradients)),
        sums=total.sums + part.sums,
    )


def _micro_step(
    network: Network, parameters: Parameters, tensors: list[Tensor], batch: Batch, loss: Loss, rows: Rows
) -> StepResult:
    wanted = {name for name, count in batch.rows.items() if count > 0 and loss.weight(name) > 0}
    prediction = predict(network, parameters, batch, wanted=wanted, training=True)
    sums = error_sums(prediction, batch.labels, batch.sizes, loss)
    value = loss.total(sums, rows)
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, tensors, strict=True)]
    return StepResult(loss=value.detach(), gradients=filled, sums=sums.detach())
