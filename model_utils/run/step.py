"""One optimizer step's gradient: (parameters, batches) → (loss, gradients, sums and counts)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from dataloader.batch import Batch, Rows, added_rows
from losses import Loss, error_sums
from model_utils.models.network import Network, Parameters, predict
from model_utils.run.memory import in_parts, whole


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step computed; tensors stay on the device, nothing here has waited for it."""

    loss: Tensor  # (), float64
    gradients: list[Tensor]  # in the order of the parameters
    sums: Tensor  # in the order of losses.sum_names


class Addition(Protocol):
    """How the micro-batches of an optimizer step are added."""

    def rows(self, batches: Sequence[Batch]) -> Rows:
        """The labelled rows of the whole step, of which the batches may be a part."""
        ...

    def pieces(self, batch: Batch) -> Sequence[Batch]:
        """What of a micro-batch is computed at once."""
        ...

    def total(
        self, parts: Iterable[Iterable[StepResult]], like: Sequence[Tensor], loss: Loss, rows: Rows
    ) -> StepResult:
        """The whole step from what was computed here.

        Args:
            parts: of the batches, in order; each in one or more pieces, which are
                computed as they are taken.
            like: the parameters.
            loss: of the stage.
            rows: labelled rows of the whole step.
        """
        ...


class InTurn:
    """One micro-batch after the other, all in this process."""

    def rows(self, batches: Sequence[Batch]) -> Rows:
        """Labelled rows of the batches, which are the whole step."""
        return added_rows(batch.rows for batch in batches)

    def pieces(self, batch: Batch) -> Sequence[Batch]:
        """All of it, as the budget cut it."""
        return (batch,)

    def total(
        self, parts: Iterable[Iterable[StepResult]], like: Sequence[Tensor], loss: Loss, rows: Rows
    ) -> StepResult:
        """Their sum in working precision, one piece after the other."""
        return reduce(added, chain.from_iterable(parts))


IN_TURN = InTurn()


def loss_and_gradients(
    network: Network,
    parameters: Parameters,
    batches: Sequence[Batch],
    loss: Loss,
    addition: Addition = IN_TURN,
) -> StepResult:
    """Loss of several micro-batches together and its gradient by every parameter.

    The labelled rows behind the means are known before the first backward pass, so any
    division into micro-batches gives the loss of the undivided batch; one that the memory
    does not hold is divided further (``memory.in_parts``). There is no ``.item()``, no branch
    on data and no wait for a GPU.

    Args:
        network: the form of the network.
        parameters: its trainable tensors.
        batches: micro-batches on the network's device.
        loss: weights and shapes of the terms.
        addition: how the micro-batches, of this process and of others, are added.

    Raises:
        TooLarge: a single structure does not fit into the memory.
    """
    rows = addition.rows(batches)
    tensors = list(parameters.values())

    def micro_step(batch: Batch) -> StepResult:
        return _micro_step(network, parameters, tensors, batch, loss, rows)

    pieces = (addition.pieces(batch) for batch in batches)
    compute = in_parts if loss.divisible else whole
    results = (
        chain.from_iterable(compute(micro_step, piece, "step") for piece in own) for own in pieces
    )
    return addition.total(results, tensors, loss, rows)


def added(total: StepResult, part: StepResult) -> StepResult:
    """The sum of two micro-batches."""
    return StepResult(
        loss=total.loss + part.loss,
        gradients=list(torch._foreach_add(total.gradients, part.gradients)),
        sums=total.sums + part.sums,
    )


def _micro_step(
    network: Network,
    parameters: Parameters,
    tensors: list[Tensor],
    batch: Batch,
    loss: Loss,
    rows: Rows,
) -> StepResult:
    wanted = {name for name, count in batch.rows.items() if count > 0 and loss.weight(name) > 0}
    prediction = predict(network, parameters, batch, wanted=wanted, training=True)
    volumes = batch.volumes if loss.needs_volumes else None
    sums = error_sums(prediction, batch.labels, batch.sizes, loss, volumes)
    value = loss.total(sums, rows)
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    filled = [
        torch.zeros_like(p) if g is None else g for g, p in zip(gradients, tensors, strict=True)
    ]
    return StepResult(loss=value.detach(), gradients=filled, sums=sums.detach())
