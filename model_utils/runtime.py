"""Device, precision, threads, seed and the log: what a process sets once,
before anything is built.
"""

import logging
import logging.handlers
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from dataloader import processors, progress, streams
from dataloader.errors import InputError
from model_utils.ranks.joining import this_rank
from model_utils.ranks.rank import Rank

log = logging.getLogger("mace_pretrain")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# the user's word on how CUDA's memory is divided
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def dtype_of(name: str | None, default: torch.dtype) -> torch.dtype:
    """The precision of an option, or the default."""
    return default if name is None else DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` → ``float32``."""
    return str(dtype).removeprefix("torch.")


def start(
    *, device: str, dtype: torch.dtype, threads: int | None, seed: int, deterministic: bool = False
) -> torch.device:
    """Set up precision, threads, seeds and determinism for the whole process; returns
    the device to compute on.

    Products of float32 matrices are computed in float32 everywhere: containers of NVIDIA switch
    TF32 on, which keeps 10 of 23 bits, by an environment variable.

    Args:
        device: its name, ``auto`` for CUDA where there is one.
        dtype: torch's default precision.
        threads: of torch on the CPU; as torch has it where None.
        seed: of torch's and Python's generators.
        deterministic: refuse operations of CUDA whose sums have no fixed order.

    Raises:
        InputError: there is no such device.
    """
    if threads is None:
        threads = _own_share_of_cores()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)  # parts of mace's forward make constants in it
    torch.manual_seed(seed)
    random.seed(seed)  # drawn by no one today; without it no two runs would hold the same state
    if deterministic:
        # cuBLAS asks for it, before CUDA is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=False)
        # no memory is read before it is written: to fill it first would cost a
        # pass over every new tensor
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    if not any(name in os.environ for name in ALLOCATOR):
        # batches have all sizes: blocks that cannot grow fragment the memory.
        # Read as CUDA is first used
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    found = find_device(device)
    if found.type == "cuda":
        # else the thread that pins batches, cuBLAS and other libraries take the first one
        torch.cuda.set_device(found)
    return found


def _own_share_of_cores() -> int | None:
    """Threads where torch would make more than the process has cores for; None: as torch has it."""
    share = own_cores()
    chosen = "OMP_NUM_THREADS" in os.environ or share == processors.n_allowed()
    return None if chosen else share


def own_cores() -> int:
    """Cores for the threads or children of this process: where several on a machine, or within
    a container's limit, may use all of them, its share.
    """
    return processors.n_cores_of_a_rank(this_rank().local_size)


def find_device(name: str) -> torch.device:
    """A device by name; ``auto`` is CUDA where there is one.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"--device {name} is no device; expected cpu, cuda, cuda:N or auto"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; expected cpu, cuda, cuda:N or auto")
    if device.type == "cpu" and device.index:
        raise InputError(
            f"--device {name}: the processors are one device, cpu; --threads says how many are used"
        )
    rank = this_rank()
    if device.type == "cuda" and rank.size > 1:
        if device.index is not None and rank.local_size > 1:
            raise InputError(
                f"--device {name} for {rank.local_size} processes on this machine; give "
                "cuda: each has its own"
            )
        return _own_of_several(rank)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(
                f"--device {name}: this machine has {count} CUDA device(s); use another, or cpu"
            )
        return torch.device("cuda", device.index or 0)
    return torch.device("cpu")


def _own_of_several(rank: Rank) -> torch.device:
    """The GPU of this process among those on its machine.

    Raises:
        InputError: there are fewer GPUs than processes.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count != 1 and count < rank.local_size:
        raise InputError(
            f"{rank}: {rank.local_size} processes on this machine see {count} GPUs; start as "
            "many processes as GPUs"
        )
    # where a launcher shows each its own
    device = torch.device("cuda", 0 if count == 1 else rank.local)
    torch.cuda.set_device(device)
    return device


def start_log() -> None:
    """Log to the terminal, and nowhere else but to handlers that are not ours."""
    rank = this_rank()
    logging.raiseExceptions = False  # a line that cannot be written must not print a traceback
    if not rank.is_first:
        progress.be_quiet()
    progress.spoken()
    # what all find, the first says
    log.setLevel(logging.INFO if rank.is_first else logging.CRITICAL)
    log.propagate = False
    _remove_own_handlers()
    log.addHandler(_formatted(_BesideProgress()))


@contextmanager
def log_left_as_it_was() -> Iterator[None]:
    """Give the log back: its handlers, its level, and whether others than they hear of it."""
    before = list(log.handlers)
    level = log.level
    is_heard_above = log.propagate
    raises = logging.raiseExceptions
    try:
        yield
    finally:
        _remove_own_handlers()
        for handler in before:
            log.addHandler(handler)
        log.setLevel(level)
        log.propagate = is_heard_above
        logging.raiseExceptions = raises


def speak_of_own() -> None:
    """From now on what is warned of is this process's own matter: of other
    processes than the first too.
    """
    rank = this_rank()
    if not rank.is_first:
        log.setLevel(logging.WARNING)
        for handler in _own_handlers():
            handler.setFormatter(_OneLine(f"%(asctime)s {rank}: %(message)s", datefmt="%H:%M:%S"))


@contextmanager
def log_of_a_run(*, with_file: bool) -> Iterator[None]:
    """Log to the terminal and, where a file is wanted, hold the lines for it until ``write_log``
    names it; at the end it is closed.
    """
    start_log()
    if with_file:
        log.addHandler(_HeldLines(capacity=10**9, flushLevel=logging.CRITICAL + 1))
    try:
        yield
    finally:
        for handler in _own_handlers():
            if isinstance(handler, _LogFile | _HeldLines):
                log.removeHandler(handler)
                handler.close()


def write_log(path: Path) -> None:
    """Log to a file too, which is added to; lines that were held come first.

    Raises:
        OSError: it cannot be opened.
    """
    file = _formatted(_LogFile(path))
    for held in [h for h in log.handlers if isinstance(h, _HeldLines)]:
        held.setTarget(file)
        held.close()  # hands its lines on
        log.removeHandler(held)
    log.addHandler(file)


def _own_handlers() -> list[logging.Handler]:
    """Handlers of the log that were made here; a program may have added others."""
    own = _BesideProgress | _LogFile | _HeldLines
    return [handler for handler in log.handlers if isinstance(handler, own)]


def _remove_own_handlers() -> None:
    for handler in _own_handlers():
        log.removeHandler(handler)
        handler.close()


def _formatted(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(_OneLine("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    return handler


class _OneLine(logging.Formatter):
    """Names in data may hold line ends and codes that steer a terminal;
    neither gets into the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of printable characters."""
        return streams.printable(super().format(record))


class _BesideProgress(logging.Handler):
    """Writes above tqdm's bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line to stdout; where that fails, the run goes on."""
        from tqdm import tqdm

        # of a stream that is not the process's own, see ``streams.guard``
        with suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=sys.stdout)
        progress.spoken()
        for sentence in streams.news():
            log.warning("warning: %s", sentence)


class _HeldLines(logging.handlers.MemoryHandler):
    """Holds lines until the file that they are for has a name."""


class _LogFile(logging.Handler):
    """Adds lines to a file; those that a full disk refuses are written later, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = streams.PatientFile.adding_to(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or keep it."""
        self._file.write(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        if (sentence := self._file.news()) is not None:
            log.warning("warning: %s", sentence)

    def flush(self) -> None:
        """Try again to write what waits."""
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def computing(device: torch.device) -> dict[str, Any]:
    """What decides the order of sums, and with it the last bits, besides the code."""
    cuda = device.type == "cuda"
    of_cuda = {
        "tf32": torch.get_float32_matmul_precision() != "highest",
        "cuda": torch.version.cuda,
    }
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled() or not cuda,
        **(of_cuda if cuda else {}),
    }


def not_bitwise(
    code: Mapping[str, str],
    code_now: Mapping[str, str],
    before: Mapping[str, Any],
    now_on: Mapping[str, Any],
) -> Iterator[str]:
    """Why a continued run need not equal the unbroken one in the last bits, one reason at a time.

    Args:
        code: ``versions.code_version`` of the checkpoint.
        code_now: ``versions.code_version`` of this process.
        before: what ``computing`` gave where the checkpoint was written.
        now_on: what ``computing`` gives here.
    """
    now: dict[str, Any] = {**code_now, **now_on}
    for name, was in {**code, **before}.items():
        if name in now and now[name] != was:
            yield f"{name.replace('_', ' ')} {was} → {now[name]}"
    if not now["deterministic"]:
        yield "sums on CUDA have no fixed order without --deterministic"
