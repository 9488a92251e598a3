"""Sums of errors as a checkpoint has them: by name, so that one more quantity
does not move the others.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from losses import ATOMS, STRUCTURES, sum_names

BEFORE_QUANTITIES = (  # order of the sums in checkpoints that hold them as one tensor
    "energy loss",
    "forces loss",
    "stress loss",
    "energy squared",
    "energy absolute",
    "energy undivided",
    "forces squared",
    "forces absolute",
    "stress squared",
    "stress absolute",
    "energy rows",
    "forces rows",
    "stress rows",
    STRUCTURES,
    ATOMS,
)


def named_sums(sums: Tensor) -> dict[str, float]:
    """Sums by their names."""
    return dict(zip(sum_names(), sums.tolist(), strict=True))


def sums_of_named(stored: Mapping[str, float] | Tensor, device: torch.device) -> Tensor:
    """Sums in their order from what a checkpoint holds; a quantity that it does
    not know has none yet.
    """
    named = (
        dict(zip(BEFORE_QUANTITIES, stored.tolist(), strict=True))
        if isinstance(stored, Tensor)
        else stored
    )
    return torch.tensor(
        [named.get(name, 0.0) for name in sum_names()], dtype=torch.float64, device=device
    )
