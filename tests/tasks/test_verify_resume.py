"""verify_resume.py as a user runs it: equal where nothing is planted,
different where something is.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import in_the_battery, pausing
from model_utils import train_mace, verify_resume
from model_utils.tasks import resume_check, same_bits

WAITS_TO_BE_KILLED = """
import os, sys
words = sys.argv[1:]
waits = "--overwrite" in words and any(word.endswith("killed/run_checkpoint.pt") for word in words)
command = {pausing!r} if waits else [sys.executable, {train!r}]
os.execv(command[0], [*command, *words])
"""


@pytest.fixture
def flags(
    tiny_json: Path, water_xyz: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Of the runs, the one that is to be killed after six steps stays in its eighth until it is."""
    script, waiting = tmp_path / "train.py", pausing(8, tmp_path / "waiting", tmp_path / "never")
    script.write_text(WAITS_TO_BE_KILLED.format(pausing=waiting, train=str(resume_check.TRAIN)))
    monkeypatch.setattr(resume_check, "TRAIN", script)
    words = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        str(water_xyz("train.xyz", 24)),
        "--batch_size",
        "4",
    ]
    words += ["--xyz_val", str(water_xyz("val.xyz", 4, seed=1)), "--ema", "--threads", "1"]
    return [*words, "--steps", "12", "--output_checkpoint", str(tmp_path / "check")]


def test_a_killed_run_is_equal(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_resume.main(flags) == 0
    assert "equal to the last bit" in capsys.readouterr().out


@in_the_battery
def test_a_planted_fault_is_found(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_resume.main([*flags, "--planted_fault", "moments"]) == 0
    shown = capsys.readouterr().out
    assert "the planted fault was found" in shown
    assert "metrics.jsonl: train_steps record of step" in shown, "what differs first is named"


def test_a_checkpoint_that_has_nothing_to_forget_proves_nothing(
    tiny_json: Path, water_xyz: Callable[..., Path], tmp_path: Path
) -> None:
    """At the end of an epoch the position within it is 0."""
    words = ["--input_json", tiny_json, "--xyz_train", water_xyz("train.xyz", 8), "--epochs", 1]
    words += ["--xyz_val", water_xyz("val.xyz", 4), "--output_checkpoint", tmp_path / "run"]
    assert train_mace.main([str(word) for word in words]) == 0
    path = tmp_path / "run/run_checkpoint.pt"
    assert not resume_check.plant(path, "position")
    assert resume_check.plant(path, "moments")


def test_settings_that_fail_by_themselves(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_resume.main([*flags, "--elements", "Xx"]) == 2
    error = capsys.readouterr().err
    assert "a run ended with 2: error: --elements Xx is no element" in error
    assert len(error.splitlines()) == 1


def test_equal_is_to_the_last_bit() -> None:
    """By value 0 would be -0, and what is no number would never be itself."""
    zero = torch.tensor([0.0, float("nan")])
    assert (
        list(
            same_bits._different(
                {"a": zero, "b": float("nan")}, {"a": zero.clone(), "b": float("nan")}
            )
        )
        == []
    )
    assert (
        len(list(same_bits._different({"a": zero}, {"a": torch.tensor([-0.0, float("nan")])}))) == 1
    )
    assert len(list(same_bits._different({"b": 1.0}, {"b": float("nan")}))) == 1
