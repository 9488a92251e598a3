"""What earlier states of this project wrote is read and resumed: runs, models, indexes,
packed shards, settings.

Every ``tests/data/state_*`` was written by ``make_state.py`` with the code of that commit. A
resumed run is compared with the unbroken one of that code and machine: counters, schedule and order
exactly, numbers closely, since bits are promised for one version on one machine only.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import read

import read_model
from conftest import ROOT
from dataloader import pack
from dataloader.labels import TO_TRAIN, LabelKeys
from dataloader.lmdb_shards import index_building, kept_edges, shard_index
from dataloader.lmdb_shards.lmdb_source import LmdbSource
from dataloader.neighbors import build_graph
from model_utils import evaluate, finetune, resume, train_mace
from model_utils.files import checkpoint

STATES = sorted((ROOT / "tests" / "data").glob("state_*"))
RUNS = [(state.name, name) for state in STATES for name in ("float32", "float64")]
CLOSE = {"float32": 1e-4, "float64": 1e-8}  # relative, of numbers on another machine


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A state's files in a folder of the test's own."""
    return Path(shutil.copytree(ROOT / "tests" / "data" / request.param, tmp_path / "state"))


states = pytest.mark.parametrize("place", [state.name for state in STATES], indirect=True)
runs = pytest.mark.parametrize(("place", "name"), RUNS, indirect=["place"])


def expected_of(place: Path, name: str) -> Any:
    return json.loads((place / "expected.json").read_text())["runs"][name]


def records_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("perf", "by_source")}
        for line in lines
    ]


