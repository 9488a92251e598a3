"""Which process of a run this one is, from the variables of torchrun or of SLURM's srun.

Needs no torch.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataloader.errors import InputError

OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OF_TORCHRUN_ALONE = OF_TORCHRUN[:3]  # the address may be set for srun too
FIRST_PORT = 20000
PORTS = 30000


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process among those that compute a run together; by itself, the only one.

    Attributes:
        number: from 0 on, among all processes of the run; number 0 is the only one
            that writes and prints.
        size: of all processes.
        local: from 0 on, among those of this machine.
        local_size: of those of this machine.
        address: of the machine that runs number 0, or of torchrun's store.
        port: at which the processes meet.
        launcher: what started them.
    """

    number: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    address: str = ""
    port: int = 0
    launcher: Literal["none", "torchrun", "srun"] = "none"

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.number == 0

    def __str__(self) -> str:
        return f"rank {self.number} of {self.size}"


def find(environ: Mapping[str, str]) -> Rank:
    """Which process this one is.

    torchrun's variables come first, also inside a job of SLURM. Of SLURM's only those count that
    ``srun`` sets: a batch script has SLURM_NTASKS and SLURM_PROCID as well, and would wait for
    processes that never come.

    Raises:
        InputError: the variables are incomplete or contradict each other.
    """
    if any(name in environ for name in OF_TORCHRUN_ALONE):
        return _of_torchrun(environ)
    if _number(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        return _of_srun(environ)
    return Rank()


def idle_tasks(environ: Mapping[str, str]) -> int:
    """Tasks of a SLURM job that nothing was started for, since the command was
    not started by ``srun``.
    """
    if "SLURM_STEP_NUM_TASKS" in environ or any(name in environ for name in OF_TORCHRUN_ALONE):
        return 0
    tasks = environ.get("SLURM_NTASKS", "")
    return int(tasks) if tasks.isdecimal() and int(tasks) > 1 else 0


def compute_as_one_alone() -> None:
    """In the first process, take back the OMP_NUM_THREADS=1 that torchrun gives where
    the user has set none.

    For commands whose first process adds everything. BLAS reads the variable when numpy is
    imported, and the last bits of large factorisations depend on its threads: they shall be those
    of one process without a launcher.
    """
    environ = os.environ
    is_first_of_torchrun = "TORCHELASTIC_RUN_ID" in environ and environ.get("RANK") == "0"
    if (
        is_first_of_torchrun
        and environ.get("OMP_NUM_THREADS") == "1"
        and not _was_given_to_parent("OMP_NUM_THREADS")
    ):
        del environ["OMP_NUM_THREADS"]


def _was_given_to_parent(name: str) -> bool:
    """Whether the parent, torchrun, was started with a variable; taken for granted
    where that cannot be seen.
    """
    try:
        given = Path(f"/proc/{os.getppid()}/environ").read_bytes()  # as it was at its start
    except OSError:
        return True
    return any(entry.startswith(f"{name}=".encode()) for entry in given.split(b"\0"))


def _of_torchrun(environ: Mapping[str, str]) -> Rank:
    missing = [name for name in OF_TORCHRUN if not environ.get(name)]
    if missing:
        present = [name for name in OF_TORCHRUN if name not in missing]
        raise InputError(
            f"{', '.join(present)} set, but {', '.join(missing)} not: torchrun sets all five; "
            "unset them, or start the command with torchrun or srun"
        )
    size = _number(environ, "WORLD_SIZE")
    return _checked(
        Rank(
            number=_number(environ, "RANK"),
            size=size,
            local=_number(environ, "LOCAL_RANK"),
            local_size=_number(environ, "LOCAL_WORLD_SIZE", default=size),
            address=environ["MASTER_ADDR"],
            port=_number(environ, "MASTER_PORT"),
            launcher="torchrun",
        ),
        {
            "number": "RANK",
            "size": "WORLD_SIZE",
            "local": "LOCAL_RANK",
            "local_size": "LOCAL_WORLD_SIZE",
        },
    )


def _of_srun(environ: Mapping[str, str]) -> Rank:
    job = _number(environ, "SLURM_JOB_ID")
    step = _number(environ, "SLURM_STEP_ID")
    # two runs on one machine are two jobs or two steps
    port = FIRST_PORT + (31 * job + step) % PORTS
    return _checked(
        Rank(
            number=_number(environ, "SLURM_PROCID"),
            size=_number(environ, "SLURM_STEP_NUM_TASKS"),
            local=_number(environ, "SLURM_LOCALID"),
            local_size=_tasks_here(environ),
            address=environ.get("MASTER_ADDR")
            or _first_host(environ.get("SLURM_STEP_NODELIST", "")),
            port=_number(environ, "MASTER_PORT", default=port),
            launcher="srun",
        ),
        {
            "number": "SLURM_PROCID",
            "size": "SLURM_STEP_NUM_TASKS",
            "local": "SLURM_LOCALID",
            "local_size": "SLURM_STEP_TASKS_PER_NODE",
        },
    )


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise InputError(
            f"{name} is {text!r}, expected a whole number; start the command with torchrun or srun"
        )
    return int(text)


def _tasks_here(environ: Mapping[str, str]) -> int:
    """Tasks on this machine: ``4(x2),3`` says four on the first two, three on the third."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    counts: list[int] = []
    for part in environ.get(name, "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise InputError(f"{name} is {environ.get(name, '')!r}, expected numbers like 4(x2),3")
        counts += [int(found[1])] * int(found[2] or 1)
    node = _number(environ, "SLURM_NODEID")
    if node >= len(counts):
        raise InputError(f"SLURM_NODEID is {node}, but {name} names {len(counts)} machines")
    return counts[node]


def _first_host(nodes: str) -> str:
    """The first of a list of hosts as SLURM writes it:
    ``gpu[003-006,009],login`` begins with gpu003.
    """
    found = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes)
    if found is None:
        raise InputError(
            f"SLURM_STEP_NODELIST is {nodes!r}, which names no machine; set MASTER_ADDR to "
            "that of the first task"
        )
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def _checked(rank: Rank, names: Mapping[str, str]) -> Rank:
    """The rank, unless its numbers contradict each other."""
    for number, size in (("number", "size"), ("local", "local_size")):
        if not getattr(rank, number) < getattr(rank, size):
            raise InputError(
                f"{names[number]} is {getattr(rank, number)}, expected less than {names[size]}, "
                f"which is {getattr(rank, size)}"
            )
    if rank.local_size > rank.size:
        raise InputError(
            f"{names['local_size']} says {rank.local_size} processes on this machine, "
            f"{names['size']} {rank.size} in all"
        )
    return rank
