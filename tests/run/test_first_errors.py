"""What a training says of reference energies that are not those of its data."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write

from conftest import TINY, waters
from model_utils import train_mace


@pytest.mark.parametrize("right", [True, False])
def test_isolated_atoms_and_first_errors(
    right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frames' energies beside those of the model; one line of advice where the
    first errors are large.
    """
    energies = {"H": -13.6, "O": -430.0 if right else -380.0}
    (tmp_path / "m.json").write_text(json.dumps(TINY | {"atomic_energies": energies}))
    atoms = [
        Atoms(z, info={"REF_energy": e, "config_type": "IsolatedAtom"})
        for z, e in (("H", -13.6), ("O", -430.0))
    ]
    for atom in atoms:
        atom.arrays["REF_forces"] = np.zeros((1, 3))
    write(tmp_path / "w.xyz", [*atoms, *waters(6)], format="extxyz")
    words = [
        "--input_json",
        str(tmp_path / "m.json"),
        "--xyz_train",
        str(tmp_path / "w.xyz"),
        "--valid_fraction",
        "0.4",
    ]
    words += [
        "--max_steps",
        "1",
        "--no_export_mace_model",
        "--output_checkpoint",
        str(tmp_path / "run"),
    ]
    assert train_mace.main(words) == 0
    shown = capsys.readouterr().out
    assert "2 IsolatedAtom frame(s) are left out\n" in shown
    advice = (
        f"`metadata.py check --input_json {tmp_path / 'm.json'}` compares them with the "
        "data, `metadata.py fit`"
    )
    assert ("IsolatedAtom frames are the E0s of head Default" in shown) == right
    assert ("are not what the E0s of head Default are: O -430 against -380 eV" in shown) != right
    assert (advice in shown) != right


@pytest.mark.parametrize(
    ("shift", "unit", "sentence"),
    [
        (0.0, 1.0, "which may be the binding energy: a model without shift whose E0s are those of"),
        (0.0, 23.06, "warning: the first errors are"),
        (-9.0, 1.0, "warning: the first errors are"),
        (-3.0, 1.0, None),
    ],
)
def test_binding_is_no_fault_of_a_model_without_shift(
    shift: float,
    unit: float,
    sentence: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "m.json").write_text(json.dumps(TINY | {"atomic_inter_shift": [shift]}))
    frames = waters(6)
    for atoms in frames:
        atoms.info["REF_energy"] = unit * (2 * -13.6 - 430.0 - 3 * 3.0)
    write(tmp_path / "w.xyz", frames, format="extxyz")
    words = ["--input_json", tmp_path / "m.json", "--xyz_train", tmp_path / "w.xyz"]
    words += ["--valid_fraction", 0.4, "--max_steps", 1, "--no_export_mace_model"]
    words += ["--output_checkpoint", tmp_path / "run"]
    assert train_mace.main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    if sentence is None:
        assert "the first errors" not in shown
    else:
        assert sentence in shown


def test_reference_energies_that_no_atom_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.json").write_text(
        json.dumps(TINY | {"atomic_energies": {"H": -190.0, "O": -77.0}})
    )
    write(tmp_path / "w.xyz", waters(6), format="extxyz")
    words = [
        "--input_json",
        str(tmp_path / "m.json"),
        "--xyz_train",
        str(tmp_path / "w.xyz"),
        "--valid_fraction",
        "0.4",
    ]
    assert train_mace.main([*words, "--dry_run", "--output_checkpoint", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "warning: no atom has so low an E0 as head Default has: H -190 eV" in shown
    assert "fitted to compositions that do not determine it" in shown
    assert "those of IsolatedAtom frames in the data, or with --E0s of a file" in shown
    frames = waters(6)
    for atoms in frames[::2]:  # compositions of OH determine what fit then finds
        del atoms[2]
    write(tmp_path / "w.xyz", frames, format="extxyz")
    assert train_mace.main([*words, "--dry_run", "--output_checkpoint", str(tmp_path / "run")]) == 0
    assert "m.json with the data makes a model.json with theirs" in capsys.readouterr().out
