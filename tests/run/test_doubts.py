"""What a run says of its data and its loss before the first step, where its user may not know."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import write
from lmdb_material import dict_row, labelled, put

from conftest import waters
from model_utils import evaluate, resume, train_mace


@pytest.fixture
def said(tmp_path: Path, tiny_json: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Train without a step; what was said."""

    def go(*words: object) -> str:
        given = ["--input_json", tiny_json, "--output_checkpoint", tmp_path / "run", "--dry_run"]
        assert train_mace.main(list(map(str, [*given, *words]))) == 0
        return capsys.readouterr().out

    return go


def file_of(folder: Path, name: str, frames: list[Atoms]) -> Path:
    columns = ["symbols", "positions", "REF_forces"]
    if any(atoms.constraints for atoms in frames):
        for atoms in frames:
            held = [] if not atoms.constraints else list(atoms.constraints[0].index)
            atoms.arrays["fixed"] = np.isin(np.arange(len(atoms)), held)
            atoms.set_constraint()
        columns.append("fixed")
    write(folder / name, frames, format="extxyz", columns=columns)
    return folder / name


def test_copies_between_training_and_other_data(tmp_path: Path, said: Callable[..., str]) -> None:
    frames = waters(6)
    train = file_of(tmp_path, "train.xyz", frames)
    other = file_of(tmp_path, "other.xyz", [*waters(2, seed=9), frames[4]])
    sound = file_of(tmp_path, "sound.xyz", waters(3, seed=5))
    text = said("--xyz_train", train, "--xyz_val", other, "--xyz_test", train)
    assert "1 of the 3 validation structures are copies of training structures" in text
    assert "(the first: other.xyz#2)" in text
    assert "6 of the 6 test structures are copies" in text
    assert "are copies of" not in said("--xyz_train", train, "--xyz_val", sound)


def test_records_on_the_disk_that_are_trained_on_and_judged_by(
    tmp_path: Path, said: Callable[..., str]
) -> None:
    rows = {str(k).encode(): dict_row(atoms, sid=k) for k, atoms in enumerate(labelled(6))}
    path = put(tmp_path / "some.lmdb", rows)
    (tmp_path / "link.lmdb").symlink_to(path)
    text = said("--lmdb_train", path, "--lmdb_val", tmp_path / "link.lmdb")
    assert "6 of the 6 validation structures of" in text
    assert "are training structures too" in text
    assert "are training structures too" not in said("--lmdb_train", path)


def test_a_file_that_is_named_twice(tmp_path: Path, said: Callable[..., str]) -> None:
    train = file_of(tmp_path, "train.xyz", waters(6))
    other = file_of(tmp_path, "other.xyz", waters(2, seed=9))
    text = said("--xyz_train", train, train, "--xyz_val", other)
    assert f"{train} is named 2 times among the data to train on" in text


@pytest.mark.parametrize("held_first", [True, False])
def test_held_atoms_are_said_wherever_they_are(
    held_first: bool, tmp_path: Path, said: Callable[..., str]
) -> None:
    free = file_of(tmp_path, "free.xyz", waters(3))
    frames = waters(3, seed=1)
    frames[-1].set_constraint(FixAtoms([0]))
    held = file_of(tmp_path, "held.xyz", frames)
    paths = [held, free] if held_first else [free, held]
    text = said("--xyz_train", *paths, "--valid_fraction", 0.34)
    assert "records say which atoms were fixed" in text


def test_a_stress_that_nobody_trains_on_is_said(tmp_path: Path, said: Callable[..., str]) -> None:
    frames = waters(6)
    for atoms in frames:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
        atoms.info["REF_stress"] = np.full(9, 1e-3)
    path = tmp_path / "stressed.xyz"
    write(path, frames, format="extxyz")
    words = ("--xyz_train", path, "--valid_fraction", 0.34)
    sentence = "the data have labels of the stress, whose term has the weight 0"
    assert sentence in said(*words)
    assert sentence not in said(*words, "--stress_weight", 1)
    assert sentence not in said(*words, "--stress_weight", 0)


def test_a_run_whose_data_moved_says_how_it_goes_on(
    tmp_path: Path, tiny_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = file_of(tmp_path, "train.xyz", waters(6))
    words = ["--input_json", tiny_json, "--xyz_train", train, "--valid_fraction", 0.34]
    words += ["--epochs", 1, "--no_export_mace_model", "--output_checkpoint", tmp_path / "run"]
    assert train_mace.main(list(map(str, words))) == 0
    train.rename(tmp_path / "moved.xyz")
    again = ["--input_model", str(tmp_path / "run"), "--epochs", "2"]
    capsys.readouterr()
    assert resume.main(again) == 2
    error = capsys.readouterr().err
    assert f"{train} does not exist" in error
    assert "where it was moved, name it with --train_file" in error
    assert resume.main([*again, "--train_file", str(tmp_path / "moved.xyz")]) == 0
    # and a run that has nothing left to do, and a folder in place of a model
    capsys.readouterr()
    again = [*words[:3], tmp_path / "moved.xyz", *words[4:], "--resume", "auto"]
    assert train_mace.main(list(map(str, again))) == 0
    assert "nothing is left of the 1 epochs asked for" in capsys.readouterr().out
    data = ["--data", str(tmp_path / "moved.xyz")]
    assert evaluate.main(["--input_model", str(tmp_path / "run"), *data]) == 2
    error = capsys.readouterr().err
    assert f"*_model.pt, such as {tmp_path / 'run' / 'run_model.pt'}" in error


def test_a_start_that_failed_leaves_no_folder(tmp_path: Path, tiny_json: Path) -> None:
    frames = waters(2)
    for atoms in frames:
        del atoms.arrays["REF_forces"]
    write(tmp_path / "bare.xyz", frames, format="extxyz")
    words = ["--input_json", tiny_json, "--xyz_train", tmp_path / "bare.xyz"]
    for place in (tmp_path / "new" / "run", tmp_path / "kept"):
        (tmp_path / "kept").mkdir(exist_ok=True)
        asked = [*words, "--output_checkpoint", place, "--valid_fraction", 0.5]
        assert train_mace.main(list(map(str, asked))) == 2
    assert list((tmp_path / "new").iterdir()) == []
    assert (tmp_path / "kept").exists(), "it was there"


def test_a_run_of_a_list_of_sources_goes_on_with_files_that_moved(
    tmp_path: Path, tiny_json: Path
) -> None:
    train = file_of(tmp_path, "train.xyz", waters(6))
    valid = file_of(tmp_path, "valid.xyz", waters(2, seed=3))
    (tmp_path / "run.yaml").write_text(
        f"input_json: {tiny_json}\noutput_checkpoint: {tmp_path / 'run'}\nepochs: 1\n"
        f"export_mace_model: false\nsources:\n- {{path: {train}}}\n- {{path: {valid}, role: val}}\n"
    )
    assert train_mace.main(["--config", str(tmp_path / "run.yaml")]) == 0
    train.rename(tmp_path / "moved.xyz")
    again = ["--input_model", str(tmp_path / "run"), "--epochs", "2"]
    assert resume.main(again) == 2
    assert resume.main([*again, "--train_file", str(tmp_path / "moved.xyz")]) == 0
