"""Every format of the table in every command that reads data: trained on, evaluated, packed, measured, checked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read, write
from format_files import FILES, boxed_waters, energy_of, forces_of

import metadata
from dataloader import pack
from dataloader.data_file import SourceSpec
from dataloader.labels import TO_EVALUATE
from dataloader.sources import open_sources
from model_utils import evaluate, finetune, resume, train_mace

FRAMES = boxed_waters(4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same structures in a file of every kind, and two models trained on all of them alike."""
    folder = tmp_path_factory.mktemp("formats")
    for name, (_, write_file) in FILES.items():
        write_file(folder / name, FRAMES)
    return folder


def files(place: Path) -> list[str]:
    return [str(place / name) for name in FILES]


def train(place: Path, tiny_json: Path, run: str, *flags: object) -> Path:
    words = ["--input_json", tiny_json, "--output_checkpoint", place / run, "--epochs", 1, "--dtype", "float64", *flags]
    assert train_mace.main(list(map(str, words))) == 0
    return place / run


def test_every_format_is_trained_on_as_the_xyz_is(place: Path, tiny_json: Path) -> None:
    """In one order of structures the losses of an epoch agree, as far as programs print digits."""
    every = train(place, tiny_json, "every", "--train_file", *files(place), "--valid_file", place / "waters.xyz")
    (place / "copies").mkdir()
    copies = [place / "copies" / f"{number}.xyz" for number in range(len(FILES))]
    for path in copies:
        path.write_bytes((place / "waters.xyz").read_bytes())
    same = train(place, tiny_json, "same", "--xyz_train", *copies, "--xyz_val", place / "waters.xyz")
    losses = [records(run)[-1]["loss"] for run in (every, same)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert resume.main(["--input_model", str(every), "--epochs", "2"]) == 0
    moved = ["--train_file", *files(place), "--valid_file", str(place / "waters.xyz")]
    assert resume.main(["--input_model", str(every), "--epochs", "3", *moved]) == 0


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_format_is_evaluated_alike(place: Path, tiny_json: Path) -> None:
    run = train(place, tiny_json, "model", "--train_file", place / "waters.traj", "--epochs", 1)
    words = ["--input_model", run / "model_model.pt", "--data", *files(place), "--output_json", place / "e.json"]
    assert evaluate.main(list(map(str, words))) == 0
    metrics = json.loads((place / "e.json").read_text())["by_source"]
    assert set(metrics) == set(files(place))
    expected = metrics[str(place / "waters.xyz")]
    for name in FILES:
        for key in ("energy_rmse_per_atom", "forces_rmse", "n_configs", "n_atoms"):
            assert metrics[str(place / name)][key] == pytest.approx(expected[key], rel=1e-4), name


def test_structures_without_labels_are_predicted(place: Path, tiny_json: Path, capsys: pytest.CaptureFixture) -> None:
    run = train(place, tiny_json, "again", "--train_file", place / "waters.db", "--epochs", 1)
    (place / "POSCAR").unlink(missing_ok=True)
    write(place / "POSCAR", FRAMES[0], format="vasp")
    words = ["--input_model", run / "again_model.pt", "--data", place / "POSCAR", "--output_xyz", place / "p.xyz"]
    assert evaluate.main([*map(str, words), "--overwrite"]) == 0
    assert "this is inference" in capsys.readouterr().out
    assert read(place / "p.xyz").arrays["mace_forces"].shape == (3, 3)
    (place / "POSCAR").unlink()


def test_every_format_is_packed(place: Path) -> None:
    words = ["--input", *files(place), "--output_dir", str(place / "packed")]
    assert pack.main(words) == 0
    (packed,) = open_sources([SourceSpec(path=place / "packed", format="lmdb")], needs=TO_EVALUATE, max_dropped=0)
    assert len(packed) == len(FILES) * len(FRAMES)
    for i in range(len(packed)):
        atoms = FRAMES[i % len(FRAMES)]
        assert packed.structure(i).energy == pytest.approx(energy_of(atoms), abs=1e-6)
        np.testing.assert_allclose(packed.structure(i).forces, forces_of(atoms), atol=1e-6)


def test_every_format_is_measured_and_checked(place: Path, capsys: pytest.CaptureFixture) -> None:
    for name, given in {"every": files(place), "one": [str(place / "waters.xyz")]}.items():
        assert metadata.main(["init", "--train_file", *given, "--output_json", str(place / f"{name}.json")]) == 0
    every, one = (json.loads((place / f"{name}.json").read_text()) for name in ("every", "one"))
    np.testing.assert_allclose(every["atomic_energies"], one["atomic_energies"], atol=1e-4)
    assert every["avg_num_neighbors"] == pytest.approx(one["avg_num_neighbors"])
    capsys.readouterr()
    metadata.main(["check", "--train_file", *files(place)])
    assert "repeats" in capsys.readouterr().out, "the same structures in every file"


def test_sources_of_a_yaml_name_any_format(place: Path, tiny_json: Path, capsys: pytest.CaptureFixture) -> None:
    text = "sources:\n- {path: old.hdf5, format: hdf5, weight: 2.0}\n- {path: OUTCAR, ratio: 0.5}\n"
    (place / "s.yaml").write_text(text + "- {path: points.log, role: val}\n")
    run = train(place, tiny_json, "yaml", "--config", place / "s.yaml")
    assert "an epoch takes 2 of the 4 of" in capsys.readouterr().out
    assert records(run)
    (place / "s.yaml").write_text(text.replace("hdf5, weight", "h5, weight"))
    words = ["--input_json", tiny_json, "--output_checkpoint", place / "none", "--config", place / "s.yaml"]
    assert train_mace.main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert "format of" in error
    assert "no format 'h5'; did you mean hdf5? known are xyz, lmdb, hdf5, ase" in error


def test_help_names_every_format(capsys: pytest.CaptureFixture) -> None:
    for command in (train_mace, evaluate, finetune):
        assert command.main(["--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "xyz, lmdb, hdf5, ase" in text


def test_data_are_named_once(place: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--input_model", "m.pt", "--data", str(place / "waters.xyz"), "--xyz_path", str(place / "waters.xyz")]
    assert evaluate.main(words) == 2
    assert "--data alone" in capsys.readouterr().err
