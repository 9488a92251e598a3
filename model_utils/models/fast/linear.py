"""Linear maps of features, per order l and per element, and the radial network's activation.

Features lie as blocks one after another, block l of shape ((2l + 1) n_atoms, channels of l): every
order is one matrix product: y_l = x_l W_l. The maps are bilinear in input and weight; for y = x W
    VJP:            x̄ = ȳ Wᵀ,              W̄ = xᵀ ȳ
    VJP of the VJP, with a and A the adjoints of x̄ and W̄, and Δ what they add to the gradients
                    by ȳ, x and W:
                    Δȳ = a W + x A,   Δx = ȳ Aᵀ,   ΔW = aᵀ ȳ.
In the code ȳ is g, A is aw, and the gradients by x, W and ȳ are dx, dw and dg.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import backend_of
from model_utils.models.fast.gather import adds_in_one_order, gather, spread, take
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.needed import needed
from model_utils.models.fast.products import product


@dataclass(frozen=True, kw_only=True)
class Part:
    """The map of one order: where its matrix lies in the flat weight, its shape, and
    e3nn's normalisation of it.
    """

    order: int
    offset: int
    n_in: int
    n_out: int
    scale: float
    n_elements: int = 1  # the matrix is (n_in, n_elements, n_out) in a map per element

    @property
    def size(self) -> int:
        """Numbers in the weight."""
        return self.n_in * self.n_elements * self.n_out


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A map of features in blocks: the channels of each order that comes in, the
    maps of those that go out.
    """

    name: str  # of the flat weight
    widths: tuple[int, ...]  # channels of block l of the input
    parts: tuple[Part, ...]  # of ascending order

    def inputs(self, x: Tensor, n_atoms: int) -> list[Tensor]:
        """The block that every part reads of an input, as views ((2l + 1) n_atoms, channels)."""
        rows = [(2 * order + 1) * n_atoms for order in range(len(self.widths))]
        blocks = x.view(-1).split([n * width for n, width in zip(rows, self.widths, strict=True)])
        return [blocks[p.order].view(rows[p.order], p.n_in) for p in self.parts]

    def outputs(self, y: Tensor, n_atoms: int) -> list[Tensor]:
        """The block that every part writes of an output, as views ((2l + 1) n_atoms, channels)."""
        rows = [(2 * p.order + 1) * n_atoms for p in self.parts]
        blocks = y.view(-1).split([n * p.n_out for n, p in zip(rows, self.parts, strict=True)])
        return [
            block.view(n, p.n_out) for block, n, p in zip(blocks, rows, self.parts, strict=True)
        ]

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """The matrix of every part in the flat weight, as views, not normalised."""
        return [
            weight[p.offset : p.offset + p.n_in * p.n_out].view(p.n_in, p.n_out) for p in self.parts
        ]

    def scales(self, factor: float) -> list[float]:
        """What the product with every part's matrix is multiplied by."""
        return [p.scale * factor for p in self.parts]

    def n_out(self, n_atoms: int) -> int:
        """Numbers in the output."""
        return sum((2 * p.order + 1) * n_atoms * p.n_out for p in self.parts)


def linear(x: Tensor, weight: Tensor, blocks: Blocks, n_atoms: int, factor: float = 1.0) -> Tensor:
    """y_l = factor · x_l W_l for every order.

    Args:
        x: features in blocks.
        weight: mace's flat weight.
        blocks: which part of it belongs to which order.
        n_atoms: of the batch.
        factor: a constant.

    Returns:
        Flat blocks of the output.
    """
    return _Linear.apply(x.contiguous(), weight, blocks, n_atoms, factor)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, blocks: Blocks, n_atoms: int, factor: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rest = blocks, n_atoms, factor
        y = x.new_empty(blocks.n_out(n_atoms))
        of_parts = (
            blocks.inputs(x, n_atoms),
            blocks.matrices(weight),
            blocks.outputs(y, n_atoms),
            blocks.scales(factor),
        )
        for x_l, w_l, y_l, scale in zip(*of_parts, strict=True):
            product(x_l, w_l, out=y_l, scale=scale)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dw = _LinearVjp.apply(
            x, weight, g.contiguous(), *ctx.rest, needed(ctx, 0), needed(ctx, 1)
        )
        return dx, dw, None, None, None


class _LinearVjp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        g: Tensor,
        blocks: Blocks,
        n_atoms: int,
        factor: float,
        by_x: bool,
        by_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(x, weight, g)
        ctx.set_materialize_grads(False)
        ctx.rest = blocks, n_atoms, factor
        dx = None
        if by_x:  # an order of the input that goes nowhere has no part, and no gradient
            is_whole = len(blocks.parts) == len(blocks.widths)
            dx = torch.empty_like(x) if is_whole else torch.zeros_like(x)
        dw = torch.empty_like(weight) if by_weight else None
        outputs = blocks.outputs(g, n_atoms)
        scales = blocks.scales(factor)
        if dw is not None:
            of_parts = (blocks.inputs(x, n_atoms), outputs, blocks.matrices(dw), scales)
            for x_l, g_l, dw_l, scale in zip(*of_parts, strict=True):
                product(x_l.t(), g_l, out=dw_l, scale=scale)
        if dx is not None:
            of_parts = (outputs, blocks.matrices(weight), blocks.inputs(dx, n_atoms), scales)
            for g_l, w_l, dx_l, scale in zip(*of_parts, strict=True):
                product(g_l, w_l.t(), out=dx_l, scale=scale)
        return dx, dw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor | None, aw: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, g = ctx.saved_tensors
        blocks, n_atoms, factor = ctx.rest
        dg = torch.zeros_like(g) if a is None else torch.empty_like(g)
        dx = None if aw is None else torch.zeros_like(x)
        dw = None if a is None else torch.empty_like(weight)
        scales = blocks.scales(factor)
        outputs = blocks.outputs(g, n_atoms)
        to_dg = blocks.outputs(dg, n_atoms)
        if a is not None and dw is not None:
            inputs = blocks.inputs(a.contiguous(), n_atoms)
            of_parts = (inputs, outputs, blocks.matrices(weight), to_dg, blocks.matrices(dw))
            for a_l, g_l, w_l, dg_l, dw_l, scale in zip(*of_parts, scales, strict=True):
                product(a_l, w_l, out=dg_l, scale=scale)
                product(a_l.t(), g_l, out=dw_l, scale=scale)
        if aw is not None and dx is not None:
            inputs = blocks.inputs(x, n_atoms)
            of_parts = (inputs, outputs, blocks.matrices(aw), to_dg, blocks.inputs(dx, n_atoms))
            for x_l, g_l, aw_l, dg_l, dx_l, scale in zip(*of_parts, scales, strict=True):
                dg_l.addmm_(x_l, aw_l, alpha=scale)
                product(g_l, aw_l.t(), out=dx_l, scale=scale)
        return dx, dw, dg, None, None, None, None, None


