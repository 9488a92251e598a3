"""What the commands do with labels that are absent, mistyped or of no weight, and which
records of LMDBs they name.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from ase.io import read, write
from record_files import Record, record, write_dicts, write_xyz

import metadata
import read_model
from conftest import TINY, waters
from model_utils import evaluate, train_mace

Files = Callable[..., Path]


def run(main: Callable[[list[str]], int], *arguments: object) -> int:
    """A command in this process; its exit code."""
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best model of a run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    write(folder / "w.xyz", waters(6), format="extxyz")
    flags = (
        "--xyz_train",
        folder / "w.xyz",
        "--valid_fraction",
        0.34,
        "--epochs",
        1,
        "--no_export_mace_model",
    )
    assert (
        run(
            train_mace.main,
            "--input_json",
            folder / "tiny.json",
            *flags,
            "--output_checkpoint",
            folder / "run",
        )
        == 0
    )
    return folder / "run" / "run_model.pt"


@pytest.fixture(params=["xyz", "lmdb"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """Write records as xyz or as an LMDB."""

    def make(records: list[Record]) -> Path:
        if request.param == "xyz":
            return write_xyz(tmp_path / "some.xyz", records)
        return write_dicts(tmp_path / "some.lmdb", records)

    return make


def path_flag(path: Path) -> str:
    return f"--{path.suffix[1:]}_path"


@pytest.mark.parametrize("quantity", ["energy", "forces", "stress", "charge"])
def test_evaluate_refuses_a_name_that_is_nowhere(
    quantity: str, model: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files([record(), record()])
    assert (
        run(
            evaluate.main,
            "--input_model",
            model,
            path_flag(path),
            path,
            f"--{quantity}_key",
            "mistyped",
        )
        == 2
    )
    line = capsys.readouterr().err
    assert f"has mistyped, the name given with --{quantity}_key; the first has: " in line
    assert "forces" in line.partition("the first has")[2]


def test_unlabelled_structures_are_inference(
    model: Path, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files([record(energy=None, forces=None) for _ in range(2)])
    asked = ("--input_model", model, path_flag(path), path)
    assert run(evaluate.main, *asked) == (0 if path.suffix == ".xyz" else 2)
    said = capsys.readouterr()
    if path.suffix == ".xyz":
        assert (
            "no structure has a label (the first has: nothing): this is inference, "
            "nothing is compared"
        ) in said.out
    else:
        assert "there is nothing to compare with; name the labels with --energy_key" in said.err
    assert run(evaluate.main, *asked, "--output_xyz", tmp_path / "predicted.xyz") == 0
    assert "mace_energy" in read(tmp_path / "predicted.xyz").info


def test_predictions_stand_beside_everything_the_user_had(
    model: Path, files: Files, tmp_path: Path
) -> None:
    more = {"my_id": "slab-0", "temperature": 300, "move_mask": np.array([[False], [True], [True]])}
    path = files([record(**more, tags=np.array([[3], [2], [1]]))])
    assert (
        run(
            evaluate.main,
            "--input_model",
            model,
            path_flag(path),
            path,
            "--output_xyz",
            tmp_path / "out.xyz",
        )
        == 0
    )
    first_line = (tmp_path / "out.xyz").read_text().splitlines()[1]
    atoms = read(tmp_path / "out.xyz")
    assert (atoms.info["my_id"], atoms.info["temperature"]) == ("slab-0", 300)
    assert atoms.arrays["tags"].reshape(-1).tolist() == [3, 2, 1]
    assert "move_mask" in first_line
    assert atoms.info["REF_energy"] == record()["energy"]


def fit(tmp_path: Path, path: Path) -> Path:
    """A model.json for the file."""
    shape = (
        "--r_max",
        3,
        "--hidden_irreps",
        "4x0e",
        "--max_ell",
        1,
        "--correlation",
        1,
        "--num_interactions",
        1,
    )
    place = tmp_path / "fitted.json"
    flag = f"--{path.suffix[1:]}_train"
    flags = ("--output_json", place, "--allow_missing_labels", "--overwrite")
    assert run(metadata.main, "init", flag, path, *shape, *flags) == 0
    return place


def trained(tmp_path: Path, path: Path, *flags: object, json_path: Path | None = None) -> int:
    usual = (
        "--epochs",
        1,
        "--valid_fraction",
        0.4,
        "--overwrite",
        "--no_export_mace_model",
        *flags,
    )
    place = json_path or fit(tmp_path, path)
    data = (f"--{path.suffix[1:]}_train", path)
    return run(
        train_mace.main,
        "--input_json",
        place,
        *data,
        "--output_checkpoint",
        tmp_path / "run",
        *usual,
    )


def test_energies_alone_and_forces_alone_are_trained_on(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    energies = [record(energy=-457.0 + 0.1 * i, forces=None) for i in range(6)]
    path = files(energies)
    assert trained(tmp_path, path) == 2
    assert "forces missing" in capsys.readouterr().err
    assert trained(tmp_path, path, "--forces_weight", 0) == 0
    assert "no structure has forces" in capsys.readouterr().out
    path.unlink()
    path = files([record(energy=None) for _ in range(6)])
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    assert trained(tmp_path, path, json_path=tmp_path / "tiny.json") == 2
    assert trained(tmp_path, path, "--energy_weight", 0, json_path=tmp_path / "tiny.json") == 0


def test_partly_labelled_data_are_trained_on_where_that_is_said(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files(
        [
            record(energy=-457.0 + 0.1 * i, forces=record()["forces"] if i % 2 else None)
            for i in range(10)
        ]
    )
    assert trained(tmp_path, path) == 2
    assert "--allow_missing_labels" in capsys.readouterr().err
    assert trained(tmp_path, path, "--allow_missing_labels") == 0
    out = capsys.readouterr().out
    assert "energy from energy, forces from forces (5)" in out
    assert "energy from energy (5)" in out


def test_a_stage_two_alone_makes_a_label_required(files: Files, tmp_path: Path) -> None:
    path = files([record(energy=None) for _ in range(6)])
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    flags = ("--energy_weight", 0, "--stage_two", "--start_stage_two", 1, "--epochs", 2)
    assert trained(tmp_path, path, *flags, json_path=tmp_path / "tiny.json") == 2


def test_a_label_is_not_trained_on_and_not_looked_for_at_once(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files([record() for _ in range(6)])
    assert trained(tmp_path, path, "--forces_key", "none") == 2
    assert (
        "--forces_key none: it is not looked for; --forces_weight: it is trained on"
        in capsys.readouterr().err
    )
    assert trained(tmp_path, path, "--forces_key", "none", "--forces_weight", 0) == 0


# Which records of LMDBs a run saw.


def rows_of(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every record with its key, in the order of the keys as numbers."""
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as reader,
    ):
        rows = [
            (key.decode(), pickle.loads(value))
            for key, value in reader.cursor()
            if key != b"length"
        ]
    return sorted(rows, key=lambda row: int(row[0]))


