"""Training, validation and test data by lists of identifiers, and the lists that pack.py writes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

from conftest import waters
from dataloader import pack
from dataloader.dataset import Dataset
from dataloader.needs import ModelFacts
from model_utils.errors import InputError
from model_utils.run.data import open_data
from model_utils.run.data.open_data import TrainingData
from model_utils.settings import reading
from model_utils.settings.options import TrainOptions


def named(n: int, seed: int = 0, first: int = 0) -> list[Atoms]:
    """Waters with an identifier each and a system for every three."""
    frames = waters(n, seed)
    for number, atoms in enumerate(frames):
        atoms.info["sid"] = f"s{first + number}"
        atoms.info["system"] = f"t{(first + number) // 3}"
    return frames


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write(tmp_path / "pool.xyz", named(12), format="extxyz")
    return tmp_path / "pool.xyz"


def ids(path: Path, *numbers: int) -> Path:
    path.write_text("".join(f"s{number}\n" for number in numbers))
    return path


FACTS = ModelFacts(
    atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
)


def opened(*words: object) -> TrainingData:
    """The data of a training with these flags."""
    argv = ["--input_json", "model.json", "--output_checkpoint", "run", *map(str, words)]
    options = reading.parse(TrainOptions, argv)
    assert options is not None
    return open_data.training_data(options, FACTS, torch.float64, seed=0)


def names(dataset: Dataset | None) -> list[str]:
    """Identifiers of the structures of a data set."""
    assert dataset is not None
    return [str(dataset.structure(i).extra["sid"]) for i in range(len(dataset))]


def sids(*numbers: int) -> list[str]:
    return [f"s{number}" for number in numbers]


@pytest.fixture(autouse=True)
def _all_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def test_lists_divide_one_pool(
    pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists = [
        "--val_ids",
        ids(tmp_path / "v", 1, 5),
        "--test_ids",
        ids(tmp_path / "t", 3, 0, 2),
        "--id_key",
        "sid",
    ]
    data = opened("--xyz_train", pool, *lists)
    assert (names(data.valid), names(data.test)) == (sids(1, 5), sids(0, 2, 3))
    assert names(data.train) == sids(4, 6, 7, 8, 9, 10, 11)
    assert not data.was_split
    assert "val: 2 structures are named by --val_ids" in caplog.text
    data = opened("--xyz_train", pool, *lists, "--train_ids", ids(tmp_path / "tr", 4, 6))
    assert (names(data.train), names(data.valid), names(data.test)) == (
        sids(4, 6),
        sids(1, 5),
        sids(0, 2, 3),
    )
    data = opened(
        "--xyz_train", pool, "--train_ids", ids(tmp_path / "tr", *range(4, 12)), "--id_key", "sid"
    )
    assert data.was_split, "a share of what is named"
    assert sorted([*names(data.train), *names(data.valid)]) == sorted(sids(*range(4, 12)))


def test_lists_choose_among_files_of_their_own(pool: Path, tmp_path: Path) -> None:
    write(tmp_path / "valid.xyz", named(4, seed=5, first=100), format="extxyz")
    lists = [
        "--xyz_val",
        tmp_path / "valid.xyz",
        "--val_ids",
        ids(tmp_path / "v", 101, 103),
        "--id_key",
        "sid",
    ]
    data = opened("--xyz_train", pool, *lists)
    assert (len(data.train), names(data.valid), data.test) == (12, sids(101, 103), None)


@pytest.mark.parametrize(
    ("val", "test", "more", "said"),
    [
        ((1, 5), (5, 6), ["--id_key", "sid"], "both name s5; take each out of one of the files"),
        (
            (1, 77),
            (2,),
            ["--id_key", "sid"],
            "1 of its 2 identifiers are no sid of any record that is used (s77)",
        ),
        (
            (1,),
            (2,),
            ["--id_key", "fid"],
            "fid is missing or neither one number nor a text; name another key",
        ),
        (
            (1,),
            (2,),
            [],
            "lists of identifiers are given but not what they speak of; name it with --id_key",
        ),
        ((), (2,), ["--id_key", "sid"], "is empty; expected one identifier on each line"),
        (
            (1,),
            tuple(k for k in range(12) if k != 1),
            ["--id_key", "sid"],
            "no structure is left to train on",
        ),
    ],
)
def test_lists_that_cannot_be_used(
    val: Any, test: Any, more: Any, said: str, pool: Path, tmp_path: Path
) -> None:
    lists = ["--val_ids", ids(tmp_path / "v", *val), "--test_ids", ids(tmp_path / "t", *test)]
    with pytest.raises(InputError, match=re.escape(said)):
        opened("--xyz_train", pool, *lists, *more)


def test_filters_that_leave_nothing_are_named(tmp_path: Path) -> None:
    write(tmp_path / "pool.xyz", named(6), format="extxyz")
    for flag, value, why in (
        ("--max_atoms", 2, "6 × more than 2 atoms; look at --max_atoms, the files"),
        ("--elements", "H", "6 × an element outside --elements; look at --elements, the files"),
        ("--max_force", 1e-9, "6 × a force above 1e-09 eV/Å; look at --max_force, the files"),
    ):
        said = f"no structure is left to train on: left out are {why}"
        with pytest.raises(InputError, match=re.escape(said)):
            opened("--xyz_train", tmp_path / "pool.xyz", flag, value)


def test_a_list_may_name_what_is_left_out_and_a_wrong_name_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two records are not used, and the list names two that are not there:
    one of them is a slip.
    """
    frames = named(6)
    frames[2].arrays["REF_forces"][0, 0] = 1e3
    frames[3].arrays["REF_forces"][0, 0] = 1e3
    write(tmp_path / "pool.xyz", frames, format="extxyz")
    words = ["--xyz_train", tmp_path / "pool.xyz", "--id_key", "sid", "--max_force", 100]
    data = opened(*words, "--val_ids", ids(tmp_path / "v", 1, 4))
    assert len(data.train) == 2
    assert "are no sid" not in caplog.text
    data = opened(*words, "--val_ids", ids(tmp_path / "v", 1, 2, 77))
    assert names(data.valid) == sids(1)
    said = (
        "2 of its 3 identifiers are no sid of any record that is used (s2, s77); 2 records of the "
        "files are not used"
    )
    assert said in caplog.text
    with pytest.raises(
        InputError, match=re.escape("(s2, s10, s11, s12, s13 and 1 more); are they of these data")
    ):
        opened(*words, "--val_ids", ids(tmp_path / "v", 1, 2, 10, 11, 12, 13, 14))


