"""--run_dir with --resume: killed and started again, as one process, as two, and as two
tasks of an array of jobs.
"""

import json
import os
from pathlib import Path

import pytest

from ranks.launching import Launcher, differences

KILLED = """
import os, signal
from model_utils.run import fit
gradients, calls = fit.{name}, 0
def killing(*words):
    global calls
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), signal.{signal})
    return gradients(*words)
fit.{name} = killing
"""
NAME = "loss_and_gradients"


def folders(experiment: Path) -> list[str]:
    return sorted(path.name for path in experiment.iterdir() if not path.is_symlink())


def started(experiment: Path, run_id: str) -> list[int]:
    record = json.loads((experiment / run_id / "run.json").read_text())
    return [start["step"] for start in record["starts"]]


@pytest.fixture(scope="module")
def unbroken(
    launcher: Launcher, words: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    launcher.run(1, "train_mace", *words, "--output_checkpoint", folder / "run", folder=folder)
    return folder / "run"


def test_killed_and_started_again_it_goes_on_in_its_folder(
    launcher: Launcher, words: list[object], unbroken: Path, tmp_path: Path
) -> None:
    asked = [*words, "--run_dir", tmp_path / "demo", "--resume", "auto"]
    killed = launcher.start(
        1, "train_mace", *asked, folder=tmp_path, before=KILLED.format(name=NAME, signal="SIGKILL")
    )
    assert killed.codes() == [-9]
    [run_id] = folders(tmp_path / "demo")
    launcher.run(1, "train_mace", *asked, folder=tmp_path)
    assert folders(tmp_path / "demo") == [run_id]
    assert os.readlink(tmp_path / "demo" / "latest") == run_id
    assert started(tmp_path / "demo", run_id) == [0, 4]
    assert differences(tmp_path / "demo" / run_id, unbroken) == []


def test_two_tasks_of_an_array_have_a_folder_each(
    launcher: Launcher, words: list[object], unbroken: Path, tmp_path: Path
) -> None:
    """Of equal settings: what tells them apart is their number alone.

    Requeued, each goes on with its own.
    """
    asked = [*words, "--run_dir", tmp_path / "demo", "--resume", "auto"]
    jobs = [
        {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(k), "SLURM_JOB_ID": str(78 + k)}
        for k in (0, 1)
    ]
    stops = {"SIGKILL": -9, "SIGTERM": 75}
    before = [KILLED.format(name=NAME, signal=name) for name in stops]
    tasks = [
        launcher.start(1, "train_mace", *asked, folder=tmp_path, before=code, **job)
        for job, code in zip(jobs, before, strict=True)
    ]
    assert [task.codes() for task in tasks] == [[code] for code in stops.values()]
    again = [
        launcher.start(1, "train_mace", *asked, folder=tmp_path, **job) for job in reversed(jobs)
    ]
    assert [task.codes() for task in again] == [[0], [0]]
    assert folders(tmp_path / "demo") == ["job77_0", "job77_1"]
    for run_id in folders(tmp_path / "demo"):
        assert len(started(tmp_path / "demo", run_id)) == 2
        assert differences(tmp_path / "demo" / run_id, unbroken) == []


def test_several_processes_agree_on_the_folder(
    launcher: Launcher, words: list[object], unbroken: Path, tmp_path: Path
) -> None:
    """The row "should_parallelize=True"."""
    asked = [*words, "--step_parts", 2, "--run_dir", tmp_path / "demo", "--resume", "auto"]
    stop = "if rank == 1:\n" + "".join(f"    {line}\n" for line in STOPPING_AT_A_STEP.splitlines())
    both = launcher.start(2, "train_mace", *asked, folder=tmp_path, before=stop)
    assert both.codes() == [75, 75], both.said()
    [run_id] = folders(tmp_path / "demo")
    launcher.run(2, "train_mace", *asked, folder=tmp_path)
    assert folders(tmp_path / "demo") == [run_id]
    launcher.run(
        1,
        "train_mace",
        *words,
        "--step_parts",
        2,
        "--output_checkpoint",
        tmp_path / "one",
        folder=tmp_path,
    )
    assert differences(tmp_path / "demo" / run_id, tmp_path / "one") == []


STOPPING_AT_A_STEP = """import os, signal
from model_utils.run import fit
gradients, calls = fit.loss_and_gradients, [0]
def stopping(*words):
    calls[0] += 1
    if calls[0] == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return gradients(*words)
fit.loss_and_gradients = stopping"""
