"""Every layout is recognised and read equal to an independent reading; everything else is
refused by what it is.
"""

import gzip
import json
import pickle
import shutil
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase.io import read
from lmdb_material import ase_row, dict_row, labelled, put, raw_row, write_ase, write_dicts
from record_files import OPEN, PERIODIC, geometric_row, record

from dataloader.errors import InputError, RowError
from dataloader.labels import TO_EVALUATE, TO_TRAIN, LabelKeys
from dataloader.lmdb_shards import ase_rows
from dataloader.lmdb_shards.lmdb_record import ASE, DICTS, PYG_1, record_of
from dataloader.lmdb_shards.lmdb_source import Filters, LmdbSource
from dataloader.needs import FeatureSpec

CHARGE = FeatureSpec(name="total_charge", per_atom=False, classes=(-10, 10))


def source(path: Path, **options: Any) -> LmdbSource:
    options = {"needs": TO_TRAIN, "max_dropped": 0.001, **options}
    return LmdbSource(path, options.pop("keys", LabelKeys()), **options)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        source(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- equal to an independent reading


def test_an_aselmdb_of_mptrj_equals_the_frames_it_was_made_of(
    shared_data: Path, tmp_path: Path
) -> None:
    frames = read(shared_data / "mptrj/mptrj-random-1k.xyz", ":200")
    found = source(write_ase(tmp_path / "mptrj.aselmdb", frames))
    assert found.census.layouts == {ASE: 200}
    for i, atoms in enumerate(frames):
        s = found.structure(i)
        assert found.identifier(i) == f"mptrj.aselmdb key {i + 1}"
        np.testing.assert_array_equal(s.atomic_numbers, atoms.numbers)
        np.testing.assert_array_equal(s.positions, atoms.positions)
        np.testing.assert_array_equal(s.cell, np.array(atoms.cell))
        assert s.pbc == tuple(atoms.pbc)
        assert s.energy == atoms.get_potential_energy()
        np.testing.assert_array_equal(s.forces, atoms.get_forces())
        np.testing.assert_array_equal(s.stress, atoms.get_stress(voigt=False))


def test_what_ase_has_deleted_is_not_read(tmp_path: Path) -> None:
    backend = pytest.importorskip(
        "ase_db_backends.aselmdb", reason="ase-db-backends is not installed (extra dev)"
    )
    path = write_ase(tmp_path / "a.aselmdb", labelled(6))
    database = backend.LMDBDatabase(str(path))
    database.delete([2, 5])
    database.close()
    found = source(path)
    assert [found.identifier(i) for i in range(len(found))] == [
        f"a.aselmdb key {i}" for i in (1, 3, 4, 6)
    ]
    assert not found.census.warnings


def test_lips_equals_a_trusting_reading(shared_data: Path) -> None:
    path = shared_data / "lips/data.lmdb"
    found = source(path)
    assert found.census.layouts == {DICTS: 200}
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as reading,
    ):
        rows = {i: pickle.loads(reading.get(str(i).encode())) for i in (0, 57, 199)}
    for i, theirs in rows.items():
        ours = found.structure(i)
        np.testing.assert_array_equal(ours.positions, np.asarray(theirs["pos"], dtype=float))
        np.testing.assert_array_equal(ours.forces, np.asarray(theirs["force"], dtype=float))
        assert ours.energy == float(theirs["energy"])


def test_oc20_is_named_with_its_version_of_torch_geometric(shared_data: Path) -> None:
    found = source(shared_data / "oc20/s2ef_val_20_data.lmdb")
    assert found.census.layouts == {PYG_1: 20}
    assert found.census.pbc_rules == {
        "not stored; torch_geometric rows are periodic in three directions": 20
    }


# ---- several shards


