"""What ``evaluate.py --output_xyz`` and ``--output_table`` say of each structure: in the order of
the data, with the labels that were taken, and everything else under names that mix nothing up.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import read, write

from conftest import TINY, waters
from dataloader import pack
from model_utils import evaluate, train_mace

Evaluated = Callable[..., list[Atoms]]
TWO_HEADS = {
    **TINY,
    "heads": ["pbe", "r2"],
    "atomic_energies": [[-13.6, -430.0]] * 2,
    "atomic_inter_scale": [1.0] * 2,
    "atomic_inter_shift": [0.0] * 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of one head and of two."""
    folder = tmp_path_factory.mktemp("models")
    precision = torch.get_default_dtype()
    found = {}
    for name, fields in {"one": TINY, "two": TWO_HEADS}.items():
        frames = waters(6)
        for number, atoms in enumerate(frames if name == "two" else ()):
            atoms.info["head"] = ("pbe", "r2")[number % 2]
        write(folder / f"{name}.xyz", frames, format="extxyz")
        (folder / f"{name}.json").write_text(json.dumps(fields))
        words = ["--input_json", folder / f"{name}.json", "--xyz_train", folder / f"{name}.xyz"]
        words += ["--xyz_val", folder / f"{name}.xyz", "--epochs", 1, "--no_export_mace_model"]
        assert train_mace.main([*map(str, words), "--output_checkpoint", str(folder / name)]) == 0
        found[name] = folder / name / f"{name}_model.pt"
    torch.set_default_dtype(precision)
    return found


@pytest.fixture
def evaluated(models: dict[str, Path], tmp_path: Path) -> Evaluated:
    """Evaluate data; the frames that were written."""

    def go(data: Path, *words: object, model: str = "one") -> list[Atoms]:
        out = tmp_path / "out.xyz"
        given = ["--input_model", models[model], "--data", data, "--output_xyz", out, "--overwrite"]
        table = ["--output_table", tmp_path / "out.csv"]
        assert evaluate.main(list(map(str, [*given, *table, *words]))) == 0
        return list(read(out, ":", format="extxyz"))

    return go


def test_labels_of_another_level_are_not_mixed_in(evaluated: Evaluated, tmp_path: Path) -> None:
    frames = waters(3)
    for number, atoms in enumerate(frames):
        atoms.info["dft_energy"] = atoms.info["REF_energy"] + 1.0
        if number < 2:  # of the last one only the energy was computed
            atoms.arrays["dft_forces"] = 2 * atoms.arrays["REF_forces"]
    write(tmp_path / "two.xyz", frames, format="extxyz")
    keys = ("--energy_key", "dft_energy", "--forces_key", "dft_forces")
    written = evaluated(tmp_path / "two.xyz", *keys)
    for atoms, was in zip(written, frames, strict=True):
        assert atoms.info["REF_energy"] == pytest.approx(was.info["dft_energy"])
        assert atoms.info["input_REF_energy"] == pytest.approx(was.info["REF_energy"])
        np.testing.assert_allclose(
            atoms.arrays["input_REF_forces"], was.arrays["REF_forces"], atol=1e-7
        )
        assert ("REF_forces" in atoms.arrays) == ("dft_forces" in was.arrays)
    np.testing.assert_allclose(
        written[0].arrays["REF_forces"], frames[0].arrays["dft_forces"], atol=1e-7
    )


def test_predictions_of_before_stay_behind(evaluated: Evaluated, tmp_path: Path) -> None:
    frames = waters(2)
    for atoms in frames:
        atoms.info["mace_energy_std"] = 0.5
        atoms.arrays["mace_forces_std"] = np.ones((len(atoms), 3))
        atoms.info["mine"] = 7
    write(tmp_path / "some.xyz", frames, format="extxyz")
    for atoms in evaluated(tmp_path / "some.xyz"):
        assert "mace_energy" in atoms.info
        assert atoms.info["mine"] == 7
        assert not [name for name in (*atoms.info, *atoms.arrays) if name.endswith("_std")]


def test_held_atoms_of_packed_data_are_written(evaluated: Evaluated, tmp_path: Path) -> None:
    atoms = waters(1)[0]
    atoms.set_constraint(FixAtoms([0]))
    columns = ["symbols", "positions", "REF_forces", "move_mask"]
    write(tmp_path / "held.xyz", atoms, format="extxyz", columns=columns)
    words = ["--input", str(tmp_path / "held.xyz"), "--output_dir", str(tmp_path / "packed")]
    assert pack.main(words) == 0
    [written] = evaluated(tmp_path / "packed")
    assert written.arrays["fixed"].tolist() == [True, False, False]


