"""What a run says cannot end it: every stream and file it adds to, refused for a while, for
ever, or by its reader.
"""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import read_model
from conftest import HANGING, wait_until
from dataloader import streams
from dataloader.streams import PatientFile
from model_utils import evaluate, train_mace
from model_utils.files.outputs import Outputs
from model_utils.run.folder import metrics_file
from model_utils.run.loggers import tensorboard
from model_utils.tasks.same_bits import differences
from reliability.conftest import amount
from reliability.test_failing_calls import outputs_in

CODES = ("ENOSPC", "EPIPE", "EIO", "EAGAIN", "EDQUOT")
Train = Callable[..., Path]


class Refusing:
    """Stands in for ``os``: refuses some of the writes to files of a name; a stale
    handle, until it is replaced.
    """

    def __init__(self, name: str, refused: range, code: str) -> None:
        self.name, self.refused, self.code, self.calls = name, refused, getattr(errno, code), 0
        self.replaced = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def dup2(self, fresh: int, descriptor: int, inheritable: bool = True) -> int:
        self.replaced = True
        return os.dup2(fresh, descriptor, inheritable)

    def write(self, descriptor: int, data: bytes) -> int:
        if self.name in os.readlink(f"/proc/self/fd/{descriptor}"):
            self.calls += 1
            stale = self.code == errno.ESTALE and self.calls >= self.refused.start
            if self.calls in self.refused if not stale else not self.replaced:
                raise OSError(self.code, os.strerror(self.code))
            # and takes half of what it is given
            return os.write(descriptor, data[: max(len(data) // 2, 1)])
        return os.write(descriptor, data)


@pytest.mark.parametrize("code", CODES)
def test_what_is_refused_is_written_later_in_order(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(1, 12):
        place = tmp_path / f"{first}.log"
        file = PatientFile.adding_to(place)
        monkeypatch.setattr(streams, "os", Refusing(place.name, range(first, first + 5), code))
        told = []
        for n in range(20):
            file.write(f"line {n}\n".encode())
            told += [sentence for sentence in [file.news()] if sentence]
        file.close()
        assert place.read_text() == "".join(f"line {n}\n" for n in range(20))
        assert [sentence.split()[1] for sentence in told] == ["cannot", "can"]


def test_what_waits_is_bounded_and_what_is_lost_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a.log"
    file = PatientFile.adding_to(place, most=30)
    monkeypatch.setattr(streams, "os", Refusing(place.name, range(1, 20), "ENOSPC"))
    for n in range(12):
        file.write(f"line {n}\n".encode())
    file.close()
    assert (
        place.read_text()
        == "line 0\nline 1\nline 2\nline 3\n… 6 lines could not be kept …\nline 10\nline 11\n"
    )


def test_a_torn_last_line_is_closed(tmp_path: Path) -> None:
    place = tmp_path / "train.log"
    place.write_text("whole\ntor")
    file = PatientFile.adding_to(place)
    file.write(b"next\n")
    file.close()
    assert place.read_text() == "whole\ntor\nnext\n"


def test_a_fork_does_not_write_what_its_parent_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a.log"
    file = PatientFile.adding_to(place)
    with monkeypatch.context() as patch:
        patch.setattr(streams, "os", Refusing(place.name, range(1, 9), "ENOSPC"))
        file.write(b"once\n")
    child = os.fork()
    if child == 0:
        file.flush()
        os._exit(0)
    os.waitpid(child, 0)
    file.close()
    assert place.read_text() == "once\n"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def messages(log: Path) -> list[str]:
    """Lines of a log without time, rates, folders and warnings."""
    lines = [line.partition(" ")[2].partition("  lr ")[0] for line in log.read_text().splitlines()]
    return [
        line
        for line in lines
        if "will write" not in line and "run_model" not in line and "warning" not in line
    ]


@pytest.fixture(scope="module")
def undisturbed(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    flags = [
        "--input_json",
        material / "tiny.json",
        "--xyz_train",
        material / "train.xyz",
        "--no_export_mace_model",
    ]
    flags += [
        "--xyz_val",
        material / "val.xyz",
        "--epochs",
        "2",
        "--batch_size",
        "4",
        "--tensorboard",
    ]
    assert train_mace.main([str(flag) for flag in (*flags, "--output_checkpoint", folder)]) == 0
    return folder


@pytest.mark.parametrize("name", ["train.log", "tfevents", "metrics.jsonl"])
@pytest.mark.parametrize("code", ["ENOSPC", "ESTALE"])
def test_a_file_that_is_refused_for_a_while_has_everything_in_the_end(
    name: str, code: str, undisturbed: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (streams, metrics_file):
        monkeypatch.setattr(module, "os", Refusing(name, range(2, 5), code))
    folder = train("run", "--tensorboard", "--batch_size", "4")
    assert differences(outputs_in(undisturbed), outputs_in(folder)) == []
    assert scalars(folder / "tensorboard") == scalars(undisturbed / "tensorboard")
    assert messages(folder / "train.log") == messages(undisturbed / "train.log")
    assert set(scalars(folder / "tensorboard")) >= {"lr", "train/loss", "valid/forces_rmse"}


def test_events_of_a_resumed_run_replace_those_after_its_checkpoint_whatever_the_clock_says(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is set back by a day between the two."""
    words = ("--tensorboard", "--batch_size", "4")
    folder = train("run", *words, "--epochs", "2")
    now = tensorboard.time.time()
    monkeypatch.setattr(tensorboard.time, "time", lambda: now - 86400.0)
    train("run", *words, "--epochs", "3", "--resume", "auto")
    first, second = sorted(
        (folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns
    )
    assert first.name < second.name
    assert [step for step, _ in scalars(folder / "tensorboard")["valid/loss"]] == [0, 4, 8, 12]


def dev_full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def reader_left() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def reader_that_does_not_read() -> int:
    """A pipe that is full and does not wait; its reader lives."""
    _, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, bytes(1024))
        except BlockingIOError:
            return writing


def closed() -> None:
    return None


EVERY_WAY: dict[str, Callable[[], int | None]] = {
    way.__name__: way for way in (dev_full, reader_left, reader_that_does_not_read, closed)
}
WAYS = dict(list(EVERY_WAY.items())[: amount(2, 4)])


def command(
    main: Callable[[list[str]], int], words: list[str], out: int | None, err: int | None
) -> int:
    """The exit code of a command in a process that has these as stdout and stderr; forked:
    imports are paid once.
    """
    pid = os.fork()
    if pid == 0:
        try:
            for number, name, given in ((1, "stdout", out), (2, "stderr", err)):
                if given is None:
                    os.close(number)
                    stream = None
                else:
                    os.dup2(given, number)
                    stream = open(number, "w", closefd=False)  # noqa: SIM115
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
            code = main(words)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # as Python does at the end
            os._exit(code)
        finally:
            os._exit(99)
    ended: list[int] = []

    def over() -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        ended.extend([os.waitstatus_to_exitcode(status)] if done else [])
        return bool(done)

    wait_until(over, f"end of the command (HANGING: {HANGING} s)")
    return ended[0]


@pytest.fixture
def words(material: Path, tmp_path: Path) -> list[str]:
    flags = [
        "--input_json",
        material / "tiny.json",
        "--xyz_train",
        material / "train.xyz",
        "--no_export_mace_model",
    ]
    flags += [
        "--xyz_val",
        material / "val.xyz",
        "--epochs",
        "2",
        "--batch_size",
        "4",
        "--output_checkpoint",
    ]
    return [str(flag) for flag in flags]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Callable[[], tuple[int, Path]]]:
    """A file to say something into."""
    descriptors: list[int] = []

    def make() -> tuple[int, Path]:
        place = tmp_path / f"said{len(descriptors)}"
        descriptors.append(os.open(place, os.O_WRONLY | os.O_CREAT))
        return descriptors[-1], place

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_nobody_hears_is_the_same_run(
    way: str, words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    assert command(train_mace.main, [*words, str(tmp_path / "run")], WAYS[way](), WAYS[way]()) == 0
    assert differences(outputs_in(undisturbed), outputs_in(tmp_path / "run")) == []
    log = (tmp_path / "run" / "train.log").read_text()
    assert "epoch 2 valid" in log
    assert ("warning: stdout cannot be written (" in log) == (way != "closed")


OF_THE_COMMAND = {"dev_full": 2, "reader_left": 141, "reader_that_does_not_read": 2, "closed": 0}


@pytest.mark.parametrize("way", WAYS)
def test_commands_whose_answer_is_what_they_say(
    way: str,
    undisturbed: Path,
    kept: Callable[[], tuple[int, Path]],
    material: Path,
    tmp_path: Path,
) -> None:
    """Quiet and 141 where the reader left, one line and 2 where the disk is full; files
    that were asked for exist.
    """
    model, data, table = (
        str(undisturbed / "run_model.pt"),
        str(material / "val.xyz"),
        tmp_path / "table.csv",
    )
    answers: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (read_model.main, ["show", "--input_model", model]),
        (read_model.main, ["--help"]),
        (train_mace.main, ["--help"]),
        (evaluate.main, ["--input_model", model, "--xyz_path", data]),
    ]
    for main, flags in answers:
        err, said = kept()
        assert command(main, flags, WAYS[way](), err) == OF_THE_COMMAND[way], flags
        lines = said.read_text().splitlines()
        assert len(lines) == (OF_THE_COMMAND[way] == 2), lines
        assert all(line.startswith("error: stdout cannot be written: ") for line in lines)
    err, said = kept()
    with_file = ["--input_model", model, "--xyz_path", data, "--output_table", str(table)]
    assert command(evaluate.main, with_file, WAYS[way](), err) == 0
    assert len(table.read_text().splitlines()) == 7
    lines = said.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning"] * (OF_THE_COMMAND[way] == 2)


def test_names_that_steer_a_terminal_or_are_no_text(
    train: Train, tmp_path: Path, material: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's name of bytes that are no UTF-8, with an escape code and a line end, in
    every file that repeats it.
    """
    name = os.fsdecode(b"tr\xff\x1b[31m\n.xyz")
    (tmp_path / name).write_bytes((material / "train.xyz").read_bytes())
    flags = [
        "--input_json",
        str(material / "tiny.json"),
        "--xyz_train",
        str(tmp_path / name),
        "--epochs",
        "1",
    ]
    flags += [
        "--xyz_val",
        str(tmp_path / name),
        str(material / "val.xyz"),
        "--no_export_mace_model",
        "--tensorboard",
    ]
    assert train_mace.main([*flags, "--output_checkpoint", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    log = (tmp_path / "run" / "train.log").read_text()
    assert all(line.isprintable() and line[2] == ":" for line in log.splitlines())
    assert "\x1b" not in said.out
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()
    ]
    assert any(str(tmp_path / name) in record.get("by_source", {}) for record in records)
    whole = Outputs.named(tmp_path / "run", None)
    assert (
        evaluate.main(["--input_model", str(whole.model), "--xyz_path", str(tmp_path / name)]) == 0
    )
