"""The convolution over neighbours: mace's one-particle basis A before its linear map.

For every path p = (l1, l2) → l3 and every receiver i,

    A_p[m3, i, c] = Σ_{j → i} w_p[ij, c] Σ_{m1, m2} C_p[m1, m2, m3] h[m1, j, c] Y[m2, ij],

with C_p the Clebsch-Gordan coefficients times e3nn's path normalisation, w the path weights of
the pair ij and Y its spherical harmonics with the sign (−1)^l2 where the edge runs against the
pair's vector. A *pair* is two atoms within the cutoff, stored once with one vector; its two
*edges* are j → i and i → j. A *row* holds the edges of one receiver, a *segment* those of a row
whose senders are of one element; a table of either is padded to one width, and its places are
*slots*, some of them empty.

A is linear in h, Y and w each, so with Φ(h, Y, w, G) = Σ G A, where G has the shape of A, its
derivatives are sums of the same form:
    VJP:  h̄ = ∂Φ/∂h,  Ȳ = ∂Φ/∂Y,  w̄ = ∂Φ/∂w;
    VJP of the VJP:
          the derivatives by h, Y, w and G of Φ(a_h, Y, w, G) + Φ(h, a_Y, w, G) + Φ(h, Y, a_w, G)
          for the adjoints a_h, a_Y, a_w of h̄, Ȳ, w̄; that by G is
          A(a_h, Y, w) + A(h, a_Y, w) + A(h, Y, a_w).

The kernels go through each receiver's row of edges and make an edge's coupling matrices M_p[m1, m3]
= Σ C Y once for all channels; what an edge then computes stays in registers. The rows are cut into
chunks, which the batch decides and not the number of threads: each chunk adds its h̄ into an array
of its own, and the arrays are added in order, so results are reproducible. The two edges of a pair
add their w̄ and Ȳ in a fixed order, for the same reason.
"""

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import Backend, backend_of
from model_utils.models.fast.gather import gather
from model_utils.models.fast.geometry import odd
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.needed import needed
from model_utils.models.mace_import import o3


