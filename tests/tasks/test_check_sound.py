"""metadata.py check finds nothing wrong in sound data of many kinds, head by head, and
what is planted in them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.io import write

import metadata

Findings = list[dict[str, Any]]


def labelled(atoms: Atoms, shifts: Mapping[str, float] | None = None, **info: object) -> Atoms:
    """With labels of ASE's EMT, and an energy for every atom of an element on top."""
    calculated = atoms.copy()
    calculated.calc = EMT()
    out = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    out.info["REF_energy"] = calculated.get_potential_energy()
    out.arrays["REF_forces"] = calculated.get_forces()
    for symbol, shift in (shifts or {}).items():
        out.info["REF_energy"] += shift * (np.array(out.get_chemical_symbols()) == symbol).sum()
    out.info |= info
    return out


def isolated(symbol: str, shift: float = 0.0, **info: object) -> Atoms:
    """An isolated atom as EMT has it."""
    return labelled(
        Atoms(symbol, positions=[[0, 0, 0]]), {symbol: shift}, config_type="IsolatedAtom", **info
    )


def rattled(atoms: Atoms, n: int, seed: int = 0, size: float = 0.1) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        frame = atoms.copy()
        frame.rattle(size, rng=rng)
        if frame.pbc.all():
            frame.set_cell(frame.cell @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
        frames.append(frame)
    return frames


def alloys(n: int, seed: int = 0) -> list[Atoms]:
    """Copper and gold in any ratio, eight atoms."""
    rng = np.random.default_rng(seed)
    frames = []
    for i, atoms in enumerate(rattled(bulk("Cu", a=3.8, cubic=True) * (2, 1, 1), n, seed)):
        atoms.numbers[rng.permutation(8)[: i % 7 + 1]] = 79
        frames.append(atoms)
    return frames


def random_cells(n: int, seed: int = 0) -> list[Atoms]:
    """Copper at random in boxes of many densities, as searches for structures begin."""
    rng = np.random.default_rng(seed)
    frames: list[Atoms] = []
    while len(frames) < n:
        size = int(rng.integers(2, 7))
        length = (size * rng.uniform(9, 25)) ** (1 / 3)
        atoms = Atoms(
            f"Cu{size}", scaled_positions=rng.random((size, 3)), cell=[length] * 3, pbc=True
        )
        distances = atoms.get_all_distances(mic=True)
        if distances[np.triu_indices(size, 1)].min() > 1.6:
            frames.append(atoms)
    return frames


CUBE = bulk("Cu", cubic=True)
DIMERS = [Atoms("Cu2", positions=[[0, 0, 0], [0, 0, r]]) for r in np.linspace(1.5, 4, 20)]


def crystals_of_no_force() -> list[Atoms]:
    frames = []
    for scale in np.linspace(0.95, 1.05, 12):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        frames.append(labelled(atoms))
        frames[-1].arrays["REF_forces"][:] = 0.0
    return frames


def slabs_with_hydrogen(sizes: Sequence[tuple[int, int, int]]) -> list[Atoms]:
    """Adsorption energies: some −3 eV whatever the size of the slab."""
    frames = []
    for size in sizes:
        slab = fcc111("Cu", size, vacuum=6)
        bare = labelled(slab).info["REF_energy"]
        for i, atoms in enumerate(rattled(slab, 5, size=0.02)):
            atoms.append("H")
            atoms.positions[-1] = slab.positions[-1] + [0.05 * i, 0.0, 1.5]
            frames.append(labelled(atoms))
            frames[-1].info["REF_energy"] -= bare + 5.0
    return frames


def two_heads(*, same_structures: bool = False) -> list[Atoms]:
    first = [labelled(atoms, head="pbe") for atoms in rattled(CUBE, 15)]
    others = rattled(CUBE, 15, seed=0 if same_structures else 1)
    return first + [labelled(atoms, {"Cu": -100.0}, head="r2scan") for atoms in others]


SOUND: dict[str, Callable[[], list[list[Atoms]]]] = {
    "one element and its atom": lambda: [[isolated("Cu"), *map(labelled, rattled(CUBE, 20))]],
    "random cells and an atom": lambda: [[isolated("Cu"), *map(labelled, random_cells(40))]],
    "dimers, crystals and an atom": lambda: [
        [isolated("Cu"), *map(labelled, DIMERS + rattled(CUBE, 20))]
    ],
    "one composition and its atoms": lambda: [
        [isolated("Cu"), isolated("Au"), *map(labelled, alloys(57)[::7])]
    ],
    "alloys and their atoms": lambda: [
        [isolated("Cu"), isolated("Au"), *map(labelled, alloys(40))]
    ],
    "all electrons": lambda: [
        [isolated("Cu", -45000.0), isolated("Au", -535000.0)]
        + [labelled(atoms, {"Cu": -45000.0, "Au": -535000.0}) for atoms in alloys(40)]
    ],
    "perfect crystals": lambda: [[isolated("Cu"), *crystals_of_no_force()]],
    "adsorption energies": lambda: [slabs_with_hydrogen([(2, 2, 2), (3, 2, 2), (3, 3, 2)])],
    "two heads": lambda: [
        [isolated("Cu", head="pbe"), isolated("Cu", -100.0, head="r2scan"), *two_heads()]
    ],
    "the same structures in two heads": lambda: [two_heads(same_structures=True)],
    "hotter validation": lambda: [
        [*map(labelled, rattled(CUBE, 30, size=0.05))],
        [*map(labelled, rattled(CUBE, 15, 1, size=0.25))],
    ],
    "dimers to validate on": lambda: [
        [*map(labelled, rattled(CUBE, 30))],
        [*map(labelled, DIMERS)],
    ],
    "few structures": lambda: [[*map(labelled, alloys(5))], [*map(labelled, alloys(6, seed=3))]],
    "two charges of every geometry": lambda: [
        [labelled(atoms, {"Cu": 10.0 * charge}, charge=charge)
         for atoms in rattled(Atoms("CuH", [[0, 0, 0], [0, 0, 1.5]]), 12, size=0.02)
         for charge in (0, 1)]
    ],
}  # fmt: skip


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Findings]:
    """Run the command on frames for training and validation; gives the findings."""

    def go(train: Sequence[Atoms], valid: Sequence[Atoms] = (), *flags: object) -> Findings:
        arguments = [
            "--output_json",
            str(tmp_path / "findings.json"),
            "--overwrite",
            *map(str, flags),
        ]
        for name, frames in (("train", train), ("val", valid)):
            if frames:
                write(tmp_path / f"{name}.xyz", frames, format="extxyz")
                arguments += [f"--xyz_{name}", str(tmp_path / f"{name}.xyz")]
        code = metadata.main(["check", *arguments])
        assert "Traceback" not in "".join(capsys.readouterr())
        findings: Findings = json.loads((tmp_path / "findings.json").read_text())["findings"]
        assert code == (2 if errors(findings) else 0)
        return findings

    return go


