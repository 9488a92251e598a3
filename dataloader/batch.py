"""Flat-array batches: what the step reads, made once per batch in the loader's workers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataloader.needs import FeatureSpec, ModelFacts
from dataloader.neighbors import Graph
from dataloader.quantities import ENERGY, QUANTITIES, Quantity
from dataloader.structure import Structure

Rows = Mapping[str, int]  # by quantity: labelled rows, known on the host before any forward pass


def added_rows(parts: Iterable[Rows]) -> dict[str, int]:
    """The labelled rows of several batches together."""
    total = dict.fromkeys(QUANTITIES, 0)
    for rows in parts:
        for name, count in rows.items():
            total[name] += count
    return total


class Label(NamedTuple):
    """Targets of one quantity with their weights, a row for each atom or for each structure.

    A row whose mask is False is in neither sum of a mean. The energy is the label minus the sum of
    reference energies, formed in float64 on the host: at 10⁵ eV a float32 step is 8 meV.
    """

    value: Tensor  # (n_rows, *components), float64, in the quantity's unit; 0 where unlabelled
    # (n_rows,), bool: labelled, and of an atom that was free to move where that is asked for
    mask: Tensor
    weight: Tensor  # (n_rows,), float64


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Several structures as flat arrays; edges sorted by receiver."""

    positions: Tensor  # (n_atoms, 3), Å, working precision
    species: Tensor  # (n_atoms,), int64, index into the model's atomic_numbers
    structure: Tensor  # (n_atoms,), int64, index of the atom's structure
    ptr: Tensor  # (n_structures + 1,), int64, first atom of each structure
    head: Tensor  # (n_structures,), int64
    # (n_structures, 3, 3), Å; a unit cell where a structure is not periodic in three directions
    cell: Tensor
    senders: Tensor  # (n_edges,), int64
    receivers: Tensor  # (n_edges,), int64
    cell_shifts: Tensor  # (n_edges, 3), int32, whole lattice vectors crossed by the edge
    # (n_edges, 3), Å, cell_shifts @ cell: vector = positions[receiver] - positions[sender] + shift
    shifts: Tensor
    reference_energy: Tensor  # (n_structures,), float64, eV, sum of the E0s
    sizes: Tensor  # (n_structures,), float64, numbers of atoms
    labels: Mapping[str, Label]  # by quantity, of every one there is
    rows: Rows  # behind the labels
    features: dict[str, Tensor]
    index: tuple[int, ...]  # of the structures in their dataset, to name them in messages
    # what a form of the network needs besides, made by `Loader(prepare=…)`: tensors travel with the
    # others, whole numbers stay on the host. Whoever changes species or edges, or takes a part of
    # the batch, leaves it out.
    orders: Mapping[str, Tensor | tuple[int, ...]] = field(default_factory=dict)

    @property
    def n_structures(self) -> int:
        """Number of structures."""
        return len(self.index)

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.positions.shape[0]

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return self.senders.shape[0]

    @property
    def volumes(self) -> Tensor:
        """(n_structures,), float64, Å³; 1 where a structure is not periodic in three directions."""
        a, b, c = self.cell.to(torch.float64).unbind(dim=1)
        return (torch.linalg.cross(a, b) * c).sum(dim=1).abs()

    def without_edges(self) -> "Batch":
        """The structures, their labels and sizes on the host: what tables and files are made of."""
        none = self.senders[:0]
        bare = replace(
            self,
            senders=none,
            receivers=none,
            cell_shifts=self.cell_shifts[:0],
            shifts=self.shifts[:0],
            orders={},
        )
        return _map_tensors(bare, lambda tensor: tensor.cpu())

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, by one copy that overlaps with computing.

        Tensors that do not lie in one buffer yet are put into one of pinned memory:
        each copy of its own costs some 10 µs of the host, and waits for the device
        where the memory is not pinned.
        """
        if device.type == "cpu" or self.positions.device == device:
            return self
        if self.positions.device.type != "cpu":  # from one device to another
            return _map_tensors(self, lambda tensor: tensor.to(device))
        packed = self if _share_a_buffer(self) else BatchBuffer(self).pin_memory().batch()
        return _map_tensors(packed, _Mover(device))


def _share_a_buffer(batch: Batch) -> bool:
    addresses = set()
    _map_tensors(batch, lambda tensor: addresses.add(tensor.untyped_storage().data_ptr()))
    return len(addresses) == 1


class _Mover:
    """Copies tensors to a device, and a buffer in which several of them lie once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # on the device, by the address of the buffer on the host
        self._buffers: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not tensor.is_contiguous() or storage.nbytes() == tensor.nbytes:
            return tensor.to(self.device, non_blocking=True)
        address = storage.data_ptr()
        if address not in self._buffers:
            on_host = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._buffers[address] = on_host.to(self.device, non_blocking=True)
        begin = tensor.storage_offset() * tensor.itemsize
        part = self._buffers[address][begin : begin + tensor.nbytes]
        return part.view(tensor.dtype).reshape(tensor.shape)


