"""The first interaction, whose senders differ by their element only.

There h[j, c] = h_z[c] for all atoms j of element z, the only paths are 0 ⊗ l → l, and the path
weights are the last radial features R times a matrix, w_l[ij, c] = Σ_k R[ij, k] W_l[k, c]. Hence

    Σ_{j → i} w_l[ij, c] h[j, c] Y[lm, ij]  =  Σ_z h_z[c] Σ_k W_l[k, c] S[lm, (i, z), k],
    S[lm, (i, z), k] = Σ_{j → i, j of element z} Y[lm, ij] R[ij, k]:

no array of edges × channels is ever made, and W_l, h_z and the linear map behind them are one small
matrix per element and order.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import Backend, backend_of, fused_kernels_of
from model_utils.models.fast.convolution import odd_on, signed_harmonics
from model_utils.models.fast.frozen_weights import OfWeights, made_anew
from model_utils.models.fast.gather import adds_in_one_order, collect, gather
from model_utils.models.fast.geometry import odd
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.linear import Blocks, Part, rows_of_elements
from model_utils.models.fast.maps import mapped
from model_utils.models.fast.needed import needed
from model_utils.models.fast.products import matmul

# how much more its products of matrices may cost, for the convolution that it
# saves; measured on an EPYC
SAVED = 1.2


@dataclass(frozen=True)
class FirstLayer:
    """Normalisations of the paths 0 ⊗ l → l: of the path, whose coupling is δ/√(2l + 1)."""

    scales: tuple[float, ...]  # per l
    kept: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, tensor_product: Any) -> "FirstLayer":
        """From e3nn's TensorProduct of the first interaction, whose path l ends in order l."""
        instructions = tensor_product.instructions
        return cls(
            tuple(i.path_weight / (2 * order + 1) ** 0.5 for order, i in enumerate(instructions))
        )

    @property
    def max_ell(self) -> int:
        """Highest order."""
        return len(self.scales) - 1

    def keep_on(self, like: Tensor, down: Blocks, factor: float) -> None:
        """Make the tables for tensors of a device and precision, before a step needs them."""
        odd_on(self.max_ell, like.device)
        self.scaled(down, factor, like)

    def __call__(
        self,
        graph: BatchGraph,
        radial: Tensor,
        harmonics: Tensor,
        path_matrix: Tensor,
        h: Tensor,
        down: tuple[Tensor, Blocks, float],
        of_weights: OfWeights = made_anew,
    ) -> Tensor:
        """Messages behind their linear map.

        Args:
            graph: orders of the batch.
            radial: (n_pairs, n_radial), the last radial features R.
            harmonics: (n_pairs, (max_ell + 1)²).
            path_matrix: (n_radial, (max_ell + 1) · n_channels), W_l side by side.
            h: (n_present, n_channels).
            down: the linear map: flat weight, where in it each order's matrix lies, and a factor.
            of_weights: what keeps products of frozen weights.

        Returns:
            Flat blocks; block l is ((2l + 1), n_atoms, width of l).
        """
        sums = self.segment_sums(graph, radial, harmonics)
        weight, blocks, factor = down
        scales = self.scaled(blocks, factor, h)
        paths = (
            path_matrix.view(radial.shape[1], len(self.scales), h.shape[1]).transpose(0, 1) * scales
        )
        flat = weight.split([part.size for part in blocks.parts])
        maps = [w.view(part.n_in, part.n_out) for w, part in zip(flat, blocks.parts, strict=True)]
        if graph.dense_segments:
            folded = of_weights(f"{blocks.name} folded", lambda: _folded(paths, h, maps))
            return self.dense(graph, sums, folded)
        orders = []
        for order, s_l in enumerate(sums.split([2 * order + 1 for order in range(len(maps))])):
            by_segment = matmul(s_l.reshape(-1, s_l.shape[2]), paths[order]).view(
                2 * order + 1, -1, h.shape[1]
            )
            by_segment = by_segment * rows_of_elements(h, graph.segment_species)
            x = _summed_by_atom(graph, by_segment).view(-1, h.shape[1])
            orders.append(matmul(x, maps[order]).view(-1))
        return torch.cat(orders)

    def pays(self, graph: BatchGraph, n_radial: int, down: Blocks) -> bool:
        """Whether this takes less than path weights and a convolution, by the products
        of matrices of either.

        Few neighbours of many elements leave most of S empty, and it is one matrix per atom
        and element all the same.
        """
        components = len(self.scales) ** 2
        n_channels = down.parts[0].n_in
        width = sum((2 * p.order + 1) * p.n_out for p in down.parts) / components
        own = graph.n_segments * components * n_radial * width
        path_weights = graph.n_pairs * n_radial * len(self.scales) * n_channels
        other = path_weights + graph.n_atoms * components * n_channels * width
        return own < SAVED * other

    def dense(self, graph: BatchGraph, sums: Tensor, folded: list[Tensor]) -> Tensor:
        """Messages in flat blocks where every atom has a segment of every element: one
        matrix per order behind S.
        """
        n_in = folded[0].shape[0]
        kernels = fused_kernels_of(sums)
        if kernels is not None:
            blocks = _blocks_of(tuple((n_in, w.shape[1]) for w in folded))
            return mapped(kernels, graph, sums, torch.cat([w.view(-1) for w in folded]), blocks)
        by_order = sums.split([2 * order + 1 for order in range(len(folded))])
        return torch.cat(
            [matmul(s.reshape(-1, n_in), w).view(-1) for s, w in zip(by_order, folded, strict=True)]
        )

    def scaled(self, blocks: Blocks, factor: float, like: Tensor) -> Tensor:
        """Normalisations of paths and of the linear map, (orders, 1, 1)."""
        key = (factor, like.device, like.dtype)
        if key not in self.kept:
            numbers = [
                scale * part.scale * factor
                for scale, part in zip(self.scales, blocks.parts, strict=True)
            ]
            self.kept[key] = torch.tensor(numbers, device=like.device, dtype=like.dtype).view(
                -1, 1, 1
            )
        return self.kept[key]

    def segment_sums(self, graph: BatchGraph, radial: Tensor, harmonics: Tensor) -> Tensor:
        """S, ((max_ell + 1)², n_segments, n_radial)."""
        backend = backend_of(radial)
        if backend is None:
            return self.by_torch(graph, radial, harmonics)
        runs = _Runs(graph, odd(self.max_ell), backend)
        return _SegmentSums.apply(radial.contiguous(), harmonics.contiguous(), runs)

    def by_torch(self, graph: BatchGraph, radial: Tensor, harmonics: Tensor) -> Tensor:
        """S in plain torch: segments padded to one length, one batched product over their edges."""
        slots = graph.segments
        left = signed_harmonics(graph, harmonics, self.max_ell, segments=True)
        right = gather(radial, slots.of_pair).view(*slots.sign.shape, -1)
        return torch.bmm(left.transpose(1, 2), right).transpose(0, 1)


