"""Spherical harmonics and lengths of the pairs' vectors."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import Backend, backend_of
from model_utils.models.fast.gather import adds_in_one_order, sums_of_rows
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.needed import needed


def pair_vectors(graph: BatchGraph, positions: Tensor, shifts: Tensor) -> Tensor:
    """Vectors of the pairs, (n_pairs, 3), Å: from sender to receiver, across cells.

    Args:
        graph: orders of the batch.
        positions: (n_atoms, 3), Å, in the batch's order.
        shifts: (n_edges, 3), Å.
    """
    if adds_in_one_order(positions):
        receivers = positions.index_select(0, graph.pair_receiver)
        differences = receivers - positions.index_select(0, graph.pair_sender)
    else:
        differences = _Differences.apply(positions, graph)
    return differences + shifts.index_select(0, graph.pair_edge)


class _Differences(torch.autograd.Function):
    """d = r(receiver) − r(sender) of every pair; r̄ is a sum over the atom's row, signed by
    the edges' directions.
    """

    @staticmethod
    def forward(ctx: Any, positions: Tensor, graph: BatchGraph) -> Tensor:
        ctx.graph = graph
        return positions.index_select(0, graph.pair_receiver) - positions.index_select(
            0, graph.pair_sender
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _DifferencesVjp.apply(g, ctx.graph), None


class _DifferencesVjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, graph: BatchGraph) -> Tensor:
        ctx.graph = graph
        signs = (1 - 2 * graph.flipped).to(g.dtype)
        by_atom = sums_of_rows(g, graph.pair.long(), graph.row_ptr, signs)
        return by_atom.index_select(0, graph.rank)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None]:
        return _Differences.apply(a, ctx.graph), None


def directions(vectors: Tensor, max_ell: int) -> tuple[Tensor, Tensor]:
    """Lengths (n_pairs, 1), Å, and spherical harmonics (n_pairs, (max_ell + 1)²) of
    vectors (n_pairs, 3), Å.
    """
    backend = backend_of(vectors)
    if backend is None:
        return by_torch(vectors, max_ell)
    return _Directions.apply(vectors.contiguous(), max_ell, backend)


def by_torch(vectors: Tensor, max_ell: int) -> tuple[Tensor, Tensor]:
    """Lengths and harmonics of vectors in plain torch; arguments and results are
    those of ``directions``.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return lengths, spherical_harmonics(vectors, lengths, max_ell)


class _Directions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, max_ell: int, backend: Backend) -> tuple[Tensor, Tensor]:
        lengths = vectors.new_empty(len(vectors), 1)
        harmonics = vectors.new_empty(len(vectors), (max_ell + 1) ** 2)
        backend.directions(vectors, lengths, harmonics)
        ctx.save_for_backward(vectors, lengths)
        ctx.rest = max_ell, backend
        return lengths, harmonics

    @staticmethod
    def backward(ctx: Any, gr: Tensor, gy: Tensor) -> tuple[Tensor | None, None, None]:
        if not needed(ctx, 0):  # the last pass of a training step wants parameters alone
            return None, None, None
        vectors, lengths = ctx.saved_tensors
        return (
            _DirectionsVjp.apply(vectors, lengths, gr.contiguous(), gy.contiguous(), *ctx.rest),
            None,
            None,
        )


class _DirectionsVjp(torch.autograd.Function):
    """By the vectors themselves the second derivative is left to plain torch:
    training does not ask for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        lengths: Tensor,
        gr: Tensor,
        gy: Tensor,
        max_ell: int,
        backend: Backend,
    ) -> Tensor:
        ctx.save_for_backward(vectors, lengths, gr, gy)
        ctx.rest = max_ell, backend
        out = torch.empty_like(vectors)
        backend.directions_vjp((vectors, lengths, gr, gy), out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        vectors, lengths, gr, gy = ctx.saved_tensors
        max_ell, backend = ctx.rest
        dr = torch.empty_like(gr)
        dy = torch.empty_like(gy)
        backend.directions_jvp((vectors, lengths, a.contiguous()), dr, dy)
        dv = None
        if needed(ctx, 0):
            dv = second_derivative(lambda v: by_torch(v, max_ell), vectors, (gr, gy), a)
        return dv, None, dr, dy, None, None


def second_derivative(
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    x: Tensor,
    gradients: tuple[Tensor, ...],
    adjoint: Tensor,
) -> Tensor:
    """The gradient by x of adjoint · x̄, where x̄ is the function's VJP."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        vjp = torch.autograd.grad(function(x), x, gradients, create_graph=True)[0]
        return torch.autograd.grad(vjp, x, adjoint)[0]


