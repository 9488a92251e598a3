"""Triton kernels of GPUs as a backend: programs of a network's layers, their arguments,
and what a launch moves.

Triton itself is imported where tensors of a GPU ask for it; it comes with torch's CUDA builds.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model_utils.models.fast.compiler import BuildError
from model_utils.models.fast.triton.convolution import backward_name
from model_utils.models.fast.triton.program import Program
from model_utils.models.fast.triton.threads import GROUP, NUMBERS, PAIRS, TABLE, TILE
from model_utils.runtime import log

if TYPE_CHECKING:
    from model_utils.models.fast.contraction import Contraction
    from model_utils.models.fast.convolution import Convolution
    from model_utils.models.fast.graph import BatchGraph
    from model_utils.models.fast.plan import Plan
    from model_utils.models.fast.triton.catalogue import Catalogue

NAME = "triton"
OLDEST = 80  # architecture: older cards were not compiled for
ALIGNED = 16  # bytes, of which every pointer is a multiple

Tensors = Sequence[Tensor]
Outputs = Sequence[Tensor | None]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, and the bytes that it moves if what several programs read
    together is read once.
    """

    name: str
    n_programs: int
    read: int  # bytes
    written: int


class Triton:
    """Kernels for tensors on a GPU in single or double precision."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[int, str], Any] = {}  # by device and ``Program.key``
        self._refused: str | None = None
        self._counts: list[Launch] | None = None

    @property
    def name(self) -> str:
        """Triton's version, the table of threads and the architecture: each
        decides about last bits.
        """
        version = importlib.import_module("triton").__version__
        return f"triton {version}, table {TABLE}, sm_{self.architecture}"

    gives_slopes = True

    @cached_property
    def architecture(self) -> int:
        """Compute capability of the device times ten: 80, 90, …"""
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor

    def multiplies(self, tensor: Tensor) -> bool:
        """Never: cuBLAS does."""
        return False

    def takes(self, tensor: Tensor) -> bool:
        """Whether kernels can be compiled for such tensors; says once why they cannot."""
        if tensor.dtype not in (torch.float32, torch.float64):
            return False
        if self._counts is not None:
            return True
        return tensor.is_cuda and self._refused is None and self._usable

    @cached_property
    def _usable(self) -> bool:
        try:
            importlib.import_module("triton")
        except ImportError as error:
            return self._refuse(f"triton cannot be imported ({error})")
        try:
            self.architecture  # noqa: B018  (asked for where it may fail)
        except (RuntimeError, AssertionError) as error:
            # torch's own: no driver, or a build without CUDA
            return self._refuse(f"the GPU does not say what it is ({error})")
        if self.architecture < OLDEST:
            return self._refuse(
                f"the GPU is sm_{self.architecture}, and they are for sm_{OLDEST} and later"
            )
        return True

    def _refuse(self, reason: str) -> bool:
        """Leave everything to plain torch from now on."""
        self._refused = reason
        log.warning(
            "the fast step runs in plain torch, several times slower than its Triton kernels: %s",
            reason,
        )
        return False

    def prepare(self, plan: "Plan", weights: Mapping[str, Tensor]) -> None:
        """Compile all kernels of a network in parallel; where that fails plain torch
        computes, and the log says why.
        """
        if self._counts is not None:
            return
        try:
            self._load(self._catalogue.of_network(plan, weights))
        except BuildError as error:
            self._refuse(str(error))

    @cached_property
    def _catalogue(self) -> "Catalogue":
        # the layers, whose modules ask for a backend
        from model_utils.models.fast.triton.catalogue import Catalogue

        return Catalogue()

    @contextmanager
    def counted(self) -> Iterator[list[Launch]]:
        """Note launches in place of making them, for tensors of any device
        and even without storage.
        """
        self._counts = []
        try:
            yield self._counts
        finally:
            self._counts = None

    def convolve(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Tensors, out: Outputs
    ) -> None:
        """A from (h, Y, w)."""
        program = self._of_convolution(graph, convolution, inputs)["convolve"]
        self._rows(graph, program, inputs, out, read=(*inputs, *inputs[1:]))

    def convolve_vjp(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Tensors, out: Outputs
    ) -> None:
        """(h̄, Ȳ, w̄) from (h, Y, w, G)."""
        self._reverse_rows(graph, convolution, inputs, out)

    def convolve_vjp_vjp(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Tensors, out: Outputs
    ) -> None:
        """The gradients by (h, Y, w, G) from (h, Y, w, G) and the adjoints of (h̄, Ȳ, w̄)."""
        self._reverse_rows(graph, convolution, inputs, out[:3])
        trilinear = (*inputs[:3], *inputs[4:])
        program = self._of_convolution(graph, convolution, inputs)["convolve__adjoint"]
        read = (*trilinear, *inputs[1:3], *inputs[5:])
        self._rows(graph, program, trilinear, out[3:], read=read)

    def _reverse_rows(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Tensors, out: Outputs
    ) -> None:
        """Launch a kernel over the edges that leave each atom. Of a pair, the one along its
        vector also has what belongs to the neighbour, which a second launch adds.
        """
        name = backward_name(len(inputs) > 4, out[1] is not None, graph.directed)
        programs = self._of_convolution(graph, convolution, inputs)
        if graph.directed:
            self._rows(graph, programs[name], inputs, out, read=inputs)
            return
        h = inputs[0]
        of_neighbours = h.new_empty(graph.n_pairs, h.shape[0], h.shape[2])
        self._rows(graph, programs[name], inputs, (*out, of_neighbours), read=inputs)
        read = _given((of_neighbours, out[0]))
        self._rows(graph, programs["convolve__neighbours"], (of_neighbours,), out[:1], read=read)

    def _of_convolution(
        self, graph: "BatchGraph", convolution: "Convolution", inputs: Tensors
    ) -> Mapping[str, Program]:
        """Programs of a convolution over the pairs of a graph, or over its edges."""
        return self._catalogue.convolution(convolution, inputs[0].dtype, directed=graph.directed)

    def _rows(
        self, graph: "BatchGraph", program: Program, inputs: Tensors, out: Outputs, *, read: Tensors
    ) -> None:
        """Launch a kernel of the convolution, one program per atom."""
        names = ("rank", "row_ptr", "sender", "pair", "reverse", "flipped")
        tables = [_index(graph, name) for name in names]
        self._launch(
            program, (graph.n_atoms,), (inputs, _given(out), tables), (graph.n_atoms,), read
        )

    def contract(
        self, graph: "BatchGraph", contraction: "Contraction", inputs: Tensors, out: Outputs
    ) -> None:
        """The contraction y from (x, T)."""
        self._atoms(graph, contraction, "contract", inputs, out)

    def contract_vjp(
        self, graph: "BatchGraph", contraction: "Contraction", inputs: Tensors, out: Outputs
    ) -> None:
        """(x̄, T̄) from (x, T, ȳ)."""
        self._atoms(graph, contraction, "contract__vjp", inputs, out[:1])
        if out[1] is not None:
            x, _, g = inputs
            self._terms(graph, contraction, "contract__terms", (x, g), out[1])

    def contract_vjp_vjp(
        self, graph: "BatchGraph", contraction: "Contraction", inputs: Tensors, out: Outputs
    ) -> None:
        """The gradients by (x, T, ȳ) from (x, T, ȳ) and the adjoint of x̄."""
        dx, dt, dg = out
        self._atoms(graph, contraction, "contract__vjp_vjp", inputs, (dx, dg))
        if dt is not None:
            x, _, g, ax = inputs
            self._terms(graph, contraction, "contract__terms_adjoint", (x, g, ax), dt)

    def _atoms(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        name: str,
        inputs: Tensors,
        out: Outputs,
    ) -> None:
        """Launch a kernel of the contraction, one program per atom."""
        program = self._catalogue.contraction(contraction, inputs[0].dtype)[name]
        tensors = (inputs, _given(out), [_index(graph, "species")])
        self._launch(program, (graph.n_atoms,), tensors, (graph.n_atoms,), inputs)

    def _terms(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        name: str,
        inputs: Tensors,
        out: Tensor,
    ) -> None:
        """Sum a gradient by T over tiles of atoms of one element, then over the tiles."""
        programs = self._catalogue.contraction(contraction, out.dtype)
        bounds = graph.species_bounds
        n_tiles = [-(-(bounds[z + 1] - bounds[z]) // TILE) for z in range(graph.n_present)]
        sums = out.new_empty(sum(n_tiles), contraction.n_terms, contraction.n_channels)
        n_groups = -(-contraction.n_terms // GROUP)
        grid = (n_groups, max(n_tiles), graph.n_present)
        table = [_index(graph, "species_ptr")]
        sizes = (graph.n_atoms,)
        self._launch(programs[name], grid, (inputs, [sums], table), sizes, inputs)
        grid = (contraction.n_terms, graph.n_present, 1)
        self._launch(programs["contract__collect"], grid, ([sums], [out], table), sizes, [sums])

    def segment_sums(
        self,
        graph: "BatchGraph",
        odd: Sequence[bool],
        inputs: Sequence[Tensor | None],
        out: Outputs,
    ) -> None:
        """S from (R, Y, None, None), or from (R, Y) and adjoints (aR, aY) S(aR, Y) + S(R, aY)."""
        given = _given(inputs)
        programs = self._catalogue.segments(odd, given[0].shape[1], given[0].dtype)
        program = programs["segment_sums" if len(given) == 2 else "segment_sums__adjoint"]
        self._runs(graph, program, given, out, read=(*given, *given))

    def segment_sums_vjp(
        self,
        graph: "BatchGraph",
        odd: Sequence[bool],
        inputs: Sequence[Tensor | None],
        out: Outputs,
    ) -> None:
        """(R̄, Ȳ) from (R, Y, S̄)."""
        given = _given(inputs)
        programs = self._catalogue.segments(odd, given[0].shape[1], given[0].dtype)
        by_y = "no_y" if out[1] is None else "with_y"
        for flipped in (0, 1):
            again = _given(out) if flipped else []
            program = programs[f"segment_sums__vjp__{by_y}__{flipped}"]
            self._runs(graph, program, given, out, read=(*given, *again))

    def _runs(
        self, graph: "BatchGraph", program: Program, inputs: Tensors, out: Outputs, *, read: Tensors
    ) -> None:
        """Launch a kernel of the first layer, one program per segment."""
        tables = [_index(graph, name) for name in ("segment_ptr", "pair", "flipped")]
        n_segments = graph.n_segments
        self._launch(program, (n_segments,), (inputs, _given(out), tables), (n_segments,), read)

    def directions(self, vectors: Tensor, lengths: Tensor, harmonics: Tensor) -> None:
        """Lengths and spherical harmonics of vectors."""
        program = self._catalogue.directions(harmonics.shape[1], vectors.dtype)["directions"]
        self._pairs(program, (vectors,), (lengths, harmonics))

    def directions_vjp(self, inputs: Tensors, out: Tensor) -> None:
        """The gradient by vectors from (vectors, lengths, gradients of
        lengths and of harmonics).
        """
        program = self._catalogue.directions(inputs[3].shape[1], out.dtype)["directions__vjp"]
        self._pairs(program, inputs, (out,))

    def directions_jvp(self, inputs: Tensors, lengths: Tensor, harmonics: Tensor) -> None:
        """Changes of lengths and harmonics from (vectors, lengths, change of vectors)."""
        program = self._catalogue.directions(harmonics.shape[1], harmonics.dtype)["directions__jvp"]
        self._pairs(program, inputs, (lengths, harmonics))

    def bessel(self, constants: tuple[int, float, float], inputs: Tensors, out: Tensors) -> None:
        """Radial functions times the cutoff, and their slopes, from (lengths, frequencies)."""
        program = self._catalogue.bessel(len(inputs[1]), constants, inputs[0].dtype)["bessel"]
        self._pairs(program, inputs, out)

    def _pairs(self, program: Program, inputs: Tensors, out: Tensors) -> None:
        """Launch a kernel over pairs, as many as the first input has."""
        n_pairs = len(inputs[0])
        self._launch(program, (-(-n_pairs // PAIRS),), (inputs, out, ()), (n_pairs,), inputs)

    def silu_vjp(self, gain: float, inputs: Tensors, out: Tensor) -> None:
        """z̄ from (z, logistic function of z, ȳ)."""
        self._numbers(self._catalogue.silu(gain, out.dtype)["silu__vjp"], inputs, (out,))

    def silu_vjp_vjp(self, gain: float, inputs: Tensors, out: Tensors) -> None:
        """The gradients by z and ȳ from (z, logistic function of z, ȳ, adjoint of z̄)."""
        self._numbers(self._catalogue.silu(gain, out[0].dtype)["silu__vjp_vjp"], inputs, out)

    def silu_jvp(self, gain: float, z: Tensor, out: Tensor) -> None:
        """(y, y′) from (z, z′): y = gain silu(z), y′ = gain silu′(z) z′."""
        program = self._catalogue.slopes(gain, out.dtype)["silu__jvp"]
        self._numbers(program, (z,), (out,), out.numel() // 2)

    def silu_jvp_vjp(
        self, gain: float, inputs: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor | None]
    ) -> None:
        """The gradients by (z, z′) from (z, z′) and those by (y, y′); and (y, y′) again."""
        name = "silu__jvp_vjp" if out[1] is None else "silu__jvp_vjp__with_y"
        program = self._catalogue.slopes(gain, out[0].dtype)[name]
        self._numbers(program, inputs, _given(out), out[0].numel() // 2)

    def _numbers(
        self, program: Program, inputs: Tensors, out: Tensors, n: int | None = None
    ) -> None:
        """Launch a kernel over numbers one by one, ``n`` or as many as it gives."""
        n = out[0].numel() if n is None else n
        self._launch(program, (-(-n // NUMBERS),), (inputs, out, ()), (n,), inputs)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """A product of matrices of any strides into contiguous rows."""
        torch.mm(a, b, out=out)

    def _load(self, programs: Sequence[Program]) -> None:
        """Have kernels on the current device.

        Raises:
            BuildError: they cannot be made here.
        """
        from model_utils.models.fast.triton.library import kernels_of

        device = torch.cuda.current_device()
        kernels = kernels_of(programs, self.architecture)
        self._kernels |= {(device, key): kernel for key, kernel in kernels.items()}

    def _launch(
        self,
        program: Program,
        grid: tuple[int, ...],
        tensors: tuple[Tensors, Tensors, Tensors],
        sizes: Sequence[int],
        read: Tensors,
    ) -> None:
        """Start a kernel and wait for nothing.

        Args:
            program: what runs.
            grid: numbers of programs; nothing runs where one is 0.
            tensors: inputs, outputs, and tables of the batch, in the order of
                the kernel's arguments.
            sizes: its whole numbers.
            read: what it reads, as often as it does.
        """
        inputs, outputs, tables = tensors
        if self._counts is not None:
            n_programs = torch.Size(grid).numel()
            launch = Launch(program.name, n_programs, _bytes(*read), _bytes(*outputs))
            self._counts.append(launch)
        elif 0 not in grid:
            ready = [*(_aligned(tensor) for tensor in inputs), *outputs, *tables]
            assert all(tensor.is_contiguous() for tensor in ready), program.name
            self._run(program, (*grid, 1, 1)[:3], program.arguments(ready, sizes))

    def _run(
        self, program: Program, grid: tuple[int, ...], arguments: Sequence[Tensor | int]
    ) -> None:
        """Hand a kernel to the device of its tensors."""
        device = next(a.get_device() for a in arguments if isinstance(a, Tensor))
        elsewhere = device != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else nullcontext():
            if (device, program.key) not in self._kernels:
                self._load([program])
            kernel = self._kernels[device, program.key]
            kernel[grid](*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def _index(graph: "BatchGraph", name: str) -> Tensor:
    """A table of the batch as 32-bit numbers, or bytes, where a kernel may read
    it; made once per batch.
    """
    key = (NAME, name)
    if key not in graph.kept:
        table: Tensor = getattr(graph, name)
        graph.kept[key] = _aligned(table if table.dtype == torch.int8 else table.int())
    kept: Tensor = graph.kept[key]
    return kept


def _given(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Tensors that are not None, in order."""
    return [tensor for tensor in tensors if tensor is not None]


def _bytes(*tensors: Tensor | None) -> int:
    """Bytes of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it begins within 16 bytes, as a part of another may;
    storages begin with them.
    """
    begins = tensor.storage_offset() * tensor.element_size()
    return tensor if begins % ALIGNED == 0 else tensor.clone()
