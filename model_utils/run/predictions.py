"""What a network says of a batch, as numbers of its structures on the host."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dataloader.batch import Batch
from dataloader.quantities import ENERGY, QUANTITIES
from dataloader.structure import LabelValue


def with_references(batch: Batch, values: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Labels or predictions of a batch by quantity on the host; energies with their reference energies."""
    whole: dict[str, NDArray[np.float64]] = {}
    for name, value in values.items():
        total = value.double() + batch.reference_energy if name == ENERGY.name else value.double()
        whole[name] = total.cpu().numpy()
    return whole


def of_structure(values: Mapping[str, NDArray[np.float64]], structure: int, atoms: slice) -> dict[str, LabelValue]:
    """What a batch's values are for one of its structures."""
    own: dict[str, LabelValue] = {}
    for name, value in values.items():
        if QUANTITIES[name].per_atom:
            own[name] = value[atoms]
        else:
            own[name] = value[structure] if value.ndim > 1 else float(value[structure])
    return own
