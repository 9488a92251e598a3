"""Charge and spin as inputs: whatever file they stand in, a network that has them
takes them, others refuse.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from lmdb_material import write_ase
from simulation.conftest import written

import metadata
import read_model
from conftest import TINY, every, waters
from dataloader.errors import InputError
from model_utils import evaluate, resume, train_mace
from model_utils.calculator import Calculator
from model_utils.files import checkpoint

CHARGE = {"type": "categorical", "per": "graph", "emb_dim": 4, "num_classes": 21, "offset": 10}
SPIN = {"type": "categorical", "per": "graph", "emb_dim": 4, "num_classes": 7}
CHARGED = TINY | {"embedding_specs": {"total_charge": CHARGE, "total_spin": SPIN}}
STATES = [(0, 1), (1, 2), (-1, 2), (0, 3)]  # charge, multiplicity
SHIFT = 0.4  # eV for each elementary charge


def states(n: int, seed: int = 0) -> list[Atoms]:
    """Waters of several charges and multiplicities, which shift their energies."""
    frames = waters(n, seed)
    for k, atoms in enumerate(frames):
        charge, spin = STATES[k % len(STATES)]
        atoms.info |= {"total_charge": charge, "total_spin": spin}
        atoms.info["REF_energy"] += SHIFT * charge
    return frames


def as_omol(frames: list[Atoms], path: Path) -> Path:
    """Rows as OMol25 has them: ASE's LMDB with charge and spin among the data of a row."""
    data = []
    for atoms in frames:
        data.append(
            {"charge": atoms.info.pop("total_charge"), "spin": atoms.info.pop("total_spin")}
        )
        labels = {"energy": atoms.info.pop("REF_energy"), "forces": atoms.arrays.pop("REF_forces")}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return write_ase(path, frames, data)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "plain.json").write_text(json.dumps(TINY))
    (tmp_path / "charged.json").write_text(json.dumps(CHARGED))
    return tmp_path


def source_of(kind: str, place: Path) -> Path:
    if kind == "lmdb":
        return as_omol(states(12), place / "omol.aselmdb")
    write(place / "train.xyz", states(12), format="extxyz")
    return place / "train.xyz"


def training(place: Path, network: str, data: Path, *more: str) -> list[str]:
    words = [
        "--input_json",
        str(place / f"{network}.json"),
        "--train_file",
        str(data),
        "--valid_file",
        str(data),
    ]
    words += [
        "--output_checkpoint",
        str(place / "run"),
        "--batch_size",
        "4",
        "--lr",
        "0.05",
        "--dtype",
        "float64",
    ]
    return [*words, "--no_export_mace_model", *more]


