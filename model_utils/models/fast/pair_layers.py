"""Networks of pairs with their slopes, layer by layer, where a backend has no kernel for
all of them: products of matrices by a library, and one kernel for each activation.

R and R′ (``pair_network``) lie one below the other, (2 n_pairs, width), so that one product maps
both; and so do the gradients by them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model_utils.models.fast.backends import (
    PairKernels,
    SlopeKernels,
    fused_kernels_of,
    slope_kernels_of,
)
from model_utils.models.fast.pair_network import HiddenLayer
from model_utils.models.fast.products import product
from model_utils.models.fast.radial import Basis, Radial


def pair_kernels_of(lengths: Tensor, radial: Radial) -> PairKernels | None:
    """What computes such radial functions of such lengths together with their slopes."""
    fused = fused_kernels_of(lengths)
    slopes = slope_kernels_of(lengths)
    if fused is not None or slopes is None or not radial.is_bessel:
        return fused
    return LayeredKernels(slopes)


class LayeredKernels:
    """Pair networks without biases, norms and offsets by a backend's kernels for
    slopes.
    """

    takes_edges = False

    def __init__(self, kernels: SlopeKernels) -> None:
        self.kernels = kernels

    def takes_layers(
        self, layers: Sequence[HiddenLayer], offset: Tensor | None, appended: bool
    ) -> bool:
        """Whether the layers are activations of products alone."""
        alone = all(layer.bias is None and layer.norm is None for layer in layers)
        return alone and offset is None and not appended

    def radial_basis(
        self, radial: Radial, lengths: Tensor, numbers: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Radial functions (n_pairs, n_basis) and their slopes at lengths (n_pairs, 1), Å."""
        return radial.bessel_slopes(lengths, self.kernels)

    def pair_network(
        self, layers: Sequence[HiddenLayer], basis: Basis, offset: Tensor | None, appended: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R and R′, (n_pairs, width) each, and what every activation got."""
        x = basis.stacked
        kept = x.new_empty(len(x) * sum(layer.weight.shape[1] for layer in layers))
        for layer, z in zip(layers, _of_layers(kept, layers, len(x)), strict=True):
            product(x, layer.weight, z, layer.scale)
            x = torch.empty_like(z)
            self.kernels.silu_jvp(layer.gain, z, x)
        value, slope = x.chunk(2)
        return value, slope, kept

    def pair_network_vjp(
        self,
        layers: Sequence[HiddenLayer],
        basis: Basis,
        given: tuple[Tensor, Tensor | None, Tensor | None],
        by_offset: Tensor | None,
    ) -> list[Tensor]:
        """The gradients by the weights from (what was kept, R̄, gradient by R′)."""
        kept, g, dg = given
        x = basis.stacked
        reached = _of_layers(kept, layers, len(x))
        by_output = _stacked(g, dg)
        by_weight: list[Tensor] = []  # from the last layer to the first
        above: Tensor | None = None  # the gradient by what the next layer's activation gets
        for number in reversed(range(len(layers))):
            layer = layers[number]
            by_input = torch.empty_like(reached[number])
            # what the next layer reads is computed again, which costs less than to keep it
            again = None if above is None else torch.empty_like(by_input)
            self.kernels.silu_jvp_vjp(layer.gain, (reached[number], by_output), (by_input, again))
            if above is not None and again is not None:
                by_weight.append(product(again.t(), above, scale=layers[number + 1].scale))
            if number:
                by_output = product(by_input, layer.weight.t(), scale=layer.scale)
            above = by_input
        assert above is not None
        by_weight.append(product(x.t(), above, scale=layers[0].scale))
        return by_weight[::-1]


def _of_layers(kept: Tensor, layers: Sequence[HiddenLayer], n_rows: int) -> list[Tensor]:
    """What was kept, (n_rows, width of the layer) for each of them."""
    widths = [layer.weight.shape[1] for layer in layers]
    parts = kept.split([n_rows * width for width in widths])
    return [part.view(n_rows, width) for part, width in zip(parts, widths, strict=True)]


def _stacked(g: Tensor | None, dg: Tensor | None) -> Tensor:
    """Gradients by value and by slope, one below the other; zeros for one that there is not."""
    other = g if dg is None else dg
    assert other is not None
    return torch.cat([torch.zeros_like(other) if t is None else t for t in (g, dg)])
