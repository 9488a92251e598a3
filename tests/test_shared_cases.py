"""Small files that repeat what people reported: each does what its row of the
cases' README says is right.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import read

import metadata
import read_model
from model_utils import evaluate, finetune, train_mace

SHAPE = (
    "--r_max",
    4,
    "--hidden_irreps",
    "4x0e",
    "--max_ell",
    1,
    "--correlation",
    1,
    "--num_interactions",
    1,
)


@pytest.fixture
def case(shared_data: Path) -> Callable[[str], Path]:
    """A file of the cases; the test is skipped where they are absent."""
    folder = shared_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"the cases are not at {folder}")
    return lambda name: folder / name


class Place:
    """Commands in this process that write into a folder of the test, and what they said."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capture = capture
        self.out = ""
        self.err = ""

    def run(self, main: Callable[[list[str]], int], *arguments: object) -> int:
        """The exit code of a command."""
        self._capture.readouterr()
        code = main([str(argument) for argument in arguments])
        self.out, self.err = self._capture.readouterr()
        assert "Traceback" not in self.err
        return code

    def fitted(self, *data: object) -> Path:
        """A model.json of data."""
        path = self.folder / "fitted.json"
        assert (
            self.run(metadata.main, "init", *data, *SHAPE, "--output_json", path, "--overwrite")
            == 0
        ), self.err
        return path

    def trained(self, description: Path, *data: object) -> int:
        """The exit code of a run of one epoch."""
        usual = (
            "--epochs",
            1,
            "--valid_fraction",
            0.3,
            "--overwrite",
            "--output_checkpoint",
            self.folder / "run",
        )
        return self.run(train_mace.main, "--input_json", description, *data, *usual)

    @property
    def model(self) -> Path:
        """The best model of the last run."""
        return self.folder / "run" / "run_model.pt"


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """Commands in this process, in a folder of the test."""
    return Place(tmp_path, capsys)


Case = Callable[[str], Path]


def average_neighbours(description: Path) -> float:
    return float(json.loads(description.read_text())["avg_num_neighbors"])


def test_01_six_numbers_are_a_stress(case: Case, place: Place) -> None:
    data = ("--xyz_train", case("01_voigt/voigt.xyz"))
    assert place.trained(place.fitted(*data), *data, "--stress_weight", 1) == 0, place.err
    assert "stress from stress" in place.out


def test_02_keys_count_whatever_their_case(case: Case, place: Place) -> None:
    counts = [
        average_neighbours(place.fitted("--xyz_train", case(f"02_keys_by_case/{f}.xyz")))
        for f in ("good", "lower")
    ]
    assert counts[0] == counts[1] > 10


def test_03_stated_units_are_converted_and_said(case: Case, place: Place) -> None:
    place.fitted("--xyz_train", case("03_units/hartree.xyz"))
    assert "energy converted to eV: × 27.2113862" in place.out
    assert "forces converted to eV/Å: × 51.42206" in place.out


def test_04_a_key_that_is_there_twice_is_refused(case: Case, place: Place) -> None:
    path = case("04_key_twice/dup.xyz")
    assert place.run(metadata.main, "check", "--xyz_train", path) == 2
    assert "frame 0: energy is there twice, energy='5.25731649' and energy='-999.0'" in place.err


@pytest.mark.parametrize(
    ("name", "flags"), [("eonly", ("--forces_weight", 0)), ("mixed", ("--allow_missing_labels",))]
)
def test_05_what_has_no_weight_is_not_required(
    name: str, flags: tuple[object, ...], case: Case, place: Place
) -> None:
    data = ("--xyz_train", case(f"05_energies_only/{name}.xyz"))
    allow = ("--allow_missing_labels",) if name == "mixed" else ()
    description = place.fitted(*data, *allow)
    assert place.trained(description, *data) == 2
    assert "forces missing" in place.err
    assert place.trained(description, *data, *flags) == 0, place.err


