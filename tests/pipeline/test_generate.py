"""generate.py: just as many as asked for, the same bytes again, guards, all generators, one
line where it cannot be.
"""

import dataclasses
import json
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

from dataloader import parallel
from model_utils import generate
from model_utils.errors import InputError
from model_utils.generation import external, generators, guards
from model_utils.generation.candidate import NotMade
from model_utils.report import libraries as extras
from model_utils.settings import reading
from model_utils.settings.options import GenerateOptions, GuardOptions, WantedCrystals
from model_utils.settings.options.generating import GeneratorSources
from pipeline.conftest import cuau

pytestmark = pytest.mark.usefixtures("libraries")
FILES = ("generated_crystals.extxyz", "generated_crystals_cif.zip", "generation.json")


def command(folder: Path, n: int, *words: object) -> int:
    given = ["--output_dir", folder, "--num_gen", n, "--seed", 5, "--device", "cpu", *words]
    return generate.main([str(word) for word in given])


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def prototypes(tmp_path: Path) -> Path:
    path = tmp_path / "prototypes.xyz"
    write(
        path,
        [bulk("NaCl", "rocksalt", a=5.6), bulk("CsCl", "cesiumchloride", a=4.1)],
        format="extxyz",
    )
    return path


@pytest.fixture
def parents(tmp_path: Path) -> Path:
    """Relaxed ones, of which the third did not converge."""
    frames = [cuau("L1_0"), bulk("AlCu", "rocksalt", a=5.4, cubic=True)[[0, 1, 2, 3]], cuau("L1_0")]
    frames[1].set_cell(frames[1].cell * [1, 1, 0.5])
    frames[1].wrap()
    for number, atoms in enumerate(frames):
        atoms.info |= {
            "id": f"parent_{number}",
            "mace_energy": -10.0 - number,
            "converged": number != 2,
        }
    path = tmp_path / "parents.xyz"
    write(path, frames, format="extxyz")
    return path


def words_of(generator: str, prototypes: Path, parents: Path) -> list[object]:
    return {
        "random": ["--composition", "AlCu", "--space_group", 225, 221, 139, "--max_atoms", 8],
        "prototypes": ["--prototypes", prototypes, "--elements", "Al", "Cu", "O", "--strain", 0.02],
        "evolve": ["--parents", parents, "--duplicate_tolerance", 0.05],
        "external": ["--external_files", prototypes],
    }[generator]


