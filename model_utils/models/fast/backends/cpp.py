"""The compiled C++ kernels of CPUs as a backend: its calls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_utils.models.fast import kernels
from model_utils.models.fast.backends import cpp_tables

if TYPE_CHECKING:
    from model_utils.models.fast.contraction import Contraction
    from model_utils.models.fast.convolution import Convolution
    from model_utils.models.fast.graph import BatchGraph
    from model_utils.models.fast.linear import Blocks
    from model_utils.models.fast.pair_network import HiddenLayer
    from model_utils.models.fast.radial import Basis, Radial


class Cpp:
    """Kernels for tensors on the CPU in single or double precision."""

    name = "compiled kernels"

    gives_slopes = False  # it has more: networks of pairs as a whole
    takes_edges = True

    def takes(self, tensor: Tensor) -> bool:
        """Whether the library is there for such tensors; the first call compiles it."""
        return tensor.device.type == "cpu" and kernels.computes(tensor.dtype)

    def multiplies(self, tensor: Tensor) -> bool:
        """Whether products of matrices are taken here: where vectors have 512 bits, of
        which MKL may use 256.

        MKL keeps to 256 on other makers' CPUs and takes twice the time.
        """
        return kernels.vector_bytes(tensor.dtype) == 64

    def convolve(
        self,
        graph: "BatchGraph",
        convolution: "Convolution",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """A from (h, Y, w)."""
        kernels.call(
            "convolve",
            inputs[0].dtype,
            cpp_tables.edges(graph),
            cpp_tables.paths(graph, convolution),
            *inputs,
            *out,
        )

    def convolve_vjp(
        self,
        graph: "BatchGraph",
        convolution: "Convolution",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """(h̄, Ȳ, w̄) from (h, Y, w, G)."""
        kernels.call(
            "convolve_vjp",
            inputs[0].dtype,
            cpp_tables.edges(graph),
            cpp_tables.paths(graph, convolution),
            *inputs,
            *out,
        )

    def convolve_vjp_vjp(
        self,
        graph: "BatchGraph",
        convolution: "Convolution",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """The gradients by (h, Y, w, G) from (h, Y, w, G) and the adjoints of (h̄, Ȳ, w̄)."""
        kernels.call(
            "convolve_vjp_vjp",
            inputs[0].dtype,
            cpp_tables.edges(graph),
            cpp_tables.paths(graph, convolution),
            *inputs,
            *out,
        )

    def contract(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """The contraction y from (x, T)."""
        kernels.call(
            "contract",
            inputs[0].dtype,
            cpp_tables.polynomial(contraction),
            cpp_tables.atoms(graph),
            *inputs,
            *out,
        )

    def contract_vjp(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """(x̄, T̄) from (x, T, ȳ)."""
        kernels.call(
            "contract_vjp",
            inputs[0].dtype,
            cpp_tables.polynomial(contraction),
            cpp_tables.atoms(graph),
            *inputs,
            *out,
        )

    def contract_vjp_vjp(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """The gradients by (x, T, ȳ) from (x, T, ȳ) and the adjoint of x̄."""
        kernels.call(
            "contract_vjp_vjp",
            inputs[0].dtype,
            cpp_tables.polynomial(contraction),
            cpp_tables.atoms(graph),
            *inputs,
            *out,
        )

    def segment_sums(
        self,
        graph: "BatchGraph",
        odd: Sequence[bool],
        inputs: Sequence[Tensor | None],
        out: Sequence[Tensor | None],
    ) -> None:
        """S from (R, Y, None, None), or from (R, Y) and adjoints (aR, aY) S(aR, Y) + S(R, aY)."""
        self._segments("segment_sums", graph, odd, inputs, out)

    def segment_sums_vjp(
        self,
        graph: "BatchGraph",
        odd: Sequence[bool],
        inputs: Sequence[Tensor | None],
        out: Sequence[Tensor | None],
    ) -> None:
        """(R̄, Ȳ) from (R, Y, S̄)."""
        self._segments("segment_sums_vjp", graph, odd, inputs, out)

    def _segments(
        self,
        name: str,
        graph: "BatchGraph",
        odd: Sequence[bool],
        inputs: Sequence[Tensor | None],
        out: Sequence[Tensor | None],
    ) -> None:
        """Call one of the two kernels over segments, whose first inputs are R and Y."""
        radial = inputs[0]
        harmonics = inputs[1]
        assert radial is not None
        assert harmonics is not None
        n_harmonics = harmonics.shape[1]
        n_radial = radial.shape[1]
        kernels.call(
            name,
            radial.dtype,
            cpp_tables.segments(graph, odd),
            n_harmonics,
            n_radial,
            *inputs,
            *out,
        )

    def directions(self, vectors: Tensor, lengths: Tensor, harmonics: Tensor) -> None:
        """Lengths and spherical harmonics of vectors."""
        n_pairs = len(vectors)
        n_harmonics = harmonics.shape[1]
        kernels.call("directions", vectors.dtype, n_pairs, n_harmonics, vectors, lengths, harmonics)

    def directions_vjp(self, inputs: Sequence[Tensor], out: Tensor) -> None:
        """The gradient by vectors from (vectors, lengths, gradients of
        lengths and of harmonics).
        """
        n_pairs = len(inputs[0])
        n_harmonics = inputs[3].shape[1]
        kernels.call("directions_vjp", inputs[3].dtype, n_pairs, n_harmonics, *inputs, out)

    def directions_jvp(self, inputs: Sequence[Tensor], lengths: Tensor, harmonics: Tensor) -> None:
        """Changes of lengths and harmonics from (vectors, lengths, change of vectors)."""
        n_pairs = len(inputs[0])
        n_harmonics = harmonics.shape[1]
        sizes = (n_pairs, n_harmonics)
        kernels.call("directions_jvp", harmonics.dtype, *sizes, *inputs, lengths, harmonics)

    def map_blocks(
        self,
        graph: "BatchGraph",
        blocks: "Blocks",
        factor: float,
        inputs: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """y from (x, flat weight), in blocks."""
        kernels.call(
            "map_blocks", out.dtype, cpp_tables.block_map(graph, blocks, factor), *inputs, out
        )

    def map_blocks_by_input(
        self,
        graph: "BatchGraph",
        blocks: "Blocks",
        factor: float,
        inputs: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """x̄ from (ȳ, flat weight); blocks that go nowhere are left as they are."""
        kernels.call(
            "map_blocks_by_input",
            out.dtype,
            cpp_tables.block_map(graph, blocks, factor),
            *inputs,
            out,
        )

    def map_blocks_by_weight(
        self,
        graph: "BatchGraph",
        blocks: "Blocks",
        factor: float,
        inputs: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """The gradient by the flat weight from (x, ȳ)."""
        kernels.call(
            "map_blocks_by_weight",
            out.dtype,
            cpp_tables.block_map(graph, blocks, factor),
            *inputs,
            out,
        )

    def takes_layers(
        self, layers: Sequence["HiddenLayer"], offset: Tensor | None, appended: bool
    ) -> bool:
        """All that there are."""
        return True

    def radial_basis(
        self, radial: "Radial", lengths: Tensor, numbers: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Functions (n, n_basis) and slopes; then cutoff (n, 1) and its slope, where it
        does not multiply them.
        """
        table = cpp_tables.basis(radial)
        centres = radial.numbers(lengths.dtype)
        scale = radial.reduced_by(numbers).to(lengths.dtype) if radial.agnesi else None
        n = len(lengths)
        value = lengths.new_empty(n, len(centres))
        out = [value, torch.empty_like(value)]
        if not radial.cutoff_on_basis:
            out += [torch.empty_like(lengths), torch.empty_like(lengths)]
        pointers = (*out, None, None)[:4]
        kernels.call("radial_basis", lengths.dtype, table, n, lengths, scale, centres, *pointers)
        return tuple(out)

    def pair_network(
        self, layers: Sequence["HiddenLayer"], basis: "Basis", offset: Tensor | None, appended: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R, R′ and what the reverse pass wants again."""
        n = len(basis.value)
        out = basis.value.new_empty(n, layers[-1].weight.shape[1] + appended)
        slope = torch.empty_like(out)
        kept = out.new_empty(3 * n * sum(layer.weight.shape[1] for layer in layers))
        table, _ = cpp_tables.pair_network(layers, appended)
        inputs = (basis.value, basis.slope, offset, basis.cutoff, basis.cutoff_slope)
        kernels.call("pair_network", out.dtype, table, n, *inputs, kept, out, slope)
        return out, slope, kept

    def pair_network_vjp(
        self,
        layers: Sequence["HiddenLayer"],
        basis: "Basis",
        given: tuple[Tensor, Tensor | None, Tensor | None],
        by_offset: Tensor | None,
    ) -> list[Tensor]:
        """The gradients by all tensors of the layers from (kept, R̄, gradient by R′);
        fills that by the offset.
        """
        kept, g, dg = given
        appended = next(x.shape[1] for x in (g, dg) if x is not None) > layers[-1].weight.shape[1]
        tensors = [t for layer in layers for t in layer.tensors]
        flat = kept.new_empty(sum(t.numel() for t in tensors))
        table, _ = cpp_tables.pair_network(layers, appended)
        inputs = (basis.value, basis.slope, basis.cutoff, basis.cutoff_slope, kept, g, dg)
        kernels.call(
            "pair_network_vjp", kept.dtype, table, len(basis.value), *inputs, flat, by_offset
        )
        parts = flat.split([t.numel() for t in tensors])
        return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]

    def silu_vjp(self, gain: float, inputs: Sequence[Tensor], out: Tensor) -> None:
        """z̄ from (z, logistic function of z, ȳ)."""
        kernels.call("silu_vjp", out.dtype, out.numel(), gain, *inputs, out)

    def silu_vjp_vjp(self, gain: float, inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """The gradients by z and ȳ from (z, logistic function of z, ȳ, adjoint of z̄)."""
        kernels.call("silu_vjp_vjp", out[0].dtype, out[0].numel(), gain, *inputs, *out)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """A product of matrices of any strides into contiguous rows."""
        kernels.multiply(a, b, out)
