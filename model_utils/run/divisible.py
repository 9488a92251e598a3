"""Whether a batch may be computed in parts: the loss of a plug-in need not be
a sum over structures.
"""

import torch
from torch import Tensor

from dataloader.batch import Label
from dataloader.quantities import QUANTITIES
from losses import Loss, error_sums


def is_a_sum(loss: Loss) -> bool:
    """Whether the loss of four made-up structures, and its gradient, are the sums
    of those of two and two.

    A step in parts, a division where memory runs out, and batches that are accumulated all take it
    for that; a total that is not linear in the sums, as a root or a logarithm, is not.
    """
    draw = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    prediction: dict[str, Tensor] = {}
    labels: dict[str, Label] = {}
    n_rows = {
        q.name: [int(size) if q.per_atom else 1 for size in sizes] for q in QUANTITIES.values()
    }
    for name, quantity in QUANTITIES.items():
        shape = (sum(n_rows[name]), *quantity.components)
        prediction[name] = torch.randn(shape, dtype=torch.float64, generator=draw).requires_grad_(
            True
        )
        ones = torch.ones(shape[0], dtype=torch.float64)
        labels[name] = Label(
            torch.randn(shape, dtype=torch.float64, generator=draw), ones > 0, ones
        )
    rows = {name: sum(counts) for name, counts in n_rows.items()}

    def value_and_gradients(begin: int, end: int) -> Tensor:
        cut = {
            name: slice(sum(counts[:begin]), sum(counts[:end])) for name, counts in n_rows.items()
        }
        of_part = {
            name: Label(*(value[cut[name]] for value in label)) for name, label in labels.items()
        }
        predicted = {name: value[cut[name]] for name, value in prediction.items()}
        value = loss.total(
            error_sums(predicted, of_part, sizes[begin:end], loss, sizes[begin:end] ** 2), rows
        )
        gradients = torch.autograd.grad(value, list(prediction.values()), materialize_grads=True)
        return torch.cat(
            [value.detach().reshape(1), *(gradient.reshape(-1) for gradient in gradients)]
        )

    whole = value_and_gradients(0, 4)
    parts = value_and_gradients(0, 2) + value_and_gradients(2, 4)
    return bool(torch.allclose(whole, parts, rtol=1e-9, atol=1e-12 * float(whole.abs().max())))
