"""The loss and the error metrics: tensors in, sums and counts out, divided once at the end.

loss = wE · mean over configurations of ℓ(ΔE / n_atoms) + wF · mean over force components of ℓ(ΔF)
     + wS · mean over the nine stress components of ℓ(Δσ)

A mean is Σ w·ℓ / number of labelled entries, global over micro-batches and ranks: a mean of batch means would weigh
small batches more. Metrics are root mean squares and mean magnitudes of the unweighted errors, from global sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dataloader.batch import LabelCounts, Labels

ElementLoss = Literal["mse", "huber", "mae"]
ForcesLoss = Literal["mse", "huber", "mae", "l2norm"]

SUMS = (
    "energy_loss",
    "forces_loss",
    "stress_loss",
    "energy_sse",
    "energy_sae",
    "energy_sae_cfg",
    "forces_sse",
    "forces_sae",
    "stress_sse",
    "stress_sae",
    "energies",
    "force_atoms",
    "stresses",
    "n_configs",
    "n_atoms",
)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network says of a batch; an output that was not computed is None."""

    energy: Tensor  # (n_structures,), eV, interaction energy
    forces: Tensor | None  # (n_atoms, 3), eV/Å
    stress: Tensor | None = None  # (n_structures, 3, 3), eV/Å³


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Weights and shapes of the three terms.

    ``mse`` is e². ``huber`` is e²/2 up to δ and δ(|e| − δ/2) beyond (Huber 1964). ``mae`` is |e|. ``l2norm``, for
    forces only, is the Euclidean norm of an atom's force error, averaged over atoms (Chanussot et al., ACS Catal. 11,
    6059, 2021): its gradient has the same length for every atom, so a force of 70 eV/Å cannot make training diverge.
    """

    energy_weight: float = 1.0
    forces_weight: float = 100.0
    stress_weight: float = 0.0
    energy_loss: ElementLoss = "mse"
    forces_loss: ForcesLoss = "mse"
    stress_loss: ElementLoss = "mse"
    huber_delta: float = 0.01  # eV per atom, eV/Å, eV/Å³

    def terms(self) -> str:
        """``1 E² + 100 F²``: E of the energy per atom, F of a force component, S of a stress component."""
        shapes = {"mse": "{}²", "huber": "huber({})", "mae": "|{}|", "l2norm": "‖{}‖"}
        weighted = [
            (self.energy_weight, self.energy_loss, "E"),
            (self.forces_weight, self.forces_loss, "F"),
            (self.stress_weight, self.stress_loss, "S"),
        ]
        return " + ".join(f"{weight:g} {shapes[shape].format(name)}" for weight, shape, name in weighted if weight > 0)

    def denominators(self, counts: LabelCounts) -> tuple[int, int, int]:
        """Numbers of entries behind the three means; at least 1, so that an absent term is zero."""
        force_entries = counts.force_atoms * (1 if self.forces_loss == "l2norm" else 3)
        return max(counts.energies, 1), max(force_entries, 1), max(9 * counts.stresses, 1)

    def total(self, sums: Tensor, counts: LabelCounts) -> Tensor:
        """The loss from the first three sums (see ``SUMS``) and the counts behind them; differentiable."""
        energy, forces, stress = self.denominators(counts)
        return (
            self.energy_weight / energy * sums[0]
            + self.forces_weight / forces * sums[1]
            + self.stress_weight / stress * sums[2]
        )


def error_sums(prediction: Prediction, labels: Labels, loss: Loss) -> Tensor:
    """Sums over the labelled entries of a batch, in the order of ``SUMS``.

    Returns:
        (len(SUMS),), float64, on the batch's device; the first three carry the graph. Nothing here waits for a GPU.
    """
    energy_mask = labels.energy_mask.to(torch.float64)
    total_error = (prediction.energy.to(torch.float64) - labels.energy) * energy_mask  # (n_structures,), eV
    energy_error = total_error / labels.n_atoms
    energy_term = (labels.energy_weight * _element(energy_error, loss.energy_loss, loss.huber_delta)).sum()

    zero = torch.zeros((), dtype=torch.float64, device=total_error.device)
    forces_term = forces_sse = forces_sae = stress_term = stress_sse = stress_sae = zero
    force_atoms = stresses = zero
    if prediction.forces is not None:
        forces_mask = labels.forces_mask.to(torch.float64)
        force_error = (prediction.forces.to(torch.float64) - labels.forces) * forces_mask[:, None]  # (n_atoms, 3), eV/Å
        forces_term = (labels.forces_weight * _per_atom(force_error, loss)).sum()
        forces_sse, forces_sae, force_atoms = _square(force_error), _absolute(force_error), forces_mask.sum()
    if prediction.stress is not None:
        stress_mask = labels.stress_mask.to(torch.float64)
        difference = prediction.stress.to(torch.float64) - labels.stress
        stress_error = torch.where(labels.stress_mask[:, None, None], difference, 0.0)  # (n_structures, 3, 3), eV/Å³
        elements = _element(stress_error, loss.stress_loss, loss.huber_delta)
        stress_term = (labels.stress_weight * elements.sum(dim=(1, 2))).sum()
        stress_sse, stress_sae, stresses = _square(stress_error), _absolute(stress_error), stress_mask.sum()
    return torch.stack(
        [
            energy_term,
            forces_term,
            stress_term,
            _square(energy_error),
            _absolute(energy_error),
            _absolute(total_error),
            forces_sse,
            forces_sae,
            stress_sse,
            stress_sae,
            energy_mask.sum(),
            force_atoms,
            stresses,
            torch.full_like(zero, len(labels.n_atoms)),
            labels.n_atoms.sum(),
        ]
    )


def _per_atom(force_error: Tensor, loss: Loss) -> Tensor:
    if loss.forces_loss == "l2norm":
        return torch.linalg.vector_norm(force_error, dim=1)
    return _element(force_error, loss.forces_loss, loss.huber_delta).sum(dim=1)


def _element(error: Tensor, kind: ElementLoss | ForcesLoss, delta: float) -> Tensor:
    if kind == "mse":
        return error * error
    if kind == "mae":
        return error.abs()
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)


def _square(error: Tensor) -> Tensor:
    return (error.detach() ** 2).sum()


def _absolute(error: Tensor) -> Tensor:
    return error.detach().abs().sum()


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Error metrics under the names used everywhere; None where nothing was labelled."""

    loss: float
    energy_rmse_per_atom: float | None  # eV
    energy_mae_per_atom: float | None  # eV
    energy_mae_cfg: float | None  # eV, not divided by the number of atoms
    forces_rmse: float | None  # eV/Å
    forces_mae: float | None  # eV/Å
    stress_rmse: float | None  # eV/Å³
    stress_mae: float | None  # eV/Å³
    n_configs: int
    n_atoms: int


def metrics(sums: Sequence[float], loss: Loss) -> Metrics:
    """Divide global sums (in the order of ``SUMS``) by their counts."""
    s = dict(zip(SUMS, sums, strict=True))
    counts = LabelCounts(energies=int(s["energies"]), force_atoms=int(s["force_atoms"]), stresses=int(s["stresses"]))
    components, elements = 3 * counts.force_atoms, 9 * counts.stresses
    return Metrics(
        loss=float(loss.total(torch.tensor(list(sums), dtype=torch.float64), counts)),
        energy_rmse_per_atom=_root(s["energy_sse"], counts.energies),
        energy_mae_per_atom=_mean(s["energy_sae"], counts.energies),
        energy_mae_cfg=_mean(s["energy_sae_cfg"], counts.energies),
        forces_rmse=_root(s["forces_sse"], components),
        forces_mae=_mean(s["forces_sae"], components),
        stress_rmse=_root(s["stress_sse"], elements),
        stress_mae=_mean(s["stress_sae"], elements),
        n_configs=int(s["n_configs"]),
        n_atoms=int(s["n_atoms"]),
    )


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


def _root(total: float, count: int) -> float | None:
    return (total / count) ** 0.5 if count else None
