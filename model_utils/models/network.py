"""What every form of the network offers, and how forces and stress follow from its energies."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from losses import Prediction

Parameters = Mapping[str, Tensor]


class Network(Protocol):
    """A form of the network (mace's own module, later a fast one) that shares mace's parameters by name and shape."""

    module: nn.Module
    kind: str  # what --step calls it, recorded in train_state

    @property
    def arithmetic(self) -> str:
        """What computes; another one gives other last bits."""
        ...

    def energies(self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor) -> Tensor:
        """Interaction energies (total minus E0s) of the structures.

        Args:
            parameters: tensors by mace's names; the module's own or, for an evaluation, an average of them.
            batch: everything of the structures but their geometry.
            positions: (n_atoms, 3), Å.
            shifts: (n_edges, 3), Å, added to positions[receiver] - positions[sender].

        Returns:
            (n_structures,), eV, working precision.
        """
        ...


def predict(network: Network, parameters: Parameters, batch: Batch, *, stress: bool, training: bool) -> Prediction:
    """Energies, forces and, where asked, stress of a batch.

    Forces are −∂E/∂r. Stress is σ = (1/V) ∂E/∂ε with positions and shifts strained together by the symmetric part of ε
    (Knuth et al., Comput. Phys. Commun. 190, 33, 2015), so rotations do not enter. Volumes of structures that are not
    periodic in three directions are those of a unit cell; their stress is masked in the labels.

    Args:
        network: the form of the network.
        parameters: its tensors.
        batch: the structures.
        stress: compute it.
        training: keep the graph, so that the loss of the forces can be differentiated by the parameters.
    """
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_(True)
        strained, shifts, inputs = positions, batch.shifts, [positions]
        if stress:
            strain = torch.zeros_like(batch.cell).requires_grad_(True)  # (n_structures, 3, 3)
            symmetric = 0.5 * (strain + strain.transpose(1, 2))
            strained = positions + _deform(positions, symmetric[batch.structure])
            shifts = batch.shifts + _deform(batch.shifts, symmetric[batch.structure[batch.senders]])
            inputs = [positions, strain]
        energy = network.energies(parameters, batch, strained, shifts)
        gradients = torch.autograd.grad(energy.sum(), inputs, create_graph=training, allow_unused=True)
    forces, *strain_gradient = [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]
    volume = torch.linalg.det(batch.cell).abs()
    return Prediction(
        energy=energy if training else energy.detach(),
        forces=-forces,
        stress=strain_gradient[0] / volume[:, None, None] if stress else None,
    )


def _deform(vectors: Tensor, strain: Tensor) -> Tensor:
    return torch.einsum("ni,nij->nj", vectors, strain)
