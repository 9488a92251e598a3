"""judge.py: numbers of pymatgen called by hand, MatterGen's definitions on cases made by
hand, what is no candidate.
"""

import errno
import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.io import read, write

from dataloader.errors import InputError
from dataloader.parallel import in_children
from dataloader.structure import Structure
from model_utils import judge
from model_utils.calculator import Calculator
from model_utils.judging import judgement_files, matching, validity
from model_utils.judging import references as judged_references
from model_utils.judging.candidates import candidates_in
from model_utils.judging.hull import Hull, Point
from model_utils.judging.matching import Comparison
from model_utils.judging.metrics import METRICS
from model_utils.simulation import relaxing
from pipeline.conftest import cuau, references

pytestmark = pytest.mark.usefixtures("libraries")
WRITTEN = ("relaxed.extxyz", "metrics.json", "metrics_summary.json", "structures.csv")


def candidates(folder: Path, frames: list[Atoms]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, atoms in enumerate(frames):
        atoms.info["id"] = f"gen_{number}"
    write(folder / "generated_crystals.extxyz", frames, format="extxyz")
    return folder


def command(folder: Path, model: Path, *words: object) -> int:
    given = [
        "--results_dir",
        folder,
        "--input_model",
        model,
        "--device",
        "cpu",
        "--processes",
        1,
        *words,
    ]
    return judge.main([str(word) for word in given])


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics_summary.json").read_text())


def structures(folder: Path, model: int = 0) -> list[dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text())["models"][model]["structures"]


def usual() -> list[Atoms]:
    """A known one, the same in a larger cell, two new ones, one of which
    has atoms that are held.
    """
    strained = bulk("AlCu", "cesiumchloride", a=2.95) * (2, 1, 1)
    return [
        bulk("AlCu", "cesiumchloride", a=2.95),
        strained,
        cuau("L1_0"),
        bulk("Al", "bcc", a=3.2),
    ]


def test_energies_above_the_hull_are_pymatgens(models: list[Path], tmp_path: Path) -> None:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    folder = candidates(tmp_path / "in", usual())
    known = references(tmp_path / "known.xyz", "Al", "Cu", "AlCu")
    words = (
        "--references",
        known,
        "--reference_cache",
        tmp_path / "cache",
        "--no_relax",
        "--max_steps",
        3,
    )
    assert command(folder, models[0], *words) == 0
    (journal,) = (tmp_path / "cache").glob("*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    of_references = read(known, ":")
    entries = [
        PDEntry(
            Composition(of_references[record["number"]].get_chemical_formula()), record["energy"]
        )
        for record in records
    ]
    assert [entry.energy for entry in entries] != [0.0] * 3
    diagram = PhaseDiagram(entries)
    for row, atoms in zip(structures(folder), usual(), strict=True):
        atoms.calc = Calculator(models[0], dtype="float64")
        energy = atoms.get_potential_energy()
        assert row["energy"] == pytest.approx(energy, abs=1e-9)
        by_hand = diagram.get_e_above_hull(
            PDEntry(Composition(atoms.get_chemical_formula()), energy), allow_negative=True
        )
        assert row["energy_above_hull_per_atom"] == pytest.approx(by_hand, abs=1e-9)
        assert row["stable"] == (by_hand <= 0.1)


def test_a_hull_of_labels_takes_the_labels(models: list[Path], tmp_path: Path) -> None:
    frames = [bulk("Al"), bulk("Cu"), bulk("AlCu", "cesiumchloride", a=2.9)]
    model = Calculator(models[0], dtype="float64")
    for atoms, shift in zip(frames, (0.0, 0.0, -0.3), strict=True):
        copy = atoms.copy()
        copy.calc = model
        atoms.info["REF_energy"] = copy.get_potential_energy() + shift * len(atoms)
    write(tmp_path / "known.xyz", frames, format="extxyz")
    folder = candidates(tmp_path / "in", [bulk("AlCu", "cesiumchloride", a=2.9)])
    words = ("--references", tmp_path / "known.xyz", "--reference_kind", "dft", "--no_relax")
    assert command(folder, models[0], *words) == 0
    energies = [frame.info["REF_energy"] / len(frame) for frame in frames]
    assert energies[2] < (energies[0] + energies[1]) / 2, "it is on the hull"
    assert structures(folder)[0]["energy_above_hull_per_atom"] == pytest.approx(0.3, abs=1e-6)
    assert summary(folder)["references"]["hull"] == "dft"
    assert summary(folder)["references"]["model_less_labels"] == {
        "count": 3,
        "mean": pytest.approx(0.1, abs=1e-6),
        "rms": pytest.approx(0.3 / np.sqrt(3), abs=1e-6),
    }


@pytest.mark.parametrize(("shift", "is_said"), [(0.02, False), (-2.0, True)])
def test_labels_of_another_method_are_said(
    models: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shift: float,
    is_said: bool,
) -> None:
    frames = [bulk("Al"), bulk("Cu"), bulk("Au")]  # the model has no gold
    model = Calculator(models[0], dtype="float64")
    for atoms in frames[:2]:
        copy = atoms.copy()
        copy.calc = model
        atoms.info["REF_energy"] = copy.get_potential_energy() + shift * len(atoms)
    frames[2].info["REF_energy"] = 0.0
    write(tmp_path / "known.xyz", frames, format="extxyz")
    folder = candidates(tmp_path / "in", [bulk("AlCu", "cesiumchloride", a=2.9)])
    words = ("--references", tmp_path / "known.xyz", "--reference_kind", "dft", "--no_relax")
    assert command(folder, models[0], *words) == 0
    said = "2 references differ from the model's by 2 eV/atom (rms): labels of another method"
    assert (said in capsys.readouterr().out) == is_said


def test_a_hull_of_references_that_did_not_converge_is_said(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.1, seed=1)
    write(tmp_path / "known.xyz", [atoms, bulk("Cu")], format="extxyz")
    folder = candidates(tmp_path / "in", [bulk("Al")])
    words = (
        "--references",
        tmp_path / "known.xyz",
        "--max_steps",
        1,
        "--reference_cache",
        tmp_path / "cache",
    )
    assert command(folder, models[0], *words) == 0
    assert "references did not converge: their energies are too high" in capsys.readouterr().out
    assert summary(folder)["references"]["n_unconverged"] > 0


def test_charge_and_spin_of_a_frame_reach_the_network(tmp_path: Path) -> None:
    frames = [bulk("Al"), bulk("Cu")]
    frames[0].info |= {"charge": 0, "spin": 1}
    folder = candidates(tmp_path / "in", frames)
    of_candidates = [candidate.named for candidate in candidates_in(folder)]
    of_references = [
        known.named for known in judged_references.read([folder / "generated_crystals.extxyz"])
    ]
    for named in (of_candidates, of_references):
        states = [
            None if one is None else (one.atoms.info.get("charge"), one.atoms.info.get("spin"))
            for one in named
        ]
        assert states == [(0.0, 1.0), (None, None)]


def test_a_state_that_the_model_has_no_input_for_is_no_candidate(
    models: list[Path], tmp_path: Path
) -> None:
    """Whatever name it has; neutral ones and singlets are."""
    states = [{}, {"charge": 1}, {"charge": 0}, {"spin": 3}, {"total_charge": 2}, {"spin": 1}]
    frames = [bulk("Al") for _ in states]
    for frame, state in zip(frames, states, strict=True):
        frame.info |= state
    folder = candidates(tmp_path / "in", frames)
    for _ in range(2):  # of relaxations that are kept, too
        assert command(folder, models[0], "--no_relax") == 0
        judged = structures(folder)
        unknown = [bool(one["reason"].count("for which the model has no input")) for one in judged]
        assert unknown == [False, True, False, True, True, False]
        assert [one["successful"] for one in judged] == [not one for one in unknown]
        assert judged[3]["reason"] == "spin 3, for which the model has no input"
        assert summary(folder)["trusted"]["left_out"]["failed"] == 3


def test_references_without_a_label_are_said(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [bulk("Al"), bulk("Cu"), bulk("AlCu", "cesiumchloride", a=2.95)]
    for frame in frames[:2]:
        frame.info["REF_energy"] = 0.0
    write(tmp_path / "known.xyz", frames, format="extxyz")
    folder = candidates(tmp_path / "in", [bulk("AlCu", "cesiumchloride", a=2.95)])
    words = ("--references", tmp_path / "known.xyz", "--reference_kind", "dft", "--no_relax")
    assert command(folder, models[0], *words) == 0
    said = "known.xyz#2 is left out of the hull: no energy in the file"
    assert said in capsys.readouterr().out


def hull() -> Hull:
    """Elements at zero, and AlCu at -0.2 eV an atom."""
    return Hull(
        [Point(atoms=bulk("Al"), energy=0.0), Point(atoms=bulk("Cu"), energy=0.0), of_alloy(-0.2)]
    )


def of_alloy(energy: float) -> Point:
    return Point(atoms=bulk("AlCu", "cesiumchloride", a=2.9), energy=2 * energy)


def test_hulls_by_hand() -> None:
    # -0.05 an atom; the hull is at -0.1
    al3cu = Point(atoms=Atoms("Al3Cu", cell=[4, 4, 4], pbc=True), energy=-0.2)
    points = [
        of_alloy(-0.15),
        of_alloy(-0.3),
        al3cu,
        Point(atoms=bulk("Al", "bcc", a=3.2), energy=0.04),
    ]
    assert hull().above(points) == pytest.approx([0.05, -0.1, 0.05, 0.04], abs=1e-12)
    # the hull of AlCu is at -0.3 then, that of Al is the candidate itself
    own = hull().self_consistent(points, [True] * 4)
    assert own == pytest.approx([0.15, 0.0, 0.1, 0.0], abs=1e-12)
    oxide = Point(atoms=bulk("AlO", "rocksalt", a=4.0), energy=-1.0)
    assert hull().above([oxide, of_alloy(-0.1)]) == [None, pytest.approx(0.1)]
    assert hull().missing(oxide.atoms) == ["O"]
    assert hull().self_consistent([oxide], [True]) == [None]
    # a hole of the model makes no hull: what lies above it is as far from the others as before
    own = hull().self_consistent(points, [True, False, True, True])
    assert own == pytest.approx([0.0, -0.15, 0.025, 0.0], abs=1e-12)
    assert hull().self_consistent(points[3:], [False]) == [None], "of aluminium nothing is left"


def test_an_atom_in_a_box_is_no_reference() -> None:
    def structure(atoms: Atoms) -> Structure:
        return Structure(
            atomic_numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=(True, True, True),
            identifier="it",
        )

    box = Atoms("Zn", cell=[12, 12, 12], pbc=True)
    assert judged_references.is_atom_in_a_box(structure(box))
    for atoms in (
        bulk("Cu"),
        bulk("Cs", "bcc", a=6.14),
        bulk("Ar", "fcc", a=5.3),
        bulk("Ne", "fcc", a=4.46),
    ):
        assert len(atoms) == 1
        assert not judged_references.is_atom_in_a_box(structure(atoms))
        skewed = atoms.copy()
        skewed.set_cell(np.array([[1, 0, 0], [3, 1, 0], [0, 2, 1]]) @ atoms.cell.array)
        assert not judged_references.is_atom_in_a_box(structure(skewed)), "the same crystal"


def fits(kind: str, first: Atoms, second: Atoms) -> bool:
    return Comparison({0: first, 1: second}, [], kind).first_of_equals([0, 1])[1] == 0


def test_polymorphs_duplicates_and_orders_of_an_alloy() -> None:
    """The same cell twice as large, strained, shifted, turned: one; fcc and bcc: two; orders
    of an alloy: as asked.
    """
    fcc = bulk("Al", a=4.05)
    larger = bulk("Al", a=4.2, cubic=True)
    larger.positions += 0.7
    larger.rotate(40, (1, 2, 3), rotate_cell=True)
    layers = cuau("L1_0")
    diagonal = cuau("L1_1")
    oxides = [bulk("MgO", kind, a=a) for kind, a in (("rocksalt", 4.2), ("zincblende", 4.6))]
    for kind in matching.MATCHERS:
        assert fits(kind, fcc, larger)
        assert not fits(kind, fcc, bulk("Al", "bcc", a=3.2))
        assert not fits(kind, fcc, bulk("Cu", a=4.05)), "other elements"
        assert not fits(kind, oxides[0], oxides[1])
        assert not fits(kind, layers, bulk("AlCu", "rocksalt", a=4.8))
    assert not fits("ordered", layers, diagonal)
    assert fits("disordered", layers, diagonal)
    assert matching.interchangeable(["Al", "Cu"]) == [["Al", "Cu"]]
    assert matching.interchangeable(["Mg", "O"]) == []


def test_uniqueness_is_that_of_pymatgens_matcher() -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from model_utils.judging.pymatgen_library import crystal

    rng = np.random.default_rng(0)
    frames = [
        kind.copy()
        for kind in (cuau("L1_0"), cuau("L1_1"), bulk("AlCu", "cesiumchloride", a=2.9)) * 3
    ]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    by_hand = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5, primitive_cell=True, scale=True)
    crystals = [crystal(atoms) for atoms in frames]
    comparison = Comparison(dict(enumerate(frames)), frames[:2], "ordered")
    first = comparison.first_of_equals(range(9))
    for a, b in combinations(range(9), 2):
        if first[a] == a and first[b] == b:
            assert not by_hand.fit(crystals[a], crystals[b])
    assert all(by_hand.fit(crystals[number], crystals[other]) for number, other in first.items())
    assert len(set(first.values())) == len(by_hand.group_structures(crystals))
    assert [bool(comparison.known_as(k)) for k in range(9)] == [
        any(by_hand.fit(crystals[k], crystals[r]) for r in (0, 1)) for k in range(9)
    ]


def test_movement_in_a_relaxation() -> None:
    cell = bulk("AlCu", "cesiumchloride", a=3.0)
    assert matching.rmsd(cell, cell) == pytest.approx(0.0, abs=1e-8)
    moved = cell.copy()
    moved.positions[1] += [0.2, 0, 0]  # against the mean each moves by half of it
    assert matching.rmsd(moved, cell) == pytest.approx(0.1, abs=1e-3)
    other = bulk("AlCu", "zincblende", a=3.0 * 2)  # nothing maps one onto the other
    lengths = (
        np.array(other.cell.cellpar())
        + np.array(bulk("AlCu", "cesiumchloride", a=3.0).cell.cellpar())
    ) / 2
    volume = Atoms(cell=lengths).get_volume()
    assert 0.1 < matching.rmsd(other, cell) <= 0.5 * (volume / 2) ** (1 / 3) + 1e-9


def test_a_displacement_is_that_of_atoms_whatever_the_cell() -> None:
    small = bulk("MgO", "rocksalt", a=4.2)
    for cell in (small, small * (2, 1, 1), bulk("MgO", "rocksalt", a=4.2, cubic=True)):
        moves = np.random.default_rng(1).normal(0.0, 0.05, cell.positions.shape)
        moves -= moves.mean(axis=0)
        moved = cell.copy()
        moved.positions += moves + np.array([0.3, 0.0, 0.0])  # the whole may move
        expected = np.sqrt((moves**2).sum(axis=1).mean())
        assert matching.displacement(moved, cell) == pytest.approx(expected, abs=1e-12)
    strained = small.copy()
    strained.set_cell(strained.cell.array * 1.1, scale_atoms=True)
    assert matching.displacement(strained, small) == pytest.approx(0.0, abs=1e-12)


def test_validity_by_hand() -> None:
    sound = bulk("MgO", "rocksalt", a=4.2)
    near = Atoms("MgO", positions=[[0, 0, 0], [0, 0, 0.49]], cell=[4, 4, 4], pbc=True)
    assert [validity.has_valid_structure(atoms) for atoms in (sound, near)] == [True, False]
    flat = Atoms("Al", cell=[1.0, 1.0, 0.09], pbc=True)
    assert not validity.has_valid_structure(flat)
    formulas = {
        "MgO": True,
        "Mg2O2": True,
        "Na2Cl": False,
        "NaCl": True,
        "AlCu": True,
        "O": True,
        "MgO3": False,
    }
    for formula, valid in formulas.items():
        assert validity.has_valid_composition(Atoms(formula)) is valid, formula


def test_metrics_count_as_mattergen_does(models: list[Path], tmp_path: Path) -> None:
    """Of six: known, its double, new, the double of new, an unknown element, no volume."""
    flat = bulk("Al")
    flat.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 0]])
    frames = [*usual()[:3], cuau("L1_0") * (1, 1, 2), bulk("Au"), flat]
    folder = candidates(tmp_path / "in", frames)
    text = (folder / "generated_crystals.extxyz").read_text()
    unknown = '1\nLattice="3 0 0 0 3 0 0 0 3" id=gen_6 pbc="T T T"\nXx 0 0 0\n'
    (folder / "generated_crystals.extxyz").write_text(text + unknown)
    known = references(tmp_path / "known.xyz", "Al", "Cu", "AlCu")
    words = (
        "--references",
        known,
        "--reference_cache",
        tmp_path / "cache",
        "--no_relax",
        "--max_steps",
        2,
    )
    assert (
        command(
            folder,
            models[0],
            *words,
            "--structure_matcher",
            "ordered",
            "--stability_threshold",
            100,
        )
        == 0
    )
    rows = structures(folder)
    assert [row["successful"] for row in rows] == [True] * 4 + [False] * 3
    assert "Au" in rows[4]["reason"]
    assert "singular" in rows[5]["reason"]
    assert "'Xx' is no element symbol" in rows[6]["reason"]
    assert [row["first_of_equals"] for row in rows[:4]] == [0, 0, 2, 2]
    assert [row["novel"] for row in rows[:4]] == [False, False, True, True]
    metrics = summary(folder)["metrics"]
    expected = {
        "frac_successful_jobs": (4, 7),
        "frac_stable_structures": (4, 7),
        "frac_novel_unique_stable_structures": (1, 7),
        "frac_unique_structures": (2, 4),
        "frac_novel_structures": (2, 4),
        "frac_novel_unique_structures": (1, 4),
        "frac_unique_systems": (1, 4),
        "frac_novel_systems": (0, 4),
        "avg_structure_validity": (4, 4),
        "avg_comp_validity": (4, 4),
        "precision": (2, 4),
        "recall": (1, 3),
    }
    for name, (hits, n) in expected.items():
        found = metrics[name]
        assert (found["hits"], found["count"], found["value"]) == (hits, n, hits / n), name
        assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert metrics["avg_rmsd_from_relaxation"]["value"] is None
    assert "--no_relax" in metrics["avg_rmsd_from_relaxation"]["reason"]
    assert set(metrics) == {f"{name}{ending}" for name in METRICS for ending in ("", "_trusted")}
    assert len(read(folder / "relaxed.extxyz", ":")) == 6, "all that are structures"
    assert len((folder / "structures.csv").read_text().splitlines()) == 8