def errors(findings: Findings, level: str = "error") -> list[str]:
    return [
        f"{finding['data']}: {finding['text']}" for finding in findings if finding["level"] == level
    ]


@pytest.mark.parametrize("kind", SOUND)
def test_nothing_is_wrong_with_sound_data(kind: str, check: Callable[..., Findings]) -> None:
    assert errors(check(*SOUND[kind]())) == []


def shifted(frames: Sequence[Atoms], per_atom: float, every: int = 1) -> list[Atoms]:
    for atoms in frames[::every]:
        atoms.info["REF_energy"] += per_atom * len(atoms)
    return list(frames)


def test_two_references_in_one_head(check: Callable[..., Findings]) -> None:
    """Alternating in a trajectory, among unlike structures, and in two
    heads that are named as one.
    """
    walk = [labelled(atoms) for atoms in rattled(CUBE * (2, 1, 1), 30, size=0.05)]
    assert any(
        "energies form two groups 1.5" in text
        for text in errors(check(shifted(walk, 1.5, every=2)))
    )
    mixed = shifted([labelled(atoms) for atoms in alloys(40)], -4.0, every=3)
    assert any("energies form two groups" in text for text in errors(check(mixed)))
    frames = two_heads()
    for atoms in frames:
        del atoms.info["head"]
    assert any("energies form two groups" in text for text in errors(check(frames)))


