"""What the compiled C++ kernels read: structures in C of a batch and of a layer.

The structures are those of ``kernels``. A table holds pointers, so the arrays behind it are kept
with it, on the graph or the layer whose it is.
"""

import ctypes
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from model_utils.models.fast import kernels

if TYPE_CHECKING:
    from model_utils.models.fast.contraction import Contraction
    from model_utils.models.fast.convolution import Convolution, CouplingPath
    from model_utils.models.fast.graph import BatchGraph
    from model_utils.models.fast.linear import Blocks
    from model_utils.models.fast.pair_network import HiddenLayer
    from model_utils.models.fast.radial import Radial

NAME = "cpp"


def edges(graph: "BatchGraph") -> kernels.EdgeTable:
    """The table of the rows of edges of a batch."""
    key = (NAME, "edges")
    if key not in graph.kept:
        graph.kept[key] = kernels.EdgeTable(
            n_atoms=len(graph.order),
            n_edges=graph.n_edges,
            n_pairs=graph.n_pairs,
            rank=graph.rank.data_ptr(),
            order=graph.order.data_ptr(),
            row_ptr=graph.row_ptr.data_ptr(),
            sender=graph.sender.data_ptr(),
            pair=graph.pair.data_ptr(),
            flipped=graph.flipped.data_ptr(),
        )
    table: kernels.EdgeTable = graph.kept[key]
    return table


def atoms(graph: "BatchGraph") -> kernels.AtomTable:
    """The table of the atoms of a batch by element."""
    key = (NAME, "atoms")
    if key not in graph.kept:
        graph.kept[key] = kernels.AtomTable(
            graph.n_atoms, graph.n_present, graph.species_ptr.data_ptr()
        )
    table: kernels.AtomTable = graph.kept[key]
    return table


def segments(graph: "BatchGraph", odd: Sequence[bool]) -> kernels.SegmentTable:
    """The table of the segments of a batch, with the signs of its one first layer."""
    key = (NAME, "segments")
    if key not in graph.kept:
        signs = (ctypes.c_int8 * len(odd))(*odd)
        new = kernels.SegmentTable(
            n_segments=graph.n_segments,
            n_edges=graph.n_edges,
            ptr=graph.segment_ptr.data_ptr(),
            pair=graph.pair.data_ptr(),
            flipped=graph.flipped.data_ptr(),
            odd=ctypes.addressof(signs),
        )
        graph.kept[key] = (new, signs)
    table: kernels.SegmentTable = graph.kept[key][0]
    return table


def paths(graph: "BatchGraph", convolution: "Convolution") -> kernels.ConvolutionTable:
    """The paths of a convolution, whose places in the output depend on the
    batch's number of atoms.
    """
    key = (NAME, "paths", id(convolution))
    if key not in graph.kept:
        graph.kept[key] = _paths(convolution, graph.n_atoms)
    table: kernels.ConvolutionTable = graph.kept[key][0]
    return table


def _paths(
    convolution: "Convolution", n_atoms: int
) -> tuple[kernels.ConvolutionTable, tuple[Any, ...]]:
    """The table, and the arrays that it points to."""
    widths = convolution.widths
    n_channels = convolution.n_channels
    starts = _block_starts(widths, n_atoms)
    if NAME not in convolution.kept:
        couplings = [list(_couplings(path)) for path in convolution.paths]
        ends = [0, *accumulate(len(own) for own in couplings)]
        of_all = [entry for own in couplings for entry in own]
        array = (kernels.CouplingEntry * len(of_all))(*of_all)
        convolution.kept[NAME] = (
            array,
            (ctypes.c_int8 * len(convolution.odd))(*convolution.odd),
            ends,
        )
    coupling_array, odd_array, ends = convolution.kept[NAME]
    rows: list[kernels.PathTable] = []
    n_matrix = 0  # entries of the coupling matrices of all paths so far
    for index, path in enumerate(convolution.paths):
        d1, _, d3 = path.coefficients.shape
        width = widths[path.l3]
        row = kernels.PathTable(
            m1=path.l1**2,
            d1=d1,
            d3=d3,
            weight=index,
            matrix=n_matrix,
            out=starts[path.l3] + path.place * n_channels,
            row=n_atoms * width,
            atom=width,
            first=ends[index],
            last=ends[index + 1],
        )
        rows.append(row)
        n_matrix += d1 * d3
    path_array = (kernels.PathTable * len(rows))(*rows)
    table = kernels.ConvolutionTable(
        n_channels=n_channels,
        n_paths=len(rows),
        n_components=(max(path.l1 for path in convolution.paths) + 1) ** 2,
        n_matrix=n_matrix,
        n_harmonics=len(odd_array),
        paths=ctypes.addressof(path_array),
        couplings=ctypes.addressof(coupling_array),
        odd=ctypes.addressof(odd_array),
    )
    return table, (path_array, coupling_array, odd_array)


