"""Starts the processes of a run by forking one that has imported everything: 0.1 s each, not 5 s.

A line of JSON comes in for every run, and one goes out: ``start`` gives the processes, ``wait`` how
they ended. Networks are built once, before the forks, as in the other tests.
"""

import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from ase.io import write

import conftest
import metadata
import read_model
from model_utils import evaluate, finetune, model_loader, resume, train_mace
from model_utils.run.interruption import leave

COMMANDS = {
    "train_mace": train_mace.main,
    "finetune": finetune.main,
    "resume": resume.main,
    "evaluate": evaluate.main,
    "metadata": metadata.main,
    "read_model": read_model.main,
}


def serve() -> None:
    """Answer until the other side closes."""
    torch.set_num_threads(1)
    for owner, name, replacement in conftest.texts_made_once():
        setattr(owner, name, replacement)
    model_loader.build_module = conftest.built_once(model_loader.build_module)
    model_loader.to_be_filled = conftest.filled_once(model_loader.to_be_filled)
    model_loader.prove = conftest.proved_once(model_loader.prove)
    _warm_up()
    for line in sys.stdin:
        job = json.loads(line)
        answer = _started(job) if job["do"] == "start" else _waited(job)
        print(json.dumps(answer), flush=True)


def _warm_up() -> None:
    """A training of one step: what it builds and compiles is there in all processes
    that are forked later.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        open(os.devnull, "w") as silence,
        redirect_stdout(silence),
    ):
        folder = Path(name)
        (folder / "tiny.json").write_text(json.dumps(conftest.TINY))
        for part in ("train", "val"):
            write(folder / f"{part}.xyz", conftest.waters(2), format="extxyz")
        words = [
            "--input_json",
            folder / "tiny.json",
            "--xyz_train",
            folder / "train.xyz",
            "--xyz_val",
        ]
        words += [folder / "val.xyz", "--max_steps", 1, "--output_checkpoint", folder / "run"]
        assert train_mace.main([str(word) for word in words]) == 0


def _started(job: dict[str, Any]) -> list[int]:
    return [_forked(job, rank) for rank in range(len(job["environ"]))]


def _forked(job: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        for number, name in ((1, f"{job['output']}.{rank}"), (2, f"{job['output']}.{rank}")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(job["environ"][rank])
        os.chdir(job["folder"])
        exec(job["before"], {"rank": rank})  # a test's own words
        leave(COMMANDS[job["command"]](job["words"]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(99)


def _waited(job: dict[str, Any]) -> list[int | None]:
    """Exit codes, negative for signals; None of those that still live when the time is over."""
    end = time.monotonic() + job["seconds"]
    codes: dict[int, int] = {}
    while len(codes) < len(job["processes"]) and time.monotonic() < end:
        for process in job["processes"]:
            if process not in codes:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return [codes.get(process) for process in job["processes"]]


if __name__ == "__main__":
    serve()
