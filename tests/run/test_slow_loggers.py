"""A logger that hangs, one that is too slow, one that has a function's form; W&B; and --sync.

Nothing here measures a time: what hangs is let go by the test, and limits stand only
where a process might hang.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ase.io import write
from test_loggers import FINAL, train_record, validation_record

from conftest import HANGING, in_the_battery, wait_until, waters
from model_utils import train_mace
from model_utils.files.outputs import Outputs
from model_utils.run import loggers
from model_utils.run.folder import run_files
from model_utils.run.folder.syncing import Sync
from model_utils.run.loggers import LOGGERS, LoggedRun, LoggerKind, Loggers, logger_thread


class Hanging:
    """A logger that answers nothing in one of its methods until it is let go."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.let_go = threading.Event()
        self.is_in = threading.Event()
        self.heard: list[str] = []

    def note(self, method: str) -> None:
        self.heard.append(method)
        if method == self.at:
            self.is_in.set()
            self.let_go.wait(HANGING)

    def opened(self, run: LoggedRun) -> "Hanging":
        self.note("opened")
        return self

    def train(self, record: Any) -> None:
        self.note("train")

    def validation(self, record: Any) -> None:
        self.note("validation")

    def final(self, record: Any) -> None:
        self.note("final")

    def close(self) -> None:
        self.note("close")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Hanging]]:
    """Put a logger into the table that hangs in a method; it is let go at the end."""
    made: list[Hanging] = []

    def add(at: str) -> Hanging:
        made.append(Hanging(at))
        monkeypatch.setitem(LOGGERS, "hanging", LoggerKind(opened=made[-1].opened))
        return made[-1]

    yield add
    for logger in made:
        logger.let_go.set()


@pytest.fixture
def train(tiny_json: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train for two epochs; the folder of the run."""
    write(tmp_path / "train.xyz", waters(4), format="extxyz")
    write(tmp_path / "valid.xyz", waters(3, seed=1), format="extxyz")

    def run(name: str, *more: object, code: int = 0) -> Path:
        words = [
            "--input_json",
            tiny_json,
            "--xyz_train",
            tmp_path / "train.xyz",
            "--xyz_val",
            tmp_path / "valid.xyz",
        ]
        words += [
            "--epochs",
            2,
            "--batch_size",
            2,
            "--no_export_mace_model",
            "--output_checkpoint",
            tmp_path / name,
        ]
        assert train_mace.main([*map(str, words), *map(str, more)]) == code
        return tmp_path / name

    return run


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "perf"} for line in lines]


@pytest.mark.parametrize(
    "at", ["validation", *(pytest.param(at, marks=in_the_battery) for at in ("opened", "close"))]
)
def test_one_that_hangs_changes_nothing_in_the_run(
    at: str,
    hanging: Callable[[str], Hanging],
    train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = hanging(at)
    ended_within = logger_thread.LoggerThread.ended_within

    def not_long(self: Any, seconds: float) -> bool:
        """The one that hangs costs the test no time, and the others have as much as they need."""
        return ended_within(self, 0.01 if self._opened.func == logger.opened else HANGING)

    monkeypatch.setattr(logger_thread.LoggerThread, "ended_within", not_long)
    quiet = train("quiet")
    run = train("run", "--loggers", "hanging", "rich", "csv", "tensorboard")
    assert not logger.let_go.is_set()
    assert records(run) == records(quiet)
    log = (run / "train.log").read_text()
    assert log.count("the logger hanging does not answer; it is left alone, with ") == 1
    assert "E rmse" in log, "the others have their tables"
    weights = ("run_checkpoint.pt", "run_model.pt")
    assert all((run / name).exists() for name in weights)


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_a_full_disk_changes_nothing_and_its_records_come_later(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_full = False
    write_bytes = os.write

    def full(descriptor: int, data: bytes) -> int:
        if is_full and os.readlink(f"/proc/self/fd/{descriptor}").startswith(
            str(tmp_path / "full")
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    sizes = {}
    for place in ("full", "roomy"):
        (tmp_path / place).mkdir()
        run = Loggers([name], LoggedRun(where=partial(Path, tmp_path / place), name="run"))
        for step in (2, 4, 6):
            is_full = step == 4
            run.train(train_record(step))
            run.validation(validation_record(step))
        run.close()
        sizes[place] = sum(
            path.stat().st_size for path in (tmp_path / place).rglob("*") if path.is_file()
        )
    assert sizes["full"] == sizes["roomy"] > 0
    assert not caplog.text


def test_the_wait_at_the_end_is_bounded_and_that_of_all_together(
    hanging: Callable[[str], Hanging], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    ended_within = logger_thread.LoggerThread.ended_within

    def counted(self: Any, seconds: float) -> bool:
        waits.append(seconds)
        return ended_within(self, min(seconds, 0.01))

    monkeypatch.setattr(logger_thread.LoggerThread, "ended_within", counted)
    first = hanging("train")
    monkeypatch.setitem(LOGGERS, "other", LOGGERS["hanging"])
    run = Loggers(["hanging", "other"], LoggedRun(where=lambda: tmp_path, name="run"))
    run.train(train_record(2))
    wait_until(first.is_in.is_set, "the logger is told of a record")
    run.close()
    assert len(waits) == 2
    assert max(waits) <= loggers.PATIENCE == 10.0


def test_who_is_asked_to_stop_waits_for_none(
    hanging: Callable[[str], Hanging], train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run that got SIGTERM: no second is spent on a logger."""
    logger = hanging("train")
    waits: list[float] = []
    close = Loggers.close
    monkeypatch.setattr(
        Loggers, "close", lambda self, seconds: waits.append(seconds) or close(self, seconds)
    )
    validation = Loggers.validation

    def asked(self: Any, record: Any) -> None:
        validation(self, record)
        if record.step > 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loggers, "validation", asked)
    run = train("run", "--loggers", "hanging", code=75)
    assert waits == [0.0]
    assert not logger.let_go.is_set()
    assert "does not answer" not in (run / "train.log").read_text()