def test_held_atoms_count_in_a_part_as_that_part_says(tmp_path: Path) -> None:
    """The part of a pool that is validated has the components of validation,
    whatever counts in training.
    """
    frames = named(4)
    for atoms in frames:
        atoms.arrays["move_mask"] = np.arange(len(atoms)) > 0
    write(tmp_path / "pool.xyz", frames, format="extxyz")
    words = [
        "--xyz_train",
        tmp_path / "pool.xyz",
        "--val_ids",
        ids(tmp_path / "v", 0),
        "--id_key",
        "sid",
    ]
    data = opened(*words, "--no_eval_on_free_atoms")
    assert data.valid.batch([0]).rows["forces"] == 3
    assert data.train.batch([1]).rows["forces"] == 2


def test_what_two_parts_share_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A structure of the training data stands under another identifier in the test file,
    and a system lies in two.
    """
    frames = named(12)
    twin = frames[4].copy()
    twin.info["sid"] = "twin"
    twin.info["system"] = "t9"
    write(tmp_path / "pool.xyz", frames, format="extxyz")
    write(tmp_path / "test.xyz", [twin, *named(1, seed=9, first=200)], format="extxyz")
    words = [
        "--xyz_train",
        tmp_path / "pool.xyz",
        "--xyz_test",
        tmp_path / "test.xyz",
        "--id_key",
        "sid",
    ]
    words += ["--val_ids", ids(tmp_path / "v", 1), "--group_key", "system"]
    opened(*words)
    assert "1 structures of test have the same structure as 1 of train: test.xyz#0" in caplog.text
    assert "1 structures of val have the same system as 2 of train: pool.xyz#1" in caplog.text
    assert "same sid" not in caplog.text
    write(tmp_path / "test.xyz", frames[4], format="extxyz")
    opened(*words)
    assert "1 structures of test have the same sid as 1 of train" in caplog.text


def test_an_identifier_that_stands_twice_in_a_list_is_said(
    pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened("--xyz_train", pool, "--val_ids", ids(tmp_path / "v", 1, 1, 2), "--id_key", "sid")
    assert "1 identifiers stand there more than once" in caplog.text


def test_the_lists_of_pack_give_its_parts(pool: Path, tmp_path: Path) -> None:
    """Over the pool, and over all packed parts together, they choose the
    structures that the parts hold.
    """
    packed = tmp_path / "packed"
    words = ["--input", pool, "--output_dir", packed, "--id_key", "sid", "--rows_per_shard", 2]
    words += ["--split", "train=0.5", "valid=0.25", "test=0.25"]
    assert pack.main([str(word) for word in words]) == 0
    lists = {
        name: (packed / f"{name}_ids.txt").read_text().split()
        for name in ("train", "valid", "test")
    }
    assert sorted(name for listed in lists.values() for name in listed) == sorted(sids(*range(12)))
    flags = [f"--{role}_ids" for role in ("train", "val", "test")]
    chosen = [
        word
        for flag, name in zip(flags, lists, strict=True)
        for word in (flag, packed / f"{name}_ids.txt")
    ]
    for files in (["--xyz_train", pool], ["--lmdb_train", *(packed / name for name in lists)]):
        data = opened(*files, "--id_key", "sid", *chosen)
        for part, name in ((data.train, "train"), (data.valid, "valid"), (data.test, "test")):
            assert sorted(names(part)) == sorted(lists[name])


def test_shares_write_the_lists_of_one_process(pool: Path, tmp_path: Path) -> None:
    words = [
        "--input",
        pool,
        "--id_key",
        "sid",
        "--rows_per_shard",
        3,
        "--split",
        "train=0.5",
        "test=0.5",
    ]

    def packed(name: str, *more: object) -> int:
        return pack.main([str(word) for word in [*words, "--output_dir", tmp_path / name, *more]])

    assert packed("one") == 0
    for share in ("0/2", "1/2", "0/2", "1/2"):
        assert packed("shares", "--share", share) == 0
    for name in ("train_ids.txt", "test_ids.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "shares" / name).read_bytes()
        assert (tmp_path / "one" / name).read_text()
