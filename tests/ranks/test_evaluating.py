"""evaluate.py and the labels of a replay in several processes: what is printed and
written is that of one.
"""

import shutil
from pathlib import Path

import pytest

from ranks.launching import Launcher, differences


@pytest.fixture(scope="module")
def model(
    launcher: Launcher, words: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    place = ["--output_checkpoint", folder / "run", "--max_steps", 2]
    launcher.run(1, "train_mace", *words, *place, folder=folder)
    return folder / "run" / "run_model.pt"


def test_files_are_those_of_one_process(
    launcher: Launcher, model: Path, material: Path, tmp_path: Path
) -> None:
    written = {}
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        shutil.copy(material / "waters-train.xyz", folder / "train.xyz")
        names = [
            ("--output_json", "e.json"),
            ("--output_table", "e.csv"),
            ("--output_xyz", "e.xyz"),
        ]
        files = [word for flag, name in names for word in (flag, name)]
        data = ["--input_model", model, "--xyz_path", "train.xyz", "--batch_size", 3]
        processes = launcher.run(size, "evaluate", *data, *files, folder=folder)
        said = [
            line
            for line in processes.said().splitlines()
            if "configs" in line or "train.xyz" in line
        ]
        assert said
        written[size] = [(folder / name).read_bytes() for _, name in names]
    assert written[2] == written[1]
    assert written[3] == written[1]


def test_a_file_that_is_there_is_refused_once(
    launcher: Launcher, model: Path, material: Path, tmp_path: Path
) -> None:
    (tmp_path / "e.json").write_text("mine")
    data = [
        "--input_model",
        model,
        "--xyz_path",
        material / "waters-train.xyz",
        "--output_json",
        "e.json",
    ]
    processes = launcher.run(2, "evaluate", *data, folder=tmp_path, code=2)
    assert ["e.json" in line for line in processes.errors()] == [True]


@pytest.mark.parametrize("labels", ["source", "file"])
def test_a_fine_tuning_with_replay(
    labels: str, launcher: Launcher, model: Path, material: Path, tmp_path: Path
) -> None:
    for size in (1, 2):
        data = [
            "--xyz_train",
            material / "waters-valid.xyz",
            "--xyz_val",
            material / "waters-valid.xyz",
            "--batch_size",
            2,
        ]
        replay = [
            "--replay",
            material / "waters-train.xyz",
            "--replay_labels",
            labels,
            "--replay_head",
            "pt_head",
        ]
        place = ["--output_checkpoint", tmp_path / str(size), "--step_parts", 4, "--epochs", 2]
        launcher.run(
            size, "finetune", "--input_model", model, *data, *replay, *place, folder=tmp_path
        )
    assert differences(tmp_path / "1", tmp_path / "2") == []
    if labels == "source":
        one, two = ((tmp_path / size / f"{size}_replay.xyz").read_bytes() for size in ("1", "2"))
        assert one == two
