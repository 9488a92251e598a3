"""md.py goes on after a kill or a request to stop as if nothing had been; what it
says of a run is right.
"""

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian
from ase.io import read, write

from model_utils import md, relax
from model_utils.calculator import Calculator
from model_utils.errors import InputError
from model_utils.simulation import dynamics, growing
from model_utils.simulation.dynamics import summary_of
from model_utils.simulation.ensembles import ENSEMBLES, Conditions, temperature_of
from model_utils.simulation.velocities import give_velocities
from simulation.conftest import kinds, written

FILES = ("md.csv", "trajectory.xyz", "state.json", "md.json")


@pytest.fixture(scope="module")
def crystal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crystal") / "crystal.xyz"
    write(path, kinds()["crystal"], format="extxyz")
    return path


def command(model: Path, data: Path, output: Path, *words: object) -> int:
    given = ["--input_model", model, "--data", data, "--output_dir", output, "--device", "cpu"]
    common = ["--write_every", 3, "--checkpoint_every", 7, "--temperature", 900]
    return md.main([str(word) for word in (*given, *common, *words)])


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def at_step(number: int, do: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen after a step, once."""
    after, done = dynamics._Run._after_step, []

    def disturbed(run: dynamics._Run) -> None:
        after(run)
        if run.step == number and not done:
            done.append(1)
            do()

    monkeypatch.setattr(dynamics._Run, "_after_step", disturbed)


def interrupted() -> None:
    raise KeyboardInterrupt


def atoms_meet() -> None:
    raise InputError("atoms 0 and 1 are 0.09 Å apart")


def asked_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_goes_on_to_the_same_bits(
    ensemble: str,
    models: list[Path],
    crystal: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--ensemble", ensemble, "--n_steps", 30)
    assert command(models[0], crystal, tmp_path / "whole", *words) == 0
    for step, do, code in ((17, interrupted, 130), (22, asked_to_stop, 75)):
        at_step(step, do, monkeypatch)
        assert command(models[0], crystal, tmp_path / "broken", *words) == code
        state = json.loads((tmp_path / "broken" / "state.json").read_text())
        assert state["step"] == (14 if code == 130 else 22)
    assert command(models[0], crystal, tmp_path / "broken", *words) == 0
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_rows_and_frames_are_kept_where_atoms_meet(
    models: list[Path],
    crystal: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What led there can be looked at and trained on; the run goes on from its last state."""

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command(models[0], crystal, whole, "--n_steps", 30) == 0
    at_step(20, atoms_meet, monkeypatch)
    assert command(models[0], crystal, broken, "--n_steps", 30) == 2
    text = capsys.readouterr().err
    assert "step 20: atoms 0 and 1 are 0.09 Å apart; rows and frames" in text
    assert "the last state is that of step 14" in text
    assert [atoms.info["step"] for atoms in read(broken / "trajectory.xyz", index=":")] == [
        *range(0, 19, 3)
    ]
    assert (whole / "md.csv").read_bytes().startswith((broken / "md.csv").read_bytes())
    assert command(models[0], crystal, broken, "--n_steps", 30) == 0
    assert content(broken) == content(whole)


def test_rows_of_before_the_first_save_are_not_removed_by_other_settings(
    models: list[Path],
    crystal: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_step(5, atoms_meet, monkeypatch)
    assert command(models[0], crystal, tmp_path / "run", "--n_steps", 30) == 2
    table = (tmp_path / "run/md.csv").read_bytes()
    assert len(table.splitlines()) == 3
    assert command(models[0], crystal, tmp_path / "run", "--n_steps", 30, "--timestep", 0.2) == 2
    assert "is of another run: timestep" in capsys.readouterr().err
    assert (tmp_path / "run/md.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("ensemble", "word"),
    [("nve", "--friction"), ("nose_hoover", "--pressure"), ("langevin", "--barostat_time")],
)
def test_conditions_that_an_ensemble_has_not_are_said(
    ensemble: str,
    word: str,
    models: list[Path],
    crystal: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--n_steps", 1, "--ensemble", ensemble, word, 3)
    assert command(models[0], crystal, tmp_path / "run", *words) == 0
    said = capsys.readouterr().out
    assert f"{word} changes nothing: --ensemble {ensemble} does not use it" in said
    assert said.count("changes nothing") == 1


def test_more_steps_are_those_of_a_longer_run(
    models: list[Path], crystal: Path, tmp_path: Path
) -> None:
    assert command(models[0], crystal, tmp_path / "long", "--n_steps", 20) == 0
    for n_steps in (9, 20):
        assert command(models[0], crystal, tmp_path / "grown", "--n_steps", n_steps) == 0
    assert content(tmp_path / "grown") == content(tmp_path / "long")


def test_another_run_in_the_folder_is_refused(
    models: list[Path], crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(models[0], crystal, tmp_path, "--n_steps", 6) == 0
    before = content(tmp_path)
    for model, words in (
        (models[1], ()),
        (models[0], ("--timestep", 2)),
        (models[0], ("--seed", 5)),
    ):
        assert command(model, crystal, tmp_path, "--n_steps", 6, *words) == 2
        assert "is of another run" in capsys.readouterr().err
        assert content(tmp_path) == before
    assert command(models[1], crystal, tmp_path, "--n_steps", 6, "--overwrite") == 0
    assert content(tmp_path) != before
    before = content(tmp_path)
    assert (
        command(models[0], tmp_path / "trajectory.xyz", tmp_path, "--n_steps", 6, "--overwrite")
        == 2
    )
    assert "trajectory.xyz, which is read and would be replaced" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_fewer_steps_than_there_are_is_refused(
    models: list[Path], crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(models[0], crystal, tmp_path, "--n_steps", 10) == 0
    said = json.loads((tmp_path / "md.json").read_text())
    assert (said["n_steps"], said["time_ps"]) == (10, pytest.approx(0.01)), "the last row is of 9"
    before = content(tmp_path)
    assert command(models[0], crystal, tmp_path, "--n_steps", 9) == 2
    assert "has 10 steps already, which --n_steps 9 counts in" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_velocities_of_the_data(
    models: list[Path], crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(models[0], crystal, tmp_path / "whole", "--n_steps", 12) == 0
    frames = read(tmp_path / "whole" / "trajectory.xyz", ":")
    write(tmp_path / "middle.traj", frames[2])  # step 6
    middle = tmp_path / "middle.traj"
    capsys.readouterr()
    assert command(models[0], middle, tmp_path / "drawn", "--n_steps", 6) == 0
    assert "which are not used: new ones are drawn" in capsys.readouterr().out
    words = ("--n_steps", 6, "--velocities", "data")
    assert command(models[0], middle, tmp_path / "rest", *words) == 0
    rest = read(tmp_path / "rest" / "trajectory.xyz", ":")
    assert rest[0].info["temperature"] == pytest.approx(frames[2].info["temperature"], rel=1e-6)
    np.testing.assert_allclose(rest[-1].positions, frames[4].positions, atol=1e-6)
    np.testing.assert_allclose(rest[-1].get_momenta(), frames[4].get_momenta(), atol=1e-5)
    assert command(models[0], crystal, tmp_path / "none", *words) == 2
    assert "--velocities data, but the structure has none" in capsys.readouterr().err


@pytest.mark.parametrize("ensemble", ["nose_hoover", "npt"])
def test_a_chain_heats_what_moves_and_not_the_whole(ensemble: str) -> None:
    """Two atoms have half of the 3 N degrees of freedom that ASE's chain counts."""
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]], cell=[5, 5, 5], pbc=True)
    conditions = Conditions(
        timestep=1.0,
        temperature=300.0,
        friction=1.0,
        thermostat_time=100.0,
        pressure=0.0,
        barostat_time=1000.0,
    )
    integrator = ENSEMBLES[ensemble].begin(atoms, conditions, np.random.default_rng(1))
    twice_kinetic = 3 * len(atoms) * integrator._thermostat._kT
    assert twice_kinetic == pytest.approx(3 * units.kB * 300.0)
    if ensemble == "npt":
        assert integrator._barostat._kT == pytest.approx(units.kB * 300.0)


def test_charge_and_spin_stay_in_the_trajectory_and_are_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"type": "categorical", "per": "graph", "emb_dim": 4}
    inputs = {
        "total_charge": {**common, "num_classes": 21, "offset": 10},
        "total_spin": {**common, "num_classes": 7},
    }
    model = written(tmp_path, 1, embedding_specs=inputs)
    atoms = kinds()["crystal"]
    atoms.info |= {"total_charge": 1.0, "total_spin": 2.0}
    write(tmp_path / "ion.xyz", atoms, format="extxyz")
    assert command(model, tmp_path / "ion.xyz", tmp_path / "out", "--n_steps", 3) == 0
    for frame in read(tmp_path / "out" / "trajectory.xyz", ":"):
        assert (frame.info["total_charge"], frame.info["total_spin"]) == (1.0, 2.0)
    words = ("--n_steps", 3, "--repeat", 2, 1, 1)
    assert command(model, tmp_path / "ion.xyz", tmp_path / "two", *words) == 2
    assert "whose total_charge is not the 1 of the structure" in capsys.readouterr().err
    atoms.info |= {"total_charge": 0.0, "total_spin": 1.0}
    write(tmp_path / "neutral.xyz", atoms, format="extxyz")
    assert command(model, tmp_path / "neutral.xyz", tmp_path / "two", *words) == 0


def test_charged_structures_can_be_left_out_or_taken_for_neutral(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ion = kinds()["molecule"]
    ion.info["charge"] = 1
    write(tmp_path / "in.xyz", [kinds()["crystal"], ion], format="extxyz")
    given = ["--input_model", models[0], "--data", tmp_path / "in.xyz", "--max_steps", 1]

    def relaxed(folder: str, *words: str, code: int = 0) -> str:
        output = ["--output_dir", tmp_path / folder, "--device", "cpu", *words]
        assert relax.main(list(map(str, [*given, *output]))) == code
        return "".join(capsys.readouterr())

    assert "leave them out with --drop_charged" in relaxed("refused", code=2)
    assert "1 structures, " in relaxed("dropped", "--drop_charged")
    assert "2 structures, " in relaxed("kept", "--charge_key", "none")


MISTAKES = {
    "two structures": ((), "say which moves with --index"),
    "no such structure": (("--index", 2), "the data hold 2 structures"),
    "no cell to change": (
        ("--index", 1, "--ensemble", "npt"),
        "is not periodic in three directions",
    ),
    "repeat": (("--index", 0, "--repeat", 2), "--repeat takes three numbers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    mistake: str, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, sentence = MISTAKES[mistake]
    write(tmp_path / "in.xyz", [kinds()["crystal"], kinds()["molecule"]], format="extxyz")
    assert command(models[0], tmp_path / "in.xyz", tmp_path / "out", "--n_steps", 5, *words) == 2
    assert sentence in capsys.readouterr().err


def test_energy_is_conserved_to_the_order_of_the_step(
    models: list[Path], crystal: Path, tmp_path: Path
) -> None:
    """Verlet's error of the energy falls with the square of the timestep."""
    spread: dict[float, float] = {}
    for timestep, n_steps in ((1, 60), (0.5, 120)):
        output = tmp_path / str(timestep)
        words = ("--timestep", timestep, "--n_steps", n_steps, "--repeat", 2, 1, 1)
        assert command(models[0], crystal, output, *words) == 0
        rows = dynamics._rows(output / "md.csv")
        spread[timestep] = np.ptp(rows["conserved_energy_eV"])
    assert 3 < spread[1] / spread[0.5] < 5


def test_drift_and_temperature_of_known_rows() -> None:
    times = np.linspace(0, 2.0, 21)
    rows = {
        "step": np.arange(21.0),
        "time_ps": times,
        "temperature_K": np.where(times < 1.0, 900.0, 300.0),
        "potential_energy_eV": np.zeros(21),
        "conserved_energy_eV": 5.0 + 0.012 * times,
        "volume_A3": np.full(21, np.nan),
    }
    summary = summary_of(rows, 4, conserves=True)
    assert summary["drift_meV_per_atom_ps"] == pytest.approx(3.0)
    assert summary["temperature_K"] == pytest.approx(300.0)
    assert summary["volume_A3"] is None
    assert summary_of(rows, 4, conserves=False)["drift_meV_per_atom_ps"] is None


@pytest.mark.parametrize(
    ("ensemble", "freedom"), [("nve", 18), ("nose_hoover", 18), ("langevin", 24)]
)
def test_velocities_at_the_beginning(ensemble: str, freedom: int) -> None:
    """Half kT for each degree of freedom that the ensemble moves; the others are at rest."""
    atoms = Atoms("Cu8", positions=np.random.default_rng(0).normal(0, 3, (8, 3)))
    give_velocities(atoms, 300.0, np.random.default_rng(1), ensemble)
    assert atoms.get_kinetic_energy() == pytest.approx(0.5 * freedom * units.kB * 300.0)
    assert temperature_of(ensemble, atoms) == pytest.approx(300.0)
    at_rest = ensemble != "langevin"
    assert (np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-12) == at_rest
    assert (np.abs(atoms.get_angular_momentum()).max() < 1e-6) == at_rest


def test_the_pressure_is_that_of_stress_and_motion(
    models: list[Path], crystal: Path, tmp_path: Path
) -> None:
    assert command(models[0], crystal, tmp_path, "--n_steps", 3) == 0
    rows = dynamics._rows(tmp_path / "md.csv")
    state = json.loads((tmp_path / "state.json").read_text())
    atoms = read(crystal)
    atoms.positions = np.array(state["positions"])
    atoms.calc = Calculator(models[0])
    kinetic = 2 * rows["kinetic_energy_eV"][-1] / (3 * atoms.get_volume())
    expected = (kinetic - atoms.get_stress()[:3].mean()) / units.GPa
    assert rows["pressure_GPa"][-1] == pytest.approx(expected, rel=1e-9)


def test_files_of_others_are_not_touched(
    models: list[Path], crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trajectory.xyz").write_text("mine")
    (tmp_path / "relaxed.xyz").write_text("mine too")
    assert command(models[0], crystal, tmp_path, "--n_steps", 3) == 2
    assert "trajectory.xyz is there and not of a run in this folder" in capsys.readouterr().err
    words = [
        "--input_model",
        models[0],
        "--data",
        crystal,
        "--output_dir",
        tmp_path,
        "--device",
        "cpu",
    ]
    assert relax.main([str(word) for word in words]) == 2
    assert "relaxed.xyz is there and not of a relaxation" in capsys.readouterr().err
    assert (tmp_path / "trajectory.xyz").read_text() == "mine"
    assert (tmp_path / "relaxed.xyz").read_text() == "mine too"


def test_what_a_frame_says_of_its_atoms(models: list[Path], tmp_path: Path) -> None:
    """An index is the frame's number, isolated atoms counted; masses are those of the file."""
    alone = Atoms("Cu")
    alone.info["config_type"] = "IsolatedAtom"
    heavy = kinds()["molecule"]
    heavy.set_masses([15.999, 2.014, 2.014])
    crystal = kinds()["crystal"]
    for atoms in (alone, crystal):
        atoms.set_masses(atoms.get_masses())
    write(tmp_path / "in.xyz", [alone, heavy, crystal], columns=["symbols", "positions", "masses"])
    assert (
        command(models[0], tmp_path / "in.xyz", tmp_path / "out", "--index", 1, "--n_steps", 3) == 0
    )
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    rows = dynamics._rows(tmp_path / "out" / "md.csv")
    momenta = np.array(state["momenta"])
    assert momenta.shape == (3, 3)
    kinetic = 0.5 * (momenta**2 / heavy.get_masses()[:, None]).sum()
    assert rows["kinetic_energy_eV"][-1] == pytest.approx(kinetic, rel=1e-9)


def test_atoms_held_in_part_are_refused(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms = kinds()["slab"]
    atoms.set_constraint(FixCartesian([0], mask=[True, False, False]))
    write(
        tmp_path / "in.xyz", atoms, format="extxyz", columns=["symbols", "positions", "move_mask"]
    )
    assert command(models[0], tmp_path / "in.xyz", tmp_path / "out", "--n_steps", 3) == 2
    assert "held in some directions only" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["traj", "db"])
def test_other_constraints_are_refused(
    ending: str, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms = kinds()["molecule"]
    atoms.set_constraint(FixBondLengths([[0, 1]]))
    path = tmp_path / f"in.{ending}"
    write(path, atoms)
    assert command(models[0], path, tmp_path / "out", "--n_steps", 3) == 2
    assert "the constraints FixBondLengths are not done here" in capsys.readouterr().err
    words = ["--input_model", models[0], "--data", path, "--output_dir", tmp_path / "relaxed"]
    assert relax.main(list(map(str, words))) == 2


def test_a_trajectory_that_ran_away_is_said(
    models: list[Path], crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(models[0], crystal, tmp_path / "sound", "--n_steps", 30) == 0
    assert "warning" not in capsys.readouterr().out
    wild = {"temperature_K": 1e5, "drift_meV_per_atom_ps": 2e4}
    sentences = list(dynamics._doubts(wild, 300.0))
    assert "the energy is not conserved, it drifts by 2e+04 meV/atom/ps" in sentences[0]
    assert "the mean temperature is 1e+05 K, begun with 300 K" in sentences[1]


def test_nvt_is_answered_with_what_keeps_a_temperature(
    models: list[Path], crystal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--n_steps", 3, "--ensemble", "nvt")
    assert command(models[0], crystal, tmp_path / "out", *words) == 2
    assert "did you mean langevin, or nose_hoover?" in capsys.readouterr().err


def test_a_molecule_on_a_line_has_one_temperature(models: list[Path], tmp_path: Path) -> None:
    """It bends, and rotates about three axes then: in every row, and when the run goes on."""
    line = Atoms("HOH", positions=[[-0.96, 0, 0], [0, 0, 0], [0.96, 0, 0]])
    write(tmp_path / "line.xyz", line, format="extxyz")
    words = ("--ensemble", "nose_hoover", "--timestep", 0.2, "--write_every", 1)
    for folder, steps in (("whole", [60]), ("broken", [25, 60])):
        for n_steps in steps:
            given = (*words, "--n_steps", n_steps)
            assert command(models[0], tmp_path / "line.xyz", tmp_path / folder, *given) == 0
    assert content(tmp_path / "broken") == content(tmp_path / "whole")
    rows = dynamics._rows(tmp_path / "whole" / "md.csv")
    ratio = rows["temperature_K"] / rows["kinetic_energy_eV"]
    np.testing.assert_allclose(ratio, 2 / (3 * units.kB), rtol=1e-9)


def test_held_atoms_stay_held_where_a_trajectory_goes_on(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slab = kinds()["slab"]
    slab.set_constraint([FixAtoms([0, 1]), FixAtoms([-1])])
    write(tmp_path / "slab.traj", slab)
    assert command(models[0], tmp_path / "slab.traj", tmp_path / "a", "--n_steps", 6) == 0
    words = ("--index", 2, "--velocities", "data", "--n_steps", 6)
    assert command(models[0], tmp_path / "a/trajectory.xyz", tmp_path / "b", *words) == 0
    for frame in read(tmp_path / "b/trajectory.xyz", ":"):
        np.testing.assert_allclose(frame.positions[[0, 1, -1]], slab.positions[[0, 1, -1]])
    slab.set_constraint(FixAtoms(range(len(slab))))
    write(tmp_path / "slab.traj", slab)
    capsys.readouterr()
    assert command(models[0], tmp_path / "slab.traj", tmp_path / "c", "--n_steps", 6) == 2
    assert "all atoms of the structure are held fixed" in capsys.readouterr().err


def test_an_index_counts_what_is_left_out(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ion, crystal, slab = (kinds()[name] for name in ("molecule", "crystal", "slab"))
    ion.info["charge"] = 1
    write(tmp_path / "in.xyz", [ion, crystal, slab], format="extxyz")

    def moved(folder: str, *words: object, code: int = 0) -> str:
        given = ("--drop_charged", "--n_steps", 1, *words)
        assert command(models[0], tmp_path / "in.xyz", tmp_path / folder, *given) == code
        return "".join(capsys.readouterr())

    assert "in.xyz#1 moves: Al4" in moved("one", "--index", 1)
    assert "in.xyz#2 moves: Al12" in moved("two", "--index", 2)
    assert "--index 0: this structure is left out, or not there" in moved("0", "--index", 0, code=2)
    write(tmp_path / "ion.xyz", ion, format="extxyz")
    more = ("--data", tmp_path / "ion.xyz", tmp_path / "in.xyz", "--index", 1)
    assert "--index 1 does not say which structure is meant" in moved("more", *more, code=2)


def test_a_first_try_that_wrote_nothing_protects_nothing(
    models: list[Path], crystal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(2, interrupted, patch)
        assert command(models[0], crystal, tmp_path, "--n_steps", 9) == 130
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 0
    assert command(models[0], crystal, tmp_path, "--n_steps", 9, "--timestep", 0.5) == 0


def test_killed_within_its_first_save_it_begins_again(
    models: list[Path], crystal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(models[0], crystal, tmp_path / "whole", "--n_steps", 9) == 0
    add = growing.add

    def killed(path: Path, text: io.StringIO) -> int:
        add(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(growing, "add", killed)
    assert command(models[0], crystal, tmp_path / "broken", "--n_steps", 9) == 130
    monkeypatch.undo()
    assert (tmp_path / "broken" / "md.csv").exists()
    assert command(models[0], crystal, tmp_path / "broken", "--n_steps", 9) == 0
    assert content(tmp_path / "broken") == content(tmp_path / "whole")
