"""A trained model for torch-sim, which moves many systems at once on a GPU; needs
the extra `simulation`.
"""

from pathlib import Path

import numpy as np
import torch
from ase import Atoms

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError as error:
    raise ImportError(
        "torch-sim is not installed; pip install -e '.[simulation]' in the checkout"
    ) from error

from dataloader.errors import InputError
from dataloader.neighbors import Graph, GraphFault
from dataloader.structure import Structure
from model_utils.simulation.atoms import named, structure_of
from model_utils.simulation.calculator import SKIN
from model_utils.simulation.moving_graph import MovingGraph
from model_utils.simulation.potential import Potential


class TorchSimModel(ModelInterface):
    """Energies, forces and stress of all systems of a state, by the fast step.

    Neighbour lists are made on the host, each system's anew when its atoms have moved by
    half the skin. Networks with inputs besides the species (charge, spin) are refused: a
    state has no place for them.

    Args:
        model: a weights file that the commands open; nothing in it is executed.
        device: cpu, cuda, cuda:N or auto.
        dtype: float64, or float32 for speed; None for the file's own.
        head: of the network, where it has several.
        step: fast, or reference for mace-torch's own module.
        skin: Å beyond the cutoff that neighbour lists reach.
        compute_stress: whether stress is computed; it costs about a tenth more.

    Raises:
        InputError: a file, device, head or precision cannot be used as asked, or the
            network has further inputs.
        VerificationError: the file is damaged or not what it says.
    """

    def __init__(
        self,
        model: Path | str,
        *,
        device: str = "auto",
        dtype: str | None = "float64",
        head: str | None = None,
        step: str = "fast",
        skin: float = SKIN,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        self.potential = Potential.of_file(model, device=device, dtype=dtype, head=head, step=step)
        self.potential.require_energies()
        if self.potential.facts.features:
            names = ", ".join(spec.name for spec in self.potential.facts.features)
            raise InputError(
                f"{model} takes {names}, which a state of torch-sim does not hold; use the "
                "calculator for ASE"
            )
        self.skin = skin
        self._device = self.potential.device
        self._dtype = self.potential.dtype
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._graphs: list[MovingGraph] = []

    def forward(
        self, state: SimState | dict[str, torch.Tensor], **_: object
    ) -> dict[str, torch.Tensor]:
        """What the potential gives of every system.

        Args:
            state: of torch-sim; its cells are column vectors, in Å.

        Returns:
            ``energy`` (n_systems,) in eV, ``forces`` (n_atoms, 3) in eV/Å and, where asked,
            ``stress`` (n_systems, 3, 3) in eV/Å³.

        Raises:
            InputError: a system cannot be computed; it is named by its formula.
        """
        if isinstance(state, dict):
            state = SimState(**state, masses=torch.ones_like(state["positions"][:, 0]))
        systems = _systems(state)
        while len(self._graphs) < len(systems):
            self._graphs.append(MovingGraph(self.potential.facts.r_max, self.skin))
        structures = [
            structure_of(atoms, self.potential.facts, self.potential.head) for atoms in systems
        ]
        graphs = [
            self._graph(number, structure, systems[number])
            for number, structure in enumerate(structures)
        ]
        with_stress = self.compute_stress and bool(
            state.pbc if isinstance(state.pbc, bool) else state.pbc.all()
        )
        computed = self.potential.compute(
            self.potential.batch(structures, graphs), stress=with_stress
        )
        results = {
            "energy": self._tensor(np.array([of_system.energy for of_system in computed])),
            "forces": self._tensor(np.concatenate([of_system.forces for of_system in computed])),
        }
        if self.compute_stress:
            zero = np.zeros((3, 3))
            stresses = [
                zero if of_system.stress is None else of_system.stress for of_system in computed
            ]
            results["stress"] = self._tensor(np.stack(stresses))
        return results

    def _graph(self, number: int, structure: Structure, atoms: Atoms) -> Graph:
        """Edges of one system."""
        try:
            return self._graphs[number].of(structure)
        except GraphFault as fault:
            raise InputError(named(atoms, fault)) from None

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, self._dtype)


def _systems(state: SimState) -> list[Atoms]:
    """The systems of a state as ASE's atoms."""
    numbers = state.atomic_numbers.cpu().numpy()
    positions = state.positions.detach().double().cpu().numpy()
    cells = state.row_vector_cell.detach().double().cpu().numpy()
    pbc = state.pbc if isinstance(state.pbc, bool) else state.pbc.cpu().numpy()
    bounds = np.searchsorted(state.system_idx.cpu().numpy(), np.arange(len(cells) + 1))
    return [
        Atoms(numbers[begin:end], positions[begin:end], cell=cell, pbc=pbc)
        for begin, end, cell in zip(bounds[:-1], bounds[1:], cells, strict=True)
    ]