def indices_of(run_folder: Path) -> Any:
    checkpoint = torch.load(run_folder / "run_checkpoint.pt", weights_only=True)
    return checkpoint["train_state"]["lmdb_indices"]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two LMDBs whose energies tell every record from the others; one record has no
    forces, one is larger.
    """
    paths = []
    for shard in range(2):
        records = [record(energy=-457.0 - shard - 0.01 * i) for i in range(12)]
        records[3] = record(energy=-457.5 - shard, forces=None)
        records[5] = record(energy=-457.6 - shard, numbers=np.array([8, 0, 1]))  # faulty
        paths.append(write_dicts(tmp_path / f"part{shard}.lmdb", records))
    return paths


def go(tmp_path: Path, shards: list[Path], *flags: object) -> Any:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    write(tmp_path / "more.xyz", waters(7), format="extxyz")
    data = ("--lmdb_train", *shards, "--xyz_train", tmp_path / "more.xyz", "--max_dropped", 0.5)
    place = (
        "--output_checkpoint",
        tmp_path / "run",
        "--overwrite",
        "--no_export_mace_model",
        "--epochs",
        1,
    )
    assert run(train_mace.main, "--input_json", tmp_path / "tiny.json", *data, *place, *flags) == 0
    return indices_of(tmp_path / "run")


def test_the_records_of_a_run_are_found_again_in_the_files(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indices = go(tmp_path, shards, "--valid_fraction", 0.2)
    by_shard = {str(path): rows_of(path) for path in shards}
    seen: list[tuple[str, str]] = []
    for role in ("train", "valid"):
        for part in indices[role]:
            rows = by_shard[part["shard"]]
            for key, row in zip(part["keys"], part["rows"], strict=True):
                assert rows[row][0] == key, "a row is a place among all keys of the shard"
                assert rows[row][1].get("forces") is not None
                seen.append((part["shard"], key))
    assert len(seen) == len(set(seen)) == 2 * 10, "each usable record once; nothing of the xyz file"
    assert {key for _, key in seen} == {str(i) for i in range(12) if i not in (3, 5)}
    capsys.readouterr()
    assert (
        run(
            read_model.main,
            "show",
            "--samples",
            "--input_model",
            tmp_path / "run" / "run_checkpoint.pt",
        )
        == 0
    )
    lines = [
        line for line in capsys.readouterr().out.splitlines() if " key " in line and " row " in line
    ]
    assert len(lines) == 20
    assert any(f"{shards[1]} key 7 row 7" in line for line in lines)


def test_other_filters_do_not_renumber_records(shards: list[Path], tmp_path: Path) -> None:
    """A record keeps key and row when others are left out before it."""
    everything = go(tmp_path, shards, "--valid_fraction", 0.2)
    some = go(tmp_path, shards, "--valid_fraction", 0.2, "--allow_missing_labels")

    def named(indices: Any) -> set[tuple[str, str, int]]:
        parts = [part for role in indices.values() for part in role]
        return {
            (part["shard"], *pair)
            for part in parts
            for pair in zip(part["keys"], part["rows"], strict=True)
        }

    assert len(named(some) - named(everything)) == 2
    assert named(everything) < named(some)


def test_validation_records_of_their_own_lmdb_are_named(shards: list[Path], tmp_path: Path) -> None:
    indices = go(tmp_path, shards[:1], "--lmdb_val", shards[1], "--lmdb_val_samples", 4)
    (valid,) = indices["valid"]
    assert valid["shard"] == str(shards[1])
    assert len(valid["keys"]) == 4
    assert {part["shard"] for part in indices["train"]} == {str(shards[0])}