def test_energies_that_jump_between_near_structures(check: Callable[..., Findings]) -> None:
    """Three references: no two groups."""
    molecule = [
        labelled(atoms)
        for atoms in rattled(Atoms("CuHCu", [[0, 0, 0], [0, 0, 1.6], [0, 0, 3.2]]), 30, size=0.02)
    ]
    for i, atoms in enumerate(molecule):
        atoms.info["REF_energy"] += 2.0 * (i % 3) * len(atoms)
    assert any(
        "the energy jumps by more than any force explains" in text
        for text in errors(check(molecule))
    )


def test_a_second_file_of_another_reference(check: Callable[..., Findings], tmp_path: Path) -> None:
    other = shifted([labelled(atoms) for atoms in rattled(CUBE, 10, seed=1)], -3.0)
    write(tmp_path / "other.xyz", other, format="extxyz")
    (tmp_path / "both.yaml").write_text("sources:\n  - {path: other.xyz}\n")
    found = errors(
        check(
            [labelled(atoms) for atoms in rattled(CUBE, 30)], (), "--config", tmp_path / "both.yaml"
        )
    )
    assert any("other.xyz: energies do not continue those of train.xyz" in text for text in found)


def model_json(
    folder: Path,
    energies: Mapping[str, float] | Mapping[str, Mapping[str, float]],
    **fields: object,
) -> Path:
    path = folder / "model.json"
    content = {
        "model_class": "MACE",
        "r_max": 4.0,
        "avg_num_neighbors": 10.0,
        "hidden_irreps": "4x0e",
    }
    path.write_text(json.dumps(content | {"atomic_energies": energies} | fields))
    return path


def test_reference_energies_that_nothing_can_have(
    check: Callable[..., Findings], tmp_path: Path
) -> None:
    frames = [labelled(atoms) for atoms in rattled(CUBE, 20)]
    path = model_json(tmp_path, {"Cu": -50.0}, atomic_numbers=[29])
    (found,) = errors(check(frames, (), "--input_json", path))
    assert "above the E0s in model.json (Cu -50 eV)" in found
    for energy in (0.0, 3.5, 10.0):
        path = model_json(tmp_path, {"Cu": energy}, atomic_numbers=[29])
        assert errors(check(frames, (), "--input_json", path)) == []


def test_one_shifted_element_where_compositions_tell(
    check: Callable[..., Findings], tmp_path: Path
) -> None:
    frames = [labelled(atoms, {"Au": -2.0}) for atoms in alloys(60)]
    matrix = np.array([[(a.numbers == z).sum() / 8 for z in (29, 79)] for a in frames])
    fit = np.linalg.lstsq(matrix, [a.info["REF_energy"] / 8 for a in frames], rcond=None)[0]
    numbers = {"atomic_numbers": [29, 79]}
    right = model_json(tmp_path, {"Cu": fit[0], "Au": fit[1]}, **numbers)
    assert errors(check(frames, (), "--input_json", right)) == []
    wrong = model_json(tmp_path, {"Cu": fit[0], "Au": fit[1] + 3.0}, **numbers)
    (found,) = errors(check(frames, (), "--input_json", wrong))
    assert "E0 of Au in model.json" in found
    assert "shifted by +3" in found or "shifted by +2.9" in found


def test_heads_are_compared_with_their_own(check: Callable[..., Findings], tmp_path: Path) -> None:
    """Sound against E0s of both heads; swapped, both are wrong; a head that
    the model lacks is named.
    """
    frames, numbers = two_heads(), {"atomic_numbers": [29], "heads": ["pbe", "r2scan"]}
    right = model_json(tmp_path, {"pbe": {"Cu": 3.5}, "r2scan": {"Cu": -96.5}}, **numbers)
    assert errors(check(frames, (), "--input_json", right)) == []
    exchanged = [labelled(a, head="r2scan") for a in rattled(CUBE, 8, seed=7)]
    exchanged += [labelled(a, {"Cu": -100.0}, head="pbe") for a in rattled(CUBE, 8, seed=8)]
    found = errors(check(frames, exchanged, "--input_json", right))
    of_validation = [text.split(":")[0] for text in found if "in model.json" in text]
    assert of_validation == ["validation, head r2scan", "validation, head pbe"]
    swapped = model_json(tmp_path, {"pbe": {"Cu": -96.5}, "r2scan": {"Cu": 3.5}}, **numbers)
    found = errors(check(frames, (), "--input_json", swapped))
    assert [text.split(":")[0] for text in found] == ["training, head pbe", "training, head r2scan"]
    one = model_json(tmp_path, {"Cu": 3.5}, atomic_numbers=[29], heads=["pbe"])
    assert any(
        "name head 'r2scan', which the model.json lacks" in text
        for text in errors(check(frames, (), "--input_json", one))
    )
    for atoms in frames[:15]:
        del atoms.info["head"]
    right = model_json(tmp_path, {"pbe": {"Cu": 3.5}, "r2scan": {"Cu": -96.5}}, **numbers)
    nameless = errors(check(frames, (), "--input_json", right))
    assert any("15 structures name no head" in text for text in nameless)


