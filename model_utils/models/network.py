"""What every form of the network offers, and how forces and stress follow from its energies."""

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.quantities import ENERGY, FORCES, STRESS
from losses import Prediction

Parameters = Mapping[str, Tensor]
PLAIN_TORCH = "plain torch"  # arithmetic of a fast form without kernels


class Network(Protocol):
    """What computes outputs from geometry, with parameters that are handed in; mace's own
    module or a faster form.
    """

    module: nn.Module
    kind: str  # what --step calls it, recorded in train_state
    # quantities that `outputs` returns; forces and stress follow from the energy
    gives: frozenset[str]

    @property
    def arithmetic(self) -> str:
        """What computes; another one gives other last bits."""
        ...

    def prepared(self, batch: Batch) -> Batch:
        """The batch with what this form needs besides its arrays; the loader calls it
        where batches are made.
        """
        ...

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """The quantities of ``gives``, as a function of geometry that can be differentiated twice.

        Args:
            parameters: tensors by mace's names; the module's own or, for an
                evaluation, an average of them.
            batch: everything of the structures but their geometry.
            positions: (n_atoms, 3), Å.
            shifts: (n_edges, 3), Å, added to positions[receiver] - positions[sender].

        Returns:
            By quantity (n_rows, *components) in its unit and working precision; the energy
            (n_structures,) is the interaction energy: total minus E0s, eV.
        """
        ...


def predict(
    network: Network,
    parameters: Parameters,
    batch: Batch,
    *,
    wanted: Collection[str],
    training: bool,
) -> Prediction:
    """What the network gives of a batch, the forces and, where wanted, the stress.

    Forces are −∂E/∂r. Stress is σ = (1/V) ∂E/∂ε with positions and shifts strained together by the
    symmetric part of ε (Knuth et al., Comput. Phys. Commun. 190, 33, 2015), so rotations do not
    enter. Volumes of structures that are not periodic in three directions are those of a unit cell;
    their stress is masked in the labels.

    Several networks as one (``committee``) say what they predict themselves.

    Args:
        network: the form of the network.
        parameters: its tensors.
        batch: the structures.
        wanted: quantities that are looked at; what costs more is left out where it is not.
        training: keep the graph, so that the loss of the forces can be
            differentiated by the parameters.
    """
    of_several = getattr(network, "predicted", None)
    if of_several is not None:
        together: Prediction = of_several(parameters, batch, wanted=wanted)
        return together
    stress = STRESS.name in wanted
    with torch.enable_grad():
        positions = batch.positions.detach().requires_grad_(True)
        strained = positions
        shifts = batch.shifts
        inputs = [positions]
        if stress:
            strain = torch.zeros_like(batch.cell).requires_grad_(True)  # (n_structures, 3, 3)
            symmetric = 0.5 * (strain + strain.transpose(1, 2))
            strained = positions + _deform(positions, symmetric[batch.structure])
            shifts = batch.shifts + _deform(batch.shifts, symmetric[batch.structure[batch.senders]])
            inputs = [positions, strain]
        outputs = dict(network.outputs(parameters, batch, strained, shifts))
        if ENERGY.name in outputs:
            if not outputs[
                ENERGY.name
            ].requires_grad:  # of a network that gives numbers without edges
                outputs[ENERGY.name] = outputs[ENERGY.name] + 0.0 * positions.sum()
            energy = outputs[ENERGY.name].sum()
            gradients = torch.autograd.grad(
                energy, inputs, create_graph=training, allow_unused=True
            )
    given = outputs if training else {name: output.detach() for name, output in outputs.items()}
    if ENERGY.name not in outputs:
        return given
    slopes = [
        torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)
    ]
    predicted = {FORCES.name: -slopes[0], **given}  # forces that a network gives itself are taken
    if stress:
        predicted[STRESS.name] = slopes[1] / volumes(batch.cell)[:, None, None]
    return predicted


def volumes(cell: Tensor) -> Tensor:
    """Volumes of cells, (n_structures, 3, 3), Å; (n_structures,), Å³.

    On a GPU |a · (b × c)|: a determinant would call a solver's library. On a CPU it keeps the
    last bits of stored runs.
    """
    if cell.device.type == "cpu":
        return torch.linalg.det(cell).abs()
    a, b, c = cell.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(dim=1).abs()


def _deform(vectors: Tensor, strain: Tensor) -> Tensor:
    return torch.einsum("ni,nij->nj", vectors, strain)
