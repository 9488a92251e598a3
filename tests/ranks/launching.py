"""Runs of several processes in tests: started together as a launcher does,
watched, killed, compared.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from conftest import HANGING, ROOT
from model_utils.files import checkpoint

_numbers = count()


class Launcher:
    """The fork server of this test process."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "ranks.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                "TORCH_CPP_LOG_LEVEL": "ERROR",  # as a command sets it before torch is imported
            },
        )

    def ask(self, job: Mapping[str, Any]) -> Any:
        """Its answer to a job."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        size: int,
        command: str,
        *words: object,
        folder: Path,
        before: str = "",
        **environ: str,
    ) -> "Processes":
        """Start a command in so many processes, with the variables that torchrun sets.

        Args:
            size: of the run.
            command: its name.
            words: its arguments.
            folder: where it is started, and where its output goes.
            before: Python that each process executes first, with ``rank``.
            environ: further variables.
        """
        output = folder / f"said-{next(_numbers)}"
        port = str(free_port())
        each = [
            {**torchrun(rank, size, port), **environ} if size > 1 else dict(environ)
            for rank in range(size)
        ]
        job = {
            "do": "start",
            "command": command,
            "words": [str(word) for word in words],
            "environ": each,
        }
        pids = self.ask({**job, "output": str(output), "folder": str(folder), "before": before})
        return Processes(launcher=self, pids=pids, output=output)

    def run(
        self, size: int, command: str, *words: object, folder: Path, code: int = 0, **more: Any
    ) -> "Processes":
        """Start a command and wait for its end, which must be the same in all processes."""
        processes = self.start(size, command, *words, folder=folder, **more)
        codes = processes.codes()
        assert codes == [code] * size, (codes, processes.said())
        return processes

    def close(self) -> None:
        """End it."""
        self._server.kill()
        self._server.wait()


@dataclass
class Processes:
    """The processes of a run that was started."""

    launcher: Launcher
    pids: Sequence[int]
    output: Path
    _codes: list[int | None] = field(default_factory=list)

    def codes(self, seconds: float = HANGING) -> list[int | None]:
        """How they ended, by rank; None of one that lives after some
        seconds, which is then killed.
        """
        found = self.launcher.ask({"do": "wait", "processes": list(self.pids), "seconds": seconds})
        for pid, code in zip(self.pids, found, strict=True):
            if code is None:
                os.kill(pid, signal.SIGKILL)
        return list(found)

    def said(self, rank: int | None = None) -> str:
        """What one of them, or all, printed."""
        ranks = range(len(self.pids)) if rank is None else [rank]
        files = [Path(f"{self.output}.{k}") for k in ranks]
        return "".join(file.read_text() for file in files if file.exists())

    def errors(self) -> list[str]:
        """The lines that say why a run ended."""
        return [
            line
            for line in self.said().splitlines()
            if line.startswith(("error:", "stopped:", "Traceback"))
        ]

    def kill(self, number: signal.Signals = signal.SIGKILL, rank: int | None = None) -> None:
        """Send a signal to one of them, or to all."""
        for pid in self.pids if rank is None else [self.pids[rank]]:
            os.kill(pid, number)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(rank: int, size: int, port: str) -> dict[str, str]:
    """The variables that torchrun gives to a process, on one machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


OF_THE_PLACE = (
    "config",
    "metrics_offset",
    "run_name",
    "computed_on",
    "history",
    "data",
    "lmdb_indices",
)


def state_of(folder: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on how many processes computed it, flat by name."""
    values: dict[str, Any] = {}
    for kind in ("checkpoint", "model"):
        [path] = [found for found in folder.glob(f"*_{kind}.pt") if "stage" not in found.name]
        file = checkpoint.read(path)
        values |= _flat(file.tensors, f"{kind}.tensors")
        state = file.content.get(
            "train_state",
            {
                k: file.content[k]
                for k in ("epoch", "step", "metrics", "weights")
                if k in file.content
            },
        )
        values |= _flat({k: v for k, v in state.items() if k not in OF_THE_PLACE}, kind)
    for number, line in enumerate((folder / "metrics.jsonl").read_text().splitlines()):
        record = json.loads(line)
        record.pop("perf", None)
        values |= _flat(record, f"metrics.{number}")
    return values


def differences(a: Path, b: Path) -> list[str]:
    """Names of all values in which two runs differ."""
    ours = state_of(a)
    theirs = state_of(b)
    assert len(ours) > 100
    return [name for name in {**ours, **theirs} if not _equal(ours.get(name), theirs.get(name))]


def _flat(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}").items()
        }
    if isinstance(value, list | tuple):
        return {
            k: v for key, item in enumerate(value) for k, v in _flat(item, f"{name}.{key}").items()
        }
    return {name: value}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b
