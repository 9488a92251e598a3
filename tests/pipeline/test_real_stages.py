"""The pipeline with its own commands: kill -9 of all its processes in every stage, in one
folder, changes no result.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

from conftest import ROOT, in_the_battery, wait_until
from model_utils import model_loader
from model_utils.stages.table import STAGES
from pipeline.conftest import references

SETTINGS = """\
finetune:
  xyz_train: [train.xyz]
  xyz_val: [valid.xyz]
  xyz_test: [test.xyz]
  E0s: shift
  threads: 1
  epochs: 6
  batch_size: 4
  lr: 0.002
  ema: true
generate:
  composition: [Al, Cu]
  min_atoms: 2
  max_atoms: 4
  num_gen: 3
  seed: 7
judge:
  references: [known.xyz]
  fmax: 0.05
  max_steps: 60
"""
FILES = (
    "generated_crystals.extxyz",
    "relaxed.extxyz",
    "structures.csv",
    "metrics.json",
    "metrics_summary.json",
)
CLOCKS = ("started", "seconds", "starts")
LIVES = 3  # kills in each stage: as it says its first word, and later


def alloys(seed: int, n: int) -> list[Any]:
    """Distorted cells of aluminium and copper with EMT's energies and forces."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
        atoms.symbols[rng.permutation(4)[:2]] = "Al"
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        atoms.get_forces()
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def inputs(
    models: list[Path], libraries: None, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Arguments of the pipeline but its folder."""
    folder = tmp_path_factory.mktemp("inputs")
    for number, name in enumerate(("train", "valid", "test")):
        write(folder / f"{name}.xyz", alloys(number, 16 if name == "train" else 6), format="extxyz")
    references(folder / "known.xyz", "Al", "Cu", "AlCu")
    (folder / "pipeline.yaml").write_text(SETTINGS)
    return ["--config", str(folder / "pipeline.yaml"), "--input_model", str(models[0])]


def begun(inputs: Sequence[str], run_dir: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        str(ROOT / "model_utils" / "pipeline.py"),
        "run",
        *inputs,
        "--run_dir",
        str(run_dir),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def children_of(pid: int) -> list[int]:
    """All processes below one."""
    own = [
        int(word)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for word in (task / "children").read_text().split()
    ]
    return own + [far for near in own for far in children_of(near)]


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """End a pipeline and whatever it began, none of which has time for a word."""
    process.send_signal(signal.SIGSTOP)  # it must not see its stage die and go on
    for pid in children_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def results(run_dir: Path) -> dict[str, Any]:
    """What the pipeline leaves, but times; the checkpoint holds some."""
    folder = run_dir / "generation" / "results"
    files = {name: (folder / name).read_bytes() for name in FILES}
    weights = model_loader.load(
        run_dir / "finetune_outputs" / "finetuned_model.pt"
    ).module.state_dict()
    summary = without_clocks(json.loads((run_dir / "summary.json").read_text()))
    summary["stages"]["finetune"]["products"] = {
        name: value.numpy().tobytes() for name, value in weights.items()
    }
    return {**files, "summary": summary}


def lines_of(run_dir: Path) -> dict[str, int]:
    """How many lines each stage has said in all its lives."""
    logs = {stage: run_dir / "stages" / f"{stage}.log" for stage in STAGES}
    return {
        stage: log.read_bytes().count(b"\n") if log.exists() else 0 for stage, log in logs.items()
    }


def latest(run_dir: Path) -> str:
    """The stage that spoke last."""
    return [stage for stage, lines in lines_of(run_dir).items() if lines][-1]


def is_over(run_dir: Path, stage: str, lines: int) -> bool:
    """Whether a stage has said so many lines, or a later one has begun."""
    said = lines_of(run_dir)
    later = list(STAGES)[list(STAGES).index(stage) + 1 :]
    return said[stage] >= lines or any(said[name] for name in later)


@in_the_battery
def test_killed_in_every_stage_in_one_folder_it_gives_the_same(
    inputs: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert begun(inputs, folder).wait() == 0
    unbroken = results(folder)
    shutil.rmtree(folder)
    killed = dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        for life in range(LIVES):
            process = begun(inputs, folder)
            said = lines_of(folder)[stage] + 1 + 2 * life
            wait_until(lambda: is_over(folder, stage, said) or process.poll() is not None, stage)  # noqa: B023
            assert process.poll() is None
            kill_all(process)
            killed[latest(folder)] += 1
    assert begun(inputs, folder).wait() == 0
    assert all(killed.values()), killed
    assert results(folder) == unbroken