def _folded(paths: Tensor, h: Tensor, maps: list[Tensor]) -> list[Tensor]:
    """Per order W_l, h_z and the linear map as one matrix, (n_present · n_radial, width of l)."""
    # (orders, n_present · n_radial, n_channels)
    by_element = (paths.unsqueeze(1) * h.unsqueeze(1)).flatten(1, 2)
    return [matmul(w_l, map_l) for w_l, map_l in zip(by_element.unbind(), maps, strict=True)]


def _summed_by_atom(graph: BatchGraph, by_segment: Tensor) -> Tensor:
    """Sums over the segments of every atom; (components, n_segments, n_channels) to
    (components, n_atoms, …).
    """
    n_components, _, n_channels = by_segment.shape
    if adds_in_one_order(by_segment):
        summed = by_segment.new_zeros(n_components, graph.n_atoms, n_channels)
        return summed.index_add(1, graph.segment_atom, by_segment)
    by_atom = collect(by_segment.transpose(0, 1).contiguous(), graph.segments_of_atoms)
    return by_atom.transpose(0, 1).contiguous()


@cache
def _blocks_of(shapes: tuple[tuple[int, int], ...]) -> Blocks:
    """The map whose flat weight is matrices of these shapes one after another, one per order."""
    parts = []
    offset = 0
    for order, (n_in, n_out) in enumerate(shapes):
        parts.append(Part(order=order, offset=offset, n_in=n_in, n_out=n_out, scale=1.0))
        offset += n_in * n_out
    return Blocks(name="folded", widths=tuple(part.n_in for part in parts), parts=tuple(parts))


@dataclass(frozen=True)
class _Runs:
    """Segments of a batch and what sums over them."""

    graph: BatchGraph
    odd: list[bool]  # of the spherical harmonics: which change sign with the vector
    backend: Backend


def _sums(
    runs: _Runs, r: Tensor, y: Tensor, ar: Tensor | None = None, ay: Tensor | None = None
) -> Tensor:
    """S of R and Y, or S of (ar, Y) plus S of (R, ay)."""
    out = r.new_empty(y.shape[1], runs.graph.n_segments, r.shape[1])
    runs.backend.segment_sums(runs.graph, runs.odd, (r, y, ar, ay), (out,))
    return out


class _SegmentSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r: Tensor, y: Tensor, runs: _Runs) -> Tensor:
        ctx.save_for_backward(r, y)
        ctx.runs = runs
        return _sums(runs, r, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_SegmentSumsVjp.apply(
            *ctx.saved_tensors, g.contiguous(), ctx.runs, needed(ctx, 1)
        ), None


class _SegmentSumsVjp(torch.autograd.Function):
    """S is bilinear: R̄ = Σ_m Y g, Ȳ = Σ_k R g, and the same sums of adjoints are their VJPs."""

    @staticmethod
    def forward(
        ctx: Any, r: Tensor, y: Tensor, g: Tensor, runs: _Runs, by_y: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(r, y, g)
        ctx.set_materialize_grads(False)
        ctx.runs = runs
        return _vjp(runs, r, y, g, by_y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ar: Tensor | None, ay: Tensor | None) -> tuple[Tensor | None, ...]:
        r, y, g = ctx.saved_tensors
        ar = torch.zeros_like(r) if ar is None else ar.contiguous()
        ay = torch.zeros_like(y) if ay is None else ay.contiguous()
        dr, dy = _vjp(ctx.runs, ar, ay, g, needed(ctx, 1))
        return dr, dy, _sums(ctx.runs, r, y, ar, ay), None, None


def _vjp(runs: _Runs, r: Tensor, y: Tensor, g: Tensor, by_y: bool) -> tuple[Tensor, Tensor | None]:
    gr = torch.empty_like(r)
    gy = torch.empty_like(y) if by_y else None
    runs.backend.segment_sums_vjp(runs.graph, runs.odd, (r, y, g), (gr, gy))
    return gr, gy
