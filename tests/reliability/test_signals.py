"""Signals to the process or its group, whatever the run is doing: saved within a step and two seconds, exit 75."""

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from model_utils import train_mace
from model_utils.files import checkpoint, durable
from model_utils.files.outputs import Outputs
from model_utils.run import assemble, fit, interruption, open_data
from model_utils.tasks.comparison import differences
from reliability.conftest import FULL

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TARGETS = ("process", "group")
LIMIT = 2.0  # s beyond a step, which takes a hundredth of a second here
AFTER_STEPS = 3
Slow = Callable[[pytest.MonkeyPatch, Path], None]


def slow_step(patch: pytest.MonkeyPatch, entered: Path) -> None:
    once = _at_call(AFTER_STEPS, entered, 0.3)
    gradients = fit.loss_and_gradients
    patch.setattr(fit, "loss_and_gradients", lambda *words: (once(), gradients(*words))[1])


def slow_validation(patch: pytest.MonkeyPatch, entered: Path) -> None:
    """Every batch takes 0.3 s, the whole of it longer than the limit."""
    evaluate, steps_taken = assemble.evaluate, fit.loss_and_gradients
    calls = 0

    def counted(*words):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return steps_taken(*words)

    def slowly(batches):  # type: ignore[no-untyped-def]
        for batch in batches:
            if calls:
                entered.touch()
                time.sleep(0.3)
            yield batch

    patch.setattr(fit, "loss_and_gradients", counted)
    patch.setattr(
        assemble,
        "evaluate",
        lambda net, weights, batches, *rest, **named: evaluate(net, weights, slowly(batches), *rest, **named),
    )


def stalled_data(patch: pytest.MonkeyPatch, entered: Path) -> None:
    """A worker that hangs in a read, as on a file system that went away."""
    from dataloader.dataset import Dataset

    once = _at_call(AFTER_STEPS, entered, 3600.0)
    batch = Dataset.batch
    patch.setattr(Dataset, "batch", lambda self, indices: (once(), batch(self, indices))[1])


def slow_save(patch: pytest.MonkeyPatch, entered: Path) -> None:
    once = _at_call(12, entered, 0.7)  # calls of fsync: several files before the first step
    sync = os.fsync
    patch.setattr(durable.os, "fsync", lambda descriptor: (once(), sync(descriptor))[1])


def _at_call(number: int, entered: Path, seconds: float) -> Callable[[], None]:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            entered.touch()
            time.sleep(seconds)

    return call