def test_an_element_that_a_head_has_no_energy_of(
    check: Callable[..., Findings], tmp_path: Path
) -> None:
    """Which ``init`` writes as 0: in any set, and not where nothing has one."""
    frames = [labelled(atoms) for atoms in alloys(40)]
    copper = [labelled(atoms) for atoms in rattled(CUBE, 20)]
    several = {"atomic_numbers": [29, 79]}
    without = model_json(tmp_path, {"Cu": 3.5, "Au": 0.0}, **several)
    said = "E0 of Au in model.json is 0 eV, which says nothing"
    assert any(
        said in text for text in errors(check(frames, (), "--input_json", without), "warning")
    )
    found = errors(check(copper, frames[:8], "--input_json", without), "warning")
    assert [text.split(":")[0] for text in found if said in text] == ["validation"]
    none = model_json(tmp_path, {"Cu": 0.0, "Au": 0.0}, **several)
    assert not any("says nothing" in t for t in errors(check(frames, (), "--input_json", none)))


def test_repeats_are_looked_for_within_a_head(check: Callable[..., Findings]) -> None:
    frames = two_heads()
    validation = [frames[2].copy(), *[labelled(a, head="pbe") for a in rattled(CUBE, 5, seed=7)]]
    assert any(
        "1 structures stand in training" in text for text in errors(check(frames, validation))
    )
    validation[0].info["head"] = "r2scan"
    validation[0].info["REF_energy"] -= 400.0
    assert not any("stand in training" in text for text in errors(check(frames, validation)))


def test_zero_forces_without_symmetry_are_a_placeholder(check: Callable[..., Findings]) -> None:
    frames = [labelled(atoms) for atoms in rattled(CUBE, 10)]
    for atoms in frames:
        atoms.arrays["REF_forces"][:] = 0.0
    assert any("all forces are exactly 0 in 10 of 10" in text for text in errors(check(frames)))


def test_isolated_atoms_without_a_head(check: Callable[..., Findings]) -> None:
    """They are of the only head of the structures; of several nobody can tell, which is said."""
    wrong = isolated("Cu", -50.0)
    (first, second) = ("pbe", "r2scan")
    of_one = [atoms for atoms in two_heads() if atoms.info["head"] == first]
    assert any("IsolatedAtom frames" in text for text in errors(check([wrong, *of_one])))
    found = check([wrong, *two_heads()])
    assert errors(found) == []
    (warning,) = errors(found, "warning")
    assert "IsolatedAtom frames of Cu name no head" in warning
    named = [isolated("Cu", head=first), isolated("Cu", -150.0, head=second), *two_heads()]
    assert any("IsolatedAtom frames" in text for text in errors(check(named)))


def test_compositions_that_do_not_tell_are_a_warning(
    check: Callable[..., Findings], tmp_path: Path
) -> None:
    frames = [labelled(atoms) for atoms in alloys(57)[::7]]
    (found,) = errors(check(frames), "warning")
    assert "the compositions determine only 1 of 2 E0s (Cu, Au)" in found
    assert errors(check([isolated("Cu"), isolated("Au"), *frames]), "warning") == []
    water = [
        labelled(atoms, {"H": -300.0})
        for atoms in rattled(Atoms("CuH", [[0, 0, 0], [0, 0, 1.5]]), 8)
    ]
    path = model_json(tmp_path, {"H": -151.0, "Cu": -151.0}, atomic_numbers=[1, 29])
    (found,) = errors(check(water, (), "--input_json", path), "warning")
    assert "no atom has the E0 of H -151 eV in model.json" in found


