"""Files that are written bit by bit, or by a library, get their name when they are on the disk."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from dataloader import array_file, durable
from dataloader.work_folder import Overtaken, overtaken


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_stream_lies_in_its_work_folder_until_it_is_whole(tmp_path: Path, work: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with durable.byte_stream(target, made_in=work) as stream:
        stream.write(b"new")
        assert target.read_bytes() == b"old"
        assert [path.suffix for path in work.iterdir()] == [".tmp"]
    assert target.read_bytes() == b"new"
    assert not list(work.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work", "x"]


def test_a_stream_that_is_not_finished_leaves_what_was_there(tmp_path: Path, work: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def fail() -> None:
        with durable.text_stream(target, made_in=work) as stream:
            stream.write("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert target.read_text() == "old"
    assert not list(work.iterdir())


def test_everything_that_gets_a_name_is_synced_and_its_folder_too(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []  # whether it was a folder
    sync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        sync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", noting)
    array_file.write(tmp_path / "arrays", {}, {"n": [np.arange(3)]}, made_in=work)
    (work / "made").write_bytes(b"by a library")
    durable.give_name(work / "made", tmp_path / "named")
    assert synced == [False, True, False, True]
    assert array_file.read(tmp_path / "arrays").arrays["n"].tolist() == [0, 1, 2]
    assert (tmp_path / "named").read_bytes() == b"by a library"


def test_a_work_folder_that_is_gone_means_that_another_has_finished(tmp_path: Path) -> None:
    with (
        pytest.raises(Overtaken, match="was removed while this process worked in it"),
        overtaken(tmp_path / "gone"),
    ):
        array_file.write(tmp_path / "x", {}, {"n": [np.arange(3)]}, made_in=tmp_path / "gone")
    assert not (tmp_path / "x").exists()


def test_another_fault_than_a_folder_that_is_gone_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(durable.NotWritten), overtaken(tmp_path):
        array_file.write(tmp_path / "file" / "x", {}, {"n": [np.arange(3)]})
