"""ASE's calculator over any weights file and the fast step; several models are a committee."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from dataloader.batch import Batch
from dataloader.errors import InputError
from dataloader.neighbors import Graph, GraphFault
from dataloader.quantities import DIPOLE, ENERGY
from dataloader.record_details import PERIODIC_DIPOLE
from dataloader.structure import Structure
from model_utils.models.committee import mean_and_std, other_zero_point, repeated_member
from model_utils.simulation.atoms import named, structure_of, unknown_states
from model_utils.simulation.moving_graph import MovingGraph
from model_utils.simulation.potential import Computed, Potential

ENERGETIC = ("energy", "free_energy", "forces", "stress")
# what results depend on, besides the networks' inputs
STATE: Mapping[str, Callable[[Atoms], np.ndarray]] = {
    "positions": lambda atoms: atoms.positions,
    "numbers": lambda atoms: atoms.numbers,
    "cell": lambda atoms: atoms.cell.array,
    "pbc": lambda atoms: atoms.pbc,
}
SKIN = 0.5  # Å; a list of 200 atoms at 300 K lasts some 20 steps of 1 fs


OF_ASE = ("restart", "ignore_bad_restart_file", "label", "atoms", "directory")
OF_MACE = {  # arguments of mace's own calculator
    "default_dtype": "dtype",
    "model_path": "model",
    "model_paths": "model",
    "models": "model",
}


def _refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """ASE would keep any argument among its parameters and use none.

    Raises:
        InputError: naming the first that is not ASE's own.
    """
    for name in arguments:
        if name not in OF_ASE:
            ours = OF_MACE.get(name)
            hint = f"here it is {ours}" if ours else "see its documentation for those it has"
            raise InputError(f"Calculator has no argument {name!r:.60}; {hint}")


class Calculator(AseCalculator):
    """Energy, forces and stress of a trained model for ASE.

    ``atoms.calc = Calculator("run_model.pt")`` gives what ``evaluate.py`` gives: the energy is the
    total one, E0s included, and equals the free energy. The stress is that of structures which are
    periodic in three directions. Of a network that gives dipoles, ``dipole`` (3,) is in e·Å (1 e·Å
    = 4.80320 Debye); one that gives nothing else has no other property. Charge and spin come from
    ``atoms.info`` where the network has such inputs.

    With several models the results are means over them, and ``results`` has besides ``energy_std``
    (eV), ``forces_std`` (n_atoms, 3) in eV/Å, ``energies_of_models`` and ``forces_of_models``.

    Args:
        model: a weights file that the commands open (``*_model.pt``, ``*_checkpoint.pt``,
            safetensors, a module of mace), or several of them; nothing in it is executed.
        device: cpu, cuda, cuda:N or auto.
        dtype: float64, or float32 for speed; None for the file's own.
        head: of the network, where it has several.
        step: fast, or reference for mace-torch's own module.
        skin: Å beyond the cutoff that neighbour lists reach; they are made anew when an atom
            has moved by half of it.
        directory, label and the like: ASE's own, passed on.

    Raises:
        InputError: a file, device, head or precision cannot be used as asked, or an argument is
            neither of these nor ASE's.
        VerificationError: a file is damaged or not what it says.
    """

    implemented_properties = [*ENERGETIC, "energies", DIPOLE.name]  # noqa: RUF012 - of a model, those that it gives

    def __init__(
        self,
        model: Path | str | Sequence[Path | str],
        *,
        device: str = "cpu",
        dtype: str | None = "float64",
        head: str | None = None,
        step: str = "fast",
        skin: float = SKIN,
        **of_ase: Any,
    ) -> None:
        _refuse_unknown(of_ase)
        super().__init__(**of_ase)
        paths = [model] if isinstance(model, str | Path) else list(model)
        if not paths:
            raise InputError("no model is given; name a weights file, or several for a committee")
        self._use(
            [
                Potential.of_file(path, device=device, dtype=dtype, head=head, step=step)
                for path in paths
            ],
            skin,
        )

    @classmethod
    def of_potentials(
        cls, potentials: Sequence[Potential], *, skin: float = SKIN, **of_ase: Any
    ) -> "Calculator":
        """A calculator of models that are loaded already.

        Args:
            potentials: one, or several as a committee.
            skin: Å, as above.
            of_ase: ASE's own arguments.
        """
        _refuse_unknown(of_ase)
        made = cls.__new__(cls)
        AseCalculator.__init__(made, **of_ase)
        made._use(potentials, skin)
        return made

    def _use(self, potentials: Sequence[Potential], skin: float) -> None:
        self.potentials = list(potentials)
        _refuse_other_kinds(self.potentials)
        _warn_of_other_references(self.potentials)
        _warn_of_a_repeated_one(self.potentials)
        self.implemented_properties = _properties(self.potentials[0].network.gives)
        self._movers = [_Mover(potential, skin) for potential in self.potentials]
        self._wants_stress = False

    def forget(self) -> None:
        """Compute the next atoms as if they were the first: no neighbour list and no
        result is left from before.
        """
        self.reset()
        self._wants_stress = False
        for mover in self._movers:
            mover.forget()

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; inputs in ``atoms.info`` count,
        which ASE passes over.

        Numbers are compared as they are: ASE's comparison within ``tol``, which is not used here,
        takes a tenth of a small molecule's step.
        """
        if self.atoms is None:
            return list(all_changes)
        changes = [
            name
            for name, what in STATE.items()
            if not np.array_equal(what(self.atoms), what(atoms))
        ]
        if self._inputs(self.atoms) != self._inputs(atoms) or any(
            # results stay, and are computed again for the warning
            unknown_states(self.atoms, potential.facts) != unknown_states(atoms, potential.facts)
            for potential in self.potentials
        ):
            changes.append("info")
        return changes

    def _inputs(self, atoms: Atoms) -> list[dict[str, list[float]]]:
        """The networks' inputs besides species, which may be absent until they are calculated."""
        if not any(potential.facts.features for potential in self.potentials):
            return []
        of_each = [structure_of(atoms, p.facts, p.head).features for p in self.potentials]
        return [
            {name: values.tolist() for name, values in features.items()} for features in of_each
        ]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute the results for atoms; ASE calls it where something has changed.

        Raises:
            InputError: the atoms cannot be computed: an element that the model lacks, a
                position that is no number, a cell without volume, two atoms in one place, a
                missing charge or spin.
        """
        super().calculate(atoms, properties, system_changes)
        if ENERGY.name not in self.potentials[0].network.gives:
            self.results = _with_dipoles(
                {}, [mover.dipole(self.atoms) for mover in self._movers], self.atoms
            )
            return
        # who asks for forces and then for the stress, as filters of cells and barostats do at every
        # step, would have everything computed twice; with the forces it costs a tenth more
        self._wants_stress = self._wants_stress or "stress" in properties
        stress = self._wants_stress and bool(self.atoms.pbc.all())
        computed = [mover.compute(self.atoms, stress=stress) for mover in self._movers]
        self.results = _results(computed)
        dipoles = [of_model.dipole for of_model in computed if of_model.dipole is not None]
        if dipoles:
            self.results = _with_dipoles(self.results, dipoles, self.atoms)
        if "energies" in properties:
            of_atoms = [mover.energies_of_atoms(self.atoms) for mover in self._movers]
            self.results["energies"] = np.mean(of_atoms, axis=0)


def _properties(gives: Collection[str]) -> list[str]:
    """ASE's names of what models of these quantities can be asked for."""
    of_energies = [*ENERGETIC, "energies"] if ENERGY.name in gives else []
    return [*of_energies, *([DIPOLE.name] if DIPOLE.name in gives else [])]


