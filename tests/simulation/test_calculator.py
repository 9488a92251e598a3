"""The calculator gives mace's own numbers, for any kind of structure, however
atoms have moved before.
"""

import copy
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from mace.calculators import MACECalculator

from dataloader.batch import Batch
from dataloader.errors import InputError
from model_utils import model_loader
from model_utils.calculator import Calculator
from model_utils.errors import VerificationError
from model_utils.run.advice.crowding import Crowding
from model_utils.simulation import potential
from model_utils.simulation.potential import Computed, Potential
from simulation.conftest import kinds, rattled, written


def of_mace(paths: Sequence[Path]) -> MACECalculator:
    modules = [model_loader.load(path, dtype=torch.float64).module for path in paths]
    return MACECalculator(models=modules, device="cpu", default_dtype="float64")


@pytest.mark.parametrize("kind", kinds())
def test_equals_mace(kind: str, models: list[Path]) -> None:
    atoms = kinds()[kind]
    atoms.calc = Calculator(models[0])
    theirs = atoms.copy()
    theirs.calc = of_mace(models[:1])
    assert atoms.get_potential_energy() == pytest.approx(theirs.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), theirs.get_forces(), rtol=0, atol=1e-10)
    if atoms.pbc.all():
        np.testing.assert_allclose(atoms.get_stress(), theirs.get_stress(), rtol=0, atol=1e-10)
    of_atoms = atoms.get_potential_energies()
    np.testing.assert_allclose(of_atoms, theirs.get_potential_energies(), rtol=0, atol=1e-10)
    assert of_atoms.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)


