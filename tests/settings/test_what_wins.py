"""Flags win over a file of settings, also where the two call one thing by two names, or one gives
what the other only implies; what is given and not used is said or refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase import Atoms
from ase.io import write

import metadata
from conftest import TINY, waters
from model_utils import train_mace
from model_utils.calculator import Calculator
from model_utils.errors import InputError
from model_utils.settings import reading
from model_utils.settings.options import EvaluateOptions, TrainOptions

BASE = ["--input_json", "m.json", "--output_checkpoint", "run"]


def parsed(folder: Path, settings: dict[str, Any], *words: str) -> TrainOptions:
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    options = reading.parse(
        TrainOptions, [*BASE, "--config", str(folder / "settings.yaml"), *words]
    )
    assert options is not None
    return options


@pytest.mark.parametrize("role", ["train", "val", "test"])
@pytest.mark.parametrize("of_flag", ["xyz", "lmdb", "file"])
@pytest.mark.parametrize("of_file", ["xyz", "lmdb", "file"])
def test_a_flag_takes_the_place_of_files_of_its_role(
    role: str, of_flag: str, of_file: str, tmp_path: Path
) -> None:
    def name(kind: str, of: str) -> str:
        return f"{ {'val': 'valid'}.get(of, of) }_file" if kind == "file" else f"{kind}_{of}"

    (tmp_path / "old.xyz").touch()
    (tmp_path / "all.xyz").touch()
    settings: dict[str, Any] = {name(of_file, role): ["old.xyz"]}
    if role != "train":
        settings["train_file"] = ["all.xyz"]
    options = parsed(tmp_path, settings, f"--{name(of_flag, role)}", "new.xyz")
    files = options.data.files(role)  # type: ignore[arg-type]
    assert [file.path.name for file in files] == ["new.xyz"]
    if role != "train":
        assert [file.path.name for file in options.data.files("train")] == ["all.xyz"]


def test_a_value_is_no_flag(tmp_path: Path) -> None:
    (tmp_path / "old.xyz").touch()
    options = parsed(tmp_path, {"train_file": ["old.xyz"]}, "--energy_key", "xyz_train")
    assert [file.path.name for file in options.data.files("train")] == ["old.xyz"]


def test_a_list_of_sources_stays(tmp_path: Path) -> None:
    (tmp_path / "old.xyz").touch()
    sources = {"sources": [{"path": "old.xyz", "weight": 0.5}]}
    options = parsed(tmp_path, sources, "--xyz_train", "new.xyz")
    assert [file.path.name for file in options.data.files("train")] == ["new.xyz", "old.xyz"]


def test_weights_of_two_stages_are_those_of_the_flag(tmp_path: Path) -> None:
    shares = {"stage_splits": [0.5, 0.5], "epochs": 10, "train_file": ["a.xyz"]}
    (tmp_path / "a.xyz").touch()
    for words, expected in (
        (["--energy_weight", "5"], (5.0, 5.0, 100.0)),
        (["--energy_weight=5", "--forces_weight", "7"], (5.0, 5.0, 7.0)),
        (["--energy_weight", "5", "--stage_two_energy_weight", "6"], (5.0, 6.0, 100.0)),
        ([], (1.0, 1.0, 100.0)),
    ):
        options = parsed(tmp_path, shares, *words)
        second = options.stage_two
        assert (
            options.loss.energy_weight,
            second.stage_two_energy_weight,
            second.stage_two_forces_weight,
        ) == expected


def test_a_list_that_is_given_twice_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--input_model", "a.pt", "--data", "a.xyz", "--data", "b.xyz", "--dtype", "float32"]
    options = reading.parse(EvaluateOptions, [*argv, "--dtype", "float64"])
    assert options is not None
    assert [path.name for _, path in options.files()] == ["b.xyz"]
    assert capsys.readouterr().err == (
        "note: --data stands there 2 times, and the last counts (b.xyz); several values follow one "
        "flag\n"
    )


@pytest.mark.parametrize(
    ("words", "scale"), [(["--scaling", "rms_forces"], "rms_forces"), ([], "std")]
)
def test_a_flag_with_the_usual_value_wins_over_the_yaml_of_mace(
    words: list[str],
    scale: str,
    tmp_path: Path,
    water_xyz: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = {"model": "ScaleShiftMACE", "scaling": "std_scaling", "E0s": "{1: -10.0, 8: -20.0}"}
    (tmp_path / "mace.yml").write_text(yaml.safe_dump({**theirs, "num_channels": 4, "max_L": 0}))
    argv = ["init", "--mace_config", tmp_path / "mace.yml", "--train_file", water_xyz("a.xyz", 8)]
    argv += ["--output_json", tmp_path / "m.json", *words]
    assert metadata.main([*map(str, argv)]) == 0
    said = capsys.readouterr().out
    assert f"({scale.replace('_', ' ')}" in said or f"({scale} scaling" in said
    own = json.loads((tmp_path / "m.json").read_text())["atomic_energies"]
    assert own == [[-10.0, -20.0]]
    assert metadata.main([*map(str, argv), "--E0s", "auto", "--overwrite"]) == 0
    own = json.loads((tmp_path / "m.json").read_text())["atomic_energies"]
    assert own != [[-10.0, -20.0]]


@pytest.mark.parametrize(
    "words",
    [["--E0s", '{"H": -1, "O": -2}'], ["--zero_shift"], ["--scaling", "none"], ["--E0s", "auto"]],
)
def test_how_data_are_measured_needs_data(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["init", "--preset", "tiny", "--elements", "H", "O", "--output_json"]
    assert metadata.main([*argv, str(tmp_path / "m.json"), *words]) == 2
    assert f"{words[0]} says how data are measured, and none are named" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_the_elements_of_a_yaml_of_mace_are_those_of_its_network(tmp_path: Path) -> None:
    theirs = {"model": "ScaleShiftMACE", "num_channels": 4, "max_L": 0, "atomic_numbers": "[1, 8]"}
    (tmp_path / "mace.yml").write_text(yaml.safe_dump(theirs))
    argv = ["init", "--mace_config", tmp_path / "mace.yml", "--output_json", tmp_path / "m.json"]
    assert metadata.main([*map(str, argv)]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["atomic_numbers"] == [1, 8]


def test_arguments_of_another_calculator_are_refused() -> None:
    with pytest.raises(InputError, match="no argument 'default_dtype'; here it is dtype"):
        Calculator("any.pt", default_dtype="float32")
    with pytest.raises(InputError, match="no argument 'batch_size'"):
        Calculator.of_potentials([], batch_size=4)


IDLE = {
    "lr_gamma": (["--lr_gamma", "0.5"], "--lr_gamma changes nothing: --scheduler plateau"),
    "patience": (
        ["--scheduler", "cosine", "--scheduler_patience", "3"],
        "--scheduler_patience changes nothing: --scheduler cosine",
    ),
    "points": (
        ["--weight_schedule", "energy=constant:0=1,1=50"],
        "--weight_schedule energy=constant has the weight of epoch 0 throughout",
    ),
    "weight": (
        ["--energy_weight", "7", "--weight_schedule", "energy=linear:0=1,1=50"],
        "--energy_weight 7 changes nothing: --weight_schedule gives",
    ),
}


@pytest.mark.parametrize("case", IDLE)
def test_what_is_not_used_is_said(
    case: str,
    tiny_json: Path,
    water_xyz: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, sentence = IDLE[case]
    argv = ["--input_json", tiny_json, "--xyz_train", water_xyz("a.xyz", 6), "--dry_run"]
    argv += ["--valid_fraction", "0.3", "--output_checkpoint", tmp_path / "run", *words]
    assert train_mace.main([*map(str, argv)]) == 0
    assert f"warning: {sentence}" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["stress", "virials", "weighted"])
def test_a_stress_that_is_trained_on_is_not_said_to_be_unused(
    loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames: list[Atoms] = waters(6)
    for atoms in frames:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
        atoms.info["REF_stress"] = [0.01, 0.01, 0.01, 0.0, 0.0, 0.0]
    write(tmp_path / "a.xyz", frames, format="extxyz")
    (tmp_path / "m.json").write_text(json.dumps(TINY))
    argv = ["--input_json", tmp_path / "m.json", "--xyz_train", tmp_path / "a.xyz", "--dry_run"]
    argv += ["--valid_fraction", "0.3", "--output_checkpoint", tmp_path / "run", "--loss", loss]
    assert train_mace.main([*map(str, argv)]) == 0
    said = "whose term has the weight 0" in capsys.readouterr().out
    assert said == (loss == "weighted")
