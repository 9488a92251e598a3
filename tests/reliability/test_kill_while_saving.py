"""Killed at any moment of its saves, a run keeps all that it reported as saved, whole,
and nothing half written.

A child kills itself at the n-th call to the system, for every n of a save, so that the same happens
everywhere. Kills from outside at random moments come besides; how many of these fall into a save is
asked in ``make battery`` alone.
"""

import errno
import itertools
import json
import os
import random
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from conftest import TINY
from dataloader import durable
from losses import Loss, sum_names
from model_utils import model_loader
from model_utils.files import checkpoint, run_lock
from model_utils.files.generations import previous_generation
from model_utils.files.outputs import Outputs
from model_utils.metrics import metrics
from model_utils.model_loader import PairWriter
from model_utils.models import description as model_json
from model_utils.run.beginnings import resuming
from model_utils.run.fit import TrainRecord
from model_utils.run.folder import metrics_file
from model_utils.run.folder.metrics_file import MetricsFile
from reliability.conftest import FULL, amount

MESSAGE = struct.Struct("<cq")  # what has happened, and its step
# s from a child's first step to its end; a checkpoint takes 3 to 15 ms, a best model 25 ms
ANY_TIME = 0.06
# s from the begin of a write to the end: most of a save makes bytes, and is no danger
IN_A_WRITE = 0.003
# to the system, in which a save may be killed
CALLS = ("open", "write", "fsync", "close", "replace", "link")
EVERY_CALL = 24  # more than the records, the best model and the checkpoint of a step take
MOMENTS = (0, 1_000, 100_000)  # numbers in the state besides the weights: files of 30 kB to 0.8 MB
FOUND = metrics([1.0] * len(sum_names()), Loss.of())


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return model_loader.build(model_json.parse(json.dumps(TINY), "tiny"), torch.float64, seed=1)


