"""metadata.py check on real data finds what is planted, with factor or key, and nothing
in data that are sound.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

import metadata
from conftest import waters

Check = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the command; gives the findings of the JSON."""

    def go(*arguments: object, code: int = 2) -> list[dict[str, Any]]:
        flags = [str(argument) for argument in arguments]
        output = tmp_path / "found.json"
        assert metadata.main(["check", *flags, "--output_json", str(output), "--overwrite"]) == code
        text = "".join(capsys.readouterr())
        assert "Traceback" not in text
        found: list[dict[str, Any]] = json.loads(output.read_text())["findings"]
        assert all(finding["text"] in text for finding in found)
        return found

    return go


def errors(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [finding for finding in found if finding["level"] == "error"]


def clusters(shared_data: Path, n: int = 200) -> list[Atoms]:
    """Solvent clusters with labels under REF names, isolated atoms left out."""
    frames = [
        atoms
        for atoms in read(shared_data / "solvent_xtb/solvent_xtb_test.xyz", ":400")
        if len(atoms) > 1
    ][:n]
    for atoms in frames:
        atoms.calc = None
        atoms.info = {"REF_energy": atoms.info["energy_xtb"]}
        atoms.arrays["REF_forces"] = atoms.arrays.pop("forces_xtb")
    return frames


def crystals(shared_data: Path, n: int = 1000) -> list[Atoms]:
    return read(shared_data / "mptrj/mptrj-random-1k.xyz", f":{n}")  # type: ignore[no-any-return]


def relabelled(atoms: Atoms, **changes: Any) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, **changes)
    return atoms


@pytest.fixture
def xyz(tmp_path: Path) -> Callable[..., Path]:
    def make(frames: Sequence[Atoms], name: str = "train.xyz") -> Path:
        write(tmp_path / name, frames, format="extxyz")
        return tmp_path / name

    return make


def test_sound_data_have_no_errors(shared_data: Path, check: Check) -> None:
    train = shared_data / "solvent_xtb/solvent_xtb_train_200.xyz"
    keys = ("--energy_key", "energy_xtb", "--forces_key", "forces_xtb")
    check(
        "--xyz_train",
        train,
        "--xyz_test",
        shared_data / "solvent_xtb/solvent_xtb_test.xyz",
        *keys,
        code=0,
    )
    check("--xyz_train", shared_data / "mptrj/mptrj-random-1k.xyz", code=0)
    check("--lmdb_train", shared_data / "lips/data.lmdb", code=0)


def test_energies_in_kcal(shared_data: Path, check: Check, xyz: Callable[..., Path]) -> None:
    frames = clusters(shared_data)
    for atoms in frames:
        atoms.info["REF_energy"] *= 23.0605
    found = errors(check("--xyz_train", xyz(frames)))
    assert {round(finding["factor"], 2) for finding in found} == {23.06}
    assert any("kcal/mol" in finding["text"] for finding in found)


def test_some_energies_in_kcal_are_named(
    shared_data: Path, check: Check, xyz: Callable[..., Path]
) -> None:
    frames = clusters(shared_data)
    for i in (17, 60):
        frames[i].info["REF_energy"] *= 23.0605
    (found,) = errors(check("--xyz_train", xyz(frames)))
    assert (round(found["factor"], 2), found["keys"]) == (23.06, ["train.xyz#17", "train.xyz#60"])


def test_energies_of_the_validation_set_in_kcal(
    shared_data: Path, check: Check, xyz: Callable[..., Path]
) -> None:
    frames = clusters(shared_data)
    for atoms in frames[150:]:
        atoms.info["REF_energy"] *= 23.0605
    found = errors(
        check("--xyz_train", xyz(frames[:150]), "--xyz_val", xyz(frames[150:], "val.xyz"))
    )
    assert {finding["data"] for finding in found} == {"validation"}
    assert any(
        "times what those of training lead to expect" in finding["text"] for finding in found
    )


def test_energies_per_atom(shared_data: Path, check: Check, xyz: Callable[..., Path]) -> None:
    for frames in (clusters(shared_data), crystals(shared_data, 500)):
        per_atom = []
        for atoms in frames:
            energy = atoms.info.get(
                "REF_energy", None if atoms.calc is None else atoms.calc.results.get("energy")
            )
            forces = atoms.arrays.get(
                "REF_forces", None if atoms.calc is None else atoms.calc.results.get("forces")
            )
            per_atom.append(relabelled(atoms, energy=energy / len(atoms), forces=forces))
            per_atom[-1].info, per_atom[-1].arrays = (
                {},
                {n: v for n, v in atoms.arrays.items() if n != "REF_forces"},
            )
        assert any(
            "per atom" in finding["text"] for finding in errors(check("--xyz_train", xyz(per_atom)))
        )


