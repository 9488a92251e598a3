"""Networks of pairs: path weights before their last matrix, and densities, as
functions of a distance.

Everything of a pair but its direction is a function of one number, its length r, so the value R(r)
and its slope R′(r) are computed together, layer by layer: with z = x W + b and f = gain · silu,

    y = f(z),    y′ = f′(z) z′,    z′ = x′ W,

and where a LayerNorm comes before f, its derivative along z′. Forces then need r̄ = Σ R̄ R′ alone,
and a training step one reverse pass through both: from R̄ and the gradient by R′ to those by all
weights. A row need not be a pair: where elements are inputs too (``gated``) it is a directed edge,
with an ``offset`` added to the first layer's z.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model_utils.models.fast.backends import PairKernels
from model_utils.models.fast.geometry import second_derivative
from model_utils.models.fast.linear import silu
from model_utils.models.fast.needed import needed
from model_utils.models.fast.products import matmul
from model_utils.models.fast.radial import Basis, along


@dataclass(frozen=True, kw_only=True)
class HiddenLayer:
    """x ← gain · silu(norm(scale · x W + b))."""

    weight: Tensor  # (n_in, n_out), of any strides
    bias: Tensor | None  # (n_out,)
    norm: tuple[Tensor, Tensor] | None  # weight and bias of a LayerNorm, (n_out,) each
    scale: float
    gain: float

    @property
    def tensors(self) -> list[Tensor]:
        """The layer's parameters, in the order in which kernels give their gradients."""
        return [t for t in (self.weight, self.bias, *(self.norm or ())) if t is not None]


def by_torch(x: Tensor, layers: Sequence[HiddenLayer], offset: Tensor | None) -> Tensor:
    """The layers in plain torch.

    Args:
        x: radial features, (n, n_basis).
        layers: of the network, without its last matrix.
        offset: added to what the first activation gets, (n, width of the first layer).

    Returns:
        (n, width of the last layer).
    """
    for number, layer in enumerate(layers):
        z = matmul(x, layer.weight if layer.scale == 1.0 else layer.weight * layer.scale)
        z = z if layer.bias is None else z + layer.bias
        z = z if offset is None or number else z + offset
        z = z if layer.norm is None else nn.functional.layer_norm(z, z.shape[1:], *layer.norm)
        x = silu(z, layer.gain)
    return x


def by_kernels(
    kernels: PairKernels,
    basis: Basis,
    layers: Sequence[HiddenLayer],
    offset: Tensor | None,
    appended: bool,
) -> Tensor:
    """The layers by compiled kernels, as a function of lengths and weights that can
    be differentiated twice.

    Args:
        kernels: of the backend.
        basis: radial functions; where it has a cutoff, the result is multiplied by it.
        layers: of the network, without its last matrix.
        offset: added to what the first activation gets, (n, width of the first layer).
        appended: add a column of ones.

    Returns:
        (n, width of the last layer), or one column more.
    """
    network = _Network(kernels, basis, tuple(layers), offset is not None, appended)
    tensors = [t for layer in layers for t in layer.tensors]
    extra = [] if offset is None else [offset]
    value, slope = _PairNetwork.apply(basis.lengths, *extra, *tensors, network)
    return along(value, slope, basis.lengths)


@dataclass(frozen=True)
class _Network:
    """What of a network is no tensor to differentiate by."""

    kernels: PairKernels
    basis: Basis
    layers: tuple[HiddenLayer, ...]
    with_offset: bool
    appended: bool

    def as_torch(self, lengths: Tensor, offset: Tensor | None) -> Tensor:
        """R at other lengths, in plain torch."""
        features, cutoff = self.basis.at(lengths)
        x = by_torch(features, self.layers, offset)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if self.appended else x
        return x if cutoff is None else x * cutoff


class _PairNetwork(torch.autograd.Function):
    """R and R′ of weights; that R changes with the length by R′ is said by ``along``,
    which stands behind it.
    """

    @staticmethod
    def forward(ctx: Any, lengths: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        network: _Network = rest[-1]
        offset = rest[0].contiguous() if network.with_offset else None
        value, slope, kept = network.kernels.pair_network(
            network.layers, network.basis, offset, network.appended
        )
        ctx.save_for_backward(lengths, *rest[: 1 if network.with_offset else 0], kept)
        ctx.network = network
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dg: Tensor | None) -> tuple[Tensor | None, ...]:
        n_tensors = len(ctx.needs_input_grad) - 1
        wanted = [needed(ctx, position) for position in range(n_tensors)]
        if not any(wanted[1:]) and (dg is None or not wanted[0]):
            return (None,) * (n_tensors + 1)  # forces: the network's part of them is ``along``'s
        return *_reverse(ctx, g, dg, wanted), None


@once_differentiable
def _reverse(
    ctx: Any, g: Tensor | None, dg: Tensor | None, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients by lengths, offset and weights from those by R and R′."""
    lengths, *offsets, kept = ctx.saved_tensors
    network: _Network = ctx.network
    offset = offsets[0] if offsets else None
    by_length = None
    # second derivatives by positions, which training does not ask for
    if wanted[0] and dg is not None:
        by_length = second_derivative(
            lambda r: network.as_torch(r, offset), lengths, (dg,), torch.ones_like(lengths)
        )
    if not any(wanted[1:]):
        return by_length, *(None for _ in wanted[1:])
    g = None if g is None else g.contiguous()
    dg = None if dg is None else dg.contiguous()
    by_offset = None if offset is None else torch.empty_like(offset)
    gradients = network.kernels.pair_network_vjp(
        network.layers, network.basis, (kept, g, dg), by_offset
    )
    return by_length, *([by_offset] if offsets else []), *gradients