def test_texts_and_numbers_that_the_format_has_no_room_for(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    frames = waters(2)
    for atoms in frames:
        atoms.info |= {"story": "two\nlines", "name": "", "config_type": "bulk"}
        atoms.info["kgrid"] = np.array([2, 1])
        atoms.info["levels"] = np.arange(len(atoms), dtype=np.uint8)
        atoms.arrays["site"] = np.arange(len(atoms), dtype=np.uint8)
    write(tmp_path / "some.traj", frames)
    for atoms in evaluated(tmp_path / "some.traj", "--energy_key", "REF_energy"):
        assert atoms.info["story"] == "two lines"
        assert "name" not in atoms.info
        assert atoms.info["config_type"] == "bulk"
        assert atoms.info["kgrid"].tolist() == [2, 1]


@pytest.mark.parametrize("given", ["in the data", "by --head"])
def test_the_order_is_that_of_the_data(given: str, evaluated: Evaluated, tmp_path: Path) -> None:
    """Though heads are evaluated one after another."""
    frames = waters(8)
    for number, atoms in enumerate(frames):
        if number >= 5:
            atoms.info["head"] = "pbe"
        elif given == "in the data":
            atoms.info["head"] = "r2"
    write(tmp_path / "heads.xyz", frames, format="extxyz")
    words = ("--head", "r2") if given == "by --head" else ()
    written = evaluated(tmp_path / "heads.xyz", *words, model="two")
    names = [f"heads.xyz#{number}" for number in range(8)]
    assert [atoms.info["identifier"] for atoms in written] == names
    assert [atoms.info["head"] for atoms in written] == ["r2"] * 5 + ["pbe"] * 3
    judged = None if given == "in the data" else "r2"
    assert [atoms.info.get("mace_head") for atoms in written] == [None] * 5 + [judged] * 3
    for atoms, was in zip(written, frames, strict=True):
        np.testing.assert_allclose(atoms.positions, was.positions, atol=1e-7)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["identifier"] for row in csv.DictReader(file)] == names


def test_a_head_that_is_asked_for_judges_all(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As mace_eval_configs --head does: heads are compared on data of one of them."""
    frames = waters(4)
    for atoms in frames:
        atoms.info["head"] = "pbe"
    write(tmp_path / "heads.xyz", frames, format="extxyz")
    energies = {}
    for head in ("pbe", "r2"):
        written = evaluated(tmp_path / "heads.xyz", "--head", head, model="two")
        assert [atoms.info["head"] for atoms in written] == ["pbe"] * 4, "labels stay its own"
        assert [atoms.info.get("mace_head") for atoms in written] == [
            None if head == "pbe" else head
        ] * 4
        energies[head] = [atoms.info["mace_energy"] for atoms in written]
        said = "4 of 4 structures name another head; all have the head r2, which is given"
        assert (said in capsys.readouterr().out) is (head == "r2")
    assert energies["pbe"] == [
        atoms.info["mace_energy"] for atoms in evaluated(tmp_path / "heads.xyz", model="two")
    ]
    assert all(abs(a - b) > 0.1 for a, b in zip(energies["pbe"], energies["r2"], strict=True))


def test_files_of_one_name_in_two_folders_are_told_apart(
    models: dict[str, Path], tmp_path: Path
) -> None:
    paths = [tmp_path / folder / "t.xyz" for folder in ("a", "b")]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        write(path, waters(2, seed), format="extxyz")
    out = tmp_path / "out.csv"
    words = ["--input_model", models["one"], "--data", *paths, "--output_table", out]
    assert evaluate.main(list(map(str, words))) == 0
    with out.open(newline="") as file:
        names = [row["identifier"] for row in csv.DictReader(file)]
    assert names == [f"{path.parent}/t.xyz#{k}" for path in paths for k in (0, 1)]


def test_config_types_of_packed_data_are_read(models: dict[str, Path], tmp_path: Path) -> None:
    frames = waters(4)
    for number, atoms in enumerate(frames):
        atoms.info["config_type"] = ("bulk", "gas")[number % 2]
    write(tmp_path / "some.xyz", frames, format="extxyz")
    words = ["--input", str(tmp_path / "some.xyz"), "--output_dir", str(tmp_path / "packed")]
    assert pack.main(words) == 0
    errors = {}
    for data in ("some.xyz", "packed"):
        out = tmp_path / f"{data}.json"
        asked = ["--input_model", models["one"], "--data", tmp_path / data, "--output_json", out]
        assert evaluate.main(list(map(str, asked))) == 0
        errors[data] = json.loads(out.read_text())["by_config_type"]
    assert set(errors["packed"]) == {"bulk", "gas"}
    for kind, values in errors["packed"].items():
        assert values == pytest.approx(errors["some.xyz"][kind])


def test_errors_of_the_stress_are_in_the_table_and_by_config_type(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    frames = waters(5)
    for number, atoms in enumerate(frames):
        atoms.info["config_type"] = ("bulk", "gas")[number % 2]
        atoms.set_cell([6.0, 6.5, 7.0])
        atoms.pbc = True
        if number != 2:
            atoms.info["REF_stress"] = 0.01 * np.arange(6.0)
    write(tmp_path / "some.xyz", frames, format="extxyz")
    written = evaluated(tmp_path / "some.xyz", "--output_json", tmp_path / "out.json")
    squared = [
        ((atoms.info["mace_stress"] - atoms.info["REF_stress"]) ** 2).mean()
        if "REF_stress" in atoms.info
        else None
        for atoms in written
    ]
    with (tmp_path / "out.csv").open(newline="") as file:
        column = [row["stress_rmse"] for row in csv.DictReader(file)]
    assert column[2] == ""
    assert [float(text) for k, text in enumerate(column) if k != 2] == pytest.approx(
        [value**0.5 for value in squared if value is not None]
    )
    errors = json.loads((tmp_path / "out.json").read_text())
    of_bulk = [value for value in squared[::2] if value is not None]
    assert errors["by_config_type"]["bulk"]["stress_rmse"] == pytest.approx(np.mean(of_bulk) ** 0.5)
    of_all = [value for value in squared if value is not None]
    assert errors["stress_rmse"] == pytest.approx(np.mean(of_all) ** 0.5)