XTB = ("--energy_key", "energy_xtb", "--forces_key", "forces_xtb")
MOF = ("--energy_key", "dft_energy", "--forces_key", "dft_forces", "--stress_key", "dft_stress")
REAL: dict[str, tuple[str, ...]] = {
    "acac": (
        "--xyz_train",
        "acac/train_300K.xyz",
        "acac/isolated_atoms.xyz",
        "--xyz_test",
        "acac/test_MD_300K.xyz",
    ),
    "mof": ("--xyz_train", "mof/mlip_train.xyz", "--xyz_val", "mof/mlip_valid.xyz", *MOF),
    "solvents, few": ("--xyz_train", "solvent_xtb/solvent_xtb_train_20.xyz", *XTB),
    "solvents by mace": (
        "--xyz_train",
        "mace_run/solvent_mace_train.xyz",
        "--xyz_val",
        "mace_run/solvent_mace_test.xyz",
    ),
    "oc20": ("--lmdb_train", "oc20/s2ef_val_20_data.lmdb"),
}


@pytest.mark.parametrize("name", REAL)
def test_nothing_is_wrong_with_real_data(
    name: str, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(shared_data / word) if "/" in word else word for word in REAL[name]]
    assert metadata.main(["check", *flags]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "01_voigt/voigt.xyz", "02_keys_by_case/good.xyz", "02_keys_by_case/lower.xyz",
        "03_units/hartree.xyz", "05_energies_only/eonly.xyz", "07_nan_stress/nan.xyz",
        "08_charge/charged.xyz", "22_text/latin.xyz", "09_one_element/t.xyz",
        "10_all_electron/t.xyz", "11_noise_forces/noise.xyz", "12_precision/t.xyz",
        "13_isolated_atoms/t.xyz", "15_two_heads/a.xyz", "15_two_heads/d.yaml",
        "21_heads_in_records/h.xyz", "27_held_atoms/slab.xyz", "17_lmdb_rows/charge_None.lmdb",
        "19_mace_lmdb/ref.aselmdb", "27_held_atoms/slab.aselmdb",
    ],
)  # fmt: skip
def test_nothing_is_wrong_with_the_sound_cases(
    name: str, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_data.parent / "cases" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    flag = {".yaml": "--config", ".xyz": "--xyz_train"}.get(path.suffix, "--lmdb_train")
    assert metadata.main(["check", flag, str(path)]) == 0, capsys.readouterr().err


def test_a_set_without_forces_is_sound_and_a_partly_labelled_one_where_that_is_said(
    check: Callable[..., Findings],
) -> None:
    frames = [labelled(atoms) for atoms in alloys(8)]
    for atoms in frames[:3]:
        atoms.arrays.pop("REF_forces", None)
    assert any("forces missing in 3 of 8" in text for text in errors(check(frames)))
    assert not errors(check(frames, (), "--allow_missing_labels"))
    for atoms in frames[3:]:
        atoms.arrays.pop("REF_forces", None)
    findings = check(frames)
    assert not errors(findings)
    assert any(
        "no structure has forces: train with --forces_weight 0" in text
        for text in errors(findings, "warning")
    )


def test_positions_in_bohr_are_seen(check: Callable[..., Findings]) -> None:
    train = [*map(labelled, alloys(30))]
    said = errors(check(train), "warning")
    assert not [text for text in said if "Bohr" in text]
    for atoms in train:
        atoms.set_cell(atoms.cell.array / 0.529177, scale_atoms=True)
    [text] = [text for text in errors(check(train, (), "--r_max", 8), "warning") if "Bohr" in text]
    assert "are positions in Bohr? times 0.529177 they are in Å" in text


def test_forces_of_validation_in_another_unit(check: Callable[..., Findings]) -> None:
    train, valid = ([*map(labelled, rattled(CUBE, 20, seed))] for seed in (0, 5))
    assert not [text for text in errors(check(train, valid), "warning") if "forces are" in text]
    for atoms in valid:
        atoms.arrays["REF_forces"] *= 51.4221
    [text] = [text for text in errors(check(train, valid), "warning") if "forces are" in text]
    assert "times those of training" in text
    assert "are some in Hartree/Bohr" in text