@dataclass
class Count:
    """What many kills have led to."""

    kills: int = 0
    inside_a_save: int = 0
    inside_a_write: int = 0
    saves: int = 0
    leftovers: int = 0  # temporary files of the dead, before the next process took the lock
    left_for_good: int = 0
    lost: int = 0  # nothing loads any more
    older: int = 0  # than the last step that was reported as saved
    mixed: int = 0  # parts of several steps in one file, or records that do not fit
    fell_back: int = 0  # to the generation before, where that held the step
    errors: int = 0  # the child ended in another way than by the kill
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A stand-in for a run: its places, its network, and how many numbers its optimizer has."""

    outputs: Outputs
    writer: PairWriter
    module: nn.Module
    n_moments: int
    rng: random.Random
    fatal_call: int = 0  # in which the child kills itself; 0: it is killed from outside

    def save_for_ever(self, first: int, offset: int, tell: Callable[[bytes, int], None]) -> None:
        """Save one step after another, now and then as the best too, and
        tell when each is durable.
        """
        write = durable.write

        def write_and_tell(path: Path, data: bytes, *, previous: Path | None = None) -> None:
            tell(b"w", 0)
            write(path, data, previous=previous)
            tell(b"W", 0)

        durable.write = write_and_tell  # in this child only
        if self.fatal_call:
            durable.os = metrics_file.os = Deadly(durable.os, self.fatal_call)  # type: ignore[attr-defined]
        with run_lock.held(self.outputs.lock, wait=False):
            records = MetricsFile(self.outputs.metrics, offset=offset, step=first - 1)
            tell(b"r", 0)
            for step in itertools.count(first):
                with torch.no_grad():
                    for parameter in model_loader.trainable(self.module).values():
                        parameter.fill_(step)
                records.train(record(step))
                if self.fatal_call or self.rng.random() < 0.2:
                    tell(b"m", step)
                    weights = model_loader.trainable(self.module)
                    self.writer.save_best(weights, weights="raw", epoch=0, step=step, metrics=FOUND)
                    tell(b"M", step)
                tell(b"c", step)
                self.writer.save_checkpoint(self.module, self.state(step, records.offset()))
                tell(b"C", step)

    def state(self, step: int, offset: int) -> dict[str, Any]:
        moments = torch.full((self.n_moments,), float(step), dtype=torch.float64)
        optimizer = {
            "state": {
                0: {
                    "step": torch.tensor(float(step)),
                    "exp_avg": moments,
                    "exp_avg_sq": moments + 0,
                }
            }
        }
        return {
            "epoch": 0,
            "step": step,
            "metrics_offset": offset,
            "optimizer": optimizer,
            "rng": torch.get_rng_state(),
        }


class Deadly:
    """Stands in for ``os``; of its calls the n-th is the last, and a write is half done then."""

    def __init__(self, real: Any, n: int) -> None:
        self._real, self._left = real, n

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, name) if name in CALLS else getattr(self._real, name)

    def _call(self, name: str, *arguments: Any, **names: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            if name == "write":
                self._real.write(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._real, name)(*arguments, **names)


def record(step: int) -> TrainRecord:
    numbers = {"gradient_norm": 1.0, "gradient_norm_max": 1.0, "clipped_share": 0.0, "seconds": 1.0}
    return TrainRecord(epoch=1, step=step, lr=0.01, metrics=FOUND, whole_epoch=False, **numbers)


def killed(run: Run, first: int, offset: int, at_write: int) -> list[tuple[bytes, int]]:
    """What a child told until it was killed: by itself, in its n-th write, or for 0 at
    any time after it began.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _save_and_never_return(run, first, offset, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as stream:
        told: list[tuple[bytes, int]] = []
        while run.fatal_call or not told or sum(what == b"w" for what, _ in told) < at_write:
            if not (message := stream.read(MESSAGE.size)):
                break  # it ended by itself
            told.append(MESSAGE.unpack(message))
        if not run.fatal_call:
            time.sleep(run.rng.uniform(0.0, IN_A_WRITE if at_write else ANY_TIME))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        told.extend(MESSAGE.iter_unpack(stream.read()))
    return told if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else [*told, (b"e", 0)]


def _save_and_never_return(run: Run, first: int, offset: int, pipe: int) -> NoReturn:
    try:
        run.save_for_ever(
            first, offset, lambda what, step: (os.write(pipe, MESSAGE.pack(what, step)), None)[1]
        )
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def many_kills(
    folder: Path, module: nn.Module, n: int, seed: int, *, at_every_call: bool = False
) -> Count:
    """Kill the saves of one run again and again; each child goes on where the one before it ended.

    Args:
        folder: of the run.
        module: its network.
        n: number of kills.
        seed: of their moments, and of what the children save.
        at_every_call: kill in the n-th call to the system, then in the one before it, and so on,
            not at random moments.
    """
    folder.mkdir()
    outputs = Outputs.named(folder / "run_checkpoint.pt", None)
    writer = PairWriter(
        outputs, model_json.parse(json.dumps(TINY), "tiny"), module, {"torch": "test"}
    )
    rng, count, began = random.Random(), Count(), time.monotonic()
    saved = best = offset = 0
    for number in range(n):
        rng.seed(seed + number)
        fatal_call, n_moments = n - number if at_every_call else 0, rng.choice(MOMENTS)
        places = {"outputs": outputs, "writer": writer, "module": module}
        run = Run(**places, n_moments=n_moments, rng=rng, fatal_call=fatal_call)
        told = killed(run, saved + 1, offset, at_write=rng.randrange(4))
        done = dict(told)
        count.kills += 1
        count.errors += b"e" in done
        count.inside_a_save += [what for what, _ in told if what in b"rmcMC"][-1:] in (
            [b"m"],
            [b"c"],
        )
        count.inside_a_write += [what for what, _ in told if what in b"wW"][-1:] == [b"w"]
        count.saves += sum(what in (b"M", b"C") for what, _ in told)
        reported, reported_best = done.get(b"C", saved), done.get(b"M", best)

        count.leftovers += len(list(durable.temporary_files(folder)))
        with run_lock.held(outputs.lock, wait=False):
            count.left_for_good += len(list(folder.glob(".*.tmp")))
        saved, offset = _look_at_checkpoint(outputs, reported, count)
        if b"m" in done:  # else it is the one that was looked at before
            best = _look_at_best(outputs, reported_best, count)
    count.seconds = round(time.monotonic() - began, 1)
    return count


def _look_at_checkpoint(outputs: Outputs, reported: int, count: Count) -> tuple[int, int]:
    """The step that loads and its place in metrics.jsonl, judged."""
    try:
        file = resuming.newest_checkpoint(outputs.checkpoint)
        assert file is not None or reported == 0
    except Exception:
        count.lost += 1
        for path in (outputs.checkpoint, previous_generation(outputs.checkpoint)):
            path.unlink(missing_ok=True)
        return reported, 0
    if file is None:
        return 0, 0
    state = file.content["train_state"]
    step, offset = int(state["step"]), int(state["metrics_offset"])
    count.older += step < reported
    count.fell_back += file.path != outputs.checkpoint
    moments = state["optimizer"]["state"][0]
    tensors = [file.tensors[name] for name in _names(file.tensors)] + [
        moments["exp_avg"],
        moments["step"],
    ]
    lines = outputs.metrics.read_bytes()[:offset].splitlines(keepends=True)
    whole = (
        len(lines) == step and lines[-1].endswith(b"\n") and json.loads(lines[-1])["step"] == step
    )
    count.mixed += not whole or any(bool((tensor != step).any()) for tensor in tensors)
    return step, offset


def _look_at_best(outputs: Outputs, reported: int, count: Count) -> int:
    if not outputs.model.exists():
        count.lost += reported > 0
        return 0
    try:
        file = checkpoint.read(outputs.model)
    except Exception:
        count.lost += 1
        outputs.model.unlink()
        return 0
    step = int(file.content["step"])
    count.older += step < reported
    count.mixed += any(bool((file.tensors[name] != step).any()) for name in _names(file.tensors))
    return step


def _names(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Those that the stand-in fills with the step."""
    return [name for name in TRAINED if name in tensors]


TRAINED: list[str] = []


@pytest.fixture(autouse=True)
def _trained_names(module: nn.Module) -> None:
    TRAINED[:] = list(model_loader.trainable(module))


class WithoutLinks:
    """``os`` as on a file system without hard links."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def link(source: str, target: str, **_: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))


@pytest.mark.parametrize("links", ["links", "no links"])
def test_a_kill_in_any_call_loses_nothing(
    links: str, module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if links == "no links":
        monkeypatch.setattr(durable, "os", WithoutLinks())
    count = many_kills(tmp_path / "run", module, EVERY_CALL, seed=0, at_every_call=True)
    assert not any((count.lost, count.older, count.mixed, count.errors, count.left_for_good)), count
    assert (count.fell_back > 0) == (links == "no links"), (
        "then the newest has no name for a moment"
    )
    assert min(count.inside_a_save, count.inside_a_write, count.leftovers) >= EVERY_CALL // 3


@pytest.mark.parametrize(
    ("links", "n"), [("links", amount(12, 1000)), ("no links", amount(4, 300))]
)
def test_a_kill_loses_nothing(
    links: str,
    n: int,
    module: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    if links == "no links":
        monkeypatch.setattr(durable, "os", WithoutLinks())
    count = many_kills(tmp_path / "run", module, n, seed=1000 * len(links))
    show(f"kill -9, {links}", count, record_property)
    assert not any((count.lost, count.older, count.mixed, count.errors, count.left_for_good)), count
    assert count.fell_back == 0 or links == "no links"  # a kill damages no file
    if FULL:  # of a few, all may fall beside a write
        assert count.inside_a_save >= n // 3
        assert count.leftovers > 0
        assert count.inside_a_write >= n // 10


def test_files_written_in_place_are_lost(
    module: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """The same kills find the fault in the writer that most scripts have."""

    def write_in_place(path: Path, data: bytes, *, previous: Path | None = None) -> None:
        descriptor = durable.os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        durable.os.write(descriptor, data)
        durable.os.fsync(descriptor)
        durable.os.close(descriptor)

    monkeypatch.setattr(durable, "write", write_in_place)
    n = amount(12, 300)
    count = many_kills(tmp_path / "run", module, n, seed=5000, at_every_call=not FULL)
    show("kill -9, files overwritten in place", count, record_property)
    assert count.lost > 0
    assert count.errors == 0


def test_reports_that_come_too_early_are_noticed(
    module: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """A writer that returns before its file stands leaves one that is older
    than what was reported.
    """
    write = durable.write

    def write_the_one_before(path: Path, data: bytes, *, previous: Path | None = None) -> None:
        waiting.setdefault(path, []).append((data, previous))
        if len(waiting[path]) > 1:
            content, name = waiting[path].pop(0)
            write(path, content, previous=name)

    waiting: dict[Path, list[tuple[bytes, Path | None]]] = {}
    monkeypatch.setattr(durable, "write", write_the_one_before)
    count = many_kills(tmp_path / "run", module, 10, seed=6000, at_every_call=True)
    show("kill -9, reported before written", count, record_property)
    assert count.older + count.lost > 0


def test_what_the_dead_left_beside_a_model_elsewhere_is_removed(
    train: Callable[..., Path], quick_build: None, tmp_path: Path
) -> None:
    model, run = tmp_path / "models" / "best_model.pt", tmp_path / "run"
    left: list[Path] = []
    for path in (model, Outputs.named(run, None).checkpoint):
        path.parent.mkdir()
        child = os.fork()
        if child == 0:
            durable._temporary(path).write_bytes(b"half")
            os._exit(0)
        os.waitpid(child, 0)
        left.extend(durable.temporary_files(path.parent))
    assert len(left) == 2
    train("run", "--output_model", str(model))
    assert not any(path.exists() for path in left), left


def show(name: str, count: Count, record_property: Callable[[str, object], None]) -> None:
    for key, value in asdict(count).items():
        record_property(key, value)
    print(f"{name}: {', '.join(f'{value} {key}' for key, value in asdict(count).items())}")
