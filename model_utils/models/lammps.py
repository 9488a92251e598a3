"""What LAMMPS takes: mace's own TorchScript wrapper (pair_style mace) and its ML-IAP wrapper."""

import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from model_utils.models.default_dtype import default_dtype
from model_utils.models.mace_import import lammps_classes
from model_utils.models.weights import written_and_read

MLIAP_STATE = {"total_charge": 0.0, "total_spin": 1.0}  # the only one that mace's wrapper computes


def torchscript(module: nn.Module, head: str) -> bytes:
    """The compiled wrapper as ``pair_style mace`` loads it.

    Compiling rewrites the generated functions in place, which copies of a network share: it
    gets functions of its own.
    """
    compile_mode, torchscript_class, _ = lammps_classes()
    own = written_and_read(module)
    with warnings.catch_warnings(), default_dtype(next(module.parameters()).dtype):
        warnings.simplefilter("ignore")  # deprecations of torch.jit
        buffer = io.BytesIO()
        torch.jit.save(compile_mode(torchscript_class(own, head=head)), buffer)
    return buffer.getvalue()


def run_torchscript(data: bytes, batch: Batch, n_elements: int) -> tuple[Tensor, Tensor]:
    """Total energy (1,), eV, and forces (n_atoms, 3), eV/Å, of one structure as the stored
    wrapper computes them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapper = torch.jit.load(io.BytesIO(data), map_location="cpu")
    inputs = {
        "positions": batch.positions.detach().requires_grad_(True),
        "node_attrs": nn.functional.one_hot(batch.species, n_elements).to(batch.positions.dtype),
        "edge_index": torch.stack([batch.senders, batch.receivers]),
        "shifts": batch.shifts,
        "unit_shifts": batch.cell_shifts.to(batch.positions.dtype),
        "cell": batch.cell.reshape(-1, 3),
        "batch": batch.structure,
        "ptr": batch.ptr,
    }
    with default_dtype(batch.positions.dtype):
        # atoms of this process, which are all
        local = torch.ones(batch.n_atoms, dtype=batch.positions.dtype)
        outputs = wrapper(inputs, local, False)
    return outputs["total_energy_local"].detach(), outputs["forces"].detach()


def mliap(module: nn.Module, head: str) -> object:
    """The object that LAMMPS's ML-IAP interface unpickles; what a network takes of charge and
    spin is that of ``MLIAP_STATE``.
    """
    _, _, mliap_class = lammps_classes()
    module.lammps_mliap = True  # type: ignore[assignment]
    with default_dtype(next(module.parameters()).dtype):
        return mliap_class(module, head=head)


def run_mliap(wrapper: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Total energy (1,), eV, and forces (n_atoms, 3), eV/Å, of one structure as LAMMPS
    gets them from the object of ``mliap``.
    """
    handed = _WithoutGhosts(batch)
    with default_dtype(batch.positions.dtype):
        wrapper.compute_forces(handed)
    return torch.tensor([handed.eatoms.sum()]), torch.from_numpy(handed.forces)


class _WithoutGhosts:
    """What LAMMPS hands an ML-IAP model, of one process and without ghosts: every neighbour is
    an atom of its own. Names are LAMMPS's.
    """

    def __init__(self, batch: Batch) -> None:
        self.nlocal = batch.n_atoms
        self.ntotal = batch.n_atoms
        self.npairs = batch.n_edges
        self.elems = batch.species.numpy()
        self.pair_i = batch.receivers.numpy()
        self.pair_j = batch.senders.numpy()
        places = batch.positions.detach()
        rij = places[batch.senders] - places[batch.receivers] - batch.shifts
        self.rij = rij.numpy()
        self.eatoms = np.zeros(batch.n_atoms)
        self.forces = np.zeros((batch.n_atoms, 3))

    def forward_exchange(self, features: Tensor, copied: Tensor, width: int) -> None:
        copied.copy_(features)

    reverse_exchange = forward_exchange

    def update_pair_forces_gpu(self, pairs: Tensor) -> None:
        np.add.at(self.forces, self.pair_i, pairs.detach().numpy())
        np.subtract.at(self.forces, self.pair_j, pairs.detach().numpy())
