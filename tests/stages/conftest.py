"""A pipeline whose commands are stand-ins: what the stages make of it is told apart from
what the commands compute.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, wait_until
from model_utils import pipeline
from model_utils.stages import table

STAND_IN = Path(__file__).with_name("stand_in.py")
CONFIG = """\
finetune:
  xyz_train: [train.xyz]
  xyz_test: [test.xyz]
  epochs: 3
generate:
  composition: [C]
  num_gen: 4
  seed: 1
judge:
  references: [references.xyz]
"""
IN_A_PROCESS = """
import sys
root, folder, *sys.argv = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]
from stages.conftest import with_stand_ins
from model_utils import pipeline
from model_utils.run.interruption import leave
with_stand_ins(folder)
leave(pipeline.main(sys.argv))
"""


def with_stand_ins(commands: Path | str) -> dict[str, table.Stage]:
    """Let the stages run scripts of a folder in place of ours; returns what there was."""
    before = dict(table.STAGES)
    for name, stage in before.items():
        table.STAGES[name] = replace(stage, script=str(Path(commands) / stage.script))
    return before


@dataclass(frozen=True)
class Play:
    """A pipeline in a folder of its own."""

    folder: Path

    @property
    def run_dir(self) -> Path:
        return self.folder / "pipeline_run"

    @property
    def commands(self) -> Path:
        return self.folder / "commands"

    def words(self, *more: object) -> list[str]:
        given = [
            "run",
            "--config",
            self.folder / "p.yaml",
            "--input_model",
            self.folder / "model.pt",
        ]
        return [str(word) for word in (*given, "--run_dir", self.run_dir, *more)]

    def run(self, *more: object) -> int:
        return pipeline.main(self.words(*more))

    def process(self, *more: object) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            IN_A_PROCESS,
            str(ROOT),
            str(self.commands),
            *self.words(*more),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return content

    def states(self) -> dict[str, str]:
        return {name: stage["state"] for name, stage in self.summary()["stages"].items()}

    def results(self) -> dict[str, Any]:
        """The summary without what depends on the clock, and on how often a stage was begun."""
        content = self.summary()
        for stage in content["stages"].values():
            for name in ("started", "seconds", "starts"):
                del stage[name]
        return content

    def starts(self) -> list[str]:
        """Commands that were started since this was asked last."""
        path = self.commands / "starts.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    def tell(self, command: str, what: str, text: str = "") -> None:
        (self.commands / f"{command}.{what}").write_text(text)

    def untell(self, command: str, what: str) -> None:
        (self.commands / f"{command}.{what}").unlink()

    def until_running(self, command: str) -> None:
        wait_until((self.commands / f"{command}.running").exists, f"start of {command}")

    def kill_in(self, command: str, number: int = signal.SIGKILL) -> subprocess.Popen[str]:
        """Begin the pipeline and end it with a signal while a command runs."""
        self.tell(command, "waits")
        process = self.process()
        self.until_running(command)
        os.kill(process.pid, number)
        process.communicate()
        self.untell(command, "waits")
        (self.commands / f"{command}.running").unlink(missing_ok=True)
        return process


def made(folder: Path) -> Play:
    commands = folder / "commands"
    commands.mkdir(parents=True)
    for name in ("finetune", "evaluate", "generate", "judge"):
        shutil.copy(STAND_IN, commands / f"{name}.py")
    (folder / "p.yaml").write_text(CONFIG)
    for name in ("train.xyz", "test.xyz", "references.xyz", "model.pt"):
        (folder / name).write_text(name)
    return Play(folder)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """Data, settings and stand-ins, and a table of stages that runs these."""
    made_here = made(tmp_path)
    before = with_stand_ins(made_here.commands)
    yield made_here
    table.STAGES.update(before)