def test_a_queue_has_an_end_and_what_is_left_out_is_counted(
    hanging: Callable[[str], Hanging],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logger_thread, "HELD", 5)
    logger = hanging("opened")
    run = Loggers(["hanging"], LoggedRun(where=lambda: tmp_path, name="run"))
    wait_until(logger.is_in.is_set, "the logger is opened")
    for _ in range(20):
        run.train(train_record(2))
    assert run._threads["hanging"]._calls.qsize() == 5
    logger.let_go.set()
    run.close(HANGING)
    assert logger.heard == ["opened", *["train"] * 5, "close"]
    assert "the logger hanging was too slow for 15 records" in caplog.text


def test_a_logger_may_be_one_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[tuple[str, Any, int]] = []
    monkeypatch.setitem(LOGGERS, "mine", loggers.hook(lambda *words: heard.append(words)))
    run = Loggers(["mine"], LoggedRun(where=lambda: tmp_path, name="run"))
    run.train(train_record(2))
    run.validation(validation_record(2, "a.xyz", "b.xyz"))
    run.final(FINAL)
    run.close(HANGING)
    assert [(category, epoch) for category, _, epoch in heard] == [
        ("train", 1),
        ("validation", 1),
        ("final", 2),
    ]
    assert heard[0][1]["gradient_norm"] == 2.0
    assert heard[1][1]["by_source"]["b.xyz"]["loss"] == 3.0
    assert set(heard[2][1]) == {"train", "valid"}


# W&B