class _Place(NamedTuple):
    """Where in a buffer a tensor lies."""

    begin: int  # bytes
    end: int
    dtype: torch.dtype
    shape: torch.Size


class BatchBuffer:
    """A batch with its tensors in one buffer: between processes each tensor would cost 0.1
    ms, and there are thirty.
    """

    def __init__(self, batch: Batch) -> None:
        tensors: list[Tensor] = []
        places: list[_Place] = []

        def place(tensor: Tensor) -> _Place:
            begin = -(-places[-1].end // 64) * 64 if places else 0
            tensors.append(tensor)
            places.append(_Place(begin, begin + tensor.nbytes, tensor.dtype, tensor.shape))
            return places[-1]

        self.form = _map_tensors(batch, place)
        self.buffer = torch.empty(places[-1].end, dtype=torch.uint8)
        for tensor, place_of in zip(tensors, places, strict=True):
            self._part(place_of).copy_(tensor)

    def batch(self) -> Batch:
        """The batch; its tensors are parts of the buffer."""
        batch: Batch = _map_tensors(self.form, self._part)
        return batch

    def _part(self, place: _Place) -> Tensor:
        return self.buffer[place.begin : place.end].view(place.dtype).reshape(place.shape)

    def pin_memory(self) -> "BatchBuffer":
        """In pinned host memory; called by torch's DataLoader."""
        self.buffer = self.buffer.pin_memory()
        return self


def _map_tensors(record: Any, function: Any) -> Any:
    """The record with something else for each tensor, or for each place of one."""
    changed: dict[str, Any] = {}
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, Tensor | _Place):
            changed[item.name] = function(value)
        elif item.name == "labels":
            changed[item.name] = {
                name: Label(*map(function, label)) for name, label in value.items()
            }
        elif item.name in ("features", "orders"):
            changed[item.name] = {
                name: function(entry) if isinstance(entry, Tensor | _Place) else entry
                for name, entry in value.items()
            }
    return replace(record, **changed)


