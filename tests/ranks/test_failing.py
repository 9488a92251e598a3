"""A process that fails: one line, one code everywhere within seconds, nobody left,
older files as they were.
"""

import signal
from pathlib import Path

import pytest

from conftest import wait_until
from ranks.launching import Launcher

SECONDS = 60.0  # a process that waits for the dead would wait for ever

UNREADABLE = """
from dataloader.dataset import Dataset
from dataloader.errors import InputError
batch, calls = Dataset.batch, []
def failing(self, indices):
    calls.append(1)
    if rank == 1 and len(calls) > 6:
        raise InputError("train.lmdb key 7: the record is damaged")
    return batch(self, indices)
Dataset.batch = failing
"""
IN_A_STEP = """
from model_utils.run import step
micro_step, calls = step._micro_step, []
def failing(*words):
    calls.append(1)
    result = micro_step(*words)
    if rank == 1 and len(calls) > 4:
        {fails}
    return result
step._micro_step = failing
"""
OUT_OF_MEMORY = IN_A_STEP.format(
    fails='raise RuntimeError("DefaultCPUAllocator: not enough memory")'
)
NOT_FINITE = IN_A_STEP.format(fails='result.gradients[0].fill_(float("nan"))')
BUG = IN_A_STEP.format(fails='raise LookupError("our bug")')
FULL_DISK = """
import errno
from model_utils.model_loader import PairWriter
def full(*words, **more):
    raise OSError(errno.ENOSPC, "No space left on device", "run_checkpoint.pt")
PairWriter.save_checkpoint = full
"""
FLIPPED = """
import torch
from model_utils.run import fit
enter, calls = fit._Run.validate, []
def flipped(self, **more):
    calls.append(1)
    if rank == 1 and len(calls) == 2:
        with torch.no_grad():
            next(iter(self.state.parameters.values())).reshape(-1).view(torch.int32)[3] ^= 1
    return enter(self, **more)
fit._Run.validate = flipped
"""

OTHER_SETTINGS = """
import dataclasses
from model_utils.settings import reading
parse = reading.parse
def other(kind, argv):
    options = parse(kind, argv)
    run = dataclasses.replace(options.run, seed=5)
    return dataclasses.replace(options, run=run) if rank == 1 else options
reading.parse = other
"""
OTHER_DATA = """
from model_utils.run import training
identity = training.data_identity
def other(data):
    found = identity(data)
    if rank == 1:
        found["valid"]["sha256"] = "0" * 64
    return found
training.data_identity = other
"""
OTHER_DEVICE = """
import torch
from model_utils import runtime
start = runtime.start
def elsewhere(**settings):
    device = start(**settings)
    return torch.device("meta") if rank == 1 else device
runtime.start = elsewhere
"""

FAILURES = {
    "unreadable record": (
        UNREADABLE,
        2,
        "error: rank 1 of 2: train.lmdb key 7: the record is damaged",
    ),
    "out of memory": (OUT_OF_MEMORY, 2, "error: rank 1 of 2: out of memory on cpu: "),
    "not finite": (NOT_FINITE, 4, "loss or gradient is not finite after step "),
    "full disk": (FULL_DISK, 5, "error: step 8 is not saved: "),
    "bug": (BUG, 1, "Traceback"),
    "a flipped bit": (FLIPPED, 3, "the weights of rank 1 on "),
    "other settings": (OTHER_SETTINGS, 2, "the settings of rank 1 on "),
    "another device": (OTHER_DEVICE, 2, "computes on meta, rank 0 on "),
    "other data": (OTHER_DATA, 2, "the data of rank 1 on "),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_all_leave_with_one_code_and_one_line(
    failure: str, launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    before, code, line = FAILURES[failure]
    place = ["--output_checkpoint", tmp_path / "run"]
    processes = launcher.start(
        2, "train_mace", *words, *place, "--ema", folder=tmp_path, before=before
    )
    assert processes.codes(SECONDS) == [code, code], processes.said()
    assert [line in said for said in processes.errors()] == [True], processes.errors()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed(
    rank: int, launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    """The survivors leave with 1 and say so once; what was saved is there."""
    place = [
        "--output_checkpoint",
        tmp_path / "run",
        "--checkpoint_every_steps",
        "1",
        "--epochs",
        10000,
    ]
    processes = launcher.start(2, "train_mace", *words, *place, folder=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(
        lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) > 4, "the third epoch"
    )
    processes.kill(signal.SIGKILL, rank)
    codes = [-9, 1] if rank == 0 else [1, -9]
    assert processes.codes(SECONDS) == codes, processes.said()
    assert len(processes.errors()) <= 1
    launcher.run(
        1,
        "train_mace",
        *words,
        *place,
        "--resume",
        "auto",
        "--max_steps",
        1,
        folder=tmp_path,
        code=0,
    )


def test_a_command_for_one_process_says_so_once(launcher: Launcher, tmp_path: Path) -> None:
    processes = launcher.run(
        2, "read_model", "show", "--input_model", "x.pt", folder=tmp_path, code=2
    )
    assert ["is for one process" in line for line in processes.errors()] == [True]


def test_what_all_find_is_said_once(
    launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    for flag, line in [("--xyz_train", "no-such.xyz"), ("--lr", "-3"), ("--step_parts", "3")]:
        given = [*words, "--output_checkpoint", tmp_path / "run", flag, line]
        processes = launcher.run(2, "train_mace", *given, folder=tmp_path, code=2)
        assert [line in said for said in processes.errors()] == [True], processes.errors()
    assert not (tmp_path / "run" / "run_checkpoint.pt").exists()


def test_a_process_that_never_comes(
    launcher: Launcher, words: list[object], tmp_path: Path
) -> None:
    """One dies before it meets the others, as of an import; they wait until the launcher
    ends them, and end with 1.
    """
    never = (
        "import os, time\n"
        "from pathlib import Path\n"
        "if rank == 1: os._exit(1)\n"
        "Path(f'came-{rank}').touch()\n"
    )
    place = ["--output_checkpoint", tmp_path / "run"]
    processes = launcher.start(3, "train_mace", *words, *place, folder=tmp_path, before=never)
    wait_until(
        lambda: (tmp_path / "came-0").exists() and (tmp_path / "came-2").exists(), "two of three"
    )
    wait_until(
        lambda: all(_listens_to_signals(processes.pids[rank]) for rank in (0, 2)), "they wait"
    )
    for rank in (0, 2):
        processes.kill(signal.SIGTERM, rank)
    assert processes.codes(SECONDS) == [1, 1, 1], processes.said()
    assert processes.errors() == []


def _listens_to_signals(pid: int) -> bool:
    """Whether a process listens to SIGTERM by a handler of its own."""
    [caught] = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt")
    ]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
