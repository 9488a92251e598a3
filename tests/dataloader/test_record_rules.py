"""One meaning of a record whatever the format: spellings, units, repeats, charge,
held atoms, absent labels.
"""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import units
from record_files import (
    BOX,
    OPEN,
    PERIODIC,
    SLAB,
    WATER,
    Write,
    frame,
    opened,
    path_for,
    record,
    write_ase_rows,
    write_dicts,
    write_geometric,
    write_rows,
    write_xyz,
)

from dataloader.dataset import Dataset
from dataloader.errors import InputError
from dataloader.filters import Filters
from dataloader.labels import TO_EVALUATE, TO_PREDICT, TO_TRAIN, LabelKeys, LabelNeeds
from dataloader.lmdb_shards.lmdb_source import LmdbSource
from dataloader.needs import FeatureSpec
from dataloader.neighbors import build_graph
from dataloader.packed.packing import Packing, pack
from dataloader.packed.recipe import PackingRecipe
from dataloader.record import EVERYTHING
from dataloader.sources import Source, SourceSpec, open_sources
from dataloader.units import UnitError, factor_to_ours, stated_quantity
from dataloader.xyz_text import parse_comment

FORMATS = {"xyz": write_xyz, "dicts": write_dicts, "ase": write_ase_rows}
EACH = pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
CHARGE = FeatureSpec(name="total_charge", per_atom=False)
SPIN = FeatureSpec(name="total_spin", per_atom=False, classes=(1, 5))
STRESS_TOO = LabelNeeds(required=frozenset({"energy", "forces", "stress"}), judged=TO_TRAIN.judged)


def one(write: Write, folder: Path, **changes: Any) -> Source:
    """A source of one record, which must be sound."""
    return opened(write(path_for(write, folder), [record(**changes)]))


def refusal(write: Write, folder: Path, *, keys: LabelKeys | None = None, **changes: Any) -> str:
    """The sentence with which a file of one record is refused, checked to name where it is."""
    path = write(path_for(write, folder), [record(**changes)])
    with pytest.raises(InputError) as refused:
        open_with(path, keys or LabelKeys())
    text = str(refused.value)
    assert text.startswith(
        f"{path} frame 0: " if write is write_xyz else f"{path}: 1 of 1 records cannot be used"
    )
    assert "\n" not in text
    return text


def open_with(path: Path, keys: LabelKeys, needs: LabelNeeds = TO_TRAIN, **options: Any) -> Source:
    kind: Any = "xyz" if path.suffix == ".xyz" else "lmdb"
    spec = SourceSpec(path=path, format=kind, keys=keys, keep=options.pop("keep", ()))
    return open_sources([spec], needs=needs, max_dropped=0.001, **options)[0]


# Names that decide physics, in any case.


@pytest.mark.parametrize(
    "spelling", ["lattice", "LATTICE", "cell", "Cell", "unit_cell", "UnitCell", "lattice_vectors"]
)
def test_a_lattice_by_another_spelling_is_one(spelling: str, tmp_path: Path) -> None:
    usual = tmp_path / "usual.xyz"
    usual.write_text(frame(record()))
    path = tmp_path / "some.xyz"
    path.write_text(frame(record()).replace("Lattice=", f"{spelling}="))
    # no name of a cell that anybody knows: it stays an entry, and the frame is refused
    if spelling == "UnitCell":
        with pytest.raises(InputError, match="the cell has a zero vector"):
            opened(path)
        return
    structure, expected = (opened(p).structure(0) for p in (path, usual))
    assert np.array_equal(structure.cell, BOX)
    assert build_graph(structure, 6.0).n_edges == build_graph(expected, 6.0).n_edges


