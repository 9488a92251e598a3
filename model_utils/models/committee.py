"""Several networks as one that is judged: the means over them, and how far they are apart."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from dataloader.batch import Batch
from dataloader.needs import ModelFacts
from dataloader.quantities import ENERGY
from losses import Prediction
from model_utils.models.network import Network, Parameters, predict

STD = "_std"  # ends the name of what a committee's members differ by
NODE_ENERGIES = "node_energies"  # of atoms, as mace_eval_configs names them; in eV, E0s included
UNLIKE = 1e-3  # eV


def mean_and_std(of_models: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over models, (n_models, …) → (…) each, in
    the unit of the numbers.

    The deviation is that of these very models (squares divided by their number), not an
    estimate of more of them.
    """
    return of_models.mean(dim=0), of_models.std(dim=0, correction=0)


def other_zero_point(
    ours: Mapping[int, float], theirs: Mapping[int, float], path: Path, other: Path
) -> str | None:
    """A sentence where two models have other E0s, so that the mean of their energies has
    no meaning; else None.

    Args:
        ours: E0s by atomic number, eV.
        theirs: of the other model.
        path: of the first model, for the sentence.
        other: of the other.
    """
    unlike = [z for z in sorted(set(ours) & set(theirs)) if abs(ours[z] - theirs[z]) > UNLIKE]
    if not unlike:
        return None
    z = unlike[0]
    return (
        f"{other} has other E0s than {path} ({chemical_symbols[z]}: {theirs[z]:.3f} and "
        f"{ours[z]:.3f} eV): the mean of their energies has no meaning, that of their forces has"
    )


def repeated_member(members: Sequence[tuple[Path, Parameters]]) -> str | None:
    """A sentence where two members of a committee have the same weights, whose agreement
    says nothing; else None.

    Args:
        members: path and trainable parameters of each.
    """
    for (first, ours), (second, theirs) in combinations(members, 2):
        if ours.keys() == theirs.keys() and all(
            torch.equal(ours[name], theirs[name]) for name in ours
        ):
            return (
                f"{second} has the weights of {first}: that the two agree says nothing, and the "
                "committee's standard deviations are too small; name each model once"
            )
    return None


class Committee:
    """Networks that see the same batches; what they give is the mean over them.

    Beside every quantity stands, where there are several networks, its standard deviation over
    them under the quantity's name with ``_std`` behind it, and ``node_energies`` (n_atoms,), eV,
    where that is asked for.

    Args:
        networks: of equal elements, heads, cutoff and inputs.
        facts: of each of them; E0s may differ.
        of_atoms: give the energies of atoms too, by a forward pass more. Every
            network must have them.
    """

    def __init__(
        self, networks: Sequence[Network], facts: Sequence[ModelFacts], *, of_atoms: bool = False
    ) -> None:
        self.networks = tuple(networks)
        self.module: nn.Module = nn.ModuleList([network.module for network in networks])
        self.kind = networks[0].kind
        self.gives = frozenset.intersection(*(network.gives for network in networks))
        # (n_heads, n_elements)
        self._tables = [torch.tensor(f.atomic_energies, dtype=torch.float64) for f in facts]
        self._of_atoms = of_atoms

    @property
    def arithmetic(self) -> str:
        """What computes the first of them."""
        return self.networks[0].arithmetic

    def prepared(self, batch: Batch) -> Batch:
        """The batch with what any of the networks needs besides its arrays."""
        for network in {type(network): network for network in self.networks}.values():
            batch = network.prepared(batch)
        return batch

    def outputs(
        self, parameters: Parameters, batch: Batch, positions: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        """Means of what the networks give; arguments and result as
        ``network.Network.outputs`` has them.
        """
        of_members = []
        for number, network in enumerate(self.networks):
            own = dict(network.outputs(self._own(parameters, number), batch, positions, shifts))
            if ENERGY.name in own:
                own[ENERGY.name] = own[ENERGY.name].double() + self._structures_change(
                    number, batch
                )
            of_members.append(own)
        return {
            name: torch.stack([own[name] for own in of_members]).mean(dim=0) for name in self.gives
        }

    def predicted(
        self, parameters: Parameters, batch: Batch, *, wanted: Collection[str]
    ) -> Prediction:
        """Means and standard deviations of what the networks predict, without gradients.

        Args:
            parameters: of all networks, those of the k-th by their names behind ``k.``,
                as ``module`` has them.
            batch: the structures; energies are relative to the E0s of the first network.
            wanted: quantities that are looked at.
        """
        of_members = [
            self._of_member(number, parameters, batch, wanted)
            for number in range(len(self.networks))
        ]
        prediction: dict[str, Tensor] = {}
        for name in of_members[0]:
            mean, std = mean_and_std(torch.stack([own[name] for own in of_members]))
            prediction[name] = mean
            if len(of_members) > 1:
                prediction[f"{name}{STD}"] = std
        return prediction

    def _own(self, parameters: Parameters, number: int) -> Parameters:
        prefix = f"{number}."
        return {
            name.removeprefix(prefix): p
            for name, p in parameters.items()
            if name.startswith(prefix)
        }

    def _of_member(
        self, number: int, parameters: Parameters, batch: Batch, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        network = self.networks[number]
        own = self._own(parameters, number)
        prediction = dict(predict(network, own, batch, wanted=wanted, training=False))
        if ENERGY.name in prediction:
            prediction[ENERGY.name] = prediction[ENERGY.name].double() + self._structures_change(
                number, batch
            )
        if self._of_atoms:
            with torch.no_grad():
                interaction = network.energies_of_atoms(own, batch, batch.positions, batch.shifts)  # type: ignore[attr-defined]
            prediction[NODE_ENERGIES] = interaction.double() + self._atoms_references(number, batch)
        return prediction

    def _atoms_references(self, number: int, batch: Batch) -> Tensor:
        """E0s of a network for every atom, (n_atoms,), eV."""
        table = self._tables[number].to(batch.species.device)
        return table[batch.head[batch.structure], batch.species]

    def _structures_change(self, number: int, batch: Batch) -> Tensor:
        """How much higher the sums of E0s of a network are than those of the
        first, (n_structures,), eV.
        """
        change = torch.zeros_like(batch.reference_energy)
        if torch.equal(self._tables[number], self._tables[0]):
            return change
        of_atoms = self._atoms_references(number, batch) - self._atoms_references(0, batch)
        return change.index_add(0, batch.structure, of_atoms)
