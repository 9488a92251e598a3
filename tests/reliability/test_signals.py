"""Signals to the process or its group, whatever the run is doing: what is under way is
finished, saved, and exit 75.

A child tells when it is where it is to be signalled, and stays there until the signal has been
sent. How many seconds it all takes is looked at in ``make battery`` alone, for a machine on
which nothing else runs.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import HANGING, living, wait_until
from dataloader import durable, parallel
from model_utils import train_mace
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.run import evaluation, fit, interruption
from model_utils.run.data import open_data
from model_utils.run.folder import run_files
from model_utils.run.folder.run_files import RunFiles
from model_utils.run.train_state import TrainState
from model_utils.tasks.same_bits import differences
from reliability.conftest import FULL

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TARGETS = ("process", "group")
LIMIT = 2.0  # s beyond what is under way, on a quiet machine
AT_STEP = 3
FOR_EVER = 3600.0  # s: longer than anybody waits for an exit code


class Meeting:
    """Where a child is to be signalled: it says that it is there, and goes
    on when it is told to.
    """

    def __init__(self, folder: Path) -> None:
        self.reached, self.over = folder / "reached", folder / "over"

    def hold(self) -> None:
        """In the child: say so and stay."""
        with self.reached.open("a") as file:
            file.write(".")
        while not self.over.exists():
            time.sleep(0.005)


Slow = Callable[[pytest.MonkeyPatch, Meeting], None]


def in_a_step(patch: pytest.MonkeyPatch, meeting: Meeting) -> None:
    hold = _at_call(AT_STEP, meeting.hold)
    gradients = fit.loss_and_gradients
    patch.setattr(fit, "loss_and_gradients", lambda *words: (hold(), gradients(*words))[1])


def in_a_validation(patch: pytest.MonkeyPatch, meeting: Meeting) -> None:
    """In every batch of the validation after the first step; the first of them is the last."""
    steps, evaluate = [], evaluation.evaluate
    gradients = fit.loss_and_gradients
    patch.setattr(fit, "loss_and_gradients", lambda *words: (steps.append(1), gradients(*words))[1])

    def slowly(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if steps:
                meeting.hold()
            yield batch

    def evaluate_slowly(network: Any, weights: Any, batches: Any, *rest: Any, **named: Any) -> Any:
        return evaluate(network, weights, slowly(batches), *rest, **named)

    patch.setattr(evaluation, "evaluate", evaluate_slowly)


def in_a_data_stall(patch: pytest.MonkeyPatch, meeting: Meeting) -> None:
    """A worker that hangs in a read, as on a file system that went away."""
    from dataloader.dataset import Dataset

    def hang() -> None:
        meeting.reached.touch()
        time.sleep(FOR_EVER)

    once, batch = _at_call(AT_STEP, hang), Dataset.batch
    patch.setattr(Dataset, "batch", lambda self, indices: (once(), batch(self, indices))[1])


def in_a_save(patch: pytest.MonkeyPatch, meeting: Meeting) -> None:
    """While the checkpoint of a step is brought to the disk."""
    sync, save = os.fsync, RunFiles.save
    hold = _at_call(1, meeting.hold)
    saving = []

    def save_and_note(self: RunFiles, state: TrainState, reason: str) -> bool:
        saving[:] = [state.progress.step]
        done = save(self, state, reason)
        saving.clear()
        return done

    def sync_or_stay(descriptor: int) -> None:
        if saving == [AT_STEP]:
            hold()
        sync(descriptor)

    patch.setattr(RunFiles, "save", save_and_note)
    patch.setattr(durable.os, "fsync", sync_or_stay)


def _at_call(number: int, act: Callable[[], None]) -> Callable[[], None]:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            act()

    return call


# flags, and the step that may be saved
PHASES: dict[str, tuple[Slow, list[str], tuple[int, ...]]] = {
    "step": (in_a_step, [], (AT_STEP,)),
    "validation": (in_a_validation, ["--validate_every_steps", "1"], (1,)),
    # a worker is ahead of the steps
    "data stall": (in_a_data_stall, ["--num_workers", "1"], tuple(range(AT_STEP))),
    "save": (in_a_save, ["--checkpoint_every_steps", "1"], (AT_STEP,)),
}
CASES = list(product(PHASES, SIGNALS, TARGETS))
if not FULL:  # every phase with every target, every signal with every target
    CASES = [
        case for i, case in enumerate(CASES) if i % 6 in ((0, 3), (2, 5), (1, 4), (0, 5))[i // 6]
    ]


class Child:
    """A run in a forked process with a group of its own; forked, so that imports are paid once."""

    def __init__(
        self, arguments: list[str], patch_up: Callable[[pytest.MonkeyPatch], None], errors: Path
    ) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            # whatever this process was started with, as by nohup
            for number in parallel.SIGNALS:
                signal.signal(
                    number,
                    signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                )
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(errors, "w")  # noqa: SIM115
            try:
                patch_up(pytest.MonkeyPatch())
                interruption.leave(train_mace.main(arguments))
            finally:
                os._exit(99)

    def send(self, number: signal.Signals, target: str) -> None:
        (os.killpg if target == "group" else os.kill)(self.pid, number)

    def wait(self) -> int:
        """Exit code."""
        end = time.monotonic() + HANGING
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {HANGING:.0f} s")

    def lives(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Wait for something that it does; it may not end before."""

        def reached_or_over() -> bool:
            assert self.lives(), f"ended before {what}"
            return bool(reached())

        wait_until(reached_or_over, what)


