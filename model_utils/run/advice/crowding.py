"""Whether other processes take the processors that the threads of this one compute on.

The threads of a product wait for one another, and spin meanwhile. Where another process has the
processor of one of them, all wait until it is given back, some milliseconds for each of the
hundreds of products of a step: with one busy process beside two threads on two cores, a step took
4 to 20 times as long as one thread needs alone.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

import torch

from dataloader import processors
from model_utils.runtime import log

Item = TypeVar("Item")

FIRST_LOOK = 20.0  # s
LATER_LOOKS = 120.0  # s
MUCH = 0.2  # of the time of all threads


class Crowding:
    """Says once that this process's threads wait for processors that others have; a process
    that is forked from it says nothing.

    Args:
        device: where is computed: on a GPU one thread of the host matters.
        clock: the time, s.
        waited: how long all threads waited so far, s; None where that is not known.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
        waited: Callable[[], float | None] = processors.seconds_waited,
    ) -> None:
        self._process = os.getpid()
        self._n_threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._clock = clock
        self._waited = waited
        self._since = clock()
        self._waited_then = waited()
        self._next = self._since + FIRST_LOOK

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a look after each whose time has come."""
        for item in items:
            yield item
            self.look()

    def look(self) -> None:
        """Say it, where it is time to look and they waited much; never twice."""
        now = self._clock()
        if now < self._next:
            return
        waited = self._waited()
        if waited is None or self._waited_then is None or os.getpid() != self._process:
            self._next = float("inf")
            return
        share = (waited - self._waited_then) / (now - self._since) / self._n_threads
        if share > MUCH:
            log.warning("%s", self._sentence(share, now - self._since))
            self._next = float("inf")
            return
        self._since = now
        self._waited_then = waited
        self._next = now + LATER_LOOKS

    def _sentence(self, share: float, seconds: float) -> str:
        taken = f"{100 * share:.0f} % of the last {seconds:.0f} s"
        if self._n_threads == 1:
            return f"warning: other processes had the processor of this one for {taken}"
        return (
            f"warning: other processes had the processors of this one's {self._n_threads} threads "
            f"for {taken}; they wait for one another, so that all is many times slower: give it "
            "cores of its own, or fewer threads (--threads; resume.py takes another number as well)"
        )


@cache
def of_process(device: torch.device) -> Crowding:
    """The one of this process, for who computes in many calls from many places.

    Args:
        device: where is computed.
    """
    return Crowding(device)