def per_element(x: Tensor, weight: Tensor, blocks: Blocks, graph: BatchGraph) -> Tensor:
    """y_l[m, i] = x_l[m, i] W_l[:, element of i, :] for atoms sorted by element.

    Args:
        x: features in blocks, all orders of equal width.
        weight: mace's flat weight; the matrices of order l are (n_in, n_elements, n_out).
        blocks: which part of it belongs to which order.
        graph: orders of the batch: which elements occur, and where the atoms of each lie.

    Returns:
        (components of the orders that go out, n_atoms, n_out).
    """
    orders = [2 * order + 1 for order in range(len(blocks.widths))]
    features = x.view(sum(orders), graph.n_atoms, blocks.widths[0])
    by_order = spread(features, graph.tiles.slot, graph.tiles.n_slots).split(orders)
    outputs = []
    for part, flat in zip(blocks.parts, weight.split([p.size for p in blocks.parts]), strict=True):
        matrices = (
            flat.view(part.n_in, part.n_elements, part.n_out).index_select(1, graph.present)
            * part.scale
        )
        outputs.append(_by_tiles(by_order[part.order], matrices, graph))
    return take(torch.cat(outputs), graph.tiles.slot)


def _by_tiles(x: Tensor, matrices: Tensor, graph: BatchGraph) -> Tensor:
    """One batched product over all tiles; x (components, n_slots, n_in), matrices
    (n_in, n_present, n_out).
    """
    tiles = graph.tiles
    of_tiles = by_tile(matrices.transpose(0, 1), graph)
    y = x.view(len(x), tiles.n_tiles, tiles.width, x.shape[2]) @ of_tiles
    return y.view(len(x), tiles.n_slots, matrices.shape[2])


def by_tile(of_elements: Tensor, graph: BatchGraph) -> Tensor:
    """What every tile has of its element; (n_present, …) to (n_tiles, …)."""
    tiles = graph.tiles
    if tiles.n_tiles == graph.n_present:  # one for each
        return of_elements
    return gather(of_elements.contiguous(), tiles.of_element)


def rows_of_elements(rows: Tensor, element: Tensor) -> Tensor:
    """rows[element]; rows (n_present, n), element (n,).

    The gradient by a row is a sum over all atoms of its element.

    Where that would be by atomics it is a product with a table of ones and zeros,
    exact in this direction.
    """
    if adds_in_one_order(rows):
        return rows.index_select(0, element)
    is_of = element.unsqueeze(1) == torch.arange(len(rows), device=element.device)
    return is_of.to(rows.dtype) @ rows


def silu(z: Tensor, gain: float) -> Tensor:
    """y = gain · f(z) with f = silu; z̄ = ȳ gain f′(z), and its VJP for the adjoint a: Δȳ = a
    gain f′, Δz = a ȳ gain f″.

    With s the logistic function, f = z s, f′ = s (1 + z (1 − s)), f″ = s (1 − s) (2 + z (1 − 2 s)).
    """
    return _Silu.apply(z, gain)


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, gain: float) -> Tensor:
        s = torch.sigmoid(z)
        ctx.save_for_backward(z, s)
        ctx.gain = gain
        return (z * s).mul_(gain)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _SiluVjp.apply(*ctx.saved_tensors, g.contiguous(), ctx.gain), None


class _SiluVjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, s: Tensor, g: Tensor, gain: float) -> Tensor:
        ctx.save_for_backward(z, s, g)
        ctx.gain = gain
        backend = backend_of(z)
        if backend is None:
            return g * first_slope(z, s).mul_(gain)
        gz = torch.empty_like(z)
        backend.silu_vjp(gain, (z, s, g), gz)
        return gz

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        """s is a function of z, so all of the derivative goes to z."""
        z, s, g = ctx.saved_tensors
        backend = backend_of(z)
        if backend is None:
            scaled = a * ctx.gain
            return scaled * g * second_slope(z, s), None, scaled * first_slope(z, s), None
        dz = torch.empty_like(z)
        dg = torch.empty_like(z)
        backend.silu_vjp_vjp(ctx.gain, (z, s, g, a.contiguous()), (dz, dg))
        return dz, None, dg, None


def first_slope(z: Tensor, s: Tensor) -> Tensor:
    """f′ of silu."""
    return s * (1 + z * (1 - s))


def second_slope(z: Tensor, s: Tensor) -> Tensor:
    """f″ of silu."""
    return s * (1 - s) * (2 + z * (1 - 2 * s))
