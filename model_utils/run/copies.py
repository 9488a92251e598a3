"""Structures of validation and test that are copies of training structures: errors on them say
nothing of new ones.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from dataloader.dataset import Dataset
from dataloader.structure import Structure
from model_utils.run.open_data import TrainingData
from model_utils.runtime import log

ROLES = {"validation": "valid", "test": "test"}


def warn_of_copies(data: TrainingData) -> None:
    """Say how many there are, bit for bit, among the structures that are in the memory.

    Those on the disk are not read for it: ``metadata.py check`` compares them too, and finds
    structures that are nearly the same.
    """
    trained = {_digest(structure) for _, structure in _in_memory(data.train)}
    if not trained:
        return
    for role, name in ROLES.items():
        dataset: Dataset | None = getattr(data, name)
        if dataset is None:
            continue
        copies = [
            identifier
            for identifier, structure in _in_memory(dataset)
            if _digest(structure) in trained
        ]
        if copies:
            log.warning(
                "warning: %d of the %d %s structures are copies of training structures (the "
                "first: %s): errors on them say nothing of new ones; metadata.py check finds "
                "also those that are nearly the same",
                *(len(copies), len(dataset), role, copies[0]),
            )


def _in_memory(dataset: Dataset) -> Iterator[tuple[str, Structure]]:
    """Names and structures of a data set that need not be read for it."""
    of_sources = np.array([source.in_memory for source in dataset.sources], dtype=bool)
    if of_sources.any():
        for index in np.flatnonzero(of_sources[dataset.places[:, 0]]).tolist():
            yield dataset.name(index), dataset.structure(index)


def _digest(structure: Structure) -> bytes:
    content = hashlib.blake2b(digest_size=16)
    for array in (structure.atomic_numbers, structure.positions, structure.cell):
        content.update(array.tobytes())
    states = (*structure.pbc, structure.charge, structure.spin, structure.head)
    content.update(repr(states).encode())
    return content.digest()
