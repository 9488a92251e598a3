"""Every format of the table: the same structures from every kind of file, and
what is refused by name.
"""

import contextlib
import json
import logging
import os
import pickle
import re
import sqlite3
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from ase.db import connect
from ase.io import read, write
from format_files import (
    FILES,
    NO_STRESS,
    boxed_waters,
    energy_of,
    forces_of,
    new_cp2k_run,
    write_db,
    write_hdf5,
    write_old_hdf5,
    write_outcar,
    write_traj,
    write_vasprun,
)

from conftest import waters
from dataloader import formats
from dataloader.ase_files import KINDS
from dataloader.ase_formats import cp2k, outputs
from dataloader.data_file import SourceSpec, Wanted
from dataloader.entry_values import RecordError
from dataloader.errors import InputError
from dataloader.formats import FORMATS, format_named, format_of
from dataloader.in_memory import RawFrame, kept_format
from dataloader.labels import TO_EVALUATE, TO_TRAIN, LabelKeys, LabelNeeds
from dataloader.record import EVERYTHING, RawRecord
from dataloader.sources import Source, open_sources, unread

h5py = pytest.importorskip("h5py")
EACH = pytest.mark.parametrize("name", FILES)
FRAMES = boxed_waters(3)


def source_of(path: Path, needs: LabelNeeds = TO_TRAIN, **keys: Any) -> Source:
    spec = SourceSpec(path=path, format=format_of(path), keys=LabelKeys(**keys))
    return open_sources([spec], needs=needs, max_dropped=0.0)[0]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        source_of(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_kind_of_file_has_a_case() -> None:
    """A format or a kind of ASE's files that nobody writes here is one that
    nobody has seen working.
    """
    assert {kind for kind, _ in FILES.values()} == set(FORMATS)
    assert len([kind for kind, _ in FILES.values() if kind == "ase"]) + 2 == len(KINDS), (
        "and cif and POSCAR below"
    )


@EACH
def test_the_same_structures_come_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    """By the digits that the programs print: 1e-6 eV, 1e-6 eV/Å, 1e-6 Å."""
    kind, write_file = FILES[name]
    path = tmp_path / name
    write_file(path, FRAMES)
    assert format_of(path) == kind
    source = source_of(path)
    assert len(source) == len(FRAMES)
    for i, atoms in enumerate(FRAMES):
        structure = source.structure(i)
        assert structure.atomic_numbers.tolist() == atoms.numbers.tolist()
        assert structure.pbc == (True, True, True)
        assert structure.energy == pytest.approx(energy_of(atoms), abs=1e-6)
        np.testing.assert_allclose(structure.forces, forces_of(atoms), atol=1e-6)
        np.testing.assert_allclose(structure.positions, atoms.positions, atol=1e-6)
        np.testing.assert_allclose(structure.cell, atoms.cell.array, atol=1e-6)
        if name in NO_STRESS:
            assert structure.stress is None
        else:
            stress = structure.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            np.testing.assert_allclose(stress, atoms.calc.results["stress"], atol=1e-6)
    if kind in ("hdf5", "ase"):
        assert any("eV" in note for note in source.census.notes), "units are said"


@EACH
def test_streamed_structures_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    kind, write_file = FILES[name]
    path = tmp_path / name
    write_file(path, FRAMES)
    said: list[Counter[Any]] = []
    specs = [SourceSpec(path=path, format=kind, head="other", weight=2.0)]
    streamed = [
        read()
        for read in unread(
            specs,
            needs=TO_TRAIN,
            elements=[1, 8],
            max_dropped=0,
            say=lambda census: said.append(census.label_names),
        )
    ]
    source = source_of(path)
    assert [s.identifier for s in streamed] == [source.identifier(i) for i in range(len(source))]
    assert {(s.head, s.weight) for s in streamed} == {("other", 2.0)}
    assert said == [source.census.label_names]
    assert not list(unread(specs, needs=TO_TRAIN, elements=[8], max_dropped=0))


# Names: by content, folders, patterns


def test_files_are_known_by_what_they_hold(tmp_path: Path) -> None:
    for name, (kind, write_file) in FILES.items():
        if kind in ("hdf5", "ase"):
            path = tmp_path / f"{name.replace('.', '_')}.dat"
            write_file(path if kind == "hdf5" else tmp_path / name, FRAMES[:1])
            (tmp_path / name).rename(path) if kind == "ase" else None
            assert format_of(path) == kind, name


def test_a_folder_and_a_pattern_of_files_are_one_source(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        write_outcar(folder / "OUTCAR", FRAMES[number : number + 1])
        write_hdf5(tmp_path / f"train_{number}.h5", FRAMES[number : number + 1])
    runs = source_of(tmp_path / "run*" / "OUTCAR")
    shards = source_of(tmp_path)
    for source in (runs, shards):
        assert [source.structure(i).energy for i in range(3)] == pytest.approx(
            [energy_of(a) for a in FRAMES], abs=1e-6
        )
    assert [runs.identifier(i) for i in range(3)] == [
        "run0/OUTCAR#0",
        "run1/OUTCAR#0",
        "run2/OUTCAR#0",
    ]
    assert (
        len(
            {
                source.content()
                for source in (runs, shards, source_of(tmp_path / "run[01]" / "OUTCAR"))
            }
        )
        == 3
    )


def test_a_pattern_of_xyz_files_is_read(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"part{number}.xyz", waters(2, number), format="extxyz")
    assert len(source_of(tmp_path / "part*.xyz")) == 4
    assert len(source_of(tmp_path)) == 4


def test_a_model_json_in_the_place_of_data_is_known(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"r_max": 5.0}')
    assert "looks like a model.json, which --input_json takes" in refusal(tmp_path / "m.json")
    (tmp_path / "m.json").write_text('{"1": {"numbers": [1]}}')
    assert "is not read here; convert it" in refusal(tmp_path / "m.json")


def test_names_that_stand_for_several_formats_or_nothing_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", waters(1), format="extxyz")
    write_traj(tmp_path / "a.traj", FRAMES[:1])
    (tmp_path / "empty").mkdir()
    assert "several formats (xyz, ase)" in refusal(tmp_path)
    assert "matches files of several formats" in refusal(tmp_path / "a.*")
    assert "matches no file" in refusal(tmp_path / "b*.traj")
    assert "no LMDB" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("beside", [name for name in FILES if FILES[name][0] != "lmdb"])
def test_shards_hide_no_file_of_another_format(tmp_path: Path, beside: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    FILES["waters.aselmdb"][1](folder / "part.aselmdb", FRAMES)
    (folder / "part.aselmdb-lock").touch()
    (folder / "metadata.npz").write_bytes(b"PK\3\4")
    (folder / "README.txt").write_text("of a download\n")
    (folder / "._b.xyz").write_bytes(b"of a system")
    assert format_of(folder) == "lmdb"
    kind, write_file = FILES[beside]
    write_file(folder / beside, FRAMES[:1])
    assert f"several formats (lmdb, {kind})" in refusal(folder)
    assert "'" + str(folder / "*.aselmdb") + "'" in refusal(folder)
    assert format_of(folder / "*.aselmdb") == "lmdb"


@pytest.mark.parametrize(
    "name",
    ["more.xyz.gz", "more.h5.zst", "more.lmdb.zip", "b.traj.gz", "OUTCAR.gz", "vasprun.xml.bz2"],
)
@pytest.mark.parametrize("shown", ["waters.xyz", "waters.traj", "waters.aselmdb"])
def test_a_compressed_file_of_a_folder_is_not_passed_over(
    tmp_path: Path, name: str, shown: str
) -> None:
    FILES[shown][1](tmp_path / shown, FRAMES)
    assert format_of(tmp_path)
    (tmp_path / name).write_bytes(b"compressed")
    assert f"{name} is compressed; unpack it first" in refusal(tmp_path)


def test_outputs_of_one_run_do_not_count_twice(tmp_path: Path) -> None:
    write_outcar(tmp_path / "OUTCAR", FRAMES)
    write(tmp_path / "POSCAR", FRAMES[0], format="vasp")
    assert len(source_of(tmp_path)) == 3, "without the structure with which it began"
    write_vasprun(tmp_path / "vasprun.xml", FRAMES)
    assert "say the same twice" in refusal(tmp_path)
    assert len(source_of(tmp_path / "vasprun*")) == 3


def test_a_format_is_one_entry_of_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def frames(path: Path) -> Any:
        for number, content in enumerate(json.loads(path.read_text())):
            yield RawFrame(RawRecord(content), f"{path.name}#{number}", f"{path} entry {number}")

    own = kept_format(
        name="own", what="own JSON", takes=lambda path: path.suffix == ".own", frames=frames
    )
    monkeypatch.setitem(formats.FORMATS, "own", own)
    content = {
        "numbers": [8, 1],
        "positions": [[0, 0, 0], [0, 0, 1]],
        "energy": -1.0,
        "forces": [[0, 0, 0]] * 2,
    }
    (tmp_path / "a.own").write_text(json.dumps([content, content]))
    assert len(source_of(tmp_path / "a.own")) == 2
    (tmp_path / "a.own").write_text(json.dumps([content, {**content, "forces": None}]))
    assert f"{tmp_path / 'a.own'} entry 1: forces missing" in refusal(tmp_path / "a.own")
    with pytest.raises(InputError, match="no format 'onw'; did you mean own"):
        format_named("onw")


# HDF5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real ``mace_prepare_data`` makes of waters of all sorts."""
    folder = tmp_path_factory.mktemp("prepared")
    frames = waters(6)
    frames[1].info |= {
        "config_type": "odd",
        "config_weight": 2.0,
        "config_forces_weight": 0.5,
        "total_charge": 0,
    }
    frames[2].set_cell(np.eye(3) * 9)
    frames[2].pbc = True
    frames[2].info["REF_stress"] = np.arange(6) * 0.01
    del frames[3].arrays["REF_forces"]
    write(folder / "t.xyz", frames, format="extxyz")
    words = (
        "--train_file t.xyz --valid_file t.xyz --h5_prefix made/ --num_process 2 "
        "--energy_key REF_energy "
    )
    words += (
        "--forces_key REF_forces --stress_key REF_stress --E0s {1:-13.6,8:-430.0} --shuffle False"
    )
    with as_before(folder):
        from mace.cli import preprocess_data
        from mace.tools import build_preprocess_arg_parser

        preprocess_data.run(build_preprocess_arg_parser().parse_args(words.split()))
    return folder


@contextlib.contextmanager
def as_before(folder: Path) -> Iterator[None]:
    """In another folder, with nothing left of what mace does to a process: variables, log,
    generators of numbers.
    """
    handlers, state = list(logging.getLogger().handlers), torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        variables = dict(os.environ)
        yield
        for name in set(os.environ) - set(variables):
            del os.environ[name]
    logging.getLogger().handlers[:] = handlers
    torch.set_rng_state(state)


def test_files_of_mace_prepare_data_are_read_as_mace_reads_them(prepared: Path) -> None:
    """Structures, labels and weights; what mace fills with zeros of the weight 0 is absent here."""
    with as_before(prepared):
        from mace.data.hdf5_dataset import HDF5Dataset
        from mace.tools import AtomicNumberTable

    torch.set_default_dtype(torch.float64)
    source = source_of(prepared / "made" / "train", TO_EVALUATE)
    assert sorted(Counter(source.census.label_names).values()) == [1, 1, 4]
    place = 0
    for number in range(2):
        data = HDF5Dataset(
            str(prepared / f"made/train/train_{number}.h5"),
            r_max=3.0,
            z_table=AtomicNumberTable([1, 8]),
        )
        for mace in (data[i] for i in range(len(data))):
            structure = source.structure(place)
            np.testing.assert_array_equal(structure.positions, mace.positions)
            if structure.periodic:
                np.testing.assert_array_equal(structure.cell, mace.cell)
            assert structure.energy == float(mace.energy)
            assert structure.weight == float(mace.weight)
            assert (structure.forces is None) == (float(mace.forces_weight) == 0)
            if structure.forces is not None:
                np.testing.assert_array_equal(structure.forces, mace.forces)
                assert structure.weights.get("forces", 1.0) == float(mace.forces_weight)
            assert (structure.stress is None) == (float(mace.stress_weight) == 0)
            if structure.stress is not None:
                np.testing.assert_array_equal(structure.stress, mace.stress[0])
            place += 1
    assert place == len(source) == 6


def test_what_is_prepared_equals_the_xyz_that_it_was_made_of(prepared: Path) -> None:
    xyz, hdf5 = (
        source_of(prepared / "t.xyz", TO_EVALUATE),
        source_of(prepared / "made" / "train", TO_EVALUATE),
    )

    def plain(source: Source) -> list[Any]:
        kept = [source.structure(i) for i in range(len(source))]
        return sorted(
            (s.energy, s.weight, s.config_type, s.pbc, sorted(s.labels), sorted(s.weights.items()))
            for s in kept
        )

    assert plain(hdf5) == plain(xyz)


def test_zeros_in_place_of_labels_are_not_labels(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    write_old_hdf5(path, FRAMES)
    with h5py.File(path, "r+") as file:
        group = file["config_batch_0/config_1"]
        group["forces"][...] = 0.0
        group["forces_weight"][...] = 0.0
    source = source_of(path, TO_EVALUATE)
    assert [source.structure(i).forces is None for i in range(3)] == [False, True, False]
    assert (
        "zeros with the weight 0 in place of a label (forces) are taken as absent"
        in source.census.notes
    )
    assert "forces missing" in refusal(path)


def test_virials_have_their_own_weight(tmp_path: Path) -> None:
    path = tmp_path / "some.h5"
    write_hdf5(path, FRAMES[:1])
    with h5py.File(path, "r+") as file:
        group = file["config_batch_0/config_0"]
        for name, value, weight in (("stress", "None", 0.0), ("virials", np.eye(3), 0.25)):
            del group[f"properties/{name}"], group[f"property_weights/{name}"]
            group[f"properties/{name}"] = value
            group[f"property_weights/{name}"] = weight
    structure = source_of(path).structure(0)
    np.testing.assert_allclose(structure.stress, -np.eye(3) / 512)
    assert structure.weights == {"stress": 0.25}


def damaged_hdf5(path: Path, how: str) -> None:
    write_hdf5(path, FRAMES[:1])
    with h5py.File(path, "r+") as file:
        group = file["config_batch_0/config_0"]
        if how == "cut off":
            pass
        elif how == "another file":
            del group["positions"]
            group["positions"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif how == "a list in another file":
            del group["positions"]
            group.create_dataset("positions", (3, 3), "f8", external=[("/etc/passwd", 0, 72)])
        elif how == "huge":
            del group["properties/forces"]
            group.create_dataset(
                "properties/forces", (10**11, 3), "f8", chunks=(1024, 3), compression="gzip"
            )
        elif how == "no batches":
            del file["config_batch_0"]
        elif how == "no group":
            del file["config_batch_0/config_0"]
            file["config_batch_0/config_0"] = 1.0
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut off", "expected an HDF5 file of mace_prepare_data"),
        ("another file", "positions is a link to another place"),
        ("a list in another file", "positions lies in another file"),
        ("huge", "forces has 300000000000 values"),
        ("no batches", "has no config_batch_0"),
        ("no group", "it is no group"),
    ],
)
def test_damaged_and_hostile_hdf5_is_refused_in_a_sentence(
    how: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.h5"
    damaged_hdf5(path, how)
    text = refusal(path)
    assert str(path) in text
    assert words in text


# Files of ASE


def with_constraints() -> Atoms:
    atoms = boxed_waters(1)[0]
    atoms.set_constraint([FixAtoms([0]), FixCartesian([1], (True, False, False))])
    return atoms


def written_by_ase(atoms: Atoms, path: Path) -> Path:
    """A file of one of ASE's own formats, by its ending."""
    kind = path.suffix.removeprefix(".")
    if kind in ("db", "aselmdb"):
        with connect(path, type=kind) as database:
            database.write(atoms)
    else:
        write(path, atoms, format="extxyz" if kind == "xyz" else kind)
    return path


@pytest.mark.parametrize("ending", ["traj", "db", "aselmdb", "xyz"])
def test_held_atoms_and_free_energies_are_those_of_ase(ending: str, tmp_path: Path) -> None:
    """Forces as they were computed, though ASE zeroes those of held atoms; the free energy
    where it is asked for.
    """
    atoms = with_constraints()
    atoms.calc.results["free_energy"] = energy_of(atoms) - 0.5
    path = written_by_ase(atoms, tmp_path / f"some.{ending}")
    structure = source_of(path).structure(0)
    assert structure.free_atoms is not None
    assert structure.free_atoms.tolist() == [False, True, True]
    np.testing.assert_allclose(structure.forces, forces_of(atoms), atol=1e-8)
    assert structure.energy == energy_of(atoms)
    assert source_of(path, free_energy=True).structure(0).energy == energy_of(atoms) - 0.5


def test_held_atoms_of_vasp_are_those_of_the_structure_beside(tmp_path: Path) -> None:
    write_outcar(tmp_path / "OUTCAR", FRAMES)
    atoms = FRAMES[0].copy()
    atoms.set_constraint([FixAtoms([0]), FixScaled([1], (True, False, False))])
    write(tmp_path / "CONTCAR", atoms, format="vasp")
    source = source_of(tmp_path / "OUTCAR")
    assert [source.structure(i).free_atoms.tolist() for i in range(3)] == [[False, True, True]] * 3  # type: ignore[union-attr]
    other = Atoms("OHHH", np.eye(4, 3), cell=np.eye(3) * 8, pbc=True)
    other.set_constraint(FixAtoms([1]))
    write(tmp_path / "CONTCAR", other, format="vasp")
    assert source_of(tmp_path / "OUTCAR").structure(0).free_atoms is None, "of another structure"


def test_what_is_kept_beside_structures_keeps_its_meaning(tmp_path: Path) -> None:
    """Heads, weights, config types, charges: of the info of a trajectory, of the pairs
    and data of a database.
    """
    atoms = boxed_waters(1)[0]
    entries = {"head": "pbe", "config_weight": 2.0, "config_type": "wet", "charge": 1}
    atoms.info |= {**entries, "far": np.arange(4.0)}
    write_traj(tmp_path / "a.traj", [atoms])
    with connect(tmp_path / "a.db") as database:
        database.write(
            boxed_waters(1)[0],
            config_type="wet",
            charge=1,
            data={"head": "pbe", "config_weight": 2.0},
        )
    for name in ("a.traj", "a.db"):
        spec = SourceSpec(path=tmp_path / name, format="ase")
        wanted = Wanted(needs=TO_TRAIN, max_dropped=0)
        (read,) = FORMATS["ase"].streamed(spec, wanted).structures
        structure = read()
        assert (structure.head, structure.weight, structure.config_type, structure.charge) == (
            "pbe",
            2.0,
            "wet",
            1,
        )


def test_isolated_atoms_are_kept_apart(tmp_path: Path) -> None:
    atom = Atoms("O", cell=np.eye(3) * 9, info={"config_type": "IsolatedAtom"})
    atom.calc = SinglePointCalculator(atom, energy=-430.0)
    write_traj(tmp_path / "a.traj", [*FRAMES, atom])
    source = source_of(tmp_path / "a.traj")
    assert len(source) == 3
    assert [a.energy for a in source.isolated_atoms] == [-430.0]


def test_trajectories_of_structures_of_many_sizes_equal_ase(tmp_path: Path) -> None:
    frames = [
        Atoms("OHH" * n, np.random.default_rng(n).normal(0, 3, (3 * n, 3)), pbc=(True, True, n > 1))
        for n in (1, 2, 3)
    ]
    for atoms in frames:
        atoms.set_cell(np.eye(3) * 20)
    write(tmp_path / "a.traj", frames)
    source = source_of(tmp_path / "a.traj", TO_EVALUATE)
    for i, atoms in enumerate(read(tmp_path / "a.traj", ":")):
        structure = source.structure(i)
        assert np.array_equal(structure.positions, atoms.positions)
        assert structure.pbc == tuple(atoms.pbc)
        assert structure.atomic_numbers.tolist() == atoms.numbers.tolist()


def test_structures_without_labels_are_read_for_inference(tmp_path: Path) -> None:
    for name, form in (("a.cif", "cif"), ("POSCAR", "vasp")):
        path = tmp_path / name
        write(path, FRAMES[0], format=form)
        assert format_of(path) == "ase"
        structure = source_of(path, TO_EVALUATE).structure(0)
        assert structure.atomic_numbers.tolist() == [8, 1, 1]
        np.testing.assert_allclose(structure.positions, FRAMES[0].positions, atol=1e-6)
        assert "energy missing" in refusal(path)


def test_newer_words_of_cp2k_are_read(tmp_path: Path) -> None:
    (tmp_path / "new.out").write_text(new_cp2k_run(FRAMES[0]))
    structure = source_of(tmp_path / "new.out").structure(0)
    assert structure.energy == pytest.approx(energy_of(FRAMES[0]))
    np.testing.assert_allclose(structure.forces, forces_of(FRAMES[0]), atol=1e-6)


def test_a_run_of_cp2k_that_says_little_is_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "a.out", new_cp2k_run(FRAMES[0])
    energy = next(line for line in text.splitlines() if "ENERGY|" in line)
    for changed, words in {
        text.replace(energy, f"{energy}\n{energy}"): "it has 2 energies",
        f"{text}\n *** SCF run NOT converged ***\n": "did not converge",
        text.replace("ATOMIC COORDINATES IN", "COORDINATES IN"): "no ATOMIC COORDINATES",
        text.replace("CELL| Periodicity", "CELL| Whatever"): "periodic directions",
    }.items():
        path.write_text(changed)
        assert words in refusal(path)


def test_sites_that_are_occupied_in_part_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.cif"
    write(path, FRAMES[0], format="cif")
    path.write_text(re.sub(r"(H1 .*)1\.0000", r"\g<1>0.5000", path.read_text()))
    assert "a site is occupied in part" in refusal(path, needs=TO_EVALUATE)


class Planted:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_runs_code_or_connects_is_refused_by_name(tmp_path: Path) -> None:
    pickled = pickle.dumps(Planted(tmp_path / "ran"))
    contents = {
        "a.pckl": pickled,
        "a.pkl": pickled,
        "old.traj": b"PickleTrajectory" + pickled,
        "a.json": b"{}",
    }
    contents |= {
        "a.bundle": b"",
        "a.py": b"",
        "a.gpw": b"",
        "a.castep": b"",
        "a.gz": b"\x1f\x8b",
        "run.log": b"",
    }
    contents["run.log"] = b" Entering Gaussian System, Link 0=g16\n"
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for text in (refusal(tmp_path / name), refusal_as_ase(tmp_path / name)):
            assert str(tmp_path / name) in text
            assert re.search("write|convert|unpack|program", text), text
    for server in ("postgresql://me@host/db", "mysql://host/db"):
        assert "database on a server; copy it into a file: ase db" in refusal(Path(server))
    with zipfile.ZipFile(tmp_path / "a.npz", "w"):
        assert "plug-in" in refusal(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def refusal_as_ase(path: Path) -> str:
    """Where the user says that it is one of ASE's files."""
    with pytest.raises(InputError) as refused:
        open_sources([SourceSpec(path=path, format="ase")], needs=TO_EVALUATE, max_dropped=0)
    return str(refused.value)


TEXTS = [name for name, (kind, _) in FILES.items() if kind == "ase"]


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_cut_off_or_mixed_up_end_in_a_sentence_or_in_fewer_frames(
    name: str, tmp_path: Path
) -> None:
    """Whatever the place; no loop waits at the end of a file."""
    FILES[name][1](tmp_path / name, FRAMES)
    whole = (tmp_path / name).read_bytes()
    beginning = len(whole) // 8
    for end in range(beginning, len(whole), max(1, len(whole) // 8)):
        for content in (
            whole[:end],
            whole[:end].replace(b"0", b"?"),
            whole[:end] + whole[end // 2 :],
        ):
            (tmp_path / name).write_bytes(content)
            text = told(tmp_path / name)
            assert str(tmp_path / name) in text
            assert "\n" not in text


def told(path: Path) -> str:
    """What reading a file ends in: a sentence, or that it has few enough frames."""
    try:
        source = source_of(path, TO_EVALUATE)
    except InputError as error:
        return str(error)
    return f"{path} has frames" if len(source) <= 2 * len(FRAMES) else "too many"


def test_numbers_of_atoms_that_a_file_cannot_hold_take_no_memory(tmp_path: Path) -> None:
    for name, before, after in (
        ("OUTCAR", "=               1   2", "= 99999999999 2"),
        (
            "aims.out",
            "| Number of atoms                   :        3",
            "| Number of atoms     : 99999999999",
        ),
    ):
        path = tmp_path / name
        FILES[name][1](path, FRAMES)
        path.write_text(path.read_text().replace(before, after))
        assert "states" in refusal(path)
    write(tmp_path / "POSCAR", FRAMES[0], format="vasp")
    (tmp_path / "POSCAR").write_text(
        (tmp_path / "POSCAR").read_text().replace("  1   2\n", "  1   99999999999\n")
    )
    assert "states 100000000000 atoms" in refusal(tmp_path / "POSCAR", needs=TO_EVALUATE)


def test_a_trajectory_that_states_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.traj"
    write_traj(path, FRAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[:32] + (2**62).to_bytes(8, "little") + whole[40:])
    assert "states more than it has" in refusal(path)
    path.write_bytes(whole.replace(b'[3, 3], "float64"', b'[3, 9], "float64"'))
    assert "frame" in refusal(path)
    path.write_bytes(whole.replace(b'"float64"', b'"object_"'))
    assert "an array is not stated" in refusal(path)


def test_a_database_that_computes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    write_db(path, FRAMES)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE systems RENAME TO other")
        connection.execute("CREATE VIEW systems AS SELECT * FROM other")
    connection.close()
    assert "no table of systems" in refusal(path)
    path.unlink()
    write_db(path, FRAMES)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET positions = x'0000'")
    connection.close()
    assert "positions has 2 bytes" in refusal(path)
    with sqlite3.connect(tmp_path / "b.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert "no database of ASE" in refusal(tmp_path / "b.db")


def test_pipes_and_folders_in_place_of_files_are_refused(tmp_path: Path) -> None:
    for name in ("a.h5", "a.traj"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="pipe"):
            open_sources(
                [SourceSpec(path=tmp_path / name, format="ase" if name == "a.traj" else "hdf5")],
                needs=TO_EVALUATE,
                max_dropped=0,
            )


def test_a_reader_that_waits_at_the_end_of_a_file_is_stopped(tmp_path: Path) -> None:
    def waiting(text: Any) -> None:
        for _ in range(100_000):  # in ASE: while the line is not there
            assert "never" not in text.readline()

    (tmp_path / "some.out").write_text("a line\n")
    with pytest.raises(RecordError, match="ends too early"):
        list(outputs.frames(tmp_path / "some.out", waiting))


@pytest.mark.parametrize("ending", ["traj", "db", "aselmdb", "xyz"])
def test_masses_and_other_columns_are_kept(ending: str, tmp_path: Path) -> None:
    atoms = boxed_waters(1)[0]
    atoms.set_masses([15.999, 2.014, 2.014])
    atoms.set_tags([2, 1, 0])
    atoms.set_initial_magnetic_moments([0.5, 0.0, -0.5])
    path = written_by_ase(atoms, tmp_path / f"some.{ending}")
    spec = SourceSpec(path=path, format=format_of(path), keep=EVERYTHING)
    (source,) = open_sources([spec], needs=TO_EVALUATE, max_dropped=0)
    columns = source.structure(0).columns
    np.testing.assert_allclose(columns["masses"], atoms.get_masses())
    np.testing.assert_array_equal(columns["tags"], atoms.get_tags())
    np.testing.assert_allclose(columns["initial_magmoms"], atoms.get_initial_magnetic_moments())


def test_a_cell_of_cp2k_has_the_digits_of_its_lengths_and_angles(tmp_path: Path) -> None:
    text = new_cp2k_run(FRAMES[0])
    vectors = [line for line in text.splitlines() if "CELL| Vector" in line]
    hexagonal = [
        " CELL| Vector a [angstrom]:      16.869     0.000     0.000   |a| =    16.869000",
        " CELL| Vector b [angstrom]:      -8.434    14.609     0.000   |b| =    16.869000",
        " CELL| Vector c [angstrom]:       0.000     0.000    20.000   |c| =    20.000000",
        " CELL| Angle (b,c), alpha [degree]:                                    90.000000",
        " CELL| Angle (a,c), beta  [degree]:                                    90.000000",
        " CELL| Angle (a,b), gamma [degree]:                                   120.000000",
    ]
    (tmp_path / "hex.out").write_text(text.replace("\n".join(vectors), "\n".join(hexagonal)))
    cell = source_of(tmp_path / "hex.out").structure(0).cell
    b = 16.869 * np.array([-0.5, np.sqrt(0.75), 0.0])
    np.testing.assert_allclose(cell, [[16.869, 0, 0], b, [0, 0, 20.0]], atol=1e-9)
    # laid otherwise: the shape is exact, the direction that of the printed vectors
    turned = [
        line.replace("16.869     0.000     0.000", "0.000    16.869     0.000")
        for line in hexagonal
    ]
    turned = [line.replace("-8.434    14.609", "-14.609    -8.434") for line in turned]
    (tmp_path / "turned.out").write_text(text.replace("\n".join(vectors), "\n".join(turned)))
    cell = source_of(tmp_path / "turned.out").structure(0).cell
    np.testing.assert_allclose(np.linalg.norm(cell, axis=1), [16.869, 16.869, 20.0], atol=1e-9)
    np.testing.assert_allclose(
        cell, [[0, 16.869, 0], [-14.609, -8.434, 0], [0, 0, 20.0]], atol=5e-4
    )


def test_charge_and_multiplicity_of_cp2k_are_read(tmp_path: Path) -> None:
    lines = new_cp2k_run(FRAMES[0]).splitlines()
    lines[1:1] = [
        " DFT| Multiplicity                                                              2",
        " DFT| Charge                                                                   -1",
    ]
    (tmp_path / "ion.out").write_text("\n".join(lines))
    [raw] = cp2k.records(tmp_path / "ion.out")
    assert (raw.values["charge"], raw.values["spin"]) == (-1.0, 2.0)
    assert "1 of 1 structures have a charge" in refusal(tmp_path / "ion.out")


def test_a_poscar_without_elements_is_told_so(tmp_path: Path) -> None:
    write(tmp_path / "POSCAR", FRAMES[0], format="vasp")
    lines = (tmp_path / "POSCAR").read_text().splitlines()
    (tmp_path / "POSCAR").write_text("\n".join(["Bulk structure", *lines[1:5], *lines[6:]]))
    assert "it names no elements" in refusal(tmp_path / "POSCAR")