def block_map(graph: "BatchGraph", blocks: "Blocks", factor: float) -> kernels.MapTable:
    """The table of a map, whose blocks' places depend on the batch's number of atoms."""
    key = (NAME, "map", id(blocks), factor)
    if key not in graph.kept:
        starts = _block_starts(blocks.widths, graph.n_atoms)
        rows = []
        y = 0
        for part in blocks.parts:
            components = 2 * part.order + 1
            row = kernels.MapPartTable(
                rows=components,
                x=starts[part.order],
                y=y,
                weight=part.offset,
                n_in=part.n_in,
                n_out=part.n_out,
                n_elements=part.n_elements,
                scale=part.scale * factor,
            )
            rows.append(row)
            y += components * graph.n_atoms * part.n_out
        array = (kernels.MapPartTable * len(rows))(*rows)
        new = kernels.MapTable(
            n_parts=len(rows),
            n_atoms=graph.n_atoms,
            n_present=graph.n_present,
            parts=ctypes.addressof(array),
            species_ptr=graph.species_ptr.data_ptr(),
            present=graph.present.data_ptr(),
        )
        graph.kept[key] = (new, array, blocks)  # kept too, so that its id stays its own
    table: kernels.MapTable = graph.kept[key][0]
    return table


def basis(radial: "Radial") -> kernels.BasisTable:
    """The table of radial functions, whose numbers are read once."""
    transform = {
        name: radial.constant(f"distance_transform.{name}") if radial.agnesi else 0.0
        for name in "apq"
    }
    return kernels.BasisTable(
        n=radial.n_basis,
        gaussian=radial.gaussian,
        power=radial.power,
        r_max=radial.constant("cutoff_fn.r_max"),
        prefactor=radial.constant("bessel_fn.coeff" if radial.gaussian else "bessel_fn.prefactor"),
        **transform,
    )


def pair_network(
    layers: Sequence["HiddenLayer"], appended: bool
) -> tuple[kernels.PairNetworkTable, Any]:
    """The table, and the array that it points to."""
    rows = []
    for layer in layers:
        n_in, n_out = layer.weight.shape
        row, column = layer.weight.stride()
        norm = layer.norm or (None, None)
        vectors = [None if t is None else t.data_ptr() for t in (layer.bias, *norm)]
        assert all(t.is_contiguous() for t in layer.tensors[1:])
        rows.append(
            kernels.PairLayerTable(
                n_in, n_out, row, column, layer.weight.data_ptr(), *vectors, layer.scale, layer.gain
            )
        )
    array = (kernels.PairLayerTable * len(rows))(*rows)
    return kernels.PairNetworkTable(len(rows), appended, ctypes.addressof(array)), array


def _block_starts(widths: Sequence[int], n_atoms: int) -> list[int]:
    """Where the block of every order begins in the flat output, whose blocks are ((2l
    + 1), n_atoms, width).
    """
    starts = []
    start = 0
    for order, width in enumerate(widths):
        starts.append(start)
        start += (2 * order + 1) * n_atoms * width
    return starts


def _couplings(path: "CouplingPath") -> Iterator[kernels.CouplingEntry]:
    """The coefficients of a path that are not zero; the smallest of those
    is far above the bound.
    """
    n_out = path.coefficients.shape[2]
    for m1, m2, m3 in (path.coefficients.abs() > 1e-9).nonzero().tolist():
        value = float(path.coefficients[m1, m2, m3])
        yield kernels.CouplingEntry(entry=m1 * n_out + m3, m2=path.l2**2 + m2, value=value)


def polynomial(contraction: "Contraction") -> kernels.PolynomialTable:
    """The table of a contraction: terms nested by their factors, numbered as
    ``Contraction.terms`` lays them out.
    """
    if NAME not in contraction.kept:
        lists = (*contraction.nested(), *contraction.nested_deep())
        arrays = [np.array(x, dtype=np.int32).reshape(-1) for x in lists]
        outer_ptr, outer, inner, last, deep, deepest = (array.ctypes.data for array in arrays)
        if contraction.degree <= 3:
            deep = 0  # no pointer
        new = kernels.PolynomialTable(
            n_channels=contraction.n_channels,
            n_in=contraction.n_in,
            n_out=contraction.n_out,
            n_terms=contraction.n_terms,
            outer_ptr=outer_ptr,
            outer=outer,
            inner=inner,
            d=last,
            deep=deep,
            e=deepest,
        )
        contraction.kept[NAME] = (new, arrays)
    table: kernels.PolynomialTable = contraction.kept[NAME][0]
    return table
