"""Batches in a given order, made in worker processes where asked, pinned where they go to a GPU."""

import logging
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from dataloader import parallel
from dataloader.batch import Batch, BatchBuffer
from dataloader.batching import (
    Budget,
    PlannedBatches,
    epoch_order,
    mixed_order,
    pack,
    refuse_oversized,
)
from dataloader.dataset import Dataset
from dataloader.errors import AwayError, InputError

log = logging.getLogger("mace_pretrain")  # the one that commands configure
Plan = Sequence[NDArray[np.int64]]  # indices of the structures of each batch


class Fault(NamedTuple):
    """Why a batch could not be made: a worker's exception would arrive wrapped in a traceback."""

    text: str
    is_away: bool


class Loader:
    """Yields the batches of a plan; workers live as long as the loader.

    The content and order of the batches are the plan's alone: the number of workers
    changes nothing but the time.

    Args:
        dataset: the structures.
        num_workers: processes that make batches; 0 makes them here.
        pin_memory: put them where a GPU copies from without waiting.
        prepare: adds to every batch what the network needs besides, where the batch is made.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        prepare: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.dataset = dataset
        self._plan = _PlanSampler()
        self._fetch = _Fetch(dataset, prepare, in_one_buffer=num_workers > 0 or pin_memory)
        self._notes = parallel.SharedNotes(num_workers)
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._workers = self._new_workers() if num_workers else None

    def _new_workers(self) -> "_Workers":
        parallel.share_temporary_folder()
        loader: DataLoader[BatchBuffer] = DataLoader(
            self._fetch,  # type: ignore[arg-type]
            sampler=self._plan,
            batch_size=None,
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
            persistent_workers=True,
            generator=torch.Generator(),  # or every epoch would draw a seed from the global one
            worker_init_fn=partial(_begin, notes=self._notes),
        )
        return _Workers(loader)

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The batches of a plan, in its order.

        Raises:
            InputError: a record could not be read; it names file and key. Or a worker
                died; it names the file.
        """
        fetched = self._by_workers(plan) if self._workers is not None else self._made_here(plan)
        for item in fetched:
            if isinstance(item, Fault):
                raise (AwayError if item.is_away else InputError)(item.text)
            yield item.batch() if isinstance(item, BatchBuffer) else item

    def _made_here(self, plan: Plan) -> Iterator[Batch | BatchBuffer | Fault]:
        for indices in plan:
            item = self._fetch[indices]
            yield item.pin_memory() if self._pin_memory and isinstance(item, BatchBuffer) else item

    def _by_workers(self, plan: Plan) -> Iterator[BatchBuffer | Fault]:
        """What the workers make; after one was killed, others make what is left of the plan,
        so that nothing differs.

        Raises:
            InputError: a worker died of what it read, or was killed again before
                the next batch was there.
        """
        assert self._workers is not None
        done = 0
        retried = -1
        while True:
            self._plan.plan = plan[done:] if done else plan  # a slice may make all batches at once
            try:
                for item in self._workers.items():
                    yield item
                    done += 1
                return
            except _WorkerDied as death:
                number = death.worker
                sentence = parallel.death(death.exitcode, self._notes.read(death.worker))
                if death.exitcode not in parallel.FROM_OUTSIDE or retried == done:
                    raise InputError(sentence) from None
            retried = done
            log.warning("warning: worker %d: %s; new ones do its work", number, sentence)
            self._workers.end()
            self._workers = self._new_workers()


class _WorkerDied(Exception):
    """A worker ended before its work."""

    def __init__(self, worker: int, exitcode: int | None) -> None:
        super().__init__(worker, exitcode)
        self.worker = worker
        self.exitcode = exitcode