@pytest.fixture
def begin(material: Path, tmp_path: Path) -> Callable[..., Child]:
    def go(name: str, patch_up: Callable[[pytest.MonkeyPatch], None], *flags: str) -> Child:
        words = [
            "--input_json",
            material / "tiny.json",
            "--xyz_train",
            material / "train.xyz",
            "--epochs",
            "4",
        ]
        words += ["--xyz_val", material / "val.xyz", "--batch_size", "2", "--log_every_steps", "1"]
        words += [
            "--no_export_mace_model",
            "--resume",
            "auto",
            "--output_checkpoint",
            tmp_path / name / "run",
        ]
        return Child([str(word) for word in (*words, *flags)], patch_up, tmp_path / "stderr")

    return go


def outputs_of(folder: Path) -> Outputs:
    return Outputs.named(folder / "run" / "run_checkpoint.pt", None)


@pytest.mark.parametrize(
    ("phase", "number", "target"), CASES, ids=lambda value: getattr(value, "name", value)
)
def test_what_is_under_way_is_finished_and_saved(
    phase: str,
    number: signal.Signals,
    target: str,
    begin: Callable[..., Child],
    quick_build: None,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    slow, flags, steps = PHASES[phase]
    meeting = Meeting(tmp_path)
    child = begin("stopped", lambda patch: slow(patch, meeting), *flags)
    child.until(meeting.reached.exists, f"the {phase}")
    child.send(number, target)
    sent = time.monotonic()
    meeting.over.touch()
    code = child.wait()
    seconds = time.monotonic() - sent
    record_property("seconds", seconds)
    said = (tmp_path / "stderr").read_text()
    assert code == 75, said
    assert said.startswith(f"stopped: {number.name}: saved at step ")
    assert len(said.splitlines()) == 1
    assert living(child.pid) == []
    assert len(meeting.reached.read_text()) <= 1, (
        "no batch of a validation after the one that was under way"
    )
    state = checkpoint.read(outputs_of(tmp_path / "stopped").checkpoint).content["train_state"]
    assert state["reason"] == number.name
    assert state["step"] in steps, "no step after the one that was under way"
    assert seconds < LIMIT or not FULL, f"{seconds:.2f} s"
    if FULL or number == signal.SIGTERM:
        for name in ("stopped", "whole"):
            assert begin(name, lambda _: None, *flags).wait() == 0
        assert differences(outputs_of(tmp_path / "whole"), outputs_of(tmp_path / "stopped")) == []


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP])
def test_other_words_for_an_end(
    number: signal.Signals, begin: Callable[..., Child], quick_build: None, tmp_path: Path
) -> None:
    """Of a scheduler, of a limit of CPU time, which says so every second, of a closed terminal."""
    meeting = Meeting(tmp_path)
    child = begin("stopped", lambda patch: in_a_step(patch, meeting))
    child.until(meeting.reached.exists, "the step")
    child.send(number, "process")
    if number == signal.SIGXCPU:
        time.sleep(2 * interruption.ONE_DELIVERY)
        child.send(number, "process")
    meeting.over.touch()
    assert child.wait() == 75
    assert (tmp_path / "stderr").read_text().startswith(f"stopped: {number.name}: saved at step ")


def test_a_closed_terminal_is_nothing_to_nohup(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path
) -> None:
    meeting = Meeting(tmp_path)

    def deaf(patch: pytest.MonkeyPatch) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        in_a_step(patch, meeting)

    child = begin("whole", deaf)
    child.until(meeting.reached.exists, "the step")
    child.send(signal.SIGHUP, "group")
    meeting.over.touch()
    assert child.wait() == 0


class Clock:
    """Stands in for ``time`` where a run looks whether it is asked to stop; goes
    on when it is told to.
    """

    def __init__(self, file: Path) -> None:
        # has a byte for every hundredth of a second, so that others see and move it
        self.file = file

    def monotonic(self) -> float:
        return self.file.stat().st_size / 100 if self.file.exists() else 0.0

    def time(self) -> float:
        return 1e9 + self.monotonic()

    def rules(self, patch: pytest.MonkeyPatch) -> None:
        """By it alone a run decides; a save takes no time then, however slow the disk is."""
        patch.setattr(interruption, "time", self)
        patch.setattr(run_files, "time", self)

    def pass_by(self, seconds: float) -> None:
        with self.file.open("ab") as file:
            file.write(bytes(round(100 * seconds)))