@pytest.mark.parametrize("kind", every(2, ["lmdb", "xyz"]))
def test_a_network_with_them_computes_by_them(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = source_of(kind, place)
    assert (
        train_mace.main(training(place, "charged", data, "--epochs", "3", "--energy_weight", "100"))
        == 0
    )
    assert resume.main(["--input_model", str(place / "run"), "--epochs", "4"]) == 0
    tensors = checkpoint.read(place / "run" / "run_model.pt").tensors
    names = [name for name in tensors if name.startswith("joint_embedding.")]
    assert any("total_charge" in name for name in names)
    assert any("total_spin" in name for name in names)
    capsys.readouterr()
    words = ["--input_model", str(place / "run" / "run_model.pt"), "--data", str(data)]
    assert evaluate.main([*words, "--output_xyz", str(place / "p.xyz")]) == 0
    frames = read(place / "p.xyz", index=":")
    calculator = Calculator(place / "run" / "run_model.pt")
    for frame, (charge, spin) in zip(sorted_as_written(frames), STATES * 3, strict=True):
        atoms = Atoms(frame.numbers, frame.positions)
        atoms.info = {"charge": charge, "spin": spin}  # OMol25's names
        assert calculator.get_potential_energy(atoms) == pytest.approx(
            frame.info["mace_energy"], abs=1e-6
        )
        atoms.info["charge"] = -charge if charge else 1
        assert abs(calculator.get_potential_energy(atoms) - frame.info["mace_energy"]) > 1e-6


def sorted_as_written(frames: list[Atoms]) -> list[Atoms]:
    """Frames in the order of their file, by the positions that it has."""
    order = {np.round(atoms.positions, 6).tobytes(): k for k, atoms in enumerate(states(12))}
    return sorted(frames, key=lambda frame: order[np.round(frame.positions, 6).tobytes()])


@pytest.mark.parametrize("kind", every(2, ["xyz", "lmdb"]))
def test_a_network_without_refuses_them_unless_told(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = source_of(kind, place)
    assert train_mace.main(training(place, "plain", data)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "6 of 12 structures have a charge" in line
    assert "model.json has no total_charge among its embedding_specs" in line
    told = ["--charge_key", "none", "--spin_key", "none", "--epochs", "1", "--overwrite"]
    assert train_mace.main(training(place, "plain", data, *told)) == 0
    left = ["--drop_charged", "--epochs", "1", "--overwrite"]
    assert train_mace.main(training(place, "plain", data, *left)) == 0
    assert "a charge for which the model has no input" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["xyz", "lmdb"])
def test_a_network_with_them_refuses_rows_without(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = states(12)
    for atoms in frames:
        del atoms.info["total_spin"]
    if kind == "lmdb":
        for atoms in frames:
            atoms.info["total_spin"] = None
        data = as_omol(frames, place / "omol.aselmdb")
    else:
        data = place / "train.xyz"
        write(data, frames, format="extxyz")
    assert train_mace.main(training(place, "charged", data)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "total_spin" in line


def test_the_calculator_asks_for_what_is_missing(place: Path) -> None:
    data = source_of("xyz", place)
    assert train_mace.main(training(place, "charged", data, "--epochs", "1")) == 0
    atoms = waters(1)[0]
    atoms.info = {"charge": 0}
    atoms.calc = Calculator(place / "run" / "run_model.pt")
    with pytest.raises(InputError, match=r"total_spin is missing.*set it in atoms.info"):
        atoms.get_potential_energy()


def test_the_calculator_warns_of_a_state_that_its_network_does_not_know(tmp_path: Path) -> None:
    model = written(tmp_path, 1)
    atoms = waters(1)[0]
    atoms.info = {"charge": -1, "spin": 1}
    atoms.calc = Calculator(model)
    with pytest.warns(UserWarning, match=r"charge -1, of which the network .* knows nothing"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        neutral = waters(2)[1]
        neutral.info = {"charge": 0, "spin": 1, "total_spin": 0}
        neutral.calc = Calculator(model)
        energy = neutral.get_potential_energy()
    neutral.info["charge"] = 1  # after a first calculation
    with pytest.warns(UserWarning, match=r"charge 1, of which the network .* knows nothing"):
        assert neutral.get_potential_energy() == energy


@pytest.mark.parametrize("ending", ["xyz", "aselmdb"])
def test_what_training_drops_is_not_measured_either(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = states(8)  # two of them are neutral singlets
    path = tmp_path / f"some.{ending}"
    if ending == "xyz":
        write(path, frames, format="extxyz")
    else:
        as_omol(frames, path)
    words = ["init", "--preset", "tiny", "--train_file", path, "--drop_charged"]
    words += ["--output_json", tmp_path / "m.json"]
    assert metadata.main([str(word) for word in words]) == 0
    text = "".join(capsys.readouterr())
    assert "left out 6: " in text
    assert "2 structures)" in text, "of which the scale is"
    assert "a charge for which the model has no input" in text


SPECS = {"total_charge": CHARGE, "total_spin": SPIN}


@pytest.mark.parametrize("step", ["fast", "reference"])
@pytest.mark.parametrize("model_class", ["ScaleShiftMACE", "MACE"])
def test_energies_of_atoms_sum_to_the_energy_with_a_readout_of_the_state(
    model_class: str, step: str, tmp_path: Path
) -> None:
    """mace's own energies of atoms lack what this readout gives."""
    changes: dict[str, object] = {"embedding_specs": SPECS, "use_embedding_readout": True}
    if model_class == "MACE":
        changes |= {"atomic_inter_scale": None, "atomic_inter_shift": None}
    model = written(tmp_path, 1, model_class=model_class, **changes)
    atoms = waters(1)[0]
    atoms.calc = Calculator(model, step=step)
    energies = []
    for charge, spin in STATES:
        atoms.info = {"charge": charge, "spin": spin}
        energies.append(atoms.get_potential_energy())
        assert atoms.get_potential_energies().sum() == pytest.approx(energies[-1], abs=1e-9)
    assert len({round(energy, 6) for energy in energies}) == len(STATES)


def test_the_form_for_lammps_has_one_state_which_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = written(tmp_path, 1, embedding_specs=SPECS)
    words = ["convert", "--input_model", str(model), "--to", "mliap"]
    words += ["--output", str(tmp_path / "mliap.pt")]
    assert read_model.main(words) == 0
    said = capsys.readouterr().out
    assert "in LAMMPS every structure has total_charge 0, total_spin 1" in said
    assert "are the source's to" in said


def test_a_readout_that_lammps_would_not_get_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = written(tmp_path, 1, embedding_specs=SPECS, use_embedding_readout=True)
    words = ["convert", "--input_model", str(model), "--to", "mliap"]
    assert read_model.main([*words, "--output", str(tmp_path / "mliap.pt")]) == 2
    assert "leaves out of the energies that LAMMPS gets" in capsys.readouterr().err
    assert not (tmp_path / "mliap.pt").exists()
    words[-1] = "module"
    assert read_model.main([*words, "--output", str(tmp_path / "plain.model")]) == 0