class FakeWandb(types.ModuleType):
    """What of the package a run of ours calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.began: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.summary: dict[str, Any] = {}
        self.finished = 0

    def init(self, **words: Any) -> "FakeWandb":
        self.began.append(words)
        return self

    def Settings(self, **words: Any) -> dict[str, Any]:
        return words

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_a_run_that_goes_on_under_its_name(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeWandb()
    fake.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(run_files, "PATIENCE", HANGING)
    secret = "upload --token s3cr3t; true"
    train("run", "--loggers", "wandb", "--sync", secret, "--epochs", 1)
    assert fake.finished == 1
    assert fake.began[0]["name"] == "run"
    assert fake.began[0]["config"]["lr"] == 0.01
    steps = [step for values, step in fake.logged if "valid/forces_rmse" in values]
    assert steps == [0, 2]
    assert {"final/train/forces_rmse", "final/valid/loss"} <= set(fake.summary)
    again = LoggedRun(where=lambda: tmp_path / "run", name="run", step=2)
    for run in (again, replace(again, step=0)):  # one that goes on, and a new one in its place
        loggers.LOGGERS["wandb"].opened(run)
    assert fake.began[1]["id"] == fake.began[0]["id"] != fake.began[2]["id"]
    told = repr(fake.began)
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file())
    assert "s3cr3t" not in told
    assert b"s3cr3t" not in written, "the command is stored nowhere"


def test_wandb_itself_takes_a_run_offline(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(run_files, "PATIENCE", HANGING)
    run = train("run", "--loggers", "wandb", "--epochs", 1)
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert "the logger wandb" not in (run / "train.log").read_text()


# --sync


def test_a_command_runs_after_checkpoints_one_at_a_time(tmp_path: Path) -> None:
    outputs = Outputs.named(tmp_path / "run", None)
    said = tmp_path / "said"
    go = tmp_path / "go"
    command = f'echo "$RUN_CHECKPOINT" >> {said}; while [ ! -e {go} ]; do sleep 0.01; done'
    sync = Sync(command, outputs)
    for _ in range(3):
        sync.checkpoint_written()
    wait_until(said.exists, "the command begins")
    go.touch()
    sync.close(HANGING)
    assert said.read_text().splitlines() == [str(outputs.checkpoint)] * 2, (
        "what came meanwhile is one"
    )


def test_a_command_that_fails_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sync = Sync("echo no route to host >&2; exit 3", Outputs.named(tmp_path / "run", None))
    for _ in range(3):
        sync.checkpoint_written()
        sync.close(HANGING)
    assert caplog.text.count("--sync failed") == 1
    assert "it ended with 3" in caplog.text
    assert "(no route to host)" in caplog.text


def test_a_command_that_hangs_is_left_to_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go = tmp_path / "go"
    over = tmp_path / "over"
    sync = Sync(
        f"while [ ! -e {go} ]; do sleep 0.01; done; touch {over}",
        Outputs.named(tmp_path / "run", None),
    )
    sync.checkpoint_written()
    sync.close(0.0)
    assert not caplog.text
    sync.close(0.01)
    assert "--sync did not end within 0 s; it goes on by itself" in caplog.text
    go.touch()
    wait_until(over.exists, "the command goes on")


LAST_CHECKPOINT = """
import sys
from pathlib import Path

from model_utils.files.outputs import Outputs
from model_utils.run.folder.syncing import Sync

run = Path(sys.argv[1])
checkpoint = run / "run_checkpoint.pt"
sync = Sync(sys.argv[2], Outputs.named(run, None))
checkpoint.write_text("first")
sync.checkpoint_written()
while not (run / "begun").exists():
    pass
checkpoint.write_text("last")
sync.checkpoint_written()
sync.close(float(sys.argv[3]))
"""


@pytest.mark.parametrize("patience", ["0", "0.01"])
def test_the_last_checkpoint_is_copied_although_the_process_is_gone(
    patience: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = 'cp "$RUN_CHECKPOINT" "$RUN_FOLDER/copy"; echo >> "$RUN_FOLDER/begun"; '
    command += 'while [ ! -e "$RUN_FOLDER/go" ]; do sleep 0.01; done; echo >> "$RUN_FOLDER/ended"'
    words = [sys.executable, "-c", LAST_CHECKPOINT, str(run), command, patience]
    ended = subprocess.run(words, timeout=HANGING, check=True, capture_output=True, text=True)
    assert "then runs once more for the last one" in ended.stdout + ended.stderr
    assert (run / "copy").read_text() == "first"
    (run / "go").touch()
    wait_until(
        lambda: (run / "ended").exists() and len((run / "ended").read_text()) == 2,
        "it runs once more",
    )
    assert (run / "copy").read_text() == "last"
    assert len((run / "begun").read_text()) == 2


def test_sync_is_of_the_command_line_alone(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_utils import resume

    monkeypatch.setattr(run_files, "PATIENCE", HANGING)
    said = tmp_path / "said"
    run = train("run", "--sync", f'echo "$RUN_MODEL" >> {said}', "--epochs", 1)
    times = len(said.read_text().splitlines())
    assert times >= 2
    assert set(said.read_text().splitlines()) == {str(run / "run_model.pt")}
    assert "RUN_MODEL" not in (run / "config.resolved.yaml").read_text()
    assert resume.main(["--input_model", str(run), "--epochs", "2"]) == 0
    assert len(said.read_text().splitlines()) == times