def test_it_says_that_others_have_the_processors(
    models: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, of all members of a committee; md.py and relax.py compute by it."""
    seconds = iter(range(0, 1000, 100))
    crowding = Crowding(torch.device("cpu"), lambda: next(seconds), lambda: 50.0 * next(seconds))
    monkeypatch.setattr(potential.crowding, "of_process", lambda device: crowding)
    atoms = bulk("Al", cubic=True)
    atoms.calc = Calculator(models)
    for _ in range(2):
        atoms.rattle(0.01)
        atoms.get_forces()
    assert len([line for line in caplog.messages if "had the processor" in line]) == 1


def test_atoms_that_move_far_have_the_forces_of_a_new_list(models: list[Path]) -> None:
    """Through walls of the cell, past each other, in and out of the cutoff;
    lists are made a few times.
    """
    atoms = bulk("Al", cubic=True) * (2, 1, 1)
    atoms.calc = Calculator(models[0])
    MaxwellBoltzmannDistribution(atoms, temperature_K=9000, rng=np.random.default_rng(1))
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    without_skin = Calculator(models[0], skin=0.0)
    n_steps = 60
    for _ in range(n_steps):
        dynamics.run(1)
        fresh = atoms.copy()
        fresh.calc = without_skin
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), rtol=0, atol=1e-11)
    [mover] = atoms.calc._movers
    assert 2 <= mover.graphs.n_lists < n_steps / 2


def test_what_else_changes_between_two_calls(models: list[Path]) -> None:
    """Cell, elements, number and order of atoms, periodicity: nothing of
    the call before is used.
    """
    calculator = Calculator(models[0])
    reference = Calculator(models[0], skin=0.0)
    first = rattled(bulk("Al", cubic=True))
    strained = first.copy()
    strained.set_cell(first.cell.array * 1.01, scale_atoms=True)
    wider = first.copy()
    wider.set_cell(first.cell.array * 1.01)
    alloy = first.copy()
    alloy.numbers[1] = 29
    reordered = alloy[[1, 0, 2, 3]]
    open_above = first.copy()
    open_above.pbc = [True, True, False]
    wrapped = first.copy()
    wrapped.positions += first.cell.array.sum(axis=0)
    for atoms in (first, strained, wider, alloy, reordered, open_above, first[:3], wrapped, first):
        atoms.calc = calculator
        forces = atoms.get_forces()
        atoms.calc = reference
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-11)


def test_a_committee_is_the_mean_of_its_members(models: list[Path]) -> None:
    atoms = rattled(bulk("Cu", cubic=True))
    atoms.calc = Calculator(models)
    energy = atoms.get_potential_energy()
    forces = atoms.get_forces()
    stress = atoms.get_stress()
    results = atoms.calc.results
    members = []
    for path in models:
        alone = atoms.copy()
        alone.calc = Calculator(path)
        members.append((alone.get_potential_energy(), alone.get_forces(), alone.get_stress()))
    energies, of_forces, of_stress = (np.array(values) for values in zip(*members, strict=True))
    assert energy == pytest.approx(energies.mean(), abs=1e-10)
    np.testing.assert_allclose(forces, of_forces.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(stress, of_stress.mean(axis=0), rtol=0, atol=1e-12)
    assert results["energy_std"] == pytest.approx(energies.std(), rel=1e-9)
    np.testing.assert_allclose(results["forces_std"], of_forces.std(axis=0), rtol=0, atol=1e-12)


MISTAKES = {
    "element": (Atoms("Ne"), "element Ne (Z=10) is not in the model, which has H, O, Al, Cu"),
    "no number": (
        Atoms("OH", positions=[[0, 0, 0], [0, 0, np.nan]]),
        "position of atom 1 is not finite",
    ),
    "no cell": (Atoms("Cu", pbc=True), "cell"),
    "flat cell": (Atoms("Cu", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True), "cell"),
    "one place": (
        Atoms("OO", positions=[[0, 0, 0], [0, 0, 0.01]]),
        "atoms 0 and 1 are 0.01 Å apart",
    ),
    "nothing": (Atoms(), "no atoms"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_error(mistake: str, models: list[Path]) -> None:
    atoms, sentence = MISTAKES[mistake]
    atoms.calc = Calculator(models[0])
    with pytest.raises(InputError, match=r"^[^\n]*$") as raised:
        atoms.get_potential_energy()
    assert sentence in str(raised.value)


def test_atoms_that_meet_between_two_lists(models: list[Path]) -> None:
    atoms = Atoms("OO", positions=[[0, 0, 0], [0, 0, 0.3]])
    atoms.calc = Calculator(models[0])
    atoms.get_forces()
    atoms.positions[1, 2] = 0.1 - 1e-3
    with pytest.raises(InputError, match=r"atoms 0 and 1 are 0\.099 Å apart"):
        atoms.get_forces()


def test_arguments(models: list[Path], tmp_path: Path) -> None:
    for arguments, sentence in (
        ({"model": tmp_path / "none.pt"}, "none.pt"),
        ({"model": []}, "no model is given"),
        ({"model": models[0], "head": "pbe"}, "has no head 'pbe'; it has Default"),
        ({"model": models[0], "dtype": "float16"}, "float16"),
        ({"model": models[0], "device": "tpu"}, "tpu"),
    ):
        with pytest.raises(InputError, match=sentence):
            Calculator(**arguments)


def test_single_precision_is_near(models: list[Path]) -> None:
    atoms = rattled(bulk("Al", cubic=True))
    atoms.calc = Calculator(models[0], dtype="float32")
    exact = atoms.copy()
    exact.calc = Calculator(models[0], step="reference")
    assert 0 < abs(atoms.get_potential_energy() - exact.get_potential_energy()) < 1e-4
    np.testing.assert_allclose(atoms.get_forces(), exact.get_forces(), rtol=0, atol=1e-4)


def test_nothing_depends_on_when_a_list_was_made(models: list[Path]) -> None:
    """To the last bit: what lets dynamics go on after a kill as if nothing had been."""
    atoms = bulk("Al", cubic=True) * (2, 1, 1)
    kept = Calculator(models[0])
    rng = np.random.default_rng(3)
    for _ in range(12):
        atoms.positions += rng.normal(0.3, 0.08, (len(atoms), 3))  # out of the cell and further
        results = []
        for calculator in (kept, Calculator(models[0])):
            atoms.calc = calculator
            results.append(
                (
                    atoms.get_potential_energy(),
                    atoms.get_forces().tobytes(),
                    atoms.get_stress().tobytes(),
                )
            )
        assert results[0] == results[1]
    assert kept._movers[0].graphs.n_lists > 3


@pytest.mark.parametrize(
    "name", ["mace_mp/mace_mp_small.model", "mace_run/model_run-1234_swa.model"]
)
def test_real_models_equal_mace(name: str, shared_data: Path) -> None:
    """Molecules, a crystal, a slab, a chain, of the elements that all of them know.

    Constants of a network that lies in single precision are formed anew in double: mace's own
    conversion keeps them rounded, which is 6e-7 eV here.
    """
    ours = Calculator(shared_data / name)
    theirs = of_mace([shared_data / name])
    graphite = Atoms(
        "C2",
        positions=[[0, 0, 0], [1.42, 0, 0]],
        cell=[[2.13, 1.23, 0], [2.13, -1.23, 0], [0, 0, 3.4]],
    )
    chain = Atoms(
        "CHCH",
        positions=[[0, 0, 0], [1.0, 0, 0.1], [0.2, 0, 1.3], [-0.9, 0, 1.4]],
        cell=[0, 0, 2.5],
    )
    structures = [
        molecule("C6H6"),
        molecule("CH3CH2OH"),
        graphite * (2, 2, 2),
        graphite * (2, 2, 1),
        chain,
    ]
    for atoms, pbc in zip(structures, ("", "", "abc", "ab", "c"), strict=True):
        atoms.pbc = [direction in pbc for direction in "abc"]
        rattled(atoms)
        atoms.calc = ours
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        stress = atoms.get_stress() if pbc == "abc" else None
        atoms.calc = theirs
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)  # sums near 10³ eV
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-10)
        if stress is not None:
            np.testing.assert_allclose(stress, atoms.get_stress(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("step", ["fast", "reference"])
def test_the_repulsion_of_a_pair_belongs_to_both(step: str, tmp_path: Path) -> None:
    model = written(tmp_path, 4, pair_repulsion=True, distance_transform="Agnesi")
    atoms = rattled(bulk("Cu", cubic=True))
    atoms.numbers[0] = 8
    atoms.calc = Calculator(model, step=step)
    theirs = atoms.copy()
    theirs.calc = of_mace([model])
    np.testing.assert_allclose(
        atoms.get_potential_energies(), theirs.get_potential_energies(), rtol=0, atol=1e-10
    )


def test_a_committee_of_unlike_zero_points_is_warned_of(models: list[Path], tmp_path: Path) -> None:
    other = written(tmp_path, 5, atomic_energies={"H": -1.0, "O": -2.0, "Al": -10.0, "Cu": -12.5})
    with pytest.warns(UserWarning, match=r"other E0s than .* \(H: -1.000 and -13.600 eV\)"):
        Calculator([models[0], other])


def test_forces_and_stress_of_a_step_are_computed_once(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on; a filter of cells asks for them one after the other."""
    atoms = rattled(bulk("Al", cubic=True))
    atoms.calc = Calculator(models[0])
    passes = []
    compute = Potential.compute

    def counted(potential: Potential, batch: Batch, *, stress: bool) -> list[Computed]:
        passes.append(stress)
        return compute(potential, batch, stress=stress)

    monkeypatch.setattr(Potential, "compute", counted)
    for _ in range(3):
        atoms.positions += 0.01
        atoms.get_forces()
        atoms.get_potential_energy()
        atoms.get_stress()
    assert passes == [False, True, True, True]


def test_a_calculator_that_has_computed_is_copied_and_pickled(
    models: list[Path], tmp_path: Path
) -> None:
    shutil.copy(models[0], tmp_path / "own_model.pt")
    atoms = kinds()["crystal"]
    atoms.calc = Calculator([tmp_path / "own_model.pt", models[1]])
    forces = atoms.get_forces()
    atoms.get_stress()
    twin = copy.deepcopy(atoms)
    assert twin.calc is not atoms.calc
    assert twin.calc.potentials[0] is atoms.calc.potentials[0], "weights are not copied"
    twin.positions += 0.01 * np.arange(12).reshape(4, 3)
    moved = twin.get_forces()
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    pickled = pickle.dumps(atoms.calc)
    again = pickle.loads(pickled)
    twin.calc = again
    np.testing.assert_allclose(twin.get_forces(), moved, atol=1e-12)
    shutil.copy(models[2], tmp_path / "own_model.pt")
    with pytest.raises(VerificationError, match="other weights than when"):
        pickle.loads(pickled)