def test_a_directory_a_pattern_and_both_kinds_of_lmdb(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_dicts(folder / "b.lmdb", labelled(3))
    put(
        folder / "a.aselmdb",
        {str(i + 1).encode(): ase_row(atoms) for i, atoms in enumerate(labelled(2, seed=1))},
    )
    names = ["a.aselmdb key 1", "a.aselmdb key 2", "b.lmdb key 0", "b.lmdb key 1", "b.lmdb key 2"]
    for path in (folder, folder / "*lmdb"):
        found = source(path)
        assert [found.identifier(i) for i in range(len(found))] == names
        assert found.census.layouts == {ASE: 2, DICTS: 3}
        assert found.structure(2).energy == labelled(3)[0].calc.results["energy"]
    assert "matches no file; look at the folder and the name" in refused(folder / "*.nothing")


# ---- meaning


def test_charge_and_spin_are_kept_and_refused_where_the_model_cannot_use_them(
    tmp_path: Path,
) -> None:
    frames = labelled(4)
    data = [
        {"charge": 0, "spin": 1},
        {"charge": -1, "spin": 1},
        {"charge": 0, "spin": 1},
        {"charge": 0, "spin": 2},
    ]
    rows = {
        str(i + 1).encode(): ase_row(a, **d)
        for i, (a, d) in enumerate(zip(frames, data, strict=True))
    }
    path = put(tmp_path / "omol.aselmdb", rows)
    text = refused(path)
    assert "1 of 4 structures have a charge (first: omol.aselmdb key 2)" in text
    assert "no total_charge among its embedding_specs" in text
    assert "--drop_charged" in text
    dropping = source(path, filters=Filters(charges="drop"))
    assert [dropping.identifier(i) for i in range(len(dropping))] == [
        "omol.aselmdb key 1",
        "omol.aselmdb key 3",
    ]
    assert "a charge for which the model has no input (key 2)" in dropping.census.left_out_report()
    spin = FeatureSpec(name="total_spin", per_atom=False, classes=(1, 5))
    using = source(path, features=(CHARGE, spin))
    assert [float(using.structure(i).features["total_charge"]) for i in range(4)] == [0, -1, 0, 0]
    assert [float(using.structure(i).features["total_spin"]) for i in range(4)] == [1, 1, 1, 2]


def test_isolated_atoms_of_an_lmdb_give_reference_energies(tmp_path: Path) -> None:
    atom = {
        "pos": np.zeros((1, 3)),
        "atomic_numbers": np.array([8]),
        "energy": -430.5,
        "config_type": "IsolatedAtom",
    }
    rows = {str(i).encode(): dict_row(a) for i, a in enumerate(labelled(3))} | {
        b"7": pickle.dumps(atom)
    }
    found = source(put(tmp_path / "a.lmdb", rows))
    assert len(found) == 3
    assert [(s.energy, s.atomic_numbers.tolist()) for s in found.isolated_atoms] == [(-430.5, [8])]
    assert not found.census.dropped


def test_atoms_held_by_ase_are_not_free(tmp_path: Path) -> None:
    atoms = labelled(1)[0]
    row = {"numbers": atoms.numbers.tolist(), "positions": atoms.positions.tolist(), "energy": 1.0}
    row |= {
        "forces": np.zeros((3, 3)).tolist(),
        "constraints": [{"name": "FixAtoms", "kwargs": {"indices": [0, 2]}}],
    }
    found = source(put(tmp_path / "a.aselmdb", {b"1": raw_row(**row)}))
    assert found.structure(0).free_atoms.tolist() == [False, True, False]  # type: ignore[union-attr]
    assert found.free_components.tolist() == [3]


# ---- refusals


OTHER_ROWS = {
    "gzip": (gzip.compress(b"{}"), "row is gzip"),
    "bare JSON": (b'{"pos": []}', "row is JSON that is not compressed"),
    "zip": (b"PK\x03\x04....", "row is a zip archive"),
    "numpy": (b"\x93NUMPY....", "row is a numpy array"),
    "bytes": (b"\x00\x01\x02", "row is of an unknown form"),
}


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_rows_of_another_layout_are_named_with_what_is_read(name: str, tmp_path: Path) -> None:
    row, words = OTHER_ROWS[name]
    text = refused(put(tmp_path / "a.lmdb", {b"0": row, b"1": row}))
    assert words in text
    assert (
        "the layouts that are read: torch_geometric 1.x Data (pickle), torch_geometric 2.x" in text
    )


def test_rows_of_deepmd_are_answered_with_the_command_that_converts_them(tmp_path: Path) -> None:
    path = put(tmp_path / "a.lmdb", {b"000000000000": b"\x83\xa3pos\x90"})
    text = refused(path)
    assert "row is msgpack" in text
    command = f"dpdata.MultiSystems.from_file('{path}', fmt='deepmd/lmdb').to('mace/xyz', 'a.xyz')"
    assert f'python -c "import dpdata; {command}"' in text


def test_is2re_rows_are_refused_as_what_they_are(tmp_path: Path) -> None:
    row = {
        "pos": np.eye(3),
        "atomic_numbers": np.array([8, 1, 1]),
        "y_relaxed": -1.0,
        "pos_relaxed": np.eye(3),
    }
    path = put(tmp_path / "a.lmdb", {b"0": pickle.dumps(row)})
    assert (
        "1 of 1 records are IS2RE rows (y_relaxed, pos_relaxed) without energy and forces"
        in refused(path)
    )
    assert "take an S2EF set" in refused(path)
    assert len(source(path, needs=TO_EVALUATE)) == 1


HOSTILE = {
    "a zlib bomb": (zlib.compress(bytes(2**27), 9), "row unfolds to too much"),
    "an array from one number": (
        raw_row(numbers={"__ndarray__": [[500000000], "float64", [0]]}),
        "has no shape",
    ),
    "values for another shape": (
        raw_row(numbers={"__ndarray__": [[3], "int64", [8]]}),
        "has 1 values for shape (3,)",
    ),
    "an object array": (
        raw_row(numbers={"__ndarray__": [[1], "object", [8]]}),
        "dtype object is not allowed",
    ),
    "text in an array": (
        raw_row(numbers={"__ndarray__": [[1], "int64", ["8"]]}),
        "holds something else than numbers",
    ),
    "a flexible dtype": (
        raw_row(numbers={"__ndarray__": [[1], "S1000000000", [8]]}),
        "is not allowed",
    ),
    "nesting": (zlib.compress(b"[" * 10**5), "row cannot be unfolded"),
    "brackets without end": (
        zlib.compress(b"[" + b"[]," * 3 * 10**6 + b"0]", 0),
        "row holds too many values",
    ),
    "a long number": (
        zlib.compress(b'{"numbers": ' + b"9" * 5000 + b"}"),
        "damaged JSON (ValueError",
    ),
    "a list": (zlib.compress(b"[1]"), "row is a JSON list, expected an object"),
    "cut off": (ase_row(labelled(1)[0])[:-9], "zlib stream is cut off"),
    "no zlib": (b"\x78\x9c\xff\xff\xff\xff", "damaged zlib stream"),
    "atoms that are not there": (
        raw_row(numbers=[1], constraints=[{"name": "FixAtoms", "kwargs": {"indices": [7]}}]),
        "FixAtoms names atoms that are not there",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_rows_are_refused_in_a_sentence(name: str) -> None:
    row, words = HOSTILE[name]
    with pytest.raises(RowError) as caught:
        ase_rows.loads(row)
    assert words in str(caught.value)


def test_numbers_and_arrays_of_a_row_mean_what_ase_means(tmp_path: Path) -> None:
    row = json.dumps(
        {
            "numbers": {"__ndarray__": [[2], "int8", [1, 8]]},
            "energy": float("nan"),
            "data": {"a": [1, 2]},
        }
    )
    record, layout = record_of(zlib.compress(row.encode()))
    assert layout == ASE
    assert record["numbers"].tolist() == [1, 8]  # type: ignore[attr-defined]
    assert record["a"] == [1, 2]


def test_molecules_of_torch_geometric_without_a_cell_are_open(tmp_path: Path) -> None:
    rows = {b"0": geometric_row(record(cell=None)), b"1": geometric_row(record())}
    found = source(put(tmp_path / "some.lmdb", rows))
    assert [found.structure(i).pbc for i in (0, 1)] == [OPEN, PERIODIC]


def test_entries_that_are_no_samples_are_said(tmp_path: Path) -> None:
    rows = {str(k).encode(): dict_row(atoms) for k, atoms in enumerate(labelled(6))}
    others = {f"sys_{k}".encode(): dict_row(atoms) for k, atoms in enumerate(labelled(3))}
    about = {b"length": pickle.dumps(6)}
    assert source(put(tmp_path / "sound.lmdb", rows | about)).census.warnings == []
    [said] = source(put(tmp_path / "some.lmdb", rows | about | others)).census.warnings
    assert said.endswith(
        "3 entries have keys that are no numbers (the first: sys_0) and are passed over; those of "
        "samples are 0, 1, …"
    )


def test_patterns_match_folders_of_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        rows = {str(k).encode(): dict_row(atoms) for k, atoms in enumerate(labelled(3))}
        put(tmp_path / "all" / name / "data.0000.aselmdb", rows)
    shutil.copy(tmp_path / "all/a/data.0000.aselmdb", tmp_path / "all/a/.rest.aselmdb")
    (tmp_path / "all" / "stats").mkdir()
    (tmp_path / "all" / "README.md").write_text("what is beside them is passed over")
    assert len(source(tmp_path / "all" / "*")) == 6, "what is hidden is no shard"
    assert "name them, as" in refused(tmp_path / "all")
