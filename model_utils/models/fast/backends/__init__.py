"""Where the sums of the fast step are computed: one interface, a table of backends, and the
one place that chooses.

The algebra (``convolution``, ``contraction``, ``first_layer`` …) states every sum with its VJP
and the VJP of that, and has each of them in plain torch. A backend computes the same on tensors
of some device, faster.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from torch import Tensor

from model_utils.models.fast.backends.cpp import Cpp
from model_utils.models.fast.backends.triton import Triton

if TYPE_CHECKING:  # tables of the algebra, whose modules ask here for a backend
    from model_utils.models.fast.contraction import Contraction
    from model_utils.models.fast.convolution import Convolution
    from model_utils.models.fast.graph import BatchGraph
    from model_utils.models.fast.linear import Blocks
    from model_utils.models.fast.pair_network import HiddenLayer
    from model_utils.models.fast.plan import Plan
    from model_utils.models.fast.radial import Basis, Radial


class Backend(Protocol):
    """Kernels of the fast step on tensors of one kind.

    A method fills the tensors after ``out`` and waits for nobody.

    All tensors are contiguous, on one device, of one precision. Letters are those of the
    modules that state the sums; a tensor to be filled that is None is left out. No sum may
    depend on the number of threads.
    """

    @property
    def name(self) -> str:
        """Recorded as what computes: another one gives other last bits."""
        ...

    def multiplies(self, tensor: Tensor) -> bool:
        """Whether its products of such matrices are to be taken before torch's."""
        ...

    @property
    def gives_slopes(self) -> bool:
        """Whether it has ``SlopeKernels`` besides."""
        ...

    def takes(self, tensor: Tensor) -> bool:
        """Whether it computes with such tensors here; the first call may compile, and says
        in the log if it cannot.
        """
        ...

    def convolve(
        self,
        graph: "BatchGraph",
        convolution: "Convolution",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """A from (h, Y, w)."""
        ...

    def convolve_vjp(
        self,
        graph: "BatchGraph",
        convolution: "Convolution",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """(h̄, Ȳ, w̄) from (h, Y, w, G)."""
        ...

    def convolve_vjp_vjp(
        self,
        graph: "BatchGraph",
        convolution: "Convolution",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """The gradients by (h, Y, w, G) from (h, Y, w, G) and the adjoints of (h̄, Ȳ, w̄)."""
        ...

    def contract(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """The contraction y from (x, T)."""
        ...

    def contract_vjp(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """(x̄, T̄) from (x, T, ȳ)."""
        ...

    def contract_vjp_vjp(
        self,
        graph: "BatchGraph",
        contraction: "Contraction",
        inputs: Sequence[Tensor],
        out: Sequence[Tensor | None],
    ) -> None:
        """The gradients by (x, T, ȳ) from (x, T, ȳ) and the adjoint of x̄."""
        ...

    def segment_sums(
        self,
        graph: "BatchGraph",
        odd: Sequence[bool],
        inputs: Sequence[Tensor | None],
        out: Sequence[Tensor | None],
    ) -> None:
        """S from (R, Y, None, None), or from (R, Y) and adjoints (aR, aY) S(aR, Y) + S(R, aY)."""
        ...

    def segment_sums_vjp(
        self,
        graph: "BatchGraph",
        odd: Sequence[bool],
        inputs: Sequence[Tensor | None],
        out: Sequence[Tensor | None],
    ) -> None:
        """(R̄, Ȳ) from (R, Y, S̄)."""
        ...

    def directions(self, vectors: Tensor, lengths: Tensor, harmonics: Tensor) -> None:
        """Lengths and spherical harmonics of vectors."""
        ...

    def directions_vjp(self, inputs: Sequence[Tensor], out: Tensor) -> None:
        """The gradient by vectors from (vectors, lengths, gradients of
        lengths and of harmonics).
        """
        ...

    def directions_jvp(self, inputs: Sequence[Tensor], lengths: Tensor, harmonics: Tensor) -> None:
        """Changes of lengths and harmonics from (vectors, lengths, change of vectors)."""
        ...

    def silu_vjp(self, gain: float, inputs: Sequence[Tensor], out: Tensor) -> None:
        """z̄ from (z, logistic function of z, ȳ)."""
        ...

    def silu_vjp_vjp(self, gain: float, inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """The gradients by z and ȳ from (z, logistic function of z, ȳ, adjoint of z̄)."""
        ...

    def multiply(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """A product of matrices of any strides into contiguous rows."""
        ...


class PairKernels(Protocol):
    """Functions of the pairs' lengths together with their slopes (``pair_network``)."""

    @property
    def takes_edges(self) -> bool:
        """Whether it computes networks of directed edges, which have an offset."""
        ...

    def takes_layers(
        self, layers: Sequence["HiddenLayer"], offset: Tensor | None, appended: bool
    ) -> bool:
        """Whether it computes a network of these layers."""
        ...

    def radial_basis(
        self, radial: "Radial", lengths: Tensor, numbers: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Functions (n, n_basis) and slopes; then cutoff (n, 1) and its slope, where it
        does not multiply them.
        """
        ...

    def pair_network(
        self, layers: Sequence["HiddenLayer"], basis: "Basis", offset: Tensor | None, appended: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """R, R′ and what the reverse pass wants again."""
        ...

    def pair_network_vjp(
        self,
        layers: Sequence["HiddenLayer"],
        basis: "Basis",
        given: tuple[Tensor, Tensor | None, Tensor | None],
        by_offset: Tensor | None,
    ) -> list[Tensor]:
        """The gradients by all tensors of the layers from (what was kept, R̄, gradient by R′);
        fills that by the offset.

        An offset given means that there was one.
        """
        ...


class FusedKernels(PairKernels, Protocol):
    """What a backend may have besides: much of what is a dozen small calls of
    torch otherwise, in one.
    """

    def map_blocks(
        self,
        graph: "BatchGraph",
        blocks: "Blocks",
        factor: float,
        inputs: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """y from (x, flat weight), in blocks."""
        ...

    def map_blocks_by_input(
        self,
        graph: "BatchGraph",
        blocks: "Blocks",
        factor: float,
        inputs: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """x̄ from (ȳ, flat weight); blocks that go nowhere are left as they are."""
        ...

    def map_blocks_by_weight(
        self,
        graph: "BatchGraph",
        blocks: "Blocks",
        factor: float,
        inputs: tuple[Tensor, Tensor],
        out: Tensor,
    ) -> None:
        """The gradient by the flat weight from (x, ȳ)."""
        ...


class SlopeKernels(Protocol):
    """What a backend without ``FusedKernels`` may have for networks of pairs, layer by layer;
    (z, z′) is one array, slopes below values.
    """

    def bessel(
        self, constants: tuple[int, float, float], inputs: Sequence[Tensor], out: Sequence[Tensor]
    ) -> None:
        """Radial functions times the cutoff, (n_pairs, n_basis), and their slopes, from (lengths,
        frequencies).

        Args:
            constants: power of the cutoff, r_max (Å), prefactor.
            inputs: (n_pairs, 1), Å, and (n_basis,).
            out: (n_pairs, n_basis) each.
        """
        ...

    def silu_jvp(self, gain: float, z: Tensor, out: Tensor) -> None:
        """(y, y′) from (z, z′): y = gain silu(z), y′ = gain silu′(z) z′."""
        ...

    def silu_jvp_vjp(
        self, gain: float, inputs: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor | None]
    ) -> None:
        """The gradients by (z, z′) from (z, z′) and those by (y, y′); and (y, y′) again."""
        ...


BACKENDS: dict[str, Backend] = {"cpp": Cpp(), "triton": Triton()}
_only: tuple[Backend, ...] | None = None  # those that may compute; None: all


def backend_of(tensor: Tensor) -> Backend | None:
    """The backend that computes with such tensors here; None: plain torch."""
    backends = BACKENDS.values() if _only is None else _only
    return next((backend for backend in backends if backend.takes(tensor)), None)


def prepare(plan: "Plan", weights: Mapping[str, Tensor]) -> None:
    """Have kernels compiled before a network's first step, where they are its own and
    not one library for all.

    Args:
        plan: constants of the network.
        weights: its parameters by mace's names.
    """
    backend = backend_of(next(iter(weights.values())))
    if isinstance(backend, Triton):
        backend.prepare(plan, weights)


def fused_kernels_of(tensor: Tensor) -> FusedKernels | None:
    """The further kernels, where the backend of such tensors has them."""
    backend = backend_of(tensor)
    return backend if isinstance(backend, Cpp) else None


def slope_kernels_of(tensor: Tensor) -> SlopeKernels | None:
    """The kernels for values and slopes, where the backend of such tensors has them."""
    backend = backend_of(tensor)
    return cast("SlopeKernels", backend) if backend is not None and backend.gives_slopes else None


@contextlib.contextmanager
def only(*backends: Backend) -> Iterator[None]:
    """Compute with these backends meanwhile, and in plain torch what they do not take."""
    global _only
    before = _only
    _only = backends
    try:
        yield
    finally:
        _only = before


def plain_torch() -> contextlib.AbstractContextManager[None]:
    """Compute without kernels meanwhile."""
    return only()
