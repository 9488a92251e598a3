"""Linear maps of features by compiled kernels: all orders, and all elements, in one call.

The formulas are those of ``linear``, whose maps of all atoms and maps per element are one thing
here: y_l[m, i] = scale · x_l[m, i] W_l, with W_l of the atom's element or of all. With a and A the
adjoints of x̄ and W̄,

    x̄ = ȳ Wᵀ,   W̄ = xᵀ ȳ;      Δȳ = a W + x A,   Δx = ȳ Aᵀ,   ΔW = aᵀ ȳ.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import FusedKernels
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.linear import Blocks
from model_utils.models.fast.needed import needed


def mapped(
    kernels: FusedKernels,
    graph: BatchGraph,
    x: Tensor,
    weight: Tensor,
    blocks: Blocks,
    factor: float = 1.0,
) -> Tensor:
    """y_l = factor · x_l W_l for every order, with the matrix of each atom's element
    where there is one of each.

    Args:
        kernels: of the backend.
        graph: orders of the batch.
        x: features in blocks, of any shape.
        weight: mace's flat weight.
        blocks: which part of it belongs to which order.
        factor: a constant.

    Returns:
        Flat blocks of the output.
    """
    return _Map.apply(x.contiguous(), weight.contiguous(), _Call(kernels, graph, blocks, factor))


class _Call:
    """What of a map is no tensor, with the kernels' three products."""

    def __init__(
        self, kernels: FusedKernels, graph: BatchGraph, blocks: Blocks, factor: float
    ) -> None:
        self.kernels = kernels
        self.graph = graph
        self.blocks = blocks
        self.factor = factor

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """y = x W."""
        y = x.new_empty(self.blocks.n_out(self.graph.n_atoms))
        self.kernels.map_blocks(self.graph, self.blocks, self.factor, (x, weight), y)
        return y

    def by_input(self, g: Tensor, weight: Tensor, like: Tensor) -> Tensor:
        """ȳ Wᵀ; an order of the input that goes nowhere has no part, and no gradient."""
        is_whole = len(self.blocks.parts) == len(self.blocks.widths)
        out = torch.empty_like(like) if is_whole else torch.zeros_like(like)
        self.kernels.map_blocks_by_input(self.graph, self.blocks, self.factor, (g, weight), out)
        return out

    def by_weight(self, x: Tensor, g: Tensor, like: Tensor) -> Tensor:
        """xᵀ ȳ."""
        out = torch.empty_like(like)
        self.kernels.map_blocks_by_weight(self.graph, self.blocks, self.factor, (x, g), out)
        return out


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, call: _Call) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.call = call
        return call.forward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dw = _MapVjp.apply(x, weight, g.contiguous(), ctx.call, needed(ctx, 0), needed(ctx, 1))
        return dx, dw, None


class _MapVjp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, g: Tensor, call: _Call, by_x: bool, by_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(x, weight, g)
        ctx.set_materialize_grads(False)
        ctx.call = call
        dx = call.by_input(g, weight, x) if by_x else None
        return dx, call.by_weight(x, g, weight) if by_weight else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor | None, aw: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, g = ctx.saved_tensors
        call: _Call = ctx.call
        dx = None
        dw = None
        dg = torch.zeros_like(g) if a is None else call.forward(a.contiguous(), weight)
        if a is not None:
            dw = call.by_weight(a.contiguous(), g, weight)
        if aw is not None:
            dg = dg + call.forward(x, aw.contiguous())
            dx = call.by_input(g, aw.contiguous(), x)
        return dx, dw, dg, None, None, None
