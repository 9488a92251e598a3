"""relax.py: minima of ASE with mace's own calculator, the same after a kill and in several
processes, reasons kept.
"""

import csv
import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE, LBFGS
from mace.calculators import MACECalculator

from dataloader.parallel import in_children
from model_utils import model_loader, relax
from model_utils.simulation import relaxing
from model_utils.simulation.relaxation import Criteria, relaxed
from simulation.conftest import METALS, kinds, written

FMAX = 0.002


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every kind."""
    path = tmp_path_factory.mktemp("structures") / "all.xyz"
    write(path, list(kinds().values()), format="extxyz")
    return path


def command(model: Path, data: Path, output: Path, *words: object) -> int:
    given = [
        "--input_model",
        model,
        "--data",
        data,
        "--output_dir",
        output,
        "--fmax",
        FMAX,
        "--device",
        "cpu",
    ]
    return relax.main([str(word) for word in (*given, *words)])


def content(folder: Path) -> dict[str, bytes]:
    """The files for people, and every step of every trajectory."""
    files = {
        name: (folder / name).read_bytes()
        for name in ("relaxed.xyz", "relaxed.csv", "relaxed.json")
    }
    for path in sorted((folder / "trajectories").glob("*.traj")):
        ways = [atoms.positions.tobytes() + atoms.cell.array.tobytes() for atoms in read(path, ":")]
        files[path.name] = b"".join(ways)
    return files


@pytest.fixture(scope="module")
def unbroken(
    models: list[Path], structures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken")
    assert (
        command(models[0], structures, folder, "--relax_cell", "--processes", 1, "--max_steps", 60)
        == 0
    )
    return content(folder)


def test_minima_are_those_of_ase_with_maces_calculator(
    models: list[Path], structures: Path, tmp_path: Path
) -> None:
    words = ("--relax_cell", "--processes", 1, "--max_steps", 60)
    assert command(models[0], structures, tmp_path, *words) == 0
    theirs = MACECalculator(
        models=[model_loader.load(models[0]).module], device="cpu", default_dtype="float64"
    )
    for ours, atoms in zip(read(tmp_path / "relaxed.xyz", ":"), kinds().values(), strict=True):
        atoms.calc = theirs
        with_cell = FrechetCellFilter(atoms) if atoms.pbc.all() else atoms
        LBFGS(with_cell, logfile=None).run(fmax=FMAX, steps=60)
        assert ours.info["mace_energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(ours.positions, atoms.positions, rtol=0, atol=2e-3)  # soft bends
        np.testing.assert_allclose(ours.cell.array, atoms.cell.array, rtol=0, atol=1e-4)


@pytest.mark.parametrize("minimizer", [LBFGS, FIRE])
def test_a_crystal_goes_the_way_of_ases_filter_which_is_asked_once_for_each_place(
    minimizer: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    crystal = kinds()["crystal"]
    alone = crystal.copy()
    alone.calc = EMT()
    minimizer(FrechetCellFilter(alone), logfile=None, maxstep=0.2).run(fmax=FMAX, steps=30)
    asked = []
    forces = FrechetCellFilter.get_forces
    monkeypatch.setattr(
        FrechetCellFilter, "get_forces", lambda self: asked.append(1) or forces(self)
    )
    name = minimizer.__name__.lower()
    ours = relaxed(
        crystal, EMT(), Criteria(fmax=FMAX, max_steps=30, minimizer=name, relax_cell=True)
    )
    assert ours.atoms.positions.tobytes() == alone.positions.tobytes()
    assert ours.atoms.cell.array.tobytes() == alone.cell.array.tobytes()
    assert ours.steps > 2
    assert len(asked) == ours.steps + 1


def test_several_processes_give_the_same_files(
    models: list[Path], structures: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    assert (
        command(
            models[0], structures, tmp_path, "--relax_cell", "--processes", 2, "--max_steps", 60
        )
        == 0
    )
    assert content(tmp_path) == unbroken


def test_killed_and_repeated_gives_the_same_files(
    models: list[Path],
    structures: Path,
    unbroken: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ended in the midst of a line of its journal, and in the midst of a structure."""
    words = ("--relax_cell", "--processes", 1, "--max_steps", 60)

    def killed(task: int) -> None:
        in_one, calls = relaxing._one, []

        def one(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 3:
                (tmp_path / "trajectories" / ".2.77.traj").write_bytes(b"half a trajectory")
                raise KeyboardInterrupt
            return in_one(*arguments)

        monkeypatch.setattr(relaxing, "_one", one)
        assert command(models[0], structures, tmp_path, *words) == 130

    list(in_children(killed, [0, 1], processes=1))
    with (tmp_path / relaxing.JOURNAL).open("ab") as journal:
        assert len((tmp_path / relaxing.JOURNAL).read_bytes().splitlines()) == 5
        journal.write(b'{"number": 4, "identi')
    assert command(models[0], structures, tmp_path, *words) == 0
    assert "4 of 7 structures are relaxed already" in capsys.readouterr().out
    assert content(tmp_path) == unbroken
    assert not list(tmp_path.glob("trajectories/.*"))


def test_a_structure_whose_process_dies_takes_no_other_along(
    models: list[Path],
    structures: Path,
    unbroken: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where it takes more memory than there is; a repeated command tries it again."""
    words = ("--relax_cell", "--processes", 2, "--max_steps", 60)
    in_one = relaxing._one

    def one(*arguments: object) -> object:
        if arguments[-1] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return in_one(*arguments)

    with monkeypatch.context() as dying:
        dying.setattr(relaxing, "_one", one)
        assert command(models[0], structures, tmp_path, *words) == 0
    assert "its work begins again" in capsys.readouterr().out
    lines = list(csv.DictReader(io.StringIO((tmp_path / "relaxed.csv").read_text())))
    right = list(csv.DictReader(io.StringIO(unbroken["relaxed.csv"].decode())))
    assert lines[2]["reason"].startswith("its process was ended by SIGKILL twice")
    assert [*lines[:2], *lines[3:]] == [*right[:2], *right[3:]]
    assert command(models[0], structures, tmp_path, *words) == 0
    assert content(tmp_path) == unbroken


def test_other_work_in_the_folder_is_refused(
    models: list[Path], structures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(models[0], structures, tmp_path, "--max_steps", 2) == 0
    before = content(tmp_path)
    for model, words in ((models[1], ()), (models[0], ("--max_steps", 3))):
        given = words or ("--max_steps", 2)
        assert command(model, structures, tmp_path, *given) == 2
        assert "is the journal of other work" in capsys.readouterr().err
        assert content(tmp_path) == before
    assert command(models[1], structures, tmp_path, "--max_steps", 2, "--overwrite") == 0
    assert content(tmp_path) != before


def test_what_is_wrong_with_one_stops_that_one_alone(models: list[Path], tmp_path: Path) -> None:
    sound = kinds()["crystal"]
    meeting = Atoms("OO", positions=[[0, 0, 0], [0, 0, 0.02]])
    write(tmp_path / "in.xyz", [sound, meeting, kinds()["molecule"]], format="extxyz")
    assert command(models[0], tmp_path / "in.xyz", tmp_path / "out", "--max_steps", 40) == 0
    summary = json.loads((tmp_path / "out" / "relaxed.json").read_text())
    assert (summary["n_structures"], summary["n_converged"]) == (3, 2)
    assert summary["reasons"] == {"cannot be computed": 1}
    lines = (tmp_path / "out" / "relaxed.csv").read_text().splitlines()
    assert lines[2].endswith("atoms 0 and 1 are 0.02 Å apart (expected at least 0.1 Å)")


@pytest.mark.parametrize("minimizer", ["lbfgs", "fire", "bfgs"])
@pytest.mark.parametrize("pressure", [0.0, 5.0])
def test_no_force_is_larger_at_a_minimum_however_far_its_cell_went(
    minimizer: str, pressure: float
) -> None:
    """The filter's forces are those times the deformation of the cell."""
    for stretch in ([1.35, 1.35, 1.0], [0.85, 0.85, 0.85]):
        crystal = bulk("Cu", cubic=True) * (2, 1, 1)
        crystal.set_cell(crystal.cell.array @ np.diag(stretch), scale_atoms=True)
        crystal.rattle(0.1, seed=1)
        criteria = Criteria(
            fmax=0.05, max_steps=300, minimizer=minimizer, relax_cell=True, pressure=pressure
        )
        came = relaxed(crystal, EMT(), criteria)
        assert came.converged
        after = came.atoms.copy()
        after.calc = EMT()
        assert np.linalg.norm(after.get_forces(), axis=1).max() < 0.05
        virial = after.get_stress(voigt=False) + pressure * units.GPa * np.eye(3)
        per_atom = virial * after.get_volume() / len(after)
        assert np.linalg.norm(per_atom, axis=1).max() < 0.05


def test_a_way_is_kept_whole_where_the_filter_is_made_anew(tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal.set_cell(crystal.cell.array @ np.diag([1.35, 1.35, 1.0]), scale_atoms=True)
    crystal.rattle(0.1, seed=1)
    criteria = Criteria(fmax=0.002, max_steps=300, relax_cell=True)
    came = relaxed(crystal, EMT(), criteria, tmp_path / "way.traj")
    way = read(tmp_path / "way.traj", ":")
    np.testing.assert_array_equal(way[0].positions, crystal.positions)
    np.testing.assert_array_equal(way[-1].positions, came.atoms.positions)
    assert len(way) >= came.steps + 1


def test_cells_that_cannot_be_relaxed_are_said(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = kinds()["crystal"]
    held.set_constraint(FixAtoms([0]))
    columns = ["symbols", "positions", "move_mask"]
    write(tmp_path / "held.xyz", held, format="extxyz", columns=columns)
    assert command(models[0], tmp_path / "held.xyz", tmp_path / "a", "--relax_cell") == 2
    assert "holds atoms fixed, and --relax_cell would move them" in capsys.readouterr().err
    write(tmp_path / "slab.xyz", kinds()["slab"], format="extxyz")
    assert command(models[0], tmp_path / "slab.xyz", tmp_path / "b", "--relax_cell") == 2
    assert "no structure is periodic in three directions" in capsys.readouterr().err
    both = [kinds()["slab"], kinds()["crystal"]]
    write(tmp_path / "both.xyz", both, format="extxyz")
    words = ("--relax_cell", "--pressure", 5, "--max_steps", 1)
    assert command(models[0], tmp_path / "both.xyz", tmp_path / "c", *words) == 0
    assert "1 of 2 structures are not periodic in three directions" in capsys.readouterr().out


def test_structures_that_name_another_head_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["pbe", "r2"]
    energies = METALS["atomic_energies"]
    heads = {"heads": names, "atomic_energies": {"pbe": energies, "r2": {**energies, "H": 0.0}}}
    heads |= {"atomic_inter_scale": [1.0] * 2, "atomic_inter_shift": [0.0] * 2}
    model = written(tmp_path, 1, **heads)
    frames = [kinds()["molecule"] for _ in range(3)]
    frames[0].info["head"] = "pbe"
    frames[1].info["head"] = "r2"
    write(tmp_path / "heads.xyz", frames, format="extxyz")
    words = ("--head", "r2", "--max_steps", 1)
    assert command(model, tmp_path / "heads.xyz", tmp_path / "a", *words) == 0
    text = capsys.readouterr().out
    assert "1 of 3 structures name another head; all are computed by head r2" in text
    assert "the E0 of H in head r2 is 0 eV, which says nothing" in text


def test_held_atoms_stay(models: list[Path], tmp_path: Path) -> None:
    atoms = kinds()["slab"]
    atoms.set_constraint(FixAtoms([0, 1, 2, 3]))
    write(
        tmp_path / "in.xyz", atoms, format="extxyz", columns=["symbols", "positions", "move_mask"]
    )
    assert command(models[0], tmp_path / "in.xyz", tmp_path / "out", "--max_steps", 40) == 0
    after = read(tmp_path / "out" / "relaxed.xyz")
    assert after.constraints[0].index.tolist() == [0, 1, 2, 3], "and are held in what is written"
    # digits of the file
    np.testing.assert_allclose(after.positions[:4], atoms.positions[:4], rtol=0, atol=1e-8)
    assert (np.abs(after.positions[4:] - atoms.positions[4:]).max(axis=1) > 1e-4).all()
