"""The configurations to start from, as far as they are small: run as their first lines
say, on a few structures.
"""

import json
from pathlib import Path

import pytest
from ase.io import read, write

from conftest import ROOT
from model_utils import evaluate, finetune, train_mace

CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few frames of the quickstart's data, and a run of the configuration for
    small molecules on them.
    """
    folder = tmp_path_factory.mktemp("configs")
    for name in ("train", "valid", "test"):
        frames = sorted(read(CONFIGS / "quickstart" / f"{name}.xyz", index=":40"), key=len)
        write(folder / f"{name}.xyz", frames[:4], format="extxyz")
    words = [
        str(CONFIGS / "small_molecules.yaml"),
        "--train_file",
        str(folder / "train.xyz"),
        "--max_steps",
        "1",
    ]
    words += ["--valid_file", str(folder / "valid.xyz"), "--test_file", str(folder / "test.xyz")]
    assert (
        train_mace.main(
            [*words, "--no_export_mace_model", "--run_dir", str(folder / "molecules"), "--resume"]
        )
        == 0
    )
    return folder


def model_of(folder: Path) -> str:
    [path] = (folder / "molecules" / "latest").glob("*_model.pt")
    return str(path)


def test_small_molecules(folder: Path) -> None:
    run = folder / "molecules" / "latest"
    final = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"train", "valid", "test"} <= set(final)
    description = json.loads(next(run.glob("*_model.json")).read_text())
    assert description["hidden_irreps"] == "32x0e+32x1o"
    assert description["correlation"] == [2, 2]
    assert (folder / "molecules" / "dataset_info.json").exists()


def test_evaluate(folder: Path) -> None:
    words = ["--config", str(CONFIGS / "evaluate.yaml"), "--input_model", model_of(folder)]
    output = folder / "errors.json"
    assert (
        evaluate.main([*words, "--data", str(folder / "test.xyz"), "--output_json", str(output)])
        == 0
    )
    assert json.loads(output.read_text())["n_configs"] == 4


def test_fine_tune_with_replay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--config",
        str(CONFIGS / "finetune_replay.yaml"),
        "--input_model",
        model_of(folder),
        "--E0s",
        "keep",
    ]
    words += [
        "--train_file",
        str(folder / "valid.xyz"),
        "--replay",
        str(folder / "test.xyz"),
        "--max_steps",
        "1",
    ]
    words += ["--valid_fraction", "0.5"]
    assert (
        finetune.main(
            [*words, "--no_export_mace_model", "--run_dir", str(folder / "tuned"), "--resume"]
        )
        == 0
    )
    assert "replay" in capsys.readouterr().out