def test_a_second_signal_leaves_at_once(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path
) -> None:
    """Though the save never ends; but not at the second delivery of one request,
    as schedulers make them.
    """
    meeting, clock, heard = Meeting(tmp_path), Clock(tmp_path / "clock"), tmp_path / "heard"

    class HeardClock(Clock):
        def monotonic(self) -> float:
            if threading.current_thread() is not threading.main_thread():  # the one that listens
                with heard.open("ab") as file:
                    file.write(b".")
            return super().monotonic()

    def stuck(patch: pytest.MonkeyPatch) -> None:
        in_a_save(patch, meeting)
        patch.setattr(interruption, "time", HeardClock(clock.file))

    def send(number: signal.Signals, target: str, hearings: int) -> None:
        child.send(number, target)
        child.until(lambda: heard.exists() and heard.stat().st_size == hearings, "it has heard")

    child = begin("stopped", stuck, "--checkpoint_every_steps", "1")
    child.until(meeting.reached.exists, "the save")
    send(signal.SIGTERM, "group", 1)
    clock.pass_by(0.02)
    send(signal.SIGTERM, "process", 2)
    clock.pass_by(0.8)
    assert child.lives()
    child.send(signal.SIGINT, "process")
    assert child.wait() == 128 + signal.SIGINT
    assert not meeting.over.exists()
    assert begin("stopped", lambda _: None, "--checkpoint_every_steps", "1").wait() == 0, (
        "and the run goes on"
    )


def test_before_training_nothing_is_lost(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path
) -> None:
    assert begin("run", lambda _: None).wait() == 0
    folder, entered = tmp_path / "run" / "run", tmp_path / "entered"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def slow(patch: pytest.MonkeyPatch) -> None:
        opened = open_data.training_data
        hang = _at_call(1, lambda: (entered.touch(), time.sleep(FOR_EVER))[1])
        patch.setattr(open_data, "training_data", lambda *words: (hang(), opened(*words))[1])

    child = begin("run", slow)
    child.until(entered.exists, "the data are read")
    child.send(signal.SIGUSR1, "process")
    assert child.wait() == 75
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_time_limit_holds_where_validation_is_longer_than_steps(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path
) -> None:
    """Three batches of 0.5 s in a validation, in a run of six seconds: broken off
    between them, not waited for.
    """
    clock = Clock(tmp_path / "clock")

    def slow(patch: pytest.MonkeyPatch) -> None:
        evaluate = evaluation.evaluate

        def slowly(batches: Iterable[Any]) -> Iterator[Any]:
            for batch in batches:
                clock.pass_by(0.5)
                yield batch

        def evaluate_slowly(
            network: Any, weights: Any, batches: Any, *rest: Any, **named: Any
        ) -> Any:
            return evaluate(network, weights, slowly(batches), *rest, **named)

        patch.setattr(evaluation, "evaluate", evaluate_slowly)
        clock.rules(patch)

    flags = ["--validate_every_steps", "1", "--epochs", "500", "--time_limit", "0:06"]
    assert begin("run", slow, *flags).wait() == 75
    assert 1.5 <= clock.monotonic() <= 6.0 - interruption.RESERVE
    assert "time limit" in (tmp_path / "stderr").read_text()


def test_the_end_of_a_slurm_allocation_is_kept(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(tmp_path / "clock")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(clock.time()) + 5))

    def slow(patch: pytest.MonkeyPatch) -> None:
        gradients = fit.loss_and_gradients
        patch.setattr(
            fit, "loss_and_gradients", lambda *words: (clock.pass_by(0.1), gradients(*words))[1]
        )
        clock.rules(patch)

    assert begin("run", slow, "--epochs", "5000").wait() == 75
    assert 0.1 <= clock.monotonic() <= 5.0 - interruption.RESERVE
    assert "end of the scheduler's allocation" in (tmp_path / "stderr").read_text()


def test_workers_die_with_a_killed_run(
    begin: Callable[..., Child], quick_build: None, tmp_path: Path
) -> None:
    meeting = Meeting(tmp_path)
    child = begin("run", lambda patch: in_a_data_stall(patch, meeting), "--num_workers", "2")
    child.until(meeting.reached.exists, "the data stall")
    assert len(living(child.pid)) > 1
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    wait_until(lambda: not living(child.pid), "the end of the workers")


torch.set_num_threads(1)  # forked processes must not inherit a pool of threads
