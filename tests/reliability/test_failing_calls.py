"""Where the disk refuses a call, any call, a run keeps what it had, says so in one line,
and loses nothing later.
"""

import errno
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import TINY, pausing, wait_until
from dataloader import durable, parallel
from losses import Loss, sum_names
from model_utils import model_loader, runtime, train_mace
from model_utils.errors import SaveError, cannot_write
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.metrics import metrics
from model_utils.model_loader import PairWriter
from model_utils.models import description as model_json
from model_utils.run import fit, training
from model_utils.run.beginnings import resuming
from model_utils.run.fit import TrainRecord
from model_utils.run.fit_plan import Stage
from model_utils.run.folder import metrics_file
from model_utils.run.folder.run_files import RunFiles
from model_utils.run.train_state import TrainState
from model_utils.tasks.same_bits import differences
from reliability.conftest import FULL, amount

CODES = ("ENOSPC", "EIO", "EROFS", "EDQUOT")
CALLS = ("open", "write", "fsync", "close", "replace", "link", "unlink")
FOUND = metrics([1.0] * len(sum_names()), Loss.of())
FOR_EVER = 10**9
# sizes that a short write takes all of: neither records nor whole files
WHOLE = {*range(150), *range(2_000, 20_000)}
Train = Callable[..., Path]
Note = Callable[[str, object], None]


