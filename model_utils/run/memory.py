"""Batches that a device's memory does not hold, and how large one may be."""

import ctypes
import gc
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from dataloader.batch import Batch
from dataloader.dividing import halves
from model_utils.errors import InputError
from model_utils.runtime import log

T = TypeVar("T")


@dataclass(frozen=True)
class GroupFiles:
    """Names in the folder of a control group."""

    limit: str  # of memory, bytes
    used: str  # bytes
    prefix: str  # in memory.stat, of what is counted together with the groups below


GROUP_FILES = {  # by the controllers of a line of /proc/self/cgroup: version 2, version 1
    "": GroupFiles("memory.max", "memory.current", ""),
    "memory": GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


# Texts of RuntimeErrors that say so: of the CPU's allocator, of the driver as it loads or starts a
# kernel (torch's AcceleratorError, Triton's error), of libraries that take workspace
OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|CUDA (driver )?error: out of memory|Triton Error \[\w+\]: out of memory|"
    r"\bCU[A-Z]+_STATUS_ALLOC_FAILED\b"
)
# of this process, by device and what was computed
_failed: dict[tuple[torch.device, str], list["Size"]] = {}


class Size(NamedTuple):
    """What the memory of a batch depends on."""

    atoms: int
    edges: int


class TooLarge(Exception):
    """One structure alone needs more memory than the device has."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"structure {batch.index[0]} does not fit")
        self.batch = batch


def in_parts(compute: Callable[[Batch], T], batch: Batch, what: str) -> list[T]:
    """``compute(batch)``; where memory runs out, that of its halves, and so on
    down to single structures.

    On a GPU a batch that has as many atoms and edges as one that did not fit is divided without
    another try, which would cost a failed step and all cached memory. On a CPU nothing is
    remembered: others use its memory too. What is computed must be a sum over structures; a divided
    sum has other last bits, which the log says.

    Args:
        compute: what is asked for.
        batch: on the device.
        what: that is, as one word; what takes less memory is tried for itself.

    Raises:
        TooLarge: a single structure does not fit.
    """
    size = Size(batch.n_atoms, batch.n_edges)
    device = _device_of(batch)
    key = (device, what)
    failed = any(
        known.atoms <= size.atoms and known.edges <= size.edges for known in _failed.get(key, ())
    )
    if batch.n_structures == 1 or not failed:
        try:
            return [compute(batch)]
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if batch.n_structures == 1:
                raise TooLarge(batch) from None
        # only here, after the exception with its frames is gone, can what they held be given back
        release(device)
        if device.type != "cpu":
            _failed.setdefault(key, []).append(size)
    first, second = halves(batch)
    _say(
        batch.n_edges.bit_length(),
        batch.n_structures,
        batch.n_edges,
        max(first.n_edges, second.n_edges),
    )
    return [*in_parts(compute, first, what), *in_parts(compute, second, what)]


def _device_of(batch: Batch) -> torch.device:
    return batch.positions.device


def whole(compute: Callable[[Batch], T], batch: Batch, what: str) -> list[T]:
    """``compute(batch)``, of which a division would not be a sum.

    Args:
        compute: of a batch.
        batch: the structures.
        what: the work, as ``in_parts`` takes it; nothing is remembered of it.

    Raises:
        InputError: memory runs out.
    """
    try:
        return [compute(batch)]
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise InputError(
            f"out of memory on {batch.positions.device} for {batch.n_structures} structures, which "
            "cannot be divided: the loss is not a sum over structures; give a smaller --batch_size"
        ) from None


@contextmanager
def naming(names: Callable[[Sequence[int]], str]) -> Iterator[None]:
    """Within it, a structure that does not fit is bad input, by its name."""
    try:
        yield
    except TooLarge as error:
        batch = error.batch
        raise InputError(
            f"out of memory on {batch.positions.device}: {names(batch.index)} alone, with "
            f"{batch.n_atoms} atoms and {batch.n_edges} edges, does not fit; leave it out, or use "
            "a smaller model or cutoff, --dtype float32, or a device with more memory"
        ) from None


def _out_of_memory(error: BaseException) -> bool:
    """torch has a type for that of CUDA's allocator; all others are
    RuntimeErrors known by their texts.
    """
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or OUT_OF_MEMORY.search(str(error)) is not None
    )


def release(device: torch.device) -> None:
    """Give back what is held but not used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        with suppress(OSError, AttributeError):  # glibc's; others give back by themselves
            ctypes.CDLL(None).malloc_trim(0)


@cache
def _say(_: int, n_structures: int, n_edges: int, half: int) -> None:
    log.warning(
        "warning: the memory did not hold a batch of %d structures with %d edges; such batches are "
        "computed in parts: the same loss but for its last bits, in more time "
        "(--max_edges_per_batch %d avoids it)",
        n_structures,
        n_edges,
        half,
    )


def free(device: torch.device) -> int:
    """Bytes that this process may still take on a device; on a CPU within the limits of its job."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(_machine_free(), *_group_free(), _address_space_free())


def _machine_free() -> int:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _group_free(
    own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """What this process's control group and those around it leave, version 2 or 1: a SLURM
    job's or container's limit.

    Pages of files that were read count as used there, but the kernel gives them back: an
    LMDB would fill any limit.
    """
    left = []
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in GROUP_FILES:
            continue
        root = mount / controllers
        group = root / name.lstrip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
            with suppress(OSError, ValueError, KeyError):  # the group at the top has no limit
                left.append(_left_in(folder, GROUP_FILES[controllers]))
    return left


def _left_in(folder: Path, names: GroupFiles) -> int:
    """Bytes that one control group leaves; cached pages of files count as free.

    Raises:
        OSError, ValueError, KeyError: the group has no limit, or no such files.
    """
    lines = (folder / "memory.stat").read_text().splitlines()
    statistics = dict(line.split() for line in lines)
    active = int(statistics[f"{names.prefix}active_file"])
    inactive = int(statistics[f"{names.prefix}inactive_file"])
    limit = int((folder / names.limit).read_text())
    used = int((folder / names.used).read_text())
    return limit - used + active + inactive


def _address_space_free() -> int:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return (
        2**62
        if limit == resource.RLIM_INFINITY
        else limit - _kilobytes(Path("/proc/self/status"), "VmSize")
    )


def _kilobytes(path: Path, name: str) -> int:
    """A line of /proc in bytes."""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no {name}")


def peak(device: torch.device, *, since_now: bool = False) -> int:
    """Bytes this process has used at most; ``since_now`` forgets what was before."""
    if since_now:
        release(device)
    if device.type == "cuda":
        if since_now:
            torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.max_memory_allocated(device))
    if since_now:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _kilobytes(Path("/proc/self/status"), "VmHWM")
