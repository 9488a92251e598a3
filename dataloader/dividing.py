"""A batch in two, where a device does not hold it whole."""

import numpy as np
import torch
from torch import Tensor

from dataloader.batch import Batch, Label
from dataloader.quantities import QUANTITIES


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The structures before and after the middle of the edges, at least one in each.

    Raises:
        ValueError: the batch is a single structure.
    """
    if batch.n_structures < 2:
        raise ValueError("a single structure cannot be divided")
    per_structure = torch.bincount(batch.structure[batch.receivers], minlength=batch.n_structures)
    first_edge = np.concatenate([[0], per_structure.cumsum(0).cpu().numpy()])
    middle = int(np.searchsorted(first_edge, batch.n_edges / 2))
    middle = min(max(middle, 1), batch.n_structures - 1)
    first_atom = batch.ptr.cpu().numpy()
    return (
        _part(batch, 0, middle, first_atom, first_edge),
        _part(batch, middle, batch.n_structures, first_atom, first_edge),
    )


def _part(
    batch: Batch, first: int, end: int, first_atom: np.ndarray, first_edge: np.ndarray
) -> Batch:
    """The structures from ``first`` up to ``end`` as a batch of their own."""
    structures = slice(first, end)
    atoms = slice(int(first_atom[first]), int(first_atom[end]))
    edges = slice(int(first_edge[first]), int(first_edge[end]))
    labels = {
        name: Label(
            *(tensor[atoms if QUANTITIES[name].per_atom else structures] for tensor in label)
        )
        for name, label in batch.labels.items()
    }
    return Batch(
        positions=batch.positions[atoms],
        species=batch.species[atoms],
        structure=batch.structure[atoms] - first,
        ptr=batch.ptr[first : end + 1] - atoms.start,
        head=batch.head[structures],
        cell=batch.cell[structures],
        senders=batch.senders[edges] - atoms.start,
        receivers=batch.receivers[edges] - atoms.start,
        cell_shifts=batch.cell_shifts[edges],
        shifts=batch.shifts[edges],
        reference_energy=batch.reference_energy[structures],
        sizes=batch.sizes[structures],
        labels=labels,
        rows={name: int(label.mask.sum()) for name, label in labels.items()},
        features={
            name: value[_rows(value, structures, atoms)] for name, value in batch.features.items()
        },
        index=batch.index[structures],
    )


def _rows(value: Tensor, structures: slice, atoms: slice) -> slice:
    """A feature of structures is a vector, one of atoms a matrix (``batch.collate``)."""
    return structures if value.ndim == 1 else atoms