def assert_close(found: Any, expected: Any, rel: float) -> None:
    """Numbers closely, all else exactly; entries that a later state adds do not matter."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_close(found[key], value, rel)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert_close(mine, theirs, rel)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-12)
    else:
        assert found == expected


def assert_same_weights(
    found: dict[str, torch.Tensor], expected: dict[str, list[float]], rel: float
) -> None:
    for name, numbers in expected.items():
        ours, theirs = found[name].double().flatten(), torch.tensor(numbers, dtype=torch.float64)
        assert (ours - theirs).norm() <= rel * max(float(theirs.norm()), 1.0), name


def test_there_are_some() -> None:
    assert STATES
    assert sum(
        path.stat().st_size for state in STATES for path in state.rglob("*")
    ) < 1_500_000 * len(STATES)


@runs
def test_an_interrupted_run_goes_on_to_what_the_unbroken_one_came_to(
    place: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, expected, rel = place / name, expected_of(place, name), CLOSE[name]
    written = (folder / "metrics.jsonl").read_bytes()
    words = {
        "float32": ["--xyz_train", str(place / "train.xyz")],
        "float64": [
            "--lmdb_train",
            str(place / "data.lmdb"),
            "--xyz_val",
            str(place / "valid.xyz"),
        ],
    }
    assert resume.main(["--input_model", str(folder), *words[name]]) == 0, capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes().startswith(written)
    file, best = (
        checkpoint.read(folder / "run_checkpoint.pt"),
        checkpoint.read(folder / "run_model.pt"),
    )
    state = file.content["train_state"]
    counters = {
        k: v for k, v in expected["state"].items() if k not in ("scheduler", "stage_two_epoch")
    }
    assert_close(state, counters, 0.0)
    # by which stages were known when there were two at most
    stage_two = expected["state"]["stage_two_epoch"]
    assert state["stage_starts"] == ([0] if stage_two is None else [0, stage_two])
    schedule = expected["state"]["scheduler"]
    assert_close(state["scheduler"], {k: v for k, v in schedule.items() if k != "best"}, 1e-12)
    assert state["ema_state_dict"]["updates"] == expected["updates"]
    assert_close(records_of(folder), expected["records"], rel)
    assert_same_weights(file.tensors, expected["weights"], rel)
    assert_same_weights(state["ema_state_dict"]["shadow"], expected["average"], rel)
    assert_same_weights(best.tensors, expected["best"], rel)


@runs
def test_a_model_is_evaluated_verified_and_tuned(place: Path, name: str, tmp_path: Path) -> None:
    model, out = place / name / "run_model.pt", tmp_path / "errors.json"
    data = str(place / "valid.xyz")
    assert (
        evaluate.main(["--input_model", str(model), "--xyz_path", data, "--output_json", str(out)])
        == 0
    )
    errors = {
        k: v for k, v in expected_of(place, name)["errors"].items() if isinstance(v, int | float)
    }
    assert len(errors) > 5
    assert_close(json.loads(out.read_text()), errors, CLOSE[name])
    for path in (model, place / name / "run_checkpoint.pt"):
        sidecar = ["--input_json", str(place / name / "run_model.json")]
        assert read_model.main(["verify", "--input_model", str(path), *sidecar]) == 0
    if name == "float32":
        return
    words = [
        "--xyz_train",
        str(place / "train.xyz"),
        "--epochs",
        "1",
        "--output_checkpoint",
        str(tmp_path / "tuned"),
    ]
    assert finetune.main(["--input_model", str(model), *words, "--dry_run"]) == 0


@states
def test_settings_are_read(place: Path, tmp_path: Path) -> None:
    words = [
        "--xyz_train",
        str(place / "train.xyz"),
        "--output_checkpoint",
        str(tmp_path / "new"),
        "--dry_run",
    ]
    words += ["--input_json", str(place / "model.json")]
    assert (
        train_mace.main(["--config", str(place / "float32" / "config.resolved.yaml"), *words]) == 0
    )


def reads_again(*_: Any, **__: Any) -> None:
    raise AssertionError("the stored index is not used")


@states
def test_an_index_is_taken_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or, where its form has changed since, made anew with the same content."""
    shards = [place / "data.lmdb", *sorted((place / "packed").rglob("*.lmdb"))]
    assert len(shards) == 4
    for shard in shards:
        [kept] = [path for path in shard.parent.glob(f"{shard.name}.*.index")]
        if kept == shard_index.places(shard, shard_index.IndexRecipe(LabelKeys()))[0]:
            monkeypatch.setattr(index_building, "index_rows", reads_again)
            monkeypatch.setattr(kept_edges, "_count_edges", reads_again)
        found = LmdbSource(shard, LabelKeys(), needs=TO_TRAIN, max_dropped=0.0)
        assert found.n_atoms.tolist() == [found.structure(i).n_atoms for i in range(len(found))]
        if shard.name == "data.lmdb":
            assert len(found) == 16
            assert found.edges(3.5).tolist() == [
                build_graph(found.structure(i), 3.5).n_edges for i in range(16)
            ]
        monkeypatch.undo()


@states
def test_packed_shards_hold_what_was_packed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = {name: read(place / name, ":") for name in ("train.xyz", "valid.xyz")}
    originals = {
        f"{name}#{i}": atoms for name, part in frames.items() for i, atoms in enumerate(part)
    }
    for part in ("train", "valid", "train/stage_6.json"):
        path = place / "packed" / part
        source = LmdbSource(path, LabelKeys(), needs=TO_TRAIN, max_dropped=0.0, keep=("origin",))
        for i in range(len(source)):
            structure = source.structure(i)
            atoms = originals[structure.extra["origin"]]
            np.testing.assert_array_equal(structure.positions, atoms.positions)
            assert structure.energy == atoms.info["REF_energy"]
            np.testing.assert_array_equal(structure.forces, atoms.arrays["REF_forces"])
            assert structure.edges is not None
    monkeypatch.chdir(place)
    words = [
        "--input",
        "train.xyz",
        "valid.xyz",
        "--output_dir",
        "packed",
        "--r_max",
        "3.5",
        "--stages",
        "6",
    ]
    assert pack.main([*words, "--split", "train=0.75", "valid=0.25"]) == 0
    assert "packed is packed already" in capsys.readouterr().out