@pytest.mark.parametrize("generator", ["random", "prototypes", "evolve", "external"])
def test_every_generator_makes_just_so_many_and_the_same_again(
    generator: str,
    prototypes: Path,
    parents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    n = {"external": 2, "prototypes": 4}.get(generator, 4)
    words = ["--generator", generator, *words_of(generator, prototypes, parents)]
    np.random.seed(1)
    assert command(tmp_path / "a", n, *words) == 0
    np.random.seed(2)  # nothing that is drawn comes from it
    assert command(tmp_path / "b", n, *words) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    frames = read(tmp_path / "a" / FILES[0], ":")
    assert [atoms.info["id"] for atoms in frames] == [f"gen_{k}" for k in range(n)]
    assert {atoms.info["generator"] for atoms in frames} == {generator}
    assert all("parent" in atoms.info or "space_group" in atoms.info for atoms in frames)
    assert all(guards.are_apart(atoms, 0.6 - 1e-6) for atoms in frames)
    with zipfile.ZipFile(tmp_path / "a" / FILES[1]) as archive:
        assert archive.namelist() == [f"gen_{k}.cif" for k in range(n)]
        archive.extract("gen_0.cif", tmp_path)
    cif = read(tmp_path / "gen_0.cif")
    assert cif.get_chemical_formula() == frames[0].get_chemical_formula()
    assert cif.get_volume() == pytest.approx(frames[0].get_volume(), rel=1e-4)
    record = json.loads((tmp_path / "a" / "generation.json").read_text())
    assert record["count"] == n
    assert record["attempts"] == n + sum(record["refused"].values())
    capsys.readouterr()
    before = {name: os.stat(tmp_path / "a" / name).st_mtime_ns for name in FILES}
    assert command(tmp_path / "a", n, *words) == 0
    assert f"holds the {n} candidates already" in capsys.readouterr().out
    assert {name: os.stat(tmp_path / "a" / name).st_mtime_ns for name in FILES} == before


def test_random_crystals_have_their_space_group(tmp_path: Path) -> None:
    from model_utils.judging.pymatgen_library import crystal, space_group_number

    words = ("--composition", "AlCu", "Al3Cu", "--space_group", 221, 225, "--max_atoms", 8)
    assert command(tmp_path, 3, *words) == 0
    for atoms in read(tmp_path / FILES[0], ":"):
        assert atoms.info["space_group"] in (221, 225), "those with more symmetry are left out"
        assert space_group_number(crystal(atoms)) == atoms.info["space_group"]
        assert crystal(atoms).composition.reduced_formula in ("AlCu", "Al3Cu")


def test_another_seed_gives_other_crystals(tmp_path: Path) -> None:
    words = ("--composition", "AlCu", "--space_group", 139, "--max_atoms", 8)
    assert command(tmp_path / "a", 2, *words) == 0
    assert command(tmp_path / "b", 2, *words, "--seed", 6) == 0
    assert (tmp_path / "a" / FILES[0]).read_bytes() != (tmp_path / "b" / FILES[0]).read_bytes()


def test_best_parents_are_chosen_within_their_composition(parents: Path, tmp_path: Path) -> None:
    words = ("--generator", "evolve", "--parents", parents, "--best", 1, "--no_deduplicate")
    assert command(tmp_path / "a", 6, *words) == 0
    assert {atoms.info["parent"] for atoms in read(tmp_path / "a" / FILES[0], ":")} == {
        "parent_1"
    }, "the lower energy"


def test_holes_and_frames_that_did_not_converge_are_no_parents(
    parents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where one that did not converge is no crystal any more."""
    frames = read(parents, ":")
    frames[1].info["energy_hole"] = True
    frames[2].pbc = False
    write(tmp_path / "some.xyz", frames, format="extxyz")
    words = ("--generator", "evolve", "--parents", tmp_path / "some.xyz", "--no_deduplicate")
    assert command(tmp_path / "a", 4, *words) == 0
    said = capsys.readouterr().out
    assert "1 parents are holes of the model and are left out" in said
    assert "1 parents did not converge and are left out" in said
    names = {atoms.info["parent"] for atoms in read(tmp_path / "a" / FILES[0], ":")}
    assert names == {"parent_0"}


def test_energies_of_two_models_are_not_compared(
    parents: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = read(parents, ":")
    for number, frame in enumerate(frames[:2]):
        frame.info["mace_energy_of"] = f"sha256:{number}"
    write(tmp_path / "some.xyz", frames, format="extxyz")
    words = ("--generator", "evolve", "--parents", tmp_path / "some.xyz", "--no_deduplicate")
    assert command(tmp_path / "a", 1, *words) == 2
    assert "mace_energy is of 2 models or precisions" in capsys.readouterr().err
    assert command(tmp_path / "a", 1, *words, "--input_model", models[0]) == 0


def test_charged_parents_have_charged_children_and_no_energy_of_another_state(
    parents: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = read(parents, ":")[:1]
    frames[0].info["total_charge"] = 1
    write(tmp_path / "some.xyz", frames, format="extxyz")
    words = ("--generator", "evolve", "--parents", tmp_path / "some.xyz", "--no_deduplicate")
    assert command(tmp_path / "a", 2, *words) == 0
    assert {atoms.info["charge"] for atoms in read(tmp_path / "a" / FILES[0], ":")} == {1}
    assert command(tmp_path / "b", 1, *words, "--input_model", models[0]) == 2
    assert "for which the model has no input" in capsys.readouterr().err


def test_charges_of_prototypes_are_dropped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    charged = bulk("NaCl", "rocksalt", a=5.6)
    charged.info["charge"] = 1
    write(tmp_path / "in.xyz", charged, format="extxyz")
    words = ("--generator", "prototypes", "--prototypes", tmp_path / "in.xyz")
    assert command(tmp_path / "a", 1, *words, "--composition", "MgO", "--elements", "Mg") == 0
    said = capsys.readouterr().out
    assert "1 of 1 prototypes have a charge or a spin, which their candidates have not" in said
    assert "--elements is not looked at: --composition says the elements" in said
    assert "charge" not in read(tmp_path / "a" / FILES[0]).info


@pytest.mark.parametrize("generator", ["prototypes", "external"])
def test_a_cell_has_a_whole_multiple_of_the_composition(
    generator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    primitive = bulk("NaCl", "rocksalt", a=5.6)
    write(tmp_path / "in.xyz", primitive, format="extxyz")
    write(tmp_path / "larger.xyz", primitive * (2, 1, 1), format="extxyz")
    flag = {"prototypes": "--prototypes", "external": "--external_files"}[generator]
    words = ("--generator", generator, "--composition", "Na2Cl2", flag)
    assert command(tmp_path / "a", 1, *words, tmp_path / "in.xyz") == 2
    capsys.readouterr()
    assert command(tmp_path / "b", 1, *words, tmp_path / "larger.xyz") == 0


def test_a_model_says_the_energies_of_parents(
    parents: Path, models: list[Path], tmp_path: Path
) -> None:
    from model_utils.calculator import Calculator

    energies = []
    for atoms in read(parents, ":")[:2]:
        atoms.calc = Calculator(models[0], dtype="float64")
        energies.append(atoms.get_potential_energy() / len(atoms))
    words = (
        "--generator",
        "evolve",
        "--parents",
        parents,
        "--best",
        1,
        "--no_deduplicate",
        "--input_model",
        models[0],
    )
    assert command(tmp_path / "a", 3, *words) == 0
    names = {atoms.info["parent"] for atoms in read(tmp_path / "a" / FILES[0], ":")}
    assert names == {f"parent_{int(np.argmin(energies))}"}


def test_substituted_prototypes_have_volumes_of_their_radii(
    prototypes: Path, tmp_path: Path
) -> None:
    words = ("--generator", "prototypes", "--prototypes", prototypes, "--composition", "MgO")
    assert command(tmp_path, 2, *words, "--strain", 0, "--rattle", 0) == 0
    for atoms in read(tmp_path / FILES[0], ":"):
        assert atoms.get_chemical_formula() == "MgO"
        assert 10 < atoms.get_volume() < 40
        assert "→" in atoms.info["operation"]


def guarded(atoms: Atoms, **changes: float) -> str:
    try:
        guards.refuse(atoms, GuardOptions(**changes), WantedCrystals())
    except NotMade as reason:
        return str(reason)
    return ""


def test_guards_say_what_is_no_candidate() -> None:
    sound = bulk("Al", "fcc", a=4.05)
    assert guarded(sound) == ""
    dense = bulk("Al", "fcc", a=2.05)
    assert "closer than" in guarded(dense)
    assert "volume of an atom" in guarded(dense, min_volume=10.0)
    assert "volume of an atom" in guarded(bulk("Al", "fcc", a=9.0))
    flat = sound.copy()
    flat.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 0]])
    assert "volume of an atom" in guarded(flat)
    nowhere = sound.copy()
    nowhere.positions[0, 0] = np.nan
    assert guarded(nowhere) == "position of atom 0 is not finite"
    open_one = sound.copy()
    open_one.pbc = [True, True, False]
    assert "periodic" in guarded(open_one)
    assert "between 1 and 20 atoms" in guarded(sound * (3, 3, 3))
    neighbours = bulk("Al", "fcc", a=4.05)  # at 2.86 Å; the radius of aluminium is 1.21 Å
    assert guards.are_apart(neighbours, 1.18)
    assert not guards.are_apart(neighbours, 1.19)
    near = Atoms("Al2", positions=[[0, 0, 0], [0, 0, 1.21]], cell=[5, 5, 5], pbc=True)
    assert guards.are_apart(near, 0.49)
    assert not guards.are_apart(near, 0.51)


def test_duplicates_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies = [bulk("Al"), bulk("Al", cubic=True), bulk("Cu"), bulk("Al", "bcc", a=3.2)]
    write(tmp_path / "in.xyz", copies, format="extxyz")
    words = ("--generator", "external", "--external_files", tmp_path / "in.xyz")
    assert command(tmp_path / "a", 3, *words) == 0
    assert [atoms.info["parent"] for atoms in read(tmp_path / "a" / FILES[0], ":")] == [
        f"in.xyz#{k}" for k in (0, 2, 3)
    ]
    assert command(tmp_path / "b", 4, *words) == 2
    line = capsys.readouterr().err
    assert "could make 3 of 4 candidates" in line
    assert "1 × the same crystal as one before" in line
    assert command(tmp_path / "b", 4, *words, "--no_deduplicate") == 0
    assert not (tmp_path / "b" / "GENERATION_FAILED.txt").exists(), "of the call before"


def test_charge_and_spin_of_another_program_go_along(tmp_path: Path) -> None:
    charged = bulk("Al")
    charged.info = {"charge": 1, "spin": 2, "energy_of_its_own": -3.0}
    write(tmp_path / "in.xyz", [charged, bulk("Cu")], format="extxyz")
    assert (
        command(
            tmp_path / "a", 2, "--generator", "external", "--external_files", tmp_path / "in.xyz"
        )
        == 0
    )
    frames = read(tmp_path / "a" / FILES[0], ":")
    assert [(frame.info.get("charge"), frame.info.get("spin")) for frame in frames] == [
        (1, 2),
        (None, None),
    ]
    assert "energy_of_its_own" not in frames[0].info


def test_of_a_file_with_broken_frames_the_others_are_taken(tmp_path: Path) -> None:
    good = bulk("Al")
    flat = bulk("Al")
    flat.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 0]])
    write(tmp_path / "in.xyz", [flat, good], format="extxyz")
    text = (tmp_path / "in.xyz").read_text()
    (tmp_path / "in.xyz").write_text(
        text + '1\nLattice="3 0 0 0 3 0 0 0 3" pbc="T T T"\nXx 0 0 0\n'
    )
    words = ("--generator", "external", "--external_files", tmp_path / "in.xyz")
    assert command(tmp_path / "a", 1, *words) == 0
    assert command(tmp_path / "b", 2, *words) == 2
    said = (tmp_path / "b" / "GENERATION_FAILED.txt").read_text()
    assert "'Xx' is no element symbol" in said
    assert "singular" in said
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["GENERATION_FAILED.txt"]


PROGRAM = """
import sys
from pathlib import Path
from ase.build import bulk
from ase.io import write
folder, n, seed = sys.argv[1:]
crystals = [bulk("Al", a=4 + 0.01 * int(seed)), bulk("Cu")]
write(Path(folder) / "generated_crystals.extxyz", crystals[: int(n)])
"""


def test_a_command_makes_crystals(tmp_path: Path) -> None:
    (tmp_path / "my program.py").write_text(PROGRAM)
    text = f"'{sys.executable}' '{tmp_path}/my program.py' {{output_dir}} {{num_gen}} {{seed}}"
    (tmp_path / "g.yaml").write_text(
        json.dumps({"generator": "external", "external_command": text})
    )
    assert command(tmp_path / "out of it", 2, "--config", tmp_path / "g.yaml") == 0
    frames = read(tmp_path / "out of it" / FILES[0], ":")
    assert [atoms.get_chemical_formula() for atoms in frames] == ["Al", "Cu"]
    assert frames[0].cell.lengths()[0] == pytest.approx((4 + 0.05) / np.sqrt(2))


@pytest.mark.parametrize("of_the_user", [None, "3"])
def test_another_program_has_the_threads_that_the_user_gave(
    of_the_user: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours keep OpenBLAS to one; a command of ours has run in this process before."""
    name = "OPENBLAS_NUM_THREADS"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(parallel.CHOSEN_HERE, raising=False)
    if of_the_user is not None:
        monkeypatch.setenv(name, of_the_user)
    seen = tmp_path / "seen.txt"
    look = f"import os\nopen({str(seen)!r}, 'w').write(os.environ.get({name!r}, 'none'))\n"
    (tmp_path / "p.py").write_text(look + PROGRAM)
    text = f"'{sys.executable}' '{tmp_path}/p.py' {{output_dir}} {{num_gen}} {{seed}}"
    for place in ("first", "second"):
        assert (
            command(tmp_path / place, 2, "--generator", "external", "--external_command", text) == 0
        )
        assert seen.read_text() == (of_the_user or "none")


def zip_of_cifs(path: Path, *names: str) -> Path:
    """Crystals of copper that are told apart by their size, in the order of the names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(names):
            write(path.with_name("one.cif"), bulk("Cu", a=3.6 + 0.1 * number), format="cif")
            archive.writestr(name, path.with_name("one.cif").read_text())
        archive.writestr("readme.txt", "of another kind")
    path.with_name("one.cif").unlink(missing_ok=True)
    return path


def test_zips_of_cifs_are_read_in_their_order(tmp_path: Path) -> None:
    path = zip_of_cifs(
        tmp_path / "the cifs ü.zip", "gen_2.cif", "gen_10.CIF", "../../evil.cif", "/gen_2.cif"
    )
    assert (
        command(
            tmp_path / "a" / "b",
            4,
            "--generator",
            "external",
            "--external_files",
            path,
            "--no_deduplicate",
        )
        == 0
    )
    frames = read(tmp_path / "a" / "b" / FILES[0], ":")
    lengths = [float(atoms.cell.lengths()[0] * np.sqrt(2)) for atoms in frames]
    assert lengths == pytest.approx([3.6, 3.7, 3.8, 3.9], abs=1e-3)
    assert sorted(file.name for file in tmp_path.rglob("*.cif")) == []


def test_a_command_may_write_a_zip_of_cifs(tmp_path: Path) -> None:
    path = zip_of_cifs(tmp_path / "cifs.zip", "gen_0.cif")
    words = (
        "--generator",
        "external",
        "--external_command",
        f"cp '{path}' {{output_dir}}/made.zip",
    )
    assert command(tmp_path / "out", 1, *words) == 0
    assert len(read(tmp_path / "out" / FILES[0], ":")) == 1


def test_zips_that_cannot_be_read_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zip_of_cifs(tmp_path / "empty.zip")
    whole = zip_of_cifs(tmp_path / "large.zip", "gen_0.cif").read_bytes()
    (tmp_path / "torn.zip").write_bytes(whole[:-40])
    for name, said in (
        ("empty", "holds no .cif"),
        ("torn", "cannot unpack"),
        ("large", "unfold to more"),
    ):
        if name == "large":
            monkeypatch.setattr(external, "LARGEST", 100)
        words = ("--generator", "external", "--external_files", tmp_path / f"{name}.zip")
        assert command(tmp_path / "out", 1, *words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert said in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit", "cannot be started"),
        (
            "{python} -c 'import sys; sys.exit(\"no licence\")'",
            "ended with 1; its last line: no licence",
        ),
        ("{python} -c 'import os; os.kill(os.getpid(), 11)'", "was ended by SIGSEGV"),
        ("{python} -c pass", "wrote no .extxyz"),
        ('{python} -c \'open("x.xyz", "w").write("half")\'', "expected a number of atoms"),
        ("{python} 'half", "cannot be split"),
        ("{python} -c 'pass' ; touch {here}/shell", "wrote no .extxyz"),
    ],
)
def test_a_command_that_fails_is_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text.replace("{python}", sys.executable).replace("{here}", str(tmp_path))
    assert command(tmp_path / "out", 1, "--generator", "external", "--external_command", text) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert said in (tmp_path / "out" / "GENERATION_FAILED.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["GENERATION_FAILED.txt"]
    assert not (tmp_path / "shell").exists(), "no shell ran it"


def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"sh -c 'sleep 1000 & echo $! > {tmp_path}/pid; wait'"
    words = ("--generator", "external", "--external_command", text, "--external_time_limit", 0.02)
    assert command(tmp_path / "out", 1, *words) == 2
    assert "took longer than 0.02 minutes" in capsys.readouterr().err
    stat = Path(f"/proc/{int((tmp_path / 'pid').read_text())}/stat")
    end = time.monotonic() + 60
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "it lives"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give formulas with --composition, or --elements"),
        (["--composition", "Xx2O"], "no chemical formula"),
        (["--composition", "Al0.5Cu"], "whole numbers"),
        (["--composition", "Al20Cu20"], "no multiple of its 40 atoms"),
        (["--elements", "Al", "Zz"], "'Zz' is no element"),
        (["--composition", "Al", "--space_group", "231"], "expected numbers from 1 to 230"),
        (["--composition", "Al", "--min_atoms", "9", "--max_atoms", "3"], "nothing could pass"),
        (["--composition", "Al", "--generator", "prototypes"], "name them with --prototypes"),
        (["--generator", "evolve"], "name them with --parents"),
        (["--generator", "external"], "one of the two"),
        (["--generator", "diffusion"], "there are random, evolve, prototypes, external"),
        (
            ["--composition", "AlCu", "--max_volume", "3", "--max_tries", "2"],
            "could make 0 of 1 candidates (2 attempts",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path / "out", 1, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "out" / FILES[0]).exists()


def test_a_folder_of_something_else_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--composition", "AlCu", "--space_group", 221)
    assert command(tmp_path / "a", 1, *words) == 0
    before = content(tmp_path / "a")
    assert command(tmp_path / "a", 1, *words, "--max_atoms", 8) == 2
    assert "max_atoms 20 → 8" in capsys.readouterr().err
    (tmp_path / "a" / FILES[2]).write_text('{"asked": 3}')
    assert command(tmp_path / "a", 1, *words) == 2
    assert "no record of a generation" in capsys.readouterr().err
    (tmp_path / "a" / FILES[2]).unlink()  # killed before the record
    (tmp_path / "a" / FILES[1]).unlink()
    assert command(tmp_path / "a", 1, *words) == 0
    assert content(tmp_path / "a") == before
    (tmp_path / "a" / FILES[0]).write_bytes(b"mine")
    assert command(tmp_path / "a", 1, *words) == 2
    assert "is not as generation.json says" in capsys.readouterr().err
    assert command(tmp_path / "a", 1, *words, "--overwrite") == 0
    assert content(tmp_path / "a") == before


def test_a_missing_library_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = extras.importlib.import_module

    def without(name: str) -> object:
        if name.startswith("ase_ga"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name)

    monkeypatch.setattr(extras.importlib, "import_module", without)
    assert command(tmp_path, 1, "--generator", "evolve") == 2
    assert "needs ase-ga, which is not installed: pip install ase-ga" in capsys.readouterr().err


def test_options_know_no_more_than_they_say() -> None:
    with pytest.raises(InputError, match="--min_volume 5 is not below"):
        GuardOptions(min_volume=5.0, max_volume=4.0)
    options = reading.parse(
        GenerateOptions,
        ["--output_dir", "x", "--num_gen", "3", "--external_time_limit", "01:30:00"],
    )
    assert options is not None
    assert options.sources.external_time_limit == 90.0


def test_files_of_a_folder_that_changed_are_another_generation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    write(folder / "a.cif", bulk("NaCl", "rocksalt", a=5.6))
    words = ("--generator", "external", "--external_files", folder)
    assert command(tmp_path / "out", 1, *words) == 0
    assert command(tmp_path / "out", 1, *words) == 0, "nothing changed"
    write(folder / "a.cif", bulk("CsCl", "cesiumchloride", a=4.1))
    assert command(tmp_path / "out", 1, *words) == 2
    assert "holds another generation" in capsys.readouterr().err


def test_crystals_of_another_composition_than_is_asked_for_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.cif", bulk("NaCl", "rocksalt", a=5.6))
    words = ("--generator", "external", "--external_files", tmp_path / "a.cif")
    for wanted in (("--composition", "MgO"), ("--elements", "Mg", "O")):
        assert command(tmp_path / "out", 1, *words, *wanted) == 2
        assert "of another composition than is asked for" in capsys.readouterr().err
    assert command(tmp_path / "out", 1, *words, "--elements", "Na", "Cl") == 0


@pytest.mark.parametrize("energy", [float("nan"), "none"])
def test_parents_without_a_number_for_an_energy_are_refused(
    energy: object, parents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = read(parents, ":")
    frames[0].info["mace_energy"] = energy
    write(tmp_path / "some.xyz", frames, format="extxyz")
    words = ("--generator", "evolve", "--parents", tmp_path / "some.xyz")
    assert command(tmp_path / "out", 1, *words) == 2
    assert "expected a number" in capsys.readouterr().err


def test_options_of_other_generators_are_said(
    prototypes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--generator", "external", "--external_files", prototypes)
    assert command(tmp_path / "out", 1, *words, "--space_group", 225, "--rattle", 0.2) == 0
    said = capsys.readouterr().out
    for name in ("space_group", "rattle"):
        assert f"--{name} is given, and --generator external does not look at it" in said
    assert command(tmp_path / "other", 1, *words) == 0
    assert "does not look at it" not in capsys.readouterr().out
    named = {name for names in generators.LOOKED_AT.values() for name in names}
    sources = {field.name for field in dataclasses.fields(GeneratorSources)}
    assert set(generators.LOOKED_AT) == set(generators.GENERATORS)
    assert named == sources | {"space_group"}
