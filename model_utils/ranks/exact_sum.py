"""A sum of tensors without rounding, so that neither the order of the addends nor their
grouping changes its bits.

Every addend is first rounded to a grid that all share: multiples of 2^(e − b), where 2^e bounds
the largest of them. Sums of such multiples stay below 2^53 of them, so float64 adds them exactly
in any order (pre-rounding, Demmel and Nguyen, Fast Reproducible Floating-Point Summation, ARITH
2013). What is lost is at most P · 2^(e−b−1) for P addends: at eight 2^-48 of the largest entry,
far below float32's rounding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MANTISSA = 53  # bits of float64
MOST_BITS = 51  # with one more a value could leave the binade of the constant that rounds it


def largest_entries(parts: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    """The largest magnitude of each tensor over several parts.

    Args:
        parts: of each the same tensors; maybe none.
        device: of the result.

    Returns:
        (n_tensors,), float64.
    """
    norms = [
        torch.stack(torch._foreach_norm(list(part), math.inf)).to(torch.float64) for part in parts
    ]
    return (
        torch.stack(norms).amax(dim=0)
        if norms
        else torch.zeros(0, dtype=torch.float64, device=device)
    )


def rounders(largest: Tensor, n_addends: int) -> Tensor:
    """The constants c with which (x + c) − c rounds every addend to the grid of its tensor.

    Args:
        largest: (n_tensors,), float64, magnitudes over all addends.
        n_addends: how many there are in all.

    Returns:
        (n_tensors,), float64.
    """
    bits = min(MOST_BITS, MANTISSA - math.ceil(math.log2(n_addends)))
    _, exponent = torch.frexp(largest)
    return torch.ldexp(torch.full_like(largest, 1.5), exponent - bits + MANTISSA - 1)


def add_rounded(total: Sequence[Tensor], part: Sequence[Tensor], constants: Tensor) -> None:
    """Add the tensors of one part, rounded to the common grids, to a total.

    Args:
        total: float64, of the shapes of the part; changed.
        part: of any precision. What is not finite makes the total so.
        constants: (n_tensors,), of ``rounders``.
    """
    for sum_of_it, addend, constant in zip(total, part, constants.unbind(), strict=True):
        sum_of_it.add_(addend.to(torch.float64).add(constant).sub_(constant))