@pytest.mark.parametrize("spelling", ["PBC", "Pbc", "pbc", "periodic", "Periodic"])
def test_a_periodicity_by_another_spelling_is_one(spelling: str, tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(frame(record(pbc=SLAB)).replace("pbc=", f"{spelling}="))
    assert opened(path).structure(0).pbc == SLAB


@pytest.mark.parametrize("names", [{"PBC": SLAB}, {"Pbc": np.array(SLAB)}, {"periodic": SLAB}])
def test_a_row_says_its_periodicity_in_any_case(names: dict[str, Any], tmp_path: Path) -> None:
    source = opened(write_dicts(tmp_path / "some.lmdb", [record(pbc=None, **names)]))
    assert source.structure(0).pbc == SLAB


@pytest.mark.parametrize(
    "name", ["Cell", "CELL", "Lattice", "lattice", "unit_cell", "lattice_vectors"]
)
def test_a_row_names_its_cell_in_any_case(name: str, tmp_path: Path) -> None:
    source = opened(write_dicts(tmp_path / "some.lmdb", [record(cell=None, **{name: BOX})]))
    assert np.array_equal(source.structure(0).cell, BOX)


@EACH
@pytest.mark.parametrize(
    ("theirs", "usual"), [("Energy", "energy"), ("FORCES", "forces"), ("Force", "forces")]
)
def test_a_label_is_found_in_any_case(
    theirs: str, usual: str, write: Write, tmp_path: Path
) -> None:
    structure = one(write, tmp_path, **{theirs: record()[usual], usual: None}).structure(0)
    assert np.array_equal(getattr(structure, usual), record()[usual])


@EACH
def test_two_spellings_that_differ_are_refused(write: Write, tmp_path: Path) -> None:
    text = refusal(write, tmp_path, Energy=-1.0)
    assert "energy" in text
    assert "Energy" in text


@pytest.mark.parametrize("value", ["10 10 10", "10.0", "10 10 10 90 90 90"])
def test_a_cell_that_is_no_three_vectors_is_refused(value: str, tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(re.sub(r'Lattice="[^"]*"', f'unit_cell="{value}"', frame(record())))
    with pytest.raises(InputError, match=r"unit_cell has shape .* expected .* nine numbers"):
        opened(path)


@pytest.mark.parametrize("entry", ["unit_cell=fcc", "box=7", "cell_type=hcp", "unit_cell=T"])
def test_an_entry_that_is_called_like_a_cell_and_is_none_stays_an_entry(
    entry: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(frame(record(cell=None, pbc=OPEN)).replace(" energy=", f" {entry} energy="))
    assert not opened(path).structure(0).cell.any()


def test_a_lattice_and_a_cell_that_differ_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(frame(record()).replace(" energy=", ' cell="9 0 0 0 9 0 0 0 9" energy='))
    with pytest.raises(InputError, match="Lattice and cell are both there and differ"):
        opened(path)


def test_columns_and_properties_are_read_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(
        "2\n"
        'properties=Species:s:1:Pos:r:3:Forces:R:3 energy=-1.0 pbc="F F F"\n'
        "O 0 0 0 0 0 1\n"
        "h 0 0 1 0 0 -1\n"
    )
    structure = opened(path).structure(0)
    assert structure.atomic_numbers.tolist() == [8, 1]
    assert structure.forces is not None
    assert structure.forces[:, 2].tolist() == [1, -1]


# Units.

HARTREE, BOHR = 27.211386245769, 0.529177210904


@pytest.mark.parametrize(
    ("text", "quantity", "factor"),
    [
        *(
            (text, "energy", 1.0)
            for text in ("eV", "EV", "ev", "electronvolt", "electron volt", "eV/cell")
        ),
        *(
            (text, "energy", HARTREE)
            for text in ("hartree", "Hartree", "Ha", "Eh", "E_h", "au", "a.u.")
        ),
        *((text, "energy", HARTREE / 2) for text in ("Ry", "rydberg", "Rydberg")),
        *(
            (text, "energy", 0.0433641042)
            for text in ("kcal/mol", "kcal mol^-1", "kcal mol-1", "kcal·mol⁻¹")
        ),
        *((text, "energy", 0.0103642696) for text in ("kJ/mol", "kj/mol")),
        ("meV", "energy", 1e-3),
        *(
            (text, "forces", 1.0)
            for text in ("eV/Å", "eV/A", "eV/Ang", "eV/Angstrom", "ev*ang^-1", "eV Å⁻¹", "eV A-1")
        ),
        *(
            (text, "forces", HARTREE / BOHR)
            for text in ("hartree/bohr", "Ha/Bohr", "Eh/a0", "hartree bohr^-1", "au")
        ),
        *((text, "forces", HARTREE / 2 / BOHR) for text in ("Ry/au", "Ry/bohr", "rydberg/a.u.")),
        *(
            (text, "forces", 0.0433641042)
            for text in ("kcal/mol/Å", "kcal/(mol Å)", "kcal/(mol*A)", "kcal/mol-Angstrom")
        ),
        ("kJ/mol/nm", "forces", 0.00103642696),
        ("meV/Å", "forces", 1e-3),
        *((text, "stress", 1.0) for text in ("eV/Å^3", "eV/A3", "eV/Å³", "eV/ang**3", "eV/(Å^3)")),
        *((text, "stress", 0.00624150907) for text in ("GPa", "gpa")),
        *((text, "stress", 0.000624150907) for text in ("kbar", "kB", "Kbar")),
        ("bar", "stress", 6.24150907e-7),
        ("hartree/bohr^3", "stress", HARTREE / BOHR**3),
        ("hartree", "virial", HARTREE),
        *((text, "positions", BOHR) for text in ("bohr", "a0", "Bohr", "au")),
        ("nm", "lengths", 10.0),
        ("Å", "cell", 1.0),
    ],
)
def test_a_unit_in_any_spelling_has_its_factor(text: str, quantity: str, factor: float) -> None:
    assert factor_to_ours(text, quantity) == (pytest.approx(factor, rel=1e-7), False)


@pytest.mark.parametrize(
    ("text", "quantity", "words"),
    [
        ("furlong", "energy", "no unit that is known; convert to eV"),
        ("MeV", "energy", "no unit that is known"),
        ("", "energy", "no unit that is known"),
        ("eV", "forces", "does not measure forces; expected eV/Å"),
        ("hartree/bohr", "energy", "does not measure energy; expected eV"),
        ("GPa", "virial", "does not measure virial; expected eV"),
        ("eV/Å/foo", "forces", "no unit that is known"),
    ],
)
def test_what_is_no_unit_of_it_is_refused(text: str, quantity: str, words: str) -> None:
    with pytest.raises(UnitError) as refused:
        factor_to_ours(text, quantity)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("key", "quantity"),
    [
        *(
            (key, "energy")
            for key in (
                "energy_unit",
                "energy-unit",
                "Energy_Units",
                "energyUnit",
                "unit_of_energy",
            )
        ),
        *((key, "forces") for key in ("force_unit", "forces-units", "FORCE_UNIT", "unit_force")),
        *((key, "stress") for key in ("stress_unit", "stressUnits")),
        ("virial-unit", "virial"),
        ("length_unit", "lengths"),
        ("positions_unit", "positions"),
        *(
            (key, None)
            for key in (
                "unit_cell",
                "unit",
                "units",
                "cutoff_unit",
                "energy",
                "time_unit",
                "energy_unit_cell",
            )
        ),
    ],
)
def test_which_keys_state_a_unit(key: str, quantity: str | None) -> None:
    assert stated_quantity(key) == quantity


@EACH
def test_stated_units_are_converted_and_said(write: Write, tmp_path: Path) -> None:
    good = record()
    theirs = {"energy": good["energy"] / HARTREE, "forces": good["forces"] / (HARTREE / BOHR)}
    source = one(write, tmp_path, **theirs, energy_unit="hartree", force_unit="Ha/bohr")
    structure = source.structure(0)
    assert structure.energy == pytest.approx(good["energy"], rel=1e-9)
    assert structure.forces == pytest.approx(good["forces"], rel=1e-9)
    said = " ".join(source.census.notes)
    assert "energy converted to eV: × 27.2113862 (energy_unit hartree)" in said
    assert "forces converted to eV/Å: × 51.42206" in said


@EACH
def test_units_that_are_ours_are_taken_without_a_word(write: Write, tmp_path: Path) -> None:
    source = one(write, tmp_path, energy_unit="eV", forces_unit="eV/Ang", units="metal")
    assert source.structure(0).energy == record()["energy"]
    assert not source.census.notes


@EACH
def test_a_stress_in_gpa_and_positions_in_bohr_are_converted(write: Write, tmp_path: Path) -> None:
    source = one(
        write,
        tmp_path,
        positions=WATER / BOHR,
        cell=BOX / BOHR,
        length_unit="bohr",
        energy_unit="eV",
        force_unit="eV/Å",
        stress=np.arange(6.0),
        stress_unit="GPa",
    )
    structure = source.structure(0)
    assert structure.positions == pytest.approx(WATER, abs=1e-9)
    assert structure.cell == pytest.approx(BOX, abs=1e-8)
    assert structure.stress is not None
    assert structure.stress[1, 1] == pytest.approx(units.GPa, rel=1e-7)


@EACH
def test_an_energy_per_atom_becomes_that_of_the_structure(write: Write, tmp_path: Path) -> None:
    source = one(write, tmp_path, energy=-2.0, energy_unit="eV/atom")
    assert source.structure(0).energy == -6.0


@EACH
def test_half_stated_units_are_refused(write: Write, tmp_path: Path) -> None:
    text = refusal(write, tmp_path, energy_unit="hartree")
    assert "energy_unit hartree is stated and no unit of forces; state it as forces_unit" in text


@EACH
@pytest.mark.parametrize("units", ["real", "hartree", "au", "kcal/mol"])
def test_units_that_do_not_say_of_what_are_refused(
    units: str, write: Write, tmp_path: Path
) -> None:
    assert f"units is {units!r}: of what, it does not say" in refusal(write, tmp_path, units=units)


@EACH
def test_an_unknown_unit_is_refused(write: Write, tmp_path: Path) -> None:
    assert "energy_unit: 'parsec' is no unit" in refusal(write, tmp_path, energy_unit="parsec")


def test_a_row_may_hold_its_units_as_a_dict(tmp_path: Path) -> None:
    source = opened(
        write_dicts(
            tmp_path / "some.lmdb", [record(units={"energy": "kcal/mol", "forces": "kcal/mol/Å"})]
        )
    )
    assert source.structure(0).energy == pytest.approx(
        record()["energy"] * units.kcal / units.mol, rel=1e-7
    )


@pytest.mark.parametrize("write", [write_dicts, write_geometric])
def test_rows_of_one_length_with_other_units_are_not_taken_for_one_another(
    write: Write, tmp_path: Path
) -> None:
    """Similar rows are read in blocks: the unit is one of the bytes in which they may differ."""
    rows = [
        record(energy=-17.0 - i, energy_unit=unit, forces_unit=unit + "/Å")
        for i, unit in enumerate(["eV", "Ry"] * 20)
    ]
    source = opened(write(tmp_path / "some.lmdb", rows))
    factors = [source.structure(i).energy / (-17.0 - i) for i in range(40)]  # type: ignore[operator]
    assert factors == pytest.approx([1.0, HARTREE / 2] * 20, rel=1e-7)
    assert [
        source.census.notes[note] for note in source.census.notes if note.startswith("energy")
    ] == [20]


# Keys that are there twice.


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ("energy=1 energy=2", "energy is there twice, energy='1' and energy='2'"),
        ("energy=1 step=0 energy=1", "energy is there twice"),
        ('Lattice="1 0 0 0 1 0 0 0 1" lattice="2 0 0 0 2 0 0 0 2"', "lattice is there twice"),
        ("my_id=a my_id=b", "my_id is there twice, my_id='a' and my_id='b'"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(comment: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_comment(comment)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(
        "1\nProperties=species:S:1:pos:R:3:forces:R:3:forces:R:3 energy=1\nH 0 0 0 0 0 0 1 1 1\n"
    )
    with pytest.raises(InputError, match="frame 0: Properties names forces twice"):
        opened(path)


def test_a_json_row_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    text = (
        '{"numbers": [1], "positions": [[0, 0, 0]], "energy": -1.0, "forces": [[0, 0, '
        '0]], "energy": -2.0}'
    )
    path = write_rows(tmp_path / "some.lmdb", [zlib.compress(text.encode())])
    with pytest.raises(InputError, match=r"energy is there twice in the row, -1\.0 and -2\.0"):
        opened(path)


def test_two_parts_of_an_ase_row_that_disagree_are_refused(tmp_path: Path) -> None:
    row = {"numbers": [1], "positions": [[0, 0, 0]], "energy": -1.0, "forces": [[0, 0, 0]]}
    parts = {"key_value_pairs": {"dft_energy": -3.0}, "data": {"dft_energy": -4.0}}
    path = write_rows(tmp_path / "some.lmdb", [zlib.compress(json.dumps(row | parts).encode())])
    with pytest.raises(InputError, match="dft_energy is there twice in the row"):
        opened(path)


def test_what_is_at_the_top_of_an_ase_row_is_what_ase_reads(tmp_path: Path) -> None:
    """mace's own writer leaves forces of an earlier row in `data`."""
    row = {"numbers": [1], "positions": [[0, 0, 0]], "energy": -1.0, "forces": [[0, 0, 1.0]]}
    path = write_rows(
        tmp_path / "some.lmdb",
        [zlib.compress(json.dumps(row | {"data": {"forces": [[9, 9, 9]]}}).encode())],
    )
    assert opened(path).structure(0).forces.tolist() == [[0, 0, 1]]  # type: ignore[union-attr]


def test_rows_of_maces_own_writer_are_read(tmp_path: Path) -> None:
    row = {"numbers": [1], "positions": [[0, 0, 0]], "key_value_pairs": {"REF_energy": -1.0}}
    data = {
        "__arrays__": {"REF_forces": [[0, 0, 1.0]]},
        "__info__": {"REF_stress": [1.0, 1.0, 1.0, 0, 0, 0]},
    }
    boxed = {"cell": (9.0 * np.eye(3)).tolist(), "pbc": [True] * 3}
    path = write_rows(
        tmp_path / "some.lmdb", [zlib.compress(json.dumps(row | boxed | {"data": data}).encode())]
    )
    source = opened(path)
    assert list(source.census.label_names) == [("REF_energy", "REF_forces", "REF_stress")]


# Charge and spin.

CHARGES = [{"charge": -1}, {"total_charge": -1}, {"Charge": -1.0}, {"TOTAL_CHARGE": -1}]
SPINS = [{"spin": 2}, {"total_spin": 2}, {"multiplicity": 2}, {"Spin": 2}]


@EACH
@pytest.mark.parametrize(("charge", "spin"), zip(CHARGES, SPINS, strict=True))
def test_charge_and_spin_have_one_set_of_names(
    charge: dict[str, Any], spin: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    path = write(path_for(write, tmp_path), [record(), record(**charge, **spin)])
    with pytest.raises(
        InputError, match=r"1 of 2 structures have a charge .*--drop_charged.*--charge_key none"
    ):
        opened(path)
    dropping = open_with(path, LabelKeys(), filters=Filters(charges="drop"))
    assert len(dropping) == 1
    assert dropping.census.left_out.total() == 1
    ignoring = open_with(path, LabelKeys(charge="none", spin="none"))
    assert len(ignoring) == 2
    using = open_with(path, LabelKeys(), filters=Filters(charges="keep"))
    assert (using.structure(1).charge, using.structure(1).spin) == (-1.0, 2.0)


@EACH
@pytest.mark.parametrize(
    "names", [{"charge": -1, "spin": 2}, {"total_charge": -1, "total_spin": 2}]
)
def test_a_model_with_the_inputs_takes_either_name(
    names: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    path = write(path_for(write, tmp_path), [record(**names)])
    source = open_with(path, LabelKeys(), features=(CHARGE, SPIN))
    features = source.structure(0).features
    assert (float(features["total_charge"]), float(features["total_spin"])) == (-1.0, 2.0)


@EACH
def test_names_that_are_given_are_taken(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(q=-2, mult=3)])
    source = open_with(path, LabelKeys(charge="q", spin="mult"), features=(CHARGE, SPIN))
    assert float(source.structure(0).features["total_charge"]) == -2.0
    with pytest.raises(
        InputError,
        match=r"no structure of .* has Q, the name given with --charge_key; the first has",
    ):
        open_with(path, LabelKeys(charge="Q"), filters=Filters(charges="drop"))


@EACH
def test_charges_that_differ_are_refused(write: Write, tmp_path: Path) -> None:
    text = refusal(write, tmp_path, charge=1, total_charge=-1)
    assert "total_charge and charge are both there and differ: say which with --charge_key" in text


@EACH
@pytest.mark.parametrize("value", ["None", "none", float("nan"), ""])
def test_a_charge_that_says_nothing_is_none(value: Any, write: Write, tmp_path: Path) -> None:
    assert one(write, tmp_path, charge=value, spin=value).structure(0).charge is None


def test_a_row_with_no_charge_is_neutral(tmp_path: Path) -> None:
    rows = [record() | {"charge": None, "spin": None} for _ in range(3)]
    assert opened(write_dicts(tmp_path / "some.lmdb", rows)).structure(0).charge is None


@EACH
def test_a_charge_that_is_a_word_is_refused(write: Write, tmp_path: Path) -> None:
    assert "charge is 'anion', expected the charge of the whole structure, a number" in refusal(
        write, tmp_path, charge="anion"
    )


def test_partial_charges_are_no_charge(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(
        "1\nProperties=species:S:1:pos:R:3:charge:R:1:forces:R:3 energy=1\nH 0 0 0 0.4 0 0 0\n"
    )
    assert opened(path).structure(0).charge is None
    rows = write_dicts(tmp_path / "some.lmdb", [record(charge=np.array([-0.8, 0.4, 0.4]))])
    assert opened(rows).structure(0).charge is None


# Held atoms.

HELD = np.array([True, False, False])


@pytest.mark.parametrize("name", ["fixed", "move_mask"])
@pytest.mark.parametrize("width", [1, 3])
@EACH
def test_held_atoms_have_one_meaning(name: str, width: int, write: Write, tmp_path: Path) -> None:
    mask = np.repeat((HELD if name == "fixed" else ~HELD)[:, None], width, axis=1)
    source = one(write, tmp_path, **{name: mask})
    assert source.structure(0).free_atoms.tolist() == [False, True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "constraint",
    [
        {"name": "FixAtoms", "kwargs": {"indices": [0]}},
        {"name": "FixCartesian", "kwargs": {"a": [0], "mask": [True, True, True]}},
        {"name": "FixCartesian", "kwargs": {"a": 0, "mask": [1, 1, 1]}},
        {"name": "FixScaled", "kwargs": {"a": [0], "mask": [True, True, True]}},
    ],
)
def test_constraints_of_ase_hold_atoms(constraint: dict[str, Any], tmp_path: Path) -> None:
    source = opened(write_ase_rows(tmp_path / "some.lmdb", [record(constraints=[constraint])]))
    assert source.structure(0).free_atoms.tolist() == [False, True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("constraint", "note"),
    [
        (
            {"name": "FixScaled", "kwargs": {"a": [0], "mask": [True, False, True]}},
            "atoms that were held in some directions only count as free",
        ),
        (
            {"name": "FixedPlane", "kwargs": {"indices": [0], "direction": [0.0, 0.0, 1.0]}},
            "atoms that were held in some directions only count as free",
        ),
        (
            {"name": "FixedLine", "kwargs": {"indices": [0], "direction": [0.0, 0.0, 1.0]}},
            "atoms that were held in some directions only count as free",
        ),
        (
            {"name": "FixBondLengths", "kwargs": {"pairs": [[0, 1]], "tolerance": 1e-13}},
            "constraints that hold no single atoms are left aside: FixBondLengths",
        ),
        (
            {"name": "Hookean", "kwargs": {"a1": 0, "a2": 1, "rt": 1.0, "k": 2.0}},
            "constraints that hold no single atoms are left aside: Hookean",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_constraints_that_are_not_kept_are_said(
    constraint: dict[str, Any], note: str, tmp_path: Path
) -> None:
    source = opened(write_ase_rows(tmp_path / "some.lmdb", [record(constraints=[constraint])]))
    free = source.structure(0).free_atoms
    assert free is None or free.all()
    assert dict(source.census.notes) == {note: 1}


@EACH
def test_an_atom_that_is_held_in_part_is_free_and_that_is_said(
    write: Write, tmp_path: Path
) -> None:
    mask = np.array([[False, False, False], [True, True, False], [True, True, True]])
    source = one(write, tmp_path, move_mask=mask)
    assert source.structure(0).free_atoms.tolist() == [False, True, True]  # type: ignore[union-attr]
    assert dict(source.census.notes) == {
        "atoms that were held in some directions only count as free": 1
    }


@EACH
def test_masks_that_disagree_are_refused(write: Write, tmp_path: Path) -> None:
    text = refusal(write, tmp_path, fixed=HELD[:, None], move_mask=HELD[:, None])
    assert "fixed and move_mask are both there and differ about which atoms were held" in text


# Labels that are absent, or cannot be used.

NO_STRESS = [np.full(9, np.nan), np.full(6, np.nan), np.full((3, 3), np.nan)]


@EACH
@pytest.mark.parametrize("stress", NO_STRESS, ids=["nine", "six", "3x3"])
def test_a_stress_of_nan_is_absent(stress: np.ndarray, write: Write, tmp_path: Path) -> None:
    source = one(write, tmp_path, stress=stress)
    assert source.structure(0).stress is None
    assert list(source.census.label_names) == [("energy", "forces", "stress (absent: NaN)")]
    assert not source.census.dropped


@EACH
@pytest.mark.parametrize(
    "stress", [np.arange(5.0), np.array([1.0, 2, 3, 0, 0, np.nan]), np.arange(9.0)]
)
def test_a_stress_that_nobody_looks_at_stops_nothing(
    stress: np.ndarray, write: Write, tmp_path: Path
) -> None:
    path = write(path_for(write, tmp_path), [record(stress=stress)])
    with pytest.raises(InputError, match="stress"):
        open_with(path, LabelKeys())
    needs = LabelNeeds(required=TO_TRAIN.required, judged=TO_TRAIN.required)
    source = open_with(path, LabelKeys(), needs)
    assert source.structure(0).stress is None
    assert "taken as absent, since the stress is not looked at" in " ".join(source.census.notes)
    assert open_with(path, LabelKeys(stress="none")).structure(0).stress is None


@EACH
def test_what_has_no_weight_is_not_required(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(forces=None), record(forces=None)])
    with pytest.raises(InputError, match="forces missing"):
        open_with(path, LabelKeys())
    energy = frozenset({"energy"})
    assert len(open_with(path, LabelKeys(), LabelNeeds(required=energy, judged=energy))) == 2


@EACH
def test_a_stress_is_required_of_crystals_alone(write: Write, tmp_path: Path) -> None:
    path = write(
        path_for(write, tmp_path), [record(stress=np.ones(6)), record(pbc=OPEN), record(pbc=SLAB)]
    )
    assert len(open_with(path, LabelKeys(), STRESS_TOO)) == 3
    path.unlink()
    path = write(path_for(write, tmp_path), [record(stress=np.ones(6)), record(pbc=PERIODIC)])
    with pytest.raises(InputError, match="stress missing"):
        open_with(path, LabelKeys(), STRESS_TOO)


@EACH
@pytest.mark.parametrize("quantity", ["energy", "forces", "stress"])
def test_a_name_that_was_given_and_is_nowhere_is_refused(
    quantity: str, write: Write, tmp_path: Path
) -> None:
    path = write(path_for(write, tmp_path), [record(), record()])
    keys = LabelKeys(**{quantity: "dft_label"})
    for needs in (TO_EVALUATE, TO_PREDICT):
        with pytest.raises(InputError) as refused:
            open_with(path, keys, needs)
        text = str(refused.value)
        assert f"has dft_label, the name given with --{quantity}_key; the first has: " in text
        assert "energy" in text.partition("the first has")[2]


@EACH
def test_a_name_that_some_structures_have_is_no_mistake(write: Write, tmp_path: Path) -> None:
    path = write(path_for(write, tmp_path), [record(), record(dft_energy=-1.0)])
    assert open_with(path, LabelKeys(energy="dft_energy"), TO_EVALUATE).structure(1).energy == -1.0


# What is kept.


@EACH
def test_everything_else_is_kept_where_it_is_asked_for(write: Write, tmp_path: Path) -> None:
    more = {
        "my_id": "slab-0",
        "temperature": 300,
        "tags": np.array([[1], [2], [3]]),
        "energy_unit": "eV",
    }
    path = write(path_for(write, tmp_path), [record(**more)])
    structure = open_with(path, LabelKeys(), keep=EVERYTHING).structure(0)
    assert {name: structure.extra[name] for name in ("my_id", "temperature")} == {
        "my_id": "slab-0",
        "temperature": 300,
    }
    assert structure.columns["tags"].reshape(-1).tolist() == [1, 2, 3]
    assert not {"energy", "forces", "cell", "Lattice", "pbc", "pos", "energy_unit"} & {
        *structure.extra,
        *structure.columns,
    }


def test_a_packed_record_means_what_it_meant(tmp_path: Path) -> None:
    """Units, charge in any spelling, held atoms and an absent stress go through pack.py
    and come back the same.
    """
    theirs = record(
        Charge=-1,
        Spin=2,
        move_mask=~HELD[:, None],
        stress=np.full(6, np.nan),
        energy=-1.0,
        energy_unit="Ha",
    )
    theirs |= {"forces_unit": "Ha/bohr"}
    path = write_xyz(tmp_path / "some.xyz", [theirs])
    keep = Filters(charges="keep")
    sources = open_sources(
        [SourceSpec(path=path, format="xyz")], needs=TO_TRAIN, max_dropped=0.0, filters=keep
    )
    recipe = PackingRecipe(
        rows_per_shard=10,
        r_max=None,
        max_neighbors=500,
        id_key=None,
        group_key=None,
        shares={},
        listed={},
        stages=[],
        drop_duplicates=False,
        seed=0,
    )
    pack(Packing(sources, tmp_path / "packed", recipe, lambda line: None))
    back = LmdbSource(
        tmp_path / "packed", LabelKeys(), needs=TO_TRAIN, max_dropped=0.0, features=(CHARGE, SPIN)
    )
    structure = back.structure(0)
    assert structure.energy == pytest.approx(-HARTREE, rel=1e-9)
    assert float(structure.features["total_charge"]) == -1.0
    assert float(structure.features["total_spin"]) == 2.0
    assert structure.free_atoms.tolist() == [False, True, True]  # type: ignore[union-attr]
    assert structure.stress is None


# Text.


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_bytes(b"\xef\xbb\xbf" + frame(record()).encode())
    assert len(opened(path)) == 1


def test_a_comment_in_latin_1_is_read_and_said(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_bytes(
        frame(record()).replace(" energy=", " cutoff_unit=Å energy=").encode("latin-1")
    )
    source = opened(path)
    assert dict(source.census.notes) == {"a comment that is not UTF-8 was read as Latin-1": 1}


def test_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_bytes(frame(record()).encode("utf-16"))
    with pytest.raises(InputError, match="is text in UTF-16; expected UTF-8: iconv -f UTF-16"):
        opened(path)


def test_positions_as_fractions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(frame(record()).replace("pos:R:3", "frac_pos:R:3"))
    with pytest.raises(
        InputError,
        match=r"frame 0: Properties has no pos .* it has Z, frac_pos, forces; frac_pos are",
    ):
        opened(path)


@pytest.mark.parametrize(
    ("comment", "name", "value"),
    [
        ("a=1 b='x y' c={2 3}", "b", "x y"),
        ("a = 1.5", "a", 1.5),
        ('a="quoted \\" mark"', "a", 'quoted " mark'),
        ("a=[1, 2, 3]", "a", [1, 2, 3]),
        ("a=[[1,0],[0,1]]", "a", [1, 0, 0, 1]),
        ("a=0012", "a", "0012"),
        ("a=12_34", "a", "12_34"),
        ("flag", "flag", True),
        ('a="_JSON [[1, 2], [3, 4]]"', "a", [[1, 2], [3, 4]]),
        ("a=T b=F", "b", False),
        ("name=O'Brien", "name", "O'Brien"),
        ("url=http://x?y=z", "url", "http://x?y=z"),
        ("uid=00123", "uid", "00123"),
        ('name= pbc="F F F"', "pbc", [False, False, False]),
        ("name= config_type=bulk", "config_type", "bulk"),
        ("name= config_type=bulk", "name", ""),
        ("energy=  -3.5 other=1", "energy", -3.5),
        ("name= x", "name", "x"),
        ("smiles= CC(=O)C b=1", "smiles", "CC(=O)C"),
        ("url= http://x?a=b", "url", "http://x?a=b"),
        ("a= {b=c}", "a", "b=c"),
    ],
)
def test_values_of_a_comment(comment: str, name: str, value: Any) -> None:
    found = parse_comment(comment)[0][name]
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == value


def test_a_long_comment_is_read_in_time_and_deep_json_harms_nothing(tmp_path: Path) -> None:
    """The time of the old reader grew with the length of a comment, letter by
    letter: 60 s for 43 MB.
    """
    path = tmp_path / "some.xyz"
    deep = "[" * 99_999
    path.write_text(
        frame(record()).replace(" energy=", f' a="_JSON {deep}" note="{"x" * 2_000_000}" energy=')
    )
    assert opened(path).structure(0).energy == record()["energy"]


def test_a_logical_column_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    path.write_text(
        "1\nProperties=species:S:1:pos:R:3:forces:R:3:move_mask:L:1 energy=1\nH 0 0 0 0 0 0 yes\n"
    )
    with pytest.raises(InputError, match="atom 0: move_mask is 'yes', expected T or F"):
        opened(path)


def test_a_graph_is_that_of_the_units(tmp_path: Path) -> None:
    """A structure in bohr has the neighbours that it has in Å."""
    facts_path = write_xyz(tmp_path / "angstrom.xyz", [record()])
    bohr = record(
        positions=WATER / BOHR,
        cell=BOX / BOHR,
        length_unit="bohr",
        energy_unit="eV",
        force_unit="eV/Å",
    )
    path = write_xyz(tmp_path / "bohr.xyz", [bohr])
    counts = [build_graph(opened(p).structure(0), 3.0).n_edges for p in (facts_path, path)]
    assert counts[0] == counts[1] > 0


def test_a_dataset_counts_what_is_labelled(tmp_path: Path) -> None:
    from dataloader.needs import ModelFacts

    facts = ModelFacts(
        atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((0.0, 0.0),), r_max=3.0
    )
    path = write_xyz(tmp_path / "some.xyz", [record(), record(forces=None), record(energy=None)])
    data = Dataset([open_with(path, LabelKeys(), TO_EVALUATE)], facts, torch.float64)
    assert data.batch([0, 1, 2]).rows == {"energy": 2, "forces": 6, "stress": 0}


# What is a name stays as it is spelt.

SPELT = ["12e45678", "5e3", "5000.0", "1234e567", "007", "T", "F", "+1", "bulk", "1_000"]


def test_names_that_look_like_numbers_are_names(tmp_path: Path) -> None:
    records = [record(sid=text, config_type=text) for text in SPELT]
    path = write_xyz(tmp_path / "some.xyz", records)
    spec = SourceSpec(path=path, format="xyz", keep=("sid",))
    (source,) = open_sources([spec], needs=TO_EVALUATE, max_dropped=0)
    assert [source.structure(i).config_type for i in range(len(SPELT))] == SPELT
    assert [str(source.structure(i).extra["sid"]) for i in range(len(SPELT))] == SPELT
    (whole,) = open_sources(
        [SourceSpec(path=path, format="xyz", keep=EVERYTHING)], needs=TO_EVALUATE, max_dropped=0
    )
    assert whole.structure(3).extra["sid"] == "1234e567", "no infinity"


def test_a_head_is_as_it_is_spelt_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    for text, head in (("head=1e3", "1e3"), ("head=F", "F"), ("head= other=1", None)):
        lines = frame(record()).splitlines(keepends=True)
        lines[1] = f"{text} {lines[1]}"
        path.write_text("".join(lines))
        assert opened(path).structure(0).head == head


def test_one_stress_in_six_and_in_nine_numbers_is_one(tmp_path: Path) -> None:
    """As ASE writes ``info["REF_stress"] = atoms.get_stress()`` beside the calculator's."""
    tensor = np.array([[1.0, 4, 5], [4, 2, 6], [5, 6, 3]]) / 1000
    six = tensor[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    for name, write in FORMATS.items():
        folder = tmp_path / name
        (folder / "other").mkdir(parents=True)
        source = one(write, folder, REF_stress=six, stress=tensor)
        np.testing.assert_allclose(source.structure(0).stress, tensor)  # type: ignore[arg-type]
        assert "both there and differ" in refusal(
            write, folder / "other", REF_stress=six, stress=2 * tensor
        )


@EACH
@pytest.mark.parametrize(("stated", "other"), [("positions", "cell"), ("cell", "positions")])
def test_half_stated_lengths_are_refused(
    stated: str, other: str, write: Write, tmp_path: Path
) -> None:
    units_of_labels = {"energy_unit": "eV", "forces_unit": "eV/Å", "stress_unit": "eV/Å^3"}
    text = refusal(write, tmp_path, **units_of_labels, **{f"{stated}_unit": "bohr"})
    assert f"no unit of the {other}" in text
    both = {"positions_unit": "bohr", "cell_unit": "angstrom"}
    assert one(write, tmp_path, **units_of_labels, **both)


def test_a_unit_behind_a_number_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "some.xyz"
    lines = frame(record()).splitlines(keepends=True)
    for words, refused in {
        "free_energy=-5.0 Ha": "Ha",
        "Virial=1.0 kcal/mol": "kcal/mol",
        "free_energy=-5.0 eV": None,
        "free_energy=-5.0 done": None,
        "temperature=300 K pressure=1.0 GPa ecutwfc=40 Ry": None,
        "conv=T Ha": None,
    }.items():
        path.write_text("".join([lines[0], f"{words} {lines[1]}", *lines[2:]]))
        if refused is None:
            assert opened(path)
        else:
            with pytest.raises(InputError, match=f"{refused} stands behind .* like its unit"):
                opened(path)


@EACH
def test_the_weight_of_a_virial_is_that_of_the_stress_it_becomes(
    write: Write, tmp_path: Path
) -> None:
    virial = np.diag([0.1, 0.2, 0.3])
    for names, expected in {
        ("virials", "config_virials_weight"): 3.0,
        ("REF_virials", "config_virial_weight"): 3.0,
        ("virials", "config_stress_weight"): 3.0,
        ("my_virial", "config_virials_weight"): 3.0,
        ("stress", "config_virials_weight"): 1.0,  # of a label that is not there
    }.items():
        label, weight = names
        folder = tmp_path / f"{label} {weight}"
        folder.mkdir()
        path = write(
            path_for(write, folder),
            [record(cell=BOX, pbc=PERIODIC, **{label: virial, weight: 3.0})],
        )
        keys = LabelKeys(stress=label) if label == "my_virial" else LabelKeys()
        structure = open_with(path, keys).structure(0)
        assert structure.stress is not None
        assert structure.weight_of("stress") == expected, names
