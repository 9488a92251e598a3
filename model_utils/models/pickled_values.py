"""Numbers, irreps and names of functions in a pickled module of mace, of any of its releases."""

from typing import Any

import numpy as np
from torch import Tensor

from model_utils.models.sandbox import SandboxedObject, attribute, child, children, class_name

RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}


def scalar_of(tensor: Tensor) -> float:
    """Exactly the stored number: 5.7 in single precision is 5.699999809265137, and
    so the network uses it.
    """
    return float(tensor.detach().reshape(()).item())


def whole_number(number: float) -> int:
    """The number as a whole one; ValueError where it is none."""
    if number != int(number):
        raise ValueError(f"{number} is no whole number")
    return int(number)


def nested_numbers(tensor: Tensor) -> list[Any]:
    """The numbers of a tensor as lists in lists, exactly as they are stored."""
    return [scalar_of(item) if item.ndim == 0 else nested_numbers(item) for item in tensor.detach()]


def plain_float(value: Any) -> float:
    """A float that was stored as a number, a tensor, or (in 2022) as one of numpy's scalars."""
    if isinstance(value, Tensor):
        return scalar_of(value)
    if isinstance(value, SandboxedObject) and type(value).__name__ == "scalar":
        raw = value.__dict__["constructor_arguments"][1]
        dtype = np.float64 if len(raw) == 8 else np.float32
        return float(np.frombuffer(raw, dtype=dtype)[0])
    return float(value)


def irreps_text(value: object) -> str:
    """``128x0e+128x1o`` from text or from the nested tuples of e3nn's Irreps."""
    if isinstance(value, str):
        return value
    terms = []
    for term in _items(value):
        multiplicity, irrep = _items(term)
        order, parity = _items(irrep)
        terms.append(f"{int(multiplicity)}x{int(order)}{'e' if parity == 1 else 'o'}")
    return "+".join(terms)


def simplified(irreps: object) -> str:
    """Irreps with neighbours of one kind together: ``2x0e+3x0e`` is ``5x0e`` (the weights
    of a map are the same).
    """
    terms: list[tuple[int, str]] = []
    for term in irreps_text(irreps).split("+"):
        number, _, kind = term.partition("x")
        before = terms.pop()[0] if terms and terms[-1][1] == kind else 0
        terms.append((int(number or 0) + before, kind))
    return "+".join(f"{number}x{kind}" for number, kind in terms)


def _items(value: Any) -> tuple[Any, ...]:
    """The items of a tuple, also of a sandboxed one of a subclass of tuple."""
    if isinstance(value, SandboxedObject):
        arguments = value.__dict__["constructor_arguments"]
        return _items(arguments[0]) if len(arguments) == 1 else arguments
    return tuple(value)


def correlation_of(product: SandboxedObject) -> int:
    """The highest degree of a product block, which all its contractions share."""
    contractions = children(child(product, "symmetric_contractions"), "contractions")
    return int(attribute(contractions[0], "correlation"))


def activation_name(function: object) -> str:
    """The name of a function that was pickled, ``None`` where there is none."""
    if isinstance(function, SandboxedObject):  # torch.tanh is pickled as getattr(…, "tanh")
        return str(function.__dict__["constructor_arguments"][-1])
    return "None" if function is None else class_name(function).rpartition(".")[2]


def radial_mlp_of(interaction: SandboxedObject) -> list[int]:
    """Widths of the hidden layers of the radial network; without them stored, those of the
    network as it was built.
    """
    stored = attribute(interaction, "radial_MLP")
    if stored is not None:
        return list(stored)
    return list(attribute(child(interaction, "conv_tp_weights"), "hs")[1:-1])
