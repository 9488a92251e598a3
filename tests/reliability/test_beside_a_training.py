"""A model that is read while a training replaces it, and data that are replaced
while a run waits to go on.
"""

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

from conftest import ROOT
from model_utils import evaluate, resume
from model_utils.files import checkpoint
from reliability.conftest import FULL

Train = Callable[..., Path]


def test_a_model_replaced_while_it_is_read(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read is one file, whole: here the one that was there first, though a
    larger one takes its place.
    """
    path = train("run", "--max_steps", "1") / "run_model.pt"
    before = checkpoint.read(path)
    later = tmp_path / "later.pt"
    content = {
        **before.content,
        "train_state": {"epoch": 9, "step": 9},
        "padding": torch.zeros(1_000_000),
    }
    later.write_bytes(checkpoint.checkpoint_bytes(content))

    class Replacing(zipfile.ZipFile):
        def __init__(self, *arguments: Any, **names: Any) -> None:
            if later.exists():
                os.replace(later, path)
            super().__init__(*arguments, **names)

    monkeypatch.setattr(zipfile, "ZipFile", Replacing)
    found = checkpoint.read(path)
    assert not later.exists()
    assert (found.kind, found.content["step"]) == ("model", before.content["step"])
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in before.tensors.items())


@pytest.mark.skipif(not FULL, reason="a minute of evaluations: make battery")
def test_evaluate_beside_a_running_training(material: Path, tmp_path: Path) -> None:
    script, run = ROOT / "model_utils" / "train_mace.py", tmp_path / "run"
    words = [
        sys.executable,
        script,
        "--input_json",
        material / "tiny.json",
        "--xyz_train",
        material / "train.xyz",
    ]
    words += [
        "--xyz_val",
        material / "val.xyz",
        "--epochs",
        "150",
        "--lr",
        "1e-4",
        "--output_checkpoint",
        run,
    ]
    evaluations = ["--xyz_path", str(material / "val.xyz"), "--input_model"]
    with subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL) as process:
        n, files = 0, [run / "run_model.pt", run / "run_checkpoint.pt"]
        while process.poll() is None:
            if all(path.exists() for path in files):
                assert evaluate.main([*evaluations, str(files[n % 2])]) == 0
                n += 1
    assert process.returncode == 0
    assert n > 5


def other_xyz(path: Path) -> None:
    """The same structures but for one digit of one label: a file of the same size."""
    text = path.read_text()
    place = text.index("REF_energy=") + len("REF_energy=-43")
    digit = "1" if text[place] != "1" else "2"
    path.write_text(text[:place] + digit + text[place + 1 :])


def lmdb_anew(path: Path, shift: float) -> None:
    """Over the old bytes, with other forces on the first structure."""
    other = path.with_name("other.lmdb")
    old = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
    new = lmdb.open(str(other), subdir=False, map_size=2**24, lock=False)
    with old.begin() as reading, new.begin(write=True) as transaction:
        for key, value in reading.cursor():
            record = pickle.loads(value)
            record["forces"] = np.asarray(record["forces"]) + (shift if key == b"0" else 0.0)
            transaction.put(key, pickle.dumps(record))
    old.close()
    new.close()
    path.write_bytes(other.read_bytes())
    other.unlink()


@pytest.mark.parametrize("data", ["xyz", "lmdb"])
@pytest.mark.parametrize("role", ["train", "val"])
@pytest.mark.parametrize("times", ["new time", "old time"] if FULL else ["old time"])
def test_data_replaced_before_a_resume(
    data: str,
    role: str,
    times: str,
    train: Train,
    material: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same size and other content, even with the time of the file before: one
    line that names the files.
    """
    for name in ("train", "val"):
        shutil.copy(material / f"{name}.{data}", tmp_path)
        if data == "lmdb":
            # two files of one size are written in one way
            lmdb_anew(tmp_path / f"{name}.lmdb", 0.0)
    flags = [
        word
        for name in ("train", "val")
        for word in (f"--{data}_{name}", str(tmp_path / f"{name}.{data}"))
    ]
    run = train("run", *flags, "--max_steps", "1", data=data)
    path = tmp_path / f"{role}.{data}"
    was = path.stat()
    if data == "xyz":
        other_xyz(path)
    else:
        lmdb_anew(path, 0.5)
    assert path.stat().st_size == was.st_size
    if times == "old time":
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    capsys.readouterr()
    assert resume.main(["--input_model", str(run), "--max_steps", "2"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    name = {"train": "train", "val": "valid"}[role]
    assert f"the {name} data are not those of the run" in line
    assert str(path) in line