def test_07_a_stress_of_nan_is_absent(case: Case, place: Place) -> None:
    data = ("--xyz_train", case("07_nan_stress/nan.xyz"))
    description = place.fitted(*data)
    assert place.trained(description, *data) == 0, place.err
    assert "stress from" not in place.out.replace("stress from stress (absent: NaN)", "")
    assert place.trained(description, *data, "--stress_key", "none") == 0, place.err


@pytest.mark.parametrize("name", ["charged", "total"])
def test_08_charge_and_spin_have_one_rule(name: str, case: Case, place: Place) -> None:
    data = ("--xyz_train", case(f"08_charge/{name}.xyz"))
    assert place.trained(place.fitted(*data), *data) == 2
    assert "5 of 8 structures have a charge" in place.err
    assert place.trained(case("08_charge/emb.json"), *data) == 0, place.err


def test_09_one_element_with_isolated_atoms_is_sound(case: Case, place: Place) -> None:
    assert place.run(metadata.main, "check", "--xyz_train", case("09_one_element/t.xyz")) == 0, (
        place.err
    )


def test_10_exported_energies_are_those_that_were_judged(
    case: Case, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as mace's own import leaves it for its users
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    from mace.calculators import MACECalculator

    path = case("10_all_electron/t.xyz")
    data = ("--xyz_train", path)
    assert place.trained(place.fitted(*data), *data) == 0, place.err
    predicted = place.folder / "predicted.xyz"
    judged = (
        "--input_model",
        place.model,
        "--xyz_path",
        path,
        "--dtype",
        "float64",
        "--output_xyz",
        predicted,
    )
    assert place.run(evaluate.main, *judged) == 0, place.err
    before = torch.get_default_dtype()
    calculator = MACECalculator(model_paths=str(place.folder / "run" / "run.model"), device="cpu")
    torch.set_default_dtype(before)
    for atoms, ours in zip(read(path, ":"), read(predicted, ":"), strict=True):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(ours.info["mace_energy"], abs=1e-3)


def test_11_forces_that_are_noise_are_no_scale(case: Case, place: Place) -> None:
    description = place.fitted("--xyz_train", case("11_noise_forces/noise.xyz"))
    assert json.loads(description.read_text())["atomic_inter_scale"][0] > 1e-3


def test_12_a_float32_model_is_tuned_in_float64(case: Case, place: Place) -> None:
    data = ("--xyz_train", case("12_precision/t.xyz"))
    assert place.trained(place.fitted(*data), *data, "--dtype", "float32") == 0, place.err
    tuned = place.folder / "tuned"
    flags = (
        "--dtype",
        "float64",
        "--epochs",
        1,
        "--valid_fraction",
        0.3,
        "--output_checkpoint",
        tuned,
    )
    assert place.run(finetune.main, "--input_model", place.model, *data, *flags) == 0, place.err
    for name in ("tuned_model.pt", "tuned_checkpoint.pt", "tuned.model"):
        judged = ("--input_model", tuned / name, "--xyz_path", data[1])
        assert place.run(evaluate.main, *judged) == 0, place.err
    for form in ("safetensors", "module", "lammps", "mliap"):
        output = place.folder / f"out.{'safetensors' if form == 'safetensors' else form}"
        asked = (
            "--input_model",
            place.model,
            "--to",
            form,
            "--dtype",
            "float64",
            "--output",
            output,
        )
        assert place.run(read_model.main, "convert", *asked) == 0, place.err


def test_13_isolated_atoms_that_differ_are_said_with_both_numbers(case: Case, place: Place) -> None:
    data = ("--xyz_train", case("13_isolated_atoms/t.xyz"))
    assert place.trained(case("13_isolated_atoms/other.json"), *data) == 0, place.err
    assert "give reference energies and are left out" not in place.out
    assert "3.51" in place.out
    assert "-50" in place.out


def test_15_heads_are_judged_by_themselves(case: Case, place: Place) -> None:
    for name in ("a.xyz", "b.xyz", "d.yaml", "net.json"):
        shutil.copy(case(f"15_two_heads/{name}"), place.folder / name)
    config = ("--config", place.folder / "d.yaml")
    assert place.run(metadata.main, "check", *config) == 0, place.err
    fitted = place.folder / "fitted.json"
    fit = ("fit", *config, "--input_json", place.folder / "net.json", "--output_json", fitted)
    assert place.run(metadata.main, *fit) == 0, place.err
    assert place.trained(fitted, *config) == 0, place.err
    for form in ("module", "safetensors"):
        output = place.folder / f"pbe.{form}"
        asked = ("--input_model", place.model, "--to", form, "--head", "pbe", "--output", output)
        assert place.run(read_model.main, "convert", *asked) == 0, place.err
        assert place.run(read_model.main, "show", "--input_model", output) == 0, place.err
        assert "heads pbe" in place.out
        assert "r2scan" not in place.out


def test_17_a_charge_of_none_is_none(case: Case, place: Place) -> None:
    data = ("--lmdb_train", case("17_lmdb_rows/charge_None.lmdb"))
    assert place.trained(place.fitted(*data), *data) == 0, place.err


def test_19_maces_own_rows_are_read(case: Case, place: Place) -> None:
    data = ("--lmdb_train", case("19_mace_lmdb/ref.aselmdb"))
    description = place.fitted(*data)
    assert place.trained(description, *data) == 0, place.err
    assert "energy from REF_energy, forces from REF_forces" in place.out
    assert place.trained(description, *data, "--forces_key", "mistyped") == 2
    assert "the first record has: " in place.err
    assert "REF_forces" in place.err


def test_21_a_model_has_the_heads_of_its_data(case: Case, place: Place) -> None:
    data = ("--xyz_train", case("21_heads_in_records/h.xyz"))
    description = place.fitted(*data)
    assert sorted(json.loads(description.read_text())["heads"]) == ["pbe", "r2scan"]
    assert place.trained(description, *data) == 0, place.err


@pytest.mark.parametrize(("name", "code"), [("bom", 0), ("latin", 0), ("frac", 2)])
def test_22_text_is_read_or_answered_with_what_is_there(
    name: str, code: int, case: Case, place: Place
) -> None:
    path = case(f"22_text/{name}.xyz")
    arguments = ("init", "--xyz_train", path, *SHAPE, "--output_json", place.folder / "m.json")
    assert place.run(metadata.main, *arguments) == code, place.err
    if name == "frac":
        assert "frame 0: Properties has no pos" in place.err
        assert "frac_pos" in place.err


def test_25_a_misspelt_key_of_a_network_is_named(
    case: Case, place: Place, shared_data: Path
) -> None:
    data = ("--xyz_train", case("12_precision/t.xyz"))
    asked = (
        "--mace_config",
        case("25_misspelt/typo.yml"),
        "--output_json",
        place.folder / "m.json",
    )
    assert place.run(metadata.main, "init", *data, *asked) == 2
    assert any(word in place.err for word in ("correlation", "hidden_irreps", "r_max"))


def test_27_held_atoms_are_the_same_in_every_format(case: Case, place: Place) -> None:
    scales: list[Any] = []
    for data in (
        ("--xyz_train", case("27_held_atoms/slab.xyz")),
        ("--lmdb_train", case("27_held_atoms/slab.aselmdb")),
    ):
        description = place.fitted(*data)
        scales.append(json.loads(description.read_text())["atomic_inter_scale"])
        assert place.trained(description, *data) == 0, place.err
        assert "records say which atoms were fixed" in place.out
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)
    predicted = place.folder / "predicted.xyz"
    judged = (
        "--input_model",
        place.model,
        "--xyz_path",
        case("27_held_atoms/slab.xyz"),
        "--output_xyz",
        predicted,
    )
    assert place.run(evaluate.main, *judged) == 0, place.err
    theirs, ours = read(case("27_held_atoms/slab.xyz")), read(predicted)
    assert (ours.info["my_id"], ours.info["temperature"]) == (
        theirs.info["my_id"],
        theirs.info["temperature"],
    )
    assert np.array_equal(ours.arrays["tags"], theirs.arrays["tags"])
