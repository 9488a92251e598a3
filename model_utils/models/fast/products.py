"""Matrix products, twice differentiable, by a backend where its products are faster than
those of torch's library.

MKL, which torch uses, keeps to 256-bit vectors on other makers' CPUs; with 512-bit ones a product
takes half the time, and an entry is summed in one order whatever the number of threads.
"""

from typing import Any

import torch
from torch import Tensor

from model_utils.models.fast.backends import Backend, backend_of
from model_utils.models.fast.needed import needed


def product(a: Tensor, b: Tensor, out: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """scale · A B of matrices of any strides, not differentiable; ``out`` has contiguous rows."""
    out = a.new_empty(a.shape[0], b.shape[1]) if out is None else out
    backend = _multiplying(a)
    if backend is None:  # what stands in out is not read
        return torch.addmm(out, a, b, beta=0, alpha=scale, out=out)
    backend.multiply(a, b, out)
    return out if scale == 1 else out.mul_(scale)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A B; with C̄ the gradient by it, Ā = C̄ Bᵀ and B̄ = Aᵀ C̄, products again."""
    return a @ b if _multiplying(a) is None else _Matmul.apply(a, b)


def _multiplying(tensor: Tensor) -> Backend | None:
    """The backend whose products are to be taken before torch's."""
    backend = backend_of(tensor)
    return backend if backend is not None and backend.multiplies(tensor) else None


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return product(a, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        return matmul(g, b.t()) if needed(ctx, 0) else None, matmul(a.t(), g) if needed(
            ctx, 1
        ) else None
