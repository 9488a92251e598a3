"""A trained network as a potential: energies, forces and stress of structures,
reference energies included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloader.batch import Batch, collate
from dataloader.errors import InputError
from dataloader.needs import ModelFacts
from dataloader.neighbors import Graph
from dataloader.quantities import DIPOLE, ENERGY, FORCES, STRESS
from dataloader.structure import Structure
from model_utils import model_loader
from model_utils.errors import VerificationError
from model_utils.files.digest import digest
from model_utils.model_loader import LoadedModel
from model_utils.models.network import Network, predict
from model_utils.run.advice import crowding
from model_utils.runtime import DTYPES, dtype_name, find_device


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What a potential gives of one structure.

    Attributes:
        energy: eV, with the reference energies E0, added in double precision.
        forces: (n_atoms, 3), eV/Å.
        stress: (3, 3), eV/Å³, positive under tension; None where it was not asked for
            or there is no volume.
        dipole: (3,), e·Å; None of a network that gives none.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None = None
    dipole: NDArray[np.float64] | None = None


class Potential:
    """One model's weights on a device.

    Args:
        loaded: the module with its description.
        device: on which it computes.
        head: of the network; None where it has one alone.
        step: the form of the network that computes, as ``--step`` names it.

    Raises:
        InputError: there is no such head, or one of several must be named.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: torch.device,
        *,
        head: str | None = None,
        step: str = "fast",
    ) -> None:
        self.facts: ModelFacts = loaded.description.facts()
        self.path = loaded.file.path
        self._description_hash = loaded.description.hash()
        self.head = _head(head, self.facts.heads, self.path)
        self.device = device
        self._step = step
        self.module = loaded.module.to(device)
        self.network: Network = model_loader.build_network(self.module, step, loaded.description)
        self.dtype = next(self.module.parameters()).dtype
        self.weights: Mapping[str, Tensor] = {
            name: weight.detach() for name, weight in model_loader.trainable(self.module).items()
        }
        freeze = getattr(self.network, "freeze", None)  # of the fast form
        if freeze is not None:
            freeze()

    @classmethod
    def of_file(
        cls,
        path: Path | str,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        head: str | None = None,
        step: str = "fast",
    ) -> "Potential":
        """The potential of any weights file that the commands open; nothing in it is executed.

        Args:
            path: ``*_model.pt``, ``*_checkpoint.pt``, safetensors, or a module that mace wrote.
            device: cpu, cuda, cuda:N or auto.
            dtype: float32 or float64; the file's own unless given.
            head: of the network, where it has several.
            step: the form that computes: fast, or reference for mace-torch's own module.

        Raises:
            InputError: the file cannot be read, or one of the arguments does not fit it.
            VerificationError: digest, hash, names or shapes do not agree.
        """
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype {dtype} is none of {', '.join(DTYPES)}")
        loaded = model_loader.load(Path(path), dtype=None if dtype is None else DTYPES[dtype])
        return cls(loaded, find_device(device), head=head, step=step)

    def __deepcopy__(self, memo: dict[int, object]) -> "Potential":
        """Itself: nothing of a potential changes, and its weights may be large."""
        return self

    def __reduce__(self) -> tuple[Callable[..., "Potential"], tuple[object, ...]]:
        """A pickle names the file: weights, compiled code and its tables are made anew from it."""
        form = (str(self.path.absolute()), str(self.device), dtype_name(self.dtype))
        return _opened_again, (*form, self.head, self._step, self.digest())

    def require_energies(self) -> None:
        """Raise InputError where the network gives no energies, and so
        neither forces nor stress.
        """
        if ENERGY.name not in self.network.gives:
            raise InputError(
                f"{self.path} gives {', '.join(sorted(self.network.gives))} and no energies"
            )

    def digest(self) -> str:
        """Hash of structure and weights, hexadecimal: what decides the results."""
        return digest({"description": self._description_hash, "weights": dict(self.weights)})

    def __str__(self) -> str:
        return f"{self.path} in {dtype_name(self.dtype)} on {self.device}"

    @property
    def reference_energies(self) -> dict[int, float]:
        """E0s in the potential's head by atomic number, eV."""
        energies = self.facts.atomic_energies[self.facts.heads.index(self.head)]
        return dict(zip(self.facts.atomic_numbers, energies, strict=True))

    def batch(self, structures: Sequence[Structure], graphs: Sequence[Graph]) -> Batch:
        """Structures with their graphs as what ``compute`` takes.

        Args:
            structures: of elements of the network, with its head.
            graphs: their edges within the network's cutoff.
        """
        made = collate(
            structures,
            graphs,
            range(len(structures)),
            self.facts,
            self.dtype,
            free_atoms_only=False,
        )
        return self.network.prepared(made).to(self.device)

    def moved(self, batch: Batch, positions: NDArray[np.float64]) -> Batch:
        """A batch of the same edges with atoms at other places, (n_atoms, 3) in Å;
        what was prepared is kept.
        """
        return replace(batch, positions=torch.from_numpy(positions).to(self.device, self.dtype))

    def compute(self, batch: Batch, *, stress: bool) -> list[Computed]:
        """Energies, forces and, where asked, stress of every structure of a batch.

        Args:
            batch: as ``batch`` made it.
            stress: of those that are periodic in three directions; it costs about a tenth more.
        """
        wanted = [ENERGY.name, FORCES.name, *([STRESS.name] if stress else [])]
        predicted = predict(self.network, self.weights, batch, wanted=wanted, training=False)
        crowding.of_process(self.device).look()
        energies = (predicted[ENERGY.name].double() + batch.reference_energy).tolist()
        forces = predicted[FORCES.name].detach().double().cpu().numpy()
        stresses = (
            predicted[STRESS.name].detach().double().cpu().numpy()
            if stress
            else [None] * len(energies)
        )
        has_dipoles = DIPOLE.name in predicted
        dipoles = (
            predicted[DIPOLE.name].detach().double().cpu().numpy()
            if has_dipoles
            else [None] * len(energies)
        )
        bounds = batch.ptr.tolist()
        return [
            Computed(
                energy=energy,
                forces=forces[bounds[k] : bounds[k + 1]],
                stress=stresses[k],
                dipole=dipoles[k],
            )
            for k, energy in enumerate(energies)
        ]

    def dipoles(self, batch: Batch) -> NDArray[np.float64]:
        """Dipoles of the structures of a batch, (n_structures, 3), e·Å,
        without energies and forces.
        """
        with torch.no_grad():
            outputs = self.network.outputs(self.weights, batch, batch.positions, batch.shifts)
        return np.asarray(outputs[DIPOLE.name].double().cpu().numpy())

    def energies_of_atoms(self, batch: Batch) -> NDArray[np.float64]:
        """Energies of atoms, (n_atoms,), eV, E0s included; their sum is the energy.

        A forward pass of its own.

        Raises:
            InputError: networks of this family do not give them.
        """
        of_atoms = getattr(self.network, "energies_of_atoms", None)
        if of_atoms is None:
            raise InputError(
                f"{self.path} is of a family of networks that gives no energies of atoms"
            )
        with torch.no_grad():
            interaction = (
                of_atoms(self.weights, batch, batch.positions, batch.shifts).double().cpu().numpy()
            )
        references = np.array(self.facts.atomic_energies)
        return np.asarray(
            interaction + references[batch.head[batch.structure].cpu(), batch.species.cpu()]
        )


def _opened_again(
    path: str, device: str, dtype: str, head: str, step: str, digest_of_before: str
) -> Potential:
    """The potential that a pickle names.

    Raises:
        VerificationError: the file has other weights than it had.
    """
    potential = Potential.of_file(path, device=device, dtype=dtype, head=head, step=step)
    if potential.digest() != digest_of_before:
        raise VerificationError(
            f"{path} has other weights than when the calculator was pickled; make a new calculator"
        )
    return potential


def _head(head: str | None, heads: Sequence[str], path: Path) -> str:
    """The head that is meant."""
    if head is None and len(heads) == 1:
        return heads[0]
    if head is None:
        raise InputError(
            f"{path} has the heads {', '.join(heads)}; say which with --head, in Python head="
        )
    if head not in heads:
        raise InputError(f"{path} has no head {head!r}; it has {', '.join(heads)}")
    return head
