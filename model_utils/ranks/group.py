"""The processes of a run as the code sees them: what one of them computes, and what they add,
exchange and agree on.

A single process has the same interface (`Alone`) and never imports torch.distributed.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from model_utils.errors import VerificationError
from model_utils.ranks.rank import Rank

T = TypeVar("T")


class Asked(Protocol):
    """What knows whether this process was asked to stop."""

    @property
    def reason(self) -> str | None:
        """Why, or None."""
        ...


class Group(Protocol):
    """The processes of a run.

    Every method but ``mine`` is called by all of them, in the same order.
    """

    @property
    def rank(self) -> Rank:
        """Which of the processes this one is."""
        ...

    def first_saves(self, saves: bool) -> None:
        """Whether the first process has a state to save, and is given time for it,
        where another one fails.
        """
        ...

    def mine(self, parts: Sequence[T]) -> Sequence[T]:
        """The parts that this process computes, equally many in each; their number is a
        multiple of the processes'.
        """
        ...

    def connect(self, device: torch.device) -> None:
        """Get ready to exchange tensors on a device; before it only ``of_first``
        and ``once`` are of use.
        """
        ...

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the processes, float64."""
        ...

    def smallest(self, value: int) -> int:
        """The smallest of the processes' values."""
        ...

    def zeros(self, n: int, device: torch.device) -> Tensor:
        """A vector, float64, to be filled and given to ``add_up``."""
        ...

    def add_up(self, values: Tensor) -> None:
        """Put the sum over the processes in place of the values of ``zeros``.

        Its order is not fixed.
        """
        ...

    def in_order(self, rows: Tensor, numbers: Sequence[int], n: int) -> Tensor:
        """Rows of all processes by their numbers.

        Args:
            rows: (k, width), float64; this process's.
            numbers: of the k rows, each from 0 to n - 1 and in one process alone.
            n: of all rows.

        Returns:
            (n, width), float64.
        """
        ...

    def give(self, values: Tensor) -> None:
        """Put the first process's values in place of those of the others."""
        ...

    def gathered(self, own: T) -> list[T]:
        """What every process has, by rank, in the first; nothing in the others."""
        ...

    def meet(self) -> None:
        """Raise StopRequested where a process was asked to stop; to be called now
        and then in long work.
        """
        ...

    def of_first(self, make: Callable[[], bytes]) -> bytes:
        """What the first process makes, in all of them; the others do not make it."""
        ...

    def once(self, do: Callable[[], None]) -> None:
        """The first process does it; the others wait until it is done, however long that takes."""
        ...

    def wait_for_all(self) -> None:
        """Wait until every process is here, however long one takes."""
        ...

    def require_equal(
        self, what: str, fingerprint: Tensor, refusal: type[Exception] = VerificationError
    ) -> None:
        """Compare a fingerprint, (n,) int64, of what all processes must have alike.

        Raises:
            VerificationError: naming a process that has another than the first; or what
                was given as ``refusal``.
        """
        ...

    def raise_if_asked(self) -> None:
        """Raise StopRequested where a process was asked to stop before the last sum; in
        all of them at one call.
        """
        ...


class Alone:
    """One process."""

    rank = Rank()

    def first_saves(self, saves: bool) -> None:
        """There is no other that could fail."""

    def mine(self, parts: Sequence[T]) -> Sequence[T]:
        """All of them."""
        return parts

    def connect(self, device: torch.device) -> None:
        """There is nobody to exchange with."""

    def largest(self, values: Tensor) -> Tensor:
        """They are it."""
        return values

    def smallest(self, value: int) -> int:
        """The value itself, of one process."""
        return value

    def zeros(self, n: int, device: torch.device) -> Tensor:
        """All zero."""
        return torch.zeros(n, dtype=torch.float64, device=device)

    def add_up(self, values: Tensor) -> None:
        """Nothing is added."""

    def in_order(self, rows: Tensor, numbers: Sequence[int], n: int) -> Tensor:
        """The rows in the order of their numbers."""
        placed = torch.zeros(n, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        placed[list(numbers)] = rows
        return placed

    def give(self, values: Tensor) -> None:
        """There is nobody to give to."""

    def gathered(self, own: T) -> list[T]:
        """What this process has, alone in a list."""
        return [own]

    def meet(self) -> None:
        """A request to stop is met where it arrives."""

    def of_first(self, make: Callable[[], bytes]) -> bytes:
        """Make it."""
        return make()

    def once(self, do: Callable[[], None]) -> None:
        """Do it."""
        do()

    def wait_for_all(self) -> None:
        """One process has nobody to wait for."""

    def require_equal(
        self, what: str, fingerprint: Tensor, refusal: type[Exception] = VerificationError
    ) -> None:
        """There is nobody to compare with."""

    def raise_if_asked(self) -> None:
        """A request to stop is met where it arrives, see ``interruption``."""


ALONE = Alone()
