"""Programs of a network's layers by name, each written once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model_utils.models.fast.compiler import BuildError
from model_utils.models.fast.geometry import odd
from model_utils.models.fast.triton import pairs
from model_utils.models.fast.triton.contraction import ContractionTexts
from model_utils.models.fast.triton.convolution import ConvolutionTexts
from model_utils.models.fast.triton.program import Program
from model_utils.models.fast.triton.segments import SegmentTexts
from model_utils.models.fast.triton.threads import MOST_LANES

if TYPE_CHECKING:
    from model_utils.models.fast.contraction import Contraction
    from model_utils.models.fast.convolution import Convolution
    from model_utils.models.fast.plan import Interaction, Plan
    from model_utils.models.fast.radial import Radial

Programs = Mapping[str, Program]
PRECISIONS = {torch.float32: "fp32", torch.float64: "fp64"}


class Catalogue:
    """What was written so far."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, dict[str, Program]]] = {}

    def of_network(self, plan: "Plan", weights: Mapping[str, Tensor]) -> list[Program]:
        """Every kernel that a network asks for, in its parameters' precision.

        Raises:
            BuildError: it has more channels than a program takes.
        """
        dtype = next(iter(weights.values())).dtype
        families = [
            self.directions((plan.max_ell + 1) ** 2, dtype),
            *self._of_radial(plan.radial, dtype),
        ]
        for interaction in plan.interactions:
            families += self._of_layer(interaction, weights, dtype)
            families += self._of_pair_networks(plan.radial, interaction, dtype)
        families += [
            self.silu(r.silu_gain, dtype) for r in plan.readouts if r.silu_gain is not None
        ]
        return list(
            {program.key: program for family in families for program in family.values()}.values()
        )

    def _of_radial(self, radial: "Radial", dtype: torch.dtype) -> Iterator[Programs]:
        """The basis, where a kernel computes it."""
        if radial.is_bessel:
            n_basis = len(radial.module.bessel_fn.bessel_weights)
            r_max = radial.constant("cutoff_fn.r_max")
            yield self.bessel(
                n_basis, (radial.power, r_max, radial.constant("bessel_fn.prefactor")), dtype
            )

    def _of_layer(
        self, interaction: "Interaction", weights: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Iterator[Programs]:
        """What one interaction asks for."""
        last = interaction.last
        shape = weights[last.name].shape
        n_radial = shape[0] if last.bias is None else shape[1] + 1  # a column of ones, for the bias
        for width in (n_radial, interaction.couplings.n_channels, interaction.product.n_channels):
            if width > MOST_LANES:
                raise BuildError(
                    f"a layer is {width} numbers wide, and a program takes {MOST_LANES}"
                )
        if interaction.first is None:
            # a gated layer's edges have weights of their own
            directed = interaction.gated is not None
            yield self.convolution(interaction.couplings, dtype, directed=directed)
        else:
            yield self.segments(odd(interaction.first.max_ell), n_radial, dtype)
        yield self.contraction(interaction.product, dtype)
        if interaction.gated is not None:
            yield self.silu(interaction.gated.scalar_gain, dtype)

    def _of_pair_networks(
        self, radial: "Radial", interaction: "Interaction", dtype: torch.dtype
    ) -> Iterator[Programs]:
        """Activations of an interaction's networks of pairs, with their slopes where
        ``LayeredKernels`` takes the layers.
        """
        of_pairs = interaction.gated is None and radial.is_bessel
        for layers, last in (
            (interaction.hidden, interaction.last),
            (interaction.density[:-1], None),
        ):
            alone = all(layer.bias is None and layer.norm is None for layer in layers)
            appended = last is not None and last.bias is not None
            family = self.slopes if of_pairs and alone and not appended else self.silu
            yield from (family(layer.gain, dtype) for layer in layers)

    def convolution(
        self, convolution: "Convolution", dtype: torch.dtype, *, directed: bool
    ) -> Programs:
        """Kernels of one convolution over pairs, or over edges that have arrays of their own."""
        key = ("convolution", id(convolution), dtype, directed)
        texts = ConvolutionTexts
        return self._written(
            key,
            convolution,
            lambda: texts(convolution, PRECISIONS[dtype]).programs(directed=directed),
        )

    def contraction(self, contraction: "Contraction", dtype: torch.dtype) -> Programs:
        """Kernels of one symmetric contraction."""
        key = ("contraction", id(contraction), dtype)
        texts = ContractionTexts
        return self._written(
            key, contraction, lambda: texts(contraction, PRECISIONS[dtype]).programs()
        )

    def segments(self, odd: Sequence[bool], n_radial: int, dtype: torch.dtype) -> Programs:
        """Kernels of a first layer with so many radial features."""
        key = ("segments", tuple(odd), n_radial, dtype)
        return self._written(
            key, None, lambda: SegmentTexts(odd, n_radial, PRECISIONS[dtype]).programs()
        )

    def directions(self, n_harmonics: int, dtype: torch.dtype) -> Programs:
        """Kernels of the pairs' lengths and harmonics."""
        max_ell = isqrt(n_harmonics) - 1
        key = ("directions", max_ell, dtype)
        return self._written(
            key, None, lambda: pairs.DirectionTexts(max_ell, PRECISIONS[dtype]).programs()
        )

    def bessel(
        self, n_basis: int, constants: tuple[int, float, float], dtype: torch.dtype
    ) -> Programs:
        """The kernel of a Bessel basis: power of its cutoff, r_max (Å), prefactor."""
        key = ("bessel", n_basis, constants, dtype)
        return self._written(
            key, None, lambda: [pairs.bessel(n_basis, constants, PRECISIONS[dtype])]
        )

    def silu(self, gain: float, dtype: torch.dtype) -> Programs:
        """Kernels of the derivatives of silu times a gain."""
        return self._written(
            ("silu", gain, dtype), None, lambda: list(pairs.silu(gain, PRECISIONS[dtype]))
        )

    def slopes(self, gain: float, dtype: torch.dtype) -> Programs:
        """Kernels of silu times a gain with its slope."""
        return self._written(
            ("slopes", gain, dtype), None, lambda: list(pairs.silu_slopes(gain, PRECISIONS[dtype]))
        )

    def _written(self, key: Any, layer: Any, texts: Callable[[], list[Program]]) -> Programs:
        """Programs by name; the layer that they are of is kept with them, so
        that no other has its id.
        """
        if key not in self._made:
            self._made[key] = (layer, {program.name: program for program in texts()})
        return self._made[key][1]