def _refuse_other_kinds(potentials: Sequence[Potential]) -> None:
    """Raise InputError where models of a committee do not give the same quantities."""
    first = potentials[0]
    for other in potentials[1:]:
        if other.network.gives != first.network.gives:
            ours, theirs = (", ".join(sorted(p.network.gives)) for p in (first, other))
            raise InputError(
                f"{other.path} gives {theirs} and {first.path} {ours}: they are no committee; name "
                "models of one kind"
            )


def _warn_of_other_references(potentials: Sequence[Potential]) -> None:
    """Energies of models with other E0s have other zero points, and their mean has none."""
    first = potentials[0]
    for other in potentials[1:]:
        text = other_zero_point(
            first.reference_energies, other.reference_energies, first.path, other.path
        )
        if text is not None:
            warnings.warn(text, stacklevel=4)


def _warn_of_a_repeated_one(potentials: Sequence[Potential]) -> None:
    text = repeated_member([(potential.path, potential.weights) for potential in potentials])
    if text is not None:
        warnings.warn(text, stacklevel=4)


class _Mover:
    """One potential with the neighbour list and the prepared batch of the atoms
    it was asked for last.
    """

    def __init__(self, potential: Potential, skin: float) -> None:
        self.potential = potential
        self._skin = skin
        self.forget()

    def __getstate__(self) -> dict[str, object]:
        """For copies and pickles: what was prepared for atoms is prepared anew."""
        return {"potential": self.potential, "_skin": self._skin}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.forget()

    def forget(self) -> None:
        """Keep nothing of the atoms before."""
        self.graphs = MovingGraph(self.potential.facts.r_max, self._skin)
        self._kept: Batch | None = None
        self._structure: Structure | None = None
        self._edges: NDArray[np.int32] | None = None

    def compute(self, atoms: Atoms, *, stress: bool) -> Computed:
        """What the potential gives of the atoms."""
        [computed] = self.potential.compute(self._batch(atoms), stress=stress)
        return computed

    def dipole(self, atoms: Atoms) -> NDArray[np.float64]:
        """The dipole of the atoms, (3,), e·Å."""
        [dipole] = self.potential.dipoles(self._batch(atoms))
        return np.asarray(dipole)

    def energies_of_atoms(self, atoms: Atoms) -> NDArray[np.float64]:
        """Energies of the atoms, (n_atoms,), eV."""
        return self.potential.energies_of_atoms(self._batch(atoms))

    def _batch(self, atoms: Atoms) -> Batch:
        structure = structure_of(atoms, self.potential.facts, self.potential.head)
        try:
            graph = self.graphs.of(structure)
        except GraphFault as fault:
            raise InputError(named(atoms, fault)) from None
        return self._batch_of(structure, graph)

    def _batch_of(self, structure: Structure, graph: Graph) -> Batch:
        """The batch; where the edges are those of the call before, only its positions are new."""
        if (
            self._kept is not None
            and graph.senders is self._edges
            and self._has_same_inputs(structure)
        ):
            return self.potential.moved(self._kept, graph.positions)
        self._kept = self.potential.batch([structure], [graph])
        self._edges = graph.senders
        self._structure = structure
        return self._kept

    def _has_same_inputs(self, structure: Structure) -> bool:
        assert self._structure is not None
        before = self._structure.features
        return all(
            np.array_equal(before[name], value) for name, value in structure.features.items()
        )


