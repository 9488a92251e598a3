"""The time of day decides nothing that a run does, and text of data is text in every
table that is written.
"""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tqdm
from ase.io import read, write

from conftest import waters
from dataloader import progress
from model_utils import evaluate, train_mace
from model_utils.files.csv_cells import csv_text
from model_utils.files.outputs import Outputs
from model_utils.run import interruption
from model_utils.run.interruption import Interruption, scheduler_left
from model_utils.tasks.same_bits import differences

DAY = 86400.0


def test_a_clock_that_is_set_during_a_run_changes_nothing(
    tiny_json: Path, water_xyz: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It jumps by a year at every look at it; the limit of time is not met, and
    the result is the same.
    """
    train, val = water_xyz("train.xyz", 8), water_xyz("val.xyz", 4, seed=1)
    words = [
        "--input_json",
        tiny_json,
        "--xyz_train",
        train,
        "--xyz_val",
        val,
        "--batch_size",
        "4",
        "--epochs",
        "2",
    ]
    words += [
        "--time_limit",
        "00:59:00",
        "--checkpoint_every_minutes",
        "20",
        "--no_export_mace_model",
        "--tensorboard",
    ]
    flags = [str(word) for word in words]
    assert train_mace.main([*flags, "--output_checkpoint", str(tmp_path / "whole")]) == 0
    now, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return now() + 365 * DAY * (looks[0] % 3 - 1)

    monkeypatch.setattr(time, "time", jumping)
    assert train_mace.main([*flags, "--output_checkpoint", str(tmp_path / "run")]) == 0
    assert looks[0] > 10
    whole, run = (Outputs.named(tmp_path / name, None) for name in ("whole", "run"))
    assert differences(whole, run) == []


def test_the_bar_goes_on_when_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [time.time()]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    bar = progress.Bar(total=10, mininterval=0.0, miniters=1)
    now[0] -= DAY
    for _ in range(10):
        bar.update()
    shown = capsys.readouterr().err
    bar.close()
    assert "10/10" in shown


@pytest.mark.parametrize("said", ["2-01:00:30", "49:00:30", "2940:30"])
@pytest.mark.parametrize("off", [-2 * DAY, 2 * DAY])
def test_the_end_of_an_allocation_by_a_clock_that_is_wrong(
    said: str, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM itself is asked, as where it tells a job nothing."""
    start = 1_800_000_000
    monkeypatch.setattr(
        interruption,
        "time",
        SimpleNamespace(time=lambda: start + 60 + off, monotonic=time.monotonic),
    )
    monkeypatch.setattr(
        interruption.subprocess,
        "run",
        lambda *_, **__: SimpleNamespace(stdout=f"{said}\n", returncode=0),
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert scheduler_left() == 2 * DAY + 3630
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(start))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(start + 3600))
    assert scheduler_left() == 2 * DAY + 3630
    monkeypatch.setattr(interruption.time, "time", lambda: start + 60)
    assert scheduler_left() == 3540


@pytest.mark.parametrize("said", ["UNLIMITED", "INVALID", "", "N/A"])
def test_no_limit_where_slurm_says_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        interruption.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=f"{said}\n")
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert Interruption().limit(None) is None


FORMULAS = (
    "=HYPERLINK(1)",
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    " =1",
    "=1\tx",
    "＝1+1",
    "|calc",
    "%0A=1",
)
TEXTS = ("slab", "-12", "+3.5", "a=b", "H2O-2", "1-2", "", "'quoted", "été")


def test_cells_that_begin_like_formulas_begin_with_an_apostrophe() -> None:
    for text in FORMULAS:
        assert csv_text(text).startswith("'"), text
    for text in TEXTS:
        assert csv_text(text) == text
    for text in ("\t=1", "\r=1", "\n=1", "a\nb", "\x1b[2J"):
        assert csv_text(text).isprintable()
        assert csv_text(text)[0] not in "=+-@"


def test_tables_frames_and_lines_of_an_evaluation(
    tiny_json: Path,
    water_xyz: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Names of structures and their types as nobody would choose them; the xyz file gives
    them back as they were.
    """
    words = ["--input_json", tiny_json, "--xyz_train", water_xyz("train.xyz", 4), "--epochs", "1"]
    words += [
        "--xyz_val",
        water_xyz("val.xyz", 4),
        "--no_export_mace_model",
        "--output_checkpoint",
        tmp_path / "run",
    ]
    assert train_mace.main([str(word) for word in words]) == 0
    frames = waters(6)
    odd = ("=1+1", "@cmd", "<script>alert(1)</script>", "+2+2", "a\x1b[31mb", '=HYPERLINK("x")')
    for atoms, text in zip(frames, odd, strict=True):
        atoms.info["config_type"] = text
        atoms.info["identifier"] = text
    write(tmp_path / "odd.xyz", frames, format="extxyz")
    capsys.readouterr()
    table, output = tmp_path / "table.csv", tmp_path / "out.xyz"
    words = ["--input_model", tmp_path / "run/run_model.pt", "--xyz_path", tmp_path / "odd.xyz"]
    words += ["--output_table", table, "--output_xyz", output]
    assert evaluate.main([str(word) for word in words]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))[1:]
    assert len(rows) == 6
    assert all(cell.isprintable() for row in rows for cell in row)
    assert not any(cell.lstrip().startswith(("=", "@", "+")) for row in rows for cell in row[:2])
    assert [atoms.info["config_type"] for atoms in read(output, ":")] == list(odd)


def test_nothing_else_writes_tables_or_markup() -> None:
    """A new writer of CSV or HTML belongs in this file."""
    root, words = (
        Path(train_mace.__file__).parents[1],
        ("csv.writer", "DictWriter", "to_csv", "<table", "<svg", "</"),
    )
    files = [
        path for folder in ("dataloader", "model_utils") for path in (root / folder).rglob("*.py")
    ]
    files += [root / "metadata.py", root / "read_model.py"]
    writing = {
        path.name
        for path in files
        if any(word in path.read_text(encoding="utf-8") for word in words)
    }
    of_text = {"breakdown.py", "curves.py", "judgement_files.py", "relaxing.py"}  # through csv_text
    of_numbers = {"csv_file.py", "dynamics.py"}
    assert writing == of_text | of_numbers | {"viewer.py"}, (
        "which hands the viewer numbers and elements alone"
    )