def test_trusted_values_leave_out_holes_and_what_did_not_converge(
    models: list[Path], tmp_path: Path
) -> None:
    """The first of two equals is left out: the other one is unique then."""
    frames = [cuau("L1_0"), cuau("L1_0"), bulk("Al", "fcc", a=3.4)]
    frames[0].rattle(0.15, seed=1)
    largest = []
    for atoms in frames[:2]:
        copy = atoms.copy()
        copy.calc = Calculator(models[0], dtype="float64")
        largest.append(np.linalg.norm(FrechetCellFilter(copy).get_forces(), axis=1).max())
    assert largest[1] < 0.95 * largest[0]
    folder = candidates(tmp_path / "in", frames)
    known = references(tmp_path / "known.xyz", "Al", "Cu")
    words = [
        "--references",
        known,
        "--reference_cache",
        tmp_path / "cache",
        "--no_relax",
        "--max_steps",
        2,
    ]
    assert command(folder, models[0], *words, "--fmax", sum(largest) / 2, "--hole_below", 0.03) == 0
    rows = structures(folder)
    assert rows[2]["energy_above_hull_per_atom"] < -0.03
    assert [row["left_out_of_trusted"] for row in rows] == ["not converged", "", "energy hole"]
    assert "its largest force is" in rows[0]["reason"]
    assert [row["first_of_equals"] for row in rows] == [0, 0, 2]
    found = summary(folder)
    assert found["trusted"] == {"count": 1, "left_out": {"energy hole": 1, "not converged": 1}}
    metrics = found["metrics"]
    assert (
        metrics["frac_unique_structures"]["hits"],
        metrics["frac_unique_structures"]["count"],
    ) == (2, 3)
    assert metrics["frac_unique_structures_trusted"]["value"] == 1.0
    assert metrics["frac_stable_structures"]["count"] == 3, "unfiltered"
    assert metrics["frac_stable_structures_trusted"]["count"] == 1
    mean = sum(row["energy_above_hull_per_atom"] for row in rows) / 3
    assert metrics["avg_energy_above_hull_per_atom"]["value"] == pytest.approx(mean)
    trusted = metrics["avg_energy_above_hull_per_atom_trusted"]["value"]
    assert trusted == pytest.approx(rows[1]["energy_above_hull_per_atom"])


