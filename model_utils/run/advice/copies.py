"""Structures of validation and test that are copies of training structures: errors on them say
nothing of new ones.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataloader.dataset import Dataset
from dataloader.structure import Structure
from model_utils.run.data.open_data import TrainingData
from model_utils.runtime import log

ROLES = {"validation": "valid", "test": "test"}


def warn_of_copies(data: TrainingData) -> None:
    """Say how many there are, bit for bit, among the structures that are in the memory, and which
    records of files on the disk are in two sets.

    Those on the disk are not read for it: ``metadata.py check`` compares them too, and finds
    structures that are nearly the same.
    """
    _warn_of_repeated_files(data.train)
    _warn_of_shared_records(data)
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


def _warn_of_repeated_files(train: Dataset) -> None:
    """Say which files are named twice for one head: each of their structures counts twice."""
    named = [
        (source.path.resolve(), spec.head if (spec := getattr(source, "spec", None)) else None)
        for source in train.sources
        if len(source)
    ]
    for (path, _), count in Counter(named).items():
        if count > 1:
            log.warning(
                "warning: %s is named %d times among the data to train on: its structures count "
                "so often",
                *(path, count),
            )


def _warn_of_shared_records(data: TrainingData) -> None:
    """Say how many records of files on the disk are trained on and judged by; validation that was
    split off has none.
    """
    trained = _rows_on_disk(data.train)
    for role, name in ROLES.items():
        dataset: Dataset | None = getattr(data, name)
        if dataset is None or (name == "valid" and data.was_split):
            continue
        for path, rows in _rows_on_disk(dataset).items():
            of_training = trained.get(path)
            if of_training is None:
                continue
            # a mask, since sorting tens of millions of rows takes half a minute
            is_trained = np.zeros(max(int(of_training.max()), int(rows.max())) + 1, dtype=bool)
            is_trained[of_training] = True
            shared = int(is_trained[rows].sum())
            if shared:
                log.warning(
                    "warning: %d of the %d %s structures of %s are training structures too: "
                    "errors on them say nothing of new ones",
                    *(shared, len(rows), role, path),
                )


def _rows_on_disk(dataset: Dataset) -> dict[Path, NDArray[np.int64]]:
    """Rows of a data set by the files they lie in, of those that are not in the memory."""
    rows: dict[Path, NDArray[np.int64]] = {}
    for number, source in enumerate(dataset.sources):
        own = dataset.places[dataset.places[:, 0] == number, 1].astype(np.int64)
        if not source.in_memory and len(own):
            path = source.path.resolve()
            rows[path] = np.concatenate([rows[path], own]) if path in rows else own
    return rows


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
