"""The commands on a device that pretends to be CUDA: no mixed devices, no wait within a step, one copy for each batch.

What a GPU alone can show is in ``test_cuda.py``.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write
from torch import Tensor

import parity_cases as cases
from conftest import TINY, waters
from dataloader.batch import Batch
from model_utils import evaluate, finetune, model_loader, resume, train_mace
from model_utils.run import evaluation, finetuning, fit
from model_utils.run import step as step_module
from pretended_cuda import Notes, as_move, as_step, notes, pretended
from test_fast_step import RICH, Both, fields_of
from test_memory import LOSS

COPIES: set[str] = set()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notes]:
    """A pretended device, on which steps and predictions are watched."""
    monkeypatch.setattr(fit._Run, "_optimizer_step", as_step(fit._Run._optimizer_step))
    monkeypatch.setattr(evaluation, "predict", as_step(evaluation.predict))
    monkeypatch.setattr(evaluation, "error_sums", as_step(evaluation.error_sums))
    monkeypatch.setattr(Batch, "to", as_move(Batch.to))
    with pretended():
        yield notes


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    for name, n in (("train", 9), ("valid", 3)):
        write(tmp_path / f"{name}.xyz", waters(n, n), format="extxyz")
    return tmp_path


def trained(place: Path, step: str, *more: str) -> Path:
    words = ["--input_json", place / "tiny.json", "--xyz_train", place / "train.xyz", "--xyz_val", place / "valid.xyz"]
    words += ["--output_checkpoint", place / "run", "--device", "cuda", "--batch_size", 4, "--ema", "--step", step]
    assert train_mace.main([*map(str, words), *more]) == 0
    return place / "run" / "run_model.pt"


def assert_like_a_step(device: Notes) -> None:
    assert not device.waits_in_steps
    assert device.copies_of_batches
    for copies in device.copies_of_batches:
        assert len(copies) == 1, copies
        assert "to the device, pinned, in" in copies[0]


@pytest.mark.parametrize("step", ["fast", "reference"])
def test_commands(step: str, place: Path, device: Notes) -> None:
    model = trained(place, step, "--epochs", "2", "--stage_two", "--start_stage_two", "1")
    words = ["--input_model", str(model.with_name("run_checkpoint.pt")), "--epochs", "3", "--num_workers", "1"]
    assert resume.main(words) == 0
    assert_like_a_step(device)
    words = ["--input_model", str(model), "--xyz_path", str(place / "valid.xyz"), "--device", "cuda", "--step", step]
    assert evaluate.main([*words, "--output_xyz", str(place / "out.xyz"), "--output_table", str(place / "t.csv")]) == 0
    words = ["--input_model", str(model), "--xyz_train", str(place / "train.xyz"), "--device", "cuda", "--step", step]
    words += ["--output_checkpoint", str(place / "tuned"), "--epochs", "1", "--batch_size", "4", "--E0s", "shift"]
    assert finetune.main([*words, "--xyz_val", str(place / "valid.xyz")]) == 0
    assert_like_a_step(device)
    for text in sorted(device.copies):
        print(device.copies[text], text)
