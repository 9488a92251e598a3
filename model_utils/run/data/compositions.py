"""What the compositions of structures say of E0s."""

import numpy as np

from dataloader.atomic_energies import impossible
from dataloader.dataset import Dataset

LOOKED_AT = 2000  # structures: those of a file that is not in the memory cost a read each


def give_impossible_energies(data: Dataset) -> bool:
    """Whether the model has E0s that no atom can have, and a fit to the compositions of the data
    would give such E0s again, since they do not determine an E0 for each element that occurs.

    Of more structures than ``LOOKED_AT`` so many are looked at, evenly over all.
    """
    facts = data.facts
    rows = [dict(zip(facts.atomic_numbers, row, strict=True)) for row in facts.atomic_energies]
    if not any(impossible(row) for row in rows):
        return False
    numbers = np.unique(np.linspace(0, len(data) - 1, min(len(data), LOOKED_AT)).astype(np.int64))
    counts = np.zeros((len(numbers), len(facts.atomic_numbers)))
    for row, number in enumerate(numbers.tolist()):
        species = facts.species_of(data.structure(number).atomic_numbers)
        counts[row] = np.bincount(species, minlength=counts.shape[1])
    return bool(np.linalg.matrix_rank(counts) < np.count_nonzero(counts.any(axis=0)))