def _results(computed: Sequence[Computed]) -> dict[str, Any]:
    """Results under ASE's names: of one model, or means and standard deviations over several."""
    energies = np.array([one.energy for one in computed])
    forces = np.stack([one.forces for one in computed])
    energy, energy_std = mean_and_std(torch.from_numpy(energies))
    mean_forces, forces_std = mean_and_std(torch.from_numpy(forces))
    results: dict[str, Any] = {
        "energy": float(energy),
        "free_energy": float(energy),
        "forces": mean_forces.numpy(),
    }
    stresses = [one.stress for one in computed if one.stress is not None]
    if stresses:
        results["stress"] = full_3x3_to_voigt_6_stress(np.mean(stresses, axis=0))
    if len(computed) > 1:
        results["energies_of_models"] = energies
        results["forces_of_models"] = forces
        results["energy_std"] = float(energy_std)
        results["forces_std"] = forces_std.numpy()
    return results


def _with_dipoles(
    results: Mapping[str, Any], dipoles: Sequence[NDArray[np.float64]], atoms: Atoms
) -> dict[str, Any]:
    """Results with the dipole of one model, or mean and standard deviation
    over several; (3,), e·Å.
    """
    if atoms.pbc.any():
        warnings.warn(PERIODIC_DIPOLE, stacklevel=3)
    mean, std = mean_and_std(torch.from_numpy(np.stack(dipoles)))
    spread = {} if len(dipoles) == 1 else {"dipole_std": std.numpy()}
    return {**results, DIPOLE.name: mean.numpy(), **spread}