def test_without_references_energies_are_null_with_the_reason(
    models: list[Path], tmp_path: Path
) -> None:
    folder = candidates(tmp_path / "in", usual()[:2])
    assert command(folder, models[0], "--no_relax") == 0
    found = summary(folder)
    assert found["references"] is None
    assert "--references" in found["no_references"]
    for name in (
        "frac_stable_structures",
        "avg_energy_above_hull_per_atom",
        "frac_novel_structures",
        "recall",
    ):
        assert found["metrics"][name]["value"] is None
        assert "--references" in found["metrics"][name]["reason"]
    assert found["metrics"]["frac_unique_structures"]["value"] == 0.5


def test_missing_terminals_are_listed_and_the_others_judged(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = candidates(
        tmp_path / "in", [bulk("AlCu", "cesiumchloride", a=2.95), bulk("Al", "bcc", a=3.2)]
    )
    known = references(tmp_path / "known.xyz", "Al", "AlCu")
    words = (
        "--references",
        known,
        "--reference_cache",
        tmp_path / "cache",
        "--no_relax",
        "--max_steps",
        2,
    )
    assert command(folder, models[0], *words) == 0
    assert "no crystal of Cu alone" in capsys.readouterr().out
    rows = structures(folder)
    assert rows[0]["energy_above_hull_per_atom"] is None
    assert rows[0]["missing_terminals"] == ["Cu"]
    assert rows[0]["stable"] is None
    assert rows[1]["energy_above_hull_per_atom"] is not None
    found = summary(folder)
    assert found["references"]["missing_terminals"] == ["Cu"]
    assert found["metrics"]["frac_stable_structures"]["count"] == 1
    assert found["metrics"]["avg_energy_above_hull_per_atom"]["count"] == 1
    candidates(folder, [bulk("AlCu", "cesiumchloride", a=2.95)])
    assert command(folder, models[0], *words) == 0
    unknown = summary(folder)["metrics"]["frac_stable_structures"]
    assert unknown == {
        "value": None,
        "count": 0,
        "interval": None,
        "reason": "the references have no crystal of Cu alone",
    }


@pytest.fixture(scope="module")
def two_models(
    models: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[object, ...]]:
    """A folder in which two models have judged, relaxing."""
    place = tmp_path_factory.mktemp("two")
    folder = candidates(place / "in", usual())
    known = references(place / "known.xyz", "Al", "Cu", "AlCu")
    words = ("--references", known, "--reference_cache", place / "cache", "--max_steps", 8)
    words = (*words, "--compare_with", models[1], "--draws", 200)
    assert command(folder, models[0], *words) == 0
    return folder, words


def test_two_models_judge_the_same_candidates(
    two_models: tuple[Path, tuple[object, ...]], models: list[Path], tmp_path: Path
) -> None:
    folder, words = two_models
    found = summary(folder)
    candidates(tmp_path / "alone", usual())
    given = [models[1] if word == models[0] else word for word in words[:-4]]
    assert command(tmp_path / "alone", models[1], *given, "--draws", 200) == 0
    alone = summary(tmp_path / "alone")
    assert found["compared"]["metrics"] == alone["metrics"]
    assert structures(folder, 1) == structures(tmp_path / "alone")
    assert found["model"]["digests"] != found["compared"]["model"]["digests"]
    name = "avg_energy_above_hull_per_atom"
    delta = found["metrics"][name]["value"] - alone["metrics"][name]["value"]
    assert found["comparison"]["delta"][name] == pytest.approx(delta)
    assert found["comparison"]["count"] == 4
    assert len(read(folder / "relaxed_compared.extxyz", ":")) == 4
    assert not (tmp_path / "alone" / "relaxed_compared.extxyz").exists()
    heads = (folder / "structures.csv").read_text().splitlines()[0].split(",")
    assert heads.count("stable") == heads.count("compared_stable") == 1


def test_killed_and_repeated_gives_the_same_files(
    two_models: tuple[Path, tuple[object, ...]],
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, words = two_models
    candidates(tmp_path / "in", usual())
    words = [tmp_path / "cache" if word == folder.parent / "cache" else word for word in words]

    def killed(task: int) -> None:
        in_one, calls = relaxing._one, []

        def one(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 6:  # within the references of the first model
                raise KeyboardInterrupt
            return in_one(*arguments)

        monkeypatch.setattr(relaxing, "_one", one)
        assert command(tmp_path / "in", models[0], *words) == 130

    list(in_children(killed, [0, 1], processes=1))
    assert not (tmp_path / "in" / "metrics.json").exists()
    assert command(tmp_path / "in", models[0], *words) == 0
    said = capsys.readouterr().out
    assert "structures are relaxed already" in said
    for name in (*WRITTEN, "relaxed_compared.extxyz"):
        ours = (
            (tmp_path / "in" / name)
            .read_text()
            .replace(str(folder.parent), "")
            .replace(str(tmp_path), "")
        )
        assert ours == (folder / name).read_text().replace(str(folder.parent), ""), name


def test_a_full_disk_is_one_line_and_costs_nothing(
    models: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = candidates(tmp_path / "in", [bulk("Al"), bulk("Cu")])
    synced = os.fsync
    for succeeding in (0, 2, 4):  # the journal, what follows it, the files
        left = iter([True] * succeeding)

        def full(descriptor: int, left: Iterator[bool] = left) -> None:
            if not next(left, False):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            synced(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert command(folder, models[0]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: cannot write {folder}")
        assert "make room" in line
    assert command(folder, models[0]) == 0
    assert [row["successful"] for row in structures(folder)] == [True, True]


def test_references_are_relaxed_once(
    two_models: tuple[Path, tuple[object, ...]],
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder, words = two_models
    before = {name: (folder / name).read_bytes() for name in WRITTEN}
    # nothing is relaxed again, neither candidates nor references
    monkeypatch.setattr(relaxing, "_one", None)
    assert command(folder, models[0], *words) == 0
    assert {name: (folder / name).read_bytes() for name in WRITTEN} == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there are no candidates to judge; generate.py makes them"),
        ("", "holds no frames"),
        ("2\nhalf", "the file ends"),
    ],
)
def test_no_candidates_are_one_line(
    text: str | None,
    said: str,
    models: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / "generated_crystals.extxyz").write_text(text)
    assert command(tmp_path, models[0]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_failed_generation_is_told(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "GENERATION_FAILED.txt").write_text("the program crashed\n")
    assert command(tmp_path, models[0]) == 2
    assert "GENERATION_FAILED.txt there says: the program crashed" in capsys.readouterr().err
    assert command(tmp_path / "nowhere", models[0]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_damaged_files_of_before(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = candidates(tmp_path / "in", usual()[:2])
    assert command(folder, models[0], "--no_relax") == 0
    whole = (folder / "metrics_summary.json").read_bytes()
    assert judgement_files.read_summary(folder / "metrics_summary.json")["count"] == 2
    for damaged in (whole[:100], b"[]", b'{"metrics": 3}', b"\xff\xfe", b'{"count": NaN}', b""):
        (folder / "metrics_summary.json").write_bytes(damaged)
        with pytest.raises(InputError, match=r"judge.py writes it"):
            judgement_files.read_summary(folder / "metrics_summary.json")
        capsys.readouterr()
        if damaged == whole[:100]:
            assert command(folder, models[0], "--no_relax") == 0
            assert "warning" in capsys.readouterr().out
            assert (folder / "metrics_summary.json").read_bytes() == whole
    (journal,) = (folder / "judging").glob("*.jsonl")
    journal.write_text("nonsense\n")
    assert command(folder, models[0], "--no_relax") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{journal.name} line 1" in line
    with pytest.raises(InputError, match="cannot read"):
        judgement_files.read_summary(tmp_path / "none.json")


def test_references_that_are_none(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = candidates(tmp_path / "in", usual()[:1])
    molecule = Atoms("O2", positions=[[0, 0, 0], [0, 0, 1.2]])
    atom = Atoms("Al", info={"config_type": "IsolatedAtom"})
    cases = {
        "not periodic": ([molecule], ()),
        "only isolated atoms": ([atom], ()),
        "no reference has an energy": ([bulk("Al")], ("--reference_kind", "dft")),
    }
    for said, (frames, words) in cases.items():
        write(tmp_path / "known.xyz", frames, format="extxyz")
        assert command(folder, models[0], "--references", tmp_path / "known.xyz", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert command(folder, models[0], "--references", tmp_path / "gone.xyz") == 2
    assert "does not exist" in capsys.readouterr().err
    assert command(folder, models[0], "--reference_kind", "dft") == 2
    assert "name them with --references" in capsys.readouterr().err