class Disk:
    """Stands in for ``os`` in the modules that write files, and refuses the n-th of its
    calls and those after it.
    """

    def __init__(self) -> None:
        self._real = {name: getattr(os, name) for name in CALLS}
        # are there hard links; does a write take all it is given
        self.links, self.short = True, False
        self.spare()

    def refuse(self, n: int, code: str, times: int = 1) -> None:
        """From the n-th call on, so many times."""
        self.spare()
        self._first, self._times, self._code = n, times, getattr(errno, code)

    def spare(self) -> None:
        """Refuse nothing."""
        self._first, self._times, self._code = FOR_EVER, 0, 0
        self.calls = 0
        self.refused: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            return getattr(os, name)
        return lambda *arguments, **names: self.call(name, *arguments, **names)

    def call(self, name: str, *arguments: Any, **names: Any) -> Any:
        """One call, counted."""
        self.calls += 1
        if self._first <= self.calls < self._first + self._times:
            self.refused.append(name)
            if name == "close":  # what it says of the data, the descriptor is gone
                self._real[name](*arguments)
            raise OSError(
                self._code,
                os.strerror(self._code),
                None if isinstance(arguments[0], int) else arguments[0],
            )
        if name == "link" and not self.links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if name == "write" and self.short and len(arguments[1]) not in WHOLE:
            return self._real[name](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        return self._real[name](*arguments, **names)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(durable, "os", disk)
    monkeypatch.setattr(metrics_file, "os", disk)
    unlink = os.unlink

    def unlink_temporary(path: Any, **names: Any) -> None:  # pathlib's way to it
        disk.call("unlink", path) if str(path).endswith(".tmp") else unlink(path, **names)

    monkeypatch.setattr(os, "unlink", unlink_temporary)
    return disk


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return model_loader.build(model_json.parse(json.dumps(TINY), "tiny"), torch.float64, seed=1)


def temporary_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*.tmp"))


def newest_step(outputs: Outputs) -> int:
    file = resuming.newest_checkpoint(outputs.checkpoint)
    return -1 if file is None else int(file.content["train_state"]["step"])


def how_long(value: object) -> str | None:
    """For the name of a test."""
    words = {1: "once", 6: "for a while", FOR_EVER: "for ever"}
    if isinstance(value, tuple):
        return f"{value[0]} {words[value[1]]}"
    return words[value] if isinstance(value, int) else None


WAYS = (
    [(code, times) for code in CODES for times in (1, FOR_EVER)]
    if FULL
    else [("ENOSPC", FOR_EVER), ("EIO", 1)]
)
EVERYWHERE = list(itertools.product(WAYS, ["whole writes", "short writes"], ["links", "no links"]))


@pytest.mark.parametrize(
    ("way", "writes", "links"),
    EVERYWHERE
    if FULL
    else [(WAYS[0], "short writes", "no links"), (WAYS[1], "whole writes", "links")],
    ids=how_long,
)
def test_every_call_of_a_save_refused(
    way: tuple[str, int],
    writes: str,
    links: str,
    disk: Disk,
    module: nn.Module,
    tmp_path: Path,
    record_property: Note,
) -> None:
    code, times = way
    began, refused = time.monotonic(), set()
    disk.short, disk.links = writes == "short writes", links == "links"
    outputs = Outputs.named(tmp_path / "run_checkpoint.pt", None)
    writer = PairWriter(
        outputs, model_json.parse(json.dumps(TINY), "tiny"), module, {"torch": "test"}
    )
    weights = model_loader.trainable(module)

    def save(step: int) -> list[OSError]:
        errors = []
        for part in (
            lambda: writer.save_best(weights, weights="raw", epoch=0, step=step, metrics=FOUND),
            lambda: writer.save_checkpoint(module, {"epoch": 0, "step": step}),
        ):
            try:
                part()
            except OSError as error:
                errors.append(error)
        return errors

    assert save(0) == []
    for n in itertools.count(1):
        disk.refuse(n, code, times)
        errors = save(n)
        refused.update(disk.refused)
        assert [type(error) for error in errors] in (
            [],
            [durable.NotWritten],
            [durable.NotWritten] * 2,
        )
        assert {error.errno for error in errors} <= {getattr(errno, code)}
        assert all(
            " bytes needed, " in str(error) and str(tmp_path) in str(error) for error in errors
        )
        assert temporary_files(tmp_path) == [] or "unlink" in disk.refused
        assert newest_step(outputs) in (n - 1, n)
        assert checkpoint.read(outputs.model).content["step"] in (n - 1, n)
        if not disk.refused:
            break
        disk.spare()
        writer.save_checkpoint(module, {"epoch": 0, "step": n})
        assert newest_step(outputs) == checkpoint.read(outputs.model).content["step"] == n
        assert temporary_files(tmp_path) == []
    assert refused == set(CALLS)
    assert errors == []
    assert n >= 18
    figures = {"cases": n, "failures": 0, "seconds": time.monotonic() - began}
    show(f"{how_long(way)}, {writes}, {links}", figures, record_property)


class Reached(BaseException):
    """The loop of a run would begin."""


@pytest.fixture
def run_files(
    train: Train, quick_build: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunFiles, TrainState]:
    """The files and the state of a real run, taken from it where its loop would begin."""
    reached: list[Any] = []

    def stop(state: TrainState, data: Any, plan: Any, hooks: fit.Hooks) -> None:
        reached.extend([hooks.save.__self__, state])  # type: ignore[attr-defined]
        raise Reached

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", stop)
        with pytest.raises(Reached):
            train("run")
    files, state = reached
    return files, state


@contextmanager
def warnings_of_the_run() -> Iterator[list[str]]:
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    keeper = Keeper(logging.WARNING)
    runtime.log.addHandler(keeper)
    try:
        yield lines
    finally:
        runtime.log.removeHandler(keeper)


def a_record(step: int) -> TrainRecord:
    numbers = {"gradient_norm": 1.0, "gradient_norm_max": 1.0, "clipped_share": 0.0, "seconds": 1.0}
    return TrainRecord(epoch=1, step=step, lr=0.01, metrics=FOUND, whole_epoch=True, **numbers)


def recorded_steps(outputs: Outputs, offset: int | None = None) -> list[int]:
    return [json.loads(line)["step"] for line in outputs.metrics.read_bytes()[:offset].splitlines()]


@pytest.mark.parametrize(("code", "times"), WAYS if FULL else WAYS[:1], ids=how_long)
def test_a_save_that_fails_is_one_warning_and_no_loss(
    code: str, times: int, disk: Disk, run_files: tuple[RunFiles, TrainState], record_property: Note
) -> None:
    began, (files, state) = time.monotonic(), run_files
    outputs, failed, kept = files.outputs, 0, 0
    disk.spare()
    assert files.save(state, "start")
    for n in itertools.count(1):
        state.progress.step = n
        disk.short = n % 2 == 0
        disk.refuse(n, code, times)
        files.on_train(a_record(n))
        with warnings_of_the_run() as waiting:
            files.on_best(state, FOUND)
        with warnings_of_the_run() as warnings:
            saved = files.save(state, "interval")
        refused = disk.refused
        disk.spare()
        assert len(warnings) == (not saved), warnings
        assert all(f"step {n} is not saved" in line and "\n" not in line for line in warnings)
        assert all(os.strerror(getattr(errno, code)) in line for line in [*waiting, *warnings])
        assert len(waiting) <= 1
        assert saved or refused
        failed += not saved
        # a save whose last step failed may have come to the disk all the same
        kept = n if saved else kept
        assert newest_step(outputs) in range(kept, n + 1)
        # by a try before, where not even the folder opens now
        left = temporary_files(outputs.checkpoint.parent)
        assert left == [] or {"unlink", "open"} & set(refused)
        if not refused:
            break
        if n % 3 and not saved:
            continue  # the records of several steps wait
        assert files.save(state, "interval")
        kept = n
        file = resuming.newest_checkpoint(outputs.checkpoint)
        assert file is not None
        assert file.content["train_state"]["step"] == n
        assert recorded_steps(outputs, file.content["train_state"]["metrics_offset"]) == list(
            range(1, n + 1)
        )
        assert checkpoint.read(outputs.model).content["step"] == n
    files.close()
    assert recorded_steps(outputs) == list(range(1, n + 1))
    assert failed >= 5
    figures = {"cases": n, "failures": 0, "seconds": time.monotonic() - began}
    show(f"{code} {how_long(times)}, RunFiles.save", figures, record_property)


@pytest.mark.parametrize("code", CODES if FULL else ["ENOSPC"])
def test_the_last_save_that_fails_says_what_it_needs(
    code: str, disk: Disk, run_files: tuple[RunFiles, TrainState]
) -> None:
    files, state = run_files
    outputs = files.outputs
    assert files.save(state, "start")
    disk.spare()
    files.save_last(state, "done")
    silent = []
    # with a record to write; the last two unlink what was renamed already and close the folder
    last = disk.calls
    for n in range(1, last + 1):
        state.progress.step = n
        disk.refuse(1, code, FOR_EVER)
        files.metrics.train(a_record(n))
        disk.refuse(n, code, FOR_EVER)
        before = newest_step(outputs)
        with pytest.raises(SaveError) if n < last else nullcontext() as error:
            files.save_last(state, "done")
        text = "" if error is None else str(error.value)
        if text and (" bytes needed, " not in text or str(outputs.checkpoint.parent) not in text):
            silent.append((n, text))
        disk.spare()
        assert newest_step(outputs) in (before, n)
        files.save_last(state, "done")
        assert newest_step(outputs) == n
    assert SaveError.exit_code == 5
    assert silent == []


@pytest.fixture
def endings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes of the runs that ``train`` makes; any of them will do for it."""
    codes, command = [], train_mace.main

    def main(argv: list[str]) -> int:
        codes.append(command(argv))
        return 0

    monkeypatch.setattr(train_mace, "main", main)
    return codes


@pytest.fixture
def refusing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, str, int], dict[str, int]]:
    """Let the disk refuse calls of the next run's loop; says which step was saved, and
    what the last save met.
    """
    loop, save, save_last = training.fit, RunFiles.save, RunFiles.save_last

    def prepare(n: int, code: str, times: int) -> dict[str, int]:
        found = {"refused": 0, "unlink": 0, "at the end": 0, "saved": -1}

        def loop_with_faults(*arguments: Any) -> None:
            disk.refuse(n, code, times)
            try:
                loop(*arguments)
            finally:
                found.update({"refused": len(disk.refused), "unlink": disk.refused.count("unlink")})
                disk.spare()

        def save_and_look(self: RunFiles, state: TrainState, reason: str) -> None:
            before = len(disk.refused)
            try:
                save_last(self, state, reason)
            finally:
                found["at the end"] = len(disk.refused) - before

        def save_and_note(self: RunFiles, state: TrainState, reason: str) -> bool:
            if done := save(self, state, reason):
                found["saved"] = state.progress.step
            return done

        monkeypatch.setattr(training, "fit", loop_with_faults)
        monkeypatch.setattr(RunFiles, "save_last", save_and_look)
        monkeypatch.setattr(RunFiles, "save", save_and_note)
        return found

    return prepare


@pytest.mark.parametrize(
    ("code", "times"),
    list(itertools.product(CODES, [1, 6])) if FULL else [("ENOSPC", 6), ("EIO", 1)],
    ids=how_long,
)
def test_a_run_on_a_disk_that_refuses_calls_equals_the_undisturbed_one(
    code: str,
    times: int,
    train: Train,
    quick_build: None,
    endings: list[int],
    refusing: Callable[[int, str, int], dict[str, int]],
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    record_property: Note,
) -> None:
    """Every call of the loop in ``make battery``; where even the last save fails, the run
    ends with 5 and resumes.
    """
    flags = [
        "--batch_size",
        "4",
        "--ema",
        "--checkpoint_every_steps",
        "2",
        "--stage_two",
        "--start_stage_two",
        "1",
    ]
    began, codes = time.monotonic(), {0: 0, 5: 0}
    whole = train("whole/run", *flags)
    stride, first = amount(150, 1), 1 + CODES.index(code) * 11 + (times > 1) * 5
    for n in itertools.count(1 if FULL else first, stride):
        monkeypatch.setattr(fit, "FIRST_RETRY", 0.0 if n % 2 else 30.0)
        found = refusing(n, code, times)
        capsys.readouterr()
        folder = train(f"{n}/run", *flags)
        stderr = capsys.readouterr().err
        assert endings[-1] in ((0, 5) if found["at the end"] else (0,)), (n, stderr)
        codes[endings[-1]] += 1
        assert temporary_files(folder) == [] or found["unlink"]
        if endings[-1] == 5:
            (line,) = stderr.splitlines()
            assert "not saved" in line
            assert newest_step(outputs_in(folder)) >= found["saved"]
            refusing(FOR_EVER, code, 0)
            train(f"{n}/run", *flags, "--resume", "auto")
            assert endings[-1] == 0
        else:
            assert stderr == ""
        assert differences(outputs_in(whole), outputs_in(folder)) == [], n
        shutil.rmtree(folder.parent)
        if not found["refused"]:
            break
    assert codes[0] > 0
    figures = {"cases": sum(codes.values()), "failures": 0, "ended with 5": codes[5]}
    name = f"{code} {how_long(times)}, whole run"
    show(name, {**figures, "seconds": time.monotonic() - began}, record_property)


def outputs_in(folder: Path) -> Outputs:
    return Outputs.named(folder / "run_checkpoint.pt", None)


@pytest.mark.parametrize(
    "times", [1, 3] if FULL else [3], ids=lambda times: "once" if times == 1 else "for a while"
)
def test_the_best_model_of_stage_one_outlives_a_full_disk(
    times: int, disk: Disk, train: Train, quick_build: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full just when stage two begins, and soon no more."""
    flags = ["--batch_size", "4", "--stage_two", "--start_stage_two", "1"]
    whole, begin = train("whole/run", *flags), RunFiles.on_stage

    def begin_on_a_full_disk(self: RunFiles, state: TrainState, stage: Stage) -> None:
        disk.refuse(1, "ENOSPC", times)
        begin(self, state, stage)

    monkeypatch.setattr(RunFiles, "on_stage", begin_on_a_full_disk)
    folder = train("run", *flags)
    assert disk.refused
    assert differences(outputs_in(whole), outputs_in(folder)) == []


@pytest.mark.parametrize("times", [1, FOR_EVER] if FULL else [FOR_EVER], ids=how_long)
def test_a_disk_that_refuses_calls_after_the_last_save(
    times: int,
    disk: Disk,
    train: Train,
    quick_build: None,
    endings: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The final record and the module for mace's calculator: no traceback, code 5 where
    one could not be written.
    """
    whole = train("whole/run", "--export_mace_model")
    loop = training.fit
    for n in itertools.count(1, amount(4, 1)):

        def refuse_afterwards(*arguments: Any, n: int = n) -> None:
            loop(*arguments)
            disk.refuse(n, "ENOSPC", times)

        monkeypatch.setattr(training, "fit", refuse_afterwards)
        capsys.readouterr()
        folder = train(f"{n}/run", "--export_mace_model")
        refused = disk.refused
        disk.spare()
        stderr = capsys.readouterr().err
        if endings[-1] != 0:
            assert endings[-1] == 5, stderr
            assert len(stderr.splitlines()) == 1
        else:
            assert differences(outputs_in(whole), outputs_in(folder)) == []
            assert outputs_in(folder).bare_module.exists()
        if not refused:
            break
    assert endings[-1] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a file system that holds the files of the tiny run and little more."""
    places: list[Path] = []

    def mount(size: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("only root may mount a file system")
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the room there is."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 6, 1):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                all(file.write(bytes(size)) for _ in itertools.count())
    return filler


@pytest.fixture(scope="module")
def undisturbed(
    material: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Outputs]:
    """Flags, and the files of the run that they make."""
    flags = [
        "--batch_size",
        "7",
        "--ema",
        "--epochs",
        "8",
        "--no_export_mace_model",
        "--input_json",
    ]
    flags += [str(material / "tiny.json"), "--xyz_train", str(material / "train.xyz")]
    flags += ["--xyz_val", str(material / "val.xyz")]
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train_mace.main([*flags, "--output_checkpoint", str(folder)]) == 0
    return flags, outputs_in(folder)


@pytest.mark.parametrize(
    "freed", [True, False] if FULL else [False], ids=lambda freed: "freed" if freed else "full"
)
def test_a_disk_that_is_really_full(
    freed: bool,
    undisturbed: tuple[list[str], Outputs],
    small_disk: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """From the third epoch on, in whose first step the run waits until the disk is full."""
    flags, whole = undisturbed
    place, in_the_third, full = small_disk("1500k"), tmp_path / "in_the_third", tmp_path / "full"
    command = [*pausing(5, in_the_third, full), *flags]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    filler: Path | None = None
    said: list[str] = []
    with subprocess.Popen(
        [*command, "--output_checkpoint", str(place / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            said.append(line)
            if "epoch 2 valid" in line:
                wait_until(in_the_third.exists, "the third epoch")
                filler = fill(place)
                full.touch()
            if freed and filler is not None and "is not saved" in line:
                filler.unlink()
        stderr = process.stderr.read()
    assert filler is not None
    assert any(
        "is not saved, tried again later" in line and " bytes needed, " in line for line in said
    ), said
    run = place / "run"
    if not freed:
        assert process.returncode == 5
        (line,) = stderr.splitlines()
        assert line.startswith("error: step 16 is not saved")
        assert " bytes needed, " in line
        assert temporary_files(run) == []
        assert 0 < newest_step(outputs_in(run)) < 16
        filler.unlink()
        assert train_mace.main([*flags, "--output_checkpoint", str(run), "--resume", "auto"]) == 0
    else:
        assert (process.returncode, stderr) == (0, "")
    assert differences(whole, outputs_in(run)) == []


@pytest.mark.parametrize("resumed", [False, True], ids=["new run", "resumed run"])
def test_a_disk_that_is_full_from_the_start(
    resumed: bool,
    train: Train,
    quick_build: None,
    small_disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and 5, the checkpoint that is there stays; with room, the run begins or goes on."""
    place = small_disk("1500k") / "run"
    if resumed:
        train(str(place))
    filler = fill(place.parent)
    capsys.readouterr()
    more = ["--resume", "auto", "--epochs", "3"] if resumed else ["--epochs", "3"]
    train(str(place), *more, code=5)
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(errno.ENOSPC) in line
    assert "make room" in line
    assert str(place) in line
    if resumed:
        assert newest_step(outputs_in(place)) > 0
    filler.unlink()
    train(str(place), "--resume", "auto", *more)


def show(name: str, figures: dict[str, float], record_property: Note) -> None:
    figures = {key: round(value, 1) for key, value in figures.items()}
    for key, value in figures.items():
        record_property(key, value)
    print(f"{name}: {', '.join(f'{value} {key}' for key, value in figures.items())}")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 5, "make room, and repeat the command"),
        (errno.EDQUOT, 5, "make room, and repeat the command"),
        (errno.ESTALE, 75, "is its file system there?"),
        (errno.EROFS, 2, "give another"),
        (errno.EACCES, 2, "give another"),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
def test_where_a_place_cannot_be_written_the_code_says_whether_to_try_again(
    number: int, code: int, words: str
) -> None:
    error = cannot_write("it", OSError(number, os.strerror(number)), "give another")
    assert error.exit_code == code  # type: ignore[attr-defined]
    assert words in str(error)
    assert os.strerror(number) in str(error)


def test_nobody_else_says_so() -> None:
    """A full disk is no fault of the words that were typed, whatever command meets it."""
    root = Path(__file__).resolve().parents[2]
    files = [
        path for part in ("model_utils", "dataloader") for path in root.glob(f"{part}/**/*.py")
    ]
    says = re.compile(r"InputError\(\s*f?.cannot (write|make|create) ")
    assert [path.name for path in files if says.search(path.read_text())] == []
    assert says.search('raise InputError(\n    f"cannot write {path}: {error.strerror}"\n)')


def no_room(number: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard_0000")


def test_a_child_without_room_says_so() -> None:
    with pytest.raises(SaveError, match=r"shard_0000.*make room"):
        list(parallel.in_children(no_room, [1, 2], processes=2))