PHASES: dict[str, tuple[Slow, list[str]]] = {
    "step": (slow_step, []),
    "validation": (slow_validation, ["--validate_every_steps", "1"]),
    "data stall": (stalled_data, ["--num_workers", "1"]),
    "save": (slow_save, ["--checkpoint_every_steps", "1"]),
}
CASES = list(product(PHASES, SIGNALS, TARGETS))
if not FULL:  # every phase with every target, every signal with every target
    CASES = [case for i, case in enumerate(CASES) if i % 6 in ((0, 3), (2, 5), (1, 4), (0, 5))[i // 6]]


class Child:
    """A run in a forked process with a group of its own; forked, so that imports are paid once."""

    def __init__(self, arguments: list[str], patch_up: Callable[[pytest.MonkeyPatch], None], errors: Path) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number in SIGNALS:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(errors, "w")  # noqa: SIM115
            try:
                patch_up(pytest.MonkeyPatch())
                interruption.leave(train_mace.main(arguments))
            finally:
                os._exit(99)

    def send(self, number: signal.Signals, target: str) -> None:
        (os.killpg if target == "group" else os.kill)(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {seconds} s")

    def orphans(self) -> list[str]:
        """Processes of its session that live."""
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, *fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.pid and state != "Z":
                alive.append(stat.parent.name)
        return alive


@pytest.fixture
def begin(material: Path, tmp_path: Path) -> Callable[..., Child]:
    def go(name: str, patch_up: Callable[[pytest.MonkeyPatch], None], *flags: str) -> Child:
        words = ["--input_json", material / "tiny.json", "--xyz_train", material / "train.xyz", "--epochs", "4"]
        words += ["--xyz_val", material / "val.xyz", "--batch_size", "2", "--log_every_steps", "1"]
        words += ["--no_export_mace_model", "--resume", "auto", "--output_checkpoint", tmp_path / name / "run"]
        return Child([str(word) for word in (*words, *flags)], patch_up, tmp_path / "stderr")

    return go


def until(path: Path, child: Child, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, "the phase was not reached"
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0), "ended before the phase was reached"
        time.sleep(0.005)


def outputs_of(folder: Path) -> Outputs:
    return Outputs.named(folder / "run" / "run_checkpoint.pt", None)


@pytest.mark.parametrize(("phase", "number", "target"), CASES, ids=lambda value: getattr(value, "name", value))
def test_saved_in_time(
    phase: str,
    number: signal.Signals,
    target: str,
    begin: Callable[..., Child],
    quick_build: None,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    slow, flags = PHASES[phase]
    entered = tmp_path / "entered"
    child = begin("stopped", lambda patch: slow(patch, entered), *flags)
    until(entered, child)
    time.sleep(0.05)
    sent = time.monotonic()
    child.send(number, target)
    code = child.wait(30.0)
    seconds = time.monotonic() - sent
    record_property("seconds", seconds)
    said = (tmp_path / "stderr").read_text()
    assert code == 75, said
    assert said.startswith(f"stopped: {number.name}: saved at step ")
    assert len(said.splitlines()) == 1
    assert seconds < LIMIT + 0.7, f"{seconds:.2f} s"  # 0.7: the slow fsync that was under way
    time.sleep(0.1)
    assert child.orphans() == []
    assert checkpoint.read(outputs_of(tmp_path / "stopped").checkpoint).content["train_state"]["reason"] == number.name
    if FULL or number == signal.SIGTERM:
        for name in ("stopped", "whole"):
            assert begin(name, lambda _: None, *flags).wait(120.0) == 0
        assert differences(outputs_of(tmp_path / "whole"), outputs_of(tmp_path / "stopped")) == []


def test_a_second_signal_leaves_at_once(begin: Callable[..., Child], quick_build: None, tmp_path: Path) -> None:
    entered = tmp_path / "entered"

    def slow(patch: pytest.MonkeyPatch) -> None:
        once = _at_call(12, entered, 60.0)
        sync = os.fsync
        patch.setattr(durable.os, "fsync", lambda descriptor: (once(), sync(descriptor))[1])

    child = begin("stopped", slow, "--checkpoint_every_steps", "1")
    until(entered, child)
    child.send(signal.SIGTERM, "group")
    child.send(signal.SIGTERM, "process")  # a scheduler may reach a process twice with one request
    time.sleep(0.8)
    assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
    sent = time.monotonic()
    child.send(signal.SIGINT, "process")
    assert child.wait(10.0) == 128 + signal.SIGINT
    assert time.monotonic() - sent < 1.0
    assert begin("stopped", lambda _: None, "--checkpoint_every_steps", "1").wait(120.0) == 0, "and the run goes on"


def test_before_training_nothing_is_lost(begin: Callable[..., Child], quick_build: None, tmp_path: Path) -> None:
    assert begin("run", lambda _: None).wait(120.0) == 0
    folder, entered = tmp_path / "run" / "run", tmp_path / "entered"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def slow(patch: pytest.MonkeyPatch) -> None:
        once = _at_call(1, entered, 60.0)
        opened = open_data.training_data
        patch.setattr(open_data, "training_data", lambda *words: (once(), opened(*words))[1])

    child = begin("run", slow)
    until(entered, child)
    child.send(signal.SIGUSR1, "process")
    assert child.wait(5.0) == 75
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_time_limit_holds_where_validation_is_longer_than_steps(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path
) -> None:
    """A validation of 0.9 s in a run of four seconds: broken off between its batches, not waited for."""
    flags = ["--validate_every_steps", "1", "--epochs", "500"]
    began = time.monotonic()
    limited = begin("run", lambda patch: slow_validation(patch, tmp_path / "entered"), *flags, "--time_limit", "0:06")
    assert limited.wait(60.0) == 75
    assert time.monotonic() - began < 6.0
    assert "time limit" in (tmp_path / "stderr").read_text()


def test_the_end_of_a_slurm_allocation_is_kept(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = time.time() + 5.0
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(end)))
    assert begin("run", lambda _: None, "--epochs", "5000").wait(60.0) == 75
    assert time.time() < end
    assert "end of the scheduler's allocation" in (tmp_path / "stderr").read_text()


def test_workers_die_with_a_killed_run(begin: Callable[..., Child], quick_build: None, tmp_path: Path) -> None:
    entered = tmp_path / "entered"
    child = begin("run", lambda patch: stalled_data(patch, entered), "--num_workers", "2")
    until(entered, child)
    assert len(child.orphans()) > 1
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    time.sleep(0.5)
    assert child.orphans() == []


torch.set_num_threads(1)  # forked processes must not inherit a pool of threads
