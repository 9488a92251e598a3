"""Nothing is silent for long: lines that a file gets, on a clock of the test's own, and
the bar of a terminal.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataloader import parallel, progress
from dataloader.progress import ProgressBar, over
from losses import Loss, no_sums
from model_utils import evaluate, runtime, train_mace
from model_utils.run.folder.epoch_progress import EpochProgress
from model_utils.run.train_state import Progress as Counters


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "clock", found)
    monkeypatch.setattr(progress, "_spoken", found.now)
    monkeypatch.setattr(progress, "on_a_terminal", lambda: False)
    return found


@pytest.fixture
def lines(clock: Clock) -> Iterator[list[tuple[float, str]]]:
    """When something was written, and what."""
    found: list[tuple[float, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((clock.now - 1000.0, record.getMessage()))

    handler, level = Handler(), progress.log.level
    progress.log.addHandler(handler)
    progress.log.setLevel(logging.INFO)
    yield found
    progress.log.removeHandler(handler)
    progress.log.setLevel(level)


def test_short_work_writes_nothing(clock: Clock, lines: list[tuple[float, str]]) -> None:
    for _ in over(range(99), "work", 99):
        clock.work(0.1)
    assert lines == []


def test_long_work_writes_now_and_then(clock: Clock, lines: list[tuple[float, str]]) -> None:
    for _ in over(range(100), "statistics", 100):
        clock.work(1.0)
    assert [when for when, _ in lines] == [10.0 * k for k in range(1, 11)]
    assert lines[0][1] == "statistics: 10 of 100 structures, 10 % in 10 s, about 90 s left"
    assert lines[6][1] == "statistics: 70 of 100 structures, 70 % in 70 s, about 30 s left"


def test_silence_counts_over_several_short_works(
    clock: Clock, lines: list[tuple[float, str]]
) -> None:
    for what in ("first", "second", "third"):
        for _ in over(range(4), what, 4):
            clock.work(1.0)
    assert lines == [(10.0, "third: 2 of 4 structures, 50 % in 2 s, about 2 s left")]


def test_any_line_ends_the_silence(clock: Clock, lines: list[tuple[float, str]]) -> None:
    for n in over(range(30), "work", 30):
        clock.work(1.0)
        if n % 5 == 0:
            progress.spoken()  # as the log's handler does
    assert lines == []


def test_the_log_tells_of_its_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    runtime.start_log()
    clock.work(11.0)
    assert progress.due(None)
    runtime.log.info("a line")
    assert not progress.due(None)
    assert "a line" in capsys.readouterr().out


def test_sizes_and_unknown_totals(clock: Clock, lines: list[tuple[float, str]]) -> None:
    with ProgressBar("reading a.xyz", 4000, "B") as reading:
        clock.work(12.0)
        reading.update(1000)
    with ProgressBar("what the memory holds", unit="trial batches") as trials:
        clock.work(7000.0)
        trials.update()
    assert [text for _, text in lines] == [
        "reading a.xyz: 25 % in 12 s, about 36 s left",
        "what the memory holds: 1 trial batches in 1.9 h",
    ]


def test_work_that_was_begun_before_says_how_long_the_rest_takes(
    clock: Clock, lines: list[tuple[float, str]]
) -> None:
    with ProgressBar("index", 100, "records") as bar:
        bar.begin_at(80)
        clock.work(10.0)
        bar.update(10)
    assert lines[0][1] == "index: 90 of 100 records, 90 % in 10 s, about 10 s left"


def test_while_children_work(
    clock: Clock, lines: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_yet(pipes: list[Any], timeout: float | None = None) -> list[Any]:
        clock.work(4.0)
        return [] if clock.now < 1013.0 else wait(pipes)

    wait = parallel.wait
    monkeypatch.setattr(parallel, "wait", nothing_yet)
    done = over(parallel.in_children(str, [7], processes=1), "sha256 of all files", 1, "shards")
    assert list(done) == [(0, "7")]
    assert lines == [(12.0, "sha256 of all files: 0 of 1 shards, 0 % in 12 s")]


def state_of_epoch() -> Any:
    tally = SimpleNamespace(sums=torch.ones_like(no_sums(torch.device("cpu"))))
    return SimpleNamespace(
        progress=Counters(epoch=2), tally=tally, schedule=SimpleNamespace(rate=lambda: 1e-3)
    )


def epoch(state: Any, steps: int, clock: Clock, seconds: float, told: EpochProgress) -> None:
    for _ in range(steps):
        clock.work(seconds)
        state.progress.steps_in_epoch += 1
        told(state, steps, Loss.of())
    state.progress.epoch, state.progress.steps_in_epoch = state.progress.epoch + 1, 0


def test_inside_an_epoch(clock: Clock, lines: list[tuple[float, str]]) -> None:
    state, told = state_of_epoch(), EpochProgress()
    epoch(state, 50, clock, 1.0, told)
    assert [when for when, _ in lines] == [10.0, 20.0, 30.0, 40.0, 50.0]
    assert lines[0][1].startswith("epoch 3: step 10 of 50, loss ")
    assert lines[0][1].endswith(", lr 0.001, about 40 s left")
    lines.clear()
    progress.spoken()
    epoch(state, 15, clock, 1.0, told)
    assert [when for when, _ in lines] == [60.0]
    assert lines[0][1].startswith("epoch 4: step 10 of 15")
    lines.clear()
    progress.spoken()
    epoch(state, 500, clock, 0.01, told)
    assert lines == []


@pytest.fixture
def every_look_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where every batch took longer than ten seconds."""
    monkeypatch.setattr(progress, "due", lambda said: True)
    monkeypatch.setattr(progress, "on_a_terminal", lambda: False)


def test_every_part_of_a_run_and_of_an_evaluation_speaks(
    every_look_is_due: None,
    tiny_json: Path,
    water_xyz: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train, test = str(water_xyz("train.xyz", 8)), str(water_xyz("test.xyz", 3, seed=1))
    words = [
        "--input_json",
        str(tiny_json),
        "--xyz_train",
        train,
        "--xyz_test",
        test,
        "--valid_fraction",
        "0.25",
    ]
    words += ["--batch_size", "2", "--epochs", "1", "--output_checkpoint", str(tmp_path / "run")]
    assert train_mace.main([*words, "--no_export_mace_model"]) == 0
    said = capsys.readouterr()
    parts = [
        "reading train.xyz: ",
        "neighbour lists: 1 of 8 structures",
        "epoch 1: step 2 of 3, loss ",
    ]
    parts += ["validation: 2 of 2 structures"]
    parts += [f"errors of the best model, {name}: " for name in ("train", "valid", "test")]
    for part in parts:
        assert part in said.out
        assert part in (tmp_path / "run" / "train.log").read_text()
    assert said.err == ""
    assert (
        evaluate.main(["--input_model", str(tmp_path / "run/run_model.pt"), "--xyz_path", test])
        == 0
    )
    said = capsys.readouterr()
    assert "evaluation: 3 of 3 structures, 100 % in " in said.out
    assert said.err == ""


def test_a_bar_on_a_terminal_and_no_lines(
    clock: Clock,
    lines: list[tuple[float, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "on_a_terminal", lambda: True)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    for _ in over(range(100), "statistics", 100):
        clock.work(1.0)
    state, told = state_of_epoch(), EpochProgress()
    epoch(state, 50, clock, 1.0, told)
    assert lines == []
    shown = capsys.readouterr().err
    assert "statistics" in shown
    assert "epoch 3" in shown
