"""Mistakes that other programs made with several processes: each is found by
what the tests compare.
"""

from pathlib import Path

import pytest

from ranks.launching import Launcher, differences

SECONDS = 60.0

LOCAL_MEANS = """
from dataloader.batch import added_rows
from model_utils.run.exact_addition import ExactAddition
ExactAddition.rows = lambda self, batches: added_rows(batch.rows for batch in batches)
"""
SAMPLES_REPEATED = """
import numpy as np
from model_utils.run import evaluation
deal = evaluation.deal
def padded(cost, n):
    parts = deal(cost, n)
    longest = max(map(len, parts))
    return [np.concatenate([part, parts[0][: longest - len(part)]]) for part in parts]
evaluation.deal = padded
"""
PATIENCE_OF_THE_FIRST = """
from model_utils.run.fit import _Run
if rank > 0:
    _Run._out_of_patience = lambda self: False
"""
PLAIN_SUM = """
from model_utils.run import exact_addition
def plain(total, part, constants):
    for sum_of_it, addend in zip(total, part):
        sum_of_it.add_(addend)
exact_addition.add_rounded = plain
"""
SEED_OF_ITS_OWN = """
from dataloader.loader import EpochBatches
begin = EpochBatches.__init__
EpochBatches.__init__ = lambda self, dataset, budget, seed, loader: begin(
    self, dataset, budget, seed + rank, loader
)
"""
SAVED_BY_ALL = """
from model_utils.run.folder import run_files
opened = run_files._opened_by_first
run_files.SilentFiles = lambda data, stop, group: opened(*arguments)
import model_utils.run.training as training
real = run_files.opened
def remembering(*words):
    global arguments
    arguments = words
    return real(*words)
training.run_files.opened = remembering
"""
ONLY_THE_FIRST_WRITES = """
import os, sys
def look(event, words):
    if event == "open" and isinstance(words[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(words[0])
        if "/run/" in path and words[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            os.write(2, ("written by rank %d: %s" % (rank, path)).encode())
            os._exit(77)
if rank > 0:
    sys.addaudithook(look)
"""

MISTAKES = {
    "local means": LOCAL_MEANS,
    "samples repeated": SAMPLES_REPEATED,
    "patience of the first": PATIENCE_OF_THE_FIRST,
    "plain sum": PLAIN_SUM,
    "a seed of its own": SEED_OF_ITS_OWN,
    "saved by all": SAVED_BY_ALL,
}
# those with which a run does not come to its end, and what is said: one process leaves,
# and its sums meet others
ENDS = {"saved by all": "written by rank 1: ", "patience of the first": ""}
FLAGS = (
    "--dtype",
    "float64",
    "--step_parts",
    "4",
    "--lr",
    "0.3",
    "--patience",
    "1",
    "--epochs",
    "12",
)


@pytest.fixture(scope="module")
def alone(
    launcher: Launcher, words: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    launcher.run(
        1, "train_mace", *words, *FLAGS, "--output_checkpoint", folder / "run", folder=folder
    )
    return folder / "run"


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_a_mistake_is_found(
    mistake: str | None, launcher: Launcher, words: list[object], alone: Path, tmp_path: Path
) -> None:
    """Without a mistake nothing differs, and nobody but the first process writes."""
    before = ONLY_THE_FIRST_WRITES + ("" if mistake is None else MISTAKES[mistake])
    place = ["--output_checkpoint", tmp_path / "run"]
    processes = launcher.start(
        2, "train_mace", *words, *FLAGS, *place, folder=tmp_path, before=before
    )
    codes = processes.codes(SECONDS if mistake is None else 20.0)
    if mistake in ENDS:
        assert codes != [0, 0]
        assert ENDS[mistake] in processes.said()
    else:
        assert codes == [0, 0], processes.said()
        assert (differences(alone, tmp_path / "run") == []) == (mistake is None)
