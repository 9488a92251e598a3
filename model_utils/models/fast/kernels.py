"""The compiled kernels as Python calls, for the C++ backend alone (``backends/cpp``).

A kernel is called with tensors, which must be contiguous CPU tensors of one precision, and with the
structures below, which mirror those of the sources in ``cpp/``.
"""

import contextlib
import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from model_utils.models.fast.compiler import BuildError, build
from model_utils.runtime import dtype_name, log

_int = ctypes.c_int64
_pointer = ctypes.c_void_p
_precisions = (torch.float32, torch.float64)


class EdgeTable(ctypes.Structure):
    """Directed edges sorted by receiver."""

    _fields_ = (
        *((name, _int) for name in ("n_atoms", "n_edges", "n_pairs")),
        *((name, _pointer) for name in ("rank", "order", "row_ptr", "sender", "pair", "flipped")),
    )


class PathTable(ctypes.Structure):
    """A path of the convolution."""

    _fields_ = tuple(
        (name, _int)
        for name in ("m1", "d1", "d3", "weight", "matrix", "out", "row", "atom", "first", "last")
    )


class CouplingEntry(ctypes.Structure):
    """An entry of a path's Clebsch-Gordan coefficients that is not zero."""

    _fields_ = (("entry", _int), ("m2", _int), ("value", ctypes.c_double))


class ConvolutionTable(ctypes.Structure):
    """Tables of a convolution."""

    _fields_ = (
        *(
            (name, _int)
            for name in ("n_channels", "n_paths", "n_components", "n_matrix", "n_harmonics")
        ),
        *((name, _pointer) for name in ("paths", "couplings", "odd")),
    )


class SegmentTable(ctypes.Structure):
    """Runs of edges of one receiver and one element of senders."""

    _fields_ = (
        *((name, _int) for name in ("n_segments", "n_edges")),
        *((name, _pointer) for name in ("ptr", "pair", "flipped", "odd")),
    )


class PolynomialTable(ctypes.Structure):
    """Tables of a symmetric contraction."""

    _fields_ = (
        *((name, _int) for name in ("n_channels", "n_in", "n_out", "n_terms")),
        *((name, _pointer) for name in ("outer_ptr", "outer", "inner", "d", "deep", "e")),
    )


class AtomTable(ctypes.Structure):
    """Atoms sorted by element."""

    _fields_ = (("n_atoms", _int), ("n_present", _int), ("species_ptr", _pointer))


class BasisTable(ctypes.Structure):
    """Radial functions."""

    _fields_ = (
        *((name, _int) for name in ("n", "gaussian", "power")),
        *((name, ctypes.c_double) for name in ("r_max", "prefactor", "a", "p", "q")),
    )


class PairLayerTable(ctypes.Structure):
    """A hidden layer of a network of pairs."""

    _fields_ = (
        *((name, _int) for name in ("n_in", "n_out", "row", "column")),
        *((name, _pointer) for name in ("weight", "bias", "norm_weight", "norm_bias")),
        *((name, ctypes.c_double) for name in ("scale", "gain")),
    )


class PairNetworkTable(ctypes.Structure):
    """The hidden layers of a network of pairs."""

    _fields_ = (("n_layers", _int), ("appended", _int), ("layers", _pointer))


class MapPartTable(ctypes.Structure):
    """The map of one order."""

    _fields_ = (
        *((name, _int) for name in ("rows", "x", "y", "weight", "n_in", "n_out", "n_elements")),
        ("scale", ctypes.c_double),
    )


class MapTable(ctypes.Structure):
    """A map of features in blocks, for atoms sorted by element."""

    _fields_ = (
        *((name, _int) for name in ("n_parts", "n_atoms", "n_present")),
        *((name, _pointer) for name in ("parts", "species_ptr", "present")),
    )


def computes(dtype: torch.dtype) -> bool:
    """Whether there are kernels of this precision here; the first call compiles them."""
    return dtype in _precisions and _library(dtype) is not None


@cache
def vector_bytes(dtype: torch.dtype) -> int:
    """Width of the vectors that the kernels were compiled for, 0 where there are none."""
    library = _library(dtype) if dtype in _precisions else None
    return 0 if library is None else int(library.vector_bytes())


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """A product of matrices of any strides, (m, k) and (k, n), into contiguous rows (m, n)."""
    m, k = a.shape
    n = b.shape[1]
    assert out.is_contiguous()
    assert b.shape[0] == k
    assert a.dtype == b.dtype == out.dtype
    sizes = (m, n, k)
    left = (a.data_ptr(), *a.stride())
    right = (b.data_ptr(), *b.stride())
    numbers = (*sizes, *left, *right, out.data_ptr())
    _function("multiply", a.dtype, numbers)(*numbers)


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Run a kernel on tensors, structures, whole numbers, and None for what it should leave out."""
    _function(name, dtype, arguments)(
        *[_pointer_to(a, dtype) if isinstance(a, Tensor) else a for a in arguments]
    )


def _pointer_to(tensor: Tensor, dtype: torch.dtype) -> int:
    """Where a tensor's numbers lie."""
    assert tensor.is_contiguous()
    assert tensor.dtype == dtype
    return tensor.data_ptr()


def _function(name: str, dtype: torch.dtype, arguments: Sequence[Any]) -> Any:
    """A function of a precision's library, told by the arguments of its first call what it takes:
    that makes later ones cheap.
    """
    library = _library(dtype)
    assert library is not None
    function = getattr(library, name)
    if function.argtypes is None:
        function.argtypes = [_kind(a) for a in arguments]
        function.restype = None
    return function


def _kind(argument: Any) -> Any:
    """The type by which ctypes hands an argument on."""
    if isinstance(argument, ctypes.Structure):
        return ctypes.POINTER(type(argument))
    if isinstance(argument, float):
        return ctypes.c_double
    return _pointer if argument is None or isinstance(argument, Tensor) else _int


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled library of a precision, None where it cannot be had, which is said."""
    try:
        library = build(dtype_name(dtype))
        _keep_freed_memory()
        return library
    except (BuildError, OSError) as error:
        _say_why_not(str(error))
        return None


@cache  # once for both precisions, where the reason is the same
def _say_why_not(reason: str) -> None:
    log.warning(
        "the fast step runs in plain torch, several times slower than its compiled kernels: %s",
        reason,
    )


def _keep_freed_memory() -> None:
    """Have glibc's malloc keep the arrays of a step for the next one.

    It would hand large arrays back to the system at once and fault every page of them in
    again: a sixth of the step.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold = -1  # M_TRIM_THRESHOLD of malloc.h
        mmap_threshold = -3  # M_MMAP_THRESHOLD
        for limit in (2**30, 2**25):  # bytes; some versions accept no more than the second
            if mallopt(mmap_threshold, limit):
                break
        mallopt(trim_threshold, 2**31 - 1)