def test_forces_in_hartree_per_bohr(
    shared_data: Path, check: Check, xyz: Callable[..., Path]
) -> None:
    frames = clusters(shared_data)
    for atoms in frames:
        atoms.arrays["REF_forces"] /= 51.4221
    (found,) = errors(check("--xyz_train", xyz(frames)))
    assert "Hartree/Bohr" in found["text"]
    assert found["factor"] == pytest.approx(1 / 51.4221, rel=1e-3)


def test_gradients_in_place_of_forces(
    shared_data: Path, check: Check, xyz: Callable[..., Path]
) -> None:
    frames = clusters(shared_data)
    for atoms in frames:
        atoms.arrays["REF_forces"] *= -1
    (found,) = errors(check("--xyz_train", xyz(frames)))
    assert found["factor"] == -1
    assert "gradients" in found["text"]


@pytest.mark.parametrize(
    ("factor", "words"), [(-1.0, "sign of the stress is flipped"), (-1602.1766, "in kbar")]
)
def test_stress(
    factor: float, words: str, shared_data: Path, check: Check, xyz: Callable[..., Path]
) -> None:
    frames = [
        relabelled(
            atoms,
            energy=atoms.get_potential_energy(),
            forces=atoms.get_forces(),
            stress=factor * atoms.get_stress(),
        )
        for atoms in crystals(shared_data)
    ]
    found = errors(check("--xyz_train", xyz(frames)))
    assert any(words in finding["text"] for finding in found)
    assert {finding["check"] for finding in found} == {"stress"}


def test_a_shifted_E0(
    shared_data: Path, check: Check, xyz: Callable[..., Path], tmp_path: Path
) -> None:
    frames = clusters(shared_data)
    fitted = tmp_path / "fitted.json"
    flags = ["--xyz_train", str(xyz(frames)), "--E0s", "lstsq", "--output_json", str(fitted)]
    assert metadata.main(["init", *flags]) == 0
    check("--xyz_train", tmp_path / "train.xyz", "--input_json", fitted, code=0)
    content = json.loads(fitted.read_text())
    content["atomic_energies"][0][2] += 3.0  # O
    (tmp_path / "shifted.json").write_text(json.dumps(content))
    (found,) = errors(
        check("--xyz_train", tmp_path / "train.xyz", "--input_json", tmp_path / "shifted.json")
    )
    assert "E0 of O in model.json" in found["text"]
    assert found["factor"] == pytest.approx(3.0, abs=0.3)
    for atoms in frames[150:]:
        atoms.info["REF_energy"] += 2.5 * int((atoms.numbers == 6).sum())
    (found,) = errors(
        check("--xyz_train", xyz(frames[:150]), "--xyz_val", xyz(frames[150:], "val.xyz"))
    )
    assert "an E0 is shifted, most that of C" in found["text"]
    assert found["factor"] == pytest.approx(2.5, rel=0.2)


def test_repeats_missing_labels_and_elements(
    check: Check, xyz: Callable[..., Path], tiny_json: Path
) -> None:
    frames = waters(20)
    frames[7] = frames[3].copy()
    found = check(
        "--xyz_train", xyz(frames), "--xyz_val", xyz([*waters(5, seed=1), frames[0]], "val.xyz")
    )
    within = next(f for f in found if f["check"] == "duplicates" and f["data"] == "training")
    between = next(f for f in found if f["check"] == "duplicates" and f["data"] == "validation")
    assert (within["level"], within["keys"]) == ("warning", ["train.xyz#7"])
    assert (between["level"], between["keys"]) == ("error", ["val.xyz#5"])
    del frames[4].info["REF_energy"]
    del frames[9].arrays["REF_forces"]
    frames[11].numbers[0] = 16
    found = errors(check("--xyz_train", xyz(frames), "--input_json", tiny_json))
    texts = {finding["text"]: finding["keys"] for finding in found}
    assert texts["energy missing in 1 of 20 structures"] == ["train.xyz#4"]
    assert texts["forces missing in 1 of 20 structures"] == ["train.xyz#9"]
    assert texts["S in 1 structures, which the model.json lacks"] == ["train.xyz#11"]


def test_a_zero_cell_and_what_is_not_finite(
    check: Check, xyz: Callable[..., Path], tmp_path: Path
) -> None:
    frames = waters(6)
    frames[2].pbc = True
    (found,) = errors(check("--xyz_train", xyz(frames)))
    assert "frame 2: periodic in direction(s) abc but the cell has a zero vector" in found["text"]
    path = tmp_path / "a.lmdb"
    with (
        lmdb.open(str(path), subdir=False, map_size=2**24, lock=False) as environment,
        environment.begin(write=True) as put,
    ):
        for i, atoms in enumerate(waters(12)):
            forces = atoms.arrays["REF_forces"] if i != 3 else np.full((len(atoms), 3), np.nan)
            row = {
                "pos": atoms.positions,
                "atomic_numbers": atoms.numbers,
                "pbc": np.full(3, i == 5),
            }
            put.put(
                str(i).encode(),
                pickle.dumps(row | {"energy": atoms.info["REF_energy"], "forces": forces}),
            )
    reading, labels = errors(check("--lmdb_train", path))
    assert "the cell has a zero vector there (key 5)" in reading["text"]
    assert labels["text"] == "forces missing in 1 of 11 structures", (
        "NaN is how programs write what they do not know"
    )
    assert labels["keys"] == ["a.lmdb key 3"]
    words = ("--lmdb_train", path, "--allow_missing_labels", "--max_dropped")
    assert errors(check(*words, 0.05)) == [reading]
    found = check(*words, 0.1, code=0)  # as in training
    assert {**reading, "level": "warning"} in found


