"""The commands on LMDBs as people have them: train, evaluate, metadata; samples that
depend on the seed alone.
"""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch
from ase import Atoms
from ase.io import read
from lmdb_material import dict_row, labelled, put

import metadata
from conftest import HANGING, ROOT, TINY, living, wait_until, waters
from model_utils import evaluate, resume, train_mace


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process; what it printed."""

    def go(command: Any, *arguments: object, code: int = 0) -> str:
        found = command.main([str(argument) for argument in arguments])
        text = "".join(capsys.readouterr())
        assert found == code, text
        return text

    return go


def write_ase(path: Path, frames: list[Atoms], **columns: list[Any]) -> Path:
    backend = pytest.importorskip(
        "ase_db_backends.aselmdb", reason="ase-db-backends is not installed (extra dev)"
    )
    database = backend.LMDBDatabase(str(path))
    for i, atoms in enumerate(frames):
        database.write(atoms, data={name: values[i] for name, values in columns.items()})
    database.close()
    return path


def test_train_evaluate_and_metadata_run_on_an_aselmdb(
    shared_data: Path, tmp_path: Path, said: Callable[..., str]
) -> None:
    frames = [
        atoms for atoms in read(shared_data / "mptrj/mptrj-random-1k.xyz", ":") if len(atoms) < 12
    ][:40]
    path, model, run = (
        write_ase(tmp_path / "mptrj.aselmdb", frames),
        tmp_path / "model.json",
        tmp_path / "run",
    )
    shape = (
        "--r_max",
        4,
        "--hidden_irreps",
        "4x0e",
        "--max_ell",
        1,
        "--correlation",
        2,
        "--num_interactions",
        1,
    )
    said(metadata, "init", "--lmdb_train", path, *shape, "--output_json", model)
    out = said(
        *(
            train_mace,
            "--input_json",
            model,
            "--lmdb_train",
            path,
            "--lmdb_train_samples",
            30,
            "--epochs",
            1,
        ),
        *(
            "--output_checkpoint",
            run,
            "--no_export_mace_model",
            "--stress_weight",
            1,
            "--num_workers",
            1,
        ),
    )
    assert "layout ASE rows (zlib, JSON): 40 records" in out
    assert "train: 30 of these structures are drawn (seed 123)" in out
    indices = torch.load(run / "run_checkpoint.pt", weights_only=True)["train_state"][
        "lmdb_indices"
    ]
    keys = {
        role: [key for part in parts for key in part["keys"]] for role, parts in indices.items()
    }
    assert (len(keys["train"]), len(keys["valid"])) == (27, 3)
    assert len({*keys["train"], *keys["valid"]}) == 30
    said(
        evaluate,
        "--input_model",
        run / "run_model.pt",
        "--lmdb_path",
        path,
        "--output_json",
        tmp_path / "errors.json",
    )
    assert json.loads((tmp_path / "errors.json").read_text())["n_configs"] == 40
    said(metadata, "check", "--lmdb_train", path, "--input_json", model)


def test_the_same_seed_draws_the_same_whatever_the_workers(
    tmp_path: Path, said: Callable[..., str]
) -> None:
    frames = waters(30, prefix="")
    from ase.calculators.singlepoint import SinglePointCalculator

    for atoms in frames:
        atoms.calc = SinglePointCalculator(
            atoms, energy=atoms.info.pop("energy"), forces=atoms.arrays.pop("forces")
        )
    path, model = write_ase(tmp_path / "w.aselmdb", frames), tmp_path / "tiny.json"
    model.write_text(json.dumps(TINY))
    losses = {}
    for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0)):
        flags = (
            "--input_json",
            model,
            "--lmdb_train",
            path,
            "--lmdb_val",
            path,
            "--epochs",
            1,
            "--seed",
            seed,
        )
        samples = ("--lmdb_train_samples", 12, "--lmdb_val_samples", 5, "--num_workers", workers)
        said(
            train_mace,
            *flags,
            *samples,
            "--output_checkpoint",
            tmp_path / name,
            "--no_export_mace_model",
        )
        state = torch.load(tmp_path / name / f"{name}_checkpoint.pt", weights_only=True)[
            "train_state"
        ]
        text = (tmp_path / name / "metrics.jsonl").read_text()
        losses[name] = (state["lmdb_indices"], re.findall(r'"loss": ([^,]+)', text))
    assert losses["a"] == losses["b"]
    assert losses["a"][0] != losses["c"][0]


SLOW_INDEX = """  # two parts are made, on the others it works until it is stopped
import sys, time
from dataloader.lmdb_shards import index_building
index_building.KEPT_FROM, index_building.MIN_PART = 10, 7
index_part = index_building._index_part
def without_end(part, recipe):
    if part.begin >= 14:
        time.sleep(3600)
    index_part(part, recipe)