class _Workers:
    """The processes of a DataLoader, whose death is met here, within five seconds, and not
    by a handler anywhere.
    """

    def __init__(self, loader: DataLoader[BatchBuffer]) -> None:
        self._loader = loader
        self._processes: list[BaseProcess] = []
        self._ending: weakref.finalize[[list[BaseProcess]], object] | None = None

    def items(self) -> Iterator[BatchBuffer | Fault]:
        """What they make of the sampler's plan of the moment.

        Raises:
            _WorkerDied: one is dead, since before or during this.
        """
        try:
            self._raise_for_the_dead(timeout=0)
            iterator = self._started()
        except (RuntimeError, OSError, EOFError):
            self._raise_for_the_dead(timeout=2)
            raise
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError):
                # the last two: what it had sent is gone with it
                self._raise_for_the_dead(timeout=2)
                raise
            yield item

    def _started(self) -> Iterator[BatchBuffer | Fault]:
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            iterator = iter(self._loader)
            if in_main_thread:
                # torch's own would raise in the middle of a step
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._processes = list(iterator._workers)  # type: ignore[attr-defined]
        if self._ending is None or not self._ending.alive:
            self._ending = weakref.finalize(iterator, _kill, self._processes)
        return iterator

    def _raise_for_the_dead(self, timeout: float) -> None:
        gone = (
            wait([process.sentinel for process in self._processes], timeout=timeout)
            if self._processes
            else []
        )
        for process in self._processes:  # its files are closed before it can be asked how it ended
            if process.sentinel in gone:
                process.join(timeout=5)
        for number, process in enumerate(self._processes):
            if not process.is_alive():
                raise _WorkerDied(number, process.exitcode)

    def end(self) -> None:
        """End those that are left; torch then has nobody to wait for."""
        _kill(self._processes)
        for process in self._processes:
            process.join()


def _kill(workers: list[BaseProcess]) -> None:
    """End what is left when the process ends: Python would send SIGTERM, which workers
    outlive, and wait for ever.
    """
    for worker in workers:
        if worker.is_alive():
            worker.kill()


class _PlanSampler(Sampler[NDArray[np.int64]]):
    """Hands the plan of the moment to torch's DataLoader."""

    def __init__(self) -> None:
        self.plan: Plan = ()

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return iter(self.plan)


class _Fetch:
    """Makes one batch, or says why it cannot be made."""

    def __init__(
        self, dataset: Dataset, prepare: Callable[[Batch], Batch] | None, *, in_one_buffer: bool
    ) -> None:
        self.dataset = dataset
        self.prepare = prepare
        self.in_one_buffer = in_one_buffer

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch | BatchBuffer | Fault:
        try:
            batch = self.dataset.batch(indices.tolist())
        except InputError as error:
            return Fault(str(error), is_away=isinstance(error, AwayError))
        try:
            batch = batch if self.prepare is None else self.prepare(batch)
        except ValueError as error:
            return Fault(f"{self.dataset.names(batch.index)}: {error}", is_away=False)
        return BatchBuffer(batch) if self.in_one_buffer else batch


def _begin(worker: int, notes: parallel.SharedNotes) -> None:
    """In a worker: outlive signals to the process group, note what is read, leave
    the cores to the others.
    """
    parallel.live_and_die_with_the_run()
    parallel.say_nothing_of_a_run_that_left()
    notes.use(worker)
    torch.set_num_threads(1)


class EpochBatches:
    """The training batches of any epoch: order from (seed, epoch), cut by the budget."""

    def __init__(self, dataset: Dataset, budget: Budget, seed: int, loader: Loader) -> None:
        self.dataset = dataset
        self.budget = budget
        self.seed = seed
        self.loader = loader
        n_edges = dataset.n_edges if budget.edges is not None else None
        self._sizes = (dataset.n_atoms, n_edges)
        self._own, self._shares = dataset.shares()
        self._n_batches: dict[int, int] = {}
        refuse_oversized(*self._sizes, budget, dataset.name)

    @property
    def structures_per_epoch(self) -> int:
        """Structures of an epoch, the same in all."""
        if not self._shares:
            return len(self.dataset)
        return len(self._own) + sum(share.taken for share in self._shares)

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch; its plan is made once for that."""
        if epoch not in self._n_batches:
            self._n_batches[epoch] = len(self.plan(epoch))
        return self._n_batches[epoch]

    def plan(self, epoch: int) -> PlannedBatches:
        """Indices of the structures of every batch of an epoch."""
        if self._shares:
            order = mixed_order(self._own, self._shares, self.seed, epoch)
        else:
            order = epoch_order(len(self.dataset), self.seed, epoch)
        return pack(order, *self._sizes, self.budget)

    def batches(self, plan: Plan) -> Iterator[Batch]:
        """The batches of (a part of) a plan."""
        return self.loader.batches(plan)


def evaluation_plan(dataset: Dataset, indices: NDArray[np.int64], budget: Budget) -> Plan:
    """Batches of some structures of a data set, in their own order."""
    n_edges = dataset.n_edges if budget.edges is not None else None
    return pack(indices, dataset.n_atoms, n_edges, budget)
