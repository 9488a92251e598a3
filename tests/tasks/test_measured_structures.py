"""metadata.py measures, and checks, the structures that a training with the same flags takes:
which they are and how much each weighs, whatever flag or list says it, in every format.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.db import connect
from ase.io import write

import metadata
from conftest import every, waters
from dataloader import pack
from dataloader.needs import ModelFacts
from dataloader.selection import Selection
from dataloader.structure import Structure
from model_utils.ranks.group import ALONE
from model_utils.run.data import open_data
from model_utils.settings import reading
from model_utils.settings.options import CheckOptions, MetadataInitOptions, TrainOptions
from model_utils.tasks import checking, data_sums

N = 24  # structures; every fourth is one that a run wants to leave out
FACTS = ModelFacts(
    atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
)
SEED = 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same structures as extended XYZ, ASE's database and packed, validation data of their
    own, and lists of identifiers.
    """
    folder = tmp_path_factory.mktemp("measured")
    for name, seed in (("pool", 0), ("valid", 5)):
        frames = waters(N, seed)
        for number, atoms in enumerate(frames):
            atoms.info["sid"] = f"{name}{number}"
            if number % 4 == 0:
                atoms.info["config_type"] = "bad"
                atoms.arrays["REF_forces"] *= 50
        write(folder / f"{name}.xyz", frames, format="extxyz")
        with connect(folder / f"{name}.aselmdb", type="aselmdb") as database:
            for atoms in frames:
                entries = {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
                own = {key: atoms.info[key] for key in ("sid", "config_type") if key in atoms.info}
                bare = atoms.copy()
                bare.info = {}
                database.write(bare, data={**entries, **own})
    words = ["--input", str(folder / "pool.xyz"), "--output_dir", str(folder / "packed")]
    assert pack.main([*words, "--id_key", "sid"]) == 0
    good = [f"pool{n}" for n in range(N) if n % 4]
    bad = [f"pool{n}" for n in range(N) if n % 4 == 0]
    (folder / "good.ids").write_text("\n".join(good) + "\n")
    (folder / "bad.ids").write_text("\n".join(bad) + "\n")
    (folder / "some.ids").write_text("valid3\nvalid4\n")
    return folder


POOLS = {
    "xyz": "--xyz_train pool.xyz",
    "file": "--train_file pool.xyz",
    "aselmdb": "--lmdb_train pool.aselmdb",
    "packed": "--lmdb_train packed",
}
CHOICES = {
    "all": "--valid_file valid.xyz",
    "list to train on": "--train_ids good.ids --valid_file valid.xyz --id_key sid",
    "two lists": "--train_ids good.ids --val_ids bad.ids --id_key sid",
    "list to validate on": "--val_ids bad.ids --id_key sid",
    "list to test on": "--test_ids bad.ids --id_key sid --valid_file valid.xyz",
    "list of other data": "--val_ids some.ids --valid_file valid.xyz --id_key sid",
    "list and share": "--train_ids good.ids --id_key sid --valid_fraction 0.25",
    "share": "--valid_fraction 0.25",
    "share beside validation data": "--valid_fraction 0.25 --valid_file valid.xyz",
    "weights by type": "--config_type_weights bad=0 --valid_file valid.xyz",
    "weights by type and share": "--config_type_weights bad=0.5 --valid_fraction 0.25",
    "largest force": "--max_force 3 --valid_file valid.xyz",
    "fewest atoms": "--max_atoms 3 --valid_fraction 0.25",
    "draw": "--lmdb_train_samples 5 --valid_file valid.xyz",
    "draw and share": "--lmdb_train_samples 12 --valid_fraction 0.25",
    "list and draw": "--test_ids bad.ids --id_key sid --lmdb_train_samples 5 --xyz_val valid.xyz",
}
CASES = [
    (choice, pool)
    for choice in CHOICES
    for pool in POOLS
    if not ("samples" in CHOICES[choice] and "lmdb" not in POOLS[pool])
]


def words_of(choice: str, pool: str) -> list[str]:
    return f"{POOLS[pool]} {CHOICES[choice]}".split()


Weighted = dict[bytes, float]  # weight by positions, which no two share


def weighted(structures: list[Structure]) -> Weighted:
    return {np.round(s.positions, 6).tobytes(): s.weight for s in structures}


def trained_on(words: list[str]) -> Weighted:
    argv = ["--input_json", "m.json", "--output_checkpoint", "run", "--seed", str(SEED), *words]
    options = reading.parse(TrainOptions, argv)
    assert options is not None
    train = open_data.training_data(options, FACTS, torch.float64, SEED).train
    return weighted([train.structure(i) for i in range(len(train))])


@pytest.mark.parametrize(("choice", "pool"), CASES)
def test_what_is_measured_is_what_is_trained_on(
    data: Path, monkeypatch: pytest.MonkeyPatch, choice: str, pool: str
) -> None:
    monkeypatch.chdir(data)
    words = words_of(choice, pool)
    argv = ["--output_json", "out.json", "--preset", "tiny", "--seed", str(SEED), *words]
    options = reading.parse(MetadataInitOptions, argv)
    assert options is not None
    measured = weighted([read() for read in data_sums._structures(options)])
    assert measured == trained_on(words)
    assert measured


def looked_at(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> dict[str, Weighted]:
    """The structures of each set that ``check`` judges."""
    seen: dict[str, Weighted] = {}

    def note(part: Selection, name: str, *_: object) -> None:
        seen[name] = weighted([part.structure(i) for i in range(len(part))])

    monkeypatch.setattr(checking, "_looked_at", note)
    options = reading.parse(CheckOptions, ["--seed", str(SEED), *words])
    assert options is not None
    checking._findings(options, None, ALONE)
    return seen


@pytest.mark.parametrize(
    ("choice", "pool"),
    every(
        3, [case for case in CASES if "--valid_fraction" not in CHOICES[case[0]]], of_several=True
    ),
)
def test_what_is_checked_is_what_is_trained_on(
    data: Path, monkeypatch: pytest.MonkeyPatch, choice: str, pool: str
) -> None:
    monkeypatch.chdir(data)
    words = words_of(choice, pool)
    assert looked_at(monkeypatch, words)["training"] == trained_on(words)


def test_elements_choose_what_is_checked(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    words = ["--train_file", "pool.xyz", "--elements"]
    assert len(looked_at(monkeypatch, [*words, "H", "O"])["training"]) == N
    assert "training" not in looked_at(monkeypatch, [*words, "H", "C"])
    assert metadata.main(["check", *words, "H", "C"]) == 2
    assert f"no structure is left ({N} × an element outside" in capsys.readouterr().err


def test_what_two_sets_share_is_said(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(data)
    caplog.set_level(logging.WARNING)
    words = ["--train_file", "pool.xyz", "--valid_file", "pool.aselmdb", "--id_key", "sid"]
    looked_at(monkeypatch, words)
    assert f"{N} structures of val have the same sid as {N} of train" in caplog.text


REFUSED: dict[str, tuple[str, str]] = {
    "list that is not there": (
        "--train_ids none.ids --id_key sid",
        "cannot read --train_ids none.ids",
    ),
    "name that no record has": ("--train_ids good.ids --id_key nokey", "nokey"),
    "more than there are": ("--lmdb_train packed --lmdb_train_samples 99", "99 samples"),
    "draw from no LMDB": ("--lmdb_train_samples 3", "no LMDB to draw from"),
    "type that nothing has": ("--config_type_weights nosuch=0", "there are Default, bad"),
}


@pytest.mark.parametrize(
    ("command", "case"),
    # ``check`` may look at a sample, which says nothing of a type
    [
        (command, case)
        for command in ("init", "fit", "check")
        for case in REFUSED
        if (command, case) != ("check", "type that nothing has")
    ],
)
def test_choices_that_do_not_fit_are_refused(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    case: str,
) -> None:
    monkeypatch.chdir(data)
    words, sentence = REFUSED[case]
    pool = [] if "packed" in words else ["--train_file", "pool.xyz"]
    out = str(tmp_path / "new.json")
    own = {
        "init": ["--preset", "tiny", "--output_json", out],
        "fit": ["--input_json", str(tmp_path / "old.json"), "--output_json", out],
        "check": [],
    }[command]
    if command == "fit":
        init = ["init", "--preset", "tiny", "--elements", "H", "O"]
        assert metadata.main([*init, "--output_json", own[1]]) == 0
        capsys.readouterr()
    assert metadata.main([command, *own, *pool, *words.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
