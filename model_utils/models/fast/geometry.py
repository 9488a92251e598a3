"""Spherical harmonics and lengths of the pairs' vectors."""

import math

import torch
from torch import Tensor


def spherical_harmonics(vectors: Tensor, lengths: Tensor, max_ell: int) -> Tensor:
    """Real spherical harmonics of e3nn, "component" normalised (Σ_m Y_lm² = 2l + 1), axes in the order x, y, z.

    Args:
        vectors: (n_pairs, 3), Å.
        lengths: (n_pairs, 1), Å.
        max_ell: highest order, up to 3.

    Returns:
        (n_pairs, (max_ell + 1)²), without unit; order l in columns l² to (l + 1)² − 1.
    """
    x, y, z = (vectors / lengths).unbind(1)
    columns = [torch.ones_like(x)]
    one = [x, y, z]
    columns += [math.sqrt(3.0) * c for c in one]
    if max_ell >= 2:
        x2z2, y2 = x * x + z * z, y * y
        two = [
            math.sqrt(3.0) * x * z,
            math.sqrt(3.0) * x * y,
            y2 - 0.5 * x2z2,
            math.sqrt(3.0) * y * z,
            math.sqrt(3.0) / 2.0 * (z * z - x * x),
        ]
        columns += [math.sqrt(5.0) * c for c in two]
    if max_ell >= 3:
        three = [
            math.sqrt(5.0 / 6.0) * (two[0] * z + two[4] * x),
            math.sqrt(5.0) * two[0] * y,
            math.sqrt(3.0 / 8.0) * (4.0 * y2 - x2z2) * x,
            0.5 * y * (2.0 * y2 - 3.0 * x2z2),
            math.sqrt(3.0 / 8.0) * z * (4.0 * y2 - x2z2),
            math.sqrt(5.0) * two[4] * y,
            math.sqrt(5.0 / 6.0) * (two[4] * z - two[0] * x),
        ]
        columns += [math.sqrt(7.0) * c for c in three]
    return torch.stack(columns, dim=1)


def odd(max_ell: int) -> list[bool]:
    """For every column of ``spherical_harmonics``: whether it changes sign with the vector."""
    return [order % 2 == 1 for order in range(max_ell + 1) for _ in range(2 * order + 1)]