def collate(
    structures: Sequence[Structure],
    graphs: Sequence[Graph],
    index: Sequence[int],
    facts: ModelFacts,
    dtype: torch.dtype,
    *,
    free_atoms_only: bool,
) -> Batch:
    """Lay several structures end to end.

    Args:
        structures: with their labels, in order.
        graphs: their edges, in the same order.
        index: their positions in the dataset.
        facts: of the model.
        dtype: working precision of geometry; labels stay float64.
        free_atoms_only: force components of atoms that were held fixed count neither
            in loss nor in metrics.
    """
    sizes = np.array([s.n_atoms for s in structures])
    ptr = np.concatenate([[0], sizes.cumsum()])
    species = facts.species_of(np.concatenate([s.atomic_numbers for s in structures]))
    heads = np.array([0 if s.head is None else facts.heads.index(s.head) for s in structures])
    n_edges = np.array([g.n_edges for g in graphs])
    offsets = np.repeat(ptr[:-1], n_edges)
    cell_shifts = np.concatenate([g.shifts for g in graphs])
    shifts = np.concatenate([g.shifts @ s.cell for g, s in zip(graphs, structures, strict=True)])
    references = _reference_energies(species, ptr, heads, facts)
    labels = {
        quantity.name: _label(quantity, structures, references, free_atoms_only)
        for quantity in QUANTITIES.values()
    }
    return Batch(
        positions=torch.from_numpy(np.concatenate([g.positions for g in graphs])).to(dtype),
        species=torch.from_numpy(species),
        structure=torch.from_numpy(np.repeat(np.arange(len(structures)), sizes)),
        ptr=torch.from_numpy(ptr),
        head=torch.from_numpy(heads),
        cell=torch.from_numpy(
            np.stack([s.cell if s.periodic else np.eye(3) for s in structures])
        ).to(dtype),
        senders=torch.from_numpy(np.concatenate([g.senders for g in graphs]) + offsets),
        receivers=torch.from_numpy(np.concatenate([g.receivers for g in graphs]) + offsets),
        cell_shifts=torch.from_numpy(cell_shifts.astype(np.int32)),
        shifts=torch.from_numpy(shifts).to(dtype),
        reference_energy=torch.from_numpy(references),
        sizes=torch.from_numpy(sizes.astype(np.float64)),
        labels=labels,
        rows={name: int(label.mask.sum()) for name, label in labels.items()},
        features={spec.name: _feature(structures, spec, dtype) for spec in facts.features},
        index=tuple(index),
    )


def _reference_energies(
    species: np.ndarray, ptr: np.ndarray, heads: np.ndarray, facts: ModelFacts
) -> np.ndarray:
    per_head = np.array(facts.atomic_energies)  # (n_heads, n_elements)
    per_atom = per_head[np.repeat(heads, np.diff(ptr)), species]
    return np.add.reduceat(per_atom, ptr[:-1])


def _label(
    quantity: Quantity,
    structures: Sequence[Structure],
    references: np.ndarray,
    free_atoms_only: bool,
) -> Label:
    values = [s.labels.get(quantity.name) for s in structures]
    weights = np.array([s.weight_of(quantity.name) for s in structures])
    if not quantity.per_atom:
        labelled = np.array([value is not None for value in values])
        zero = np.zeros(quantity.components)
        stacked = np.stack([zero if value is None else np.asarray(value) for value in values])
        if quantity == ENERGY:
            stacked = stacked - np.where(labelled, references, 0.0)
        return Label(
            torch.from_numpy(stacked), torch.from_numpy(labelled), torch.from_numpy(weights)
        )
    shapes = [quantity.shape(s.n_atoms) for s in structures]
    rows = [
        np.zeros(shape) if value is None else value
        for value, shape in zip(values, shapes, strict=True)
    ]
    counted = [counted_atoms(quantity, structure, free_atoms_only) for structure in structures]
    return Label(
        torch.from_numpy(np.concatenate(rows)),
        torch.from_numpy(np.concatenate(counted)),
        torch.from_numpy(np.repeat(weights, [s.n_atoms for s in structures])),
    )


def rows_of(structure: Structure, free_atoms_only: bool) -> dict[str, int]:
    """Labelled rows of a structure by quantity, as ``collate`` counts them."""
    return {
        name: int(counted_atoms(quantity, structure, free_atoms_only).sum())
        if quantity.per_atom
        else int(structure.labels.get(name) is not None)
        for name, quantity in QUANTITIES.items()
    }


def counted_atoms(quantity: Quantity, structure: Structure, free_atoms_only: bool) -> np.ndarray:
    """Which atoms' labels of a quantity count, (n_atoms,)."""
    if quantity.name not in structure.labels:
        return np.zeros(structure.n_atoms, dtype=bool)
    if quantity.of_free_atoms and free_atoms_only and structure.free_atoms is not None:
        return structure.free_atoms
    return np.ones(structure.n_atoms, dtype=bool)


def _feature(structures: Sequence[Structure], spec: FeatureSpec, dtype: torch.dtype) -> Tensor:
    """(n_structures,) or (n_atoms, width), the shapes that mace's embedding expects."""
    rows = (-1, spec.width) if spec.per_atom else (-1,)
    values = [s.features[spec.name].reshape(rows) for s in structures]
    return torch.from_numpy(np.concatenate(values)).to(dtype)
