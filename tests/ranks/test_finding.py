"""Which process this one is, from the variables that launchers set, and that
some of them mean nothing.
"""

import pytest

from dataloader.errors import InputError
from model_utils.ranks.rank import Rank, find, idle_tasks

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
TORCHRUN |= {"MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
BATCH = {
    "SLURM_JOB_ID": "1000",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SRUN = {
    **BATCH,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[003-004,009]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}
OF_SRUN = Rank(
    number=9, size=11, local=1, local_size=3, address="gpu003", port=20000 + 1002, launcher="srun"
)
OF_TORCHRUN = Rank(
    number=5, size=8, local=1, local_size=4, address="n1", port=29500, launcher="torchrun"
)
PORT_OF_SRUN = 20000 + (31 * 1000 + 2) % 30000

FOUND = {
    "nothing": ({}, Rank()),
    "a login shell": ({"HOSTNAME": "login", "RANKING": "3"}, Rank()),
    "torchrun": (TORCHRUN, OF_TORCHRUN),
    "torchrun within a step of SLURM": ({**SRUN, **TORCHRUN}, OF_TORCHRUN),
    "torchrun of one": (
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        None,
    ),
    "srun": (SRUN, OF_SRUN),
    "srun of one task": ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, Rank()),
    "a batch script with tasks": (BATCH, Rank()),
    "an interactive allocation": ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, Rank()),
    "an array": ({**BATCH, "SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "1"}, Rank()),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    environ, rank = FOUND[name]
    found = find(environ)
    if rank is None:
        assert (found.size, found.is_first) == (1, True)
    else:
        assert found == rank


def test_addresses_of_srun() -> None:
    assert find(SRUN).port == PORT_OF_SRUN
    given = find({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"})
    assert (given.address, given.port) == ("10.0.0.1", 7)
    lists = {
        "n1": "n1",
        "n1,n2": "n1",
        "c[1-2]n[07-09],x": "c1n07",
        "gpu[003-004]": "gpu003",
        "a-b[9]": "a-b9",
    }
    for nodes, first in lists.items():
        assert find({**SRUN, "SLURM_STEP_NODELIST": nodes}).address == first


def test_tasks_that_nothing_was_started_for() -> None:
    assert idle_tasks(BATCH) == 6
    assert idle_tasks(SRUN) == 0
    assert idle_tasks(TORCHRUN | BATCH) == 0
    assert idle_tasks({}) == 0
    assert idle_tasks({"SLURM_NTASKS": "1"}) == 0


REFUSED = {
    "half of torchrun": (
        {"RANK": "0", "WORLD_SIZE": "2"},
        "LOCAL_RANK, MASTER_ADDR, MASTER_PORT not",
    ),
    "a stray RANK": ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK"),
    "no number": ({**TORCHRUN, "RANK": "zero"}, "RANK is 'zero'"),
    "a rank beyond": (
        {**TORCHRUN, "RANK": "8"},
        "RANK is 8, expected less than WORLD_SIZE, which is 8",
    ),
    "a local rank beyond": ({**TORCHRUN, "LOCAL_RANK": "4"}, "LOCAL_RANK is 4"),
    "more here than in all": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE says 9"),
    "no tasks per node": (
        {**SRUN, "SLURM_STEP_TASKS_PER_NODE": ""},
        "expected numbers like 4(x2),3",
    ),
    "a node too many": ({**SRUN, "SLURM_NODEID": "3"}, "names 3 machines"),
    "no nodes": ({**SRUN, "SLURM_STEP_NODELIST": ""}, "set MASTER_ADDR"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    environ, words = REFUSED[name]
    with pytest.raises(InputError) as error:
        find(environ)
    assert words in str(error.value)
