"""Processes that are killed from outside are begun anew, and nothing differs; what cannot be
read ends a run saved.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import every, program
from dataloader import loader, parallel
from dataloader.dataset import Dataset
from dataloader.errors import AwayError, InputError
from dataloader.labels import TO_TRAIN
from dataloader.loader import Loader
from dataloader.needs import ModelFacts
from dataloader.sources import SourceSpec, open_sources
from model_utils import resume, train_mace
from model_utils.files import checkpoint
from model_utils.files.outputs import Outputs
from model_utils.run.folder.run_files import RunFiles
from model_utils.tasks.same_bits import differences

PLAN = [np.array([i, i + 1]) for i in range(0, 12, 2)]


@pytest.fixture
def data(water_xyz: Callable[..., Path]) -> Dataset:
    facts = ModelFacts(
        atomic_numbers=(1, 8), heads=("Default",), atomic_energies=((-13.6, -430.0),), r_max=3.0
    )
    spec = SourceSpec(path=water_xyz(n=12), format="xyz")
    return Dataset(open_sources([spec], needs=TO_TRAIN, max_dropped=0.0), facts, torch.float64)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    for module in (loader, parallel):
        monkeypatch.setattr(module.log, "warning", lambda text, *words: said.append(text % words))
    return said


def kill_one() -> None:
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()


@pytest.mark.parametrize("when", ["before the first", "between two", "between two passes"])
def test_batches_are_the_same_after_a_worker_was_killed(
    when: str, data: Dataset, warnings: list[str]
) -> None:
    batches = Loader(data, num_workers=2)
    made = []
    for each in range(2):
        for number, batch in enumerate(batches.batches(PLAN)):
            made.append((batch.index, batch.positions.clone()))
            if (when, each, number) in (("before the first", 0, 0), ("between two", 0, 3)):
                kill_one()
        if when == "between two passes" and each == 0:
            kill_one()
    plain = [(batch.index, batch.positions) for batch in Loader(data).batches(PLAN)] * 2
    assert [index for index, _ in made] == [index for index, _ in plain]
    assert all(
        torch.equal(ours, theirs) for (_, ours), (_, theirs) in zip(made, plain, strict=True)
    )
    (line,) = warnings
    assert "a process was killed" in line


def test_a_worker_that_is_killed_by_what_it_does_is_begun_anew_once(
    data: Dataset, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the kernel, where its batch needs more memory than there is."""
    make = Dataset.batch

    def dying(self: Dataset, indices: list[int]) -> object:
        if 4 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(self, indices)

    monkeypatch.setattr(Dataset, "batch", dying)
    made = []
    with pytest.raises(InputError, match="is there enough memory"):
        made.extend(batch.index for batch in Loader(data, num_workers=1).batches(PLAN))
    assert 1 <= len(warnings) <= 3


def test_a_task_whose_process_was_killed_is_done_again(tmp_path: Path, warnings: list[str]) -> None:
    def work(n: int) -> int:
        parallel.note(str(tmp_path / f"{n}.lmdb"))
        if n == 3 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return n * n

    assert sorted(parallel.in_children(work, list(range(6)), processes=2)) == [
        (n, n * n) for n in range(6)
    ]
    (line,) = warnings
    assert "3.lmdb" in line


@pytest.fixture
def flags(tiny_json: Path, water_xyz: Callable[..., Path]) -> list[str]:
    words = [
        "--input_json",
        tiny_json,
        "--xyz_train",
        water_xyz("train.xyz", 10),
        "--batch_size",
        "4",
        "--epochs",
        "2",
    ]
    return [
        str(word)
        for word in (*words, "--xyz_val", water_xyz("val.xyz", 4, seed=1), "--no_export_mace_model")
    ]


@pytest.mark.parametrize("error", [InputError, AwayError])
def test_data_that_can_no_longer_be_read_end_the_run_saved(
    error: type[InputError],
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line; a file system that does not answer is worth another try (75); the rest is
    as in the unbroken run.
    """
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_mace.main([*flags, "--output_checkpoint", str(whole)]) == 0
    batches = Loader.batches

    def failing(self: Loader, plan: loader.Plan) -> Iterator[object]:
        for number, batch in enumerate(batches(self, plan)):
            if len(plan) > 1 and number == 1:
                raise error("rows.lmdb cannot be read (Stale file handle)")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batches", failing)
        capsys.readouterr()
        assert train_mace.main([*flags, "--output_checkpoint", str(run)]) == error.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("rows.lmdb cannot be read (Stale file handle)")
    assert checkpoint.read(run / "run_checkpoint.pt").content["train_state"]["step"] == 1
    assert resume.main(["--input_model", str(run)]) == 0
    assert differences(Outputs.named(whole, None), Outputs.named(run, None)) == []


def test_the_last_save_is_tried_again_where_a_file_system_does_not_answer(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from model_utils.run.folder import run_files

    write, tries = RunFiles._write, []

    def away_at_first(self: RunFiles, state: object, reason: str) -> None:
        if reason == "epochs done":
            tries.append(reason)
            if len(tries) < 3:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        write(self, state, reason)  # type: ignore[arg-type]

    monkeypatch.setattr(run_files, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(RunFiles, "_write", away_at_first)
    assert train_mace.main([*flags, "--output_checkpoint", str(tmp_path / "run")]) == 0
    assert len(tries) == 3
    tries[:] = []
    monkeypatch.setattr(run_files, "PAUSES", (0.0,))
    assert train_mace.main([*flags, "--output_checkpoint", str(tmp_path / "other")]) == 5


STOPPED = """
import os, signal, sys
os.environ["TMPDIR"] = "FOLDER"
from model_utils import train_mace
from model_utils.run import fit
from model_utils.run.interruption import leave

gradients = fit.loss_and_gradients
def stopped(*words):
    os.kill(os.getpid(), signal.SIGTERM)
    return gradients(*words)
fit.loss_and_gradients = stopped
leave(train_mace.main(WORDS))
"""


@pytest.mark.parametrize("name", every(2, ["long" + 30 * "_and_longer", "short"]))
def test_workers_of_a_run_that_is_stopped_leave_no_temporary_folders(
    flags: list[str], tmp_path: Path, name: str
) -> None:
    """Where TMPDIR is too long for their sockets, they work all the same."""
    words = [*flags, "--num_workers", "2", "--output_checkpoint", str(tmp_path / "run")]
    temporary = tmp_path / name[:200]
    temporary.mkdir()
    text = STOPPED.replace("FOLDER", str(temporary)).replace("WORDS", repr(words))
    done = program(text)
    assert done.returncode == 75, done.stderr
    assert list(temporary.glob("pymp-*")) == []


LEAVING = """
import os
from multiprocessing import process, resource_sharer
from multiprocessing.connection import Client
from dataloader import parallel
parallel.say_nothing_of_a_run_that_left()
shared, other = (resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY)) for _ in range(2))
address, _ = shared._id
for sent in (b"", b"\\0\\0"):
    client = Client(address, authkey=process.current_process().authkey)
    os.write(client.fileno(), sent)
    client.close()
print(shared.detach())  # it goes on serving
client = Client(address, authkey=process.current_process().authkey)
client.send(("no such key", os.getpid()))
print(other.detach())  # served in turn: by now all else was said
"""


def test_a_run_that_leaves_while_it_takes_a_batch_is_no_failure_of_the_worker() -> None:
    """Anything else that happens in the thread is said as before."""
    done = program(LEAVING)
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert "KeyError: 'no such key'" in done.stderr
    assert done.stdout.strip()
