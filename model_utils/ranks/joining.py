"""How a command comes to the other processes of its run, and how it leaves them.

Needs no torch where it is alone.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from dataloader.errors import InputError
from model_utils.errors import PeerFailed
from model_utils.ranks.ending import end_at_once
from model_utils.ranks.rank import Rank, find, idle_tasks

if TYPE_CHECKING:
    from model_utils.ranks.group import Asked, Group

Processes = Literal["one", "together", "apart"]


class Peers(Protocol):
    """The other processes, as a command's beginning and end see them."""

    rank: Rank

    def group(self, stop: "Asked | None" = None) -> "Group":
        """The processes as the run sees them, of which this one may be asked to stop."""
        ...

    def ends_with(self, code: int) -> bool:
        """Leave with a code; whether it is this process that says why."""
        ...

    def wait_to_end(self, code: int) -> None:
        """After a failure, wait until all others are about to end."""
        ...


class _Nobody:
    """No other processes."""

    rank = Rank()

    def group(self, stop: "Asked | None" = None) -> "Group":
        """One process."""
        from model_utils.ranks.group import ALONE

        return ALONE

    def ends_with(self, code: int) -> bool:
        """Nobody else would say it."""
        return True

    def wait_to_end(self, code: int) -> None:
        """There is nobody to wait for."""


class _Others:
    """The processes that a launcher started together."""

    def __init__(self, rank: Rank) -> None:
        from model_utils.ranks.control import Control
        from model_utils.ranks.together import Ranks

        self.rank = rank
        self._control = Control(rank, end_at_once)
        self._group = Ranks(self._control)

    def group(self, stop: "Asked | None" = None) -> "Group":
        """The processes as the run sees them."""
        self._group.stop = stop
        return self._group

    def ends_with(self, code: int) -> bool:
        """Wait for the others where all is done; else tell them the code.

        The first to fail says why.
        """
        from model_utils.ranks.together import close

        if code == 0:
            self._control.leave()
            close()
            return self.rank.is_first
        return self._control.fail_first(code)

    def wait_to_end(self, code: int) -> None:
        """Close the connections, since others may be in a sum with this one, and
        wait until they end too.
        """
        from model_utils.ranks.together import close

        close()
        self._control.wait_to_end(code)

    def give_up(self, code: int) -> None:
        """End all processes at once, whatever they are doing."""
        if self._control.fail_first(code, at_once=True):
            print(
                "stopped: no step ended since the signal; the last checkpoint goes on",
                file=sys.stderr,
            )
        self._control.wait_to_end(code)
        end_at_once(code)


NOBODY = _Nobody()
_peers: Peers = NOBODY


def join(environ: Mapping[str, str], processes: Processes) -> Peers:
    """Come to the other processes of the run, where a launcher started several.

    Args:
        environ: of this process.
        processes: how several of them do the command.

    Raises:
        InputError: the launcher's variables contradict each other, the others do not come, or the
            command is for one process.
        PeerFailed: it is, and the first process says so.
    """
    global _peers
    rank = find(environ)
    if rank.size == 1 or processes == "apart":
        _peers = NOBODY
    elif processes == "together":
        # it would print stacks where another process ends
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        _peers = _Others(rank)
    elif rank.is_first:
        raise InputError(
            f"this command is for one process, and {rank.launcher} started "
            f"{rank.size}; start it without"
        )
    else:
        raise PeerFailed(InputError.exit_code)
    return _peers


def group_of(stop: "Asked | None" = None) -> "Group":
    """The processes of this run, in which all hear where one is asked to stop."""
    return _peers.group(stop)


def this_rank() -> Rank:
    """Which of them this process is."""
    return _peers.rank


def giving_up() -> Callable[[int], None] | None:
    """What ends all processes at once with a code; None where this one is alone."""
    return _peers.give_up if isinstance(_peers, _Others) else None


def idle_warning() -> str | None:
    """A sentence for where a job has several tasks and the command was
    started in one of them alone.
    """
    tasks = idle_tasks(os.environ)
    if not tasks:
        return None
    return (
        f"this job has {tasks} tasks, but the command was not started by srun: one of them "
        "computes; start it as `srun python …`"
    )