def spherical_harmonics(vectors: Tensor, lengths: Tensor, max_ell: int) -> Tensor:
    """Real spherical harmonics of e3nn, "component" normalised (Σ_m Y_lm² = 2l + 1),
    axes in the order x, y, z.

    Args:
        vectors: (n_pairs, 3), Å.
        lengths: (n_pairs, 1), Å.
        max_ell: highest order, up to 4.

    Returns:
        (n_pairs, (max_ell + 1)²), without unit; order l in columns l² to (l + 1)² − 1.
    """
    x, y, z = (vectors / lengths).unbind(1)
    columns = [torch.ones_like(x)]
    columns += [math.sqrt(3.0) * c for c in (x, y, z)]
    if max_ell >= 2:
        x2z2 = x * x + z * z
        y2 = y * y
        order_2 = [
            math.sqrt(3.0) * x * z,
            math.sqrt(3.0) * x * y,
            y2 - 0.5 * x2z2,
            math.sqrt(3.0) * y * z,
            math.sqrt(3.0) / 2.0 * (z * z - x * x),
        ]
        columns += [math.sqrt(5.0) * c for c in order_2]
    if max_ell >= 3:
        order_3 = [
            math.sqrt(5.0 / 6.0) * (order_2[0] * z + order_2[4] * x),
            math.sqrt(5.0) * order_2[0] * y,
            math.sqrt(3.0 / 8.0) * (4.0 * y2 - x2z2) * x,
            0.5 * y * (2.0 * y2 - 3.0 * x2z2),
            math.sqrt(3.0 / 8.0) * z * (4.0 * y2 - x2z2),
            math.sqrt(5.0) * order_2[4] * y,
            math.sqrt(5.0 / 6.0) * (order_2[4] * z - order_2[0] * x),
        ]
        columns += [math.sqrt(7.0) * c for c in order_3]
    if max_ell >= 4:
        columns += [3.0 * c for c in _order_4(x, y, z, order_3)]
    return torch.stack(columns, dim=1)


def _order_4(x: Tensor, y: Tensor, z: Tensor, t: list[Tensor]) -> list[Tensor]:
    """Order 4 from order 3, both without their normalisation."""
    c1, c3, c12, c14, c15, c20, c21, c24, c28, c30 = (
        math.sqrt(n / 32.0) for n in (1, 3, 12, 14, 15, 20, 21, 24, 28, 30)
    )
    return [
        c28 * (t[0] * z + t[6] * x),
        c14 * t[0] * y + c21 * (t[1] * z + t[5] * x),
        c1 * (t[6] * x - t[0] * z) + c24 * t[1] * y + c15 * (t[2] * z + t[4] * x),
        c3 * (t[5] * x - t[1] * z) + c30 * t[2] * y + c20 * t[3] * x,
        t[3] * y - c12 * (t[2] * x + t[4] * z),
        c20 * t[3] * z + c30 * t[4] * y - c3 * (t[1] * x + t[5] * z),
        c15 * (t[4] * z - t[2] * x) + c24 * t[5] * y - c1 * (t[0] * x + t[6] * z),
        c21 * (t[5] * z - t[1] * x) + c14 * t[6] * y,
        c28 * (t[6] * z - t[0] * x),
    ]


def odd(max_ell: int) -> list[bool]:
    """For every column of ``spherical_harmonics``: whether it changes sign with the vector."""
    return [order % 2 == 1 for order in range(max_ell + 1) for _ in range(2 * order + 1)]
