"""What LAMMPS takes: mace's own TorchScript wrapper (pair_style mace) and its ML-IAP wrapper."""

import io
import warnings

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from model_utils.models.default_dtype import default_dtype
from model_utils.models.mace_import import lammps_classes
from model_utils.models.weights import written_and_read


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
    """The object that LAMMPS's ML-IAP interface unpickles."""
    _, _, mliap_class = lammps_classes()
    module.lammps_mliap = True  # type: ignore[assignment]
    return mliap_class(module, head=head)
