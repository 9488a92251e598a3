"""What the processes of a run tell each other beside their sums: that one failed, that all are
there, that all leave.

The messages go through torch's store, a small server in the first process or in torchrun. It needs
no device and no order of calls, so it works where the others wait in a sum.
"""

import json
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch.distributed import DistError, DistStoreError, PrefixStore, Store, TCPStore

from dataloader.errors import InputError
from model_utils.ranks.ending import ended_by_signals
from model_utils.ranks.rank import Rank

log = logging.getLogger("mace_pretrain")  # the one that commands configure
FOR_EVER = timedelta(days=365)
TO_COME = timedelta(minutes=10)  # until all processes are there
TO_SAY = 15.0  # s of waiting, after which it is said
TO_LEAVE = timedelta(seconds=20)
SLICE = timedelta(seconds=0.5)  # of a wait
TO_HEAR = 2.0  # s in which the others learn why a run ends
TO_BE_HEARD = 1.0  # s in which the others are given time to hear this one
TO_END = 0.2  # s for a process to end by itself where another has failed
TO_SAVE = 20.0  # s for the first process, which saves before it ends
FAILED = "failed"


@contextmanager
def _said_if_long(rank: Rank) -> Iterator[None]:
    """Say for whom a process waits, where that is long: variables of a launcher may be left over
    from something else.
    """
    said = threading.Timer(
        TO_SAY,
        lambda: log.warning(
            "%s waits for the others at %s:%d (of %d processes, as RANK and WORLD_SIZE or SLURM's "
            "variables say), for up to %d minutes",
            *(rank, rank.address, rank.port, rank.size, TO_COME.seconds // 60),
        ),
    )
    said.daemon = True
    said.start()
    try:
        yield
    finally:
        said.cancel()


class Control:
    """The store of a run, and the thread that ends this process where another one failed.

    Args:
        rank: of this process.
        end: ends this process at once with a code.

    Raises:
        InputError: not all processes came, or the address cannot be used.
    """

    def __init__(self, rank: Rank, end: Callable[[int], None]) -> None:
        self.rank = rank
        self._end = end
        self._leaving = threading.Event()
        self._ended = threading.Event()  # another process failed, or the store is gone
        self._code: int | None = None  # with which another process failed
        agent_holds_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.holds_store = rank.is_first and not agent_holds_it
        if self.holds_store:  # two connections of every process end here
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._count = 0
        self.first_saves = False  # where another one fails; set while there is a state in memory
        with ended_by_signals(1):
            self.store = self._connected(holds=self.holds_store)
            self.all_here()
            self._ear = self._connected(holds=False)
        threading.Thread(target=self._listen, daemon=True).start()

    def _connected(self, *, holds: bool) -> Store:
        rank = self.rank
        try:
            with _said_if_long(rank):
                store = TCPStore(
                    rank.address, rank.port, None, holds, timeout=TO_COME, wait_for_workers=False
                )
        except (DistError, RuntimeError) as error:
            what = "offer" if holds else "reach"
            raise InputError(
                f"{rank} cannot {what} the meeting point {rank.address}:{rank.port}: "
                f"{_first_line(error)}; set MASTER_ADDR and MASTER_PORT to an address of the first "
                "machine and a free port there"
            ) from None
        # torchrun's store outlives a restart
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"mace/{attempt}", store)

    def all_here(self) -> None:
        """Wait until every process of the run has come.

        Raises:
            InputError: some did not.
        """
        self.store.set(f"here/{self.rank.number}", socket.gethostname())
        names = [f"here/{number}" for number in range(self.rank.size)]
        try:
            with _said_if_long(self.rank):
                self.store.wait(names, TO_COME)
        except (DistError, RuntimeError):
            absent = [number for number, name in enumerate(names) if not self.store.check([name])]
            raise InputError(
                f"{len(absent)} of {self.rank.size} processes did not come to "
                f"{self.rank.address}:{self.rank.port} within {TO_COME.seconds // 60} minutes (the "
                f"first is rank {absent[0]}); see what they say"
            ) from None

    def host_of(self, number: int) -> str:
        """Name of the machine that a process runs on."""
        return self.store.get(f"here/{number}").decode()

    # Failing

    def fail_first(self, code: int, *, at_once: bool = False) -> bool:
        """Say that this process ends with a code; whether it is the first to
        fail, which prints why.

        Args:
            code: with which all processes end.
            at_once: the first process does not save before it ends.
        """
        self._leaving.set()
        own = json.dumps({"rank": self.rank.number, "code": code, "at_once": at_once})
        try:
            first = self.store.compare_set(FAILED, "", own).decode() == own
        except (DistError, RuntimeError):  # the store went with its process
            return self._code is None
        if self.holds_store:
            self._wait_for_ears()
        return first

    def failed_code(self) -> int | None:
        """The code with which another process failed, where one says so within ``TO_HEAR``."""
        self._ended.wait(TO_HEAR)
        return self._code

    def _wait_for_ears(self) -> None:
        names = [
            f"heard/{number}" for number in range(self.rank.size) if number != self.rank.number
        ]
        with suppress(DistError, RuntimeError):
            self.store.wait(names, timedelta(seconds=TO_BE_HEARD))

    def _listen(self) -> None:
        at_once = not self.rank.is_first
        with suppress(DistError, RuntimeError):
            self._ear.wait([FAILED], FOR_EVER)
            said = json.loads(self._ear.get(FAILED))
            self._code = said["code"]
            at_once = at_once or said["at_once"]
            self._ear.set(f"heard/{self.rank.number}", "")
        self._ended.set()
        time.sleep(TO_END if at_once or not self.first_saves else TO_SAVE)
        if self._leaving.is_set():
            return
        if self._code is None and self.rank.number <= 1:  # nobody else is left to say it
            print(
                f"error: {self.rank}: the process that holds the run together is gone",
                file=sys.stderr,
            )
        self._end_with_others(1 if self._code is None else self._code)

    def _end_with_others(self, code: int) -> None:
        """End this process when all others are about to: srun kills what is left of a step
        of which one task ended.
        """
        self.wait_to_end(code)
        self._end(code)

    def wait_to_end(self, code: int) -> None:
        """Wait until all processes are about to end, but not long where one is dead."""
        with suppress(DistError, RuntimeError):
            self.store.set(f"ends/{self.rank.number}", "")
            names = [f"ends/{number}" for number in range(self.rank.size)]
            # with 1 one is dead, or about to be, and says nothing
            saves = self.first_saves and code != 1
            self.store.wait(names, timedelta(seconds=TO_SAVE if saves else TO_BE_HEARD))

    # Together

    def is_done_by_first(self) -> None:
        """The first process says that it has done something; the others wait for it,
        however long it takes.
        """
        self._count += 1
        name = f"done/{self._count}"
        if self.rank.is_first:
            self.store.set(name, "")
        else:
            self.wait([name])

    def wait_for_all(self) -> None:
        """Wait until every process is here, however long one takes."""
        self._count += 1
        self._meet(f"met/{self._count}", FOR_EVER)

    def leave(self) -> None:
        """Wait until all processes are ready to end; the one that holds the store ends last.

        Where another one fails meanwhile, this process ends with its code.
        """
        try:
            self._meet("leaves", FOR_EVER)  # until then another one may fail
            self._leaving.set()
            if self.holds_store:
                self._meet("left", TO_LEAVE)
            else:
                self.store.set(f"left/{self.rank.number}", "")
        except (DistError, RuntimeError):  # the store went with its process
            code = None if self._leaving.is_set() else self.failed_code()
            if code is not None:
                self._end_with_others(code)
            print(f"warning: {self.rank}: the others ended before this process", file=sys.stderr)

    def _meet(self, what: str, limit: timedelta) -> None:
        self.store.set(f"{what}/{self.rank.number}", "")
        self.wait([f"{what}/{number}" for number in range(self.rank.size)], limit)

    def wait(self, names: Sequence[str], limit: timedelta = FOR_EVER) -> None:
        """Wait for entries of the store, in slices between which signals are met."""
        end = time.monotonic() + limit.total_seconds()
        while True:
            try:
                return self.store.wait(list(names), SLICE)
            except DistStoreError:
                if time.monotonic() > end or self._ended.is_set():
                    raise


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
