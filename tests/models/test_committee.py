"""evaluate.py with several models, and with energies of atoms: means, deviations,
and what is said of them.
"""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from simulation.conftest import written

from conftest import TINY, waters
from model_utils import evaluate
from model_utils.calculator import Calculator
from model_utils.tasks.calibration import Spreads, ranks_of

E0S = {"H": -13.6, "O": -430.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three networks of one structure with random weights, one with other
    E0s, and labelled waters.
    """
    folder = tmp_path_factory.mktemp("committee")
    for seed in (1, 2, 3):
        written(folder, seed, **TINY)
    written(folder, 4, **{**TINY, "atomic_energies": {"H": -13.5, "O": -430.0}})
    written(folder, 5, **{**TINY, "r_max": 3.5})
    write(folder / "w.xyz", waters(8), format="extxyz")
    return folder


def words(place: Path, *seeds: int) -> list[str]:
    models = [str(place / f"seed{seed}_model.pt") for seed in seeds]
    return ["--input_model", *models, "--xyz_path", str(place / "w.xyz"), "--dtype", "float64"]


def judged(
    place: Path, out: Path, *more: str, seeds: tuple[int, ...] = (1, 2, 3)
) -> dict[str, object]:
    flags = [
        "--output_json",
        str(out / "e.json"),
        "--output_xyz",
        str(out / "p.xyz"),
        "--output_table",
    ]
    assert evaluate.main([*words(place, *seeds), *flags, str(out / "t.csv"), *more]) == 0
    return json.loads((out / "e.json").read_text())


def test_is_the_committee_of_the_calculator(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = judged(place, tmp_path, "--atom_energies")
    said = capsys.readouterr().out
    frames = read(tmp_path / "p.xyz", index=":")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    calculator = Calculator([place / f"seed{seed}_model.pt" for seed in (1, 2, 3)])
    members = [Calculator(place / f"seed{seed}_model.pt") for seed in (1, 2, 3)]
    by_name = {row["identifier"]: row for row in rows}
    for frame in frames:
        atoms = frame.copy()
        atoms.calc = calculator
        assert frame.info["mace_energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        results = calculator.results
        assert frame.info["mace_energy_std"] == pytest.approx(results["energy_std"], abs=1e-8)
        np.testing.assert_allclose(frame.arrays["mace_forces"], results["forces"], atol=1e-7)
        np.testing.assert_allclose(
            frame.arrays["mace_forces_std"], results["forces_std"], atol=1e-7
        )
        of_atoms = np.stack([member.get_property("energies", atoms) for member in members])
        np.testing.assert_allclose(
            frame.arrays["mace_node_energies"], of_atoms.mean(axis=0), atol=1e-7
        )
        np.testing.assert_allclose(
            frame.arrays["mace_node_energies_std"], of_atoms.std(axis=0), atol=1e-7
        )
        row = by_name[frame.info["identifier"]]
        assert float(row["energy_std"]) == pytest.approx(results["energy_std"], abs=1e-8)
        lengths = np.linalg.norm(results["forces_std"], axis=1)
        assert float(row["forces_max_std"]) == pytest.approx(lengths.max(), rel=1e-6)
    errors = np.array(
        [f.arrays["mace_forces"] - f.arrays["REF_forces"] for f in frames], dtype=object
    )
    spreads = [f.arrays["mace_forces_std"] for f in frames]
    rmse = np.sqrt(np.mean(np.concatenate([e.astype(float).ravel() for e in errors]) ** 2))
    rms_spread = np.sqrt(np.mean(np.concatenate([s.ravel() for s in spreads]) ** 2))
    of_forces = content["committee"]["forces"]
    assert of_forces["rmse"] == pytest.approx(content["forces_rmse"], rel=1e-12)
    assert of_forces["rmse"] == pytest.approx(rmse, rel=1e-6)
    assert of_forces["rms_spread"] == pytest.approx(rms_spread, rel=1e-6)
    assert of_forces["rmse_over_spread"] == pytest.approx(rmse / rms_spread, rel=1e-6)
    assert f"rmse/spread {rmse / rms_spread:.2f}, rank correlation of error and spread" in said
    assert content["input_model"] == [str(place / f"seed{seed}_model.pt") for seed in (1, 2, 3)]


def test_energies_of_atoms_sum_to_the_energy(place: Path, tmp_path: Path) -> None:
    content = judged(place, tmp_path, "--atom_energies", seeds=(1,))
    assert "committee" not in content
    for frame in read(tmp_path / "p.xyz", index=":"):
        assert frame.arrays["mace_node_energies"].sum() == pytest.approx(
            frame.info["mace_energy"], abs=1e-6
        )
        below = [E0S[symbol] + 20 for symbol in frame.get_chemical_symbols()]
        assert (frame.arrays["mace_node_energies"] < below).all(), "E0s are in"
        assert "mace_node_energies_std" not in frame.arrays


def test_other_reference_energies_are_added_to_their_member(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(place, tmp_path, seeds=(1, 4))
    said = capsys.readouterr()
    assert "has other E0s than" in said.out + said.err
    for frame in read(tmp_path / "p.xyz", index=":"):
        energies = []
        for seed in (1, 4):
            atoms = frame.copy()
            atoms.calc = Calculator(place / f"seed{seed}_model.pt")
            energies.append(atoms.get_potential_energy())
        assert frame.info["mace_energy"] == pytest.approx(np.mean(energies), abs=1e-8)
        assert frame.info["mace_energy_std"] == pytest.approx(np.std(energies), abs=1e-8)


def test_what_is_no_committee_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(words(place, 1, 5)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "is no member of a committee with" in line
    assert "r_max 3.5 and 3.0" in line
    assert evaluate.main([*words(place, 1), "--atom_energies"]) == 2
    assert "--atom_energies is given without --output_xyz" in capsys.readouterr().err


@pytest.mark.parametrize(("seeds", "is_said"), [((1, 2, 1), True), ((3, 3), True), ((1, 2), False)])
def test_a_model_named_twice_is_said(
    seeds: tuple[int, ...], is_said: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy under another name agrees with its original as well: it is
    weights that are compared.
    """
    assert evaluate.main(words(place, *seeds)) == 0
    said = capsys.readouterr()
    assert ("that the two agree says nothing" in said.out + said.err) is is_said
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        Calculator([place / f"seed{seed}_model.pt" for seed in seeds])
    assert any("that the two agree says nothing" in str(w.message) for w in raised) is is_said


def test_the_report_has_the_committee(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    page = tmp_path / "r.html"
    assert evaluate.main([*words(place, 1, 2), "--report", str(page), "--worst", "0"]) == 0
    text = page.read_text()
    assert "a committee of 2" in text
    assert "rmse over spread" in text


def test_ranks_share_equal_places_and_correlate() -> None:
    np.testing.assert_array_equal(ranks_of(np.array([3.0, 1.0, 3.0, 2.0])), [3.5, 1.0, 3.5, 2.0])
    spreads = Spreads()
    spreads.add(np.array([[1.0], [-2.0], [3.0]]), np.array([[0.1], [0.2], [0.4]]))
    assert spreads.rank_correlation == pytest.approx(1.0)
    spreads.add(np.array([[9.0]]), np.array([[0.0]]))
    assert spreads.rank_correlation == pytest.approx(-0.2)
    assert spreads.ratio == pytest.approx(np.sqrt((1 + 4 + 9 + 81) / (0.01 + 0.04 + 0.16)))


def test_of_very_many_rows_a_part_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_utils.tasks import calibration

    monkeypatch.setattr(calibration, "MOST_RANKED", 8)
    spreads = Spreads()
    for first in range(0, 40, 5):
        values = np.arange(first, first + 5, dtype=float)[:, None]
        spreads.add(values, values)
    np.testing.assert_array_equal(spreads._kept[0], np.arange(0, 40, 8))
    assert spreads.rank_correlation == pytest.approx(1.0)