def test_linear_references_become_the_atomic_energies(
    tmp_path: Path, xyz: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, references, output = xyz(waters(8)), tmp_path / "linref.json", tmp_path / "out.json"
    flags = [
        "init",
        "--xyz_train",
        str(path),
        "--linear_references",
        str(references),
        "--output_json",
        str(output),
    ]
    by_number: list[float | None] = [0.0] * 9
    by_number[1], by_number[8] = -13.5, -429.0
    for content in ({"H": -13.5, "O": -429.0, "Fe": 1.0}, {"1": -13.5, "8": -429.0}, by_number):
        references.write_text(json.dumps(content))
        assert metadata.main([*flags, "--overwrite"]) == 0
        assert json.loads(output.read_text())["atomic_energies"] == [[-13.5, -429.0]]
    references.write_text('{"H": -13.5}')
    assert metadata.main([*flags, "--overwrite"]) == 2
    assert f"--linear_references {references} gives none for O" in "".join(capsys.readouterr())
    assert metadata.main([*flags, "--overwrite", "--E0s", "average"]) == 2


def test_findings_never_replace_the_data(
    xyz: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = xyz(waters(4))
    before = path.read_bytes()
    words = ["check", "--xyz_train", str(path), "--output_json", str(path), "--overwrite"]
    assert metadata.main(words) == 2
    assert f"--output_json and the data are both {path}" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_what_is_not_checked_is_said(xyz: Callable[..., Path], check: Check) -> None:
    """Signs need near structures, or many with a stress."""
    rng = np.random.default_rng(1)
    frames = []
    for number in range(12):
        symbols = ["Cu", "Au"] * (2 + number % 5)
        atoms = Atoms(symbols, 3.0 * rng.random((len(symbols), 3)), cell=np.eye(3) * 6, pbc=True)
        forces = rng.normal(0, 0.5, (len(atoms), 3))
        results = {"energy": -3.0 * len(atoms), "forces": forces, "stress": np.full(6, 1e-3)}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    found = check("--xyz_train", xyz(frames), code=0)
    texts = [finding["text"] for finding in found if finding["level"] == "note"]
    assert any("sign and unit are not checked against the energies" in text for text in texts)
    assert any("its sign is not checked: 12 structures have it" in text for text in texts)


def test_a_crystal_without_periodic_directions_is_said(
    xyz: Callable[..., Path], check: Check
) -> None:
    box = waters(3)
    for atoms in box:
        atoms.set_cell([15.0, 15.0, 15.0])  # a molecule in a box is none
    assert not [f for f in check("--xyz_train", xyz(box), code=0) if "is pbc missing" in f["text"]]
    full = waters(3)
    for atoms in full:
        atoms.set_cell([3.5, 3.5, 3.5])
    found = check("--xyz_train", xyz(full), code=0)
    assert [f["level"] for f in found if "is pbc missing" in f["text"]] == ["warning"]


def test_labels_of_weight_zero_are_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They stand for labels that are not there, in files made for mace-torch."""
    frames = waters(40)
    write(tmp_path / "sound.xyz", frames, format="extxyz")
    for atoms in frames[::5]:
        atoms.info |= {"REF_energy": 1e5, "config_weight": 0.0}
        atoms.arrays["REF_forces"][:] = 1e3
    write(tmp_path / "zero.xyz", frames, format="extxyz")
    findings = {}
    for name in ("sound", "zero"):
        words = ["check", "--train_file", str(tmp_path / f"{name}.xyz"), "--valid_fraction", "0"]
        assert metadata.main([*words, "--output_json", str(tmp_path / f"{name}.json")]) == 0
        found = json.loads((tmp_path / f"{name}.json").read_text())["findings"]
        findings[name] = [(finding["level"], finding["text"]) for finding in found]
    weightless = [
        ("note", f"{what} of weight 0 in 8 of 40 structures: not judged here")
        for what in ("energy", "forces")
    ]
    assert [f for f in findings["zero"] if f in weightless] == weightless
    assert {level for level, _ in findings["zero"]} == {level for level, _ in findings["sound"]}