@dataclass(frozen=True, kw_only=True)
class CouplingPath:
    """One coupling of a sender's order l1 with an order l2 of the spherical harmonics to l3."""

    l1: int
    l2: int
    l3: int
    place: int  # among the paths that end in l3
    coefficients: Tensor  # (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), float64
    kept: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    def table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The coefficients as (m2, m1 m3), kept on the device: copying them
        would make a GPU wait.
        """
        key = (device, dtype)
        if key not in self.kept:
            self.kept[key] = self.coefficients.transpose(0, 1).flatten(1).to(device, dtype)
        return self.kept[key]


@dataclass(frozen=True)
class Convolution:
    """The paths of one interaction, in the order of its path weights."""

    paths: tuple[CouplingPath, ...]
    n_channels: int
    max_ell: int
    kept: dict[str, Any] = field(default_factory=dict, repr=False)  # what a backend made of it

    @classmethod
    def of(cls, tensor_product: Any, max_ell: int) -> "Convolution":
        """The paths of e3nn's TensorProduct."""
        tp = tensor_product
        orders = [
            [ir.l for _, ir in irreps] for irreps in (tp.irreps_in1, tp.irreps_in2, tp.irreps_out)
        ]
        paths = []
        seen = [0] * (max_ell + 1)
        for i in tp.instructions:
            l1 = orders[0][i.i_in1]
            l2 = orders[1][i.i_in2]
            l3 = orders[2][i.i_out]
            coefficients = o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * i.path_weight
            paths.append(
                CouplingPath(l1=l1, l2=l2, l3=l3, place=seen[l3], coefficients=coefficients)
            )
            seen[l3] += 1
        return cls(tuple(paths), tp.irreps_in1[0].mul, max_ell)

    def keep_on(self, like: Tensor) -> None:
        """Make the tables of plain torch for tensors of a device and precision,
        before a step needs them.
        """
        odd_on(self.max_ell, like.device)
        for path in self.paths:
            path.table(like.device, like.dtype)

    @property
    def odd(self) -> list[bool]:
        """For every column of the spherical harmonics: whether it changes sign with the vector."""
        return odd(self.max_ell)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Channels of every order of the output: those of all paths that end in it."""
        ends = [p.l3 for p in self.paths]
        return tuple(ends.count(order) * self.n_channels for order in range(self.max_ell + 1))

    def __call__(self, graph: BatchGraph, h: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        """The one-particle basis A of a batch, in blocks.

        Args:
            graph: index lists of the batch: which edges a receiver has, and
                of which pairs they are.
            h: (components of l1, n_atoms, n_channels).
            harmonics: (n_pairs, (max_ell + 1)²).
            weights: (n_pairs, n_paths · n_channels).

        Returns:
            Flat blocks; block l is ((2l + 1), n_atoms, its paths, n_channels).
        """
        backend = backend_of(h)
        if backend is None:
            return self.by_torch(graph, h, harmonics, weights)
        inputs = (h.contiguous(), harmonics.contiguous(), weights.contiguous())
        return _Convolve.apply(*inputs, graph, self, backend)

    def by_torch(self, graph: BatchGraph, h: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        """A in plain torch: rows padded to one length, one batched product
        per path over (edge, m1).
        """
        slots = graph.rows
        n_atoms = graph.n_atoms
        n_channels = self.n_channels
        width = slots.width
        # split once: a slice per path would have its gradient padded with zeros to the whole,
        # and added, for each path
        h_slots = gather(h.transpose(0, 1).contiguous(), slots.of_sender)
        h_by_order = h_slots.split(_components(max(p.l1 for p in self.paths)), dim=1)
        by_pair = weights.view(graph.n_pairs, len(self.paths), n_channels)
        w_by_path = gather(by_pair, slots.of_pair).unbind(1)
        y_by_order = signed_harmonics(graph, harmonics, self.max_ell).split(
            _components(self.max_ell), dim=-1
        )
        blocks: list[list[Tensor]] = [[] for _ in self.widths]
        for path, w in zip(self.paths, w_by_path, strict=True):
            d1, d2, d3 = path.coefficients.shape
            coupled = y_by_order[path.l2].reshape(-1, d2) @ path.table(h.device, h.dtype)
            left = coupled.view(n_atoms, width * d1, d3).transpose(1, 2)
            right = (h_by_order[path.l1] * w.unsqueeze(1)).view(n_atoms, width * d1, n_channels)
            blocks[path.l3].append(torch.bmm(left, right))
        return torch.cat(
            [torch.stack(block, dim=2).transpose(0, 1).reshape(-1) for block in blocks]
        )


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        y: Tensor,
        w: Tensor,
        graph: BatchGraph,
        convolution: Convolution,
        backend: Backend,
    ) -> Tensor:
        ctx.save_for_backward(h, y, w)
        ctx.rest = graph, convolution, backend
        components = sum((2 * order + 1) * width for order, width in enumerate(convolution.widths))
        out = h.new_empty(components * graph.n_atoms)
        backend.convolve(graph, convolution, (h, y, w), (out,))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        derivatives = _ConvolveVjp.apply(
            *ctx.saved_tensors, g.contiguous(), *ctx.rest, needed(ctx, 1)
        )
        return *derivatives, None, None, None


class _ConvolveVjp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        y: Tensor,
        w: Tensor,
        g: Tensor,
        graph: BatchGraph,
        convolution: Convolution,
        backend: Backend,
        by_y: bool,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(h, y, w, g)
        ctx.set_materialize_grads(False)
        ctx.rest = graph, convolution, backend
        gh = torch.empty_like(h)
        gy = torch.empty_like(y) if by_y else None
        gw = torch.empty_like(w)
        backend.convolve_vjp(graph, convolution, (h, y, w, g), (gh, gy, gw))
        return gh, gy, gw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *adjoints: Tensor | None) -> tuple[Tensor | None, ...]:
        h, y, w, g = ctx.saved_tensors
        graph, convolution, backend = ctx.rest
        ah, ay, aw = (
            torch.zeros_like(t) if a is None else a.contiguous()
            for a, t in zip(adjoints, (h, y, w), strict=True)
        )
        dh = torch.empty_like(h)
        dy = torch.empty_like(y) if needed(ctx, 1) else None
        dw = torch.empty_like(w)
        dg = torch.empty_like(g)
        backend.convolve_vjp_vjp(graph, convolution, (h, y, w, g, ah, ay, aw), (dh, dy, dw, dg))
        return dh, dy, dw, dg, None, None, None, None


def signed_harmonics(
    graph: BatchGraph, harmonics: Tensor, max_ell: int, *, segments: bool = False
) -> Tensor:
    """Spherical harmonics of directed edges in slots, zero in empty ones.

    Args:
        graph: index lists of the batch: which edges a receiver has, and of which pairs they are.
        harmonics: of pairs, (n_pairs, (max_ell + 1)²).
        max_ell: highest order.
        segments: give the edges of each segment, not those of each row.

    Returns:
        (n_rows, width, (max_ell + 1)²).
    """
    slots = graph.segments if segments else graph.rows
    sign = slots.sign.unsqueeze(-1)
    of_slots = torch.where(odd_on(max_ell, harmonics.device), sign, sign.abs()).to(harmonics.dtype)
    return gather(harmonics, slots.of_pair).view(*slots.sign.shape, -1) * of_slots


def signs(flipped: Tensor, max_ell: int, dtype: torch.dtype) -> Tensor:
    """By which harmonics of pairs become those of their directed edges,
    (n_edges, (max_ell + 1)²).
    """
    return torch.where(odd_on(max_ell, flipped.device), 1 - 2 * flipped.unsqueeze(-1), 1).to(dtype)


def _components(highest: int) -> list[int]:
    """Components of every order up to the highest."""
    return [2 * order + 1 for order in range(highest + 1)]


@cache
def odd_on(max_ell: int, device: torch.device) -> Tensor:
    """Which columns of the spherical harmonics change sign with the vector, kept on the device."""
    return torch.tensor(odd(max_ell), device=device)
