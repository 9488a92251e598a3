"""The first interaction, whose senders differ by their element only.

There h[j, c] = h_z[c] for all atoms j of element z, the only paths are 0 ⊗ l → l, and the path weights are the last
radial features R times a matrix, w_l[ij, c] = Σ_k R[ij, k] W_l[k, c]. Hence

    Σ_{j → i} w_l[ij, c] h[j, c] Y[lm, ij]  =  Σ_z h_z[c] Σ_k W_l[k, c] S[lm, (i, z), k],
    S[lm, (i, z), k] = Σ_{j → i, j of element z} Y[lm, ij] R[ij, k]:

no array of edges × channels is ever made, and W_l, h_z and the linear map behind them are one small matrix per element
and order.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import Backend, backend_of
from model_utils.models.fast.convolution import odd_on, signed_harmonics
from model_utils.models.fast.gather import adds_in_one_order, collect, gather
from model_utils.models.fast.geometry import odd
from model_utils.models.fast.graph import BatchGraph
from model_utils.models.fast.linear import rows_of_elements
from model_utils.models.fast.needed import needed
from model_utils.models.fast.products import matmul


@dataclass(frozen=True)
class FirstLayer:
    """Normalisations of the paths 0 ⊗ l → l: of the path, whose coupling is δ/√(2l + 1)."""

    scales: tuple[float, ...]  # per l

    @classmethod
    def of(cls, tensor_product: Any) -> "FirstLayer":
        """From e3nn's TensorProduct of the first interaction, whose path l ends in order l."""
        instructions = tensor_product.instructions
        return cls(tuple(i.path_weight / (2 * order + 1) ** 0.5 for order, i in enumerate(instructions)))

    @property
    def max_ell(self) -> int:
        """Highest order."""
        return len(self.scales) - 1

    def keep_on(self, like: Tensor) -> None:
        """Make the tables of plain torch for tensors of a device and precision, before a step needs them."""
        odd_on(self.max_ell, like.device)

    def __call__(
        self, graph: BatchGraph, radial: Tensor, harmonics: Tensor, path_matrix: Tensor, h: Tensor, maps: list[Tensor]
    ) -> Tensor:
        """Messages behind their linear map.

        Args:
            graph: orders of the batch.
            radial: (n_pairs, n_radial), the last radial features R.
            harmonics: (n_pairs, (max_ell + 1)²).
            path_matrix: (n_radial, (max_ell + 1) · n_channels), W_l side by side.
            h: (n_present, n_channels).
            maps: the linear map of every order, (n_channels, n_channels).

        Returns:
            ((max_ell + 1)², n_atoms, n_channels).
        """
        sums = self.segment_sums(graph, radial, harmonics)
        n_channels = h.shape[1]
        n_atoms = graph.n_atoms
        n_radial = radial.shape[1]
        orders = []
        sums_by_order = sums.split([2 * order + 1 for order in range(len(self.scales))])
        matrices = path_matrix.split(n_channels, dim=1)
        for order, scale in enumerate(self.scales):
            w_l = matrices[order] * scale
            s_l = sums_by_order[order]
            if graph.dense_segments:
                folded = matmul((h[:, None, :] * w_l).view(-1, n_channels), maps[order])
                x = matmul(s_l.reshape(-1, graph.n_present * n_radial), folded)
            else:
                by_segment = matmul(s_l.reshape(-1, n_radial), w_l).view(2 * order + 1, -1, n_channels)
                by_segment = by_segment * rows_of_elements(h, graph.segment_species)
                x = matmul(_summed_by_atom(graph, by_segment).view(-1, n_channels), maps[order])
            orders.append(x.view(2 * order + 1, n_atoms, n_channels))
        return torch.cat(orders)

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


def _summed_by_atom(graph: BatchGraph, by_segment: Tensor) -> Tensor:
    """Sums over the segments of every atom; (components, n_segments, n_channels) to (components, n_atoms, …)."""
    n_components, _, n_channels = by_segment.shape
    if adds_in_one_order(by_segment):
        summed = by_segment.new_zeros(n_components, graph.n_atoms, n_channels)
        return summed.index_add(1, graph.segment_atom, by_segment)
    by_atom = collect(by_segment.transpose(0, 1).contiguous(), graph.segments_of_atoms)
    return by_atom.transpose(0, 1).contiguous()


@dataclass(frozen=True)
class _Runs:
    """Segments of a batch and what sums over them."""

    graph: BatchGraph
    odd: list[bool]  # of the spherical harmonics: which change sign with the vector
    backend: Backend


def _sums(runs: _Runs, r: Tensor, y: Tensor, ar: Tensor | None = None, ay: Tensor | None = None) -> Tensor:
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
        return *_SegmentSumsVjp.apply(*ctx.saved_tensors, g.contiguous(), ctx.runs, needed(ctx, 1)), None


class _SegmentSumsVjp(torch.autograd.Function):
    """S is bilinear: R̄ = Σ_m Y g, Ȳ = Σ_k R g, and the same sums of adjoints are their VJPs."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, y: Tensor, g: Tensor, runs: _Runs, by_y: bool) -> tuple[Tensor, Tensor | None]:
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
