"""The processors of this process: how many it may use, and how long it waited for them.

A container's limit is a share of the time of all processors (cgroup's quota), which no count
of them shows; more threads than it allows are stopped again and again.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
OWN_THREADS = Path("/proc/self/task")


def n_cores() -> int:
    """Cores that this process may use: those it may run on, or the fewer that its quota
    is worth.
    """
    usable = n_allowed()
    quota = quota_in_cores()
    return usable if quota is None else max(min(usable, int(quota)), 1)


def n_allowed() -> int:
    """Cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_cores_of_a_rank(n_ranks: int) -> int:
    """Cores for one of several processes of a run on a machine.

    A scheduler gives each its own cores; a quota, or a whole machine, is shared by all.

    Args:
        n_ranks: processes of the run on this machine.
    """
    usable = n_cores()
    is_shared = usable < n_allowed() or usable == os.cpu_count()
    return max(usable // n_ranks, 1) if is_shared else usable


def quota_in_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """The least quota of the process's cgroups and of those around them; None: there is none.

    Args:
        cgroups: where they are mounted.
        own: the kernel's list of those of the process.
    """
    quotas = [quota for folder in _folders(cgroups, own) if (quota := _quota_of(folder))]
    return min(quotas, default=None)


def _folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """The folders that may say a quota. A container may see its own cgroup as the root,
    under a path of the machine's.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue  # version 1, of another controller; version 2 has one line without names
        mounts = [controllers, "cpu"] if controllers else ["", "unified"]
        place = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for inner in (place, *place.parents):
                yield cgroups / mount / inner


def _quota_of(folder: Path) -> float | None:
    """The quota of one cgroup in cores, of version 2 or 1."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota = (folder / "cpu.cfs_quota_us").read_text()  # −1: no quota
        period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    return None


def seconds_waited() -> float | None:
    """How long the threads of this process were ready and had no processor, s, all together;
    None where the kernel does not count it.
    """
    waited = 0
    try:
        for thread in OWN_THREADS.iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                waited += int((thread / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e9
