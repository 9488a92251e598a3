"""Several processes of one run, over torch.distributed: NCCL between GPUs,
gloo between processors.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model_utils.errors import InputError, PeerFailed, PeerLost, StopRequested, VerificationError
from model_utils.ranks.control import FOR_EVER, Control
from model_utils.ranks.group import Asked
from model_utils.ranks.rank import Rank

T = TypeVar("T")


class Ranks:
    """The processes of a run that a launcher started together; see ``group.Group``.

    Every sum carries the number of processes that were asked to stop, so that all of them know it
    at the same step. On a GPU it is read one sum later: nothing waits for it.

    Args:
        control: of the run; all processes are there.
    """

    def __init__(self, control: Control) -> None:
        self.control = control
        self.stop: Asked | None = None
        self._said = 0
        self._flags: list[tuple[Tensor, torch.cuda.Event | None]] = []

    @property
    def rank(self) -> Rank:
        """Which of the processes this one is."""
        return self.control.rank

    def first_saves(self, saves: bool) -> None:
        """Give the first process time to save; over NCCL it could not,
        since its sum does not end.
        """
        self.control.first_saves = saves and self.device.type == "cpu"

    def connect(self, device: torch.device) -> None:
        """Open the connections between the processes.

        Their time is not limited: the others wait for the first process's disk as long as that
        takes, and a process that is gone is seen by its closed connection, or by the launcher.

        Raises:
            InputError: this process has another kind of device than the first one, so
                they could never add up.
        """
        if dist.is_initialized():
            return
        kind_of_first = self.of_first(device.type.encode).decode()
        if device.type != kind_of_first:
            raise InputError(
                f"{self.rank} on {self.control.host_of(self.rank.number)} computes on "
                f"{device.type}, rank 0 on {self.control.host_of(0)} on {kind_of_first}; give "
                f"--device {kind_of_first} or --device {device.type}, or leave out the machines "
                "that have other devices"
            )
        # in the next call a process could not be ended where another one failed before it
        self.wait_for_all()
        on_gpu = device.type == "cuda"
        with self._reached():
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=dist.PrefixStore("data", self.control.store),
                rank=self.rank.number,
                world_size=self.rank.size,
                timeout=FOR_EVER,
                # connects at once; the first lazy call has no time limit
                device_id=device if on_gpu else None,
            )
        self.device = device

    def mine(self, parts: Sequence[T]) -> Sequence[T]:
        """Every so-manieth part: where only the first ones hold something, all
        processes have of them.
        """
        assert len(parts) % self.rank.size == 0, (
            f"{len(parts)} parts for {self.rank.size} processes"
        )
        return parts[self.rank.number :: self.rank.size]

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the processes, float64."""
        with self._reached():
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def smallest(self, value: int) -> int:
        """The smallest of the processes' values."""
        return -int(
            self.largest(torch.tensor([-value], dtype=torch.float64, device=self.device)).item()
        )

    def zeros(self, n: int, device: torch.device) -> Tensor:
        """A vector of zeros, with one more behind it that says whether this
        process was asked to stop.
        """
        return torch.zeros(n + 1, dtype=torch.float64, device=device)[:n]

    def add_up(self, values: Tensor) -> None:
        """Put the sum over the processes in place of the values of ``zeros``."""
        whole = values._base
        assert whole is not None, "expected what zeros gave"
        if self.stop is not None and self.stop.reason is not None:
            whole[-1] = 1.0
        with self._reached():
            dist.all_reduce(whole)
        self._flags.append(_on_the_way(whole[-1:]))

    def in_order(self, rows: Tensor, numbers: Sequence[int], n: int) -> Tensor:
        """Rows of all processes by their numbers: every entry is a sum of one value and zeros."""
        width = rows.shape[1]
        placed = self.zeros(n * width, self.device)
        if len(numbers):
            placed.view(n, width)[list(numbers)] = rows.to(self.device)
        self.add_up(placed)
        return placed.view(n, width).to(rows.device)

    def give(self, values: Tensor) -> None:
        """Put the first process's values in place of those of the others."""
        on_device = values.to(self.device)
        with self._reached():
            dist.broadcast(on_device, src=0)
        values.copy_(on_device)

    def gathered(self, own: T) -> list[T]:
        """What every process has, by rank, in the first; nothing in the others."""
        every: list[T | None] | None = [None] * self.rank.size if self.rank.is_first else None
        with self._reached():
            dist.gather_object(own, every)
        return every or []  # type: ignore[return-value]

    def meet(self) -> None:
        """Raise StopRequested where a process was asked to stop."""
        self.add_up(self.zeros(0, self.device))
        self.raise_if_asked()

    def of_first(self, make: Callable[[], bytes]) -> bytes:
        """What the first process makes, through the store: for kilobytes, not for weights."""
        self._said += 1
        name = f"said/{self._said}"
        text = make().decode() if self.rank.is_first else ""
        with self._reached():
            if self.rank.is_first:
                self.control.store.set(name, text)
            else:
                self.control.wait([name])
            return self.control.store.get(name)

    def once(self, do: Callable[[], None]) -> None:
        """The first process does it; the others wait."""
        if self.rank.is_first:
            do()
        with self._reached():
            self.control.is_done_by_first()

    def wait_for_all(self) -> None:
        """Wait until every process is here."""
        with self._reached():
            self.control.wait_for_all()

    def require_equal(
        self, what: str, fingerprint: Tensor, refusal: type[Exception] = VerificationError
    ) -> None:
        """Compare a fingerprint, (n,) int64, with that of the others."""
        both = torch.cat([fingerprint, ~fingerprint]).to(self.device)
        with self._reached():
            dist.all_reduce(both, op=dist.ReduceOp.MAX)
        if torch.equal(both[: len(fingerprint)], ~both[len(fingerprint) :]):
            return
        all_prints = [
            torch.empty_like(fingerprint, device=self.device) for _ in range(self.rank.size)
        ]
        with self._reached():
            dist.all_gather(all_prints, fingerprint.to(self.device))
        number = next(
            k for k, other in enumerate(all_prints) if not torch.equal(other, all_prints[0])
        )
        raise refusal(
            f"{what} of rank {number} on {self.control.host_of(number)} are not those of rank 0 on "
            f"{self.control.host_of(0)}; older files are intact: the machines may have other files "
            "or code, or one of their devices is faulty"
        )

    def raise_if_asked(self) -> None:
        """Raise StopRequested where a process was asked to stop; on a GPU, before
        the sum before the last.
        """
        on_the_way = bool(self._flags) and self._flags[-1][1] is not None
        known = self._flags[: len(self._flags) - on_the_way]
        del self._flags[: len(known)]
        asked = any(_arrived(flag, event) for flag, event in known)
        if asked:
            own = None if self.stop is None else self.stop.reason
            raise StopRequested(own or "another process was asked to stop")

    def _reached(self) -> "_Reached":
        return _Reached(self.control)


class _Reached:
    """Within it, a connection that breaks is the failure of another process,
    whose code is looked for.
    """

    def __init__(self, control: Control) -> None:
        self.control = control

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is None or not issubclass(kind, RuntimeError):
            return
        code = self.control.failed_code()
        if code is not None:
            raise PeerFailed(code) from None
        raise PeerLost(
            "another process of the run is gone without a word "
            f"({str(error).strip().partition(chr(10))[0][:200]})"
        ) from None


def _on_the_way(flag: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A flag on its way to the host, and what says that it is there."""
    if flag.device.type == "cpu":
        return flag.clone(), None
    on_host = torch.empty(1, dtype=flag.dtype, pin_memory=True)
    on_host.copy_(flag, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return on_host, event


def _arrived(flag: Tensor, event: torch.cuda.Event | None) -> bool:
    if event is not None:
        event.synchronize()
    return bool(flag.item() > 0)


def close() -> None:
    """Close the connections between the processes, where there are any; NCCL's may wait
    for others, and are left.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        with suppress(RuntimeError):
            dist.destroy_process_group()
