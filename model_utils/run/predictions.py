"""What a network says of a batch, as numbers of its structures on the host."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dataloader.batch import Batch
from dataloader.quantities import ENERGY, QUANTITIES
from dataloader.structure import LabelValue
from model_utils.models.committee import NODE_ENERGIES, STD


def with_references(batch: Batch, values: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """Labels or predictions of a batch by quantity on the host; energies with
    their reference energies.
    """
    whole: dict[str, NDArray[np.float64]] = {}
    for name, value in values.items():
        if name not in QUANTITIES:
            continue
        total = value.double() + batch.reference_energy if name == ENERGY.name else value.double()
        whole[name] = total.cpu().numpy()
    return whole


def besides(values: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """What is predicted besides quantities, on the host: energies of atoms, and what
    a committee differs by.
    """
    return {
        name: value.double().cpu().numpy()
        for name, value in values.items()
        if name not in QUANTITIES
    }


def is_of_atoms(name: str) -> bool:
    """Whether a prediction of this name has a row for each atom."""
    of_what = name.removesuffix(STD)
    return of_what == NODE_ENERGIES or QUANTITIES[of_what].per_atom


def of_structure(
    values: Mapping[str, NDArray[np.float64]], structure: int, atoms: slice
) -> dict[str, LabelValue]:
    """What a batch's values are for one of its structures."""
    own: dict[str, LabelValue] = {}
    for name, value in values.items():
        if is_of_atoms(name):
            own[name] = value[atoms]
        else:
            own[name] = value[structure] if value.ndim > 1 else float(value[structure])
    return own
