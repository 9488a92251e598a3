"""The compiled C++ kernels of CPUs as a backend: its tables of a batch and of a layer, and its calls.

Structures and library are those of ``kernels``. A table holds pointers, so the arrays behind it are kept with it, on
the graph or the layer whose it is.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from model_utils.models.fast import kernels

if TYPE_CHECKING:
    from model_utils.models.fast.contraction import Contraction
    from model_utils.models.fast.convolution import Convolution
    from model_utils.models.fast.graph import BatchGraph

NAME = "cpp"


class Cpp:
    """Kernels for tensors on the CPU in single or double precision."""

    name = "compiled kernels"

    def takes(self, tensor: Tensor) -> bool:
        """Whether the library is there for such tensors; the first call compiles it."""
        return tensor.device.type == "cpu" and kernels.computes(tensor.dtype)

    @property
    def multiplies(self) -> bool:
        """Where its vectors have 512 bits: MKL keeps to 256 on other makers' CPUs and takes twice the time."""
        return kernels.vector_bytes() == 64

    def convolve(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Sequence[Tensor], out: Sequence[Tensor | None]
    ) -> None:
        """A from (h, Y, w)."""
        kernels.call("convolve", inputs[0].dtype, edges(graph), paths(graph, convolution), *inputs, *out)

    def convolve_vjp(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Sequence[Tensor], out: Sequence[Tensor | None]
    ) -> None:
        """(h̄, Ȳ, w̄) from (h, Y, w, G)."""
        kernels.call("convolve_vjp", inputs[0].dtype, edges(graph), paths(graph, convolution), *inputs, *out)

    def convolve_vjp_vjp(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Sequence[Tensor], out: Sequence[Tensor | None]
    ) -> None:
        """The gradients by (h, Y, w, G) from (h, Y, w, G) and the adjoints of (h̄, Ȳ, w̄)."""
        kernels.call("convolve_vjp_vjp", inputs[0].dtype, edges(graph), paths(graph, convolution), *inputs, *out)

    def contract(
        self, graph: "BatchGraph", contraction: "Contraction", inputs: Sequence[Tensor], out: Sequence[Tensor | None]
    ) -> None:
        """The contraction y from (x, T)."""
        kernels.call("contract", inputs[0].dtype, polynomial(contraction), atoms(graph), *inputs, *out)

    def contract_vjp(
        self, graph: "BatchGraph", contraction: "Contraction", inputs: Sequence[Tensor], out: Sequence[Tensor | None]
    ) -> None:
        """(x̄, T̄) from (x, T, ȳ)."""
        kernels.call("contract_vjp", inputs[0].dtype, polynomial(contraction), atoms(graph), *inputs, *out)

    def contract_vjp_vjp(
        self, graph: "BatchGraph", contraction: "Contraction", inputs: Sequence[Tensor], out: Sequence[Tensor | None]
    ) -> None:
        """The gradients by (x, T, ȳ) from (x, T, ȳ) and the adjoint of x̄."""
        kernels.call("contract_vjp_vjp", inputs[0].dtype, polynomial(contraction), atoms(graph), *inputs, *out)

    def segment_sums(
        self, graph: "BatchGraph", odd: Sequence[bool], inputs: Sequence[Tensor | None], out: Sequence[Tensor | None]
    ) -> None:
        """S from (R, Y, None, None), or from (R, Y) and adjoints (aR, aY) S(aR, Y) + S(R, aY)."""
        self._segments("segment_sums", graph, odd, inputs, out)

    def segment_sums_vjp(
        self, graph: "BatchGraph", odd: Sequence[bool], inputs: Sequence[Tensor | None], out: Sequence[Tensor | None]
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
        radial = inputs[0]
        harmonics = inputs[1]
        assert radial is not None
        assert harmonics is not None
        sizes = harmonics.shape[1], radial.shape[1]
        kernels.call(name, radial.dtype, segments(graph, odd), *sizes, *inputs, *out)

    def directions(self, vectors: Tensor, lengths: Tensor, harmonics: Tensor) -> None:
        """Lengths and spherical harmonics of vectors."""
        sizes = len(vectors), harmonics.shape[1]
        kernels.call("directions", vectors.dtype, *sizes, vectors, lengths, harmonics)

    def directions_vjp(self, inputs: Sequence[Tensor], out: Tensor) -> None:
        """The gradient by vectors from (vectors, lengths, gradients of lengths and of harmonics)."""
        sizes = len(inputs[0]), inputs[3].shape[1]
        kernels.call("directions_vjp", inputs[3].dtype, *sizes, *inputs, out)

    def directions_jvp(self, inputs: Sequence[Tensor], lengths: Tensor, harmonics: Tensor) -> None:
        """Changes of lengths and harmonics from (vectors, lengths, change of vectors)."""
        sizes = len(inputs[0]), harmonics.shape[1]
        kernels.call("directions_jvp", harmonics.dtype, *sizes, *inputs, lengths, harmonics)

    def bessel(self, constants: tuple[int, float, float], inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """Radial functions times the cutoff, and their slopes, from (lengths, frequencies)."""
        sizes = len(inputs[0]), len(inputs[1])
        kernels.call("bessel", inputs[0].dtype, *sizes, *constants, *inputs, *out)

    def silu_vjp(self, gain: float, inputs: Sequence[Tensor], out: Tensor) -> None:
        """z̄ from (z, logistic function of z, ȳ)."""
        kernels.call("silu_vjp", out.dtype, out.numel(), gain, *inputs, out)

    def silu_vjp_vjp(self, gain: float, inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """The gradients by z and ȳ from (z, logistic function of z, ȳ, adjoint of z̄)."""
        kernels.call("silu_vjp_vjp", out[0].dtype, out[0].numel(), gain, *inputs, *out)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """A product of matrices of any strides into contiguous rows."""
        kernels.multiply(a, b, out)


def edges(graph: "BatchGraph") -> kernels.EdgeTable:
    """The rows of edges of a batch."""
    key = NAME, "edges"
    if key not in graph.kept:
        arrays = (graph.rank, graph.order, graph.row_ptr, graph.sender, graph.pair, graph.flipped)
        pointers = (array.data_ptr() for array in arrays)
        graph.kept[key] = kernels.EdgeTable(len(graph.order), graph.n_edges, graph.n_pairs, *pointers)
    table: kernels.EdgeTable = graph.kept[key]
    return table


def atoms(graph: "BatchGraph") -> kernels.AtomTable:
    """Atoms of a batch by element."""
    key = NAME, "atoms"
    if key not in graph.kept:
        graph.kept[key] = kernels.AtomTable(graph.n_atoms, graph.n_present, graph.species_ptr.data_ptr())
    table: kernels.AtomTable = graph.kept[key]
    return table


def segments(graph: "BatchGraph", odd: Sequence[bool]) -> kernels.SegmentTable:
    """The segments of a batch, with the signs of its one first layer."""
    key = NAME, "segments"
    if key not in graph.kept:
        signs = (ctypes.c_int8 * len(odd))(*odd)
        pointers = graph.segment_ptr.data_ptr(), graph.pair.data_ptr(), graph.flipped.data_ptr()
        table = kernels.SegmentTable(graph.n_segments, graph.n_edges, *pointers, ctypes.addressof(signs))
        graph.kept[key] = table, signs
    found: kernels.SegmentTable = graph.kept[key][0]
    return found


def paths(graph: "BatchGraph", convolution: "Convolution") -> kernels.ConvolutionTable:
    """The paths of a convolution, whose places in the output depend on the batch's number of atoms."""
    key = NAME, "paths", id(convolution)
    if key not in graph.kept:
        graph.kept[key] = _paths(convolution, graph.n_atoms)
    table: kernels.ConvolutionTable = graph.kept[key][0]
    return table


def _paths(convolution: "Convolution", n_atoms: int) -> tuple[kernels.ConvolutionTable, tuple[Any, ...]]:
    """The table, and the arrays that it points to."""
    widths = convolution.widths
    n_channels = convolution.n_channels
    starts = [sum((2 * low + 1) * n_atoms * widths[low] for low in range(order)) for order in range(len(widths))]
    rows: list[kernels.PathTable] = []
    couplings: list[kernels.CouplingEntry] = []
    matrix = 0
    for index, path in enumerate(convolution.paths):
        d1, _, d3 = path.coefficients.shape
        first = len(couplings)
        for m1, m2, m3 in (path.coefficients.abs() > 1e-9).nonzero().tolist():
            value = float(path.coefficients[m1, m2, m3])
            couplings.append(kernels.CouplingEntry(m1 * d3 + m3, path.l2**2 + m2, value))
        width = widths[path.l3]
        out = starts[path.l3] + path.place * n_channels
        place = (path.l1**2, d1, d3, index, matrix, out, n_atoms * width, width, first, len(couplings))
        rows.append(kernels.PathTable(*place))
        matrix += d1 * d3
    odd = convolution.odd
    arrays = (
        (kernels.PathTable * len(rows))(*rows),
        (kernels.CouplingEntry * len(couplings))(*couplings),
        (ctypes.c_int8 * len(odd))(*odd),
    )
    n_components = (max(path.l1 for path in convolution.paths) + 1) ** 2
    sizes = n_channels, len(rows), n_components, matrix, len(odd)
    return kernels.ConvolutionTable(*sizes, *(ctypes.addressof(array) for array in arrays)), arrays


def polynomial(contraction: "Contraction") -> kernels.PolynomialTable:
    """The terms of a contraction nested by their factors, numbered as ``Contraction.terms`` lays them out."""
    if NAME not in contraction.kept:
        arrays = [np.array(x, dtype=np.int32).reshape(-1) for x in contraction.nested()]
        pointers = (array.ctypes.data for array in arrays)
        sizes = contraction.n_channels, contraction.n_in, contraction.n_out, contraction.n_terms
        contraction.kept[NAME] = kernels.PolynomialTable(*sizes, *pointers), arrays
    table: kernels.PolynomialTable = contraction.kept[NAME][0]
    return table
