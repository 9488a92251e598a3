"""What the tests of several processes share: a fork server, waters in two formats, the words of a training."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ase.io import write

from conftest import TINY, waters
from ranks.launching import Launcher


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """The fork server of this test process."""
    server = Launcher()
    yield server
    server.close()


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.json, train.xyz of 14 structures and valid.xyz of 5."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    write(folder / "train.xyz", waters(14, seed=1), format="extxyz")
    write(folder / "valid.xyz", waters(5, seed=2), format="extxyz")
    return folder


@pytest.fixture(scope="session")
def words(material: Path) -> list[object]:
    """Words of a training of four steps an epoch, the last of them with fewer structures than parts."""
    data = ["--xyz_train", material / "train.xyz", "--xyz_val", material / "valid.xyz"]
    return ["--input_json", material / "tiny.json", *data, "--batch_size", 2, "--accumulate_batches", 2, "--epochs", 2]
