"""A run says that others have its processors, and takes no more of them than it may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import HANGING, ROOT
from dataloader import processors
from model_utils import runtime
from model_utils.run.advice.crowding import FIRST_LOOK, LATER_LOOKS, MUCH, Crowding


class Clock:
    """A clock, and how long the threads waited for a processor by then, turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited: float | None = 0.0

    def turn(self, seconds: float, waited: float) -> None:
        self.now += seconds
        assert self.waited is not None
        self.waited += waited

    def crowding(self, device: str = "cpu") -> Crowding:
        return Crowding(torch.device(device), lambda: self.now, lambda: self.waited)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.usefixtures("two_threads")
def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    crowding = clock.crowding()
    for _ in crowding.watch(range(3)):
        clock.turn(FIRST_LOOK, 2 * 0.4 * FIRST_LOOK)
    for _ in crowding.watch(range(9)):
        clock.turn(LATER_LOOKS, 2 * LATER_LOOKS)
    (said,) = caplog.messages
    assert "this one's 2 threads for 40 % of the last 20 s" in said
    assert "--threads" in said


@pytest.mark.usefixtures("two_threads")
def test_little_waiting_is_no_word(caplog: pytest.LogCaptureFixture) -> None:
    """Also not where it adds up over many looks; where it begins later it is said then."""
    clock = Clock()
    crowding = clock.crowding()
    for _ in crowding.watch(range(9)):
        clock.turn(LATER_LOOKS, 2 * 0.9 * MUCH * LATER_LOOKS)
    assert caplog.messages == []
    for _ in crowding.watch(range(2)):
        clock.turn(LATER_LOOKS, 2 * 1.1 * MUCH * LATER_LOOKS)
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("two_threads")
def test_a_gpu_waits_for_one_thread(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    crowding = clock.crowding("cuda")
    clock.turn(FIRST_LOOK, 1.1 * MUCH * FIRST_LOOK)
    crowding.look()
    assert "the processor of this one" in caplog.text
    assert "threads" not in caplog.text


@pytest.mark.usefixtures("two_threads")
def test_a_process_that_is_forked_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its threads are others, and their times begin anew."""
    clock = Clock()
    crowding = clock.crowding()
    clock.turn(FIRST_LOOK, 2 * FIRST_LOOK)
    child = os.fork()
    if child == 0:
        crowding.look()
        os._exit(len(caplog.messages))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    crowding.look()
    assert len(caplog.messages) == 1


def test_a_kernel_that_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    clock.waited = None
    crowding = clock.crowding()
    clock.now = 1e6
    crowding.look()
    assert caplog.messages == []


BUSY = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while True: pass
"""

CROWDED = """
import os, sys, time
import torch
from model_utils import runtime
from model_utils.run.advice import crowding
os.sched_setaffinity(0, {int(sys.argv[1])})
crowding.FIRST_LOOK = 0.5
runtime.start_log()
looking = crowding.Crowding(torch.device("cpu"))
end = time.monotonic() + 60
for _ in looking.watch(iter(lambda: time.monotonic() > end, True)):
    sum(range(100_000))
    if looking._next == float("inf"):
        break
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="not counted here")
def test_a_busy_process_is_noticed() -> None:
    """Two processes on one core: each waits half of the time."""
    core = str(min(os.sched_getaffinity(0)))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    busy = subprocess.Popen([sys.executable, "-c", BUSY, core], stdout=subprocess.PIPE, env=env)
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-c", CROWDED, core],
            env=env,
            capture_output=True,
            text=True,
            timeout=HANGING,
        )
    finally:
        busy.kill()
        busy.communicate()
    assert done.returncode == 0, done.stderr
    assert "warning: other processes had the processor of this one for" in done.stdout + done.stderr


# What a container may use

CGROUP_FILES: dict[str, tuple[str, dict[str, str], float | None]] = {
    "version 2, own root": ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
    "version 2, none": ("0::/a\n", {"a/cpu.max": "max 100000\n", "cpu.max": "max 100000\n"}, None),
    "version 2, the one around it": (
        "0::/a/b\n",
        {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"},
        3.0,
    ),
    "version 2, the lesser one": (
        "0::/a/b\n",
        {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "400000 100000\n"},
        3.0,
    ),
    "version 2, under a name of the machine's": (
        "0::/kubepods/pod1/c\n",
        {"cpu.max": "200000 100000\n"},
        2.0,
    ),
    "version 1": (
        "4:memory:/x\n3:cpu,cpuacct:/job\n0::/\n",
        {
            "cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
            "cpu,cpuacct/job/cpu.cfs_period_us": "50000\n",
            "memory/x/cpu.cfs_quota_us": "1\n",
        },
        3.0,
    ),
    "version 1, none": (
        "1:cpu:/job\n",
        {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "version 1 and 2 beside it": (
        "1:cpu:/\n0::/a\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "unified/a/cpu.max": "100000 100000\n"},
        1.0,
    ),
    "no such file": ("0::/a\n", {}, None),
    "files of something else": ("0::/a\n", {"a/cpu.max": "\n", "cpu.max": "much\n"}, None),
}


@pytest.mark.parametrize("case", CGROUP_FILES)
def test_quotas(case: str, tmp_path: Path) -> None:
    own, files, expected = CGROUP_FILES[case]
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert processors.quota_in_cores(tmp_path / "cgroups", tmp_path / "own") == expected


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert processors.quota_in_cores(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("allowed", "machine", "quota", "ranks", "cores"),
    [
        (8, 8, None, 1, 8),
        (8, 8, 3.7, 1, 3),
        (8, 8, 0.5, 1, 1),
        (8, 8, 100.0, 1, 8),
        (8, 8, None, 4, 2),  # of a whole machine each has its share
        (8, 64, None, 4, 8),  # a scheduler gave each its own
        (64, 64, 8.0, 4, 2),  # a container's limit is for all
        (2, 2, None, 4, 1),
    ],
)
def test_cores_of_a_process(
    allowed: int,
    machine: int,
    quota: float | None,
    ranks: int,
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processors, "n_allowed", lambda: allowed)
    monkeypatch.setattr(processors, "quota_in_cores", lambda: quota)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    assert processors.n_cores_of_a_rank(ranks) == cores


@pytest.mark.parametrize("chosen", [True, False])
def test_threads_within_a_quota(chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fourth of torch's choice, unless the user chose."""
    told: list[int] = []
    monkeypatch.setattr(processors, "n_allowed", lambda: 8)
    monkeypatch.setattr(processors, "quota_in_cores", lambda: 2.0)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime.start(device="cpu", dtype=torch.get_default_dtype(), threads=None, seed=0)
    assert told == ([] if chosen else [2])


QUOTA = Path("/sys/fs/cgroup/cpu")


def test_a_real_quota() -> None:
    """Of the kernel, where this process may make a cgroup of version 1."""
    folder = QUOTA / f"mace_train_test_{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        (folder / "cpu.cfs_period_us").write_text("100000")
        (folder / "cpu.cfs_quota_us").write_text("100000")
        code = (
            f"open({str(folder / 'cgroup.procs')!r}, 'w').write('0')\n"
            "from dataloader import processors\n"
            "print(processors.quota_in_cores(), processors.n_cores())"
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        said = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=HANGING
        )
        assert said.stdout == "1.0 1\n", said.stderr
    finally:
        folder.rmdir()