index_building._index_part = without_end
from model_utils import train_mace
from model_utils.run.interruption import leave
leave(train_mace.main(sys.argv[1:]))
"""


def test_a_run_that_is_stopped_while_it_indexes_leaves_no_process_and_goes_on(
    tmp_path: Path, tiny_json: Path, said: Callable[..., str]
) -> None:
    frames, path = waters(60), tmp_path / "w.lmdb"
    new = lmdb.open(str(path), subdir=False, map_size=2**24, lock=False)
    with new as environment, environment.begin(write=True) as put:
        for i, atoms in enumerate(frames):
            row = {
                "pos": atoms.positions,
                "atomic_numbers": atoms.numbers,
                "energy": atoms.info["REF_energy"],
            }
            put.put(str(i).encode(), pickle.dumps(row | {"forces": atoms.arrays["REF_forces"]}))
    flags = [
        "--input_json",
        str(tiny_json),
        "--lmdb_train",
        str(path),
        "--output_checkpoint",
        str(tmp_path / "run"),
    ]
    command = [sys.executable, "-c", SLOW_INDEX, *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(
        lambda: len(list(tmp_path.glob("w.lmdb.*.building/0*[0-9]"))) == 2, "two parts of the index"
    )
    process.terminate()
    _, errors = process.communicate(timeout=HANGING)
    assert process.returncode == 75, errors
    assert "start again with --resume auto" in errors
    assert not living(process.pid)
    assert len(list(tmp_path.glob("w.lmdb.*.building/0*[0-9]"))) == 2
    assert not list(tmp_path.glob("w.lmdb.*.index"))
    said(train_mace, *flags, "--epochs", 1, "--resume", "auto", "--no_export_mace_model")


def test_what_samples_cannot_be_drawn(
    tmp_path: Path, said: Callable[..., str], tiny_json: Path
) -> None:
    from ase.io import write

    write(tmp_path / "w.xyz", waters(8), format="extxyz")
    flags = (
        "--input_json",
        tiny_json,
        "--xyz_train",
        tmp_path / "w.xyz",
        "--output_checkpoint",
        tmp_path / "run",
    )
    assert "--lmdb_train_samples 3 is given but no LMDB to draw from" in said(
        train_mace, *flags, "--lmdb_train_samples", 3, code=2
    )
    assert "--lmdb_val_samples is given but no validation LMDB" in said(
        train_mace, *flags, "--lmdb_val_samples", 3, code=2
    )


def test_omol_rows_are_refused_by_a_model_without_a_charge(
    tmp_path: Path, said: Callable[..., str]
) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    frames = waters(12, prefix="")
    for atoms in frames:
        atoms.calc = SinglePointCalculator(
            atoms, energy=atoms.info.pop("energy"), forces=atoms.arrays.pop("forces")
        )
    charges = [0] * 9 + [1, -1, 0]
    path = write_ase(tmp_path / "omol.aselmdb", frames, charge=charges, spin=[1] * 12)
    plain, charged = tmp_path / "tiny.json", tmp_path / "charged.json"
    plain.write_text(json.dumps(TINY))
    charge = {"type": "categorical", "per": "graph", "emb_dim": 4, "num_classes": 21, "offset": 10}
    charged.write_text(json.dumps(TINY | {"embedding_specs": {"total_charge": charge}}))
    flags = ("--lmdb_train", path, "--epochs", 1, "--no_export_mace_model", "--output_checkpoint")
    text = said(train_mace, "--input_json", plain, *flags, tmp_path / "no", code=2)
    assert (
        "2 of 12 structures have a charge (first: omol.aselmdb key 10), but model.json "
        "has no total_charge"
    ) in text
    text = said(train_mace, "--input_json", plain, *flags, tmp_path / "dropped", "--drop_charged")
    assert "left out 2: 2 × a charge for which the model has no input (keys 10, 11)" in text
    said(train_mace, "--input_json", charged, *flags, tmp_path / "used")
    assert (tmp_path / "used" / "used_model.pt").is_file()


def test_a_run_does_not_go_on_with_a_shard_that_has_another_record(
    tmp_path: Path, said: Callable[..., str]
) -> None:
    """The record is none of those that a small shard is told from others by."""
    (tmp_path / "m.json").write_text(json.dumps(TINY))
    path = tmp_path / "some.lmdb"

    def put_all(shift: float) -> None:
        path.unlink(missing_ok=True)
        rows = {}
        for number, atoms in enumerate(labelled(40)):
            atoms.calc.results["energy"] += shift * (number == 20)
            rows[str(number).encode()] = dict_row(atoms, sid=number)
        put(path, rows)

    put_all(0.0)
    words = ["--input_json", tmp_path / "m.json", "--lmdb_train", path, "--valid_fraction", 0.2]
    words += ["--output_checkpoint", tmp_path / "run", "--no_export_mace_model"]
    said(train_mace, *words, "--max_steps", 2)
    put_all(0.0)
    said(resume, "--input_model", tmp_path / "run", "--max_steps", 3)
    put_all(100.0)
    text = said(resume, "--input_model", tmp_path / "run", "--max_steps", 4, code=3)
    assert "whose labels, positions, weights or order have changed" in text
